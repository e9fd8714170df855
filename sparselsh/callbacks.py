"""Callbacks of a training: early stopping, files, handling of Ctrl-C.

``net.fit(X, Y, callbacks=[EarlyStopping(patience=2), Checkpoint("run.safetensors")])``

A user-defined callback is a subclass of :class:`Callback` that overrides the methods it needs.
"""
from __future__ import annotations

import json
import math
import os
import warnings
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from . import _files
from . import _validation as check
from ._display import HtmlRepr

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from ._arrays.csr import CSR
    from ._arrays.types import PathLike
    from .optim import Optimizer

__all__ = ["ActiveSet", "BestModel", "Callback", "Checkpoint", "EarlyStopping", "Log",
           "StopOnInterrupt"]

MAXIMIZED_KEYS = ("p_at_1",)  # keys of the history for which mode="auto" is "max"


class TrainedNetwork(Protocol):
    """The part of a :class:`~sparselsh.Network` that callbacks may use."""

    optimizer: Optimizer | None

    @property
    def history(self) -> list[dict[str, Any]]:
        """One entry per epoch."""

    def save(self, path: PathLike, *, training_state: bool = False, indexes: bool = False) -> None:
        """See :meth:`sparselsh.Network.save`."""

    def get_weights(self) -> list[np.ndarray]:
        """See :meth:`sparselsh.Network.get_weights`."""

    def set_weights(self, weights: Sequence[np.ndarray]) -> Any:
        """See :meth:`sparselsh.Network.set_weights`."""


class ActiveSet(NamedTuple):
    """The neurons that a layer has computed in a step.

    Parameters
    ----------
    layer : int
        Place of the layer in `network.layers`.
    ids : ndarray, int32
        Neurons, ascending: one set for all samples, or those of all samples one after the other.
    starts : ndarray of shape (n_samples + 1,), int64, or None
        The neurons of sample i are ``ids[starts[i]:starts[i + 1]]``; None for one set.
    found : ndarray of shape (n_samples, n_found), int32, or None
        What the hash tables, the sketches or the policy gave for each sample, best first, -1 for
        none; None where the layer did not ask them.
    labels : CSR or None
        In an output layer, the labels of the batch, which are in the set in any case: those of
        sample i are ``labels.indices[labels.indptr[i]:labels.indptr[i + 1]]``.
    n_neurons : int
        Neurons of the layer.
    """

    layer: int
    ids: np.ndarray
    starts: np.ndarray | None
    found: np.ndarray | None
    labels: CSR | None
    n_neurons: int


