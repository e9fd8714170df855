"""A search keeps its recall on every input: it goes on until its bound says that nothing is missed.

The thresholds are the recall that was asked for. What is measured is above it on each of these
inputs: the floors of the bounds are chosen by the worst of many (bench/retrieval.py).
"""
import copy
import itertools

import numpy as np
import pytest
import scipy.sparse as sp
from support import (
    assert_same_bits,
    clustered,
    exact,
    few_at_a_time,
    gaussian,
    recall,
    trained,
)

import sparselsh as sl
from sparselsh._core._bounded_search import TAIL_STEPS
from sparselsh.index._bounds import Bounds
from sparselsh.index._cells import Cells
from sparselsh.metrics import neighbour_recall

UNLIKE = {
    "like those of fit": lambda rng, X: X,
    "a hundred times as long": lambda rng, X: X * np.float32(100),
    "a hundredth as long": lambda rng, X: X * np.float32(0.01),
    "1e-20 times as long": lambda rng, X: X * np.float32(1e-20),
    "in other directions": lambda rng, X: rng.standard_normal(X.shape).astype(np.float32),
    "with noise": lambda rng, X: (
        X + X.std() * rng.standard_normal(X.shape)).astype(np.float32),
    "negative": lambda rng, X: -X,
    "with few entries": lambda rng, X: X * (rng.random(X.shape) < 0.1).astype(np.float32),
}


def found(index, W, X, k, bias=0):
    return neighbour_recall(index.search(X, k)[0], exact(W, X, k, bias)[0])


# ---- recall


@pytest.mark.parametrize("data", [clustered, trained])
@pytest.mark.parametrize("unlike", UNLIKE)
@pytest.mark.parametrize("with_queries", [True, False])
def test_the_recall_holds_for_inputs_unlike_those_of_fit(data, unlike, with_queries):
    rng = np.random.default_rng(0)
    W, X = data(rng, n=5000, d=48, n_queries=300)
    asked = UNLIKE[unlike](rng, X[150:])
    for wanted in (0.9, 0.99):
        index = sl.LSHIndex(recall=wanted, plan="sketches", random_state=0).fit(
            W, queries=X[:150] if with_queries else None)
        for k in (1, 5, 60):
            # two standard errors of independent misses
            noise = 2 * np.sqrt(wanted * (1 - wanted) / (len(asked) * k))
            assert found(index, W, asked, k) >= wanted - noise, (wanted, k)


def test_the_recall_holds_for_queries_that_are_made_of_neurons():
    # clusters of neurons some of which are far out, in a space whose directions count unequally for
    # the queries of fit: what is near one neuron need not be near the mean of its cell
    rng = np.random.default_rng(0)
    n, d, n_clusters = 12000, 48, 50
    scales = 1 / np.sqrt(np.arange(1, d + 1))
    centres = rng.standard_normal((n_clusters, d)) * np.sqrt(scales)
    far = np.exp(0.5 * rng.standard_normal((n, 1)))
    W = (centres[rng.integers(n_clusters, size=n)]
         + 0.5 * np.sqrt(scales.mean()) * far * rng.standard_normal((n, d))).astype(np.float32)
    X = (centres[rng.integers(n_clusters, size=300)]
         + 0.3 * rng.standard_normal((300, d))) * scales
    index = sl.LSHIndex(recall=0.9, plan="sketches", random_state=0).fit(
        W, queries=X.astype(np.float32))

    a, b, c = W[rng.integers(n, size=(3, 400))]
    U = W / np.linalg.norm(W, axis=1, keepdims=True)
    near = W[[np.argsort(U @ -x)[rng.integers(1, 20)] for x in a]]
    made = {"neurons": a, "analogies": a - b + c, "differences": a - near,
            "means": W[rng.integers(n, size=(400, 5))].mean(axis=1)}
    assert index._engine.sketches.cells is not None
    for (name, asked), k in itertools.product(made.items(), (1, 5, 50)):
        assert found(index, W, asked, k) >= 0.9, (name, k)


@pytest.mark.parametrize("with_bias", [True, False])
def test_the_recall_holds_for_each_k_up_to_all_neurons(with_bias):
    rng = np.random.default_rng(1)
    W, X = trained(rng, n=5000, d=24, n_queries=120)
    bias = rng.standard_normal(5000).astype(np.float32) if with_bias else None
    index = sl.LSHIndex(recall=0.95, plan="sketches", random_state=0).fit(W, bias, queries=X[:60])
    for k in (1, 2, 10, 100, 600, 700, 2500, 4999, 5000):
        assert found(index, W, X[60:], k, 0 if bias is None else bias) >= 0.95, k


@pytest.mark.parametrize("factor", [1e-30, 1e-15, 1e15, 1e30, 1e37])
@pytest.mark.parametrize("with_queries", [True, False])
def test_a_factor_of_the_weights_changes_no_answer(factor, with_queries):
    rng = np.random.default_rng(2)
    W, X = clustered(rng, n=4500, d=32, n_queries=80)
    W /= np.abs(W).max() * 16  # inner products with 1e37 stay finite
    X /= np.linalg.norm(X, axis=1, keepdims=True)
    bias = rng.standard_normal(4500).astype(np.float32) / 100
    options = {"recall": 0.95, "plan": "sketches", "random_state": 0}
    queries = X[:40] if with_queries else None
    plain = sl.LSHIndex(**options).fit(W, bias, queries=queries)
    scaled = sl.LSHIndex(**options).fit(W * np.float32(factor), bias * np.float32(factor),
                                        queries=queries)
    want = exact(W, X, 5, bias)[0]
    assert neighbour_recall(scaled.search(X, 5)[0], want) >= 0.95
    # the factor is no power of two: roundings differ, and with them hardly any answer
    assert neighbour_recall(scaled.search(X, 5)[0], plain.search(X, 5)[0]) >= 0.95


