"""State of a network beside its weights, from which a training continues with the same bits.

Arrays become tensors; everything else becomes plain values that JSON keeps exactly. Everything
read from a file is checked before use, because the kernels trust their input.

    state["layers"]    the indexes of each layer as they are, not rebuilt
    state["training"]  optimizer, generator, counters, history, place in the epochs, callbacks
"""
from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .. import _validation as check
from .._files import with_prefix
from ..optim import SGD, Adam
from ..training import TrainingProgress, callback_states

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from .._gradients import Parameter
    from ..layers import Linear
    from ..optim import Optimizer
    from ..training import Training

OPTIMIZERS = {"SGD": SGD, "Adam": Adam}
BIT_GENERATORS = ("MT19937", "PCG64", "PCG64DXSM", "Philox", "SFC64")


# ---- writing


def layers_state(layers: Sequence[Linear], tensors: dict[str, Any]) -> list[dict[str, Any]]:
    """State of the indexes of each layer; their arrays are added to `tensors`."""
    states = []
    for i, layer in enumerate(layers):
        arrays, plain = layer.index_state()
        tensors |= {f"layers.{i}.{name}": a for name, a in arrays.items()}
        states.append(plain)
    return states


def training_state(training: Training, tensors: dict[str, np.ndarray]) -> dict[str, Any]:
    """What `resume` needs beside weights and indexes; arrays are added to `tensors`."""
    optimizer, progress = training.optimizer, training.progress
    return {
        "n_steps": training.n_steps, "history": training.history,
        "computed_share": training.computed_share,
        "generator": _plain(training.rng.bit_generator.state),
        "optimizer": None if optimizer is None else _optimizer_state(training, optimizer, tensors),
        "run": None if progress is None else _plain(progress.plain()),
        "callbacks": [_callback_state(i, name, state, tensors)
                      for i, (name, state) in enumerate(callback_states(training))],
    }


def training_plain(training: Training) -> dict[str, Any]:
    """`training_state` without arrays, for a network whose shards keep those of the optimizer.

    ValueError where a callback keeps arrays.
    """
    optimizer, training.optimizer = training.optimizer, None
    tensors: dict[str, np.ndarray] = {}
    try:
        state = training_state(training, tensors)
    finally:
        training.optimizer = optimizer
    if tensors:
        raise ValueError(f"callbacks keep arrays, {', '.join(tensors)}, which a checkpoint of "
                         "shards does not hold; leave them out")
    if optimizer is not None:
        state["optimizer"] = _optimizer_plain(optimizer)
    return state


