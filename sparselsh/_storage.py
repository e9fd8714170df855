"""Rows of weights in fewer bits, for layers that are served: bfloat16, or int8 with a scale a row."""
from __future__ import annotations

from typing import TYPE_CHECKING, Self

import numpy as np

from . import _bfloat
from ._core import _quantized

if TYPE_CHECKING:
    from ._types import Floats, Ids

STORAGES = ("float32", "bfloat16", "int8")


class QuantizedRows:
    """Rows (n, d) as `storage` says; `values` and, for int8, `scales` are what the kernels take.

    bfloat16 keeps 8 of 24 significant bits: an entry is off by at most 2^-9 of itself. int8 is off by at most 1/254 of
    the largest entry of its row.
    """

    def __init__(self, storage: str, values: np.ndarray, scales: Floats | None = None) -> None:
        self.storage, self.values, self.scales = storage, values, scales

    @classmethod
    def of(cls, W: Floats, storage: str, n_threads: int) -> Self:
        """Rows of a float32 array; float32 rows are the array itself."""
        if storage == "float32":
            return cls(storage, W)
        if storage == "bfloat16":
            return cls(storage, _bfloat.narrow(W))
        values, scales = np.empty(W.shape, np.int8), np.empty(len(W), np.float32)
        _quantized.quantize_int8(W, values, scales, n_threads)
        return cls(storage, values, scales)

    @classmethod
    def restored(cls, storage: str, shape: tuple[int, ...], values: np.ndarray, scales: Floats | None) -> Self:
        """Rows of a file, checked."""
        dtype = {"bfloat16": np.uint16, "int8": np.int8}[storage]
        if values.dtype != dtype or values.shape != shape:
            raise ValueError(f"its {storage} rows must be {np.dtype(dtype)} of shape {shape}, got {values.dtype} "
                             f"{values.shape}")
        if storage == "int8" and (scales is None or scales.dtype != np.float32 or scales.shape != shape[:1]
                                  or not np.isfinite(scales).all()):
            raise ValueError(f"its scales must be finite float32 of shape {shape[:1]}")
        return cls(storage, values, scales)

    def refresh(self, W: Floats, rows: Ids, n_threads: int) -> None:
        """Take rows that have changed in W."""
        new = QuantizedRows.of(np.ascontiguousarray(W[rows]), self.storage, n_threads)
        self.values[rows] = new.values
        if self.scales is not None:
            self.scales[rows] = new.scales

    def tensors(self, prefix: str) -> dict[str, np.ndarray]:
        """The arrays of a file."""
        return {prefix: self.values} | ({} if self.scales is None else {f"{prefix}_scales": self.scales})

    @property
    def nbytes(self) -> int:
        """Bytes of values and scales."""
        return self.values.nbytes + (0 if self.scales is None else self.scales.nbytes)
