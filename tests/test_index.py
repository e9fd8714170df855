import numpy as np
import pytest
import reference
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st
from support import (
    assert_same_bits,
    clustered,
    eighths,
    exact,
    gaussian,
    read_only,
    recall,
    trained,
)

import sparselsh as sl
from sparselsh.index import IndexOptions, build
from sparselsh.index.transforms import Transform, second_moment

KINDS = {
    "sketches": lambda **options: sl.LSHIndex(random_state=0, plan="sketches", **options),
    "tables": lambda **options: sl.LSHIndex(sl.SimHash(5, 8), sketch_bits=0,
                                            random_state=0, **options),
    "both": lambda **options: sl.LSHIndex(sl.SimHash(5, 8), random_state=0,
                                          plan="sketches", **options),
}


@pytest.fixture(params=KINDS)
def new_index(request):
    """Return a function that makes an index with the given options."""
    return KINDS[request.param]


def csr_parts(matrix):
    return matrix.indptr, matrix.indices, matrix.data


def answers(index, X):
    """Return every kind of answer of the index for X."""
    parts = list(index.search(X, k=7, n_candidates=20))
    return parts + (list(csr_parts(index.query(X, n=15))) if index.family is not None else [])


def assert_same_answers(a, b, X):
    for one, other in zip(answers(a, X), answers(b, X), strict=True):
        assert_same_bits(one, other)


# ---- search


@pytest.mark.parametrize("n, d", [(1, 1), (2, 5), (40, 1), (65, 17), (700, 64)])
def test_search_with_every_neuron_as_candidate_equals_brute_force(rng, n, d):
    W, bias, X = eighths(rng, n, d), eighths(rng, n), eighths(rng, 9, d)
    ids, scores = KINDS["both"]().fit(W, bias, queries=X).search(
        X, k=min(n, 5), n_candidates=max(n, 5))
    want_ids, want_scores = exact(W, X, min(n, 5), bias)
    np.testing.assert_array_equal(ids, want_ids)  # ties go to the lower id in both
    np.testing.assert_array_equal(scores, want_scores)
    assert ids.dtype == np.int32 and scores.dtype == np.float32


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("data", [clustered, trained])
def test_search_finds_nearly_all_neighbours_with_its_defaults(data, seed):
    # the bound decides how many neurons are computed
    W, X = data(np.random.default_rng(seed))
    assert recall(sl.LSHIndex(random_state=0).fit(W, queries=X), W, X) >= 0.98


@pytest.mark.parametrize("seed", range(3))
def test_centring_and_scaling_find_neighbours_that_are_missed_without_them(seed):
    # with 60 candidates; measured: 0.91 with both, 0.77 to 0.81 with centring only,
    # 0.31 to 0.44 with neither
    W, X = trained(np.random.default_rng(seed))

    def found(**options):
        index = sl.LSHIndex(random_state=0, sketch_bits=64, plan="sketches",
                            **options).fit(W, queries=X)
        return recall(index, W, X, n_candidates=60)

    assert found() >= 0.88
    assert 0.7 <= found(scaling=0) <= 0.85
    assert found(scaling=0, center=False) <= 0.55


def test_centring_removes_a_common_bias(rng):
    # a common part of 100 times the length of the neurons makes them alike to a hash without
    # centring; a common bias does not matter, because biases are not hashed
    W, X = clustered(rng)
    bias, part = np.full(len(W), 500, np.float32), 100 * gaussian(rng, 1, 64)
    for center, floor, ceiling in [(True, 0.98, 1), (False, 0, 0.8)]:
        index = sl.LSHIndex(center=center, random_state=0).fit(W + part, bias)
        assert floor <= recall(index, W + part, X, bias, n_candidates=60) <= ceiling
        index.fit(W, bias)
        assert recall(index, W, X, bias, n_candidates=60) >= 0.97


def test_more_candidates_find_more_neighbours(rng):
    W, X = trained(rng)
    index = sl.LSHIndex(random_state=0).fit(W, queries=X)
    found = [recall(index, W, X, n_candidates=n) for n in (5, 10, 30, 100, 3000)]
    assert found == sorted(found) and found[-1] == 1


