"""LSHIndex: which neurons have the largest inner products with an input."""
from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np

from . import _calibration as calibration
from . import _index_file as index_file
from . import _table_choice as choice
from . import _validation as check
from ._cells import SAMPLE_PER_CELL, Cells, add_to_means
from ._core import _single_query_search as searches
from ._core import _sketches as kernels
from ._html import size, table
from ._linalg import exact_topk
from ._scipy import sp
from ._sketching import Sketches
from ._storage import STORAGES, QuantizedRows
from ._tables import Tables
from ._threads import Lock, one_at_a_time, resolve
from .plotting import plot_recall
from .transforms import Transform, second_moment

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import ArrayLike
    from scipy.sparse import csr_array

    from ._types import Floats, HashFamily, Ids, PathLike, RandomState

__all__ = ["LSHIndex"]

CHUNK = 8192  # neurons transformed at a time: some megabytes at usual widths
CELLED = 4096  # neurons from which on the sketches are sorted into cells: a scan of fewer takes no longer
FEW = 3  # queries up to which one call to the kernels, on one thread, is faster than three on all
BATCH = 32  # from so many queries on, the plan for batches holds
BYTES_PER_NEURON = 40  # that sketches may take by default,
SHARE_OF_WEIGHTS = 1 / 16  # or so much of what the neuron's weights take
METHODS = ("sketches", "probes", "exact")
REFINEMENTS = 3  # trials between the last number of candidates that was too small and the first that was not
MOST_PROBES = 64  # buckets of a table that tune tries
FOUND_PER_CANDIDATE = 4  # neurons that probing hands to the sketches for each inner product
MOST_BITS = 1024  # of a sketch: its sums are kept in 16 bits


