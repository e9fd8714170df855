"""What a call that fails leaves: the object of before, or one between two training steps."""
import copy
import pickle
import signal
import threading
import warnings

import numpy as np
import pytest
import scipy.sparse as sp
from support import assert_same_bits

import sparselsh as sl
from sparselsh import callbacks as cb
from sparselsh import rebuild
from sparselsh.index import _tables, transforms
from sparselsh.layers import _active_sets, _active_sketches

N = 4500
KINDS = {
    "tables": {},
    "more candidates": {"candidates": 40},
    "one set per sample": {"active": "sample"},
    "sketches": {"active": "sample", "policy": "sketches"},
    "on drift": {"rebuild": rebuild.OnDrift(0.001, 2)},
    "frozen": {"policy": "vanilla", "family": sl.SimHash(4, 3),
               "rebuild": rebuild.Frozen(1, rebuild.Every(3))},
}


def network(kind="tables", n_threads=1):
    return sl.Network([sl.Linear(12, 16, activation="relu"),
                       sl.LSHLinear(16, N, density=0.02, **KINDS[kind])],
                      random_state=0, n_threads=n_threads)


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    return rng.standard_normal((90, 12), np.float32), rng.integers(0, N, 90)


FIT = {"epochs": 2, "batch_size": 16, "verbose": False}


def assert_same_training(one, other):
    for a, b in zip(one.get_weights(), other.get_weights(), strict=True):
        assert_same_bits(a, b)
    assert [e["loss"] for e in one.history] == [e["loss"] for e in other.history]


# ---- memory that is short within a step

