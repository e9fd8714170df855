"""What an index measures on a sample of queries: the norm floor, how far to go, which plan.

Costs are estimated by formulas and not measured, so that the same fit chooses the same; only the
plan "auto" goes by the clock.
"""
from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from .._arrays.linalg import matmul
from .._arrays.portable import row_products
from . import _table_choice as choice
from ._bounds import ALL_CELLS, MAX_CELL_RAISES, MIN_SHORT_DEVIATIONS, Bounds
from ._engine import FOUND_PER_CANDIDATE, MIN_NEURONS_PER_BEST

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .._arrays.types import Floats, Ids
    from ._engine import IndexEngine
    from .transforms import Transform

MAX_QUERIES = 1024  # that are used of those given,
MAX_PRODUCTS = 1 << 34  # as long as all inner products with them are at most these multiply-adds,
MIN_QUERIES = 256  # but always these
N_BLOCKS = 16  # of neighbouring rows, of which every other one is to measure on
MAX_TRIAL_QUERIES = 256  # of them for trials with tables and of the scaling
SCALINGS = (0.0, 0.5)  # that "auto" tries: which is better depends on the network
N_BEST = 5  # the k that an index is tuned for when it is built
OTHER_K = (1, 50)  # for which the recall is checked, besides the k that is asked for
PART_RECALLS = (0.5, 0.7, 0.8, 0.9, 0.95, 0.98)  # of parts that are searched together, tried
RAISE = 1.1  # of the bounds, while the recall is not reached
MAX_DEVIATIONS = 6.0  # up to which they are raised: the errors of sketches have no longer tails
CELLS_BY_DISTANCE = 0.25  # factor of the bound of cells for distances; by bench/promise.py
SEARCHES_WITH_SHORT = 0.1  # of the queries, that may need neurons without a sketch
SHORT_SAMPLE = 4096  # neurons without a sketch, by which their bound is set,
SHORT_QUANTILE = 0.9999  # as this quantile of their inner products with the queries
REFINED_POWER = 1.065  # of the deviation of a sketch, by the bits per dimension
MAX_PROBES = 64  # buckets per table that are tried


