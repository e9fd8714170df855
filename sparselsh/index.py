"""LSHIndex: which neurons have the largest inner products with an input."""
import time

import numpy as np
import scipy.sparse as sp

from . import _validation as check
from ._core import _sketches as kernels
from ._linalg import exact_topk
from ._sketching import Sketches
from ._tables import Tables
from ._threads import resolve
from .hashing import SimHash
from .transforms import Transform, second_moment

__all__ = ["LSHIndex"]

CHUNK = 8192  # neurons transformed at a time: some megabytes at usual widths
SCALINGS = (0.0, 0.5)  # what "auto" tries: which is better depends on the network
CALIBRATION_QUERIES = 256
BATCH = 32  # from so many queries on, the plan for batches holds


class LSHIndex:
    """An index of neurons for maximum inner product search.

    Neurons are centred and scaled (`sparselsh.transforms`). Hash tables give active sets for training
    (:meth:`query`). For :meth:`search` the signs of a rotation of each neuron, a bit a dimension, rank those whose
    norm is large enough to matter, and the best `n_candidates` of them get their inner products computed.

    Parameters
    ----------
    family : hash family or None
        The family of the tables, such as ``SimHash()``; None for no tables, where only `search` is wanted.
    center : bool
        Subtract the mean neuron before hashing.
    scaling : float or "auto"
        Exponent p of the query-aware scaling, in [0, 1]. "auto" takes 0 or 0.5, whichever finds more on the
        queries given to `fit`, and 0 without queries.
    sketch_bits : int or None
        Bits of a sketch, a multiple of 64 and at most 1024; None for the multiple at or above 3/4 of the
        dimension, at least 128; 0 for no sketches.
    recall : float
        Share of the true neighbours that `search` is to find; `fit` sets `n_candidates` and the norm floor by it
        where it is given queries.
    plan : {"auto", "sketches", "exact"}
        How `search` works. "auto" measures once, in `fit`, and computes every inner product where that takes less
        time than the scan: the choice may then differ from run to run.
    dynamic : bool
        Leave room in the buckets, so that `update` moves a neuron without sorting the tables again.
    random_state : None, int or numpy.random.Generator
    n_threads : int or None

    Attributes
    ----------
    n_candidates : int or None
        Neurons whose inner product a search computes, as `tune` set it; None before: then max(128, 20 k,
        n_neurons / 100), and at most 1024 unless k asks for more.

    References
    ----------
    Neyshabur and Srebro, arXiv 1410.5518; Chen et al., SLIDE, arXiv 1903.03129; Gao and Long, RaBitQ, 2024 (the
    estimator); Yan et al., "Norm-ranging LSH for maximum inner product search", 2018 (the part of the norms).
    """

    def __init__(self, family=None, *, center=True, scaling="auto", sketch_bits=None, recall=0.98, plan="auto",
                 dynamic=False, random_state=None, n_threads=None):
        if family is not None and not hasattr(family, "hash"):
            raise TypeError(f"family must be a hash family such as SimHash() or None, got {family!r}")
        self.family = family
        self.center = bool(center)
        self.scaling = scaling if scaling == "auto" else check.number(scaling, "scaling", minimum=0, maximum=1)
        if sketch_bits is not None:
            sketch_bits = check.integer(sketch_bits, "sketch_bits", minimum=0, maximum=1024)
            if sketch_bits % 64:
                raise ValueError(f"sketch_bits must be a multiple of 64, got {sketch_bits}")
        self.sketch_bits = sketch_bits
        if family is None and sketch_bits == 0:
            raise ValueError("family=None and sketch_bits=0 leave nothing to search with; give one of them")
        self.recall = check.number(recall, "recall", above=0, below=1)
        self.plan = check.choice(plan, "plan", ("auto", "sketches", "exact"))
        self.dynamic = bool(dynamic)
        self.random_state = random_state
        self.n_threads = check.threads(n_threads)
        self._W = None

    # -- building ---------------------------------------------------------------------------------------------

    def fit(self, W, bias=None, queries=None):
        """Index the rows of W.

        Parameters
        ----------
        W : array of shape (n_neurons, n_in)
            Kept by reference where it is C-contiguous float32, else as a copy.
        bias : array of shape (n_neurons,) or None
        queries : array of shape (n_queries, n_in) or None
            A sample of inputs, some hundreds: scaling, norm floor, `n_candidates` and plan are set by it.

        Returns
        -------
        LSHIndex
            Itself.
        """
        W = check.dense(W, "W")
        if min(W.shape) == 0:
            raise ValueError(f"W must have at least one row and one column, got shape {W.shape}")
        bias = np.zeros(len(W), np.float32) if bias is None else check.vector(bias, "bias", len(W))
        if queries is not None:
            queries = check.dense(queries, "queries", n_columns=W.shape[1])
            queries = queries if len(queries) else None
        return self.rebuild(W, bias, queries)

    def rebuild(self, W, bias, queries=None):
        """`fit` for trusted arrays: float32, C-contiguous."""
        n_threads = resolve(self.n_threads)
        self._rng = check.generator(self.random_state)
        self._W, self._bias = W, bias
        self._removed = np.zeros(len(W), bool)
        self._tables = self._sketches = self.n_candidates = None
        self._curve, self._exact = [], {"single": self.plan == "exact", "batch": self.plan == "exact"}
        moment = None if queries is None else second_moment(queries, n_threads)
        self._transform = Transform(self.center, 0.0 if self.scaling == "auto" else self.scaling)
        self._transform.fit(W, bias, moment)
        if self.family is not None:
            self._build_tables(n_threads)
        if self.sketch_bits != 0:
            self._build_sketches(moment, queries, n_threads)
        return self

    def _build_tables(self, n_threads):
        n, n_in = self._W.shape
        self._tables = Tables(self.family, n, n_in + 1, self.dynamic, self._rng)
        for start in range(0, n, CHUNK):
            self._tables.encode(start, self._vectors(slice(start, start + CHUNK)), n_threads)
        self._tables.build(n_threads)

    def _build_sketches(self, moment, queries, n_threads):
        if queries is None:
            self._sketches = self._sketched(self._transform, 0.0, n_threads)
            return
        sample, k = _sample(queries), min(5, len(self._W))
        truth, _ = exact_topk(sample, self._W, self._bias, k, n_threads)
        if self.scaling == "auto":
            self._transform = self._better_transform(moment, sample, truth, n_threads)
        self._sketches = self._sketched(self._transform, self._norm_floor(truth, n_threads), n_threads)
        self.tune(queries, k=k, recall=self.recall)

    def _sketched(self, transform, norm_floor, n_threads):
        n, n_in = self._W.shape
        n_bits = self.sketch_bits if self.sketch_bits is not None else max(128, -(-3 * n_in // 256) * 64)
        sketches = Sketches(n_bits, n, n_in + 1, norm_floor, np.random.default_rng(n_bits))
        for start in range(0, n, CHUNK):
            rows = np.arange(start, min(start + CHUNK, n), dtype=np.int32)
            sketches.update(rows, transform.neurons(self._W[rows], self._bias[rows], n_threads), n_threads)
        return sketches.prepare(transform)

    def _better_transform(self, moment, sample, truth, n_threads):
        """The scaling under which the sketches rank the true neighbours best."""
        n_best = min(len(self._W), max(32, len(self._W) // 256))
        found = {}
        for scaling in SCALINGS:
            transform = Transform(self.center, scaling).fit(self._W, self._bias, moment)
            sketches = self._sketched(transform, 0.0, n_threads)
            ids = sketches.scan(sample, n_best, n_threads)
            found[transform] = _recall(ids, truth)
        return max(found, key=found.get)

    def _norm_floor(self, truth, n_threads):
        # A tenth of the misses that the recall allows may come from the floor; it is not worth having where it
        # would leave out less than a third.
        norms = np.linalg.norm(self._vectors(np.unique(truth)), axis=1)
        norms = norms[np.searchsorted(np.unique(truth), truth.ravel())]
        floor = float(np.quantile(norms, (1 - self.recall) / 10)) * 0.98
        sample = self._vectors(slice(None, None, -(-len(self._W) // 4096)))
        return floor if (np.linalg.norm(sample, axis=1) < floor).mean() > 1 / 3 else 0.0

    def tune(self, queries, k=5, recall=None):
        """Set `n_candidates` to the smallest number that reaches a recall on the queries, and choose the plan.

        Parameters
        ----------
        queries : array of shape (n_queries, n_in)
            256 of them are used.
        k : int
        recall : float or None
            Share of the k true neighbours to find; None for the index's own.

        Returns
        -------
        list of dict
            The curve that was seen: n_candidates, recall, microseconds (a query, in a batch).

        Raises
        ------
        ValueError
            If the index has no sketches.
        """
        self._check_fitted()
        if self._sketches is None:
            raise ValueError("tune needs sketches, but sketch_bits is 0; create the index with sketch_bits=None")
        queries = _sample(check.dense(queries, "queries", n_columns=self._W.shape[1]))
        if not len(queries):
            raise ValueError("queries must have at least one row, got none")
        k = min(check.integer(k, "k"), len(self._W))
        recall = self.recall if recall is None else check.number(recall, "recall", above=0, below=1)
        n_threads = resolve(self.n_threads)
        (truth, _), exact_time = _timed(exact_topk, queries, self._W, self._bias, k, n_threads)
        self._curve = []
        n, limit = max(16, 2 * k), max(1, self._sketches.n)
        while True:
            n = min(n, limit)
            (ids, _), seconds = _timed(self._approximate, queries, k, n, n_threads)
            self._curve.append({"n_candidates": n, "recall": _recall(ids, truth),
                                "microseconds": seconds / len(queries) * 1e6})
            if self._curve[-1]["recall"] >= recall or n == limit:
                break
            n = -(-n * 3 // 2)
        self.n_candidates = n
        if self.plan == "auto":
            self._measure_plan(queries[:8], k, exact_time / len(queries), seconds / len(queries), n_threads)
        return list(self._curve)

    def _measure_plan(self, few, k, exact_time, scan_time, n_threads):
        def one_by_one(search, *arguments):
            return min(_timed(search, few[i:i + 1], *arguments, n_threads)[1] for i in range(len(few)))

        exact = one_by_one(exact_topk, self._W, self._bias, k)
        scan = one_by_one(self._approximate, k, self.n_candidates)
        self._times = {"single": (scan, exact), "batch": (scan_time, exact_time)}
        self._exact = {kind: exact < scan for kind, (scan, exact) in self._times.items()}

    # -- changes ----------------------------------------------------------------------------------------------

    def update(self, W, rows):
        """Take in that rows of W have changed. The transform stays that of `fit`.

        Parameters
        ----------
        W : array of shape (n_neurons, n_in)
            All weights: the array given to `fit` or one of its shape.
        rows : array of int
            The ids of the changed neurons, distinct.
        """
        self._check_fitted()
        rows = check.ids(rows, "rows", len(self._W), unique=True)
        if W is self._W:
            check.dense(W[rows], "W[rows]")
        else:
            self._W = check.dense(W, "W", n_columns=self._W.shape[1], n_rows=len(self._W))
        self.refresh(rows)

    def refresh(self, rows):
        """`update` for trusted ids of rows that changed in place."""
        if not len(rows):
            return
        n_threads = resolve(self.n_threads)
        V = self._vectors(rows)
        if self._tables is not None:
            self._tables.update(rows, V, n_threads)
        if self._sketches is not None:
            self._sketches.update(rows, V, n_threads)

    def _vectors(self, rows):
        return self._transform.neurons(self._W[rows], self._bias[rows], resolve(self.n_threads))

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
            Neurons whose inner product is computed exactly, at least k; None for the index's own number and plan.

        Returns
        -------
        ids : ndarray of shape (n_queries, k), int32
            Best first; -1 where fewer than k neurons were found.
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
        n_threads = resolve(self.n_threads) if len(X) > 1 else 1  # to wake a thread takes as long as a search
        if n_candidates is None and self.computes_all(len(X)):
            return exact_topk(X, self._W, self._bias, k, n_threads)
        return self._approximate(X, k, n_candidates or self.default_candidates(k), n_threads)

    def _approximate(self, X, k, n_candidates, n_threads):
        n_candidates = min(n_candidates, len(self._W))
        if self._sketches is None:
            candidates, _ = self.candidates(X, n_candidates)
        else:
            candidates = self._sketches.scan(X, n_candidates, n_threads)
        ids, scores = np.empty((len(X), k), np.int32), np.empty((len(X), k), np.float32)
        kernels.rerank(candidates, X, self._W, self._bias, ids, scores, n_threads)
        return ids, scores

    def computes_all(self, n_queries):
        """Whether the plan for so many queries at a time computes every inner product."""
        return self._exact["batch" if n_queries >= BATCH else "single"]

    def default_candidates(self, k):
        """How many inner products a search computes where the call does not say."""
        n = self.n_candidates
        if n is None:
            n = min(max(128, len(self._W) // 100), 1024)
        return min(len(self._W), max(n, 20 * k if self.n_candidates is None else 2 * k))

    def _check_fitted(self):
        if self._W is None:
            raise ValueError("this LSHIndex has no neurons yet; call fit(W) first")

    @property
    def nbytes(self):
        """Bytes of tables and sketches, weights not included."""
        self._check_fitted()
        return sum(part.nbytes for part in (self._tables, self._sketches) if part is not None)

    def report(self):
        """What `fit` and `tune` chose and measured.

        Returns
        -------
        dict
            n_neurons, n_in, scaling, sketch_bits, n_sketched (neurons long enough to be found by `search`),
            n_candidates, bytes_per_neuron, curve (see `tune`) and plan: for "single" queries and a "batch" of them,
            which of "sketches" and "exact" is used and, where measured, the microseconds a query of each.
        """
        self._check_fitted()
        plan = {}
        for kind in ("single", "batch"):
            plan[kind] = {"use": "exact" if self._exact[kind] else "sketches"}
            if self._curve and self.plan == "auto":
                scan, exact = self._times[kind]
                plan[kind] |= {"sketches_microseconds": scan * 1e6, "exact_microseconds": exact * 1e6}
        return {"n_neurons": len(self._W), "n_in": self._W.shape[1], "scaling": self._transform.scaling,
                "sketch_bits": self._sketches.blocks.shape[1] // 4 if self._sketches is not None else 0,
                "n_sketched": self._sketches.n if self._sketches is not None else 0,
                "n_candidates": self.n_candidates, "bytes_per_neuron": self.nbytes / len(self._W),
                "curve": list(self._curve), "plan": plan}

    def __repr__(self):
        fitted = ""
        if self._W is not None:
            use = ", ".join(f"{kind}: {'exact' if exact else 'sketches'}" for kind, exact in self._exact.items())
            fitted = f", {len(self._W)} neurons x {self._W.shape[1]}, n_candidates={self.n_candidates}, {use}"
        return (f"LSHIndex({self.family!r}, center={self.center}, scaling={self.scaling!r}, "
                f"sketch_bits={self.sketch_bits}{fitted})")


def _sample(queries):
    """At most CALIBRATION_QUERIES of the queries, evenly spaced."""
    return np.ascontiguousarray(queries[::-(-len(queries) // CALIBRATION_QUERIES) or 1])


def _recall(ids, truth):
    """Share of the true ids, -1 aside, that stand in the same row of `ids`."""
    found = (truth[:, :, None] == ids[:, None, :]).any(axis=2)
    return float(found[truth >= 0].mean())


def _timed(call, *arguments):
    begin = time.perf_counter()
    result = call(*arguments)
    return result, time.perf_counter() - begin


def default_family(n_neurons):
    """SimHash tables for training: buckets of some forty neurons, so that twelve tables find some hundreds."""
    bits = int(np.clip(np.round(np.log2(max(n_neurons, 1) / 40)), 1, 20))
    return SimHash(bits=bits, tables=12)
