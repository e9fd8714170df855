import numpy as np
import pytest
import reference
import scipy.sparse as sp
from scipy.optimize import minimize
from support import UNIT, assert_same_bits, on_threads, random_csr, read_only, unwritten

from sparselsh._core import _one_vs_rest

pytestmark = pytest.mark.usefixtures("simd_level")

N, D = 60, 35  # rows, features


@pytest.fixture
def x(rng):
    return random_csr(rng, N, D, 0.3)


@pytest.fixture
def task(rng, x):
    """Rows of 7 labels with their signs: one has no row, one a single row, one rows of one sign."""
    sizes = [12, 0, 1, 30, 7, 9, 40]
    samples = [rng.permutation(N)[:n] for n in sizes]
    signs = [rng.random(n) < 0.4 for n in sizes]
    signs[4][:] = True
    starts = np.concatenate([[0], np.cumsum(sizes)])
    coded = [np.where(s, i, ~i) for i, s in zip(samples, signs, strict=True)]
    return read_only(starts.astype(np.int64), np.concatenate(coded).astype(np.int32))


def dense(indptr, indices, data, n_columns=D):
    out = np.zeros((len(indptr) - 1, n_columns))
    out[np.repeat(np.arange(len(out)), np.diff(indptr)), indices] = data
    return out


def fit(x, starts, samples, costs, threshold=0.0, n_passes=2000, tolerance=1e-6, seed=3,
        duals=None, n_passes_again=2000):
    """W as a dense array, the bias and, where the descent starts from some, the dual variables."""
    n_labels = len(starts) - 1
    norms = read_only((dense(*x) ** 2).sum(axis=1).astype(np.float32))
    counts = np.diff(x[0])[np.where(samples < 0, ~samples, samples)]
    places = read_only(np.concatenate([[0], np.cumsum(counts)])[starts].astype(np.int64))

    def call(n_threads):
        work = np.zeros((n_threads, D), np.float32)
        ids, values = unwritten(places[-1], np.int32), unwritten(places[-1], np.float32)
        sizes, bias = np.zeros(n_labels, np.int32), np.zeros(n_labels, np.float32)
        own = np.zeros(0, np.float32) if duals is None else duals.copy()
        _one_vs_rest.fit(starts, samples, *x, norms, costs, n_passes, n_passes_again, tolerance,
                         threshold, seed, places, work, ids, values, sizes, bias, own, n_threads)
        assert not work.any()
        w = np.zeros((n_labels, D))
        for j, (first, n) in enumerate(zip(places, sizes, strict=False)):
            assert len(set(ids[first:first + n])) == n
            w[j, ids[first:first + n]] = values[first:first + n]
        return (w, bias) if duals is None else (w, bias, own)

    return on_threads(call)


def least(x, y, costs):
    """The minimum of the objective, by another method."""
    def value(v):
        return reference.squared_hinge(v[:-1], v[-1], x, y, costs)

    def slope(v):
        slack = np.maximum(0, 1 - y * (x @ v[:-1] + v[-1]))
        pull = -2 * costs * slack * y
        return v + np.append(x.T @ pull, pull.sum())

    return minimize(value, np.zeros(x.shape[1] + 1), jac=slope, method="L-BFGS-B",
                    options={"ftol": 1e-15}).fun


def test_fit_reaches_the_least_objective(rng, x, task):
    starts, samples = task
    costs = read_only(rng.uniform(0.2, 3, N).astype(np.float32))
    w, bias = fit(x, starts, samples, costs)
    rows = dense(*x)
    for j in range(len(starts) - 1):
        coded = samples[starts[j]:starts[j + 1]]
        mine = np.where(coded < 0, ~coded, coded)
        y = np.where(coded < 0, -1.0, 1.0)
        best = least(rows[mine], y, costs[mine])
        found = reference.squared_hinge(w[j], bias[j], rows[mine], y, costs[mine])
        # some hundred float32 steps per weight, none of them larger than the weight
        assert found <= best * (1 + 1000 * UNIT) + 1e-6, j


def test_few_passes_come_near(x, task):
    costs = np.ones(N, np.float32)
    exact, _ = fit(x, *task, costs)
    near, _ = fit(x, *task, costs, n_passes=20, tolerance=0.1)
    assert 0 < np.linalg.norm(near - exact) < 0.15 * np.linalg.norm(exact)


