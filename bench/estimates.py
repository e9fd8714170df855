"""Estimates of all scores and of the logarithm of their sum of exponentials: how far off, how fast.

usage: python -P bench/estimates.py LAYER.npz [LAYER.npz ...] [--error 0.01] [--queries 500]

bench/make_layers.py makes the layers. The queries are rows that no calibration has seen, and the
same with noise, three times as long, a tenth as long, and with the entries of each row permuted;
they are asked one by one, on one thread. "off / deviation" is the root mean square of the error of
an estimate in its standard deviations, "off / error" the largest error of a log-sum-exp in what was
reported, "computed" what a product with all weights takes instead, single and in batches of 256.
"""
import argparse
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from common import markdown_table
from promise import shifted

import sparselsh as sl


def main():
    """Print a table per layer."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("layers", nargs="+")
    parser.add_argument("--error", type=float, default=0.01)
    parser.add_argument("--queries", type=int, default=500)
    args = parser.parse_args()
    sl.set_num_threads(1)
    for path in args.layers:
        with np.load(path) as file:
            W, bias, H, Q = (np.ascontiguousarray(file[key], np.float32)
                             for key in ("W", "bias", "H", "Q"))
        index = sl.LSHIndex(plan="sketches", random_state=0).fit(W, bias, queries=H)
        index.logsumexp(Q[:1])  # makes the codes
        print(f"## {Path(path).stem}: {W.shape[0]:,} x {W.shape[1]}\n")
        print(table(index, W, bias, Q[:args.queries], args.error), "\n", flush=True)


def table(index, W, bias, Q, wanted):
    """A row per kind of queries."""
    rows = []
    for name, X in ({"longer": 3 * Q} | shifted(Q)).items():
        scores = X.astype(np.float64) @ W.T.astype(np.float64) + bias
        row = [name]
        for bits in (1, 8):
            found, seconds = one_by_one(lambda x, b=bits: index.estimate(x, bits=b), X)
            off = ((found[0] - scores) / found[1])[found[1] > 0]
            row += [f"{np.sqrt((off**2).mean()):.2f}", f"{np.median(found[1]):.3f}",
                    f"{seconds * 1e6:.0f}"]
        (values, errors), seconds = one_by_one(lambda x: index.logsumexp(x, error=wanted), X)
        top = scores.max(axis=1, keepdims=True)
        off = np.abs(values - top[:, 0] - np.log(np.exp(scores - top).sum(axis=1)))
        row += [f"{off.max():.1e}", f"{np.median(errors):.1e}", f"{(off / errors).max():.2f}",
                f"{seconds * 1e6:.0f}"]
        engine = index._engine
        _, single = one_by_one(lambda x, e=engine: (e.outputs(x, 1),), X[:100])
        seconds = min(cpu_seconds(lambda e=engine, x=X: e.outputs(x[:256], 1))[1] for _ in range(3))
        rows.append((*row, f"{single * 1e6:.0f}, {seconds / len(X[:256]) * 1e6:.0f}"))
    return markdown_table(
        ("inputs", "1 bit: off / deviation", "deviation", "µs", "8 bits: off / deviation",
         "deviation", "µs", "log-sum-exp: off", "error", "off / error", "µs", "computed, µs"),
        rows, left=1)


def cpu_seconds(call):
    """What a call gives, and the CPU seconds that it takes."""
    begin = time.process_time()
    return call(), time.process_time() - begin


def one_by_one(call, X):
    """What a call gives for all rows, and CPU seconds per row."""
    parts, seconds = cpu_seconds(lambda: [call(X[i:i + 1]) for i in range(len(X))])
    return [np.concatenate(part) for part in zip(*parts, strict=True)], seconds / len(X)


if __name__ == "__main__":
    main()
