"""IndexEngine: the index itself, for arrays that are known to be good.

    search ──┬─ exact         every inner product
             ├─ by_sketches   a scan of the sketches bounds, exact products decide
             └─ by_probes     buckets give candidates, sketches rank them, exact products decide
    candidates                neurons that share buckets with an input, for training
    refresh, add, remove      neurons that changed, are new, are gone

`LSHIndex` checks the arguments of users and calls an engine; layers hold an engine and call it
directly. The caller sets the number of threads.
"""
from __future__ import annotations

from contextlib import contextmanager
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np

from .._arrays.aligned import own_arrays
from .._arrays.bfloat16 import as_float32
from .._arrays.linalg import exact_topk, log_sum_exp, matmul, row_chunks
from .._arrays.selection import ALL, Selection
from .._core import _estimates as estimates
from .._core import _select
from .._core import _sketches as kernels
from ._coded_rows import MAX_INPUTS, CodedRows
from ._quantized_rows import QuantizedRows, RowCodes
from ._sketches import SINGLE_CALL_MAX_QUERIES, NoSketches, Sketches
from ._tables import NoTables, Tables

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from .._arrays.types import Floats, Ids
    from ..protocols import HashFamily
    from ._options import IndexOptions
    from .transforms import Transform

ROWS_PER_CHUNK = 8192  # neurons transformed at a time: some megabytes at usual widths
BATCH_PLAN_MIN_ROWS = 32  # queries from which on the plan for batches is used
CANDIDATES_PER_PROBED_BEST = 20  # of a search by probes, at least
FOUND_PER_CANDIDATE = 4  # neurons that probing passes to the sketches, per inner product
MIN_NEURONS_PER_CANDIDATE = 8  # a search that computes more of them is slower than computing all
MIN_LISTED = 256  # neurons that may be found, or fewer: they are all computed;
NEURONS_PER_LISTED = 64  # also if they are at most this part of all neurons,
NEURONS_PER_LISTED_OF_BATCH = 8  # or this part for a batch, whose product reads them once
LEAST_TAIL = 1e-15  # beyond 8 deviations an estimate raises no doubt
MIN_CODED_WEIGHTS = 1 << 19  # 2 MB, which the second-level cache holds: codes save nothing
MIN_NEURONS_PER_BEST = 8  # for larger k, all inner products are computed


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
        Inner products per search, a number that a user has set, or 0 to go by the bound.
    n_computed : float
        Inner products per search by the bound, on average over the queries of the calibration, for
        the `k_computed` best; 0 without a calibration.
    n_short_computed : float
        Of these, neurons without a sketch.
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
        self.n_computed, self.k_computed, self.n_short_computed = 0.0, 1, 0.0
        self.n_probes = 1
        self.trials: list[dict[str, Any]] = []
        self.times: dict[str, dict[str, float]] = {}
        self._codes: RowCodes | None = None  # made at the first use
        self._four_bits: CodedRows | None = None  # the same

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
        nbytes = self.rows.nbytes if self.rows.is_quantized else 0
        codes = self._codes
        if codes is not None:
            nbytes += codes.errors.nbytes
            nbytes += 0 if codes.values is self.rows.values else codes.rows.nbytes
        return nbytes + (0 if self._four_bits is None else self._four_bits.nbytes)

    def vectors(self, rows: Ids, n_threads: int) -> Floats:
        """The neurons `rows` as tables hash them: (n, n_in + 1), float32."""
        return self.transform.neurons(self.W, self.bias, n_threads, rows)

    def directions(self, rows: Ids, n_threads: int,
                   transform: Transform | None = None) -> tuple[Floats, Floats]:
        """The neurons `rows` as they are sketched: vectors (n, n_in + 1) and biases (n,)."""
        transform = self.transform if transform is None else transform
        V, biases, squares = transform.directions(self.W, self.bias, n_threads, rows)
        # where the distance counts, <q, v> - |v|^2 / 2 relative to the mean neuron
        return V, -squares / np.float32(2) if self.options.metric == "l2" else biases

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

        `n_candidates` is the number of inner products, or None to go by the bound and the plan.
        """
        if len(X) <= 1:
            n_threads = 1  # waking a thread takes as long as a search
        method = self.methods["batch" if len(X) >= BATCH_PLAN_MIN_ROWS else "single"]
        if n_candidates is None:
            n_candidates = self.n_candidates or None
            if method == "exact" and n_candidates is None:
                return self.exact(X, k, n_threads)
        if n_candidates is not None and n_candidates >= len(self.W):
            return self.exact(X, k, n_threads)
        if method == "probes":
            return self.by_probes(X, k, n_candidates or self.probe_candidates(k), n_threads)
        if n_candidates is not None:
            n_candidates = max(n_candidates, k)
        return self.by_sketches(X, k, n_candidates, n_threads)

    def search_among(self, X: Floats, k: int, selection: Selection,
                     n_threads: int) -> tuple[Ids, Floats]:
        """`search` among the neurons of a selection, by the bound or by every inner product."""
        n, mask = len(self.W), selection.mask
        method = self.methods["batch" if len(X) >= BATCH_PLAN_MIN_ROWS else "single"]
        most = max(MIN_LISTED, n // (NEURONS_PER_LISTED_OF_BATCH if len(X) >= BATCH_PLAN_MIN_ROWS
                                     else NEURONS_PER_LISTED))
        if (not selection.has_lists and mask is not None
                and np.count_nonzero(mask.view(np.bool_)) <= most):
            allowed = np.flatnonzero(mask.view(np.bool_)).astype(np.int32)
            return self._exact_of(allowed[~self.removed[allowed]], X, k, n_threads)
        if method == "exact" or not self.has_sketches or k * MIN_NEURONS_PER_BEST > n:
            return self._exact_among(X, k, selection, n_threads)
        if selection.only and self.removed.any():  # for what is computed without being scanned
            live = ~self.removed
            selection = selection._replace(
                mask=(live if mask is None else live & mask.view(np.bool_)).view(np.uint8))
        if len(X) <= SINGLE_CALL_MAX_QUERIES and self.sketches.is_scanned_quickly:
            return self.sketches.search_few(X, k, self.W, self.bias, self._coarse_rows, selection)
        ids, scores, _ = self.sketches.search(X, k, self.W, self.bias, self._coarse_rows, n_threads,
                                              selection)
        return ids, scores

    def _exact_of(self, rows: Ids, X: Floats, k: int, n_threads: int) -> tuple[Ids, Floats]:
        """The best of some neurons, by all of their inner products."""
        if not len(rows):
            return np.full((len(X), k), -1, np.int32), np.full((len(X), k), -np.inf, np.float32)
        if len(X) <= SINGLE_CALL_MAX_QUERIES:
            return _best_of(np.tile(rows, (len(X), 1)), X, self.W, None, self.bias, k, n_threads)
        places, scores = exact_topk(X, self.W[rows], self.bias[rows], k, n_threads)
        return np.where(places >= 0, rows[np.maximum(places, 0)], np.int32(-1)), scores

    def _exact_among(self, X: Floats, k: int, selection: Selection,
                     n_threads: int) -> tuple[Ids, Floats]:
        ids = np.full((len(X), k), -1, np.int32)
        scores = np.full((len(X), k), -np.inf, np.float32)
        for start, stop in row_chunks(len(X), len(self.W)):
            z = self.outputs(X[start:stop], n_threads)
            selection.slice(start, stop).exclude_from(z)
            _select.top_k(z, None, ids[start:stop], scores[start:stop], n_threads)
        return np.where(np.isneginf(scores), np.int32(-1), ids), scores

    def default_candidates(self, k: int) -> int:
        """Inner products that a search is expected to compute where the call gives no number."""
        n = len(self.W)
        if self.n_candidates:
            return min(n, max(self.n_candidates, 2 * k))
        if self.n_computed:
            return min(n, max(2 * k + 8, round(self.n_computed * max(1, k / self.k_computed))))
        return min(n, max(20 * k, min(max(128, n // 100), 1024)))

    def probe_candidates(self, k: int) -> int:
        """Inner products of a search by probes, which has no bound."""
        return min(len(self.W), max(self.default_candidates(k), CANDIDATES_PER_PROBED_BEST * k))

    def exact(self, X: Floats, k: int, n_threads: int) -> tuple[Ids, Floats]:
        """`search` by every inner product."""
        if not self.removed.any():
            return exact_topk(X, self.W, self.bias, k, n_threads)
        ids, scores = exact_topk(X, self.W, self._live_bias, k, n_threads)
        return np.where(np.isneginf(scores), np.int32(-1), ids), scores

    def by_sketches(self, X: Floats, k: int, n_candidates: int | None,
                    n_threads: int) -> tuple[Ids, Floats]:
        """`search` by the sketches or, without any, by the buckets of the tables.

        With `n_candidates` None it goes on until the bound says that nothing is missed; else it
        computes that many neurons with the best estimates.
        """
        if not self.has_sketches:
            n_found = min(n_candidates or self.default_candidates(k), len(self.W))
            candidates, _ = self.candidates(X, n_found, n_threads)
            return self._rerank(candidates, X, k, n_threads)
        if n_candidates is not None:
            n_candidates = min(n_candidates, len(self.W))
            return self._rerank(self.sketches.scan(X, n_candidates, n_threads), X, k, n_threads)
        if k * MIN_NEURONS_PER_BEST > len(self.W):
            return self.exact(X, k, n_threads)
        if len(X) <= SINGLE_CALL_MAX_QUERIES and self.sketches.is_scanned_quickly:
            return self.sketches.search_few(X, k, self.W, self.bias, self._coarse_rows)
        ids, scores, _ = self.by_bound(X, k, n_threads)
        return ids, scores

    def by_bound(self, X: Floats, k: int, n_threads: int) -> tuple[Ids, Floats, np.ndarray]:
        """`by_sketches` up to the bound, with what it cost: see `Sketches.search`."""
        return self.sketches.search(X, k, self.W, self.bias, self._coarse_rows, n_threads)

    def certified(self, X: Floats, k: int, selection: Selection | None, confidence: float,
                  n_threads: int) -> tuple[Ids, Floats, np.ndarray]:
        """`search` until each answer is as sure as `confidence`, and how sure it is, (n_queries,).

        By rows in four bits, and by all inner products where those cost less.
        """
        coded = self.coded(k, n_threads)
        if coded is None:
            return *self._exact_for(X, k, selection, n_threads), np.ones(len(X))
        # if every neuron that is left out were at the bound
        tail = max((1 - confidence) / len(self.W), LEAST_TAIL)
        ids, scores, _, doubts = coded.search(
            X, k, self.W, self.bias, selection or ALL, -NormalDist().inv_cdf(tail),
            n_threads)
        return ids, scores, np.exp(-doubts)

    def exact_by_bound(self, X: Floats, k: int, selection: Selection | None,
                       n_threads: int) -> tuple[Ids, Floats]:
        """`exact`, without the neurons that the error of rows in four bits excludes."""
        coded = self.coded(k, n_threads)
        if coded is None:
            return self._exact_for(X, k, selection, n_threads)
        ids, scores, _, _ = coded.search(X, k, self.W, self.bias, selection or ALL, 0.0,
                                         n_threads)
        return ids, scores

    def _exact_for(self, X: Floats, k: int, selection: Selection | None,
                   n_threads: int) -> tuple[Ids, Floats]:
        if selection is None:
            return self.exact(X, k, n_threads)
        return self._exact_among(X, k, selection, n_threads)

    def coded(self, k: int, n_threads: int) -> CodedRows | None:
        """Rows in four bits, made at the first use; None where products cost less or are asked."""
        if (self.options.plan == "exact" or self.W.size < MIN_CODED_WEIGHTS
                or k * MIN_NEURONS_PER_BEST > len(self.W) or self.W.shape[1] > MAX_INPUTS):
            return None
        if self._four_bits is None:
            self._four_bits = CodedRows(self.W, self.bias, self.transform.offset_[:-1],
                                        self.options.metric == "l2", self.seed, n_threads)
            self._four_bits.remove(np.flatnonzero(self.removed).astype(np.int32))
        return self._four_bits if self._four_bits.usable else None

    def estimate(self, X: Floats, k: int, bits: int, n_threads: int) -> tuple[Floats, Floats]:
        """Estimates of all outputs and their standard deviations, (n_queries, n_neurons) each.

        They are by the sketches, with 1 bit, or by rows in int8, with 8. The k best that a search
        finds have their exact scores and the deviation 0, and no other estimate is above the k-th
        of them.
        """
        if self._computes_all(len(X)) or (bits == 1 and not self.has_sketches):
            return self.outputs(X, n_threads), np.zeros((len(X), len(self.W)), np.float32)
        found = self.search(X, k, None, n_threads) if k else None
        if bits == 1:
            values, deviations = self.sketches.estimate(X, self.bias, n_threads)
        else:
            codes = self.codes(n_threads)
            values = np.empty((len(X), len(self.W)), np.float32)
            deviations = np.empty_like(values)
            estimates.coded_outputs(codes.values, codes.scales, codes.errors, self._live_bias, X,
                                    values, deviations, n_threads)
        if found is not None:
            ids, scores = found
            np.minimum(values, np.where(ids[:, -1:] >= 0, scores[:, -1:], np.inf), out=values)
            rows, places = np.nonzero(ids >= 0)
            neurons = ids[rows, places]
            values[rows, neurons], deviations[rows, neurons] = scores[rows, places], 0
        return values, deviations

    def log_sum_exp(self, X: Floats, wanted: float,
                    n_threads: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The logarithm of the sum of exp(output) over all neurons, and its error: (n_queries,)."""
        sums, errors = np.empty(len(X)), np.empty(len(X))
        if not self._computes_all(len(X)):
            codes = self.codes(n_threads)
            estimates.log_sum_exp(codes.values, codes.scales, codes.errors, X, self.W,
                                  self._live_bias, wanted, sums, errors,
                                  np.empty(len(X), np.int64), n_threads)
            return sums, errors
        for start, stop in row_chunks(len(X), len(self.W)):
            x = X[start:stop]
            sums[start:stop], errors[start:stop] = log_sum_exp(
                self.outputs(x, n_threads), x, self.rows_of, n_threads)
        return sums, errors

    def score(self, X: Floats, ids: Ids, n_threads: int) -> Floats:
        """The outputs of the neurons ids[i] of query i, (n_queries, m); -inf for -1 and removed."""
        out = np.empty(ids.shape, np.float32)
        estimates.score(ids, X, self.W, self._live_bias, out, n_threads)
        return out

    def outputs(self, X: Floats, n_threads: int) -> Floats:
        """All outputs, (n_queries, n_neurons); -inf for neurons that were removed."""
        return matmul(X, self.W, n_threads, transpose_b=True, bias=self._live_bias)

    def rows_of(self, ids: Ids) -> Floats:
        """The weights of some neurons, in float32."""
        return as_float32(self.W[ids])

    def codes(self, n_threads: int) -> RowCodes:
        """Rows in int8 with known errors, which are made when they are asked for first."""
        if self._codes is None:
            self._codes = RowCodes(self.W, self.rows, n_threads)
        return self._codes

    @property
    def _live_bias(self) -> Floats:
        if not self.removed.any():
            return self.bias
        return np.where(self.removed, np.float32(-np.inf), self.bias)

    def _computes_all(self, n_queries: int) -> bool:
        """Whether sums over all neurons compute them all: a product shares what it reads."""
        return n_queries >= BATCH_PLAN_MIN_ROWS or self.W.size < MIN_CODED_WEIGHTS

    @property
    def _coarse_rows(self) -> QuantizedRows | None:
        return self.rows if self.rows.is_quantized else None

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
        if (self.methods["single"] != "sketches" or not self.has_sketches or self.n_candidates
                or not self.sketches.is_scanned_quickly or k * MIN_NEURONS_PER_BEST > len(self.W)):
            return None
        return self.sketches.prepared(k, self.W, self.bias, self._coarse_rows)

    def _rerank(self, candidates: Ids, X: Floats, k: int, n_threads: int) -> tuple[Ids, Floats]:
        if self.rows.is_quantized and candidates.shape[1] > _n_exact(k):
            candidates, _ = _best_of(candidates, X, self.rows.values, self.rows.scales, self.bias,
                                     _n_exact(k), n_threads)
        return _best_of(candidates, X, self.W, None, self.bias, k, n_threads)

    # -- active sets --------------------------------------------------------------------------

    def candidates(self, X: Floats, n: int, n_threads: int, *, policy: str = "top",
                   min_count: int = 1, n_probes: int = 1, seed: int = 0,
                   names: Ids | None = None) -> tuple[Ids, np.ndarray]:
        """Neurons that share buckets with each input: ids and values, (n_queries, n) each.

        Rows are filled up with -1. The policies are those of :meth:`LSHIndex.query`; with
        "vanilla" a row is in no order. `names`, for the policy "top", are ids in place of the
        numbers of the neurons.
        """
        Q = self.transform.queries(X, n_threads)
        if policy == "vanilla":
            ids = self.tables.draw(Q, n, seed, n_threads, n_probes)
            return ids, np.ones_like(ids)
        n_found = n if policy == "top" else min(len(self.W), FOUND_PER_CANDIDATE * n)
        ids, counts = self.tables.collide(Q, n_found, min_count, n_threads, n_probes, names)
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

    @contextmanager
    def _undone_on_failure(self, rows: Ids) -> Iterator[None]:
        """Leave the engine as it was if the block, which changes the neurons `rows`, fails."""
        self.own_arrays()
        attributes = self.__dict__.copy()
        undo = [part.snapshot(rows) for part in (self.rows, self.tables, self.sketches)]
        removed = self.removed[rows[rows < len(self.removed)]]
        try:
            yield
        except BaseException:
            while True:
                try:
                    self.__dict__.update(attributes)
                    self._codes = self._four_bits = None
                    self.removed[rows[rows < len(self.removed)]] = removed
                    for call in undo:
                        call()
                    break
                except KeyboardInterrupt:  # the user is told of the first one
                    continue
            raise

    def own_arrays(self) -> None:
        """Copy what is mapped read-only, as joblib does it, so that it can be changed."""
        for part, but in ((self, ("W", "bias")), (self.rows, ("values",)), (self.tables, ())):
            own_arrays(part, but)
        self.sketches.own_arrays()
        if self.rows.storage != "float32":
            own_arrays(self.rows)

    def refresh(self, rows: Ids, n_threads: int) -> None:
        """Hash and quantize again the neurons `rows`, which have changed in W."""
        if not len(rows):
            return
        with self._undone_on_failure(rows):
            self.removed[rows] = False
            self._refresh(rows, n_threads)

    def follow_step(self, rows: Ids, n_threads: int) -> None:
        """`refresh` of an engine of dynamic tables alone, in a training step.

        It fails before its first change, if it fails, so that nothing is kept to undo it. The
        arrays must be writable: see `own_arrays`.
        """
        self.tables.update(rows, self.vectors(rows, n_threads), n_threads)

    def _refresh(self, rows: Ids, n_threads: int) -> None:
        self.rows.refresh(self.W, rows, n_threads)
        if self._codes is not None:
            self._codes.refresh(self.W, rows, n_threads)
        if self._four_bits is not None:
            self._four_bits.refresh(self.W, self.bias, rows, n_threads)
        if self.has_tables:
            self.tables.update(rows, self.vectors(rows, n_threads), n_threads)
        if self.has_sketches:
            self.sketches.update(rows, *self.directions(rows, n_threads), n_threads)

    def add(self, W: Floats, bias: Floats, n_threads: int) -> None:
        """Add the rows of W from n_neurons on; those before have not changed."""
        new = np.arange(len(self.W), len(W), dtype=np.int32)
        with self._undone_on_failure(new):
            self.W, self.bias = W, bias
            self.removed = np.concatenate([self.removed, np.zeros(len(new), bool)])
            self.rows = self.rows.extended(W, n_threads)
            self.tables.resize(len(W), n_threads)
            self.sketches.resize(len(W))
            if len(new):
                self._refresh(new, n_threads)

    def remove(self, rows: Ids, n_threads: int) -> None:
        """Remove the neurons `rows`, so that no search finds them."""
        with self._undone_on_failure(rows):
            self.removed[rows] = True
            if len(rows):
                self.tables.remove(rows, n_threads)
            self.sketches.remove(rows)
            if self._four_bits is not None:
                self._four_bits.remove(rows)


def _n_exact(k: int) -> int:
    """Candidates, scored in fewer bits, that are scored again by the float32 weights."""
    return 4 * k + 12


def _best_of(candidates: Ids, X: Floats, rows: np.ndarray, scales: Floats | None, bias: Floats,
             k: int, n_threads: int) -> tuple[Ids, Floats]:
    """Ids and scores (n_queries, k) of the candidates with the largest inner products."""
    ids, scores = np.empty((len(X), k), np.int32), np.empty((len(X), k), np.float32)
    kernels.rerank(candidates, X, rows, scales, bias, ids, scores, n_threads)
    return ids, scores
