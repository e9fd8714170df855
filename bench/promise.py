"""The recall that searches keep, asked for and measured, on rows that no calibration has seen.

usage: python -P bench/promise.py LAYER.npz [LAYER.npz ...] [--recalls 0.9 0.95 0.99]
           [--k 1 5 10 100] [--seeds 1] [--threads 1] [--queries 500] [--metric ip] [--parts]

bench/make_layers.py makes the layers: W, bias, H to calibrate on, Q to measure on. Each index is
measured on Q and on three shifts of it: with noise as large as the queries vary, scaled by a tenth,
and with the entries of each row in another order. Four more kinds of queries are made of neurons:
one of them ("more like this"), the mean of five (a profile), the difference of two that are near
each other, and a - b + c (an analogy). `without` are indexes that were given no queries.
A neuron that is found counts if its score is that of a true one, as many neurons may be equal.
With --parts, the least recall over all of these of the bound of the sketches alone, in all cells,
and of the cells alone, where all neurons in them are computed: by these tables the floors in
sparselsh/index/_bounds.py were chosen.
"""
import argparse
import itertools
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from common import markdown_table

import sparselsh as sl
from sparselsh.index import Bounds

ROUNDING = 1e-6  # by which equal scores may differ
N_NEAR = 20  # neurons of the smallest angles to one, of which one is subtracted from it


def main():
    """Print a table per layer."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("layers", nargs="+")
    parser.add_argument("--recalls", type=float, nargs="+", default=[0.9, 0.95, 0.99])
    parser.add_argument("--k", type=int, nargs="+", default=[1, 5, 10, 100])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--queries", type=int, default=500)
    parser.add_argument("--metric", default="ip")
    parser.add_argument("--parts", action="store_true")
    args = parser.parse_args()
    sl.set_num_threads(args.threads)

    for path in args.layers:
        with np.load(path) as file:
            W, H, Q = (np.ascontiguousarray(file[key], np.float32) for key in "WHQ")
            bias = file["bias"].astype(np.float32) if args.metric == "ip" else None
        Q = Q[:args.queries]
        shifts = shifted(Q) | of_neurons(W, len(Q))
        truth = {}
        for name, X in shifts.items():
            exact = sl.LSHIndex(plan="exact", metric=args.metric, random_state=0).fit(W, bias)
            truth[name] = exact._engine.exact(exact._inputs(X), max(args.k), args.threads)[1]
        report = by_part if args.parts else promise
        print(f"## {Path(path).stem}: {W.shape[0]:,} x {W.shape[1]}, {len(Q)} queries\n")
        print(report(W, bias, H, shifts, truth, args), "\n", flush=True)


def shifted(Q):
    """The queries as they are, and unlike those of the calibration."""
    rng = np.random.default_rng(0)
    noise = (Q.std(axis=0) * rng.standard_normal(Q.shape)).astype(np.float32)
    return {"unseen": Q, "noise": Q + noise, "scaled": Q * np.float32(0.1),
            "permuted": np.ascontiguousarray(rng.permuted(Q, axis=1))}


def of_neurons(W, n):
    """Queries made of neurons, which are unlike the inputs of a layer."""
    rng = np.random.default_rng(1)
    a, b, c = W[rng.integers(len(W), size=(3, n))]
    U = W / np.maximum(np.linalg.norm(W, axis=1, keepdims=True), 1e-30)
    near = [np.argsort(U @ -x)[rng.integers(1, N_NEAR)] for x in a]
    means = W[rng.integers(len(W), size=(n, 5))].mean(axis=1)
    made = {"neurons": a, "means": means, "differences": a - W[near], "analogies": a - b + c}
    return {name: np.ascontiguousarray(X, np.float32) for name, X in made.items()}


def indexes(W, bias, H, wanted, args):
    """Indexes with and without queries, by what they were given."""
    for seed, queries in itertools.product(range(args.seeds), (H, None)):
        index = sl.LSHIndex(recall=wanted, plan="sketches", metric=args.metric, random_state=seed)
        yield ("with" if queries is not None else "without"), index.fit(W, bias, queries=queries)


def measured(index, X, k, truth, threads):
    """Recall, and neurons computed and sketches read per query; equal neurons are as good."""
    _, scores, counts = index._engine.by_bound(index._inputs(X), k, threads)
    kth = truth[:, k - 1:k].astype(np.float64)
    hit = scores >= kth - ROUNDING * (1 + np.abs(kth))
    return hit.mean(), *counts[:, :2].mean(axis=0)


def promise(W, bias, H, shifts, truth, args):
    """The recall by what was asked; the least over the seeds."""
    rows = []
    for wanted in args.recalls:
        found = {}
        for given, index in indexes(W, bias, H, wanted, args):
            for name, k in itertools.product(shifts, args.k):
                one = measured(index, shifts[name], k, truth[name], args.threads)
                found.setdefault((given, name, k), []).append(one)
        for (given, name, k), values in found.items():
            least = min(value[0] for value in values)
            computed, scanned = (np.mean([value[i] for value in values]) for i in (1, 2))
            rows.append((f"{wanted:g}", given, name, k, f"{least:.4f}",
                         "" if least >= wanted - 0.005 else "short", f"{computed:.0f}",
                         f"{scanned / len(W):.1%}"))
    return markdown_table(("asked", "queries", "inputs", "k", "least recall", "", "computed",
                           "scanned"), rows, left=3)


def by_part(W, bias, H, shifts, truth, args):
    """The least recall over the inputs, of sketches alone and of cells alone, by k."""
    rows = []
    made = list(indexes(W, bias, H, 0.5, args))
    for wanted, k in itertools.product(args.recalls, args.k):
        row = [f"{wanted:g}", k]
        for part in ("sketches", "cells"):
            least, where = 1.0, ""
            for given, index in made:
                bounds = Bounds.of_recall(wanted)
                if part == "sketches":
                    bounds.cells = -1.0  # all of them
                else:
                    bounds.sketches = 1e3
                index._engine.sketches.set_bounds(bounds)
                for name, X in shifts.items():
                    got, _, scanned = measured(index, X, k, truth[name], args.threads)
                    if got < least:
                        least, where = got, f"{given}, {name}, {scanned / len(W):.0%} scanned"
            row += [f"{least:.4f}", where]
        rows.append(row)
    return markdown_table(("asked", "k", "sketches alone", "worst", "cells alone", "worst"), rows,
                          left=2)


if __name__ == "__main__":
    main()
