"""What hashing costs: nanoseconds per row on one thread.

usage: python -P bench/hash_families.py [d [n]]

d dimensions, n rows (128 and 4,096), 12 tables of 14 bits, and families of similar size.
"""
import sys
import time

import numpy as np
import scipy.sparse as sp

from sparselsh._arrays.csr import from_scipy
from sparselsh._core import _simd
from sparselsh.hashing import DWTA, CrossPolytope, MinHash, SimHash


def nanoseconds(call, n_rows):
    """Nanoseconds per row of the fastest call: other processes only slow a call down."""
    best = np.inf
    for _ in range(7):
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return best / n_rows * 1e9


def main(d=128, n=4096):
    rng = np.random.default_rng(0)
    V = rng.standard_normal((n, d), dtype=np.float32)
    families = [SimHash(14, 12, kind).fit(d, 0) for kind in ("gaussian", "sparse", "orthogonal")]
    families += [CrossPolytope(2, 12, 64).fit(d, 0), DWTA(4, 12, 8).fit(d, 0),
                 MinHash(2, 12, 14).fit(d, 0)]
    wide = 100_000
    sparse = from_scipy(sp.random_array((n, wide), density=75 / wide, format="csr", rng=rng,
                                        dtype=np.float32))
    print(f"d={d}, SIMD level {_simd.level()}; ns per row on one thread")
    print(f"{'':55}{'batch':>8}{'single':>9}{'10 probes':>11}{'75 of 100000':>14}")
    for family in families:
        hashed = nanoseconds(lambda f=family: f.hash(V), n)
        one = nanoseconds(lambda f=family: [f.hash(V[i:i + 1]) for i in range(100)], 100)
        probed = ""
        if not isinstance(family, MinHash):
            probed = f"{nanoseconds(lambda f=family: f.probe(V, 10), n):.0f}"
        # these take long per row of 100,000 dimensions: fewer rows suffice
        is_slow = "orthogonal" in repr(family) or "Cross" in repr(family)
        rows = sparse.slice(0, n // 64 if is_slow else n)
        other = type(family)(**family.config()).fit(wide, 0)
        wide_rows = nanoseconds(lambda f=other, r=rows: f.hash(r), rows.shape[0])
        print(f"{family!r:55}{hashed:8.0f}{one:9.0f}{probed:>11}{wide_rows:14.0f}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