@pytest.mark.parametrize("scaling", ["auto", 0.5])
@pytest.mark.parametrize("factor", [1e-30, 1e20, 1e36])
def test_queries_of_any_scale_are_taken_by_fit(rng, factor, scaling):
    W, X = clustered(rng, n=4500, d=32, n_queries=400)
    X = (X * (np.float32(factor) / np.abs(X).max())).astype(np.float32)
    index = sl.LSHIndex(recall=0.95, scaling=scaling, plan="sketches", random_state=0)
    index.fit(W / np.abs(W).max(), queries=X[:200])
    scores, best = (index.search(X[200:], 5, exact=exact)[1] for exact in (False, True))
    assert (scores >= best[:, -1:] * (1 - 1e-6)).mean() >= 0.945  # but for roundings


def test_unit_vectors_are_found_whatever_the_norm_of_the_query(rng):
    W, X = gaussian(rng, 6000, 32), gaussian(rng, 100, 32)
    W = W / np.linalg.norm(W, axis=1, keepdims=True)
    index = sl.LSHIndex(random_state=0, plan="sketches").fit(W)
    answers = [index.search(X * np.float32(2.0**power), 5)[0] for power in (-60, -7, 0, 7, 60)]
    for other in answers[1:]:
        np.testing.assert_array_equal(answers[0], other)  # powers of two round nothing
    assert recall(index, W, X) >= 0.98


def test_a_query_of_zeros_finds_the_lowest_ids(rng):
    W = gaussian(rng, 5000, 16)
    index = sl.LSHIndex(random_state=0, plan="sketches").fit(W, queries=gaussian(rng, 50, 16))
    ids, scores = index.search(np.zeros((2, 16)), 4)
    np.testing.assert_array_equal(ids, [range(4)] * 2)
    assert np.all(scores == 0)


def test_all_as_candidates_and_all_as_neighbours_are_exact(rng):
    W, Q, X = gaussian(rng, 6000, 32), gaussian(rng, 300, 32), gaussian(rng, 50, 32)
    for plan in ("sketches", "auto"):
        index = sl.LSHIndex(random_state=0, plan=plan).fit(W, queries=Q)
        want = exact(W, X, 5)[0]
        np.testing.assert_array_equal(index.search(X, 5, n_candidates=len(W))[0], want)
        assert (np.sort(index.search(X[:2], len(W))[0]) == np.arange(len(W))).all()


def test_neurons_below_the_norm_floor_are_found_by_queries_that_need_them(rng):
    # long neurons in the first half of the dimensions, short ones in the second, where no query of
    # fit points
    W = np.zeros((6000, 32), np.float32)
    W[:1500, :16], W[1500:, 16:] = gaussian(rng, 1500, 16), gaussian(rng, 4500, 16) / 10
    X = np.zeros((200, 32), np.float32)
    X[:, :16] = gaussian(rng, 200, 16)
    index = sl.LSHIndex(plan="sketches", random_state=0).fit(W, queries=X)
    assert index.report()["n_sketched"] <= 1500
    for unlike in (np.ascontiguousarray(X[:, ::-1]), X[:, ::-1] + X):
        assert recall(index, W, unlike) >= 0.98
    W[3], W[4000] = W[4000].copy(), W[3].copy()
    index.update(W, [3, 4000]).remove([5000])
    for unlike in (np.ascontiguousarray(X[:, ::-1]), X):
        ids = index.search(unlike, 5)[0]
        true = exact(W, unlike, 6)[0]
        true = np.array([row[row != 5000][:5] for row in true])
        assert neighbour_recall(ids, true) >= 0.98


@pytest.mark.parametrize("storage", ["bfloat16", "int8"])
def test_rows_of_fewer_bits_keep_the_recall(storage):
    rng = np.random.default_rng(3)
    W, X = trained(rng, n=5000, n_queries=300)
    index = sl.LSHIndex(recall=0.95, plan="sketches", storage=storage, random_state=0).fit(
        W, queries=X[:150])
    for k in (1, 5, 60):
        assert found(index, W, X[150:] * np.float32(0.1), k) >= 0.95


def test_harder_queries_cost_more_and_not_recall():
    rng = np.random.default_rng(4)
    W, X = clustered(rng, n=5000, d=48)
    index = sl.LSHIndex(recall=0.95, plan="sketches", random_state=0).fit(W, queries=X)
    hard = rng.standard_normal(X.shape).astype(np.float32)
    costs = [index._engine.by_bound(x, 5, 1)[2][:, 0].mean() for x in (X, hard)]
    assert costs[0] < costs[1]
    assert min(found(index, W, x, 5) for x in (X, hard)) >= 0.95


