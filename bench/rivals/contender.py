"""What a contender is, and the weights as it sees them."""
import os

import numpy as np


class Layer:
    """Weights and queries of an output layer, read from an .npz file with W, bias (or b), H and Q."""

    def __init__(self, path):
        self.name = os.path.splitext(os.path.basename(path))[0]
        with np.load(path) as file:
            self.W, self.H, self.Q = (np.ascontiguousarray(file[key], np.float32) for key in "WHQ")
            self.bias = np.ascontiguousarray(file["bias" if "bias" in file else "b"], np.float32)

    def vectors(self, view):
        """(W, bias) as one matrix: "raw", or "centred" by the mean neuron, which leaves every ranking alone."""
        V = np.concatenate([self.W, self.bias[:, None]], axis=1)
        return V if view == "raw" else V - V.mean(axis=0, dtype=np.float64).astype(np.float32)

    def truth(self, k):
        """Ids (n_queries, k) of the largest inner products. float32 picks ten times as many, float64 ranks them."""
        n = min(len(self.W), 10 * k)
        ids = np.empty((len(self.Q), k), np.int64)
        for start in range(0, len(self.Q), 128):
            x = self.Q[start:start + 128]
            z = x @ self.W.T + self.bias
            near = np.argpartition(-z, n - 1, axis=1)[:, :n]
            exact = np.einsum("qnd,qd->qn", self.W[near].astype(np.float64), x.astype(np.float64)) + self.bias[near]
            best = np.argsort(-exact, axis=1)[:, :k]
            ids[start:start + 128] = np.take_along_axis(near, best, axis=1)
        return ids


class Contender:
    """An index over neurons.

    `view` says which weights it gets: "raw" or "centred" ones with the bias as one more coordinate, or "layer"
    (weights, bias and calibration queries as they are). `settings` is its sweep; `use` sets one of them. Queries
    come from `prepare`, whose time is not counted, in its favour.
    """

    package = None
    same_in_batches = True  # whether a query gets the same answer alone and in a batch
    target = None  # the recall it was built for, if it was
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
        """Ids (n, k) for some queries."""
        raise NotImplementedError

    def prepare(self, Q):
        """The queries with the coordinate that the bias is multiplied with."""
        return Q if self.view == "layer" else np.concatenate([Q, np.ones((len(Q), 1), np.float32)], axis=1)

    def save(self, path):
        """Write the index, for its size and for --cache; None where there is nothing to write."""

    def load(self, path, V):
        """Take the index that `save` wrote."""

    def bytes_beside_weights(self, path, n, d):
        """Bytes a neuron of the file or folder that `save` wrote, less one copy of the weights as float32, or None."""
        if path is None:
            return None
        paths = [path] if os.path.isfile(path) else [os.path.join(path, name) for name in os.listdir(path)]
        return sum(map(os.path.getsize, paths)) / n - 4 * d

    def share_computed(self, setting):
        """Share of the neurons whose inner product is computed in full; None where that is not known."""


def powers(first, last, base=2.0):
    """Distinct integers first, first * base, ... and last."""
    n = [first]
    while n[-1] < last:
        n.append(min(last, max(n[-1] + 1, round(n[-1] * base))))
    return n
