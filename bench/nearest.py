"""Nearest neighbours by Euclidean distance: LSHIndex beside graphs and inverted files.

    python -P bench/nearest.py TRAIN TEST [--k 10] [--recalls 0.95 0.99] [--threads 1]
        [--queries 1000] [--rounds 5] [--only sparselsh,faiss-hnsw]

TRAIN and TEST are XMC text, whose features are coordinates (bench/published.py fetches MNIST). The
rows of TRAIN are indexed, those of TEST asked. Rivals are built with the parameters that their
documentation recommends for a high recall, and answer with the cheapest setting of a sweep whose
recall on the first half of the queries is what is asked. What is measured, on the second half: the
recall by distance, CPU seconds of the build, and microseconds of a query alone and of one in a
batch, the median of rounds. Rivals that are not installed are left out.
"""
import argparse
import statistics
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from common import Stopwatch, markdown_table, per_call

import sparselsh as sl
from sparselsh.datasets import read_xmc

EFFORTS = (8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)  # of a search
ROUNDING = 1e-5  # relative, by which equal distances may differ


class Ours:
    """An index that was given queries of the training rows' kind, or none."""

    def __init__(self, W, k, threads, queries=None):
        self.W, self.k, self.threads, self.queries = W, k, threads, queries

    def build(self, recall):
        self.index = sl.LSHIndex(metric="l2", recall=recall, random_state=0,
                                 n_threads=self.threads).fit(self.W, queries=self.queries)
        if self.queries is not None:
            self.index.tune(self.queries, k=self.k)

    def settings(self):
        return [None]

    def use(self, setting):
        pass

    def search(self, Q):
        return self.index.search(Q, self.k)[0]


class Rival:
    """Built once, for all recalls."""

    def __init__(self, W, k, threads):
        self.W, self.k, self.threads, self.built = W, k, threads, False

    def build(self, recall):
        if not self.built:
            self.make()
            self.built = True

    def settings(self):
        return [n for n in EFFORTS if n >= self.k]

    def use(self, setting):
        self.effort = setting


class FaissHNSW(Rival):
    def make(self):
        import faiss

        faiss.omp_set_num_threads(self.threads)
        self.index = faiss.IndexHNSWFlat(self.W.shape[1], 32)
        self.index.hnsw.efConstruction = 200
        self.index.add(self.W)

    def search(self, Q):
        self.index.hnsw.efSearch = self.effort
        return self.index.search(Q, self.k)[1]


class FaissIVF(Rival):
    """Inverted lists of the rows themselves."""

    def make(self):
        import faiss

        faiss.omp_set_num_threads(self.threads)
        d, n_lists = self.W.shape[1], int(4 * np.sqrt(len(self.W)))
        self.index = faiss.IndexIVFFlat(faiss.IndexFlatL2(d), d, n_lists)
        self.index.train(self.W)
        self.index.add(self.W)

    def settings(self):
        return [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128]

    def search(self, Q):
        self.index.nprobe = self.effort
        return self.index.search(Q, self.k)[1]


class Voyager(Rival):
    def make(self):
        import voyager

        self.index = voyager.Index(voyager.Space.Euclidean, num_dimensions=self.W.shape[1], M=24,
                                   ef_construction=200, max_elements=len(self.W))
        self.index.add_items(self.W, num_threads=self.threads)

    def search(self, Q):
        return self.index.query(Q, self.k, num_threads=self.threads, query_ef=self.effort)[0]


class Usearch(Rival):
    def make(self):
        from usearch.index import Index

        self.index = Index(ndim=self.W.shape[1], metric="l2sq", dtype="f32", connectivity=32,
                           expansion_add=200)
        self.index.add(np.arange(len(self.W)), self.W, threads=self.threads)

    def search(self, Q):
        self.index.expansion_search = self.effort
        found = self.index.search(Q, self.k, threads=self.threads)
        return np.atleast_2d(found.keys)


