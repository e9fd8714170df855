"""Files of networks: how one is written, and how it is read.

    layers.{i}.weight, .bias, .inputs   float32 arrays; weight is (n_out, n_in)
    layers.{i}.weight_input_major       in place of weight in files of a training that is to be
                                        continued: (n_in, n_out), as the layer has it
    refinement.*                        the classifiers of a refined network
    layers.{i}.tables.*, ...            indexes, if kept
    optimizer.*, callbacks.*            state of the training, if kept
    config                              everything else, as JSON in the metadata

In files of before, whose configuration of a layer has "input_major", weight is (n_in, n_out) where
that is true.
"""
from __future__ import annotations

import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from .. import _files
from .._arrays import bfloat16
from .._version import __version__
from ..calibration import Calibration
from ..inference import NETWORK_FORMAT as FORMAT
from ..layers import Linear, LSHLinear
from ..losses import LOSSES
from ..refinement import (
    Refinement,
    refinement_config,
    refinement_of_file,
    refinement_tensors,
)
from . import _checkpoint

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np

    from .._arrays.types import PathLike
    from ..training import Training

LAYERS = {"Linear": Linear, "LSHLinear": LSHLinear}
DAMAGES = (AttributeError, KeyError, OverflowError, TypeError, ValueError, RecursionError)


def write(path: PathLike, training: Training, refinement: Refinement | None,
          calibration: Calibration | None, with_indexes: bool, with_training: bool,
          others: tuple[dict[str, Any], dict[str, Any]] = ({}, {})) -> None:
    """Write a network with initialized weights as one safetensors file.

    `others` are arrays and entries of the configuration that stand beside those of the network.
    ValueError if it is one that `load` would refuse.
    """
    tensors: dict[str, Any] = dict(others[0])
    configs = []
    for i, (layer, place) in enumerate(zip(training.layers, training.places, strict=True)):
        name = type(layer).__name__
        if type(layer) is not LAYERS.get(name):
            raise TypeError(f"layers[{i}] must be one of {', '.join(LAYERS)} to be saved, got "
                            f"{layer!r} of type {name}; use pickle for other classes")
        # a checkpoint is written often: it does without the transposition
        arrays = layer.tensors(as_stored=with_training)
        tensors |= {f"layers.{i}.{key}": a for key, a in arrays.items()}
        weight, _ = layer.parameters
        configs.append({"type": name, "input_major_in_memory": weight.input_major}
                       | layer.config(place))
    if refinement is not None:
        arrays = refinement_tensors(refinement)
        tensors |= {f"refinement.{name}": a for name, a in arrays.items()}

    loss = next((name for name, kind in LOSSES.items() if type(training.loss) is kind), None)
    if loss is None:
        raise TypeError(f"loss must be one of {', '.join(LOSSES)} to be saved, got "
                        f"{training.loss!r}; use pickle for others")
    config: dict[str, Any] = {"version": __version__, "loss": loss, "layers": configs,
                              "compute_dtype": training.compute_dtype}
    if refinement is not None:
        config["refinement"] = refinement_config(refinement)
    if calibration is not None:
        config["calibration"] = calibration.config()
    if with_indexes:
        config["indexes"] = _checkpoint.layers_state(training.layers, tensors)
    if with_training:
        config["training"] = _checkpoint.training_state(training, tensors)

    text = json.dumps(config | others[1])
    _check_readable(training, tensors, json.loads(text))
    _files.write_checked(path, tensors, FORMAT, text)


def _check_readable(training: Training, tensors: dict[str, Any], config: dict[str, Any]) -> None:
    """Raise ValueError, by the rules of the reader, for what it would refuse."""
    for i, layer in enumerate(training.layers):
        if not layer.is_finite():
            raise ValueError(f"layers[{i}] must have finite weights to be saved, as load would "
                             "refuse others; nothing was written: train again from an earlier file "
                             "with a smaller learning rate")
    for name, array in tensors.items():
        is_read_as_finite = name.endswith(".inputs") or name in ("refinement.data",
                                                                 "refinement.bias")
        if is_read_as_finite and not bfloat16.is_finite(array):
            raise ValueError(f"{name} must be finite to be saved, as load would refuse it; nothing "
                             "was written: train again with a smaller learning rate")
    for entry in config["layers"]:
        entry = {key: value for key, value in entry.items() if key != "input_major_in_memory"}
        LAYERS[entry.pop("type")].from_config(entry)
    if "training" in config:
        _checkpoint.check_training(config["training"])


class StoredNetwork(NamedTuple):
    """Contents of a network file; each part is checked when it is read."""

    tensors: dict[str, np.ndarray]
    config: dict[str, Any]

    @property
    def loss(self) -> str:
        """The name of the loss."""
        return self.config["loss"]

    @property
    def compute_dtype(self) -> str:
        """How products of a training step are computed; files of before have no name for it."""
        return self.config.get("compute_dtype", "float32")

    def layers(self) -> list[Linear]:
        """The layers, with their weights."""
        layers = []
        for i, entry in enumerate(self.config["layers"]):
            kind = LAYERS[entry.pop("type")]
            tensors = _files.with_prefix(self.tensors, f"layers.{i}.")
            if "input_major" in entry:  # a file of before
                input_major = entry.pop("input_major")
                if input_major:
                    tensors["weight_input_major"] = tensors.pop("weight")
            else:
                input_major = entry.pop("input_major_in_memory")
            if type(input_major) is not bool:
                raise ValueError(f"layers[{i}]: input_major_in_memory must be true or false, got "
                                 f"{input_major!r}")
            layer = kind.from_config(entry)
            layer.load_tensors(tensors, input_major)
            layers.append(layer)
        return layers

    def refinement(self, shape: tuple[int, int]) -> Refinement | None:
        """The classifiers of a network of shape (n_labels, n_features), or None."""
        if "refinement" not in self.config:
            return None
        tensors = _files.with_prefix(self.tensors, "refinement.")
        return refinement_of_file(tensors, self.config["refinement"], shape)

    def calibration(self, n_labels: int) -> Calibration | None:
        """The map from scores to probabilities, or None."""
        if "calibration" not in self.config:
            return None
        return Calibration.from_config(self.config["calibration"], n_labels)

    def restore(self, training: Training) -> None:
        """Restore indexes and training state, where the file holds them."""
        if "indexes" in self.config:
            _checkpoint.restore_layers(training.layers, self.config["indexes"], self.tensors)
        if "training" in self.config:
            _checkpoint.restore_training(training, self.config["training"], self.tensors)


@contextmanager
def opened(path: PathLike) -> Iterator[StoredNetwork]:
    """Contents of a file; an error in the block becomes a ValueError that names the file."""
    tensors, metadata = _files.read(path, FORMAT)
    try:
        yield StoredNetwork(tensors, json.loads(metadata["config"]))
    except DAMAGES as error:
        raise _files.damaged(path, "network", error) from error
