"""Random projections, of which a hash takes signs or nearest vertices.

Each class draws `n_out` projections of rows of `n_dims` when it is made; ``project(V, n_threads)`` gives
(n, n_out) float32 for dense rows or :class:`~sparselsh._csr.CSR`.
"""
import numpy as np

from .._core import _products, _projections
from .._csr import CSR
from .._linalg import NO_BIAS, matmul
from ._rows import entries

ROUNDS = 3           # Andoni et al. 2015, section 6: from three on, rotations behave like uniform ones
SMALLEST_ORDER = 64  # of a rotation: the coordinates of short vectors would take a few values only
CHUNK = 1 << 16      # planes drawn at a time, in entries of the random matrix


class Gaussian:
    """Independent normals. `planes` is (n_dims, n_out)."""

    def __init__(self, n_out, n_dims, rng):
        self.n_out = n_out
        self.planes = rng.standard_normal((n_dims, n_out), dtype=np.float32)

    def project(self, V, n_threads):
        if not isinstance(V, CSR):
            return matmul(V, self.planes, n_threads)
        out = np.empty((V.shape[0], self.n_out), np.float32)
        _products.weighted_rows(V.indptr, V.indices, V.data, self.planes, NO_BIAS, out, n_threads)
        return out


class SparseSigns:
    """Entries +1, 0, -1 with probabilities 1/6, 2/3, 1/6 (Achlioptas 2003), kept as lists of ids by sign."""

    def __init__(self, n_out, n_dims, rng):
        self.n_out, self.n_dims = n_out, n_dims
        found = []
        step = max(1, CHUNK // max(n_dims, 1))
        for start in range(0, n_out, step):
            draw = rng.integers(0, 6, (min(step, n_out - start), n_dims), dtype=np.uint8)
            plane, column = np.nonzero(draw < 2)
            found.append(((plane + start).astype(np.int32), column.astype(np.int32), draw[plane, column] == 1))
        plane, column, minus = (np.concatenate(part) for part in zip(*found, strict=True))
        self.by_plane = grouped(2 * plane.astype(np.int64) + minus, column, 2 * n_out)
        self.by_column = grouped(2 * column.astype(np.int64) + minus, plane, 2 * n_dims)

    def project(self, V, n_threads):
        out = np.empty((V.shape[0], self.n_out), np.float32)
        if isinstance(V, CSR):
            _projections.signed_sums_csr(V.indptr, V.indices, V.data, *self.by_column, out, n_threads)
        else:
            _projections.signed_sums(V, *self.by_plane, out, n_threads)
        return out


def grouped(keys, ids, n_keys):
    """Ids sorted by key, those of one key in their order: (starts of shape (n_keys + 1,), ids)."""
    starts = np.zeros(n_keys + 1, np.int64)
    np.cumsum(np.bincount(keys, minlength=n_keys), out=starts[1:])
    return starts, np.ascontiguousarray(ids[np.argsort(keys, kind="stable")])


class Rotations:
    """Coordinates of pseudo-random rotations, each three rounds of random signs and a Hadamard matrix.

    A rotation gives as many projections as it has dimensions; for more, further rotations are drawn.
    """

    def __init__(self, n_out, n_dims, rng):
        self.n_out = n_out
        order = max(SMALLEST_ORDER, 1 << (n_dims - 1).bit_length())
        signs = rng.integers(0, 2, (-(-n_out // order), ROUNDS, order), dtype=np.int8) * 2 - 1
        # the scale makes H orthonormal: projections do not grow with the dimension
        self.signs = signs.astype(np.float32) / np.float32(np.sqrt(order))

    def project(self, V, n_threads):
        out = np.empty((V.shape[0], self.n_out), np.float32)
        _projections.rotate(*entries(V), self.signs, out, n_threads)
        return out
