"""Scores of given neurons, estimates of all, and log-sum-exps: of indexes, layers and networks."""
import numpy as np
import pytest
import reference
from support import UNIT, assert_same_bits, clustered, few_at_a_time, trained

import sparselsh as sl
from sparselsh._arrays.selection import Selection

N, D = 12_000, 64  # enough weights for codes


def data(rng, n=N):
    W, X = trained(rng, n=n, d=D, n_queries=100)
    return W, rng.standard_normal(n).astype(np.float32), X


def all_scores(W, bias, X):
    return X.astype(float) @ W.astype(float).T + bias


# float32 sums of D terms and a bias, relative to the sum of their magnitudes
def rounding(W, bias, X):
    return (D + 3) * UNIT * (np.abs(X) @ np.abs(W).T + np.abs(bias))


@pytest.fixture
def made():
    W, bias, X = data(np.random.default_rng(3))
    index = sl.LSHIndex(recall=0.99, plan="sketches", random_state=0)
    return W, bias, X[50:], index.fit(W, bias, queries=X[:50])


def test_scores_are_exact(made):
    W, bias, X, index = made
    want = all_scores(W, bias, X)
    same = index.score(X, [5, 3, -1])
    assert np.all(np.isneginf(same[:, 2]))
    assert np.all(np.abs(same[:, :2] - want[:, [5, 3]]) <= rounding(W, bias, X)[:, [5, 3]])
    ids, scores = index.search(X, 7)
    assert_same_bits(index.score(X, ids), scores)


def test_scores_of_distances_and_cosines_are_those_of_a_search(made):
    W, _, X, _ = made
    for metric, none in (("cosine", -np.inf), ("l2", np.inf)):
        index = sl.LSHIndex(metric=metric, random_state=0).fit(W)
        ids, scores = index.search(X, 4)
        assert_same_bits(index.score(X, ids), scores)
        assert np.all(index.score(X, [-1]) == none)
        assert np.all(index.remove([2]).score(X, [2]) == none)


def test_scores_take_own_ids(made):
    W, bias, X, index = made
    names = np.array([f"n{j}" for j in range(N)])
    named = sl.LSHIndex(random_state=0).fit(W, bias, ids=names)
    assert_same_bits(named.score(X, ["n4", "", "n9"]), index.score(X, [4, -1, 9]))


@pytest.mark.parametrize("n_queries", [5, 50])  # few by codes, a batch by a product
@pytest.mark.parametrize("scale", [0.1, 1, 10])
def test_the_logarithm_of_a_sum_is_within_its_error(made, n_queries, scale):
    W, bias, X, index = made
    X = X[:n_queries] * np.float32(scale)
    values, errors = index.logsumexp(X)
    assert np.all(np.abs(values - reference.log_sum_exp(all_scores(W, bias, X))) <= errors)
    assert np.all(errors <= 0.01)


def test_an_index_that_changes_is_estimated_as_it_is(made):
    W, bias, X, index = made
    X = X[:5]
    index.logsumexp(X)  # makes the codes
    rng = np.random.default_rng(0)
    new = (3 * rng.standard_normal((40, D))).astype(np.float32)
    changed, gone = np.arange(100, 140), np.arange(200, 1200)
    index.add(new, np.ones(40))
    index.update(new[::-1].copy(), changed)
    index.remove(gone)
    W, bias = np.concatenate([W, new]), np.concatenate([bias, np.ones(40, np.float32)])
    W[changed] = new[::-1]
    want = all_scores(W, bias, X)
    want[:, gone] = -np.inf
    values, errors = index.logsumexp(X)
    assert np.all(np.abs(values - reference.log_sum_exp(want)) <= errors)
    for bits in (1, 8):
        got, deviations = index.estimate(X, bits=bits)
        assert np.all(np.isneginf(got[:, gone])) and np.all(deviations[:, gone] == 0)
        live = np.isfinite(want)
        # of 65,000 estimates one would be beyond 4.3 deviations
        assert np.all(np.abs(got[live] - want[live]) <= 6 * deviations[live])


