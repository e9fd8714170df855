"""ScaNN, set up as its documentation advises.

Anisotropic hashing in blocks of two dimensions, then exact products.
"""
import contextlib
import os

import numpy as np

from .contender import Contender, powers

REORDER = (10, 20, 40, 80, 160, 320, 640, 1280)


@contextlib.contextmanager
def silent():
    """Drop the log lines of C++, which no option turns off."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


class AH(Contender):
    """All neurons scored by asymmetric hashing: advised for 20,000 to 100,000 points.

    The anisotropic threshold 0.2 is that of ScaNN's examples. It refers to vectors of unit norm; on
    layers with norms of two or three, weights scaled to unit norm and other thresholds had lower
    recall.
    """

    package = "scann"

    def __init__(self, name, view, threads, k):
        super().__init__(f"scann {name}", view, threads, k)

    def build(self, V):
        import scann

        self.n = len(V)
        builder = scann.scann_ops_pybind.builder(V, self.k, "dot_product")
        builder = self.partition(builder.set_n_training_threads(self.threads))
        builder = builder.score_ah(2, anisotropic_quantization_threshold=0.2).reorder(100)
        with silent():
            self._take(builder.build())

    def _take(self, searcher):
        self.searcher = searcher
        if self.threads > 1:
            searcher.set_num_threads(self.threads)

    def partition(self, builder):
        return builder

    def settings(self):
        return [{"reorder": n} for n in REORDER if n <= self.n]

    def use(self, setting):
        self.reorder, self.leaves = setting["reorder"], setting.get("leaves", -1)

    def search_one(self, q):
        ids, _ = self.searcher.search(q, self.k, self.reorder, self.leaves)
        return np.asarray(ids, np.int64)

    def search_batch(self, Q):
        if self.threads > 1:
            size = -(-len(Q) // self.threads)
            ids, _ = self.searcher.search_batched_parallel(Q, self.k, self.reorder, self.leaves,
                                                           size)
        else:
            ids, _ = self.searcher.search_batched(Q, self.k, self.reorder, self.leaves)
        return np.asarray(ids).astype(np.int64)

    def save(self, path):
        os.makedirs(path, exist_ok=True)
        self.searcher.serialize(path)
        return path

    def load(self, path, V):
        import scann

        self.n = len(V)
        with silent():
            self._take(scann.scann_ops_pybind.load_searcher(path))


class TreeAH(AH):
    """Partitioned first: advised above 100,000 points, with about sqrt(n) leaves."""

    def n_leaves(self):
        return max(1, round(self.n**0.5))

    def tree(self):
        return {"num_leaves": self.n_leaves(),
                "num_leaves_to_search": max(1, self.n_leaves() // 10),
                "training_sample_size": min(self.n, 250000)}

    def partition(self, builder):
        return builder.tree(**self.tree())

    def settings(self):
        return [{"leaves": leaves, "reorder": n} for leaves in powers(2, self.n_leaves(), 1.6)
                for n in REORDER if n <= self.n]


class TreeAHSoar(TreeAH):
    """With SOAR, its newer partitioning, in which a point is in two leaves.

    Its lambda is that of the documentation.
    """

    def partition(self, builder):
        return builder.tree(**self.tree(), soar_lambda=1.5, overretrieve_factor=1.8)


def make(threads, k, targets):
    kinds = {"AH": AH, "tree-AH": TreeAH, "tree-AH SOAR": TreeAHSoar}
    return [kind(name, view, threads, k) for name, kind in kinds.items()
            for view in ("raw", "centred")]


GROUPS = {"scann": make}
