"""Folders of networks of shards: a file per shard, and a head that names a whole set of them.

    model/network.json                      the head: layers, shards, state of the training, the set
    model/step-00001234/common.safetensors  what all processes have alike
    model/step-00001234/shard-00017-of-00064.safetensors
                                            rows of the labels of the shard, columns of its hidden
                                            units, their moments, codes of the hash tables

Each process writes its shards; when all have succeeded, process 0 replaces the head, and then the
sets of before are removed. A head never names a set that is not whole, whenever processes are
killed. Any number of processes that the shards allow opens the folder.
"""
from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import time
import warnings
import zlib
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

from .. import _files
from .. import _validation as check
from .._arrays.linalg import row_chunks
from .._version import __version__
from ..calibration import Calibration
from ..callbacks import Callback
from ..layers import Linear, LSHLinear
from ..losses import LOSSES
from ..network import check_training, restored_callbacks, training_plain
from ..refinement import (
    refinement_config,
    refinement_of_file,
    refinement_tensors,
)
from ._groups import Solo
from ._shards import SAVE, DistributedError, Shards

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .._arrays.types import Floats, PathLike

HEAD = "network.json"  # the file that a folder is opened by
COMMON_FILE = "common.safetensors"
FORMAT, COMMON = "sparselsh.shard", "sparselsh.shards"
SET_NAME = re.compile(r"step-\d{8}(-\d+)?")
DAMAGES = (AttributeError, KeyError, IndexError, OverflowError, TypeError, ValueError,
           RecursionError)
SECONDS_PER_MINUTE = 60


# --- writing --------------------------------------------------------------------------------------


def write(net: Any, path: PathLike, with_training: bool) -> None:
    """Write a network; all processes call it."""
    path, shards = os.path.abspath(check.path(path)), net.shards
    with shards.together("make the folder"):
        if shards.group.rank == 0:
            if os.path.exists(path) and not os.path.isdir(path):
                raise NotADirectoryError(f"{path!r} is a file; a network of shards is a folder: "
                                         "give another path")
            os.makedirs(path, exist_ok=True)
    name, token = shards.from_first([_free_name(path, net), secrets.token_hex(8)])
    place = os.path.join(path, name)
    try:
        with shards.together("make the folder of the shards"):
            if shards.group.rank == 0:
                os.mkdir(place)
                _files.write_checked(os.path.join(place, COMMON_FILE), _common(net),
                                     COMMON, json.dumps({"set": token}))
        with shards.together("write its shards"):
            if not os.path.isdir(place):
                raise FileNotFoundError(f"{place!r} is not seen by this process; all processes "
                                        "must see the same folder")
            for s in range(shards.first, shards.last):
                config = json.dumps({"set": token, "shard": s, "shards": shards.n})
                _files.write_checked(os.path.join(place, _file_name(s, shards.n)),
                                     _shard_tensors(net, s, with_training), FORMAT, config)
        with shards.together("write the head"):
            if shards.group.rank == 0:
                with _alone_in(path):
                    _check_is_own(net, path)
                    _write_head(net, path, name, token, with_training)
                    _remove_others(path, name)
    except BaseException:
        if shards.group.rank == 0 and _head_of(path).get("set") != name:
            shutil.rmtree(place, ignore_errors=True)
        raise
    shards.written[path] = token
    shards.checkpoint = path


@contextmanager
def _alone_in(path: str) -> Iterator[None]:
    """Context in which no other program replaces the head or removes sets."""
    if fcntl is None:
        yield
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _check_is_own(net: Any, path: str) -> None:
    """Raise ValueError where another program has written a head after this network wrote its."""
    own, there = net.shards.written.get(path), _head_of(path).get("token")
    if own is not None and there is not None and there != own:
        raise ValueError(f"{path!r}: another program has written a network there meanwhile; give "
                         "each training a folder of its own")


def _free_name(path: str, net: Any) -> str:
    name = base = f"step-{net._training.n_steps:08d}"
    k = 1
    while os.path.exists(os.path.join(path, name)):
        k += 1
        name = f"{base}-{k}"
    return name


def _file_name(shard: int, n: int) -> str:
    return f"shard-{shard:05d}-of-{n:05d}.safetensors"


def _head_of(path: str) -> dict[str, Any]:
    """The head as it is, or none."""
    try:
        with open(os.path.join(path, HEAD), encoding="utf-8") as file:
            return dict(json.load(file))
    except (OSError, *DAMAGES):
        return {}


