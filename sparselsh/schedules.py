"""Schedules: the learning rate and the momentum as functions of the progress of training.

An optimizer multiplies its learning rate by ``schedule(t)``; t in [0, 1) is the completed fraction
of the training. Any function of t is a schedule. The classes here are such functions that can be
printed and compared; one that also has ``momentum_at(t)`` sets the momentum (beta1 of Adam) at each
step.
"""
from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from . import _validation as check
from ._core import _portable_math

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Cosine", "Linear", "OneCycle", "Step", "WarmUp"]

Schedule: TypeAlias = "str | Callable[[float], float] | None"


def _cosine(start: float, end: float, t: float) -> float:
    return end + (start - end) / 2 * (1 + _portable_math.cos_pi(t))


def _linear(start: float, end: float, t: float) -> float:
    return start + (end - start) * t


SHAPES = {"cosine": _cosine, "linear": _linear}


@dataclass(frozen=True)
class Linear:
    """Linear decay from 1 to `end`: ``1 + (end - 1) t``.

    Parameters
    ----------
    end : float
        The last factor, in [0, 1].

    Raises
    ------
    TypeError, ValueError
        If `end` does not fit.
    """

    end: float = 0.0

    def __post_init__(self) -> None:
        check.number(self.end, "end", minimum=0, maximum=1)

    def __call__(self, t: float) -> float:
        return _linear(1.0, self.end, t)


@dataclass(frozen=True)
class Cosine:
    """Cosine decay from 1 to `end`: ``end + (1 - end) (1 + cos(pi t)) / 2``.

    Parameters
    ----------
    end : float
        The last factor, in [0, 1].

    Raises
    ------
    TypeError, ValueError
        If `end` does not fit.

    References
    ----------
    Loshchilov and Hutter, "SGDR: stochastic gradient descent with warm restarts", 2017, equation 5,
    for one cycle.
    """

    end: float = 0.0

    def __post_init__(self) -> None:
        check.number(self.end, "end", minimum=0, maximum=1)

    def __call__(self, t: float) -> float:
        return _cosine(1.0, self.end, t)


@dataclass(frozen=True)
class Step:
    """A decay by `factor` at each of some points: ``factor ** (number of points at or before t)``.

    Parameters
    ----------
    at : tuple of float
        The points, as fractions of the training: increasing, each above 0 and below 1.
    factor : float
        In (0, 1].

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit.
    """

    at: tuple[float, ...] = (0.5, 0.75)
    factor: float = 0.1

    def __post_init__(self) -> None:
        try:
            points = tuple(self.at)
        except TypeError:
            raise TypeError(f"at must be a sequence of fractions of the training, "
                            f"got {self.at!r}") from None
        points = tuple(check.number(point, f"at[{i}]", above=0, below=1)
                       for i, point in enumerate(points))
        if list(points) != sorted(set(points)):
            raise ValueError(f"at must rise, got {self.at!r}")
        check.number(self.factor, "factor", above=0, maximum=1)
        object.__setattr__(self, "at", points)

    def __call__(self, t: float) -> float:
        return math.prod(self.factor for point in self.at if t >= point)


@dataclass(frozen=True)
class WarmUp:
    """A linear rise from `start` to 1, then another schedule over the rest of the training.

    Parameters
    ----------
    share : float
        Fraction of the training that the rise takes, above 0 and below 1.
    then : None, "linear", "cosine", schedule or function
        The schedule after the rise; its t runs from 0 to 1 over the rest of the training. None
        stays at 1.
    start : float
        The first factor, in [0, 1].

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit.

    References
    ----------
    Goyal et al., "Accurate, large minibatch SGD: training ImageNet in 1 hour", 2017, section 2.2,
    gradual warm-up.
    """

    share: float = 0.05
    then: Schedule = None
    start: float = 0.0

    def __post_init__(self) -> None:
        check.number(self.share, "share", above=0, below=1)
        check.number(self.start, "start", minimum=0, maximum=1)
        object.__setattr__(self, "then", checked(self.then, "then"))

    def __call__(self, t: float) -> float:
        if t < self.share:
            return _linear(self.start, 1.0, t / self.share)
        return factor(self.then, self._rest(t))

    def momentum_at(self, t: float) -> float | None:
        """The momentum of `then`, at its start during the rise; None where `then` does not set it.

        Parameters
        ----------
        t : float
            The completed fraction of the training.

        Returns
        -------
        float or None
        """
        return momentum(self.then, max(0.0, self._rest(t)))

    def _rest(self, t: float) -> float:
        return (t - self.share) / (1 - self.share)


@dataclass(frozen=True)
class OneCycle:
    """One cycle: the learning rate rises and then falls far below its start.

    The momentum falls and rises. The factor of the learning rate rises from `start` to 1 until the
    fraction `peak` of the training is done, then falls to `end`. With the defaults these are the
    factors of torch's OneCycleLR with the optimizer's `lr` as its `max_lr`.

    Parameters
    ----------
    peak : float
        Fraction of the training at which the factor is 1, above 0 and below 1.
    start, end : float
        First and last factor, in [0, 1].
    momentum : pair of float or None
        The momentum at the peak, and that at both ends, each in [0, 1): beta1 of Adam, `momentum`
        of an SGD that has one. None does not change it.
    shape : {"cosine", "linear"}
        How the values change between these points.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit.

    References
    ----------
    Smith and Topin, "Super-convergence: very fast training of neural networks using large learning
    rates", 2017, section 3.
    """

    peak: float = 0.3
    start: float = 1 / 25
    end: float = 1 / 25e4
    momentum: tuple[float, float] | None = (0.85, 0.95)
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
                raise ValueError("momentum must be a pair of numbers or None, "
                                 f"got {self.momentum!r}") from None
            pair = (check.number(low, "momentum[0]", minimum=0, below=1),
                    check.number(high, "momentum[1]", minimum=0, below=1))
            object.__setattr__(self, "momentum", pair)

    def __call__(self, t: float) -> float:
        return self._at(t, self.start, 1.0, self.end)

    def momentum_at(self, t: float) -> float | None:
        """The momentum at t, or None.

        Parameters
        ----------
        t : float
            The completed fraction of the training.

        Returns
        -------
        float or None
        """
        if self.momentum is None:
            return None
        return self._at(t, self.momentum[1], self.momentum[0], self.momentum[1])

    def _at(self, t: float, first: float, middle: float, last: float) -> float:
        between = SHAPES[self.shape]
        if t < self.peak:
            return between(first, middle, t / self.peak)
        return between(middle, last, min(1.0, (t - self.peak) / (1 - self.peak)))


NAMED: dict[str | None, Callable[[float], float] | None] = {
    None: None, "linear": Linear(), "cosine": Cosine()}


def checked(schedule: Schedule, name: str = "schedule") -> Schedule:
    """The schedule: None, a name or a callable; ValueError for anything else."""
    if callable(schedule) or schedule is None or (isinstance(schedule, str) and schedule in NAMED):
        return schedule
    names = ", ".join(repr(known) for known in NAMED)
    raise ValueError(f"{name} must be one of {names}, a schedule such as OneCycle() or a function "
                     f"of the progress in [0, 1], got {schedule!r}")


def factor(schedule: Schedule, t: float) -> float:
    """The factor of the learning rate at the progress t."""
    at = schedule if callable(schedule) else NAMED[schedule]
    return 1.0 if at is None else at(t)


def momentum(schedule: Schedule, t: float) -> float | None:
    """The momentum at the progress t, or None where the schedule does not set it."""
    at = getattr(schedule, "momentum_at", None)
    return None if at is None else at(t)
