"""The rows that a family is given, and checks that cost nothing beside the hashing."""
from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .. import _validation as check
from .._arrays.csr import CSR

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .._arrays.types import Floats, HashFamily, Ids, Offsets

LARGEST_TABLE = 2**24  # buckets: start, count and room of a table are then 200 MB together


def checked_rows(family: HashFamily, V: Floats | CSR) -> Floats | CSR:
    """V as rows that the family can hash: a C-contiguous float32 array or CSR, as wide as those given to fit.

    Rows that are such already are taken as finite: training hashes thousands of them a step.
    """
    if not hasattr(family, "n_dims_"):
        raise ValueError(f"this {type(family).__name__} has drawn no hash functions yet; call fit(n_dims) first")
    ready = isinstance(V, np.ndarray) and V.ndim == 2 and V.dtype == np.float32 and V.flags.c_contiguous
    if not ready or V.shape[1] != family.n_dims_:
        V = check.matrix(V, "V", n_columns=family.n_dims_, what="columns")
    return V


def check_table(n_buckets: int, what: str) -> None:
    """Raise ValueError if a table would have too many buckets."""
    if n_buckets > LARGEST_TABLE:
        raise ValueError(f"{what} must give at most {LARGEST_TABLE} buckets a table, got {n_buckets}; lower it")


def entries(V: Floats | CSR) -> tuple[Offsets, Ids | None, Floats]:
    """(indptr, indices, data) of rows; indices is None where V is dense: each row has all columns, in order."""
    if isinstance(V, CSR):
        return V.indptr, V.indices, V.data
    n, n_dims = V.shape
    return np.arange(n + 1, dtype=np.int64) * n_dims, None, V.ravel()


def chunks(V: Floats | CSR, n_rows: int) -> Iterator[tuple[int, Floats | CSR]]:
    """Slices of rows (start, part of V), n_rows at a time."""
    for start in range(0, V.shape[0], n_rows):
        stop = min(start + n_rows, V.shape[0])
        yield start, V.slice(start, stop) if isinstance(V, CSR) else V[start:stop]
