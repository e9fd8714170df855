"""Arrays whose rows begin on a line of cache, where a row is whole lines long.

NumPy's arrays begin 16 bytes behind one: each 64-byte vector of a row then stands across two lines and is read as two,
and the ends of a row share their lines with other rows, which another thread may be writing.
"""
from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import DTypeLike

LINE = 128  # bytes: two lines, which many processors fetch together


def empty(shape: tuple[int, ...], dtype: DTypeLike = np.float32) -> np.ndarray:
    """`np.empty` on a line."""
    return _new(np.empty, shape, dtype)


def zeros(shape: tuple[int, ...], dtype: DTypeLike = np.float32) -> np.ndarray:
    """`np.zeros` on a line; pages that nothing was written to take no memory."""
    return _new(np.zeros, shape, dtype)


def on_a_line(array: np.ndarray, copy: bool = False) -> np.ndarray:
    """The array as it is if it is C-contiguous and begins on a line; else, or where asked for, a copy that is."""
    if not copy and array.flags.c_contiguous and array.ctypes.data % LINE == 0:
        return array
    out = empty(array.shape, array.dtype)
    out[...] = array
    return out


def _new(make: Callable[..., Any], shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
    dtype = np.dtype(dtype)
    n_bytes = math.prod(shape) * dtype.itemsize
    room = make(n_bytes + LINE, np.uint8)
    first = -room.ctypes.data % LINE
    return room[first:first + n_bytes].view(dtype).reshape(shape)
