import itertools
import json
import re
import struct

import numpy as np
import pytest
import scipy.sparse as sp
from support import assert_same_bits

import sparselsh as sl
from sparselsh import _files
from sparselsh._arrays import csr
from sparselsh.layers import Step


def network(n_in, n_out, *, hidden=32, density=0.2, seed=0, loss="softmax", **options):
    return sl.Network([sl.Linear(n_in, hidden, activation="relu"),
                       sl.LSHLinear(hidden, n_out, density=density)],
                      loss=loss, random_state=seed, **options)


def stack(n_in, n_out, *, density=0.3, seed=0, **options):
    """Return a network of which all layers but the first are hashed."""
    return sl.Network([
        sl.Linear(n_in, 24, activation="relu"),
        sl.LSHLinear(24, 60, density=density, activation="relu"),
        sl.LSHLinear(60, 50, density=density, activation="relu"),
        sl.LSHLinear(50, n_out, density=density),
    ], random_state=seed, **options)


NETWORKS = {
    "one hidden layer": network,
    "hashed hidden layers": stack,
    "a single LSH layer": lambda n_in, n_out, seed=0, **options: sl.Network(
        [sl.LSHLinear(n_in, n_out, density=0.2)], random_state=seed, **options),
    "one set per sample": lambda n_in, n_out, seed=0, **options: sl.Network(
        [sl.Linear(n_in, 16), sl.LSHLinear(16, n_out, density=0.2, active="sample")],
        random_state=seed, **options),
    "dense": lambda n_in, n_out, seed=0, **options: sl.Network(
        [sl.Linear(n_in, 16, activation="relu"), sl.Linear(16, n_out)],
        random_state=seed, **options),
}


@pytest.fixture(params=NETWORKS)
def make(request):
    """Return a function (n_in, n_out, seed=0) that makes an untrained network."""
    return NETWORKS[request.param]


@pytest.fixture(params=[False, True], ids=["dense X", "CSR X"])
def data(request, rng):
    """Inputs, and up to three of 80 labels for each."""
    X = rng.standard_normal((120, 20), np.float32)
    X[rng.random(X.shape) < 0.5] = 0
    Y = sp.csr_array((rng.random((120, 80)) < 0.03).astype(np.float32))
    return (sp.csr_array(X) if request.param else X), Y


def fit(net, X, Y, **options):
    return net.fit(X, Y, **({"epochs": 2, "batch_size": 16, "verbose": False} | options))


def weights(net):
    return [a for layer in net.layers for a in (layer.weight, layer.bias)]


def assert_same_network(a, b):
    for one, other in zip(weights(a), weights(b), strict=True):
        assert_same_bits(one, other)


# ---- learning


@pytest.mark.parametrize("sparse", [False, True], ids=["dense X", "CSR X"])
def test_fit_learns_the_identity(sparse):
    X = np.eye(100, dtype=np.float32)
    net = fit(network(100, 100), sp.csr_array(X) if sparse else X, np.arange(100), epochs=60)
    np.testing.assert_array_equal(net.predict(X, exact=True), np.arange(100))
    assert (net.predict(X) == np.arange(100)).mean() >= 0.97  # measured: 1


def test_with_a_relu_fit_learns_what_no_linear_network_can(rng):
    # XOR of the signs of two inputs: the accuracy of a linear network is 1/2, or 3/4 at best
    X = rng.uniform(-1, 1, (400, 2)).astype(np.float32)
    y = (X[:, 0] * X[:, 1] > 0).astype(int)

    def accuracy(activation):
        net = sl.Network([sl.Linear(2, 32, activation=activation), sl.LSHLinear(32, 2, density=1)],
                         random_state=0)
        return (fit(net, X, y, epochs=30, optimizer=sl.Adam(0.02)).predict(X) == y).mean()

    assert accuracy("relu") >= 0.95
    assert accuracy(None) <= 0.8