def test_a_failed_change_leaves_no_wrong_codes(made, monkeypatch):
    W, _, X, index = made
    want, _ = index.logsumexp(X[:5])
    sketches = type(index._engine.sketches)

    def fail(*args):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(sketches, "update", fail)
        with pytest.raises(MemoryError):
            index.update(10 * W[:50], np.arange(50))
    got, _ = index.logsumexp(X[:5])
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("bits", [1, 8])
@pytest.mark.parametrize("with_floor", [True, False])
@pytest.mark.parametrize("shift", ["like the queries", "noise"])
def test_estimates_are_off_by_their_deviations(bits, with_floor, shift):
    rng = np.random.default_rng(1)
    W, bias, X = data(rng)
    if with_floor:  # few long neurons
        W = rng.standard_normal((N, D)) * rng.lognormal(0, 1, (N, 1))
        W, bias = W.astype(np.float32), 0 * bias
        X = rng.standard_normal(X.shape).astype(np.float32)
    index = sl.LSHIndex(recall=0.99, plan="sketches", random_state=0).fit(W, bias, queries=X[:50])
    assert (index.report()["n_sketched"] < N) == with_floor
    X = X[50:70]
    if shift == "noise":
        X = X + X.std() * rng.standard_normal(X.shape).astype(np.float32)
    got, deviations = index.estimate(X, bits=bits)
    off = (got - all_scores(W, bias, X)) / deviations
    assert 0.7 < off.std() < 1.2
    assert abs(off.mean()) < 0.1


def test_the_best_of_the_estimates_are_exact_and_above_all_others(made):
    _, _, X, index = made
    X = X[:10]
    ids, scores = index.search(X, 6)
    for bits in (1, 8):
        got, deviations = index.estimate(X, 6, bits=bits)
        assert_same_bits(np.take_along_axis(got, ids, 1), scores)
        assert np.all(np.take_along_axis(deviations, ids, 1) == 0)
        assert np.all((deviations == 0).sum(axis=1) == 6)
        np.put_along_axis(got, ids, -np.inf, 1)
        assert np.all(got.max(axis=1) <= scores[:, -1])


def test_8_bits_are_far_more_accurate_than_1(made):
    _, _, X, index = made
    one, eight = (np.median(index.estimate(X[:10], bits=bits)[1]) for bits in (1, 8))
    assert eight < one / 10


def test_in_a_batch_all_scores_are_computed(made):
    W, bias, X, index = made
    for bits in (1, 8):
        got, deviations = index.estimate(X, 3, bits=bits)
        assert np.all(deviations == 0)
        assert np.all(np.abs(got - all_scores(W, bias, X)) <= rounding(W, bias, X))


@pytest.mark.parametrize("factor", [1e-30, 1e-8, 1e8, 1e30])
def test_estimates_hold_for_any_factor_of_weights_and_queries(factor):
    W, X = clustered(np.random.default_rng(0), n=N, d=D, n_queries=8)
    index = sl.LSHIndex(plan="sketches", random_state=0).fit(W * np.float32(factor))
    for bits in (1, 8):
        got, deviations = index.estimate(X / np.float32(factor), bits=bits)
        off = (got - X.astype(float) @ W.T.astype(float)) / deviations
        assert 0.7 < off.std() < 1.3
    values, errors = index.logsumexp(X / np.float32(factor))
    assert np.all(np.abs(values - reference.log_sum_exp(X.astype(float) @ W.T)) <= errors + 1e-5)


def test_int8_storage_and_its_files_are_estimated_by_the_rows_that_are_there(made, tmp_path):
    pytest.importorskip("safetensors")
    W, bias, X, _ = made
    index = sl.LSHIndex(storage="int8", plan="sketches", random_state=0).fit(W, bias)
    before = index.nbytes
    want = index.estimate(X[:4], bits=8)
    assert index.nbytes == before + 4 * N  # the errors
    index.save(tmp_path / "index")
    loaded = sl.LSHIndex.load(tmp_path / "index", W, bias)
    for a, b in zip(loaded.estimate(X[:4], bits=8), want, strict=True):
        assert_same_bits(a, b)


# ---- networks


@pytest.fixture(params=["float32", "bfloat16"])
def network(request):
    W, bias, X = data(np.random.default_rng(5))
    hidden, last = sl.Linear(D, D), sl.LSHLinear(D, N, density=0.05, dtype=request.param)
    net = sl.Network([hidden, last], random_state=0)
    hidden.set_weights(np.eye(D, dtype=np.float32))
    last.set_weights(W, bias)
    return net, last.weight, bias, X


