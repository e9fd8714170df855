"""The training loop: epochs and steps, interruptions, callbacks.

A training can be interrupted between two steps and be resumed, in the same process or in another,
with the same bits: `TrainingProgress` holds the position; layers, optimizer and generator hold the
rest. The network is passed on to callbacks; the loop itself does not use it.
"""
from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from ._batches import batches
from ._interrupts import Interrupts

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ..callbacks import Callback, TrainedNetwork
    from ._batches import Source
    from ._step import Training

BAR_INTERVAL = 0.25  # seconds between two updates of the progress bar


def train(training: Training, source: Source, network: TrainedNetwork,
          validate: Callable[[], dict[str, float]] | None, callbacks: Sequence[Callback],
          n_threads: int, verbose: bool) -> None:
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
    """
    progress = training.progress
    if progress.n_rows is None:
        progress.n_rows = source.n_rows
    callbacks = sorted(callbacks, key=lambda callback: callback.runs_last)
    for i, (callback, (name, state)) in enumerate(zip(callbacks, progress.callbacks,
                                                      strict=False)):
        if type(callback).__name__ == name:
            _restore(callback, state, i)

    with Interrupts() as interrupts:
        for callback in callbacks:
            callback.on_begin(network)
        training.callbacks = callbacks
        try:
            while not progress.is_done:
                _epoch(training, source, network, validate, interrupts, n_threads, verbose)
        except KeyboardInterrupt:
            # a list: every callback is called, whatever the ones before it return
            progress.stopped = any([callback.on_interrupt(network) for callback in callbacks])
            if not progress.stopped:
                raise
        finally:
            progress.callbacks = callback_states(training)
            training.callbacks = ()
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


def _epoch(training: Training, source: Source, network: TrainedNetwork,
           validate: Callable[[], dict[str, float]] | None, interrupts: Interrupts,
           n_threads: int, verbose: bool) -> None:
    progress, callbacks = training.progress, training.callbacks
    progress.begin_epoch(training.rng)
    if progress.n_rows is not None:
        source.n_rows = progress.n_rows  # an iterable's rows were counted in earlier epochs

    title = f"epoch {progress.epoch + 1}/{progress.epochs}"
    with tqdm(total=source.n_rows, initial=progress.n, unit=" samples", desc=title,
              disable=not verbose, leave=True, mininterval=BAR_INTERVAL) as bar:
        _steps(training, source, network, interrupts, n_threads, bar)
        with interrupts.held():
            entry = {"epoch": len(training.history) + 1} | progress.entry()
            if validate is not None:
                entry |= validate()
            bar.set_postfix(_postfix(entry))
            training.history.append(entry)
            training.computed_share = entry["computed_share"]
            progress.n_rows = source.n_rows
            progress.end_epoch()

            first = [callback for callback in callbacks if not callback.runs_last]
            stops = [callback.on_epoch_end(network, entry) for callback in first]
            progress.stopped = any(stops)
            for callback in callbacks:
                if callback.runs_last:
                    callback.on_epoch_end(network, entry)


def _steps(training: Training, source: Source, network: TrainedNetwork, interrupts: Interrupts,
           n_threads: int, bar: tqdm[Any]) -> None:
    progress = training.progress
    rng = training.rng if progress.shuffle else None
    n_done, shown = progress.n_batches, 0.0
    begin, cpu_begin = time.perf_counter(), time.process_time()

    for number, (x, y, weight) in enumerate(batches(source.blocks(), progress.batch_size, rng)):
        if number < n_done:
            continue
        with interrupts.held():
            fraction_done = progress.fraction(number, source.n_rows)
            loss, computed = training.step(x, y, fraction_done, weight, n_threads)
            now, cpu_now = time.perf_counter(), time.process_time()
            progress.add(x.shape[0], loss, computed, now - begin, cpu_now - cpu_begin)
            begin, cpu_begin = now, cpu_now

            bar.total = source.n_rows
            bar.update(x.shape[0])
            if now - shown > BAR_INTERVAL:
                shown = now
                bar.set_postfix(loss=f"{progress.loss / progress.n:.3f}",
                                computed=f"{computed:.1%}", refresh=False)
            for callback in training.callbacks:
                callback.on_step(network)


def train_once(training: Training, source: Source, batch_size: int, n_threads: int) -> None:
    """Train on all rows once, in order, with the schedule of the optimizer at its start."""
    with Interrupts() as interrupts:
        for x, y, weight in batches(source.blocks(), batch_size):
            with interrupts.held():
                training.step(x, y, 0.0, weight, n_threads)


def _postfix(entry: dict[str, Any]) -> dict[str, str]:
    shown = {"loss": f"{entry['loss']:.3f}", "computed": f"{entry['computed_share']:.1%}"}
    if "val_loss" in entry:
        shown["val_loss"] = f"{entry['val_loss']:.3f}"
    return shown | ({"P@1": f"{entry['p_at_1']:.1%}"} if "p_at_1" in entry else {})