@pytest.mark.parametrize("loss", ["softmax", "bce"])
def test_fit_learns_several_labels_per_sample(rng, loss):
    # input j comes with the labels 2 j and 2 j + 1
    on = rng.random((1000, 40)) < 0.06
    X, Y = (sp.csr_array(on.astype(np.float32)),
            sp.csr_array(np.repeat(on, 2, axis=1).astype(np.float32)))
    net = fit(network(40, 80, loss=loss), X, Y, epochs=20, batch_size=32)
    ids, _ = net.topk(X, k=2)
    some = on.any(axis=1)
    assert sl.metrics.precision_at_k(Y[some], ids[some], 2) >= 0.95


def test_fit_learns_values(rng):
    X = rng.standard_normal((400, 5), np.float32)
    Y = X @ rng.standard_normal((5, 3)).astype(np.float32) + 1
    net = sl.Network([sl.Linear(5, 3)], loss="mse", random_state=0)
    fit(net, X, Y, epochs=40, batch_size=20, optimizer=sl.SGD(0.05))
    np.testing.assert_allclose(net.predict(X), Y, atol=1e-3)


@pytest.mark.parametrize("sizes", [(32, 10), (32, 200, 10), (32, 200, 200, 10)], ids=len)
def test_hashed_layers_are_nearly_as_accurate_as_dense_ones_on_digits(sizes):
    load_digits = pytest.importorskip("sklearn.datasets").load_digits
    X, y = load_digits(return_X_y=True)
    X = (X / 16).astype(np.float32)

    def accuracy(density):
        layers = [sl.LSHLinear(n, m, density=density, activation="relu" if m > 10 else None)
                  for n, m in itertools.pairwise(sizes)]
        if len(layers) > 1:
            layers[-1] = sl.Linear(sizes[-2], sizes[-1])  # only the hidden layers are hashed here
        net = sl.Network([sl.Linear(64, 32, activation="relu"), *layers], random_state=0)
        fit(net, X[:1400], y[:1400], epochs=10, batch_size=32)
        return (net.predict(X[1400:], exact=True) == y[1400:]).mean()

    # over three seeds the largest gap between densities 0.3 and 1 is 0.033; chance is 0.1, a dense
    # network reaches 0.88 to 0.93
    assert accuracy(0.3) >= max(0.83, accuracy(1) - 0.05)


def test_partial_fit_continues_the_training():
    X, y = np.eye(50, dtype=np.float32), np.arange(50)
    net = network(50, 50)
    losses = []
    for _ in range(60):
        net.partial_fit(X, y, batch_size=10)
        losses.append(net.decision_function(X)[y, y].mean())
    assert losses[0] < losses[20] < losses[-1]
    assert (net.predict(X, exact=True) == y).mean() >= 0.8  # measured: 0.92
    assert net.history == [], "partial_fit records no epochs"


def test_partial_fit_is_an_epoch_without_shuffling(data):
    X, Y = data
    optimizer = sl.Adam(1e-3)
    a = fit(network(20, 80), X, Y, optimizer=optimizer, epochs=1, shuffle=False)
    b = network(20, 80).partial_fit(X, Y, batch_size=16)
    assert_same_network(a, b)


# ---- reproducibility


def test_a_seed_gives_the_same_network(make, data):
    X, Y = data
    a, b, other = (fit(make(20, 80, seed=seed), X, Y) for seed in (1, 1, 2))
    assert_same_network(a, b)
    for one, two in zip(a.topk(X), b.topk(X), strict=True):
        assert_same_bits(one, two)
    assert not np.array_equal(a.layers[0].weight, other.layers[0].weight)


def test_threads_do_not_change_a_bit(make, data):
    X, Y = data
    one, two = (fit(make(20, 80, n_threads=n), X, Y) for n in (1, 2))
    assert_same_network(one, two)
    for exact in (False, True):
        for a, b in zip(one.topk(X, exact=exact), two.topk(X, exact=exact), strict=True):
            assert_same_bits(a, b)