def test_search_returns_the_exact_scores_of_its_ids_best_first(rng, new_index):
    W, X = trained(rng, n=500)
    bias = gaussian(rng, 500)
    ids, scores = new_index().fit(W, bias, queries=X).search(X, k=10)
    want = np.take_along_axis(X.astype(float) @ W.T + bias, ids, 1)
    there = ids >= 0  # without sketches, tables may find fewer
    np.testing.assert_allclose(scores[there], want[there], rtol=1e-5, atol=1e-4)
    assert np.all(scores[:, 1:] <= scores[:, :-1])
    assert np.all(scores[~there] == -np.inf)


def test_beyond_the_last_neuron_there_is_no_id(rng):
    W, X = gaussian(rng, 3, 8), gaussian(rng, 4, 8)
    ids, scores = KINDS["both"]().fit(W).search(X, k=6)
    np.testing.assert_array_equal(np.sort(ids[:, :3]), [range(3)] * 4)
    assert np.all(ids[:, 3:] == -1) and np.all(scores[:, 3:] == -np.inf)


def test_one_neuron_answers_every_query(rng, new_index):
    W, X = gaussian(rng, 1, 8), gaussian(rng, 4, 8)
    ids, scores = new_index(center=False).fit(W).search(X, k=1)
    there = ids[:, 0] >= 0  # tables find it where query and neuron are in the same bucket
    assert there.all() or new_index is KINDS["tables"]
    np.testing.assert_allclose(scores[there, 0], (X @ W.T)[there, 0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("n_queries", [0, 1])
def test_search_takes_few_queries_or_none(rng, new_index, n_queries):
    W, X = gaussian(rng, 50, 8), gaussian(rng, n_queries, 8)
    index = new_index().fit(W, queries=X)
    ids, scores = index.search(X, k=3)
    assert ids.shape == scores.shape == (n_queries, 3)


def test_a_query_gets_the_same_answer_alone_and_in_a_batch(rng, new_index):
    W, X = trained(rng, n=400)
    index = new_index().fit(W, queries=X)
    ids, scores = index.search(X, k=5)
    for i in (0, 7, 199):
        for whole, single in zip((ids, scores), index.search(X[i:i + 1], k=5), strict=True):
            assert_same_bits(whole[i:i + 1], single)


# ---- transforms


@given(st.integers(0, 2**32 - 1), st.integers(1, 30), st.integers(1, 12),
       st.floats(0, 1), st.booleans(), st.floats(-3, 3))
def test_transforms_shift_all_neurons_alike_for_one_query(seed, n, d, scaling, center, size):
    rng = np.random.default_rng(seed)
    W = (rng.standard_normal((n, d)) * 10**size + rng.standard_normal(d) * 3).astype(np.float32)
    bias, X = (rng.standard_normal(n, np.float32),
               rng.standard_normal((7, d), np.float32) + np.float32(1))
    transform = Transform(center, scaling).fit(W, bias, second_moment(X, 1))
    V, Q = transform.neurons(W, bias, 1).astype(float), transform.queries(X, 1).astype(float)
    scores = X.astype(float) @ W.T + bias
    shift = Q @ V.T - scores
    # float32 arithmetic on numbers of this size, with several dozen roundings
    size = np.linalg.norm(Q, axis=1).max() * np.linalg.norm(V, axis=1).max() + abs(scores).max()
    assert np.ptp(shift, axis=1).max() <= 1e-5 * size
    ranked = np.take_along_axis(scores, np.argsort(-(Q @ V.T), axis=1), 1)
    assert np.all(np.diff(ranked) <= 1e-5 * size), "the ranking by inner product is the same"


def test_without_centring_and_queries_neurons_are_hashed_untransformed(rng):
    W, bias, X = gaussian(rng, 9, 5), gaussian(rng, 9), gaussian(rng, 3, 5)
    transform = Transform(center=False).fit(W, bias)
    assert_same_bits(transform.neurons(W, bias, 1), np.column_stack([W, bias]))
    assert_same_bits(transform.queries(X, 1), np.column_stack([X, np.ones(3, np.float32)]))


# ---- active sets


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("n, min_count", [(1, 1), (20, 1), (300, 1), (300, 2), (300, 8), (1000, 1)])
def test_query_counts_the_tables_in_which_query_and_neuron_share_a_bucket(
        rng, n, min_count, dynamic):
    W, X = clustered(rng, n=300, d=16, n_queries=30)
    index = sl.LSHIndex(sl.SimHash(4, 8), dynamic=dynamic, random_state=0).fit(W, queries=X)
    active = index.query(X, n=n, min_count=min_count)
    family, transform = index._engine.tables.family, index._engine.transform
    codes = [family.hash(V) for V in (transform.queries(X, 1),
                                      transform.neurons(W, np.zeros(300, np.float32), 1))]
    ids, counts = reference.collide(*codes, min_count, min(n, 300))
    want = np.zeros((30, 300))
    np.put_along_axis(want, np.where(ids >= 0, ids, 0), 0, 1)
    for i in range(30):
        want[i, ids[i, ids[i] >= 0]] = counts[i, ids[i] >= 0]
    np.testing.assert_array_equal(active.toarray(), want)
    assert active.nnz == np.count_nonzero(want)
    assert (isinstance(active, sp.csr_array) and active.has_canonical_format
            and active.dtype == np.float32)


def test_a_neuron_shares_every_bucket_with_its_own_direction(rng):
    W = gaussian(rng, 200, 16)
    index = sl.LSHIndex(sl.SimHash(8, 6), center=False, random_state=0).fit(
        W, bias=np.full(200, 1, np.float32))
    counts = index.query(W, n=200).toarray()  # (w, 1) is both neuron and query
    np.testing.assert_array_equal(np.diag(counts), 6)


def test_collisions_follow_the_angle(rng):
    # one bit agrees with probability 1 - a / pi: over 200 tables of 3 bits the rate is within
    # 4 standard errors of it
    n_tables, angle = 200, 1.0
    q = np.zeros((1, 8), np.float32)
    q[0, 0] = 1
    w = np.zeros((1, 8), np.float32)
    w[0, :2] = np.cos(angle), np.sin(angle)
    p = (1 - angle / np.pi) ** 3
    rates = []
    for seed in range(20):
        family = sl.SimHash(3, n_tables).fit(8, seed)
        rates.append((family.hash(q) == family.hash(w)).mean())
    assert abs(np.mean(rates) - p) <= 4 * np.sqrt(p * (1 - p) / (20 * n_tables))


def test_one_family_may_serve_several_indexes(rng):
    family = sl.SimHash(5, 8)
    narrow, wide, X = gaussian(rng, 60, 8), gaussian(rng, 60, 20), gaussian(rng, 9, 8)
    separate = sl.LSHIndex(sl.SimHash(5, 8), random_state=0).fit(narrow)
    shared = sl.LSHIndex(family, random_state=0).fit(narrow)
    sl.LSHIndex(family, random_state=1).fit(wide)
    assert_same_answers(separate, shared, X)


# ---- update


def test_update_keeps_the_transform_and_equals_a_new_fit(rng, new_index):
    # rows are permuted: sums of eighths are exact, so the new fit has the same mean
    # and the same transform
    W, bias, X = np.array(eighths(rng, 256, 16)), eighths(rng, 256), gaussian(rng, 20, 16)
    index = new_index(dynamic=True).fit(W, bias, queries=X)
    index.search(X)
    rows = rng.permutation(256)[:100]
    W[rows] = W[np.roll(rows, 1)]
    index.update(W, rows)
    assert_same_answers(index, new_index(dynamic=True).fit(W, bias, queries=X), X)


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_thousand_updates_equal_a_new_fit(rng, new_index, dynamic):
    W, X = np.array(gaussian(rng, 150, 12)), gaussian(rng, 10, 12)
    # the transform then does not depend on W
    plain = {"center": False, "scaling": 0, "dynamic": dynamic}
    index = new_index(**plain).fit(W)
    for step in range(1000):
        rows = rng.permutation(150)[:rng.integers(0, 12)]
        W[rows] = rng.standard_normal((len(rows), 12)) * rng.choice([0.1, 1, 10])
        index.update(W, rows)
        if step % 125 == 0 or step == 999:
            assert_same_answers(index, new_index(**plain).fit(W), X)


def test_update_takes_weights_in_another_array(rng, new_index):
    W, X = gaussian(rng, 80, 12), gaussian(rng, 10, 12)
    plain = {"center": False, "scaling": 0}
    index = new_index(**plain).fit(W)
    changed = W.astype(float)
    changed[[3, 70]] = changed[[70, 3]] + 1
    index.update(changed, [3, 70])
    assert_same_answers(index, new_index(**plain).fit(changed), X)


def test_update_of_no_rows_changes_nothing(rng, new_index):
    W, X = gaussian(rng, 80, 12), gaussian(rng, 10, 12)
    index, other = new_index().fit(W), new_index().fit(W)
    index.update(W, np.array([], np.int32))
    assert_same_answers(index, other, X)


def test_a_second_fit_replaces_the_first(rng, new_index):
    W, X = gaussian(rng, 80, 12), gaussian(rng, 10, 9)
    index = new_index().fit(W, queries=W)
    index.search(W)
    small = gaussian(rng, 30, 9)
    index.fit(small)
    assert_same_answers(index, new_index().fit(small), X)


# ---- input arrays and reproducibility


@pytest.mark.parametrize("change", [
    pytest.param(lambda a: a.astype(np.float64), id="float64"),
    pytest.param(np.asfortranarray, id="column-major"),
    pytest.param(lambda a: np.repeat(a, 2, axis=1)[:, ::2], id="strided"),
    pytest.param(lambda a: a[::-1].copy()[::-1], id="reversed"),
    pytest.param(read_only, id="read-only"),
    pytest.param(lambda a: a.tolist(), id="lists"),
])
def test_arrays_of_any_layout_give_the_same_answers(rng, new_index, change):
    W, X = trained(rng, n=200, d=20, n_queries=15)
    index = new_index().fit(W, queries=X)
    other = new_index().fit(change(W), queries=change(X))
    assert_same_answers(index, other, X)
    for a, b in zip(other.search(X), other.search(change(X)), strict=True):
        assert_same_bits(a, b)


def test_integer_arrays_are_accepted(rng, new_index):
    W = rng.integers(-5, 6, (40, 8))
    assert_same_answers(new_index().fit(W), new_index().fit(W.astype(np.float32)),
                        gaussian(rng, 5, 8))


def test_the_same_seed_gives_the_same_answers_and_another_seed_other_answers(rng):
    W, X = trained(rng, n=800)

    def make(seed):
        return sl.LSHIndex(sl.SimHash(5, 8), random_state=seed).fit(W, queries=X)

    assert_same_answers(make(3), make(3), X)
    assert (make(3).query(X) != make(4).query(X)).nnz


def test_threads_do_not_change_a_bit(rng, new_index):
    W, X = trained(rng, n=800)
    one, two = (new_index(n_threads=n, dynamic=True).fit(W, queries=X) for n in (1, 2))
    assert_same_answers(one, two, X)
    W[5:300] *= -1
    for index in (one, two):
        index.update(W, np.arange(5, 300))
    assert_same_answers(one, two, X)


@pytest.mark.parametrize("options, n_bits",
                         [({}, 192), ({"sketch_bits": 64}, 64), ({"sketch_bits": 1024}, 1024)])
def test_sketches_have_the_requested_number_of_bits(rng, options, n_bits):
    W = gaussian(rng, 320, 16)
    index = sl.LSHIndex(random_state=0, **options).fit(W)
    index.search(W[:1])
    # the bits, a factor, an error, a bias, a cell, and the maps from slot to neuron and back
    per_neuron = n_bits // 8 + 24
    assert index.nbytes == 320 * per_neuron


@pytest.mark.parametrize("dynamic, per_neuron, per_bucket", [(False, 8, 12), (True, 10.25, 22)])
def test_tables_take_the_bytes_that_the_documents_say(rng, dynamic, per_neuron, per_bucket):
    n, tables, bits = 5000, 6, 4
    index = sl.LSHIndex(sl.SimHash(bits, tables), sketch_bits=0, dynamic=dynamic).fit(
        gaussian(rng, n, 8))
    # plus, per table, one number or 64 places
    assert 0 <= index.nbytes / tables - (n * per_neuron + 2**bits * per_bucket) <= 4 * 66


def test_the_repr_of_an_index_shows_its_settings(rng):
    index = sl.LSHIndex(sl.SimHash(4, 3))
    assert (repr(index)
            == f"LSHIndex({index.family!r}, center=True, scaling='auto', sketch_bits=None)")
    assert "9 neurons x 5" in repr(index.fit(gaussian(rng, 9, 5)))


def celled(monkeypatch, rng, **options):
    """Return an index with cells although it has few neurons, its neurons and queries."""
    monkeypatch.setattr("sparselsh.index._build.CELLS_MIN_NEURONS", 16)
    W, X = clustered(rng, n=1500, d=32, n_clusters=30)
    index = sl.LSHIndex(random_state=0, plan="sketches", **options).fit(W, queries=X)
    assert index._engine.sketches.cells.n == 38
    return index, W, X


def test_cells_reach_the_recall_with_fewer_sketches(monkeypatch, rng):
    # queries around the same centres as the neurons: a few cells hold all their neighbours
    index, W, X = celled(monkeypatch, rng, recall=0.95)
    scanned = index._engine.by_bound(X, 5, 1)[2][:, 1]
    # a cell begins and ends within a block of 32 slots, of which 38 cells have 1.2 each; 3 cells
    # and then as many again are the least that is scanned
    assert scanned.mean() <= 0.4 * 1500
    assert recall(index, W, X) >= 0.95


def test_neurons_that_change_their_cell_are_found_as_if_always_in_their_new_cell(
        monkeypatch, tmp_path, rng):
    pytest.importorskip("safetensors")
    index, W, X = celled(monkeypatch, rng)
    for step in range(30):
        rows = rng.permutation(1500)[:60]
        W[rows] = W[rng.permutation(1500)[:60]] + rng.standard_normal((60, 32), np.float32) / 4
        index.update(W, rows)
        if step % 3 == 0:
            index.remove(rng.permutation(1500)[:20])
    assert (index._engine.sketches.n
            > index._engine.sketches.cell_start[-1]), "some slots are not sorted yet"
    before = [a.tobytes() for a in index.search(X, k=5)]
    index.save(tmp_path / "index.safetensors")
    loaded = sl.LSHIndex.load(tmp_path / "index.safetensors", W)
    assert (loaded._engine.sketches.n
            == loaded._engine.sketches.cell_start[-1]), "all slots are sorted"
    assert [a.tobytes() for a in loaded.search(X, k=5)] == before
    index._engine.sketches._sort()
    assert [a.tobytes() for a in index.search(X, k=5)] == before


@pytest.mark.usefixtures("simd_level")
def test_with_cells_a_single_query_finds_what_it_finds_in_a_batch(monkeypatch, rng):
    # A single query is rotated by dot products, which round differently: its table of sums may
    # differ by a unit. This may change the last of the candidates, but hardly ever the best five.
    index, W, X = celled(monkeypatch, rng, recall=0.95)
    whole = index.search(X, k=5)[0]
    single = np.concatenate([index.search(X[i:i + 1], k=5)[0] for i in range(len(X))])
    few = np.concatenate([index.search(X[i:i + 3], k=5)[0] for i in range(0, len(X), 3)])
    np.testing.assert_array_equal(single, few)
    assert (single != whole).mean() <= 0.01
    np.testing.assert_allclose(index.search(X[:1], k=5)[1][0], (W @ X[0])[single[0]],
                               rtol=1e-4, atol=1e-5)


def test_a_single_query_after_changes_uses_the_current_slots(monkeypatch, rng):
    index, W, X = celled(monkeypatch, rng)
    best = index.search(X[:1], k=1)[0][0, 0]
    index.remove([best])
    assert best not in index.search(X[:1], k=5)[0]
    index.update(W, [best])
    assert index.search(X[:1], k=1)[0][0, 0] == best
    index.remove(np.arange(1500))
    ids, scores = index.search(X[:1], k=3)
    assert (ids == -1).all() and np.isneginf(scores).all()


def test_a_second_fit_gives_the_same_index_as_a_first(rng):
    W = gaussian(rng, 300, 16)
    index = sl.LSHIndex(sl.SimHash(6, 5), random_state=0).fit(W)
    tables = index._engine.tables
    other = gaussian(rng, 300, 16)
    X = gaussian(rng, 20, 16)
    index.remove([3, 4])
    assert index.fit(other)._engine.tables is not tables, "a fit that fails must leave the old ones"
    assert_same_answers(index, sl.LSHIndex(sl.SimHash(6, 5), random_state=0).fit(other), X)
    index.random_state = 1
    index.fit(other[:200])
    assert_same_answers(index, sl.LSHIndex(sl.SimHash(6, 5), random_state=1).fit(other[:200]), X)


def test_layers_refill_their_tables_where_they_fit_and_else_allocate_new_ones(rng):
    W, other, bias = gaussian(rng, 300, 16), gaussian(rng, 300, 16), np.zeros(300, np.float32)
    options = IndexOptions(sl.SimHash(6, 5), sketch_bits=0)
    tables = build(options, W, bias, None, 0, 1).tables
    again = build(options, other, bias, None, 0, 1, tables)
    assert again.tables is tables
    np.testing.assert_array_equal(again.tables.codes, build(options, other, bias, None, 0,
                                                            1).tables.codes)
    assert build(options, other[:200], bias[:200], None, 0, 1, tables).tables is not tables
    assert build(options, other, bias, None, 1, 1, tables).tables is not tables, \
        "another seed needs new hash functions"