def test_a_network_scores_labels_and_sums_over_all(network):
    net, W, bias, X = network
    want = all_scores(W, bias, X)
    ids, scores = net.topk(X[:9], 5)
    np.testing.assert_allclose(net.score(X[:9], ids), scores, rtol=1e-5)
    assert np.all(np.isneginf(net.score(X, [-1])))
    for rows in (X[:9], X):
        values, errors = net.logsumexp(rows)
        assert np.all(np.abs(values - reference.log_sum_exp(want)[:len(rows)]) <= errors)
        assert np.all(errors <= 0.01)


def test_dense_and_sparse_networks_score_labels_and_sum_over_all(rng):
    import scipy.sparse as sp
    X = sp.random(40, 30, 0.3, format="csr", dtype=np.float32, random_state=0)
    net = sl.Network([sl.Linear(30, 50)], random_state=0).fit(
        X, rng.integers(0, 50, 40), epochs=1, verbose=False)
    want = net.decision_function(X)
    np.testing.assert_array_equal(net.score(X, [3, 49]), want[:, [3, 49]])
    values, errors = net.logsumexp(X)
    assert np.all(np.abs(values - reference.log_sum_exp(want)) <= errors)


def test_a_refined_network_scores_as_topk_does_and_has_no_sum(rng):
    import scipy.sparse as sp
    X = sp.random(300, 30, 0.3, format="csr", dtype=np.float32, random_state=0)
    Y = rng.integers(0, 20, 300)
    net = sl.Network([sl.Linear(30, 16, activation="relu"), sl.Linear(16, 20)], random_state=0)
    net.fit(X, Y, epochs=2, verbose=False).refine(X, Y)
    ids, scores = net.topk(X, 6)
    np.testing.assert_allclose(net.score(X, ids), scores, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="refined"):
        net.logsumexp(X)
    served = sl.InferenceNetwork.from_network(net)
    ids, scores = served.topk(X, 6)
    np.testing.assert_allclose(served.score(X, ids), scores, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="refinement"):
        served.logsumexp(X)


@pytest.mark.parametrize("storage", ["float32", "int8"])
def test_a_converted_network_scores_outputs_and_sums_over_all(network, storage):
    net, _, _, X = network
    served = sl.InferenceNetwork.from_network(net, X, storage=storage, random_state=0)
    ids, scores = served.topk(X[:9], 5)
    np.testing.assert_allclose(served.score(X[:9], ids), scores, rtol=1e-5, atol=1e-5)
    for plan in ("lsh", "dense"):
        if plan == "lsh" and served.layers[-1].index is None:
            continue
        served.layers[-1].plan = dict.fromkeys(("single", "batch"), plan)
        for rows in (X[:9], X):
            values, errors = served.logsumexp(rows)
            want = reference.log_sum_exp(served.decision_function(rows))
            assert np.all(np.abs(values - want) <= errors + 1e-5)


def test_an_accelerated_layer_scores_and_sums_and_estimates():
    torch = pytest.importorskip("torch")
    from sparselsh.index import IndexOptions, build
    from sparselsh.inference import AcceleratedLinear
    W, bias, X = data(np.random.default_rng(5))
    linear = torch.nn.Linear(D, N)
    with torch.no_grad():
        linear.weight.copy_(torch.from_numpy(W))
        linear.bias.copy_(torch.from_numpy(bias))
    engine = build(IndexOptions(plan="sketches"), W, bias, X, 0, 1)
    layer = AcceleratedLinear(linear, engine, 20, 0.0, 1)
    x = torch.from_numpy(X[:6]).reshape(2, 3, D)
    want = torch.nn.functional.linear(x, linear.weight, linear.bias).detach()
    ids = torch.tensor([4, -1, 8])
    got = layer.score(x, ids)
    assert got.shape == (2, 3, 3) and torch.all(torch.isneginf(got[..., 1]))
    torch.testing.assert_close(got[..., [0, 2]], want[..., [4, 8]], rtol=1e-5, atol=1e-4)
    own = layer.topk(x, 4)
    torch.testing.assert_close(layer.score(x, own.indices), own.values, rtol=1e-5, atol=1e-4)
    values, errors = layer.logsumexp(x)
    assert values.shape == errors.shape == (2, 3)
    assert torch.all(torch.abs(values - torch.logsumexp(want.double(), -1)) <= errors + 1e-5)
    logits, deviations = layer.estimate(x, 4)
    assert logits.shape == (2, 3, N)
    assert torch.equal(torch.gather(logits, 2, own.indices), own.values)
    assert torch.all(torch.abs(logits - want) <= 6 * deviations + 1e-4)


# ---- answers that are exact, or as sure as was asked


