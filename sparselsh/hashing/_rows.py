"""The rows that a family is given, and checks that cost nothing beside the hashing."""
import numpy as np

from .._csr import CSR

LARGEST_TABLE = 2**24  # buckets: start, count and room of a table are then 200 MB together


def check_rows(family, V):
    """Raise ValueError unless the family is fitted, for rows as wide as those of V."""
    if not hasattr(family, "n_dims_"):
        raise ValueError(f"this {type(family).__name__} has drawn no hash functions yet; call fit(n_dims) first")
    if V.shape[1] != family.n_dims_:
        raise ValueError(f"rows must have the {family.n_dims_} dimensions given to fit, got {V.shape[1]}")


def check_table(n_buckets, what):
    """Raise ValueError if a table would have too many buckets."""
    if n_buckets > LARGEST_TABLE:
        raise ValueError(f"{what} must give at most {LARGEST_TABLE} buckets a table, got {n_buckets}; lower it")


def entries(V):
    """(indptr, indices, data) of rows; indices is None where V is dense: each row has all columns, in order."""
    if isinstance(V, CSR):
        return V.indptr, V.indices, V.data
    n, n_dims = V.shape
    return np.arange(n + 1, dtype=np.int64) * n_dims, None, V.ravel()


def chunks(V, n_rows):
    """Slices of rows (start, part of V), n_rows at a time."""
    for start in range(0, V.shape[0], n_rows):
        stop = min(start + n_rows, V.shape[0])
        yield start, V.slice(start, stop) if isinstance(V, CSR) else V[start:stop]
