"""Files of networks of this library, as :meth:`sparselsh.Network.save` writes them."""
from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ... import _files
from ... import _validation as check
from ...refinement import refinement_of_file
from .affine import Affine, checked
from .weight_files import NETWORK_FORMAT, SafeArrays

if TYPE_CHECKING:
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


def is_network_file(path: PathLike) -> bool:
    """Whether a file is one that `Network.save` has written; False also where there is none."""
    try:
        with open(check.path(path), "rb") as file:
            if file.read(2) == b"PK":  # .npz
                return False
        with SafeArrays(path) as arrays:
            return arrays.metadata.get("format") == NETWORK_FORMAT
    except (OSError, ImportError, ValueError):  # the reader of weights says what is wrong
        return False


def read_network(path: PathLike) -> TrainedNetwork:
    """The layers and the refinement of a file that `Network.save` has written.

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
            return TrainedNetwork(
                layers, _refinement(arrays, config, (layers[-1].n_out, layers[0].n_in)),
                bool(first.get("input_major", first.get("input_major_in_memory"))), inputs)
        except DAMAGES as error:
            raise _files.damaged(path, "network", error) from error


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
