"""bfloat16 numbers, as the uint16 of their bits: NumPy has no such type."""
import numpy as np

from ._core import _stores

DTYPES = ("float32", "bfloat16")


def narrow(values):
    """float32 values rounded to the nearest bfloat16, ties to even."""
    halves = np.empty(values.shape, np.uint16)
    _stores.narrow(np.ascontiguousarray(values).reshape(-1), halves.reshape(-1))
    return halves


def widen(halves):
    """The float32 values that bfloat16 stands for, exactly."""
    values = np.empty(halves.shape, np.float32)
    _stores.widen(np.ascontiguousarray(halves).reshape(-1), values.reshape(-1))
    return values


def as_float32(stored):
    """An array of weights or of optimizer state in float32; itself where it is."""
    return widen(stored) if stored.dtype == np.uint16 else stored
