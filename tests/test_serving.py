"""Networks of this library in files, as converted networks and as PyTorch modules."""
import copy
import json
import os
import pickle

import numpy as np
import pytest
import scipy.sparse as sp
from support import assert_same_bits, rewrite

import sparselsh as sl
from sparselsh._arrays.csr import from_scipy
from sparselsh.index import QuantizedRows
from sparselsh.inference import _conversion, _refined

pytest.importorskip("safetensors")
from safetensors import safe_open
from safetensors.numpy import save_file

STORAGES = ("float32", "bfloat16", "int8")
N = 40  # features and labels of the square networks


def rows(rng, n, n_features, n_labels):
    """Sparse rows of three features; label j has features near 3 j."""
    labels = rng.integers(0, n_labels, n)
    columns = (3 * labels[:, None] + rng.integers(0, 5, (n, 3))) % n_features
    values = rng.uniform(0.2, 1, (n, 3)).astype(np.float32)
    X = sp.csr_array((values.ravel(), columns.ravel(), np.arange(0, 3 * n + 1, 3)),
                     shape=(n, n_features))
    X.sum_duplicates()
    return X, labels


def trained(n_features=N, hidden=N, n_labels=N, *, sparse=True, activation="relu", seed=0,
            refined=False, n=400, dtype="float32"):
    X, y = rows(np.random.default_rng(seed), n, n_features, n_labels)
    net = sl.Network([sl.Linear(n_features, hidden, activation=activation, dtype=dtype),
                      sl.LSHLinear(hidden, n_labels, dtype=dtype)], random_state=seed, n_threads=1)
    net.fit(X if sparse else X.toarray(), y, epochs=2, batch_size=32, verbose=False)
    if refined:
        net.refine(X, y, verbose=False, n_candidates=7, scale=3.0)
    return net


def queries(n=60, n_features=N, n_labels=N):
    return rows(np.random.default_rng(9), n, n_features, n_labels)[0]


def outputs(layers, X):
    """The outputs of affine layers, by NumPy in float64."""
    h = (X.toarray() if sp.issparse(X) else X).astype(float)
    for layer in layers:
        h = h @ layer.weight.T.astype(float) + layer.bias
        h = np.maximum(h, 0) if layer.activation else h
    return h


def refined_outputs(z, X, refinement):
    """The scores of all labels, from the outputs z of the layers, by NumPy in float64.

    The best `n_candidates` are ranked again; the others follow in the order of z.
    """
    added = refinement.scale * (X @ refinement.weight.T.toarray().astype(float) + refinement.bias)
    out = np.empty_like(z)
    for i, row in enumerate(z):
        best = np.argsort(-row, kind="stable")[:refinement.n_candidates]
        scores = row[best] - np.logaddexp.reduce(row[best]) + added[i, best]
        out[i] = scores.min() + np.minimum(row - row[best].min(), 0)
        out[i, best] = scores
    return out


def tensors_of(path):
    """The arrays and the metadata of a file, without its checksum, if it has one."""
    with safe_open(path, "numpy") as file:
        metadata = file.metadata()
        metadata.pop("checksum", None)
        return {name: file.get_tensor(name) for name in file.keys()}, metadata


def as_before(path, old):
    """Write a network file as earlier versions did: input-major weights under the same name."""
    tensors, metadata = tensors_of(path)
    config = json.loads(metadata["config"])
    for i, entry in enumerate(config["layers"]):
        entry["input_major"] = entry.pop("input_major_in_memory")
        if entry["input_major"]:
            name = f"layers.{i}.weight"
            tensors[name] = np.ascontiguousarray(tensors[name].T)
    save_file(tensors, old, metadata | {"config": json.dumps(config)})
    return old


# --- files of networks ----------------------------------------------------------------------------


@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("indexes", [True, False])
def test_a_file_has_weights_of_outputs_by_inputs_whatever_the_rows_were(sparse, indexes, tmp_path):
    net = trained(sparse=sparse)
    assert net.layers[0].parameters[0].input_major == sparse
    net.save(tmp_path / "net.safetensors", indexes=indexes)
    tensors, _ = tensors_of(tmp_path / "net.safetensors")
    for i, layer in enumerate(net.layers):
        assert_same_bits(tensors[f"layers.{i}.weight"], np.ascontiguousarray(layer.weight))
    loaded = sl.load(tmp_path / "net.safetensors", n_threads=1)
    assert loaded.layers[0].parameters[0].input_major == sparse
    for a, b in zip(net.get_weights(), loaded.get_weights(), strict=True):
        assert_same_bits(a, b)


