"""Networks whose weights or optimizer state are stored in fewer bits."""
import numpy as np
import pytest
import scipy.sparse as sp
from support import assert_same_bits

import sparselsh as sl
from sparselsh._arrays import bfloat16

N_FEATURES, N_CLASSES, HIDDEN = 400, 300, 24
LAYERS = {
    "batch": {"density": 0.3},
    "sample": {"density": 0.2, "active": "sample"},
    "dense": {"density": 1},
}
OPTIMIZERS = {
    "adam": lambda **options: sl.Adam(2e-2, schedule="linear", **options),
    "adam, row": lambda **options: sl.Adam(2e-2, schedule="linear", second_moment="row", **options),
    "momentum": lambda **options: sl.SGD(0.5, momentum=0.9, schedule="linear", **options),
}


def data(seed=0, n=3000, sparse=True):
    """Make rows that are noisy copies of one of N_CLASSES patterns."""
    rng = np.random.default_rng(seed)
    patterns = rng.random((N_CLASSES, N_FEATURES)) < 0.05
    y = rng.integers(N_CLASSES, size=n)
    X = (patterns[y] * (rng.random((n, N_FEATURES)) < 0.7)
         + (rng.random((n, N_FEATURES)) < 0.005)).astype(np.float32)
    X /= np.maximum(np.linalg.norm(X, axis=1, keepdims=True), 1)
    return (sp.csr_array(X) if sparse else X), y


def trained(layer="batch", optimizer="adam", dtype="float32", state_dtype="float32",
            n_threads=1, sparse=True, epochs=8, compute_dtype="float32"):
    X, y = data(sparse=sparse)
    net = sl.Network([sl.Linear(N_FEATURES, HIDDEN, dtype=dtype),
                      sl.LSHLinear(HIDDEN, N_CLASSES, dtype=dtype,
                                                                             **LAYERS[layer])],
                     random_state=0, n_threads=n_threads, compute_dtype=compute_dtype)
    return net.fit(X[:2500], y[:2500], optimizer=OPTIMIZERS[optimizer](state_dtype=state_dtype),
                   epochs=epochs, batch_size=64, verbose=False)


def accuracy(net, sparse=True):
    X, y = data(sparse=sparse)
    return (net.predict(X[2500:], exact=True) == y[2500:]).mean()


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_bfloat16_learns_as_well_as_float32(layer, optimizer):
    # 500 test rows: an accuracy near 0.9 has a standard error of 1.3 percentage points
    full = accuracy(trained(layer, optimizer))
    half = accuracy(trained(layer, optimizer, "bfloat16", "bfloat16"))
    assert full > 0.7 and abs(full - half) < 0.05


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("sparse", [True, False], ids=["sparse", "dense"])
def test_products_in_bfloat16_learn_as_well_as_float32(layer, sparse):
    full = accuracy(trained(layer, sparse=sparse), sparse)
    half = accuracy(trained(layer, sparse=sparse, compute_dtype="bfloat16"), sparse)
    assert full > 0.7 and abs(full - half) < 0.05


@pytest.mark.parametrize("sparse", [True, False], ids=["sparse", "dense"])
def test_products_in_bfloat16_do_not_depend_on_the_number_of_threads(sparse):
    one, two = (trained(n_threads=n, epochs=2, sparse=sparse, compute_dtype="bfloat16")
                for n in (1, 2))
    for a, b in zip(one.layers, two.layers, strict=True):
        assert_same_bits(a.weight, b.weight)
        assert_same_bits(a.bias, b.bias)


def test_products_in_bfloat16_change_the_weights_and_not_their_type():
    full, half = trained(epochs=1), trained(epochs=1, compute_dtype="bfloat16")
    assert half.layers[1].weight.dtype == np.float32
    assert (full.layers[1].weight != half.layers[1].weight).any()


def test_a_training_in_bfloat16_goes_on_from_a_file_with_the_same_bits(tmp_path):
    X, y = data()
    net = trained(epochs=1, compute_dtype="bfloat16")
    net.save(tmp_path / "net", training_state=True)
    loaded = sl.load(tmp_path / "net")
    assert loaded.compute_dtype == "bfloat16"
    for network in (net, loaded):
        network.fit(X[:500], y[:500], optimizer=network.optimizer, epochs=1, verbose=False)
    assert_same_bits(net.layers[1].weight, loaded.layers[1].weight)
    assert sl.Network([sl.Linear(3, 4)]).compute_dtype == "float32"


def test_dense_input_learns_in_bfloat16_too():
    assert accuracy(trained(dtype="bfloat16", state_dtype="bfloat16", sparse=False),
                    sparse=False) > 0.7