def restored_callbacks(state: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """(name, state) of each callback that `training_plain` gave."""
    return [_restored_callback(i, entry, {}) for i, entry in enumerate(state["callbacks"])]


def _plain(value: Any) -> Any:
    """Arrays and NumPy numbers as lists and numbers, recursively."""
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value


def _optimizer_state(training: Training, optimizer: Optimizer,
                     tensors: dict[str, np.ndarray]) -> dict[str, Any]:
    plain = _optimizer_plain(optimizer)
    for name, parameter in _parameters(training):
        for k, a in enumerate(optimizer.arrays_of(parameter)):
            tensors[f"optimizer.{name}.{k}"] = a
    return plain


def _optimizer_plain(optimizer: Optimizer) -> dict[str, Any]:
    if type(optimizer) is not OPTIMIZERS.get(type(optimizer).__name__):
        raise TypeError(f"optimizer must be one of {', '.join(OPTIMIZERS)} for its state to be "
                        f"saved, got {optimizer!r} of type {type(optimizer).__name__}; use pickle, "
                        "or save without training_state")
    arguments = {name: getattr(optimizer, name)
                 for name in _arguments(OPTIMIZERS[type(optimizer).__name__])}
    schedule = arguments["schedule"]
    # a file does not keep code: `resume` asks the user for the function
    function = repr(schedule) if callable(schedule) else None
    return {"type": type(optimizer).__name__, "n_steps": optimizer.n_steps, "function": function,
            "arguments": arguments | ({"schedule": None} if function else {})}


def _arguments(kind: type[SGD | Adam]) -> list[str]:
    return list(inspect.signature(kind).parameters)


def _parameters(training: Training) -> Iterator[tuple[str, Parameter]]:
    for i, layer in enumerate(training.layers):
        weight, bias = layer.parameters
        yield f"{i}.weight", weight
        yield f"{i}.bias", bias


def _callback_state(i: int, name: str, state: dict[str, Any],
                    tensors: dict[str, np.ndarray]) -> dict[str, Any]:
    plain = {}
    for key, value in state.items():
        if isinstance(value, list) and all(isinstance(a, np.ndarray) for a in value):
            tensors |= {f"callbacks.{i}.{key}.{k}": a for k, a in enumerate(value)}
            value = {"n_arrays": len(value)}
        plain[key] = value
    return {"name": name, "state": plain}


# ---- reading


def restore_layers(layers: Sequence[Linear], states: list[dict[str, Any]],
                   tensors: dict[str, np.ndarray]) -> None:
    """Restore the indexes of the layers from a file."""
    for i, (layer, plain) in enumerate(zip(layers, states, strict=True)):
        layer.restore_indexes(with_prefix(tensors, f"layers.{i}."), plain)


def restore_training(training: Training, state: dict[str, Any],
                     tensors: dict[str, np.ndarray]) -> None:
    """Restore what `training_state` returned; the layers have their weights already."""
    plain = check_training(state)
    training.n_steps, training.history = plain.n_steps, plain.history
    training.computed_share, training.rng = plain.computed_share, plain.rng
    if plain.optimizer is not None:
        training.optimizer = plain.optimizer
        _restore_moments(training, plain.optimizer, tensors)
    if plain.progress is None:
        return
    progress = training.progress = plain.progress
    progress.callbacks = [_restored_callback(i, entry, tensors)
                          for i, entry in enumerate(state["callbacks"])]


class PlainState(NamedTuple):
    """What `training_state` returned, but for the arrays."""

    n_steps: int
    history: list[dict[str, Any]]
    computed_share: float
    rng: np.random.Generator
    optimizer: SGD | Adam | None
    progress: TrainingProgress | None


def check_training(state: dict[str, Any]) -> PlainState:
    """The checked plain values of a training; what is not checked here is refused nowhere."""
    optimizer = None if state["optimizer"] is None else _optimizer(state["optimizer"])
    progress = None if state["run"] is None else TrainingProgress.restored(state["run"])
    if progress is not None:
        if optimizer is None:
            raise ValueError("it has a training without an optimizer")
        if progress.generator is not None:
            _generator(progress.generator)
    return PlainState(
        check.integer(state["n_steps"], "n_steps", minimum=0, maximum=2**62),
        [dict(entry) for entry in state["history"]],
        check.number(state["computed_share"], "computed_share", minimum=0, maximum=1),
        _generator(state["generator"]), optimizer, progress)


def _generator(state: dict[str, Any]) -> np.random.Generator:
    kind = getattr(np.random, check.choice(state["bit_generator"], "bit_generator", BIT_GENERATORS))
    generator = np.random.Generator(kind())
    generator.bit_generator.state = state
    return generator


def _optimizer(state: dict[str, Any]) -> SGD | Adam:
    kind = OPTIMIZERS[state["type"]]
    arguments = state["arguments"]
    if set(arguments) != set(_arguments(kind)):
        raise ValueError(f"{state['type']} takes {', '.join(_arguments(kind))}, "
                         f"got {', '.join(arguments)}")
    optimizer = kind(**arguments)
    optimizer.n_steps = check.integer(state["n_steps"], "n_steps", minimum=0, maximum=2**62)
    optimizer.missing_schedule = state["function"]
    return optimizer


def _restore_moments(training: Training, optimizer: Optimizer,
                     tensors: dict[str, np.ndarray]) -> None:
    for name, parameter in _parameters(training):
        arrays: list[np.ndarray] = []
        while (key := f"optimizer.{name}.{len(arrays)}") in tensors:
            arrays.append(tensors[key])
        if arrays:
            optimizer.take_arrays(parameter, arrays)


def _restored_callback(i: int, entry: dict[str, Any],
                       tensors: dict[str, np.ndarray]) -> tuple[str, dict[str, Any]]:
    state = {}
    for key, value in entry["state"].items():
        if isinstance(value, dict):
            value = [tensors[f"callbacks.{i}.{key}.{k}"] for k in range(value["n_arrays"])]
        state[key] = value
    return str(entry["name"]), state
