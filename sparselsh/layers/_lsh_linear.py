"""LSHLinear: the layer that computes only the neurons that hashing finds."""
from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np

from .. import _validation as check
from .. import rebuild as rebuild_policies
from .._arrays.batch_active import BatchActive
from .._arrays.csr import CSR
from .._arrays.linalg import NO_BIAS, column_sums, matmul, row_chunks
from .._core import _active, _gemm, _select, _sparse_products, _updates
from .._files import with_prefix
from .._gradients import ActiveGradient, Groups, ProductGradient, RowGradient
from ..hashing import MinHash, checked_family, family_config, family_from
from ..index import MIN_NEURONS_PER_CANDIDATE, default_family
from . import _plans
from ._active_sets import new_finder
from ._linear import Linear
from ._step import OUTPUT, Place, Step
from ._topk_search import TopKSearch

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import ArrayLike, NDArray

    from .._arrays.selection import Selection
    from .._arrays.types import Floats, Ids
    from .._gradients import Pair
    from ..index import IndexEngine
    from ..protocols import HashFamily, SamplingPolicy
    from ..rebuild import Policy
    from ._active_sets import SketchFinder, TableFinder
    from ._step import Backprop
    from ._tally import Tally

POLICIES = ("sketches", "top", "score", "vanilla")
TABLE_OPTIONS = {"family": None, "min_count": 1, "n_probes": 1}  # and their defaults
SKETCH_OPTIONS = {"sketch_bits": 128, "oversample": 2}
NO_LABELS = np.zeros(0, np.int32)
NO_CANDIDATES = np.zeros((0, 0), np.int32)
MAX_SAMPLED_INPUTS = 1024  # inputs of the last steps, kept to calibrate the search
SAMPLED_ROWS = 64  # kept per sampled batch
SAMPLING_INTERVAL = 8  # steps between two batches that are sampled
MAX_LABEL_SETS_SHARE = 0.9  # sets that labels fill, beyond which hashing has no effect
WARNED_MIN_NEURONS = 1000  # with fewer, computing all of them is cheap anyway
# Of the outputs that are computed, the largest are negatives: nine tenths of the largest of all,
# for a third of the time in which a search by the bound finds them.
COMPUTED_PER_NEGATIVE = 2
SEARCH_MIN_NEURONS = 4096  # with fewer, computing all outputs is as fast as a search


