"""Which neurons a training step computes, and when they are hashed again.

    TableFinder    hash tables: neurons that share buckets with the input
    PolicyFinder   what a policy of the user's own chooses, which may read the tables
    SketchFinder   sign sketches: neurons whose estimated output is largest

All have a clock, which decides when they are rebuilt (`sparselsh.rebuild`), and follow the weights
between builds. A finder exists from the first step on; its index is built by the first search.
"""
from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _validation as check
from .. import rebuild as rebuild_policies
from .._arrays.aligned import own_arrays
from .._arrays.bfloat16 import as_float32
from .._arrays.csr import CSR
from .._threads import resolve
from ..index import IndexOptions, NeuronSums, build, drawn_seed, engine_of_layer, state
from ._active_sketches import DRIFT_SAMPLE_NEURONS, ActiveSketches

if TYPE_CHECKING:
    from collections.abc import Callable

    from .._arrays.types import Floats, Ids
    from ..index import IndexEngine
    from ..protocols import HashFamily, SamplingPolicy
    from ..rebuild import Clock, Policy
    from ._step import Step
    from ._tally import Tally


class Finder:
    """The base class of both finders: the clock, and what is due.

    Parameters
    ----------
    n_in, n_out : int
    rebuild : rebuild policy
    seed : int
    """

    def __init__(self, n_in: int, n_out: int, rebuild: Policy, seed: int) -> None:
        self.n_in, self.n_out = n_in, n_out
        self.rebuild = rebuild
        self.seed = seed
        self._clock: Clock | None = None
        self._is_due = self.inserts = False

    def prepare(self, step_number: int, epoch: int) -> None:
        """Ask the clock whether this step rebuilds; `find` then does it."""
        if self._clock is None:
            self._clock = self.rebuild.start()
        self._is_due = self._clock.due(step_number, epoch, self.drift)
        self.inserts = self._clock.inserts(epoch)

    def drift(self) -> float:
        """Fraction of the codes of a sample of neurons that have changed since they were hashed."""
        raise NotImplementedError

    def undo_prepare(self, clock_state: dict[str, Any] | None) -> None:
        """Return to a state of the clock, as before a step that did not happen.

        What the step has built may stay or be missing: the weights are those of before, so that the
        step, when it is taken again, finds what a new build would give, or builds.
        """
        self._is_due = False
        if clock_state is None:
            self._clock = None
        else:
            self.restore_clock(clock_state)

    def clock_state(self) -> dict[str, Any] | None:
        """The state of the clock, or None before the first step."""
        return None if self._clock is None else self._clock.state()

    def restore_clock(self, state: dict[str, Any]) -> None:
        """Take what `clock_state` gave."""
        clock = self.rebuild.start()
        clock.restore(state)
        self._clock = clock