def test_weights_below_the_threshold_are_dropped_and_the_others_stay(x, task):
    costs = np.ones(N, np.float32)
    whole, bias = fit(x, *task, costs)
    pruned, same_bias = fit(x, *task, costs, threshold=0.2)
    assert_same_bits(pruned, np.where(np.abs(whole) >= np.float32(0.2), whole, 0))
    assert_same_bits(bias, same_bias)
    assert 0 < np.count_nonzero(pruned) < np.count_nonzero(whole)


def test_the_descent_from_no_duals_is_that_without(x, task):
    w, bias = fit(x, *task, np.ones(N, np.float32), n_passes=7)
    same, same_bias, duals = fit(x, *task, np.ones(N, np.float32), n_passes=7, n_passes_again=1,
                                 duals=np.zeros(len(task[1]), np.float32))
    assert_same_bits(w, same)
    assert_same_bits(bias, same_bias)
    for j, (first, last) in enumerate(zip(task[0][:-1], task[0][1:], strict=True)):
        coded = task[1][first:last]
        pull = np.where(coded < 0, -duals[first:last], duals[first:last]).astype(np.float64)
        sums = pull @ dense(*x)[np.where(coded < 0, ~coded, coded)]
        # the weights of seven passes are as many roundings away from the sum
        np.testing.assert_allclose(w[j], sums, atol=7 * N * UNIT * np.abs(pull).sum())
        np.testing.assert_allclose(bias[j], pull.sum(), atol=7 * N * UNIT * np.abs(pull).sum())


def test_a_descent_from_duals_needs_few_passes(rng, x, task):
    samples = task[1]
    costs = read_only(rng.uniform(0.2, 3, N).astype(np.float32))
    exact, _ = fit(x, *task, costs)
    *_, duals = fit(x, *task, costs, duals=np.zeros(len(samples), np.float32))
    *_, near = fit(x, *task, costs, duals=duals, n_passes_again=1)
    np.testing.assert_allclose(near, duals, atol=1e-5)  # projected gradients were below 1e-6

    duals[::7] = 0  # of every seventh sample nothing was known
    warm, _, found = fit(x, *task, costs, duals=duals, n_passes_again=3, tolerance=0.01)
    cold, _ = fit(x, *task, costs, n_passes=3, tolerance=0.01)
    assert np.linalg.norm(warm - exact) < np.linalg.norm(cold - exact)
    assert (found >= 0).all()
    whole, *_ = fit(x, *task, costs, duals=duals)
    np.testing.assert_allclose(whole, exact, atol=1e-3 * np.abs(exact).max())


def test_duals_move_to_the_samples_of_the_same_label_and_row(rng):
    n, n_new, n_labels = 40, 50, 9
    rows = rng.permutation(n_new)[:n].astype(np.int32)
    mine = [rng.permutation(n)[:rng.integers(8, 20)] for _ in range(n_labels)]
    coded = [np.where(rng.random(len(i)) < 0.4, i, ~i).astype(np.int32) for i in mine]
    others = [np.where(c < 0, ~rows[~c], rows[c]).astype(np.int32) for c in coded]
    free = np.setdiff1d(np.arange(n_new), rows)
    others = [rng.permutation(np.append(c, free[:j])).astype(np.int32)
              for j, c in enumerate(others)]
    others[3] = others[3][1:]  # a sample that is gone
    others[4] = ~others[4]  # and some of another sign
    duals = [rng.random(len(c)).astype(np.float32) * (rng.random(len(c)) < 0.7) for c in coded]
    starts, new_starts = (read_only(np.concatenate([[0], np.cumsum([len(c) for c in some])])
                                    .astype(np.int64)) for some in (coded, others))
    out = np.zeros(new_starts[-1], np.float32)
    _one_vs_rest.move_duals(starts, *read_only(np.concatenate(coded), np.concatenate(duals), rows),
                            new_starts, read_only(np.concatenate(others)),
                            np.empty(n_new, np.int32), out)
    expected = []
    for before, values, after in zip(coded, duals, others, strict=True):
        known = {(~rows[~c] if c < 0 else rows[c]): v
                 for c, v in zip(before.tolist(), values.tolist(), strict=True)}
        expected += [known.get(c, 0.0) for c in after.tolist()]
    assert_same_bits(out, np.array(expected, np.float32))
    assert 0 < np.count_nonzero(out) < np.count_nonzero(np.concatenate(duals))