@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_files_of_before_give_the_same_bits(sparse, dtype, tmp_path):
    net = trained(sparse=sparse, dtype=dtype)
    net.save(tmp_path / "net.safetensors")
    before, now = (sl.load(path, n_threads=1) for path in (
        as_before(tmp_path / "net.safetensors", tmp_path / "old.safetensors"),
        tmp_path / "net.safetensors"))
    for a, b, c in zip(net.get_weights(), before.get_weights(), now.get_weights(), strict=True):
        assert_same_bits(a, b)
        assert_same_bits(a, c)


def test_a_checkpoint_keeps_the_layout_of_the_layer_under_another_name(tmp_path):
    net = trained()
    net.save(tmp_path / "run.safetensors", training_state=True)
    tensors, _ = tensors_of(tmp_path / "run.safetensors")
    assert "layers.0.weight" not in tensors
    assert_same_bits(tensors["layers.0.weight_input_major"],
                     np.ascontiguousarray(net.layers[0].weight.T))
    loaded = sl.load(tmp_path / "run.safetensors", n_threads=1)
    X, y = rows(np.random.default_rng(3), 64, N, N)
    for a, b in zip(net.partial_fit(X, y).get_weights(), loaded.partial_fit(X, y).get_weights(),
                    strict=True):
        assert_same_bits(a, b)


def test_a_file_cannot_make_a_hashed_layer_input_major(tmp_path):
    X, y = rows(np.random.default_rng(0), 64, N, N)
    net = sl.Network([sl.Linear(N, N), sl.LSHLinear(N, N, density=0.5)], random_state=0)
    net.fit(X, y, epochs=1, verbose=False).save(tmp_path / "net.safetensors")
    for path in (tmp_path / "net.safetensors",
                 as_before(tmp_path / "net.safetensors", tmp_path / "old.safetensors")):
        tensors, metadata = tensors_of(path)
        for key in ("input_major", "input_major_in_memory"):
            config = metadata["config"].replace(f'"{key}": false', f'"{key}": true')
            if config == metadata["config"]:
                continue
            save_file(tensors, tmp_path / "bad.safetensors", metadata | {"config": config})
            with pytest.raises(ValueError, match=r"bad\.safetensors: .*input-major in a layer"):
                sl.load(tmp_path / "bad.safetensors")


@pytest.mark.parametrize("kind", ["file", "file of before", "checkpoint"])
@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("sizes", [(N, N, N), (90, 8, 30)])
@pytest.mark.parametrize("activation", [None, "relu"])
def test_from_file_reads_a_network_file_as_it_is(kind, sparse, sizes, activation, tmp_path):
    net = trained(*sizes, sparse=sparse, activation=activation)
    path = tmp_path / "net.safetensors"
    net.save(path, training_state=kind == "checkpoint")
    if kind == "file of before":
        path = as_before(path, tmp_path / "old.safetensors")
    X = queries(n_features=sizes[0], n_labels=sizes[2])
    served = sl.from_file(path, n_threads=1)
    # sums of at most 90 products below 10
    np.testing.assert_allclose(served.decision_function(X), net.decision_function(X), rtol=0,
                               atol=1e-4)
    assert [layer.activation for layer in served.architecture()] == [activation, None]
    if kind != "checkpoint" and activation:
        named = sl.from_file(path, layers=["layers.0", "layers.1"], n_threads=1)
        np.testing.assert_allclose(named.decision_function(X.toarray()), net.decision_function(X),
                                   rtol=0, atol=1e-4)


def test_from_file_serves_the_refinement_of_a_network_file(tmp_path):
    net = trained(refined=True)
    net.save(tmp_path / "net.safetensors")
    X = queries()
    served = sl.from_file(tmp_path / "net.safetensors", n_threads=1)
    for a, b in zip(served.topk(X, 5), net.topk(X, 5), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-4)