def test_more_recall_has_wider_bounds_and_queries_only_widen_them(rng):
    floors = [Bounds.of_recall(wanted) for wanted in (0.5, 0.9, 0.99, 0.999, 1 - 1e-9)]
    for k in (1, 2, 5, 100):
        reach = [each.sketches_for(k) for each in floors]
        assert reach == sorted(reach) and reach[0] < reach[-1]
    assert all(a.cells > b.cells for a, b in itertools.pairwise(floors))
    assert floors[2].sketches_for(1) > floors[2].sketches_for(5) == floors[2].sketches_for(100)
    W, X = clustered(rng, n=4500, d=24)
    index = sl.LSHIndex(recall=0.9, plan="sketches", random_state=0).fit(W, queries=X)
    reached = index.report()["deviations"]
    assert reached["sketches"] >= 1 and reached["cells"] <= floors[1].cells
    trial = index.report()["trials"][-1]
    assert trial["deviations"] == reached["sketches"] * floors[1].sketches_for(5)
    assert trial["n_candidates"] == round(index.report()["n_computed"])


@pytest.mark.parametrize("n", [1, 2, 9, 40])
@pytest.mark.parametrize("d", [1, 2, 3])
def test_few_neurons_of_few_dimensions_are_all_found(rng, n, d):
    W, X = gaussian(rng, n, d), gaussian(rng, 30, d)
    for queries in (None, X):
        index = sl.LSHIndex(random_state=0, plan="sketches").fit(W, queries=queries)
        assert found(index, W, X, 1) == 1


def test_answers_are_the_same_for_any_number_of_threads_and_any_history(monkeypatch, rng):
    monkeypatch.setattr("sparselsh.index._build.CELLS_MIN_NEURONS", 16)
    W, X = clustered(rng, n=1500, d=32)
    one, two = (sl.LSHIndex(random_state=0, plan="sketches", n_threads=n).fit(W, queries=X)
                for n in (1, 2))
    for a, b in zip(one.search(X), two.search(X), strict=True):
        assert_same_bits(a, b)
    for rows in np.array_split(rng.permutation(1500), 5):
        two.remove(rows)
        two.update(W, rows)
    for a, b in zip(one.search(X), two.search(X), strict=True):
        assert_same_bits(a, b)


# ---- which neurons may be found


def brute_force(W, X, k, able):
    scores = np.where(able, X.astype(float) @ W.T, -np.inf)
    ids = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.where(np.isneginf(np.take_along_axis(scores, ids, 1)), -1, ids)


def selections(rng, n, n_queries):
    """Arguments of a search, and the neurons that each query may find."""
    few, many, some = (rng.random(n) < share for share in (0.004, 0.4, 0.03))
    lists = rng.random((n_queries, n)) < 0.01
    half = rng.random((n_queries, n)) < 0.5
    everyone = np.ones((n_queries, n), bool)
    csr = sp.csr_array
    return [
        ({"allow": many}, everyone & many), ({"allow": some}, everyone & some),
        ({"allow": np.flatnonzero(few)}, everyone & few), ({"exclude": many}, everyone & ~many),
        ({"exclude": np.flatnonzero(some)}, everyone & ~some),
        ({"allow": many, "exclude": some}, everyone & many & ~some),
        ({"exclude": csr(lists)}, ~lists), ({"allow": csr(lists)}, lists),
        ({"allow": csr(half)}, half), ({"allow": csr(half), "exclude": some}, half & ~some),
        ({"allow": many, "exclude": csr(half)}, many & ~half),
        ({"allow": csr(half), "exclude": csr(lists)}, half & ~lists),
        ({"allow": []}, everyone & False), ({"exclude": []}, everyone),
    ]


@pytest.mark.parametrize("plan", ["sketches", "exact"])
@pytest.mark.parametrize("n_queries", [1, 40])
def test_a_search_finds_the_best_of_the_neurons_that_it_may_find(rng, plan, n_queries):
    W, X = clustered(rng, n=5000, d=24, n_queries=140)
    index = sl.LSHIndex(recall=0.99, plan=plan, random_state=0).fit(W, queries=X[:100])
    gone = rng.permutation(5000)[:200]
    X = X[100:100 + n_queries]
    for removed in (False, True):
        if removed:
            index.remove(gone)
        hits, all_ = 0, 0
        for arguments, able in selections(rng, 5000, n_queries):
            if removed:
                able = able.copy()
                able[:, gone] = False
            ids, scores = index.search(X, 6, **arguments)
            want = brute_force(W, X, 6, able)
            assert able[np.arange(n_queries)[:, None], np.maximum(ids, 0)][ids >= 0].all()
            np.testing.assert_array_equal(ids == -1, want == -1)
            assert np.isneginf(scores[ids == -1]).all()
            hits += (ids[:, :, None] == want[:, None, :]).any(axis=2)[ids >= 0].sum()
            all_ += (want >= 0).sum()
        assert hits >= 0.99 * all_


def test_a_network_finds_the_best_of_the_labels_that_it_may_find(rng):
    W, X = trained(rng, n=5000, d=16, n_queries=60)
    layer = sl.LSHLinear.from_dense(W, queries=X)
    net = sl.Network([layer], random_state=0)
    net.fit(X, np.arange(60), epochs=1, optimizer=sl.SGD(1e-9), verbose=False)
    W = np.array(net.layers[0].weight)
    for arguments, able in selections(rng, 5000, 60):
        for exact_ in (False, True):
            ids, _ = net.topk(X, 6, exact=exact_, **arguments)
            want = brute_force(W, X, 6, able)
            assert (ids == want).mean() >= 0.98
            assert able[np.arange(60)[:, None], np.maximum(ids, 0)][ids >= 0].all()


