"""Attempt: a training step that has begun, which is finished or undone.

A step computes, and then applies what it has computed. An error in the first part leaves the
weights as they were, and what else has changed is undone. An error in the second part, once a
weight has changed, leaves the rest to be done: it is repeatable, and done at the next opportunity.
Either way a step is whole or did not happen, and a training that is resumed gets the same bits.
"""
from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .._gradients import Pair
    from ..layers import Linear, Tally


class Diverged(FloatingPointError):
    """A loss that is not finite; the step was undone.

    Attributes
    ----------
    what : str
        What has happened, without the remedies.
    """

    what = ""


def diverged(what: str) -> Diverged:
    """The error for a loss or for weights that are not finite."""
    error = Diverged(f"{what}; try a learning rate (lr) ten times smaller, clip_norm=1.0 in the "
                     "optimizer, or inputs of norm 1; on_nonfinite='warn' skips such steps, and "
                     "'restore' ends the training with the weights of its last good epoch")
    error.what = what
    return error


class Attempt:
    """A step between its beginning and its end.

    Attributes
    ----------
    states : list
        `step_state` of each layer before the step.
    is_running : bool
        False after an error.
    loss, computed : float
        What the step returns.
    pairs_of : list of (layer, pairs, tally)
        Gradients of each layer, once all are computed.
    pairs : list of (parameter, gradient)
        All of them.
    is_updated : bool
        Whether the optimizer has applied all of them.
    n_followed : int
        Layers whose indexes have followed.
    """

    def __init__(self, layers: Sequence[Linear], fraction_done: float, n_threads: int,
                 count: Callable[[float, float], None] | None) -> None:
        self.states = [layer.step_state() for layer in layers]
        self.fraction_done, self.n_threads, self.count = fraction_done, n_threads, count
        self.is_running = False
        self.loss = self.computed = 0.0
        self.pairs_of: list[tuple[Linear, list[Pair], Tally | None]] = []
        self.pairs: list[Pair] = []
        self.is_updated = False
        self.n_followed = 0

    def undo(self, layers: Sequence[Linear]) -> None:
        """Leave the layers as they were; no weight has changed."""
        for layer, state in zip(layers, self.states, strict=True):
            layer.undo_step(state)


class Backup:
    """Copies of weights and optimizer state, of before a step after which they may overflow."""

    def __init__(self, layers: Sequence[Linear], optimizer: Any) -> None:
        self.weights = [layer.copy_weights() for layer in layers]
        self.parameters = [parameter for layer in layers for parameter in layer.parameters]
        self.state = optimizer.copied_state(self.parameters)

    def restore(self, layers: Sequence[Linear], optimizer: Any) -> None:
        """Return to them; indexes are dropped, and built again when needed."""
        for layer, weights in zip(layers, self.weights, strict=True):
            layer.load_weights(*weights)
        n_steps = optimizer.n_steps
        optimizer.take_state(self.parameters, self.state)
        optimizer.n_steps = n_steps
