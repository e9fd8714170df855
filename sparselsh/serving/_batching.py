"""Batcher: one call to the model for all requests that wait.

While a call runs, in a thread that is not the event loop's, further requests come and wait; the
next call takes them together. So batches grow with the load, and a lone request waits for nothing.
"""
from __future__ import annotations

import asyncio
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._answers import Job
    from ._limits import Limits


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
        self._jobs: deque[tuple[Job, asyncio.Future[bytes]]] = deque()
        self.n_waiting = 0
        self._thread = ThreadPoolExecutor(1)
        self._task: asyncio.Task[None] | None = None

    async def answer(self, job: Job) -> bytes:
        """The answer to a job, when its turn has come; Busy if too many wait."""
        n = len(job.items)
        if self.n_waiting and self.n_waiting + n > self._limits.max_waiting:
            raise Busy
        loop = asyncio.get_running_loop()
        future: asyncio.Future[bytes] = loop.create_future()
        self._jobs.append((job, future))
        self.n_waiting += n
        if self._task is None:
            self._task = loop.create_task(self._run())
        return await future

    async def run(self, call: Callable[..., Any], *args: Any) -> Any:
        """Another call to the model, in the same thread."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, call, *args)

    def close(self) -> None:
        """End the thread, after the call that runs."""
        self._thread.shutdown(wait=False)

    async def _run(self) -> None:
        try:
            while self._jobs:
                batch = self._next()
                jobs = [job for job, _ in batch]
                self._counted(sum(len(job.items) for job in jobs))
                try:
                    found: list[Any] = await self.run(self._answers, jobs)
                except Exception as error:
                    found = await self._one_by_one(jobs) if len(jobs) > 1 else [error]
                for (_, future), answer in zip(batch, found, strict=True):
                    if future.done():  # the client has gone
                        continue
                    if isinstance(answer, Exception):
                        future.set_exception(answer)
                    else:
                        future.set_result(answer)
        finally:
            self._task = None

    def _next(self) -> list[tuple[Job, asyncio.Future[bytes]]]:
        """The jobs of the next call: at least one, and as many as fit."""
        batch = [self._jobs.popleft()]
        n = len(batch[0][0].items)
        while self._jobs and n + len(self._jobs[0][0].items) <= self._limits.batch:
            batch.append(self._jobs.popleft())
            n += len(batch[-1][0].items)
        self.n_waiting -= n
        return batch

    async def _one_by_one(self, jobs: list[Job]) -> list[Any]:
        """Answers or errors, so that one job does not fail the others."""
        found: list[Any] = []
        for job in jobs:
            try:
                found += await self.run(self._answers, [job])
            except Exception as error:
                found.append(error)
        return found
