"""ServedLayer: a layer of a converted network, forward only, by one of four plans.

    dense   every neuron, by a matrix product
    rows    every neuron, from the inputs that are not zero, or from the most important ones; the
            weights are input-major
    lsh     the neurons that an index finds
    int8    every neuron by products of 8 bits; in the last layer the best 4 k + 12 in float32

A layer has one plan for "single" queries and one for a "batch".

A layer that is *compact* has no float32 weights of its own: its weights are what the rows in fewer
bits stand for. Plans that need them in float32 decode them at the first use.
"""
from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .._arrays.csr import CSR
from .._arrays.linalg import log_sum_exp, matmul, row_chunks
from .._core import _activations, _quantized, _select
from ..index import MIN_NEURONS_PER_CANDIDATE, QuantizedRows
from ._int8_outputs import Int8Outputs, n_candidates
from .readers.affine import ACTIVATION_NUMBERS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .._arrays.selection import Selection
    from .._arrays.types import Floats, Ids
    from ..index import IndexEngine
    from .readers.affine import Affine

PLANS = ("dense", "rows", "lsh", "int8")
ESTIMATE_BITS = 8  # of the weights by which an index estimates outputs
CANDIDATES_PER_KEPT = 2  # hidden neurons that an index computes, for each one that is passed on


