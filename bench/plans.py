"""The plans of a hidden layer, measured: fits the costs of sparselsh/_plans.py, checks its choices.

usage: python -P bench/plans.py [--quick] [--only WORDS] [--check] [--json FILE]

A training step (forward, backward, Adam, hashing with a build every 16 steps) of a layer of each
shape, batch size, density and kind of input is timed under each plan, in turns, on one thread: CPU
seconds, the smallest of several. The costs are fitted by non-negative least squares of relative
errors. It prints the costs, and for each case the time of the plan that the fitted formula chooses
divided by that of the dense plan: above 1.1 the choice was bad. --check uses the costs of _plans.py
instead of fitting.
"""
import argparse
import itertools
import json
import time

import numpy as np
import scipy.sparse as sp
from scipy.optimize import nnls

import sparselsh as sl
from sparselsh._arrays.csr import from_scipy
from sparselsh.layers import Step, _plans

SHAPES = [(256, 512), (1000, 1000), (784, 4096), (2048, 2048), (4096, 4096)]
BATCHES = [64, 512]
DENSITIES = [0.01, 0.05, 0.15, 0.4]
INPUTS = [None, 0.05, 0.25]  # None: dense; else the fraction of non-zero entries
BUILD_EVERY = 16


def inputs(rng, n, n_in, fraction):
    """A batch of non-negative inputs, dense or sparse."""
    x = np.maximum(rng.standard_normal((n, n_in), np.float32), 0)
    if fraction is None:
        return x
    x[rng.random(x.shape) > 2 * fraction] = 0
    return from_scipy(sp.csr_array(x))


class Contender:
    """A layer under one plan, and an optimizer; `step` trains once."""

    def __init__(self, plan, x, n_out, density):
        self.x, self.plan = x, plan
        self.layer = sl.LSHLinear(x.shape[1], n_out, density=density, active="sample",
                                  activation="relu", plan=plan,
                                  rebuild=sl.rebuild.Every(BUILD_EVERY))
        self.layer.policy = "sketches"
        self.layer.initialize(np.random.default_rng(0))
        self.optimizer, self.n_steps, self.best = sl.Adam(1e-4), 0, np.inf

    def step(self):
        """CPU seconds of a step; every 16th builds the sketches that the following ones use."""
        begin = time.process_time()
        self.layer.prepare(self.n_steps)
        out, backprop = self.layer.forward(self.x, Step(True, None, self.n_steps, True))
        d = np.full(out.nnz if hasattr(out, "nnz") else out.shape, 1e-3, np.float32)
        _, pairs = backprop(d)
        self.optimizer.step(pairs)
        self.layer.updated(pairs, 1)
        self.n_steps += 1
        return time.process_time() - begin


def measure(x, n_out, density, n_rounds):
    """Seconds of a step by plan."""
    plans = ["dense", "rows", "gather", "exact"]
    if isinstance(x, np.ndarray):
        plans.remove("gather")
    contenders = [Contender(plan, x, n_out, density) for plan in plans]
    for one in contenders:
        one.step()  # the first step pays for new memory and the first sketches
    for _ in range(n_rounds):
        for one in contenders:
            one.best = min(one.best, one.step())
    out = {}
    for one in contenders:
        out[one.plan] = one.best
        if one.plan in ("rows", "gather"):
            begin = time.process_time()
            layer = one.layer
            weight, bias = layer.weight, layer.bias
            layer._finder.sketches.rebuild(weight, bias, layer._inputs, 1)
            out[one.plan] += (time.process_time() - begin) / BUILD_EVERY
    return out


def measured(args):
    """One dict per case: what it was, the counts of each plan and its seconds."""
    rng = np.random.default_rng(0)
    cases = []
    kinds = itertools.product(SHAPES, BATCHES, INPUTS, DENSITIES)
    for (n_in, n_out), n, fraction, density in kinds:
        if n * n_in * n_out * (density + 0.05) > (2e8 if args.quick else 1e10):
            continue
        kind = "dense" if fraction is None else f"{fraction:.0%}"
        name = f"{n_in} x {n_out}, batch {n}, {kind} in, {density:.0%} out"
        if args.only not in name:
            continue
        x = inputs(rng, n, n_in, fraction)
        n_active = max(1, round(density * n_out))
        nnz = None if fraction is None else x.nnz / n
        counts = _plans.counts(n, n_in, n_out, n_active, nnz=nnz, bits=128, oversample=2,
                               need_dx=True, builds=1 / BUILD_EVERY)
        cases.append({"case": name, "counts": counts,
                      "seconds": measure(x, n_out, density, args.rounds)})
    return cases


def fit(cases):
    """Costs in nanoseconds."""
    names = list(_plans.COSTS)
    rows = [(case["counts"][plan], 1e9 * s) for case in cases
            for plan, s in case["seconds"].items()]
    A = np.array([[counts.get(name, 0) / ns for name in names] for counts, ns in rows])
    costs, _ = nnls(A, np.ones(len(rows)))
    errors = A @ costs
    low, high = np.quantile(errors, (0.05, 0.95))
    print(f"estimated / measured: median {np.median(errors):.2f}, 5 to 95 % {low:.2f} to "
          f"{high:.2f}, {len(rows)} steps")
    return dict(zip(names, costs, strict=True))


def main():
    """Measure, fit, print."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small cases only")
    parser.add_argument("--only", default="", metavar="WORDS", help="cases whose names have this")
    parser.add_argument("--check", action="store_true",
                        help="use the costs of _plans.py, without fitting")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", help="the measured cases; read where the file exists")
    args = parser.parse_args()
    try:
        with open(args.json or "") as file:
            cases = json.load(file)
    except FileNotFoundError:
        cases = measured(args)
        if args.json:
            with open(args.json, "w") as file:
                json.dump(cases, file)
    costs = _plans.COSTS
    if not args.check:
        costs.update(fit(cases))
    for name, cost in costs.items():
        print(f"    {name:8s} {cost:.4g}")
    ratios = []
    for case in cases:
        estimates = _plans.estimates(case["counts"])
        chosen = _plans.choose(estimates, able=set(estimates))
        seconds = case["seconds"]
        floor = estimates["dense"] < _plans.MIN_DENSE_NANOSECONDS
        ratios.append((seconds[chosen] / seconds["dense"],
                       min(seconds.values()) / seconds["dense"], floor))
        times = ", ".join(f"{plan} {s * 1e3:.2f}" for plan, s in seconds.items())
        note = " (below the floor)" if floor else ""
        print(f"{ratios[-1][0]:5.2f} {chosen:6s} {case['case']:45s} ms: {times}{note}")
    above = [ratio for ratio, _, floor in ratios if not floor]
    if not above:
        return
    of_best = np.mean([best for _, best, floor in ratios if not floor])
    print(f"chosen / dense: worst {max(above):.2f}, {sum(r > 1.1 for r in above)} of {len(above)} "
          f"above 1.1; mean {np.mean(above):.2f}, of the best plan {of_best:.2f}")


if __name__ == "__main__":
    main()