@pytest.mark.parametrize("damage", [
    lambda tensors, config: config.pop("layers"),
    lambda tensors, config: config.update(layers=[]),
    lambda tensors, config: config["layers"][0].update(n_in=N + 1),
    lambda tensors, config: config["layers"][0].update(activation="gelu"),
    lambda tensors, config: tensors.pop("layers.1.bias"),
    lambda tensors, config: tensors.update({"layers.0.weight": np.full((N, N), np.nan, "f4")}),
    lambda tensors, config: tensors.update({"layers.0.weight": np.ones((N, N), "f8")}),
    lambda tensors, config: config.update(refinement={"scale": 1}),
])
def test_from_file_refuses_a_damaged_network_file(damage, tmp_path):
    trained().save(tmp_path / "bad.safetensors")
    rewrite(tmp_path / "bad.safetensors", damage)
    with pytest.raises(ValueError, match=r"bad\.safetensors: the network in this file is damaged"):
        sl.from_file(tmp_path / "bad.safetensors")


# --- from_network ---------------------------------------------------------------------------------


@pytest.mark.parametrize("calibrated", [True, False])
@pytest.mark.parametrize("sparse", [True, False])
def test_a_network_is_served_for_sparse_and_dense_rows(sparse, calibrated):
    net, X = trained(sparse=sparse), queries()
    calibration = None if not calibrated else X[:40] if sparse else X[:40].toarray()
    served = sl.InferenceNetwork.from_network(net, calibration, n_threads=1)
    assert isinstance(served, sl.InferenceNetwork)
    want = net.decision_function(X)
    for x in (X, X.toarray()):
        np.testing.assert_allclose(served.decision_function(x), want, rtol=0, atol=1e-4)
        ids, scores = served.topk(x, 5)
        np.testing.assert_allclose(scores, -np.sort(-want, axis=1)[:, :5], rtol=0, atol=1e-4)
        np.testing.assert_allclose(np.take_along_axis(want, ids, 1), scores, rtol=0, atol=1e-4)
        for i in range(8):  # by one call to the core
            np.testing.assert_allclose(served.topk(x[i:i + 1], 5)[1], scores[i:i + 1], rtol=0,
                                       atol=1e-4)
    if sparse:
        assert served.layers[0].plan == {"single": "rows", "batch": "rows"}