class ServedLayer:
    """``activation(x W^T + b)``.

    `kept` is the number of outputs that the next layer gets in the plan "rows", or None for all:
    those with the largest activation times `importance`, (n_out,). A hidden layer with an `index`
    keeps the `kept` outputs that it finds. The index holds neurons scaled by 2^`exponents`, so that
    it ranks them by importance; scaling by powers of two is exact.
    """

    bias: Floats
    rows: QuantizedRows | None
    kept: int | None
    importance: Floats | None
    index: IndexEngine | None
    exponents: Ids | None

    def __init__(self, layer: Affine, storage: str = "float32", *,
                 sparse_input: bool = False) -> None:
        self.name, self.kind, self.activation = layer.name, layer.kind, layer.activation
        self.mode, self.padding, self.width = layer.mode, layer.padding, layer.width
        self.n_in, self.n_out = layer.n_in, layer.n_out
        self.has_bias = layer.bias is not None
        self.bias = layer.bias if layer.bias is not None else np.zeros(self.n_out, np.float32)
        self.storage = storage
        # as stored: (n_out, n_in), or (n_in, n_out) where input_major
        self._values: Floats | None = np.ascontiguousarray(
            layer.weight.T if sparse_input else layer.weight)
        self.is_compact = False
        self.input_major = layer.kind != "linear" or sparse_input
        self.plan = dict.fromkeys(("single", "batch"), "rows" if self.input_major else "dense")
        self.int8: Int8Outputs | None = None  # of the plan "int8", made when it is first needed
        self.widening = 1  # of the candidates of the plan "int8"
        self.rows = None  # `values` in fewer bits, for the plan "rows" and compact layers
        self.kept = self.importance = self.index = self.exponents = None

    # -- weights ------------------------------------------------------------------------------

    @property
    def values(self) -> Floats:
        """The float32 weights as stored."""
        if self._values is None:
            if self.rows is None:
                raise ValueError(f"{self.name} has no weights")
            self._values = self.rows.to_float32()
        return self._values

    @values.setter
    def values(self, values: Floats) -> None:
        self._values = values

    def compact(self, n_threads: int) -> None:
        """Keep the weights in fewer bits alone, in the order in which they are stored now."""
        if self.storage == "float32" or self.kind != "linear":
            return
        if reads_quantized_rows(self.index):
            self.rows = self.index.rows
        elif self.rows is None:
            self.rows = QuantizedRows.of(self.values, self.storage, n_threads)
        self.take_rows(self.rows)
        if self.index is not None:
            self.index.rebind_weights(self.values, self.bias)

    def take_rows(self, rows: QuantizedRows) -> None:
        """Become compact, with these rows."""
        self.rows, self._values, self.is_compact = rows, None, True

    @property
    def weight(self) -> Floats:
        """As it was given: (n_out, n_in), or the table of an embedding."""
        if self.exponents is not None:
            return np.ldexp(self.values, -self.exponents[:, None])
        if self.input_major and self.kind == "linear":
            return np.ascontiguousarray(self.values.T)
        return self.values

    @property
    def true_bias(self) -> Floats | None:
        """As it was given."""
        if not self.has_bias:
            return None
        return self.bias if self.exponents is None else np.ldexp(self.bias, -self.exponents)

    def lay_out(self, n_threads: int) -> None:
        """Store the weights as the plans read them; before the layer is made compact."""
        if self.kind == "linear":
            input_major = "rows" in self.plan.values()
            if input_major != self.input_major:
                self.values = np.ascontiguousarray(self.values.T)
                self.input_major = input_major
        self.rows = None
        if self.input_major and self.kind != "embedding" and self.storage != "float32":
            self.rows = QuantizedRows.of(self.values, self.storage, n_threads)

    # -- forward ------------------------------------------------------------------------------

    def forward(self, x: np.ndarray | CSR, kind: str, n_threads: int, keep: bool = False,
                exact: bool = False) -> Floats | CSR:
        """Outputs (n, n_out) of x: an array, or a CSR of the outputs that are kept."""
        if self.kind == "embedding":
            return self.outputs(x, kind, n_threads)
        reads_rows = isinstance(x, CSR) and self.input_major
        if self.plan[kind] == "lsh" and not exact and not reads_rows:
            return self.found(x, n_threads)
        out = self.outputs(x, kind, n_threads, exact)
        return self.largest(out, n_threads) if keep and self.kept is not None else out

    def outputs(self, x: np.ndarray | CSR, kind: str, n_threads: int,
                exact: bool = False) -> Floats:
        """All outputs (n, n_out) of x, by a matrix product where the plan is "lsh"."""
        if self.kind == "embedding":
            out = self.values[x].reshape(len(x), self.n_out)
        elif self.plan[kind] == "rows" or (isinstance(x, CSR) and self.input_major):
            out = self._from_rows(x if isinstance(x, CSR) else nonzeros(x), exact, n_threads)
        else:
            x = x.to_dense() if isinstance(x, CSR) else x
            if self.plan[kind] == "int8" and not exact:
                return self.by_int8(n_threads).outputs(x, self.bias, n_threads,
                                                       ACTIVATION_NUMBERS[self.activation])
            out = self._dense(x, n_threads)
        if self.activation is not None:
            _activations.activate(ACTIVATION_NUMBERS[self.activation], out, n_threads)
        return out

    def _dense(self, x: Floats, n_threads: int) -> Floats:
        out = matmul(x, self.values, n_threads, transpose_b=not self.input_major, bias=self.bias)
        return out if self.exponents is None else np.ldexp(out, -self.exponents)

    def _from_rows(self, s: CSR, exact: bool, n_threads: int) -> Floats:
        rows = self.rows
        if rows is None or (exact and not self.is_compact):
            rows = QuantizedRows("float32", self.values)
        out = np.empty((s.shape[0], self.n_out), np.float32)
        _quantized.weighted_rows(s.indptr, s.indices, s.data, rows.values, rows.scales, self.bias,
                                 out, n_threads)
        return out

    def largest(self, out: Floats, n_threads: int) -> CSR:
        """The outputs that matter most for the next layer."""
        if self.kept is None or self.importance is None:
            raise ValueError(f"{self.name} passes all of its outputs on")
        ids, values = np.empty((2, len(out), self.kept), np.int32)
        values = values.view(np.float32)
        weighted = out * self.importance
        if self.activation != "relu":
            weighted = np.abs(weighted)
        _select.top_k(weighted, None, ids, values, n_threads)
        values[:] = np.take_along_axis(out, np.maximum(ids, 0), 1)
        return _csr(ids, values, (ids >= 0) & (values != 0), self.n_out)

    def found(self, x: np.ndarray | CSR, n_threads: int) -> CSR:
        """The outputs that the index finds."""
        if self.index is None or self.kept is None or self.exponents is None:
            raise ValueError(f"{self.name} has no index over hidden neurons")
        x = x.to_dense() if isinstance(x, CSR) else x
        n_candidates = min(CANDIDATES_PER_KEPT * self.kept, self.n_out)
        ids, scores = self.index.search(x, self.kept, n_candidates, n_threads)

        known = ids >= 0
        values = np.ldexp(scores, -self.exponents[np.maximum(ids, 0)])
        if self.activation == "relu":
            known &= values > 0
        return _csr(ids, values, known, self.n_out)

    def step(self) -> tuple[Any, ...] | None:
        """The layer as a step of the kernel for single queries (_core/_single_row_mlp.pyx).

        Weights, scales, bias, whether they are input-major, and whether a ReLU follows; None where
        the layer is an embedding, has the plan "lsh" or "int8" or another activation.
        """
        if (self.kind == "embedding" or self.plan["single"] in ("lsh", "int8")
                or self.exponents is not None or self.activation not in (None, "relu")):
            return None
        reads_rows = self.is_compact or (self.rows is not None and self.plan["single"] == "rows")
        rows = self.rows if reads_rows else QuantizedRows("float32", self.values)
        return rows.values, rows.scales, self.bias, self.input_major, self.activation == "relu"

    # -- the last layer -----------------------------------------------------------------------

    def stored_rows(self) -> tuple[Any, ...]:
        """Weights, scales, bias and whether they are input-major, as they are kept."""
        rows = self.rows
        if rows is None and reads_quantized_rows(self.index):
            rows = self.index.rows
        if rows is None:
            rows = QuantizedRows("float32", self.values)
        return rows.values, rows.scales, self.bias, self.input_major

    def is_partial(self, kind: str) -> bool:
        """Whether the plan gives float32 scores of the best outputs only."""
        return self.plan[kind] in ("lsh", "int8")

    def topk(self, x: np.ndarray | CSR, k: int, kind: str, n_threads: int, exact: bool = False,
             selection: Selection | None = None) -> tuple[Ids, Floats]:
        """Ids and scores (n, k) of the largest outputs, or of those that a selection allows."""
        n = x.shape[0]
        if self.plan[kind] == "lsh" and not exact and k <= self.n_out // MIN_NEURONS_PER_CANDIDATE:
            x = x.to_dense() if isinstance(x, CSR) else x
            if selection is not None:
                return self.index.search_among(x, k, selection, n_threads)
            return self.index.search(x, k, None, n_threads)
        n_exact = self.widening * n_candidates(k)
        if (self.plan[kind] == "int8" and not exact and 2 * n_exact <= self.n_out
                and self.activation is None):
            x = x.to_dense() if isinstance(x, CSR) else x
            return self.by_int8(n_threads).topk(x, self.values, self.bias, k, n_threads, selection,
                                                self.widening)

        ids, scores = np.full((n, k), -1, np.int32), np.full((n, k), -np.inf, np.float32)
        for start, stop in row_chunks(n, self.n_out):
            part = x
            if stop - start != n:
                part = x.slice(start, stop) if isinstance(x, CSR) else x[start:stop]
            out = self.outputs(part, kind, n_threads, exact or self.is_partial(kind))
            if selection is not None:
                out = selection.slice(start, stop).exclude_from(out)
            _select.top_k(out, None, ids[start:stop], scores[start:stop], n_threads)
        if selection is not None:
            ids[np.isneginf(scores)] = -1
        return ids, scores

    def estimates(self, x: np.ndarray | CSR, k: int, kind: str, n_threads: int) -> Floats:
        """All outputs (n, n_out): the k largest exact; others as the plan estimates them."""
        k = min(k, self.n_out)
        if not self.is_partial(kind) or self.activation is not None:
            return self.outputs(x, kind, n_threads, self.is_partial(kind))
        x = x.to_dense() if isinstance(x, CSR) else x
        if self.plan[kind] == "int8":
            return self.by_int8(n_threads).estimates(x, self.values, self.bias, k, n_threads)
        return self.index.estimate(x, k, ESTIMATE_BITS, n_threads)[0]

    def score(self, x: np.ndarray | CSR, ids: Ids, kind: str, n_threads: int) -> Floats:
        """The outputs ids[i] of row i, (n, n_ids); -inf for the id -1."""
        if self.plan[kind] == "lsh" and self.activation is None:
            return self.index.score(x.to_dense() if isinstance(x, CSR) else x, ids, n_threads)
        z = np.take_along_axis(self.outputs(x, kind, n_threads, self.is_partial(kind)),
                               np.maximum(ids, 0), 1)
        z[ids < 0] = -np.inf
        return z

    def log_sum_exp(self, x: np.ndarray | CSR, wanted: float, kind: str, n_threads: int
                    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The logarithm of the sum of exp(output) per row, and its error: (n,) each."""
        if self.plan[kind] == "lsh" and self.activation is None:
            x = x.to_dense() if isinstance(x, CSR) else x
            return self.index.log_sum_exp(x, wanted, n_threads)
        z = self.outputs(x, kind, n_threads, self.is_partial(kind))
        return log_sum_exp(z, x, self._neurons, n_threads)

    def _neurons(self, ids: Ids) -> Floats:
        """The weights of some neurons; an embedding has none."""
        if self.kind == "embedding":
            return np.zeros((len(ids), 1), np.float32)
        return self.values[:, ids].T if self.input_major else self.values[ids]

    def by_int8(self, n_threads: int) -> Int8Outputs:
        """The weights in 8 bits, of the plan "int8"."""
        if self.int8 is None:
            values = np.ascontiguousarray(self.values.T) if self.input_major else self.values
            self.int8 = Int8Outputs(values, n_threads)
        return self.int8

    # -- size ---------------------------------------------------------------------------------

    @property
    def density(self) -> float:
        """Fraction of the outputs that the next layer gets."""
        return 1.0 if self.kept is None else self.kept / self.n_out

    @property
    def nbytes(self) -> int:
        """Bytes that inference reads, without float32 weights that only rank the last few again."""
        index = self.index.nbytes if self.index is not None else 0
        is_shared = reads_quantized_rows(self.index) and self.rows is self.index.rows
        rows = self.rows.nbytes if self.rows is not None and not is_shared else 0
        is_quantized = self.rows is not None or reads_quantized_rows(self.index)
        reads_weights = not is_quantized or "dense" in self.plan.values()
        if "int8" in self.plan.values():
            rows += self.by_int8(1).nbytes
            reads_weights &= set(self.plan.values()) != {"int8"}
        return index + rows + self.bias.nbytes + (self.values.nbytes if reads_weights else 0)


def reads_quantized_rows(index: IndexEngine | None) -> bool:
    """Whether an index scores its candidates by rows of fewer bits."""
    return index is not None and index.rows.is_quantized


def nonzeros(x: Floats) -> CSR:
    """The entries of an array that are not zero, as CSR."""
    if len(x) == 1:
        indices = np.flatnonzero(x[0]).astype(np.int32)
        return CSR(np.array([0, len(indices)], np.int64), indices, x[0][indices], x.shape[1])
    i, j = np.nonzero(x)
    indptr = np.zeros(len(x) + 1, np.int64)
    np.cumsum(np.bincount(i, minlength=len(x)), out=indptr[1:])
    return CSR(indptr, j.astype(np.int32), x[i, j], x.shape[1])


def sparse_rows(x: np.ndarray | CSR) -> CSR:
    """The rows as CSR."""
    return x if isinstance(x, CSR) else nonzeros(x)


def _csr(ids: Ids, values: Floats, known: NDArray[np.bool_], n_columns: int) -> CSR:
    """The known entries (ids, values) as CSR, best first in each row."""
    indptr = np.zeros(len(ids) + 1, np.int64)
    np.cumsum(np.count_nonzero(known, axis=1), out=indptr[1:])
    return CSR(indptr, ids[known], values[known], n_columns)