def sample(queries: Floats, n_weights: int = 1) -> Floats:
    """At most MAX_QUERIES of the queries, evenly spaced: fewer for very many weights."""
    n = min(MAX_QUERIES, max(MIN_QUERIES, MAX_PRODUCTS // n_weights))
    return np.ascontiguousarray(queries[::max(1, -(-len(queries) // n))])


def split_in_blocks(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Two halves of n rows, to choose by and to measure on, as ids.

    Neighbouring rows are often of one document: in turns, both halves would have of it. Two blocks
    would not do either where rows are sorted by what they are.
    """
    block = np.arange(n) * min(N_BLOCKS, n) // max(n, 1)
    return np.flatnonzero(block % 2 == 0), np.flatnonzero(block % 2 == 1)


def few(rows: Any) -> Any:
    """At most MAX_TRIAL_QUERIES of the rows, evenly spaced."""
    return np.ascontiguousarray(rows[::max(1, -(-len(rows) // MAX_TRIAL_QUERIES))])


def recall_of(ids: Ids, truth: Ids) -> float:
    """Fraction of the true ids, -1 aside, that are in the same row of `ids`; 1 without true ids."""
    found = (truth[:, :, None] == ids[:, None, :]).any(axis=2)[truth >= 0]
    return float(found.mean()) if found.size else 1.0


def timed(call: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    """The result of a call, and its wall seconds."""
    begin = time.perf_counter()
    result = call(*arguments)
    return result, time.perf_counter() - begin


def norm_floor(true_norms: Floats, needed: Floats, norms: Floats, wanted_recall: float) -> float:
    """The norm below which neurons get no sketch, 0 for none.

    It is below nearly all true neighbours of the sample, and nine queries of ten need no shorter
    neuron. Where it would leave out less than a third of the neurons, there is no floor.

    Parameters
    ----------
    true_norms : ndarray
        Norms of the true neighbours of the sample, each as often as it is a neighbour.
    needed : ndarray
        `needed_norms` of the sample.
    norms : ndarray
        Norms of a sample of all neurons.
    wanted_recall : float
    """
    floor = float(np.quantile(true_norms, (1 - wanted_recall) / 10)) * 0.98
    floor = min(floor, float(np.quantile(needed, SEARCHES_WITH_SHORT)))
    return floor if (norms < floor).mean() > 1 / 3 else 0.0


def needed_norms(transform: Transform, queries: Floats, kth: Floats,
                 n_threads: int) -> np.ndarray:
    """The norms from which on a neuron may be better than the k-th best of each query: (n,)."""
    Q = _without_bias(transform, queries, n_threads).astype(np.float64)
    units = np.linalg.norm(Q, axis=1) / np.sqrt(max(Q.shape[1] - 1, 1))
    shift = row_products(queries, transform.offset_[:-1], dtype=np.float64)
    shift += transform.offset_[-1]
    products = np.nan_to_num((kth - shift) * transform.scale_)  # inner products may overflow
    return np.maximum(products, 0) / np.maximum(MIN_SHORT_DEVIATIONS * units, 1e-30)


def bits_that_pay(engine: IndexEngine, queries: Floats, kth: Floats, norm_floor: float,
                  choices: Sequence[int], n_threads: int) -> int:
    """The bits per sketch, of some choices, with which a search is expected to cost least.

    With more bits fewer neurons are computed, and more is read and rotated. How many are computed
    follows from the deviations of estimates, for each of a sample of the neurons. Costs are by a
    formula, as in `floor_pays`; half of the sketches are taken to be in the cells that are scanned.

    Parameters
    ----------
    engine : IndexEngine
    queries : ndarray of shape (n_queries, n_in), float32
    kth : ndarray of shape (n_queries,)
        Their k-th best scores.
    norm_floor : float
        From which on neurons have a sketch.
    choices : sequence of int
    n_threads : int
    """
    transform, (n, n_in) = engine.transform, engine.W.shape
    rows = np.arange(0, n, -(-n // SHORT_SAMPLE), dtype=np.int32)
    V, biases = engine.directions(rows, n_threads)
    lengths = np.sqrt(row_products(V, V))
    long = lengths * lengths + biases * biases >= norm_floor * norm_floor
    if not long.any():  # so few sketches that their length costs nothing
        return max(choices)
    V, biases, lengths = np.ascontiguousarray(V[long]), biases[long], lengths[long]
    Q = _without_bias(transform, queries, n_threads)
    shift = row_products(queries, transform.offset_[:-1], dtype=np.float64)
    shift += transform.offset_[-1]
    with np.errstate(over="ignore", invalid="ignore"):  # inner products may overflow
        gaps = matmul(Q, V, n_threads, transpose_b=True) + biases
        gaps -= np.nan_to_num((kth - shift) * transform.scale_)[:, None]
        units = np.linalg.norm(Q.astype(np.float64), axis=1)[:, None] * lengths

    def nanoseconds(n_bits: int) -> float:
        with np.errstate(over="ignore", invalid="ignore"):
            z = np.nan_to_num(gaps / np.maximum(units * deviation(n_bits, n_in), 1e-300))
        computed = float(normal_cdf(z + Bounds.of_recall(engine.options.recall)
                                    .sketches_for(N_BEST)).mean())
        n_long = n * len(V) / len(rows)
        scan, product = 0.2 + 0.37 * n_bits / 128, 20 + 30 * n_in / 128  # rows are far apart
        return n_long * (0.5 * scan + computed * product) + 0.025 * n_bits * n_in

    return min(choices, key=nanoseconds)


def deviation(n_bits: int, n_dims: int) -> float:
    """Of an estimate of <q, v> by a sketch, for vectors of length 1, on average.

    The signs s of n_bits orthonormal rows have <R^T s, v> = n_bits sqrt(2 / (pi n_dims)), and what
    is left of R^T s has a random direction (RaBitQ, Gao and Long 2024, theorem 3.2). The power is
    that of `_core._sketches.refine` for normal vectors and up to four times as many rows, measured.
    """
    if n_bits > n_dims:
        return float(np.sqrt((np.pi / 2 - 1) / n_dims) * (n_bits / n_dims) ** -REFINED_POWER)
    return float(np.sqrt(np.pi / 2 / n_bits - 1 / n_dims))


def normal_cdf(z: np.ndarray) -> np.ndarray:
    """The distribution function of the normal law."""
    from scipy.special import ndtr  # importing it takes time

    return ndtr(z)


def _without_bias(transform: Transform, queries: Floats, n_threads: int) -> Floats:
    """The queries as sketches see them, which know the biases."""
    Q = transform.queries(queries, n_threads)
    if transform.query_map_ is None:
        Q[:, -1] = 0
    else:
        Q -= transform.query_map_[-1]
    return Q


def floor_pays(engine: IndexEngine) -> bool:
    """Whether computing some short neurons costs less than scanning sketches of all of them.

    By a formula, so that the same fit makes the same choice. Measured on one core with AVX-512:
    0.37 ns per sketch of 128 bits; 25 ns for the inner product with a row of 128 weights that is
    not in the first-level cache, and its part of the selection.
    """
    sketches, (n, n_in) = engine.sketches, engine.W.shape
    scanned = (n - sketches.n_live) * sketches.n_bits / 128 * 0.37
    return engine.n_short_computed * (10 + 15 * n_in / 128) <= scanned


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


def one_by_one(search: Callable[..., Any], queries: Floats, k: int) -> float:
    """Microseconds of a search with one query, the fastest of up to eight."""
    return min(timed(search, queries[i:i + 1], k)[1] for i in range(min(8, len(queries)))) * 1e6


# -- trials --------------------------------------------------------------------------------------


def tune(engine: IndexEngine, queries: Floats, k: int, recall: float, n_threads: int) -> None:
    """Set the bounds so that searches reach the recall, and choose the plan.

    There is at least one query. The engine has sketches.
    """
    queries = sample(queries, engine.W.size)
    plan = engine.options.plan
    most = max(1, len(engine.W) // MIN_NEURONS_PER_BEST)
    ks = sorted({min(k, most), *(other for other in OTHER_K if other <= most)})
    truth, seconds = timed(_true_neighbours, engine, queries, max(k, ks[-1]), n_threads)
    engine.trials = _bound_trials(engine, queries, ks, min(k, most), truth, recall, n_threads)

    some, some_truth = few(queries), few(truth[:, :k])
    if plan in ("auto", "probes") and engine.has_tables:
        by = _table_trials if engine.options.family == "auto" else _probe_trials
        engine.trials += by(engine, some, some_truth, recall, n_threads)
    if plan == "auto":
        _choose_methods(engine, some, k, recall, seconds / len(queries) * 1e6, n_threads)


def scanned(engine: IndexEngine) -> float:
    """Fraction of the sketches that a search reads, by the trial that was chosen."""
    trials = [trial for trial in engine.trials if trial["method"] == "sketches"]
    return float(trials[-1]["n_scanned"]) / max(engine.sketches.n, 1)


def bound(engine: IndexEngine, queries: Floats, recall: float, n_threads: int) -> None:
    """Set the bounds by the recall alone, and count what the queries then compute."""
    take_bounds([engine], Bounds.of_recall(recall), [reach_of_short(engine, queries, n_threads)])
    counts = engine.by_bound(queries, min(N_BEST, len(engine.W)), n_threads)[2]
    engine.n_computed, engine.k_computed = float(counts[:, 0].mean()), N_BEST
    engine.n_short_computed = float(counts[:, 2].mean())


def scan_curve(engine: IndexEngine, queries: Floats, truth: Ids, wanted_recall: float, start: int,
               limit: int, n_threads: int) -> list[dict[str, Any]]:
    """`curve` of a search by sketches."""
    def search(queries: Floats, k: int, n: int) -> tuple[Ids, Floats]:
        return engine.by_sketches(queries, k, n, n_threads)

    return curve(search, queries, truth, wanted_recall, start, limit)


def _true_neighbours(engine: IndexEngine, queries: Floats, k: int, n_threads: int) -> Ids:
    """Ids (n_queries, k) of the largest inner products, some queries at a time to save memory."""
    parts = [engine.exact(queries[start:start + MAX_TRIAL_QUERIES], k, n_threads)[0]
             for start in range(0, len(queries), MAX_TRIAL_QUERIES)]
    return np.concatenate(parts)


def _bound_trials(engine: IndexEngine, queries: Floats, ks: list[int], k: int, truth: Ids,
                  recall: float, n_threads: int) -> list[dict[str, Any]]:
    """Trials with wider and wider bounds, until the recall is reached for all of `ks`.

    The trials report what was measured for k, which is one of `ks`.
    """
    sketches = engine.sketches
    bounds = Bounds.of_recall(recall)
    if engine.options.metric == "l2":
        bounds.cells *= CELLS_BY_DISTANCE
    bounds.short = max(bounds.short, reach_of_short(engine, queries, n_threads))
    trials: list[dict[str, Any]] = []

    def short_of(bounds: Bounds, ks: Sequence[int]) -> list[int]:
        sketches.set_bounds(bounds)
        recalls = {}
        for each in ks:
            (ids, _, counts), seconds = timed(engine.by_bound, queries, each, n_threads)
            recalls[each] = recall_of(ids, truth[:, :each])
            if each == k:
                engine.n_computed, engine.k_computed = float(counts[:, 0].mean()), each
                engine.n_short_computed = float(counts[:, 2].mean())
                trials.append({
                    "method": "sketches", "deviations": bounds.sketches_for(each),
                    "n_candidates": max(1, round(engine.n_computed)),
                    "n_scanned": round(float(counts[:, 1].mean())), "recall": recalls[each],
                    "microseconds": seconds / len(queries) * 1e6})
        return [each for each in ks if recalls[each] < recall]

    widened = widen(bounds, ks, short_of)
    if widened is not bounds:
        short_of(widened, [k])  # the trial with what was chosen is the last
    return trials


def widen(bounds: Bounds, ks: Sequence[int],
          short_of: Callable[[Bounds, Sequence[int]], list[int]]) -> Bounds:
    """Wider bounds, until the recall is reached for all of `ks`.

    First the bound of the sketches is widened, with all cells scanned: wider bounds do not find
    what is in cells that were not scanned. Then fewer cells are left out, for each k that needs it:
    the best one alone is often in a cell of which no other is among the best.

    Parameters
    ----------
    bounds : Bounds
    ks : sequence of int
        Ascending.
    short_of : callable
        Searches with some bounds for some of the ks, and gives those whose recall is not reached.
    """
    short = short_of(bounds, ks)
    if not short:
        return bounds
    narrow = bounds
    while (short_of(replace(bounds, cells=ALL_CELLS), ks)
           and bounds.sketches_for(ks[-1]) < MAX_DEVIATIONS):
        bounds = bounds.wider(RAISE)
    if bounds is not narrow:
        short = short_of(bounds, short)
    for _ in range(MAX_CELL_RAISES + 1):
        if not short:
            break
        bounds = bounds.with_more_cells(short, ks)
        short = short_of(bounds, short)
    return bounds


def tune_together(engines: Sequence[IndexEngine], queries: Floats, n_neurons: int, recall: float,
                  merged: Callable[[list[tuple[Ids, Floats]], int], tuple[Ids, Floats]],
                  total: Callable[[float], float], n_threads: int) -> tuple[Bounds, float]:
    """Set the bounds of indexes of parts of the neurons so that all together reach the recall.

    A part that finds fewer of its own best is enough, as few of them are among the best of all: the
    bounds are those of the lowest of some recalls of a part with which the recall is reached.

    Parameters
    ----------
    engines : sequence of IndexEngine
        With sketches; others may be in other processes.
    queries : ndarray of shape (n_queries, n_in), float32
    n_neurons : int
        Of all parts.
    recall : float
    merged : callable
        The k best of all parts, from the ids and scores of these.
    total : callable
        The sum of a number over all processes.
    n_threads : int

    Returns
    -------
    bounds : Bounds
        Those that were set, for `take_bounds`.
    n_computed : float
        Inner products per query, in all parts.
    """
    queries = sample(queries, n_neurons * queries.shape[1])
    ks = sorted({N_BEST, *(k for k in OTHER_K if k * MIN_NEURONS_PER_BEST <= n_neurons)})
    reaches = [reach_of_short(engine, queries, n_threads) for engine in engines]

    def best(search: Callable[[IndexEngine, int], tuple[Ids, Floats]], k: int) -> Ids:
        found = [search(engine, min(k, len(engine.W))) for engine in engines]
        return merged(found, k)[0]

    truth = best(lambda engine, k: engine.exact(queries, k, n_threads), ks[-1])
    n_computed: list[float] = []

    def short_of(bounds: Bounds, some: Sequence[int]) -> list[int]:
        take_bounds(engines, bounds, reaches)
        recalls: dict[int, float] = {}
        n_computed.clear()

        def search(engine: IndexEngine, k: int) -> tuple[Ids, Floats]:
            if k * MIN_NEURONS_PER_BEST > len(engine.W):  # as searches do
                return engine.exact(queries, k, n_threads)
            ids, scores, counts = engine.by_bound(queries, k, n_threads)
            if each == N_BEST:
                n_computed.append(counts[:, 0].sum())
            return ids, scores

        for each in some:
            recalls[each] = recall_of(best(search, each), truth[:, :each])
        return [each for each in some if recalls[each] < recall]

    for part_recall in (*(r for r in PART_RECALLS if r < recall), recall):
        bounds = Bounds.of_recall(part_recall)
        if not short_of(bounds, ks):
            break
    else:
        bounds = widen(bounds, ks, short_of)
    short_of(bounds, [N_BEST])
    return bounds, total(float(sum(n_computed))) / len(queries)


def take_bounds(engines: Sequence[IndexEngine], bounds: Bounds, reaches: Sequence[float]) -> None:
    """Set what `tune_together` gave, with the `reach_of_short` of each engine."""
    for engine, reach in zip(engines, reaches, strict=True):
        engine.sketches.set_bounds(replace(bounds, short=max(bounds.short, reach)))


def reach_of_short(engine: IndexEngine, queries: Floats, n_threads: int) -> float:
    """Standard deviations of the inner products with neurons without a sketch, by a sample."""
    sketches, transform, queries = engine.sketches, engine.transform, few(queries)
    short = np.flatnonzero(sketches.short_norms > 0).astype(np.int32)
    if not len(short):
        return 0.0
    spaced = np.ascontiguousarray(short[::-(-len(short) // SHORT_SAMPLE)])
    V, _ = engine.directions(spaced, n_threads)
    V /= np.maximum(np.linalg.norm(V, axis=1, keepdims=True), np.float32(1e-30))
    Q = _without_bias(transform, queries, n_threads)
    units = sketches.unit_norms(sketches.projected(queries, n_threads))
    products = matmul(Q, V, n_threads, transpose_b=True) / np.maximum(units, 1e-30)[:, None]
    return float(np.quantile(products, SHORT_QUANTILE))


def _probe_trials(engine: IndexEngine, queries: Floats, truth: Ids, recall: float,
                  n_threads: int) -> list[dict[str, Any]]:
    """Trials over the buckets that are probed; the one with the best recall is kept."""
    trials: list[dict[str, Any]] = []
    n_candidates = engine.probe_candidates(truth.shape[1])
    engine.n_probes = 1
    while engine.n_probes <= MAX_PROBES and (not trials or trials[-1]["recall"] < recall):
        try:
            (ids, _), seconds = timed(engine.by_probes, queries, truth.shape[1],
                                      n_candidates, n_threads)
        except ValueError:  # a family without an order of probing, or no more buckets
            break
        trials.append({
            "method": "probes", "n_probes": engine.n_probes, "n_candidates": n_candidates,
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
                    exact_microseconds: float, n_threads: int) -> None:
    """Take the fastest method that reaches the recall, for single queries and for batches."""
    # the last trial of a method is the one that was kept
    able = {trial["method"]: trial for trial in engine.trials if trial["recall"] >= recall}
    n = engine.probe_candidates(k)
    searches = {"exact": lambda x, k: engine.exact(x, k, 1),
                "sketches": lambda x, k: engine.by_sketches(x, k, None, 1),
                "probes": lambda x, k: engine.by_probes(x, k, n, 1)}

    batch = {"exact": exact_microseconds}
    batch |= {name: trial["microseconds"] for name, trial in able.items()}
    if "sketches" in batch:
        _, seconds = timed(engine.by_sketches, queries, k, None, n_threads)
        batch["sketches"] = seconds / len(queries) * 1e6
    single = {name: one_by_one(searches[name], queries, k) for name in batch}
    engine.times = {"single": single, "batch": batch}
    engine.methods = {kind: min(times, key=times.__getitem__)
                      for kind, times in engine.times.items()}
