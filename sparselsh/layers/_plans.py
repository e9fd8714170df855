"""Plans: the ways to compute a step of a layer with one active set per sample, and their costs.

    dense     every neuron, by dense products: `Linear`
    exact     every neuron forward, of which the best stay; backward and update of these only
    rows      active neurons; for each, a row of weights times a dense input
    gather    active neurons; at the entries of a sparse input only

`dense` and `exact` change which neurons are active (all; the true best), `rows` and `gather` only
the order of a sum. A cost formula decides, not a clock, so that a network is the same whenever and
wherever it is trained: `counts` gives how often a plan does each operation, `COSTS` its time. The
costs were fitted to measured steps by bench/plans.py and are constants here; `COSTS.update(...)`
sets those of another machine.
"""
from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

COSTS = {  # nanoseconds on one core with AVX-512 (AMD EPYC, Zen 5)
    "step": 1.3e5,      # a dense step, whatever its size
    "sets": 2.7e5,      # in addition, a step with active sets
    "gemm": 0.010,      # per multiply-add of a dense product
    "stream": 1.1,      # per weight with its state, read and written in sequence
    "output": 1.1,      # per dense output: activation, mask
    "select": 11.0,     # per output from which the best are selected
    "dot": 0.038,       # per multiply-add of a row of weights with a dense input
    "gather": 0.37,     # the same with a sparse input
    "scatter": 0.64,    # the same, of a gradient summed at the entries of a sparse input
    "update": 1.6,      # per weight with its state, of a row that was touched
    "scan": 4.8,        # per 128 bits of a sketch
    "entry": 32.0,      # per id of a set: selected, sorted, grouped
    "densify": 0.45,    # per entry of a dense copy of a sparse input, and of its gradient
}
# The layer that chooses adds to `dense` what dense outputs cost the next layer.
MAX_COST_RATIO = 0.9  # to dense, below which another plan is taken: estimates are not exact
MIN_DENSE_NANOSECONDS = 4e5  # per dense step; in a shorter one there is nothing to gain
PLANS = ("auto", "dense", "exact", "rows", "gather")


def counts(n: int, n_in: int, n_out: int, n_active: int, *, nnz: float | None, bits: int,
           oversample: int, need_dx: bool, builds: float = 0.0) -> dict[str, dict[str, float]]:
    """How often a training step does each of the operations that `COSTS` names, by plan.

    Parameters
    ----------
    n : int
        Samples per batch.
    n_in, n_out : int
    n_active : int
        Neurons per set.
    nnz : float or None
        Entries per input; None for dense inputs.
    bits : int
        Projections by which an input is hashed.
    oversample : int
        Products computed per neuron that stays.
    need_dx : bool
        Whether the gradient of the input is needed.
    builds : float
        How often all neurons are hashed, per step.

    Returns
    -------
    dict of str to dict
        The counts of each plan, by the names of `COSTS`.
    """
    n_back = 2 if need_dx else 1  # products backward
    active, size = n * n_active, n_in * n_out
    touched = n_out * (1 - (1 - n_active / n_out) ** n)  # rows, for independent sets
    densify = 0 if nnz is None else (1 + need_dx) * n * n_in

    fixed = {"step": 1, "sets": 1}
    finding = fixed | {"gemm": builds * bits * size, "scan": n * n_out * bits / 128,
                       "entry": active * oversample}
    by_rows = {"dot": n_back * active * n_in, "update": touched * n_in, "entry": active}
    out: dict[str, dict[str, float]] = {
        "dense": {"step": 1, "gemm": (1 + n_back) * n * size, "stream": size, "output": n * n_out,
                  "densify": densify},
        "rows": _sum(finding, by_rows, {"gemm": n * bits * n_in, "dot": active * oversample * n_in,
                                        "densify": densify}),
    }
    every = fixed | {"gemm": n * size, "select": n * n_out}
    if nnz is None:
        out["exact"] = _sum(every, by_rows)
        return out

    # weights of touched rows that get a gradient: all, unless few entries meet few neurons
    met = active * nnz / size  # contributions to a weight's gradient, on average
    weights = touched * n_in
    if met < 1 / 8:
        weights = touched * n_in * (1 - (1 - nnz / n_in) ** max(1.0, active / n_out))
    by_entries = {"scatter": active * nnz, "gather": (n_back - 1) * active * nnz,
                  "update": weights, "entry": active}
    out["exact"] = _sum(every, by_entries, {"densify": n * n_in})
    out["gather"] = _sum(finding, by_entries, {"dot": n * bits * nnz,
                                               "gather": active * oversample * nnz})
    return out


def _sum(*parts: Mapping[str, float]) -> dict[str, float]:
    names = dict.fromkeys(k for part in parts for k in part)
    return {name: sum(part.get(name, 0) for part in parts) for name in names}


def estimates(counted: dict[str, dict[str, float]]) -> dict[str, float]:
    """Nanoseconds per training step on one core, by plan, from what `counts` gave."""
    return {plan: sum(COSTS[name] * count for name, count in parts.items())
            for plan, parts in counted.items()}


def choose(costs: dict[str, float], *, able: set[str]) -> str:
    """The cheapest of the plans `able`, or dense if none is clearly cheaper.

    Where a dense step is short it is the cheaper of "rows" and "gather".
    """
    sparse = min((plan for plan in ("rows", "gather") if plan in costs), key=costs.__getitem__)
    if costs["dense"] < MIN_DENSE_NANOSECONDS:
        return sparse
    best = min((plan for plan in costs if plan in able), key=costs.__getitem__)
    return best if costs[best] < MAX_COST_RATIO * costs["dense"] else "dense"
