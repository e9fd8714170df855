"""Files of networks of this library, as :meth:`sparselsh.Network.save` writes them."""
from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ... import _files
from ... import _validation as check
from ...calibration import Calibration
from ...refinement import refinement_of_file
from .affine import Affine, checked
from .weight_files import NETWORK_FORMAT, SafeArrays

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..._arrays.types import Floats, PathLike
    from ...refinement import Refinement

DAMAGES = (AttributeError, KeyError, IndexError, OverflowError, RecursionError, TypeError,
           ValueError)


class TrainedNetwork(NamedTuple):
    """What inference needs of a network that this library has trained."""

    layers: list[Affine]
    refinement: Refinement | None = None
    is_sparse: bool = False  # whether it was trained on sparse rows
    inputs: Floats | None = None  # some of the inputs of the last layer
    calibration: Calibration | None = None


def format_of(path: PathLike) -> str:
    """The format that a safetensors file of this library names; "" for others and where is none."""
    try:
        with open(check.path(path), "rb") as file:
            if file.read(2) == b"PK":  # .npz
                return ""
        with SafeArrays(path) as arrays:
            return arrays.metadata.get("format", "")
    except (OSError, ImportError, ValueError):  # the reader of weights says what is wrong
        return ""


def is_network_file(path: PathLike) -> bool:
    """Whether a file is one that `Network.save` has written; False also where there is none."""
    return format_of(path) == NETWORK_FORMAT


def read_network(path: PathLike) -> TrainedNetwork:
    """The layers, the refinement and the calibration of a file that `Network.save` has written.

    The configuration in the file says what the activations are, and in which order the weights of
    a layer are: nothing is guessed from names and shapes.
    """
    path = _files.existing(path)
    with SafeArrays(path) as arrays:
        try:
            config = json.loads(arrays.metadata["config"])
            entries = config["layers"]
            layers = checked([_affine(arrays, i, entry) for i, entry in enumerate(entries)])
            first, last = entries[0], f"layers.{len(layers) - 1}.inputs"
            inputs = None
            if last in arrays.names:
                inputs = check.dense(_float32(arrays, last), last, n_columns=layers[-1].n_in)
            fractions = [_passed_fraction(entry) for entry in entries[:-1]]
            input_major = first.get("input_major", first.get("input_major_in_memory"))
            if type(input_major) is not bool:
                raise ValueError("layers[0]: input_major_in_memory must be true or false, got "
                                 f"{input_major!r}")
            trained = TrainedNetwork(
                layers, _refinement(arrays, config, (layers[-1].n_out, layers[0].n_in)),
                input_major, inputs,
                Calibration.from_config(config["calibration"], layers[-1].n_out)
                if "calibration" in config else None)
        except DAMAGES as error:
            raise _files.damaged(path, "network", error) from error
        for i, fraction in enumerate(fractions):
            if fraction < 1:
                raise ValueError(f"{path}: {_sparse_hidden(i, fraction)}")
        return trained


def check_dense_hidden(layers: Sequence[Any]) -> None:
    """Refuse layers of a Network of which a hidden one passes on a part of its outputs only."""
    for i, layer in enumerate(layers[:-1]):
        if layer.output_fraction() < 1 and layer.plan != "dense":
            raise _sparse_hidden(i, layer.output_fraction())


def _sparse_hidden(i: int, fraction: float) -> ValueError:
    return ValueError(f"layers[{i}] is a hidden layer that passes on {fraction:.1%} of its outputs "
                      "for each row, which inference outside of Network does not do; set "
                      f"net.layers[{i}].density = 1, and measure what that changes")


def _passed_fraction(entry: dict[str, Any]) -> float:
    """The fraction of the outputs that a hidden layer passes on, by its configuration."""
    if (entry["type"] != "LSHLinear" or entry["active"] == "batch"
            or "dense" in (entry["plan"], entry["chosen_plan"])):
        return 1.0
    n, density = entry["n_out"], entry["density"]
    n_active = max(64, n // 100) if density == "auto" else max(1, round(density * n))
    return min(1.0, n_active / n)


def _affine(arrays: SafeArrays, i: int, entry: dict[str, Any]) -> Affine:
    name = f"layers.{i}.weight"
    if name not in arrays.names:
        name = f"layers.{i}.weight_input_major"
    weight = _float32(arrays, name)
    if weight.shape != (entry["n_out"], entry["n_in"]):
        raise ValueError(f"{name} must be of shape {(entry['n_out'], entry['n_in'])}, "
                         f"got {weight.shape}")
    activation = entry["activation"]
    if activation is not None:
        activation = check.choice(activation, "activation", ("relu",))
    return Affine(str(i), weight, _float32(arrays, f"layers.{i}.bias"), activation)


def _float32(arrays: SafeArrays, name: str) -> Floats:
    array = arrays.get(name)
    if not isinstance(array, np.ndarray) or array.dtype != np.float32:
        raise ValueError(f"{name} must be float32, got {array.dtype}")
    return array


def _refinement(arrays: SafeArrays, config: dict[str, Any],
                shape: tuple[int, int]) -> Refinement | None:
    if "refinement" not in config:
        return None
    prefix = "refinement."
    tensors: dict[str, Any] = {name.removeprefix(prefix): arrays.get(name)
                               for name in arrays.names if name.startswith(prefix)}
    return refinement_of_file(tensors, config["refinement"], shape)
