"""Train a network on XMC text and keep what a retrieval benchmark needs of its output layer.

usage: python -P bench/make_layers.py TRAIN TEST OUT.npz [--hidden 128] [--epochs 5] [--lr 0.01]
           [--seed 0] [--threads N]

OUT.npz holds W (n_labels, hidden), bias (n_labels,), H (hidden activations of up to 4,000 training
rows, evenly spaced, on which an index may calibrate) and Q (those of up to 2,000 test rows: the
queries).
"""
import argparse

import numpy as np

import sparselsh as sl
from sparselsh.datasets import read_xmc
from sparselsh.metrics import precision_at_k

N_CALIBRATION, N_TEST = 4000, 2000


def main():
    """Train, report P@1 and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("train")
    parser.add_argument("test")
    parser.add_argument("out")
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--lr", type=float, default=1e-2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()

    X, Y = read_xmc(args.train)
    X_test, Y_test = read_xmc(args.test, n_features=X.shape[1], n_labels=Y.shape[1])
    net = sl.Network([sl.Linear(X.shape[1], args.hidden, activation="relu"),
                      sl.LSHLinear(args.hidden, Y.shape[1])],
                     random_state=args.seed, n_threads=args.threads)
    net.fit(X, Y, optimizer=sl.Adam(args.lr), epochs=args.epochs, verbose=False)

    ids, _ = net.topk(spaced(X_test, 5000), 1, exact=True)
    p_at_1 = precision_at_k(spaced(Y_test, 5000), ids, 1)
    print(f"{args.out}: {Y.shape[1]} neurons x {args.hidden}, "
          f"P@1 {p_at_1:.3f} on {len(ids)} test rows")
    first, last = net.layers
    np.savez(args.out, W=last.weight, bias=last.bias,
             H=activations(first, spaced(X, N_CALIBRATION)),
             Q=activations(first, spaced(X_test, N_TEST)))


def spaced(matrix, n):
    """At most n rows, evenly spaced: files are often sorted."""
    return matrix[np.unique(np.linspace(0, matrix.shape[0] - 1, n).astype(int))]


def activations(layer, X):
    """What the hidden layer passes to the next."""
    z = X @ np.ascontiguousarray(layer.weight.T) + layer.bias
    return np.maximum(z, 0).astype(np.float32)


if __name__ == "__main__":
    main()
