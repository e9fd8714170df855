"""Training: layers, a loss and an optimizer, and one step of them.

    forward ─► loss ─► backward ─► optimizer ─► layers update their indexes
"""
from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from .._arrays.batch_active import BatchActive
from .._arrays.csr import CSR
from ..layers import Step, places_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import ArrayLike

    from .._arrays.types import Floats
    from ..callbacks import Callback
    from ..layers import Linear, Tally
    from ..losses import Loss
    from ..optim import SGD, Adam
    from ._progress import TrainingProgress

# Random numbers are functions of a counter.
SEEDS_PER_STEP = 64  # seeds that one step may use
SEEDS_PER_LAYER = 8  # seeds that one layer may use in a step


class Training:
    """Training state of a network, and one training step.

    Parameters
    ----------
    layers : sequence of Linear
    loss : loss object
    rng : numpy.random.Generator
        Draws initial weights and the order of samples.

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
    """

    def __init__(self, layers: Sequence[Linear], loss: Loss, rng: np.random.Generator) -> None:
        self.layers, self.loss, self.rng = layers, loss, rng
        self.places = places_of(layers)
        self.optimizer: SGD | Adam | None = None
        self.n_steps = 0
        self.history: list[dict[str, Any]] = []
        self.computed_share = 1.0
        self.progress: TrainingProgress | None = None
        self.callbacks: Sequence[Callback] = ()

    def begin(self, optimizer: SGD | Adam, sparse_input: bool) -> None:
        """Set the optimizer, and draw initial weights for layers that have none."""
        self.optimizer = optimizer
        for i, layer in enumerate(self.layers):
            if not layer.initialized:
                fraction = self.layers[i - 1].output_fraction() if i else 1.0
                layer.initialize(self.rng, sparse_input=i == 0 and sparse_input,
                                 input_fraction=fraction)

    def step(self, x: Floats | CSR, labels: CSR, fraction_done: float,
             sample_weight: ArrayLike | None, n_threads: int,
             tallies: Sequence[Tally] | None = None) -> tuple[float, float]:
        """Train on one batch.

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

        Returns
        -------
        loss : float
            Mean over the samples.
        computed_fraction : float
            Fraction of the output neurons that were computed.
        """
        last = len(self.layers) - 1
        backward = []
        for i, layer in enumerate(self.layers):
            layer.prepare(self.n_steps, len(self.history), self.places[i])
            tally = None if tallies is None else tallies[i]
            seed = self.n_steps * SEEDS_PER_STEP + i * SEEDS_PER_LAYER
            step = Step(True, labels if i == last else None, seed, i > 0, n_threads, tally,
                        self.places[i])
            with _clocked(tally, "forward"):
                out, backprop = layer.forward(x, step)
            if tally is not None:
                tally.batch(x, out)
            x = out
            backward.append((backprop, tally))

        computed_fraction = _computed_fraction(x)
        loss, d_out = self.loss(x, labels, sample_weight=sample_weight, n_threads=n_threads)

        pairs_of = []
        for backprop, tally in reversed(backward):
            with _clocked(tally, "backward"):
                d_out, pairs = backprop(d_out)
            pairs_of.append((pairs, tally))
        all_pairs = [pair for pairs, _ in pairs_of for pair in pairs]
        with _clocked(tallies[0] if tallies else None, "update"):
            self.optimizer.step(all_pairs, progress=fraction_done, n_threads=n_threads)

        for layer, (pairs, tally) in zip(reversed(self.layers), pairs_of, strict=True):
            layer.updated(pairs, n_threads, tally)
        self.n_steps += 1
        return loss, computed_fraction


@contextlib.contextmanager
def _clocked(tally: Tally | None, phase: str) -> Iterator[None]:
    """Add the wall-clock seconds of the block to a phase of the tally, if there is one."""
    begin = time.perf_counter()
    yield
    if tally:
        tally.seconds[phase] += time.perf_counter() - begin


def _computed_fraction(output: Floats | BatchActive | CSR) -> float:
    """Fraction of the output neurons that an output holds."""
    if isinstance(output, BatchActive):
        return len(output.ids) / output.n_out
    if isinstance(output, CSR):
        return output.nnz / max(1, output.shape[0] * output.shape[1])
    return 1.0
