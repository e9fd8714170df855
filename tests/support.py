"""Shared by the tests: input arrays, files, and comparisons whose bound has a reason."""
import json

import numpy as np
from hypothesis import strategies as st

from sparselsh import _files, metrics

# below, at and above one vector (16 floats), the unrolled run of four, and a power of two
SIZES = (1, 3, 15, 16, 17, 63, 64, 65, 129)
# active sets: samples, neurons, fraction of them active
PATTERNS = {
    "usual": (9, 40, 0.3),
    "more than a chunk of neurons": (5, 70, 0.9),
    "one sample": (1, 40, 0.3),
    "one neuron": (9, 1, 0.5),
    "no samples": (0, 40, 0.3),
    "no entries": (9, 40, 0.0),
}
UNIT = 2.0**-24  # the largest relative error of one float32 operation


def read_only(*arrays):
    """Read-only C-contiguous copies: what a kernel takes as input."""
    copies = [np.array(a, order="C") for a in arrays]
    for a in copies:
        a.flags.writeable = False
    return copies if len(copies) > 1 else copies[0]


def unwritten(shape, dtype):
    """An output array in which entries that a kernel does not write are recognized."""
    return np.full(shape, np.nan if np.dtype(dtype).kind == "f" else -77, dtype)


def gaussian(rng, *shape):
    return read_only(rng.standard_normal(shape, dtype=np.float32))


def eighths(rng, *shape):
    """Multiples of 1/8 up to 2: sums of products of them are exact in float32, in any order."""
    return read_only((rng.integers(-16, 17, shape) / 8).astype(np.float32))


def random_csr(rng, n, m, density, values=gaussian):
    """indptr, indices (ascending, distinct), data of an (n, m) matrix; every third row is empty."""
    mask = rng.random((n, m)) < density
    mask[1::3] = False
    indptr = np.concatenate([[0], np.cumsum(mask.sum(axis=1))]).astype(np.int64)
    indices = np.nonzero(mask)[1].astype(np.int32)
    return read_only(indptr, indices, values(rng, len(indices)))


@st.composite
def csr_patterns(draw, max_rows=12, max_columns=30):
    """(indptr, indices, n_columns) of any small pattern; rows and the whole may be empty."""
    m = draw(st.integers(1, max_columns))
    rows = draw(st.lists(st.sets(st.integers(0, m - 1)), max_size=max_rows))
    indptr = np.cumsum([0] + [len(row) for row in rows]).astype(np.int64)
    indices = np.array([j for row in rows for j in sorted(row)], np.int32)
    return *read_only(indptr, indices), m


def assert_same_bits(a, b):
    assert a.dtype == b.dtype and a.shape == b.shape
    different = np.ascontiguousarray(a).view(np.uint8) != np.ascontiguousarray(b).view(np.uint8)
    assert not different.any(), f"{different.sum()} of {different.size} bytes differ"


def on_threads(call):
    """Return call(n_threads) for 1 thread, after 2 threads have given the same bits."""
    one, two = call(1), call(2)
    for a, b in zip(one, two, strict=True) if isinstance(one, tuple) else [(one, two)]:
        if a is not None:
            assert_same_bits(a, b)
    return one


def assert_sums_close(got, want, magnitude, n_terms):
    """A float32 sum of n products is off by at most n + 2 units of the sum of their magnitudes.

    That is the bound of any order of summation, with and without fused multiply-add.
    """
    bound = (n_terms + 2) * UNIT * np.asarray(magnitude)
    error = np.abs(np.asarray(got, float) - want)
    assert np.all(error <= bound), (
        f"error {np.max(error):.3g}, {np.max(error - bound):.3g} beyond its bound")


# ---- data for an index, and brute-force results


def clustered(rng, n=3000, d=64, n_clusters=60, n_queries=200):
    """Neurons and queries around the same centres."""
    centres = rng.standard_normal((n_clusters, d))

    def around(m):
        centre = centres[rng.integers(n_clusters, size=m)]
        return (centre + rng.standard_normal((m, d)) / 2).astype(np.float32)

    return around(n), around(n_queries)


def trained(rng, n=3000, d=64, n_factors=30, n_queries=200):
    """A layer after a ReLU: inputs of one sign, neurons with a large common mean."""
    factors = rng.standard_normal((n_factors, d)) / np.sqrt(n_factors)
    X = np.maximum(rng.standard_normal((n_queries, n_factors)) @ factors + 0.5, 0)
    W = rng.standard_normal((n, d)) + 3 * rng.standard_normal(d)
    return W.astype(np.float32), X.astype(np.float32)


def exact(W, X, k, bias=0):
    """Ids and scores of the k largest outputs, in float64."""
    scores = X.astype(float) @ W.T.astype(float) + bias
    ids = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return ids, np.take_along_axis(scores, ids, 1)


def recall(index, W, X, bias=0, **options):
    return metrics.neighbour_recall(index.search(X, k=5, **options)[0], exact(W, X, 5, bias)[0])


def few_at_a_time(call, X, n=20):
    """What call(rows) gives for all of X, asked n rows at a time: fewer than make a batch."""
    parts = [call(X[i:i + n]) for i in range(0, len(X), n)]
    return [np.concatenate(part) for part in zip(*parts, strict=True)]


def rewrite(path, change):
    """Rewrite a file after change(tensors, config), with a correct checksum."""
    kind = _files.metadata(path)["format"]
    tensors, metadata = _files.read(path, kind)
    config = json.loads(metadata["config"])
    change(tensors, config)
    _files.write_checked(path, tensors, kind, json.dumps(config))
