"""DWTA: the index of the largest of a few coordinates."""
from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import numpy as np

from .. import _validation as check
from .._core import _winners
from .._display import HtmlRepr
from ._rows import MAX_TABLES, check_table, checked_rows, entries

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from .._arrays.csr import CSR
    from .._arrays.types import Floats, Ids, RandomState


class DWTA(HtmlRepr):
    """Densified winner-take-all: the positions of the largest entries of `bins` bins.

    Together they make up a bucket number. A bin is `bin_size` random coordinates. Only the order of
    the entries counts, not their size: scaling a row, or applying an increasing function to it,
    changes nothing. Zeros count as absent, in sparse and in dense rows; a bin in which a row has no
    entry copies another bin, so that sparse rows do not all share the codes of empty bins. Rows
    without zeros are hashed by plain winner-take-all.

    An entry of a row lies in a bin with probability ``tables * bins * bin_size / n_dims`` where
    that is below one: for very wide rows use large bins, or :class:`MinHash`.

    Parameters
    ----------
    bins : int
        K, bins per table; the table has bin_size**K buckets, at most 2**24.
    tables : int
        L, number of tables. At most 255.
    bin_size : int
        m, coordinates per bin.

    Raises
    ------
    TypeError, ValueError
        If an argument is not an integer or out of range.

    References
    ----------
    Yagnik et al., "The power of comparative reasoning", ICCV 2011. Chen and Shrivastava, "Densified
    winner take all (DWTA) hashing for sparse datasets", UAI 2018. Shrivastava, "Optimal
    densification for fast and accurate minwise hashing", ICML 2017, section 4: which bin an empty
    one copies.
    """

    def __init__(self, bins: int = 4, tables: int = 8, bin_size: int = 8) -> None:
        self.bins = check.integer(bins, "bins", maximum=24)
        self.tables = check.integer(tables, "tables", maximum=MAX_TABLES)
        self.bin_size = check.integer(bin_size, "bin_size", minimum=2, maximum=1 << 24)
        check_table(self.n_buckets, f"bin_size**bins = {bin_size}**{bins}")

    @property
    def n_buckets(self) -> int:
        """Buckets per table."""
        return self.bin_size**self.bins

    def fit(self, n_dims: int, random_state: RandomState = None) -> Self:
        """Draw the bins for rows of `n_dims` dimensions.

        A permutation of the coordinates is cut into bins; when it is used up, the next is drawn.

        Parameters
        ----------
        n_dims : int
        random_state : None, int or numpy.random.Generator

        Returns
        -------
        DWTA
            Itself.

        Raises
        ------
        TypeError, ValueError
            If an argument does not fit.
        """
        self.n_dims_ = check.integer(n_dims, "n_dims")
        rng = check.generator(random_state)
        n_bins = self.bins * self.tables
        padded = max(self.n_dims_, self.bin_size)  # narrow rows have slots without a coordinate
        per_permutation = padded // self.bin_size
        n_permutations = -(-n_bins // per_permutation)

        self._places = np.empty((self.n_dims_, n_permutations), np.int32)
        for q in range(n_permutations):
            slot = rng.permutation(padded)[:self.n_dims_]
            used = min(per_permutation, n_bins - q * per_permutation) * self.bin_size
            first = q * per_permutation * self.bin_size
            self._places[:, q] = np.where(slot < used, slot + first, -1)
        self._seed = int(rng.integers(2**63))
        return self

    def hash(self, V: Floats | CSR, *, n_threads: int = 1) -> Ids:
        """Bucket numbers of the rows of V: digit k in base `bin_size` is the winner of bin k.

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

        The others replace winners by runners-up, by rising sum of the squared differences between
        winners and their replacements. Absent entries never win.

        Parameters
        ----------
        V : ndarray of shape (n, n_dims), float32, or CSR
        n_probes : int
            At most `n_buckets`.
        n_threads : int

        Returns
        -------
        ndarray of shape (n, tables, n_probes), int32
            -1 where there is no further bucket.

        Raises
        ------
        ValueError
            If the family is not fitted, or an argument does not fit.
        """
        V = checked_rows(self, V)
        n_probes = check.integer(n_probes, "n_probes", maximum=self.n_buckets)
        codes = np.empty((V.shape[0], self.tables, n_probes), np.int32)
        _winners.winners(*entries(V), self._places, self.bin_size, self.bins, self._seed, codes,
                         n_threads)
        return codes

    def collision_probability(self, similarity: ArrayLike) -> np.ndarray:
        """Probability that Gaussian rows with this correlation share the bucket of one table.

        Winner-take-all hashes a rank correlation, which the cosine does not determine; this formula
        is for rows whose coordinates are pairs of standard Gaussians with the correlation
        `similarity`. It is q**bins with q = m E[P(X' < X, Y' < Y)**(m - 1)] over such pairs,
        m = bin_size; m = 2 gives 1 - arccos(similarity) / pi. On rows of ones and zeros that leave
        few bins empty, q is their Jaccard similarity.

        Parameters
        ----------
        similarity : float or array
            Correlations, in [-1, 1].

        Returns
        -------
        ndarray of the shape of `similarity`, float64

        Raises
        ------
        ValueError
            If a similarity is out of range.

        References
        ----------
        Yagnik et al. 2011, section 3, for the pairwise order m = 2; the integral is that argument
        for m pairs.
        """
        from . import _laws  # importing scipy.special would make the package import a tenth slower

        similarity = check.similarity(similarity, -1)
        same_largest = np.vectorize(lambda r: _laws.same_largest(self.bin_size, r), [float])
        return same_largest(similarity) ** self.bins

    def config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {"bins": self.bins, "tables": self.tables, "bin_size": self.bin_size}

    def __repr__(self) -> str:
        return f"DWTA(bins={self.bins}, tables={self.tables}, bin_size={self.bin_size})"
