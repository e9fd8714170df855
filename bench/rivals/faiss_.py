"""faiss indexes by inner product."""
import numpy as np

from .contender import Contender, powers

# k_factor: candidates per neighbour whose inner products are computed exactly
REORDER = (8, 16, 32, 64, 128, 256, 512, 1024)


class Faiss(Contender):
    """An index of faiss's factory; a subclass defines its string and its sweep."""

    package = "faiss"
    multiple = 1  # the dimension is padded with zeros to a multiple of this

    def __init__(self, name, view, threads, k):
        super().__init__(f"faiss {name}", view, threads, k)

    def build(self, V):
        import faiss

        V = self._padded(V)
        self.n, self.d = V.shape
        self.index = faiss.index_factory(self.d, self.factory(), faiss.METRIC_INNER_PRODUCT)
        self.configure()
        self.index.train(V)
        self.index.add(V)

    def _padded(self, V):
        return np.ascontiguousarray(np.pad(V, ((0, 0), (0, -V.shape[1] % self.multiple))))

    def prepare(self, Q):
        return self._padded(super().prepare(Q))

    def factory(self):
        raise NotImplementedError

    def configure(self):
        pass

    def settings(self):
        return [{}]

    def use(self, setting):
        import faiss

        space = faiss.ParameterSpace()
        for name, value in setting.items():
            if name == "k_factor":
                self.index.k_factor = value
            elif name == "nprobe" and hasattr(self.index, "base_index"):
                space.set_index_parameter(self.index.base_index, name, value)
            else:
                space.set_index_parameter(self.index, name, value)

    def search_one(self, q):
        return self.index.search(q[None], self.k)[1][0]

    def search_batch(self, Q):
        return self.index.search(Q, self.k)[1]

    def save(self, path):
        import faiss

        faiss.write_index(self.index, path)
        return path

    def load(self, path, V):
        import faiss

        self.n, self.d = len(V), self._padded(V[:1]).shape[1]
        self.index = faiss.read_index(path)


class Flat(Faiss):
    def factory(self):
        return "Flat"

    def fraction_computed(self, setting):
        return 1.0


class IVF(Faiss):
    """4 sqrt(n) cells of k-means, as faiss's guidelines say; the nearest nprobe are searched."""

    def n_cells(self):
        return max(1, round(4 * self.n**0.5))

    def factory(self):
        return f"IVF{self.n_cells()},Flat"

    def settings(self):
        return [{"nprobe": n} for n in powers(1, self.n_cells(), 1.5)]


class HNSW(Faiss):
    def factory(self):
        return "HNSW32,Flat"

    def configure(self):
        self.index.hnsw.efConstruction = 200

    def settings(self):
        return [{"efSearch": n} for n in powers(max(8, self.k), 2048, 1.5)]


class PQFastScan(Faiss):
    """Four-bit product quantization scanned in registers, then exact products.

    This is what faiss's wiki advises on CPUs.
    """

    multiple = 2

    def factory(self):
        return f"PQ{self.d // 2}x4fs,RFlat"

    def settings(self):
        return [{"k_factor": n} for n in REORDER]


class IVFPQFastScan(PQFastScan):
    def n_cells(self):
        return max(1, round(self.n**0.5))  # a fast scan needs long cells

    def factory(self):
        return f"IVF{self.n_cells()},{super().factory()}"

    def settings(self):
        return [{"nprobe": n, "k_factor": f} for n in powers(4, self.n_cells())
                for f in REORDER]


class IVFRaBitQ(IVFPQFastScan):
    """RaBitQ, whose estimator our sketches use too, after the rotation that it requires."""

    multiple = 8

    def build(self, V):
        import faiss

        V = self._padded(V)
        self.n, self.d = V.shape
        base = faiss.index_factory(self.d, f"RR{self.d},IVF{self.n_cells()},RaBitQfs",
                                   faiss.METRIC_INNER_PRODUCT)
        self.index = faiss.IndexRefineFlat(base)
        self.index.train(V)
        self.index.add(V)


KINDS = {"flat": Flat, "IVF": IVF, "HNSW M=32": HNSW, "PQ fast scan + refine": PQFastScan,
         "IVF PQ fast scan + refine": IVFPQFastScan, "IVF RaBitQ + refine": IVFRaBitQ}


def make(threads, k, targets):
    return [kind(name, view, threads, k) for name, kind in KINDS.items()
            for view in (("raw",) if name == "flat" else ("raw", "centred"))]


GROUPS = {"faiss": make}