class LSHIndex:
    """An index of neurons for maximum inner product search.

    Neurons are centred and scaled (`sparselsh.transforms`). Hash tables give active sets for training
    (:meth:`query`). For :meth:`search` the signs of a rotation of each neuron, a bit a dimension, rank those whose
    norm is large enough to matter, and the best `n_candidates` of them get their inner products computed.

    Parameters
    ----------
    family : hash family, "auto" or None
        The family of the tables, such as ``SimHash()``; None for no tables, where only `search` is wanted. "auto" is
        SimHash whose bits K and tables L come from :func:`choose_bits_and_tables`, at the similarity of the queries of
        `fit` and their neighbours; `tune` then tries others around them.
    center : bool
        Subtract the mean neuron before hashing.
    scaling : float or "auto"
        Exponent p of the query-aware scaling, in [0, 1], which needs queries in `fit`. "auto" takes 0 or 0.5,
        whichever finds more on them, and 0 for an index with tables.
    sketch_bits : int or None
        Bits of a sketch, a multiple of 64 and at most 1024. None for the multiple at or above 3/4 of the dimension, at
        least 128, and up to 512 if, of neurons that reach the norm floor, that takes at most 40 bytes a neuron of all,
        or a sixteenth of its weights: longer sketches need fewer candidates. 0 for no sketches.
    recall : float
        Share of the true neighbours that `search` is to find; `fit` sets `n_candidates` and the norm floor by it
        where it is given queries.
    plan : {"auto", "sketches", "probes", "exact"}
        How `search` works: scan the sketches of all neurons; probe buckets of the tables and look at the sketches
        of the neurons in them; or compute every inner product. "auto" measures once, in `fit`, for single queries and
        for batches, and takes the fastest that reaches the recall: the choice may then differ from run to run.
    storage : {"float32", "bfloat16", "int8"}
        How `search` reads the rows of its candidates. With fewer bits it reads a copy of 2 or 1 bytes a weight, and the
        weights themselves for the best 4 k + 12 alone: scores stay exact, and weights that are mapped from a file
        (``np.memmap``) take next to no memory.
    dynamic : bool
        Leave room in the buckets, so that `update` moves a neuron without sorting the tables again.
    random_state : None, int or numpy.random.Generator
    n_threads : int or None

    Attributes
    ----------
    n_candidates : int or None
        Neurons whose inner product a search computes, as `tune` set it; None before: then max(128, 20 k,
        n_neurons / 100), and at most 1024 unless k asks for more.
    n_probes : int
        Buckets of each table that the plan "probes" looks into.
    family_ : hash family or None
        The family in use, after `fit`.

    Notes
    -----
    Python threads may share an index: a call waits until that of another thread has ended.

    The weights are kept by reference and read by every search. Memory beyond them, for each neuron: 4 bytes, and
    12 + `sketch_bits` / 8 if its norm reaches the floor; for each table 8 bytes a neuron and 12 a bucket, if `dynamic`
    about 10 and 22. Tables that are asked need 9 bytes a neuron and thread besides.

    Neurons whose norm stays below the floor have no sketch: no plan but "exact" finds them, for whatever query. An
    input unlike the `queries` of `fit` may so miss its best neuron.

    References
    ----------
    Neyshabur and Srebro, arXiv 1410.5518; Chen et al., SLIDE, arXiv 1903.03129; Gao and Long, RaBitQ, 2024 (the
    estimator); Yan et al., "Norm-ranging LSH for maximum inner product search", 2018 (the part of the norms).
    """

    _W: Floats
    _bias: Floats
    _tables: Tables
    _sketches: Sketches
    _rows: QuantizedRows
    _curve: list[dict[str, Any]]
    _times: dict[str, dict[str, float]]
    n_candidates: int
    family_: Any

    def __init__(self, family: HashFamily | Literal["auto"] | None = None, *, center: bool = True,
                 scaling: float | Literal["auto"] = "auto", sketch_bits: int | None = None, recall: float = 0.98,
                 plan: str = "auto", storage: str = "float32", dynamic: bool = False, random_state: RandomState = None,
                 n_threads: int | None = None) -> None:
        if family is not None and family != "auto" and (isinstance(family, type) or not hasattr(family, "hash")):
            raise TypeError(f"family must be a hash family such as SimHash(), 'auto' or None, got {family!r}")
        self.family = family
        self.center = bool(center)
        self.scaling = scaling if scaling == "auto" else check.number(scaling, "scaling", minimum=0, maximum=1)
        if sketch_bits is not None:
            sketch_bits = check.integer(sketch_bits, "sketch_bits", minimum=0, maximum=MOST_BITS)
            if sketch_bits % 64:
                raise ValueError(f"sketch_bits must be a multiple of 64, got {sketch_bits}")
        self.sketch_bits = sketch_bits
        if family is None and sketch_bits == 0:
            raise ValueError("family=None and sketch_bits=0 leave nothing to search with; give one of them")
        self.recall = check.number(recall, "recall", above=0, below=1)
        self.plan = check.choice(plan, "plan", ("auto", *METHODS))
        if self.plan == "probes" and (family is None or sketch_bits == 0):
            raise ValueError("plan='probes' needs tables and sketches; give a family, and leave sketch_bits at None")
        self.storage = check.choice(storage, "storage", STORAGES)
        self.dynamic = bool(dynamic)
        self.random_state = random_state
        self.n_threads = check.threads(n_threads)
        self._W = None
        self._lock = Lock()

    # -- building ---------------------------------------------------------------------------------------------

    @one_at_a_time
    def fit(self, W: ArrayLike, bias: ArrayLike | None = None, queries: ArrayLike | None = None) -> Self:
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
        W, bias = self._checked(W, bias)
        if queries is not None:
            queries = check.dense(queries, "queries", n_columns=W.shape[1])
            queries = queries if len(queries) else None
        return self.rebuild(W, bias, queries)

    @staticmethod
    def _checked(W: ArrayLike, bias: ArrayLike | None) -> tuple[Floats, Floats]:
        W = check.dense(W, "W")
        if min(W.shape) == 0:
            raise ValueError(f"W must have at least one row and one column, got shape {W.shape}")
        return W, np.zeros(len(W), np.float32) if bias is None else check.vector(bias, "bias", len(W))

    def rebuild(self, W: Floats, bias: Floats, queries: Floats | None = None) -> Self:
        """`fit` for trusted arrays: float32, C-contiguous."""
        n_threads = resolve(self.n_threads)
        self._seed = int(check.generator(self.random_state).integers(2**31))
        tables = getattr(self, "_tables", None)  # of the fit before: filled anew where they serve
        self._begin(W, bias)
        self._store(n_threads)
        moment = None if queries is None else second_moment(queries, n_threads)
        self._transform = Transform(self.center, 0.0 if self.scaling == "auto" else self.scaling)
        self._transform.fit(W, bias, moment, n_threads)
        if self.family is not None:
            family = self._first_family(queries, n_threads)
            self._tables, tables = tables, None
            self._take_tables(family, n_threads)
        if self.sketch_bits != 0:
            if queries is None:
                self._sketches = self._sketched(self._transform, 0.0, n_threads)
            else:
                self._build_sketches(moment, queries, n_threads)
        return self

    def _first_family(self, queries: Floats | None, n_threads: int) -> HashFamily:
        if self.family != "auto":
            return self.family
        similarity = choice.SIMILARITY
        if queries is not None:
            sample = calibration.sample(queries)
            ids, _ = exact_topk(sample, self._W, self._bias, min(5, len(self._W)), n_threads)
            neighbours = self._vectors(ids.ravel()).reshape(*ids.shape, -1)
            similarity = choice.similarity(self._transform.queries(sample, n_threads), neighbours)
        return choice.first_family(len(self._W), similarity, self.recall)

    def _take_tables(self, family: HashFamily, n_threads: int) -> None:
        """Hash all neurons by this family."""
        self.family_ = family
        wanted = family, len(self._W), self._W.shape[1] + 1, self.dynamic, self._seed
        if self._tables is None or not self._tables.serves(*wanted):
            self._tables = None  # not two of them at a time
            self._tables = Tables(*wanted)
        for rows in self._row_chunks():
            self._tables.encode(rows[0], self._vectors(rows), n_threads)
        gone = np.flatnonzero(self._gone).astype(np.int32)
        self._tables.codes[gone] = -1
        self._tables.build(n_threads)

    def _begin(self, W: Floats, bias: Floats) -> None:
        self._W, self._bias = W, bias
        self.family_ = None
        self._gone = np.zeros(len(W), bool)
        self._tables = self._sketches = self._rows = self.n_candidates = None
        self.n_probes = 1
        self._curve, self._times = [], {}
        method = "sketches" if self.plan == "auto" else self.plan
        self._methods = {"single": method, "batch": method}

    def _store(self, n_threads: int) -> None:
        """Make the copy of the weights in fewer bits."""
        self._rows = None if self.storage == "float32" else QuantizedRows.of(self._W, self.storage, n_threads)

    def _row_chunks(self) -> Iterator[Ids]:
        for start in range(0, len(self._W), CHUNK):
            yield np.arange(start, min(start + CHUNK, len(self._W)), dtype=np.int32)

    def _build_sketches(self, moment: Floats, queries: Floats, n_threads: int) -> None:
        sample = calibration.sample(queries)
        truth, _ = exact_topk(sample, self._W, self._bias, min(5, len(self._W)), n_threads)
        scaled = self._transform
        if self.scaling == "auto" and self._tables is None:  # tables are hashed already, by the transform as it is
            scaled = self._better_transform(moment, sample, truth, n_threads)
        self._transform = scaled
        true_ids, places = np.unique(truth, return_inverse=True)
        norms = np.linalg.norm(self._vectors(true_ids), axis=1)[places.ravel()]
        spaced = np.arange(0, len(self._W), -(-len(self._W) // 4096), dtype=np.int32)
        all_norms = np.linalg.norm(self._vectors(spaced), axis=1)
        floor = calibration.norm_floor(norms, all_norms, self.recall)
        self._sketches = self._sketched(scaled, floor, n_threads, share=(all_norms >= floor).mean())
        if self._sketches.n >= CELLED:
            self._partition(n_threads)
        self.tune(queries, k=truth.shape[1])

    def _sketched(self, transform: Transform, norm_floor: float, n_threads: int, share: float = 1.0) -> Sketches:
        n, n_in = self._W.shape
        n_bits = self.sketch_bits
        if n_bits is None:
            within = (max(BYTES_PER_NEURON, SHARE_OF_WEIGHTS * 4 * n_in) - 4) / share - 12  # see Notes on the class
            n_bits = min(MOST_BITS, max(128, -(-3 * n_in // 256) * 64, min(512, int(within) // 8 * 64)))
        sketches = Sketches(n_bits, n, n_in + 1, norm_floor, np.random.default_rng(self._seed))
        for rows in self._row_chunks():
            sketches.update(rows, transform.neurons(self._W, self._bias, n_threads, rows), n_threads)
        return sketches.prepare(transform)

    def _partition(self, n_threads: int) -> None:
        """Sort the sketches into cells, as many as they hold neurons each."""
        sketches = self._sketches
        rng = np.random.default_rng(self._seed)
        n_cells = int(np.sqrt(sketches.n))
        ids = sketches.ids[:sketches.n]
        picked = np.sort(ids[rng.permutation(len(ids))[:SAMPLE_PER_CELL * n_cells]])
        cells = Cells.fit(self._vectors(picked), n_cells, rng, n_threads)
        counts, cell = np.zeros(n_cells, np.int64), np.empty(len(ids), np.int32)
        for start in range(0, len(ids), CHUNK):
            V = self._vectors(ids[start:start + CHUNK])
            cell[start:start + CHUNK] = part = cells.assign(V, n_threads)
            add_to_means(cells, counts, V, part)
        sketches.partition(cells, cell)
        sketches.prepare(self._transform)

    def _better_transform(self, moment: Floats, sample: Floats, truth: Ids, n_threads: int) -> Transform:
        """The scaling under which the sketches rank the true neighbours best."""
        n_best = min(len(self._W), max(32, len(self._W) // 256))
        found = {}
        for scaling in calibration.SCALINGS:
            transform = Transform(self.center, scaling).fit(self._W, self._bias, moment, n_threads)
            ids = self._sketched(transform, 0.0, n_threads).scan(sample, n_best, n_threads)
            found[transform] = calibration.recall(ids, truth)
        return max(found, key=found.get)

    @one_at_a_time
    def tune(self, queries: ArrayLike, k: int = 5, recall: float | None = None) -> list[dict[str, Any]]:
        """Set candidates and cells to the cheapest that reach a recall on the queries, and choose the plan.

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
            The trials: method, n_candidates, recall, microseconds (a query, all of them in a batch) and, for the method
            "sketches", n_cells (cells looked at), for "probes", n_probes and, where the family is "auto", bits and
            tables. What was chosen stands last of its method.

        Raises
        ------
        ValueError
            If the index has no sketches, or there are no queries.
        """
        self._check_fitted()
        if self._sketches is None:
            raise ValueError("tune needs sketches, but sketch_bits is 0; create the index with sketch_bits=None")
        queries = calibration.sample(check.dense(queries, "queries", n_columns=self._W.shape[1]))
        if not len(queries):
            raise ValueError("queries must have at least one row, got none")
        k = min(check.integer(k, "k"), len(self._W))
        recall = self.recall if recall is None else check.number(recall, "recall", above=0, below=1)
        n_threads = resolve(self.n_threads)
        (truth, _), seconds = calibration.timed(self._exact, queries, k, n_threads)
        self._curve = self._scan_trials(queries, truth, recall, n_threads)
        if self.plan in ("auto", "probes") and self._tables is not None:
            by = self._table_trials if self.family == "auto" else self._probe_trials
            self._curve += by(queries, truth, recall, n_threads)
        if self.plan == "auto":
            self._choose_methods(queries, k, recall, seconds / len(queries) * 1e6)
        return [dict(trial) for trial in self._curve]

    def _scan_trials(self, queries: Floats, truth: Ids, recall: float, n_threads: int) -> list[dict[str, Any]]:
        """Trials over candidates and cells; the cheapest that reached the recall is kept and stands last."""
        sketches = self._sketches
        limit = max(1, sketches.n_live)

        recall += (1 - recall) / 4  # the sample is not all queries: aim a little higher

        def trials_of(n_probed: int, start: int, limit: int) -> list[dict[str, Any]]:
            def search(queries: Floats, k: int, n: int) -> tuple[Ids, Floats]:
                return self._by_sketches(queries, k, n, n_threads)

            sketches.n_probed = n_probed
            trials = calibration.curve(search, queries, truth, recall, start, limit)
            return [{"method": "sketches", "n_cells": n_probed} | trial for trial in trials]

        n_cells = 0 if sketches.cells is None else sketches.cells.n
        trials = trials_of(n_cells, max(16, 2 * truth.shape[1]), limit)
        ends, n = [trials[-1]], trials[-1]["n_candidates"]
        for share in calibration.CELL_SHARES if n_cells else ():
            trials += trials_of(max(1, round(share * n_cells)), n, min(limit, 3 * n))
            if trials[-1]["recall"] < recall:
                break
            ends.append(trials[-1])
        best = min(ends, key=lambda trial: calibration.cost(trial, n_cells, sketches.n_live, len(sketches.rotation),
                                                            self._W.shape[1]))
        low = 2 * best["n_candidates"] // 3  # the trial before had no more
        for _ in range(REFINEMENTS if best["recall"] >= recall else 0):
            middle = (low + best["n_candidates"]) // 2
            trials += trials_of(best["n_cells"], middle, middle)
            if trials[-1]["recall"] >= recall:
                best = trials[-1]
            else:
                low = middle
        sketches.n_probed, self.n_candidates = best["n_cells"], best["n_candidates"]
        return [trial for trial in trials if trial is not best] + [best]

    def _probe_trials(self, queries: Floats, truth: Ids, recall: float, n_threads: int) -> list[dict[str, Any]]:
        trials: list[dict[str, Any]] = []
        self.n_probes = 1
        while self.n_probes <= MOST_PROBES and (not trials or trials[-1]["recall"] < recall):
            try:
                (ids, _), seconds = calibration.timed(self._by_probes, queries, truth.shape[1], self.n_candidates,
                                                      n_threads)
            except ValueError:  # a family without an order of probing, or no more buckets
                break
            trials.append({"method": "probes", "n_probes": self.n_probes, "n_candidates": self.n_candidates,
                           "recall": calibration.recall(ids, truth), "microseconds": seconds / len(queries) * 1e6})
            self.n_probes *= 2
        # too many probes find less again: neurons that are in the probed buckets of every table all look alike
        self.n_probes = max(trials, key=lambda trial: trial["recall"])["n_probes"]
        return trials

    def _table_trials(self, queries: Floats, truth: Ids, recall: float, n_threads: int) -> list[dict[str, Any]]:
        """Trials over K and L around the closed form, each with its probes; the cheapest is kept and stands last."""
        ends, trials = [], []
        for family in choice.families_around(self.family_, len(self._W)):
            self._take_tables(family, n_threads)
            setting = {"bits": family.bits, "tables": family.tables}
            some = [trial | setting for trial in self._probe_trials(queries, truth, recall, n_threads)]
            end = next(trial for trial in some if trial["n_probes"] == self.n_probes)
            ends.append((family, end))
            trials += some

        def rank(entry: tuple[Any, dict[str, Any]]) -> tuple[float, float]:
            _, trial = entry
            n_handed = min(FOUND_PER_CANDIDATE * trial["n_candidates"], len(self._W))
            return max(recall - trial["recall"], 0), choice.cost(trial, len(self._W), self._W.shape[1], n_handed)

        family, best = min(ends, key=rank)
        self._take_tables(family, n_threads)
        self.n_probes = best["n_probes"]
        return [trial for trial in trials if trial is not best] + [best]

    def _choose_methods(self, queries: Floats, k: int, recall: float, exact_microseconds: float) -> None:
        able = {trial["method"]: trial for trial in self._curve if trial["recall"] >= recall}  # one a method at most
        searches = {"exact": lambda x, k: self._exact(x, k, 1),
                    "sketches": lambda x, k: self._by_sketches(x, k, self.n_candidates, 1),
                    "probes": lambda x, k: self._by_probes(x, k, self.n_candidates, 1)}
        batch = {"exact": exact_microseconds} | {name: trial["microseconds"] for name, trial in able.items()}
        single = {name: calibration.one_by_one(searches[name], queries, k) for name in batch}
        self._times = {"single": single, "batch": batch}
        self._methods = {kind: min(times, key=times.get) for kind, times in self._times.items()}

    # -- changes ----------------------------------------------------------------------------------------------

    @one_at_a_time
    def update(self, W: ArrayLike, rows: ArrayLike) -> None:
        """Take in that rows of W have changed. Transform, norm floor and plan stay those of `fit`.

        Parameters
        ----------
        W : array of shape (n_neurons, n_in)
            All weights: the array given to `fit` or one of its shape. A bias that was given as float32 is read again
            for these rows too.
        rows : array of int
            The ids of the changed neurons, distinct.
        """
        self._check_fitted()
        rows = check.ids(rows, "rows", len(self._W), unique=True)
        if W is self._W:
            check.dense(W[rows], "W[rows]")
        else:
            self._W = check.dense(W, "W", n_columns=self._W.shape[1], n_rows=len(self._W))
        self._gone[rows] = False
        self.refresh(rows)

    def refresh(self, rows: Ids) -> None:
        """`update` for trusted ids of rows that changed in place."""
        if not len(rows):
            return
        n_threads = resolve(self.n_threads)
        V = self._vectors(rows)
        if self._rows is not None:
            self._rows.refresh(self._W, rows, n_threads)
        if self._tables is not None:
            self._tables.update(rows, V, n_threads)
        if self._sketches is not None:
            self._sketches.update(rows, V, n_threads)

    @one_at_a_time
    def add(self, W: ArrayLike, bias: ArrayLike | None = None) -> None:
        """Take in new neurons at the end of W.

        Parameters
        ----------
        W : array of shape (n_neurons + n_new, n_in)
            All weights; the first n_neurons rows are those of before.
        bias : array of shape (n_neurons + n_new,) or None
            None for zero for the new ones.
        """
        self._check_fitted()
        n = len(self._W)
        W = check.dense(W, "W", n_columns=self._W.shape[1])
        if len(W) < n:
            raise ValueError(f"W must have at least the {n} rows of before, got {len(W)}; use remove to drop neurons")
        if bias is None:
            bias = np.concatenate([self._bias, np.zeros(len(W) - n, np.float32)])
        self._W, self._bias = W, check.vector(bias, "bias", len(W))
        self._gone = np.concatenate([self._gone, np.zeros(len(W) - n, bool)])
        self._store(resolve(self.n_threads))
        if self._tables is not None:
            self._tables.resize(len(W), resolve(self.n_threads))
        if self._sketches is not None:
            self._sketches.resize(len(W))
        self.refresh(np.arange(n, len(W), dtype=np.int32))

    @one_at_a_time
    def remove(self, rows: ArrayLike) -> None:
        """Let neurons be found no more. Their ids stay taken; `update` brings one back.

        Parameters
        ----------
        rows : array of int
            Distinct ids.
        """
        self._check_fitted()
        rows = check.ids(rows, "rows", len(self._W), unique=True)
        self._gone[rows] = True
        if self._tables is not None and len(rows):
            self._tables.remove(rows, resolve(self.n_threads))
        if self._sketches is not None:
            self._sketches.remove(rows)

    def drift(self, rows: Ids) -> float:
        """Share of the codes of the neurons `rows` that hashing them now would change; for trusted ids."""
        codes = self._tables.family.hash(self._vectors(rows), n_threads=resolve(self.n_threads))
        return float((codes != self._tables.codes[rows]).mean()) if len(rows) else 0.0

    def insert(self, X: Floats, samples: Ids, neurons: Ids) -> None:
        """Add neuron neurons[k] to the buckets that input X[samples[k]] looks into; trusted, for training."""
        n_threads = resolve(self.n_threads)
        self._tables.insert(self._transform.queries(X, n_threads), samples, neurons, n_threads)

    def _vectors(self, rows: Ids) -> Floats:
        return self._transform.neurons(self._W, self._bias, resolve(self.n_threads), rows)

    # -- asking -----------------------------------------------------------------------------------------------

    @one_at_a_time
    def query(self, X: ArrayLike, n: int = 100, *, policy: str = "top", min_count: int = 1, n_probes: int = 1,
              seed: int = 0) -> csr_array:
        """Active sets: neurons that share buckets with each input.

        Parameters
        ----------
        X : array of shape (n_queries, n_in)
        n : int
            Neurons an input at most.
        policy : {"top", "score", "vanilla"}
            Which of the neurons found are taken (SLIDE, section 3.1): those in most tables; those with the largest
            inner products among four times as many in most tables; or whole buckets, of tables in random order.
        min_count : int
            Tables in which a neuron must share the bucket, at least ("hard thresholding"); not for "vanilla".
        n_probes : int
            Buckets of each table that are looked into.
        seed : int
            Draws the order of the tables, for "vanilla".

        Returns
        -------
        csr_array of shape (n_queries, n_neurons), float32
            For "top" the number of tables in which each neuron was found, for "score" its inner product plus bias, for
            "vanilla" 1.
        """
        self._check_fitted()
        if self._tables is None:
            raise ValueError("query needs tables, but family is None; create the index with family=SimHash(...)")
        X = check.dense(X, "X", n_columns=self._W.shape[1])
        n = min(check.integer(n, "n"), len(self._W))
        check.choice(policy, "policy", ("top", "score", "vanilla"))
        min_count = check.integer(min_count, "min_count", maximum=255)
        n_probes = check.integer(n_probes, "n_probes")
        ids, values = self.candidates(X, n, min_count, policy=policy, n_probes=n_probes,
                                      seed=check.integer(seed, "seed", minimum=0))
        found = ids >= 0
        indptr = np.concatenate([[0], np.cumsum(found.sum(axis=1))])
        active = sp.csr_array((values[found].astype(np.float32), ids[found], indptr), shape=(len(X), len(self._W)))
        active.sort_indices()
        return active

    def candidates(self, X: Floats, n: int, min_count: int = 1, *, policy: str = "top", n_probes: int = 1,
                   seed: int = 0) -> tuple[Ids, np.ndarray]:
        """`query` for trusted input: ids and values, (n_queries, n), filled up with -1; "vanilla" is in no order."""
        n_threads = resolve(self.n_threads)
        Q = self._transform.queries(X, n_threads)
        if policy == "vanilla":
            ids = self._tables.draw(Q, n, seed, n_threads, n_probes)
            return ids, np.ones_like(ids)
        n_found = n if policy == "top" else min(len(self._W), FOUND_PER_CANDIDATE * n)
        ids, counts = self._tables.collide(Q, n_found, min_count, n_threads, n_probes)
        return (ids, counts) if policy == "top" else self._rerank(ids, X, n, n_threads)

    @one_at_a_time
    def search(self, X: ArrayLike, k: int = 5, *, n_candidates: int | None = None) -> tuple[Ids, Floats]:
        """The neurons with the largest inner products.

        Parameters
        ----------
        X : array of shape (n_queries, n_in)
        k : int
        n_candidates : int or None
            Neurons whose inner product is computed, at least k; None for the index's own number and plan.

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

    def best(self, X: Floats, k: int, n_candidates: int | None = None) -> tuple[Ids, Floats]:
        """`search` for trusted input."""
        n_threads = resolve(self.n_threads) if len(X) > 1 else 1  # to wake a thread takes as long as a search
        method = self._methods["batch" if len(X) >= BATCH else "single"]
        if method == "exact" and n_candidates is None:
            return self._exact(X, k, n_threads)
        by = self._by_probes if method == "probes" else self._by_sketches
        return by(X, k, n_candidates or self.default_candidates(k), n_threads)

    def _exact(self, X: Floats, k: int, n_threads: int) -> tuple[Ids, Floats]:
        if not self._gone.any():
            return exact_topk(X, self._W, self._bias, k, n_threads)
        bias = np.where(self._gone, np.float32(-np.inf), self._bias)
        ids, scores = exact_topk(X, self._W, bias, k, n_threads)
        return np.where(np.isneginf(scores), np.int32(-1), ids), scores

    def _by_sketches(self, X: Floats, k: int, n_candidates: int, n_threads: int) -> tuple[Ids, Floats]:
        n_candidates = min(n_candidates, len(self._W))
        if self._sketches is None:
            candidates, _ = self.candidates(X, n_candidates)
        elif len(X) <= FEW and (found := self._search_few(X, k, n_candidates)):
            return found
        else:
            candidates = self._sketches.scan(X, n_candidates, n_threads)
        return self._rerank(candidates, X, k, n_threads)

    def _search_few(self, X: Floats, k: int, n_candidates: int) -> tuple[Ids, Floats] | None:
        search = self._prepared(k, n_candidates)
        if search is None:
            return None
        ids, scores = np.empty((len(X), k), np.int32), np.empty((len(X), k), np.float32)
        searches.top_k(search, X, ids, scores)
        return ids, scores

    def _prepared(self, k: int, n_candidates: int) -> Any:
        rows = self._rows if n_candidates > _n_exact(k) else None
        return self._sketches.prepared(self._W, self._bias, rows, _n_exact(k), n_candidates)

    def search_of_one(self, k: int) -> Any:
        """What the core asks for the k best of a single query, or None where `best` works by another plan.

        It holds for the index as it is.
        """
        if self._methods["single"] != "sketches" or self._sketches is None:
            return None
        return self._prepared(k, min(self.default_candidates(k), len(self._W)))

    def _by_probes(self, X: Floats, k: int, n_candidates: int, n_threads: int) -> tuple[Ids, Floats]:
        n_found = min(FOUND_PER_CANDIDATE * n_candidates, len(self._W))
        found, _ = self.candidates(X, n_found, n_probes=self.n_probes)
        candidates = self._sketches.rank(X, found, min(n_candidates, n_found), n_threads)
        return self._rerank(candidates, X, k, n_threads)

    def _rerank(self, candidates: Ids, X: Floats, k: int, n_threads: int) -> tuple[Ids, Floats]:
        if self._rows is not None and candidates.shape[1] > _n_exact(k):
            candidates, _ = _best_of(candidates, X, self._rows.values, self._rows.scales, self._bias, _n_exact(k),
                                     n_threads)
        return _best_of(candidates, X, self._W, None, self._bias, k, n_threads)

    def look_for(self, n_candidates: int) -> None:
        """Compute so many inner products a search, of the best that all cells hold: for a k of hundreds."""
        self.n_candidates = min(n_candidates, len(self._W))
        if self._sketches is not None and self._sketches.cells is not None:
            self._sketches.n_probed = self._sketches.cells.n

    def default_candidates(self, k: int) -> int:
        """How many inner products a search computes where the call does not say."""
        if self.n_candidates is None:
            return min(len(self._W), max(20 * k, min(max(128, len(self._W) // 100), 1024)))
        return min(len(self._W), max(self.n_candidates, 2 * k))

    def _check_fitted(self) -> None:
        if self._W is None:
            raise ValueError("this LSHIndex has no neurons yet; call fit(W) first")

    # -- what it is -------------------------------------------------------------------------------------------

    @property
    def nbytes(self) -> int:
        """Bytes of tables, sketches and a copy of the weights in fewer bits; the weights themselves not included."""
        self._check_fitted()
        return sum(part.nbytes for part in (self._tables, self._sketches, self._rows) if part is not None)

    @one_at_a_time
    def report(self) -> dict[str, Any]:
        """What `fit` and `tune` chose and measured.

        Returns
        -------
        dict
            n_neurons, n_in, scaling, sketch_bits, n_sketched (neurons long enough to be found by `search`),
            n_candidates, n_probes, family (that of the tables, as text), bytes_per_neuron, trials (see `tune`) and
            plan: for "single" queries and a "batch", the method in use and, where measured, the microseconds a query
            of each.
        """
        self._check_fitted()
        plan = {kind: {"use": method, "microseconds": dict(self._times.get(kind, {}))}
                for kind, method in self._methods.items()}
        scaling = self._transform.scaling if self._transform.neuron_map_ is not None else 0.0
        return {"n_neurons": len(self._W), "n_in": self._W.shape[1], "scaling": scaling,
                "sketch_bits": self._sketches.blocks.shape[1] // 4 if self._sketches is not None else 0,
                "n_sketched": self._sketches.n_live if self._sketches is not None else 0,
                "n_candidates": self.n_candidates, "n_probes": self.n_probes,
                "family": repr(self.family_), "bytes_per_neuron": self.nbytes / len(self._W),
                "trials": [dict(trial) for trial in self._curve], "plan": plan}

    def __repr__(self) -> str:
        fitted = ""
        if self._W is not None:
            use = ", ".join(f"{kind}: {method}" for kind, method in self._methods.items())
            fitted = f", {len(self._W)} neurons x {self._W.shape[1]}, n_candidates={self.n_candidates}, {use}"
        return (f"LSHIndex({self.family!r}, center={self.center}, scaling={self.scaling!r}, "
                f"sketch_bits={self.sketch_bits}{fitted})")

    def _repr_html_(self) -> str:
        if self._W is None:
            return table("LSHIndex, not fitted", [("family", repr(self.family)), ("recall", self.recall)])
        report = self.report()
        rows = [("neurons", f"{report['n_neurons']:,} x {report['n_in']}"), ("family", repr(self.family)),
                ("sketches", f"{report['n_sketched']:,} of {report['sketch_bits']} bits"),
                ("scaling", f"{report['scaling']:g}"), ("candidates", f"{report['n_candidates'] or 'by k'}"),
                ("memory", f"{size(self.nbytes)}, {report['bytes_per_neuron']:.0f} bytes a neuron")]
        for kind, plan in report["plan"].items():
            times = ", ".join(f"{name} {time:.0f} µs" for name, time in plan["microseconds"].items())
            rows.append((f"plan, {kind}", plan["use"] + (f" ({times})" if times else "")))
        return table("LSHIndex", rows)

    @one_at_a_time
    def plot_recall(self, queries: Floats | None = None, *, k: int = 5, ax: Any = None) -> Any:
        """Plot the recall by the number of candidates; needs matplotlib.

        Parameters
        ----------
        queries : array of shape (n_queries, n_in) or None
            The recall of the scan of sketches on them, 256 at most; None for the trials of `fit` or `tune`.
        k : int
            Neighbours that are to be found.
        ax : matplotlib Axes or None
            None for a new figure.

        Returns
        -------
        Axes

        Raises
        ------
        ValueError
            If no queries were given, neither here nor to `fit`, or the index has no sketches.
        ImportError
            If matplotlib is missing.
        """
        self._check_fitted()
        if queries is None:
            if not self._curve:
                raise ValueError("there are no trials to plot; give queries here, or to fit or tune")
            return plot_recall(self._curve, self.recall, ax)
        if self._sketches is None:
            raise ValueError("plot_recall with queries needs sketches, but sketch_bits is 0")
        queries = calibration.sample(check.dense(queries, "queries", n_columns=self._W.shape[1]))
        if not len(queries):
            raise ValueError("queries must have at least one row, got none")
        k, n_threads = min(check.integer(k, "k"), len(self._W)), resolve(self.n_threads)
        truth, _ = self._exact(queries, k, n_threads)
        trials = calibration.curve(lambda X, k, n: self._by_sketches(X, k, n, n_threads), queries, truth, 1.0, k,
                                   len(self._W))
        return plot_recall([{"method": "sketches"} | trial for trial in trials], self.recall, ax)

    # -- files ------------------------------------------------------------------------------------------------

    @one_at_a_time
    def save(self, path: PathLike) -> None:
        """Write the index, without the weights, as one safetensors file, whole or not at all.

        Raises
        ------
        ImportError
            If the package safetensors is missing.
        TypeError
            If the family is none of the package's: `load` would not know it.
        """
        index_file.write(path, *self.state())

    def state(self, exactly: bool = False) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """What a file holds: arrays, and a dict of plain values. `exactly`: the order in buckets too, for checkpoints,
        whose layer knows the family.
        """
        self._check_fitted()
        transform, sketches = self._transform, self._sketches
        tensors = {"offset": transform.offset_, "neuron_map": transform.neuron_map_,
                   "query_map": transform.query_map_, "gone": self._gone.astype(np.uint8),
                   "codes": None if self._tables is None else self._tables.codes}
        if exactly and self._tables is not None:
            tensors |= self._tables.tensors()
        if sketches is not None:
            tensors |= sketches.tensors()
        if self._rows is not None:
            tensors |= self._rows.tensors("rows")
        return {name: a for name, a in tensors.items() if a is not None}, {
            "arguments": {"center": self.center, "scaling": self.scaling, "sketch_bits": self.sketch_bits,
                          "recall": self.recall, "plan": self.plan, "storage": self.storage, "dynamic": self.dynamic},
            "family": None if exactly else index_file.family_config(self.family_),
            "auto_family": self.family == "auto",
            "seed": self._seed, "scaling": transform.scaling,
            "norm_floor": 0.0 if sketches is None else sketches.norm_floor, "n_candidates": self.n_candidates,
            "n_probes": self.n_probes, "n_cells_probed": 0 if sketches is None else sketches.n_probed,
            "methods": self._methods, "times": self._times, "trials": self._curve,
            "fingerprint": index_file.fingerprint(self._W, self._bias),
        }

    def share(self, W: Floats, bias: Floats) -> None:
        """Read these arrays from now on, which hold the weights that it has."""
        self._W, self._bias = W, bias

    def take_state(self, W: Floats, bias: Floats, tensors: dict[str, np.ndarray], config: dict[str, Any]) -> Self:
        """What `state` gave, for these weights; ValueError where it does not fit."""
        try:
            self._restore(W, bias, self.family, tensors, config)
        except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
            self._W = None
            raise ValueError(f"the state of an index is damaged ({error})") from error
        return self

    @classmethod
    def load(cls, path: PathLike, W: ArrayLike, bias: ArrayLike | None = None, *,
             n_threads: int | None = None) -> Self:
        """Read an index that :meth:`save` wrote; W and bias are the weights that it was saved over.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ValueError
            If it is damaged or no index, or the weights are others.
        ImportError
            If the package safetensors is missing.
        """
        W, bias = cls._checked(W, bias)
        n_threads = check.threads(n_threads)
        tensors, config = index_file.read(path)
        try:
            return cls.from_state(W, bias, tensors, config, n_threads)
        except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
            raise ValueError(f"{path}: this index cannot be used ({error}); fit and save it again") from error

    @classmethod
    def from_state(cls, W: Floats, bias: Floats, tensors: dict[str, np.ndarray], config: dict[str, Any],
                   n_threads: int | None) -> Self:
        """The index of `state`, over trusted weights."""
        if config["fingerprint"] != index_file.fingerprint(W, bias) or len(tensors["gone"]) != len(W):
            raise ValueError("it was saved over other weights than the W and bias given")
        family = index_file.family_from(config["family"])
        if config["auto_family"] and family is None:
            raise ValueError("it says nothing of the family that was chosen")
        index = cls("auto" if config["auto_family"] else family, n_threads=n_threads, **config["arguments"])
        index._restore(W, bias, family, tensors, config)
        return index

    def _restore(self, W: Floats, bias: Floats, family: Any, tensors: dict[str, np.ndarray],
                 config: dict[str, Any]) -> None:
        n, n_in = W.shape
        self._begin(W, bias)
        if tensors["gone"].shape != (n,):
            raise ValueError(f"gone must have shape {(n,)}, got {tensors['gone'].shape}")
        self._seed, self._gone = check.integer(config["seed"], "seed", minimum=0), tensors["gone"].astype(bool)
        if self.storage != "float32":
            self._rows = QuantizedRows.restored(self.storage, W.shape, tensors["rows"], tensors.get("rows_scales"))
        self._transform = Transform.restored(self.center, config["scaling"], n_in, tensors)
        self.family_ = family
        if family is not None:
            self._tables = Tables(family, n, n_in + 1, self.dynamic, self._seed)
            self._tables.restore(tensors["codes"], resolve(self.n_threads))
            if "bucket_ids" in tensors:
                self._tables.restore_buckets(tensors)
        if self.sketch_bits != 0:
            norm_floor = check.number(config["norm_floor"], "norm_floor", minimum=0, maximum=1e19)
            self._sketches = Sketches.restored(n, n_in + 1, norm_floor, tensors).prepare(self._transform)
            self._sketches.n_probed = check.integer(config["n_cells_probed"], "n_cells_probed", minimum=0)
        if config["n_candidates"] is not None:
            self.n_candidates = check.integer(config["n_candidates"], "n_candidates")
        self.n_probes = check.integer(config["n_probes"], "n_probes",
                                      maximum=1 if family is None else family.n_buckets)
        able = METHODS if self._tables is not None and self._sketches is not None else ("sketches", "exact")
        self._methods = {kind: check.choice(config["methods"][kind], "methods", able) for kind in self._methods}
        self._times = {kind: dict(times) for kind, times in config["times"].items()}
        self._curve = [dict(trial) for trial in config["trials"]]


def _n_exact(k: int) -> int:
    """How many of the candidates, scored in fewer bits, are scored by the weights themselves."""
    return 4 * k + 12


def _best_of(candidates: Ids, X: Floats, rows: np.ndarray, scales: Floats | None, bias: Floats, k: int,
             n_threads: int) -> tuple[Ids, Floats]:
    """Ids and scores (n, k) of the candidates with the largest inner products."""
    ids, scores = np.empty((len(X), k), np.int32), np.empty((len(X), k), np.float32)
    kernels.rerank(candidates, X, rows, scales, bias, ids, scores, n_threads)
    return ids, scores
