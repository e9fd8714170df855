"""Trains small networks and prints a digest of each: for tests/test_reproducible.py."""
import hashlib
import json
import sys

import numpy as np
import scipy.sparse as sp

import sparselsh as sl

N_ROWS, N_FEATURES, N_LABELS = 400, 300, 90
N_MANY = 4200  # labels: from 4,096 on `topk` searches by an index


def digest(*arrays):
    state = hashlib.sha256()
    for array in arrays:
        state.update(np.ascontiguousarray(array).tobytes())
    return state.hexdigest()[:16]


def data():
    rng = np.random.default_rng(7)
    dense = rng.random((N_ROWS, N_FEATURES), dtype=np.float32)
    dense[rng.random(dense.shape) < 0.9] = 0
    labels = (rng.random((N_ROWS, N_LABELS)) < 0.02).astype(np.float32)
    labels[np.arange(N_ROWS), rng.integers(0, N_LABELS, N_ROWS)] = 1
    return sp.csr_array(dense), sp.csr_array(labels)


def layers(active=None, density=0.3, dtype="float32", **options):
    return [sl.Linear(N_FEATURES, 48, activation="relu", dtype=dtype),
            sl.LSHLinear(48, N_LABELS, active=active, density=density, dtype=dtype, **options)]


def deep_layers():
    hidden = sl.LSHLinear(64, 80, density=0.2, activation="relu")
    return [sl.Linear(N_FEATURES, 64, activation="relu"), hidden, sl.Linear(80, N_LABELS)]


CASES = {
    "softmax, shared sets": lambda: (layers(), {}, sl.Adam(5e-3)),
    "softmax, a set per sample": lambda: (layers("sample"), {}, sl.Adam(5e-3, schedule="cosine")),
    "bce, clipped": lambda: (layers(), {"loss": "bce"}, sl.Adam(5e-3, clip_norm=0.5)),
    "mse": lambda: (layers(), {"loss": "mse"}, sl.Adam(5e-3)),
    "all outputs, momentum": lambda: (layers(density=1), {}, sl.SGD(
        0.5, momentum=0.9, schedule=sl.schedules.OneCycle())),
    "one moment per row": lambda: (layers(), {}, sl.Adam(5e-3, second_moment="row")),
    "products in bfloat16": lambda: (
        layers(), {"compute_dtype": "bfloat16"}, sl.Adam(5e-3)),
    "weights in bfloat16": lambda: (
        layers(dtype="bfloat16"), {}, sl.Adam(5e-3, state_dtype="bfloat16")),
    "cross-polytopes": lambda: (
        layers("sample", family=sl.CrossPolytope(polytopes=1, tables=6, dims=16)), {},
        sl.Adam(5e-3)),
    "Gaussian planes": lambda: (
        layers("sample", family=sl.SimHash(bits=5, tables=6, projection="gaussian")), {},
        sl.Adam(5e-3)),
    "DWTA": lambda: (
        layers("sample", family=sl.DWTA(bins=2, tables=6, bin_size=8)), {}, sl.Adam(5e-3)),
    "orthogonal planes, by score": lambda: (
        layers("sample", policy="score", family=sl.SimHash(
            bits=5, tables=6, projection="orthogonal")), {}, sl.Adam(5e-3)),
    "sparse planes, vanilla": lambda: (
        layers("sample", policy="vanilla", family=sl.SimHash(
            bits=5, tables=6, projection="sparse")), {}, sl.Adam(5e-3, schedule="linear")),
    "MinHash": lambda: (
        layers("sample", family=sl.MinHash(hashes=2, tables=6)), {},
        sl.SGD(0.5, momentum=0.9, nesterov=True)),
    "many labels": lambda: (
        [sl.Linear(N_FEATURES, 48, activation="relu"), sl.LSHLinear(48, N_MANY, density=0.1)], {},
        sl.Adam(5e-3)),
    "dense rows": lambda: (
        layers(), {}, sl.Adam(5e-3, schedule=sl.schedules.Step(at=(0.3, 0.6)))),
    "hidden sketches": lambda: (deep_layers(), {}, sl.Adam(5e-3)),
}


def results(name, n_threads):
    """Digests of weights, losses, predictions and probabilities of one training."""
    parts, options, optimizer = CASES[name]()
    X, Y = data()
    if parts[-1].n_out == N_MANY:
        Y = sp.csr_array((Y.data, Y.indices * 46, Y.indptr), shape=(N_ROWS, N_MANY))
    net = sl.Network(parts, random_state=3, n_threads=n_threads, **options)
    if name == "dense rows":
        X = X.toarray()
    if name == "all outputs, momentum":  # from the data instead of random weights
        net.initialize(X, Y)
    net.fit(X, Y, optimizer=optimizer, epochs=3, batch_size=100, verbose=False)
    found = {"weights": digest(*net.get_weights()),
             "losses": digest([entry["loss"] for entry in net.history]),
             "scores": digest(net.decision_function(X[:50])),
             "best": digest(*net.topk(X[:50], 5, exact=True)),
             "searched": digest(*net.topk(X[:50], 5))}
    if options.get("loss") != "mse":
        found["probabilities"] = digest(net.predict_proba(X[:50]), net.predict(X[:50]))
    if name == "bce, clipped":
        net.refine(X, Y, verbose=False)
        found["refined"] = digest(*net.topk(X[:50], 5, exact=True))
    return found


if __name__ == "__main__":
    threads = int(sys.argv[1])
    print(json.dumps({name: results(name, threads) for name in sys.argv[2:] or CASES}))
