"""Accuracy and CPU seconds of training with compute_dtype="bfloat16" beside float32.

usage: python -P bench/compute_dtype.py TRAIN TEST [--hidden 128] [--epochs 5] [--lr 1e-2]
           [--seeds N ...] [--batch-size 256] [--threads 1] [--json FILE]

Both train the same network from the same weights, seed by seed and in turns. Inputs are XMC text;
dense ones such as MNIST are divided by their largest value. Precisions are of all test rows, in
percent; the last two lines are means, and the differences of pairs with their standard error.
"""
import argparse
import statistics
import sys
from pathlib import Path

import numpy as np

import sparselsh as sl

sys.path.insert(0, str(Path(__file__).parent))
from common import markdown_table, write_json

DTYPES = ("float32", "bfloat16")
MIN_LSH_LABELS = 1000  # networks with fewer outputs compute all of them


def read(args):
    X, Y = sl.datasets.read_xmc(args.train)
    X_test, Y_test = sl.datasets.read_xmc(args.test, n_features=X.shape[1], n_labels=Y.shape[1])
    if X.nnz > 0.1 * X.shape[0] * X.shape[1]:
        largest = X.data.max()
        X, X_test = (x.toarray() / np.float32(largest) for x in (X, X_test))
    return X, Y, X_test, Y_test


def run(data, args, dtype, seed):
    X, Y, X_test, Y_test = data
    n_features, n_labels = X.shape[1], Y.shape[1]
    if n_labels >= MIN_LSH_LABELS:
        layers = [sl.Linear(n_features, args.hidden), sl.LSHLinear(args.hidden, n_labels)]
    else:
        layers = [sl.Linear(n_features, args.hidden, activation="relu"),
                  sl.Linear(args.hidden, n_labels)]
    net = sl.Network(layers, random_state=seed, n_threads=args.threads, compute_dtype=dtype)
    net.fit(X, Y, optimizer=sl.Adam(args.lr, schedule="linear"), epochs=args.epochs,
            batch_size=args.batch_size, verbose=False)
    ids, _ = net.topk(X_test, k=5, exact=True)
    return {"dtype": dtype, "seed": seed,
            "p_at_1": 100 * sl.metrics.precision_at_k(Y_test, ids, 1),
            "p_at_5": 100 * sl.metrics.precision_at_k(Y_test, ids, 5),
            "cpu_seconds": sum(entry["cpu_seconds"] for entry in net.history)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("train")
    parser.add_argument("test")
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--lr", type=float, default=1e-2)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()

    data = read(args)
    figures = ("p_at_1", "p_at_5", "cpu_seconds")
    runs = []
    for seed in args.seeds:
        for dtype in DTYPES if seed % 2 == 0 else DTYPES[::-1]:
            runs.append(run(data, args, dtype, seed))
            print({key: round(value, 3) if isinstance(value, float) else value
                   for key, value in runs[-1].items()}, file=sys.stderr, flush=True)

    rows = []
    for dtype in DTYPES:
        of_dtype = [r for r in runs if r["dtype"] == dtype]
        rows.append([dtype, *(f"{statistics.mean(r[f] for r in of_dtype):.2f}" for f in figures)])
    pairs = [{r["dtype"]: r for r in runs if r["seed"] == seed} for seed in args.seeds]
    difference = ["difference"]
    for f in figures:
        values = [pair["bfloat16"][f] - pair["float32"][f] for pair in pairs]
        error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
        difference.append(f"{statistics.mean(values):+.2f} ({error:.2f})")
    print(markdown_table(["products", "P@1, %", "P@5, %", "training, CPU s"], [*rows, difference],
                         left=1))
    if args.json:
        write_json(args.json, {"arguments": vars(args), "runs": runs})


if __name__ == "__main__":
    main()
