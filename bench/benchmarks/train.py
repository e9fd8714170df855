"""Training a small network, on one thread: 5,000 rows, 10,000 classes, by density."""
import time

import numpy as np
import scipy.sparse as sp

import sparselsh as sl

N, N_FEATURES, N_CLASSES, HIDDEN = 5_000, 20_000, 10_000, 64


class Train:
    """An epoch of training, and inference."""

    params = ("auto", 0.1, 1.0)
    param_names = ("density",)
    timeout = 300

    def setup(self, density):
        self.X = sp.random(N, N_FEATURES, density=50 / N_FEATURES, format="csr", random_state=0,
                           dtype=np.float32)
        self.y = np.random.default_rng(0).integers(0, N_CLASSES, N)
        self.net = self.new(density)
        self.net.fit(self.X, self.y, epochs=1, verbose=False)
        self.net.topk(self.X[:1])

    def new(self, density):
        return sl.Network([sl.Linear(N_FEATURES, HIDDEN),
                           sl.LSHLinear(HIDDEN, N_CLASSES, density=density)],
                          random_state=0, n_threads=1)

    def track_epoch(self, density):
        net = self.new(density)
        start = time.process_time()
        net.fit(self.X, self.y, epochs=1, verbose=False)
        return time.process_time() - start

    track_epoch.unit = "CPU seconds"

    def time_topk(self, density):
        self.net.topk(self.X[:1000])

    def time_one_query(self, density):
        self.net.topk(self.X[:1])
