"""Training: layers, a loss and an optimizer, and one step of them.

    forward ─► loss ─► backward │ optimizer ─► layers update their indexes ─► counts

An error to the left of the bar undoes the step, one to the right lets it be finished later.
"""
from __future__ import annotations

import contextlib
import math
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from .._arrays.batch_active import BatchActive, SegmentedActive
from .._arrays.csr import CSR
from ..callbacks import ActiveSet
from ..layers import Step, places_of
from ._attempt import Attempt, Backup, diverged

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import ArrayLike

    from .._arrays.types import Floats, Ids
    from ..callbacks import Callback
    from ..layers import Linear, Tally
    from ..losses import Loss
    from ..optim import Optimizer
    from ._attempt import Diverged
    from ._progress import TrainingProgress

# Random numbers are functions of a counter.
SEEDS_PER_STEP = 64  # seeds that one step may use
SEEDS_PER_LAYER = 8  # seeds that one layer may use in a step

# A step is looked at closely where the loss or the rate is above these, and keeps a backup of the
# weights where they may then change by more than MAX_PLAIN_CHANGE. Even products of two such
# weights are far below the largest float32, 3e38.
MAX_PLAIN_LOSS = 1e4
MAX_PLAIN_RATE = 1e2
MAX_PLAIN_CHANGE = 1e6
MAX_PLAIN_GRADIENT = 1e15  # its square, the second moment, is far below the largest float32