def _remove_others(path: str, name: str) -> None:
    with os.scandir(path) as entries:
        for entry in entries:
            if SET_NAME.fullmatch(entry.name) and entry.name != name:
                shutil.rmtree(entry.path, ignore_errors=True)


def _common(net: Any) -> dict[str, Any]:
    tensors: dict[str, Any] = {"inputs": net.parts[1]._inputs}
    if net.refinement is not None:
        tensors |= {f"refinement.{name}": a
                    for name, a in refinement_tensors(net.refinement).items()}
    return tensors


def _shard_tensors(net: Any, s: int, with_training: bool) -> dict[str, Any]:
    """The arrays of an own shard, as they are stored."""
    hidden, last = net.parts
    shards, optimizer = net.shards, net.optimizer
    first = shards.own_columns(hidden.n_out).start
    columns = slice(shards.columns(hidden.n_out, s) - first,
                    shards.columns(hidden.n_out, s + 1) - first)
    a, b = last.starts[s - shards.first], last.starts[s - shards.first + 1]
    tensors: dict[str, Any] = {}

    block, own = _block_of(hidden, s - shards.first, columns)
    if block is not None:
        for name, parameter in zip(("weight", "bias"), block.parameters, strict=True):
            along = name == "weight" and parameter.input_major
            tensors[f"hidden.{name}"] = _Columns(parameter.value, own if along else None,
                                                 None if along else own)
            arrays = optimizer.arrays_of(parameter) if with_training and optimizer else []
            for k, array in enumerate(arrays):
                whole = array.shape[1] == 1 and parameter.value.shape[1] != 1 and along
                tensors[f"optimizer.hidden.{name}.{k}"] = _Columns(
                    array, own if along and not whole else None, None if along else own)
    for name, parameter in zip(("weight", "bias"), last.parameters, strict=True):
        tensors[f"output.{name}"] = parameter.value[a:b]
        for k, array in enumerate(optimizer.arrays_of(parameter) if with_training and optimizer
                                  else []):
            tensors[f"optimizer.output.{name}.{k}"] = array[a:b]
    if with_training:
        _, codes = last.table_state()
        if codes is not None:
            tensors["codes"] = codes[a:b]
    return tensors


def checksums(net: Any) -> dict[str, int]:
    """The CRC-32 of each array of the own shards."""
    sums = {}
    for s in range(net.shards.first, net.shards.last):
        for name, array in _shard_tensors(net, s, True).items():
            value = 0
            for part in _files.parts_of(array):
                value = _files.crc32(part, value)
            sums[f"{s} {name}"] = value
    return sums


def _block_of(hidden: Any, s: int, columns: slice) -> tuple[Any, slice]:
    """The block that holds the hidden units of an own shard, and where in it; None for none."""
    n = columns.stop - columns.start
    if n == 0:
        return None, columns
    if len(hidden.blocks) == 1:
        return hidden.blocks[0], columns
    ends = hidden._ends(True)
    return hidden.blocks[ends.index(columns)], slice(0, n)


class _Columns:
    """Some columns, or some rows, of an array, without a copy: see `_files.parts_of`."""

    def __init__(self, array: np.ndarray, columns: slice | None, rows: slice | None) -> None:
        self.view = array if rows is None else array[rows]
        self.view = self.view if columns is None else self.view[:, columns]
        self.shape, self.dtype, self.ndim = self.view.shape, self.view.dtype, self.view.ndim

    def __getitem__(self, rows: Any) -> np.ndarray:
        return self.view[rows]


def _write_head(net: Any, path: str, name: str, token: str,
                with_training: bool) -> None:
    hidden, last = net.parts
    loss = next(key for key, kind in LOSSES.items() if isinstance(net.loss, kind))
    config: dict[str, Any] = {
        "version": __version__, "loss": loss, "shards": net.shards.n, "token": token,
        "compute_dtype": net.compute_dtype,
        "layers": [Linear.config(hidden), LSHLinear.config(last)],
        "input_major": hidden.joined()[2], "is_split": len(hidden.blocks) > 1,
        "tables": last.table_state()[0] if with_training else None,
        "search": last.search_state(),
        "training": training_plain(net._training) if with_training else None,
        "history": net.history,
        "refinement": None if net.refinement is None else refinement_config(net.refinement),
        "calibration": None if net.calibration is None else net.calibration.config()}
    text = json.dumps(config)
    head = {"format": "sparselsh.distributed", "set": name, "token": token,
            "checksum": zlib.crc32(text.encode()), "config": text}
    with _files.replacing(os.path.join(path, HEAD), "w", encoding="utf-8") as file:
        json.dump(head, file, indent=1)


