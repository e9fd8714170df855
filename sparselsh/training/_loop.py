"""The training loop: epochs and steps, interruptions, callbacks, losses that are not finite.

A training can be interrupted between two steps and be resumed, in the same process or in another,
with the same bits: `TrainingProgress` holds the position; layers, optimizer and generator hold the
rest. The network is passed on to callbacks; the loop itself does not use it.
"""
from __future__ import annotations

import time
import warnings
from functools import partial
from typing import TYPE_CHECKING, Any

from .._display import progress_bar
from .._signals import Interrupts
from ..callbacks import Callback
from ._attempt import Diverged
from ._batches import batches

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ..callbacks import TrainedNetwork
    from ._batches import Block, Source
    from ._progress import TrainingProgress
    from ._step import Training

BAR_INTERVAL = 0.25  # seconds between two updates of the progress bar
ON_NONFINITE = ("raise", "warn", "restore")
STACK_LEVEL = 8  # of a warning in a step of `fit`, so that it names the line that calls `fit`


def train(training: Training, source: Source, network: TrainedNetwork,
          validate: Callable[[], dict[str, float]] | None, callbacks: Sequence[Callback],
          n_threads: int, verbose: bool, on_nonfinite: str,
          interrupts: Interrupts | None = None) -> None:
    """Train until `training.progress` is done.

    Parameters
    ----------
    training : Training
        Has an optimizer and a progress.
    source : Source
    network : TrainedNetwork
        Passed to the callbacks.
    validate : callable or None
        Returns the measures of the validation rows, for the history.
    callbacks : sequence of Callback
    n_threads : int
    verbose : bool
        Show a progress bar.
    on_nonfinite : {"raise", "warn", "restore"}
        See :meth:`Network.fit`.
    interrupts : Interrupts or None
        Decides when signals are handled; None for between two steps.
    """
    progress = training.progress
    if progress.n_rows is None:
        progress.n_rows = source.n_rows
    callbacks = sorted(callbacks, key=lambda callback: callback.runs_last)
    for i, (callback, (name, state)) in enumerate(zip(callbacks, progress.callbacks,
                                                      strict=False)):
        if type(callback).__name__ == name:
            _restore(callback, state, i)

    with interrupts or Interrupts() as interrupts:
        for callback in callbacks:
            callback.on_begin(network)
        training.callbacks = callbacks
        training.watches_sets = any(type(callback).on_active_sets is not Callback.on_active_sets
                                    for callback in callbacks)
        for layer in training.layers:
            layer.begin_count()
        try:
            interrupts.release()
            while not progress.is_done:
                steps = _Steps(training, interrupts, n_threads, on_nonfinite)
                _epoch(steps, source, network, validate, verbose)
        except KeyboardInterrupt:
            with interrupts.held():
                # a list: every callback is called, whatever the ones before it return
                progress.stopped = any([callback.on_interrupt(network) for callback in callbacks])
            if not progress.stopped:
                raise
        finally:
            progress.callbacks = callback_states(training)
            training.callbacks, training.watches_sets, training.active_sets = (), False, []
        for callback in callbacks:
            callback.on_end(network)


def _restore(callback: Callback, state: dict[str, Any], i: int) -> None:
    try:
        callback.restore(state)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"callbacks[{i}], {callback!r}, does not take the state that was saved of "
                         f"it ({type(error).__name__}: {error}); the file is damaged or from "
                         "another version: resume from another, or without this callback"
                         ) from error


def callback_states(training: Training) -> list[tuple[str, dict[str, Any]]]:
    """(name, state) of each callback; after a training, as they were at its last step."""
    if not training.callbacks:
        return training.progress.callbacks if training.progress is not None else []
    return [(type(callback).__name__, callback.state()) for callback in training.callbacks]


class _Steps:
    """The steps of an epoch, and what is done where a loss is not finite."""

    def __init__(self, training: Training, interrupts: Interrupts, n_threads: int,
                 on_nonfinite: str) -> None:
        self.training, self.interrupts = training, interrupts
        self.n_threads, self.on_nonfinite = n_threads, on_nonfinite
        self.good = ([layer.copy_weights() for layer in training.layers]
                     if on_nonfinite == "restore" else [])

    def can_undo(self) -> bool:
        """Whether a second Ctrl-C may end the step that runs, because no weight has changed."""
        attempt = self.training.attempt
        return attempt is not None and attempt.is_running and not attempt.pairs

    def take(self, batch: Block, fraction_done: float, count: Any) -> bool:
        """Train on a batch; False if the training ends."""
        x, y, weight = batch
        try:
            self.training.step(x, y, fraction_done, weight, self.n_threads, count=count)
        except Diverged as error:
            if self.on_nonfinite == "raise":
                raise
            warnings.warn(f"{error.what}; {self._consequence()}", RuntimeWarning,
                          stacklevel=STACK_LEVEL)
            if self.on_nonfinite == "restore":
                for layer, weights in zip(self.training.layers, self.good, strict=True):
                    layer.load_weights(*weights)
                return False
            self.training.skip()
        return True

    def _consequence(self) -> str:
        if self.on_nonfinite == "warn":
            return "its batch is skipped (on_nonfinite='warn')"
        return ("the training ends with the weights of its last good epoch "
                "(on_nonfinite='restore')")


