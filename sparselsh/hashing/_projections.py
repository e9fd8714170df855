"""Random projections, from whose values hashes take signs or nearest vertices.

Each class draws `n_out` projections of rows of `n_dims` when it is made; ``project(V, n_threads)``
gives (n, n_out) float32 for dense rows or :class:`~sparselsh._arrays.csr.CSR`.
"""
from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from .._arrays.csr import CSR
from .._arrays.linalg import NO_BIAS, matmul
from .._arrays.portable import standard_normal
from .._core import _projections, _sparse_products
from ._rows import entries

if TYPE_CHECKING:
    from .._arrays.types import Floats, Ids, Offsets

N_ROTATION_ROUNDS = 3  # from three on, rotations behave like uniform ones (Andoni 2015, section 6)
MIN_ROTATION_ORDER = 64  # dimensions; at fewer, the coordinates would take only a few values
SIGN_OF_DIE = np.array([1, -1, 0, 0, 0, 0], np.int8)


class Gaussian:
    """Independent normals. `planes` is (n_dims, n_out)."""

    def __init__(self, n_out: int, n_dims: int, rng: np.random.Generator) -> None:
        self.n_out = n_out
        self.planes = standard_normal(rng, (n_dims, n_out))

    def project(self, V: Floats | CSR, n_threads: int) -> Floats:
        if not isinstance(V, CSR):
            return matmul(V, self.planes, n_threads)
        out = np.empty((V.shape[0], self.n_out), np.float32)
        _sparse_products.weighted_rows(V.indptr, V.indices, V.data, self.planes, NO_BIAS, out,
                                       n_threads)
        return out


class SparseSigns:
    """Entries +1, 0, -1 with probabilities 1/6, 2/3, 1/6 (Achlioptas 2003).

    `signs` is (n_dims, n_out), int8.
    """

    def __init__(self, n_out: int, n_dims: int, rng: np.random.Generator) -> None:
        self.n_out = n_out
        self.signs = SIGN_OF_DIE[rng.integers(0, 6, (n_dims, n_out), dtype=np.uint8)]

    def project(self, V: Floats | CSR, n_threads: int) -> Floats:
        out = np.empty((V.shape[0], self.n_out), np.float32)
        if isinstance(V, CSR):
            _projections.signed_sums_csr(V.indptr, V.indices, V.data, self.signs, out, n_threads)
        else:
            _projections.signed_sums(V, *self._by_plane, out, n_threads)
        return out

    @cached_property
    def _by_plane(self) -> tuple[Offsets, Ids]:
        # for dense rows: the columns with +1 and those with -1 of each plane, as (starts, ids)
        lists = [np.flatnonzero(plane == sign) for plane in self.signs.T for sign in (1, -1)]
        starts = np.cumsum([0] + [len(ids) for ids in lists], dtype=np.int64)
        return starts, np.concatenate(lists).astype(np.int32)


class Rotations:
    """Coordinates of pseudo-random rotations.

    Each is three rounds of random signs and a Hadamard matrix. A rotation gives as many projections
    as it has dimensions; for more, further rotations are drawn.
    """

    def __init__(self, n_out: int, n_dims: int, rng: np.random.Generator) -> None:
        self.n_out = n_out
        order = max(MIN_ROTATION_ORDER, 1 << (n_dims - 1).bit_length())
        shape = (-(-n_out // order), N_ROTATION_ROUNDS, order)
        signs = rng.integers(0, 2, shape, dtype=np.int8) * 2 - 1
        # the scale makes H orthonormal, so that projections do not grow with the dimension
        self.signs = signs.astype(np.float32) / np.float32(np.sqrt(order))

    def project(self, V: Floats | CSR, n_threads: int) -> Floats:
        out = np.empty((V.shape[0], self.n_out), np.float32)
        _projections.rotate(*entries(V), self.signs, out, n_threads)
        return out
