"""Training samples per second on one thread and on several, and what the machine allowed meanwhile.

usage: python -P bench/scaling.py TRAIN [--hidden 128] [--threads 2] [--pairs 12] [--rows 25600]
           [--row-moments] [--json FILE]

Two networks that differ only in their number of threads take turns, some rows each, in one process,
after an epoch that pays for new memory. Before and after each pair, matrix products are timed in
NumPy: one in one Python thread, and as many at once as there are threads. On a shared machine this
tells whether the cores were available. A pair is quiet where the products gained at least 0.9 of
the number of threads both times. Medians are those of all pairs and of the quiet ones; every pair
is printed.
"""
import os

# one thread per product; NumPy's BLAS reads this when it is loaded
os.environ["OPENBLAS_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"

import argparse
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

import sparselsh as sl

sys.path.insert(0, str(Path(__file__).parent))
from common import spread, write_json

PRODUCT_SIZE = 1024  # rows and columns: about 12 ms on one thread
QUIET = 0.9


def seconds(call):
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def product_gain(pool, n_threads):
    """How many times as many products per second all threads compute as one; medians of seven."""
    a = np.ones((PRODUCT_SIZE, PRODUCT_SIZE), np.float32)
    outs = [np.empty_like(a) for _ in range(n_threads)]

    def products(n):
        list(pool.map(lambda out: np.matmul(a, a, out=out), outs[:n]))

    one, several = (statistics.median(seconds(lambda n=n: products(n)) for _ in range(7))
                    for n in (1, n_threads))
    return n_threads * one / several


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train")
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--rows", type=int, default=25_600,
                        help="rows per turn; all of them where there are fewer")
    parser.add_argument("--row-moments", action="store_true",
                        help="second_moment='row', as in the recipe")
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()

    X, Y = sl.datasets.read_xmc(args.train)
    counts = (1, args.threads)
    moments = "row" if args.row_moments else "element"
    optimizers = {n: sl.Adam(1e-2, second_moment=moments) for n in counts}
    nets = {n: sl.Network([sl.Linear(X.shape[1], args.hidden),
                           sl.LSHLinear(args.hidden, Y.shape[1])],
                          random_state=0, n_threads=n) for n in counts}
    starts = range(0, X.shape[0], args.rows)
    parts = [(X[start:start + args.rows], Y[start:start + args.rows]) for start in starts]

    def turn(n, part):
        return seconds(lambda: nets[n].fit(*part, optimizer=optimizers[n], epochs=1,
                                           batch_size=args.batch_size, verbose=False))

    for n in counts:
        for part in parts:
            turn(n, part)
    pairs = []
    with ThreadPoolExecutor(args.threads) as pool:
        for i in range(args.pairs):
            part = parts[i % len(parts)]
            gains = [product_gain(pool, args.threads)]
            spent = {n: turn(n, part) for n in counts}
            gains.append(product_gain(pool, args.threads))
            pairs.append({"samples_per_s": [part[0].shape[0] / spent[n] for n in counts],
                          "gain": spent[1] / spent[args.threads], "product_gain": min(gains)})
            rates = pairs[-1]["samples_per_s"]
            print(f"{rates[0]:9,.0f} {rates[1]:9,.0f} samples per second, "
                  f"{pairs[-1]['gain']:.2f} times; products gained {gains[0]:.2f} and "
                  f"{gains[1]:.2f}", flush=True)

    quiet = [pair for pair in pairs if pair["product_gain"] >= QUIET * args.threads]
    document = {"threads": args.threads, "hidden": args.hidden, "batch_size": args.batch_size,
                "rows": parts[0][0].shape[0], "second_moment": moments,
                "labels": Y.shape[1], "groups": {}}
    for name, chosen in (("all", pairs), ("quiet", quiet)):
        if chosen:
            one, several = zip(*(pair["samples_per_s"] for pair in chosen), strict=True)
            document["groups"][name] = {
                "one": spread(one), "several": spread(several),
                "gain": spread(pair["gain"] for pair in chosen),
                "product_gain": spread(pair["product_gain"] for pair in chosen)}
            group = document["groups"][name]
            print(f"{name}: {len(chosen)} pairs, medians {group['one']['median']:,.0f} and "
                  f"{group['several']['median']:,.0f} samples per second, gain "
                  f"{group['gain']['median']:.2f} ({group['gain']['min']:.2f} to "
                  f"{group['gain']['max']:.2f})")
    if args.json:
        write_json(args.json, document)


if __name__ == "__main__":
    main()