def test_fit_does_not_change_its_arguments(make, data):
    X, _ = data
    Y = np.zeros((120, 80), np.float32)
    Y[np.arange(120), np.arange(120) % 80] = 1
    stored_zeros = sp.csr_array(Y)
    stored_zeros.data[::3] = 0
    for target in (Y, stored_zeros, np.arange(120) % 80):
        copies = X.copy(), target.copy()
        fit(make(20, 80), X, target, epochs=1)
        for kept, given in zip(copies, (X, target), strict=True):
            if sp.issparse(kept):
                np.testing.assert_array_equal(given.data, kept.data)
                np.testing.assert_array_equal(given.indices, kept.indices)
            else:
                np.testing.assert_array_equal(given, kept)


def test_targets_in_every_form_train_the_same_network(rng):
    X, y = rng.standard_normal((40, 12), np.float32), rng.integers(0, 30, 40)
    indicator = np.eye(30)[y]
    forms = [y, y.astype(np.int8), y.astype(float), y.tolist(), indicator, indicator.astype(bool),
             sp.csr_array(indicator), sp.csr_matrix(indicator), sp.csc_array(indicator),
             sp.coo_array(indicator)]
    nets = [fit(network(12, 30), X, Y) for Y in forms]
    for other in nets[1:]:
        assert_same_network(nets[0], other)


def test_inputs_in_every_form_train_the_same_network(rng):
    X, y = rng.integers(-3, 4, (40, 12)), rng.integers(0, 30, 40)
    dense = [X, X.astype(np.float64), np.asfortranarray(X.astype(np.float32)), X.tolist()]
    sparse = [kind(X.astype(np.float32)) for kind in (sp.csr_array, sp.csr_matrix,
                                                      sp.csc_array, sp.coo_array)]
    sparse.append(sp.csr_array(X))
    for forms in (dense, sparse):
        nets = [fit(network(12, 30), form, y) for form in forms]
        for other in nets[1:]:
            assert_same_network(nets[0], other)


# ---- history and progress


def test_history_has_one_entry_per_epoch(data):
    X, Y = data
    net = fit(network(20, 80), X, Y, epochs=3)
    fit(net, X, Y, epochs=2, validation=(X, Y))
    assert [entry["epoch"] for entry in net.history] == [1, 2, 3, 4, 5]
    keys = {"epoch", "loss", "seconds", "cpu_seconds", "samples_per_second", "computed_share"}
    assert [set(entry) for entry in net.history] == 3 * [keys] + 2 * [keys | {"p_at_1", "val_loss"}]
    assert all(0 <= entry["computed_share"] <= 1 for entry in net.history)
    assert net.history[-1]["loss"] < net.history[0]["loss"]


def test_validation_measures_precision_after_each_epoch(data):
    X, Y = data
    net = fit(network(20, 80), X, Y, epochs=1, validation=(X, Y))
    assert net.history[-1]["p_at_1"] == sl.metrics.precision_at_k(Y, net.topk(X, k=1)[0], 1)


def test_computed_share_is_the_fraction_of_active_neurons(rng):
    # 5,000 neurons: inference computes all if there are fewer than 4,096, or if a search
    # would compute an eighth
    X, y = rng.standard_normal((64, 12), np.float32), rng.integers(0, 5000, 64)
    net = fit(network(12, 5000, density=0.1), X, y)
    assert net.computed_share == pytest.approx(0.1)
    net.topk(X, k=5)
    assert 0 < net.computed_share < 1 / 8
    net.topk(X, k=5, exact=True)
    assert net.computed_share == 1


@pytest.mark.parametrize("validation", [False, True])
def test_the_progress_bar_shows_loss_and_computed_share(terminal, data, validation):
    X, Y = data
    net = fit(network(20, 80), X, Y, epochs=2, verbose=True,
              validation=(X, Y) if validation else None)
    printed = terminal.readouterr()
    assert printed.out == ""
    for number, entry in enumerate(net.history, 1):
        last = [line for line in re.split("[\r\n]",
                                          printed.err) if line.startswith(f"epoch {number}/2")][-1]
        assert (f"loss={entry['loss']:.3f}" in last
                and f"computed={entry['computed_share']:.1%}" in last)
        assert ("P@1=" in last) == validation
        assert "120/120" in last