class Training:
    """Training state of a network, and one training step.

    Parameters
    ----------
    layers : sequence of Linear
    loss : loss object
    rng : numpy.random.Generator
        Draws initial weights and the order of samples.
    compute_dtype : {"float32", "bfloat16"}
        See :class:`Network`.

    Attributes
    ----------
    places : list of Place
        Position of each layer in the network.
    optimizer : SGD, Adam or None
        None before the first training.
    n_steps : int
        Steps taken so far, over all trainings.
    history : list of dict
        One entry per epoch.
    computed_share : float
        Fraction of the output neurons that the last epoch computed.
    progress : TrainingProgress or None
        Progress of the current training, or of the last one.
    callbacks : sequence of Callback
        Callbacks of the current training.
    attempt : Attempt or None
        A step that runs, or that an error has left to be finished by `settle`.
    watches_sets : bool
        Whether each step lists its active sets.
    active_sets : list of ActiveSet
        Those of the last step, if they are listed.
    """

    def __init__(self, layers: Sequence[Linear], loss: Loss, rng: np.random.Generator,
                 compute_dtype: str = "float32") -> None:
        self.layers, self.loss, self.rng = layers, loss, rng
        self.compute_dtype = compute_dtype
        self.places = places_of(layers)
        self.optimizer: Optimizer | None = None
        self.n_steps = 0
        self.history: list[dict[str, Any]] = []
        self.computed_share = 1.0
        self.progress: TrainingProgress | None = None
        self.callbacks: Sequence[Callback] = ()
        self.attempt: Attempt | None = None
        self.watches_sets = False
        self.active_sets: list[ActiveSet] = []
        self._backup: Backup | None = None  # of before a step whose weights have not proved good

    def begin(self, optimizer: Optimizer, sparse_input: bool) -> None:
        """Set the optimizer, and draw initial weights for layers that have none."""
        drawn, generator = [], self.rng.bit_generator.state
        try:
            for i, layer in enumerate(self.layers):
                if layer.initialized:
                    layer.own()
                    continue
                drawn.append(layer)
                fraction = self.layers[i - 1].output_fraction() if i else 1.0
                layer.initialize(self.rng, sparse_input=i == 0 and sparse_input,
                                 input_fraction=fraction)
        except BaseException:
            self.forget_weights(drawn, generator)
            raise
        self.optimizer = optimizer

    def forget_weights(self, layers: Sequence[Linear], generator: Any) -> None:
        """Return to the state before these layers drew weights, from a state of the generator."""
        for layer in layers:
            layer.forget_weights()
        self.rng.bit_generator.state = generator

    def step(self, x: Floats | CSR, labels: CSR, fraction_done: float,
             sample_weight: ArrayLike | None, n_threads: int,
             tallies: Sequence[Tally] | None = None,
             count: Callable[[float, float], None] | None = None) -> tuple[float, float]:
        """Train on one batch, or leave everything as it was.

        An error after the first change of a weight, when memory is short, leaves the rest of the
        step to be done by `settle`, at the latest by the next call of the network.

        Parameters
        ----------
        x : ndarray or CSR of shape (n_samples, n_features)
        labels : CSR of shape (n_samples, n_labels)
        fraction_done : float
            Fraction of the training that is done, in [0, 1], for the learning-rate schedule.
        sample_weight : ndarray of shape (n_samples,) or None
        n_threads : int
        tallies : sequence of Tally or None
            One per layer, to count and time what is computed.
        count : callable or None
            Called with what is returned, as a part of the step.

        Raises
        ------
        Diverged
            If the loss, or a weight after the step, is not finite. The step is undone; so is the
            one before, if it may have caused that.

        Returns
        -------
        loss : float
            Mean over the samples.
        computed_fraction : float
            Fraction of the output neurons that were computed.
        """
        self.settle()
        attempt = Attempt(self.layers, fraction_done, n_threads, count)
        self.attempt = attempt
        try:
            attempt.is_running = True
            self._compute(attempt, x, labels, sample_weight, tallies)
            self._apply(attempt, tallies)
        except BaseException:
            attempt.is_running = False
            with contextlib.suppress(Exception):  # if memory is short again, then later
                self.settle()
            raise
        return attempt.loss, attempt.computed

    def settle(self) -> None:
        """Finish or undo a step that an error has ended.

        Raises
        ------
        RuntimeError
            If the step runs: the caller is a signal handler in the middle of it.
        MemoryError
            If memory is still too short to finish it.
        """
        attempt = self.attempt
        if attempt is None:
            return
        if attempt.is_running:
            raise RuntimeError("a training step of this network is running: a signal handler must "
                               "not use the network; let it set a flag, and act on the flag in "
                               "Callback.on_step")
        if attempt.is_updated or self.optimizer.has_begun_step:
            self._apply(attempt, None)
        else:
            self.optimizer.forget_step()
            attempt.undo(self.layers)
            self.attempt = None

    def _compute(self, attempt: Attempt, x: Floats | CSR, labels: CSR,
                 sample_weight: ArrayLike | None, tallies: Sequence[Tally] | None) -> None:
        """Loss and gradients; all that changes can be undone."""
        last, n_threads = len(self.layers) - 1, attempt.n_threads
        inputs, backward = [], []
        self.active_sets = []
        for i, layer in enumerate(self.layers):
            layer.prepare(self.n_steps, len(self.history), self.places[i])
            tally = None if tallies is None else tallies[i]
            seed = self.n_steps * SEEDS_PER_STEP + i * SEEDS_PER_LAYER
            found: list[Ids] | None = [] if self.watches_sets else None
            step = Step(True, labels if i == last else None, seed, i > 0, n_threads, tally,
                        self.places[i], found, self.compute_dtype == "bfloat16")
            with _clocked(tally, "forward"):
                out, backprop = layer.forward(x, step)
            if found is not None and isinstance(out, (BatchActive, CSR)):
                self.active_sets.append(_active_set(i, out, found, step.labels))
            if tally is not None:
                tally.batch(x, out)
            inputs.append(x)
            x = out
            backward.append((layer, backprop, tally))

        attempt.computed = _computed_fraction(x)
        attempt.loss, d_out = self.loss(x, labels, sample_weight=sample_weight,
                                        n_threads=n_threads)
        if not math.isfinite(attempt.loss):
            raise self._divergence(f"the loss of step {self.n_steps + 1} is {attempt.loss}",
                                   attempt)
        self._backup = None  # the weights are good

        rate = self.optimizer.lr  # schedules lower it
        is_watched = not (attempt.loss < MAX_PLAIN_LOSS and rate < MAX_PLAIN_RATE)
        largest = 0.0  # bound of the entries of the gradients
        for x, (layer, backprop, tally) in zip(reversed(inputs), reversed(backward), strict=True):
            if is_watched:
                bound = labels.shape[0] * self._largest(x, d_out)
                largest = bound if not bound < largest else largest  # NaN is larger
            with _clocked(tally, "backward"):
                d_out, pairs = backprop(d_out)
            attempt.pairs_of.append((layer, pairs, tally))
        attempt.pairs = [pair for _, pairs, _ in attempt.pairs_of for pair in pairs]
        if is_watched and not (largest < MAX_PLAIN_GRADIENT
                               and self.optimizer.largest_change(rate, largest) < MAX_PLAIN_CHANGE):
            self._backup = Backup(self.layers, self.optimizer)

    def _apply(self, attempt: Attempt, tallies: Sequence[Tally] | None) -> None:
        """The rest of a step, which is repeatable from where an error has ended it."""
        if not attempt.is_updated:
            with _clocked(tallies[0] if tallies else None, "update"):
                self.optimizer.step(attempt.pairs, progress=attempt.fraction_done,
                                    n_threads=attempt.n_threads)
            if self._backup is not None and not self._is_finite():
                raise self._divergence(f"step {self.n_steps + 1} gave weights that are not finite",
                                       attempt)
            attempt.is_updated = True
        for layer, pairs, tally in attempt.pairs_of[attempt.n_followed:]:
            layer.updated(pairs, attempt.n_threads, tally)
            attempt.n_followed += 1
        if attempt.count is not None:
            attempt.count(attempt.loss, attempt.computed)
            attempt.count = None
        self.__dict__.update(n_steps=self.n_steps + 1, attempt=None)

    def _divergence(self, what: str, attempt: Attempt) -> Diverged:
        """The error for the step that runs; returns to the weights that were good."""
        kept = "; the step was undone"
        if self._backup is not None:
            self._backup.restore(self.layers, self.optimizer)
            self._backup = None
            kept = "; the weights are again those of before the last large change"
        elif not self._is_finite():
            kept = "; weights are no longer finite: load a file, or fit a new network"
        rate = self.optimizer.rate(attempt.fraction_done)
        return diverged(f"{what}, at learning rate {rate:g} (lr={self.optimizer.lr:g}){kept}")

    def _is_finite(self) -> bool:
        """Whether all weights are finite."""
        return all(layer.is_finite() for layer in self.layers)

    def _largest(self, x: Floats | CSR, d_out: Floats | CSR) -> float:
        """A bound of the products of an input and the gradient of an output."""
        return _largest(x) * _largest(d_out)

    def agreed(self, is_stopped: bool) -> bool:
        """Whether the training ends after an epoch, where callbacks of this process say so."""
        return is_stopped

    def skip(self) -> None:
        """Count a step that was undone as taken, so that the next one has other seeds."""
        self.n_steps += 1


