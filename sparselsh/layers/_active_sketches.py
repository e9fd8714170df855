"""Sign sketches that rank all neurons of a hidden layer for each input, at a low cost per step.

Buckets do not work between hidden layers. The neurons with the largest outputs are at angles of 80
to 86 degrees to their input, where a bucket finds them hardly more often than others. Signs of
projections still rank them: with 128 signs, some 55 to 85 % of the true best n are among the best
4 n, and 70 to 90 % among the best 6 n (1,000 neurons, n = 75, layers 2 to 5 of a network that
learns MNIST, after 30 to 200 steps; later steps find more). Unlike in `LSHIndex`, everything is a
product with two matrices of n_bits columns, so that no n_in x n_in matrix is computed, and the cost
of a sparse input is proportional to its entries.

    neurons   v = A (w - c)         signs of R v = (w - c) P,  P = A R^T
    queries   q = A^-1 x            R q = x Q,                 Q = A^-1 R^T
    A = (S + e I)^(1/4),  S the second moment of some inputs, of low rank: S = U diag(s) U^T
    A R^T = e^(1/4) R^T + U ((s + e)^(1/4) - e^(1/4)) U^T R^T

R has orthogonal rows if there are no more of them than dimensions. e is as large as the mean
eigenvalue: with a hundredth of it, the small eigenvalues that a few hundred inputs gave by chance
made the ranking in deep layers worse.
"""
from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .._arrays import bfloat16
from .._arrays.csr import CSR
from .._arrays.linalg import matmul
from .._arrays.portable import eigh, orthonormal, row_products, standard_normal
from .._core import _sketches, _sparse_products

if TYPE_CHECKING:
    from .._arrays.types import Floats, Ids

MAX_MOMENT_INPUTS = 128  # from which S is computed; they bound its rank
FLOOR_PER_MEAN_EIGENVALUE = 1.0  # e: few inputs determine only the large eigenvalues of S
DRIFT_SAMPLE_NEURONS = 256  # that are hashed again to measure the drift
NEURONS_PER_CHUNK = 1024  # that are projected at a time


