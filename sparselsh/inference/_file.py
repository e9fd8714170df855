"""What a file holds of a converted network: weights, plans, indexes and the report."""
from __future__ import annotations

import itertools
import json
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _files
from .. import _validation as check
from .._threads import resolve
from .._version import __version__
from ..index import STORAGES, QuantizedRows, engine_of_state, state
from ._layer import PLANS, ServedLayer
from ._report import ConversionReport, LayerReport
from .readers.affine import KINDS, Affine

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .._arrays.types import PathLike

FORMAT = "sparselsh.inference"
DAMAGES = (AttributeError, IndexError, KeyError, OverflowError, RecursionError, TypeError,
           ValueError)


def write(path: PathLike, layers: Sequence[ServedLayer], report: ConversionReport) -> None:
    """Write a converted network as one safetensors file."""
    tensors: dict[str, np.ndarray] = {}
    configs = []
    for i, layer in enumerate(layers):
        arrays, config = _layer_state(layer)
        tensors |= {f"layers.{i}.{name}": a for name, a in arrays.items() if a is not None}
        configs.append(config)
    config = {"version": __version__, "layers": configs, "report": report.to_dict()}
    _files.write_checked(path, tensors, FORMAT, json.dumps(config))


def read(path: PathLike, mmap: bool,
         n_threads: int | None) -> tuple[list[ServedLayer], ConversionReport]:
    """Layers and report of a file; with `mmap` the float32 weights stay in it."""
    mapped = (lambda name: name.endswith(".weight")) if mmap else None
    tensors, metadata = _files.read(path, FORMAT, mapped=mapped)

    try:
        config = json.loads(metadata["config"])
        layers = [
            _restored_layer(entry, _files.with_prefix(tensors, f"layers.{i}."), mmap, n_threads)
            for i, entry in enumerate(config["layers"])]
        if not layers or any(a.n_out != b.n_in for a, b in itertools.pairwise(layers)):
            raise ValueError("its layers do not fit each other")
        for layer in layers[:-1]:
            is_whole = layer.kept is not None and layer.exponents is not None
            if "lsh" in layer.plan.values() and not is_whole:
                raise ValueError(f"kept or exponents of {layer.name} are missing")

        return layers, _restored_report(config["report"])
    except DAMAGES as error:
        raise _files.damaged(path, "network", error) from error


def _restored_report(report: dict[str, Any]) -> ConversionReport:
    for part in (report, *report["layers"]):  # keys of JSON are strings
        for key in ("microseconds", "microseconds_dense"):
            part[key] = {int(n): us for n, us in part[key].items()}
    layers = [LayerReport(**part | {"shape": tuple(part["shape"])}) for part in report["layers"]]
    return ConversionReport(**report | {"layers": layers})


# -- a layer as arrays and plain values ----------------------------------------------------------


def _layer_state(layer: ServedLayer) -> tuple[dict[str, Any], dict[str, Any]]:
    tensors = {"weight": layer.values, "bias": layer.bias, "importance": layer.importance,
               "exponents": layer.exponents}
    config = {name: getattr(layer, name) for name in
              ("name", "kind", "activation", "mode", "padding", "width", "has_bias", "input_major",
               "plan", "kept", "storage")}
    if layer.rows is not None:
        tensors |= layer.rows.tensors("rows")
    if layer.index is not None:
        arrays, config["index"] = state(layer.index)
        tensors |= {f"index.{name}": a for name, a in arrays.items()}
    return tensors, config


def _restored_layer(config: dict[str, Any], tensors: dict[str, np.ndarray], mapped: bool,
                    n_threads: int | None) -> ServedLayer:
    """The layer of `_layer_state`, checked, because kernels do not check it."""
    weight, bias = tensors["weight"], tensors["bias"]
    linear = check.choice(config["kind"], "kind", KINDS) == "linear"
    input_major = bool(config["input_major"]) and linear
    if weight.ndim != 2 or weight.dtype != np.float32:
        raise ValueError(f"weight must be a float32 matrix, got {weight.dtype} of shape "
                         f"{weight.shape}")
    if not mapped:
        check.dense(weight, "weight")

    activation = config["activation"]
    if activation is not None:
        activation = check.choice(activation, "activation", ("relu",))
    affine = Affine(
        str(config["name"]), weight.T if input_major else weight, bias, activation, config["kind"],
        check.choice(config["mode"], "mode", ("sum", "mean")), config["padding"],
        check.integer(config["width"], "width"))
    layer = ServedLayer(affine, check.choice(config["storage"], "storage", STORAGES))
    layer.values, layer.input_major = weight, bool(config["input_major"]) or not linear
    layer.bias = check.vector(bias, "bias", layer.n_out)
    layer.has_bias = bool(config["has_bias"])
    layer.plan = {kind: check.choice(config["plan"][kind], "plan", PLANS) for kind in layer.plan}
    if layer.input_major and "lsh" in layer.plan.values():
        raise ValueError("its plans contradict each other")

    if "importance" in tensors:
        layer.importance = check.vector(tensors["importance"], "importance", layer.n_out)
    if "exponents" in tensors:
        layer.exponents = tensors["exponents"].astype(np.int32)
        check.vector(layer.exponents, "exponents", layer.n_out)
    if config["kept"] is not None:
        layer.kept = check.integer(config["kept"], "kept", maximum=layer.n_out)
        if layer.importance is None:
            raise ValueError("importance is missing")

    if "rows" in tensors:
        layer.rows = QuantizedRows.restored(layer.storage, weight.shape, tensors["rows"],
                                            tensors.get("rows_scales"))
    if "index" in config:
        arrays = _files.with_prefix(tensors, "index.")
        layer.index = engine_of_state(layer.values, layer.bias, arrays, config["index"],
                                      resolve(n_threads))
    elif "lsh" in layer.plan.values():
        raise ValueError("its index is missing")
    return layer
