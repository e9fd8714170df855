"""SimHash: signs of random projections."""
from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import numpy as np

from .. import _validation as check
from .._core import _hashing
from .._display import HtmlRepr
from ._projections import Gaussian, Rotations, SparseSigns
from ._rows import MAX_BITS, MAX_TABLES, ROWS_PER_CHUNK, checked_rows, chunks

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from .._arrays.csr import CSR
    from .._arrays.types import Floats, Ids, RandomState

PROJECTIONS: dict[str, type[Gaussian | SparseSigns | Rotations]] = {
    "gaussian": Gaussian, "sparse": SparseSigns, "orthogonal": Rotations}


class SimHash(HtmlRepr):
    """Signs of random projections, `bits` of them packed into the bucket number of a table.

    Parameters
    ----------
    bits : int
        K, projections per table; the table has 2**K buckets. At most 24.
    tables : int
        L, number of tables. At most 255.
    projection : {"gaussian", "sparse", "orthogonal"}
        How the hyperplanes are drawn.

        - "gaussian": independent normals, by a matrix product. `collision_probability` holds
          exactly.
        - "sparse": two thirds of the entries are zero, the others +1 or -1, so that only additions
          are needed. `collision_probability` holds for rows with many entries of about the same
          size, and fails for rows with a few.
        - "orthogonal": rotations by random signs and Hadamard matrices, O(d log d) per rotation,
          for dense rows. Planes of one rotation are orthogonal, which makes the number of equal
          bits vary less.

    Raises
    ------
    TypeError, ValueError
        If an argument has another type or is out of range.

    See Also -------- choose_bits_and_tables : Bits and tables for a given density and recall.

    References
    ----------
    Charikar, "Similarity estimation techniques from rounding algorithms", STOC 2002, section 3.
    "sparse": Achlioptas, "Database-friendly random projections", JCSS 2003; Chen et al., SLIDE,
    MLSys 2020. "orthogonal": Ji et al., "Super-bit locality-sensitive hashing", NeurIPS 2012;
    Andoni et al., "Practical and optimal LSH for angular distance", NeurIPS 2015, section 6.
    """

    is_angular = True
    in_bfloat16 = False  # of a copy whose projections are products of factors rounded to bfloat16

    def __init__(self, bits: int = 10, tables: int = 8, projection: str = "gaussian") -> None:
        self.bits = check.integer(bits, "bits", maximum=MAX_BITS)
        self.tables = check.integer(tables, "tables", maximum=MAX_TABLES)
        self.projection = check.choice(projection, "projection", tuple(PROJECTIONS))

    @property
    def n_buckets(self) -> int:
        """Buckets per table."""
        return 1 << self.bits

    def fit(self, n_dims: int, random_state: RandomState = None) -> Self:
        """Draw the hyperplanes for rows of `n_dims` dimensions.

        Parameters
        ----------
        n_dims : int
        random_state : None, int or numpy.random.Generator

        Returns
        -------
        SimHash
            Itself.

        Raises
        ------
        TypeError, ValueError
            If an argument does not fit.
        """
        self.n_dims_ = check.integer(n_dims, "n_dims")
        rng = check.generator(random_state)
        self._projections = PROJECTIONS[self.projection](self.tables * self.bits, self.n_dims_, rng)
        return self

    def hash(self, V: Floats | CSR, *, n_threads: int = 1) -> Ids:
        """Bucket numbers of the rows of V: bit b is set where projection b is above zero.

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
        if isinstance(self._projections, Gaussian) and isinstance(V, np.ndarray):
            _hashing.sign_codes(V, self._projections.planes, self.bits, codes, n_threads,
                                self.in_bfloat16)
            return codes

        for start, rows in chunks(V, ROWS_PER_CHUNK):
            _hashing.pack_codes(self._projections.project(rows, n_threads), self.bits,
                                codes[start:start + ROWS_PER_CHUNK], n_threads)
        return codes

    def probe(self, V: Floats | CSR, n_probes: int, *, n_threads: int = 1) -> Ids:
        """Buckets to probe for the rows of V, the row's own bucket first.

        The others follow by rising sum of the squared projections whose bits are flipped: the
        squared distance that a vector has to move to fall into that bucket.

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
        Lv et al., "Multi-probe LSH", VLDB 2007, sections 4.2 to 4.4.
        """
        V = checked_rows(self, V)
        n_probes = check.integer(n_probes, "n_probes", maximum=self.n_buckets)
        if n_probes == 1:
            return self.hash(V, n_threads=n_threads)[:, :, None]

        codes = np.empty((V.shape[0], self.tables, n_probes), np.int32)
        for start, rows in chunks(V, ROWS_PER_CHUNK):
            _hashing.probe_signs(self._projections.project(rows, n_threads), self.bits,
                                 codes[start:start + ROWS_PER_CHUNK], n_threads)
        return codes

    def collision_probability(self, similarity: ArrayLike) -> np.ndarray:
        """Probability that rows with this cosine share the bucket of one table.

        It is (1 - arccos(similarity) / pi)**bits.

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
        Charikar 2002, section 3, after Goemans and Williamson 1995, lemma 3.2.
        """
        return (1 - np.arccos(check.similarity(similarity, -1)) / np.pi) ** self.bits

    def config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {"bits": self.bits, "tables": self.tables, "projection": self.projection}

    def __repr__(self) -> str:
        return f"SimHash(bits={self.bits}, tables={self.tables}, projection={self.projection!r})"
