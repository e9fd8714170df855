"""Time, memory and accuracy of a run, for the commands and the demo.

CPU seconds are summed over all threads of the process and allow two runs on a shared machine to be
compared; wall seconds are the elapsed time.
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

METRIC_RANKS = (1, 3, 5)  # k of P@k, nDCG@k and PSP@k


def seconds(train: Callable[..., Any], X: Any, Y: Any, **options: Any) -> tuple[float, float]:
    """Call a training function and return its ``(wall seconds, CPU seconds)``."""
    wall, cpu = time.perf_counter(), time.process_time()
    train(X, Y, **options)
    return time.perf_counter() - wall, time.process_time() - cpu


def query(net: Network, X: Any, k: int, exact: bool = False) -> tuple[Ids, Floats, float]:
    """Top `k` of every row of `X`, in one call: ``(ids, scores, microseconds per query)``."""
    net.topk(X[:1], k=k, exact=exact)  # builds what the first query needs
    start = time.perf_counter()
    ids, scores = net.topk(X, k=k, exact=exact)
    return ids, scores, 1e6 * (time.perf_counter() - start) / X.shape[0]


def quality(net: Network, X: Any, Y: Any, exact: bool = False) -> tuple[dict[str, Any], Ids]:
    """Accuracy and cost of a network on a test set.

    Returns
    -------
    report : dict
        P@k, microseconds per query and computed fraction by their JSON keys.
    ids : ndarray of shape (n_rows, 5), int32
    """
    ids, _, microseconds = query(net, X, max(METRIC_RANKS), exact)
    cost = {"microseconds_per_query": microseconds}
    if hasattr(net, "computed_share"):  # compressed networks count nothing
        cost["computed_share"] = float(net.computed_share)
    return precision(Y, ids) | cost, ids


def precision(Y: Any, ids: Ids) -> dict[str, float]:
    """Return P@1, P@3 and P@5 by their JSON keys."""
    from .. import metrics

    return {f"p_at_{k}": metrics.precision_at_k(Y, ids, k) for k in METRIC_RANKS}


def ranking(Y: Any, ids: Ids, propensities: np.ndarray | None = None) -> dict[str, float]:
    """Return nDCG@k and, with propensities, PSP@k, for k in 1, 3, 5, by their JSON keys."""
    from .. import metrics

    report = {f"ndcg_at_{k}": metrics.ndcg_at_k(Y, ids, k) for k in METRIC_RANKS}
    if propensities is not None:
        report |= {f"psp_at_{k}": metrics.psp_at_k(Y, ids, k, propensities) for k in METRIC_RANKS}
    return report


def probabilities(net: Network, X: Any, Y: Any, exact: bool = False) -> dict[str, float]:
    """Micro-averaged F1 of the labels above the threshold, and the calibration error of the best.

    Empty for a network without a calibration.
    """
    import numpy as np

    from .. import metrics

    if getattr(net, "calibration", None) is None:
        return {}
    ids, p = net.topk(X, 1, exact=exact, probabilities=True)
    keys = np.arange(len(ids)) * Y.shape[1]
    true = np.repeat(keys, np.diff(Y.indptr)) + Y.indices
    hits = np.isin(keys + ids[:, 0], true)[:, None]
    return {"micro_f1": metrics.micro_f1(Y, net.predict_labels(X, exact=exact)),
            "calibration_error": metrics.expected_calibration_error(hits.astype(np.float32), p)}


def peak_rss() -> int | None:
    """Peak resident memory of this process in bytes; None where the system does not report it."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # kilobytes except on macOS
