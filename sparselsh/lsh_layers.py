"""LSHLinear: the layer that computes only the neurons that hashing finds."""
from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np

from . import _validation as check
from ._core import _gemm, _products, _select, _updates
from ._csr import CSR
from ._gradients import ActiveGradient, Groups, ProductGradient, RowGradient
from ._linalg import NO_BIAS
from ._table_choice import default_family
from .hashing import FAMILIES, CrossPolytope, MinHash, SimHash
from .index import LSHIndex
from .layers import BatchActive, Linear

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from ._gradients import Pair
    from ._types import Floats, HashFamily, Ids
    from .layers import Backprop, Step

__all__ = ["LSHLinear"]

NO_LABELS = np.zeros(0, np.int32)
N_INPUTS = 1024  # inputs kept of the last steps: a sample to set up the search with
FEW_NEURONS = 4096  # below, computing all of them is as fast as a search


class LSHLinear(Linear):
    """A linear layer that computes only the neurons that hashing finds for the input.

    While training, the active set holds the labels of the batch (in an output layer), the neurons that share most
    buckets with its inputs, and neurons at random up to `density`. Forward, backward and the update touch these
    only. With ``density=1`` it is :class:`Linear`.

    Parameters
    ----------
    n_in, n_out : int
    density : float or "auto"
        Share of the neurons that are active, in (0, 1]; labels are active in any case. "auto" takes about 4,096
        neurons for a set shared by the batch, and 1 % but at least 64 for one a sample.
    active : None, "batch" or "sample"
        One set for the batch, whose products then run at the speed of dense ones, or one a sample. None for
        "batch" in the output layer and "sample" in hidden layers.
    activation : None or "relu"
        With "relu", zeros are not stored in the output of a set a sample.
    family : hash family or None
        The tables that find neurons in training, such as ``SimHash()`` or SLIDE's ``DWTA()``; None for twelve tables
        of SimHash with buckets of about forty.
    candidates : int
        Neurons that the tables give for each sample of a batch that shares its set.
    policy : {"top", "score", "vanilla"}
        Which of the neurons that the tables find are taken: see :meth:`LSHIndex.query`.
    min_count, n_probes : int
        Tables in which a neuron must share the bucket, at least; buckets of each table that are looked into.
    fill : bool
        Fill the set up with neurons at random.
    first_rebuild, rebuild_growth : int, float
        The tables are built anew, with a new mean neuron, after first_rebuild steps and then at intervals that
        grow by rebuild_growth (SLIDE, section 4.2). Between, touched neurons are re-hashed at once.
    recall : float
        Share of the five best outputs that `topk` is to find.
    init_scale, dtype
        As in Linear.

    References
    ----------
    Chen et al., "SLIDE: in defense of smart algorithms over hardware acceleration for large-scale deep learning
    systems", arXiv 1903.03129.
    """

    _tables: LSHIndex
    _searcher: LSHIndex
    _changed: np.ndarray
    _interval: float

    def __init__(self, n_in: int, n_out: int, *, density: float | Literal["auto"] = "auto", active: str | None = None,
                 activation: str | None = None, family: HashFamily | None = None, candidates: int = 5,
                 policy: str = "top", min_count: int = 1, n_probes: int = 1, fill: bool = True, first_rebuild: int = 32,
                 rebuild_growth: float = 1.5, recall: float = 0.995, init_scale: float | None = None,
                 dtype: str = "float32") -> None:
        super().__init__(n_in, n_out, activation=activation, init_scale=init_scale, dtype=dtype)
        if density != "auto":
            density = check.number(density, "density", above=0, maximum=1)
        self.density = density
        self.active = None if active is None else check.choice(active, "active", ("batch", "sample"))
        self.candidates = check.integer(candidates, "candidates", minimum=0)
        self.policy = check.choice(policy, "policy", ("top", "score", "vanilla"))
        self.min_count = check.integer(min_count, "min_count", maximum=255)
        self.fill = bool(fill)
        if family is not None and not isinstance(family, tuple(FAMILIES.values())):
            raise TypeError(f"family must be a hash family such as SimHash() or None, got {family!r}")
        self.family = family
        n_buckets = (family if family is not None else default_family(self.n_out)).n_buckets
        self.n_probes = check.integer(n_probes, "n_probes", maximum=1 if isinstance(family, MinHash) else n_buckets)
        self.first_rebuild = check.integer(first_rebuild, "first_rebuild")
        self.rebuild_growth = check.number(rebuild_growth, "rebuild_growth", minimum=1)
        self.recall = check.number(recall, "recall", above=0, below=1)
        self._tables = None  # the index for training: hash tables
        self._searcher = None  # the index for topk: sketches
        self._changed = None  # rows updated since the searcher was built
        self._inputs = np.empty((0, self.n_in), np.float32)
        self._step_number = 0
        self._next_rebuild = 0
        self._interval = first_rebuild
        self._seed = 0

    @classmethod
    def from_dense(cls, W: ArrayLike, bias: ArrayLike | None = None, *, queries: Floats | None = None,
                   **options: Any) -> Self:
        """A layer with trained weights.

        Parameters
        ----------
        W : array of shape (n_out, n_in)
        bias : array of shape (n_out,) or None
        queries : array of shape (n_queries, n_in) or None
            Inputs like those that will be asked, some hundreds: the search of `topk` is calibrated on 1,024 of them for
            the layer's `recall`. Without, it computes max(20 k, n_out / 100 but 128 to 1,024) neurons.
        **options
            As for the class: `recall`, `activation` and others.

        Returns
        -------
        LSHLinear
        """
        W = check.dense(W, "W")
        layer = cls(W.shape[1], W.shape[0], **options).set_weights(W, bias)
        if queries is not None:
            queries = check.dense(queries, "queries", n_columns=layer.n_in)
            layer._inputs = np.array(queries[::max(1, -(-len(queries) // N_INPUTS))])
        return layer

    def initialize(self, rng: np.random.Generator, sparse_input: bool = False) -> None:
        super().initialize(rng, sparse_input=False)
        self._seed = int(rng.integers(2**31))

    def set_weights(self, weight: ArrayLike, bias: ArrayLike | None = None) -> Self:
        self.settle()
        return super().set_weights(weight, bias)

    @property
    def n_active(self) -> int:
        """Neurons that an active set is filled up to."""
        if self.density == "auto":
            return min(self.n_out, 4096 if self.active != "sample" else max(64, self.n_out // 100))
        return min(self.n_out, max(1, round(self.density * self.n_out)))

    @property
    def is_dense(self) -> bool:
        """Whether every neuron is computed."""
        return self.n_active == self.n_out

    # -- the two indexes --------------------------------------------------------------------------------------

    def prepare(self, step_number: int) -> None:
        self._step_number = step_number
        if self.is_dense or (not self.candidates and self.active == "batch"):
            return
        if step_number >= self._next_rebuild:
            self._build_tables()
            self._next_rebuild = step_number + round(self._interval)
            self._interval *= self.rebuild_growth

    def _build_tables(self) -> None:
        if self._tables is None:
            self._tables = self._new_tables()
        self._tables.rebuild(self._w.value, self.bias)

    def _new_tables(self) -> Any:
        family = self.family if self.family is not None else default_family(self.n_out)
        by_angle = isinstance(family, SimHash | CrossPolytope)  # the others compare entries: nothing to centre
        return LSHIndex(family, center=by_angle, scaling=0, sketch_bits=0, dynamic=True, random_state=self._seed)

    def _new_searcher(self, n_threads: int) -> LSHIndex:
        return LSHIndex(None, recall=self.recall, random_state=self._seed, plan="sketches", n_threads=n_threads)

    def updated(self, pairs: list[Pair]) -> None:
        for parameter, gradient in pairs:
            if parameter is self._w:
                rows = gradient.rows if gradient.rows is not None else np.arange(self.n_out, dtype=np.int32)
                if self._tables is not None:
                    self._tables.refresh(rows)
                if self._searcher is not None:
                    self._changed[rows] = True

    def _ready_searcher(self, n_threads: int) -> LSHIndex:
        n_changed = np.count_nonzero(self._changed) if self._searcher is not None else self.n_out
        if n_changed > self.n_out // 4:
            queries = self._inputs if len(self._inputs) else None
            self._searcher = self._new_searcher(n_threads)
            self._searcher.rebuild(self._w.value, self.bias, queries)
            self._changed = np.zeros(self.n_out, bool)
        elif n_changed:
            self._searcher.n_threads = n_threads
            self._searcher.refresh(np.flatnonzero(self._changed).astype(np.int32))
            self._changed[:] = False
        self._searcher.n_threads = n_threads
        return self._searcher

    def _observe(self, x: Floats | CSR, step: Step) -> None:
        """Keep some inputs of the last steps."""
        if step.training and self._step_number % 8 == 0:
            new = x[:64] if not isinstance(x, CSR) else x.slice(0, min(64, x.shape[0])).to_dense()
            self._inputs = np.concatenate([self._inputs[-(N_INPUTS - len(new)):], new])

    # -- forward ----------------------------------------------------------------------------------------------

    def forward(self, x: Floats | CSR, step: Step) -> tuple[Any, Backprop]:
        """The outputs of the active neurons."""
        if self.is_dense:
            return super().forward(x, step)
        self._observe(x, step)
        if isinstance(x, CSR) or self.active == "sample":
            return self._forward_sample(x, step)
        return self._forward_batch(x, step)

    def _forward_sparse(self, x: CSR, step: Step) -> tuple[Any, Backprop]:
        """Every neuron, of sparse input. Weights stay neuron-major: index, active sets and updates read them so."""
        return super()._forward_sparse(x, step) if self.is_dense else self._forward_dense(x.to_dense(), step)

    def _forward_batch(self, x: Floats, step: Step) -> tuple[Any, Backprop]:
        ids = self._batch_set(x, step)
        w, n_threads = self._w.value, step.n_threads
        out = self._buffer("out", (len(x), len(ids)))
        _gemm.active_outputs(x, w, ids, self.bias[ids], out, n_threads)
        positive = None
        if self.activation == "relu":
            np.maximum(out, 0, out=out)
            positive = out > 0  # a loss writes its gradient over the outputs

        def backprop(d_out: Floats) -> tuple[Floats | None, list[Pair]]:
            if positive is not None:
                d_out *= positive
            dx = None
            if step.need_input_gradient:
                dx = np.empty_like(x)
                _gemm.active_input_gradient(d_out, w, ids, dx, n_threads)
            return dx, [(self._w, ActiveGradient(ids, d_out, x)),
                        (self._b, RowGradient(ids, d_out.sum(axis=0)[:, None]))]

        return BatchActive(ids, out, self.n_out), backprop

    def _batch_set(self, x: Floats, step: Step) -> Ids:
        labels = step.labels.indices if step.labels is not None else NO_LABELS
        found = NO_LABELS
        if self.candidates:
            found = self._found(x, self.candidates, step)
            found = np.ascontiguousarray(found.T).ravel()  # every sample's best before any sample's second best
        ids, spare = np.empty((2, min(max(self.n_active, len(labels)), self.n_out)), np.int32)
        n = _select.batch_union(labels, found, self.n_active, self.fill, step.seed, self._slots(1)[0], spare, ids)
        return ids[:n]

    def _found(self, x: Floats, n: int, step: Step) -> Ids:
        """Ids of n neurons that the tables find for each input, by the policy, -1 for none."""
        if self._tables is None:
            self._build_tables()
        self._tables.n_threads = step.n_threads
        return self._tables.candidates(x, min(n, self.n_out), self.min_count, policy=self.policy,
                                       n_probes=self.n_probes, seed=step.seed)[0]

    def _slots(self, n_threads: int) -> Ids:
        if self._slot is None or self._slot.ndim != 2 or len(self._slot) < n_threads:
            self._slot = np.full((n_threads, self.n_out), -1, np.int32)
        return self._slot[:n_threads]

    def _group_active(self, s: CSR) -> Groups:
        rows = np.empty(min(s.nnz, self.n_out), np.int32)
        starts = np.empty(len(rows) + 1, np.int64)
        entries, samples = np.empty((2, s.nnz), np.int32)
        n_rows = _products.group_columns(s.indptr, s.indices, self._slots(1)[0], rows, starts, entries, samples)
        return Groups(rows[:n_rows], starts[:n_rows + 1], entries, samples)

    def _forward_sample(self, x: Floats | CSR, step: Step) -> tuple[Any, Backprop]:
        active = self._sample_sets(x, step)
        groups = self._group_active(active)
        if isinstance(x, CSR):
            _products.sampled_dots_csr(*groups, x.indptr, x.indices, x.data, self._w.value, self.bias, active.data,
                                       step.n_threads)
        else:
            _products.sampled_dots(*groups, x, self._w.value, self.bias, active.data, step.n_threads)
        positive = None
        if self.activation == "relu" and step.labels is not None:
            np.maximum(active.data, 0, out=active.data)  # a loss needs the labels, be they zero
            positive = active.data > 0
        elif self.activation == "relu":
            active = _positive(active)
            groups = None

        def backprop(d_out: Floats) -> tuple[Floats | None, list[Pair]]:
            if positive is not None:
                d_out *= positive
            s = active._replace(data=d_out)
            g = groups if groups is not None else self._group_active(active)
            db = np.empty((len(g.rows), 1), np.float32)
            _updates.sum_groups(g.starts, g.entries, d_out, db[:, 0])
            pairs: list[Pair] = [(self._w, ProductGradient(g, d_out, x)), (self._b, RowGradient(g.rows, db))]
            return (self._input_gradient(s, x, step) if step.need_input_gradient else None), pairs

        return active, backprop

    def _input_gradient(self, s: CSR, x: Floats | CSR, step: Step) -> Floats:
        if isinstance(x, CSR):
            dx = np.empty(x.nnz, np.float32)
            _products.sampled_columns(s.indptr, s.indices, s.data, self._w.value, x.indptr, x.indices, dx,
                                      step.n_threads)
        else:
            dx = np.empty_like(x)
            _products.weighted_rows(s.indptr, s.indices, s.data, self._w.value, NO_BIAS, dx, step.n_threads)
        return dx

    def _sample_sets(self, x: Floats | CSR, step: Step) -> CSR:
        dense = x.to_dense() if isinstance(x, CSR) else x
        n = len(dense)
        found = self._found(dense, self.n_active, step)
        labels = step.labels
        if labels is None:
            labels = CSR(np.zeros(n + 1, np.int64), np.zeros(0, np.int32), np.zeros(0, np.float32), self.n_out)
        width = min(self.n_out, max(self.n_active, int(np.diff(labels.indptr).max(initial=0))))
        out = np.empty((n, width), np.int32)
        sizes = np.empty(n, np.int32)
        _select.sample_union(labels.indptr, labels.indices, found, self.n_active, self.fill and step.training,
                             step.seed, self._slots(step.n_threads), np.empty((step.n_threads, width), np.int32),
                             out, sizes, step.n_threads)
        indptr = np.zeros(n + 1, np.int64)
        np.cumsum(sizes, out=indptr[1:])
        indices = np.empty(indptr[-1], np.int32)
        _select.compact(out, indptr, indices)
        return CSR(indptr, indices, np.empty(len(indices), np.float32), self.n_out)

    # -- inference --------------------------------------------------------------------------------------------

    def topk(self, x: Floats | CSR, k: int, *, exact: bool = False, n_threads: int = 1) -> tuple[Ids, Floats]:
        """Ids and scores of the k largest outputs; `exact` computes every neuron."""
        if exact or self._computes_all(k, n_threads):
            return super().topk(x, k, n_threads=n_threads)
        return self._searcher.best(x.to_dense() if isinstance(x, CSR) else x, k)

    def _computes_all(self, k: int, n_threads: int) -> bool:
        # A rule, not a measurement, so that a network gives the same answers whenever it is asked.
        if self.is_dense or self.n_out < FEW_NEURONS:
            return True
        return self._ready_searcher(n_threads).default_candidates(k) > self.n_out // 8

    def share_computed(self, k: int, *, exact: bool = False) -> float:
        if exact or self._computes_all(k, 1):
            return 1.0
        return self._searcher.default_candidates(k) / self.n_out

    def settle(self) -> None:
        self._tables = self._searcher = None

    def __setstate__(self, state: np.ndarray) -> None:
        self.__dict__.update(state)
        for index in (self._tables, self._searcher):
            if index is not None:  # it reads the weights, and copying has made a view into an array of its own
                index.share(self._w.value, self.bias)

    def index_state(self) -> Any:
        arrays: dict[str, np.ndarray] = {}
        plain: dict[str, Any] = {"step_number": self._step_number, "next_rebuild": self._next_rebuild,
                             "interval": self._interval}
        for name, index in (("tables", self._tables), ("searcher", self._searcher)):
            if index is not None:
                tensors, plain[name] = index.state(exactly=True)
                arrays |= {f"{name}.{key}": a for key, a in tensors.items()}
        if self._searcher is not None:
            arrays["changed"] = self._changed.astype(np.uint8)
        return arrays, plain

    def restore_index(self, arrays: dict[str, np.ndarray], plain: dict[str, Any]) -> None:
        self._step_number = check.integer(plain["step_number"], "step_number", minimum=0, maximum=2**62)
        self._next_rebuild = check.integer(plain["next_rebuild"], "next_rebuild", minimum=0, maximum=2**62)
        self._interval = check.number(plain["interval"], "interval", above=0)
        indexes = {"tables": self._new_tables(), "searcher": self._new_searcher(None)}
        for name, index in indexes.items():
            if name in plain:
                tensors = {key.removeprefix(name + "."): a for key, a in arrays.items() if key.startswith(name + ".")}
                setattr(self, "_" + name, index.take_state(self._w.value, self.bias, tensors, plain[name]))
        if self._searcher is not None:
            if arrays["changed"].shape != (self.n_out,):
                raise ValueError(f"changed must have shape {(self.n_out,)}, got {arrays['changed'].shape}")
            self._changed = arrays["changed"].astype(bool)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        family, seed = config.pop("family"), config.pop("seed")
        layer = cls(**config, family=family and FAMILIES[family.pop("type")](**family))
        layer._seed = check.integer(seed, "seed", minimum=0)
        return layer

    def config(self) -> dict[str, Any]:
        family = self.family and {"type": type(self.family).__name__} | self.family.config()
        return super().config() | {
            "family": family, "seed": self._seed,
            "density": self.density, "active": self.active, "candidates": self.candidates, "fill": self.fill,
            "policy": self.policy, "min_count": self.min_count, "n_probes": self.n_probes,
            "first_rebuild": self.first_rebuild, "rebuild_growth": self.rebuild_growth,
            "recall": self.recall,
        }

    def __repr__(self) -> str:
        return (f"LSHLinear({self.n_in}, {self.n_out}, density={self.density!r}, active={self.active!r}, "
                f"activation={self.activation!r})")


def _positive(active: CSR) -> CSR:
    """The entries above zero."""
    keep = active.data > 0
    indptr = np.concatenate([[0], np.cumsum(keep)])[active.indptr].astype(np.int64)
    return CSR(indptr, active.indices[keep], active.data[keep], active.n_columns)
