"""Limits of a request and of a client."""
from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass

from .. import _validation as check

MAX_CLIENTS = 10_000  # whose rate is remembered


@dataclass(frozen=True)
class Limits:
    """What a server accepts.

    Parameters
    ----------
    max_bytes : int
        Bytes of the body of a request; larger ones are refused with status 413.
    max_items : int
        Texts or rows of a request.
    max_waiting : int
        Texts or rows that wait in a worker; further ones are refused with status 503.
    batch : int
        Texts or rows that are answered together.
    timeout : float
        Seconds within which the head of a request, and then its body, must have come.
    rate : float or None
        Requests per second and client address, in each worker; more are refused with status 429.

    Raises
    ------
    ValueError, TypeError
        If an argument is invalid; the message names it.
    """

    max_bytes: int = 1 << 20
    max_items: int = 1024
    max_waiting: int = 4096
    batch: int = 64
    timeout: float = 10.0
    rate: float | None = None

    def __post_init__(self) -> None:
        for name in ("max_bytes", "max_items", "max_waiting", "batch"):
            check.integer(getattr(self, name), name)
        check.number(self.timeout, "timeout", above=0)
        if self.rate is not None:
            check.number(self.rate, "rate", above=0)


class Rates:
    """Token buckets of the clients, each filled with `rate` tokens per second up to one second's.

    At least one token fits, so that a rate below one works.
    """

    def __init__(self, rate: float | None) -> None:
        self.rate = rate
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def allows(self, client: str) -> bool:
        """Whether a client may send another request now; counts it."""
        if self.rate is None:
            return True
        now, size = time.monotonic(), max(1.0, self.rate)
        tokens, last = self._buckets.pop(client, (size, now))
        tokens = min(size, tokens + (now - last) * self.rate)
        self._buckets[client] = (max(0.0, tokens - 1) if tokens >= 1 else tokens, now)
        while len(self._buckets) > MAX_CLIENTS:
            self._buckets.popitem(last=False)
        return tokens >= 1
