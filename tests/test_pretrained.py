"""Converted networks: inference, report, files and bad input, without torch."""
import itertools

import numpy as np
import pytest
import scipy.sparse as sp
from support import assert_same_bits, gaussian

import sparselsh as sl
from sparselsh.inference import _conversion
from sparselsh.inference.readers.affine import Affine

pytest.importorskip("safetensors")
from safetensors.numpy import save_file

STORAGES = ("float32", "bfloat16", "int8")
PLANS = {"dense", "rows", "lsh", "int8"}


def mlp(rng, *sizes, skew=0.0):
    """Make layers with ReLU between them; with skew, few hidden neurons have most of the weight."""
    layers = []
    for i, (n_in, n_out) in enumerate(itertools.pairwise(sizes)):
        W = rng.standard_normal((n_out, n_in)).astype(np.float32) / np.float32(np.sqrt(n_in))
        if skew and i < len(sizes) - 2:
            W *= np.exp(skew * rng.standard_normal((n_out, 1))).astype(np.float32)
        b = rng.standard_normal(n_out).astype(np.float32) / 10
        layers.append(Affine(f"fc{i}", W, b, "relu" if i < len(sizes) - 2 else None))
    return layers


def outputs(layers, X):
    """Return the outputs, computed by NumPy in float64."""
    h = X.astype(float)
    for layer in layers:
        h = h @ layer.weight.T.astype(float) + layer.bias
        h = np.maximum(h, 0) if layer.activation else h
    return h


def saved(path, layers):
    arrays = {}
    for layer in layers:
        arrays |= {f"{layer.name}.weight": layer.weight, f"{layer.name}.bias": layer.bias}
    if str(path).endswith(".npz"):
        np.savez(path, **arrays)
    else:
        save_file(arrays, path)
    return path


@pytest.fixture(scope="module")
def wide():
    """A network whose last layer is wide enough for an index, and inputs."""
    rng = np.random.default_rng(0)
    return mlp(rng, 20, 32, 20_000, skew=0.5), rng.standard_normal((600, 20)).astype(np.float32)


@pytest.fixture(scope="module")
def deep():
    """A network with wide hidden layers, of which few neurons matter, and inputs."""
    rng = np.random.default_rng(1)
    return (mlp(rng, 64, 4096, 512, 10, skew=1.5),
            np.maximum(rng.standard_normal((200, 64)), 0).astype(np.float32))


@pytest.fixture(scope="module", params=STORAGES)
def wide_net(request, wide):
    return _conversion.convert(wide[0], wide[1][:500], random_state=0,
                               storage=request.param, n_threads=1)


def forced(monkeypatch, plan):
    """Serve every layer by this plan where it can be, so that choices do not depend on timings."""
    choose = _conversion._Conversion._choose

    def with_plan(self, i, trials, *rest):
        if plan in trials:
            times = dict.fromkeys(trials[plan].times, 1e-9)
            trials[plan] = trials[plan]._replace(times=times)
        return choose(self, i, trials, *rest)

    monkeypatch.setattr(_conversion._Conversion, "_choose", with_plan)


# --- inference ------------------------------------------------------------------------------------


def test_exact_answers_are_those_of_the_network(wide, wide_net):
    layers, X = wide
    want = outputs(layers, X[500:])
    # two layers of sums of at most 32 products below 10
    np.testing.assert_allclose(wide_net.decision_function(X[500:], exact=True),
                               want, rtol=0, atol=1e-4)
    ids, scores = wide_net.topk(X[500:], 5, exact=True)
    np.testing.assert_allclose(scores, -np.sort(-want, axis=1)[:, :5], rtol=0, atol=1e-4)
    np.testing.assert_allclose(scores, np.take_along_axis(want, ids.astype(int), 1),
                               rtol=0, atol=1e-4)


def test_the_requested_recall_is_reached_on_inputs_not_seen_in_calibration(wide, monkeypatch):
    forced(monkeypatch, "lsh")
    layers, X = wide
    for storage in STORAGES:
        net = _conversion.convert(layers, X[:500], recall=0.95, random_state=0,
                                  storage=storage, n_threads=1)
        assert net.layers[-1].plan == {"single": "lsh", "batch": "lsh"}
        want = np.argsort(-outputs(layers, X[500:]), axis=1)[:, :5]
        batch = net.topk(X[500:], 5)
        single = [np.concatenate(part) for part in zip(
            *(net.topk(x[None], 5) for x in X[500:]), strict=True)]
        for ids, _ in (batch, single):
            # 500 neighbours with 5 % misses: three standard deviations below the mean are 92 %
            assert sl.metrics.neighbour_recall(ids, want) > 0.92
        assert 0.9 < net.report.layers[-1].recall <= 1 and net.report.agreement > 0.9


