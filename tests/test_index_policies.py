"""The effect of each policy by which `query` selects neurons from the tables."""
import numpy as np
import pytest
from support import assert_same_bits, clustered, eighths

import sparselsh as sl

N, D = 400, 16
FAMILIES = {
    "SimHash": lambda: sl.SimHash(5, 8),
    "CrossPolytope": lambda: sl.CrossPolytope(1, 6, dims=8),
    "DWTA": lambda: sl.DWTA(2, 6, bin_size=4),
}


@pytest.fixture(params=FAMILIES)
def index(request, rng):
    """An index of N neurons around a few centres."""
    W, _ = clustered(rng, n=N, d=D, n_clusters=20)
    return sl.LSHIndex(FAMILIES[request.param](), sketch_bits=0, random_state=0).fit(W)


@pytest.fixture
def X(rng):
    return clustered(rng, n=1, d=D, n_clusters=20, n_queries=30)[1]


def rows(active):
    """Return {neuron: value} for each query."""
    return [dict(zip(active.indices[a:b].tolist(), active.data[a:b].tolist(), strict=True))
            for a, b in zip(active.indptr[:-1], active.indptr[1:], strict=True)]


def test_top_takes_the_neurons_in_most_tables(index, X):
    for everyone, few in zip(rows(index.query(X, n=N)), rows(index.query(X, n=10)), strict=True):
        assert len(few) == min(10, len(everyone))
        assert all(everyone[j] == count for j, count in few.items())
        left = [count for j, count in everyone.items() if j not in few]
        assert not left or max(left) <= min(few.values())


def test_score_keeps_the_largest_inner_products_of_the_neurons_found(rng):
    # eighths: inner products are exact
    W, bias, X = eighths(rng, N, D), eighths(rng, N), eighths(rng, 30, D)
    index = sl.LSHIndex(sl.SimHash(4, 8), sketch_bits=0, random_state=0).fit(W, bias)
    scores = X @ W.T + bias
    found = rows(index.query(X, n=40))
    for i, best in enumerate(rows(index.query(X, n=10, policy="score"))):
        # from the 40 neurons in most tables, four times as many as requested
        assert set(best) <= set(found[i]) and len(best) == min(10, len(found[i]))
        assert all(scores[i, j] == value for j, value in best.items()), \
            "values are the inner products"
        left = [scores[i, j] for j in found[i] if j not in best]
        assert not left or max(left) <= min(best.values())


def test_score_finds_larger_inner_products_than_top(index, X):
    scores = X @ index._engine.W.T
    by_policy = {}
    for policy in ("top", "score"):
        active = index.query(X, n=10, policy=policy)
        by_policy[policy] = scores[active.nonzero()].sum()
    assert by_policy["score"] > by_policy["top"]


def test_vanilla_takes_neurons_of_the_probed_buckets(index, X):
    for n_probes in (1, 3):
        able = rows(index.query(X, n=N, n_probes=n_probes))
        for n in (1, 20, N):
            for found, drawn in zip(
                    able, rows(index.query(X, n=n, policy="vanilla", n_probes=n_probes)),
                    strict=True):
                assert (set(drawn) <= set(found)
                        and len(drawn) == min(n, len(found))), "n, or as many as the buckets hold"
                assert set(drawn.values()) <= {1.0}


def test_vanilla_takes_whole_buckets_while_they_fit(rng):
    # one table: a bucket is taken whole or, where it is too large, in part;
    # never more than n neurons
    W, X = clustered(rng, n=N, d=D)
    index = sl.LSHIndex(sl.SimHash(3, 1), sketch_bits=0, random_state=0).fit(W)
    buckets = rows(index.query(X, n=N))
    largest = max(map(len, buckets))
    for bucket, drawn in zip(buckets, rows(index.query(X, n=largest, policy="vanilla")),
                             strict=True):
        assert set(drawn) == set(bucket)


def test_vanilla_depends_on_its_seed(index, X):
    one, same, other = (index.query(X, n=8, policy="vanilla", seed=seed) for seed in (1, 1, 2))
    assert_same_bits(one.indices, same.indices)
    assert (one != other).nnz > 0
    index.n_threads = 2
    assert_same_bits(one.indices, index.query(X, n=8, policy="vanilla", seed=1).indices)


def test_over_many_seeds_vanilla_reaches_every_neuron_found(index, X):
    # 300 draws of 8 from at most N; each neuron in the buckets can be drawn
    able = index.query(X[:1], n=N)
    drawn = sum((index.query(X[:1], n=8, policy="vanilla", seed=seed) for seed in range(1, 300)),
                start=index.query(X[:1], n=8, policy="vanilla", seed=0))
    np.testing.assert_array_equal(np.sort(drawn.indices), able.indices)


@pytest.mark.parametrize("policy", ["top", "score"])
def test_min_count_is_a_hard_threshold(index, X, policy):
    counts = rows(index.query(X, n=N))
    sizes = []
    for min_count in range(1, index.family.tables + 2):
        active = rows(index.query(X, n=N, policy=policy, min_count=min_count))
        for found, kept in zip(counts, active, strict=True):
            assert set(kept) == {j for j, count in found.items() if count >= min_count}
        sizes.append(sum(map(len, active)))
    assert sizes == sorted(sizes, reverse=True) and sizes[0] > sizes[1] > sizes[-1] == 0


def test_with_more_probes_no_neuron_is_lost(index, X):
    before = index.query(X, n=N).toarray()
    for n_probes in (2, 3, 5, 8, 16):
        counts = index.query(X, n=N, n_probes=n_probes).toarray()
        assert np.all(counts >= before), "no neuron is counted in fewer tables"
        assert counts.max() <= index.family.tables, "a neuron is counted once per table"
        before = counts
    assert (before > 0).sum() > (index.query(X, n=N).toarray() > 0).sum()


def test_probing_every_bucket_finds_every_neuron_in_every_table(rng):
    W, X = clustered(rng, n=N, d=D, n_queries=5)
    index = sl.LSHIndex(sl.SimHash(3, 4), sketch_bits=0, random_state=0).fit(W)
    np.testing.assert_array_equal(index.query(X, n=N, n_probes=8).toarray(), np.full((5, N), 4))


@pytest.mark.parametrize("policy", ["top", "score", "vanilla"])
def test_an_active_set_is_sorted_and_without_duplicates(index, X, policy):
    active = index.query(X, n=25, policy=policy, n_probes=2)
    assert active.has_canonical_format and active.shape == (30, N) and active.dtype == np.float32
    assert np.diff(active.indptr).max() <= 25
    none = index.query(X[:0], policy=policy)
    assert none.shape == (0, N) and none.nnz == 0
