"""Batcher: one call to the model for all requests that wait.

While a call runs further requests come and wait; the next call takes them together. So batches grow
with the load, and a lone request waits for nothing. Calls that take some milliseconds run in the
event loop, because waking another thread takes longer than many of them; longer ones run in a
thread, so that connections are served meanwhile.
"""
from __future__ import annotations

import asyncio
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._answers import Job
    from ._limits import Limits

MAX_SECONDS_IN_LOOP = 0.005  # of a call
PACE_DECAY = 0.95  # per call, of the seconds that a byte of a request is expected to take


class Busy(Exception):
    """So many requests wait that another one would wait too long."""


class Batcher:
    """Answers jobs together.

    Parameters
    ----------
    answers : callable
        Takes a list of jobs and returns their answers.
    limits : Limits
    counted : callable
        Called with the number of items of each call to `answers`.
    """

    def __init__(self, answers: Callable[[list[Job]], list[bytes]], limits: Limits,
                 counted: Callable[[int], None]) -> None:
        self._answers, self._limits, self._counted = answers, limits, counted
        self._jobs: deque[tuple[Job, Callable[[Any], None]]] = deque()
        self.n_waiting = 0
        self._thread = ThreadPoolExecutor(1)
        self._is_running = False
        self._n_in_thread = 0
        self._pace = float("inf")  # seconds per byte of a request

    def submit(self, job: Job, done: Callable[[Any], None]) -> None:
        """Have `done` called in the loop with the answer or an error; Busy if too many wait."""
        n = len(job.items)
        if self.n_waiting and self.n_waiting + n > self._limits.max_waiting:
            raise Busy
        self._jobs.append((job, done))
        self.n_waiting += n
        if not self._is_running:
            self._is_running = True  # behind the requests that have come meanwhile
            asyncio.get_running_loop().call_soon(self._call)

    async def answer(self, job: Job) -> bytes:
        """The answer to a job, when its turn has come; Busy if too many wait."""
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

        def done(answer: Any) -> None:
            if future.done():  # the client has gone
                return
            if isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(answer)

        self.submit(job, done)
        return await future

    async def run(self, call: Callable[..., Any], *args: Any) -> Any:
        """Another call to the model, in the thread; `answers` is called there meanwhile."""
        self._n_in_thread += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, call, *args)
        finally:
            self._n_in_thread -= 1

    def close(self) -> None:
        """End the thread, after the call that runs."""
        self._thread.shutdown(wait=False)

    def _call(self) -> None:
        """Answer the jobs of one batch, here or in the thread."""
        batch, n_bytes = self._next()
        if not self._n_in_thread and self._pace * n_bytes <= MAX_SECONDS_IN_LOOP:
            self._end(batch, self._found([job for job, _ in batch], n_bytes))
            return
        future = asyncio.get_running_loop().run_in_executor(
            self._thread, self._found, [job for job, _ in batch], n_bytes)
        future.add_done_callback(lambda ended: self._end(batch, ended.result()))

    def _end(self, batch: list[tuple[Job, Callable[[Any], None]]], found: list[Any]) -> None:
        if self._jobs:
            asyncio.get_running_loop().call_soon(self._call)
        else:
            self._is_running = False
        for (_, done), answer in zip(batch, found, strict=True):
            done(answer)

    def _next(self) -> tuple[list[tuple[Job, Callable[[Any], None]]], int]:
        """The jobs of the next call, at least one and as many as fit, and their bytes."""
        batch = [self._jobs.popleft()]
        n, n_bytes = len(batch[0][0].items), batch[0][0].n_bytes
        while self._jobs and n + len(self._jobs[0][0].items) <= self._limits.batch:
            batch.append(self._jobs.popleft())
            n += len(batch[-1][0].items)
            n_bytes += batch[-1][0].n_bytes
        self.n_waiting -= n
        return batch, n_bytes

    def _found(self, jobs: list[Job], n_bytes: int) -> list[Any]:
        """Answers or errors; one job does not fail the others."""
        self._counted(sum(len(job.items) for job in jobs))
        begin = time.perf_counter()
        try:
            found: list[Any] = list(self._answers(jobs))
        except Exception as error:
            if len(jobs) == 1:
                return [error]
            found = []
            for job in jobs:
                try:
                    found += self._answers([job])
                except Exception as own:
                    found.append(own)
        pace = (time.perf_counter() - begin) / max(n_bytes, 1)
        self._pace = pace if self._pace == float("inf") else max(pace, PACE_DECAY * self._pace)
        return found