class SVS(Rival):
    """Vamana graph of Scalable Vector Search."""

    def make(self):
        import svs

        parameters = svs.VamanaBuildParameters(graph_max_degree=64, window_size=128, alpha=1.2)
        self.index = svs.Vamana.build(parameters, self.W, svs.DistanceType.L2, self.threads)

    def search(self, Q):
        self.index.search_window_size = self.effort
        return self.index.search(Q, self.k)[0]


RIVALS = {"faiss-hnsw": FaissHNSW, "faiss-ivf": FaissIVF, "voyager": Voyager, "usearch": Usearch,
          "svs-vamana": SVS}


def kth_distances(W, Q, k):
    """The true k-th smallest squared distance of each query, in float64."""
    kth = np.empty(len(Q))
    squares = (W.astype(np.float64)**2).sum(axis=1)
    for start in range(0, len(Q), 64):
        x = Q[start:start + 64].astype(np.float64)
        d = squares - 2 * x @ W.T.astype(np.float64) + (x**2).sum(axis=1)[:, None]
        kth[start:start + 64] = np.partition(d, k - 1, axis=1)[:, k - 1]
    return kth


def recall(W, Q, ids, kth):
    """Fraction of the k found that are at most as far as the true k-th."""
    found = W[np.asarray(ids, np.int64)].astype(np.float64) - Q[:, None, :]
    return float(((found**2).sum(axis=2) <= kth[:, None] * (1 + ROUNDING)).mean())


def measured(contender, W, halves, kth, wanted, rounds):
    """A row of the table, or None where no setting reaches the recall."""
    for setting in contender.settings():
        contender.use(setting)
        if recall(W, halves[0], contender.search(halves[0]), kth[0]) >= wanted:
            break
    else:
        return None
    Q = halves[1]
    lone, batch = [], []
    for _ in range(rounds):
        lone.append(per_call(contender.search, [Q[i:i + 1] for i in range(min(200, len(Q)))])[0])
        batch.append(per_call(contender.search, [Q])[0] / len(Q))
    return (recall(W, Q, contender.search(Q), kth[1]), 1e6 * statistics.median(lone),
            1e6 * statistics.median(batch), setting)


def main():
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("train")
    parser.add_argument("test")
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--recalls", type=float, nargs="+", default=[0.95, 0.99])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", help="names, parted by commas")
    args = parser.parse_args()

    X, _ = read_xmc(args.train)
    Q, _ = read_xmc(args.test, n_features=X.shape[1])
    W, Q = (np.ascontiguousarray(rows.toarray(), np.float32) for rows in (X, Q))
    given, Q = Q[args.queries:args.queries + 512], Q[:args.queries]
    halves = Q[:len(Q) // 2], Q[len(Q) // 2:]
    kth = [kth_distances(W, half, args.k) for half in halves]

    contenders = {"sparselsh": lambda: Ours(W, args.k, args.threads),
                  "sparselsh, queries given": lambda: Ours(W, args.k, args.threads, given)}
    contenders |= {name: lambda kind=kind: kind(W, args.k, args.threads)
                   for name, kind in RIVALS.items()}
    rows = []
    for name, make in contenders.items():
        if args.only and name not in args.only.split(","):
            continue
        contender, built = make(), None
        for wanted in args.recalls:
            try:
                with Stopwatch() as watch:
                    contender.build(wanted)
            except ImportError:
                print(f"{name}: not installed", file=sys.stderr)
                break
            if built is None or isinstance(contender, Ours):
                built = watch
            one = measured(contender, W, halves, kth, wanted, args.rounds)
            if one is None:
                rows.append((name, f"{wanted:g}", "not reached", f"{built.cpu:.2f}",
                             f"{built.wall:.2f}", "", "", ""))
                continue
            got, lone, batch, setting = one
            rows.append((name, f"{wanted:g}", f"{got:.4f}", f"{built.cpu:.2f}",
                         f"{built.wall:.2f}", f"{lone:.0f}", f"{batch:.0f}", setting or ""))
            print(*rows[-1], file=sys.stderr, flush=True)
    print(markdown_table(("", "asked", "recall", "build, CPU s", "wall s", "us alone",
                          "us in a batch", "setting"), rows))


if __name__ == "__main__":
    main()
