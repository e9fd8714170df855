"""SimHash: signs of random projections."""
from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import numpy as np

from .. import _validation as check
from .._core import _hashing
from .._display import HtmlRepr
from ._projections import Gaussian, Rotations, SparseSigns
from ._rows import checked_rows, chunks

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from .._arrays.csr import CSR
    from .._arrays.types import Floats, Ids, RandomState

PROJECTIONS: dict[str, type[Gaussian | SparseSigns | Rotations]] = {
    "gaussian": Gaussian, "sparse": SparseSigns, "orthogonal": Rotations}
CHUNK = 1024  # rows projected at a time: the projections stay in cache until they are packed


class SimHash(HtmlRepr):
    """Signs of random projections, `bits` of them packed to the bucket number of a table.

    Parameters
    ----------
    bits : int
        K, projections a table; the table has 2**K buckets. At most 24.
    tables : int
        L, number of tables. At most 255.
    projection : {"gaussian", "sparse", "orthogonal"}
        How the hyperplanes are drawn.

        - "gaussian": independent normals; the law below holds exactly. A matrix product.
        - "sparse": two thirds of the entries are zero, the others +1 or -1: additions only. The law holds for
          rows with many entries of about the same size, and fails for rows with a few.
        - "orthogonal": rotations by random signs and Hadamard matrices, O(d log d) a rotation, for dense rows.
          Planes of one rotation are orthogonal, which makes the number of equal bits vary less.

    See Also
    --------
    choose_bits_and_tables : Bits and tables for a wanted density and recall.

    References
    ----------
    Charikar, "Similarity estimation techniques from rounding algorithms", STOC 2002, section 3.
    Achlioptas, "Database-friendly random projections", JCSS 2003; Chen et al., SLIDE, MLSys 2020: "sparse".
    Ji et al., "Super-bit locality-sensitive hashing", NeurIPS 2012; Andoni et al., "Practical and optimal LSH for
    angular distance", NeurIPS 2015, section 6: "orthogonal".
    """

    def __init__(self, bits: int = 10, tables: int = 8, projection: str = "gaussian") -> None:
        self.bits = check.integer(bits, "bits", maximum=24)
        self.tables = check.integer(tables, "tables", maximum=255)
        self.projection = check.choice(projection, "projection", tuple(PROJECTIONS))

    @property
    def n_buckets(self) -> int:
        """Buckets a table."""
        return 1 << self.bits

    def fit(self, n_dims: int, random_state: RandomState = None) -> Self:
        """Draw the hyperplanes for rows of `n_dims` dimensions."""
        self.n_dims_ = check.integer(n_dims, "n_dims")
        rng = check.generator(random_state)
        self._projections = PROJECTIONS[self.projection](self.tables * self.bits, self.n_dims_, rng)
        return self

    def hash(self, V: Floats | CSR, *, n_threads: int = 1) -> Ids:
        """Bucket numbers of the rows of V: (n, tables), int32. Bit b is set where projection b is above zero."""
        V = checked_rows(self, V)
        codes = np.empty((V.shape[0], self.tables), np.int32)
        if isinstance(self._projections, Gaussian) and isinstance(V, np.ndarray):
            _hashing.sign_codes(V, self._projections.planes, self.bits, codes, n_threads)
            return codes
        for start, rows in chunks(V, CHUNK):
            _hashing.pack_codes(self._projections.project(rows, n_threads), self.bits,
                                codes[start:start + CHUNK], n_threads)
        return codes

    def probe(self, V: Floats | CSR, n_probes: int, *, n_threads: int = 1) -> Ids:
        """Buckets to probe for the rows of V: (n, tables, n_probes), int32, the row's own bucket first.

        The others follow by rising sum of the squared projections whose bits are flipped: the squared distance
        that a vector has to move to fall into that bucket.

        References
        ----------
        Lv et al., "Multi-probe LSH", VLDB 2007, sections 4.2 to 4.4.
        """
        V = checked_rows(self, V)
        n_probes = check.integer(n_probes, "n_probes", maximum=self.n_buckets)
        if n_probes == 1:
            return self.hash(V, n_threads=n_threads)[:, :, None]
        codes = np.empty((V.shape[0], self.tables, n_probes), np.int32)
        for start, rows in chunks(V, CHUNK):
            _hashing.probe_signs(self._projections.project(rows, n_threads), self.bits,
                                 codes[start:start + CHUNK], n_threads)
        return codes

    def collision_probability(self, similarity: ArrayLike) -> np.ndarray:
        """Probability that rows with this cosine share the bucket of one table: (1 - arccos(similarity) / pi)**bits.

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