class LSHLinear(Linear):
    """A linear layer that computes only the neurons that hashing finds for the input.

    In training, the active set contains the labels of the batch (in an output layer), the neurons
    that share most buckets with its inputs, and random neurons up to `density`. Forward pass,
    backward pass and update touch only these. With ``density=1`` the layer computes every neuron,
    as :class:`Linear` does.

    Parameters
    ----------
    n_in, n_out : int
    density : float or "auto"
        Fraction of the neurons that are active, in (0, 1]; labels are active in any case. "auto"
        takes about 4,096 neurons for a set that the batch shares, and 1 % but at least 64 for one
        set per sample.
    active : None, "batch" or "sample"
        "batch": all samples of the batch share one active set, whose products run at the speed of
        dense ones. "sample": each sample has its own. None for "batch" in the output layer and
        "sample" in hidden layers.
    activation : None or "relu"
        With "relu", zeros are not stored in the output of one set per sample.
    family : hash family or None
        The hash tables that find neurons in training, such as ``SimHash()`` or SLIDE's ``DWTA()``;
        None for twelve tables of SimHash with about forty neurons per bucket.
        :class:`sparselsh.protocols.HashFamily` describes your own families. Not with the policy
        "sketches".
    candidates : int
        Neurons that are looked up per sample of a batch that shares its set.
    policy : None, "sketches", "top", "score", "vanilla" or a sampling policy
        How active neurons are found. With "sketches", sign sketches rank all neurons for each
        input, the outputs of the best ``oversample * n_active`` are computed, and the largest
        n_active of them stay. The other names use hash tables: see :meth:`LSHIndex.query`. None for
        "sketches" in hidden layers and "top" in the output layer.
        :class:`sparselsh.protocols.SamplingPolicy` describes your own policies.
    sketch_bits : int
        Bits per sketch, a multiple of 64 and at most 1024; for the policy "sketches".
    oversample : int
        Outputs that are computed per active neuron; for the policy "sketches".
    min_count, n_probes : int
        Minimum number of tables in which a neuron must share the bucket; buckets per table that are
        read. Not with the policy "sketches".
    fill : bool
        Add random neurons to the set if too few are found.
    rebuild : rebuild policy or None
        When the tables or sketches are rebuilt: see :mod:`sparselsh.rebuild`. None for
        ``Exponential()`` with "sketches" and ``AtOnce()`` with tables.
    plan : {"auto", "dense", "exact", "rows", "gather"}
        How a layer with one set per sample is computed. "auto" takes the cheapest by a formula at
        the first batch and keeps it. "dense" computes every neuron. "exact" computes every output
        in the forward pass; the largest n_active stay, and the backward pass computes only these.
        "rows" and "gather" find active neurons by hashing; "rows" reads inputs as dense rows,
        "gather" only their non-zero entries. :meth:`Network.profile` shows the choice and the
        costs.
    dropout : float
        As in :class:`Linear`. Not for the output layer.
    recall : float
        Fraction of the five best outputs that `topk` finds, above 0 and below 1.
    init_scale, dtype
        As in :class:`Linear`.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit, or the policy has no use for it; the message names it.

    References
    ----------
    Chen et al., "SLIDE: in defense of smart algorithms over hardware acceleration for large-scale
    deep learning systems", arXiv 1903.03129.
    """

    def __init__(self, n_in: int, n_out: int, *, density: float | Literal["auto"] = "auto",
                 active: str | None = None, activation: str | None = None,
                 family: HashFamily | None = None, candidates: int = 5,
                 policy: str | SamplingPolicy | None = None, sketch_bits: int = 128,
                 oversample: int = 2, min_count: int = 1, n_probes: int = 1,
                 fill: bool = True, rebuild: Policy | None = None, plan: str = "auto",
                 recall: float = 0.995, init_scale: float | None = None, dropout: float = 0.0,
                 dtype: str = "float32") -> None:
        super().__init__(n_in, n_out, activation=activation, init_scale=init_scale,
                         dropout=dropout, dtype=dtype)
        if density != "auto":
            density = check.number(density, "density", above=0, maximum=1)
        self.density = density
        if active is not None:
            active = check.choice(active, "active", ("batch", "sample"))
        self.active = active
        self.candidates = check.integer(candidates, "candidates", minimum=0)
        self.policy = _checked_policy(policy)

        self.sketch_bits = check.integer(sketch_bits, "sketch_bits", minimum=64, maximum=1024)
        if self.sketch_bits % 64:
            raise ValueError(f"sketch_bits must be a multiple of 64, got {sketch_bits}")
        self.oversample = check.integer(oversample, "oversample")
        self.min_count = check.integer(min_count, "min_count", maximum=255)
        self.fill = bool(fill)

        self.family = checked_family(family)
        n_buckets = self._table_family().n_buckets
        self.n_probes = check.integer(n_probes, "n_probes",
                                      maximum=1 if isinstance(family, MinHash) else n_buckets)
        self.rebuild = rebuild_policies.checked(rebuild)
        self.plan = check.choice(plan, "plan", _plans.PLANS)
        self.recall = check.number(recall, "recall", above=0, below=1)
        if self.policy is not None:
            self._check_policy_options(self.policy, "")

        self.chosen_plan: str | None = None  # what "auto" has chosen
        self.plan_costs: dict[str, float] = {}  # and its estimates, in nanoseconds per step
        self._finder: TableFinder | SketchFinder | None = None
        self._search: TopKSearch | None = None
        self._inputs = np.empty((0, self.n_in), np.float32)
        self._step_number = 0
        self._seed = 0
        self._n_sets = self._n_label_sets = 0  # sets of batches, and those that labels fill
        self._to_insert: Any = None  # labels that the step adds to buckets when it is applied

    def _table_family(self) -> HashFamily:
        return self.family if self.family is not None else default_family(self.n_out)

    def _check_policy_options(self, policy: str | SamplingPolicy, where: str) -> None:
        """Refuse options that the policy has no use for, instead of ignoring them."""
        unused = TABLE_OPTIONS if policy == "sketches" else SKETCH_OPTIONS
        for name, default in unused.items():
            if (value := getattr(self, name)) != default:
                by, other = "by sketches", "policy='top'"
                if policy != "sketches":
                    by, other = "in hash tables", "policy='sketches'"
                raise ValueError(f"{where}policy={policy!r} finds neurons {by} and has no use for "
                                 f"{name}={value!r}; leave it out, or use {other}")

    @classmethod
    def from_dense(cls, W: ArrayLike, bias: ArrayLike | None = None, *,
                   queries: Floats | None = None, **options: Any) -> Self:
        """A layer with trained weights.

        Parameters
        ----------
        W : array of shape (n_out, n_in)
        bias : array of shape (n_out,) or None
        queries : array of shape (n_queries, n_in) or None
            Some hundreds of typical inputs: the search of `topk` is calibrated on 1,024 of them for
            the layer's `recall`. It reaches the recall without queries too, but is slower then.
        **options
            As for the class: `recall`, `activation` and others.

        Returns
        -------
        LSHLinear

        Raises
        ------
        TypeError, ValueError
            If an argument does not fit; the message names it.
        """
        W = check.dense(W, "W")
        layer = cls(W.shape[1], W.shape[0], **options).set_weights(W, bias)
        if queries is not None:
            queries = check.dense(queries, "queries", n_columns=layer.n_in)
            every = max(1, -(-len(queries) // MAX_SAMPLED_INPUTS))
            layer._inputs = np.array(queries[::every])
        return layer

    # -- parameters ---------------------------------------------------------------------------

    def initialize(self, rng: np.random.Generator, sparse_input: bool = False,
                   input_fraction: float = 1.0) -> None:
        super().initialize(rng, input_fraction=input_fraction)
        self._draw_seed(rng)

    def take_first_weights(self, stored: np.ndarray, rng: np.random.Generator,
                           input_major: bool) -> None:
        self.drop_indexes()
        super().take_first_weights(stored, rng, input_major)
        self._draw_seed(rng)

    def _draw_seed(self, rng: np.random.Generator) -> None:
        self._seed = int(rng.integers(2**31))
        if self._finder is not None:
            self._finder.seed = self._seed

    def own(self) -> None:
        before = self._w.value, self._b.value
        super().own()
        if self._finder is not None:
            self._finder.own()
        if before[0] is not self._w.value or before[1] is not self._b.value:
            self._rebind()

    def take_grown(self, value: np.ndarray, bias: Floats, n_threads: int) -> None:
        n_new_in = value.shape[0 if self._w.input_major else 1] - self.n_in
        parts = [part for part in (self._finder, self._search) if part is not None]
        try:
            if n_new_in:
                self.drop_indexes()
            for part in parts:
                part.add_neurons(value, bias, n_threads)
        except BaseException:  # an index of some neurons of both kinds is of none
            self._finder = self._search = None
            raise
        super().take_grown(value, bias, n_threads)
        for part in parts:
            part.n_in = self.n_in
        self._inputs = np.pad(self._inputs, ((0, 0), (0, n_new_in)))
        self._to_insert = None
        self._rebind()

    def _rebind(self) -> None:
        """Let the indexes read the weights from where they are now."""
        if not self.initialized:
            return
        for part in (self._finder, self._search):
            if part is not None:
                part.rebind_weights(self._w.value, self._bias)

    # -- active sets --------------------------------------------------------------------------

    @property
    def n_active(self) -> int:
        """Number of neurons of an active set, if the labels are not more."""
        return self._n_active(self.active)

    @property
    def is_dense(self) -> bool:
        """Whether every neuron is computed."""
        return self.n_active == self.n_out

    def output_fraction(self) -> float:
        if self.active == "batch" or self.chosen_plan == "dense":
            return 1.0
        return self._n_active("sample") / self.n_out

    def _n_active(self, active: str | None) -> int:
        if self.density != "auto":
            return min(self.n_out, max(1, round(self.density * self.n_out)))
        return min(self.n_out, 4096 if active != "sample" else max(64, self.n_out // 100))

    def active_at(self, place: Place) -> str:
        """`active`, or its default at this place."""
        if self.active is not None:
            return self.active
        return "batch" if place.is_output else "sample"

    def policy_at(self, place: Place) -> str | SamplingPolicy:
        """`policy`, or its default at this place."""
        if self.policy is not None:
            return self.policy
        return "top" if place.is_output else "sketches"

    def n_active_at(self, place: Place) -> int:
        """Neurons that an active set is filled up to, at this place."""
        return self._n_active(self.active_at(place))

    def is_dense_at(self, place: Place) -> bool:
        """Whether every neuron is computed, at this place."""
        return self.n_active_at(place) == self.n_out

    def check_place(self, place: Place, name: str) -> None:
        """Raise ValueError if the options of the layer do not suit its place in a network."""
        active, policy = self.active_at(place), self.policy_at(place)
        if policy == "sketches" and active == "batch" and place.is_output:
            raise ValueError(f"{name} has policy='sketches', which gives one set per sample; "
                             "use active='sample', or policy='top'")
        if not place.is_output and active == "batch" and not self.is_dense_at(place):
            raise ValueError(f"{name} is a hidden layer: its active set must be one per sample; "
                             "use active='sample'")
        if not self.is_dense_at(place):
            self._check_policy_options(policy, f"{name}: ")

    def prepare(self, step_number: int, epoch: int = 0, place: Place = OUTPUT) -> None:
        self._step_number = step_number
        is_label_set = not self.candidates and self.active_at(place) == "batch"
        if not self.is_dense_at(place) and not is_label_set:
            self._finder_at(place).prepare(step_number, epoch)

    def _finder_at(self, place: Place) -> TableFinder | SketchFinder:
        if self._finder is None:
            self._finder = new_finder(
                self.policy_at(place), self.n_in, self.n_out, self.rebuild, self._seed,
                sketch_bits=self.sketch_bits, family=self._table_family(),
                min_count=self.min_count, n_probes=self.n_probes)
        return self._finder

    def _found(self, x: Floats | CSR, n: int, step: Step) -> Ids:
        """Ids of n neurons that the finder gives for each input, -1 for none."""
        finder = self._finder_at(step.place)
        found = finder.find(self._w.value, self._bias, x, min(n, self.n_out), step, self._inputs)
        if step.found is not None:
            step.found.append(found)
        return found

    def _observe(self, x: Floats | CSR, step: Step) -> None:
        """Keep some inputs of the last steps."""
        if not step.training or self._step_number % SAMPLING_INTERVAL:
            return
        if isinstance(x, CSR):
            new = x.slice(0, min(SAMPLED_ROWS, x.shape[0])).to_dense()
        else:
            new = x[:SAMPLED_ROWS]
        kept = self._inputs[-(MAX_SAMPLED_INPUTS - len(new)):]
        self._inputs = np.concatenate([kept, new])

    def step_state(self) -> Any:
        clock = None if self._finder is None else self._finder.clock_state()
        return self._step_number, self._inputs, self.chosen_plan, self.plan_costs, clock

    def undo_step(self, state: Any) -> None:
        self._to_insert = None
        self._step_number, self._inputs, self.chosen_plan, self.plan_costs, clock = state
        if self._finder is not None:
            self._finder.undo_prepare(clock)

    def updated(self, pairs: list[Pair], n_threads: int, tally: Tally | None = None) -> None:
        if self._to_insert is not None:  # before neurons are hashed again, and once only
            x, labels, found = self._to_insert
            self._finder.insert(x, labels, found, n_threads)
            self._to_insert = None
        for parameter, gradient in pairs:
            if parameter is not self._w:
                continue
            rows = gradient.rows
            if rows is None:
                rows = np.arange(self.n_out, dtype=np.int32)
            if self._finder is not None:
                self._finder.refresh(rows, n_threads, tally)
            if self._search is not None:
                self._search.mark_changed(rows)

    # -- forward ------------------------------------------------------------------------------

    def forward(self, x: Floats | CSR, step: Step) -> tuple[Any, Backprop]:
        """The outputs of the active neurons, and their backward pass."""
        if self.is_dense_at(step.place):
            return self._forward_all(x, step)
        if isinstance(x, CSR) or self.active_at(step.place) == "sample":
            plan = self._plan(x, step)
            if plan == "dense":
                return self._forward_all(x, step)
            self._observe(x, step)
            if plan == "rows" and isinstance(x, CSR):
                return self._of_dense(self._forward_sample, x, step)
            return self._forward_sample(x, step)

        self._observe(x, step)
        return self._forward_batch(x, step)

    def _forward_sparse(self, x: CSR, step: Step) -> tuple[Any, Backprop]:
        # Index, active sets and updates read the weights neuron-major, so they stay so.
        if self.is_dense_at(step.place):
            return super()._forward_sparse(x, step)
        return self._of_dense(self._forward_dense, x, step)

    @staticmethod
    def _of_dense(forward: Callable[[Floats, Step], tuple[Any, Backprop]], x: CSR,
                  step: Step) -> tuple[Any, Backprop]:
        """`forward` of a sparse input as a dense array; the gradient at the entries of x."""
        out, backprop = forward(x.to_dense(), step)

        def backprop_entries(d_out: Floats) -> tuple[Floats | None, list[Pair]]:
            dx, pairs = backprop(d_out)
            return (None if dx is None else x.entries_of(dx)), pairs

        return out, backprop_entries

    # -- the plan -----------------------------------------------------------------------------

    def plan_report(self, place: Place = OUTPUT) -> tuple[str, str]:
        if self.is_dense_at(place):
            return "dense", "density=1"
        if self.active_at(place) == "batch":
            return "batch", f"one set of {self.n_active_at(place)} neurons per batch"
        if self.plan != "auto":
            return self.plan, "as asked"
        if self.chosen_plan is None:
            return "auto", "no batch yet"
        if not self.plan_costs:
            return self.chosen_plan, "as saved"

        costs = ", ".join(f"{plan} {cost / 1e6:.2f}" for plan, cost in self.plan_costs.items())
        is_small = self.plan_costs["dense"] < _plans.MIN_DENSE_NANOSECONDS
        small = " (too short a step to gain: as asked)" if is_small else ""
        with_next = isinstance(place.following, LSHLinear)
        next_too = ", dense with what it costs the next layer" if with_next else ""
        return self.chosen_plan, f"estimated ms per step on one core{next_too}: {costs}{small}"

    def _plan(self, x: Floats | CSR, step: Step) -> str:
        """The plan of a batch; chosen once, so that sets do not depend on the batch size."""
        if self.plan != "auto":
            return self.plan
        if self.chosen_plan is None:
            n = x.shape[0]
            nnz = x.nnz / max(1, n) if isinstance(x, CSR) else None
            self.plan_costs = self._estimates(n, nnz, step.need_input_gradient, step.place)
            n_active = self.n_active_at(step.place)
            self.plan_costs["dense"] += step.place.dense_output_cost(n, n_active)
            able = {"dense", "rows", "gather"}
            if self._by_sketches(step) and step.labels is None:
                able.add("exact")
            self.chosen_plan = _plans.choose(self.plan_costs, able=able)
        return self.chosen_plan

    def _by_sketches(self, step: Step) -> bool:
        return self.policy_at(step.place) == "sketches"

    def _estimates(self, n: int, nnz: float | None, need_dx: bool,
                   place: Place) -> dict[str, float]:
        by_sketches = self.policy_at(place) == "sketches"
        interval = self._finder_at(place).rebuild.typical_interval
        return _plans.estimates(_plans.counts(
            n, self.n_in, self.n_out, self.n_active_at(place), nnz=nnz, bits=self.sketch_bits,
            oversample=self.oversample if by_sketches else 1, need_dx=need_dx,
            builds=1 / interval))

    def dense_input_cost(self, n: int, n_active: int, place: Place) -> float:
        if self.is_dense_at(place):
            return 0.0
        best = []
        for nnz in (None, float(n_active)):
            costs = self._estimates(n, nnz, True, place)
            plan = self.plan
            if plan == "gather" and nnz is None:
                plan = "rows"
            best.append(costs.get(plan, min(costs.values())))
        return max(0.0, best[0] - best[1])

    # -- one set per batch --------------------------------------------------------------------

    def _forward_batch(self, x: Any, step: Step) -> tuple[Any, Backprop]:
        ids = self._batch_set(x, step)
        w, n_threads = self._w.value, step.n_threads
        out = self._buffer("out", (len(x), len(ids)))
        in_bfloat16 = step.in_bfloat16
        _gemm.active_outputs(x, w, ids, self._bias, out, n_threads, in_bfloat16)

        if step.tally is not None:
            size = len(ids) * self.n_in
            step.tally.products(len(x) * size, size, size, step.training,
                                step.need_input_gradient)
        positive = None
        if self.activation == "relu":
            np.maximum(out, 0, out=out)
            positive = out > 0  # a loss overwrites the outputs

        def backprop(d_out: Floats) -> tuple[Floats | None, list[Pair]]:
            if positive is not None:
                d_out *= positive
            dx = None
            if step.need_input_gradient:
                dx = self._buffer("dx", x.shape)
                _gemm.active_input_gradient(d_out, w, ids, dx, n_threads, in_bfloat16)
            db = column_sums(d_out, n_threads)[:, None]
            dw = ActiveGradient(ids, d_out, x, in_bfloat16)
            return dx, [(self._w, dw), (self._b, RowGradient(ids, db))]

        return BatchActive(ids, out, self.n_out), backprop

    def _batch_set(self, x: Floats, step: Step) -> Ids:
        labels = step.labels.indices if step.labels is not None else NO_LABELS
        found = NO_CANDIDATES
        if self.candidates:
            found = self._found(x, self.candidates, step)
            self._note_insertion(x, found, step)

        n_active = self.n_active_at(step.place)
        width = min(max(n_active, len(labels)), self.n_out)
        ids, spare = np.empty((2, width), np.int32)
        n = _select.batch_union(labels, found, n_active, self.fill, step.seed, self._slots(1)[0],
                                spare, ids)
        if step.training:
            self._n_sets, self._n_label_sets = (self._n_sets + 1,
                                                self._n_label_sets + (n > n_active))
        return ids[:n]

    def begin_count(self) -> None:
        self._n_sets = self._n_label_sets = 0

    def useless_options(self, batch_size: int) -> str | None:
        options = [name for name, value in (("density", "auto"), ("family", None), ("policy", None))
                   if getattr(self, name) is not None and getattr(self, name) != value]
        if (not options or self.n_out < WARNED_MIN_NEURONS
                or self._n_label_sets < MAX_LABEL_SETS_SHARE * max(1, self._n_sets)):
            return None
        return (f"the labels of a batch of {batch_size} rows are more than the "
                f"{self._n_active('batch')} neurons of its active set, so that "
                f"{' and '.join(options)} {'change' if options[1:] else 'changes'} nothing; use a "
                "smaller batch_size, a larger density, or active='sample'")

    def _note_insertion(self, x: Floats | CSR, found: Ids, step: Step) -> None:
        """Let `updated` add the labels that their inputs did not find to buckets."""
        if step.labels is not None and self._finder_at(step.place).inserts:
            self._to_insert = x, step.labels, found

    def _slots(self, n_threads: int) -> Ids:
        if self._slot is None or self._slot.ndim != 2 or len(self._slot) < n_threads:
            self._slot = np.full((n_threads, self.n_out), -1, np.int32)
        return self._slot[:n_threads]

    # -- one set per sample -------------------------------------------------------------------

    def _forward_sample(self, x: Floats | CSR, step: Step) -> tuple[Any, Backprop]:
        """The outputs of one set per sample, as CSR."""
        n_active = self.n_active_at(step.place)
        if self._by_sketches(step) and step.labels is None:
            if self._plan(x, step) == "exact":
                outputs = self._every_output(x, step)
            else:
                sets = self._sample_sets(x, step, self.oversample * n_active)
                outputs, _ = self._set_outputs(x, sets, step)
            active, groups = self._best(outputs, step), None
        else:
            active, groups = self._set_outputs(x, self._sample_sets(x, step, n_active), step)

        positive = None
        if self.activation == "relu" and step.labels is not None:
            np.maximum(active.data, 0, out=active.data)  # a loss needs the labels, even at zero
            positive = active.data > 0
        elif self.activation == "relu" and groups is not None:
            active, groups = self._entries_above_zero(active), None

        drops = self.dropout if step.training else 0
        if drops:
            _active.drop_csr(active.indptr, active.indices, active.data, self.n_out, step.seed,
                             drops, step.n_threads)
            if self.activation == "relu":
                active, groups = self._entries_above_zero(active), None

        def backprop(d_out: Floats) -> tuple[Floats | None, list[Pair]]:
            if positive is not None:
                d_out *= positive
            if drops:
                _active.drop_csr(active.indptr, active.indices, d_out, self.n_out, step.seed,
                                 drops, step.n_threads)
            s, g = active._replace(data=d_out), groups
            if g is None:
                g = Groups.of(active, self._slots(1)[0], step.n_threads)
            db = np.empty((len(g.rows), 1), np.float32)
            _updates.sum_groups(g.starts, g.entries, d_out, db[:, 0])
            if step.tally is not None:
                step.tally.backward(s, x, self.n_in, step.need_input_gradient)
            dx = self._input_gradient(s, g, x, step) if step.need_input_gradient else None
            return dx, [(self._w, ProductGradient(g, d_out, x)), (self._b, RowGradient(g.rows, db))]

        return active, backprop

    def _sample_sets(self, x: Floats | CSR, step: Step, n_wanted: int) -> CSR:
        """One set per sample; the values are not yet set.

        It holds the labels of the sample, the neurons found, and random ones up to n_wanted.
        """
        n, n_wanted = x.shape[0], min(n_wanted, self.n_out)
        found = self._found(x, n_wanted, step)
        labels = step.labels
        if labels is None:
            labels = CSR(np.zeros(n + 1, np.int64), NO_LABELS, np.zeros(0, np.float32), self.n_out)
        else:
            self._note_insertion(x, found, step)

        width = min(self.n_out, max(n_wanted, int(np.diff(labels.indptr).max(initial=0))))
        out, sizes = np.empty((n, width), np.int32), np.empty(n, np.int32)
        spare = np.empty((step.n_threads, width), np.int32)
        _select.sample_union(labels.indptr, labels.indices, found, n_wanted,
                             self.fill and step.training, step.seed, self._slots(step.n_threads),
                             spare, out, sizes, step.n_threads)

        indptr = np.zeros(n + 1, np.int64)
        np.cumsum(sizes, out=indptr[1:])
        indices = np.empty(indptr[-1], np.int32)
        _select.compact(out, indptr, indices)
        return CSR(indptr, indices, np.empty(len(indices), np.float32), self.n_out)

    def _set_outputs(self, x: Floats | CSR, active: CSR, step: Step) -> tuple[CSR, Groups]:
        """The outputs of the active neurons, and the groups of the set."""
        groups = Groups.of(active, self._slots(1)[0], step.n_threads)
        to = self._w.value, self._bias, active.data, step.n_threads
        if isinstance(x, CSR):
            _sparse_products.sampled_dots_csr(*groups, x.indptr, x.indices, x.data, *to)
        else:
            _sparse_products.sampled_dots(*groups, x, *to)
        if step.tally is not None:
            step.tally.forward(active, x, self.n_in)
        return active, groups

    def _every_output(self, x: Floats | CSR, step: Step) -> CSR:
        """Every output, as rows of which the best are taken."""
        x = x.to_dense() if isinstance(x, CSR) else x
        z = matmul(x, self._w.value, step.n_threads, transpose_b=True, bias=self._bias,
                   out=self._buffer("out", (len(x), self.n_out)), in_bfloat16=step.in_bfloat16)
        if step.tally is not None:
            step.tally.add("forward", len(x) * self._w.value.size, 4 * self._w.value.size)
        indptr = np.arange(len(x) + 1, dtype=np.int64) * self.n_out
        every_id: Any = None  # the kernels read it as all columns
        return CSR(indptr, every_id, z.reshape(-1), self.n_out)

    def _best(self, outputs: CSR, step: Step) -> CSR:
        """The n_active largest entries of each row; before a ReLU, of those above zero."""
        return self._cut(outputs, self.n_active_at(step.place), self.activation == "relu",
                         step.n_threads)

    def _entries_above_zero(self, active: CSR) -> CSR:
        return self._cut(active, self.n_out, True, 1)

    def _cut(self, s: CSR, n_best: int, positive: bool, n_threads: int) -> CSR:
        """The n_best largest entries of each row, of those above zero if `positive`."""
        n = len(s.indptr) - 1
        limits, sizes = np.empty(n, np.uint64), np.empty(n, np.int32)
        _active.best_limits(s.indptr, s.indices, s.data, n_best, positive, limits, sizes,
                            n_threads)
        indptr = np.zeros(n + 1, np.int64)
        np.cumsum(sizes, out=indptr[1:])
        indices, data = np.empty(indptr[-1], np.int32), np.empty(indptr[-1], np.float32)
        _active.keep_entries(s.indptr, s.indices, s.data, positive, limits, indptr, indices, data,
                             n_threads)
        return CSR(indptr, indices, data, self.n_out)

    def _input_gradient(self, s: CSR, groups: Groups, x: Floats | CSR, step: Step) -> Floats:
        if isinstance(x, CSR):
            dx = np.empty(x.nnz, np.float32)
            _sparse_products.sampled_columns(*groups, s.data, self._w.value, x.indptr, x.indices,
                                             dx, step.n_threads)
        else:
            dx = np.empty_like(x)
            _sparse_products.weighted_rows(s.indptr, s.indices, s.data, self._w.value, NO_BIAS, dx,
                                           step.n_threads)
        return dx

    # -- inference ----------------------------------------------------------------------------

    def topk(self, x: Floats | CSR, k: int, *, exact: bool = False, n_threads: int = 1,
             selection: Selection | None = None) -> tuple[Ids, Floats]:
        engine = None if exact else self._search_engine(k, n_threads)
        if engine is None:
            return super().topk(x, k, n_threads=n_threads, selection=selection)
        x = x.to_dense() if isinstance(x, CSR) else x
        if selection is not None:
            return engine.search_among(x, k, selection, n_threads)
        return engine.search(x, k, None, n_threads)

    def negatives(self, x: Floats | CSR, k: int, n_threads: int) -> Ids:
        engine = self._search_engine(k, n_threads)
        if engine is None:
            return super().topk(x, k, n_threads=n_threads)[0]
        x = x.to_dense() if isinstance(x, CSR) else x
        return engine.search(x, k, COMPUTED_PER_NEGATIVE * k, n_threads)[0]

    def single_row_search(self, k: int) -> tuple[Any, bool]:
        engine = self._search_engine(k, 1)
        return (None, False) if engine is None else (engine.single_query_search(k), True)

    def log_sum_exp(self, x: Floats | CSR, wanted: float,
                    n_threads: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        engine = None if self.activation is not None else self._search_engine(1, n_threads)
        if engine is None:
            return super().log_sum_exp(x, wanted, n_threads)
        return engine.log_sum_exp(x.to_dense() if isinstance(x, CSR) else x, wanted, n_threads)

    def computed_fraction(self, k: int, *, exact: bool = False) -> float:
        engine = None if exact else self._search_engine(k, 1)
        return 1.0 if engine is None else engine.default_candidates(k) / self.n_out

    def lowest_output(self, n_threads: int) -> float:
        lowest = super().lowest_output(n_threads)
        for start, stop in row_chunks(len(self._inputs), self.n_out):
            lowest = min(lowest, float(self.all_outputs(self._inputs[start:stop], n_threads).min()))
        return lowest

    def _search_engine(self, k: int, n_threads: int) -> IndexEngine | None:
        """The index for `topk`, up to date, or None where computing all outputs is as fast.

        A rule and not a measurement, so that a network gives the same answers at any time.
        """
        if self.is_dense or self.n_out < SEARCH_MIN_NEURONS:
            return None
        engine = self._topk_search().ready(self._w.value, self._bias, self._inputs, n_threads)
        is_worth_it = engine.default_candidates(k) <= self.n_out // MIN_NEURONS_PER_CANDIDATE
        return engine if is_worth_it else None

    def _topk_search(self) -> TopKSearch:
        if self._search is None:
            self._search = TopKSearch(self.n_out, self.recall, self._seed)
        return self._search

    # -- state --------------------------------------------------------------------------------

    def drop_indexes(self) -> None:
        self._search = self._to_insert = None
        if self._finder is not None:
            self._finder.drop()

    def index_state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        arrays: dict[str, np.ndarray] = {}
        plain: dict[str, Any] = {
            "step_number": self._step_number, "chosen_plan": self.chosen_plan,
            "clock": None if self._finder is None else self._finder.clock_state()}
        for part in (self._finder, self._search):
            if part is not None:
                more_arrays, more_plain = part.state()
                arrays |= more_arrays
                plain |= more_plain
        return arrays, plain

    def restore_indexes(self, arrays: dict[str, np.ndarray], plain: dict[str, Any]) -> None:
        self._step_number = check.integer(plain["step_number"], "step_number", minimum=0,
                                          maximum=2**62)
        if plain["chosen_plan"] is not None:
            self.chosen_plan = check.choice(plain["chosen_plan"], "chosen_plan", _plans.PLANS)

        finder = self._finder_at(OUTPUT)
        if plain["clock"] is not None:
            finder.restore_clock(plain["clock"])
        parts = {name: with_prefix(arrays, f"{name}.") for name in ("tables", "sets", "searcher")}
        finder.restore(self._w.value, self._bias, parts, plain)
        self._topk_search().restore(self._w.value, self._bias, parts, arrays, plain)

    def tensors(self, as_stored: bool = False) -> dict[str, Any]:
        tensors = super().tensors(as_stored)
        return tensors | {"inputs": self._inputs} if len(self._inputs) else tensors

    def load_tensors(self, tensors: dict[str, np.ndarray], input_major: bool) -> None:
        if input_major and not self.is_dense:  # the index reads rows of neurons
            raise ValueError("weights are input-major in a layer that skips neurons")
        super().load_tensors(tensors, input_major)
        if "inputs" in tensors:
            self._inputs = check.dense(tensors["inputs"], "inputs", n_columns=self.n_in)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        config = dict(config)
        family, seed = family_from(config.pop("family")), config.pop("seed")
        chosen = config.pop("chosen_plan")
        rebuild = rebuild_policies.from_config(config.pop("rebuild"))

        # files of earlier versions may hold options that the policy ignored
        unused = TABLE_OPTIONS if config["policy"] == "sketches" else SKETCH_OPTIONS
        config |= {name: default for name, default in unused.items() if name in config}
        if config["policy"] == "sketches":
            family = None

        layer = cls(**config, family=family, rebuild=rebuild)
        layer._seed = check.integer(seed, "seed", minimum=0)
        if chosen is not None:
            layer.chosen_plan = check.choice(chosen, "chosen_plan", _plans.PLANS)
        return layer

    def config(self, place: Place = OUTPUT) -> dict[str, Any]:
        return super().config(place) | {
            "family": family_config(self.family), "seed": self._seed, "density": self.density,
            "active": self.active_at(place), "candidates": self.candidates, "fill": self.fill,
            "policy": _policy_config(self.policy_at(place)), "sketch_bits": self.sketch_bits,
            "oversample": self.oversample, "min_count": self.min_count, "n_probes": self.n_probes,
            "plan": self.plan, "chosen_plan": self.chosen_plan,
            "rebuild": rebuild_policies.config(self.rebuild), "recall": self.recall,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._rebind()  # copying has turned views into separate arrays

    def repr_at(self, place: Place) -> str:
        return self._repr(self.active_at(place))

    def __repr__(self) -> str:
        return self._repr(self.active)

    def _repr(self, active: str | None) -> str:
        return (f"LSHLinear({self.n_in}, {self.n_out}, density={self.density!r}, "
                f"active={active!r}, activation={self.activation!r})")


def _checked_policy(policy: Any) -> str | SamplingPolicy | None:
    """The name of a policy, or one of the user's own."""
    if policy is None or isinstance(policy, str):
        return None if policy is None else check.choice(policy, "policy", POLICIES)
    if isinstance(policy, type) or not callable(getattr(policy, "choose", None)):
        raise TypeError(f"policy must be one of {', '.join(POLICIES)}, or an object with the "
                        "method choose of sparselsh.protocols.SamplingPolicy, got "
                        f"{policy!r}")
    return policy


def _policy_config(policy: str | SamplingPolicy) -> str:
    if not isinstance(policy, str):
        raise TypeError(f"policy must be one of {', '.join(POLICIES)} to be saved, got "
                        f"{policy!r}; use pickle for others")
    return policy
