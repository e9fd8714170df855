"""sparselsh: the index swept like its rivals, as it sets itself up, and its own exact search."""
import statistics
import time

import numpy as np

import sparselsh as sl

from .contender import Contender, powers


class Swept(Contender):
    """LSHIndex fitted for a recall, `n_candidates` swept.

    What `fit` was told shows in the norm floor too, so there is one index for each target.
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
        self.note = (f"scaling {report['scaling']}, {report['sketch_bits']} bits, {report['n_sketched']} neurons "
                     f"sketched, own n_candidates {report['n_candidates']}, {plans}")

    def settings(self):
        return [{"n_candidates": n} for n in powers(max(16, self.k), min(self.n, 4096), 1.25)]

    def use(self, setting):
        self.n_candidates = setting["n_candidates"]

    def search_one(self, q):
        return self.index.search(q[None], self.k, n_candidates=self.n_candidates)[0][0]

    def search_batch(self, Q):
        return self.index.search(Q, self.k, n_candidates=self.n_candidates)[0]

    def bytes_beside_weights(self, path, n, d):
        return self.index.nbytes / n  # the weights are kept by reference

    def share_computed(self, setting):
        return min(1.0, setting["n_candidates"] / self.n)


class Own(Swept):
    """As `fit` sets it up on the calibration queries: its plan, its n_candidates."""

    same_in_batches = False  # the plan may be exact for one of them

    def settings(self):
        return [{"n_candidates": None}]

    def share_computed(self, setting):
        plan = self.index.report()["plan"]
        share = self.index.default_candidates(self.k) / self.n
        shares = [1.0 if plan[kind]["use"] == "exact" else share for kind in ("single", "batch")]
        return shares[0] if shares[0] == shares[1] else tuple(shares)


class OwnExact(Contender):
    """`LSHIndex(plan="exact")`: every inner product, by our kernels."""

    package = "sparselsh"

    def build(self, layer):
        self.index = sl.LSHIndex(plan="exact", random_state=0, n_threads=self.threads).fit(layer.W, layer.bias)

    def settings(self):
        return [{}]

    def use(self, setting):
        pass

    def search_one(self, q):
        return self.index.search(q[None], self.k)[0][0]

    def search_batch(self, Q):
        return self.index.search(Q, self.k)[0]

    def share_computed(self, setting):
        return 1.0


def make(threads, k, targets):
    contenders = [OwnExact("exact (sparselsh)", "layer", threads, k)]
    for target in targets:
        contenders += [Swept(f"sparselsh {target:g}", threads, k, target),
                       Own(f"sparselsh {target:g} own setting", threads, k, target)]
    return contenders


GROUPS = {"sparselsh": make}


def rehash(layer, threads, n_rows=3000, repeats=10):
    """CPU milliseconds (median) that `update` takes for rows that moved a little: by what the index holds."""
    rng = np.random.default_rng(0)
    n_rows = min(n_rows, len(layer.W))
    from sparselsh.index._table_choice import default_family

    kinds = {"sketches": {}, "sketches and tables": {"family": default_family(len(layer.W)), "dynamic": True},
             "tables": {"family": default_family(len(layer.W)), "dynamic": True, "sketch_bits": 0}}
    spent = {}
    for name, options in kinds.items():
        W = layer.W.copy()
        index = sl.LSHIndex(random_state=0, n_threads=threads, **options).fit(W, layer.bias, layer.H)
        times = []
        for _ in range(repeats + 1):
            rows = rng.choice(len(W), n_rows, replace=False).astype(np.int32)
            W[rows] += 0.1 * W.std() * rng.standard_normal((n_rows, W.shape[1]), dtype=np.float32)
            begin = time.process_time()
            index.update(W, rows)
            times.append(time.process_time() - begin)
        spent[name] = statistics.median(times[1:]) * 1e3
    return {"rows": n_rows, "cpu_ms": spent}
