"""bfloat16 numbers, as the uint16 of their bits: NumPy has no such type."""
from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from . import _memory
from ._core import _typed_arrays

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ._types import Floats

DTYPES = ("float32", "bfloat16")


def narrow(values: Floats) -> NDArray[np.uint16]:
    """float32 values rounded to the nearest bfloat16, ties to even."""
    halves = _memory.empty(values.shape, np.uint16)
    _typed_arrays.to_bfloat16(np.ascontiguousarray(values).reshape(-1), halves.reshape(-1))
    return halves


def widen(halves: NDArray[np.uint16]) -> Floats:
    """The float32 values that bfloat16 stands for, exactly."""
    values = np.empty(halves.shape, np.float32)
    _typed_arrays.to_float32(np.ascontiguousarray(halves).reshape(-1), values.reshape(-1))
    return values


def as_float32(stored: np.ndarray) -> Floats:
    """An array of weights or of optimizer state in float32; itself where it is."""
    return widen(stored) if stored.dtype == np.uint16 else stored
