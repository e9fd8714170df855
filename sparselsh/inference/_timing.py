"""Times of calls: the fastest of a few rounds, which other work on the machine disturbs least."""
from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

N_ROUNDS = 5
MAX_SECONDS = 2.0  # of all rounds; noise matters little in longer ones


def seconds_of_rounds(call: Callable[[Any], object], parts: Sequence[Any], n_rows: int,
                      max_seconds: float = MAX_SECONDS) -> list[float]:
    """Seconds per row of each round, which calls `call` once per part; a part has n_rows rows."""
    call(parts[0])  # what the first call builds or reads is not timed
    times: list[float] = []
    n = n_rows * len(parts)
    while len(times) < N_ROUNDS and sum(times) * n <= max_seconds:
        begin = time.perf_counter()
        for part in parts:
            call(part)
        times.append((time.perf_counter() - begin) / n)
    return times


def fastest(call: Callable[[Any], object], parts: Sequence[Any], n_rows: int) -> float:
    """Seconds per row of the fastest round."""
    return min(seconds_of_rounds(call, parts, n_rows))
