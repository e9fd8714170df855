"""Searches of indexes drawn at random, compared with all inner products or distances.

The other tests take one option at a time; what failed in use were pairs of options and inputs that
nobody had put together, such as rows in fewer bits that are closer than their rounding.
"""
import numpy as np
import pytest
import scipy.sparse as sp

import sparselsh as sl

SIZES = (1, 7, 300, 1500, 4200)
WIDTHS = (1, 2, 16, 100, 513)
N_QUERIES = 30
PER_TEST = 12  # indexes, whose answers are counted together,
LEAST = 0.75  # but of each of which so many are right


def rows(rng, n, d, kind):
    W = rng.standard_normal((n, d))
    if kind == "clusters":
        W = rng.standard_normal((max(1, n // 20), d))[rng.integers(max(1, n // 20), size=n)] + W / 4
    elif kind == "duplicates":
        W = W[rng.integers(max(1, n // 3), size=n)]
    elif kind == "far":
        W += rng.choice([3, 100])
    elif kind == "heavy":
        W = W**5
    elif kind == "whole":
        W = np.round(3 * W)
    elif kind == "sparse":
        W *= rng.random((n, d)) < 0.1
    return (W * 10.0**rng.choice([-5, 0, 5])).astype(np.float32)


def scores(metric, W, bias, X):
    """In float64, the largest the best; and by how much float32 may be off, (n_queries, 1)."""
    W, X = W.astype(float), X.astype(float)
    lengths, norms = np.linalg.norm(W, axis=1), np.linalg.norm(X, axis=1)[:, None]
    if metric == "l2":
        squares = norms**2 - 2 * X @ W.T + lengths**2
        return -np.sqrt(np.maximum(squares, 0)), norms + lengths.max()
    if metric == "cosine":
        units = W / np.where(lengths > 0, lengths, 1)[:, None]
        return X / np.where(norms > 0, norms, 1) @ units.T, np.ones((len(X), 1))
    return X @ W.T + bias, norms * lengths.max() + np.abs(bias).max()


def selected(rng, n):
    """Arguments of a search, and which neurons each query may find."""
    kind = rng.integers(5)
    if kind == 0:
        return {}, np.ones((N_QUERIES, n), bool)
    share = rng.choice([0.01, 0.3, 0.9])
    if kind <= 2:
        chosen = rng.random(n) < share
        able = np.tile(chosen if kind == 1 else ~chosen, (N_QUERIES, 1))
        return ({"allow": chosen} if kind == 1 else {"exclude": np.flatnonzero(chosen)}), able
    chosen = rng.random((N_QUERIES, n)) < share
    name = "allow" if kind == 3 else "exclude"
    return {name: sp.csr_array(chosen.astype(rng.choice(["f4", "f8", "?"])))}, (
        chosen if kind == 3 else ~chosen)


def of_query(options, i):
    return {name: value[i:i + 1] if sp.issparse(value) else value
            for name, value in options.items()}


@pytest.mark.parametrize("storage", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("metric", ["ip", "cosine", "l2"])
@pytest.mark.parametrize("kind", ["normal", "clusters", "duplicates", "far", "heavy", "whole",
                                  "sparse"])
def test_recall_and_exactness(kind, metric, storage):
    rng = np.random.default_rng([len(kind), len(metric), len(storage)])
    found, wanted = {"search": 0, "one by one": 0, "certify": 0}, 0
    for _ in range(PER_TEST):
        n, d = int(rng.choice(SIZES)), int(rng.choice(WIDTHS))
        W = rows(rng, n, d, kind)
        noise = rng.standard_normal((N_QUERIES, d)) * W.std() * rng.choice([0, 0.1, 1])
        X = ((W[rng.integers(n, size=N_QUERIES)] + noise) * rng.choice([0.01, 1, 30])).astype(
            np.float32)
        bias = np.zeros(n, np.float32)
        if metric == "ip" and rng.random() < 0.5:
            bias = (rng.standard_normal(n) * W.std() * X.std()).astype(np.float32)
        index = sl.LSHIndex(metric=metric, storage=storage, recall=0.95, plan="sketches",
                            center=bool(rng.random() < 0.8), random_state=int(rng.integers(99)))
        index.fit(W, bias if bias.any() else None, queries=X[:10] if rng.random() < 0.5 else None)
        gone = rng.permutation(n)[:n // 5 if rng.random() < 0.3 else 0]
        index.remove(gone)

        options, able = selected(rng, n)
        able[:, gone] = False
        k = min(n, int(rng.choice([1, 10, 60])))
        true, size = scores(metric, W, bias, X)
        true = np.where(able, true, -np.inf)
        kth = -np.sort(-true, axis=1)[:, k - 1:k]
        n_able = np.minimum(able.sum(axis=1), k)

        def right(ids, true=true, kth=kth, size=size, able=able):
            assert all(able[i, j] for i, row in enumerate(ids) for j in row[row >= 0])
            assert all(len(set(row[row >= 0])) == np.sum(row >= 0) for row in ids)
            got = np.where(ids >= 0, np.take_along_axis(true, np.maximum(ids, 0), 1), -np.inf)
            return ((got >= kth - 1e-5 * size) & (ids >= 0)).sum(axis=1)

        np.testing.assert_array_equal(right(index.search(X, k, exact=True, **options)[0]), n_able)
        of_search = right(index.search(X, k, **options)[0]).sum()
        assert of_search >= LEAST * n_able.sum(), (n, d, k, options.keys())
        found["search"] += of_search
        found["certify"] += right(index.search(X, k, certify=0.999, **options)[0]).sum()
        found["one by one"] += right(np.concatenate(
            [index.search(X[i:i + 1], k, **of_query(options, i))[0]
             for i in range(N_QUERIES)])).sum()
        wanted += n_able.sum()

    assert found["certify"] >= 0.999 * wanted
    assert found["search"] >= 0.94 * wanted
    assert found["one by one"] >= 0.94 * wanted