# --- reading --------------------------------------------------------------------------------------


def read_head(path: str) -> tuple[str, dict[str, Any]]:
    file = os.path.join(path, HEAD)
    if not os.path.isdir(path):
        raise FileNotFoundError(f"{path}: no such folder; give one that ShardedNetwork.save or "
                                "distributed.Checkpoint has written")
    if not os.path.exists(file):
        raise FileNotFoundError(f"{file}: no such file; give a folder that ShardedNetwork.save or "
                                "distributed.Checkpoint has written")
    try:
        with open(file, encoding="utf-8") as stream:
            head = json.load(stream)
        if head["format"] != "sparselsh.distributed":
            raise ValueError(f"its format is {head['format']!r}")
        if head["checksum"] != zlib.crc32(head["config"].encode()):
            raise ValueError("its checksum differs")
        if not SET_NAME.fullmatch(head["set"]):
            raise ValueError(f"its set is {head['set']!r}")
        return head["set"], json.loads(head["config"])
    except DAMAGES as error:
        raise _files.damaged(file, "network", error) from error


def _read(file: str, kind: str, token: str, prefix: str = "",
          **expected: Any) -> dict[str, np.ndarray]:
    """The arrays of a file of the set whose names begin so; ValueError if it belongs to another."""
    unread = (lambda name: not name.startswith(prefix)) if prefix else None
    tensors, metadata = _files.read(file, kind, unread=unread)
    try:
        config = json.loads(metadata["config"])
        for key, value in {"set": token, **expected}.items():
            if config[key] != value:
                raise ValueError(f"its {key} is {config[key]!r} and not {value!r}: it belongs to "
                                 "another network or another checkpoint")
        if "checksum" not in metadata:
            raise ValueError("it has no checksum")
    except DAMAGES as error:
        raise _files.damaged(file, "shard", error) from error
    return tensors


def restore(net: Any, path: str, name: str, config: dict[str, Any]) -> None:
    shards = net.shards
    with _of_file(os.path.join(path, name, COMMON_FILE), "network") as common:
        _restore_common(net, _read(common, COMMON, config["token"]), config)
    parts = _read_shards(net.layers, shards, path, name, config, range(shards.first, shards.last))
    with _of_file(os.path.join(path, HEAD), "network"):
        _restore_weights(net, parts, config)


def restore_outputs(last: Any, path: str, name: str, config: dict[str, Any]) -> None:
    """Read an output layer alone."""
    shards = last.shards
    with _of_file(os.path.join(path, name, COMMON_FILE), "network") as common:
        _restore_inputs(last, _read(common, COMMON, config["token"], "inputs"))
    hidden = Linear.from_config(config["layers"][0])
    parts = _read_shards([hidden, last], shards, path, name, config,
                         range(shards.first, shards.last), "output.")
    with _of_file(os.path.join(path, HEAD), "network"):
        _restore_outputs(last, parts, config)


def restore_front(net: Any, path: str, name: str, config: dict[str, Any]) -> None:
    """Read all but the output layer."""
    hidden, n_shards = net.layers[0], config["shards"]
    with _of_file(os.path.join(path, name, COMMON_FILE), "network") as common:
        _restore_added(net, _read(common, COMMON, config["token"]), config)
    layers = [hidden, LSHLinear.from_config(config["layers"][1])]
    parts = _read_shards(layers, Shards(n_shards, Solo()), path, name, config, range(n_shards),
                         "hidden.")
    with _of_file(os.path.join(path, HEAD), "network"):
        hidden._set_parameters(*_hidden_of(parts, config))


def _read_shards(layers: Any, shards: Any, path: str, name: str, config: dict[str, Any],
                 numbers: range, prefix: str = "") -> list[dict[str, np.ndarray]]:
    """The arrays of some shards, checked; those of other names are not read."""
    parts = []
    for s in numbers:
        with _of_file(os.path.join(path, name, _file_name(s, shards.n)), "shard") as place:
            part = _read(place, FORMAT, config["token"], prefix, shard=s, shards=shards.n)
            _check_shard(layers, shards, s, part, bool(config["input_major"]), prefix)
        parts.append(part)
    return parts


