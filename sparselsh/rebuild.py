"""Rebuild policies: when the hash tables of a layer are rebuilt.

Weights change at every step, and hashing them costs as much as some of the products that hashing
saves. A policy defines whether rows are hashed again as soon as a step has touched them
(``at_once``), and ``start()`` gives a clock, which decides before each step whether a layer
rebuilds its tables. A policy holds no state and may be shared by many layers. The choice of a plan
assumes ``typical_interval`` steps between builds.
"""
from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from . import _validation as check
from ._core import _portable_math

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["AtOnce", "Every", "Exponential", "Frozen", "OnDrift"]


class Clock:
    """Decides when to rebuild: at the first step, then at intervals that grow by a factor."""

    def __init__(self, interval: float, growth: float) -> None:
        self._interval, self._growth = interval, growth
        self._next: float = -math.inf

    def due(self, step: int, epoch: int, drift: Callable[[], float]) -> bool:
        """Whether to build before this step.

        Parameters
        ----------
        step, epoch : int
            Steps and whole epochs trained so far.
        drift : callable
            Gives the fraction of the hash codes of a sample of neurons that have changed since the
            last build.

        Returns
        -------
        bool
        """
        if step < self._next:
            return False
        self._next = step + max(1, round(self._interval))
        self._interval *= self._growth
        return True

    def inserts(self, epoch: int) -> bool:
        """Whether labels that were not found are added to the buckets that their inputs read."""
        return False

    def state(self) -> dict[str, Any]:
        """The state of the clock, as plain values, for a checkpoint."""
        return {"interval": self._interval, "next": None if self._next == -math.inf else self._next}

    def restore(self, state: dict[str, Any]) -> None:
        """Take what `state` gave; it is checked."""
        self._interval = check.number(state["interval"], "interval", above=0)
        following = state["next"]
        if following is None:
            self._next = -math.inf
        else:
            self._next = check.integer(following, "next", minimum=0, maximum=2**62)


@dataclass(frozen=True)
class AtOnce:
    """Rows that a step has touched are hashed again at once.

    All rows, with a new mean neuron, are hashed again at growing intervals. The tables always match
    the weights. A step hashes as many rows as it touches: that is cheap for an output layer with
    few inputs, and expensive for a wide layer with many.

    Parameters
    ----------
    first : int
        Steps between the first build and the first rebuild of all rows.
    growth : float
        Factor by which the interval grows after each rebuild, at least 1.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit.
    """

    first: int = 32
    growth: float = 1.5

    at_once = True
    typical_interval = 1.0  # a step of a hidden layer touches nearly all rows

    def __post_init__(self) -> None:
        check.integer(self.first, "first")
        check.number(self.growth, "growth", minimum=1)

    def start(self) -> Clock:
        """A clock for one layer."""
        return Clock(self.first, self.growth)


@dataclass(frozen=True)
class Exponential:
    """The policy of SLIDE: the t-th interval between builds has ``first * exp(rate * t)`` steps.

    t counts from 0. Weights change less and less in the course of training, so that tables may grow
    older.

    Parameters
    ----------
    first : int
        N0, steps between the first build and the next.
    rate : float
        lambda, at least 0.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit.

    References
    ----------
    Chen et al., SLIDE, arXiv 1903.03129, section 4.2: the t-th build comes after
    ``sum_i N0 exp(lambda i)`` steps.
    """

    first: int = 8
    rate: float = 0.15

    at_once = False

    @property
    def typical_interval(self) -> float:
        """Steps between builds, for the choice of a plan: the fifth interval."""
        return self.first * _portable_math.exp(4 * self.rate)

    def __post_init__(self) -> None:
        check.integer(self.first, "first")
        check.number(self.rate, "rate", minimum=0)

    def start(self) -> Clock:
        """A clock for one layer."""
        return Clock(self.first, _portable_math.exp(self.rate))


@dataclass(frozen=True)
class Every:
    """Rebuild after every `steps` steps.

    Parameters
    ----------
    steps : int

    Raises
    ------
    TypeError, ValueError
        If `steps` is not an integer of at least 1.
    """

    steps: int = 50

    at_once = False

    @property
    def typical_interval(self) -> float:
        """Steps between builds, for the choice of a plan."""
        return self.steps

    def __post_init__(self) -> None:
        check.integer(self.steps, "steps")

    def start(self) -> Clock:
        """A clock for one layer."""
        return Clock(self.steps, 1)