class Callback(HtmlRepr):
    """Base class of callbacks. Its methods do nothing; a subclass overrides those that it needs."""

    runs_last = False  # whether it is called after the other callbacks

    def on_begin(self, network: TrainedNetwork) -> None:
        """Called when `fit` or `resume` begins.

        Parameters
        ----------
        network : Network
            The network that is trained; :class:`TrainedNetwork` names what may be used of it.
        """

    def on_step(self, network: TrainedNetwork) -> None:
        """Called after each step, so it should be fast.

        Parameters
        ----------
        network : Network
            The network that is trained; :class:`TrainedNetwork` names what may be used of it.
        """

    def on_active_sets(self, network: TrainedNetwork, sets: list[ActiveSet]) -> None:
        """Called after each step, before `on_step`, with the neurons that it has computed.

        They are collected only for callbacks that override this method.

        Parameters
        ----------
        network : Network
            The network that is trained; :class:`TrainedNetwork` names what may be used of it.
        sets : list of ActiveSet
            One per layer that has computed a part of its neurons. Not to be changed; copy what is
            to be kept.
        """

    def on_epoch_end(self, network: TrainedNetwork, entry: dict[str, Any]) -> bool | None:
        """Called after each epoch.

        Parameters
        ----------
        network : Network
            The network that is trained; :class:`TrainedNetwork` names what may be used of it.
        entry : dict
            The entry of the epoch, which is already the last of ``network.history``.

        Returns
        -------
        bool or None
            True ends the training.
        """

    def on_interrupt(self, network: TrainedNetwork) -> bool | None:
        """Called on Ctrl-C, after the current step.

        Parameters
        ----------
        network : Network
            The network that is trained; :class:`TrainedNetwork` names what may be used of it.

        Returns
        -------
        bool or None
            True lets `fit` return; otherwise it raises KeyboardInterrupt.
        """

    def on_end(self, network: TrainedNetwork) -> None:
        """Called when the training is complete: after its last epoch, or ended by a callback.

        Parameters
        ----------
        network : Network
            The network that is trained; :class:`TrainedNetwork` names what may be used of it.
        """

    def state(self) -> dict[str, Any]:
        """State for a checkpoint.

        Returns
        -------
        dict
            Plain values, and lists of arrays.
        """
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned; called before `on_begin` when a training is resumed.

        Parameters
        ----------
        state : dict
            As `state` returned it.
        """

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class _Monitor(Callback):
    """Tracks the best epoch by a measure of the history."""

    best: float | None

    def __init__(self, monitor: str, mode: str, min_delta: float) -> None:
        if not isinstance(monitor, str):
            raise TypeError("monitor must be a key of the history, such as 'p_at_1', or 'auto', "
                            f"got {monitor!r}")
        self.monitor = monitor
        self.mode = check.choice(mode, "mode", ("auto", "min", "max"))
        self.min_delta = check.number(min_delta, "min_delta", minimum=0)
        self._forget()

    def _forget(self) -> None:
        self.best, self.best_epoch, self._resumed = None, 0, False

    def on_begin(self, network: TrainedNetwork) -> None:
        if not self._resumed:
            self._forget()
        self._resumed = False

    def _is_best(self, entry: dict[str, Any]) -> bool:
        key = self.monitor
        if key == "auto":
            key = next(key for key in ("p_at_1", "val_loss", "loss") if key in entry)
        if not isinstance(entry.get(key), (int, float)):
            raise ValueError(f"monitor={key!r} is no number of the history, which has "
                             f"{', '.join(entry)}; p_at_1 and val_loss are there if fit is given "
                             "validation=(X, Y)")

        mode = self.mode if self.mode != "auto" else "max" if key in MAXIMIZED_KEYS else "min"
        value = entry[key] if mode == "max" else -entry[key]
        if self.best is not None and not value > self.best + self.min_delta:
            return False
        self.best, self.best_epoch = value if math.isfinite(value) else -math.inf, entry["epoch"]
        return True

    def state(self) -> dict[str, Any]:
        best = None if self.best is None or math.isinf(self.best) else self.best
        return {"best": best, "best_epoch": self.best_epoch}

    def restore(self, state: dict[str, Any]) -> None:
        self.best = None if state["best"] is None else check.number(state["best"], "best")
        self.best_epoch = check.integer(state["best_epoch"], "best_epoch", minimum=0)
        self._resumed = True


class EarlyStopping(_Monitor):
    """End the training when the monitored value has not improved for some epochs.

    Parameters
    ----------
    monitor : str
        A key of the history. "auto" is p_at_1 or val_loss if `fit` is given validation data, and
        loss otherwise.
    patience : int
        Number of epochs without a new best after which the training ends.
    min_delta : float
        A new best must be better by more than this.
    restore_best : bool
        At the end, set the weights of the best epoch. They are kept in memory until then.
    mode : {"auto", "min", "max"}
        Whether smaller or larger values are better; "auto" is "max" for p_at_1 and "min" otherwise.

    Attributes
    ----------
    best_epoch : int
        Number of the best epoch in the history, from 1.
    """

    def __init__(self, monitor: str = "auto", *, patience: int = 3, min_delta: float = 0.0,
                 restore_best: bool = True, mode: str = "auto") -> None:
        super().__init__(monitor, mode, min_delta)
        self.patience = check.integer(patience, "patience")
        self.restore_best = bool(restore_best)

    def _forget(self) -> None:
        super()._forget()
        self.n_waited = 0
        self._weights: list[np.ndarray] = []

    def on_epoch_end(self, network: TrainedNetwork, entry: dict[str, Any]) -> bool:
        if self._is_best(entry):
            self.n_waited = 0
            if self.restore_best:
                self._weights = network.get_weights()
            return False
        self.n_waited += 1
        return self.n_waited >= self.patience

    def on_end(self, network: TrainedNetwork) -> None:
        if self._weights and self.n_waited:
            network.set_weights(self._weights)
        self._weights = []

    def state(self) -> dict[str, Any]:
        return super().state() | {"n_waited": self.n_waited, "weights": list(self._weights)}

    def restore(self, state: dict[str, Any]) -> None:
        super().restore(state)
        self.n_waited = check.integer(state["n_waited"], "n_waited", minimum=0)
        self._weights = list(state["weights"])

    def __repr__(self) -> str:
        return (f"EarlyStopping({self.monitor!r}, patience={self.patience}, "
                f"min_delta={self.min_delta:g}, restore_best={self.restore_best}, "
                f"mode={self.mode!r})")


class BestModel(_Monitor):
    """Save the network after each epoch that is the best so far.

    Parameters
    ----------
    path : str or path-like
        A safetensors file for `sparselsh.load`; replaced as a whole or not at all. Where that
        fails, a RuntimeWarning says why, and the training continues.
    monitor, mode, min_delta
        As for :class:`EarlyStopping`.
    """

    def __init__(self, path: PathLike, monitor: str = "auto", *, mode: str = "auto",
                 min_delta: float = 0.0) -> None:
        super().__init__(monitor, mode, min_delta)
        self.path = _path(path)

    def on_begin(self, network: TrainedNetwork) -> None:
        super().on_begin(network)
        _check_writable(self.path)

    def on_epoch_end(self, network: TrainedNetwork, entry: dict[str, Any]) -> None:
        if self._is_best(entry):
            _save(network, self.path, self, indexes=True)

    def __repr__(self) -> str:
        return (f"BestModel({self.path!r}, {self.monitor!r}, mode={self.mode!r}, "
                f"min_delta={self.min_delta:g})")


class Checkpoint(Callback):
    """Save the network and its training state, so that `resume` continues with the same bits.

    The file is written after each epoch, on Ctrl-C and when the training is complete. It is
    replaced as a whole or not at all: a process that is killed leaves the previous file. So does a
    file that cannot be written, or that `load` would refuse; a RuntimeWarning says why, and the
    training continues.

    Parameters
    ----------
    path : str or path-like
        A safetensors file: ``sparselsh.load(path).resume(X, Y)``.
    every_steps : int or None
        Also save after every this many steps.
    """

    runs_last = True

    def __init__(self, path: PathLike, *, every_steps: int | None = None) -> None:
        self.path = _path(path)
        self.every_steps = (None if every_steps is None
                            else check.integer(every_steps, "every_steps"))
        self._n_steps = 0

    def on_begin(self, network: TrainedNetwork) -> None:
        _check_writable(self.path)

    def on_step(self, network: TrainedNetwork) -> None:
        self._n_steps += 1
        if self.every_steps is not None and self._n_steps % self.every_steps == 0:
            self._save(network)

    def on_epoch_end(self, network: TrainedNetwork, entry: dict[str, Any]) -> None:
        self._save(network)

    def on_interrupt(self, network: TrainedNetwork) -> None:
        self._save(network)

    def on_end(self, network: TrainedNetwork) -> None:
        self._save(network)

    def _save(self, network: TrainedNetwork) -> None:
        _save(network, self.path, self, training_state=True)

    def __repr__(self) -> str:
        return f"Checkpoint({self.path!r}, every_steps={self.every_steps})"


class Log(Callback):
    """Write the history to a file after each epoch.

    Parameters
    ----------
    path : str or path-like
        ``.csv`` for a table with one row per epoch, ``.json`` for a list of objects. The file is
        rewritten as a whole, so it is also correct after `resume`.

    Raises
    ------
    ValueError
        If `path` ends in neither of them.
    """

    def __init__(self, path: PathLike) -> None:
        self.path = _path(path)
        if not self.path.endswith((".csv", ".json")):
            raise ValueError(f"path must end in .csv or .json, got {self.path!r}")

    def on_begin(self, network: TrainedNetwork) -> None:
        _check_writable(self.path)

    def on_epoch_end(self, network: TrainedNetwork, entry: dict[str, Any]) -> None:
        with _files.replacing(_files.place(self.path), "w", encoding="utf-8", newline="") as file:
            if self.path.endswith(".json"):
                json.dump(network.history, file, indent=1)
            else:
                import csv  # here, because it takes longer to import than this module

                columns = dict.fromkeys(key for row in network.history for key in row)
                table = csv.DictWriter(file, columns, lineterminator="\n")
                table.writeheader()
                table.writerows(network.history)

    def __repr__(self) -> str:
        return f"Log({self.path!r})"


class StopOnInterrupt(Callback):
    """Let Ctrl-C end the training as if it were complete: `fit` returns without KeyboardInterrupt.

    Attributes
    ----------
    interrupted : bool
        Whether Ctrl-C ended the last training.
    """

    def __init__(self) -> None:
        self.interrupted = False

    def on_begin(self, network: TrainedNetwork) -> None:
        self.interrupted = False

    def on_interrupt(self, network: TrainedNetwork) -> bool:
        self.interrupted = True
        return True


def checked(callbacks: Sequence[Callback]) -> list[Callback]:
    """The callbacks as a checked list."""
    if isinstance(callbacks, Callback):
        return [callbacks]
    try:
        callbacks = list(callbacks)
    except TypeError:
        raise TypeError("callbacks must be a list of Callback objects, such as [EarlyStopping()], "
                        f"got {callbacks!r}") from None
    for i, callback in enumerate(callbacks):
        if not isinstance(callback, Callback):
            raise TypeError(f"callbacks[{i}] must be a Callback object, such as EarlyStopping(), "
                            f"got {callback!r}")
        if any(callback is other for other in callbacks[:i]):
            raise ValueError(f"callbacks[{i}] is in the list twice; give each once")
    return callbacks


def _path(path: PathLike) -> str:
    return os.path.abspath(check.path(path))


def _save(network: TrainedNetwork, path: PathLike, callback: Callback, **options: Any) -> None:
    """Save a network, or warn: hours of training are worth more than one of its files."""
    try:
        network.save(path, **options)
    except (OSError, MemoryError, ValueError) as error:
        warnings.warn(f"{type(callback).__name__} could not save the network "
                      f"({type(error).__name__}: {error}); the training continues, and a file that "
                      "was saved before is unchanged", RuntimeWarning, stacklevel=2)


def _check_writable(path: PathLike) -> None:
    """Raise, before the training, the error that saving would raise after its first epoch."""
    _files.place(path)
