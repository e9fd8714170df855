"""Limits of hash families, and the rows that they hash: cheap checks and chunks."""
from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .. import _validation as check
from .._arrays.csr import CSR

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .._arrays.types import Floats, Ids, Offsets
    from ..protocols import HashFamily

MAX_TABLES = 255
MAX_BITS = 24  # per bucket number
MAX_BUCKETS = 2**24  # per table: its start, count and room then take 200 MB together
ROWS_PER_CHUNK = 1024  # projected at a time: they stay in cache until they are packed


def checked_rows(family: HashFamily, V: Floats | CSR) -> Floats | CSR:
    """V as rows that the family can hash: C-contiguous float32 or CSR, with the fitted width.

    The values of rows in this form are not checked to be finite, because training hashes thousands
    of them per step.
    """
    if not hasattr(family, "n_dims_"):
        raise ValueError(f"this {type(family).__name__} has drawn no hash functions yet; "
                         "call fit(n_dims) first")
    ready = (isinstance(V, np.ndarray) and V.ndim == 2 and V.dtype == np.float32
             and V.flags.c_contiguous)
    if not ready or V.shape[1] != family.n_dims_:
        V = check.matrix(V, "V", n_columns=family.n_dims_, what="columns")
    return V


def check_table(n_buckets: int, what: str) -> None:
    """Raise ValueError if a table would have too many buckets."""
    if n_buckets > MAX_BUCKETS:
        raise ValueError(f"{what} must give at most {MAX_BUCKETS} buckets per table, "
                         f"got {n_buckets}; lower it")


def entries(V: Floats | CSR) -> tuple[Offsets, Ids | None, Floats]:
    """(indptr, indices, data) of rows; indices is None where V is dense, as it has all columns."""
    if isinstance(V, CSR):
        return V.indptr, V.indices, V.data
    n, n_dims = V.shape
    return np.arange(n + 1, dtype=np.int64) * n_dims, None, V.ravel()


def chunks(V: Floats | CSR, n_rows: int) -> Iterator[tuple[int, Floats | CSR]]:
    """Slices of rows (start, part of V), n_rows at a time."""
    for start in range(0, V.shape[0], n_rows):
        stop = min(start + n_rows, V.shape[0])
        yield start, V.slice(start, stop) if isinstance(V, CSR) else V[start:stop]
