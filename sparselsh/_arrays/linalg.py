"""Dense matrix products in the library's own threads (see _core/_gemm.pyx for why not BLAS)."""
from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .._core import _estimates, _file_parts, _gemm, _select, _updates
from .portable import row_products

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from .csr import CSR
    from .types import Floats, Ids

NO_BIAS = np.zeros(0, np.float32)
FLOATS_PER_CACHE_LINE = 16
MAX_TRANSPOSED_BYTES = 1 << 24  # of a transpose, at a time
SUM_ROUNDING = 4e-7  # of float32 inner products, relative to the norms, and of exponentials
MAX_SCORES_PER_CHUNK = 1 << 24  # scores that an exact search computes at a time: 64 MB


def matmul(a: Floats, b: Floats, n_threads: int, *, transpose_a: bool = False,
           transpose_b: bool = False, bias: Floats = NO_BIAS, out: Floats | None = None,
           in_bfloat16: bool = False) -> Floats:
    """``op(a) @ op(b) + bias`` for C-contiguous float32 arrays; op transposes where requested.

    With `in_bfloat16` the factors are rounded to bfloat16.
    """
    m = a.shape[1] if transpose_a else a.shape[0]
    n = b.shape[0] if transpose_b else b.shape[1]
    if out is None:
        out = np.empty((m, n), np.float32)
    _gemm.matmul(a, transpose_a, b, transpose_b, bias, out, n_threads, in_bfloat16)
    return out


class Transposed:
    """The transpose of a float32 matrix, of which parts are copied where they are read.

    A part of a few rows reads as many entries of every row of the matrix: `part_rows` are those of
    two cache lines, or fewer where they would take much memory (`_files.parts_of`).
    """

    def __init__(self, array: Any) -> None:
        self.array = array
        self.shape, self.dtype = array.shape[::-1], array.dtype
        room = MAX_TRANSPOSED_BYTES // max(1, array.shape[0] * array.dtype.itemsize)
        line = FLOATS_PER_CACHE_LINE
        self.part_rows = min(2 * line, room // line * line) or max(1, room)

    def __getitem__(self, rows: slice) -> Floats:
        part = self.array[:, rows]
        out = np.empty(part.shape[::-1], np.float32)
        _file_parts.transpose(part, out)
        return out


def column_sums(a: Floats, n_threads: int) -> Floats:
    """The sum of each column of a C-contiguous float32 array."""
    out = np.empty(a.shape[1], np.float32)
    _updates.sum_columns(a, out, n_threads)
    return out


def row_chunks(n_rows: int, n_columns: int) -> list[tuple[int, int]]:
    """Pairs (start, stop) of row ranges, each of at most MAX_SCORES_PER_CHUNK scores."""
    step = max(1, MAX_SCORES_PER_CHUNK // max(n_columns, 1))
    return [(start, min(start + step, n_rows)) for start in range(0, n_rows, step)]


def exact_topk(X: Floats, W: Floats, bias: Floats, k: int, n_threads: int) -> tuple[Ids, Floats]:
    """Ids and scores of the k largest entries of each row of ``X W^T + bias``.

    Both are (n, k); where there is no entry, the id is -1 and the score -inf.
    """
    ids = np.full((len(X), k), -1, np.int32)
    scores = np.full((len(X), k), -np.inf, np.float32)
    for start, stop in row_chunks(len(X), len(W)):
        z = matmul(X[start:stop], W, n_threads, transpose_b=True, bias=bias)
        _select.top_k(z, None, ids[start:stop], scores[start:stop], n_threads)
    return ids, scores


def log_sum_exp(z: Floats, x: Floats | CSR, rows: Callable[[Ids], Floats],
                n_threads: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The logarithm of the sum of exp over each row of z, and its rounding: (n,) each.

    z, which is overwritten, are inner products of x with weights, plus biases; `rows` gives the
    rows of the weights for some columns of z.
    """
    sums = np.empty(len(z))
    best = rows(z.argmax(axis=1).astype(np.int32))
    squares = row_products(best, best, dtype=np.float64)
    squares *= (row_products(x, x, dtype=np.float64) if isinstance(x, np.ndarray)
                else np.add.reduceat(np.append(x.data, 0).astype(np.float64)**2, x.indptr[:-1])
                * (np.diff(x.indptr) > 0))
    _estimates.log_sum_exp_rows(z, sums, n_threads)
    return sums, SUM_ROUNDING * (1 + np.sqrt(squares))