class _DriftClock(Clock):
    def __init__(self, policy: OnDrift) -> None:
        super().__init__(policy.check_every, 1)
        self._policy = policy
        self._built = False

    def due(self, step: int, epoch: int, drift: Callable[[], float]) -> bool:
        if not super().due(step, epoch, drift):
            return False
        build = not self._built or drift() > self._policy.threshold
        self._built = True
        return build

    def restore(self, state: dict[str, Any]) -> None:
        super().restore(state)
        self._built = self._next > -math.inf


@dataclass(frozen=True)
class OnDrift:
    """Rebuild when the codes of a sample of neurons have changed by more than a threshold.

    Every `check_every` steps 256 neurons are hashed again. If more than the fraction `threshold` of
    their codes, or of the bits of their sketches, differ from those of the last build, all neurons
    are hashed. The scheduler of MONGOOSE is similar.

    Parameters
    ----------
    threshold : float
        Fraction of changed codes, in [0, 1).
    check_every : int
        Steps between two checks.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit.

    References
    ----------
    Chen et al., "MONGOOSE: a learnable LSH framework for efficient neural network training", ICLR
    2021: the observation that weights change slowly, and rebuilding only after a large change. Here
    the change of codes is measured; MONGOOSE bounds the change of weights.
    """

    threshold: float = 0.1
    check_every: int = 8

    at_once = False

    @property
    def typical_interval(self) -> float:
        """Steps between builds, for the choice of a plan: two checks."""
        return 2.0 * self.check_every

    def __post_init__(self) -> None:
        check.number(self.threshold, "threshold", minimum=0, below=1)
        check.integer(self.check_every, "check_every")

    def start(self) -> Clock:
        """A clock for one layer."""
        return _DriftClock(self)


class _FrozenClock(Clock):
    def __init__(self, policy: Frozen) -> None:
        self._policy, self._before = policy, policy.before.start()

    def due(self, step: int, epoch: int, drift: Callable[[], float]) -> bool:
        return epoch < self._policy.epochs and self._before.due(step, epoch, drift)

    def inserts(self, epoch: int) -> bool:
        return epoch >= self._policy.epochs

    def state(self) -> dict[str, Any]:
        return self._before.state()

    def restore(self, state: dict[str, Any]) -> None:
        self._before.restore(state)


@dataclass(frozen=True)
class Frozen:
    """Another policy for some epochs; then the tables are frozen, and labels are added to buckets.

    Once the tables are frozen, a label that its input does not find is added to the buckets which
    that input reads, in addition to those of its own code, so that the next similar input finds it.
    In hidden layers, and with sketches, nothing is added.

    Parameters
    ----------
    epochs : int
        Whole epochs of `fit` after which the tables are frozen; 0 freezes the first ones.
    before : policy
        The policy until then.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit.

    References
    ----------
    Meisburger et al., "BOLT: an automated deep learning framework for training and deploying
    large-scale search and recommendation models on commodity CPU hardware", CIKM 2023, arXiv
    2303.17727.
    """

    epochs: int = 1
    before: AtOnce | Exponential | Every | OnDrift = Exponential()

    def __post_init__(self) -> None:
        check.integer(self.epochs, "epochs", minimum=0)
        if not isinstance(self.before, (AtOnce, Exponential, Every, OnDrift)):
            raise TypeError(f"before must be a policy such as Exponential(), got {self.before!r}")

    @property
    def at_once(self) -> bool:
        """False: a neuron that is hashed again would leave the buckets to which it was added."""
        return False

    @property
    def typical_interval(self) -> float:
        """Steps between builds, for the choice of a plan: those of `before`."""
        return self.before.typical_interval

    def start(self) -> Clock:
        """A clock for one layer."""
        return _FrozenClock(self)


Policy: TypeAlias = AtOnce | Exponential | Every | OnDrift | Frozen
POLICIES: dict[str, type[Policy]] = {
    policy.__name__: policy for policy in (AtOnce, Exponential, Every, OnDrift, Frozen)}


def checked(policy: Policy | None, name: str = "rebuild") -> Policy | None:
    """The policy, or None; TypeError for anything else."""
    if policy is not None and not isinstance(policy, Policy):
        raise TypeError(f"{name} must be a policy such as AtOnce() or Every(50), or None, "
                        f"got {policy!r}")
    return policy


def config(policy: Policy | None) -> dict[str, Any] | None:
    """A policy as plain values, for a file."""
    if policy is None:
        return None
    values = asdict(policy)
    if isinstance(policy, Frozen):
        values["before"] = config(policy.before)
    return {"type": type(policy).__name__} | values


def from_config(values: dict[str, Any] | None) -> Policy | None:
    """The policy that `config` describes."""
    if values is None:
        return None
    values = dict(values)
    kind = POLICIES[values.pop("type")]
    if kind is Frozen:
        values["before"] = from_config(values["before"])
    return kind(**values)
