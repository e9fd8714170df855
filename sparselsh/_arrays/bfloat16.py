"""bfloat16 numbers, stored as the uint16 of their bits, because NumPy has no such type."""
from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from .._core import _typed_arrays
from . import aligned

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .types import Floats

DTYPES = ("float32", "bfloat16")
EXPONENT_BITS = np.uint16(0x7F80)  # all set in NaN and in infinity
VALUES_PER_CHECK = 1 << 20


def to_bfloat16(values: Floats) -> NDArray[np.uint16]:
    """float32 values rounded to the nearest bfloat16, ties to even."""
    halves = aligned.empty(values.shape, np.uint16)
    _typed_arrays.to_bfloat16(np.ascontiguousarray(values).reshape(-1), halves.reshape(-1))
    return halves


def to_float32(halves: NDArray[np.uint16]) -> Floats:
    """The float32 values that bfloat16 stands for, exactly."""
    values = np.empty(halves.shape, np.float32)
    _typed_arrays.to_float32(np.ascontiguousarray(halves).reshape(-1), values.reshape(-1))
    return values


def as_float32(stored: np.ndarray) -> Floats:
    """Weights or optimizer state in float32: bfloat16 as a copy, float32 itself."""
    return to_float32(stored) if stored.dtype == np.uint16 else stored


def is_finite(stored: np.ndarray) -> bool:
    """Whether weights or optimizer state, float32 or bfloat16, are all finite."""
    step = max(1, VALUES_PER_CHECK // max(1, math.prod(stored.shape[1:])))
    for start in range(0, len(stored), step):
        part = stored[start:start + step]
        if part.dtype == np.uint16:
            if ((part & EXPONENT_BITS) == EXPONENT_BITS).any():
                return False
            continue
        # a sum of finite terms is finite, except for overflow: one pass without a temporary
        with np.errstate(over="ignore", invalid="ignore"):
            if not np.isfinite(part.sum()) and not np.isfinite(part).all():
                return False
    return True


class Widened:
    """The float32 values of bfloat16 ones, converted where they are read: see `_files.parts_of`."""

    dtype = np.dtype(np.float32)

    def __init__(self, halves: NDArray[np.uint16]) -> None:
        self.halves = halves
        self.shape = halves.shape

    def __getitem__(self, part: Any) -> Floats:
        return to_float32(self.halves[part])


class _BFloat16Type:
    kind = "f"

    def __str__(self) -> str:
        return "bfloat16"


class BFloat16:
    """An array of bfloat16 values, with the part of ndarray that readers of weights use."""

    dtype = _BFloat16Type()

    def __init__(self, halves: NDArray[np.uint16]) -> None:
        self.halves = halves

    def astype(self, _: object) -> Floats:
        return to_float32(self.halves)
