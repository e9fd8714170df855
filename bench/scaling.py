"""Samples a second of training on one thread and on several, and what the machine gave at the time.

usage: python -P bench/scaling.py TRAIN.txt [--hidden 128] [--threads 2] [--pairs 12] [--rows 25600] [--row-moments]

Two networks that differ in nothing but their threads take turns, some rows each, in one process, after an epoch that
pays for new memory. Before and after each pair a large matrix product is timed on one thread and on several: on a
shared machine it tells whether the cores were there. A pair is quiet where the product gained 0.9 of the number of
threads both times. Medians are of all pairs and of the quiet ones; every pair is printed.
"""
import argparse
import json
import statistics
import time

import numpy as np

import sparselsh as sl
from sparselsh._arrays.linalg import matmul

PRODUCT = 1024  # rows and columns: some 12 ms on one thread
QUIET = 0.9


def clocked(call):
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def product(n_threads):
    """Seconds of a product, the median of seven: nothing but arithmetic, dealt out evenly."""
    a = np.ones((PRODUCT, PRODUCT), np.float32)
    out = np.empty_like(a)
    return statistics.median(clocked(lambda: matmul(a, a, n_threads, out=out)) for _ in range(7))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train")
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--rows", type=int, default=25_600, help="rows a turn; all of them where there are fewer")
    parser.add_argument("--row-moments", action="store_true", help="second_moment='row', as in the recipe")
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    X, Y = sl.datasets.read_xmc(args.train)
    several = (1, args.threads)
    moments = "row" if args.row_moments else "element"
    optimizers = {n: sl.Adam(1e-2, second_moment=moments) for n in several}
    nets = {n: sl.Network([sl.Linear(X.shape[1], args.hidden), sl.LSHLinear(args.hidden, Y.shape[1])],
                          random_state=0, n_threads=n) for n in several}
    parts = [(X[start:start + args.rows], Y[start:start + args.rows]) for start in range(0, X.shape[0], args.rows)]

    def turn(n, part):
        return clocked(lambda: nets[n].fit(*part, optimizer=optimizers[n], epochs=1, batch_size=args.batch_size,
                                           verbose=False))

    for n in several:
        for part in parts:
            turn(n, part)
    pairs = []
    for i in range(args.pairs):
        part = parts[i % len(parts)]
        seconds, gains = {}, []
        gains.append(product(1) / product(args.threads))
        for n in several:
            seconds[n] = turn(n, part)
        gains.append(product(1) / product(args.threads))
        pairs.append({"rates": [part[0].shape[0] / seconds[n] for n in several],
                      "gain": seconds[1] / seconds[args.threads], "product": min(gains)})
        print(f"{pairs[-1]['rates'][0]:9,.0f} {pairs[-1]['rates'][1]:9,.0f} samples a second, {pairs[-1]['gain']:.2f} "
              f"times; a product gained {gains[0]:.2f} and {gains[1]:.2f}", flush=True)
    for name, some in (("all", pairs), ("quiet", [p for p in pairs if p["product"] >= QUIET * args.threads])):
        if some:
            rates = [statistics.median(p["rates"][k] for p in some) for k in (0, 1)]
            gains = sorted(p["gain"] for p in some)
            print(f"{name}: {len(some)} pairs, medians {rates[0]:,.0f} and {rates[1]:,.0f} samples a second, gain "
                  f"{statistics.median(gains):.2f} ({gains[0]:.2f} to {gains[-1]:.2f})")
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump(pairs, file, indent=1)


if __name__ == "__main__":
    main()
