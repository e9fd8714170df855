"""Files that are written as a whole or not at all; safetensors files."""
from __future__ import annotations

import json
import os
import tempfile
import zlib
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from . import _validation as check

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType

    from ._arrays.types import PathLike


MAPPED_DTYPES = {"F32": np.float32, "U16": np.uint16, "I8": np.int8}  # of weights


def require_safetensors() -> ModuleType:
    """The module safetensors.numpy; ImportError with the remedy if it is missing."""
    try:
        import safetensors.numpy as st
    except ImportError as error:
        raise ImportError('reading and writing models needs the package safetensors; '
                          'type: pip install "sparselsh-nn[files]"') from error
    return st


def existing(path: PathLike) -> str:
    """The checked path of a file to read."""
    path = check.path(path)
    if os.path.isdir(path):
        raise IsADirectoryError(f"{path!r} is a directory; give the path of a file in it")
    if not os.path.exists(path):
        raise FileNotFoundError(f"{path}: no such file; check the path")
    return path


def place(path: PathLike) -> str:
    """The checked path of a file to write; for a symbolic link, its target."""
    real = os.path.realpath(check.path(path))
    folder = os.path.dirname(real)
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"{folder!r} is no directory; create it first")
    if os.path.isdir(real):
        raise IsADirectoryError(f"{real!r} is a directory; give the path of a file in it")
    return real


@contextmanager
def replacing(path: PathLike, mode: str = "wb", **options: Any) -> Iterator[IO[Any]]:
    """Open a temporary file that replaces `path` if the block succeeds and is deleted otherwise.

    It is in the same folder, so that the renaming is atomic, and is flushed to disk before.
    """
    path = Path(path)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    try:
        with os.fdopen(handle, mode, **options) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp lets only the owner read
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def write(path: PathLike, tensors: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
    """Write named arrays and a dict of strings."""
    path = place(path)
    data = require_safetensors().save(tensors, metadata)
    with replacing(path) as file:
        file.write(data)


def checksum(tensors: dict[str, np.ndarray], config: str) -> str:
    """Checksum of arrays and config: a flipped bit would silently spoil training or recall."""
    value = zlib.crc32(config.encode())
    for name, a in sorted(tensors.items()):
        head = f"{name} {a.dtype} {a.shape}".encode()
        value = zlib.crc32(np.ascontiguousarray(a).data, zlib.crc32(head, value))
    return str(value)


def write_checked(path: PathLike, tensors: dict[str, np.ndarray], kind: str, config: str) -> None:
    """Write named arrays and a text, with their checksum, as a file of the format `kind`."""
    arrays = {name: np.ascontiguousarray(a) for name, a in tensors.items()}
    write(path, arrays, {"format": kind, "config": config, "checksum": checksum(arrays, config)})


def with_prefix(tensors: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """The arrays whose names begin with `prefix`, by the rest of their names."""
    return {name[len(prefix):]: a for name, a in tensors.items() if name.startswith(prefix)}


def damaged(path: PathLike, what: str, error: Exception) -> ValueError:
    """The error for a file that was read but cannot be used."""
    return ValueError(f"{path}: the {what} in this file is damaged or from another version "
                      f"({type(error).__name__}: {error}); save it again")


def read(path: PathLike, kind: str, mapped: Callable[[str], bool] | None = None
         ) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Named arrays and metadata of a file whose metadata have format = `kind`.

    Arrays for whose names `mapped` returns True are memory-mapped, the others are copied.
    """
    require_safetensors()
    from safetensors import SafetensorError, safe_open

    path = existing(path)
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != kind:
                raise ValueError(f"{path}: a safetensors file, but not one of {kind}; save one "
                                 "first")

            places = places_of(path) if mapped is not None else {}
            tensors = {name: _mapped(path, *places[name]) if mapped is not None and mapped(name)
                       else _copied(path, file, name) for name in file.keys()}
        for name, array in tensors.items():
            if array.dtype.kind not in "fiub":  # types of ml_dtypes, where that is installed
                raise TypeError(f"{name} is {array.dtype}")
        return tensors, metadata
    except (AttributeError, TypeError) as error:  # NumPy lacks some types of the format
        raise ValueError(f"{path}: a safetensors file with a type of numbers that no {kind} has "
                         f"({error}); save it again") from error
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: not a readable safetensors file ({error}); it may be cut short "
                         "or of another kind: save it again") from error


def _copied(path: PathLike, file: Any, name: str) -> np.ndarray:
    try:
        return file.get_tensor(name)
    except ValueError as error:  # from NumPy, for a shape that is too large but contains a zero
        raise ValueError(f"{path}: not a readable safetensors file ({name}: {error}); "
                         "save it again") from error


def places_of(path: PathLike) -> dict[str, Any]:
    """{name: (dtype, shape, first byte)} of a file that the package safetensors has opened.

    Opening has checked the file. The format is 8 bytes with the length of a JSON header, the
    header, the arrays. The package copies arrays and does not support bfloat16 in NumPy, so mapping
    or converting them needs their positions.
    """
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    return {name: (entry["dtype"], tuple(entry["shape"]), 8 + length + entry["data_offsets"][0])
            for name, entry in header.items() if name != "__metadata__"}


def _mapped(path: PathLike, dtype: str, shape: tuple[int, ...], start: int) -> np.ndarray:
    known = MAPPED_DTYPES.get(dtype)
    if known is None or 0 in shape or start % np.dtype(known).itemsize:
        raise ValueError(f"{path}: holds {dtype} of shape {shape} where float32 weights should be "
                         "mapped")
    return np.memmap(path, known, "r", start, shape).view(np.ndarray)
