"""Sparse rows as the kernels read them: int64 offsets, int32 column ids, float32 values.

scipy.sparse uses one integer type for offsets and ids, and every slice of it runs many checks.
Inside the library rows are passed as this tuple; only public functions convert from and to scipy.
"""
from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .._core import _sparse_rows
from .aligned import contiguous
from .scipy import sp

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scipy.sparse import csr_array

    from .types import Floats


class CSR(NamedTuple):
    """Compressed sparse rows, ids ascending and distinct within a row."""

    indptr: np.ndarray  # (n + 1,) int64
    indices: np.ndarray  # (nnz,) int32
    data: np.ndarray  # (nnz,) float32
    n_columns: int

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.indptr) - 1, self.n_columns

    @property
    def nnz(self) -> int:
        return len(self.indices)

    def take(self, rows: np.ndarray) -> CSR:
        """The given rows, in that order."""
        indptr = np.empty(len(rows) + 1, np.int64)
        _sparse_rows.take_counts(self.indptr, rows, indptr)

        indices = np.empty(indptr[-1], np.int32)
        data = np.empty(indptr[-1], np.float32)
        _sparse_rows.take_rows(self.indptr, self.indices, self.data, rows, indptr, indices, data)
        return CSR(indptr, indices, data, self.n_columns)

    def slice(self, start: int, stop: int) -> CSR:
        """Rows start to stop, as views where that is possible."""
        first, last = self.indptr[start], self.indptr[stop]
        return CSR(self.indptr[start:stop + 1] - first, self.indices[first:last],
                   self.data[first:last], self.n_columns)

    def squared_norms(self) -> Floats:
        """The sum of squares of each row, (n,)."""
        squares = np.add.reduceat(np.append(self.data * self.data, np.float32(0)),
                                  self.indptr[:-1], dtype=np.float32)
        # for an empty row, reduceat gives the next number
        return np.where(np.diff(self.indptr) > 0, squares, np.float32(0))

    def to_scipy(self) -> csr_array:
        """The same rows as a csr_array."""
        wide = self.nnz > np.iinfo(np.int32).max
        indptr = self.indptr if wide else self.indptr.astype(np.int32)
        return sp.csr_array((self.data, self.indices, indptr), shape=self.shape)

    def to_dense(self) -> Floats:
        """The same rows as a float32 array."""
        out = np.zeros(self.shape, np.float32)
        out.ravel()[self._places()] = self.data
        return out

    def entries_of(self, dense: Floats) -> Floats:
        """What a dense array of this shape holds at the stored entries, (nnz,)."""
        return dense.ravel()[self._places()]

    def _places(self) -> np.ndarray:
        starts = np.repeat(np.arange(self.shape[0]) * self.n_columns, np.diff(self.indptr))
        return starts + self.indices


def concatenate(parts: Sequence[CSR]) -> CSR:
    """The rows of all parts, one below the other."""
    ends = np.cumsum([part.nnz for part in parts])
    indptr = [parts[0].indptr,
              *(part.indptr[1:] + end for part, end in zip(parts[1:], ends, strict=False))]
    return CSR(np.concatenate(indptr), np.concatenate([part.indices for part in parts]),
               np.concatenate([part.data for part in parts]), parts[0].n_columns)


def from_scipy(matrix: Any) -> CSR:
    """Any scipy sparse matrix as :class:`CSR`; ids are sorted, duplicates summed.

    Arrays with gaps, such as ``data[::2]``, and views of bytes that begin anywhere are copied.
    """
    matrix = sp.csr_array(matrix)
    if not matrix.has_canonical_format:
        matrix = matrix.copy()
        matrix.sum_duplicates()
    nnz = matrix.indptr[-1]  # the arrays may be longer
    return CSR(matrix.indptr.astype(np.int64),
               contiguous(matrix.indices[:nnz], np.int32),
               contiguous(matrix.data[:nnz], np.float32), matrix.shape[1])