NETWORKS = {
    "one layer": lambda: [sl.Linear(N, N)],
    "one wide layer": lambda: [sl.LSHLinear(N, 9000)],
    "three layers": lambda: [sl.Linear(N, 600, activation="relu"),
                             sl.Linear(600, 500, activation="relu"), sl.LSHLinear(500, N)],
    "values": lambda: [sl.Linear(N, 16, activation="relu"), sl.Linear(16, N)],
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("storage", STORAGES)
def test_networks_of_any_depth_are_served(name, sparse, storage, tmp_path):
    net = sl.Network(NETWORKS[name](), loss="mse" if name == "values" else "softmax",
                     random_state=0, n_threads=1)
    X, y = rows(np.random.default_rng(1), 300, N, net.n_labels)
    x = X if sparse else X.toarray()
    Y = np.eye(N)[y] if name == "values" else y
    net.fit(x, Y, epochs=1, batch_size=32, verbose=False)
    net.save(tmp_path / "net.safetensors")
    want = net.decision_function(x)
    for calibration in (None, x):
        for served in (
                sl.InferenceNetwork.from_network(net, calibration, storage=storage, error=0,
                                                 random_state=0, n_threads=1),
                sl.from_file(tmp_path / "net.safetensors", calibration, storage=storage, error=0,
                             random_state=0, n_threads=1)):
            for rows_ in (X, X.toarray()):
                got = served.decision_function(rows_)
                # float32: sums of at most 600 products; int8: a 254th of the largest weight
                bound = {"float32": 1e-5, "bfloat16": 0.01, "int8": 0.03}[storage]
                assert np.linalg.norm(got - want) < bound * np.linalg.norm(want)
                ids, scores = served.topk(rows_[:40], 3, exact=True)
                np.testing.assert_allclose(np.take_along_axis(got[:40], ids, 1), scores, rtol=1e-4,
                                           atol=1e-4)


def test_copies_pickles_and_threads_give_the_same_bits():
    net, X = trained(refined=True), queries()
    served = sl.InferenceNetwork.from_network(net, X, storage="int8", random_state=0, n_threads=1)
    want = served.topk(X, 9)
    others = [copy.deepcopy(served), pickle.loads(pickle.dumps(served)), copy.copy(served)]
    others[2].n_threads = 2
    for other in others:
        for a, b in zip(want, other.topk(X, 9), strict=True):
            assert_same_bits(a, b)


def test_sparse_rows_are_never_made_dense(monkeypatch):
    net, X = trained(refined=True), queries()
    to_dense = type(from_scipy(X)).to_dense

    def small_only(self):
        assert self.n_columns != N or self.shape[0] == 0, "a sparse input was made dense"
        return to_dense(self)

    monkeypatch.setattr(type(from_scipy(X)), "to_dense", small_only)
    served = sl.InferenceNetwork.from_network(net, X, n_threads=1)
    served.topk(X, 5)
    served.topk(X[:1], 5)
    served.decision_function(X)


def test_what_the_network_learns_later_does_not_change_the_result():
    net, X = trained(refined=True), queries()
    served = sl.InferenceNetwork.from_network(net, X, n_threads=1)
    before = served.decision_function(X)
    net.partial_fit(*rows(np.random.default_rng(5), 200, N, N))
    net.refinement.scale = 0.0
    assert_same_bits(served.decision_function(X), before)


@pytest.mark.parametrize("storage", ["bfloat16", "int8"])
@pytest.mark.parametrize("calibrated", [True, False])
def test_weights_in_fewer_bits_are_rounded_and_served(storage, calibrated):
    net, X = trained(refined=True), queries()
    served = sl.InferenceNetwork.from_network(net, X if calibrated else None, storage=storage,
                                              n_threads=1)
    for layer, given, like in zip(served.architecture(), net.architecture(), served.layers,
                                  strict=True):
        w, axis = given.weight, 0 if like.input_major else 1
        bound = (2.0**-8 * abs(w) if storage == "bfloat16"
                 else abs(w).max(axis=axis, keepdims=True) / 253)
        assert (abs(layer.weight - w) <= bound + 1e-12).all() and (layer.weight != w).any()
        np.testing.assert_array_equal(layer.bias, given.bias)
    w, rounded = net.refinement.weight, served.refinement.weight
    np.testing.assert_array_equal(w.indices, rounded.indices)
    largest = np.repeat(abs(w).max(axis=1).toarray().ravel(), np.diff(w.indptr))
    bound = 2.0**-8 * abs(w.data) if storage == "bfloat16" else largest / 253
    assert (abs(rounded.data - w.data) <= bound + 1e-12).all() and (rounded.data != w.data).any()

    # the answers are those of the rounded weights, whichever rows the kernels read
    z = outputs(served.architecture(), X)
    want = refined_outputs(z, X, served.refinement)
    np.testing.assert_allclose(served.decision_function(X), want, rtol=0, atol=2e-4)
    for exact in (False, True):
        for x in (X, X.toarray()):
            scores = served.topk(x, 5, exact=exact)[1]
            np.testing.assert_allclose(scores, -np.sort(-want, axis=1)[:, :5], rtol=0, atol=2e-4)
    single = np.concatenate([served.topk(X[i:i + 1], 5)[1] for i in range(X.shape[0])])
    np.testing.assert_allclose(single, scores, rtol=0, atol=2e-4)


@pytest.mark.parametrize("k", [1, 5, 7, 12, N, N + 3])
def test_a_refined_network_has_one_score_per_label(k):
    net, X = trained(refined=True), queries()
    served = sl.InferenceNetwork.from_network(net, X, n_threads=1)
    want = refined_outputs(outputs(net.architecture(), X), X, net.refinement)
    np.testing.assert_allclose(served.decision_function(X), want, rtol=0, atol=1e-4)
    for exact in (False, True):
        ids, scores = served.topk(X, k, exact=exact)
        n = min(k, N)
        assert (ids[:, n:] == -1).all() and np.isneginf(scores[:, n:]).all()
        assert all(len(set(row)) == n for row in ids[:, :n])
        np.testing.assert_allclose(scores[:, :n], -np.sort(-want, axis=1)[:, :n], rtol=0, atol=1e-4)
        np.testing.assert_allclose(np.take_along_axis(want, ids[:, :n], 1), scores[:, :n], rtol=0,
                                   atol=1e-4)
        np.testing.assert_array_equal(served.topk(X, N)[0][:, :n], ids[:, :n])
    np.testing.assert_array_equal(served.predict(X), want.argmax(axis=1))


def test_refined_answers_are_those_of_the_network():
    net, X = trained(refined=True), queries()
    served = sl.InferenceNetwork.from_network(net, n_threads=1)
    ids, scores = net.topk(X, 5)
    np.testing.assert_array_equal(served.topk(X, 5)[0], ids)
    np.testing.assert_allclose(served.topk(X, 5)[1], scores, rtol=0, atol=1e-4)
    net.refinement = None
    assert sl.InferenceNetwork.from_network(net).refinement is None


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("calibrated", [True, False])
def test_a_wide_last_layer_is_searched(storage, calibrated, monkeypatch):
    choose = _conversion._Conversion._choose

    def by_index(self, i, trials, *rest):
        if trials.get("lsh") is not None:
            trials["lsh"] = trials["lsh"]._replace(times=dict.fromkeys(trials["lsh"].times, 1e-9))
        return choose(self, i, trials, *rest)

    monkeypatch.setattr(_conversion._Conversion, "_choose", by_index)
    net = trained(300, 24, 12_000, n=3000, refined=True)
    X = queries(300, 300, 12_000)
    served = sl.InferenceNetwork.from_network(net, X[:200] if calibrated else None, n_threads=1,
                                              storage=storage, random_state=0, recall=0.95)
    assert served.layers[1].plan == {"single": "lsh", "batch": "lsh"}
    # 500 neighbours with 5 % misses: three standard deviations below the mean are 92 %
    truth = served.topk(X[200:], 5, exact=True)
    assert sl.metrics.neighbour_recall(served.topk(X[200:], 5)[0], truth[0]) > 0.92
    single = [np.concatenate(part) for part in zip(
        *(served.topk(X[i:i + 1], 5) for i in range(200, 300)), strict=True)]
    assert sl.metrics.neighbour_recall(single[0], truth[0]) > 0.92
    z = outputs(served.architecture(), X[200:])
    x = X[200:].toarray()
    added = served.refinement.scale * (x @ served.refinement.weight.T.toarray()
                                       + served.refinement.bias)
    shift = np.take_along_axis(z + added, single[0], 1) - single[1]
    np.testing.assert_allclose(shift, np.repeat(shift[:, :1], 5, 1), rtol=0, atol=1e-3)
    # the log-sum-exp of the candidates, of which a few rows miss one
    best = np.sort(z, axis=1)[:, -served.refinement.n_candidates:]
    assert np.mean(abs(shift[:, 0] - np.logaddexp.reduce(best, axis=1)) < 1e-3) > 0.5


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("n_labels", [N, 6000])
def test_saved_and_loaded_networks_give_the_same_bits(storage, mmap, n_labels, tmp_path):
    net = trained(90, 24, n_labels, refined=True, n=1200)
    X = queries(60, 90, n_labels)
    served = sl.InferenceNetwork.from_network(net, X, storage=storage, random_state=0, n_threads=1)
    path = tmp_path / "net.safetensors"
    served.save(path)
    loaded = sl.InferenceNetwork.load(path, mmap=mmap, n_threads=1)
    for x in (X, X[:1], X.toarray()):
        for exact in (False, True):
            for a, b in zip(served.topk(x, 9, exact=exact), loaded.topk(x, 9, exact=exact),
                            strict=True):
                assert_same_bits(a, b)
    assert_same_bits(served.decision_function(X), loaded.decision_function(X))
    stored = [layer.values if layer.rows is None else layer.rows.values for layer in loaded.layers]
    assert all(isinstance(a.base, np.memmap) == mmap for a in stored)
    assert str(loaded.report) == str(served.report) and repr(loaded) == repr(served)
    again = tmp_path / "again.safetensors"
    loaded.save(again)
    assert tensors_of(path)[0].keys() == tensors_of(again)[0].keys()
    for name, array in tensors_of(path)[0].items():
        assert_same_bits(array, tensors_of(again)[0][name])


@pytest.mark.parametrize("calibrated", [True, False])
def test_the_file_is_as_small_as_the_storage_and_the_report_gives_its_size(tmp_path, calibrated):
    net = trained(3000, 64, 500, refined=True, n=1000)
    X = queries(60, 3000, 500)
    sizes = {}
    for storage in STORAGES:
        served = sl.InferenceNetwork.from_network(net, X if calibrated else None, storage=storage,
                                                  n_threads=1)
        path = tmp_path / f"{storage}.safetensors"
        served.save(path)
        sizes[storage] = os.path.getsize(path)
        # all but the header
        assert 0 < sizes[storage] - served.report.bytes_file < 20_000
        assert f"file: {served.report.bytes_file / 1e6:.1f} MB" in str(served.report)
        assert served.report.bytes_refinement > 5 * served.refinement.weight.nnz // 2
        big = [a for a in tensors_of(path)[0].values() if a.dtype == np.float32 and a.ndim == 2]
        assert not big or storage == "float32"
    n_weights = 3500 * 64 + net.refinement.weight.nnz
    assert sizes["float32"] - sizes["bfloat16"] > 1.9 * n_weights
    assert sizes["float32"] - sizes["int8"] > 2.8 * n_weights


@pytest.mark.parametrize("damage", [
    lambda t, c: c["layers"][0].update(storage="float32"),
    lambda t, c: c["layers"][0].update(is_compact=False),
    lambda t, c: t.update({"layers.0.rows": t["layers.0.rows"].astype(np.uint8)}),
    lambda t, c: t.pop("layers.0.rows_scales"),
    lambda t, c: t["layers.0.rows_scales"].fill(3e38),
    lambda t, c: c["refinement"].update(storage="bfloat16"),
    lambda t, c: t.pop("refinement.scales"),
    lambda t, c: t["refinement.scales"].fill(3e38),
    lambda t, c: t["refinement.indices_low"].fill(N),
    lambda t, c: t.update({"refinement.indices_high": np.zeros(3, np.uint8)}),
    lambda t, c: t.update({"refinement.indptr": t["refinement.indptr"][::-1].copy()}),
    lambda t, c: t.update({"refinement.indices_low": t["refinement.indices_low"][::-1].copy()}),
])
@pytest.mark.filterwarnings("ignore:overflow")
def test_damaged_files_of_converted_networks_are_refused(damage, tmp_path):
    served = sl.InferenceNetwork.from_network(trained(refined=True), storage="int8", n_threads=1)
    served.save(tmp_path / "bad.safetensors")
    rewrite(tmp_path / "bad.safetensors", damage)
    for mmap in (False, True):
        with pytest.raises(ValueError, match=r"bad\.safetensors: .*(damaged|mapped)"):
            sl.InferenceNetwork.load(tmp_path / "bad.safetensors", mmap=mmap)


def test_networks_whose_hidden_layers_are_sparse_are_refused(tmp_path):
    X, y = rows(np.random.default_rng(0), 200, N, N)
    for density, plan in ((0.2, "auto"), (0.2, "exact"), ("auto", "rows")):
        net = sl.Network([sl.LSHLinear(N, 200, density=density, plan=plan, activation="relu"),
                          sl.Linear(200, N)], random_state=0, n_threads=1)
        net.fit(X.toarray(), y, epochs=1, batch_size=32, verbose=False)
        net.layers[0].chosen_plan = None  # small layers become dense
        net.save(tmp_path / "net.safetensors")
        for convert in (sl.InferenceNetwork.from_network, sl.Network.to_torch,
                        lambda net: sl.from_file(tmp_path / "net.safetensors")):
            with pytest.raises(ValueError, match=r"layers\[0\] is a hidden layer that passes on "
                               r"(20|32)\.0% of .*density = 1"):
                convert(net)
        net.layers[0].density = 1
        net.save(tmp_path / "net.safetensors")
        for served in (sl.InferenceNetwork.from_network(net),
                       sl.from_file(tmp_path / "net.safetensors")):
            np.testing.assert_allclose(served.decision_function(X), net.decision_function(X),
                                       rtol=0, atol=1e-4)


def test_networks_that_cannot_be_converted_are_refused():
    with pytest.raises(ValueError, match="no weights yet"):
        sl.InferenceNetwork.from_network(sl.Network([sl.Linear(3, 4)]))
    served = sl.InferenceNetwork.from_network(trained())
    with pytest.raises(TypeError, match="net must be a Network of this library, got Inference"):
        sl.InferenceNetwork.from_network(served)
    with pytest.raises(ValueError, match=f"X must have {N} features, got 3"):
        sl.InferenceNetwork.from_network(trained(), np.ones((9, 3)))


@pytest.mark.parametrize("bound", [3, 1 << 16, (1 << 16) + 1, 1 << 24, (1 << 24) + 1])
def test_ids_are_packed_in_as_many_bytes_as_they_need(bound):
    ids = np.array([0, 1, 2, min(65535, bound - 1), min(65536, bound - 1), bound - 1], np.int32)
    packed = _refined._packed_ids(ids, bound)
    assert_same_bits(_refined._unpacked_ids(packed), ids)
    n_bytes = sum(a.nbytes for a in packed.values()) / len(ids)
    assert n_bytes == (2 if bound <= 1 << 16 else 3 if bound <= 1 << 24 else 4)


@pytest.mark.parametrize("storage", STORAGES)
def test_rows_in_fewer_bits_stand_for_float32(rng, storage):
    W = rng.standard_normal((9, 33)).astype(np.float32)
    W[3] = 0
    got = QuantizedRows.of(W, storage, 1).to_float32()
    bound = {"float32": 0 * W, "bfloat16": 2.0**-8 * abs(W),
             "int8": abs(W).max(axis=1, keepdims=True) / 253}[storage]
    assert got.dtype == np.float32 and (abs(got - W) <= bound).all()
    again = QuantizedRows.of(got, storage, 1).to_float32()
    np.testing.assert_allclose(again, got, rtol=1e-6)


# --- PyTorch --------------------------------------------------------------------------------------


@pytest.mark.parametrize("sparse", [True, False])
def test_a_network_becomes_a_torch_module(sparse):
    torch = pytest.importorskip("torch")
    net, X = trained(sparse=sparse), queries()
    module = net.to_torch()
    assert [type(m).__name__ for m in module] == ["Linear", "ReLU", "Linear"]
    assert not module.training
    with torch.inference_mode():
        got = module(torch.from_numpy(X.toarray())).numpy()
    np.testing.assert_allclose(got, net.decision_function(X), rtol=0, atol=1e-4)


def test_a_refined_network_becomes_a_torch_module_with_the_refinement():
    torch = pytest.importorskip("torch")
    net, X = trained(refined=True), queries()
    served = sl.InferenceNetwork.from_network(net, n_threads=1)
    want = refined_outputs(outputs(net.architecture(), X), X, net.refinement)
    module = net.to_torch()
    x = torch.from_numpy(X.toarray())
    with torch.inference_mode():
        got, again = module(x).numpy(), served.to_torch()(x).numpy()
        plain = net.to_torch(refinement="drop")(x).numpy()
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4)
    np.testing.assert_array_equal(got, again)
    np.testing.assert_allclose(got, served.decision_function(X), rtol=0, atol=1e-4)
    np.testing.assert_allclose(plain, outputs(net.architecture(), X), rtol=0, atol=1e-4)
    assert abs(plain - got).max() > 0.1
    assert {"data", "indices", "indptr", "bias"} < set(module.state_dict())
    assert "n_candidates=7" in repr(module)


@pytest.mark.parametrize("refined", [True, False])
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
def test_torch_modules_take_sparse_tensors(refined):
    torch = pytest.importorskip("torch")
    module, X = trained(refined=refined).to_torch(), queries()
    indptr, indices = (torch.from_numpy(a.astype(np.int64)) for a in (X.indptr, X.indices))
    csr = torch.sparse_csr_tensor(indptr, indices, torch.from_numpy(X.data), X.shape,
                                  check_invariants=True)
    with torch.inference_mode():
        want = module(torch.from_numpy(X.toarray()))
        for x in (csr, csr.to_sparse_coo()):
            torch.testing.assert_close(module(x), want, rtol=0, atol=1e-5)


def test_torch_modules_of_refined_networks_are_saved_and_loaded(tmp_path):
    torch = pytest.importorskip("torch")
    net, x = trained(refined=True), torch.from_numpy(queries().toarray())
    module = net.to_torch()
    torch.save(module.state_dict(), tmp_path / "m.pt")
    other = trained(refined=True).to_torch()
    other.load_state_dict(torch.load(tmp_path / "m.pt"))
    with torch.inference_mode():
        assert torch.equal(module(x), other(x))
