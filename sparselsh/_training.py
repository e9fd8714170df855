"""The training loop: where a training stands, its epochs and steps, interruptions, callbacks.

A training can be left between two steps and be gone on with, in the same process or in another, with the same bits:
`Run` holds its place, the layers, the optimizer and the generator the rest. An epoch that was left half-way is replayed
from the state that the generator had at its head: it draws the same order, and batches that are done are skipped.
"""
from __future__ import annotations

import signal
import threading
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, Self

from tqdm import tqdm

from . import _streams
from . import _validation as check

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np

    from ._streams import Source
    from .callbacks import Callback
    from .network import Network


@dataclass
class Run:
    """What was asked of a training, and where it stands."""

    epochs: int
    batch_size: int
    shuffle: bool
    window: int
    epoch: int = 0  # epochs that are done
    stopped: bool = False  # before its last epoch
    n_rows: int | None = None  # of the source, once that is known
    n_batches: int = 0  # of the epoch at hand that are done; the sums are over them
    n: int = 0
    loss: float = 0.0
    share: float = 0.0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    generator: Any = None  # state of the network's generator at the head of the epoch at hand
    callbacks: list[tuple[str, dict[str, Any]]] = field(default_factory=list)  # (name, state) of each, from a file

    @property
    def is_done(self) -> bool:
        """Whether there is nothing to go on with."""
        return self.stopped or self.epoch == self.epochs

    def plain(self) -> dict[str, Any]:
        """The fields but for `callbacks`, for a file."""
        return {key: value for key, value in asdict(self).items() if key != "callbacks"}

    @classmethod
    def restored(cls, plain: dict[str, Any]) -> Self:
        """The run of a file, checked."""
        run = cls(**{name: plain[name] for name in (f.name for f in fields(cls)) if name != "callbacks"})
        for name in ("epochs", "batch_size", "window"):
            check.integer(getattr(run, name), name)
        for name in ("epoch", "n_batches", "n"):
            check.integer(getattr(run, name), name, minimum=0)
        for name in ("loss", "share", "seconds", "cpu_seconds"):
            check.number(getattr(run, name), name)
        if run.n_rows is not None:
            check.integer(run.n_rows, "n_rows")
        if run.epoch > run.epochs:
            raise ValueError(f"epoch must be at most epochs={run.epochs}, got {run.epoch}")
        return run

    def begin_epoch(self, generator: np.random.Generator) -> None:
        """Set the sums to zero, or wind the generator back to the head of an epoch that goes on."""
        if self.n_batches:
            generator.bit_generator.state = self.generator
        else:
            self.generator = generator.bit_generator.state
            self.n, self.loss, self.share, self.seconds, self.cpu_seconds = 0, 0.0, 0.0, 0.0, 0.0

    def add(self, n: int, loss: float, share: float, seconds: float, cpu_seconds: float) -> None:
        """Count a batch of n rows."""
        self.n_batches += 1
        self.n += n
        self.loss += loss * n
        self.share += share * n
        self.seconds += seconds
        self.cpu_seconds += cpu_seconds

    def entry(self) -> dict[str, float]:
        """The epoch at hand for the history."""
        return {"loss": self.loss / self.n, "seconds": self.seconds, "cpu_seconds": self.cpu_seconds,
                "samples_per_second": self.n / max(self.seconds, 1e-9), "computed_share": self.share / self.n}

    def end_epoch(self) -> None:
        """Count the epoch."""
        self.epoch += 1
        self.n_batches = 0
        self.generator = None

    def progress(self, number: int, n_rows: int | None) -> float:
        """Share of the training that is done before batch `number`; without n_rows, that at the head of the epoch."""
        if n_rows is None:
            return self.epoch / self.epochs
        n_batches = -(-n_rows // self.batch_size)
        return self.epoch / self.epochs + min(number, n_batches) * (1 / (self.epochs * n_batches))


class Interrupts:
    """Ctrl-C between two steps and not inside of one, where weights, optimizer and index are not of one step.

    The second Ctrl-C is not held back. Only the main thread hears of Ctrl-C; a handler of the user's stays.
    """

    def __init__(self) -> None:
        self._held = self._pending = False

    def __enter__(self) -> Self:
        self._installed = (threading.current_thread() is threading.main_thread()
                           and signal.getsignal(signal.SIGINT) is signal.default_int_handler)
        if self._installed:
            signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, *error: object) -> None:
        if self._installed:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _handle(self, number: int, frame: object) -> None:
        if not self._held or self._pending:
            raise KeyboardInterrupt
        self._pending = True

    @contextmanager
    def held(self) -> Iterator[None]:
        """A block that ends before KeyboardInterrupt is raised."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
        if self._pending:
            self._pending = False
            raise KeyboardInterrupt


def train(network: Network, source: Source, validation: tuple[Any, Any] | None, callbacks: Sequence[Callback],
          verbose: bool) -> None:
    """Take `network._run` to its end."""
    run = network._run
    if run.n_rows is None:
        run.n_rows = source.n_rows
    callbacks = sorted(callbacks, key=lambda callback: callback.runs_last)
    for i, (callback, (name, state)) in enumerate(zip(callbacks, run.callbacks, strict=False)):
        if type(callback).__name__ == name:
            _restore(callback, state, i)
    with Interrupts() as interrupts:
        for callback in callbacks:
            callback.on_begin(network)
        network._callbacks = callbacks
        try:
            while not run.is_done:
                _epoch(network, source, validation, callbacks, interrupts, verbose)
        except KeyboardInterrupt:
            # every callback is asked, whatever the ones before say
            run.stopped = any([callback.on_interrupt(network) for callback in callbacks])
            if not run.stopped:
                raise
        finally:
            run.callbacks = states(network)
            network._callbacks = ()
        for callback in callbacks:
            callback.on_end(network)


def _restore(callback: Callback, state: dict[str, Any], i: int) -> None:
    try:
        callback.restore(state)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"callbacks[{i}], {callback!r}, does not take the state that was saved of it "
                         f"({type(error).__name__}: {error}); the file is damaged or from another version: resume from "
                         "another, or without this callback") from error


def states(network: Network) -> list[tuple[str, dict[str, Any]]]:
    """(name, state) of the callbacks, those of a training that is not going on as they were at its last step."""
    if not network._callbacks:
        return network._run.callbacks if network._run is not None else []
    return [(type(callback).__name__, callback.state()) for callback in network._callbacks]


def _epoch(network: Network, source: Source, validation: tuple[Any, Any] | None, callbacks: Sequence[Callback],
           interrupts: Interrupts, verbose: bool) -> None:
    run = network._run
    run.begin_epoch(network._rng)
    if run.n_rows is not None:
        source.n_rows = run.n_rows  # of an iterable it was counted in the epochs before
    with tqdm(total=source.n_rows, initial=run.n, unit=" samples", desc=f"epoch {run.epoch + 1}/{run.epochs}",
              disable=not verbose, leave=True, mininterval=0.25) as bar:
        _steps(network, source, callbacks, interrupts, bar)
        with interrupts.held():
            entry = {"epoch": len(network.history) + 1} | run.entry()
            if validation is not None:
                entry |= network._validate(*validation)
            bar.set_postfix(_postfix(entry))
            network.history.append(entry)
            network.computed_share = entry["computed_share"]
            run.n_rows = source.n_rows
            run.end_epoch()
            stops = [callback.on_epoch_end(network, entry) for callback in callbacks if not callback.runs_last]
            run.stopped = any(stops)
            for callback in callbacks:
                if callback.runs_last:
                    callback.on_epoch_end(network, entry)


def _steps(network: Network, source: Source, callbacks: Sequence[Callback], interrupts: Interrupts,
           bar: tqdm[Any]) -> None:
    run = network._run
    batches = _streams.batches(source.blocks(), run.batch_size, network._rng if run.shuffle else None)
    n_done, shown = run.n_batches, 0.0
    begin, cpu_begin = time.perf_counter(), time.process_time()
    for number, (x, y, weight) in enumerate(batches):
        if number < n_done:
            continue
        with interrupts.held():
            loss, share = network._train_step(x, y, run.progress(number, source.n_rows), weight)
            now, cpu_now = time.perf_counter(), time.process_time()
            run.add(x.shape[0], loss, share, now - begin, cpu_now - cpu_begin)
            begin, cpu_begin = now, cpu_now
            bar.total = source.n_rows
            bar.update(x.shape[0])
            if now - shown > 0.25:
                shown = now
                bar.set_postfix(loss=f"{run.loss / run.n:.3f}", computed=f"{share:.1%}", refresh=False)
            for callback in callbacks:
                callback.on_step(network)


def once(network: Network, source: Source, batch_size: int) -> None:
    """One pass over the rows in their order, at the head of the optimizer's schedule."""
    with Interrupts() as interrupts:
        for x, y, weight in _streams.batches(source.blocks(), batch_size):
            with interrupts.held():
                network._train_step(x, y, 0.0, weight)


def _postfix(entry: dict[str, Any]) -> dict[str, str]:
    shown = {"loss": f"{entry['loss']:.3f}", "computed": f"{entry['computed_share']:.1%}"}
    if "val_loss" in entry:
        shown["val_loss"] = f"{entry['val_loss']:.3f}"
    return shown | ({"P@1": f"{entry['p_at_1']:.1%}"} if "p_at_1" in entry else {})
