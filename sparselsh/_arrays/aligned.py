"""Arrays that begin on a cache line, so that rows of whole lines do too.

NumPy's arrays begin 16 bytes after a line. Each 64-byte vector of a row then crosses two lines and
costs two reads, and the ends of a row share their lines with other rows, to which another thread
may be writing.
"""
from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import DTypeLike

ALIGNMENT = 128  # bytes: two lines, which many processors fetch together


def empty(shape: tuple[int, ...], dtype: DTypeLike = np.float32) -> np.ndarray:
    """`np.empty`, aligned."""
    return _new(np.empty, shape, dtype)


def zeros(shape: tuple[int, ...], dtype: DTypeLike = np.float32) -> np.ndarray:
    """`np.zeros`, aligned; pages that were never written take no memory."""
    return _new(np.zeros, shape, dtype)


def aligned(array: np.ndarray, copy: bool = False) -> np.ndarray:
    """The array itself if it is C-contiguous and aligned and `copy` is False, else a copy."""
    if not copy and array.flags.c_contiguous and array.ctypes.data % ALIGNMENT == 0:
        return array
    out = empty(array.shape, array.dtype)
    out[...] = array
    return out


def _new(make: Callable[..., Any], shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
    dtype = np.dtype(dtype)
    n_bytes = math.prod(shape) * dtype.itemsize
    room = make(n_bytes + ALIGNMENT, np.uint8)
    first = -room.ctypes.data % ALIGNMENT
    return room[first:first + n_bytes].view(dtype).reshape(shape)
