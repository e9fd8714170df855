"""What a run costs and how good its answers are: shared by the command line and the demo.

CPU seconds are those of the whole process, all threads together, so that two runs on a shared machine can
be compared; wall seconds are what a person waits.
"""
from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

    from .._arrays.types import Floats, Ids
    from ..network import Network

KS = (1, 3, 5)


def seconds(train: Callable[..., Any], X: Any, Y: Any, **options: Any) -> tuple[float, float]:
    """Call `fit` or `resume` of a network and return ``(wall seconds, CPU seconds)`` of the training alone."""
    wall, cpu = time.perf_counter(), time.process_time()
    train(X, Y, **options)
    return time.perf_counter() - wall, time.process_time() - cpu


def query(net: Network, X: Any, k: int, exact: bool = False) -> tuple[Ids, Floats, float]:
    """Return ``(ids, scores, microseconds a query)`` for the top `k` of every row of `X`, in one call."""
    net.topk(X[:1], k=k, exact=exact)  # pays for whatever is built at the first query
    start = time.perf_counter()
    ids, scores = net.topk(X, k=k, exact=exact)
    return ids, scores, 1e6 * (time.perf_counter() - start) / X.shape[0]


def quality(net: Network, X: Any, Y: Any, exact: bool = False) -> tuple[dict[str, Any], Ids]:
    """Return ``(report, ids)``: P@k, time and share of a test set by their JSON keys, and five ids a row."""
    ids, _, microseconds = query(net, X, max(KS), exact)
    cost = {"microseconds_per_query": microseconds, "computed_share": float(net.computed_share)}
    return precision(Y, ids) | cost, ids


def precision(Y: Any, ids: Ids) -> dict[str, float]:
    """Return P@1, P@3 and P@5 by their JSON keys."""
    from .. import metrics

    return {f"p_at_{k}": metrics.precision_at_k(Y, ids, k) for k in KS}


def ranking(Y: Any, ids: Ids, propensities: np.ndarray | None = None) -> dict[str, float]:
    """Return nDCG@k and, where propensities are given, PSP@k, for k in 1, 3, 5, by their JSON keys."""
    from .. import metrics

    report = {f"ndcg_at_{k}": metrics.ndcg_at_k(Y, ids, k) for k in KS}
    if propensities is not None:
        report |= {f"psp_at_{k}": metrics.psp_at_k(Y, ids, k, propensities) for k in KS}
    return report


def peak_rss() -> int | None:
    """Return the peak resident memory of this process in bytes, or None where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # macOS counts bytes, the others kilobytes
