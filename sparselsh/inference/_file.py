"""What a file holds of a converted network: weights, plans, indexes and the report."""
from __future__ import annotations

import contextlib
import itertools
import json
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .. import _files
from .. import _validation as check
from .._threads import resolve
from .._version import __version__
from ..calibration import Calibration
from ..index import STORAGES, QuantizedRows, engine_of_state, state
from ._int8_outputs import MAX_INPUTS
from ._layer import PLANS, ServedLayer, reads_quantized_rows
from ._refined import StoredRefinement
from ._report import ConversionReport, LayerReport
from .readers.affine import ACTIVATIONS, KINDS, Affine

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from .._arrays.types import PathLike

FORMAT = "sparselsh.inference"
SHARED_ROWS = ("rows", "rows_scales")  # of a compact layer and its index: the file has them once
DAMAGES = (AttributeError, IndexError, KeyError, OverflowError, RecursionError, TypeError,
           ValueError)


class Whole(NamedTuple):
    """All that a file holds."""

    layers: list[ServedLayer]
    report: ConversionReport
    refinement: StoredRefinement | None
    calibration: Calibration | None
    tensors: dict[str, np.ndarray]
    config: dict[str, Any]


def write(path: PathLike, layers: Sequence[ServedLayer], report: ConversionReport,
          refinement: StoredRefinement | None = None, calibration: Calibration | None = None, *,
          kind: str = FORMAT, tensors: dict[str, np.ndarray] | None = None,
          config: dict[str, Any] | None = None) -> None:
    """Write a converted network as one safetensors file, and what else is given."""
    arrays, plain = _state(layers, refinement)
    plain |= {"version": __version__, "report": report.to_dict()} | (config or {})
    if calibration is not None:
        plain["calibration"] = calibration.config()
    _files.write_checked(path, arrays | (tensors or {}), kind, json.dumps(plain))


def stored_bytes(layers: Sequence[ServedLayer], refinement: StoredRefinement | None) -> int:
    """Bytes of all arrays of a file."""
    return sum(a.nbytes for a in _state(layers, refinement)[0].values())


