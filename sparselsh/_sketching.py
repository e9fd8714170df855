"""Sign sketches of the neurons: a random rotation, packed signs and a factor each."""
import numpy as np

from ._core import _sketches
from ._linalg import matmul


def random_rotation(n_bits, n_dims, rng):
    """Rows of random orthogonal matrices, (n_bits, n_dims): as many matrices as n_bits needs."""
    blocks = []
    for _ in range(-(-n_bits // n_dims)):
        q, r = np.linalg.qr(rng.standard_normal((n_dims, n_dims)))
        blocks.append(q * np.sign(np.diag(r)))  # the signs make the distribution uniform (Haar)
    return np.concatenate(blocks)[:n_bits].astype(np.float32)


class Sketches:
    """n_bits signs a neuron, and the scan that ranks all neurons by them."""

    def __init__(self, n_bits, n_neurons, n_dims, rng):
        self.n_neurons = n_neurons
        self.rotation = random_rotation(n_bits, n_dims, rng)
        n_blocks = -(-n_neurons // _sketches.BLOCK)
        self.blocks = np.zeros((n_blocks, n_bits // 4 * 16), np.uint8)
        self.factors = np.zeros(n_blocks * _sketches.BLOCK, np.float32)

    def update(self, rows, V, n_threads):
        """Take the sketches of the neurons `rows`, whose vectors are V."""
        rotated = matmul(V, self.rotation, n_threads, transpose_b=True)
        _sketches.pack(rotated, rows, self.blocks)
        along = np.abs(rotated).sum(axis=1)
        self.factors[rows] = np.einsum("ij,ij->i", V, V) / np.maximum(along, np.float32(1e-30))

    def scan(self, Q, n_best, n_threads):
        """Ids (n, n_best) of the neurons that look best for each query, in no particular order, -1 for none."""
        ids = np.full((len(Q), n_best), -1, np.int32)
        scores = np.empty((len(Q), n_best), np.float32)
        rotated = matmul(Q, self.rotation, n_threads, transpose_b=True)
        _sketches.scan(rotated, self.blocks, self.factors, self.n_neurons, ids, scores, n_threads)
        return ids, scores

    @property
    def nbytes(self):
        return self.blocks.nbytes + self.factors.nbytes