def test_a_label_without_rows_has_no_weights(x, task):
    w, bias = fit(x, *task, np.ones(N, np.float32))
    assert not w[1].any() and bias[1] == 0


@pytest.mark.parametrize("n_candidates", [0, 1, 16, 40])
def test_opponents_are_the_rows_with_a_label_and_those_with_it_as_a_candidate(rng, n_candidates):
    n_labels = 45
    labels = [np.sort(rng.choice(n_labels, n, replace=False)) for n in [0, 1, 5, 30, 3, 2, 0, 9]]
    indptr = np.concatenate([[0], np.cumsum([len(own) for own in labels])]).astype(np.int64)
    indices = np.concatenate(labels).astype(np.int32)
    candidates = np.stack([rng.permutation(n_labels)[:n_candidates] for _ in labels])
    candidates = candidates.astype(np.int32)
    candidates[2, 5:] = -1
    is_used = np.array([1, 1, 1, 1, 0, 1, 1, 1], np.uint8)
    expected = reference.opponents(labels, candidates, is_used, n_labels)

    own = read_only(indptr), read_only(indices), read_only(is_used), candidates
    counts = np.zeros(n_labels, np.int64)
    _one_vs_rest.count_opponents(*own, counts)
    assert counts.tolist() == [len(rows) for rows in expected]
    ends = np.cumsum(counts)
    places, samples = ends - counts, unwritten(ends[-1], np.int32)
    _one_vs_rest.list_opponents(*own, places, samples)
    assert samples.tolist() == [i for rows in expected for i in rows]
    assert (places == ends).all()


@pytest.fixture
def weights(rng):
    return random_csr(rng, 50, D, 0.2)


@pytest.mark.parametrize("by_feature", [False, True])
@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("k", [1, 4, 12, 20])
def test_rerank_matches_its_definition(rng, x, weights, k, by_feature, normalized):
    ids = np.stack([rng.permutation(50)[:12] for _ in range(N)]).astype(np.int32)
    ids[::4, 5:] = -1
    ids[8] = -1
    scores = rng.standard_normal((N, 12), dtype=np.float32)
    bias = rng.standard_normal(50, dtype=np.float32)
    ids, scores, bias = read_only(ids, scores, bias)
    direct = dense(*x) @ dense(*weights).T + bias
    if by_feature:
        columns = sp.csr_array(dense(*weights).T.astype(np.float32))
        weights = read_only(columns.indptr.astype(np.int64), columns.indices, columns.data)

    def call(n_threads):
        work = np.zeros((n_threads, 50 if by_feature else D), np.float32)
        out = unwritten((N, k), np.int32), unwritten((N, k), np.float32)
        _one_vs_rest.rerank(*x, *weights, bias, 2.5, by_feature, normalized, ids, scores,
                            work, *out, n_threads)
        assert not work.any()
        return out

    best, values = on_threads(call)
    for i in range(N):
        known = ids[i] >= 0
        expected = scores[i, known] + 2.5 * direct[i, ids[i, known]]
        if normalized and known.any():
            expected -= reference.log_sum_exp(scores[i:i + 1, known])
        order = np.argsort(-expected, kind="stable")[:k]
        n = len(order)
        # sums of at most D products of normal numbers, times 2.5
        np.testing.assert_allclose(values[i, :n], expected[order], atol=200 * D * UNIT)
        assert set(best[i, :n]) <= set(ids[i, known]) and len(set(best[i, :n])) == n
        assert (best[i, n:] == -1).all() and np.isneginf(values[i, n:]).all()


def test_rerank_breaks_ties_by_the_smaller_id():
    x = read_only(np.array([0, 0], np.int64), np.zeros(0, np.int32), np.zeros(0, np.float32))
    weights = read_only(np.zeros(6, np.int64), np.zeros(0, np.int32), np.zeros(0, np.float32))
    ids, scores = np.array([[4, 1, 3]], np.int32), np.zeros((1, 3), np.float32)
    out = unwritten((1, 3), np.int32), unwritten((1, 3), np.float32)
    _one_vs_rest.rerank(*x, *weights, np.zeros(5, np.float32), 1, False, False, ids, scores,
                        np.zeros((1, 2), np.float32), *out, 1)
    assert out[0].tolist() == [[1, 3, 4]]
