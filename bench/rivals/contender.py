"""The interface of a contender, and the weights in the form that rivals take."""
import os

import numpy as np


class Layer:
    """Weights and queries of an output layer: an .npz file with W, bias (or b), H and Q."""

    def __init__(self, path):
        self.name = os.path.splitext(os.path.basename(path))[0]
        with np.load(path) as file:
            self.W, self.H, self.Q = (np.ascontiguousarray(file[key], np.float32) for key in "WHQ")
            key = "bias" if "bias" in file else "b"
            self.bias = np.ascontiguousarray(file[key], np.float32)

    def vectors(self, view):
        """(W, bias) as one matrix.

        "raw", or "centred": less the mean neuron, which changes no ranking.
        """
        V = np.concatenate([self.W, self.bias[:, None]], axis=1)
        return V if view == "raw" else V - V.mean(axis=0, dtype=np.float64).astype(np.float32)

    def truth(self, k):
        """Ids (n_queries, k) of the largest inner products.

        float32 products choose ten times as many, float64 products rank them.
        """
        n = min(len(self.W), 10 * k)
        ids = np.empty((len(self.Q), k), np.int64)
        for start in range(0, len(self.Q), 128):
            x = self.Q[start:start + 128]
            z = x @ self.W.T + self.bias
            near = np.argpartition(-z, n - 1, axis=1)[:, :n]
            rows = self.W[near].astype(np.float64)
            exact = np.einsum("qnd,qd->qn", rows, x.astype(np.float64)) + self.bias[near]
            best = np.argsort(-exact, axis=1)[:, :k]
            ids[start:start + 128] = np.take_along_axis(near, best, axis=1)
        return ids


class Contender:
    """An index over neurons.

    `view` says which weights it is built from: "raw" or "centred" ones with the bias as one more
    coordinate, or "layer" (weights, bias and calibration queries as they are). `settings` is its
    sweep; `use` selects one of them. Queries come from `prepare`, which is not on the clock.
    """

    package = None
    same_in_batches = True  # whether a query has the same result alone and in a batch
    target = None  # the recall it was built for, if it was built for one
    note = ""

    def __init__(self, name, view, threads, k):
        self.view, self.threads, self.k = view, threads, k
        self.name = name if view == "layer" else f"{name} ({view})"

    def build(self, V):
        raise NotImplementedError

    def settings(self):
        raise NotImplementedError

    def use(self, setting):
        raise NotImplementedError

    def search_one(self, q):
        """Ids (k,) for one query."""
        raise NotImplementedError

    def search_batch(self, Q):
        """Ids (n, k) for a batch of queries."""
        raise NotImplementedError

    def prepare(self, Q):
        """The queries, with the coordinate by which the bias is multiplied."""
        if self.view == "layer":
            return Q
        return np.concatenate([Q, np.ones((len(Q), 1), np.float32)], axis=1)

    def save(self, path):
        """Write the index, for its size and for --cache; None where there is nothing to write."""

    def load(self, path, V):
        """Read the index that `save` wrote."""

    def bytes_beside_weights(self, path, n, d):
        """Bytes per neuron of what `save` wrote, less one float32 copy of the weights, or None."""
        if path is None:
            return None
        paths = [path]
        if not os.path.isfile(path):
            paths = [os.path.join(path, name) for name in os.listdir(path)]
        return sum(map(os.path.getsize, paths)) / n - 4 * d

    def fraction_computed(self, setting):
        """Fraction of the neurons whose inner product is computed in full; None if not known."""


def powers(first, last, base=2.0):
    """Distinct integers first, first * base, ... and last."""
    n = [first]
    while n[-1] < last:
        n.append(min(last, max(n[-1] + 1, round(n[-1] * base))))
    return n
