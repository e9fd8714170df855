"""CrossPolytope: the nearest of +-e_1 .. +-e_m after a random rotation."""
from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import numpy as np

from .. import _validation as check
from .._core import _hashing
from .._display import HtmlRepr
from ._projections import Rotations
from ._rows import MAX_TABLES, ROWS_PER_CHUNK, check_table, checked_rows, chunks

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from .._arrays.csr import CSR
    from .._arrays.types import Floats, Ids, RandomState

class CrossPolytope(HtmlRepr):
    """Nearest vertices of randomly rotated cross-polytopes: the largest coordinate and its sign.

    For close vectors it distinguishes near from far with fewer tables than :class:`SimHash`, the
    more so the larger `dims` is; SimHash is the case of one dimension.

    Parameters
    ----------
    polytopes : int
        K, polytopes per table; the table has (2 dims)**K buckets, at most 2**24.
    tables : int
        L, number of tables. At most 255.
    dims : int
        m, coordinates of the rotated vector that a polytope compares.

    Raises
    ------
    TypeError, ValueError
        If an argument is not an integer or out of range.

    References
    ----------
    Andoni, Indyk, Laarhoven, Razenshteyn and Schmidt, "Practical and optimal LSH for angular
    distance", NeurIPS 2015: section 3, the hash; section 5, its probing; section 6, rotations by
    Hadamard matrices, and taking a part of the coordinates.
    """

    is_angular = True

    def __init__(self, polytopes: int = 2, tables: int = 8, dims: int = 32) -> None:
        self.polytopes = check.integer(polytopes, "polytopes", maximum=24)
        self.tables = check.integer(tables, "tables", maximum=MAX_TABLES)
        self.dims = check.integer(dims, "dims", minimum=2, maximum=1 << 23)
        check_table(self.n_buckets, f"(2 dims)**polytopes = {2 * self.dims}**{self.polytopes}")

    @property
    def n_buckets(self) -> int:
        """Buckets per table."""
        return (2 * self.dims) ** self.polytopes

    def fit(self, n_dims: int, random_state: RandomState = None) -> Self:
        """Draw the rotations for rows of `n_dims` dimensions.

        Parameters
        ----------
        n_dims : int
        random_state : None, int or numpy.random.Generator

        Returns
        -------
        CrossPolytope
            Itself.

        Raises
        ------
        TypeError, ValueError
            If an argument does not fit.
        """
        self.n_dims_ = check.integer(n_dims, "n_dims")
        # polytopes take different coordinates of one rotation, then of the next
        self._rotations = Rotations(self.tables * self.polytopes * self.dims, self.n_dims_,
                                    check.generator(random_state))
        return self

    def hash(self, V: Floats | CSR, *, n_threads: int = 1) -> Ids:
        """Bucket numbers of the rows of V.

        Parameters
        ----------
        V : ndarray of shape (n, n_dims), float32, or CSR
        n_threads : int

        Returns
        -------
        ndarray of shape (n, tables), int32

        Raises
        ------
        ValueError
            If the family is not fitted, or V has another number of columns.
        """
        return self.probe(V, 1, n_threads=n_threads)[:, :, 0]

    def probe(self, V: Floats | CSR, n_probes: int, *, n_threads: int = 1) -> Ids:
        """Buckets to probe for the rows of V, the row's own bucket first.

        The others take farther vertices, by rising sum of the squared differences between the
        projections on the nearest vertex and on the one taken instead.

        Parameters
        ----------
        V : ndarray of shape (n, n_dims), float32, or CSR
        n_probes : int
            At most `n_buckets`.
        n_threads : int

        Returns
        -------
        ndarray of shape (n, tables, n_probes), int32

        Raises
        ------
        ValueError
            If the family is not fitted, or an argument does not fit.

        References
        ----------
        Andoni et al. 2015, section 5.
        """
        V = checked_rows(self, V)
        n_probes = check.integer(n_probes, "n_probes", maximum=self.n_buckets)
        codes = np.empty((V.shape[0], self.tables, n_probes), np.int32)
        for start, rows in chunks(V, ROWS_PER_CHUNK):
            _hashing.nearest_vertices(self._rotations.project(rows, n_threads), self.dims,
                                      self.polytopes, codes[start:start + ROWS_PER_CHUNK],
                                      n_threads)
        return codes

    def collision_probability(self, similarity: ArrayLike) -> np.ndarray:
        """Probability that rows with this cosine share the bucket of one table.

        It is q**polytopes with ``q = 2m E[P(|X'| < X, |Y'| < Y)**(m - 1); X > 0, Y > 0]`` over
        pairs of standard Gaussians whose correlation is the cosine, m = dims; computed numerically.
        For large m, ln(1 / q) = t^2 / (4 - t^2) ln m + O(ln ln m) with t^2 = 2 - 2 similarity.

        Parameters
        ----------
        similarity : float or array
            Cosines, in [-1, 1].

        Returns
        -------
        ndarray of the shape of `similarity`, float64

        Raises
        ------
        ValueError
            If a similarity is out of range.

        References
        ----------
        Andoni et al. 2015, theorem 1 and its proof.
        """
        from . import _laws  # importing scipy.special would make the package import a tenth slower

        similarity = check.similarity(similarity, -1)
        same_vertex = np.vectorize(lambda r: _laws.same_vertex(self.dims, r), [float])
        return same_vertex(similarity) ** self.polytopes

    def config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {"polytopes": self.polytopes, "tables": self.tables, "dims": self.dims}

    def __repr__(self) -> str:
        return f"CrossPolytope(polytopes={self.polytopes}, tables={self.tables}, dims={self.dims})"
