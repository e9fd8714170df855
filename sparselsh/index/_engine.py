"""IndexEngine: the index itself, for arrays that are known to be good.

    search ──┬─ exact         every inner product
             ├─ by_sketches   a scan of the sketches ranks, exact products decide
             └─ by_probes     buckets give candidates, sketches rank them, exact products decide
    candidates                neurons that share buckets with an input, for training
    refresh, add, remove      neurons that changed, are new, are gone

`LSHIndex` checks the arguments of users and calls an engine; layers hold an engine and call it
directly. The caller sets the number of threads.
"""
from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .._arrays.linalg import exact_topk
from .._core import _single_query_search as searches
from .._core import _sketches as kernels
from ._quantized_rows import QuantizedRows
from ._sketches import NoSketches, Sketches
from ._tables import NoTables, Tables

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .._arrays.types import Floats, HashFamily, Ids
    from ._options import IndexOptions
    from .transforms import Transform

ROWS_PER_CHUNK = 8192  # neurons transformed at a time: some megabytes at usual widths
SINGLE_CALL_MAX_QUERIES = 3  # up to here one single-threaded call beats three multi-threaded ones
BATCH_PLAN_MIN_ROWS = 32  # queries from which on the plan for batches is used
FOUND_PER_CANDIDATE = 4  # neurons that probing passes to the sketches, per inner product
MIN_NEURONS_PER_CANDIDATE = 8  # a search that computes more of them is slower than computing all


