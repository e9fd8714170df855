"""The kernels of a training step, on one thread.

256 samples, 128 hidden units, 2,048 of 20,000 neurons active.
"""
import numpy as np
import scipy.sparse as sp

from sparselsh._arrays.linalg import NO_BIAS, matmul
from sparselsh._core import _gemm, _select, _sparse_products, _updates

from .rivals import ratio

N, D, N_ACTIVE, N_NEURONS = 256, 128, 2048, 20_000


class BatchActive:
    """Products with the rows of an active set, and their update."""

    def setup(self):
        rng = np.random.default_rng(0)
        self.x = rng.standard_normal((N, D), np.float32)
        self.w = rng.standard_normal((N_NEURONS, D), np.float32)
        self.m, self.v = np.zeros((2, N_NEURONS, D), np.float32)
        self.rows = np.sort(rng.choice(N_NEURONS, N_ACTIVE, replace=False)).astype(np.int32)
        self.bias = np.zeros(N_NEURONS, np.float32)
        self.z = np.empty((N, N_ACTIVE), np.float32)
        self.dz = rng.standard_normal((N, N_ACTIVE), np.float32)
        self.dx = np.empty((N, D), np.float32)

    def time_outputs(self):
        _gemm.active_outputs(self.x, self.w, self.rows, self.bias, self.z, 1)

    def time_input_gradient(self):
        _gemm.active_input_gradient(self.dz, self.w, self.rows, self.dx, 1)

    def time_update(self):
        rule = _updates.adam(1e-3, 0.9, 0.999, 1e-8, 0.0, 1)
        _gemm.active_update(rule, self.w, self.m, self.v, self.rows, self.dz, self.x, 1)

    def track_outputs_ratio(self):
        return ratio(lambda: np.matmul(self.x, self.w[self.rows].T, out=self.z), self.time_outputs)

    track_outputs_ratio.unit = "numpy / sparselsh"


class Matmul:
    """Dense products."""

    def setup(self):
        rng = np.random.default_rng(0)
        self.a = rng.standard_normal((N, D), np.float32)
        self.b = rng.standard_normal((N_ACTIVE, D), np.float32)
        self.out = np.empty((N, N_ACTIVE), np.float32)

    def time_matmul(self):
        matmul(self.a, self.b, 1, transpose_b=True, out=self.out)

    def track_matmul_ratio(self):
        return ratio(lambda: np.matmul(self.a, self.b.T, out=self.out), self.time_matmul)

    track_matmul_ratio.unit = "numpy / sparselsh"


class SparseInput:
    """The first layer: rows of 80 features."""

    def setup(self):
        rng = np.random.default_rng(0)
        self.X = sp.random(N, N_NEURONS, density=80 / N_NEURONS, format="csr", random_state=0,
                           dtype=np.float32)
        self.X.sort_indices()
        self.indptr, self.indices = self.X.indptr.astype(np.int64), self.X.indices.astype(np.int32)
        self.w = rng.standard_normal((N_NEURONS, D), np.float32)
        self.out = np.empty((N, D), np.float32)

    def time_forward(self):
        _sparse_products.weighted_rows(self.indptr, self.indices, self.X.data, self.w, NO_BIAS,
                                       self.out,
                                1)

    def track_forward_ratio(self):
        return ratio(lambda: self.X @ self.w, self.time_forward)

    track_forward_ratio.unit = "scipy / sparselsh"


class TopK:
    """The five largest of a row of 20,000."""

    def setup(self):
        self.scores = np.random.default_rng(0).standard_normal((N, N_NEURONS), np.float32)
        self.ids, self.best = np.empty((N, 5), np.int32), np.empty((N, 5), np.float32)

    def time_top_k(self):
        _select.top_k(self.scores, None, self.ids, self.best, 1)

    def track_top_k_ratio(self):
        return ratio(lambda: np.argpartition(-self.scores, 5, axis=1)[:, :5], self.time_top_k)

    track_top_k_ratio.unit = "numpy / sparselsh"
