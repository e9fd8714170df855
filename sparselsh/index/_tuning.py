"""What an index measures on a sample of queries: the norm floor, how many candidates, which plan.

Costs are estimated by formulas and not measured, so that the same fit chooses the same; only the
plan "auto" goes by the clock.
"""
from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np

from . import _table_choice as choice
from ._engine import FOUND_PER_CANDIDATE

if TYPE_CHECKING:
    from collections.abc import Callable

    from .._arrays.types import Floats, Ids
    from ._engine import IndexEngine

MAX_QUERIES = 256  # that are used of those given
CELL_FRACTIONS = (0.6, 0.4, 0.25, 0.18, 0.12, 0.08, 0.05)  # of the cells, that trials scan
SCALINGS = (0.0, 0.5)  # that "auto" tries: which is better depends on the network
N_BISECTIONS = 3  # trials between too few candidates and the first number that suffices
MAX_PROBES = 64  # buckets per table that are tried


def sample(queries: Floats) -> Floats:
    """At most MAX_QUERIES of the queries, evenly spaced."""
    return np.ascontiguousarray(queries[::max(1, -(-len(queries) // MAX_QUERIES))])


def recall_of(ids: Ids, truth: Ids) -> float:
    """Fraction of the true ids, -1 aside, that are in the same row of `ids`; 1 without true ids."""
    found = (truth[:, :, None] == ids[:, None, :]).any(axis=2)[truth >= 0]
    return float(found.mean()) if found.size else 1.0


def timed(call: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    """The result of a call, and its wall seconds."""
    begin = time.perf_counter()
    result = call(*arguments)
    return result, time.perf_counter() - begin


def norm_floor(true_norms: Floats, norms: Floats, wanted_recall: float) -> float:
    """The norm below which neurons are left out, 0 for none.

    A tenth of the misses that the recall allows may come from the floor. Where it would leave out
    less than a third of the neurons, there is no floor.

    Parameters
    ----------
    true_norms : ndarray
        Norms of the true neighbours of the sample, each as often as it is a neighbour.
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
        n_candidates, recall and microseconds (per query, all of them in one batch) of each trial.
    """
    trials = []
    n = min(start, limit)
    while True:
        (ids, _), seconds = timed(search, queries, truth.shape[1], n)
        trials.append({"n_candidates": n, "recall": recall_of(ids, truth),
                       "microseconds": seconds / len(queries) * 1e6})
        if trials[-1]["recall"] >= wanted_recall or n == limit:
            return trials
        n = min(limit, -(-n * 3 // 2))


def cost(trial: dict[str, Any], n_cells: int, n_sketched: int, n_bits: int, n_in: int) -> float:
    """Estimated nanoseconds per search, by a formula, so that the same fit makes the same choice.

    Measured on one core with AVX-512: 0.37 ns per sketch of 128 bits; 25 ns for the inner product
    with a row of 128 weights that is not in the first-level cache, and its part of the selection.
    """
    fraction = trial["n_cells"] / n_cells if n_cells else 1
    cells = n_cells * n_in / 128 * 4 if fraction < 1 else 0  # their inner products
    scan = fraction * n_sketched * n_bits / 128 * 0.37
    return cells + scan + trial["n_candidates"] * (10 + 15 * n_in / 128)


def one_by_one(search: Callable[..., Any], queries: Floats, k: int) -> float:
    """Microseconds of a search with one query, the fastest of up to eight."""
    return min(timed(search, queries[i:i + 1], k)[1] for i in range(min(8, len(queries)))) * 1e6


# -- trials --------------------------------------------------------------------------------------


def tune(engine: IndexEngine, queries: Floats, k: int, recall: float, n_threads: int) -> None:
    """Set candidates and cells to the cheapest that reach the recall, and choose the plan.

    At most MAX_QUERIES of the queries are used, and there is at least one. The engine has sketches.
    """
    queries = sample(queries)
    plan = engine.options.plan
    (truth, _), seconds = timed(engine.exact, queries, k, n_threads)
    engine.trials = _scan_trials(engine, queries, truth, recall, n_threads)
    if plan in ("auto", "probes") and engine.has_tables:
        by = _table_trials if engine.options.family == "auto" else _probe_trials
        engine.trials += by(engine, queries, truth, recall, n_threads)
    if plan == "auto":
        _choose_methods(engine, queries, k, recall, seconds / len(queries) * 1e6)


def scan_curve(engine: IndexEngine, queries: Floats, truth: Ids, wanted_recall: float, start: int,
               limit: int, n_threads: int) -> list[dict[str, Any]]:
    """`curve` of a search by sketches."""
    def search(queries: Floats, k: int, n: int) -> tuple[Ids, Floats]:
        return engine.by_sketches(queries, k, n, n_threads)

    return curve(search, queries, truth, wanted_recall, start, limit)


def _scan_trials(engine: IndexEngine, queries: Floats, truth: Ids, recall: float,
                 n_threads: int) -> list[dict[str, Any]]:
    """Trials over candidates and cells; the cheapest that reached the recall is kept, and last."""
    sketches = engine.sketches
    limit = max(1, sketches.n_live)
    recall += (1 - recall) / 4  # the sample is not all queries: aim a little higher

    def trials_of(n_probed: int, start: int, limit: int) -> list[dict[str, Any]]:
        sketches.n_probed = n_probed
        trials = scan_curve(engine, queries, truth, recall, start, limit, n_threads)
        return [{"method": "sketches", "n_cells": n_probed} | trial for trial in trials]

    # all cells first, then fewer and fewer
    n_cells = 0 if sketches.cells is None else sketches.cells.n
    trials = trials_of(n_cells, max(16, 2 * truth.shape[1]), limit)
    ends, n = [trials[-1]], trials[-1]["n_candidates"]
    for fraction in CELL_FRACTIONS if n_cells else ():
        trials += trials_of(max(1, round(fraction * n_cells)), n, min(limit, 3 * n))
        if trials[-1]["recall"] < recall:
            break
        ends.append(trials[-1])

    # fewer candidates for the best of them, by bisection
    n_in = engine.W.shape[1]
    best = min(ends, key=lambda trial: cost(trial, n_cells, sketches.n_live, sketches.n_bits, n_in))
    low = 2 * best["n_candidates"] // 3  # the trial before had no more
    for _ in range(N_BISECTIONS if best["recall"] >= recall else 0):
        middle = (low + best["n_candidates"]) // 2
        trials += trials_of(best["n_cells"], middle, middle)
        if trials[-1]["recall"] >= recall:
            best = trials[-1]
        else:
            low = middle

    sketches.n_probed, engine.n_candidates = best["n_cells"], best["n_candidates"]
    return [trial for trial in trials if trial is not best] + [best]


def _probe_trials(engine: IndexEngine, queries: Floats, truth: Ids, recall: float,
                  n_threads: int) -> list[dict[str, Any]]:
    """Trials over the buckets that are probed; the one with the best recall is kept."""
    trials: list[dict[str, Any]] = []
    engine.n_probes = 1
    while engine.n_probes <= MAX_PROBES and (not trials or trials[-1]["recall"] < recall):
        try:
            (ids, _), seconds = timed(engine.by_probes, queries, truth.shape[1],
                                      engine.n_candidates, n_threads)
        except ValueError:  # a family without an order of probing, or no more buckets
            break
        trials.append({
            "method": "probes", "n_probes": engine.n_probes, "n_candidates": engine.n_candidates,
            "recall": recall_of(ids, truth), "microseconds": seconds / len(queries) * 1e6,
        })
        engine.n_probes *= 2

    # too many probes find fewer neighbours: neurons in a probed bucket of every table tie
    engine.n_probes = max(trials, key=lambda trial: trial["recall"])["n_probes"]
    return trials


def _table_trials(engine: IndexEngine, queries: Floats, truth: Ids, recall: float,
                  n_threads: int) -> list[dict[str, Any]]:
    """Trials over K and L around the closed form, each with its probes; the cheapest is last."""
    n, n_in = engine.W.shape
    ends, trials = [], []
    first: Any = engine.family  # SimHash: it was chosen by the closed form
    for family in choice.families_around(first, n):
        engine.hash_all(family, n_threads)
        setting = {"bits": family.bits, "tables": family.tables}
        some = [trial | setting
                for trial in _probe_trials(engine, queries, truth, recall, n_threads)]
        ends.append((family, next(t for t in some if t["n_probes"] == engine.n_probes)))
        trials += some

    def rank(end: tuple[Any, dict[str, Any]]) -> tuple[float, float]:
        _, trial = end
        n_handed = min(FOUND_PER_CANDIDATE * trial["n_candidates"], n)
        return max(recall - trial["recall"], 0), choice.cost(trial, n, n_in, n_handed)

    family, best = min(ends, key=rank)
    engine.hash_all(family, n_threads)
    engine.n_probes = best["n_probes"]
    return [trial for trial in trials if trial is not best] + [best]


def _choose_methods(engine: IndexEngine, queries: Floats, k: int, recall: float,
                    exact_microseconds: float) -> None:
    """Take the fastest method that reaches the recall, for single queries and for batches."""
    # the last trial of a method is the one that was kept
    able = {trial["method"]: trial for trial in engine.trials if trial["recall"] >= recall}
    n = engine.n_candidates
    searches = {"exact": lambda x, k: engine.exact(x, k, 1),
                "sketches": lambda x, k: engine.by_sketches(x, k, n, 1),
                "probes": lambda x, k: engine.by_probes(x, k, n, 1)}

    batch = {"exact": exact_microseconds}
    batch |= {name: trial["microseconds"] for name, trial in able.items()}
    single = {name: one_by_one(searches[name], queries, k) for name in batch}
    engine.times = {"single": single, "batch": batch}
    engine.methods = {kind: min(times, key=times.__getitem__)
                      for kind, times in engine.times.items()}