class IndexEngine:
    """Search over the rows of W by inner product plus bias.

    Parameters
    ----------
    options : IndexOptions
    W : ndarray of shape (n_neurons, n_in), float32 (or uint16 for bfloat16, with tables only)
        Kept by reference.
    bias : ndarray of shape (n_neurons,), float32
    transform : Transform
        Fitted to W and bias.
    tables : Tables or NoTables
    sketches : Sketches or NoSketches
    rows : QuantizedRows
        The weights as candidates are read; with "float32", W itself.
    removed : ndarray of shape (n_neurons,), bool
    seed : int
        Of hash functions, rotations and cells.

    Attributes
    ----------
    methods : dict of str to str
        "sketches", "probes" or "exact" for "single" queries and for a "batch".
    n_candidates : int
        Inner products per search, or 0 to derive it from k (`default_candidates`).
    n_probes : int
        Buckets per table that probing reads.
    trials : list of dict
        What tuning measured.
    times : dict of str to dict
        Microseconds per query by method, for "single" queries and a "batch".
    """

    def __init__(self, options: IndexOptions, W: Floats, bias: Floats, transform: Transform,
                 tables: Tables | NoTables, sketches: Sketches | NoSketches, rows: QuantizedRows,
                 removed: np.ndarray, seed: int) -> None:
        self.options = options
        self.W, self.bias = W, bias
        self.transform = transform
        self.tables, self.sketches, self.rows = tables, sketches, rows
        self.removed = removed
        self.seed = seed
        method = "sketches" if options.plan == "auto" else options.plan
        self.methods = {"single": method, "batch": method}
        self.n_candidates = 0
        self.n_probes = 1
        self.trials: list[dict[str, Any]] = []
        self.times: dict[str, dict[str, float]] = {}

    @property
    def has_tables(self) -> bool:
        """Whether there are hash tables."""
        return isinstance(self.tables, Tables)

    @property
    def has_sketches(self) -> bool:
        """Whether there are sketches."""
        return isinstance(self.sketches, Sketches)

    @property
    def family(self) -> HashFamily | None:
        """The family of the tables."""
        return self.tables.family

    @property
    def nbytes(self) -> int:
        """Bytes of tables, sketches and quantized rows; the float32 weights are not included."""
        return self.tables.nbytes + self.sketches.nbytes + self._quantized_nbytes

    @property
    def _quantized_nbytes(self) -> int:
        return self.rows.nbytes if self.rows.is_quantized else 0

    def vectors(self, rows: Ids, n_threads: int) -> Floats:
        """The neurons `rows` as they are hashed: (n, n_in + 1), float32."""
        return self.transform.neurons(self.W, self.bias, n_threads, rows)

    def row_chunks(self) -> Iterator[Ids]:
        """Ids of all neurons, some thousand at a time."""
        for start in range(0, len(self.W), ROWS_PER_CHUNK):
            yield np.arange(start, min(start + ROWS_PER_CHUNK, len(self.W)), dtype=np.int32)

    def hash_all(self, family: HashFamily, n_threads: int) -> None:
        """Make the tables of all neurons by a family.

        The memory of the present tables is used again where it fits, because new memory costs a
        page fault per page.
        """
        wanted = (family, len(self.W), self.W.shape[1] + 1, self.options.dynamic, self.seed)
        if not self.tables.serves(*wanted):
            self.tables = NoTables()  # so that there are never two in memory
            self.tables = Tables(*wanted)

        for rows in self.row_chunks():
            self.tables.encode(rows[0], self.vectors(rows, n_threads), n_threads)
        self.tables.codes[np.flatnonzero(self.removed)] = -1
        self.tables.build(n_threads)

    # -- search -------------------------------------------------------------------------------

    def search(self, X: Floats, k: int, n_candidates: int | None,
               n_threads: int) -> tuple[Ids, Floats]:
        """Ids and scores (n_queries, k) of the largest inner products; -1 and -inf for none.

        `n_candidates` is the number of inner products, or None for the plan that was chosen.
        """
        if len(X) <= 1:
            n_threads = 1  # waking a thread takes as long as a search
        method = self.methods["batch" if len(X) >= BATCH_PLAN_MIN_ROWS else "single"]
        if method == "exact" and n_candidates is None:
            return self.exact(X, k, n_threads)
        by = self.by_probes if method == "probes" else self.by_sketches
        return by(X, k, n_candidates or self.default_candidates(k), n_threads)

    def default_candidates(self, k: int) -> int:
        """Inner products per search where the call does not give a number."""
        n = len(self.W)
        if not self.n_candidates:
            return min(n, max(20 * k, min(max(128, n // 100), 1024)))
        return min(n, max(self.n_candidates, 2 * k))

    def exact(self, X: Floats, k: int, n_threads: int) -> tuple[Ids, Floats]:
        """`search` by every inner product."""
        if not self.removed.any():
            return exact_topk(X, self.W, self.bias, k, n_threads)
        bias = np.where(self.removed, np.float32(-np.inf), self.bias)
        ids, scores = exact_topk(X, self.W, bias, k, n_threads)
        return np.where(np.isneginf(scores), np.int32(-1), ids), scores

    def by_sketches(self, X: Floats, k: int, n_candidates: int,
                    n_threads: int) -> tuple[Ids, Floats]:
        """`search` by a scan of the sketches or, without any, by the buckets of the tables."""
        n_candidates = min(n_candidates, len(self.W))
        if not self.has_sketches:
            candidates, _ = self.candidates(X, n_candidates, n_threads)
            return self._rerank(candidates, X, k, n_threads)

        if len(X) <= SINGLE_CALL_MAX_QUERIES:
            search = self._prepared_search(k, n_candidates)
            if search is not None:
                ids = np.empty((len(X), k), np.int32)
                scores = np.empty((len(X), k), np.float32)
                searches.top_k(search, X, ids, scores)
                return ids, scores
        return self._rerank(self.sketches.scan(X, n_candidates, n_threads), X, k, n_threads)

    def by_probes(self, X: Floats, k: int, n_candidates: int,
                  n_threads: int) -> tuple[Ids, Floats]:
        """`search` by the sketches of the neurons in the buckets that are probed."""
        n_found = min(FOUND_PER_CANDIDATE * n_candidates, len(self.W))
        found, _ = self.candidates(X, n_found, n_threads, n_probes=self.n_probes)
        candidates = self.sketches.rank(X, found, min(n_candidates, n_found), n_threads)
        return self._rerank(candidates, X, k, n_threads)

    def single_query_search(self, k: int) -> Any:
        """The search that the core runs for single queries, or None where another plan is used.

        It is valid until the index changes.
        """
        if self.methods["single"] != "sketches" or not self.has_sketches:
            return None
        return self._prepared_search(k, min(self.default_candidates(k), len(self.W)))

    def _prepared_search(self, k: int, n_candidates: int) -> Any:
        is_coarse = self.rows.is_quantized and n_candidates > _n_exact(k)
        return self.sketches.prepared(self.W, self.bias, self.rows if is_coarse else None,
                                      _n_exact(k), n_candidates)

    def _rerank(self, candidates: Ids, X: Floats, k: int, n_threads: int) -> tuple[Ids, Floats]:
        if self.rows.is_quantized and candidates.shape[1] > _n_exact(k):
            candidates, _ = _best_of(candidates, X, self.rows.values, self.rows.scales, self.bias,
                                     _n_exact(k), n_threads)
        return _best_of(candidates, X, self.W, None, self.bias, k, n_threads)

    # -- active sets --------------------------------------------------------------------------

    def candidates(self, X: Floats, n: int, n_threads: int, *, policy: str = "top",
                   min_count: int = 1, n_probes: int = 1,
                   seed: int = 0) -> tuple[Ids, np.ndarray]:
        """Neurons that share buckets with each input: ids and values, (n_queries, n) each.

        Rows are filled up with -1. The policies are those of :meth:`LSHIndex.query`; with
        "vanilla" a row is in no order.
        """
        Q = self.transform.queries(X, n_threads)
        if policy == "vanilla":
            ids = self.tables.draw(Q, n, seed, n_threads, n_probes)
            return ids, np.ones_like(ids)
        n_found = n if policy == "top" else min(len(self.W), FOUND_PER_CANDIDATE * n)
        ids, counts = self.tables.collide(Q, n_found, min_count, n_threads, n_probes)
        return (ids, counts) if policy == "top" else self._rerank(ids, X, n, n_threads)

    def insert(self, X: Floats, samples: Ids, neurons: Ids, n_threads: int) -> None:
        """Add neuron neurons[k] to the buckets that the input X[samples[k]] reads."""
        self.tables.insert(self.transform.queries(X, n_threads), samples, neurons, n_threads)

    def drift(self, rows: Ids, n_threads: int) -> float:
        """Fraction of the codes of the neurons `rows` that hashing them now would change."""
        if not len(rows):
            return 0.0
        codes = self.tables.family.hash(self.vectors(rows, n_threads), n_threads=n_threads)
        return float((codes != self.tables.codes[rows]).mean())

    # -- changes ------------------------------------------------------------------------------

    def rebind_weights(self, W: Floats, bias: Floats) -> None:
        """Read these arrays from now on, which hold the same weights in another place."""
        self.W, self.bias = W, bias
        self.rows.rebind(W)

    def refresh(self, rows: Ids, n_threads: int) -> None:
        """Hash and quantize again the neurons `rows`, which have changed in W."""
        if not len(rows):
            return
        V = self.vectors(rows, n_threads)
        self.rows.refresh(self.W, rows, n_threads)
        self.tables.update(rows, V, n_threads)
        self.sketches.update(rows, V, n_threads)

    def add(self, W: Floats, bias: Floats, n_threads: int) -> None:
        """Add the rows of W from n_neurons on; those before have not changed."""
        n, n_new = len(self.W), len(W) - len(self.W)
        self.W, self.bias = W, bias
        self.removed = np.concatenate([self.removed, np.zeros(n_new, bool)])
        self.rows = QuantizedRows.of(W, self.options.storage, n_threads)
        self.tables.resize(len(W), n_threads)
        self.sketches.resize(len(W))
        self.refresh(np.arange(n, len(W), dtype=np.int32), n_threads)

    def remove(self, rows: Ids, n_threads: int) -> None:
        """Remove the neurons `rows`, so that no search finds them."""
        self.removed[rows] = True
        if len(rows):
            self.tables.remove(rows, n_threads)
        self.sketches.remove(rows)

    def set_candidates(self, n_candidates: int) -> None:
        """Compute `n_candidates` inner products per search, in all cells: for large k."""
        self.n_candidates = min(n_candidates, len(self.W))
        if self.sketches.cells is not None:
            self.sketches.n_probed = self.sketches.cells.n


def _n_exact(k: int) -> int:
    """Candidates, scored in fewer bits, that are scored again by the float32 weights."""
    return 4 * k + 12


def _best_of(candidates: Ids, X: Floats, rows: np.ndarray, scales: Floats | None, bias: Floats,
             k: int, n_threads: int) -> tuple[Ids, Floats]:
    """Ids and scores (n_queries, k) of the candidates with the largest inner products."""
    ids, scores = np.empty((len(X), k), np.int32), np.empty((len(X), k), np.float32)
    kernels.rerank(candidates, X, rows, scales, bias, ids, scores, n_threads)
    return ids, scores
