"""All inner products by NumPy and BLAS, in the fastest of several forms."""
import time

import numpy as np

from .contender import Contender


class Exact(Contender):
    """GEMV or GEMM, then the top k.

    `build` finds which layout of the weights, which top k and (for a batch) how many queries per
    product are fastest on this layer, so that the baseline is not slow through a choice of ours.
    """

    package = "numpy"

    def build(self, layer):
        self.n = len(layer.W)
        self.W, self.bias = layer.W, layer.bias
        self.Wt = np.ascontiguousarray(layer.W.T)
        Q = layer.H[:256]
        layouts, tops = ("rows", "columns"), (None, 16, 32, 64)
        tops = tops[:1] if self.n < 100 * self.k else tops
        forms = [(w, t) for w in layouts for t in tops]
        self.one = min(forms, key=lambda form: self._time(self._one, Q[0], form))
        forms = [(*form, 32) for form in forms]
        self.batch = min(forms, key=lambda form: self._time(self._batch, Q[:32], form))
        sizes = [(*self.batch[:2], size) for size in (16, 32, 64, 256)]
        self.batch = min(sizes, key=lambda form: self._time(self._batch, Q, form))
        self.note = (f"one query: weights by {self.one[0]}, top k {_words(self.one[1])}; batch: "
                     f"weights by {self.batch[0]}, top k {_words(self.batch[1])}, "
                     f"{self.batch[2]} queries per product")
        if "columns" not in (self.one[0], self.batch[0]):
            self.Wt = self.W.T

    def _time(self, search, x, form):
        spent = []
        for _ in range(4):
            begin = time.perf_counter()
            search(x, form)
            spent.append(time.perf_counter() - begin)
        return min(spent[1:])

    def settings(self):
        return [{}]

    def use(self, setting):
        pass

    def search_one(self, q):
        return self._one(q, self.one)

    def search_batch(self, Q):
        return self._batch(Q, self.batch)

    def _one(self, q, form):
        z = self.W @ q if form[0] == "rows" else q @ self.Wt
        z += self.bias
        return top_k(z[None], self.k, form[1])[0]

    def _batch(self, Q, form):
        ids = np.empty((len(Q), self.k), np.int64)
        for start in range(0, len(Q), form[2]):
            x = Q[start:start + form[2]]
            z = x @ (self.W.T if form[0] == "rows" else self.Wt)
            z += self.bias
            ids[start:start + form[2]] = top_k(z, self.k, form[1])
        return ids

    def fraction_computed(self, setting):
        return 1.0


def top_k(z, k, block):
    """Ids of the k largest entries of each row, in no order.

    With `block`, entries are first reduced to the maxima of groups of so many, which NumPy does at
    the speed of memory: the k best entries lie in the k groups with the largest maxima, and only
    those groups are searched.
    """
    n = z.shape[1]
    if block is None:
        return np.argpartition(z, n - k, axis=1)[:, n - k:]
    n_groups = n // block
    maxima = z[:, :n_groups * block].reshape(len(z), block, n_groups).max(axis=1)
    groups = np.argpartition(maxima, n_groups - k, axis=1)[:, n_groups - k:]
    ids = (groups[:, None, :] + np.arange(block)[:, None] * n_groups).reshape(len(z), -1)
    rest = np.broadcast_to(np.arange(n_groups * block, n), (len(z), n - n_groups * block))
    ids = np.concatenate([ids, rest], axis=1)
    first = ids.shape[1] - k
    best = np.argpartition(np.take_along_axis(z, ids, 1), first, axis=1)[:, first:]
    return np.take_along_axis(ids, best, 1)


def _words(block):
    return "by argpartition" if block is None else f"by maxima of {block}"


def make(threads, k, targets):
    return [Exact("exact (NumPy, BLAS)", "layer", threads, k)]


GROUPS = {"numpy": make}