def shifted(rng, X):
    noise = X.std() * rng.standard_normal(X.shape)
    return {"like the queries": X, "noise": (X + noise).astype(np.float32),
            "short": X * np.float32(0.01), "negative": -X,
            "in other directions": rng.standard_normal(X.shape).astype(np.float32)}


@pytest.mark.parametrize("k", [1, 5, 100, 2000])
@pytest.mark.parametrize("metric", ["ip", "cosine", "l2"])
def test_an_exact_search_misses_nothing_on_any_input(k, metric):
    rng = np.random.default_rng(2)
    W, bias, X = data(rng)
    bias = bias if metric == "ip" else None
    index = sl.LSHIndex(recall=0.5, plan="sketches", metric=metric, random_state=0).fit(
        W, bias, queries=X[:50])
    index.remove(np.arange(0, N, 5))
    for name, rows in shifted(rng, X[50:60]).items():
        _, scores = index.search(rows, k, exact=True)
        _, want = index.search(rows, k, n_candidates=N)
        # the two sum in another order, and a distance is the root of a difference
        np.testing.assert_allclose(scores, want, rtol=1e-3 if metric == "l2" else 1e-5, atol=1e-4,
                                   err_msg=name)


def test_an_exact_search_takes_batches_selections_and_other_plans(made):
    W, bias, X, index = made
    want = all_scores(W, bias, X)
    allowed = np.arange(N) % 3 == 0
    for rows in (X[:4], X):
        ids, _ = index.search(rows, 3, exact=True)
        np.testing.assert_array_equal(ids, np.argsort(-want[:len(rows)], axis=1)[:, :3])
        ids, _ = index.search(rows, 3, exact=True, allow=allowed)
        best = np.argsort(-np.where(allowed, want[:len(rows)], -np.inf), axis=1)[:, :3]
        np.testing.assert_array_equal(ids, best)
    tables = sl.LSHIndex(sl.SimHash(6, 4), sketch_bits=0, random_state=0).fit(W, bias)
    np.testing.assert_array_equal(tables.search(X[:4], 3, exact=True)[0],
                                  np.argsort(-want[:4], axis=1)[:, :3])


@pytest.mark.parametrize("recall", [0.5, 0.99])
@pytest.mark.parametrize("with_queries", [True, False])
def test_answers_are_as_sure_as_was_asked_on_any_input(recall, with_queries):
    rng = np.random.default_rng(4)
    W, bias, X = data(rng)
    index = sl.LSHIndex(recall=recall, plan="sketches", random_state=0).fit(
        W, bias, queries=X[:50] if with_queries else None)
    for rows in shifted(rng, X[50:]).values():
        exact = index.search(rows, 5, n_candidates=N)[1]
        for wanted in (0.9, 0.999):
            _, scores, confidence = few_at_a_time(
                lambda x, wanted=wanted: index.search(x, 5, certify=wanted), rows)
            assert np.all(confidence >= wanted)
            wrong = (scores < exact - 1e-4 * np.abs(exact)).any(axis=1)
            # the bound is far from tight: of 500 answers at 0.9 none is wrong
            assert wrong.sum() <= max(1, len(rows) * (1 - wanted) / 10)


def test_certified_answers_have_a_confidence_of_their_own_and_few_neurons_computed(made):
    _, _, X, index = made
    engine = index._engine
    _, _, counts, doubts = engine.coded(5, 1).search(X, 5, engine.W, engine.bias, Selection(), 5.4,
                                                     1)
    assert np.all(counts <= 0.02 * N)
    assert np.all(doubts > 0) and np.all(doubts < 1e-3)


def test_certified_searches_follow_changes_and_selections(made):
    W, bias, X, index = made
    X = X[:20]
    index.search(X, 5, certify=True)
    new = (2 * W[:30]).copy()
    index.add(new, bias[:30])
    index.remove(np.arange(500))
    want = all_scores(np.concatenate([W, new]), np.concatenate([bias, bias[:30]]), X)
    want[:, :500] = -np.inf
    ids, _, _ = index.search(X, 5, certify=True)
    np.testing.assert_array_equal(ids, np.argsort(-want, axis=1)[:, :5])
    allowed = np.arange(N + 30) % 4 == 1
    ids, _, _ = index.search(X, 5, certify=True, allow=allowed)
    want[:, ~allowed] = -np.inf
    np.testing.assert_array_equal(ids, np.argsort(-want, axis=1)[:, :5])
