"""Stacks of layers with sparse inputs and outputs: active sets, plans, learning and profiles."""
import itertools

import numpy as np
import pytest
import reference
import scipy.sparse as sp
from support import assert_same_bits, random_csr

import sparselsh as sl
from sparselsh._arrays.csr import CSR
from sparselsh._core import _active
from sparselsh.layers import Step, _plans
from sparselsh.layers._active_sketches import ActiveSketches


def csr(rng, n, m, density):
    indptr, indices, data = random_csr(rng, n, m, density)
    return CSR(indptr, indices, data, m)


def hidden(n_in, n_out, rng, **options):
    options = ({"density": 0.2, "active": "sample", "activation": "relu", "policy": "sketches"}
               | options)
    return sl.LSHLinear(n_in, n_out, **options).set_weights(
        rng.standard_normal((n_out, n_in), np.float32))


def digits(rng, n=1500, d=40, n_classes=10):
    """Make classes that no linear layer can separate: each consists of two clusters."""
    centres = rng.standard_normal((2, n_classes, d)) * 1.2
    y = rng.integers(n_classes, size=n)
    X = centres[rng.integers(2, size=n), y] + rng.standard_normal((n, d))
    return X.astype(np.float32), y


# ---- kernels


@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("n_best", [1, 3, 50])
@pytest.mark.parametrize("dense", [False, True])
def test_the_best_entries_of_each_row_are_kept(rng, n_best, positive, dense):
    s = csr(rng, 9, 40, 0.4)
    if dense:
        z = rng.standard_normal((9, 40), np.float32)
        s = CSR(np.arange(10, dtype=np.int64) * 40, None, z.ravel(), 40)
    layer = sl.LSHLinear(3, 40)
    outs = [layer._cut(s, n_best, positive, n_threads) for n_threads in (1, 2)]
    for a, b in zip(outs[0][:3], outs[1][:3], strict=True):
        assert_same_bits(a, b)
    indices = np.tile(np.arange(40, dtype=np.int32), 9) if dense else s.indices
    want = reference.best_entries(s.indptr, indices, s.data, n_best, positive)
    for a, b in zip(outs[0][:3], want, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("rate", [0.0, 0.3, 0.9])
def test_dropout_drops_the_same_places_dense_and_sparse_on_any_number_of_threads(rng, rate):
    x = csr(rng, 60, 50, 0.5)
    dense, again, data = x.to_dense(), x.to_dense(), x.data.copy()
    _active.drop_dense(dense, 7, rate, 1)
    _active.drop_dense(again, 7, rate, 2)
    assert_same_bits(dense, again)
    _active.drop_csr(x.indptr, x.indices, data, 50, 7, rate, 2)
    assert_same_bits(x._replace(data=data).to_dense(), dense)
    np.testing.assert_allclose(dense, reference.drop(x.to_dense(), 7, rate), rtol=1e-6)
    stored = x.to_dense() != 0
    kept = (dense[stored] != 0).mean()
    assert (abs(kept - (1 - rate))
            <= 4
            * (rate
               * (1 - rate) / stored.sum()) ** 0.5), "four standard deviations of a binomial count"
    other = x.to_dense()
    _active.drop_dense(other, 8, rate, 1)
    assert rate == 0 or (other != dense).any(), "another seed drops other places"


# ---- active sets


@pytest.mark.parametrize("sparse", [False, True], ids=["dense x", "CSR x"])
def test_more_products_find_more_of_the_largest_outputs(rng, sparse):
    layer = {m: hidden(64, 400, np.random.default_rng(0), oversample=m,
                       plan="gather" if sparse else "rows")
             for m in (1, 2, 4)}
    x = (csr(rng, 50, 64, 0.3)
         if sparse else np.maximum(rng.standard_normal((50, 64), np.float32), 0))
    z = (x.to_dense() if sparse else x) @ layer[1].weight.T
    best = np.argsort(-z, axis=1)[:, :80]
    found = {}
    for m, one in layer.items():
        out, _ = one.forward(x, Step(training=True))
        dense = out.to_dense()
        assert (dense > 0).sum(axis=1).max() <= 80
        np.testing.assert_allclose(dense[dense > 0], z[dense > 0], atol=1e-4)
        found[m] = np.mean([len(np.intersect1d(b, np.flatnonzero(row))) / 80
                            for b, row in zip(best, dense, strict=True)])
    # the outputs of a row without entries have no order; a third of the sparse rows have no entries
    assert found[1] < found[2] < found[4]
    assert found[4] > (0.55 if sparse else 0.8), "measured: 0.6 and 0.93; chance gives 0.2"


def sets_of(layer, x, seed=0):
    """Return the active sets of a layer in training, one set of ids per sample.

    The layer has no ReLU, so that no active neuron is dropped.
    """
    out, _ = layer.forward(x, Step(training=True, seed=seed))
    return [set(out.indices[a:b]) for a, b in itertools.pairwise(out.indptr)], out


def by_tables(policy, **options):
    options = {"density": 0.1, "plan": "gather"} | options
    options = ({"activation": None, "fill": False, "family": sl.SimHash(4, 6), "policy": policy}
               | options)
    return hidden(24, 300, np.random.default_rng(0), **options)


def test_score_computes_larger_outputs_than_top(rng):
    x = csr(rng, 40, 24, 0.8)
    means = {}
    for policy in ("top", "score"):
        _, out = sets_of(by_tables(policy), x)
        means[policy] = out.data.mean()
    # of about 100 neurons found, the 30 largest outputs exceed those of the 30 in most tables
    assert (means["score"]
            > means["top"] + 1), f"measured: 4.2 and 1.6 where outputs spread by 3.6; got {means}"


def test_score_keeps_the_largest_outputs_of_the_neurons_found(rng):
    x = csr(rng, 40, 24, 0.8)
    everything, _ = sets_of(by_tables("top", density=0.99), x)
    kept, _ = sets_of(by_tables("score"), x)
    z = x.to_dense() @ by_tables("score").weight.T
    for found, best, row in zip(everything, kept, z, strict=True):
        assert len(best) == min(30, len(found))
        assert best == set(sorted(found, key=lambda j: -row[j])[:30])


def test_top_takes_the_neurons_found_in_most_tables(rng):
    x = csr(rng, 40, 24, 0.8)
    layer = by_tables("top")
    kept, _ = sets_of(layer, x)
    ids, counts = layer._finder.engine.candidates(x.to_dense(), 300, 1)
    for best, i, c in zip(kept, ids, counts, strict=True):
        least = min(c[np.isin(i, list(best))])
        assert (c[~np.isin(i, list(best))] <= least).all(), \
            "no other neuron is found in more tables"


def test_vanilla_draws_from_the_buckets_anew_at_each_step(rng):
    x = csr(rng, 40, 24, 0.8)
    layer = by_tables("vanilla")
    (first, _), (same, _), (other, _) = (sets_of(layer, x, seed) for seed in (1, 1, 2))
    found, _ = sets_of(by_tables("top", density=0.99), x)
    assert first == same and first != other
    assert all(a <= b for a, b in zip(first, found, strict=True)), \
        "each drawn neuron is in a bucket of the query"


def test_a_threshold_and_probes_shrink_and_grow_the_sets(rng):
    x = csr(rng, 40, 24, 0.8)
    sizes = {}
    settings = {"all": {}, "twice": {"min_count": 2}, "probes": {"n_probes": 4},
                "filled": {"fill": True}}
    for name, options in settings.items():
        sets, _ = sets_of(by_tables("top", density=0.4, **options), x)
        sizes[name] = np.mean([len(s) for s in sets])
    assert sizes["twice"] < sizes["all"] / 2, "measured: 17 and 103 of 120"
    assert sizes["all"] < sizes["probes"] <= sizes["filled"] == 120


def test_the_exact_plan_takes_the_largest_outputs(rng):
    layer = hidden(30, 200, rng, plan="exact", activation=None)
    x = rng.standard_normal((20, 30), np.float32)
    out, _ = layer.forward(x, Step(training=True))
    best = np.sort(np.argsort(-(x @ layer.weight.T), axis=1)[:, :40], axis=1)
    np.testing.assert_array_equal(out.indices.reshape(20, 40), best)


def test_scaling_by_the_inputs_ranks_neurons_better(rng):
    # inputs with a large common mean, as the outputs of a ReLU have
    W = rng.standard_normal((500, 100), np.float32)
    X = np.maximum(rng.standard_normal((300, 100)) + 2 * rng.random(100), 0).astype(np.float32)
    best = np.argsort(-(X @ W.T), axis=1)[:, :25]
    recall = []
    for inputs in (X[:0], X[:200]):
        sketches = ActiveSketches(128, 500, 100, 0)
        sketches.rebuild(W, np.zeros(500, np.float32), inputs, 1)
        ids = sketches.best(X, 50, 2)
        recall.append(
            np.mean([len(np.intersect1d(a, b)) / 25 for a, b in zip(best, ids, strict=True)]))
    assert recall[1] > recall[0] + 0.1, f"measured: 0.24 more, got {recall}"


def test_orthogonal_directions_rank_better_than_independent_ones(rng):
    n_in = 60
    for n_bits in (64, 128):
        R = ActiveSketches(n_bits, 10, n_in - 1, 0)._R
        for start in range(0, n_bits, n_in):
            part = R[:, start:start + n_in]
            np.testing.assert_allclose(part.T @ part, n_in * np.eye(part.shape[1]), atol=1e-3)
    W, X = (rng.standard_normal((400, n_in - 1), np.float32),
            rng.standard_normal((200, n_in - 1), np.float32))
    best = np.argsort(-(X @ W.T), axis=1)[:, :20]
    recall = []
    for directions in (None, np.random.default_rng(1).standard_normal((n_in, 64), np.float32)):
        sketches = ActiveSketches(64, 400, n_in - 1, 0)
        if directions is not None:
            sketches._R = directions
        sketches.rebuild(W, np.zeros(400, np.float32), X[:0], 1)
        recall.append(np.mean([len(np.intersect1d(a, b)) / 20
                               for a, b in zip(best, sketches.best(X, 60, 1), strict=True)]))
    assert (recall[0]
            > recall[1] + 0.05), f"recall with orthogonal and with independent directions: {recall}"


def test_refreshed_rows_get_new_sketches(rng):
    W, bias = rng.standard_normal((300, 40), np.float32), np.zeros(300, np.float32)
    moved, whole = (ActiveSketches(64, 300, 40, 0) for _ in range(2))
    x = rng.standard_normal((30, 40), np.float32)
    before = W.copy()
    moved.rebuild(W, bias, x, 1)
    rows = np.arange(0, 300, 3, dtype=np.int32)
    W[rows] += rng.standard_normal((100, 40), np.float32)
    assert 0 < moved.drift(1) < 0.5, "some signs of a third of the neurons changed"
    stale = moved.best(x, 20, 1)
    moved.refresh(rows, 1)
    whole.rebuild(before, bias, x, 1)
    whole._W = W
    whole.refresh(np.arange(300, dtype=np.int32), 1)
    assert (np.sort(stale) != np.sort(moved.best(x, 20, 1))).any()
    np.testing.assert_array_equal(np.sort(whole.best(x, 20, 1)), np.sort(moved.best(x, 20, 1)))


# ---- plans


def test_plans_with_the_same_sets_differ_only_by_rounding(rng):
    x = csr(rng, 40, 60, 0.3)
    outs = []
    for plan in ("rows", "gather"):
        layer = hidden(60, 100, np.random.default_rng(1), density=0.9, oversample=2, plan=plan)
        out, backprop = layer.forward(x, Step(training=True))
        outs.append((out, backprop(np.ones(out.nnz, np.float32))[0]))
    (a, da), (b, db) = outs
    np.testing.assert_array_equal(a.indices, b.indices)
    np.testing.assert_allclose(a.data, b.data, atol=1e-4)
    np.testing.assert_allclose(da, db, atol=1e-3)


def test_an_estimate_is_the_sum_of_counts_and_costs():
    # the products of a dense step are 3 n n_in n_out
    for nnz in (None, 30.0):
        arguments = (64, 200, 300, 20)
        options = dict(nnz=nnz, bits=128, oversample=2, need_dx=True, builds=0.1)
        counts = _plans.counts(*arguments, **options)
        costs = _plans.estimates(counts)
        assert counts["dense"]["gemm"] == 3 * 64 * 200 * 300
        assert (set(counts) == set(costs)
                == ({"dense", "exact", "rows"} | ({"gather"} if nnz else set())))
        for plan, parts in counts.items():
            assert costs[plan] == pytest.approx(
                sum(_plans.COSTS[name] * count for name, count in parts.items()))


def test_a_layer_before_a_sparse_one_is_dense_only_if_both_gain(rng):
    # the first layer alone is faster dense than sparse, but the second would then
    # read 2,000 inputs, not 40
    X, y = rng.standard_normal((256, 100), np.float32), rng.integers(10, size=256)
    plans = []
    for following in (sl.Linear(2000, 10),
                      sl.LSHLinear(2000, 2000, density=0.02, activation="relu")):
        tail = [sl.Linear(2000, 10)] if isinstance(following, sl.LSHLinear) else []
        first = sl.LSHLinear(100, 2000, density=0.02, activation="relu")
        net = sl.Network([first, following, *tail], random_state=0)
        net.fit(X, y, epochs=1, batch_size=256, verbose=False)
        plans.append(first.chosen_plan)
    assert plans[0] == "dense" and plans[1] != "dense"


def test_a_dense_layer_may_follow_a_sparse_one(rng):
    # the cost model may choose this; the gradient must then return to the
    # entries of the sparse input
    X, y = digits(rng, n=300)
    layers = [sl.LSHLinear(40, 100, density=0.2, activation="relu", plan="gather"),
              sl.LSHLinear(100, 100, density=0.5, activation="relu", plan="dense"),
              sl.Linear(100, 10)]
    net = sl.Network(layers, random_state=0)
    net.fit(X, y, epochs=4, batch_size=50, optimizer=sl.Adam(3e-3), verbose=False)
    assert net.history[-1]["loss"] < net.history[0]["loss"] / 1.5


def test_a_layer_is_dense_where_active_sets_would_cost_more():
    few = dict(nnz=None, bits=128, oversample=2, need_dx=True)
    dense = _plans.estimates(_plans.counts(1024, 1000, 1000, 600, **few))
    sparse = _plans.estimates(_plans.counts(1024, 4096, 4096, 100, **few))
    assert _plans.choose(dense, able={"dense", "rows", "gather"}) == "dense"
    assert _plans.choose(sparse, able={"dense", "rows", "gather"}) == "rows"
    tiny = _plans.estimates(_plans.counts(8, 30, 40, 20, **few))
    assert (_plans.choose(tiny, able={"dense", "rows", "gather"})
            == "rows"), "as requested: a dense plan would gain nothing"


def test_the_plan_is_that_of_the_first_batch_and_is_saved(rng, tmp_path):
    X, y = digits(rng)
    net = sl.Network([sl.LSHLinear(40, 3000, density=0.7, activation="relu"), sl.Linear(3000, 10)],
                     random_state=0)
    net.fit(X[:600], y[:600], epochs=1, batch_size=512, verbose=False)
    assert net.layers[0].chosen_plan == "dense"
    net.save(tmp_path / "net")
    loaded = sl.load(tmp_path / "net")
    assert loaded.layers[0].chosen_plan == "dense"
    assert_same_bits(loaded.decision_function(X[:5]), net.decision_function(X[:5]))


# ---- learning


def stack(density, **options):
    widths = (40, 150, 150, 150)
    layers = [sl.LSHLinear(a, b, density=density, activation="relu", **options)
              for a, b in itertools.pairwise(widths)]
    return sl.Network([*layers, sl.Linear(150, 10)], random_state=0)


def accuracy(net, X, y, **options):
    options = {"optimizer": sl.Adam(3e-3, schedule=sl.schedules.OneCycle())} | options
    net.fit(X[:1000], y[:1000], epochs=8, batch_size=50, verbose=False, **options)
    return (net.predict(X[1000:]) == y[1000:]).mean()


def test_a_deep_sparse_network_learns_nearly_as_well_as_the_dense_one(rng):
    X, y = digits(rng)
    dense, sparse = (accuracy(stack(1), X, y),
                     accuracy(stack(0.2, oversample=4, plan="gather"), X, y))
    assert sparse > dense - 0.1, f"measured: 0.03 below; got {sparse} and {dense}"


def test_the_weights_of_a_deep_network_do_not_depend_on_the_number_of_threads(rng):
    X, y = digits(rng, n=300)
    nets = []
    for n_threads in (1, 2):
        net = stack(0.2, dropout=0.1)
        net.n_threads = n_threads
        optimizer = sl.Adam(1e-2, clip_norm=0.5, schedule=sl.schedules.OneCycle())
        nets.append(net.fit(X, y, epochs=2, batch_size=64, optimizer=optimizer, verbose=False))
    for a, b in zip(*(net.layers for net in nets), strict=True):
        assert_same_bits(np.ascontiguousarray(a.weight), np.ascontiguousarray(b.weight))


def test_dropout_applies_only_to_training_and_lowers_the_fit_of_training_rows(rng):
    X, y = digits(rng, n=400)
    losses = []
    for rate in (0.0, 0.5):
        net = stack(1, dropout=rate).fit(X, y, epochs=3, batch_size=50, verbose=False)
        assert_same_bits(net.decision_function(X[:9]), net.decision_function(X[:9]))
        losses.append(net.history[-1]["loss"])
    assert losses[1] > 1.2 * losses[0]


# ---- profile


def test_the_profile_counts_the_products_that_are_computed(rng):
    X, y = digits(rng, n=100)
    net = stack(0.2, plan="gather", sketch_bits=64, oversample=1, rebuild=sl.rebuild.Every(1000))
    weights = []
    net.fit(X, y, epochs=1, batch_size=50, verbose=False)
    weights = [layer.weight.copy() for layer in net.layers]
    profile = net.profile(X, y, batch_size=50, steps=2, warm_up=1)
    for layer, before in zip(net.layers, weights, strict=True):
        assert_same_bits(np.ascontiguousarray(layer.weight), np.ascontiguousarray(before))
    first, second, _, last = profile.rows
    assert (first["multiply_adds"]["forward"]
            == 50 * 30 * 40), "30 of 150 neurons, 40 inputs, 50 samples"
    assert first["multiply_adds"]["hashing"] == 50 * 40 * 64
    assert first["multiply_adds"]["backward"] == 0, "no gradient of X is computed"
    assert second["multiply_adds"]["forward"] == pytest.approx(50 * 30 * second["inputs"])
    assert second["dense_multiply_adds"] == 3 * 50 * 150 * 150
    assert second["share"] == pytest.approx(
        sum(second["multiply_adds"].values()) / (3 * 50 * 150 * 150))
    assert last["inputs"] == pytest.approx(profile.rows[2]["outputs"])
    assert "gather" in repr(profile) and "as asked" in repr(profile)


def test_the_profile_counts_dense_layers_and_rebuilds(rng):
    X, y = digits(rng, n=100)
    net = sl.Network([sl.Linear(40, 30, activation="relu"), sl.LSHLinear(30, 100, density=0.3)],
                     random_state=0)
    row, hashed = net.profile(X, y, batch_size=50, steps=2, warm_up=0).rows
    assert sum(row["multiply_adds"].values()) == row["dense_multiply_adds"] == 2 * 50 * 40 * 30
    assert hashed["rebuilds"] == 1 and hashed["plan"] == "batch"
    assert hashed["multiply_adds"]["forward"] == 50 * 30 * 30


def test_the_profile_is_plotted(rng):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    X, y = digits(rng, n=60)
    ax = stack(0.2).profile(sp.csr_array(X), y, batch_size=30, steps=1).plot()
    assert len(ax.get_xticks()) == 4
