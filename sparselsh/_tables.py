"""Hash tables over the neurons: a hash family and its buckets."""
import copy

import numpy as np

from ._core import _buckets


class Tables:
    """Who shares buckets with whom. `slack` leaves room for neurons to move."""

    def __init__(self, family, n_neurons, n_dims, slack, rng):
        self.family = copy.copy(family).fit(n_dims, rng)  # one family may serve several indexes
        n_tables, n_buckets = family.tables, family.n_buckets
        self.slack = slack
        self.codes = np.zeros((n_neurons, n_tables), np.int32)
        self.ids = np.empty((n_tables, _buckets.capacity(n_neurons, n_buckets, slack)), np.int32)
        self.start, self.count, self.room = (np.zeros((n_tables, n_buckets), np.int32) for _ in range(3))
        self.tail = np.zeros(n_tables, np.int32)
        self._seen = np.zeros((0, n_neurons), np.uint8)
        self._keys = np.empty((0, n_neurons), np.uint64)

    def encode(self, start, V, n_threads):
        """Take the codes of neurons start .. start + len(V); `build` sorts them in."""
        self.codes[start:start + len(V)] = self.family.hash(V, n_threads=n_threads)

    def build(self, n_threads):
        """Sort all neurons into the tables."""
        _buckets.build(self.codes, self.slack, self.ids, self.start, self.count, self.room, self.tail, n_threads)

    def update(self, rows, V, n_threads):
        """Move the neurons `rows`, whose vectors now are V."""
        codes = self.family.hash(V, n_threads=n_threads)
        if self.slack:
            _buckets.move(rows, codes, self.codes, self.ids, self.start, self.count, self.room, self.tail, n_threads)
        else:
            self.codes[rows] = codes
            self.build(n_threads)

    def collide(self, Q, n_best, min_count, n_threads):
        """Ids and numbers of shared buckets of the n_best neurons for each query: (n, n_best) each."""
        codes = self.family.hash(Q, n_threads=n_threads)
        if len(self._seen) < n_threads:
            self._seen = np.zeros((n_threads, self._seen.shape[1]), np.uint8)
            self._keys = np.empty((n_threads, self._keys.shape[1]), np.uint64)
        ids, counts = np.empty((2, len(Q), n_best), np.int32)
        _buckets.collide(codes, self.ids, self.start, self.count, min_count, self._seen, self._keys, ids, counts,
                         n_threads)
        return ids, counts

    @property
    def nbytes(self):
        return sum(a.nbytes for a in (self.codes, self.ids, self.start, self.count, self.room, self.tail))
