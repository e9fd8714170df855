"""LSHIndex: the public class; it checks its arguments and passes them to an IndexEngine."""
from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np

from .. import _validation as check
from .._arrays.scipy import sp
from .._display import plot_recall, size, table
from .._threads import Lock, one_at_a_time, resolve
from . import _file as file
from . import _tuning as tuning
from ._build import build, drawn_seed
from ._options import IndexOptions

if TYPE_CHECKING:
    from numpy.typing import ArrayLike
    from scipy.sparse import csr_array

    from .._arrays.types import Floats, HashFamily, Ids, PathLike, RandomState
    from ._engine import IndexEngine


class LSHIndex:
    """An index of neurons for maximum inner product search.

    Neurons are centred and scaled (`sparselsh.index.transforms`). Hash tables give active sets for
    training (:meth:`query`). For :meth:`search`, each neuron whose norm is large enough to matter
    has a sketch: the signs of a rotation of its vector, one bit per dimension of the rotation. The
    sketches rank the neurons, and the inner products of the best `n_candidates` are computed.

    Parameters
    ----------
    family : hash family, "auto" or None
        The family of the tables, such as ``SimHash()``; None for no tables, where only `search` is
        needed. "auto" is SimHash whose bits K and tables L come from
        :func:`choose_bits_and_tables`, at the similarity of the queries of `fit` and their
        neighbours; `tune` then tries others around them.
    center : bool
        Subtract the mean neuron before hashing.
    scaling : float or "auto"
        Exponent p of the query-aware scaling, in [0, 1], which needs queries in `fit`. "auto" takes
        0 or 0.5, whichever finds more on them, and 0 for an index with tables.
    sketch_bits : int or None
        Bits per sketch, a multiple of 64 and at most 1024; 0 for no sketches. None for the multiple
        at or above 3/4 of the dimension, at least 128. Longer sketches need fewer candidates:
        None takes up to 512 bits, as long as the sketches of the neurons that reach the norm floor
        take, per neuron of all, at most 40 bytes or a sixteenth of its weights.
    recall : float
        Fraction of the true neighbours that `search` is to find, above 0 and below 1. With queries,
        `fit` sets `n_candidates` and the norm floor by it.
    plan : {"auto", "sketches", "probes", "exact"}
        How `search` works: "sketches" scans the sketches of all neurons; "probes" probes buckets of
        the tables and ranks the neurons in them by their sketches; "exact" computes every inner
        product. "auto" measures once, in `fit`, for single queries and for batches, and takes the
        fastest that reaches the recall: the choice may then differ from run to run.
    storage : {"float32", "bfloat16", "int8"}
        How `search` reads the rows of its candidates. With fewer bits it reads a copy of 2 or 1
        bytes per weight, and the weights themselves only for the best 4 k + 12: scores stay exact,
        and weights that are mapped from a file (``np.memmap``) take almost no memory.
    dynamic : bool
        Leave room in the buckets, so that `update` moves a neuron without sorting the tables again.
    random_state : None, int or numpy.random.Generator
    n_threads : int or None
        None for the threads of :func:`sparselsh.set_num_threads`.

    Attributes
    ----------
    n_candidates : int or None
        Neurons whose inner product a search computes, as `tune` set it; None before: then
        max(128, 20 k, n_neurons / 100), and at most 1024 unless 20 k is larger.
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

    The weights are kept by reference and read by every search. Memory beyond them: 4 bytes per
    neuron, and 12 + `sketch_bits` / 8 bytes per neuron whose norm reaches the floor; per table, 8
    bytes per neuron and 12 per bucket, or about 10 and 22 if `dynamic`. A search of the tables
    needs 9 more bytes per neuron and thread.

    Neurons whose norm stays below the floor have no sketch: only the plan "exact" finds them,
    whatever the query. An input unlike the `queries` of `fit` may therefore miss its best neuron.

    References
    ----------
    Neyshabur and Srebro, arXiv 1410.5518; Chen et al., SLIDE, arXiv 1903.03129; Gao and Long,
    RaBitQ, 2024 (the estimator); Yan et al., "Norm-ranging LSH for maximum inner product search",
    2018 (the use of the norms).
    """

    def __init__(self, family: HashFamily | Literal["auto"] | None = None, *, center: bool = True,
                 scaling: float | Literal["auto"] = "auto", sketch_bits: int | None = None,
                 recall: float = 0.98, plan: str = "auto", storage: str = "float32",
                 dynamic: bool = False, random_state: RandomState = None,
                 n_threads: int | None = None) -> None:
        options = IndexOptions.checked(
            family, center=center, scaling=scaling, sketch_bits=sketch_bits, recall=recall,
            plan=plan, storage=storage, dynamic=dynamic)

        self.family = options.family
        self.center = options.center
        self.scaling = options.scaling
        self.sketch_bits = options.sketch_bits
        self.recall = options.recall
        self.plan = options.plan
        self.storage = options.storage
        self.dynamic = options.dynamic

        self.random_state = random_state
        self.n_threads = check.threads(n_threads)
        self._engine: IndexEngine | None = None
        self._lock = Lock()

    def _options(self) -> IndexOptions:
        return IndexOptions(self.family, self.center, self.scaling, self.sketch_bits, self.recall,
                            self.plan, self.storage, self.dynamic)

    def _fitted(self) -> IndexEngine:
        if self._engine is None:
            raise ValueError("this LSHIndex has no neurons yet; call fit(W) first")
        return self._engine

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
    def fit(self, W: ArrayLike, bias: ArrayLike | None = None,
            queries: ArrayLike | None = None) -> Self:
        """Index the rows of W.

        Parameters
        ----------
        W : array of shape (n_neurons, n_in)
            Kept by reference where it is C-contiguous float32, else as a copy.
        bias : array of shape (n_neurons,) or None
        queries : array of shape (n_queries, n_in) or None
            Some hundreds of typical inputs, from which the scaling, the norm floor, `n_candidates`
            and the plan are chosen.

        Returns
        -------
        LSHIndex
            Itself.

        Raises
        ------
        TypeError, ValueError
            If an argument does not fit; the message names it.
        """
        W, bias = _checked_weights(W, bias)
        if queries is not None:
            queries = check.dense(queries, "queries", n_columns=W.shape[1])
            queries = queries if len(queries) else None
        spare = None if self._engine is None else self._engine.tables
        self._engine = None  # an interrupted build leaves an index without neurons, not a wrong one
        self._engine = build(self._options(), W, bias, queries, drawn_seed(self.random_state),
                             resolve(self.n_threads), spare)
        return self

    @one_at_a_time
    def tune(self, queries: ArrayLike, k: int = 5,
             recall: float | None = None) -> list[dict[str, Any]]:
        """Set candidates and cells to the cheapest that reach a recall, and choose the plan.

        Parameters
        ----------
        queries : array of shape (n_queries, n_in)
            256 of them are used, evenly spaced.
        k : int
        recall : float or None
            Fraction of the k true neighbours to find; None for the index's own.

        Returns
        -------
        list of dict
            The trials: method, n_candidates, recall and microseconds (per query, all of them in one
            batch); for the method "sketches" also n_cells, the cells scanned, and for "probes"
            n_probes and, where the family is "auto", bits and tables. The trial that was chosen is
            the last of its method.

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
        engine.options = self._options()
        tuning.tune(engine, queries, k, recall, resolve(self.n_threads))
        return [dict(trial) for trial in engine.trials]

    def _sampled(self, queries: ArrayLike) -> Floats:
        """Checked queries, at most as many as tuning uses."""
        queries = check.dense(queries, "queries", n_columns=self._fitted().W.shape[1])
        if not len(queries):
            raise ValueError("queries must have at least one row, got none")
        return tuning.sample(queries)

    # -- changes ------------------------------------------------------------------------------

    @one_at_a_time
    def update(self, W: ArrayLike, rows: ArrayLike) -> None:
        """Hash changed rows of W again. Transform, norm floor and plan stay those of `fit`.

        Parameters
        ----------
        W : array of shape (n_neurons, n_in)
            All weights: the array given to `fit` or another of its shape. A bias that was given as
            float32 is read again for these rows too.
        rows : array of int
            The ids of the changed neurons, distinct.

        Raises
        ------
        ValueError
            If the index has no neurons, the shape of W is another, or an id is out of range or
            given twice.
        """
        engine = self._fitted()
        rows = check.ids(rows, "rows", len(engine.W), unique=True)
        if W is engine.W:
            check.dense(W[rows], "W[rows]")
        else:
            engine.W = check.dense(W, "W", n_columns=engine.W.shape[1], n_rows=len(engine.W))
        engine.removed[rows] = False
        engine.refresh(rows, resolve(self.n_threads))

    @one_at_a_time
    def add(self, W: ArrayLike, bias: ArrayLike | None = None) -> None:
        """Add new neurons at the end of W.

        Parameters
        ----------
        W : array of shape (n_neurons + n_new, n_in)
            All weights; the first n_neurons rows are the same as before.
        bias : array of shape (n_neurons + n_new,) or None
            None for zero for the new ones.

        Raises
        ------
        ValueError
            If the index has no neurons, or W has fewer rows than before.
        """
        engine = self._fitted()
        n = len(engine.W)
        W = check.dense(W, "W", n_columns=engine.W.shape[1])
        if len(W) < n:
            raise ValueError(f"W must have at least the {n} rows of before, got {len(W)}; "
                             "use remove to drop neurons")
        if bias is None:
            bias = np.concatenate([engine.bias, np.zeros(len(W) - n, np.float32)])
        engine.add(W, check.vector(bias, "bias", len(W)), resolve(self.n_threads))

    @one_at_a_time
    def remove(self, rows: ArrayLike) -> None:
        """Remove neurons from the index. Their ids stay reserved; `update` restores one.

        Parameters
        ----------
        rows : array of int
            Distinct ids.

        Raises
        ------
        ValueError
            If the index has no neurons, or an id is out of range or given twice.
        """
        engine = self._fitted()
        engine.remove(check.ids(rows, "rows", len(engine.W), unique=True), resolve(self.n_threads))

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
        X = check.dense(X, "X", n_columns=engine.W.shape[1])
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
    def search(self, X: ArrayLike, k: int = 5, *,
               n_candidates: int | None = None) -> tuple[Ids, Floats]:
        """The neurons with the largest inner products.

        Parameters
        ----------
        X : array of shape (n_queries, n_in)
        k : int
        n_candidates : int or None
            Neurons whose inner product is computed, at least k; None for the index's own number
            and plan.

        Returns
        -------
        ids : ndarray of shape (n_queries, k), int32
            Best first; -1 where fewer than k neurons were found.
        scores : ndarray of shape (n_queries, k), float32
            The exact inner products plus bias, -inf where there is none.

        Raises
        ------
        ValueError
            If the index has no neurons, or an argument does not fit.
        """
        engine = self._fitted()
        X = check.dense(X, "X", n_columns=engine.W.shape[1])
        k = check.integer(k, "k")
        if n_candidates is not None:
            n_candidates = check.integer(n_candidates, "n_candidates", minimum=k)
        return engine.search(X, k, n_candidates, resolve(self.n_threads))

    # -- report -------------------------------------------------------------------------------

    @property
    def nbytes(self) -> int:
        """Bytes of tables, sketches and quantized rows; the weights themselves not included."""
        return self._fitted().nbytes

    @one_at_a_time
    def report(self) -> dict[str, Any]:
        """What `fit` and `tune` chose and measured.

        Returns
        -------
        dict
            n_neurons, n_in, scaling, sketch_bits, n_sketched (neurons long enough to be found by
            `search`), n_candidates, n_probes, family (that of the tables, as text),
            bytes_per_neuron, trials (see `tune`) and plan: for "single" queries and a "batch", the
            method in use and, where measured, the microseconds per query of each method.
        """
        engine = self._fitted()
        n, n_in = engine.W.shape
        is_scaled = engine.transform.neuron_map_ is not None
        plan = {kind: {"use": method, "microseconds": dict(engine.times.get(kind, {}))}
                for kind, method in engine.methods.items()}
        return {
            "n_neurons": n, "n_in": n_in,
            "scaling": engine.transform.scaling if is_scaled else 0.0,
            "sketch_bits": engine.sketches.n_bits, "n_sketched": engine.sketches.n_live,
            "n_candidates": self.n_candidates, "n_probes": engine.n_probes,
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
            ("candidates", f"{report['n_candidates'] or 'by k'}"),
            ("memory", f"{size(self.nbytes)}, {report['bytes_per_neuron']:.0f} bytes per neuron"),
        ]
        for kind, plan in report["plan"].items():
            times = ", ".join(f"{name} {time:.0f} µs"
                              for name, time in plan["microseconds"].items())
            rows.append((f"plan, {kind}", plan["use"] + (f" ({times})" if times else "")))
        return table("LSHIndex", rows)

    @one_at_a_time
    def plot_recall(self, queries: Floats | None = None, *, k: int = 5, ax: Any = None) -> Any:
        """Plot the recall by the number of candidates; needs matplotlib.

        Parameters
        ----------
        queries : array of shape (n_queries, n_in) or None
            Queries, 256 at most, on which the scan of sketches is measured; None for the trials of
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
        file.write(path, self._fitted())

    @classmethod
    def load(cls, path: PathLike, W: ArrayLike, bias: ArrayLike | None = None, *,
             n_threads: int | None = None) -> Self:
        """Read an index that :meth:`save` wrote.

        Parameters
        ----------
        path : str or path-like
        W, bias
            The weights that it was saved over, as for `fit`.
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
        W, bias = _checked_weights(W, bias)
        n_threads = check.threads(n_threads)
        tensors, config = file.read(path)
        try:
            engine = file.engine_of_state(W, bias, tensors, config, resolve(n_threads))
        except file.DAMAGES as error:
            raise ValueError(f"{path}: this index cannot be used ({error}); "
                             "fit and save it again") from error

        index = cls(engine.options.family, n_threads=n_threads, **engine.options.plain())
        index._engine = engine
        return index


def _checked_weights(W: ArrayLike, bias: ArrayLike | None) -> tuple[Floats, Floats]:
    W = check.dense(W, "W")
    if min(W.shape) == 0:
        raise ValueError(f"W must have at least one row and one column, got shape {W.shape}")
    if bias is None:
        return W, np.zeros(len(W), np.float32)
    return W, check.vector(bias, "bias", len(W))