def test_products_of_8_bits_find_the_best_outputs_and_are_saved(wide, monkeypatch, tmp_path):
    forced(monkeypatch, "int8")
    layers, X = wide
    net = _conversion.convert(layers, X[:500], random_state=0, n_threads=1)
    assert net.layers[-1].plan == {"single": "int8", "batch": "int8"}
    assert net.report.layers[-1].recall > 0.99 and "int8 recall" in net.report.layers[-1].reason
    want = outputs(layers, X[500:])
    ids, scores = net.topk(X[500:], 5)
    best = np.argsort(-want, axis=1)[:, :5]
    assert sl.metrics.neighbour_recall(ids, best) > 0.99
    np.testing.assert_allclose(scores, np.take_along_axis(want, ids.astype(int), 1), atol=1e-4)

    net.save(tmp_path / "net")
    loaded = sl.InferenceNetwork.load(tmp_path / "net", n_threads=2)
    for n in (1, 100):
        for a, b in zip(net.topk(X[500:500 + n], 5), loaded.topk(X[500:500 + n], 5), strict=True):
            assert_same_bits(a, b)


def test_a_few_of_many_outputs_are_found_by_8_bits_only_where_that_saves_work(wide, monkeypatch):
    forced(monkeypatch, "int8")
    layers, X = wide
    net = _conversion.convert(layers, X[:500], random_state=0, n_threads=1)
    many = 19_000  # 4 k + 12 would be all of them
    for a, b in zip(net.topk(X[500:502], many), net.topk(X[500:502], many, exact=True),
                    strict=True):
        assert_same_bits(a, b)


def test_products_of_8_bits_answer_among_the_allowed_outputs(wide, monkeypatch):
    forced(monkeypatch, "int8")
    layers, X = wide
    net = _conversion.convert(layers, X[:500], random_state=0, n_threads=1)
    for n in (1, 100):
        some = X[500:500 + n]
        # three outputs are all computed in float32
        ids, scores = net.topk(some, 5, allow=[3, 7, 19_999])
        want, _ = net.topk(some, 5, allow=[3, 7, 19_999], exact=True)
        np.testing.assert_array_equal(ids, want)
        assert (ids[:, 3:] == -1).all() and np.isneginf(scores[:, 3:]).all()

        ids, _ = net.topk(some, 5, exclude=np.arange(10_000))
        want, _ = net.topk(some, 5, exclude=np.arange(10_000), exact=True)
        assert ids.min() >= 10_000 and sl.metrics.neighbour_recall(ids, want) > 0.99


def test_files_with_products_of_8_bits_of_too_many_inputs_are_refused(rng, tmp_path):
    net = _conversion.convert(mlp(rng, 70_000, 8), gaussian(rng, 10, 70_000), random_state=0,
                              n_threads=1)
    net.layers[0].plan = dict.fromkeys(net.layers[0].plan, "int8")
    net.save(tmp_path / "net")
    with pytest.raises(ValueError, match="at most 65,536 inputs"):
        sl.InferenceNetwork.load(tmp_path / "net")


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_hidden_layers_by_products_of_8_bits_keep_the_error(rng, monkeypatch, tmp_path, activation):
    forced(monkeypatch, "int8")
    layers = [layer._replace(activation=layer.activation and activation)
              for layer in mlp(rng, 600, 512, 600, 10)]
    X = gaussian(rng, 300, 600)
    net = _conversion.convert(layers, X[:200], random_state=0, n_threads=1)
    assert [set(layer.plan.values()) for layer in net.layers] == [{"int8"}, {"int8"}, {"dense"}]
    assert all("int8 error" in layer.reason for layer in net.report.layers[:2])
    want = net.decision_function(X[200:], exact=True)
    for got in (net.decision_function(X[200:]),
                np.concatenate([net.decision_function(x[None]) for x in X[200:]])):
        error = np.linalg.norm(got - want) / np.linalg.norm(want)
        # at most 0.02 on the calibration rows; 255 steps cannot give less than a thousandth
        assert 0.001 < error < 0.025
    assert 0 < net.report.output_error <= 0.02

    net.save(tmp_path / "net")
    loaded = sl.InferenceNetwork.load(tmp_path / "net")
    assert_same_bits(loaded.decision_function(X[200:]), net.decision_function(X[200:]))


def test_a_layer_may_read_rows_for_single_queries_and_take_8_bits_in_batches(rng, monkeypatch,
                                                                             tmp_path):
    choose = _conversion._Conversion._choose

    def with_times(self, i, trials, *rest):
        if i == 0:
            quick = {"rows": {1: 1e-9}, "int8": {256: 1e-9}}
            for plan, own in quick.items():
                trials[plan] = trials[plan]._replace(times=trials[plan].times | own)
        return choose(self, i, trials, *rest)

    monkeypatch.setattr(_conversion._Conversion, "_choose", with_times)
    layers = mlp(rng, 600, 512, 10)
    X = gaussian(rng, 300, 600) * (rng.random((300, 600)) < 0.3).astype(np.float32)
    net = _conversion.convert(layers, X[:200], random_state=0, n_threads=1)
    assert net.layers[0].plan == {"single": "rows", "batch": "int8"}
    want = outputs(layers, X[200:])
    single = np.concatenate([net.decision_function(x[None]) for x in X[200:]])
    np.testing.assert_allclose(single, want, rtol=0, atol=1e-4)
    batch = net.decision_function(X[200:])
    assert 1e-3 < np.linalg.norm(batch - want) / np.linalg.norm(want) < 0.025

    net.save(tmp_path / "net")
    loaded = sl.InferenceNetwork.load(tmp_path / "net")
    assert_same_bits(loaded.decision_function(X[200:]), batch)
    assert_same_bits(loaded.decision_function(X[200:201]), single[:1])


