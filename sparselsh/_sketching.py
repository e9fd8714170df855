"""Sign sketches of the neurons that can be found: a random rotation, packed signs and a factor each.

Of a trained layer few neurons are ever the best for an input, those with large norms: the inner product of a
short vector is small whatever its angle. Only neurons whose norm reaches a floor have a slot here; a scan reads
nothing of the others.
"""
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
    """n_bits signs and a factor a neuron in slots 0 .. n - 1, in no particular order, and the scan over them.

    ``ids[s]`` is the neuron in slot s, ``slot[j]`` the slot of neuron j or -1.
    """

    def __init__(self, n_bits, n_neurons, n_dims, norm_floor, rng):
        self.rotation = random_rotation(n_bits, n_dims, rng)
        self.norm_floor = norm_floor
        self.n = 0
        self.slot = np.full(n_neurons, -1, np.int32)
        self.ids = np.empty(0, np.int32)
        self.blocks = np.empty((0, n_bits // 4 * 16), np.uint8)
        self.factors = np.empty(0, np.float32)

    @classmethod
    def restored(cls, n_neurons, n_dims, norm_floor, tensors):
        """Sketches from the arrays of a file, checked: a scan trusts them."""
        rotation, ids = tensors["rotation"], tensors["ids"]
        n_bits, n_blocks = len(rotation), -(-len(ids) // _sketches.BLOCK)
        wanted = {"rotation": (np.float32, (n_bits, n_dims)), "ids": (np.int32, (len(ids),)),
                  "blocks": (np.uint8, (len(tensors["blocks"]), n_bits // 4 * 16)),
                  "factors": (np.float32, (len(tensors["blocks"]) * _sketches.BLOCK,))}
        for name, (dtype, shape) in wanted.items():
            if tensors[name].dtype != dtype or tensors[name].shape != shape:
                raise ValueError(f"{name} must be {np.dtype(dtype)} of shape {shape}, got {tensors[name].dtype} "
                                 f"{tensors[name].shape}")
        for name in ("rotation", "factors"):
            if not np.isfinite(tensors[name]).all():
                raise ValueError(f"{name} must be finite")
        bad_ids = len(ids) and (ids.min() < 0 or ids.max() >= n_neurons or len(np.unique(ids)) != len(ids))
        if n_bits % 64 or not 0 < n_bits <= 1024 or len(tensors["blocks"]) < n_blocks or bad_ids:
            raise ValueError("its sketches contradict each other")
        sketches = cls(64, n_neurons, n_dims, norm_floor, np.random.default_rng(0))
        sketches.rotation, sketches.blocks, sketches.factors = rotation, tensors["blocks"], tensors["factors"]
        sketches.n = len(ids)
        sketches.ids = _extended(ids, len(sketches.factors))
        sketches.slot[ids] = np.arange(len(ids), dtype=np.int32)
        return sketches

    def update(self, rows, V, n_threads):
        """Take the sketches of the neurons `rows` (distinct), whose vectors are V, if these are long enough."""
        squares = np.einsum("ij,ij->i", V, V)
        long = squares >= self.norm_floor**2
        self.remove(rows[~long])
        rows, V, squares = rows[long], np.ascontiguousarray(V[long]), squares[long]
        new = rows[self.slot[rows] < 0]
        self._reserve(self.n + len(new))
        self.slot[new] = np.arange(self.n, self.n + len(new), dtype=np.int32)
        self.ids[self.n:self.n + len(new)] = new
        self.n += len(new)
        rotated = matmul(V, self.rotation, n_threads, transpose_b=True)
        _sketches.pack(rotated, self.slot[rows], self.blocks)
        self.factors[self.slot[rows]] = squares / np.maximum(np.abs(rotated).sum(axis=1), np.float32(1e-30))

    def remove(self, rows):
        """Free the slots of the neurons `rows`; the last slots move into the gaps."""
        gaps = np.sort(self.slot[rows])
        gaps = gaps[gaps >= 0]
        left = self.n - len(gaps)
        self.slot[rows] = -1
        movers = np.setdiff1d(np.arange(left, self.n, dtype=np.int32), gaps, assume_unique=True)
        gaps = gaps[:len(movers)]
        _sketches.move_slots(movers, gaps, self.blocks, self.factors)
        self.ids[gaps] = self.ids[movers]
        self.slot[self.ids[gaps]] = gaps
        self.n = left

    def resize(self, n_neurons):
        """Make room for more neurons, which have no sketch yet."""
        self.slot = np.concatenate([self.slot, np.full(n_neurons - len(self.slot), -1, np.int32)])

    def _reserve(self, n):
        n_blocks = -(-n // _sketches.BLOCK)
        if n_blocks > len(self.blocks):
            n_blocks = n_blocks if not len(self.blocks) else n_blocks + n_blocks // 8
            size = n_blocks * _sketches.BLOCK
            self.blocks = _extended(self.blocks, n_blocks)
            self.factors = _extended(self.factors, size)
            self.ids = _extended(self.ids, size)

    def prepare(self, transform):
        """Take the way from an input to its rotated query, in one product: (weight, constant)."""
        back = transform.query_map_
        rotation = self.rotation if back is None else matmul(self.rotation, back, 1)
        self._query_rotation = np.ascontiguousarray(rotation[:, :-1])
        self._query_constant = np.ascontiguousarray(rotation[:, -1])
        return self

    def scan(self, X, n_best, n_threads):
        """Ids (n, n_best) of the neurons that look best for each input, in no particular order, -1 for none."""
        ids = np.empty((len(X), n_best), np.int32)
        scores = np.empty((len(X), n_best), np.float32)
        rotated = matmul(X, self._query_rotation, n_threads, transpose_b=True, bias=self._query_constant)
        _sketches.scan(rotated, self.blocks, self.factors, self.ids, self.n, ids, scores, n_threads)
        return ids

    def rank(self, X, candidates, n_best, n_threads):
        """Ids (n, n_best) of the candidates (n, m) that look best for each input, in no particular order."""
        ids = np.empty((len(X), n_best), np.int32)
        rotated = matmul(X, self._query_rotation, n_threads, transpose_b=True, bias=self._query_constant)
        _sketches.rank(rotated, candidates, self.blocks, self.factors, self.slot, ids, n_threads)
        return ids

    @property
    def nbytes(self):
        """Bytes of sketches, factors and both ways between slots and neurons."""
        return sum(a.nbytes for a in (self.blocks, self.factors, self.ids, self.slot))


def _extended(array, n):
    out = np.zeros((n, *array.shape[1:]), array.dtype)
    out[:len(array)] = array
    return out