@contextmanager
def _of_file(path: str, what: str) -> Iterator[str]:
    """Context whose errors are damages of a file."""
    try:
        yield path
    except DAMAGES as error:
        raise error if path in str(error) else _files.damaged(path, what, error) from error


def _restore_common(net: Any, tensors: dict[str, np.ndarray],
                    config: dict[str, Any]) -> None:
    _restore_inputs(net.parts[1], tensors)
    net.history = [dict(entry) for entry in config["history"]]
    _restore_added(net, tensors, config)


def _restore_inputs(last: Any, tensors: dict[str, np.ndarray]) -> None:
    last._inputs = check.dense(tensors["inputs"], "inputs", n_columns=last.n_in) \
        if len(tensors["inputs"]) else np.empty((0, last.n_in), np.float32)


def _restore_added(net: Any, tensors: dict[str, np.ndarray], config: dict[str, Any]) -> None:
    """Refinement and calibration."""
    if config["refinement"] is not None:
        net.refinement = refinement_of_file(_files.with_prefix(tensors, "refinement."),
                                            config["refinement"], (net.n_labels, net.n_features))
    if config["calibration"] is not None:
        net.calibration = Calibration.from_config(config["calibration"], net.n_labels)


def _check_shard(layers: Any, shards: Any, s: int, tensors: dict[str, np.ndarray],
                 input_major: bool, prefix: str) -> None:
    """Raise ValueError for arrays that do not fit the shard; the kernels trust their shapes."""
    hidden, last = layers
    width = shards.columns(hidden.n_out, s + 1) - shards.columns(hidden.n_out, s)
    n = shards.n_rows(last.n_out, s)
    dtypes = [np.uint16 if layer.dtype == "bfloat16" else np.float32 for layer in layers]
    wanted: dict[str, Any] = {"output.weight": ((n, last.n_in), dtypes[1]),
                              "output.bias": ((n, 1), np.float32)}
    if width:
        shape = (hidden.n_in, width) if input_major else (width, hidden.n_in)
        wanted |= {"hidden.weight": (shape, dtypes[0]), "hidden.bias": ((width, 1), np.float32)}
    for name, (shape, dtype) in wanted.items():
        array = tensors[name]
        if array.shape != shape or array.dtype != dtype:
            raise ValueError(f"{name} must be {np.dtype(dtype)} of shape {shape}, got "
                             f"{array.dtype} {array.shape}")
        if (name.startswith(prefix) and array.dtype == np.float32
                and not _is_finite(array)):
            raise ValueError(f"{name} must be finite")


def _is_finite(array: Floats) -> bool:
    return all(bool(np.isfinite(array[a:b]).all())
               for a, b in row_chunks(len(array), max(1, array.shape[1])))


def _restore_weights(net: Any, parts: list[dict[str, np.ndarray]],
                     config: dict[str, Any]) -> None:
    hidden, last = net.parts
    value, input_major, bias = _hidden_of(parts, config)
    hidden._take(value, bias, input_major, bool(config["is_split"]) and net.shards.n > 1)
    _restore_outputs(last, parts, config)
    if config["training"] is None:
        return

    training = net._training
    plain = check_training(config["training"])
    training.n_steps, training.history = plain.n_steps, plain.history
    training.computed_share, training.rng = plain.computed_share, plain.rng
    training.optimizer, training.progress = plain.optimizer, plain.progress
    if plain.progress is not None:
        plain.progress.callbacks = restored_callbacks(config["training"])
    if plain.optimizer is not None:
        training.suit_layers()
        _restore_moments(net, parts, 1 if input_major else 0)
    codes = [part["codes"] for part in parts if "codes" in part]
    last.restore_tables(config["tables"], np.concatenate(codes) if codes else None)


def _hidden_of(parts: list[dict[str, np.ndarray]],
               config: dict[str, Any]) -> tuple[np.ndarray, bool, Floats]:
    """The weights of the hidden units of some shards, whether they are by inputs, and biases."""
    input_major = bool(config["input_major"])
    found = [part for part in parts if "hidden.weight" in part]
    if not found:  # more shards than hidden units
        n_in = config["layers"][0]["n_in"]
        value = np.zeros((n_in, 0) if input_major else (0, n_in),
                         np.uint16 if config["layers"][0]["dtype"] == "bfloat16" else np.float32)
        return value, input_major, np.zeros(0, np.float32)
    value = np.concatenate([part["hidden.weight"] for part in found], axis=int(input_major))
    return value, input_major, np.concatenate([part["hidden.bias"] for part in found])[:, 0]