@pytest.mark.parametrize("error", [0, 0.004])
def test_products_of_8_bits_are_given_up_where_the_whole_error_is_too_large(rng, monkeypatch,
                                                                           error):
    forced(monkeypatch, "int8")
    monkeypatch.setattr(_conversion._Conversion, "_error_per_layer", lambda self: 1.0)
    X = gaussian(rng, 200, 600)
    net = _conversion.convert(mlp(rng, 600, 512, 600, 10), X, error=error, random_state=0,
                              n_threads=1)
    assert net.report.output_error <= max(error, 1e-5)
    dense = [layer.reason for layer in net.report.layers if set(layer.plan.values()) == {"dense"}]
    assert len(dense) > 1
    assert error == 0 or any("dense after all" in reason for reason in dense)


def test_more_outputs_are_exact_where_8_bits_miss_unseen_neighbours(wide, monkeypatch, tmp_path):
    forced(monkeypatch, "int8")
    for module in ("_conversion", "_layer", "_int8_outputs"):  # so few that some are missed
        monkeypatch.setattr(f"sparselsh.inference.{module}.n_candidates", lambda k: k)
    tried = _conversion._Conversion._try_int8_output
    monkeypatch.setattr(_conversion._Conversion, "_try_int8_output", lambda self, *args: (
        setattr(self, "recall", 0.5), tried(self, *args), setattr(self, "recall", 0.9999))[1])
    layers, X = wide
    net = _conversion.convert(layers, X[:500], random_state=0, n_threads=1)
    assert net.layers[-1].widening > 1
    assert "outputs in float32, which rows that it had not seen needed" in str(net.report)
    assert net.report.layers[-1].recall >= 0.9999
    net.save(tmp_path / "net")
    assert sl.InferenceNetwork.load(tmp_path / "net").layers[-1].widening == net.layers[-1].widening


def test_scores_are_exact_with_every_storage(wide, wide_net):
    layers, X = wide
    ids, scores = wide_net.topk(X[500:], 5)
    want = np.take_along_axis(outputs(layers, X[500:]), ids.astype(int), 1)
    np.testing.assert_allclose(scores, want, rtol=0, atol=1e-4)


@pytest.mark.parametrize("plan", ["rows", "lsh"])
@pytest.mark.parametrize("storage", STORAGES)
def test_plans_of_hidden_layers_keep_the_error_of_the_outputs(deep, monkeypatch, plan, storage):
    forced(monkeypatch, plan)
    layers, X = deep
    net = _conversion.convert(layers, X[:120], error=0.3, k=1, random_state=0,
                              storage=storage, n_threads=1)
    chosen = [layer.plan["single"] for layer in net.layers]
    assert chosen[0] == plan and chosen[2] == "dense"
    kept = net.layers[0]
    assert (0 < kept.kept < kept.n_out // 2
            and net.report.layers[0].density == kept.kept / kept.n_out)
    want = outputs(layers, X[120:])
    single = np.concatenate([net.decision_function(x[None]) for x in X[120:]])
    error = np.linalg.norm(single - want) / np.linalg.norm(want)
    # 0.3 on the calibration rows; the error on 80 other rows varies around it
    assert 0 < error < 0.4
    assert abs(error - net.report.output_error) < 0.1
    exact = net.decision_function(X[120:], exact=True)
    assert np.linalg.norm(exact - want) / np.linalg.norm(want) < 1e-5


@pytest.mark.parametrize("plan", ["rows", "lsh"])
def test_with_an_allowed_error_of_zero_outputs_are_those_of_the_network(deep, monkeypatch, plan):
    forced(monkeypatch, plan)
    layers, X = deep
    net = _conversion.convert(layers, X[:100], error=0, k=1, random_state=0, n_threads=1)
    want = outputs(layers, X[100:110])
    single = np.concatenate([net.decision_function(x[None]) for x in X[100:110]])
    assert np.linalg.norm(single - want) / np.linalg.norm(want) < 1e-5
    assert all(layer.kept is None for layer in net.layers)


def test_small_layers_stay_dense_and_the_report_gives_the_reason(rng):
    layers = mlp(rng, 20, 30, 10)
    X = rng.standard_normal((50, 20)).astype(np.float32)
    net = _conversion.convert(layers, X, n_threads=1)
    assert all(set(layer.plan.values()) == {"dense"} for layer in net.layers)
    assert "kept dense: 600 weights, too few to gain" in str(net.report)
    assert net.report.agreement == 1 and net.report.output_error < 1e-6


