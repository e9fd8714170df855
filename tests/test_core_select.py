import numpy as np
import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st
from support import SIZES, gaussian, read_only, unwritten

from sparselsh._core import _select

# ---- top_k


def top_k(scores, ids, k, n_threads=1):
    out_ids = unwritten((len(scores), k), np.int32)
    out_scores = unwritten((len(scores), k), np.float32)
    _select.top_k(scores, ids, out_ids, out_scores, n_threads)
    return out_ids, out_scores


def assert_top_k(scores, ids, k, n_threads=1):
    got_ids, got_scores = top_k(scores, ids, k, n_threads)
    want_ids, want_scores = reference.top_k(scores, ids, k)
    np.testing.assert_array_equal(got_ids, want_ids)
    np.testing.assert_array_equal(got_scores, want_scores)


@pytest.mark.parametrize("k", [0, 1, 5, 64, 1000])
@pytest.mark.parametrize("m", (0, *SIZES, 900))
@pytest.mark.parametrize("n", [0, 1, 5])
@pytest.mark.parametrize("tied", [False, True], ids=["distinct", "tied"])
def test_top_k_is_the_head_of_a_sort(rng, n_threads, n, m, k, tied):
    scores = gaussian(rng, n, m)
    assert_top_k(read_only(np.round(scores)) if tied else scores, None, k, n_threads)