class _Clock:
    """Seconds since the last reading."""

    def __init__(self) -> None:
        self._begin, self._cpu_begin = time.perf_counter(), time.process_time()

    def lap(self) -> tuple[float, float]:
        now, cpu_now = time.perf_counter(), time.process_time()
        seconds = now - self._begin, cpu_now - self._cpu_begin
        self._begin, self._cpu_begin = now, cpu_now
        return seconds


def _count(progress: TrainingProgress | None, n: int, clock: _Clock, loss: float,
           share: float) -> None:
    progress.add(n, loss, share, *clock.lap())


def _epoch(steps: _Steps, source: Source, network: TrainedNetwork,
           validate: Callable[[], dict[str, float]] | None, verbose: bool) -> None:
    training = steps.training
    progress, callbacks = training.progress, training.callbacks
    progress.begin_epoch(training.rng)
    if progress.n_rows is not None:
        source.n_rows = progress.n_rows  # an iterable's rows were counted in earlier epochs

    title = f"epoch {progress.epoch + 1}/{progress.epochs}"
    with progress_bar(title, " samples", source.n_rows, verbose=verbose, initial=progress.n,
                      interval=BAR_INTERVAL) as bar:
        if not _take_steps(steps, source, network, bar):
            progress.stopped = True
            return
        # `validate` changes nothing, so that a second Ctrl-C may end it
        with steps.interrupts.held(may_cut=lambda: validate is not None):
            measures = {} if validate is None else validate()
        with steps.interrupts.held():
            entry = {"epoch": len(training.history) + 1} | progress.entry() | measures
            bar.set_postfix(_postfix(entry))
            training.history.append(entry)
            training.computed_share = entry["computed_share"]
            progress.n_rows = source.n_rows
            progress.end_epoch()

            first = [callback for callback in callbacks if not callback.runs_last]
            stops = [callback.on_epoch_end(network, entry) for callback in first]
            progress.stopped = training.agreed(any(stops))
            for callback in callbacks:
                if callback.runs_last:
                    callback.on_epoch_end(network, entry)
    if progress.epoch == 1:
        _warn_of_useless_options(training, progress.batch_size)


def _take_steps(steps: _Steps, source: Source, network: TrainedNetwork,
                bar: Any) -> bool:
    """The steps of an epoch that are left; False if the training ends."""
    training = steps.training
    progress = training.progress
    rng = training.rng if progress.shuffle else None
    n_done, shown, clock = progress.n_batches, 0.0, _Clock()

    for number, batch in enumerate(batches(source.blocks(), progress.batch_size, rng)):
        if number < n_done:
            continue
        n = batch[0].shape[0]
        with steps.interrupts.held(steps.can_undo):
            fraction_done = progress.fraction(number, source.n_rows)
            if not steps.take(batch, fraction_done, partial(_count, progress, n, clock)):
                return False
            if progress.n_batches == number:
                progress.skip()

            bar.total = source.n_rows
            bar.update(n)
            now = time.perf_counter()
            if now - shown > BAR_INTERVAL and progress.n:
                shown = now
                bar.set_postfix(loss=f"{progress.loss / progress.n:.3f}",
                                computed=f"{progress.share / progress.n:.1%}", refresh=False)
            for callback in training.callbacks:
                if training.watches_sets:
                    callback.on_active_sets(network, training.active_sets)
                callback.on_step(network)
    return True


def _warn_of_useless_options(training: Training, batch_size: int) -> None:
    """Say after the first epoch where labels leave hashing nothing to choose."""
    for i, layer in enumerate(training.layers):
        why = layer.useless_options(batch_size)
        if why is not None:
            warnings.warn(f"layers[{i}]: {why}", UserWarning, stacklevel=STACK_LEVEL - 1)


def train_once(training: Training, source: Source, batch_size: int, n_threads: int,
               on_nonfinite: str, interrupts: Interrupts | None = None) -> None:
    """Train on all rows once, in order, with the schedule of the optimizer at its start."""
    with interrupts or Interrupts() as interrupts:
        interrupts.release()
        steps = _Steps(training, interrupts, n_threads, on_nonfinite)
        for batch in batches(source.blocks(), batch_size):
            with interrupts.held(steps.can_undo):
                if not steps.take(batch, 0.0, None):
                    return


def _postfix(entry: dict[str, Any]) -> dict[str, str]:
    shown = {"loss": f"{entry['loss']:.3f}", "computed": f"{entry['computed_share']:.1%}"}
    if "val_loss" in entry:
        shown["val_loss"] = f"{entry['val_loss']:.3f}"
    return shown | ({"P@1": f"{entry['p_at_1']:.1%}"} if "p_at_1" in entry else {})
