"""LSHLinear: the layer that computes only the neurons that hashing finds."""
from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np

from . import _plans
from . import _validation as check
from . import rebuild as rebuild_policies
from ._core import _active, _gemm, _select, _sparse_products, _updates
from ._csr import CSR
from ._gradients import ActiveGradient, Groups, ProductGradient, RowGradient
from ._index_file import family_config
from ._linalg import NO_BIAS, column_sums, matmul
from ._set_sketches import SetSketches
from ._table_choice import default_family
from .hashing import FAMILIES, CrossPolytope, MinHash, SimHash
from .index import LSHIndex
from .layers import BatchActive, Linear

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import ArrayLike

    from ._gradients import Pair
    from ._types import Floats, HashFamily, Ids
    from .layers import Backprop, Step
    from .profiling import Tally
    from .rebuild import Clock, Policy

__all__ = ["LSHLinear"]

POLICIES = ("sketches", "top", "score", "vanilla")
NO_LABELS = np.zeros(0, np.int32)
NO_CANDIDATES = np.zeros((0, 0), np.int32)
BY_SKETCHES, BY_TABLES = rebuild_policies.Exponential(), rebuild_policies.AtOnce()  # where no policy is given
N_INPUTS = 1024  # inputs kept of the last steps: a sample to set up the search with
FEW_NEURONS = 4096  # below, computing all of them is as fast as a search
DRIFT_SAMPLE = 256  # neurons that are hashed again to see how far the tables are behind


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
    policy : None, "sketches", "top", "score" or "vanilla"
        Who is active. "sketches": sign sketches rank all neurons for each input, the outputs of the best
        ``oversample * n_active`` are computed, and the largest n_active of them stay. The others ask hash tables: see
        :meth:`LSHIndex.query`. None for "sketches" in hidden layers and "top" in the output layer.
    sketch_bits : int
        Bits of a sketch, a multiple of 64 and at most 1024.
    oversample : int
        See "sketches".
    min_count, n_probes : int
        Tables in which a neuron must share the bucket, at least; buckets of each table that are looked into.
    fill : bool
        Fill the set up with neurons at random where the tables find too few.
    rebuild : policy or None
        When the tables or sketches are built anew: see :mod:`sparselsh.rebuild`. None for ``Exponential()`` with
        "sketches" and ``AtOnce()`` with tables.
    plan : {"auto", "dense", "exact", "rows", "gather"}
        How a layer with a set a sample is computed. "auto" takes the cheapest by a formula at the first batch and keeps
        to it: "dense" computes every neuron, where that costs less than finding the active ones; "exact" computes every
        output, of which the largest n_active stay, and only theirs backward; the other two hash, and differ in
        whether inputs are read as dense or as sparse. :meth:`Network.profile` shows choice and costs.
    dropout : float
        As in Linear. Not for the output layer.
    recall : float
        Share of the five best outputs that `topk` is to find.
    init_scale, dtype
        As in Linear.

    References
    ----------
    Chen et al., "SLIDE: in defense of smart algorithms over hardware acceleration for large-scale deep learning
    systems", arXiv 1903.03129.
    """

    chosen_plan: str | None
    plan_costs: dict[str, float]
    _tables: LSHIndex | None
    _sets: SetSketches | None
    _clock: Clock | None
    _tally: Tally | None
    _searcher: LSHIndex | None
    _changed: np.ndarray | None

    def __init__(self, n_in: int, n_out: int, *, density: float | Literal["auto"] = "auto", active: str | None = None,
                 activation: str | None = None, family: HashFamily | None = None, candidates: int = 5,
                 policy: str | None = None, sketch_bits: int = 128, oversample: int = 2, min_count: int = 1,
                 n_probes: int = 1, fill: bool = True, rebuild: Policy | None = None, plan: str = "auto",
                 recall: float = 0.995, init_scale: float | None = None, dropout: float = 0.0,
                 dtype: str = "float32") -> None:
        super().__init__(n_in, n_out, activation=activation, init_scale=init_scale, dropout=dropout, dtype=dtype)
        if density != "auto":
            density = check.number(density, "density", above=0, maximum=1)
        self.density = density
        self.active = None if active is None else check.choice(active, "active", ("batch", "sample"))
        self.candidates = check.integer(candidates, "candidates", minimum=0)
        self.policy = None if policy is None else check.choice(policy, "policy", POLICIES)
        self.sketch_bits = check.integer(sketch_bits, "sketch_bits", minimum=64, maximum=1024)
        if self.sketch_bits % 64:
            raise ValueError(f"sketch_bits must be a multiple of 64, got {sketch_bits}")
        self.oversample = check.integer(oversample, "oversample")
        self.min_count = check.integer(min_count, "min_count", maximum=255)
        self.fill = bool(fill)
        if family is not None and not isinstance(family, tuple(FAMILIES.values())):
            raise TypeError(f"family must be a hash family such as SimHash() or None, got {family!r}")
        self.family = family
        n_buckets = (family if family is not None else default_family(self.n_out)).n_buckets
        self.n_probes = check.integer(n_probes, "n_probes", maximum=1 if isinstance(family, MinHash) else n_buckets)
        self.rebuild = rebuild_policies.checked(rebuild)
        self.plan = check.choice(plan, "plan", _plans.PLANS)
        self.chosen_plan: Any = None  # what "auto" has chosen
        self.plan_costs: dict[str, float] = {}  # and its estimates: nanoseconds a step
        self.recall = check.number(recall, "recall", above=0, below=1)
        self._tables = None  # the index for training: hash tables
        self._sets: Any = None  # or sketches
        self._clock: Any = None
        self._due = self._inserts = False
        self._sets_threads = 1
        self._tally: Any = None
        self._searcher = None  # the index for topk: sketches
        self._changed = None  # rows updated since the searcher was built
        self._inputs = np.empty((0, self.n_in), np.float32)
        self._step_number = 0
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

    def initialize(self, rng: np.random.Generator, sparse_input: bool = False, input_share: float = 1.0) -> None:
        super().initialize(rng, input_share=input_share)
        self._seed = int(rng.integers(2**31))

    def take_first_weights(self, value: Floats, rng: np.random.Generator) -> None:
        super().take_first_weights(value, rng)
        self._w.flipped = False
        self.settle()
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

    @property
    def output_share(self) -> float:
        """Share of the outputs that are computed and may differ from zero before the activation."""
        return self.n_active / self.n_out if self.active == "sample" and self.chosen_plan != "dense" else 1.0

    # -- the two indexes --------------------------------------------------------------------------------------

    @property
    def _by_sketches(self) -> bool:
        return self.policy == "sketches"

    @property
    def _rebuild(self) -> Policy:
        if self.rebuild is not None:
            return self.rebuild
        return BY_SKETCHES if self._by_sketches else BY_TABLES

    def prepare(self, step_number: int, epoch: int = 0) -> None:
        self._step_number = step_number
        if self.is_dense or (not self.candidates and self.active == "batch"):
            return
        if self._clock is None:
            self._clock = self._rebuild.start()
        # sketches want to see some inputs first: forward builds
        self._due = self._clock.due(step_number, epoch, self._drift)
        self._inserts = self._clock.inserts(epoch)

    def _drift(self) -> float:
        """Share of the codes of a sample of neurons that have changed since they were hashed; 1 before."""
        if self._by_sketches:
            return 1.0 if self._sets is None else self._sets.drift(1)
        if self._tables is None:
            return 1.0
        every = max(1, self.n_out // DRIFT_SAMPLE)
        return self._tables.drift(np.arange(0, self.n_out, every, dtype=np.int32))

    def _build(self, step: Step) -> None:
        """Build what finds the active neurons, where that is due or not there."""
        self._tally = step.tally
        self._sets_threads = step.n_threads
        if self._by_sketches:
            if self._sets is None:
                self._sets = SetSketches(self.sketch_bits, self.n_out, self.n_in, self._seed)
                self._due = True
            if self._due:
                self._sets.rebuild(self._w.value, self.bias, self._inputs, step.n_threads)
                if step.tally is not None:
                    step.tally.hashing(self._sets.rebuild_macs(len(self._inputs)), 4 * self._w.value.size, rebuilt=True)
        elif self._due or self._tables is None:
            self._build_tables(step)
        self._due = False

    def _build_tables(self, step: Step) -> None:
        if self._tables is None:
            self._tables = self._new_tables()
        self._tables.n_threads = step.n_threads
        self._tables.rebuild(self._w.value, self.bias)
        if step.tally is not None:
            step.tally.hashing(self.n_out * self.n_in * self._n_projections, 4 * self._w.value.size, rebuilt=True)

    @property
    def _n_projections(self) -> int:
        """Multiply-adds of hashing a dimension of an input; for families that compare, the comparisons."""
        family = self._tables.family
        return family.tables * getattr(family, "bits", getattr(family, "bins", 1))

    def _new_tables(self) -> LSHIndex:
        family = self.family if self.family is not None else default_family(self.n_out)
        by_angle = isinstance(family, SimHash | CrossPolytope)  # the others compare entries: nothing to centre
        return LSHIndex(family, center=by_angle, scaling=0, sketch_bits=0, dynamic=True, random_state=self._seed)

    def _new_searcher(self, n_threads: int) -> LSHIndex:
        return LSHIndex(None, recall=self.recall, random_state=self._seed, plan="sketches", n_threads=n_threads)

    def updated(self, pairs: list[Pair]) -> None:
        for parameter, gradient in pairs:
            if parameter is self._w:
                rows = gradient.rows if gradient.rows is not None else np.arange(self.n_out, dtype=np.int32)
                if self._rebuild.at_once and self._tables is not None:
                    self._tables.refresh(rows)
                if self._rebuild.at_once and self._sets is not None:
                    self._sets.refresh(rows, self._sets_threads)
                if self._rebuild.at_once and self._tally is not None:
                    n_planes = self.sketch_bits if self._by_sketches else self._n_projections
                    self._tally.hashing(len(rows) * self.n_in * n_planes, 4 * len(rows) * self.n_in)
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
        if isinstance(x, CSR) or self.active == "sample":
            plan = self._plan(x, step)
            if plan == "dense":
                return super().forward(x, step)
            self._observe(x, step)
            if plan == "rows" and isinstance(x, CSR):
                return self._of_dense(self._forward_sample, x, step)
            return self._forward_sample(x, step)
        self._observe(x, step)
        return self._forward_batch(x, step)

    def plan_report(self) -> tuple[str, str]:
        """The plan in use, and why, in words."""
        if self.is_dense:
            return "dense", "density=1"
        if self.active == "batch":
            return "batch", f"one set of {self.n_active} neurons a batch"
        if self.plan != "auto":
            return self.plan, "as asked"
        if self.chosen_plan is None:
            return "auto", "no batch yet"
        costs = ", ".join(f"{plan} {cost / 1e6:.2f}" for plan, cost in self.plan_costs.items())
        small = " (under the floor: as asked)" if self.plan_costs and self.plan_costs["dense"] < _plans.FLOOR else ""
        next_too = ", dense with what it costs the next layer" if isinstance(self.following, LSHLinear) else ""
        return self.chosen_plan, f"estimated ms a step on one core{next_too}: {costs}{small}" if costs else "as saved"

    def _plan(self, x: Floats | CSR, step: Step) -> str:
        """How to compute a batch: chosen at the first one, so that sets do not change with the size of a batch."""
        if self.plan != "auto":
            return self.plan
        if self.chosen_plan is None:
            n, nnz = x.shape[0], x.nnz / max(1, x.shape[0]) if isinstance(x, CSR) else None
            self.plan_costs = self._estimates(n, nnz, step.need_input_gradient)
            self.plan_costs["dense"] += self._cost_of_dense_outputs(n)
            able = {"dense", "rows", "gather"} | ({"exact"} if self._by_sketches and step.labels is None else set())
            self.chosen_plan = _plans.choose(self.plan_costs, able=able)
        return self.chosen_plan

    def _estimates(self, n: int, nnz: float | None, need_dx: bool) -> dict[str, float]:
        return _plans.estimates(_plans.counts(
            n, self.n_in, self.n_out, self.n_active, nnz=nnz, bits=self.sketch_bits,
            oversample=self.oversample if self._by_sketches else 1, need_dx=need_dx,
            builds=1 / self._rebuild.typical_interval))

    def _cost_of_dense_outputs(self, n: int) -> float:
        """What a step of the next layer takes longer, at best, if it gets every output of this one."""
        following = self.following
        if not isinstance(following, LSHLinear) or following.is_dense:
            return 0.0
        best = []
        for nnz in (None, float(self.n_active)):
            costs = following._estimates(n, nnz, True)
            asked = "rows" if following.plan == "gather" and nnz is None else following.plan
            best.append(costs.get(asked, min(costs.values())))
        return max(0.0, best[0] - best[1])

    def _forward_sparse(self, x: CSR, step: Step) -> tuple[Any, Backprop]:
        """Every neuron, of sparse input. Weights stay neuron-major: index, active sets and updates read them so."""
        return super()._forward_sparse(x, step) if self.is_dense else self._of_dense(self._forward_dense, x, step)

    @staticmethod
    def _of_dense(forward: Callable[[Floats, Step], tuple[Any, Backprop]], x: CSR, step: Step) -> tuple[Any, Backprop]:
        """`forward` of a sparse input as a dense array; the gradient at the entries of x."""
        out, backprop = forward(x.to_dense(), step)

        def backprop_entries(d_out: Floats) -> tuple[Floats | None, list[Pair]]:
            dx, pairs = backprop(d_out)
            return (None if dx is None else x.entries_of(dx)), pairs

        return out, backprop_entries

    def _forward_batch(self, x: Any, step: Step) -> tuple[Any, Backprop]:
        ids = self._batch_set(x, step)
        w, n_threads = self._w.value, step.n_threads
        out = self._buffer("out", (len(x), len(ids)))
        _gemm.active_outputs(x, w, ids, self.bias, out, n_threads)
        if step.tally is not None:
            size = len(ids) * self.n_in
            step.tally.products(len(x) * size, size, size, step)
        positive = None
        if self.activation == "relu":
            np.maximum(out, 0, out=out)
            positive = out > 0  # a loss writes its gradient over the outputs

        def backprop(d_out: Floats) -> tuple[Floats | None, list[Pair]]:
            if positive is not None:
                d_out *= positive
            dx = None
            if step.need_input_gradient:
                dx = self._buffer("dx", x.shape)
                _gemm.active_input_gradient(d_out, w, ids, dx, n_threads)
            return dx, [(self._w, ActiveGradient(ids, d_out, x)),
                        (self._b, RowGradient(ids, column_sums(d_out, n_threads)[:, None]))]

        return BatchActive(ids, out, self.n_out), backprop

    def _batch_set(self, x: Floats, step: Step) -> Ids:
        labels = step.labels.indices if step.labels is not None else NO_LABELS
        found = NO_CANDIDATES
        if self.candidates:
            found = self._found(x, self.candidates, step)
            if self._inserts and not self._by_sketches:
                self._insert(x, step.labels, found)
        ids, spare = np.empty((2, min(max(self.n_active, len(labels)), self.n_out)), np.int32)
        n = _select.batch_union(labels, found, self.n_active, self.fill, step.seed, self._slots(1)[0], spare, ids)
        return ids[:n]

    def _found(self, x: Floats | CSR, n: int, step: Step) -> Ids:
        """Ids of n neurons that tables or sketches find for each input, by the policy, -1 for none."""
        self._build(step)
        n = min(n, self.n_out)
        if self._by_sketches:
            if step.tally is not None:
                n_entries = x.nnz if isinstance(x, CSR) else x.size
                step.tally.hashing(n_entries * self.sketch_bits, x.shape[0] * self.n_out * self.sketch_bits // 8)
            return self._sets.best(x, n, step.n_threads)
        x = x.to_dense() if isinstance(x, CSR) else x
        self._tables.n_threads = step.n_threads
        if step.tally is not None:
            step.tally.hashing(x.size * self._n_projections, 4 * x.shape[0] * self._n_projections)
            if self.policy == "score":
                step.tally.add("forward", 4 * n * x.size, 16 * n * x.size)
        return self._tables.candidates(x, n, self.min_count, policy=self.policy, n_probes=self.n_probes,
                                       seed=step.seed)[0]

    def _insert(self, x: Floats, labels: CSR, found: Ids) -> None:
        """Put labels that their input did not find into the buckets where it looked (see rebuild.Frozen)."""
        samples = np.repeat(np.arange(len(found), dtype=np.int32), np.diff(labels.indptr))
        missed = ~(found[samples] == labels.indices[:, None]).any(axis=1)
        self._tables.insert(x, samples[missed], labels.indices[missed])

    def _slots(self, n_threads: int) -> Ids:
        if self._slot is None or self._slot.ndim != 2 or len(self._slot) < n_threads:
            self._slot = np.full((n_threads, self.n_out), -1, np.int32)
        return self._slot[:n_threads]

    def _forward_sample(self, x: Floats | CSR, step: Step) -> tuple[Any, Backprop]:
        """The outputs of one set a sample, as CSR."""
        if self._by_sketches and step.labels is None:
            if self._plan(x, step) == "exact":
                outputs = self._all_outputs(x, step)
            else:
                outputs, _ = self._products(x, self._sample_sets(x, step, self.oversample * self.n_active), step)
            active, groups = self._best(outputs, step), None
        else:
            active, groups = self._products(x, self._sample_sets(x, step, self.n_active), step)
        positive = None
        if self.activation == "relu" and step.labels is not None:
            np.maximum(active.data, 0, out=active.data)  # a loss needs the labels, be they zero
            positive = active.data > 0
        elif self.activation == "relu" and groups is not None:
            active, groups = self._entries_above_zero(active), None
        drops = self.dropout if step.training else 0
        if drops:
            _active.drop_csr(active.indptr, active.indices, active.data, self.n_out, step.seed, drops, step.n_threads)
            if self.activation == "relu":
                active, groups = self._entries_above_zero(active), None

        def backprop(d_out: Floats) -> tuple[Floats | None, list[Pair]]:
            if positive is not None:
                d_out *= positive
            if drops:
                _active.drop_csr(active.indptr, active.indices, d_out, self.n_out, step.seed, drops, step.n_threads)
            s = active._replace(data=d_out)
            g = groups if groups is not None else Groups.of(active, self._slots(1)[0], step.n_threads)
            db = np.empty((len(g.rows), 1), np.float32)
            _updates.sum_groups(g.starts, g.entries, d_out, db[:, 0])
            if step.tally is not None:
                step.tally.backward(s, x, self.n_in, step)
            pairs: list[Pair] = [(self._w, ProductGradient(g, d_out, x)), (self._b, RowGradient(g.rows, db))]
            return (self._input_gradient(s, g, x, step) if step.need_input_gradient else None), pairs

        return active, backprop

    def _products(self, x: Floats | CSR, active: CSR, step: Step) -> tuple[CSR, Groups]:
        """The outputs of the active neurons, and the groups of the set."""
        groups = Groups.of(active, self._slots(1)[0], step.n_threads)
        arguments = *groups, self._w.value, self.bias, active.data, step.n_threads
        if isinstance(x, CSR):
            _sparse_products.sampled_dots_csr(*groups, x.indptr, x.indices, x.data, *arguments[4:])
        else:
            _sparse_products.sampled_dots(*groups, x, *arguments[4:])
        if step.tally is not None:
            step.tally.forward(active, x, self.n_in)
        return active, groups

    def _all_outputs(self, x: Floats | CSR, step: Step) -> CSR:
        """Every output, as rows of which the best are taken."""
        x = x.to_dense() if isinstance(x, CSR) else x
        z = matmul(x, self._w.value, step.n_threads, transpose_b=True, bias=self.bias,
                   out=self._buffer("out", (len(x), self.n_out)))
        if step.tally is not None:
            step.tally.add("forward", len(x) * self._w.value.size, 4 * self._w.value.size)
        return CSR(np.arange(len(x) + 1, dtype=np.int64) * self.n_out, None, z.reshape(-1), self.n_out)

    def _best(self, outputs: CSR, step: Step) -> CSR:
        """The n_active largest entries of each row, of those above zero before a ReLU."""
        return self._cut(outputs, self.n_active, self.activation == "relu", step.n_threads)

    def _entries_above_zero(self, active: CSR) -> CSR:
        return self._cut(active, self.n_out, True, 1)

    def _cut(self, s: CSR, n_best: int, positive: bool, n_threads: int) -> CSR:
        n = len(s.indptr) - 1
        limits, sizes, indptr = np.empty(n, np.uint64), np.empty(n, np.int32), np.zeros(n + 1, np.int64)
        _active.best_limits(s.indptr, s.indices, s.data, n_best, positive, limits, sizes, n_threads)
        np.cumsum(sizes, out=indptr[1:])
        indices, data = np.empty(indptr[-1], np.int32), np.empty(indptr[-1], np.float32)
        _active.keep_entries(s.indptr, s.indices, s.data, positive, limits, indptr, indices, data, n_threads)
        return CSR(indptr, indices, data, self.n_out)

    def _input_gradient(self, s: CSR, groups: Groups, x: Floats | CSR, step: Step) -> Floats:
        if isinstance(x, CSR):
            dx = np.empty(x.nnz, np.float32)
            _sparse_products.sampled_columns(*groups, s.data, self._w.value, x.indptr, x.indices, dx, step.n_threads)
        else:
            dx = np.empty_like(x)
            _sparse_products.weighted_rows(s.indptr, s.indices, s.data, self._w.value, NO_BIAS, dx, step.n_threads)
        return dx

    def _sample_sets(self, x: Floats | CSR, step: Step, n_wanted: int) -> CSR:
        """One set a sample: its labels, the neurons found, and others at random up to n_wanted; values not yet set."""
        n, n_wanted = x.shape[0], min(n_wanted, self.n_out)
        found = self._found(x, n_wanted, step)
        labels = step.labels
        if labels is None:
            labels = CSR(np.zeros(n + 1, np.int64), np.zeros(0, np.int32), np.zeros(0, np.float32), self.n_out)
        elif self._inserts and not self._by_sketches:
            self._insert(x.to_dense() if isinstance(x, CSR) else x, labels, found)
        width = min(self.n_out, max(n_wanted, int(np.diff(labels.indptr).max(initial=0))))
        out = np.empty((n, width), np.int32)
        sizes = np.empty(n, np.int32)
        _select.sample_union(labels.indptr, labels.indices, found, n_wanted, self.fill and step.training,
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
        self._tables = self._sets = self._searcher = None

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        for index in (self._tables, self._searcher):
            if index is not None:  # it reads the weights, and copying has made a view into an array of its own
                index.share(self._w.value, self.bias)
        if self._sets is not None:
            self._sets.share(self._w.value, self.bias)

    def index_state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        arrays: dict[str, np.ndarray] = {}
        plain: dict[str, Any] = {"step_number": self._step_number, "chosen_plan": self.chosen_plan,
                                 "clock": None if self._clock is None else self._clock.state()}
        for name, index in (("tables", self._tables), ("searcher", self._searcher)):
            if index is not None:
                tensors, plain[name] = index.state(exactly=True)
                arrays |= {f"{name}.{key}": a for key, a in tensors.items()}
        if self._searcher is not None:
            arrays["changed"] = self._changed.astype(np.uint8)
        if self._sets is not None:
            arrays |= {f"sets.{key}": a for key, a in self._sets.tensors().items()}
        return arrays, plain

    def restore_index(self, arrays: dict[str, np.ndarray], plain: dict[str, Any]) -> None:
        self._step_number = check.integer(plain["step_number"], "step_number", minimum=0, maximum=2**62)
        if plain["chosen_plan"] is not None:
            self.chosen_plan = check.choice(plain["chosen_plan"], "chosen_plan", _plans.PLANS)
        if plain["clock"] is not None:
            self._clock = self._rebuild.start()
            self._clock.restore(plain["clock"])
        parts = {kind: {key.removeprefix(kind + "."): a for key, a in arrays.items() if key.startswith(kind + ".")}
                 for kind in ("tables", "searcher", "sets")}
        indexes = {"tables": self._new_tables(), "searcher": self._new_searcher(None)}
        for name, index in indexes.items():
            if name in plain:
                setattr(self, "_" + name, index.take_state(self._w.value, self.bias, parts[name], plain[name]))
        if parts["sets"]:
            self._sets = SetSketches(self.sketch_bits, self.n_out, self.n_in, self._seed)
            self._sets.restore(self._w.value, self.bias, parts["sets"])
        if self._searcher is not None:
            if arrays["changed"].shape != (self.n_out,):
                raise ValueError(f"changed must have shape {(self.n_out,)}, got {arrays['changed'].shape}")
            self._changed = arrays["changed"].astype(bool)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        config = dict(config)
        family, seed, chosen = config.pop("family"), config.pop("seed"), config.pop("chosen_plan")
        policy = rebuild_policies.from_config(config.pop("rebuild"))
        layer = cls(**config, family=family and FAMILIES[family.pop("type")](**family), rebuild=policy)
        layer._seed = check.integer(seed, "seed", minimum=0)
        layer.chosen_plan = None if chosen is None else check.choice(chosen, "chosen_plan", _plans.PLANS)
        return layer

    def config(self) -> dict[str, Any]:
        return super().config() | {
            "family": family_config(self.family), "seed": self._seed,
            "density": self.density, "active": self.active, "candidates": self.candidates, "fill": self.fill,
            "policy": self.policy, "sketch_bits": self.sketch_bits, "oversample": self.oversample,
            "min_count": self.min_count, "n_probes": self.n_probes, "plan": self.plan,
            "chosen_plan": self.chosen_plan, "rebuild": rebuild_policies.config(self.rebuild), "recall": self.recall,
        }

    def __repr__(self) -> str:
        return (f"LSHLinear({self.n_in}, {self.n_out}, density={self.density!r}, active={self.active!r}, "
                f"activation={self.activation!r})")
