"""Arrays that begin on a cache line, so that rows of whole lines do too.

NumPy's arrays begin 16 bytes after a line. Each 64-byte vector of a row then crosses two lines and
costs two reads, and the ends of a row share their lines with other rows, to which another thread
may be writing.
"""
from __future__ import annotations

import contextlib
import math
import mmap
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import DTypeLike

ALIGNMENT = 128  # bytes: two lines, which many processors fetch together
SPARSE_MIN_BYTES = 1 << 27  # of arrays of which small parts are touched: see `sparse_zeros`


def empty(shape: tuple[int, ...], dtype: DTypeLike = np.float32) -> np.ndarray:
    """`np.empty`, aligned."""
    return _new(np.empty, shape, dtype)


def read_only(view: np.ndarray) -> np.ndarray:
    """The view, which nobody can write through from now on."""
    view.flags.writeable = False
    return view


def zeros(shape: tuple[int, ...], dtype: DTypeLike = np.float32) -> np.ndarray:
    """`np.zeros`, aligned; pages that were never written take no memory."""
    return _new(np.zeros, shape, dtype)


def sparse_zeros(shape: tuple[int, ...], dtype: DTypeLike = np.float32) -> np.ndarray:
    """`zeros`, for arrays of which a program may write a few rows only.

    NumPy asks for huge pages of 2 MB, so that writing one row of a large array costs and takes as
    much as writing a thousand. From 128 MB on, small pages are asked for here; in smaller arrays an
    epoch writes every row, and small pages would cost 3 to 5 % of it. MemoryError if there is no
    room.
    """
    dtype = np.dtype(dtype)
    n_bytes = math.prod(shape) * dtype.itemsize
    if n_bytes < SPARSE_MIN_BYTES or not hasattr(mmap, "MADV_NOHUGEPAGE"):
        return zeros(shape, dtype)
    try:
        room = mmap.mmap(-1, n_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"no room for {n_bytes >> 20} MB ({error})") from error
    with contextlib.suppress(OSError):  # a kernel without huge pages
        room.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(room, dtype).reshape(shape)


def aligned(array: np.ndarray, copy: bool = False) -> np.ndarray:
    """The array itself if it is C-contiguous and aligned and `copy` is False, else a copy."""
    if not copy and array.flags.c_contiguous and array.ctypes.data % ALIGNMENT == 0:
        return array
    out = empty(array.shape, array.dtype)
    out[...] = array
    return out


def contiguous(values: Any, dtype: DTypeLike | None = None) -> np.ndarray:
    """`np.ascontiguousarray`, at a multiple of the size of a number: what kernels read.

    Views of bytes, such as ``np.frombuffer(file, np.float32, offset=1)``, may begin anywhere.
    """
    out = np.ascontiguousarray(values, dtype)
    return out if out.flags.aligned else out.copy()


def locked_arrays(owner: object) -> list[str]:
    """Names of the attributes of an object that are arrays which cannot be written."""
    return [name for name, value in vars(owner).items()
            if isinstance(value, np.ndarray) and not value.flags.writeable]


def own_arrays(owner: object, but: tuple[str, ...] = ()) -> None:
    """Replace the arrays of `locked_arrays` by copies, except for some names.

    joblib maps what it sends to other processes read-only.
    """
    for name in locked_arrays(owner):
        if name not in but:
            setattr(owner, name, aligned(getattr(owner, name), copy=True))


def _new(make: Callable[..., Any], shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
    dtype = np.dtype(dtype)
    n_bytes = math.prod(shape) * dtype.itemsize
    room = make(n_bytes + ALIGNMENT, np.uint8)
    first = -room.ctypes.data % ALIGNMENT
    return room[first:first + n_bytes].view(dtype).reshape(shape)
