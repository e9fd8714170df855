"""usearch, Scalable Vector Search, RaBitQ's own library, and PyNNDescent.

Those that know distances and cosines alone are given one more coordinate, with which all rows have
the same length (Neyshabur and Srebro, arXiv 1410.5518): their ranking is then that of inner
products.
"""
import numpy as np

from .contender import Contender, powers


class Usearch(Contender):
    package = "usearch"

    def __init__(self, view, threads, k):
        super().__init__("usearch M=32", view, threads, k)

    def build(self, V):
        from usearch.index import Index

        self.index = Index(ndim=V.shape[1], metric="ip", dtype="f32", connectivity=32,
                           expansion_add=200)
        self.index.add(np.arange(len(V)), V, threads=self.threads)

    def settings(self):
        return [{"expansion": n} for n in powers(max(8, self.k), 4096, 1.5)]

    def use(self, setting):
        self.index.expansion_search = setting["expansion"]

    def search_one(self, q):
        return self.index.search(q, self.k, threads=1).keys.astype(np.int64)

    def search_batch(self, Q):
        return self.index.search(Q, self.k, threads=self.threads).keys.astype(np.int64)


class SVS(Contender):
    """Vamana graph of Scalable Vector Search; alpha is below 1 for inner products, as it says."""

    package = "svs"

    def __init__(self, view, threads, k):
        super().__init__("SVS Vamana", view, threads, k)

    def build(self, V):
        import svs

        parameters = svs.VamanaBuildParameters(graph_max_degree=64, window_size=200, alpha=0.95)
        self.index = svs.Vamana.build(parameters, V, svs.DistanceType.MIP, self.threads)

    def settings(self):
        return [{"window": n} for n in powers(max(8, self.k), 2048, 1.5)]

    def use(self, setting):
        self.index.search_window_size = setting["window"]

    def search_one(self, q):
        return self.index.search(q[None], self.k)[0][0].astype(np.int64)

    def search_batch(self, Q):
        return self.index.search(Q, self.k)[0].astype(np.int64)


class SymphonyQG(Contender):
    """RaBitQ's quantized graph, over distances of rows of equal length."""

    package = "rabitqlib"

    def __init__(self, view, threads, k):
        super().__init__("rabitqlib SymphonyQG", view, threads, k)

    def build(self, V):
        import rabitqlib

        V = of_equal_length(V)
        self.index = rabitqlib.SymqgIndex(V.shape[1], 32, "l2")
        self.index.build(V, 400, self.threads)

    def settings(self):
        return [{"ef": n} for n in powers(max(8, self.k), 2048, 1.5)]

    def use(self, setting):
        self.ef = setting["ef"]

    def prepare(self, Q):
        Q = super().prepare(Q)
        return np.concatenate([Q, np.zeros((len(Q), 1), np.float32)], axis=1)

    def search_one(self, q):
        return np.asarray(self.index.search(q[None], self.k, self.ef, 1)[0], np.int64)[0]

    def search_batch(self, Q):
        return np.asarray(self.index.search_batch(Q, self.k, self.ef, self.threads)[0], np.int64)


class PyNNDescent(Contender):
    """A graph of neighbours by angle, of rows of equal length."""

    package = "pynndescent"

    def __init__(self, view, threads, k):
        super().__init__("PyNNDescent", view, threads, k)

    def build(self, V):
        import pynndescent

        self.index = pynndescent.NNDescent(of_equal_length(V), metric="cosine", n_neighbors=40,
                                           random_state=0, n_jobs=self.threads)
        self.index.prepare()

    def settings(self):
        return [{"epsilon": e} for e in (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5)]

    def use(self, setting):
        self.epsilon = setting["epsilon"]

    def prepare(self, Q):
        Q = super().prepare(Q)
        return np.concatenate([Q, np.zeros((len(Q), 1), np.float32)], axis=1)

    def search_one(self, q):
        return self.index.query(q[None], self.k, epsilon=self.epsilon)[0][0].astype(np.int64)

    def search_batch(self, Q):
        return self.index.query(Q, self.k, epsilon=self.epsilon)[0].astype(np.int64)


def of_equal_length(V):
    """The rows with one more coordinate, so that all have the length of the longest."""
    squares = np.einsum("ij,ij->i", V, V, dtype=np.float64)
    return np.concatenate([V, np.sqrt(squares.max() - squares)[:, None]], 1).astype(np.float32)


GROUPS = {each.package: lambda threads, k, targets, each=each: [
    each(view, threads, k) for view in ("raw", "centred")]
    for each in (Usearch, SVS, SymphonyQG, PyNNDescent)}
