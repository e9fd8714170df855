"""What locks, held signals and steps that can be undone cost: the least of many measurements.

usage: python -P bench/guards.py

The network has 20,000 sparse inputs, 128 hidden units and 20,000 labels, and is trained on rows
from which labels follow, as the time of single queries depends on that. One thread.
"""
import time

import numpy as np
import scipy.sparse as sp

import sparselsh as sl
from sparselsh import _signals, _threads
from sparselsh import _validation as check
from sparselsh._arrays.csr import CSR
from sparselsh.training import _attempt

N, N_HIDDEN, BATCH, N_ROWS = 20_000, 128, 256, 20_000  # N features, N labels


class Locked:
    """An object whose only method does nothing, with its lock and without."""

    def __init__(self):
        self._lock = _threads.Lock()

    def _begin_call(self):
        pass

    def plain(self):
        """Do nothing."""

    locked = _threads.one_at_a_time(plain)


def least(call, n=20_000):
    """Microseconds of the quickest of n calls."""
    best = np.inf
    for _ in range(n):
        begin = time.perf_counter_ns()
        call()
        best = min(best, time.perf_counter_ns() - begin)
    return best / 1000


def rows():
    """Rows with twelve features of each of two labels, and twenty that mean nothing."""
    rng = np.random.default_rng(0)
    features, Y = rng.integers(0, N, (N, 12)), rng.integers(0, N, (N_ROWS, 2))
    columns = np.concatenate([features[Y].reshape(N_ROWS, -1), rng.integers(0, N, (N_ROWS, 20))],
                             axis=1)
    return [sp.csr_array((np.ones(ids.size, np.float32),
                          (np.repeat(np.arange(N_ROWS), ids.shape[1]), ids.ravel())), (N_ROWS, N))
            for ids in (columns, Y)]


def main():
    """Print what guards take, and what a query and a step take."""
    object_ = Locked()
    nothing = least(object_.plain)
    print(f"a lock: {least(object_.locked) - nothing:.2f} us")
    with _signals.Interrupts() as interrupts:
        interrupts.release()

        def hold():
            with interrupts.held():
                pass

        print(f"holding signals back: {least(hold) - nothing:.2f} us")

    X, Y = rows()
    net = sl.Network([sl.Linear(N, N_HIDDEN, activation="relu"),
                      sl.LSHLinear(N_HIDDEN, N, density=0.05)], random_state=0, n_threads=1)
    net.fit(X, Y, epochs=2, batch_size=BATCH, optimizer=sl.Adam(3e-3), verbose=False)
    kept = least(lambda: _attempt.Attempt(net.layers, 0.0, 1, None)) - nothing
    print(f"what a step keeps for undoing it: {kept:.2f} us")

    each = [least(lambda x=X[[i]]: net.topk(x, 5), 50) for i in range(100)]
    print(f"Network.topk of one row: {np.median(each):.0f} us")
    x, y = check.matrix(X[:BATCH], n_columns=N), Y[:BATCH]
    y = CSR(y.indptr.astype(np.int64), y.indices.astype(np.int32), y.data, N)
    step = least(lambda: net._training.step(x, y, 0.5, None, 1), 10)
    print(f"a step of {BATCH} rows: {step:,.0f} us")


if __name__ == "__main__":
    main()
