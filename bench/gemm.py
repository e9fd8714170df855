"""Speed of the products of a training step on one thread.

usage: python -P bench/gemm.py [REPEATS [CALLS]]

First dense products: the library's own and NumPy's BLAS, in turns. Then the three products with
the active rows of an output layer, in float32 and with factors in bfloat16, in turns; the update is
one of SGD. bench/peak.c prints what a core can do at most.
"""
import os

# NumPy's BLAS reads this when it is loaded
os.environ["OPENBLAS_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"

import statistics
import sys
import time

import numpy as np

from sparselsh._arrays.linalg import matmul
from sparselsh._core import _gemm, _simd, _updates

# samples, active neurons and hidden units: the forward product of an output layer in training
SHAPES = [(256, 4096, 128), (256, 4096, 256), (1024, 1024, 1024)]
N_NEURONS = 20_000


def seconds(product, n_calls):
    start = time.process_time()
    for _ in range(n_calls):
        product()
    return (time.process_time() - start) / n_calls


def medians(products, repeats, n_calls):
    """Median seconds of each call, in turns, so that all meet the same state of the machine."""
    spent = {name: [] for name in products}
    for _ in range(repeats):
        for name, product in products.items():
            spent[name].append(seconds(product, n_calls))
    return {name: statistics.median(times) for name, times in spent.items()}


def dense_products(rng, repeats, n_calls):
    for m, n, k in SHAPES:
        a, b = rng.standard_normal((m, k), np.float32), rng.standard_normal((n, k), np.float32)
        out = np.empty((m, n), np.float32)
        products = {
            f"sparselsh at {_simd.level()}":
                lambda a=a, b=b, out=out: matmul(a, b, 1, transpose_b=True, out=out),
            "in bfloat16": lambda a=a, b=b, out=out: matmul(a, b, 1, transpose_b=True, out=out,
                                                            in_bfloat16=True),
            "numpy": lambda a=a, b=b, out=out: np.matmul(a, b.T, out=out),
        }
        for name, time_ in medians(products, repeats, n_calls).items():
            print(f"{m} x {k} times {k} x {n}: {name:<20} {2e-9 * m * n * k / time_:6.1f} GF/s")


def active_products(rng, repeats, n_calls):
    """Name and call(in_bfloat16) of each product, for the shapes of a training."""
    rule = _updates.sgd(1e-9, 0.0, False, 0.0)
    bias = np.zeros(N_NEURONS, np.float32)
    for n, n_active, d in SHAPES[:2]:
        w = rng.standard_normal((N_NEURONS, d), np.float32)
        rows = np.sort(rng.permutation(N_NEURONS)[:n_active]).astype(np.int32)
        x, dz = rng.standard_normal((n, d), np.float32), rng.standard_normal((n, n_active),
                                                                             np.float32)
        z, dx = np.empty_like(dz), np.empty_like(x)
        calls = {
            "active_outputs": (_gemm.active_outputs, (x, w, rows, bias, z)),
            "active_input_gradient": (_gemm.active_input_gradient, (dz, w, rows, dx)),
            "active_update": (_gemm.active_update, (rule, w, None, None, rows, dz, x)),
        }
        for name, (kernel, arguments) in calls.items():
            products = {dtype: lambda kernel=kernel, a=arguments, half=half: kernel(*a, 1, half)
                        for dtype, half in (("float32", False), ("bfloat16", True))}
            times = medians(products, repeats, n_calls)
            rates = [2e-9 * n * n_active * d / times[dtype] for dtype in ("float32", "bfloat16")]
            print(f"{n} x {d}, {n_active} active: {name:<22} {rates[0]:6.1f} GF/s in float32, "
                  f"{rates[1]:6.1f} in bfloat16, {rates[1] / rates[0]:.2f} times")


def main(repeats=15, n_calls=20):
    rng = np.random.default_rng(0)
    dense_products(rng, repeats, n_calls)
    active_products(rng, repeats, n_calls)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
