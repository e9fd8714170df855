"""Speed of dense matrix products on one thread: the library's own and NumPy's BLAS, in turns.

usage: python -P bench/gemm.py [REPEATS]
"""
import os

# NumPy's BLAS reads this when it is loaded
os.environ["OPENBLAS_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"

import statistics
import sys
import time

import numpy as np

from sparselsh._arrays.linalg import matmul
from sparselsh._core import _simd

# samples, active neurons and hidden units: the forward product of an output layer in training
SHAPES = [(256, 4096, 128), (256, 4096, 256), (1024, 1024, 1024)]


def seconds(product, n_calls):
    start = time.process_time()
    for _ in range(n_calls):
        product()
    return (time.process_time() - start) / n_calls


def main(repeats=15):
    rng = np.random.default_rng(0)
    for m, n, k in SHAPES:
        a, b = rng.standard_normal((m, k), np.float32), rng.standard_normal((n, k), np.float32)
        out = np.empty((m, n), np.float32)
        products = {
            f"sparselsh at {_simd.level()}":
                lambda a=a, b=b, out=out: matmul(a, b, 1, transpose_b=True, out=out),
            "numpy": lambda a=a, b=b, out=out: np.matmul(a, b.T, out=out),
        }
        spent = {name: [] for name in products}
        for _ in range(repeats):  # in turns, so that both meet the same state of a shared machine
            for name, product in products.items():
                spent[name].append(seconds(product, 20))
        for name, times in spent.items():
            rate = 2e-9 * m * n * k / statistics.median(times)
            print(f"{m} x {k} times {k} x {n}: {name:<20} {rate:6.1f} GF/s")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
