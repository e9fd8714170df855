"""The cost of the same bits on every processor: trainings with and without `set_reproducible`.

usage: python -P bench/reproducible.py TRAIN TEST [--hidden 256] [--epochs 5] [--repeats 3]
           [--compute-dtype float32]

TRAIN and TEST are files in XMC text. Prints a line per training, with one thread, in turns: the CPU
seconds of `fit` and of `topk` of the test rows, P@1, and a digest of the weights, which is the same
for every processor with "across-machines".
"""
import argparse
import hashlib
import time

import numpy as np

import sparselsh as sl


def measured(scope, args, train, test):
    """CPU seconds of training and of inference, P@1 and a digest of one training."""
    sl.set_reproducible(scope)
    (X, Y), (X_test, Y_test) = train, test
    net = sl.Network([sl.Linear(X.shape[1], args.hidden, activation="relu"),
                      sl.LSHLinear(args.hidden, Y.shape[1])],
                     random_state=0, n_threads=1, compute_dtype=args.compute_dtype)
    begin = time.process_time()
    net.fit(X, Y, optimizer=sl.Adam(5e-3), epochs=args.epochs, verbose=False)
    middle = time.process_time()
    ids, _ = net.topk(X_test, 5)
    end = time.process_time()
    state = hashlib.sha256()
    for weights in net.get_weights():
        state.update(np.ascontiguousarray(weights).tobytes())
    p_at_1 = sl.metrics.precision_at_k(Y_test, ids, 1)
    return middle - begin, end - middle, p_at_1, state.hexdigest()[:16]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("train")
    parser.add_argument("test")
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--compute-dtype", default="float32", choices=("float32", "bfloat16"))
    args = parser.parse_args()

    train = sl.datasets.read_xmc(args.train)[:2]
    test = sl.datasets.read_xmc(args.test, n_features=train[0].shape[1],
                                n_labels=train[1].shape[1])[:2]
    print("| scope | CPU s of fit | CPU s of topk | P@1 | digest of the weights |")
    print("|---|--:|--:|--:|---|")
    for _ in range(args.repeats):
        for scope in ("one-machine", "across-machines"):
            fit, topk, p_at_1, digest = measured(scope, args, train, test)
            print(f"| {scope} | {fit:.2f} | {topk:.2f} | {p_at_1:.4f} | {digest} |", flush=True)


if __name__ == "__main__":
    main()