# ---- confidence


@pytest.mark.parametrize("data", [clustered, trained])
@pytest.mark.parametrize("with_queries", [True, False])
@pytest.mark.parametrize("wanted", [0.5, 0.9, 0.999])
def test_as_many_answers_are_wrong_as_their_confidence_says(data, with_queries, wanted):
    rng = np.random.default_rng(5)
    W, X = data(rng, n=8000, d=72, n_queries=900)
    index = sl.LSHIndex(recall=0.9, plan="sketches", random_state=0).fit(
        W, queries=X[:100] if with_queries else None)
    for k in (1, 5):
        ids, _, confidence = few_at_a_time(
            lambda rows, k=k: index.search(rows, k, certify=wanted), X[100:])
        want = exact(W, X[100:], k)[0]
        wrong = (np.sort(ids) != np.sort(want)).any(axis=1).mean()
        assert ((wanted <= confidence) & (confidence <= 1)).all()
        # the confidence knows the errors of the estimates, but not that most neurons are far from
        # the best: it is a lower bound
        assert wrong <= (1 - confidence).mean() + 2 * np.sqrt(wrong / 800)


def test_exact_answers_are_sure_and_selections_are_certified(rng):
    W, X = clustered(rng, n=5000, d=128, n_queries=40)
    index = sl.LSHIndex(recall=0.999, random_state=0, plan="sketches").fit(W, queries=X)
    mask = rng.random(5000) < 0.5
    ids, _, confidence = few_at_a_time(
        lambda rows: index.search(rows, 5, allow=mask, certify=True), X)
    np.testing.assert_array_equal(ids[confidence > 0.999],
                                  brute_force(W, X, 5, mask)[confidence > 0.999])
    assert np.all(confidence < 1)
    assert np.all(index.search(X[:9], 2000, certify=True)[2] == 1)
    exactly = sl.LSHIndex(plan="exact").fit(W)
    assert np.all(exactly.search(X, 5, exclude=mask, certify=True)[2] == 1)


# ---- metrics