def test_without_calibration_all_layers_stay_dense(wide):
    net = _conversion.convert(wide[0], None, n_threads=1)
    assert "there are no calibration inputs" in str(net.report)
    assert net.report.agreement is None
    np.testing.assert_array_equal(net.topk(wide[1][:3], 5)[0],
                                  net.topk(wide[1][:3], 5, exact=True)[0])


def test_threads_do_not_change_the_answers(wide, wide_net, deep, monkeypatch):
    for x in (wide[1][:1], wide[1][:50]):
        answers = []
        for wide_net.n_threads in (1, 2):
            answers.append(wide_net.topk(x, 5))
        wide_net.n_threads = 1
        for a, b in zip(*answers, strict=True):
            assert_same_bits(a, b)


def by_layers(net, x, k):
    """Return `topk` layer by layer, without the core's path for a single query."""
    return net._topk(net._validated_queries(x), k, False)


def test_a_single_query_gets_the_answer_that_the_layers_give(rng, wide, wide_net):
    for row in range(20):
        x = wide[1][row:row + 1]
        for got, want in zip(wide_net.topk(x, 5), by_layers(wide_net, x, 5), strict=True):
            assert_same_bits(got, want)
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        wide_net.topk(x, 0)
    for k in (1, 20_000, 20_001):  # more than an index searches for, and more than there are labels
        np.testing.assert_array_equal(wide_net.topk(x, k)[0], by_layers(wide_net, x, k)[0])


@pytest.mark.parametrize("plan", ["dense", "rows"])
@pytest.mark.parametrize("storage", STORAGES)
def test_a_single_query_to_dense_layers_and_rows_takes_the_single_query_path(
        deep, monkeypatch, plan, storage):
    forced(monkeypatch, plan)
    layers, X = deep
    net = _conversion.convert(layers, X, error=0, storage=storage, n_threads=1)
    assert {layer.plan["single"] for layer in net.layers} == {"dense", plan}
    for row in range(5):
        x = X[row:row + 1]
        found = net._single_row(net._validated_queries(x), 4)
        assert found is not None, "the single-query path is taken"
        (ids, scores), (want_ids, want_scores) = net.topk(x, 4), by_layers(net, x, 4)
        np.testing.assert_array_equal(ids, want_ids)
        np.testing.assert_allclose(scores, want_scores, rtol=1e-4, atol=1e-4)


def test_a_single_query_to_a_hidden_layer_with_an_index_is_computed_layer_by_layer(
        deep, monkeypatch):
    forced(monkeypatch, "lsh")
    net = _conversion.convert(deep[0], deep[1][:120], error=0.3, k=1, random_state=0, n_threads=1)
    assert net.layers[0].plan["single"] == "lsh" and net._single_row(deep[1][:1], 4) is None
    for got, want in zip(net.topk(deep[1][:1], 4), by_layers(net, deep[1][:1], 4), strict=True):
        assert_same_bits(got, want)


# --- embeddings -----------------------------------------------------------------------------------


def table(rng, kind, **options):
    E = rng.standard_normal((50, 8)).astype(np.float32)
    W = rng.standard_normal((6, 8 * options.pop("n_ids", 1))).astype(np.float32)
    return [Affine("e", E, None, None, kind, **options),
            Affine("out", W, np.zeros(6, np.float32))], E, W


@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_a_bag_sums_or_averages_its_rows(rng, mode):
    layers, E, W = table(rng, "embedding_bag", mode=mode, padding=3)
    net = _conversion.convert(layers, None)
    ids = rng.integers(0, 50, (7, 4))
    ids[0] = [3, 5, 3, 7]
    ids[1] = 3  # only padding: the output is zero
    want = np.array(
        [E[row[row != 3]].sum(axis=0) / (max(1, (row != 3).sum()) if mode == "mean" else 1)
         for row in ids])
    np.testing.assert_allclose(net.decision_function(ids), want @ W.T, rtol=1e-4, atol=1e-4)