@pytest.mark.parametrize(("m", "k"), [(64, 1), (65, 1), (97, 1), (999, 7), (6625, 16), (70_001, 9)])
@pytest.mark.parametrize("kind", ["random", "tied", "ascending", "one", "few", "none"])
def test_top_k_of_many_scores_looks_at_the_groups_with_large_maxima(rng, n_threads, m, k, kind):
    scores = rng.standard_normal((3, m)).astype(np.float32)
    if kind == "tied":
        scores = np.round(scores)
    elif kind == "ascending":
        scores.sort(axis=1)
    elif kind == "one":
        scores[:] = 0.5
    elif kind in ("few", "none"):  # as where others are excluded
        scores[:, (k // 2 if kind == "few" else 0):] = -np.inf
    assert_top_k(read_only(scores), None, k, n_threads)


@pytest.mark.parametrize("k", [1, 5, 200])
@pytest.mark.parametrize("m", SIZES)
def test_top_k_passes_over_entries_without_an_id(rng, n_threads, m, k):
    scores = read_only(np.round(2 * gaussian(rng, 6, m)))
    ids = np.array([rng.permutation(2 * m)[:m] for _ in scores], np.int32)
    ids[rng.random(ids.shape) < 0.3] = -1
    ids[2] = -1
    assert_top_k(scores, read_only(ids), k, n_threads)
    assert_top_k(scores, read_only(ids[0]), k, n_threads)


@pytest.mark.parametrize("order", ["ascending", "descending", "equal", "organ pipe"])
@pytest.mark.parametrize("k", [1, 17, 300])
def test_top_k_does_not_depend_on_the_order_of_the_scores(order, k):
    m = 2000  # longer than the buffer of any of these k
    up = np.arange(m, dtype=np.float32)
    orders = {"ascending": up, "descending": -up, "equal": 0 * up,
              "organ pipe": np.minimum(up, m - up)}
    scores = read_only(orders[order][None])
    assert_top_k(scores, None, k)
    assert_top_k(scores, read_only(np.arange(m, dtype=np.int32)[::-1]), k)


def test_top_k_of_every_sign_and_size():
    tiny, huge = 1e-45, 3e38
    scores = np.array([[-huge, np.inf, -tiny, 1, -np.inf, tiny, huge, -1, 0]], np.float32)
    ids, best = top_k(read_only(scores), None, 9)
    assert ids.tolist() == [[1, 6, 3, 5, 8, 2, 7, 0, 4]]
    np.testing.assert_array_equal(best[0], np.sort(scores[0])[::-1])


def test_both_zeros_tie():
    zeros = read_only(np.array([[-0.0, 0.0, -0.0]], np.float32))
    assert top_k(zeros, None, 3)[0].tolist() == [[0, 1, 2]]


scores_with_ties = st.lists(st.integers(-3, 3), min_size=1, max_size=300)


@given(scores_with_ties, st.integers(1, 40))
def test_top_k_of_any_row_is_the_head_of_a_sort(scores, k):
    assert_top_k(read_only(np.array([scores], np.float32)), None, k)


def test_the_largest_id_is_kept():
    ids = read_only(np.array([2**31 - 1, 0], np.int32))
    assert top_k(read_only(np.ones((1, 2), np.float32)), ids, 2)[0].tolist() == [[0, 2**31 - 1]]


# ---- unions


def batch_union(labels, candidates, n_wanted, fill, seed, n_neurons):
    labels, candidates = read_only(np.asarray(labels, np.int32),
                                   np.atleast_2d(np.asarray(candidates, np.int32)))
    slot = np.full(n_neurons, -1, np.int32)
    room = max(n_wanted, len(labels))
    out, spare = unwritten(room, np.int32), unwritten(room, np.int32)
    size = _select.batch_union(labels, candidates, n_wanted, fill, seed, slot, spare, out)
    assert np.all(slot == -1), "the scratch array is left as it was"
    hashed, spare = unwritten(room, np.int32), unwritten(room, np.int32)
    n = _select.hashed_union(labels, candidates, n_wanted, fill, seed, n_neurons, spare, hashed)
    np.testing.assert_array_equal(hashed[:n], out[:size])
    return out[:size]


def sample_union(label_indptr, labels, candidates, n_wanted, fill, seed, n_neurons, n_threads=1):
    n = len(label_indptr) - 1
    inputs = read_only(np.asarray(label_indptr, np.int64), np.asarray(labels, np.int32),
                       np.asarray(candidates, np.int32))
    slot = np.full((n_threads, n_neurons), -1, np.int32)
    room = max(n_wanted, np.max(np.diff(label_indptr), initial=0))
    out, spare = unwritten((n, room), np.int32), unwritten((n_threads, room), np.int32)
    sizes = unwritten(n, np.int32)
    _select.sample_union(*inputs, n_wanted, fill, seed, slot, spare, out, sizes, n_threads)
    assert np.all(slot == -1), "the scratch array is left as it was"
    return [row[:size] for row, size in zip(out, sizes, strict=True)]


@st.composite
def union_arguments(draw):
    """Labels and ranked candidates (-1: none) of up to five samples, n_wanted, n_neurons."""
    n_neurons = draw(st.sampled_from([1, 2, 40, 255, 256, 257, 70_000]))
    neuron = st.integers(0, n_neurons - 1)
    labels = draw(st.lists(st.lists(neuron, max_size=9), max_size=5))
    shape = len(labels), draw(st.integers(0, 20))
    size = shape[0] * shape[1]
    candidates = draw(st.lists(st.just(-1) | neuron, min_size=size, max_size=size))
    n_wanted = draw(st.integers(0, 60) | st.just(min(n_neurons, 300)))
    return labels, np.array(candidates, np.int32).reshape(shape), n_wanted, n_neurons


def assert_active_set(active, labels, candidates, n_wanted, fill, n_neurons):
    """What holds for every active set."""
    assert np.all(np.diff(active) > 0), "ascending, without duplicates"
    assert np.all((0 <= active) & (active < n_neurons))
    assert set(labels) <= set(active.tolist())
    known = set(labels) | {int(j) for j in candidates if j >= 0}
    assert len(active) == max(len(set(labels)), min(n_wanted, n_neurons if fill else len(known)))


seeds = st.integers(0, 2**64 - 1)


@given(union_arguments(), seeds, st.booleans())
def test_batch_union_holds_labels_then_candidates_then_random_neurons(arguments, seed, fill):
    rows, candidates, n_wanted, n_neurons = arguments
    labels = [j for row in rows for j in row]
    active = batch_union(labels, candidates, n_wanted, fill, seed, n_neurons)
    assert_active_set(active, labels, candidates.ravel(), n_wanted, fill, n_neurons)
    # the first candidate of every sample before the second of any
    assert active.tolist() == reference.union(labels, candidates.T.ravel(), n_wanted, fill, seed,
                                              n_neurons)


@given(union_arguments(), seeds, st.booleans(), st.integers(1, 2))
def test_sample_union_is_such_a_union_for_each_sample(arguments, seed, fill, n_threads):
    rows, candidates, n_wanted, n_neurons = arguments
    indptr = np.cumsum([0] + [len(row) for row in rows])
    labels = np.array([j for row in rows for j in row], np.int32)
    arguments = indptr, labels, candidates, n_wanted, fill, seed, n_neurons
    active = sample_union(*arguments, n_threads)
    for i, row in enumerate(rows):
        assert_active_set(active[i], row, candidates[i], n_wanted, fill, n_neurons)
    assert [a.tolist() for a in active] == reference.sample_union(*arguments)


def test_candidates_are_taken_in_their_order():
    in_order = [5, 30, 10, 20]
    candidates = [30, -1, 5, 10, 20]
    for n_wanted in range(1, 5):
        active = batch_union([5], candidates, n_wanted, False, 0, 100)
        assert active.tolist() == sorted(in_order[:n_wanted])
        (active,) = sample_union([0, 1], [5], [candidates], n_wanted, False, 0, 100)
        assert active.tolist() == sorted(in_order[:n_wanted])


@pytest.mark.parametrize("n_neurons", [1, 2, 17, 256, 1000])
def test_wanting_all_neurons_gives_all_neurons(n_neurons):
    active = batch_union([0], [], n_neurons, True, 3, n_neurons)
    np.testing.assert_array_equal(active, np.arange(n_neurons))
    (active,) = sample_union([0, 1], [0], np.zeros((1, 0)), n_neurons + 5, True, 3, n_neurons)
    np.testing.assert_array_equal(active, np.arange(n_neurons))


def test_unions_of_nothing_are_empty(n_threads):
    assert len(batch_union([], [], 0, True, 1, 10)) == 0
    assert len(batch_union([], [], 5, True, 1, 0)) == 0
    for n_wanted, n_neurons in [(0, 10), (5, 0)]:
        rows = sample_union([0, 0, 0], [], np.zeros((2, 0)), n_wanted, True, 1, n_neurons,
                            n_threads)
        assert [len(row) for row in rows] == [0, 0]
    assert sample_union([0], [], np.zeros((0, 3)), 5, True, 1, 10, n_threads) == []


def random_fills(n_draws, n_wanted, n_neurons, seed):
    rows = sample_union([0] * (n_draws + 1), [], np.zeros((n_draws, 0)), n_wanted, True, seed,
                        n_neurons)
    return np.array(rows)


def test_the_seed_alone_decides_the_random_fill():
    def once(seed):
        return batch_union([3, 4], [7], 50, True, seed, 1000).tolist()

    assert once(1) == once(1) != once(2)
    np.testing.assert_array_equal(random_fills(5, 20, 1000, 1), random_fills(5, 20, 1000, 1))
    assert not np.array_equal(random_fills(5, 20, 1000, 1), random_fills(5, 20, 1000, 2))


def test_samples_and_neighbouring_seeds_share_no_random_fill():
    # one seed per batch: if row i + 1 of a batch equalled row i of the next, a network would see
    # few new neurons
    rows = np.concatenate([random_fills(8, 10, 100_000, seed) for seed in range(50)])
    assert len(np.unique(rows, axis=0)) == len(rows)


@pytest.mark.parametrize("n_wanted", [1, 10, 45, 80])
@pytest.mark.parametrize("by_sample", [True, False], ids=["rows of one batch", "batches"])
def test_the_random_fill_takes_all_neurons_equally_often(n_wanted, by_sample):
    n_neurons, n_draws = 100, 20_000
    if by_sample:
        draws = random_fills(n_draws, n_wanted, n_neurons, 7)
    else:
        draws = [batch_union([], [], n_wanted, True, seed, n_neurons) for seed in range(n_draws)]
    counts = np.bincount(np.ravel(draws), minlength=n_neurons)
    p = n_wanted / n_neurons
    # five standard deviations of a binomial: exceeded in one run of 17,000, and the seeds are fixed
    assert np.all(abs(counts - n_draws * p) < 5 * np.sqrt(n_draws * p * (1 - p)))


# ---- compact


@pytest.mark.parametrize("lengths", [[], [0], [3], [0, 2, 0, 5, 1, 0]], ids=len)
def test_compact_joins_the_heads_of_the_rows(rng, lengths):
    padded = read_only(rng.integers(0, 99, (len(lengths), 5), dtype=np.int32))
    indptr = read_only(np.cumsum([0, *lengths]))
    indices = unwritten(indptr[-1], np.int32)
    _select.compact(padded, indptr, indices)
    assert indices.tolist() == reference.compact(padded, indptr)