@pytest.mark.parametrize("layer", LAYERS)
def test_results_do_not_depend_on_the_number_of_threads(layer):
    one, two = (trained(layer, "adam, row", "bfloat16", "bfloat16", n_threads=n,
                        epochs=2) for n in (1, 2))
    for a, b in zip(one.layers, two.layers, strict=True):
        assert_same_bits(a._w.value, b._w.value)
        assert_same_bits(a.bias, b.bias)


def test_bfloat16_weights_are_stored_as_such_and_returned_as_float32():
    W = np.random.default_rng(0).standard_normal((7, 5)).astype(np.float32)
    layer = sl.Linear(5, 7, dtype="bfloat16").set_weights(W)
    assert layer._w.value.dtype == np.uint16 and layer.weight.dtype == np.float32
    assert_same_bits(layer.weight, bfloat16.to_float32(bfloat16.to_bfloat16(W)))
    # 8 significant bits: a relative error of at most 2^-8
    assert 0 < abs(layer.weight - W).max() and (abs(layer.weight - W) <= 2.0**-8 * abs(W)).all()
    assert layer.config()["dtype"] == "bfloat16"


def test_a_network_in_bfloat16_is_saved_and_loaded_bit_by_bit(tmp_path):
    pytest.importorskip("safetensors")
    net = trained(dtype="bfloat16", epochs=2)
    net.save(tmp_path / "net")
    other = sl.load(tmp_path / "net")
    for a, b in zip(net.layers, other.layers, strict=True):
        assert b.dtype == "bfloat16"
        assert_same_bits(a._w.value, b._w.value)
    X, _ = data()
    for one, two in zip(net.topk(X[:50]), other.topk(X[:50]), strict=True):
        assert_same_bits(one, two)


def states(optimizer, parameter):
    return [state for state in optimizer._states_of(parameter) if state is not None]


@pytest.mark.parametrize("state_dtype, bits", [("float32", np.float32), ("bfloat16", np.uint16)])
def test_optimizer_state_takes_the_documented_memory(state_dtype, bits):
    net = trained("batch", "adam, row", state_dtype=state_dtype, epochs=1)
    m, v = states(net.optimizer, net.layers[1]._w)
    assert ((m.shape, m.dtype) == ((N_CLASSES, HIDDEN), bits)
            and (v.shape, v.dtype) == ((N_CLASSES, 1), np.float32))
    m, v = states(net.optimizer, net.layers[1]._b)
    assert (m.shape == v.shape == (N_CLASSES, 1)
            and m.dtype == v.dtype == np.float32), "a bias has one number per row"
    net = trained("batch", "momentum", state_dtype=state_dtype, epochs=1)
    (m,) = states(net.optimizer, net.layers[1]._w)
    assert m.dtype == bits


def test_one_moment_per_row_is_kept_when_the_storage_order_changes():
    # neuron-major weights are transposed at the first sparse input, and existing
    # optimizer state with them
    X, y = data(sparse=False)
    first = sl.Linear(N_FEATURES, HIDDEN).set_weights(
        np.full((HIDDEN, N_FEATURES), 0.1, np.float32))
    net = sl.Network([first, sl.LSHLinear(HIDDEN, N_CLASSES)], random_state=0)
    optimizer = sl.Adam(1e-2, second_moment="row", state_dtype="bfloat16")
    net.fit(X[:500], y[:500], optimizer=optimizer, epochs=1, verbose=False)
    before = states(optimizer, first._w)[1].mean()
    net.fit(sp.csr_array(X[:500]), y[:500], optimizer=optimizer, epochs=1, verbose=False)
    m, v = states(optimizer, first._w)
    assert (m.shape == (N_FEATURES, HIDDEN) and v.shape == (N_FEATURES, 1)
            and np.isfinite(v).all() and before > 0)
    assert np.isfinite(first.weight).all()


@pytest.mark.parametrize("make",
                         [lambda v: sl.Linear(3, 4, dtype=v), lambda v: sl.LSHLinear(3, 4, dtype=v),
                          lambda v: sl.Adam(state_dtype=v), lambda v: sl.SGD(state_dtype=v),
                          lambda v: sl.Adam(second_moment=v),
                          lambda v: sl.Network([sl.Linear(3, 4)], compute_dtype=v)])
def test_unknown_dtypes_and_second_moments_are_refused(make):
    with pytest.raises(ValueError, match=r"(dtype|second_moment) must be one of .*'half'"):
        make("half")


def test_reprs_show_what_is_not_the_default():
    assert repr(sl.Adam(0.1, second_moment="row", state_dtype="bfloat16")).endswith(
        "schedule=None, second_moment='row', state_dtype='bfloat16')")
    assert ("state_dtype" not in repr(sl.Adam())
            and repr(sl.SGD(state_dtype="bfloat16")).endswith("'bfloat16')"))
