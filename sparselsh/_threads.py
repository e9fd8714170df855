"""How many threads the kernels use where a call does not say."""
from __future__ import annotations

import os

from . import _validation as check

_default = None


def get_num_threads() -> int:
    """Number of threads a kernel uses by default.

    The number given to :func:`set_num_threads`, or else OMP_NUM_THREADS, or else the number of
    processors this process may run on.

    Returns
    -------
    int
    """
    if _default is not None:
        return _default
    try:
        return max(1, int(os.environ["OMP_NUM_THREADS"].split(",")[0]))
    except (KeyError, ValueError):
        pass
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def set_num_threads(n: int | None) -> None:
    """Set the number of threads for all later calls that do not say; None goes back to the default.

    The kernels, dense products among them, use these; numpy's BLAS, which the library hardly calls, has its own.

    Parameters
    ----------
    n : int or None

    Raises
    ------
    TypeError, ValueError
        If n is no integer from 1 to 1024.
    """
    global _default
    _default = check.threads(n, "n")


def resolve(n_threads: int | None) -> int:
    """The number of threads for one call."""
    return get_num_threads() if n_threads is None else n_threads