POINTS = {
    "the optimizer": (sl.Adam, "step"),
    "the moments": (sl.Adam, "_states_of"),
    "the second parameter": (sl.optim._Updates, "n_applied"),
    "the indexes": (sl.LSHLinear, "updated"),
    "a hash": (_tables.Tables, "update"),
    "a build": (_tables.Tables, "build"),
    "a transform": (transforms.Transform, "fit"),
    "the sketches": (_active_sketches.ActiveSketches, "rebuild"),
    "sketches of rows": (_active_sketches.ActiveSketches, "_take"),
    "the active set": (sl.LSHLinear, "_batch_set"),
    "the active sets": (sl.LSHLinear, "_sample_sets"),
    "an insertion": (_active_sets.TableFinder, "insert"),
    "a layer without an index": (sl.Linear, "updated"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("point", POINTS)
def test_a_training_resumed_after_a_memory_error_has_the_same_bits(data, kind, point, monkeypatch):
    X, y = data
    whole = network(kind).fit(X, y, **FIT)
    owner, name = POINTS[point]
    for at, times in ((1, 1), (3, 1), (8, 1), (4, 3)):  # fails `times` times, also when repeated
        count, net, real = 0, network(kind), getattr(owner, name, None)

        def failing(*args, _real=real, _at=at, _times=times, **options):
            nonlocal count
            count += 1
            if _at <= count < _at + _times:
                raise MemoryError("on purpose")
            return _real(*args, **options)

        with monkeypatch.context() as patch:
            if name == "n_applied":
                count = fail_after_one_parameter(patch, at)
            else:
                patch.setattr(owner, name, failing)
            try:
                net.fit(X, y, **FIT)
            except MemoryError:
                pass
        assert all(layer.initialized for layer in net.layers)
        net.topk(X[:2])  # between them, also where the rest of a step is left
        net = copy.deepcopy(net)
        assert_same_training(whole, net.resume(X, y, verbose=False))


def fail_after_one_parameter(patch, at):
    """Let the second update of the optimizer's step number `at` fail, and also when repeated."""
    from sparselsh import _gradients

    state = {"n": 0}
    for gradient in (_gradients.DenseGradient, _gradients.RowGradient, _gradients.ActiveGradient,
                     _gradients.ProductGradient):
        def apply(self, *args, _real=gradient.apply):
            state["n"] += 1
            if state["n"] in (4 * at - 2, 4 * at - 1):
                raise MemoryError("on purpose")
            _real(self, *args)

        patch.setattr(gradient, "apply", apply)
    return 0


def test_a_checkpoint_after_a_memory_error_is_resumed_with_the_same_bits(
        data, monkeypatch, tmp_path):
    X, y = data
    for kind in KINDS:
        whole, net = network(kind).fit(X, y, **FIT), network(kind)
        count = 0

        def failing(*args, _real=sl.Adam.step, **options):
            nonlocal count
            count += 1
            if count == 5:
                raise MemoryError("on purpose")
            return _real(*args, **options)

        with monkeypatch.context() as patch, pytest.raises(MemoryError):
            patch.setattr(sl.Adam, "step", failing)
            net.fit(X, y, **FIT)
        net.save(tmp_path / "net", training_state=True)
        assert_same_training(whole, sl.load(tmp_path / "net").resume(X, y, verbose=False))


def test_a_step_that_cannot_be_finished_yet_is_finished_later(data, monkeypatch):
    X, y = data
    whole, net = network().fit(X, y, **FIT), network()
    with monkeypatch.context() as patch:
        patch.setattr(sl.LSHLinear, "updated", lambda *_: (_ for _ in ()).throw(MemoryError))
        with pytest.raises(MemoryError):
            net.fit(X, y, **FIT)
        with pytest.raises(MemoryError):  # memory is still short
            net.topk(X)
    assert net.topk(X)[0].shape == (90, 5)
    assert net.training_progress.n_batches == 1
    assert_same_training(whole, pickle.loads(pickle.dumps(net)).resume(X, y, verbose=False))


# ---- signals


@pytest.fixture
def ctrl_c():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Press(sl.Adam):
    """Ctrl-C twice in the middle of step `at`, before or after the first change."""

    def __init__(self, at, late):
        super().__init__(1e-2, schedule="linear")
        self.at, self.late, self.n_calls = at, late, 0

    def step(self, *args, **options):
        self.n_calls += 1
        if self.late:
            super().step(*args, **options)
        if self.n_calls == self.at:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
        if not self.late:
            super().step(*args, **options)


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("late", [False, True])
def test_two_interrupts_do_not_cut_a_step(data, kind, late):
    X, y = data
    whole = network(kind).fit(X, y, optimizer=sl.Adam(1e-2, schedule="linear"), **FIT)
    net = network(kind)
    with pytest.raises(KeyboardInterrupt):
        net.fit(X, y, optimizer=Press(5, late), **FIT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert_same_training(whole, net.resume(X, y, verbose=False))


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("kind", KINDS)
def test_a_second_interrupt_undoes_a_step_that_has_changed_no_weight(data, kind, monkeypatch):
    X, y = data
    whole, net, count = network(kind).fit(X, y, **FIT), network(kind), 0
    real = sl.LSHLinear.forward

    def pressed(*args):
        nonlocal count
        out = real(*args)
        count += 1
        if count == 8:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            raise AssertionError("the second interrupt was held back")
        return out

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(sl.LSHLinear, "forward", pressed)
        net.fit(X, y, **FIT)
    assert net._training.n_steps == 7 and net.training_progress.n_batches == 1
    assert_same_training(whole, net.resume(X, y, verbose=False))


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="no such signals on this system")
def test_a_handler_that_saves_in_the_middle_of_a_step_saves_between_two(
        data, tmp_path, monkeypatch):
    # 27 of 56 such files were torn
    X, y = data
    path, files = tmp_path / "net", []
    whole, net = network().fit(X, y, **FIT), network()

    def save(*_):
        net.save(path, training_state=True)
        files.append(path.read_bytes())

    def step(*args, _real=sl.Adam.step, **options):
        signal.raise_signal(signal.SIGUSR1)
        _real(*args, **options)
        signal.raise_signal(signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, save)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(sl.Adam, "step", step)
            net.fit(X, y, **FIT)
        assert signal.getsignal(signal.SIGUSR1) is save
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert_same_training(whole, net)
    assert len(files) == len(net.history) * 6, "one file for each step"
    for content in files[::5]:
        path.write_bytes(content)
        assert_same_training(whole, sl.load(path).resume(X, y, verbose=False))


def test_a_handler_that_is_not_held_back_is_refused_in_a_step(data):
    X, y = data

    class Nested(sl.Adam):
        def step(self, pairs, **options):
            for call in (lambda: net.topk(X), lambda: net.save("never"), lambda: net.fit(X, y)):
                with pytest.raises(RuntimeError, match=r"step of this network is running.*flag"):
                    call()
            super().step(pairs, **options)

    net = network()
    net.fit(X, y, optimizer=Nested(), epochs=1, verbose=False)
    assert len(net.history) == 1


# ---- errors before the first step


class Fails(cb.Callback):
    def on_begin(self, network):
        raise OSError("on purpose")


def test_a_fit_that_fails_keeps_the_refinement_and_the_run_that_can_be_resumed(data):
    X, y = data
    S = sp.csr_array(np.maximum(X, 0))
    net = network().fit(S, y, **FIT).refine(S, y, verbose=False)
    for failing in (lambda: net.fit(S, y, callbacks=Fails(), **FIT),
                    lambda: net.fit(S[:3], y), lambda: net.fit(S, y, optimizer="adam"),
                    lambda: net.fit([(S, y[:2])], epochs=1, verbose=False),
                    lambda: net.partial_fit([(S, y[:2])]),
                    lambda: net.refine(S, y, C=-1), lambda: net.initialize(X, y)):
        before = net.refinement, net.training_progress, net.optimizer, net.get_weights()
        with pytest.raises((ValueError, TypeError, OSError)):
            failing()
        assert (net.refinement, net.training_progress, net.optimizer) == before[:3]
        for a, b in zip(net.get_weights(), before[3], strict=True):
            assert_same_bits(a, b)


def test_a_first_fit_that_fails_leaves_no_weights_and_the_same_random_numbers(data):
    X, y = data
    net = network()
    with pytest.raises(OSError, match="on purpose"):
        net.fit(X, y, callbacks=Fails(), **FIT)
    with pytest.raises(ValueError, match="no weights yet"):
        net.topk(X)
    assert_same_training(network().fit(X, y, **FIT), net.fit(X, y, **FIT))


def test_a_refinement_that_fails_leaves_the_one_of_before(data, monkeypatch):
    X, y = data
    S = sp.csr_array(np.maximum(X, 0))
    net = network().fit(S, y, **FIT).refine(S, y, verbose=False)
    before, again = net.refinement, copy.deepcopy(net).refine(S, y, verbose=False)
    with monkeypatch.context() as patch:
        patch.setattr(sl.network._network, "fit_refinement",
                      lambda *a, **k: (_ for _ in ()).throw(MemoryError))
        with pytest.raises(MemoryError):
            net.refine(S, y, verbose=False)
    assert net.refinement is before
    net.refine(S, y, verbose=False)
    assert (net.refinement.weight != again.refinement.weight).nnz == 0


def test_weights_of_a_wrong_shape_change_no_layer(data):
    X, y = data
    net = network().fit(X, y, **FIT)
    before = net.get_weights()
    with pytest.raises(ValueError, match="do not fit"):
        net.set_weights([*(np.zeros_like(a) for a in before[:3]), np.zeros(3, np.float32)])
    for a, b in zip(net.get_weights(), before, strict=True):
        assert_same_bits(a, b)


def test_an_interrupted_search_is_built_by_the_next_call(data, monkeypatch):
    X, y = data
    net = network().fit(X, y, **FIT)
    want = copy.deepcopy(net).topk(X)
    with monkeypatch.context() as patch:
        patch.setattr("sparselsh.layers._topk_search.build",
                      lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            net.topk(X)
    for a, b in zip(net.topk(X), want, strict=True):
        assert_same_bits(a, b)
    net.partial_fit(X[:1], y[:1])
    with monkeypatch.context() as patch:
        patch.setattr(sl.index._engine.IndexEngine, "refresh",
                      lambda *a, **k: (_ for _ in ()).throw(MemoryError))
        with pytest.raises(MemoryError):
            net.topk(X)
    ids, _ = net.topk(X)
    exact, _ = net.topk(X, exact=True)
    assert (ids[:, 0] == exact[:, 0]).mean() > 0.95


# ---- protections


def test_profile_beside_fit_waits_for_it(data):
    X, y = data
    net, errors, stop = network().fit(X, y, **FIT), [], threading.Event()

    def profile():
        while not stop.is_set():
            try:
                net.profile(X, y, steps=1, warm_up=0)
            except BaseException as error:
                errors.append(error)

    thread = threading.Thread(target=profile)
    thread.start()
    try:
        for _ in range(5):
            net.fit(X, y, **FIT)
    finally:
        stop.set()
        thread.join()
    assert errors == []


def test_a_layer_waits_for_its_network(data):
    X, y = data
    net = network().fit(X, y, **FIT)
    with net._lock:
        thread = threading.Thread(target=net.layers[1].set_weights, args=(np.ones((N, 16)),))
        thread.start()
        thread.join(0.05)
        assert thread.is_alive(), "the layer is changed while the network is in use"
    thread.join()
    assert net.layers[1].weight[0, 0] == 1
    other = copy.deepcopy(net)
    assert other.layers[1]._lock is other._lock is not net._lock


def test_weights_are_changed_by_set_weights_alone(data):
    # answers from the index of topk were stale after an assignment to the view
    X, y = data
    net = network().fit(X, y, **FIT)
    for layer in net.layers:
        for view in (layer.weight, layer.bias):
            with pytest.raises(ValueError, match="read-only"):
                view[:] = 0
    layer = net.layers[1]
    net.topk(X)
    layer.set_weights(-layer.weight, -layer.bias)
    ids, exact = net.topk(X)[0], net.topk(X, exact=True)[0]
    assert (ids[:, 0] == exact[:, 0]).mean() > 0.95


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_whose_arrays_are_mapped_read_only_can_be_trained(data, kind, tmp_path):
    # joblib maps what it sends to its workers
    joblib = pytest.importorskip("joblib")
    X, y = data
    net = network(kind).fit(X, y, **FIT)
    net.topk(X)
    joblib.dump(net, tmp_path / "net.joblib")
    mapped = joblib.load(tmp_path / "net.joblib", mmap_mode="r")
    assert not mapped.layers[1]._w.value.flags.writeable
    for a, b in zip(mapped.topk(X), net.topk(X), strict=True):
        assert_same_bits(a, b)
    net.partial_fit(X, y)
    mapped.partial_fit(X, y)
    assert_same_training(net, mapped)
    mapped.topk(X)
    joblib.load(tmp_path / "net.joblib", mmap_mode="r").fit(X, y, **FIT)
    again = joblib.load(tmp_path / "net.joblib", mmap_mode="r")
    again.set_weights([a * 0 for a in again.get_weights()])
    assert not again.layers[1].weight.any()


def test_sparse_matrices_with_gaps_between_their_numbers_are_accepted(data):
    rng = np.random.default_rng(0)
    S = sp.random_array((30, 12), density=0.3, format="csr", dtype=np.float32, rng=rng)
    gaps = sp.csr_array((np.repeat(S.data, 2)[::2], np.repeat(S.indices, 3)[::3],
                         np.repeat(S.indptr, 2)[::2]), shape=S.shape)
    back = sp.csr_array((S.data[::-1].copy()[::-1], S.indices, S.indptr), shape=S.shape)
    y = np.arange(30)
    one, *others = (network().fit(x, y, **FIT) for x in (S, gaps, back))
    for other, x in zip(others, (gaps, back), strict=True):
        assert_same_training(one, other)
        for i in (slice(None), slice(0, 1)):
            assert_same_bits(other.topk(x[i])[0], one.topk(S[i])[0])
    row = sp.csr_array((np.repeat(S.data[:S.indptr[1]], 2)[::2], S.indices[:S.indptr[1]],
                        S.indptr[:2]), shape=(1, 12))
    assert_same_bits(one.topk(row)[0], one.topk(S[:1])[0])


# ---- divergence


def diverging(**options):
    rng = np.random.default_rng(0)
    X = sp.random_array((60, 40), density=0.2, format="csr", dtype=np.float32, rng=rng) * 1000
    net = sl.Network([sl.Linear(40, 8), sl.LSHLinear(8, 50, density=0.5)], random_state=0)
    return net, X, rng.integers(0, 50, 60)


def is_finite(net):
    return all(np.isfinite(layer.weight).all() and np.isfinite(layer.bias).all()
               for layer in net.layers)


@pytest.mark.parametrize("lr", [1e3, 1e20, 1e38])
@pytest.mark.parametrize("kind", [sl.SGD, sl.Adam])
def test_a_loss_that_is_not_finite_stops_the_training(lr, kind, tmp_path):
    net, X, y = diverging()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            net.fit(X, y, optimizer=kind(lr), epochs=30, batch_size=16, verbose=False,
                    validation=(X, y))
        except FloatingPointError as error:
            text = str(error)
            assert "of step" in text or text.startswith("step")
            assert f"(lr={lr:g})" in text and "learning rate (lr) ten times smaller" in text
            assert "on_nonfinite='warn'" in text
        else:
            assert kind is sl.Adam and lr == 1e3, "large weights alone are no fault"
    assert is_finite(net)
    net.topk(X)
    net.save(tmp_path / "net", training_state=True)  # of the last good weights
    assert is_finite(sl.load(tmp_path / "net"))


def test_the_weights_after_a_divergence_are_those_before_the_large_change():
    net, X, y = diverging()
    net.fit(X, y, optimizer=sl.SGD(1e-6), epochs=1, batch_size=16, verbose=False)
    good = net.get_weights()
    with pytest.raises(FloatingPointError, match=r"lr=1e\+38.*last large change"):
        net.fit(X, y, optimizer=sl.SGD(1e38), epochs=2, batch_size=16, verbose=False)
    for a, b in zip(net.get_weights(), good, strict=True):
        assert_same_bits(a, b)


class Explode(cb.Callback):
    """Stands for what lets a long training diverge late."""

    def on_epoch_end(self, network, entry):
        network.optimizer.lr = 1e38


def test_restore_ends_the_training_with_the_weights_of_the_last_good_epoch():
    net, X, y = diverging()
    with pytest.warns(RuntimeWarning, match=r"step \d+.*ends with the weights of its last good"):
        net.fit(X, y, optimizer=sl.SGD(1e-6), epochs=5, batch_size=16, verbose=False,
                callbacks=Explode(), on_nonfinite="restore")
    want, X, y = diverging()
    want.fit(X, y, optimizer=sl.SGD(1e-6), epochs=1, batch_size=16, verbose=False)
    for a, b in zip(net.get_weights(), want.get_weights(), strict=True):
        assert_same_bits(a, b)
    assert len(net.history) == 1 and net.training_progress.is_done


def test_warn_skips_batches_whose_loss_is_not_finite():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((64, 6), np.float32)
    X[40] = 3e38
    net = sl.Network([sl.Linear(6, 8), sl.Linear(8, 5)], random_state=0)
    with pytest.warns(RuntimeWarning, match=r"the loss of step 3 is (nan|inf).*skipped"):
        net.fit(X, rng.integers(0, 5, 64), epochs=1, batch_size=16, shuffle=False, verbose=False,
                on_nonfinite="warn")
    assert is_finite(net) and np.isfinite(net.history[0]["loss"])
    assert net._training.n_steps == 4
    for train in (net.fit, net.partial_fit):
        with pytest.raises(ValueError, match="on_nonfinite must be one of 'raise', 'warn'"):
            train(X, rng.integers(0, 5, 64), on_nonfinite="ignore")


def test_a_checkpoint_that_load_would_refuse_replaces_no_good_one(tmp_path):
    path = tmp_path / "run"
    net, X, y = diverging()
    with pytest.raises(FloatingPointError):
        net.fit(X, y, optimizer=sl.SGD(1e-6), epochs=4, batch_size=16, verbose=False,
                callbacks=[cb.Checkpoint(path), Explode()])
    assert is_finite(sl.load(path))
    before = path.read_bytes()
    net.layers[1]._w.value[3, 4] = np.nan
    for options in ({}, {"training_state": True}):
        with pytest.raises(ValueError, match=r"layers\[1\] must have finite weights to be saved"):
            net.save(path, **options)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["run"]


def test_a_checkpoint_that_cannot_be_written_ends_no_training(data, tmp_path, monkeypatch):
    X, y = data

    def full(handle):
        raise OSError(28, "No space left on device")

    whole, net = network().fit(X, y, **FIT), network()
    with monkeypatch.context() as patch, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        patch.setattr("sparselsh._files.os.fsync", full)
        net.fit(X, y, callbacks=[cb.Checkpoint(tmp_path / "run"), cb.BestModel(tmp_path / "best")],
                **FIT)
    assert_same_training(whole, net)
    texts = [str(warning.message) for warning in caught]
    assert any("Checkpoint could not save" in text and "No space left" in text for text in texts)
    assert any("BestModel could not save" in text for text in texts)
    assert list(tmp_path.iterdir()) == []
