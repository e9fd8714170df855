"""Weights of MLPs in safetensors, .npz and PyTorch files, found by the names of their layers."""
from __future__ import annotations

import fnmatch
import json
import os
import re
import zipfile
import zlib
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from ... import _files
from ... import _validation as check
from ..._arrays.bfloat16 import BFloat16
from .affine import Affine, float32

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ..._arrays.types import Floats, PathLike


INDEX_ENDING = ".safetensors.index.json"
MAX_NAME = 255  # bytes of the name of a file
MAX_ARRAY_NAME = 1000  # characters; longer ones come from damage
STATE_DICT_ENDINGS = (".pt", ".pth", ".bin", ".ckpt")
NETWORK_FORMAT = "sparselsh.network"  # of files that Network.save has written


if TYPE_CHECKING:
    Arrays = Any  # what `_opened` gives: names, shape(name) and get(name)


def read_layers(path: PathLike, layers: str | Sequence[str | tuple[str, str]] | None,
                activation: str | None, upcast: bool) -> list[Affine]:
    """Affine layers of a file.

    `layers` is None for all, a pattern, or a list of names. NAME stands for NAME.weight and, if the
    file has it, NAME.bias; WEIGHT:BIAS, or a pair, names two arrays. The activation follows all
    layers but the last.
    """
    path = str(path) if os.path.isdir(check.path(path)) else _files.existing(path)
    with _opened(path) as arrays:
        pairs = [_pair(arrays, name, path) for name in _chosen(arrays, layers, path)]
        out: list[Affine] = []
        for i, (name, weight, bias) in enumerate(pairs):
            W = float32(arrays.get(weight), f"{path}: {weight}", upcast)
            b = None if bias is None else float32(arrays.get(bias), f"{path}: {bias}", upcast)
            if W.ndim != 2:
                raise ValueError(f"{path}: {weight} must be a matrix (n_out, n_in), "
                                 f"got shape {W.shape}; leave {name!r} out of layers")
            W = _by_outputs(W, b, weight)
            out.append(Affine(name, W, b, activation if i < len(pairs) - 1 else None))
    return out


def _by_outputs(W: Floats, bias: Floats | None, weight: str) -> Floats:
    """A weight as (n_out, n_in).

    Keras has (n_in, n_out) and calls it kernel; of others the bias tells, if the matrix is not
    square.
    """
    is_kernel = re.split(r"[./]", weight)[-1].startswith("kernel")
    by_bias = bias is not None and bias.size == W.shape[1] != W.shape[0]
    return np.ascontiguousarray(W.T) if is_kernel or by_bias else W


def _chosen(arrays: Arrays, layers: str | Sequence[str | tuple[str, str]] | None,
            path: PathLike) -> Sequence[str | tuple[str, str]]:
    """The layers in order, each a name or a pair (weight, bias)."""
    known = sorted({name[:-len(".weight")] for name in arrays.names
                    if name.endswith(".weight") and len(arrays.shape(name)) == 2}, key=natural)

    if layers is None or (isinstance(layers, str) and any(c in layers for c in "*?[")):
        chosen = fnmatch.filter(known, layers or "*")
        if not chosen:
            raise ValueError(f"{path}: no layer matches {layers or '*'!r}; it has "
                             f"{listed(known or arrays.names)}; name two arrays as WEIGHT:BIAS "
                             "where they are called otherwise")
        return chosen
    return [layers] if isinstance(layers, str) else list(layers)


def _pair(arrays: Arrays, layer: str | tuple[str, str],
          path: PathLike) -> tuple[str, str, str | None]:
    """The names of a layer, of its weight and of its bias, which is None where there is none."""
    if not isinstance(layer, str):
        weight, bias = layer
    elif ":" in layer:
        weight, bias = layer.split(":", 1)
    elif f"{layer}.weight" in arrays.names:
        has_bias = f"{layer}.bias" in arrays.names
        return layer, f"{layer}.weight", f"{layer}.bias" if has_bias else None
    else:
        weight, bias = layer, None

    for name in (weight, bias or None):
        if name is not None and name not in arrays.names:
            is_plain = isinstance(layer, str) and ":" not in layer
            raise ValueError(f"{path}: holds no {name!r}"
                             + (f" and no '{name}.weight'" if is_plain else "")
                             + f"; it has {listed(arrays.names)}")
    return weight.removesuffix(".weight"), weight, bias or None


