"""Signals of one process that end a training after the same step in all processes.

A signal raises a flag, which the next exchange of a step carries to all. After that step each
process handles what it has, and those without a signal raise KeyboardInterrupt.
"""
from __future__ import annotations

import signal
import threading
from typing import TYPE_CHECKING, Any, Self

from .._signals import Interrupts
from ._shards import STOP

if TYPE_CHECKING:
    from ._shards import Shards


class SharedInterrupts(Interrupts):
    """Handles signals after the step in which all processes have learnt of them.

    SIGTERM, which would end the process at once, ends the training as Ctrl-C does. A second signal
    of the same kind is handled at once, without the others.
    """

    def __init__(self, shards: Shards) -> None:
        super().__init__()
        self.shards = shards
        self._flagging = shards.flagging(self.raised)

    def raised(self) -> int:
        """STOP if a signal waits."""
        return STOP if self._pending else 0

    def __enter__(self) -> Self:
        is_main = threading.current_thread() is threading.main_thread()
        self._ends_at_sigterm = is_main and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        if self._ends_at_sigterm:
            signal.signal(signal.SIGTERM, signal.default_int_handler)
        self._flagging.__enter__()
        return super().__enter__()

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        self._flagging.__exit__(None, None, None)
        super().__exit__(kind, *error)

    def _restore(self) -> None:
        super()._restore()
        if self._ends_at_sigterm:
            self._ends_at_sigterm = False
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def _handle(self, number: int, frame: Any) -> None:
        if number in self._pending:
            self._pending.pop(number)
            self._handlers[number](number, frame)
        else:
            self._pending[number] = None

    def _deliver(self) -> None:
        if not self.shards.flags & STOP:
            return
        self.shards.flags &= ~STOP
        super()._deliver()
        raise KeyboardInterrupt