def _state(layers: Sequence[ServedLayer], refinement: StoredRefinement | None
           ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    tensors: dict[str, np.ndarray] = {}
    configs = []
    for i, layer in enumerate(layers):
        arrays, plain = _layer_state(layer)
        tensors |= {f"layers.{i}.{name}": np.ascontiguousarray(a)
                    for name, a in arrays.items() if a is not None}
        configs.append(plain)
    config: dict[str, Any] = {"layers": configs}
    if refinement is not None:
        tensors |= {f"refinement.{name}": a for name, a in refinement.tensors().items()}
        config["refinement"] = refinement.config()
    return tensors, config


@contextlib.contextmanager
def named(path: PathLike) -> Iterator[None]:
    """Errors by damaged contents as a ValueError that names the file."""
    try:
        yield
    except DAMAGES as error:
        raise _files.damaged(path, "network", error) from error


def read_whole(path: PathLike, mmap: bool, n_threads: int | None, *, kind: str = FORMAT) -> Whole:
    """All of a file of the format `kind`; with `mmap` the weights of the layers stay in it."""
    mapped = (lambda name: name.endswith((".weight", ".rows"))) if mmap else None
    tensors, metadata = _files.read(path, kind, mapped=mapped)

    with named(path):
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
        if layers[-1].input_major and "int8" in layers[-1].plan.values():
            raise ValueError("its plans contradict each other")  # it reads weights by output

        refinement = None
        if "refinement" in config:
            if layers[0].kind != "linear":
                raise ValueError("its refinement has no features to read")
            refinement = StoredRefinement.restored(
                _files.with_prefix(tensors, "refinement."), config["refinement"],
                (layers[-1].n_out, layers[0].n_in))
        calibration = None
        if "calibration" in config:
            calibration = Calibration.from_config(config["calibration"], layers[-1].n_out)
        return Whole(layers, _restored_report(config["report"]), refinement, calibration, tensors,
                     config)


def _restored_report(report: dict[str, Any]) -> ConversionReport:
    for part in (report, *report["layers"]):  # keys of JSON are strings
        for key in ("microseconds", "microseconds_dense"):
            part[key] = {int(n): us for n, us in part[key].items()}
    layers = [LayerReport(**part | {"shape": tuple(part["shape"])}) for part in report["layers"]]
    return ConversionReport(**report | {"layers": layers})


# -- a layer as arrays and plain values ----------------------------------------------------------


def _layer_state(layer: ServedLayer) -> tuple[dict[str, Any], dict[str, Any]]:
    tensors = {"bias": layer.bias, "importance": layer.importance, "exponents": layer.exponents}
    if not layer.is_compact:
        tensors["weight"] = layer.values
    config = {name: getattr(layer, name) for name in
              ("name", "kind", "activation", "mode", "padding", "width", "has_bias", "input_major",
               "plan", "kept", "storage", "is_compact", "widening")}
    if layer.rows is not None:
        tensors |= layer.rows.tensors("rows")
    if layer.index is not None:
        arrays, config["index"] = state(layer.index)
        if layer.rows is layer.index.rows:  # of a compact layer
            arrays = {name: a for name, a in arrays.items() if name not in SHARED_ROWS}
        tensors |= {f"index.{name}": a for name, a in arrays.items()}
    return tensors, config


def _restored_layer(config: dict[str, Any], tensors: dict[str, np.ndarray], mapped: bool,
                    n_threads: int | None) -> ServedLayer:
    """The layer of `_layer_state`, checked, because kernels do not check it."""
    is_compact = bool(config.get("is_compact"))  # files of before have no such entry
    weight, bias = tensors["rows" if is_compact else "weight"], tensors["bias"]
    linear = check.choice(config["kind"], "kind", KINDS) == "linear"
    input_major = bool(config["input_major"]) and linear
    if is_compact:
        rows = _compact_rows(config, tensors, linear, mapped)
    elif weight.ndim != 2 or weight.dtype != np.float32:
        raise ValueError(f"weight must be a float32 matrix, got {weight.dtype} of shape "
                         f"{weight.shape}")
    elif not mapped:
        check.dense(weight, "weight")

    activation = config["activation"]
    if activation is not None:
        activation = check.choice(activation, "activation", ACTIVATIONS)
    affine = Affine(
        str(config["name"]), weight.T if input_major else weight, bias, activation, config["kind"],
        check.choice(config["mode"], "mode", ("sum", "mean")), config["padding"],
        check.integer(config["width"], "width"))
    layer = ServedLayer(affine, check.choice(config["storage"], "storage", STORAGES),
                        sparse_input=input_major)
    layer.values, layer.input_major = weight, bool(config["input_major"]) or not linear
    if is_compact:
        layer.take_rows(rows)
    layer.bias = check.vector(bias, "bias", layer.n_out)
    layer.has_bias = bool(config["has_bias"])
    layer.plan = {kind: check.choice(config["plan"][kind], "plan", PLANS) for kind in layer.plan}
    plans = set(layer.plan.values())
    if layer.input_major and ("lsh" in plans or ("int8" in plans and not linear)):
        raise ValueError("its plans contradict each other")
    if "int8" in layer.plan.values() and layer.n_in > MAX_INPUTS:
        raise ValueError(f"the plan int8 takes at most {MAX_INPUTS:,} inputs, got {layer.n_in:,}")
    layer.widening = check.integer(config.get("widening", 1), "widening")

    if "importance" in tensors:
        layer.importance = check.vector(tensors["importance"], "importance", layer.n_out)
    if "exponents" in tensors:
        layer.exponents = tensors["exponents"].astype(np.int32)
        check.vector(layer.exponents, "exponents", layer.n_out)
    if config["kept"] is not None:
        layer.kept = check.integer(config["kept"], "kept", maximum=layer.n_out)
        if layer.importance is None:
            raise ValueError("importance is missing")

    if "rows" in tensors and not is_compact:
        layer.rows = QuantizedRows.restored(layer.storage, weight.shape, tensors["rows"],
                                            tensors.get("rows_scales"))
    if "index" in config:
        arrays = _files.with_prefix(tensors, "index.")
        if is_compact and "rows" not in arrays:
            arrays |= {name: tensors[name] for name in SHARED_ROWS if name in tensors}
        layer.index = engine_of_state(layer.values, layer.bias, arrays, config["index"],
                                      resolve(n_threads))
        if is_compact and reads_quantized_rows(layer.index):
            layer.rows = layer.index.rows
    elif "lsh" in layer.plan.values():
        raise ValueError("its index is missing")
    return layer


def _compact_rows(config: dict[str, Any], tensors: dict[str, np.ndarray], linear: bool,
                  mapped: bool) -> QuantizedRows:
    """The rows of a compact layer, checked."""
    values, storage = tensors["rows"], config["storage"]
    if not linear or storage not in STORAGES or storage == "float32" or values.ndim != 2:
        raise ValueError("its weights in fewer bits contradict its configuration")
    rows = QuantizedRows.restored(storage, values.shape, values, tensors.get("rows_scales"))
    if storage == "int8" and rows.scales is not None:
        check.vector(rows.scales * np.float32(127), "rows_scales", len(values))
    elif not mapped and ((values & 0x7F80) == 0x7F80).any():  # infinity, or not a number
        raise ValueError("rows must be finite")
    return rows