def natural(name: str) -> list[int | str]:
    """A sort key in natural order: fc9 before fc10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def listed(names: Iterable[str], most: int = 12) -> str:
    """At most `most` of the names, for a message."""
    names = sorted(names, key=natural)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more or "nothing"


def _opened(path: PathLike) -> Arrays:
    if os.path.isdir(path):
        return _Shards(_index_of(path))
    if str(path).endswith(INDEX_ENDING):
        return _Shards(path)
    if str(path).endswith(STATE_DICT_ENDINGS):
        return _StateDict(path)
    with open(path, "rb") as file:
        start = file.read(4)
    if start[:2] == b"PK":
        return _Zipped(path)
    if str(path).endswith(".npz"):
        raise ValueError(f"{path}: not a readable .npz file; it may be cut short or of another "
                         "kind: save it again")
    return SafeArrays(path)


class _Zipped:
    """The arrays of an .npz file."""

    def __init__(self, path: PathLike) -> None:
        self.path = path

    def __enter__(self) -> Self:
        self._handle = open(self.path, "rb")  # numpy.load leaves a damaged file open
        try:
            self._file = np.load(self._handle, allow_pickle=False)
        except (OSError, RuntimeError, ValueError, zipfile.BadZipFile) as error:
            self._handle.close()
            raise self._damaged(error) from error
        self.names = list(self._file.files)
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.close()

    def _damaged(self, error: Exception | str) -> ValueError:
        text = str(error)[:200]  # zipfile quotes the bytes of a damaged name
        return ValueError(f"{self.path}: not a readable .npz file ({text}); it may be cut short "
                          "or hold Python objects: save it again with numpy.savez")

    def shape(self, name: str) -> tuple[int, ...]:
        return self.get(name).shape

    def get(self, name: str) -> np.ndarray:
        try:
            array = self._file[name]
        # zipfile raises RuntimeError for encrypted entries and unknown compressions
        except (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile,
                zlib.error) as error:
            raise self._damaged(error) from error
        if not isinstance(array, np.ndarray):  # NumPy returns bytes without an array header
            raise self._damaged(f"{name} is no array")
        return array


def _index_of(folder: PathLike) -> str:
    """The index, or the only safetensors file, of a folder as Hugging Face has them."""
    names = sorted(os.listdir(folder))
    for ending in (INDEX_ENDING, ".safetensors"):
        found = [name for name in names if name.endswith(ending)]
        if len(found) == 1:
            return os.path.join(folder, found[0])
    raise ValueError(f"{folder}: must hold one *{INDEX_ENDING} or one .safetensors file, it has "
                     f"{listed(names)}; give the path of a file")


class _Shards:
    """The arrays of several safetensors files, of which an index says what is where."""

    def __init__(self, path: PathLike) -> None:
        self.path = path

    def __enter__(self) -> Self:
        folder = os.path.dirname(self.path)
        if str(self.path).endswith(INDEX_ENDING):
            with open(self.path, "rb") as file:
                text = file.read()
            try:
                self._file_of = {str(name): str(file)
                                 for name, file in json.loads(text)["weight_map"].items()}
            except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
                raise ValueError(f"{self.path}: not a readable index of safetensors files "
                                 f"({type(error).__name__}); download it again") from error
        else:
            folder, name = os.path.split(self.path)
            with SafeArrays(self.path) as arrays:
                self._file_of = dict.fromkeys(arrays.names, name)
        for name in self._file_of:
            if len(name) > MAX_ARRAY_NAME:
                raise ValueError(f"{self.path}: has an array whose name has {len(name)} "
                                 f"characters, {name[:60]!r}...; download it again")
        for file in set(self._file_of.values()):
            if os.path.basename(file) != file or not file or len(file) > MAX_NAME:
                raise ValueError(f"{self.path}: names the file {file[:MAX_NAME]!r}, which is not "
                                 "beside it")
        self._open: dict[str, SafeArrays] = {}
        self._folder = folder
        self.names = list(self._file_of)
        return self

    def __exit__(self, *error: Any) -> None:
        for arrays in self._open.values():
            arrays.__exit__(*error)

    def _arrays(self, name: str) -> SafeArrays:
        file = self._file_of[name]
        if file not in self._open:
            path = os.path.join(self._folder, file)
            if not os.path.exists(path):
                raise FileNotFoundError(f"{path}: no such file, but {self.path} names it; download "
                                        "all parts")
            self._open[file] = SafeArrays(path).__enter__()
        arrays = self._open[file]
        if name not in arrays.names:
            raise ValueError(f"{arrays.path}: holds no {name!r}, but {self.path} says so; download "
                             "all parts again")
        return arrays

    def shape(self, name: str) -> tuple[int, ...]:
        return self._arrays(name).shape(name)

    def get(self, name: str) -> np.ndarray | BFloat16:
        return self._arrays(name).get(name)


class _StateDict:
    """The tensors of a file of ``torch.save(module.state_dict(), path)``.

    It is read with ``weights_only=True``: a pickle in it runs no code.
    """

    def __init__(self, path: PathLike) -> None:
        self.path = path

    def __enter__(self) -> Self:
        from .torch import require_torch

        torch = require_torch()
        try:
            found = torch.load(self.path, map_location="cpu", weights_only=True)
        except Exception as error:  # of pickle, zipfile and torch
            text = " ".join(str(error).split())[:200]
            raise ValueError(f"{self.path}: not a readable state dict of PyTorch ({text}); save it "
                             "with torch.save(module.state_dict(), path)") from error
        if isinstance(found, dict) and isinstance(found.get("state_dict"), dict):
            found = found["state_dict"]  # as PyTorch Lightning and others have it
        if not isinstance(found, dict):
            raise ValueError(f"{self.path}: holds a {type(found).__name__} and no state dict; save "
                             "it with torch.save(module.state_dict(), path)")
        self._tensors = {str(name): tensor for name, tensor in found.items()
                         if isinstance(tensor, torch.Tensor)}
        self.names = list(self._tensors)
        return self

    def __exit__(self, *_: object) -> None:
        self._tensors = {}

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensors[name].shape)

    def get(self, name: str) -> np.ndarray | BFloat16:
        from .torch import refuse_unusual_tensor, require_torch

        torch, tensor = require_torch(), self._tensors[name].detach()
        refuse_unusual_tensor(torch, tensor, f"{self.path}: {name}")
        if tensor.dtype == torch.bfloat16:
            return BFloat16(tensor.contiguous().view(torch.uint16).numpy())
        return tensor.contiguous().numpy()


class SafeArrays:
    """The arrays of a safetensors file; bfloat16, which NumPy lacks, as :class:`BFloat16`.

    Weights of a network of this library are (n_out, n_in), also those that the file has transposed.
    """

    def __init__(self, path: PathLike) -> None:
        self.path = path

    def __enter__(self) -> Self:
        from safetensors import SafetensorError, safe_open

        try:
            self._file = safe_open(self.path, framework="numpy").__enter__()
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{self.path}: not a readable safetensors file ({error}); it may be "
                             "cut short or of another kind: save it again") from error
        self._places = _files.places_of(self.path)
        self.names = list(self._places)
        self.metadata: dict[str, str] = self._file.metadata() or {}
        self._transposed = _transposed_names(self.metadata)
        return self

    def __exit__(self, *error: Any) -> None:
        self._file.__exit__(*error)

    def shape(self, name: str) -> tuple[int, ...]:
        shape = self._places[name][1]
        return shape[::-1] if name in self._transposed else shape

    def get(self, name: str) -> np.ndarray | BFloat16:
        dtype, shape, start = self._places[name]
        if dtype != "BF16":
            try:
                array = self._file.get_tensor(name)
                return array.T if name in self._transposed else array
            # a dtype or a shape that NumPy does not have
            except (AttributeError, TypeError, ValueError) as error:
                raise ValueError(f"{self.path}: {name} is {dtype} of shape {shape}, which cannot "
                                 f"be read ({error}); save it as float32") from error
        halves = np.fromfile(self.path, np.uint16, int(np.prod(shape)), offset=start)
        return BFloat16(halves.reshape(shape))


def _transposed_names(metadata: dict[str, str]) -> set[str]:
    """The weights that are (n_in, n_out): in files of this library, after training on sparse rows.

    Those of before have "input_major" in the configuration of the layer. Now such weights have a
    name that says it, which only files of a training that is to be continued contain.
    """
    if metadata.get("format") != NETWORK_FORMAT:
        return set()
    try:
        layers = json.loads(metadata["config"])["layers"]
        turned = {i for i, layer in enumerate(layers) if layer.get("input_major")}
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError):
        return set()  # `read_network` says what is wrong with it
    return ({f"layers.{i}.weight" for i in turned}
            | {f"layers.{i}.weight_input_major" for i in range(len(layers))})