@contextlib.contextmanager
def _clocked(tally: Tally | None, phase: str) -> Iterator[None]:
    """Add the wall-clock seconds of the block to a phase of the tally, if there is one."""
    begin = time.perf_counter()
    yield
    if tally:
        tally.seconds[phase] += time.perf_counter() - begin


def _active_set(layer: int, out: BatchActive | CSR, found: list[Ids],
                labels: CSR | None) -> ActiveSet:
    """What `Callback.on_active_sets` gets of the output of a layer."""
    n_neurons, starts = out.n_out if isinstance(out, BatchActive) else out.n_columns, None
    ids = out.ids if isinstance(out, BatchActive) else out.indices
    if isinstance(out, CSR):
        starts = out.indptr
    return ActiveSet(layer, ids, starts, found[0] if found else None, labels, n_neurons)


def _largest(values: Floats | CSR) -> float:
    """The largest absolute value, or NaN where there is one."""
    entries = values.data if isinstance(values, CSR) else values
    return max(abs(float(entries.min())), abs(float(entries.max()))) if entries.size else 0.0


def _computed_fraction(output: Floats | BatchActive | CSR) -> float:
    """Fraction of the output neurons that an output holds."""
    if isinstance(output, (BatchActive, SegmentedActive)):
        return len(output.ids) / output.n_out
    if isinstance(output, CSR):
        return output.nnz / max(1, output.shape[0] * output.shape[1])
    return 1.0
