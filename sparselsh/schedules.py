"""Schedules: the learning rate, and the momentum, as functions of the progress of a training.

An optimizer asks ``schedule(t)`` for a factor of its learning rate, t the share of the training that is done, in
[0, 1). Any function of t serves. The classes here are such functions that print and compare; one that also has
``momentum_at(t)`` sets the momentum (beta1 of Adam) at each step.
"""
from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from . import _validation as check

__all__ = ["Cosine", "Linear", "OneCycle", "Step", "WarmUp"]


def _cosine(start: float, end: float, t: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * t))


def _linear(start: float, end: float, t: float) -> float:
    return start + (end - start) * t


SHAPES = {"cosine": _cosine, "linear": _linear}


@dataclass(frozen=True)
class Linear:
    """From 1 to `end` along a line: ``1 + (end - 1) t``.

    Parameters
    ----------
    end : float
        The last factor, in [0, 1].
    """

    end: float = 0.0

    def __post_init__(self) -> None:
        check.number(self.end, "end", minimum=0, maximum=1)

    def __call__(self, t: float) -> float:
        return _linear(1.0, self.end, t)


@dataclass(frozen=True)
class Cosine:
    """From 1 to `end` along half a cosine: ``end + (1 - end) (1 + cos(pi t)) / 2``.

    Parameters
    ----------
    end : float
        The last factor, in [0, 1].

    References
    ----------
    Loshchilov and Hutter, "SGDR: stochastic gradient descent with warm restarts", 2017, equation 5, one cycle of it.
    """

    end: float = 0.0

    def __post_init__(self) -> None:
        check.number(self.end, "end", minimum=0, maximum=1)

    def __call__(self, t: float) -> float:
        return _cosine(1.0, self.end, t)


@dataclass(frozen=True)
class Step:
    """Multiplied by `factor` at each of some points: ``factor ** (number of points at or before t)``.

    Parameters
    ----------
    at : tuple of float
        Shares of the training, rising, each above 0 and below 1.
    factor : float
        In (0, 1].
    """

    at: tuple = (0.5, 0.75)
    factor: float = 0.1

    def __post_init__(self) -> None:
        try:
            points = tuple(self.at)
        except TypeError:
            raise TypeError(f"at must be a sequence of shares of the training, got {self.at!r}") from None
        points = tuple(check.number(point, f"at[{i}]", above=0, below=1) for i, point in enumerate(points))
        if list(points) != sorted(set(points)):
            raise ValueError(f"at must rise, got {self.at!r}")
        check.number(self.factor, "factor", above=0, maximum=1)
        object.__setattr__(self, "at", points)

    def __call__(self, t: float) -> float:
        return self.factor ** sum(t >= point for point in self.at)


@dataclass(frozen=True)
class WarmUp:
    """A rise from `start` to 1 along a line, then another schedule over the rest.

    Parameters
    ----------
    share : float
        Share of the training that the rise takes, above 0 and below 1.
    then : None, "linear", "cosine", schedule or function
        What follows; it runs from 0 to 1 over the rest of the training. None stays at 1.
    start : float
        The first factor, in [0, 1].

    References
    ----------
    Goyal et al., "Accurate, large minibatch SGD: training ImageNet in 1 hour", 2017, section 2.2, gradual warm-up.
    """

    share: float = 0.05
    then: object = None
    start: float = 0.0

    def __post_init__(self) -> None:
        check.number(self.share, "share", above=0, below=1)
        check.number(self.start, "start", minimum=0, maximum=1)
        object.__setattr__(self, "then", checked(self.then, "then"))

    def __call__(self, t: float) -> float:
        return _linear(self.start, 1.0, t / self.share) if t < self.share else factor(self.then, self._rest(t))

    def momentum_at(self, t: float) -> float | None:
        """That of `then`, which does not begin before the rise is over; None where it leaves the momentum alone."""
        return momentum(self.then, max(0.0, self._rest(t)))

    def _rest(self, t: float) -> float:
        return (t - self.share) / (1 - self.share)


@dataclass(frozen=True)
class OneCycle:
    """Up to the optimizer's learning rate and down again, far below the start; the momentum goes the other way.

    The factor rises from `start` to 1 until the share `peak` of the training is done, then falls to `end`. With the
    defaults these are the factors of torch's OneCycleLR with the optimizer's `lr` as its `max_lr`.

    Parameters
    ----------
    peak : float
        Share of the training at which the factor is 1, above 0 and below 1.
    start, end : float
        First and last factor, in [0, 1].
    momentum : pair of float or None
        The momentum at the peak, and that at both ends: beta1 of Adam, `momentum` of an SGD that has one. None leaves
        it alone.
    shape : {"cosine", "linear"}

    References
    ----------
    Smith and Topin, "Super-convergence: very fast training of neural networks using large learning rates", 2017,
    section 3.
    """

    peak: float = 0.3
    start: float = 1 / 25
    end: float = 1 / 25e4
    momentum: tuple | None = (0.85, 0.95)
    shape: str = "cosine"

    def __post_init__(self) -> None:
        check.number(self.peak, "peak", above=0, below=1)
        for name in ("start", "end"):
            check.number(getattr(self, name), name, minimum=0, maximum=1)
        check.choice(self.shape, "shape", tuple(SHAPES))
        if self.momentum is not None:
            try:
                low, high = self.momentum
            except (TypeError, ValueError):
                raise ValueError(f"momentum must be a pair of numbers or None, got {self.momentum!r}") from None
            pair = (check.number(low, "momentum[0]", minimum=0, below=1),
                    check.number(high, "momentum[1]", minimum=0, below=1))
            object.__setattr__(self, "momentum", pair)

    def __call__(self, t: float) -> float:
        return self._at(t, self.start, 1.0, self.end)

    def momentum_at(self, t: float) -> float | None:
        """The momentum at the progress t, or None."""
        return None if self.momentum is None else self._at(t, self.momentum[1], self.momentum[0], self.momentum[1])

    def _at(self, t: float, first: float, middle: float, last: float) -> float:
        between = SHAPES[self.shape]
        if t < self.peak:
            return between(first, middle, t / self.peak)
        return between(middle, last, min(1.0, (t - self.peak) / (1 - self.peak)))


NAMED = {None: None, "linear": Linear(), "cosine": Cosine()}


def checked(schedule: Any, name: str = "schedule") -> Any:
    """The schedule if it is one: None, a name or something to call."""
    if callable(schedule) or schedule is None or (isinstance(schedule, str) and schedule in NAMED):
        return schedule
    names = ", ".join(repr(known) for known in NAMED)
    raise ValueError(f"{name} must be one of {names}, a schedule such as OneCycle() or a function of the progress in "
                     f"[0, 1], got {schedule!r}")


def factor(schedule: Any, t: float) -> float:
    """The factor of the learning rate at the progress t."""
    schedule = schedule if callable(schedule) else NAMED[schedule]
    return 1.0 if schedule is None else schedule(t)


def momentum(schedule: Any, t: float) -> float | None:
    """The momentum at the progress t, or None where the schedule leaves it alone."""
    at = getattr(schedule, "momentum_at", None)
    return None if at is None else at(t)