@pytest.mark.parametrize("validation", [False, True])
def test_without_a_terminal_an_epoch_is_a_line(capsys, data, validation):
    X, Y = data
    net = fit(network(20, 80), X, Y, epochs=2, verbose=True,
              validation=(X, Y) if validation else None)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    for number, (line, entry) in enumerate(zip(lines, net.history, strict=True), 1):
        assert line.startswith(f"epoch {number}/2: 120 samples, loss {entry['loss']:.3f}, computed "
                               f"{entry['computed_share']:.1%}")
        assert ("P@1" in line) == validation


def test_verbose_false_prints_nothing(capfd, data):
    fit(network(20, 80), *data)
    assert capfd.readouterr() == ("", "")


# ---- active sets


@pytest.mark.parametrize("active", ["batch", "sample"])
@pytest.mark.parametrize("fill", [False, True])
@pytest.mark.parametrize("candidates", [0, 3])
def test_labels_are_always_active_in_training(rng, active, fill, candidates):
    layer = sl.LSHLinear(8, 200, density=0.02, active=active, fill=fill, candidates=candidates)
    net = sl.Network([layer], random_state=0)
    X, y = rng.standard_normal((30, 8), np.float32), rng.integers(0, 200, 30)
    labels = csr.from_scipy(
        sp.csr_array((np.ones(30, np.float32), y, np.arange(31)), shape=(30, 200)))
    layer.initialize(rng)
    out, _ = layer.forward(X, Step(True, labels, seed=3))
    if active == "batch":
        assert set(y) <= set(out.ids.tolist())
    else:
        assert all(j in out.indices[out.indptr[i]:out.indptr[i + 1]] for i, j in enumerate(y))
    fit(net, X, y)  # the loss requires the labels to be active


@pytest.mark.parametrize(
    "optimizer", [lambda: sl.SGD(0.1, momentum=0.9), lambda: sl.Adam(0.01, weight_decay=0.1)],
                         ids=["SGD", "Adam"])
@pytest.mark.parametrize("active", ["batch", "sample"])
def test_a_step_changes_active_rows_and_no_others(rng, active, optimizer):
    layer = sl.LSHLinear(8, 200, density=0.05, active=active)
    net = sl.Network([sl.Linear(10, 8), layer], random_state=0)
    X, y = rng.standard_normal((9, 10), np.float32), rng.integers(0, 200, 9)
    fit(net, X, y, optimizer=optimizer())  # so that the optimizer has moments

    touched = []
    forward = layer.forward

    def spy(x, step):
        out, backprop = forward(x, step)
        touched.append(np.unique(out.ids if active == "batch" else out.indices))
        return out, backprop

    def state():
        parameters = (layer._w, layer._b)
        moments = [m for p in parameters for m in net.optimizer._states_of(p) if m is not None]
        return [a.copy() for a in (layer.weight, layer.bias[:, None], *moments)]

    layer.forward = spy
    before = state()
    net.partial_fit(X, y)
    idle = np.setdiff1d(np.arange(200), touched[0])
    assert len(idle) > 0
    for new, old in zip(state(), before, strict=True):
        assert_same_bits(new[idle], old[idle])
        assert not np.array_equal(new[touched[0]], old[touched[0]])


def test_training_on_sparse_input_changes_only_the_features_of_the_batch(rng):
    X = sp.random_array((20, 300), density=0.02, format="csr", dtype=np.float32, rng=rng)
    net = network(300, 50)
    fit(net, X, np.arange(20))
    before = net.layers[0].weight.copy()
    part = X[:4]
    net.partial_fit(part, np.arange(4))
    idle = np.setdiff1d(np.arange(300), part.indices)
    assert_same_bits(np.ascontiguousarray(net.layers[0].weight[:, idle]),
                     np.ascontiguousarray(before[:, idle]))


def test_a_hidden_layer_must_have_one_set_per_sample():
    with pytest.raises(ValueError, match=r"layers\[0\] is a hidden layer.*active='sample'"):
        sl.Network([sl.LSHLinear(8, 400, density=0.1, active="batch"), sl.Linear(400, 3)])
    net = sl.Network([sl.LSHLinear(8, 400, density=0.1), sl.LSHLinear(400, 300, density=0.1)])
    places = net._training.places
    sets = [layer.active_at(place) for layer, place in zip(net.layers, places, strict=True)]
    assert sets == ["sample", "batch"]


