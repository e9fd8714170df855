"""The default number of threads of the kernels, and locks for objects shared by Python threads.

A forked child process has none of the threads that the kernels of its parent had started, and GNU
OpenMP would wait for them forever. Kernels therefore use one thread there, which needs no others.
Where a thread cannot be started, GNU OpenMP ends the process; here it is tried before. Results do
not depend on the number of threads.
"""
from __future__ import annotations

import contextlib
import functools
import os
import threading
import weakref
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from . import _resources
from . import _validation as check
from ._core import _openmp

if TYPE_CHECKING:
    from collections.abc import Callable

P = ParamSpec("P")
R = TypeVar("R")
_default = None
_several_used = False  # whether kernels may have started threads here or in a parent process
_forked = False  # whether this process was forked after that
_n_startable = 1  # threads that were started at once, as a trial
_openmp_default = _openmp.max_threads()  # another number later is one that somebody has set
_locks: weakref.WeakSet[Lock] = weakref.WeakSet()


def get_num_threads() -> int:
    """Number of threads that kernels use by default.

    The number given to :func:`set_num_threads`, or else OMP_NUM_THREADS, or else the number of
    processors on which this process may run: those of its affinity, and as many as the quota of its
    cgroup grants. Within ``threadpoolctl.threadpool_limits`` at most the limit. Always 1 in a
    process that was forked after kernels had run with several threads.

    Returns
    -------
    int
    """
    if _forked:
        return 1
    if _default is not None:
        return _default
    try:
        n = max(1, int(os.environ["OMP_NUM_THREADS"].split(",")[0]))
    except (KeyError, ValueError):
        n = _n_processors()
    limit = _openmp.max_threads()
    return n if limit == _openmp_default else min(n, limit)


def _n_processors() -> int:
    n = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(n, _resources.processor_quota() or n)


def set_num_threads(n: int | None) -> None:
    """Set the number of threads for all later calls that do not specify one.

    All kernels use these threads, including dense products. NumPy's BLAS, which the library hardly
    calls, has its own setting.

    Parameters
    ----------
    n : int or None
        Number of threads, from 1 to 1024; None restores the default.

    Raises
    ------
    TypeError, ValueError
        If n is not an integer from 1 to 1024.
    """
    global _default
    _default = check.threads(n, "n")


def resolve(n_threads: int | None) -> int:
    """The number of threads of a call; None for the default."""
    global _several_used
    n_threads = get_num_threads() if n_threads is None else n_threads
    if n_threads > 1:
        if _forked:
            return 1
        if n_threads > _n_startable:
            _try_to_start(n_threads)
        _several_used = True
    return n_threads


def _try_to_start(n_threads: int) -> None:
    """Start as many threads as the kernels will, once; RuntimeError where that fails."""
    global _n_startable
    gate, threads = threading.Lock(), []
    with gate:
        try:
            for _ in range(n_threads - 1):
                thread = threading.Thread(target=_pass, args=(gate,), daemon=True)
                thread.start()
                threads.append(thread)
        except (RuntimeError, MemoryError) as error:
            raise RuntimeError(f"n_threads={n_threads}: the system starts only {len(threads) + 1} "
                               f"({error}); lower n_threads, or raise the limit of processes "
                               "(ulimit -u) or of memory") from error
    for thread in threads:
        thread.join()
    _n_startable = n_threads


def _pass(gate: threading.Lock) -> None:
    with gate:
        pass


class Lock:
    """Lock of the Python thread that uses an object; copies and pickles get their own."""

    def __init__(self) -> None:
        self.held = threading.RLock()  # a signal cannot come between its steps, as it is not Python
        _locks.add(self)

    def __enter__(self) -> None:
        self.held.acquire()

    def __exit__(self, *error: object) -> None:
        self.held.release()

    def __reduce__(self) -> tuple[type[Any], tuple[()]]:
        return Lock, ()


class Unlocked:
    """Takes the place of a Lock where nothing changes."""

    held = contextlib.nullcontext()


def one_at_a_time(method: Callable[P, R]) -> Callable[P, R]:
    """Make a method hold the `_lock` of its object while it runs.

    If the object has a `_begin_call`, it is called before.
    """

    @functools.wraps(method)
    def locked(self: Any, *args: Any, **kwargs: Any) -> Any:
        with self._lock.held:
            if (begin := getattr(self, "_begin_call", None)) is not None:
                begin()
            return method(self, *args, **kwargs)

    return locked  # type: ignore[return-value]  # same arguments, the first named


def _after_fork() -> None:
    global _forked
    _forked = _several_used
    for lock in list(_locks):  # the thread that held one does not exist here
        lock.held = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