def _restore_outputs(last: Any, parts: list[dict[str, np.ndarray]],
                     config: dict[str, Any]) -> None:
    last._set_parameters(np.concatenate([part["output.weight"] for part in parts]), False,
                         np.concatenate([part["output.bias"] for part in parts])[:, 0])
    if config.get("search") is not None:
        last.restore_search(config["search"])


def _restore_moments(net: Any, parts: list[dict[str, np.ndarray]], along: int) -> None:
    hidden, last = net.parts
    optimizer: Any = net.optimizer
    found = [part for part in parts if "hidden.weight" in part]
    for name, parameter in zip(("weight", "bias"), last.parameters, strict=True):
        optimizer_arrays = _joined_moments(parts, f"optimizer.output.{name}", 0)
        if optimizer_arrays:
            optimizer.take_arrays(parameter, optimizer_arrays)
    blocks = hidden.blocks
    groups = [found] if len(blocks) == 1 else [[part] for part in found]
    for block, group in zip(blocks, groups, strict=True):
        for name, parameter in zip(("weight", "bias"), block.parameters, strict=True):
            arrays = _joined_moments(group, f"optimizer.hidden.{name}",
                                     along if name == "weight" else 0)
            if arrays:
                optimizer.take_arrays(parameter, arrays)


def _joined_moments(parts: list[dict[str, np.ndarray]], prefix: str,
                    axis: int) -> list[np.ndarray]:
    arrays: list[np.ndarray] = []
    while (key := f"{prefix}.{len(arrays)}") in parts[0]:
        arrays.append(np.concatenate([part[key] for part in parts], axis=axis))
    return arrays


# --- checkpoints ----------------------------------------------------------------------------------


class Checkpoint(Callback):
    """Save a network of shards and the state of its training as a folder.

    It is written after each epoch, when a signal ends the training, when the training is complete,
    and at the intervals that are given here. If a process cannot write, each process warns
    (RuntimeWarning) and names the process and the reason. The previous folder stays, and the
    training continues.

    Parameters
    ----------
    path : str or path-like
        A folder that all processes see; ``distributed.load(path).resume(X, Y)`` continues.
    every_steps : int or None
        Also save after every this many steps.
    minutes : float or None
        Also save when this many minutes have passed since the last time, by the clock of process 0.
    """

    runs_last = True

    def __init__(self, path: PathLike, *, every_steps: int | None = None,
                 minutes: float | None = None) -> None:
        self.path = check.path(path)
        self.every_steps = (None if every_steps is None
                            else check.integer(every_steps, "every_steps"))
        self.minutes = None if minutes is None else check.number(minutes, "minutes", above=0)
        self._n_steps, self._saved = 0, time.monotonic()

    def raised(self) -> int:
        """SAVE if it is time to save, by the clock of this process."""
        if self.minutes is None:
            return 0
        is_due = time.monotonic() - self._saved >= SECONDS_PER_MINUTE * self.minutes
        return SAVE if is_due else 0

    def on_begin(self, network: Any) -> None:
        if not hasattr(network, "shards"):
            raise TypeError("distributed.Checkpoint saves a ShardedNetwork, got "
                            f"{type(network).__name__}; use callbacks.Checkpoint")
        self._saved = time.monotonic()
        if network.shards.checkpoint is None and _head_of(self.path):
            network.shards.checkpoint = self.path

    def on_step(self, network: Any) -> None:
        self._n_steps += 1
        is_due = self.every_steps is not None and self._n_steps % self.every_steps == 0
        if is_due or network.shards.flags & SAVE:
            network.shards.flags &= ~SAVE
            self._save(network)

    def on_epoch_end(self, network: Any, entry: dict[str, Any]) -> None:
        self._save(network)

    def on_interrupt(self, network: Any) -> None:
        self._save(network)

    def on_end(self, network: Any) -> None:
        self._save(network)

    def _save(self, network: Any) -> None:
        try:
            network.save(self.path, training_state=True)
        except (OSError, ValueError, DistributedError) as error:
            if isinstance(error, DistributedError) and error.__cause__ is not None:
                raise  # a process was lost
            warnings.warn(f"{self!r} did not save the network ({error}); the training continues, "
                          "and the last checkpoint stays", RuntimeWarning, stacklevel=2)
        self._saved = time.monotonic()

    def __repr__(self) -> str:
        return (f"Checkpoint({self.path!r}, every_steps={self.every_steps}, "
                f"minutes={self.minutes})")
