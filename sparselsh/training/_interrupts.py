"""Ctrl-C during training: handled between two steps, never within one."""
from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Iterator


class Interrupts:
    """Holds Ctrl-C back until a step is complete, so that weights, optimizer and index agree.

    A second Ctrl-C is not held back. Only the main thread receives Ctrl-C; a handler that the user
    has installed stays in place.
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
        """Context in which Ctrl-C is held back; KeyboardInterrupt is raised at its end."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
        if self._pending:
            self._pending = False
            raise KeyboardInterrupt