@pytest.mark.parametrize("with_queries", [True, False])
@pytest.mark.parametrize("plan", ["sketches", "exact"])
def test_cosines_and_distances_are_those_of_the_nearest(rng, with_queries, plan):
    W, X = clustered(rng, n=5000, d=24, n_queries=150)
    W = W + np.float32(3)  # far from the origin
    X = X + np.float32(3)
    queries = X[:100] if with_queries else None
    X = X[100:]

    index = sl.LSHIndex(metric="cosine", plan=plan, random_state=0).fit(W, queries=queries)
    units = [a / np.linalg.norm(a, axis=1, keepdims=True) for a in (W, X)]
    ids, scores = index.search(X * np.float32(7), 5)
    assert neighbour_recall(ids, exact(*units, 5)[0]) >= 0.98
    np.testing.assert_allclose(scores, np.take_along_axis(units[1] @ units[0].T, ids, 1), atol=1e-5)

    index = sl.LSHIndex(metric="l2", plan=plan, random_state=0).fit(W, queries=queries)
    distances = np.linalg.norm(X[:, None].astype(float) - W[None], axis=2)
    ids, scores = index.search(X, 5)
    assert neighbour_recall(ids, np.argsort(distances, axis=1)[:, :5]) >= 0.98
    np.testing.assert_allclose(scores, np.take_along_axis(distances, ids, 1), rtol=1e-5)
    assert np.all(np.diff(scores, axis=1) >= -1e-5)


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_changes_keep_the_metric(rng, metric, tmp_path):
    pytest.importorskip("safetensors")
    W, X = clustered(rng, n=600, d=16, n_queries=40)
    options = {"metric": metric, "plan": "sketches", "random_state": 0, "center": False}
    index = sl.LSHIndex(**options).fit(W[:500])
    index.add(W[500:])
    changed = W.copy()
    changed[[3, 550]] = W[[550, 3]]
    index.update(changed[[3, 550]], [3, 550])
    whole = sl.LSHIndex(**options).fit(changed)
    for a, b in zip(index.search(X), whole.search(X), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    index.save(tmp_path / "i")
    loaded = sl.LSHIndex.load(tmp_path / "i", changed)
    assert loaded.metric == metric
    for a, b in zip(index.search(X), loaded.search(X), strict=True):
        assert_same_bits(a, b)


def check_through_changes(check, index, W, folder):
    """check(index) after `add` of the rows from 2500 on, `update`, a file and a copy."""
    index.add(W[2500:])
    check(index)
    W[[3, 2600]] = W[[2600, 3]]
    index.update(W, [3, 2600])
    check(index)
    index.save(folder / "i")
    check(sl.LSHIndex.load(folder / "i", W))
    check(copy.deepcopy(index))


@pytest.mark.parametrize("plan", ["sketches", "exact"])
@pytest.mark.parametrize(("d", "far"), [(2, 5e5), (24, 3e4)])
def test_distances_between_rows_far_from_zero(rng, plan, d, far, tmp_path):
    W, X = [np.float32(100) * a + np.float32(far)
            for a in clustered(rng, n=3000, d=d, n_queries=60)]

    def check(index):
        distances = np.linalg.norm(X[:, None].astype(float) - W[None], axis=2)
        ids, scores = index.search(X, 5)
        assert neighbour_recall(ids, np.argsort(distances, axis=1)[:, :5]) >= 0.98
        np.testing.assert_allclose(scores, np.take_along_axis(distances, ids, 1), rtol=1e-4,
                                   atol=1e-2)

    index = sl.LSHIndex(metric="l2", plan=plan, random_state=0).fit(W[:2500], queries=X[:30])
    check_through_changes(check, index, W, tmp_path)


@pytest.mark.parametrize("factor", [1e-37, 1e-30, 1e-19, 1e-16, 1e-7, 1e16, 1e19, 1e30, 1e36])
@pytest.mark.parametrize("with_queries", [False, True])
@pytest.mark.parametrize("plan", ["sketches", "exact"])
def test_a_factor_of_rows_and_queries_scales_the_distances(rng, factor, with_queries, plan,
                                                           tmp_path):
    W, X = [np.float32(factor) * a for a in clustered(rng, n=3000, d=24, n_queries=90)]
    queries, X = X[:30] if with_queries else None, X[30:]
    # where coordinates keep fewer digits, because they are subnormal, distances do
    tolerance = 1e-5 if factor > 1e-36 else 1e-2

    def check(index):
        distances = np.linalg.norm(X[:, None].astype(float) - W[None], axis=2)
        ids, scores = index.search(X, 5)
        assert neighbour_recall(ids, np.argsort(distances, axis=1)[:, :5]) >= 0.98
        truth = np.take_along_axis(distances, ids, 1)
        np.testing.assert_allclose(scores / factor, truth / factor, rtol=tolerance, atol=1e-5)
        np.testing.assert_array_equal(index.score(X, ids), scores)
        ids, _, confidence = index.search(X, 5, certify=True)
        assert confidence.min() >= 0.999
        assert neighbour_recall(ids, np.argsort(distances, axis=1)[:, :5]) >= 0.998

    index = sl.LSHIndex(metric="l2", plan=plan, random_state=0).fit(W[:2500], queries=queries)
    check_through_changes(check, index, W, tmp_path)


@pytest.mark.parametrize("offset", [0, 1.5, 3, 100])
def test_exact_distances_rank_rows_that_are_close(rng, offset):
    W = (rng.standard_normal((3000, 1)) + offset).astype(np.float32)
    X = W[:60] + (rng.standard_normal((60, 1)) / 10).astype(np.float32)
    index = sl.LSHIndex(metric="l2", random_state=0).fit(W)
    distances = np.abs(X[:, None, 0].astype(float) - W[None, :, 0])
    for k in (1, 10):
        ids, scores = index.search(X, k, exact=True)
        np.testing.assert_allclose(scores, np.sort(distances, axis=1)[:, :k],
                                   rtol=1e-5, atol=1e-6 * max(offset, 1))
        assert ids.shape == (60, k)


@pytest.mark.parametrize("storage", ["bfloat16", "int8"])
@pytest.mark.parametrize("metric", ["ip", "l2"])
def test_rows_that_few_bits_do_not_tell_apart_are_found(rng, storage, metric):
    d = 1 if metric == "l2" else 2
    W = (rng.standard_normal((1500, d)) + 3).astype(np.float32)  # rounded by more than they differ
    X = W[:60] + (rng.standard_normal((60, d)) / 10).astype(np.float32)
    if metric == "ip":  # all products of a query are almost equal
        W, X = (np.float32(a / np.linalg.norm(a, axis=1, keepdims=True)) for a in (W, X))
    index = sl.LSHIndex(metric=metric, storage=storage, plan="sketches", random_state=0).fit(W)
    kth = sl.LSHIndex(metric=metric, plan="exact").fit(W).search(X, 10)[1][:, -1:]
    for found in (index.search(X, 10)[1], np.concatenate([index.search(x[None], 10)[1] for x in X]),
                  index.search(X, 10, exclude=[0])[1]):
        within = found <= kth + 1e-6 if metric == "l2" else found >= kth - 1e-6
        assert within.mean() >= 0.98


@pytest.mark.parametrize("metric", ["ip", "cosine", "l2"])
@pytest.mark.parametrize(("d", "options"), [(512, {}), (600, {}), (520, {"sketch_bits": 1024}),
                                            (700, {"scaling": 0.5}), (512, {"center": False})])
def test_wide_rows_keep_the_promise(rng, metric, d, options, tmp_path):
    if metric == "l2" and "scaling" in options:
        pytest.skip("distances have no scaling")
    W, X = clustered(rng, n=4600, d=d, n_queries=90)
    options = {"metric": metric, "plan": "sketches", "recall": 0.98, "random_state": 0} | options
    index = sl.LSHIndex(**options).fit(W[:4500], queries=X[:40])
    index.add(W[4500:])
    index.remove([7, 4550])
    index.update(W[[7]], [7])
    exact = sl.LSHIndex(metric=metric, plan="exact").fit(W).remove([4550])
    X = X[40:]
    for k in (1, 5, 60):
        assert neighbour_recall(index.search(X, k)[0], exact.search(X, k)[0]) >= 0.96, k
    index.save(tmp_path / "i")
    loaded = sl.LSHIndex.load(tmp_path / "i", W)
    for a, b, c in zip(index.search(X, 5), loaded.search(X, 5), copy.deepcopy(index).search(X, 5),
                       strict=True):
        assert_same_bits(a, b)
        assert_same_bits(a, c)
    one_by_one = np.concatenate([index.search(x[None], 5)[0] for x in X])
    assert neighbour_recall(one_by_one, exact.search(X, 5)[0]) >= 0.96


def test_the_rotation_of_wide_rows_is_chosen_by_the_scaling(rng):
    W, X = clustered(rng, n=3000, d=600, n_queries=90)
    fast = sl.LSHIndex(plan="sketches", random_state=0).fit(W, queries=X)
    assert fast.report()["scaling"] == 0
    assert fast._engine.sketches.rotation.signs is not None
    scaled = sl.LSHIndex(plan="sketches", scaling=0.5, random_state=0).fit(W, queries=X)
    assert scaled._engine.sketches.rotation.signs is None


@pytest.mark.parametrize("size", [1e-38, 1.0, 1e30])
@pytest.mark.parametrize("distance", [1e-38, 1e-20, 1.0, 1e20, 3e38])
def test_distances_of_queries_of_any_size(rng, size, distance):
    W, X = clustered(rng, n=500, d=16, n_queries=20)
    W *= np.float32(size / np.abs(W).max())
    X *= np.float32(distance / np.abs(X).max())
    index = sl.LSHIndex(metric="l2", plan="sketches", random_state=0).fit(W)
    distances = np.linalg.norm(X[:, None].astype(float) - W[None], axis=2)
    ids, scores = index.search(X, 5, exact=True)
    with np.errstate(over="ignore"):
        expected = np.take_along_axis(distances, ids, 1).astype(np.float32)
    np.testing.assert_allclose(scores, expected, rtol=1e-4)
    worst = np.sort(distances, axis=1)[:, 4]
    np.testing.assert_allclose(np.take_along_axis(distances, ids, 1).max(axis=1), worst, rtol=1e-5)
    assert neighbour_recall(index.search(X, 5)[0], ids) >= 0.98


def test_an_index_of_distances_refuses_rows_that_are_too_far(rng):
    W = rng.standard_normal((50, 8), np.float32)
    index = sl.LSHIndex(metric="l2").fit(W)
    with pytest.raises(ValueError, match=r"row 1 is too far from the rows given to fit"):
        index.add(np.float32([[1] * 8, [1e30] * 8]))
    assert len(index) == 50


@pytest.mark.parametrize("plan", ["sketches", "exact"])
def test_an_update_in_place_keeps_the_distances(rng, plan):
    W, X = clustered(rng, n=600, d=16, n_queries=40)
    index = sl.LSHIndex(metric="l2", plan=plan, random_state=0).fit(W)
    W[:50] *= np.float32(3)
    index.update(W, np.arange(50))
    distances = np.linalg.norm(X[:, None].astype(float) - W[None], axis=2)
    ids = index.search(X, 5)[0]
    assert neighbour_recall(ids, np.argsort(distances, axis=1)[:, :5]) >= 0.98


# ---- own ids, changes


@pytest.mark.parametrize("names", [lambda rows: [f"item {j}" for j in rows],
                                   lambda rows: np.asarray(rows, np.int64) * 10**10 + 7])
def test_own_ids_are_returned_and_taken(rng, names, tmp_path):
    pytest.importorskip("safetensors")
    W, X = clustered(rng, n=500, d=16, n_queries=20)
    plain = sl.LSHIndex(random_state=0, plan="sketches").fit(W[:400])
    own = sl.LSHIndex(random_state=0, plan="sketches").fit(W[:400], ids=names(range(400)))
    own.add(W[400:], ids=names(range(400, 500))).remove(names([3, 450]))
    plain.add(W[400:]).remove([3, 450])
    own.update(W[[3]] * 2, names([3]))
    plain.update(W[[3]] * 2, [3])
    assert len(own) == len(plain) == 499
    changed = W.copy()
    changed[3] *= 2
    own.save(tmp_path / "i")
    for index in (own, sl.LSHIndex.load(tmp_path / "i", changed)):
        for arguments in ({}, {"allow": range(30)}, {"exclude": range(30)}):
            ids, scores = index.search(X, **{key: names(v) for key, v in arguments.items()})
            want, want_scores = plain.search(X, **{key: list(v) for key, v in arguments.items()})
            np.testing.assert_array_equal(ids, np.array(names(want.ravel())).reshape(want.shape))
            assert_same_bits(scores, want_scores)
    ids, _ = own.search(X[:1], 500)
    assert ids[0, -1] in ("", -1) and ids.dtype.kind in "iU"


def test_the_whole_matrix_is_refused_in_words(rng):
    W = gaussian(rng, 300, 8)
    index = sl.LSHIndex(random_state=0).fit(W[:200])
    with pytest.raises(ValueError, match=r"new neurons alone.*pass rows\[200:\]"):
        index.add(W)
    assert len(index) == 200
    assert len(index.add(W[200:])) == 300


# ---- calls that fail


STEPS = ["sparselsh.index._sketches.Sketches._errors", "sparselsh.index._sketches.Sketches._tidy",
         "sparselsh.index._sketches._sketches.pack", "sparselsh.index._sketches.Sketches._reserve",
         "sparselsh.index._tables.Tables.build", "sparselsh.index._sketches.Sketches.remove",
         "sparselsh.index._cells.Cells.assign", "sparselsh.index._build.tuning.recall_of"]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
def test_a_call_that_fails_leaves_the_index_as_it_was(monkeypatch, rng, step, error):
    monkeypatch.setattr("sparselsh.index._build.CELLS_MIN_NEURONS", 16)
    W, X = clustered(rng, n=700, d=16, n_queries=40)
    index = sl.LSHIndex(sl.SimHash(4, 5), random_state=0, plan="sketches", dynamic=True).fit(
        W[:600], queries=X)
    index.update(W[:600].copy(), np.arange(0, 600, 7)).remove([5, 6])

    def answers():
        active = index.query(X, 50)
        return [*index.search(X, 7), active.indices, active.data, np.array(len(index))]

    before = answers()
    places, name = step.rsplit(".", 1)
    owner = __import__("functools").reduce(getattr, places.split(".")[1:], sl)
    real, calls = getattr(owner, name), []

    def failing(*arguments, **options):
        calls.append(1)
        if len(calls) == 1:
            raise error
        return real(*arguments, **options)

    changed = W[:600] + np.float32(1)
    for call in (lambda: index.fit(changed, queries=X), lambda: index.add(W[600:]),
                 lambda: index.update(changed, np.arange(50, 90)),
                 lambda: index.update(changed[:9], np.arange(5, 14)),
                 lambda: index.remove(np.arange(40)), lambda: index.tune(X)):
        del calls[:]
        monkeypatch.setattr(owner, name, failing)
        try:
            call()
        except error:
            failed = True
        else:
            failed = False
        monkeypatch.setattr(owner, name, real)
        if failed:
            for a, b in zip(before, answers(), strict=True):
                assert_same_bits(a, b)
        else:
            assert not calls, "each failure reaches the caller"
            index.fit(W[:600], queries=X).remove([5, 6])
            before = answers()


def test_files_of_earlier_versions_get_their_errors_from_the_weights(rng, tmp_path, monkeypatch):
    pytest.importorskip("safetensors")
    import json

    from sparselsh import _files
    from sparselsh.index import _file

    monkeypatch.setattr("sparselsh.index._build.CELLS_MIN_NEURONS", 16)
    W, X = clustered(rng, n=700, d=16, n_queries=40)
    W[300:] *= np.float32(0.02)
    index = sl.LSHIndex(random_state=0, plan="sketches").fit(W, queries=X)
    index.save(tmp_path / "i")
    tensors, config = _file.read(tmp_path / "i")
    for name in ("errors", "biases", "short_norms", "cell_biases", "cell_sizes", "cell_scales",
                 "cell_spread", "cell_variances", "cell_tails"):
        tensors.pop(name, None)
    for name in ("bounds", "n_computed", "vector_scale"):
        config.pop(name)
    config["arguments"].pop("metric")
    config |= {"n_candidates": 16, "n_cells_probed": 3}
    _files.write_checked(tmp_path / "old", tensors, _file.FORMAT, json.dumps(config))
    old = sl.LSHIndex.load(tmp_path / "old", W)
    assert old.n_candidates is None
    a, b = old._engine.sketches, index._engine.sketches
    np.testing.assert_allclose(a.errors, b.errors, rtol=1e-5)
    np.testing.assert_allclose(a.short_norms, b.short_norms, rtol=1e-5)
    assert recall(old, W, X) >= 0.98


def test_pickles_of_earlier_versions_are_searched_as_they_were(rng, monkeypatch):
    import pickle

    W, X = clustered(rng, n=5000, d=16, n_queries=40)
    index = sl.LSHIndex(random_state=0, plan="sketches", recall=0.95).fit(W, queries=X)
    cells = index._engine.sketches.cells
    cells.spread = cells.spread[:0]
    index._engine.sketches.prepare(index._engine.transform)
    for part, names in ((index._engine.sketches.bounds, ["raises"]),
                        (cells, ["sizes", "scales", "spread", "variances", "tails"])):
        for name in names:
            delattr(part, name)
    old = pickle.loads(pickle.dumps(index))
    assert (len(old._engine.sketches.cells.spread), old._engine.sketches.bounds.raises) == (0, [])
    assert recall(old, W, X) >= 0.945


def test_the_spread_of_cells_is_that_of_their_neurons(rng):
    centres = gaussian(rng, 20, 40)
    cell = rng.integers(20, size=20_000).astype(np.int32)
    scales = np.where(np.arange(40) < 5, 3.0, 0.5)
    lengths = rng.choice([1.0, 4.0], len(cell), p=[0.95, 0.05])  # a few are far from their mean
    beyond = gaussian(rng, len(cell), 40) * scales * lengths[:, None]
    V = (centres[cell] + beyond).astype(np.float32)
    biases = gaussian(rng, len(cell)).copy()
    biases[7] = 30  # one is far above all others
    cells = Cells(centres, centres)
    some = np.arange(0, len(cell), 4)
    squares = np.square(V.astype(float)).sum(axis=1)
    cells.measure_spread(V[some], some, squares, biases, cell, rng, 1)

    Q = gaussian(rng, 8, 40) * np.where(np.arange(40) < 5, 0.2, 2)
    beyond = (V - centres[cell]) @ Q.T
    variances = cells.variances[0] * np.square(Q).sum(axis=1)
    variances += np.square(Q @ cells.spread.T).sum(axis=1)
    np.testing.assert_allclose(variances, beyond.var(axis=0), rtol=0.15)
    for deviations in (1, 2, 4, 6):
        fraction = (beyond > deviations * np.sqrt(variances)).mean()
        assert cells.tails[deviations * TAIL_STEPS] == pytest.approx(fraction, rel=0.25)
    assert cells.tails[0] == pytest.approx(0.5, rel=0.03) and (np.diff(cells.tails) <= 0).all()
    np.testing.assert_array_equal(cells.sizes, np.bincount(cell, minlength=20))
    np.testing.assert_allclose(cells.scales, 1, rtol=0.15)
    assert cells.variances[1] == pytest.approx(900 / (2 * np.log(len(cell))), rel=0.01)


@pytest.mark.parametrize("n, d", [(1, 3), (40, 1), (40, 5)])
def test_the_spread_of_equal_neurons_is_none(rng, n, d):
    V = np.ones((n, d), np.float32)
    cells = Cells(V[:1], V[:1], np.ones(1, np.float32))
    cells.measure_spread(V, np.arange(n), np.full(n, float(d)), np.ones(n, np.float32),
                         np.zeros(n, np.int32), rng, 1)
    assert np.abs(cells.spread).max() < 1e-6 and (cells.variances == 0).all()
    assert np.isfinite(cells.tails).all()


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_cells_keep_the_recall_without_queries(rng, metric):
    W, X = clustered(rng, n=9000)
    W, X = W + 3, X + 3
    index = sl.LSHIndex(plan="sketches", metric=metric, recall=0.95, random_state=0).fit(W)
    exact = sl.LSHIndex(plan="exact", metric=metric).fit(W)
    counts = index._engine.by_bound(index._sampled(X), 5, 1)[2]
    assert counts[:, 1].mean() < 5000  # of 9,000 sketches
    for k in (1, 5, 50):
        found, best = index.search(X, k)[0], exact.search(X, k)[0]
        hits = [len(np.intersect1d(a, b)) for a, b in zip(found, best, strict=True)]
        assert np.mean(hits) >= 0.945 * k


def test_what_tells_neurons_of_a_cell_apart_is_found_without_queries(rng):
    # each group has a direction of its own, in which the law of all cells expects little
    centres, directions = gaussian(rng, 100, 48), gaussian(rng, 100, 48)
    group = rng.integers(100, size=12_000)
    lengths = gaussian(rng, len(group), 1) / np.linalg.norm(directions[group], axis=1)[:, None]
    W = 4 * lengths * directions[group] + 4 / np.sqrt(48) * centres[group]
    W = (W + 0.01 * gaussian(rng, *W.shape)).astype(np.float32)
    X = directions[rng.integers(100, size=300)].astype(np.float32)
    index = sl.LSHIndex(plan="sketches", metric="cosine", recall=0.98, random_state=0).fit(W)
    exact = sl.LSHIndex(plan="exact", metric="cosine").fit(W)
    for k in (5, 20):
        assert neighbour_recall(index.search(X, k)[0], exact.search(X, k)[0]) >= 0.975


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_neurons_without_clusters_get_no_cells(rng, metric):
    W, X = (rng.standard_normal((n, 64), dtype=np.float32) for n in (6000, 50))
    index = sl.LSHIndex(plan="sketches", metric=metric, recall=0.95, random_state=0).fit(W)
    assert index._engine.sketches.cells is None
    counts = index._engine.by_bound(index._sampled(X), 5, 1)[2]
    assert (counts[:, 1] >= 6000).all()  # whole blocks of them
    index.add(X)  # late neurons are found, too
    np.testing.assert_array_equal(index.search(X, 1)[0][:, 0], 6000 + np.arange(50))


@pytest.mark.parametrize("queries", [True, False])
def test_cells_of_distances_keep_the_recall_where_lengths_differ_much(rng, queries):
    # many rows near zero, in all directions: cells of directions had one neighbour of twenty
    directions = rng.standard_normal((60, 64))

    def around(n):
        near = 0.3 * rng.standard_normal((n, 64))
        return (directions[rng.integers(60, size=n)] + near).astype(np.float32)

    W = around(12000) * (np.exp(1.5 * rng.standard_normal((12000, 1))) / 100).astype(np.float32)
    X = around(200) * np.float32(0.03)
    index = sl.LSHIndex(plan="sketches", metric="l2", recall=0.95, random_state=0)
    index.fit(W, queries=W[:200] if queries else None)  # unlike those that follow
    exact = sl.LSHIndex(plan="exact", metric="l2").fit(W)
    for k in (1, 5, 50):
        found, best = index.search(X, k)[0], exact.search(X, k)[0]
        hits = [len(np.intersect1d(a, b)) for a, b in zip(found, best, strict=True)]
        assert np.mean(hits) >= 0.945 * k


def test_cells_that_miss_the_recall_are_all_scanned(rng, monkeypatch, tmp_path):
    from sparselsh.index import _cells

    W, X = clustered(rng, n=6000)
    # neurons in cells by chance
    monkeypatch.setattr(_cells.Cells, "assign", lambda self, V, n_threads: rng.integers(
        0, self.n, len(V)).astype(np.int32))
    index = sl.LSHIndex(plan="sketches", recall=0.95, random_state=0).fit(W, queries=X)
    exact = sl.LSHIndex(plan="exact").fit(W)
    for again in (index, sl.LSHIndex.load(index.save(tmp_path / "index") or tmp_path / "index", W)):
        for k in (1, 5, 50):
            found, best = again.search(X, k)[0], exact.search(X, k)[0]
            hits = [len(np.intersect1d(a, b)) for a, b in zip(found, best, strict=True)]
            assert np.mean(hits) >= 0.945 * k
