"""Hash families: vectors to bucket numbers, one per table."""
import numpy as np

from . import _validation as check
from ._core import _hashing
from ._linalg import matmul

__all__ = ["SimHash"]


class SimHash:
    """Signs of random projections, `bits` of them packed to the bucket number of a table.

    Two vectors at an angle a agree in one bit with probability 1 - a / pi, and share a bucket of one
    table with that to the power of `bits`.

    Parameters
    ----------
    bits : int
        K, projections a table; the table has 2**K buckets. At most 24.
    tables : int
        L, number of tables. At most 255.

    Attributes
    ----------
    planes_ : ndarray of shape (tables * bits, n_dims), float32
        Normals of the hyperplanes, independent Gaussians.

    References
    ----------
    Charikar, "Similarity estimation techniques from rounding algorithms", STOC 2002, section 3.
    """

    def __init__(self, bits=10, tables=8):
        self.bits = check.integer(bits, "bits", maximum=24)
        self.tables = check.integer(tables, "tables", maximum=255)

    @property
    def n_buckets(self):
        """Buckets a table."""
        return 1 << self.bits

    def fit(self, n_dims, random_state=None):
        """Draw the hyperplanes for vectors of `n_dims` dimensions."""
        n_dims = check.integer(n_dims, "n_dims")
        rng = check.generator(random_state)
        self.planes_ = rng.standard_normal((self.tables * self.bits, n_dims), dtype=np.float32)
        return self

    def hash(self, V, *, n_threads=1):
        """Bucket numbers of the rows of V.

        Parameters
        ----------
        V : array of shape (n, n_dims)
        n_threads : int

        Returns
        -------
        ndarray of shape (n, tables), int32
        """
        if not hasattr(self, "planes_"):
            raise ValueError("this SimHash has no hyperplanes yet; call fit(n_dims) first")
        V = check.dense(V, "V", n_columns=self.planes_.shape[1])
        codes = np.empty((len(V), self.tables), np.int32)
        _hashing.pack_codes(matmul(V, self.planes_, n_threads, transpose_b=True), self.bits, codes, n_threads)
        return codes

    def __repr__(self):
        return f"SimHash(bits={self.bits}, tables={self.tables})"