class TableFinder(Finder):
    """Neurons that share buckets of hash tables with the input.

    Parameters
    ----------
    n_in, n_out, rebuild, seed
        As for :class:`Finder`.
    family : hash family
    policy : {"top", "score", "vanilla"}
        See :meth:`LSHIndex.query`.
    min_count, n_probes : int
        See :class:`LSHLinear`.
    """

    def __init__(self, n_in: int, n_out: int, rebuild: Policy, seed: int, family: HashFamily,
                 policy: str, min_count: int, n_probes: int) -> None:
        super().__init__(n_in, n_out, rebuild, seed)
        self.policy, self.min_count, self.n_probes = policy, min_count, n_probes
        by_angle = getattr(family, "is_angular", False)
        self.options = IndexOptions(  # families that compare entries have nothing to centre
            family, center=by_angle, scaling=0.0, sketch_bits=0, dynamic=True)
        # multiply-adds per entry of an input; for families that compare, comparisons
        self.n_projections = family.tables * getattr(family, "bits", getattr(family, "bins", 1))
        self.engine: IndexEngine | None = None
        # where the neurons are some of more: their ids, and the sums of all for the centring
        self.names: Ids | None = None
        self.sums_of: Callable[[np.ndarray, Floats, int, bool], NeuronSums] = NeuronSums.of
        self._spare: Any = None  # tables of before, while an engine is built in their memory

    def undo_prepare(self, clock_state: dict[str, Any] | None) -> None:
        super().undo_prepare(clock_state)
        if self.engine is not None:  # a copy drops scratch memory, which may be half made
            self.engine.tables = copy.copy(self.engine.tables)

    def drift(self) -> float:
        if self.engine is None:
            return 1.0
        every = max(1, self.n_out // DRIFT_SAMPLE_NEURONS)
        return self.engine.drift(np.arange(0, self.n_out, every, dtype=np.int32), resolve(None))

    def find(self, W: np.ndarray, bias: Floats, x: Floats | CSR, n: int, step: Step,
             inputs: Floats) -> Ids:
        """Ids of n neurons per input, (n_samples, n) int32, -1 for none.

        `inputs` is used by `SketchFinder` only.
        """
        return self.found(W, bias, x, n, step)[0]

    def found(self, W: np.ndarray, bias: Floats, x: Floats | CSR, n: int,
              step: Step) -> tuple[Ids, np.ndarray]:
        """`find`, with the number of tables, or the output, that speaks for each neuron."""
        engine = self.built(W, bias, step)
        x = x.to_dense() if isinstance(x, CSR) else x
        if step.tally is not None:
            step.tally.hashing(x.size * self.n_projections, 4 * x.shape[0] * self.n_projections)
            if self.policy == "score":
                step.tally.add("forward", 4 * n * x.size, 16 * n * x.size)
        return engine.candidates(x, n, step.n_threads, policy=self.policy,
                                 min_count=self.min_count, n_probes=self.n_probes,
                                 seed=step.seed, names=self.names)

    def built(self, W: np.ndarray, bias: Floats, step: Step) -> IndexEngine:
        """The engine, rebuilt where that is due."""
        self.hash_in(step.in_bfloat16)
        if self.engine is None or self._is_due:
            if self.engine is not None:
                self._spare = self.engine.tables
            self.engine = None  # an interrupted build leaves none, not a half-built one
            self.engine = build(self.options, W, bias, None, drawn_seed(self.seed),
                                step.n_threads, self._spare,
                                self.sums_of(W, bias, step.n_threads, self.options.center))
            self._spare = None
            if step.tally is not None:
                step.tally.hashing(W.size * self.n_projections, 4 * W.size, rebuilt=True)
        self._is_due = False
        return self.engine

    @property
    def hashes_in_bfloat16(self) -> bool:
        """Whether projections are products of factors rounded to bfloat16."""
        return getattr(self.options.family, "in_bfloat16", False)

    def hash_in(self, in_bfloat16: bool) -> None:
        """Compute projections, if the family knows both ways, in bfloat16 or in float32."""
        if getattr(self.options.family, "in_bfloat16", in_bfloat16) == in_bfloat16:
            return
        family: Any = copy.copy(self.options.family)
        family.in_bfloat16 = in_bfloat16
        self.options = replace(self.options, family=family)
        if self.engine is not None:
            self.engine.tables.family.in_bfloat16 = in_bfloat16

    def insert(self, x: Floats | CSR, labels: CSR, found: Ids, n_threads: int) -> None:
        """Add labels that their input did not find to the buckets that it read.

        Only with a policy that inserts: see :class:`sparselsh.rebuild.Frozen`.
        """
        if not self.inserts or self.engine is None:
            return
        samples = np.repeat(np.arange(len(found), dtype=np.int32), np.diff(labels.indptr))
        missed = ~(found[samples] == labels.indices[:, None]).any(axis=1)
        x = x.to_dense() if isinstance(x, CSR) else x
        self.engine.insert(x, samples[missed], labels.indices[missed], n_threads)

    def refresh(self, rows: Ids, n_threads: int, tally: Tally | None) -> None:
        """Hash the changed neurons `rows` again, if the policy does so at once."""
        if not self.rebuild.at_once or self.engine is None:
            return
        self.engine.follow_step(rows, n_threads)
        if tally is not None:
            tally.hashing(len(rows) * self.n_in * self.n_projections, 4 * len(rows) * self.n_in)

    def add_neurons(self, W: np.ndarray, bias: Floats, n_threads: int) -> None:
        """Add the rows of W from n_out on; those before have not changed."""
        if self.engine is not None:
            self.engine.add(W, bias, n_threads)
        self.n_out = len(W)

    def drop(self) -> None:
        """Discard the tables; the clock continues."""
        self.engine = self._spare = None

    def own(self) -> None:
        """Copy arrays that cannot be written, such as those that joblib has mapped from a file."""
        if self.engine is not None:
            self.engine.own_arrays()

    def rebind_weights(self, W: np.ndarray, bias: Floats) -> None:
        """Read these arrays from now on, which hold the same weights in another place."""
        if self.engine is not None:
            self.engine.rebind_weights(W, bias)

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """The tables as they are: arrays by name, and plain values."""
        if self.engine is None:
            return {}, {}
        tensors, plain = state(self.engine, exactly=True)
        return ({f"tables.{name}": a for name, a in tensors.items()},
                {"tables": plain, "hashes_in_bfloat16": self.hashes_in_bfloat16})

    def restore(self, W: np.ndarray, bias: Floats, parts: dict[str, dict[str, np.ndarray]],
                plain: dict[str, Any]) -> None:
        """Take what `state` gave, its arrays by part; it is checked."""
        if "tables" in plain:
            self.hash_in(plain.get("hashes_in_bfloat16") is True)
            self.engine = engine_of_layer(self.options, W, bias, parts["tables"], plain["tables"],
                                          resolve(None))


class _Neurons:
    """What a policy of the user's own may read: see :class:`sparselsh.protocols.Neurons`."""

    def __init__(self, finder: PolicyFinder, W: np.ndarray, bias: Floats, x: Floats,
                 step: Step) -> None:
        self._finder, self._stored, self._x, self._step = finder, W, x, step
        self.weight, self.bias = as_float32(W), bias
        self.seed, self.n_threads = step.seed, step.n_threads

    def collisions(self, n: int) -> tuple[Ids, Ids]:
        n = min(check.integer(n, "n"), len(self._stored))
        finder = self._finder
        return self._engine().candidates(self._x, n, self.n_threads, policy="top",
                                         min_count=finder.min_count, n_probes=finder.n_probes,
                                         seed=self.seed)

    def codes(self) -> Ids:
        return self._engine().tables.codes

    def _engine(self) -> IndexEngine:
        return self._finder.built(self._stored, self.bias, self._step)


class PolicyFinder(TableFinder):
    """Neurons that a policy of the user's own chooses.

    Parameters
    ----------
    n_in, n_out, rebuild, seed, family, min_count, n_probes
        As for :class:`TableFinder`; tables are built when the policy asks for them.
    policy : sampling policy
        See :class:`sparselsh.protocols.SamplingPolicy`.
    """

    def __init__(self, n_in: int, n_out: int, rebuild: Policy, seed: int, family: HashFamily,
                 policy: SamplingPolicy, min_count: int, n_probes: int) -> None:
        super().__init__(n_in, n_out, rebuild, seed, family, "top", min_count, n_probes)
        self.own_policy = policy

    def find(self, W: np.ndarray, bias: Floats, x: Floats | CSR, n: int, step: Step,
             inputs: Floats) -> Ids:
        x = x.to_dense() if isinstance(x, CSR) else x
        if step.tally is not None:
            step.tally.hashing(x.size * self.n_projections, 4 * x.shape[0] * self.n_projections)
        found = np.asarray(self.own_policy.choose(x, n, _Neurons(self, W, bias, x, step)))
        name = f"{type(self.own_policy).__name__}.choose"
        if (found.ndim != 2 or len(found) != x.shape[0] or found.shape[1] > n
                or found.dtype.kind not in "iu"):
            raise ValueError(f"{name} must give whole numbers of shape ({x.shape[0]}, up to {n}), "
                             f"got {found.dtype} of shape {found.shape}")
        if found.size and not (-1 <= found.min() and found.max() < self.n_out):
            raise ValueError(f"{name} must give neurons of 0 to {self.n_out - 1}, or -1, got "
                             f"{found.min()} to {found.max()}")
        return np.ascontiguousarray(found, np.int32)


class SketchFinder(Finder):
    """Neurons whose outputs sign sketches estimate as the largest.

    Parameters
    ----------
    n_in, n_out, rebuild, seed
        As for :class:`Finder`.
    sketch_bits : int
    """

    def __init__(self, n_in: int, n_out: int, rebuild: Policy, seed: int, sketch_bits: int) -> None:
        super().__init__(n_in, n_out, rebuild, seed)
        self.sketch_bits = sketch_bits
        self.sketches: ActiveSketches | None = None

    def drift(self) -> float:
        return 1.0 if self.sketches is None else self.sketches.drift(1)

    def find(self, W: np.ndarray, bias: Floats, x: Floats | CSR, n: int, step: Step,
             inputs: Floats) -> Ids:
        """Ids of n neurons per input, (n_samples, n) int32.

        `inputs`, (n_inputs, n_in), is a sample of the inputs of the last steps, by which sketches
        are scaled when they are built.
        """
        sketches = self._built(W, bias, step, inputs)
        if step.tally is not None:
            n_entries = x.nnz if isinstance(x, CSR) else x.size
            step.tally.hashing(n_entries * self.sketch_bits,
                               x.shape[0] * self.n_out * self.sketch_bits // 8)
        return sketches.best(x, n, step.n_threads)

    def _built(self, W: np.ndarray, bias: Floats, step: Step, inputs: Floats) -> ActiveSketches:
        """The sketches, rebuilt where that is due."""
        if self.sketches is None or self._is_due:
            sketches = self.sketches or self._new_sketches()
            self.sketches = None  # an interrupted build leaves none, not half-built ones
            sketches.rebuild(W, bias, inputs, step.n_threads)
            self.sketches = sketches
            if step.tally is not None:
                step.tally.hashing(sketches.rebuild_macs(len(inputs)), 4 * W.size, rebuilt=True)
        self._is_due = False
        return self.sketches

    def _new_sketches(self) -> ActiveSketches:
        return ActiveSketches(self.sketch_bits, self.n_out, self.n_in, self.seed)

    def insert(self, x: Floats | CSR, labels: CSR, found: Ids, n_threads: int) -> None:
        """Do nothing: sketches have no buckets."""

    def refresh(self, rows: Ids, n_threads: int, tally: Tally | None) -> None:
        """Hash the changed neurons `rows` again, if the policy does so at once."""
        if not self.rebuild.at_once or self.sketches is None:
            return
        self.sketches.refresh(rows, n_threads)
        if tally is not None:
            tally.hashing(len(rows) * self.n_in * self.sketch_bits, 4 * len(rows) * self.n_in)

    def add_neurons(self, W: np.ndarray, bias: Floats, n_threads: int) -> None:
        """Be built anew for the neurons of W: sketches of sets do not grow."""
        self.sketches = None
        self.n_out = len(W)

    def drop(self) -> None:
        """Discard the sketches; the clock continues."""
        self.sketches = None

    def own(self) -> None:
        """Copy arrays that cannot be written, such as those that joblib has mapped from a file."""
        if self.sketches is not None:
            own_arrays(self.sketches, but=("_W", "_bias"))

    def rebind_weights(self, W: np.ndarray, bias: Floats) -> None:
        """Read these arrays from now on, which hold the same weights in another place."""
        if self.sketches is not None:
            self.sketches.rebind_weights(W, bias)

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """The sketches as they are: arrays by name, and no plain values."""
        if self.sketches is None:
            return {}, {}
        return {f"sets.{name}": a for name, a in self.sketches.tensors().items()}, {}

    def restore(self, W: np.ndarray, bias: Floats, parts: dict[str, dict[str, np.ndarray]],
                plain: dict[str, Any]) -> None:
        """Take what `state` gave, its arrays by part; it is checked."""
        if parts["sets"]:
            self.sketches = self._new_sketches()
            self.sketches.restore(W, bias, parts["sets"])


def new_finder(policy: str | SamplingPolicy, n_in: int, n_out: int, rebuild: Policy | None,
               seed: int, **options: Any) -> TableFinder | SketchFinder:
    """The finder of a policy of :class:`LSHLinear`; `rebuild` is None for the policy's own."""
    if isinstance(policy, str) and policy == "sketches":
        rebuild = rebuild_policies.Exponential() if rebuild is None else rebuild
        return SketchFinder(n_in, n_out, rebuild, seed, options["sketch_bits"])
    rebuild = rebuild_policies.AtOnce() if rebuild is None else rebuild
    kind: Any = TableFinder if isinstance(policy, str) else PolicyFinder
    return kind(n_in, n_out, rebuild, seed, options["family"], policy, options["min_count"],
                options["n_probes"])
