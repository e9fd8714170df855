"""Rows of weights in fewer bits, for inference: bfloat16, or int8 with one scale per row."""
from __future__ import annotations

from typing import TYPE_CHECKING, Self

import numpy as np

from .._arrays import bfloat16
from .._core import _quantized

if TYPE_CHECKING:
    from collections.abc import Callable

    from .._arrays.types import Floats, Ids

STORAGES = ("float32", "bfloat16", "int8")


class QuantizedRows:
    """Rows (n, d) in one of the dtypes of `STORAGES`.

    The kernels take `values` and, for int8, `scales`, one per row. The relative error of an entry
    in bfloat16, which keeps 8 of 24 significant bits, is at most 2^-9. The error of an entry in
    int8 is at most 1/254 of the largest entry of its row.
    """

    def __init__(self, storage: str, values: np.ndarray, scales: Floats | None = None) -> None:
        self.storage, self.values, self.scales = storage, values, scales

    @classmethod
    def of(cls, W: Floats, storage: str, n_threads: int) -> Self:
        """Rows of a float32 array; float32 rows are the array itself."""
        if storage == "float32":
            return cls(storage, W)
        if storage == "bfloat16":
            return cls(storage, bfloat16.to_bfloat16(W))
        values, scales = np.empty(W.shape, np.int8), np.empty(len(W), np.float32)
        _quantized.quantize_int8(W, values, scales, n_threads)
        return cls(storage, values, scales)

    @classmethod
    def restored(cls, storage: str, shape: tuple[int, ...], values: np.ndarray,
                 scales: Floats | None) -> Self:
        """Rows of a file, checked."""
        dtype = {"bfloat16": np.uint16, "int8": np.int8}[storage]
        if values.dtype != dtype or values.shape != shape:
            raise ValueError(f"its {storage} rows must be {np.dtype(dtype)} of shape {shape}, "
                             f"got {values.dtype} {values.shape}")
        if storage == "int8" and (scales is None or scales.dtype != np.float32
                                  or scales.shape != shape[:1] or not np.isfinite(scales).all()):
            raise ValueError(f"its scales must be finite float32 of shape {shape[:1]}")
        return cls(storage, values, scales)

    def to_float32(self) -> Floats:
        """What the rows stand for, as float32; float32 rows themselves."""
        if self.storage == "float32":
            return self.values
        if self.storage == "bfloat16":
            return bfloat16.to_float32(self.values)
        out = self.values.astype(np.float32)
        out *= np.float32(0) if self.scales is None else self.scales[:, None]
        return out

    @property
    def is_quantized(self) -> bool:
        """Whether the values are a copy in fewer bits; else they are the weights themselves."""
        return self.storage != "float32"

    def rebind(self, W: Floats) -> None:
        """Read the weights in their new place; a quantized copy stays as it is."""
        if not self.is_quantized:
            self.values = W

    def extended(self, W: Floats, n_threads: int) -> Self:
        """The rows of a longer W, whose first rows are the same."""
        if not self.is_quantized:
            return type(self)(self.storage, W)
        new = QuantizedRows.of(np.ascontiguousarray(W[len(self.values):]), self.storage, n_threads)
        scales = None
        if self.scales is not None and new.scales is not None:
            scales = np.concatenate([self.scales, new.scales])
        return type(self)(self.storage, np.concatenate([self.values, new.values]), scales)

    def snapshot(self, rows: Ids) -> Callable[[], None]:
        """A function that undoes later changes of these rows."""
        attributes = self.__dict__.copy()
        rows = rows[rows < len(self.values)]
        values = self.values[rows] if self.is_quantized else None
        scales = None if self.scales is None else self.scales[rows]

        def undo() -> None:
            self.__dict__.update(attributes)
            if values is not None:
                self.values[rows] = values
            if self.scales is not None and scales is not None:
                self.scales[rows] = scales

        return undo

    def refresh(self, W: Floats, rows: Ids, n_threads: int) -> None:
        """Quantize again the rows that have changed in W."""
        if not self.is_quantized:
            self.values = W
            return
        new = QuantizedRows.of(np.ascontiguousarray(W[rows]), self.storage, n_threads)
        self.values[rows] = new.values
        if self.scales is not None:
            self.scales[rows] = new.scales

    def tensors(self, prefix: str) -> dict[str, np.ndarray]:
        """The arrays of a file; none where the values are the weights themselves."""
        if not self.is_quantized:
            return {}
        tensors = {prefix: self.values}
        return tensors if self.scales is None else tensors | {f"{prefix}_scales": self.scales}

    @property
    def nbytes(self) -> int:
        """Bytes of values and scales."""
        return self.values.nbytes + (0 if self.scales is None else self.scales.nbytes)


class RowCodes:
    """Rows in int8 whose errors are known: they bound inner products with rows of W.

    `errors`, (n,), times the length of a query bounds the error of its inner product with a row
    (Cauchy and Schwarz), for any query.
    """

    def __init__(self, W: np.ndarray, rows: QuantizedRows | None, n_threads: int) -> None:
        W = bfloat16.as_float32(W)
        if rows is None or rows.storage != "int8":
            rows = QuantizedRows.of(W, "int8", n_threads)
        self.rows = rows
        self.errors = np.empty(len(W), np.float32)
        _quantized.int8_errors(W, self.rows.values, self.scales, self.errors, n_threads)

    @property
    def values(self) -> np.ndarray:
        """The integers."""
        return self.rows.values

    @property
    def scales(self) -> Floats:
        """The factor of each row."""
        scales = self.rows.scales
        return np.zeros(0, np.float32) if scales is None else scales

    def refresh(self, W: np.ndarray, changed: Ids, n_threads: int) -> None:
        """Follow the rows that have changed in W; those from len(self) on are new."""
        if len(W) > len(self.errors):
            added = np.empty(len(W) - len(self.errors), np.float32)
            self.rows = self.rows.extended(bfloat16.as_float32(W), n_threads)
            self.errors = np.concatenate([self.errors, added])
        values = np.ascontiguousarray(bfloat16.as_float32(W[changed]))
        new = RowCodes(values, None, n_threads)
        self.values[changed], self.scales[changed] = new.values, new.scales
        self.errors[changed] = new.errors
