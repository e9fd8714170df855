"""sparselsh: the index swept like its rivals, as `fit` sets it up, and its own exact search."""
import statistics
import time

import numpy as np

import sparselsh as sl
from sparselsh.index import Bounds, default_family

from .contender import Contender

RECALLS = (0.6, 0.7, 0.8, 0.85, 0.88, 0.9, 0.91, 0.92, 0.93, 0.94, 0.95, 0.96, 0.97, 0.98, 0.985,
           0.99, 0.995, 0.998)


class Swept(Contender):
    """LSHIndex fitted for a recall, and searched with the bounds of others.

    The target also determines the norm floor of the index, so there is one index per target.
    """

    package = "sparselsh"

    def __init__(self, name, threads, k, target):
        super().__init__(name, "layer", threads, k)
        self.target = target

    def build(self, layer):
        self.n = len(layer.W)
        self.index = sl.LSHIndex(recall=self.target, random_state=0, n_threads=self.threads)
        self.index.fit(layer.W, layer.bias, layer.H)
        report = self.index.report()
        plans = ", ".join(f"{kind}: {plan['use']}" for kind, plan in report["plan"].items())
        self.note = (f"scaling {report['scaling']}, {report['sketch_bits']} bits, "
                     f"{report['n_sketched']} neurons sketched, {report['n_computed']:.0f} computed"
                     f", {plans}")
        self.queries = layer.H[:256]

    def settings(self):
        return [{"recall": recall} for recall in RECALLS]

    def use(self, setting):
        engine = self.index._engine
        engine.methods = {"single": "sketches", "batch": "sketches"}
        engine.sketches.set_bounds(Bounds.of_recall(setting["recall"]))

    def search_one(self, q):
        return self.index.search(q[None], self.k)[0][0]

    def search_batch(self, Q):
        return self.index.search(Q, self.k)[0]

    def bytes_beside_weights(self, path, n, d):
        return self.index.nbytes / n  # the weights are kept by reference

    def fraction_computed(self, setting):
        self.use(setting)
        counts = self.index._engine.by_bound(self.queries, self.k, self.threads)[2]
        return float(counts[:, 0].mean()) / self.n


class Own(Swept):
    """As `fit` sets it up on the calibration queries: its plan and its bounds."""

    same_in_batches = False  # the plan may be exact for one of them

    def settings(self):
        return [{"recall": None}]

    def use(self, setting):
        pass

    def fraction_computed(self, setting):
        plan = self.index.report()["plan"]
        fraction = super().fraction_computed(setting)
        fractions = [1.0 if plan[kind]["use"] == "exact" else fraction
                     for kind in ("single", "batch")]
        return fractions[0] if fractions[0] == fractions[1] else tuple(fractions)


class OwnExact(Contender):
    """`LSHIndex(plan="exact")`: every inner product, by our kernels."""

    package = "sparselsh"

    def build(self, layer):
        index = sl.LSHIndex(plan="exact", random_state=0, n_threads=self.threads)
        self.index = index.fit(layer.W, layer.bias)

    def settings(self):
        return [{}]

    def use(self, setting):
        pass

    def search_one(self, q):
        return self.index.search(q[None], self.k)[0][0]

    def search_batch(self, Q):
        return self.index.search(Q, self.k)[0]

    def fraction_computed(self, setting):
        return 1.0


def make(threads, k, targets):
    contenders = [OwnExact("exact (sparselsh)", "layer", threads, k)]
    for target in targets:
        contenders += [Swept(f"sparselsh {target:g}", threads, k, target),
                       Own(f"sparselsh {target:g} own setting", threads, k, target)]
    return contenders


GROUPS = {"sparselsh": make}


def rehash(layer, threads, n_rows=3000, repeats=10):
    """Median CPU milliseconds of `LSHIndex.update` for rows that moved a little.

    With sketches alone, with the tables of training, and with both.
    """
    rng = np.random.default_rng(0)
    n_rows = min(n_rows, len(layer.W))
    family = default_family(len(layer.W))
    kinds = {"sketches": {},
             "sketches and tables": {"family": family, "dynamic": True},
             "tables": {"family": family, "dynamic": True, "sketch_bits": 0}}
    spent = {}
    for name, options in kinds.items():
        W = layer.W.copy()
        index = sl.LSHIndex(random_state=0, n_threads=threads, **options)
        index.fit(W, layer.bias, layer.H)
        times = []
        for _ in range(repeats + 1):
            rows = rng.choice(len(W), n_rows, replace=False).astype(np.int32)
            noise = rng.standard_normal((n_rows, W.shape[1]), dtype=np.float32)
            W[rows] += 0.1 * W.std() * noise
            begin = time.process_time()
            index.update(W, rows)
            times.append(time.process_time() - begin)
        spent[name] = statistics.median(times[1:]) * 1e3
    return {"rows": n_rows, "cpu_ms": spent}
