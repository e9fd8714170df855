"""What a step of a layer with an active set a sample costs, by the way it is computed: the plans and their choice.

    dense     every neuron, by dense products: `Linear`
    exact     every neuron forward, of which the best stay; backward and update of these only
    rows      active neurons; a row of weights times a dense input each
    gather    active neurons; at the entries of a sparse input only

`dense` and `exact` change which neurons are active (all; the true best), `rows` and `gather` only the order of a
sum. A cost formula decides, not a clock, so that a network is the same whenever and wherever it is trained. Its
constants are estimates, in nanoseconds on one core with AVX-512, and not fitted; `COSTS.update(...)` sets others.
"""
from __future__ import annotations

COSTS = {
    "gemm": 0.011,      # a multiply-add of a dense product
    "dot": 0.035,       # of a row of weights times a dense input
    "gather": 0.16,     # of a row times a sparse input
    "scatter": 0.75,    # of a gradient summed at the entries of a sparse input
    "update": 0.9,      # a weight with its state, read and written
    "scan": 0.5,        # 128 bits of a sketch
    "entry": 14.0,      # an id on its way to a set: selected, sorted, grouped
    "select": 1.2,      # an output looked at for the best
}
FLOOR = 1e6  # ns of a dense step below which a layer is computed as asked: there is nothing to win
PLANS = ("auto", "dense", "exact", "rows", "gather")


def estimates(n: int, n_in: int, n_out: int, n_active: int, *, nnz: float | None, bits: int, oversample: int,
              need_dx: bool) -> dict[str, float]:
    """Nanoseconds of a training step on one core by plan.

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
    """
    c = COSTS
    n_products = 3 if need_dx else 2
    dense_update = n_in * n_out * c["update"]
    touched = n_out * (1 - (1 - n_active / n_out) ** n)  # rows; of sets that know nothing of each other
    entries = n * n_active * c["entry"]
    if nnz is None:
        by_gemm = n * n_out * n_in * c["gemm"]
        backward = (n_products - 1) * min(n * n_active * n_in * c["dot"], by_gemm) + touched * n_in * c["update"]
        forward, hashing = n_active * oversample * n_in * c["dot"], bits * n_in * c["gemm"]
    else:
        weights = touched * n_in * (1 - (1 - nnz / n_in) ** max(1.0, n * n_active / n_out))
        backward = (n * n_active * nnz * (c["scatter"] + (n_products - 2) * c["gather"]) + weights * c["update"])
        forward, hashing = n_active * oversample * nnz * c["gather"], bits * nnz * c["dot"]
    finding = n * (hashing + n_out * bits / 128 * c["scan"] + n_active * oversample * c["entry"])
    out = {
        "dense": n_products * n * n_in * n_out * c["gemm"] + dense_update,
        "exact": n * n_out * (n_in * c["gemm"] + c["select"]) + entries + backward,
    }
    out["rows" if nnz is None else "gather"] = finding + n * forward + entries + backward
    return out


def choose(costs: dict[str, float], *, able: set[str]) -> str:
    """The cheapest of the plans `able`; the sparse one where a dense step is not worth a thought."""
    sparse = "rows" if "rows" in costs else "gather"
    if costs["dense"] < FLOOR:
        return sparse
    return min((plan for plan in costs if plan in able), key=costs.__getitem__)
