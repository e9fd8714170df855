"""An index as a safetensors file. The weights are not in it: they belong to the layer."""
from __future__ import annotations

import json
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np

from . import _files
from .hashing import FAMILIES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ._types import Floats, HashFamily, PathLike

FORMAT = "sparselsh.index"


def fingerprint(W: Floats, bias: Floats) -> int:
    """A checksum of some rows: enough to tell other weights."""
    step = max(1, len(W) // 256)
    return zlib.crc32(np.ascontiguousarray(bias[::step]).tobytes(), zlib.crc32(W[::step].tobytes()))


def family_config(family: HashFamily | None) -> dict[str, Any] | None:
    """A family as plain values, or None."""
    if family is not None and FAMILIES.get(type(family).__name__) is not type(family):
        raise TypeError(f"family must be one of {', '.join(FAMILIES)} to be saved, got {family!r}; pickle keeps others")
    return None if family is None else {"type": type(family).__name__} | family.config()


def family_from(config: dict[str, Any] | None) -> HashFamily | None:
    """The family of `family_config`, not fitted."""
    return None if config is None else FAMILIES[config["type"]](**{k: v for k, v in config.items() if k != "type"})


def checksum(arrays: dict[str, np.ndarray], config: str) -> str:
    """A checksum of all that a file holds: a flipped bit of codes or seed would quietly spoil the recall."""
    value = zlib.crc32(config.encode())
    for name, a in sorted(arrays.items()):
        value = zlib.crc32(a.data, zlib.crc32(f"{name} {a.dtype} {a.shape}".encode(), value))
    return str(value)


def write(path: PathLike, tensors: Mapping[str, np.ndarray | None], config: dict[str, Any]) -> None:
    """Write the arrays that are not None, and a dict of plain values."""
    arrays = {name: np.ascontiguousarray(a) for name, a in tensors.items() if a is not None}
    text = json.dumps(config)
    _files.write(path, arrays, {"format": FORMAT, "config": text, "checksum": checksum(arrays, text)})


def read(path: PathLike) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays and config of a file; ValueError where it is damaged."""
    tensors, metadata = _files.read(path, FORMAT)
    try:
        if metadata["checksum"] != checksum(tensors, metadata["config"]):
            raise ValueError("its checksum is another")
        return tensors, json.loads(metadata["config"])
    except (KeyError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: the index in this file is damaged ({error}); save it again") from error
