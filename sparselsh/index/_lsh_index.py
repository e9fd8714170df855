"""LSHIndex: the public class; it checks its arguments and passes them to an IndexEngine."""
from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np

from .. import _validation as check
from .._arrays.scipy import sp
from .._display import plot_recall, size, table
from .._signals import held
from .._threads import Lock, one_at_a_time, resolve
from . import _file as file
from . import _tuning as tuning
from ._build import build, drawn_seed
from ._metric import Metric
from ._options import IndexOptions
from ._own_ids import OwnIds

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray
    from scipy.sparse import csr_array

    from .._arrays.types import Floats, Ids, MatrixLike, PathLike, RandomState
    from ..protocols import HashFamily
    from ._engine import IndexEngine

COMPARED_ROWS = 256  # by which `add` recognizes the rows that an index has already
CONFIDENCE = 0.999  # of each answer, with `certify=True`
GROWTH = 4  # an index that has to copy its weights leaves room for a fourth as many


class LSHIndex:
    """An index of neurons for maximum inner product search.

    The rows of the indexed matrix are called neurons. Neurons are centred and scaled
    (`sparselsh.index.transforms`). For :meth:`search`, each neuron whose norm is large enough to
    matter has a sketch: the signs of a rotation of its vector, one bit per dimension of the
    rotation. A sketch gives an estimate of the inner product and a bound of its error. A search
    computes every neuron that may be among the k best by this bound, so it finds the fraction
    `recall` of them for any query and any k. Hash tables give active sets for training
    (:meth:`query`).

    Parameters
    ----------
    family : hash family, "auto" or None
        The family of the hash tables, such as ``SimHash()``. None for no tables; `search` needs
        none. "auto" is SimHash whose bits K and tables L come from :func:`choose_bits_and_tables`,
        at the similarity of the queries of `fit` and their neighbours. `tune` then tries other
        values around them.
    center : bool
        Subtract the mean neuron before hashing.
    scaling : float or "auto"
        Exponent p of the query-aware scaling, in [0, 1]; it needs queries in `fit`. "auto" takes 0
        or 0.5, whichever finds more on them. It takes 0 for an index with tables, and for 512
        inputs or more if that finds enough, because queries that are not scaled are rotated faster.
    sketch_bits : int or None
        Bits per sketch, a multiple of 64 and at most 1024; 0 for no sketches. Longer sketches need
        fewer candidates and take longer to read. None chooses the number: the multiple of 64 at or
        above 3/4 of the dimension and at least 128, or more, up to 512, if the sketches take at
        most 40 bytes or a sixteenth of the weights per neuron (averaged over all neurons, of which
        those below the norm floor have none). With queries in `fit`, a cost formula chooses within
        this limit. Without queries, and for distances, the limit is taken.
    recall : float
        Fraction of the true neighbours that `search` finds with the plans "sketches" and "exact",
        above 0 and below 1. Queries in `fit` make searches faster, and may widen the bounds.
    plan : {"auto", "sketches", "probes", "exact"}
        The method of `search`. "sketches" scans the sketches of the neurons in the cells near the
        query. "probes" probes buckets of the tables and ranks the neurons in them by their
        sketches. "exact" computes every inner product. "auto" times them once, in `fit`, for single
        queries and for batches, and takes the fastest that reaches the recall. The choice may then
        differ from run to run.
    storage : {"float32", "bfloat16", "int8"}
        Dtype of the rows of the candidates that `search` reads. With fewer bits it reads a copy of
        2 or 1 bytes per weight. It reads the weights themselves only for the best 4 k + 12, or for
        all if the rounding may hide one of the best. So scores stay exact, and weights that are
        mapped from a file (``np.memmap``) take almost no memory.
    dynamic : bool
        Leave room in the buckets, so that `update` moves a neuron without sorting the tables again.
    metric : {"ip", "cosine", "l2"}
        What `search` ranks by: inner products plus bias, cosines, or Euclidean distances, the
        smallest first. The last two take no bias.
    random_state : None, int or numpy.random.Generator
    n_threads : int or None
        None for the threads of :func:`sparselsh.set_num_threads`.

    Attributes
    ----------
    n_candidates : int or None
        If it is set to a number, a search computes this many neurons with the best estimates, and
        guarantees no recall. None for as many as the bound requires.
    n_probes : int
        Buckets per table that the plan "probes" reads.
    family_ : hash family or None
        The family in use, after `fit`.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit; the message names it.

    Notes
    -----
    Python threads may share an index: a call waits until that of another thread has ended.

    The index keeps a reference to the weights, which every search reads. It has its own copy in
    four cases: with `metric="cosine"`; after :meth:`add`; with `metric="l2"` for rows far from zero
    compared to the distances between them, which are stored relative to their mean; and for weights
    below 1e-6 or above 1e15, which are stored times a power of two. Memory beyond the weights: 4
    bytes per neuron, 4 more if there is a norm floor, and 20 + `sketch_bits` / 8 bytes per neuron
    whose norm reaches the floor; per table, 8 bytes per neuron and 12 per bucket, or about 10 and
    22 if `dynamic`. A search of the tables needs 9 more bytes per neuron and thread.

    Neurons whose norm is below the floor have no sketch. A search computes those of them that may
    be among the best by their norm. For most inputs like the `queries` of `fit` there are none.

    A call of `fit`, `tune`, `add`, `update` or `remove` that fails leaves the index as it was.
    Ctrl-C waits for the end of a change by `add`, `update` or `remove`.

    References
    ----------
    Neyshabur and Srebro, arXiv 1410.5518; Chen et al., SLIDE, arXiv 1903.03129; Gao and Long,
    RaBitQ, 2024 (the estimator); Yan et al., "Norm-ranging LSH for maximum inner product search",
    2018 (the use of the norms).
    """

    def __init__(self, family: HashFamily | Literal["auto"] | None = None, *, center: bool = True,
                 scaling: float | Literal["auto"] = "auto", sketch_bits: int | None = None,
                 recall: float = 0.98, plan: str = "auto", storage: str = "float32",
                 dynamic: bool = False, metric: str = "ip", random_state: RandomState = None,
                 n_threads: int | None = None) -> None:
        options = IndexOptions.checked(
            family, center=center, scaling=scaling, sketch_bits=sketch_bits, recall=recall,
            plan=plan, storage=storage, dynamic=dynamic, metric=metric)

        self.family = options.family
        self.center = options.center
        self.scaling = options.scaling
        self.sketch_bits = options.sketch_bits
        self.recall = options.recall
        self.plan = options.plan
        self.storage = options.storage
        self.dynamic = options.dynamic
        self.metric = options.metric

        self.random_state = random_state
        self.n_threads = check.threads(n_threads)
        self._engine: IndexEngine | None = None
        self._ids: OwnIds | None = None
        self._metric = Metric(options.metric)
        self._store: tuple[Floats, Floats] | None = None  # own weights and biases, with free rows
        self._lock = Lock()

    def _options(self) -> IndexOptions:
        return IndexOptions(self.family, self.center, self.scaling, self.sketch_bits, self.recall,
                            self.plan, self.storage, self.dynamic, self.metric)

    def _fitted(self) -> IndexEngine:
        if self._engine is None:
            raise ValueError("this LSHIndex has no neurons yet; call fit(W) first")
        return self._engine

    def __len__(self) -> int:
        """Number of neurons in the index, without those that were removed."""
        if self._engine is None:
            return 0
        return int(len(self._engine.removed) - np.count_nonzero(self._engine.removed))

    def __bool__(self) -> bool:
        """True: an index without neurons is an index too."""
        return True

    @property
    def n_candidates(self) -> int | None:
        return None if self._engine is None else self._engine.n_candidates or None

    @n_candidates.setter
    def n_candidates(self, n_candidates: int | None) -> None:
        if n_candidates is not None:
            n_candidates = check.integer(n_candidates, "n_candidates")
        self._fitted().n_candidates = n_candidates or 0

    @property
    def n_probes(self) -> int:
        return 1 if self._engine is None else self._engine.n_probes

    @n_probes.setter
    def n_probes(self, n_probes: int) -> None:
        self._fitted().n_probes = check.integer(n_probes, "n_probes")

    @property
    def family_(self) -> HashFamily | None:
        return self._fitted().family

    # -- building -----------------------------------------------------------------------------

    @one_at_a_time
    def fit(self, W: ArrayLike, bias: ArrayLike | None = None, queries: ArrayLike | None = None, *,
            ids: ArrayLike | None = None) -> Self:
        """Index the rows of W.

        Parameters
        ----------
        W : array of shape (n_neurons, n_in)
            Kept by reference where it is C-contiguous float32, else as a copy.
        bias : array of shape (n_neurons,) or None
        queries : array of shape (n_queries, n_in) or None
            Some hundreds of typical inputs, from which the scaling, the norm floor, the cells and
            the plan are chosen. Up to 1,024 are used, and fewer only for very large W.
        ids : array of shape (n_neurons,), int or str, or None
            Distinct ids of your own, which `search` returns and the other methods take; None for
            the numbers of the rows.

        Returns
        -------
        LSHIndex
            Itself.

        Raises
        ------
        TypeError, ValueError
            If an argument does not fit; the message names it.
        """
        W = _checked_weights(W)
        metric = Metric.of_rows(self._options().metric, W)
        W, bias = _as_stored(W, bias, metric)
        own = None if ids is None else OwnIds(check.own_ids(ids, len(W)))
        if queries is not None:
            queries = check.dense(queries, "queries", n_columns=W.shape[1])
            queries = metric.queries(queries) if len(queries) else None
        # in the end, at once: an interrupted build leaves the index as it was
        self._take(build(self._options(), W, bias, queries, drawn_seed(self.random_state),
                         resolve(self.n_threads)), own, None, metric)
        return self

    def _take(self, engine: IndexEngine, ids: OwnIds | None,
              store: tuple[Floats, Floats] | None, metric: Metric) -> None:
        self.__dict__.update(_engine=engine, _ids=ids, _store=store, _metric=metric)

    @one_at_a_time
    def tune(self, queries: ArrayLike, k: int = 5,
             recall: float | None = None) -> list[dict[str, Any]]:
        """Set the bounds of a search for a recall, widen them on queries, and choose the plan.

        Parameters
        ----------
        queries : array of shape (n_queries, n_in)
            Up to 1,024 are used, evenly spaced.
        k : int
            The recall is reached for this k, for 1 and for 50; the trials are of this one.
        recall : float or None
            Fraction of the k true neighbours to find; None for the index's own.

        Returns
        -------
        list of dict
            The trials: method, n_candidates (neurons computed per query, on average), recall and
            microseconds (per query, all of them in one batch); for the method "sketches" also
            deviations, the standard deviations of an estimate that the bound allows for, and
            n_scanned, the sketches read per query; for "probes" n_probes and, where the family is
            "auto", bits and tables. The trial that was chosen is the last of its method.

        Raises
        ------
        ValueError
            If the index has no neurons or no sketches, or there are no queries.
        """
        engine = self._fitted()
        if not engine.has_sketches:
            raise ValueError("tune needs sketches, but sketch_bits is 0; create the index with "
                             "sketch_bits=None")
        queries = self._sampled(queries)
        k = min(check.integer(k, "k"), len(engine.W))
        recall = self.recall if recall is None else check.number(recall, "recall", above=0, below=1)
        tuned = copy.copy(engine)
        tuned.options = self._options()
        tuned.n_candidates = 0
        if tuned.has_tables and self.family == "auto":
            tuned.tables = copy.copy(engine.tables)  # other tables take their place
        bounds = engine.sketches.bounds
        try:
            tuning.tune(tuned, queries, k, recall, resolve(self.n_threads))
            self._engine = tuned
        finally:
            if self._engine is not tuned:
                with held():
                    engine.sketches.set_bounds(bounds)
        return [dict(trial) for trial in tuned.trials]

    def _sampled(self, queries: ArrayLike) -> Floats:
        """Checked queries, at most as many as tuning uses."""
        queries = self._inputs(queries, "queries")
        if not len(queries):
            raise ValueError("queries must have at least one row, got none")
        return tuning.sample(queries, self._fitted().W.size)

    def _inputs(self, X: ArrayLike, name: str = "X") -> Floats:
        return self._metric.queries(self._checked_inputs(X, name))

    def _checked_inputs(self, X: ArrayLike, name: str = "X") -> Floats:
        return check.dense(X, name, n_columns=self._fitted().W.shape[1])

    def _rows(self, rows: ArrayLike, name: str = "rows") -> Ids:
        """The rows that a user names, by own ids where there are some; distinct."""
        if self._ids is None:
            return check.ids(rows, name, len(self._fitted().W), unique=True)
        return check.ids(self._ids.rows_of(rows, name), name, len(self._fitted().W), unique=True)

    # -- changes ------------------------------------------------------------------------------

    @one_at_a_time
    def update(self, W: ArrayLike, rows: ArrayLike) -> Self:
        """Hash changed neurons again; transform, norm floor and plan stay those of `fit`.

        Parameters
        ----------
        W : array of shape (n_neurons, n_in), or of shape (n_rows, n_in)
            All weights: the array given to `fit` or another of its shape; a bias that was given as
            float32 is read again for these rows too. Or the new weights of these neurons alone,
            which the index then copies; their biases stay.
        rows : array of n_rows ids
            The changed neurons, distinct.

        Returns
        -------
        LSHIndex
            Itself.

        Raises
        ------
        ValueError
            If the index has no neurons, the shape of W is another, or an id is unknown or given
            twice.
        """
        engine, rows = self._fitted(), self._rows(rows)
        if W is engine.W:
            own_bias, changed = engine.bias, check.dense(W[rows], "W[rows]")
            if self._metric.is_distance:
                own_bias = own_bias.copy()
                own_bias[rows] = self._metric.biases(changed)
            self._changed(engine, engine.W, own_bias, rows)
            return self

        W = check.dense(W, "W", n_columns=engine.W.shape[1])
        if len(W) not in (len(engine.W), len(rows)):
            raise ValueError(f"W must have {len(engine.W)} rows, all weights, or {len(rows)}, "
                             f"those that change, got {len(W)}")
        if len(W) == len(engine.W) and self._metric.name == "ip":
            self._changed(engine, W, engine.bias, rows, None)
            return self

        # W is not ours to change, except after `add` or `update` have copied it
        store = self._store
        if store is None:
            store = engine.W.copy(), engine.bias.copy()
        own, own_bias = store[0][:len(engine.W)], store[1][:len(engine.W)]
        before = own[rows], own_bias[rows]
        new, new_bias = _as_stored(W[rows] if len(W) == len(engine.W) else W, None, self._metric)
        with held():
            try:
                own[rows] = new
                if self._metric.is_distance:
                    own_bias[rows] = new_bias
                self._changed(engine, own, own_bias, rows, store)
            except BaseException:
                own[rows], own_bias[rows] = before
                raise
        return self

    def _changed(self, engine: IndexEngine, W: Floats, bias: Floats, rows: Ids,
                 *store: Any) -> None:
        before = engine.W, engine.bias
        with held():  # weights and what was made of them change together
            try:
                engine.rebind_weights(W, bias)
                engine.refresh(rows, resolve(self.n_threads))
            except BaseException:
                engine.rebind_weights(*before)
                raise
            if store:
                self._store = store[0]

    @one_at_a_time
    def add(self, rows: ArrayLike, bias: ArrayLike | None = None, *,
            ids: ArrayLike | None = None) -> Self:
        """Add new neurons.

        The index copies its weights at the first call, with room for more.

        Parameters
        ----------
        rows : array of shape (n_new, n_in)
            The weights of the new neurons alone. They get the next numbers.
        bias : array of shape (n_new,) or None
            None for zero.
        ids : array of shape (n_new,) or None
            Ids of your own, if the index was given some in `fit`.

        Returns
        -------
        LSHIndex
            Itself.

        Raises
        ------
        ValueError
            If the index has no neurons, an argument does not fit, or `rows` begins with the neurons
            that the index has already.
        """
        engine = self._fitted()
        n = len(engine.W)
        rows = check.dense(rows, "rows", n_columns=engine.W.shape[1])
        rows, bias = _as_stored(rows, bias, self._metric)
        if len(rows) >= n:
            some = np.linspace(0, n - 1, min(n, COMPARED_ROWS)).astype(np.int64)
            if np.array_equal(rows[some], engine.W[some]) and not engine.removed.all():
                raise ValueError(f"rows must be the new neurons alone, but its first {n} rows are "
                                 f"those that the index has already; pass rows[{n}:], and their "
                                 "biases")
        if (ids is None) != (self._ids is None):
            raise ValueError("ids must be given to add if, and only if, they were given to fit")
        own = None
        if ids is not None and self._ids is not None:
            own = self._ids.extended(check.own_ids(ids, len(rows), "rows"))

        store = self._store
        if store is None or len(store[0]) < n + len(rows):
            size = n + len(rows) + max(n // GROWTH, 16)
            store = np.empty((size, rows.shape[1]), np.float32), np.zeros(size, np.float32)
            store[0][:n], store[1][:n] = engine.W, engine.bias
        store[0][n:n + len(rows)], store[1][n:n + len(rows)] = rows, bias
        with held():  # neurons and their ids are added together
            engine.add(store[0][:n + len(rows)], store[1][:n + len(rows)], resolve(self.n_threads))
            self._take(engine, own, store, self._metric)
        return self

    @one_at_a_time
    def remove(self, rows: ArrayLike) -> Self:
        """Remove neurons from the index. Their ids stay reserved; `update` restores one.

        Parameters
        ----------
        rows : array of ids
            Distinct.

        Returns
        -------
        LSHIndex
            Itself.

        Raises
        ------
        ValueError
            If the index has no neurons, or an id is unknown or given twice.
        """
        rows = self._rows(rows)
        with held():
            self._fitted().remove(rows, resolve(self.n_threads))
        return self

    # -- search -------------------------------------------------------------------------------

    @one_at_a_time
    def query(self, X: ArrayLike, n: int = 100, *, policy: str = "top", min_count: int = 1,
              n_probes: int = 1, seed: int = 0) -> csr_array:
        """Active sets: neurons that share buckets with each input.

        Parameters
        ----------
        X : array of shape (n_queries, n_in)
        n : int
            Maximum number of neurons per input.
        policy : {"top", "score", "vanilla"}
            Which of the neurons found are taken (SLIDE, section 3.1). "top": those in most tables.
            "score": those with the largest inner products among four times as many in most tables.
            "vanilla": whole buckets, of tables in random order.
        min_count : int
            Minimum number of tables in which a neuron must share the bucket ("hard
            thresholding"); not for "vanilla".
        n_probes : int
            Buckets per table that are read.
        seed : int
            Seed of the order of the tables, for "vanilla".

        Returns
        -------
        csr_array of shape (n_queries, n_neurons), float32
            For "top" the number of tables in which each neuron was found, for "score" its inner
            product plus bias, for "vanilla" 1.

        Raises
        ------
        ValueError
            If the index has no neurons or no tables, or an argument does not fit.
        """
        engine = self._fitted()
        if not engine.has_tables:
            raise ValueError("query needs tables, but family is None; create the index with "
                             "family=SimHash(...)")
        X = self._inputs(X)
        n = min(check.integer(n, "n"), len(engine.W))
        check.choice(policy, "policy", ("top", "score", "vanilla"))
        min_count = check.integer(min_count, "min_count", maximum=255)
        n_probes = check.integer(n_probes, "n_probes")
        seed = check.integer(seed, "seed", minimum=0)
        ids, values = engine.candidates(X, n, resolve(self.n_threads), policy=policy,
                                        min_count=min_count, n_probes=n_probes, seed=seed)

        found = ids >= 0
        indptr = np.concatenate([[0], np.cumsum(found.sum(axis=1))])
        active = sp.csr_array((values[found].astype(np.float32), ids[found], indptr),
                              shape=(len(X), len(engine.W)))
        active.sort_indices()
        return active

    @one_at_a_time
    def search(self, X: ArrayLike, k: int = 5, *, n_candidates: int | None = None,
               allow: MatrixLike | None = None,
               exclude: MatrixLike | None = None, certify: bool | float = False,
               exact: bool = False) -> tuple[Any, ...]:
        """The best neurons for each query: with the largest inner products, if `metric="ip"`.

        Parameters
        ----------
        X : array of shape (n_queries, n_in)
        k : int
        n_candidates : int or None
            Number of neurons that are computed, at least k: those with the best estimates, without
            a guaranteed recall. The number of all neurons gives an exact search. None for as many
            as the bound, or the plan, requires.
        allow, exclude : array or sparse matrix, or None
            Neurons that may, or may not, be returned: a bool mask of shape (n_neurons,), an array
            of ids, or a SciPy sparse matrix of shape (n_queries, n_neurons) with the neurons of
            each query, whose columns are rows of W. Both apply if both are given.
        certify : bool or float
            Continue until the result of every query is exact with at least this probability; True
            for 0.999. Also return this confidence. Neurons are read in four bits; from the first
            such call on, the index keeps half a byte per weight for this. If there are few weights,
            or k is large, all neurons are computed.
        exact : bool
            Compute every neuron that may be among the best: all that the error of rows in four bits
            does not exclude.

        Returns
        -------
        ids : ndarray of shape (n_queries, k), int32, or as the ids given to `fit`
            Best first; -1, or an empty string, if fewer than k neurons were found.
        scores : ndarray of shape (n_queries, k), float32
            The exact inner products plus bias, or cosines, and -inf for no neuron; or distances,
            and inf for no neuron.
        confidence : ndarray of shape (n_queries,), float64
            Only with `certify`: a lower bound of the probability that no neuron is missing in the
            result. It comes from the standard deviations of the estimates of all neurons that were
            left out. It is 1 if all neurons were computed.

        Raises
        ------
        TypeError, ValueError
            If the index has no neurons, or an argument does not fit.

        Notes
        -----
        Inner products beyond the range of float32, 3e38, are infinite and have no order; those
        below 1e-38 have fewer digits.
        """
        engine = self._fitted()
        given = self._checked_inputs(X)
        X = self._metric.queries(given)
        k = check.integer(k, "k")
        if n_candidates is not None:
            n_candidates = check.integer(n_candidates, "n_candidates", minimum=k)
        rows_of = None if self._ids is None else self._ids.rows_of
        selection = check.selection(allow, exclude, len(X), len(engine.W), rows_of)
        if (certify or exact) and n_candidates is not None:
            raise ValueError("n_candidates must be None with certify or exact, got "
                             f"{n_candidates}; these compute as many neurons as they need")
        if certify and exact:
            raise ValueError("certify must be False with exact=True, whose answers are sure")
        if certify:
            wanted = (CONFIDENCE if certify is True
                      else check.number(certify, "certify", above=0, below=1))
            ids, scores, confidence = engine.certified(X, k, selection, wanted,
                                                       resolve(self.n_threads))
            return *self._answer(given, ids, scores, k), confidence
        if exact:
            # more than k, because float32 scores do not tell the nearest of almost equal distances
            wider = max(k, min(2 * k + 8, len(engine.W))) if self._metric.is_distance else k
            ids, scores = engine.exact_by_bound(X, wider, selection, resolve(self.n_threads))
        elif selection is None:
            ids, scores = engine.search(X, k, n_candidates, resolve(self.n_threads))
        elif n_candidates is not None and n_candidates < len(engine.W):
            raise ValueError("n_candidates must be None with allow or exclude, got "
                             f"{n_candidates}; the bound decides how many neurons are computed")
        else:
            ids, scores = engine.search_among(X, k, selection, resolve(self.n_threads))
        return self._answer(given, ids, scores, k)

    def _answer(self, X: Floats, ids: Ids, scores: Floats, k: int) -> tuple[np.ndarray, Floats]:
        if self._metric.is_distance:
            scores = self._distances(X, ids)
            if (scores[:, 1:] < scores[:, :-1]).any():  # by less than scores in float32 tell
                order = np.argsort(scores, axis=1, kind="stable")
                ids = np.take_along_axis(ids, order, axis=1)
                scores = np.take_along_axis(scores, order, axis=1)
            ids, scores = np.ascontiguousarray(ids[:, :k]), np.ascontiguousarray(scores[:, :k])
        return ids if self._ids is None else self._ids.of_rows(ids), scores

    def _distances(self, X: Floats, ids: Ids) -> Floats:
        """Of queries of the user, (n, n_in), from the rows ids (n, k); inf for -1."""
        n_threads = 1 if len(X) <= 1 else resolve(self.n_threads)
        return self._metric.distances(X, self._fitted().W, ids, n_threads)

    @one_at_a_time
    def score(self, X: ArrayLike, ids: ArrayLike) -> Floats:
        """Exact scores of given neurons.

        Parameters
        ----------
        X : array of shape (n_queries, n_in)
        ids : array of shape (n_ids,) or (n_queries, n_ids)
            The same neurons for all queries, or the neurons of each query; -1, or an empty string,
            for none.

        Returns
        -------
        ndarray of shape (n_queries, n_ids), float32
            As from `search`: inner products plus bias, or cosines, and -inf for none and for
            neurons that were removed; or distances, inf for these.

        Raises
        ------
        ValueError
            If the index has no neurons, or an argument does not fit.
        """
        engine = self._fitted()
        X = self._checked_inputs(X)
        rows_of = None if self._ids is None else self._ids.rows_or_none
        rows = check.neuron_table(ids, "ids", len(X), len(engine.W), rows_of)
        if self._metric.is_distance:
            is_none = (rows < 0) | engine.removed[rows]
            return self._distances(X, np.where(is_none, np.int32(-1), rows))
        return engine.score(self._metric.queries(X), rows, resolve(self.n_threads))

    @one_at_a_time
    def estimate(self, X: ArrayLike, k: int = 0, *, bits: int = 1) -> tuple[Floats, Floats]:
        """Estimates of the scores of all neurons; only the best are computed exactly.

        Parameters
        ----------
        X : array of shape (n_queries, n_in)
        k : int
            Neurons that `search` finds and whose scores are exact; no other estimate is above them.
        bits : {1, 8}
            1 for the sketches, whose errors are about as large as the spread of the scores. 8 for
            rows in int8, which were 20 to 80 times as accurate on the layers that were measured;
            from the first such call on, the index keeps a byte per weight for them.

        Returns
        -------
        scores : ndarray of shape (n_queries, n_neurons), float32
            In the order of the rows of W. Scores that are estimated are unbiased, except for the
            limit that k sets; neurons that were removed have -inf.
        deviations : ndarray of shape (n_queries, n_neurons), float32
            The standard deviations of the estimates, 0 for scores that are exact. A neuron without
            a sketch (:meth:`report` has the number of those with one) is estimated by its bias with
            1 bit; its deviation takes its direction as random.

        Raises
        ------
        ValueError
            If the index has no neurons, its metric is "l2", or an argument does not fit.

        Notes ----- In batches of 32 or more, and if there are few weights, all scores are computed,
        because a matrix product then costs no more than the estimates. The estimate of 1 bit is
        that of RaBitQ [1]_.

        References
        ----------
        .. [1] Gao and Long, "RaBitQ", 2024, theorem 3.2.
        """
        engine = self._fitted()
        self._check_scores("estimate")
        X = self._inputs(X)
        k = check.integer(k, "k", minimum=0)
        return engine.estimate(X, min(k, len(engine.W)), check.estimate_bits(bits),
                               resolve(self.n_threads))

    @one_at_a_time
    def logsumexp(self, X: ArrayLike, *,
                  error: float = 0.01) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The logarithm of the sum of exp(score) over all neurons, and its error.

        ``search(X, k)[1] - logsumexp(X)[0][:, None]`` are log-probabilities of a softmax.

        Parameters
        ----------
        X : array of shape (n_queries, n_in)
        error : float
            Largest allowed error, above 0.

        Returns
        -------
        values : ndarray of shape (n_queries,), float64
        errors : ndarray of shape (n_queries,), float64
            Four standard deviations of the values, at most `error`, and what rounding in float32
            may add.

        Raises
        ------
        ValueError
            If the index has no neurons, its metric is "l2", or an argument does not fit.

        Notes ----- For few queries the sum is estimated from rows in int8; from the first call on,
        the index keeps a byte per weight for them. The neurons with the largest estimates are
        computed. Of the others a sample is computed, drawn in proportion to the estimated
        exponentials (importance sampling). The estimate is unbiased, and the spread of the sample
        gives the error. More neurons are drawn until the error is small enough. In batches of 32 or
        more all scores are computed.
        """
        engine = self._fitted()
        self._check_scores("logsumexp")
        X = self._inputs(X)
        error = check.number(error, "error", above=0)
        return engine.log_sum_exp(X, error, resolve(self.n_threads))

    def _check_scores(self, method: str) -> None:
        if self._metric.is_distance:
            raise ValueError(f"{method} needs scores that are inner products, but metric is 'l2'; "
                             "create the index with metric='ip' or 'cosine'")

    # -- report -------------------------------------------------------------------------------

    @property
    def nbytes(self) -> int:
        """Bytes of tables, sketches and quantized rows; the weights themselves not included."""
        return self._fitted().nbytes

    @one_at_a_time
    def report(self) -> dict[str, Any]:
        """Choices and measurements of `fit` and `tune`.

        Returns
        -------
        dict
            n_neurons, n_in, metric, scaling, sketch_bits, n_sketched (neurons long enough to have a
            sketch), n_candidates (a number that was set, or None), n_computed (neurons that a
            search computes, on average over the queries of the calibration; None without one),
            deviations (how far the bounds of sketches, cells and norms reach), n_probes, family
            (that of the tables, as text), bytes_per_neuron, trials (see `tune`) and plan: for
            "single" queries and a "batch", the method in use and, where measured, the microseconds
            per query of each method.
        """
        engine = self._fitted()
        n, n_in = engine.W.shape
        is_scaled = engine.transform.neuron_map_ is not None
        plan = {kind: {"use": method, "microseconds": dict(engine.times.get(kind, {}))}
                for kind, method in engine.methods.items()}
        return {
            "n_neurons": n, "n_in": n_in, "metric": self.metric,
            "scaling": engine.transform.scaling if is_scaled else 0.0,
            "sketch_bits": engine.sketches.n_bits, "n_sketched": engine.sketches.n_live,
            "n_candidates": self.n_candidates, "n_computed": engine.n_computed or None,
            "deviations": engine.sketches.bounds.plain() if engine.has_sketches else {},
            "n_probes": engine.n_probes,
            "family": repr(engine.family), "bytes_per_neuron": engine.nbytes / n,
            "trials": [dict(trial) for trial in engine.trials], "plan": plan,
        }

    def __repr__(self) -> str:
        fitted = ""
        if self._engine is not None:
            n, n_in = self._engine.W.shape
            use = ", ".join(f"{kind}: {method}" for kind, method in self._engine.methods.items())
            fitted = f", {n} neurons x {n_in}, n_candidates={self.n_candidates}, {use}"
        return (f"LSHIndex({self.family!r}, center={self.center}, scaling={self.scaling!r}, "
                f"sketch_bits={self.sketch_bits}{fitted})")

    def _repr_html_(self) -> str:
        if self._engine is None:
            return table("LSHIndex, not fitted",
                         [("family", repr(self.family)), ("recall", self.recall)])

        report = self.report()
        rows = [
            ("neurons", f"{report['n_neurons']:,} x {report['n_in']}"),
            ("family", repr(self.family)),
            ("sketches", f"{report['n_sketched']:,} of {report['sketch_bits']} bits"),
            ("scaling", f"{report['scaling']:g}"),
            ("candidates", self._candidates_in_words(report)),
            ("memory", f"{size(self.nbytes)}, {report['bytes_per_neuron']:.0f} bytes per neuron"),
        ]
        for kind, plan in report["plan"].items():
            times = ", ".join(f"{name} {time:.0f} µs"
                              for name, time in plan["microseconds"].items())
            rows.append((f"plan, {kind}", plan["use"] + (f" ({times})" if times else "")))
        return table("LSHIndex", rows)

    @staticmethod
    def _candidates_in_words(report: dict[str, Any]) -> str:
        if report["n_candidates"]:
            return str(report["n_candidates"])
        computed = report["n_computed"]
        return "by the bound" + (f", {computed:.0f} on average" if computed else "")

    @one_at_a_time
    def plot_recall(self, queries: Floats | None = None, *, k: int = 5, ax: Any = None) -> Any:
        """Plot the recall by the number of candidates; needs matplotlib.

        Parameters
        ----------
        queries : array of shape (n_queries, n_in) or None
            Queries, up to 1,024, on which the scan of sketches is measured; None for the trials of
            `fit` or `tune`.
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
            If queries were given neither here nor to `fit`, or the index has no sketches.
        ImportError
            If matplotlib is missing.
        """
        engine = self._fitted()
        if queries is None:
            if not engine.trials:
                raise ValueError("there are no trials to plot; give queries here, "
                                 "or to fit or tune")
            return plot_recall(engine.trials, self.recall, ax)

        if not engine.has_sketches:
            raise ValueError("plot_recall with queries needs sketches, but sketch_bits is 0")
        queries = self._sampled(queries)
        n = len(engine.W)
        k, n_threads = min(check.integer(k, "k"), n), resolve(self.n_threads)
        truth, _ = engine.exact(queries, k, n_threads)
        trials = tuning.scan_curve(engine, queries, truth, 1.0, k, n, n_threads)
        return plot_recall([{"method": "sketches"} | trial for trial in trials], self.recall, ax)

    # -- files --------------------------------------------------------------------------------

    @one_at_a_time
    def save(self, path: PathLike) -> None:
        """Write the index, without the weights, as one safetensors file, whole or not at all.

        Parameters
        ----------
        path : str or path-like

        Raises
        ------
        ImportError
            If the package safetensors is missing.
        TypeError
            If the family is not one of this package, because `load` could not restore it.
        ValueError
            If the index has no neurons.
        OSError
            If the file cannot be written.
        """
        file.write(path, self._fitted(), self._ids, self._metric)

    @classmethod
    def load(cls, path: PathLike, W: ArrayLike, bias: ArrayLike | None = None, *,
             n_threads: int | None = None) -> Self:
        """Read an index that :meth:`save` wrote.

        Parameters
        ----------
        path : str or path-like
        W, bias
            The weights that it was saved over, as for `fit`; after `add`, with the rows added.
        n_threads : int or None

        Returns
        -------
        LSHIndex

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ValueError
            If the file is damaged or holds no index, or it was saved over other weights.
        ImportError
            If the package safetensors is missing.
        """
        n_threads = check.threads(n_threads)
        W = _checked_weights(W)
        if bias is not None:
            bias = check.vector(bias, "bias", len(W))
        tensors, config = file.read(path)
        try:
            metric = Metric.restored(config["arguments"].get("metric", "ip"),
                                     config.get("exponent", 0), tensors.get("origin"), W.shape[1])
            W, own_bias = _as_stored(W, bias, metric)
            engine = file.engine_of_state(W, own_bias, tensors, config, resolve(n_threads))
            ids = file.own_ids(tensors, config, len(W))
        except file.DAMAGES as error:
            raise ValueError(f"{path}: this index cannot be used ({error}); "
                             "fit and save it again") from error

        index = cls(engine.options.family, n_threads=n_threads, **engine.options.plain())
        index._take(engine, ids, None, metric)
        return index


def _checked_weights(W: ArrayLike) -> Floats:
    W = check.dense(W, "W")
    if min(W.shape) == 0:
        raise ValueError(f"W must have at least one row and one column, got shape {W.shape}")
    return W


def _as_stored(W: Floats, bias: ArrayLike | None, metric: Metric) -> tuple[Floats, Floats]:
    """Rows and biases whose inner products rank as the metric does."""
    if bias is not None and metric.name != "ip":
        raise ValueError(f"bias must be None with metric={metric.name!r}, which has no use for one")
    W = metric.rows(W)
    return W, metric.biases(W) if bias is None else check.vector(bias, "bias", len(W))
