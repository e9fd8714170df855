"""LSHIndex: which neurons have the largest inner products with an input."""
import numpy as np
import scipy.sparse as sp

from . import _validation as check
from ._core import _sketches as kernels
from ._sketching import Sketches
from ._tables import Tables
from ._threads import resolve
from .hashing import SimHash
from .transforms import Transform, second_moment

__all__ = ["LSHIndex"]

CHUNK = 8192  # neurons transformed at a time: some megabytes at usual widths


class LSHIndex:
    """An index of neurons for maximum inner product search.

    Neurons are centred and scaled (see `sparselsh.transforms`), then hashed into tables, which give active sets
    for training (:meth:`query`), and sketched in a bit a dimension, which ranks them for :meth:`search`; the best
    `n_candidates` of that ranking get their inner products computed exactly.

    Parameters
    ----------
    family : SimHash or None
        The hash family of the tables; None for no tables.
    center : bool
        Subtract the mean neuron before hashing.
    scaling : float
        Exponent p of the query-aware scaling, in [0, 1]; used if `fit` is given queries.
    sketch_bits : int or None
        Bits of a sketch, a multiple of 64 and at most 1024; None for the multiple at or above 3/4 of the
        dimension, at least 128; 0 for no sketches.
    dynamic : bool
        Leave room in the buckets, so that `update` moves a neuron without sorting the tables again.
    random_state : None, int or numpy.random.Generator
    n_threads : int or None

    References
    ----------
    Neyshabur and Srebro, arXiv 1410.5518; Chen et al., SLIDE, arXiv 1903.03129; Gao and Long, RaBitQ, 2024.
    """

    def __init__(self, family=None, *, center=True, scaling=0.5, sketch_bits=None, dynamic=False,
                 random_state=None, n_threads=None):
        if family is not None and not hasattr(family, "hash"):
            raise TypeError(f"family must be a hash family such as SimHash() or None, got {family!r}")
        self.family = family
        self.center = bool(center)
        self.scaling = check.number(scaling, "scaling", minimum=0, maximum=1)
        if sketch_bits is not None:
            sketch_bits = check.integer(sketch_bits, "sketch_bits", minimum=0, maximum=1024)
            if sketch_bits % 64:
                raise ValueError(f"sketch_bits must be a multiple of 64, got {sketch_bits}")
        self.sketch_bits = sketch_bits
        if family is None and sketch_bits == 0:
            raise ValueError("family=None and sketch_bits=0 leave nothing to search with; give one of them")
        self.dynamic = bool(dynamic)
        self.random_state = random_state
        self.n_threads = check.threads(n_threads)

    # -- building ---------------------------------------------------------------------------------------------

    def fit(self, W, bias=None, queries=None):
        """Index the rows of W.

        Parameters
        ----------
        W : array of shape (n_neurons, n_in)
            Kept by reference where it is C-contiguous float32, else as a copy.
        bias : array of shape (n_neurons,) or None
        queries : array of shape (n_queries, n_in) or None
            A sample of inputs, for the scaling.

        Returns
        -------
        LSHIndex
            Itself.
        """
        W = check.dense(W, "W")
        if min(W.shape) == 0:
            raise ValueError(f"W must have at least one row and one column, got shape {W.shape}")
        bias = np.zeros(len(W), np.float32) if bias is None else check.vector(bias, "bias", len(W))
        moment = None
        if queries is not None:
            queries = check.dense(queries, "queries", n_columns=W.shape[1])
            moment = second_moment(queries, resolve(self.n_threads))
        return self.rebuild(W, bias, moment)

    def rebuild(self, W, bias, moment=None):
        """`fit` for trusted arrays (float32, C-contiguous) and a second moment of the inputs."""
        rng = check.generator(self.random_state)
        n_threads = resolve(self.n_threads)
        self._W, self._bias = W, bias
        n, n_dims = W.shape[0], W.shape[1] + 1
        self._transform = Transform(self.center, self.scaling).fit(W, bias, moment)
        self._tables = self._sketches = None
        if self.family is not None:
            self._tables = Tables(self.family, n, n_dims, self.dynamic, rng)
            for start in range(0, n, CHUNK):
                self._tables.encode(start, self._vectors(slice(start, start + CHUNK)), n_threads)
            self._tables.build(n_threads)
        self._sketch_seed = rng.integers(2**63)
        self._stale = None  # which sketches are out of date; they are first made when `search` needs them
        return self

    def update(self, W, rows):
        """Take in that rows of W have changed.

        Parameters
        ----------
        W : array of shape (n_neurons, n_in)
            All weights: the array given to `fit` or one of its shape.
        rows : array of int
            The ids of the changed neurons, distinct.
        """
        self._check_fitted()
        if W is not self._W:
            self._W = check.dense(W, "W", n_columns=self._W.shape[1], n_rows=len(self._W))
        self.refresh(check.ids(rows, "rows", len(self._W), unique=True))

    def refresh(self, rows):
        """`update` for trusted ids of rows that changed in place."""
        if self._tables is not None and len(rows):
            self._tables.update(rows, self._vectors(rows), resolve(self.n_threads))
        if self._stale is not None:
            self._stale[rows] = True

    def _vectors(self, rows):
        return self._transform.neurons(self._W[rows], self._bias[rows], resolve(self.n_threads))

    def _ready_sketches(self):
        n, n_in = self._W.shape
        if self._stale is None:
            n_bits = self.sketch_bits if self.sketch_bits is not None else max(128, -(-3 * n_in // 256) * 64)
            self._sketches = Sketches(n_bits, n, n_in + 1, np.random.default_rng(self._sketch_seed))
            self._stale = np.ones(n, bool)
        rows = np.flatnonzero(self._stale).astype(np.int32)
        for start in range(0, len(rows), CHUNK):
            part = rows[start:start + CHUNK]
            self._sketches.update(part, self._vectors(part), resolve(self.n_threads))
        self._stale[rows] = False
        return self._sketches

    # -- asking -----------------------------------------------------------------------------------------------

    def query(self, X, n=100, *, min_count=1):
        """Active sets: the neurons that share most buckets with each input.

        Parameters
        ----------
        X : array of shape (n_queries, n_in)
        n : int
            Neurons an input at most.
        min_count : int
            Buckets a neuron must share at least.

        Returns
        -------
        csr_array of shape (n_queries, n_neurons), float32
            The number of shared buckets of each neuron found.
        """
        self._check_fitted()
        if self._tables is None:
            raise ValueError("query needs tables, but family is None; create the index with family=SimHash(...)")
        X = check.dense(X, "X", n_columns=self._W.shape[1])
        n = min(check.integer(n, "n"), len(self._W))
        min_count = check.integer(min_count, "min_count", maximum=255)
        ids, counts = self.candidates(X, n, min_count)
        found = ids >= 0
        indptr = np.concatenate([[0], np.cumsum(found.sum(axis=1))])
        active = sp.csr_array((counts[found].astype(np.float32), ids[found], indptr),
                              shape=(len(X), len(self._W)))
        active.sort_indices()
        return active

    def candidates(self, X, n, min_count=1):
        """`query` for trusted input: ids and counts, (n_queries, n), best first, filled up with -1 and 0."""
        n_threads = resolve(self.n_threads)
        return self._tables.collide(self._transform.queries(X, n_threads), n, min_count, n_threads)

    def search(self, X, k=5, *, n_candidates=None):
        """The neurons with the largest inner products.

        Parameters
        ----------
        X : array of shape (n_queries, n_in)
        k : int
        n_candidates : int or None
            Neurons whose inner product is computed exactly, at least k; None for max(128, 20 k, n_neurons / 100),
            at most 1024 unless k asks for more.

        Returns
        -------
        ids : ndarray of shape (n_queries, k), int32
            Best first; -1 where there are fewer than k neurons.
        scores : ndarray of shape (n_queries, k), float32
            The exact inner products plus bias, -inf where there is none.
        """
        self._check_fitted()
        X = check.dense(X, "X", n_columns=self._W.shape[1])
        k = check.integer(k, "k")
        if n_candidates is not None:
            n_candidates = check.integer(n_candidates, "n_candidates", minimum=k)
        return self.best(X, k, n_candidates)

    def best(self, X, k, n_candidates=None):
        """`search` for trusted input."""
        n_threads = resolve(self.n_threads)
        n_candidates = min(len(self._W), n_candidates or self.default_candidates(k))
        if self.sketch_bits == 0:
            candidates, _ = self.candidates(X, n_candidates)
        else:
            candidates, _ = self._ready_sketches().scan(self._transform.queries(X, n_threads), n_candidates, n_threads)
        ids = np.full((len(X), k), -1, np.int32)
        scores = np.full((len(X), k), -np.inf, np.float32)
        kernels.rerank(candidates, X, self._W, self._bias, ids, scores, n_threads)
        return ids, scores

    def default_candidates(self, k):
        """How many inner products `search` computes exactly where the call does not say."""
        return min(len(self._W), max(20 * k, min(max(128, len(self._W) // 100), 1024)))

    def _check_fitted(self):
        if not hasattr(self, "_W"):
            raise ValueError("this LSHIndex has no neurons yet; call fit(W) first")

    @property
    def nbytes(self):
        """Bytes of tables and sketches, weights not included."""
        self._check_fitted()
        return sum(part.nbytes for part in (self._tables, self._sketches) if part is not None)

    def __repr__(self):
        size = f", {len(self._W)} neurons x {self._W.shape[1]}" if hasattr(self, "_W") else ""
        return (f"LSHIndex({self.family!r}, center={self.center}, scaling={self.scaling:g}, "
                f"sketch_bits={self.sketch_bits}{size})")


def default_family(n_neurons):
    """SimHash tables for training: buckets of some forty neurons, so that twelve tables find some hundreds."""
    bits = int(np.clip(np.round(np.log2(max(n_neurons, 1) / 40)), 1, 20))
    return SimHash(bits=bits, tables=12)
