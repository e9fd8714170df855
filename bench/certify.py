"""Answers that are exact, or as sure as was asked: what they cost, and how many are wrong.

usage: python -P bench/certify.py LAYER.npz [LAYER.npz ...] [--k 1 5 10 100] [--queries 500]
           [--confidences 0.99 0.999 0.999999] [--answers 0] [--batch]

bench/make_layers.py makes the layers. The queries are rows that no calibration has seen, and the
same under the shifts of bench/promise.py, asked one by one on one thread, or with --batch 256 at a
time. With --answers, so many answers for k = 5 are compared with exact ones: to mixtures of two
queries with noise, of which no two are equal. "computed" is the part of
the neurons whose inner products were computed in float32, "wrong" the answers that miss a neuron
better than one of theirs by more than the rounding.
"""
import argparse
import sys
import time
from pathlib import Path
from statistics import NormalDist

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from common import markdown_table
from promise import shifted

import sparselsh as sl
from sparselsh._arrays.selection import Selection


def main():
    """Print a table per layer."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("layers", nargs="+")
    parser.add_argument("--k", type=int, nargs="+", default=[1, 5, 10, 100])
    parser.add_argument("--confidences", type=float, nargs="+", default=[0.99, 0.999, 0.999999])
    parser.add_argument("--queries", type=int, default=500)
    parser.add_argument("--answers", type=int, default=0)
    parser.add_argument("--batch", action="store_true")
    args = parser.parse_args()
    sl.set_num_threads(1)
    for path in args.layers:
        with np.load(path) as file:
            W, bias, H, Q = (np.ascontiguousarray(file[key], np.float32)
                             for key in ("W", "bias", "H", "Q"))
        index = sl.LSHIndex(plan="sketches", random_state=0).fit(W, bias, queries=H)
        index.search(Q[:1], 1, exact=True)  # makes the codes
        print(f"## {Path(path).stem}: {W.shape[0]:,} x {W.shape[1]}\n")
        if args.answers:
            print(many(index, H, args), flush=True)
            continue
        rows = [row for name, X in shifted(Q[:args.queries]).items()
                for row in measured(index, name, X, args)]
        print(markdown_table(("inputs", "k", "asked", "least confidence", "computed", "most",
                              "wrong", "µs"), rows, left=1), "\n", flush=True)


def measured(index, name, X, args):
    """The rows of a kind of queries."""
    engine, size = index._engine, 256 if args.batch else 1
    for k in args.k:
        exact, product = in_turn(lambda x, k=k: engine.exact(x, k, 1)[1], X, size)
        yield name, k, "product", "1", "100 %", "100 %", 0, f"{product:.0f}"
        found, microseconds = in_turn(lambda x, k=k: index.search(x, k, exact=True)[1], X,
                                      size)
        yield name, k, "exact", "1", "", "", wrong(found, exact), f"{microseconds:.0f}"
        for confidence in args.confidences:
            def search(x, k=k, confidence=confidence):
                _, scores, sure = index.search(x, k, certify=confidence)
                return np.append(scores, sure[:, None], axis=1)

            found, microseconds = in_turn(search, X, size)
            computed = np.ones(len(X))
            coded = engine.coded(k, 1)
            if coded is not None:  # else a product costs less
                deviations = -NormalDist().inv_cdf((1 - confidence) / len(engine.W))
                computed = coded.search(X, k, engine.W, engine.bias, Selection(), deviations,
                                        1)[2] / len(engine.W)
            yield (name, k, f"{confidence:g}", f"{found[:, -1].min():.7f}",
                   f"{computed.mean():.2%}", f"{computed.max():.2%}", wrong(found[:, :-1], exact),
                   f"{microseconds:.0f}")


def wrong(scores, exact):
    """Answers whose scores are below the exact ones by more than the rounding of their largest."""
    largest = np.abs(exact).max(axis=1, keepdims=True)
    return int((scores < exact - 1e-5 * (1 + largest)).any(axis=1).sum())


def many(index, H, args):
    """How many of very many answers are wrong, by the confidence that was asked."""
    rng, k, n = np.random.default_rng(0), 5, 0
    failed = dict.fromkeys(args.confidences, 0)
    while n < args.answers:
        a, b = (H[rng.integers(len(H), size=1024)] for _ in range(2))
        part = rng.random((1024, 1), dtype=np.float32)
        noise = H.std(axis=0) * rng.standard_normal(a.shape, dtype=np.float32)
        X = part * a + (1 - part) * b + np.float32(0.3) * noise
        exact = index._engine.exact(X, k, 1)[1]
        for confidence in args.confidences:
            failed[confidence] += wrong(index.search(X, k, certify=confidence)[1], exact)
        n += len(X)
    return "\n".join(f"asked {confidence:g}: {count} of {n:,} answers wrong, "
                     f"{(1 - confidence) * n:.0f} allowed" for confidence, count in failed.items())


def in_turn(call, X, size):
    """What a call gives for all rows, some at a time, and CPU microseconds per row."""
    begin = time.process_time()
    parts = [call(X[i:i + size]) for i in range(0, len(X), size)]
    return np.concatenate(parts), (time.process_time() - begin) / len(X) * 1e6


if __name__ == "__main__":
    main()
