"""hnswlib and voyager: HNSW graphs by inner product."""
import numpy as np

from .contender import Contender, powers


class Hnswlib(Contender):
    package = "hnswlib"

    def __init__(self, m, view, threads, k):
        super().__init__(f"hnswlib M={m}", view, threads, k)
        self.m = m

    def build(self, V):
        import hnswlib

        self.index = hnswlib.Index(space="ip", dim=V.shape[1])
        self.index.init_index(len(V), M=self.m, ef_construction=200, random_seed=1)
        self.index.set_num_threads(self.threads)
        self.index.add_items(V, num_threads=self.threads)

    def settings(self):
        return [{"ef": n} for n in powers(max(8, self.k), 2048, 1.5)]

    def use(self, setting):
        self.index.set_ef(setting["ef"])

    def search_one(self, q):
        return self.index.knn_query(q, self.k, num_threads=1)[0][0]

    def search_batch(self, Q):
        return self.index.knn_query(Q, self.k, num_threads=self.threads)[0]

    def save(self, path):
        self.index.save_index(path)
        return path

    def load(self, path, V):
        import hnswlib

        self.index = hnswlib.Index(space="ip", dim=V.shape[1])
        self.index.load_index(path)
        self.index.set_num_threads(self.threads)


class Voyager(Contender):
    """Its transform of inner products to angles needs more links than M=16 for the same recall."""

    package = "voyager"

    def __init__(self, view, threads, k):
        super().__init__("voyager M=32", view, threads, k)

    def build(self, V):
        import voyager

        self.index = voyager.Index(voyager.Space.InnerProduct, num_dimensions=V.shape[1], M=32,
                                   ef_construction=200, max_elements=len(V))
        self.index.add_items(V, num_threads=self.threads)

    def settings(self):
        return [{"query_ef": n} for n in powers(max(8, self.k), 4096, 1.5)]

    def use(self, setting):
        self.ef = setting["query_ef"]

    def search_one(self, q):
        return self.index.query(q, self.k, query_ef=self.ef)[0].astype(np.int64)

    def search_batch(self, Q):
        return self.index.query(Q, self.k, num_threads=self.threads, query_ef=self.ef)[0]

    def save(self, path):
        self.index.save(path)
        return path

    def load(self, path, V):
        import voyager

        self.index = voyager.Index.load(path)


VIEWS = ("raw", "centred")


def make_hnswlib(threads, k, targets):
    return [Hnswlib(m, view, threads, k) for m in (16, 32) for view in VIEWS]


def make_voyager(threads, k, targets):
    return [Voyager(view, threads, k) for view in VIEWS]


GROUPS = {"hnswlib": make_hnswlib, "voyager": make_voyager}