def test_the_index_is_updated_with_the_weights_in_training(rng):
    # hashed against exact answers after each step, without a rebuild of the index
    layer = sl.LSHLinear(16, 500, density=0.3, rebuild=sl.rebuild.AtOnce(first=10**6))
    net = sl.Network([sl.Linear(12, 16), layer], random_state=0)
    X, y = rng.standard_normal((64, 12), np.float32), rng.integers(0, 500, 64)
    for _ in range(5):
        net.partial_fit(X, y)
        # every neuron that was updated gets a new sketch; measured: 1
        agree = sl.metrics.neighbour_recall(net.topk(X)[0], net.topk(X, exact=True)[0])
        assert agree >= 0.98


# ---- inference


def test_topk_ranks_the_exact_scores(make, data):
    X, Y = data
    net = fit(make(20, 80), X, Y)
    scores = net.decision_function(X)
    ids, top = net.topk(X, k=5, exact=True)
    assert ids.shape == top.shape == (120, 5) and ids.dtype == np.int32 and top.dtype == np.float32
    np.testing.assert_array_equal(ids, np.argsort(-scores, axis=1, kind="stable")[:, :5])
    assert_same_bits(top, np.take_along_axis(scores, ids, 1))
    hashed, hashed_top = net.topk(X, k=5)
    np.testing.assert_allclose(hashed_top, np.take_along_axis(scores, hashed, 1),
                               rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(hashed, ids)  # with 80 neurons all are candidates


def test_hashed_topk_agrees_with_exact_on_a_trained_network(rng):
    X = rng.standard_normal((500, 30), np.float32)
    y = rng.integers(0, 3000, 500)
    net = fit(network(30, 3000, density=0.1), X, y, epochs=5)
    agree = sl.metrics.neighbour_recall(net.topk(X)[0], net.topk(X, exact=True)[0])
    assert agree >= 0.95  # 128 of 3,000 candidates; measured: 0.99


@pytest.mark.parametrize("exact", [False, True])
def test_beyond_the_last_label_there_is_no_id(make, data, exact):
    X, Y = data
    net = fit(make(20, 80), X, Y)
    ids, scores = net.topk(X, k=100, exact=exact)
    np.testing.assert_array_equal(np.sort(ids[:, :80]), [range(80)] * 120)
    assert np.all(ids[:, 80:] == -1) and np.all(scores[:, 80:] == -np.inf)


def test_exact_answers_do_not_change_what_is_learned(make, data):
    X, Y = data
    queried, other = make(20, 80), make(20, 80)
    for net in (queried, other):
        fit(net, X, Y)
    queried.topk(X, exact=True)
    queried.decision_function(X)
    for net in (queried, other):
        net.partial_fit(X, Y)
    assert_same_network(queried, other)


def test_answers_do_not_depend_on_the_other_rows_of_the_batch(make, data):
    X, Y = data
    net = fit(make(20, 80), X, Y)
    whole = net.decision_function(X)
    for rows in (slice(0, 1), slice(50, 77)):
        np.testing.assert_allclose(net.decision_function(X[rows]), whole[rows],
                                   rtol=1e-5, atol=1e-6)


def test_inference_without_rows_gives_no_answers(make, data):
    X, Y = data
    net = fit(make(20, 80), X, Y)
    assert net.topk(X[:0], k=3)[0].shape == (0, 3)
    assert net.predict(X[:0]).shape == (0,)
    assert net.decision_function(X[:0]).shape == (0, 80)


@pytest.mark.parametrize("loss", ["softmax", "bce"])
def test_predict_gives_the_best_label(data, loss):
    X, Y = data
    net = fit(network(20, 80, loss=loss), X, Y)
    np.testing.assert_array_equal(net.predict(X), net.topk(X, k=1)[0][:, 0])
    np.testing.assert_array_equal(net.predict(X, exact=True),
                                  net.decision_function(X).argmax(axis=1))


def test_predict_of_a_regression_gives_the_values(rng):
    X, Y = rng.standard_normal((30, 4), np.float32), rng.standard_normal((30, 2))
    net = fit(sl.Network([sl.Linear(4, 2)], loss="mse", random_state=0), X, Y)
    assert_same_bits(net.predict(X), net.decision_function(X))
    one = fit(sl.Network([sl.Linear(4, 1)], loss=sl.MeanSquaredError(), random_state=0), X, Y[:, 0])
    assert one.predict(X).shape == (30, 1)


def test_predictions_of_more_rows_than_one_batch_holds_are_the_same(rng):
    X = rng.standard_normal((2500, 6), np.float32)  # 1,024 rows per batch
    net = sl.Network([sl.Linear(6, 9)], random_state=0)
    net.layers[0].set_weights(rng.standard_normal((9, 6)), rng.standard_normal(9))
    want = X @ net.layers[0].weight.T + net.layers[0].bias
    np.testing.assert_allclose(net.decision_function(X), want, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(net.predict(X), want.argmax(axis=1))


def test_inference_of_a_trained_layer_uses_hashing(rng):
    W, b = rng.standard_normal((2000, 24)), rng.standard_normal(2000)
    X = rng.standard_normal((100, 24))
    net = sl.Network([sl.LSHLinear.from_dense(W, b, density=0.05)])
    want = np.argsort(-(X @ W.T + b), axis=1)[:, :5]
    assert sl.metrics.neighbour_recall(net.topk(X, k=5)[0], want) >= 0.98  # measured: 1
    np.testing.assert_array_equal(net.topk(X, k=5, exact=True)[0], want)


def test_set_weights_copies_its_arguments_and_replaces_the_index(rng):
    layer = sl.LSHLinear(6, 300, density=0.1)
    net = sl.Network([layer])
    X = rng.standard_normal((10, 6))
    for _ in range(2):
        W = rng.standard_normal((300, 6), np.float32)
        layer.set_weights(W)
        want = np.argmax(X @ W.T, axis=1)
        W[:] = 0
        assert (net.predict(X) == want).mean() >= 0.9  # 128 candidates of 300


def test_dense_and_sparse_input_may_alternate(rng):
    X, y = rng.standard_normal((30, 12), np.float32), rng.integers(0, 40, 30)
    for net in (network(12, 40), sl.Network([sl.LSHLinear(12, 40, density=0.3)], random_state=0),
                sl.Network([sl.LSHLinear(12, 40, density=1)], random_state=0)):
        for form in (X, sp.csr_array(X), X):
            fit(net, form, y, optimizer=net.optimizer)
            for exact in (True, False):
                np.testing.assert_array_equal(net.topk(X, exact=exact)[0],
                                              net.topk(sp.csr_array(X), exact=exact)[0])


# ---- files


def test_a_network_is_loaded_from_its_file(make, data, tmp_path):
    X, Y = data
    net = fit(make(20, 80), X, Y)
    net.save(tmp_path / "a.safetensors")
    loaded = sl.load(str(tmp_path / "a.safetensors"))
    assert_same_network(net, loaded)
    assert repr(loaded) == repr(net)
    for exact in (False, True):
        for a, b in zip(net.topk(X, exact=exact), loaded.topk(X, exact=exact), strict=True):
            assert_same_bits(a, b)
    loaded.save(tmp_path / "b.safetensors")
    (a, about_a), (b, about_b) = (
        _files.read(tmp_path / f"{name}.safetensors", "sparselsh.network") for name in "ab")
    assert about_a == about_b and a.keys() == b.keys()
    for name in a:
        assert_same_bits(a[name], b[name])
    fit(loaded, X, Y)


@pytest.mark.parametrize("loss", ["softmax", "bce", "mse"])
def test_the_configuration_is_loaded_from_the_file(tmp_path, rng, loss):
    layers = [sl.Linear(5, 4, activation="relu", init_scale=0.5),
              sl.LSHLinear(4, 90, density=0.1, active="sample", activation="relu",
                           candidates=2, fill=False,
                           rebuild=sl.rebuild.Frozen(2, sl.rebuild.OnDrift(0.3, 4)), plan="rows",
                           sketch_bits=64, oversample=3, dropout=0.25, init_scale=2),
              sl.LSHLinear(90, 80, density=0.1, policy="score", family=sl.SimHash(3, 4),
                           min_count=2, n_probes=3),
              sl.LSHLinear(80, 70)]
    net = sl.Network(layers, loss=loss, random_state=0)
    fit(net, rng.standard_normal((9, 5)), rng.standard_normal((9, 70)), epochs=1)
    net.save(tmp_path / "net")
    loaded = sl.load(tmp_path / "net")
    assert type(loaded.loss) is type(net.loss)
    places = net._training.places
    meant = [layer.config(place) for layer, place in zip(layers, places, strict=True)]
    assert [layer.config() for layer in loaded.layers] == meant
    assert [layer.n_active for layer in loaded.layers[1:]] == [
        layer.n_active_at(place) for layer, place in zip(layers[1:], places[1:], strict=True)]


def test_save_is_atomic(tmp_path, rng, monkeypatch):
    net = sl.Network([sl.Linear(3, 4)])
    net.layers[0].set_weights(rng.standard_normal((4, 3)))
    path = tmp_path / "net"
    net.save(path)
    before = path.read_bytes()
    net.layers[0].set_weights(rng.standard_normal((4, 3)))

    def fails(*args):
        raise OSError(28, "No space left on device")

    for name in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(_files.os, name, fails)
            with pytest.raises(OSError, match="No space left"):
                net.save(path)
        assert path.read_bytes() == before
        assert list(tmp_path.iterdir()) == [path], "no temporary file is left"
    net.save(path)
    assert path.read_bytes() != before


def test_save_needs_a_folder_and_weights(tmp_path):
    net = sl.Network([sl.Linear(3, 4)])
    with pytest.raises(ValueError, match="no weights yet"):
        net.save(tmp_path / "net")
    net.layers[0].set_weights(np.ones((4, 3)))
    with pytest.raises(FileNotFoundError):
        net.save(tmp_path / "none" / "net")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError):
        net.save(tmp_path / "folder")
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The bytes of a saved network."""
    path = tmp_path_factory.mktemp("saved") / "net.safetensors"
    rng = np.random.default_rng(0)
    net = sl.Network([sl.Linear(6, 5), sl.LSHLinear(5, 60, density=0.2)], random_state=0)
    fit(net, sp.csr_array(rng.standard_normal((20, 6))), rng.integers(0, 60, 20))
    net.save(path)
    return path


def test_load_of_a_missing_file_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.safetensors: no such file"):
        sl.load(tmp_path / "none.safetensors")
    with pytest.raises(IsADirectoryError, match="is a directory; give the path of a file in it"):
        sl.load(tmp_path)


def test_load_of_a_truncated_file_is_refused(saved, tmp_path):
    whole = saved.read_bytes()
    path = tmp_path / "part"
    for length in [*range(0, 40), *range(40, len(whole), 97), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="not a readable safetensors file"):
            sl.load(path)


def test_load_of_a_damaged_header_is_refused(saved, tmp_path, rng):
    whole = bytearray(saved.read_bytes())
    path = tmp_path / "damaged"
    n_header = struct.unpack("<Q", whole[:8])[0]
    for _ in range(300):
        part = whole.copy()
        part[rng.integers(8 + n_header)] = rng.integers(256)
        path.write_bytes(part)
        # a change may leave a valid network with another name or number; any
        # other result is an error
        try:
            sl.load(path)
        except ValueError as error:
            assert str(path) in str(error)


def other_file(path, tensors, metadata):
    from safetensors.numpy import save_file

    save_file(tensors, path, metadata)


def test_load_of_other_safetensors_files_is_refused(tmp_path):
    for metadata in (None, {"format": "pt"}):
        other_file(tmp_path / "other", {"weight": np.ones((3, 4), np.float32)}, metadata)
        with pytest.raises(ValueError,
                           match=r"other: a safetensors file, but not one of sparselsh.network"):
            sl.load(tmp_path / "other")


def changed(**changes):
    """Return a layer's configuration with changes; None removes an entry."""
    entry = {"type": "Linear", "input_major": False, "n_in": 4, "n_out": 3,
             "activation": None, "init_scale": None}
    return {key: value for key, value in (entry | changes).items() if value is not None
            or key not in changes}


GOOD = {"layers.0.weight": np.ones((3, 4), np.float32), "layers.0.bias": np.ones(3, np.float32)}


@pytest.mark.parametrize("tensors, config", [
    pytest.param(GOOD, None, id="no configuration"),
    pytest.param(GOOD, "{", id="no JSON"),
    pytest.param(GOOD, "[]", id="a list"),
    pytest.param(GOOD, {"loss": "softmax", "layers": []}, id="no layers"),
    pytest.param(GOOD, {"loss": "softmax", "layers": 3}, id="layers is a number"),
    pytest.param(GOOD, {"loss": "softmax", "layers": ["Linear"]}, id="layer is a string"),
    pytest.param(GOOD, {"loss": "hinge", "layers": [changed()]}, id="unknown loss"),
    pytest.param(GOOD, {"loss": "softmax", "layers": [changed(type="Conv")]}, id="unknown layer"),
    pytest.param(GOOD, {"loss": "softmax", "layers": [changed(type=None)]},
                 id="layer without a type"),
    pytest.param(GOOD, {"loss": "softmax", "layers": [changed(n_in=None)]},
                 id="layer without a size"),
    pytest.param(GOOD, {"loss": "softmax", "layers": [changed(n_in=-4)]}, id="negative size"),
    pytest.param(GOOD, {"loss": "softmax", "layers": [changed(n_in=5)]},
                 id="size that is not that of the weights"),
    pytest.param(GOOD, {"loss": "softmax", "layers": [changed(input_major=True)]},
                 id="weights transposed"),
    pytest.param(GOOD, {"loss": "softmax", "layers": [changed(new_option=1)]},
                 id="option of another version"),
    pytest.param(GOOD, {"loss": "softmax", "layers": [changed(), changed()]},
                 id="layer without weights"),
    pytest.param(GOOD | {"layers.0.weight": np.full((3, 4), np.nan, np.float32)},
                 {"loss": "softmax", "layers": [changed()]}, id="weights that are not finite"),
])
def test_load_of_a_damaged_network_is_refused(tmp_path, tensors, config):
    metadata = {"format": "sparselsh.network"}
    if config is not None:
        metadata["config"] = config if isinstance(config, str) else json.dumps(config)
    other_file(tmp_path / "net", tensors, metadata)
    with pytest.raises(ValueError,
                       match="net: the network in this file is damaged or from another version"):
        sl.load(tmp_path / "net")


def test_the_undamaged_file_of_these_tests_is_loaded(tmp_path):
    config = {"loss": "softmax", "layers": [changed()]}
    other_file(tmp_path / "net", GOOD,
               {"format": "sparselsh.network", "config": json.dumps(config)})
    assert_same_bits(sl.load(tmp_path / "net").decision_function(np.ones((1, 4))),
                     np.full((1, 3), 5, np.float32))


def test_the_repr_of_a_network_shows_its_layers_and_loss():
    assert repr(sl.Network([sl.Linear(2, 3, activation="relu"),
                            sl.LSHLinear(3, 4, density=0.5)])) == (
        "Network([Linear(2, 3, activation='relu'),\n"
        "         LSHLinear(3, 4, density=0.5, active='batch', activation=None)],\n"
        "        loss=SoftmaxCrossEntropy())")


def test_custom_objects_that_a_file_cannot_hold_are_refused_before_it_is_written(tmp_path):
    X = np.eye(9, 4)
    for layer in (type("Mine", (sl.Linear,), {})(4, 9),
                  sl.LSHLinear(4, 9, density=0.5, family=type("Mine", (sl.SimHash,), {})(3, 2))):
        net = sl.Network([layer], random_state=0).fit(X, np.arange(9), epochs=1, verbose=False)
        with pytest.raises(TypeError, match=r"must be one of .* to be saved, got .*pickle"):
            net.save(tmp_path / "net.safetensors")
    assert not list(tmp_path.iterdir())
