"""When the hash tables of a layer are built anew: one small class each policy.

Weights change at every step, and hashing them costs as much as some of the products that hashing spares. A policy
says whether rows are hashed again as soon as they were touched (``at_once``), and ``start()`` gives a clock, which a
layer asks before each step whether to build its tables anew. A policy holds no state and may serve many layers.
``typical_interval``, in steps, is what the choice of a plan reckons with.
"""
from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from . import _validation as check

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["AtOnce", "Every", "Exponential", "Frozen", "OnDrift"]


class Clock:
    """Says when to build anew: at the first step, then at intervals that grow by a factor."""

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
            Gives the share of the hash codes that a sample of neurons has changed since the last build.
        """
        if step < self._next:
            return False
        self._next = step + max(1, round(self._interval))
        self._interval *= self._growth
        return True

    def inserts(self, epoch: int) -> bool:
        """Whether labels that were not found are put into the buckets where their inputs look."""
        return False

    def state(self) -> dict[str, Any]:
        """Where the clock stands, as plain values, for a checkpoint."""
        return {"interval": self._interval, "next": None if self._next == -math.inf else self._next}

    def restore(self, state: dict[str, Any]) -> None:
        """Take what `state` gave."""
        self._interval = check.number(state["interval"], "interval", above=0)
        following = state["next"]
        self._next = -math.inf if following is None else check.integer(following, "next", minimum=0, maximum=2**62)


@dataclass(frozen=True)
class AtOnce:
    """Rows that a step has touched are hashed again at once; all are, with a new mean neuron, ever more rarely.

    The tables are never behind the weights. A step hashes as many rows as it touches: cheap for an output layer on
    few inputs, dear for a wide layer on a wide one.

    Parameters
    ----------
    first : int
        Steps to the first build of the whole.
    growth : float
        Factor by which the interval grows after each, at least 1.
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
    """SLIDE's: the t-th interval between builds has ``first * exp(rate * t)`` steps, t = 0, 1, ...

    Weights change less and less, so that tables may grow older.

    Parameters
    ----------
    first : int
        N0, steps to the first build.
    rate : float
        lambda, at least 0.

    References
    ----------
    Chen et al., SLIDE, arXiv 1903.03129, section 4.2: the t-th build comes after ``sum_i N0 exp(lambda i)`` steps.
    """

    first: int = 8
    rate: float = 0.15

    at_once = False

    @property
    def typical_interval(self) -> float:
        """Steps between builds, for the choice of a plan: the fifth interval."""
        return self.first * math.exp(4 * self.rate)

    def __post_init__(self) -> None:
        check.integer(self.first, "first")
        check.number(self.rate, "rate", minimum=0)

    def start(self) -> Clock:
        """A clock for one layer."""
        return Clock(self.first, math.exp(self.rate))


@dataclass(frozen=True)
class Every:
    """After every `steps` steps.

    Parameters
    ----------
    steps : int
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
    """When the codes of a sample of neurons have changed by more than a threshold, as MONGOOSE's scheduler does.

    Every `check_every` steps 256 neurons are hashed again. If more than `threshold` of their codes (of the bits of
    their sketches) are not those of the last build, all neurons are.

    Parameters
    ----------
    threshold : float
        Share of changed codes, in [0, 1).
    check_every : int

    References
    ----------
    Chen et al., "MONGOOSE: a learnable LSH framework for efficient neural network training", ICLR 2021:
    the observation that weights change slowly, and rebuilding only after a large change. What is measured here is the
    change of codes, theirs is a bound on that of weights.
    """

    threshold: float = 0.1
    check_every: int = 8

    at_once = False

    @property
    def typical_interval(self) -> float:
        """Steps between builds, for the choice of a plan: two looks."""
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
    """Another policy for some epochs, then the tables stay; labels are put into the buckets where inputs look for them.

    Once the tables stay, a label that its input does not find is added to the buckets which that input looks into,
    beside those of its own code, so that the next input like it does find it. In hidden layers, and in sketches, the
    tables only stay.

    Parameters
    ----------
    epochs : int
        Whole epochs of `fit` after which the tables stay; 0 freezes the first ones.
    before : policy
        How they are built until then.

    References
    ----------
    Meisburger et al., "BOLT: an automated deep learning framework for training and deploying large-scale search and
    recommendation models on commodity CPU hardware", CIKM 2023, arXiv 2303.17727.
    """

    epochs: int = 1
    before: AtOnce | Exponential | Every | OnDrift = Exponential()

    def __post_init__(self) -> None:
        check.integer(self.epochs, "epochs", minimum=0)
        if not isinstance(self.before, (AtOnce, Exponential, Every, OnDrift)):
            raise TypeError(f"before must be a policy such as Exponential(), got {self.before!r}")

    @property
    def at_once(self) -> bool:
        """Never: a neuron that is hashed again would leave the buckets it was put into."""
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
    """The policy if it is one, or None."""
    if policy is not None and not isinstance(policy, Policy):
        raise TypeError(f"{name} must be a policy such as AtOnce() or Every(50), or None, got {policy!r}")
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
