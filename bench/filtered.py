"""Searches among some of the neurons: recall, and time beside a search among all.

usage: python -P bench/filtered.py LAYER.npz [LAYER.npz ...] [--recall 0.95] [--k 5]
           [--fractions 0.001 0.01 0.1 0.5] [--queries 256]

bench/make_layers.py makes the layers. `allow` and `exclude` are given that part of the neurons, as
a mask for all queries and as a sparse matrix with a set per query. Times are CPU time on one
thread, the least of three rounds, of all queries in one batch and of 64 one by one.
"""
import argparse
import sys
import time
from pathlib import Path

import numpy as np
import scipy.sparse as sp

sys.path.insert(0, str(Path(__file__).parent))
from common import markdown_table

import sparselsh as sl
from sparselsh.metrics import neighbour_recall

N_SINGLE = 64


def main():
    """Print a table per layer."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("layers", nargs="+")
    parser.add_argument("--recall", type=float, default=0.95)
    parser.add_argument("--k", type=int, default=5)
    parser.add_argument("--fractions", type=float, nargs="+", default=[0.001, 0.01, 0.1, 0.5])
    parser.add_argument("--queries", type=int, default=256)
    args = parser.parse_args()
    sl.set_num_threads(1)
    for path in args.layers:
        with np.load(path) as file:
            W, bias, H, Q = (np.ascontiguousarray(file[key], np.float32)
                             for key in ("W", "bias", "H", "Q"))
        index = sl.LSHIndex(recall=args.recall, plan="sketches", random_state=0)
        index.fit(W, bias, queries=H)
        print(f"## {Path(path).stem}: {W.shape[0]:,} x {W.shape[1]}\n")
        print(table(index, W, bias, Q[:args.queries], args), "\n", flush=True)


def table(index, W, bias, Q, args):
    """A row per argument, fraction and kind of selection."""
    rng, n = np.random.default_rng(0), len(W)
    scores = Q @ W.T + bias
    plain = times(index, Q, args.k, None, {})
    rows = [("all", "", "", recall(index, Q, args.k, scores, {}), f"{plain[0]:.0f}", "1.0",
             f"{plain[1]:.0f}", "1.0")]
    for fraction in args.fractions:
        mask = rng.random(n) < fraction
        own = sp.random(len(Q), n, fraction, format="csr", dtype=np.float32, random_state=0)
        listed = np.zeros((len(Q), n), bool)
        listed[own.nonzero()] = True
        for name in ("allow", "exclude"):
            for kind, value, chosen in (("mask", mask, mask), ("per query", own, listed)):
                able = chosen if name == "allow" else ~chosen
                found = recall(index, Q, args.k, np.where(able, scores, -np.inf), {name: value})
                batch, single = times(index, Q, args.k, name, value)
                rows.append((name, f"{fraction:.1%}", kind, found, f"{batch:.0f}",
                             f"{batch / plain[0]:.1f}", f"{single:.0f}",
                             f"{single / plain[1]:.1f}"))
    return markdown_table(("", "of the neurons", "given as", "recall", "batch, µs",
                           "of all", "single, µs", "of all"), rows, left=3)


def recall(index, Q, k, scores, options):
    """The recall of a search, as text."""
    truth = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    truth = np.where(np.isneginf(np.take_along_axis(scores, truth, 1)), -1, truth)
    return f"{neighbour_recall(index.search(Q, k, **options)[0], truth):.3f}"


def times(index, Q, k, name, value):
    """CPU microseconds per query, in a batch and one by one."""
    options = {name: value} if name else {}
    singles = [{name: value[i:i + 1] if sp.issparse(value) else value} if name else {}
               for i in range(N_SINGLE)]
    batch = cpu_seconds(lambda: index.search(Q, k, **options)) / len(Q)
    single = cpu_seconds(lambda: [index.search(Q[i:i + 1], k, **each)
                                  for i, each in enumerate(singles)]) / N_SINGLE
    return batch * 1e6, single * 1e6


def cpu_seconds(call):
    """The least CPU seconds of three calls."""
    def once():
        begin = time.process_time()
        call()
        return time.process_time() - begin

    return min(once() for _ in range(3))


if __name__ == "__main__":
    main()
