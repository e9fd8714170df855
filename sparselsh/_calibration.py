"""What an index measures on a sample of queries: its scaling, the norm floor, how many candidates, which plan."""
from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._types import Floats, Ids

QUERIES = 256  # of a sample are used
CELL_SHARES = (0.6, 0.4, 0.25, 0.18, 0.12, 0.08, 0.05)  # of the cells, that a scan looks at
SCALINGS = (0.0, 0.5)  # what "auto" tries: which is better depends on the network


def sample(queries: Floats) -> Floats:
    """At most QUERIES of the queries, evenly spaced."""
    return np.ascontiguousarray(queries[::max(1, -(-len(queries) // QUERIES))])


def recall(ids: Ids, truth: Ids) -> float:
    """Share of the true ids, -1 aside, that stand in the same row of `ids`; 1 where there are none."""
    found = (truth[:, :, None] == ids[:, None, :]).any(axis=2)[truth >= 0]
    return float(found.mean()) if found.size else 1.0


def timed(call: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    """The result of a call, and its wall seconds."""
    begin = time.perf_counter()
    result = call(*arguments)
    return result, time.perf_counter() - begin


def norm_floor(true_norms: Floats, norms: Floats, wanted_recall: float) -> float:
    """The norm below which neurons are left out, 0 for none.

    A tenth of the misses that the recall allows may come from the floor; it is not worth having where it would
    leave out less than a third.

    Parameters
    ----------
    true_norms : ndarray
        Norms of the true neighbours of the sample, each as often as it is one.
    norms : ndarray
        Norms of a sample of all neurons.
    wanted_recall : float
    """
    floor = float(np.quantile(true_norms, (1 - wanted_recall) / 10)) * 0.98
    return floor if (norms < floor).mean() > 1 / 3 else 0.0


def curve(search: Callable[..., Any], queries: Floats, truth: Ids, wanted_recall: float, start: int,
          limit: int) -> list[dict[str, Any]]:
    """Search with more and more candidates until the recall is reached.

    `search(queries, k, n)` is called for n = start, 1.5 start, ... to `limit`.

    Returns
    -------
    list of dict
        n_candidates, recall and microseconds (a query, all of them in one batch) of each trial.
    """
    trials = []
    n = min(start, limit)
    while True:
        (ids, _), seconds = timed(search, queries, truth.shape[1], n)
        trials.append({"n_candidates": n, "recall": recall(ids, truth), "microseconds": seconds / len(queries) * 1e6})
        if trials[-1]["recall"] >= wanted_recall or n == limit:
            return trials
        n = min(limit, -(-n * 3 // 2))


def cost(trial: dict[str, Any], n_cells: int, n_sketched: int, n_bits: int, n_in: int) -> float:
    """Nanoseconds of a search, about: a rule and not a clock decides, so that the same fit chooses the same.

    Measured on one core with AVX-512: 0.37 ns a sketch of 128 bits; 25 ns for the inner product with a row of 128
    weights that is not in the first-level cache, and its part of the selection.
    """
    share = trial["n_cells"] / n_cells if n_cells else 1
    cells = n_cells * n_in / 128 * 4 if share < 1 else 0  # their inner products
    return cells + share * n_sketched * n_bits / 128 * 0.37 + trial["n_candidates"] * (10 + 15 * n_in / 128)


def one_by_one(search: Callable[..., Any], queries: Floats, k: int) -> float:
    """Microseconds of a search with one query, the least of a few."""
    return min(timed(search, queries[i:i + 1], k)[1] for i in range(min(8, len(queries)))) * 1e6