class ActiveSketches:
    """Sketches of n_neurons neurons for inputs of n_in dimensions.

    `rebuild` computes all of them, `refresh` those of changed neurons.
    """

    def __init__(self, n_bits: int, n_neurons: int, n_in: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.n_bits = n_bits
        self._R = _directions(n_in + 1, n_bits, rng)
        n_blocks = -(-n_neurons // _sketches.NEURONS_PER_BLOCK)
        self._blocks = np.zeros((n_blocks, n_bits // 4 * 16), np.uint8)
        self._factors = np.zeros(len(self._blocks) * _sketches.NEURONS_PER_BLOCK, np.float32)
        self._ids = np.arange(n_neurons, dtype=np.int32)
        sample = rng.permutation(n_neurons)[:DRIFT_SAMPLE_NEURONS]
        self._sample = np.sort(sample).astype(np.int32)

    def rebuild(self, W: np.ndarray, bias: Floats, inputs: Floats, n_threads: int) -> None:
        """Hash all neurons, with the mean neuron and the second moment as they are now."""
        self._W, self._bias = W, bias  # by reference; W float32 or bfloat16
        self._P, Q = self._maps(inputs, n_threads)
        self._Q, self._constant = np.ascontiguousarray(Q[:-1]), np.ascontiguousarray(Q[-1])

        self._shift = np.zeros(self.n_bits, np.float32)
        rotated = self._rotated(self._ids, n_threads)
        self._shift = rotated.mean(axis=0)  # the projection of the mean neuron
        rotated -= self._shift
        self._take(self._ids, rotated)
        self._signs = rotated[self._sample] > 0

    def rebuild_macs(self, n_inputs: int) -> int:
        """Multiply-adds of `rebuild`: projections, S, its eigenvectors (5 r^3) and the two maps."""
        r, (n_in, n_bits) = min(n_inputs, MAX_MOMENT_INPUTS), self._R.shape
        return len(self._ids) * n_in * n_bits + 2 * r * r * n_in + 5 * r**3 + 3 * r * n_in * n_bits

    def _maps(self, inputs: Floats, n_threads: int) -> tuple[Floats, Floats]:
        """P and Q, (n_in + 1, n_bits) each, from the last inputs."""
        X = np.ones((min(len(inputs), MAX_MOMENT_INPUTS), len(self._R)), np.float32)
        X[:, :-1] = inputs[-len(X):] if len(X) else 0
        if not len(X):
            return self._R, self._R
        gram = matmul(X, X, n_threads, transpose_b=True).astype(np.float64) / len(X)
        if not np.isfinite(gram).all():  # training has diverged, which its loss shows
            return self._R, self._R

        values, vectors = eigh(gram)
        keep = values > 1e-6 * max(values[-1], 1e-30)
        values, vectors = values[keep], vectors[:, keep]
        floor = FLOOR_PER_MEAN_EIGENVALUE * values.sum() / len(self._R)

        scaled = np.ascontiguousarray(vectors / np.sqrt(values * len(X)), np.float32)
        U = matmul(X, scaled, n_threads, transpose_a=True)
        on_U = matmul(U, self._R, n_threads, transpose_a=True)
        root = np.sqrt(np.sqrt((values + floor) / floor))  # relative to that of e, a common factor
        return (self._mapped(U, on_U, root, n_threads), self._mapped(U, on_U, 1 / root, n_threads))

    def _mapped(self, U: Floats, on_U: Floats, factors: np.ndarray, n_threads: int) -> Floats:
        gain = (factors - 1).astype(np.float32)
        return self._R + matmul(U, gain[:, None] * on_U, n_threads)

    def _rotated(self, rows: Ids, n_threads: int) -> Floats:
        out = np.empty((len(rows), self.n_bits), np.float32)
        for start in range(0, len(rows), NEURONS_PER_CHUNK):
            stop = start + NEURONS_PER_CHUNK
            part = bfloat16.as_float32(self._W[rows[start:stop]])
            matmul(part, self._P[:-1], n_threads, out=out[start:stop])
        out += np.multiply.outer(self._bias[rows], self._P[-1])
        out -= self._shift
        return out

    def refresh(self, rows: Ids, n_threads: int) -> None:
        """Hash the neurons `rows` again, which have changed, under the maps of the last rebuild."""
        self._take(rows, self._rotated(rows, n_threads))

    def _take(self, rows: Ids, rotated: Floats) -> None:
        _sketches.pack(rotated, rows, self._blocks)
        # |v|^2 is that of the projection, up to a common factor
        self._factors[rows] = (row_products(rotated, rotated)
                               / np.maximum(np.abs(rotated).sum(axis=1), np.float32(1e-30)))

    def drift(self, n_threads: int) -> float:
        """Fraction of the bits of a sample of neurons that have changed since the last rebuild."""
        return float(((self._rotated(self._sample, n_threads) > 0) != self._signs).mean())

    def best(self, x: Floats | CSR, n: int, n_threads: int) -> Ids:
        """Ids (n_samples, n) of the neurons with the largest estimates per input, in no order."""
        if isinstance(x, CSR):
            q = np.empty((x.shape[0], self.n_bits), np.float32)
            _sparse_products.weighted_rows(x.indptr, x.indices, x.data, self._Q, self._constant, q,
                                           n_threads)
        else:
            q = matmul(x, self._Q, n_threads, bias=self._constant)

        ids, scores = np.empty((len(q), n), np.int32), np.empty((len(q), n), np.float32)
        _sketches.scan(q, self._blocks, self._factors, None, self._ids, len(self._ids), ids, scores,
                       n_threads)
        return ids

    def rebind_weights(self, W: np.ndarray, bias: Floats) -> None:
        """Read these arrays from now on, which hold the same weights in another place."""
        self._W, self._bias = W, bias

    def tensors(self) -> dict[str, np.ndarray]:
        """The arrays of a file; the directions follow from the seed."""
        return {"P": self._P, "Q": self._Q, "constant": self._constant, "shift": self._shift,
                "blocks": self._blocks, "factors": self._factors,
                "signs": self._signs.astype(np.uint8)}

    def restore(self, W: np.ndarray, bias: Floats, tensors: dict[str, np.ndarray]) -> None:
        """Take what `tensors` gave; it is checked, because a scan does not check it."""
        n_in, n_bits = len(self._R) - 1, self.n_bits
        wanted = {"P": (np.float32, (n_in + 1, n_bits)), "Q": (np.float32, (n_in, n_bits)),
                  "constant": (np.float32, (n_bits,)), "shift": (np.float32, (n_bits,)),
                  "blocks": (np.uint8, self._blocks.shape),
                  "factors": (np.float32, self._factors.shape),
                  "signs": (np.uint8, (len(self._sample), n_bits))}
        for name, (dtype, shape) in wanted.items():
            array = tensors[name]
            if array.dtype != dtype or array.shape != shape or not np.isfinite(array).all():
                raise ValueError(f"{name} must be finite {np.dtype(dtype)} of shape {shape}, "
                                 f"got {array.dtype} {array.shape}")
            setattr(self, f"_{name}", np.array(array, order="C"))
        self._signs = self._signs.astype(bool)
        self.rebind_weights(W, bias)

    @property
    def nbytes(self) -> int:
        """Bytes of sketches and maps."""
        return sum(a.nbytes for a in (self._R, self._P, self._Q, self._blocks, self._factors))


def _directions(n_in: int, n_bits: int, rng: np.random.Generator) -> Floats:
    """(n_in, n_bits): random directions, orthogonal in groups of n_in, so that no two agree."""
    parts = []
    for start in range(0, n_bits, n_in):
        part = standard_normal(rng, (n_in, min(n_in, n_bits - start)))
        parts.append(orthonormal(part) * np.float32(np.sqrt(n_in)))
    return np.ascontiguousarray(np.concatenate(parts, axis=1))
