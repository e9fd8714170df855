"""Building, updating and querying an index of 20,000 neurons x 64, on one thread."""
import numpy as np

import sparselsh as sl

from .rivals import ratio

N_NEURONS, D, N_QUERIES, K = 20_000, 64, 200, 5


class Index:
    """The tables of training, and the sketches of search."""

    timeout = 120

    def setup(self):
        rng = np.random.default_rng(0)
        self.W = rng.standard_normal((N_NEURONS, D), np.float32)
        self.Q = rng.standard_normal((N_QUERIES, D), np.float32)
        self.rows = rng.choice(N_NEURONS, 2_000, replace=False).astype(np.int32)
        self.index = self.new().fit(self.W)
        self.index.search(self.Q, K)  # the first search makes the sketches

    def new(self):
        family = sl.SimHash(bits=9, tables=12)
        return sl.LSHIndex(family, dynamic=True, random_state=0, n_threads=1)

    def time_fit(self):
        self.new().fit(self.W)

    def time_update(self):
        self.index.update(self.W, self.rows)

    def time_query(self):
        self.index.query(self.Q, n=100)

    def time_search(self):
        self.index.search(self.Q, K)

    def track_search_ratio(self):
        def every_neuron():
            scores = self.Q @ self.W.T
            return np.argpartition(-scores, K, axis=1)[:, :K]

        return ratio(every_neuron, self.time_search)

    track_search_ratio.unit = "numpy / sparselsh"

    def track_recall(self):
        exact = np.argsort(-(self.Q @ self.W.T), axis=1)[:, :K].astype(np.int32)
        return sl.metrics.neighbour_recall(self.index.search(self.Q, K)[0], exact)

    track_recall.unit = f"recall {K}@{K}"

    def track_bytes(self):
        return self.index.nbytes

    track_bytes.unit = "bytes"
