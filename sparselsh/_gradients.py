"""Parameters and gradients, which layers pass to optimizers; a gradient lists the rows it touches.

The method `apply` of a gradient calls the kernel that sums it and updates the rows in one pass, so
that layers and optimizers do not depend on each other. For clipping, `squared_norm` sums the
gradient without changing a weight, and `scale` multiplies one of its two factors.
"""
from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeAlias, cast

import numpy as np

from ._arrays import aligned
from ._arrays.csr import CSR
from ._core import _gemm, _gradient_norms, _sparse_rows, _updates

if TYPE_CHECKING:
    from ._arrays.types import Floats, Ids
    from ._core._updates import Rule

Gradient: TypeAlias = "DenseGradient | RowGradient | ActiveGradient | ProductGradient"
Pair: TypeAlias = "tuple[Parameter, Gradient]"


class Parameter:
    """An array that is trained.

    Attributes
    ----------
    value : ndarray of shape (n_rows, n_columns), float32, or bfloat16 as uint16
        C-contiguous. A bias of n neurons is (n, 1).
    input_major : bool
        Whether rows are inputs instead of neurons. Optimizer state has the same layout.
    """

    def __init__(self, value: np.ndarray, input_major: bool = False) -> None:
        self.value = value
        self.input_major = input_major

    def transpose(self) -> None:
        """Store the transpose."""
        value = aligned.aligned(self.value.T)
        # one instruction: the handler of a signal finds the old layout or the new one
        self.__dict__.update(value=value, input_major=not self.input_major)

    def own(self) -> None:
        """Copy an array that cannot be written, such as one that joblib has mapped from a file."""
        if not self.value.flags.writeable:
            self.value = aligned.aligned(self.value, copy=True)


def _flat_squares(values: Floats, n_threads: int) -> float:
    out = np.empty(-(-values.size // _gradient_norms.RUN_LENGTH))
    _gradient_norms.squares(values.reshape(-1), out, n_threads)
    return out.sum()


class DenseGradient(NamedTuple):
    """A gradient of all rows."""

    value: np.ndarray

    @property
    def rows(self) -> None:
        return None

    def apply(self, rule: Rule, w: Floats, m: Floats | None, v: Floats | None,
              n_threads: int) -> None:
        if v is not None and v.shape != w.shape:  # one second moment per row
            rows = np.arange(len(w), dtype=np.int32)
            _updates.update_rows(rule, w, m, v, rows, self.value.reshape(w.shape), n_threads)
            return
        m, v = (a if a is None else a.reshape(-1) for a in (m, v))
        _updates.update_all(rule, w.reshape(-1), m, v, self.value.reshape(-1), n_threads)

    def squared_norm(self, n_threads: int) -> float:
        return _flat_squares(self.value, n_threads)

    def scale(self, factor: float) -> None:
        np.multiply(self.value, np.float32(factor), out=self.value)


class RowGradient(NamedTuple):
    """value[r] is the gradient of row rows[r]; rows are distinct."""

    rows: np.ndarray
    value: np.ndarray

    def apply(self, rule: Rule, w: Floats, m: Floats | None, v: Floats | None,
              n_threads: int) -> None:
        _updates.update_rows(rule, w, m, v, self.rows, self.value, n_threads)

    def squared_norm(self, n_threads: int) -> float:
        return _flat_squares(self.value, n_threads)

    def scale(self, factor: float) -> None:
        np.multiply(self.value, np.float32(factor), out=self.value)


class ActiveGradient(NamedTuple):
    """d_out^T x for the rows of an active set that the batch shares, never stored."""

    rows: np.ndarray
    d_out: np.ndarray
    x: np.ndarray
    in_bfloat16: bool = False

    def apply(self, rule: Rule, w: Floats, m: Floats | None, v: Floats | None,
              n_threads: int) -> None:
        _gemm.active_update(rule, w, m, v, self.rows, self.d_out, self.x, n_threads,
                            self.in_bfloat16)

    def squared_norm(self, n_threads: int) -> float:
        out = np.empty(len(self.rows))
        _gradient_norms.active_squares(self.d_out, self.x, out, n_threads)
        return out.sum()

    def scale(self, factor: float) -> None:
        np.multiply(self.d_out, np.float32(factor), out=self.d_out)


class Groups(NamedTuple):
    """The transposed pattern of the touched columns of a sparse matrix.

    See `_core._sparse_rows.group_columns`.
    """

    rows: np.ndarray
    starts: np.ndarray
    entries: np.ndarray
    samples: np.ndarray

    @classmethod
    def of(cls, s: CSR, slot: Ids, n_threads: int) -> Groups:
        """The groups of s; `slot`, (n_columns,) int32, is all -1 before and after the call."""
        rows = np.empty(min(s.nnz, len(slot)), np.int32)
        starts = np.empty(len(rows) + 1, np.int64)
        entries, samples = np.empty((2, s.nnz), np.int32)
        n_rows = _sparse_rows.group_columns(s.indptr, s.indices, slot, rows, starts, entries,
                                            samples, n_threads)
        return cls(rows[:n_rows], starts[:n_rows + 1], entries, samples)


class ProductGradient(NamedTuple):
    """S^T x, never stored: S as groups and data, x dense (n, d) or CSR.

    One factor is the gradient of the outputs, the other the input; `x_is_gradient` tells which.
    """

    groups: Groups
    data: np.ndarray
    x: np.ndarray | CSR
    x_is_gradient: bool = False

    @property
    def rows(self) -> Ids:
        return self.groups.rows

    def apply(self, rule: Rule, w: Floats, m: Floats | None, v: Floats | None,
              n_threads: int) -> None:
        if isinstance(self.x, CSR):
            _updates.update_grouped_csr(rule, w, m, v, *self.groups, self.data, self.x.indptr,
                                        self.x.indices, self.x.data, n_threads)
        else:
            _updates.update_grouped(rule, w, m, v, *self.groups, self.data, self.x, n_threads)

    def squared_norm(self, n_threads: int) -> float:
        out = np.empty(len(self.groups.rows))
        groups = self.groups[1:]
        if isinstance(self.x, CSR):
            _gradient_norms.grouped_squares_csr(*groups, self.data, self.x.indptr, self.x.indices,
                                                self.x.data, self.x.n_columns, out, n_threads)
        else:
            _gradient_norms.grouped_squares(*groups, self.data, self.x, out, n_threads)
        return out.sum()

    def scale(self, factor: float) -> None:
        d_out = cast("Floats", self.x) if self.x_is_gradient else self.data
        np.multiply(d_out, np.float32(factor), out=d_out)
