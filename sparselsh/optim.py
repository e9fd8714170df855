"""SGD and Adam over dense and row-sparse gradients.

Both are *lazy*: a row that no sample of the batch has touched keeps its value and its state. The
step number in Adam's bias correction is that of the network, as in torch.optim.SparseAdam. With
dense gradients they compute the same as torch.optim.SGD and torch.optim.AdamW.
"""
from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Any, Self, TypeAlias

import numpy as np

from . import _validation as check
from . import schedules
from ._arrays import aligned, bfloat16
from ._core import _updates
from ._display import HtmlRepr

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ._core._updates import Rule
    from ._gradients import Gradient, Pair, Parameter
    from .protocols import UpdateRule
    from .schedules import Schedule

__all__ = ["SGD", "Adam", "CustomOptimizer"]


class _Optimizer(HtmlRepr):
    """Applies a rule to (parameter, gradient) pairs; a subclass defines the rule and its state."""

    _rule: Callable[[float, float | None, int], Any]

    n_states = 0
    second_moment = "element"

    def __init__(self, lr: float, schedule: Schedule, clip_norm: float | None,
                 state_dtype: str) -> None:
        self.lr = check.number(lr, "lr", above=0)
        self.schedule = schedules.checked(schedule)
        self.clip_norm = (None if clip_norm is None
                          else check.number(clip_norm, "clip_norm", above=0))
        self.grad_norm: float | None = None
        self.missing_schedule: str | None = None  # repr of a function, which a file does not keep
        self.state_dtype = check.choice(state_dtype, "state_dtype", bfloat16.DTYPES)
        self.n_steps = 0
        self._state: dict[int, Any] = {}
        self._begun: _Updates | None = None

    def step(self, pairs: list[Pair], *, progress: float = 0.0, n_threads: int = 1) -> None:
        """Apply (parameter, gradient) pairs; `progress` in [0, 1] is where the schedule stands.

        What can fail comes before the first change, or is repeated: a call with the same list as
        one that an error has ended applies the pairs that are left.
        """
        if self._begun is None or self._begun.pairs is not pairs:
            self._begun = self._prepared(pairs, progress, n_threads)
        begun = self._begun
        for k in range(begun.n_applied, len(begun.calls)):
            self._apply(begun, k, n_threads)
            begun.n_applied = k + 1
        self.n_steps, self._begun = begun.n_steps, None

    def _prepared(self, pairs: list[Pair], progress: float, n_threads: int) -> _Updates:
        n_steps = self.n_steps + 1
        rule = self._rule(self.rate(progress), schedules.momentum(self.schedule, progress), n_steps)
        if self.clip_norm is not None:
            self._clip([gradient for _, gradient in pairs], self.clip_norm, n_threads)
        calls = [(gradient, parameter.value, *self._states_of(parameter))
                 for parameter, gradient in pairs]
        return _Updates(pairs, calls, rule, n_steps)

    def _apply(self, begun: _Updates, k: int, n_threads: int) -> None:
        """Apply the gradient k; where an error ends it, it is called again."""
        gradient, value, m, v = begun.calls[k]
        gradient.apply(begun.rule, value, m, v, n_threads)

    def rate(self, progress: float) -> float:
        """The learning rate at a progress in [0, 1]."""
        return self.lr * schedules.factor(self.schedule, progress)

    def largest_change(self, rate: float, gradient: float) -> float:
        """About the largest change of a weight by one step, for gradients of at most this size."""
        return rate * gradient

    @property
    def has_begun_step(self) -> bool:
        """Whether an error has ended a step after its first change, before its last."""
        return self._begun is not None and self._begun.n_applied > 0

    def forget_step(self) -> None:
        """Leave a step that an error has ended before its first change."""
        self._begun = None

    def fresh(self) -> Self:
        """A copy without state, as before its first step."""
        optimizer = copy.copy(self)
        optimizer.n_steps, optimizer._state, optimizer._begun = 0, {}, None
        return optimizer

    def _clip(self, gradients: list[Gradient], limit: float, n_threads: int) -> None:
        # Gradients of rows are summed where they are applied and are not stored: one pass sums them
        # only for the norm, and scaling d_out, a factor of each of them, scales them all.
        squares = (gradient.squared_norm(n_threads) for gradient in gradients)
        self.grad_norm = norm = math.sqrt(float(sum(squares)))
        if norm > limit:
            for gradient in gradients:
                gradient.scale(limit / norm)

    def _other_options(self) -> str:
        """End of the repr: the options that differ from their defaults."""
        row = ", second_moment='row'" if self.second_moment == "row" else ""
        clip = f", clip_norm={self.clip_norm:g}" if self.clip_norm is not None else ""
        dtype = f", state_dtype={self.state_dtype!r}" if self.state_dtype != "float32" else ""
        return clip + row + dtype

    def _states_of(self, parameter: Parameter) -> tuple[np.ndarray | None, np.ndarray | None]:
        entry = self._state.get(id(parameter))
        if entry is None:
            entry = (parameter, parameter.input_major, self._new_states(*parameter.value.shape))
        elif entry[1] != parameter.input_major:
            states = [_transposed(a, parameter.value.shape) for a in entry[2]]
            entry = (parameter, parameter.input_major, states)
        elif not all(a.flags.writeable for a in entry[2]):  # mapped from a file, as joblib does
            states = [aligned.aligned(a, copy=True) for a in entry[2]]
            entry = (parameter, parameter.input_major, states)
        self._state[id(parameter)] = entry
        return (*entry[2], None, None)[:2]

    def _new_states(self, n_rows: int, n_columns: int) -> list[np.ndarray]:
        half = self.state_dtype == "bfloat16" and n_columns > 1
        dtype = np.uint16 if half else np.float32
        states = [aligned.sparse_zeros((n_rows, n_columns), dtype) for _ in range(self.n_states)]
        if self.second_moment == "row" and n_columns > 1:
            states[1] = np.zeros((n_rows, 1), np.float32)
        return states

    def copied_state(self, parameters: Sequence[Parameter]) -> tuple[int, list[list[np.ndarray]]]:
        """The number of steps, and copies of the state of parameters, for `take_state`."""
        return self.n_steps, [[aligned.aligned(a, copy=True) for a in self.arrays_of(parameter)]
                              for parameter in parameters]

    def take_state(self, parameters: Sequence[Parameter],
                   state: tuple[int, list[list[np.ndarray]]]) -> None:
        """Return to what `copied_state` gave, whose arrays are then in use."""
        self.n_steps, arrays = state
        self._begun = None
        for parameter, kept in zip(parameters, arrays, strict=True):
            self._state.pop(id(parameter), None)
            if kept:
                self._state[id(parameter)] = (parameter, parameter.input_major, kept)

    def arrays_of(self, parameter: Parameter) -> list[np.ndarray]:
        """The state arrays of a parameter, for a file; empty before its first step."""
        if id(parameter) not in self._state:
            return []
        return [a for a in self._states_of(parameter) if a is not None]

    def take_arrays(self, parameter: Parameter, arrays: Sequence[np.ndarray]) -> None:
        """Restore the arrays that `arrays_of` returned."""
        wanted = [(a.dtype, a.shape) for a in self._new_states(*parameter.value.shape)]
        if [(a.dtype, a.shape) for a in arrays] != wanted:
            raise ValueError("the state of the optimizer must be "
                             f"{', '.join(f'{d} {s}' for d, s in wanted)}, got "
                             f"{', '.join(f'{a.dtype} {a.shape}' for a in arrays)}")
        self._state[id(parameter)] = (parameter, parameter.input_major,
                                      [aligned.aligned(a, copy=True) for a in arrays])

    def grown_arrays(self, parameter: Parameter, shape: tuple[int, int],
                     places: np.ndarray | None = None) -> list[np.ndarray]:
        """The state of a parameter that gets more rows and columns, for `take_grown`.

        New rows and columns have a state of zero; a moment per row stays with its row. The rows of
        before come first, or in `places`.
        """
        arrays = self.arrays_of(parameter)
        grown = self._new_states(*shape) if arrays else []
        for old, new in zip(arrays, grown, strict=True):
            new[slice(len(old)) if places is None else places, :old.shape[1]] = old
        return grown

    def take_grown(self, parameter: Parameter, arrays: list[np.ndarray]) -> None:
        """Take what `grown_arrays` gave."""
        if arrays:
            self._state[id(parameter)] = (parameter, parameter.input_major, arrays)

    def __getstate__(self) -> dict[str, Any]:
        # a copy or an unpickled optimizer has parameters with other ids
        return self.__dict__ | {"_state": list(self._state.values()), "_begun": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._state = {id(entry[0]): entry for entry in state["_state"]}


class _Updates:
    """A step of an optimizer: what is to be applied, and how much of it is."""

    def __init__(self, pairs: list[Pair], calls: list[tuple[Any, ...]], rule: Any,
                 n_steps: int) -> None:
        self.pairs, self.calls, self.rule, self.n_steps = pairs, calls, rule, n_steps
        self.n_applied = 0


def _transposed(state: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """State of a parameter whose layout has changed to the transposed one.

    One number per row belongs to other rows then: all rows get the mean.
    """
    if state.shape != shape[::-1]:
        return np.full((shape[0], 1), state.mean(), np.float32)
    return aligned.aligned(state.T)


class SGD(_Optimizer):
    """Stochastic gradient descent with momentum, over the rows that a batch touches.

    ``g' = g + weight_decay w;  m = momentum m + g';  w -= lr (g' + momentum m if nesterov else m)``

    Parameters
    ----------
    lr : float
        Learning rate.
    momentum : float
        In [0, 1).
    nesterov : bool
        Use Nesterov's momentum [1]_; needs momentum > 0.
    weight_decay : float
        Factor of the weight that is added to the gradient (L2).
    schedule : None, "linear", "cosine" or callable
        Factor of the learning rate as a function of the progress in [0, 1]; see
        :mod:`sparselsh.schedules`.
    clip_norm : float or None
        If the norm of all gradients of a step together is larger, they are scaled down to it. This
        sums the gradients a second time, which costs about a third of the products of a step, but
        accesses neither weights nor state.
    state_dtype : {"float32", "bfloat16"}
        Data type in which the momentum of weights is stored.

    Attributes
    ----------
    grad_norm : float or None
        With `clip_norm`, the norm in the last step, before scaling.

    Raises
    ------
    ValueError, TypeError
        If an argument is invalid; the message names it.

    References
    ----------
    .. [1] I. Sutskever et al.: On the importance of initialization and momentum in deep learning.
       ICML 2013.
    """

    def __init__(self, lr: float = 0.1, *, momentum: float = 0.0, nesterov: bool = False,
                 weight_decay: float = 0.0, schedule: Schedule = None,
                 clip_norm: float | None = None, state_dtype: str = "float32") -> None:
        super().__init__(lr, schedule, clip_norm, state_dtype)
        self.momentum = check.number(momentum, "momentum", minimum=0, below=1)
        self.nesterov = bool(nesterov)
        self.weight_decay = check.number(weight_decay, "weight_decay", minimum=0)
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov=True needs momentum above 0, got momentum=0; 0.9 is usual")
        if self.momentum == 0 and schedules.momentum(self.schedule, 0.0) is not None:
            raise ValueError(f"schedule={self.schedule!r} sets the momentum, but momentum=0 keeps "
                             "none; give a momentum, 0.9 is usual, or OneCycle(momentum=None)")
        self.n_states = 1 if self.momentum else 0

    def _rule(self, lr: float, momentum: float | None, n_steps: int) -> Rule:
        return _updates.sgd(lr, self.momentum if momentum is None else momentum, self.nesterov,
                            self.weight_decay, n_steps)

    def __repr__(self) -> str:
        return (f"SGD(lr={self.lr:g}, momentum={self.momentum:g}, nesterov={self.nesterov}, "
                f"weight_decay={self.weight_decay:g}, schedule={self.schedule!r}"
                f"{self._other_options()})")


class Adam(_Optimizer):
    """Adam with decoupled weight decay, over the rows that a batch touches.

    The update rule is algorithm 1 of [1]_::

        m = b1 m + (1 - b1) g
        v = b2 v + (1 - b2) g^2
        w = (1 - lr weight_decay) w - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)

    Parameters
    ----------
    lr : float
        Learning rate.
    betas : pair of float
        Decay rates of the two moments, each in [0, 1).
    eps : float
        Added to the root of the second moment.
    weight_decay : float
        Decoupled from the gradient (AdamW [2]_); applied only to the rows that a step touches.
    schedule : None, "linear", "cosine" or callable
        Factor of the learning rate as a function of the progress in [0, 1]; see
        :mod:`sparselsh.schedules`.
    clip_norm : float or None
        If the norm of all gradients of a step together is larger, they are scaled down to it. This
        sums the gradients a second time, which costs about a third of the products of a step, but
        accesses neither weights nor state.
    second_moment : {"element", "row"}
        "row" keeps one v per neuron (or, where the input is sparse, per feature), from the mean of
        g^2 over its weights: a third less state and memory traffic. As Adafactor [3]_ and row-wise
        AdaGrad do.
    state_dtype : {"float32", "bfloat16"}
        Data type in which the moments of weights are stored, except for a v per row: bfloat16 takes
        half the memory. m is rounded to nearest, v stochastically [4]_, because 1 - b2 is less than
        half a unit in the last place.

    Attributes
    ----------
    grad_norm : float or None
        With `clip_norm`, the norm in the last step, before scaling.

    Raises
    ------
    ValueError, TypeError
        If an argument is invalid; the message names it.

    References
    ----------
    .. [1] D. Kingma and J. Ba: Adam: a method for stochastic optimization. ICLR 2015.
    .. [2] I. Loshchilov and F. Hutter: Decoupled weight decay regularization. ICLR 2019.
    .. [3] N. Shazeer and M. Stern: Adafactor. ICML 2018, section 3 (moments of rows).
    .. [4] S. Gupta et al.: Deep learning with limited numerical precision. ICML 2015, section 3
       (stochastic rounding).
    """

    n_states = 2

    def __init__(self, lr: float = 1e-3, *, betas: tuple[float, float] = (0.9, 0.999),
                 eps: float = 1e-8, weight_decay: float = 0.0, schedule: Schedule = None,
                 clip_norm: float | None = None, second_moment: str = "element",
                 state_dtype: str = "float32") -> None:
        super().__init__(lr, schedule, clip_norm, state_dtype)
        self.second_moment = check.choice(second_moment, "second_moment", ("element", "row"))
        try:
            beta1, beta2 = betas
        except (TypeError, ValueError):
            raise ValueError(f"betas must be a pair of numbers, got {betas!r}") from None
        self.betas = (check.number(beta1, "betas[0]", minimum=0, below=1),
                      check.number(beta2, "betas[1]", minimum=0, below=1))
        self.eps = check.number(eps, "eps", above=0)
        self.weight_decay = check.number(weight_decay, "weight_decay", minimum=0)

    def largest_change(self, rate: float, gradient: float) -> float:
        return 10 * rate  # the ratio of the moments does not depend on the gradient

    def _rule(self, lr: float, momentum: float | None, n_steps: int) -> Rule:
        beta1, beta2 = self.betas if momentum is None else (momentum, self.betas[1])
        return _updates.adam(lr, beta1, beta2, self.eps, self.weight_decay, n_steps)

    def __repr__(self) -> str:
        return (f"Adam(lr={self.lr:g}, betas={self.betas}, eps={self.eps:g}, "
                f"weight_decay={self.weight_decay:g}, schedule={self.schedule!r}"
                f"{self._other_options()})")


class CustomOptimizer(_Optimizer):
    """Apply your own update rule to the rows of weights that a batch touches.

    The gradient of these rows is summed and stored first, which :class:`SGD` and :class:`Adam`
    avoid. A step is therefore several times slower.

    Parameters
    ----------
    rule : update rule
        An object as :class:`sparselsh.protocols.UpdateRule` describes.
    lr : float
        Learning rate.
    schedule : None, "linear", "cosine" or callable
        Factor of the learning rate as a function of the progress in [0, 1]; see
        :mod:`sparselsh.schedules`. A momentum that it sets is not passed on.
    clip_norm : float or None
        As for :class:`Adam`.

    Attributes
    ----------
    grad_norm : float or None
        With `clip_norm`, the norm in the last step, before scaling.

    Raises
    ------
    ValueError, TypeError
        If an argument is invalid; the message names it.
    """

    def __init__(self, rule: UpdateRule, lr: float = 1e-3, *, schedule: Schedule = None,
                 clip_norm: float | None = None) -> None:
        super().__init__(lr, schedule, clip_norm, "float32")
        if isinstance(rule, type) or not callable(getattr(rule, "update", None)):
            raise TypeError("rule must be an object with the method update of "
                            f"sparselsh.protocols.UpdateRule, got {rule!r}")
        self.rule = rule
        self.n_states = check.integer(getattr(rule, "n_states", None), "rule.n_states", minimum=0)

    def largest_change(self, rate: float, gradient: float) -> float:
        return math.inf  # unknown: a step after a large loss keeps a backup

    def _rule(self, lr: float, momentum: float | None, n_steps: int) -> float:
        return lr

    def _prepared(self, pairs: list[Pair], progress: float, n_threads: int) -> _Updates:
        begun = super()._prepared(pairs, progress, n_threads)
        # a rule that raises does so before the first change
        begun.calls = [self._computed(parameter, gradient, begun, n_threads)
                       for parameter, gradient in pairs]
        return begun

    def _computed(self, parameter: Parameter, gradient: Gradient, begun: _Updates,
                  n_threads: int) -> tuple[Any, ...]:
        """Arrays, their rows, and what is to become of these."""
        value, states = parameter.value, self.arrays_of(parameter)
        rows = slice(None) if gradient.rows is None else gradient.rows
        g = summed(gradient, value.shape, n_threads)
        w = np.array(bfloat16.as_float32(value[rows]))
        new = [np.array(state[rows]) for state in states]
        self.rule.update(w, g, new, lr=begun.rule, n_steps=begun.n_steps)
        return [value, *states], rows, [bfloat16.to_bfloat16(w) if value.dtype == np.uint16 else w,
                                        *new]

    def _apply(self, begun: _Updates, k: int, n_threads: int) -> None:
        arrays, rows, after = begun.calls[k]
        for array, values in zip(arrays, after, strict=True):
            array[rows] = values

    def arrays_of(self, parameter: Parameter) -> list[np.ndarray]:
        if id(parameter) not in self._state:
            return []
        self._states_of(parameter)
        return list(self._state[id(parameter)][2])

    def __repr__(self) -> str:
        return f"CustomOptimizer({self.rule!r}, lr={self.lr:g}, schedule={self.schedule!r})"


def summed(gradient: Gradient, shape: tuple[int, int], n_threads: int) -> np.ndarray:
    """The gradient of the rows it touches, (n_rows, n_columns) float32.

    Gradients are summed where they are applied: with the rate -1, and to zeros, that gives the sum.
    """
    to = aligned.sparse_zeros(shape)
    gradient.apply(_updates.sgd(-1.0, 0.0, False, 0.0), to, None, None, n_threads)
    return to if gradient.rows is None else to[gradient.rows]


Optimizer: TypeAlias = SGD | Adam | CustomOptimizer
