"""What a step of a layer with an active set a sample costs, by the way it is computed: the plans and their choice.

    dense     every neuron, by dense products: `Linear`
    exact     every neuron forward, of which the best stay; backward and update of these only
    rows      active neurons; a row of weights times a dense input each
    gather    active neurons; at the entries of a sparse input only

`dense` and `exact` change which neurons are active (all; the true best), `rows` and `gather` only the order of a
sum. A cost formula decides, not a clock, so that a network is the same whenever and wherever it is trained: `counts`
says how often a plan does what, `COSTS` what that takes. The costs are fitted to measured steps by bench/plans.py
and stand here as constants; `COSTS.update(...)` sets those of another machine.
"""
from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

COSTS = {  # nanoseconds on one core with AVX-512 (AMD EPYC, Zen 5)
    "step": 1.3e5,      # a dense step, whatever its size
    "sets": 2.7e5,      # what one with active sets takes beside that
    "gemm": 0.010,      # a multiply-add of a dense product
    "stream": 1.1,      # a weight with its state, read and written in sequence
    "output": 1.1,      # an output of all: activation, mask
    "select": 11.0,     # an output looked at for the best
    "dot": 0.038,       # a multiply-add of a row of weights with a dense input
    "gather": 0.37,     # with a sparse input
    "scatter": 0.64,    # of a gradient summed at the entries of a sparse input
    "update": 1.6,      # a weight with its state, of a row that was touched
    "scan": 4.8,        # 128 bits of a sketch
    "entry": 32.0,      # an id on its way to a set: selected, sorted, grouped
    "densify": 0.45,    # an entry of a dense copy of a sparse input, and of its gradient
}
# What dense outputs cost the next layer is added to `dense` by the layer that chooses.
MAX_COST_RATIO = 0.9  # a plan other than dense must be estimated at less than this share of it: estimates are not exact
MIN_DENSE_NANOSECONDS = 4e5  # ns of a dense step below which a layer is computed as asked: there is nothing to win
PLANS = ("auto", "dense", "exact", "rows", "gather")


def counts(n: int, n_in: int, n_out: int, n_active: int, *, nnz: float | None, bits: int, oversample: int,
           need_dx: bool, builds: float = 0.0) -> dict[str, dict[str, float]]:
    """How often a training step does each of what `COSTS` names, by plan.

    Parameters
    ----------
    n : int
        Samples of a batch.
    nnz : float or None
        Entries of an input; None for dense inputs.
    bits : int
        Projections an input is hashed by.
    oversample : int
        Products computed for each neuron that stays.
    need_dx : bool
        Whether the gradient of the input is asked for.
    builds : float
        How often all neurons are hashed, in a step.
    """
    n_back = 2 if need_dx else 1  # products backward
    active, size = n * n_active, n_in * n_out
    touched = n_out * (1 - (1 - n_active / n_out) ** n)  # rows; of sets that know nothing of each other
    densify = 0 if nnz is None else (1 + need_dx) * n * n_in
    fixed = {"step": 1, "sets": 1}
    finding = fixed | {"gemm": builds * bits * size, "scan": n * n_out * bits / 128, "entry": active * oversample}
    by_rows = {"dot": n_back * active * n_in, "update": touched * n_in, "entry": active}
    out: dict[str, dict[str, float]] = {
        "dense": {"step": 1, "gemm": (1 + n_back) * n * size, "stream": size, "output": n * n_out, "densify": densify},
        "rows": _sum(finding, by_rows, {"gemm": n * bits * n_in, "dot": active * oversample * n_in,
                                        "densify": densify}),
    }
    every = fixed | {"gemm": n * size, "select": n * n_out}
    if nnz is None:
        out["exact"] = _sum(every, by_rows)
        return out
    met = active * nnz / size  # times that a weight's gradient gets a part
    weights = touched * n_in * (1 - (1 - nnz / n_in) ** max(1.0, active / n_out)) if met < 1 / 8 else touched * n_in
    by_entries = {"scatter": active * nnz, "gather": (n_back - 1) * active * nnz, "update": weights, "entry": active}
    out["exact"] = _sum(every, by_entries, {"densify": n * n_in})
    out["gather"] = _sum(finding, by_entries, {"dot": n * bits * nnz, "gather": active * oversample * nnz})
    return out


def _sum(*parts: Mapping[str, float]) -> dict[str, float]:
    return {name: sum(part.get(name, 0) for part in parts) for name in dict.fromkeys(k for part in parts for k in part)}


def estimates(counted: dict[str, dict[str, float]]) -> dict[str, float]:
    """Nanoseconds of a training step on one core by plan, of what `counts` gave."""
    return {plan: sum(COSTS[name] * count for name, count in parts.items()) for plan, parts in counted.items()}


def choose(costs: dict[str, float], *, able: set[str]) -> str:
    """The cheapest of the plans `able`, dense if it is not clearly cheaper; a sparse one where a step is short."""
    sparse = min((plan for plan in ("rows", "gather") if plan in costs), key=costs.__getitem__)
    if costs["dense"] < MIN_DENSE_NANOSECONDS:
        return sparse
    best = min((plan for plan in costs if plan in able), key=costs.__getitem__)
    return best if costs[best] < MAX_COST_RATIO * costs["dense"] else "dense"
