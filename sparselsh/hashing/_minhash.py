"""MinHash: the smallest hash value of the features that a row has."""
from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import numpy as np

from .. import _validation as check
from .._core import _winners
from .._display import HtmlRepr
from ._rows import MAX_BITS, MAX_TABLES, checked_rows, entries

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from .._arrays.csr import CSR
    from .._arrays.types import Floats, Ids, RandomState


class MinHash(HtmlRepr):
    """Densified one-permutation minwise hashing of the sets of features that rows have.

    Only whether a value is zero counts. All hash values of a row come from one pass over its
    features; a bin without features copies another one.

    Parameters
    ----------
    hashes : int
        K, minwise hash values per table. At most 255.
    tables : int
        L, number of tables. At most 255.
    bits : int
        The K values are hashed to one of 2**bits buckets. At most 24.

    Raises
    ------
    TypeError, ValueError
        If an argument is not an integer or out of range.

    References
    ----------
    Broder, "On the resemblance and containment of documents", 1997. Li, Owen and Zhang, "One
    permutation hashing", NeurIPS 2012. Shrivastava, "Optimal densification for fast and accurate
    minwise hashing", ICML 2017, section 4.
    """

    def __init__(self, hashes: int = 2, tables: int = 8, bits: int = 16) -> None:
        self.hashes = check.integer(hashes, "hashes", maximum=255)
        self.tables = check.integer(tables, "tables", maximum=MAX_TABLES)
        self.bits = check.integer(bits, "bits", maximum=MAX_BITS)

    @property
    def n_buckets(self) -> int:
        """Buckets per table."""
        return 1 << self.bits

    def fit(self, n_dims: int, random_state: RandomState = None) -> Self:
        """Draw the hash function for rows of `n_dims` features.

        Parameters
        ----------
        n_dims : int
        random_state : None, int or numpy.random.Generator

        Returns
        -------
        MinHash
            Itself.

        Raises
        ------
        TypeError, ValueError
            If an argument does not fit.
        """
        self.n_dims_ = check.integer(n_dims, "n_dims")
        self._seed = int(check.generator(random_state).integers(2**63))
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
        V = checked_rows(self, V)
        codes = np.empty((V.shape[0], self.tables), np.int32)
        _winners.minima(*entries(V), self.hashes, self.bits, self._seed, codes, n_threads)
        return codes

    def probe(self, V: Floats | CSR, n_probes: int, *, n_threads: int = 1) -> Ids:
        """The codes of :meth:`hash`; n_probes must be 1.

        A smallest hash value does not tell which other value a near set has: all are equally
        likely.

        Parameters
        ----------
        V : ndarray of shape (n, n_dims), float32, or CSR
        n_probes : int
            1.
        n_threads : int

        Returns
        -------
        ndarray of shape (n, tables, 1), int32

        Raises
        ------
        ValueError
            If n_probes is above 1, the family is not fitted, or V has another number of columns.
        """
        if check.integer(n_probes, "n_probes") > 1:
            raise ValueError("MinHash has no order in which to probe further buckets, "
                             f"got n_probes={n_probes}; use n_probes=1 and more tables, "
                             "or fewer hashes")
        return self.hash(V, n_threads=n_threads)[:, :, None]

    def collision_probability(self, similarity: ArrayLike) -> np.ndarray:
        """Probability that rows with this Jaccard similarity J share a bucket of one table.

        It is J**hashes + (1 - J**hashes) / 2**bits: equal minima, or different ones hashed to one
        bucket.

        Parameters
        ----------
        similarity : float or array
            Jaccard similarities, in [0, 1].

        Returns
        -------
        ndarray of the shape of `similarity`, float64

        Raises
        ------
        ValueError
            If a similarity is out of range.

        References
        ----------
        Broder 1997, section 3; Shrivastava 2017, theorem 1, for the densified bins.
        """
        equal = check.similarity(similarity, 0) ** self.hashes
        return equal + (1 - equal) / self.n_buckets

    def config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {"hashes": self.hashes, "tables": self.tables, "bits": self.bits}

    def __repr__(self) -> str:
        return f"MinHash(hashes={self.hashes}, tables={self.tables}, bits={self.bits})"
