"""Signals that arrive while state changes: their handlers run once it is whole again.

Python runs the handler of a signal between two instructions of the main thread, which may be in the
middle of a training step. `Interrupts` takes the place of the handlers, Ctrl-C's among them, and
calls them later. What a handler does, saving the network or raising an exception, then meets a
state that is whole.
"""
from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGVTALRM",
         "SIGBREAK")
NUMBERS = tuple(getattr(signal, name) for name in NAMES if hasattr(signal, name))


def _never() -> bool:
    return False


class Interrupts:
    """Holds the handlers of signals back where the code says so; a context manager.

    It holds them back from its begin until `release`, and while it ends. Only the main thread runs
    handlers, so that in another thread it does nothing. Handlers that are not functions of Python,
    such as those that end the process, stay as they are.
    """

    def __init__(self) -> None:
        self._is_held = True
        self._may_cut: Callable[[], bool] = _never
        self._handlers: dict[int, Any] = {}
        self._pending: dict[int, None] = {}  # in the order of their arrival

    def __enter__(self) -> Self:
        if threading.current_thread() is not threading.main_thread():
            return self
        try:
            for number in NUMBERS:
                handler = signal.getsignal(number)
                if callable(handler):
                    self._handlers[number] = handler
                    signal.signal(number, self._handle)
        except BaseException:
            self._restore()
            raise
        return self

    def _restore(self) -> None:
        for number, handler in self._handlers.items():
            if signal.getsignal(number) == self._handle:  # a callback may have set another
                signal.signal(number, handler)

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        self._is_held = True
        self._restore()
        pending, self._pending = self._pending, {}
        for number in pending:  # where an error has ended a block that held them
            if not (number == signal.SIGINT and kind is KeyboardInterrupt):
                signal.raise_signal(number)

    def _handle(self, number: int, frame: Any) -> None:
        handler = self._handlers[number]
        if not self._is_held:
            handler(number, frame)
        elif (number in self._pending and handler is signal.default_int_handler
                and self._may_cut()):
            self._pending.pop(number, None)
            handler(number, frame)
        else:
            self._pending[number] = None

    @contextmanager
    def held(self, may_cut: Callable[[], bool] = _never) -> Iterator[None]:
        """Context in which handlers are held back; they are called at its end.

        A second Ctrl-C raises KeyboardInterrupt at once where `may_cut()` is true.
        """
        before = self._is_held, self._may_cut
        self._may_cut, self._is_held = may_cut, True
        try:
            yield
        finally:
            self._is_held, self._may_cut = before
        if not self._is_held:
            self._deliver()

    def release(self) -> None:
        """Call handlers from now on, but within `held`; the first statement of the context."""
        self._is_held = False
        self._deliver()

    def _deliver(self) -> None:
        while self._pending:
            number = next(iter(self._pending))
            self._pending.pop(number, None)
            self._handlers[number](number, None)


@contextmanager
def held() -> Iterator[None]:
    """Hold the handlers of signals back, for a change of some attributes that belong together."""
    with Interrupts():
        yield