def test_a_bag_takes_its_weights_from_a_sparse_matrix(rng):
    layers, E, W = table(rng, "embedding_bag")
    X = sp.random_array((9, 50), density=0.2, format="csr", dtype=np.float32,
                        rng=np.random.default_rng(0))
    net = _conversion.convert(layers, None)
    np.testing.assert_allclose(net.decision_function(X), X @ E @ W.T, rtol=1e-4, atol=1e-4)
    for i in range(9):
        for got, want in zip(net.topk(X[i:i + 1], 6), by_layers(net, X[i:i + 1], 6), strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    single = np.concatenate([net.decision_function(X[i:i + 1]) for i in range(9)])
    np.testing.assert_allclose(single, X @ E @ W.T, rtol=1e-4, atol=1e-4)


def test_the_plan_of_a_wide_first_layer_accounts_for_sparse_rows(rng, monkeypatch):
    forced(monkeypatch, "rows")
    layers = mlp(rng, 4096, 64, 10)
    assert (layers[0].weight.size
            >= _conversion.MIN_WEIGHTS), "the layer is wide enough to have a plan"
    X = sp.random_array((40, 4096), density=0.01, format="csr", dtype=np.float32,
                        rng=np.random.default_rng(0))
    net = _conversion.convert(layers, X, n_threads=1)
    assert (net.layers[0].plan["single"] == "rows"
            and "1% of its inputs are not zero" in net.report.layers[0].reason)
    np.testing.assert_allclose(net.decision_function(X, exact=True), outputs(layers, X.toarray()),
                               rtol=1e-4, atol=1e-4)


def test_an_embedding_concatenates_its_rows(rng):
    layers, E, W = table(rng, "embedding", n_ids=3)
    net = _conversion.convert(layers, None)
    ids = rng.integers(0, 50, (7, 3))
    np.testing.assert_allclose(net.decision_function(ids), E[ids].reshape(7, -1) @ W.T,
                               rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="X must have 3 ids per row, got 2"):
        net.topk(ids[:, :2], 1)
    with pytest.raises(ValueError, match=r"X must lie in 0\.\.49, got 50"):
        net.topk(np.where(np.arange(7)[:, None] == 2, 50, ids), 1)


# --- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mmap", [False, True])
def test_saved_and_loaded_networks_give_the_same_bits(wide, wide_net, tmp_path, mmap):
    path = tmp_path / "net.safetensors"
    wide_net.save(path)
    loaded = sl.InferenceNetwork.load(path, mmap=mmap, n_threads=1)
    for x in (wide[1][:1], wide[1][:60]):
        for exact in (False, True):
            for a, b in zip(wide_net.topk(x, 5, exact=exact),
                            loaded.topk(x, 5, exact=exact), strict=True):
                assert_same_bits(a, b)
    for a, b, given in zip(wide_net.architecture(), loaded.architecture(), wide[0], strict=True):
        for layer in (a, b):
            assert_same_bits(np.ascontiguousarray(layer.weight), given.weight)
            assert_same_bits(np.ascontiguousarray(layer.bias), given.bias)
    assert loaded.report == wide_net.report and str(loaded.report) == str(wide_net.report)


def test_plans_of_hidden_layers_are_saved_and_loaded(deep, monkeypatch, tmp_path):
    forced(monkeypatch, "lsh")
    layers, X = deep
    net = _conversion.convert(layers, X[:100], error=0.3, k=1, random_state=0, n_threads=1)
    assert net.layers[0].index is not None
    net.save(tmp_path / "net.safetensors")
    loaded = sl.InferenceNetwork.load(tmp_path / "net.safetensors", n_threads=1)
    for a, b in zip(net.topk(X[:3], 4), loaded.topk(X[:3], 4), strict=True):
        assert_same_bits(a, b)
    # scaled by powers of two for the index, and scaled back
    for a, given in zip(loaded.architecture(), layers, strict=True):
        assert_same_bits(np.ascontiguousarray(a.weight), given.weight)
        assert_same_bits(np.ascontiguousarray(a.bias), given.bias)


@pytest.mark.parametrize("fraction", [0, 0.01, 0.5, 0.99])
def test_a_truncated_file_is_refused_by_name(wide_net, tmp_path, fraction):
    path = tmp_path / "net.safetensors"
    wide_net.save(path)
    data = path.read_bytes()
    path.write_bytes(data[:int(fraction * len(data))])
    for mmap in (False, True):
        with pytest.raises(ValueError, match=r"net\.safetensors: not a readable safetensors file"):
            sl.InferenceNetwork.load(path, mmap=mmap)


def test_other_files_are_refused(wide, tmp_path):
    path = saved(tmp_path / "w.safetensors", wide[0])
    with pytest.raises(ValueError, match=r"not one of sparselsh\.inference"):
        sl.InferenceNetwork.load(path)
    with pytest.raises(FileNotFoundError, match="no such file"):
        sl.InferenceNetwork.load(tmp_path / "missing")


# --- readers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["safetensors", "npz"])
def test_layers_are_found_by_name_and_pattern(rng, tmp_path, suffix):
    layers = mlp(rng, 5, 6, 7, 4)
    layers = [layer._replace(name=f"net.{name}") for layer, name in zip(
        layers, ("fc2", "fc10", "fc11"), strict=True)]
    path = saved(tmp_path / f"w.{suffix}", layers)
    X = rng.standard_normal((3, 5)).astype(np.float32)
    pairs = [f"{layer.name}.weight:{layer.name}.bias" for layer in layers]
    for chosen in (None, "net.*", [layer.name for layer in layers], pairs):
        net = sl.from_file(path, layers=chosen)
        np.testing.assert_allclose(net.decision_function(X), outputs(layers, X), rtol=0, atol=1e-5)
    linear = sl.from_file(path, layers=["net.fc2", "net.fc10"], activation=None)
    want = outputs([layer._replace(activation=None) for layer in layers[:2]], X)
    np.testing.assert_allclose(linear.decision_function(X), want, rtol=0, atol=1e-5)
    assert sl.from_file(path, layers="net.fc10").n_features == 6


@pytest.mark.parametrize("suffix", ["safetensors", "npz"])
def test_wrong_layer_names_are_reported(rng, tmp_path, suffix):
    layers = mlp(rng, 5, 6, 4)
    path = saved(tmp_path / f"w.{suffix}", layers)
    with pytest.raises(ValueError,
                       match=r"holds no 'fc9' and no 'fc9\.weight'; it has fc0\.bias, fc0\.weight"):
        sl.from_file(path, layers=["fc9"])
    with pytest.raises(ValueError, match=r"no layer matches 'x\*'; it has fc0, fc1"):
        sl.from_file(path, layers="x*")
    with pytest.raises(ValueError, match=r"holds no 'fc0\.bias2'"):
        sl.from_file(path, layers=["fc0.weight:fc0.bias2"])
    with pytest.raises(ValueError,
                       match="fc0 takes 5 inputs but fc1 gives 4; give the layers in the order"):
        sl.from_file(path, layers=["fc1", "fc0"])
    with pytest.raises(ValueError, match=r"fc0\.bias must be a matrix"):
        sl.from_file(path, layers=["fc0.bias"])


@pytest.mark.parametrize("suffix", ["safetensors", "npz"])
@pytest.mark.parametrize("fraction", [0, 0.3, 0.9])
def test_truncated_weights_are_refused(rng, tmp_path, suffix, fraction):
    path = saved(tmp_path / f"w.{suffix}", mlp(rng, 50, 60, 4))
    path.write_bytes(path.read_bytes()[:int(fraction * path.stat().st_size)])
    with pytest.raises(ValueError, match=f"not a readable .*{suffix} file"):
        sl.from_file(path)


@pytest.mark.parametrize("suffix", ["safetensors", "npz"])
def test_bad_weights_are_refused_by_name(rng, tmp_path, suffix):
    good = mlp(rng, 5, 6, 4)
    for bad, error, message in [
            (good[1].weight.astype(np.float16), TypeError,
             r"fc1\.weight must be float32, got float16; .*upcast=True"),
            (np.full((4, 6), np.nan, np.float32), ValueError, r"fc1\.weight.*(finite|nan)"),
            (good[1].weight[:, :3].copy(), ValueError, "fc1 takes 3 inputs but fc0 gives 6"),
            (good[1].weight.astype(np.int8), TypeError, r"fc1\.weight must be float32, got int8"),
            (np.zeros((4, 6), bool), TypeError, r"fc1\.weight must hold float32, got bool")]:
        path = saved(tmp_path / f"w.{suffix}", [good[0], good[1]._replace(weight=bad)])
        with pytest.raises(error, match=message):
            sl.from_file(path)
    half = saved(tmp_path / f"h.{suffix}",
                 [g._replace(weight=g.weight.astype(np.float16)) for g in good])
    wide = [g._replace(weight=g.weight.astype(np.float16).astype(np.float32)) for g in good]
    X = rng.standard_normal((3, 5)).astype(np.float32)
    got = sl.from_file(half, upcast=True).decision_function(X)
    np.testing.assert_allclose(got, outputs(wide, X), rtol=0, atol=1e-5)


def test_a_missing_bias_is_read_as_none(rng, tmp_path):
    W = rng.standard_normal((4, 5)).astype(np.float32)
    np.savez(tmp_path / "w.npz", W=W)
    net = sl.from_file(tmp_path / "w.npz", layers="W")
    assert net.architecture()[0].bias is None
    np.testing.assert_allclose(net.decision_function(W), W @ W.T, rtol=0, atol=1e-5)


# --- arguments ------------------------------------------------------------------------------------


@pytest.mark.parametrize("options, error, message", [
    ({"recall": 1}, ValueError, "recall must be above 0 and below 1, got 1"),
    ({"error": -1}, ValueError, "error must be at least 0"),
    ({"k": 0}, ValueError, "k must be at least 1"),
    ({"storage": "float16"}, ValueError,
     "storage must be one of 'float32', 'bfloat16', 'int8', got 'float16'"),
    ({"activation": "cube"}, ValueError, "activation must be one of .*'gelu'.*got 'cube'"),
    ({"random_state": "x"}, ValueError, "random_state"),
    ({"n_threads": 0}, ValueError, "n_threads"),
    ({"calibration": np.zeros((1, 5))}, ValueError, "calibration must have at least two rows"),
    ({"calibration": np.zeros((9, 4))}, ValueError, "5 features, got 4"),
])
def test_wrong_arguments_are_refused_by_name(rng, tmp_path, options, error, message):
    path = saved(tmp_path / "w.npz", mlp(rng, 5, 6, 4))
    with pytest.raises(error, match=message):
        sl.from_file(path, **options)


def test_the_report_can_be_printed_converted_and_plotted(wide_net):
    report = wide_net.report
    assert {"fc0", "fc1"} == {layer.name for layer in report.layers}
    plain = report.to_dict()
    assert (plain["layers"][1]["shape"] == (20_000, 32)
            and set(plain["layers"][1]["plan"].values()) <= PLANS)
    assert all(times[1] > 0 and times[256] > 0
               for times in (report.microseconds, report.microseconds_dense))
    lines = str(report).splitlines()
    assert lines[2].startswith("fc0") and lines[3].startswith("fc1") and lines[4].startswith("all")
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    axes = report.plot()
    assert [t.get_text() for t in axes.get_xticklabels()] == ["fc0", "fc1", "all"]
    matplotlib.pyplot.close("all")


# --- LSHIndex and LSHLinear -----------------------------------------------------------------------


@pytest.mark.parametrize("storage", STORAGES)
def test_an_index_with_any_storage_reaches_the_recall_with_exact_scores(rng, storage, tmp_path):
    W = rng.standard_normal((6000, 40)).astype(np.float32)
    b = rng.standard_normal(6000).astype(np.float32)
    X = rng.standard_normal((150, 40)).astype(np.float32)
    index = sl.LSHIndex(recall=0.9, plan="sketches", storage=storage, random_state=0, n_threads=1)
    index.fit(W, b, X[:100])
    want = np.argsort(-(X @ W.T + b), axis=1)[:, :5]
    ids, scores = index.search(X, 5)
    assert sl.metrics.neighbour_recall(ids, want) > 0.85  # of 750 neighbours a tenth may be missed
    np.testing.assert_allclose(scores, np.take_along_axis(X @ W.T + b, ids.astype(int), 1),
                               rtol=0, atol=1e-3)
    W[want[:, 0]] *= -1
    index.update(W, np.unique(want[:, 0]))
    ids, scores = index.search(X, 5)
    np.testing.assert_allclose(scores, np.take_along_axis(X @ W.T + b, ids.astype(int), 1),
                               rtol=0, atol=1e-3)
    index.save(tmp_path / "i.safetensors")
    again = sl.LSHIndex.load(tmp_path / "i.safetensors", W, b).search(X, 5)
    assert_same_bits(again[0], ids)
    more = np.concatenate([W, 3 * W[:50]])
    index.add(more[6000:], b[:50])
    ids, scores = index.search(X, 5)
    z = X @ more.T + np.concatenate([b, b[:50]])
    np.testing.assert_allclose(scores, np.take_along_axis(z, ids.astype(int), 1), rtol=0, atol=1e-3)
    assert (index.nbytes - sl.LSHIndex(random_state=0).fit(more).nbytes
            >= {"float32": -1e9}.get(storage, 6050 * 40))


def test_wide_inputs_get_sketches_that_do_not_overflow_their_sums(rng):
    W = rng.standard_normal((300, 1500)).astype(np.float32)
    index = sl.LSHIndex(random_state=0).fit(W)
    assert index.report()["sketch_bits"] == 1024
    found = index.search(W[:40], k=1)[0][:, 0]
    # a vector's nearest neighbour is itself, by 39 standard deviations
    np.testing.assert_array_equal(found, np.arange(40))


def test_from_dense_calibrates_on_the_given_queries(rng):
    W = rng.standard_normal((6000, 24)).astype(np.float32)
    b = rng.standard_normal(6000).astype(np.float32)
    X = rng.standard_normal((300, 24)).astype(np.float32)
    fractions = []
    for recall in (0.8, 0.995):
        layer = sl.LSHLinear.from_dense(W, b, queries=X[:200], recall=recall)
        net = sl.Network([layer], random_state=0, n_threads=1)
        ids, _ = net.topk(X[200:], 5)
        want = np.argsort(-(X[200:] @ W.T + b), axis=1)[:, :5]
        # 500 neighbours: three deviations of 0.8
        assert sl.metrics.neighbour_recall(ids, want) > recall - 0.07
        fractions.append(net.computed_share)
    assert fractions[0] < fractions[1]
    with pytest.raises(ValueError, match="recall must be above 0 and below 1, got 1"):
        sl.LSHLinear.from_dense(W, b, recall=1)
    with pytest.raises(ValueError, match="queries must have 24 columns, got 3"):
        sl.LSHLinear.from_dense(W, b, queries=X[:, :3])


# --- folders, shards, state dicts and layouts -----------------------------------------------------


def sharded(folder, layers):
    """Two safetensors files and their index, as Hugging Face has them."""
    import json

    from safetensors.numpy import save_file

    folder.mkdir()
    weight_map = {}
    for i, layer in enumerate(layers):
        arrays = {f"{layer.name}.weight": layer.weight, f"{layer.name}.bias": layer.bias}
        save_file(arrays, folder / f"model-{i}.safetensors")
        weight_map |= dict.fromkeys(arrays, f"model-{i}.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return index


def test_sharded_files_are_read_by_their_index_and_by_their_folder(rng, tmp_path):
    layers = mlp(rng, 5, 6, 4)
    index = sharded(tmp_path / "model", layers)
    X = rng.standard_normal((9, 5)).astype(np.float32)
    for path in (index, tmp_path / "model", str(tmp_path / "model")):
        # sums of at most 6 products below 10
        np.testing.assert_allclose(sl.from_file(path).decision_function(X), outputs(layers, X),
                                   rtol=0, atol=1e-4)
    index.unlink()
    with pytest.raises(ValueError, match=r"must hold one \*\.safetensors\.index\.json or one"):
        sl.from_file(tmp_path / "model")
    (tmp_path / "model" / "model-1.safetensors").unlink()
    net = sl.from_file(tmp_path / "model", layers=layers[0].name)  # the only file of the folder
    assert net.n_labels == 6


@pytest.mark.parametrize("text, message", [
    ("{", "not a readable index of safetensors files"),
    ("[]", "not a readable index of safetensors files"),
    ('{"weight_map": {"fc0.weight": "../other.safetensors"}}', "which is not beside it"),
    ('{"weight_map": {"fc9.weight": "model-0.safetensors"}}', "holds no 'fc9.weight'"),
    ('{"weight_map": {"' + "[" * 3000 + '": "model-0.safetensors"}}',
     r"an array whose name has 3000 characters, '\[{60}'\.\.\.; download"),
])
def test_damaged_indexes_of_shards_are_refused(rng, tmp_path, text, message):
    index = sharded(tmp_path / "model", mlp(rng, 5, 6, 4))
    index.write_text(text)
    with pytest.raises(ValueError, match=message):
        sl.from_file(index)


def test_a_missing_shard_is_named(rng, tmp_path):
    index = sharded(tmp_path / "model", mlp(rng, 5, 6, 4))
    (tmp_path / "model" / "model-1.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model-1\.safetensors: no such file, but "):
        sl.from_file(index)


@pytest.mark.parametrize("wrapped", [False, True])
def test_state_dicts_of_torch_are_read_without_running_code(rng, tmp_path, wrapped):
    torch = pytest.importorskip("torch")
    layers = mlp(rng, 5, 6, 4)
    state = {f"{layer.name}.{part}": torch.from_numpy(getattr(layer, part).copy())
             for layer in layers for part in ("weight", "bias")}
    torch.save({"state_dict": state, "epoch": 3} if wrapped else state, tmp_path / "w.pt")
    X = rng.standard_normal((9, 5)).astype(np.float32)
    np.testing.assert_allclose(sl.from_file(tmp_path / "w.pt").decision_function(X),
                               outputs(layers, X), rtol=0, atol=1e-4)
    content = (tmp_path / "w.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(content[:len(content) // 2])
    torch.save(torch.nn.Linear(5, 4), tmp_path / "module.pt")  # a pickle that would run code
    for name in ("cut.pt", "module.pt"):
        with pytest.raises(ValueError, match="not a readable state dict of PyTorch"):
            sl.from_file(tmp_path / name)
    torch.save([1], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="holds a list and no state dict"):
        sl.from_file(tmp_path / "list.pt")


def test_matrices_of_inputs_by_outputs_are_turned(rng, tmp_path):
    layers = mlp(rng, 5, 6, 4)
    keras = {f"dense_{i}/{part}": array for i, layer in enumerate(layers)
             for part, array in (("kernel:0", layer.weight.T), ("bias:0", layer.bias))}
    by_bias = {f"{layer.name}.{part}": array for layer in layers
               for part, array in (("weight", layer.weight.T), ("bias", layer.bias))}
    X = rng.standard_normal((9, 5)).astype(np.float32)
    np.savez(tmp_path / "keras.npz", **keras)
    np.savez(tmp_path / "turned.npz", **by_bias)
    pairs = [(f"dense_{i}/kernel:0", f"dense_{i}/bias:0") for i in range(2)]
    for net in (sl.from_file(tmp_path / "keras.npz", layers=pairs),
                sl.from_file(tmp_path / "turned.npz")):
        np.testing.assert_allclose(net.decision_function(X), outputs(layers, X), rtol=0, atol=1e-4)


def test_an_index_that_misses_unseen_neighbours_is_set_for_more(wide, monkeypatch):
    layers, X = wide
    forced(monkeypatch, "lsh")
    # the trial of the plan "int8" measures a recall too, and would take the first of these
    monkeypatch.setattr(_conversion._Conversion, "_try_int8_output", lambda *_: None)
    found = iter([0.9, 0.95, 1.0])
    monkeypatch.setattr(_conversion, "recall_of", lambda *_: next(found, 1.0))
    report = _conversion.convert(layers, X, recall=0.99, random_state=0).report
    assert "set for a recall of 99.750%, which rows that it had not seen needed" in str(report)
    monkeypatch.setattr(_conversion, "recall_of", lambda *_: 0.9)
    report = _conversion.convert(layers, X, recall=0.99, random_state=0).report
    assert "FALLS SHORT on rows that no choice has seen" in str(report)
    assert "recall 90.000% of 99.000%" in str(report)
