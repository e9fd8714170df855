"""Callbacks, checkpoints and interruptions: how a training is resumed or ends."""
import csv
import json
import signal
import threading

import numpy as np
import pytest
import scipy.sparse as sp
from support import assert_same_bits

import sparselsh as sl
from sparselsh import callbacks as cb


class Leave(Exception):
    """Raised by a test to leave a training."""


class LeaveAfter(cb.Callback):
    """Raise `Leave` after a number of steps."""

    runs_last = True

    def __init__(self, n_steps):
        self.n_left = n_steps

    def on_step(self, network):
        self.n_left -= 1
        if self.n_left == 0:
            raise Leave


class PressAfter(LeaveAfter):
    """Simulate Ctrl-C after a number of steps."""

    def on_step(self, network):
        self.n_left -= 1
        if self.n_left == 0:
            signal.raise_signal(signal.SIGINT)


def wide(**options):
    """Return a network wide enough for sketches in inference, with a hashed layer."""
    return sl.Network(
        [sl.Linear(20, 16), sl.LSHLinear(16, 5000, density=0.03, rebuild=sl.rebuild.AtOnce(3))],
                      random_state=3, **options)


def deep():
    return sl.Network([sl.Linear(20, 16, activation="relu"),
                       sl.LSHLinear(16, 300, density=0.2, activation="relu", policy="vanilla",
                                    rebuild=sl.rebuild.AtOnce(3)),
                       sl.LSHLinear(300, 5000, density=0.05, family=sl.DWTA(tables=4),
                                    active="sample", rebuild=sl.rebuild.AtOnce(5))],
                      random_state=np.random.Generator(np.random.MT19937(4)))


def dense():
    return sl.Network([sl.Linear(20, 16, activation="relu", dtype="bfloat16"), sl.Linear(16, 5000)],
                      random_state=5, loss="bce")


NETWORKS = {"wide": wide, "deep": deep, "dense": dense}
OPTIMIZERS = {"Adam": lambda: sl.Adam(0.01, schedule="linear"), "SGD": lambda: sl.SGD(0.1),
              "Adam with little state": lambda: sl.Adam(0.01, state_dtype="bfloat16",
                                                        second_moment="row"),
              "SGD with momentum": lambda: sl.SGD(0.1, momentum=0.9, schedule="cosine")}
TIMES = {"seconds", "cpu_seconds", "samples_per_second"}


@pytest.fixture
def data(rng):
    X = sp.random_array((70, 20), density=0.4, format="csr", dtype=np.float32, rng=rng)
    return X, rng.integers(0, 5000, 70)


def arrays(net):
    return net.get_weights()


def assert_same_training(a, b, X):
    for one, other in zip(arrays(a), arrays(b), strict=True):
        assert_same_bits(one, other)
    for one, other in zip(a.topk(X), b.topk(X), strict=True):
        assert_same_bits(one, other)
    assert ([{key: value for key, value in entry.items() if key not in TIMES}
             for entry in a.history]
            == [{key: value for key, value in entry.items() if key not in TIMES}
                for entry in b.history])
    assert (a._training.rng.bit_generator.state["bit_generator"]
            == b._training.rng.bit_generator.state["bit_generator"])
    assert_same_bits(a._training.rng.random(9), b._training.rng.random(9))


# ---- resumed trainings


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("n_steps", [1, 5, 12])  # an epoch has 5 steps
def test_a_resumed_training_equals_one_that_was_not_interrupted(
        kind, optimizer, n_steps, data, tmp_path):
    X, y = data
    options = {"epochs": 4, "batch_size": 16, "validation": (X, y), "verbose": False}
    whole = NETWORKS[kind]().fit(X, y, optimizer=OPTIMIZERS[optimizer](), **options)

    path = tmp_path / "run.safetensors"
    with pytest.raises(Leave):
        NETWORKS[kind]().fit(X, y, optimizer=OPTIMIZERS[optimizer](), **options,
                             callbacks=[cb.Checkpoint(path, every_steps=1), LeaveAfter(n_steps)])
    resumed = sl.load(path).resume(X, y, validation=(X, y), verbose=False)
    assert_same_training(whole, resumed, X)


def test_writing_checkpoints_does_not_change_the_training(data, tmp_path):
    X, y = data
    options = {"epochs": 3, "batch_size": 16, "validation": (X, y), "verbose": False}
    plain = wide().fit(X, y, **options)
    saving = wide().fit(X, y, callbacks=cb.Checkpoint(tmp_path / "run", every_steps=2), **options)
    assert_same_training(plain, saving, X)


@pytest.mark.parametrize("form", ["dense", "file", "list of chunks", "chunks"])
def test_every_kind_of_input_can_be_resumed(form, data, tmp_path):
    X, y = data
    if form == "file":
        sl.datasets.write_csr(tmp_path / "rows.csr", X, y, n_labels=5000)
    chunks = [(X[i:i + 30], y[i:i + 30]) for i in range(0, 70, 30)]

    class Chunks:
        def __iter__(self):
            return iter(chunks)

    def given():
        return {"dense": lambda: (X.toarray(), y),
                "file": lambda: (sl.datasets.open_csr(tmp_path / "rows.csr"),),
                "list of chunks": lambda: (chunks,), "chunks": lambda: (Chunks(),)}[form]()

    options = {"epochs": 3, "batch_size": 16, "window": 40, "verbose": False}
    whole = wide().fit(*given(), **options)
    for n_steps in (2, 7):
        net = wide()
        with pytest.raises(Leave):
            net.fit(*given(), callbacks=LeaveAfter(n_steps), **options)
        assert_same_training(net.resume(*given(), verbose=False), whole, X)
        whole = wide().fit(*given(), **options)  # the comparison drew from its generator


def test_fit_after_loading_a_finished_training_continues_with_the_same_bits(data, tmp_path):
    X, y = data
    net = wide().fit(X, y, epochs=2, batch_size=16, verbose=False)
    net.save(tmp_path / "net", training_state=True)
    loaded = sl.load(tmp_path / "net")
    assert loaded.resume(X, y) is loaded and len(loaded.history) == 2, "no steps were left"
    for each in (net, loaded):
        each.fit(X, y, epochs=1, batch_size=16, optimizer=each.optimizer, verbose=False)
        each.partial_fit(X, y)
    assert_same_training(net, loaded, X)


def test_early_stopping_is_resumed_with_its_best_weights(data, tmp_path):
    X, y = data
    # the validation has other labels, so that P@1 is best early and later epochs do not improve it
    options = {"validation": (X, (y + 1) % 5000), "verbose": False}

    def early():
        return cb.EarlyStopping("loss", mode="max", patience=3)

    whole = wide().fit(X, y, epochs=9, batch_size=16, callbacks=[early()], **options)
    assert len(whole.history) == 4
    path = tmp_path / "run"
    with pytest.raises(Leave):
        wide().fit(X, y, epochs=9, batch_size=16,
                   callbacks=[early(), cb.Checkpoint(path), LeaveAfter(13)], **options)
    stopping = early()
    resumed = sl.load(path).resume(X, y, callbacks=[stopping], **options)
    assert stopping.best_epoch == 1
    assert_same_training(whole, resumed, X)


def test_a_schedule_that_is_a_function_must_be_set_again(data, tmp_path):
    X, y = data

    def schedule(t):
        return 1 - t / 2

    def optimizer():
        return sl.Adam(0.01, schedule=schedule)

    whole = wide().fit(X, y, epochs=2, batch_size=16, optimizer=optimizer(), verbose=False)
    with pytest.raises(Leave):
        wide().fit(X, y, epochs=2, batch_size=16, optimizer=optimizer(), verbose=False,
                   callbacks=[cb.Checkpoint(tmp_path / "run"), LeaveAfter(7)])
    net = sl.load(tmp_path / "run")
    with pytest.raises(
            ValueError,
            match=r"schedule of this training was <function .*set network.optimizer.schedule"):
        net.resume(X, y)
    net.optimizer.schedule = schedule
    assert_same_training(whole, net.resume(X, y, verbose=False), X)


def test_resume_needs_a_training_and_its_rows(data, tmp_path):
    X, y = data
    with pytest.raises(ValueError, match="no training to resume"):
        wide().resume(X, y)
    net = wide()
    with pytest.raises(Leave):
        net.fit(X, y, verbose=False, batch_size=16, callbacks=LeaveAfter(2))
    with pytest.raises(ValueError,
                       match="X must have the 70 rows of the training that is resumed, got 69"):
        net.resume(X[:69], y[:69])
    net.save(tmp_path / "net")
    with pytest.raises(ValueError, match="no training to resume"):
        sl.load(tmp_path / "net").resume(X, y)


def test_a_damaged_checkpoint_is_refused(data, tmp_path, rng):
    X, y = data
    path = tmp_path / "run"
    wide().fit(X, y, epochs=1, verbose=False, validation=(X, y), callbacks=cb.Checkpoint(path))
    whole = path.read_bytes()
    for place in rng.integers(8, len(whole), 60):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=str(path)):
            sl.load(path)


def rewritten(path, change):
    """Change tensors and configuration of a checkpoint and correct its checksum."""
    from sparselsh import _files

    tensors, metadata = _files.read(path, "sparselsh.network")
    config = json.loads(metadata["config"])
    change(tensors, config)
    metadata["config"] = json.dumps(config)
    metadata["checksum"] = _files.checksum(tensors, metadata["config"])
    _files.write(path, tensors, metadata)


HOSTILE = {
    "bucket beyond the array": lambda t, c: t["layers.1.tables.bucket_start"].__setitem__(
        (0, 0), 10**6),
    "bucket before the array": lambda t, c: t["layers.1.tables.bucket_start"].__setitem__(
        (0, 0), -1),
    "more neurons than room": lambda t, c: t["layers.1.tables.bucket_count"].__setitem__(
        (0, 0), 10**6),
    "buckets that overlap": lambda t, c: t["layers.1.tables.bucket_start"].__setitem__(0, 0),
    "neuron id out of range": lambda t, c: t["layers.1.tables.bucket_ids"].__setitem__(
        (slice(None), 0), 5000),
    "neurons in other buckets": lambda t, c: t["layers.1.tables.bucket_ids"].__setitem__(0, 7),
    "tail beyond the array": lambda t, c: t["layers.1.tables.bucket_tail"].__setitem__(0, 10**6),
    "codes out of range": lambda t, c: t["layers.1.tables.codes"].__setitem__(0, 10**6),
    "changed of another length": lambda t, c: t.update({"layers.1.changed": np.zeros(3, np.uint8)}),
    "moments of another shape": lambda t, c: t.update(
        {"optimizer.0.weight.0": np.zeros((2, 2), np.float32)}),
    "one moment": lambda t, c: t.pop("optimizer.0.weight.1"),
    "unknown optimizer": lambda t, c: c["training"]["optimizer"].update(type="os.system"),
    "unknown generator": lambda t, c: c["training"]["generator"].update(
        bit_generator="default_rng"),
    "generator without a state": lambda t, c: c["training"]["generator"].pop("state"),
    "no batch size": lambda t, c: c["training"]["run"].update(batch_size=0),
    "more epochs than the total": lambda t, c: c["training"]["run"].update(epoch=99),
    "history of numbers": lambda t, c: c["training"].update(history=[3]),
    "negative steps": lambda t, c: c["training"].update(n_steps=-1),
    "one layer": lambda t, c: c["indexes"].pop(),
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "run"
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((70, 20), np.float32), rng.integers(0, 5000, 70)
    wide().fit(X, y, epochs=1, verbose=False, validation=(X, y), callbacks=cb.Checkpoint(path))
    return path.read_bytes()


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_checkpoint_is_refused(name, checkpoint, tmp_path):
    path = tmp_path / "run"
    path.write_bytes(checkpoint)
    rewritten(path, lambda tensors, config: None)
    sl.load(path)  # the unchanged file is valid
    rewritten(path, HOSTILE[name])
    with pytest.raises(ValueError, match="damaged or from another version"):
        sl.load(path)


# ---- Ctrl-C


@pytest.fixture
def ctrl_c():
    """Install Python's own handler: background jobs of a shell ignore SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_leaves_a_network_that_can_be_used_and_resumed(data):
    X, y = data
    whole = wide().fit(X, y, epochs=3, batch_size=16, verbose=False)
    net = wide()
    with pytest.raises(KeyboardInterrupt):
        net.fit(X, y, epochs=3, batch_size=16, verbose=False, callbacks=PressAfter(7))
    assert len(net.history) == 1 and net._training.progress.n_batches == 2
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    # exact, because sketches built now would differ from those built later
    assert net.topk(X, exact=True)[0].shape == (70, 5)
    assert_same_training(whole, net.resume(X, y, verbose=False), X)


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_within_a_step_takes_effect_after_the_step(data):
    X, y = data

    class Optimizer(sl.Adam):
        def step(self, *args, **options):
            if self.n_steps == 3:
                signal.raise_signal(signal.SIGINT)
            super().step(*args, **options)

    net = wide()
    with pytest.raises(KeyboardInterrupt):
        net.fit(X, y, epochs=2, batch_size=16, optimizer=Optimizer(), verbose=False)
    assert net._training.progress.n_batches == net._training.n_steps == 4


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_saves_a_checkpoint(data, tmp_path):
    X, y = data
    whole = wide().fit(X, y, epochs=3, batch_size=16, verbose=False)
    with pytest.raises(KeyboardInterrupt):
        wide().fit(X, y, epochs=3, batch_size=16, verbose=False,
                   callbacks=[cb.Checkpoint(tmp_path / "run"), PressAfter(7)])
    assert_same_training(whole, sl.load(tmp_path / "run").resume(X, y, verbose=False), X)


@pytest.mark.usefixtures("ctrl_c")
def test_stop_on_interrupt_lets_fit_return(data):
    X, y = data
    stop = cb.StopOnInterrupt()
    net = wide().fit(X, y, epochs=3, batch_size=16, verbose=False, callbacks=[stop, PressAfter(7)])
    assert stop.interrupted and len(net.history) == 1
    assert net.resume(X, y)._training.n_steps == 7, "the training is complete"


@pytest.mark.usefixtures("ctrl_c")
def test_a_signal_handler_of_the_user_is_kept(data):
    X, y = data
    received = []
    signal.signal(signal.SIGINT, lambda *args: received.append(1))
    wide().fit(X, y, epochs=1, batch_size=16, verbose=False, callbacks=PressAfter(2))
    assert received == [1]


def test_a_network_can_be_trained_in_a_thread(data):
    X, y = data
    net = wide()
    thread = threading.Thread(target=net.fit, args=(X, y), kwargs={"epochs": 1, "verbose": False})
    thread.start()
    thread.join()
    assert len(net.history) == 1


# ---- callbacks


def test_early_stopping_restores_the_best_weights(data):
    X, y = data
    seen = []

    class Watch(cb.Callback):
        def on_epoch_end(self, network, entry):
            seen.append(arrays(network))

    early = cb.EarlyStopping("loss", mode="max", patience=2)  # the first epoch is the worst
    net = wide().fit(X, y, epochs=9, batch_size=16, verbose=False, callbacks=[early, Watch()])
    assert len(net.history) == 3 and early.best_epoch == 1
    for got, want in zip(arrays(net), seen[0], strict=True):
        assert_same_bits(got, want)
    fresh = sl.Network([sl.Linear(20, 16), sl.LSHLinear(16, 5000)])
    for layer, (w, b) in zip(fresh.layers, [(layer.weight, layer.bias) for layer in net.layers],
                             strict=True):
        layer.set_weights(w, b)
    # the index belongs to the restored weights: hashed answers agree with those of a new index
    assert sl.metrics.neighbour_recall(net.topk(X)[0], fresh.topk(X, exact=True)[0]) >= 0.9


def test_early_stopping_waits_for_its_patience(data):
    X, y = data
    for patience in (1, 3):
        net = wide().fit(X, y, epochs=9, batch_size=16, verbose=False,
                         callbacks=cb.EarlyStopping("loss", min_delta=1e9,
                                                    patience=patience, restore_best=False))
        assert len(net.history) == 1 + patience
    again = cb.EarlyStopping("loss", min_delta=1e9, patience=2)
    for _ in range(2):  # a callback may be used in two trainings, one after the other
        assert len(wide().fit(X, y, epochs=9, batch_size=16, verbose=False,
                              callbacks=again).history) == 3


@pytest.mark.parametrize("entry, key", [({"p_at_1": 0.5, "val_loss": 1.0, "loss": 2.0}, "p_at_1"),
                                        ({"val_loss": 1.0, "loss": 2.0}, "val_loss"),
                                        ({"loss": 2.0}, "loss")])
def test_auto_monitors_what_validation_gives(entry, key):
    early = cb.EarlyStopping(patience=1, restore_best=False)
    better = 0.1 if key == "p_at_1" else -0.1
    assert not early.on_epoch_end(None, entry | {"epoch": 1})
    assert not early.on_epoch_end(None, entry | {"epoch": 2, key: entry[key] + better})
    assert early.on_epoch_end(None, entry | {"epoch": 3})
    assert early.best_epoch == 2


def test_a_loss_that_is_not_finite_is_never_the_best():
    early = cb.EarlyStopping("loss", patience=2, restore_best=False)
    for epoch, loss in enumerate([float("nan"), 1.0, float("nan"), float("nan")], 1):
        stop = early.on_epoch_end(None, {"epoch": epoch, "loss": loss})
    assert stop and early.best_epoch == 2


def test_a_missing_key_is_named(data):
    with pytest.raises(ValueError,
                       match=r"monitor='p_at_1' is no number of the history.*validation="):
        wide().fit(*data, epochs=1, verbose=False, callbacks=cb.EarlyStopping("p_at_1"))


def test_best_model_is_the_network_after_its_best_epoch(data, tmp_path):
    X, y = data
    path = tmp_path / "best.safetensors"
    answers = []

    class Watch(cb.Callback):
        def on_epoch_end(self, network, entry):
            answers.append(network.topk(X))

    wide().fit(X, y, epochs=4, batch_size=16, verbose=False, validation=(X, y),
               callbacks=[cb.BestModel(path, "loss", mode="max"), Watch()])
    for got, want in zip(sl.load(path).topk(X), answers[0], strict=True):
        assert_same_bits(got, want)


def test_a_log_file_holds_the_history(data, tmp_path):
    X, y = data
    net = wide().fit(X, y, epochs=2, batch_size=16, verbose=False,
                     callbacks=[cb.Log(tmp_path / "a.csv"), cb.Log(tmp_path / "a.json")])
    assert json.loads((tmp_path / "a.json").read_text()) == net.history
    with open(tmp_path / "a.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [{key: float(value) for key, value in row.items()} for row in rows] == net.history
    net.fit(X, y, epochs=1, verbose=False, validation=(X, y), callbacks=cb.Log(tmp_path / "a.csv"))
    with open(tmp_path / "a.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["p_at_1"] == "" for row in rows] == [True, True, False], "a column added later"


def test_callbacks_are_called_in_order(data):
    X, y = data
    calls = []

    class Watch(cb.Callback):
        def on_begin(self, network):
            calls.append("begin")

        def on_step(self, network):
            calls.append("step")

        def on_epoch_end(self, network, entry):
            calls.append(entry["epoch"])

        def on_end(self, network):
            calls.append("end")

    wide().fit(X, y, epochs=2, batch_size=40, verbose=False, callbacks=Watch())
    assert calls == ["begin", "step", "step", 1, "step", "step", 2, "end"]


@pytest.mark.parametrize("make, error, message", [
    (lambda: cb.EarlyStopping(patience=0), ValueError, "patience must be at least 1"),
    (lambda: cb.EarlyStopping(3), TypeError, "monitor must be a key"),
    (lambda: cb.EarlyStopping(mode="best"), ValueError, "mode must be one of"),
    (lambda: cb.EarlyStopping(min_delta=-1), ValueError, "min_delta must be at least 0"),
    (lambda: cb.Checkpoint("a", every_steps=0), ValueError, "every_steps must be at least 1"),
    (lambda: cb.Log("history.txt"), ValueError, r"path must end in \.csv or \.json"),
    (lambda: wide().fit(np.ones((2, 20)), [0, 1], callbacks=[print]), TypeError,
     r"callbacks\[0\] must be a Callback"),
    (lambda: wide().fit(np.ones((2, 20)), [0, 1], callbacks=2 * [cb.EarlyStopping()]), ValueError,
     r"callbacks\[1\] is in the list twice"),
])
def test_bad_arguments_are_refused_by_name(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize("make", [cb.Checkpoint, cb.BestModel, lambda path: cb.Log(f"{path}.csv")])
def test_a_file_that_cannot_be_written_is_reported_before_the_training(make, data, tmp_path):
    net = wide()
    with pytest.raises(FileNotFoundError):
        net.fit(*data, verbose=False, callbacks=make(tmp_path / "none" / "file"))
    assert net._training.n_steps == 0


# ---- sample weights


@pytest.mark.parametrize("loss", ["softmax", "bce", "mse"])
@pytest.mark.parametrize("density, active", [(1, None), (0.2, "batch"), (0.2, "sample")])
def test_a_weight_scales_the_loss_and_the_gradient_of_its_sample(loss, density, active, rng):
    def net():
        return sl.Network([sl.Linear(6, 8), sl.LSHLinear(8, 60, density=density, active=active)],
                          loss=loss, random_state=0)

    X, Y = (rng.standard_normal((12, 6), np.float32),
            np.eye(60, dtype=np.float32)[rng.integers(0, 60, 12)])
    half = np.full(12, 0.5, np.float32)

    def step(weight, lr):
        a = net().fit(X, Y, sample_weight=weight, optimizer=sl.SGD(lr),
                      epochs=1, batch_size=12, verbose=False)
        return arrays(a), a.history[0]["loss"]

    (weighted, loss_weighted), (plain, loss_plain) = step(half, 0.5), step(None, 0.25)
    assert loss_weighted == pytest.approx(loss_plain / 2)
    for a, b in zip(weighted, plain, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_a_sample_of_weight_zero_adds_no_gradient(rng):
    # one batch of SGD: if half of the rows have weight zero, the mean gradient is halved
    X, y = rng.standard_normal((12, 6), np.float32), rng.integers(0, 20, 12)
    weight = np.repeat([1.0, 0.0], 6)
    nets = [sl.Network([sl.Linear(6, 20)], random_state=0) for _ in range(2)]
    nets[0].fit(X, y, sample_weight=weight, optimizer=sl.SGD(0.2), epochs=1,
                batch_size=12, verbose=False)
    nets[1].fit(X[:6], y[:6], optimizer=sl.SGD(0.1), epochs=1, batch_size=12, verbose=False)
    np.testing.assert_allclose(nets[0].layers[0].weight, nets[1].layers[0].weight, atol=1e-6)


def test_sample_weights_stay_with_their_rows(data, tmp_path, rng):
    X, y = data
    weight = rng.random(70)
    sl.datasets.write_csr(tmp_path / "rows.csr", X, y, n_labels=5000)
    from_file, in_memory = wide(), wide()
    with sl.datasets.open_csr(tmp_path / "rows.csr") as file:
        from_file.fit(file, sample_weight=weight, epochs=2, batch_size=16,
                      shuffle=False, window=30, verbose=False)
    in_memory.fit(X, y, sample_weight=weight, epochs=2, batch_size=16, shuffle=False, verbose=False)
    assert_same_training(from_file, in_memory, X)


@pytest.mark.parametrize("weight, message", [
    ([1, 2], r"sample_weight must have shape \(70,\)"),
    (-np.ones(70), "sample_weight must be at least 0"),
    (np.zeros(70), "above 0 for at least one row"),
    (np.full(70, np.nan), "sample_weight must be finite"),
])
def test_bad_weights_are_refused(weight, message, data):
    for train in (wide().fit, wide().partial_fit):
        with pytest.raises(ValueError, match=message):
            train(*data, sample_weight=weight)


def test_sample_weights_with_chunks_are_refused(data):
    with pytest.raises(ValueError, match="sample_weight must be None where X is an iterable"):
        wide().fit([data], sample_weight=np.ones(70))


def test_unsorted_rows_train_the_same_network_whatever_their_flags_say(rng):
    # kernels rely on sorted rows: threads divide the columns of a batch by them
    X = sp.random_array((300, 500), density=0.1, format="csr", rng=rng, dtype=np.float32)
    Y = sp.random_array((300, 80), density=0.05, format="csr", rng=rng, dtype=np.float32)
    X.sort_indices()
    shuffled = X.copy()
    assert X.nnz > 4096 and shuffled.has_canonical_format  # computed once and cached
    for start, stop in zip(X.indptr[:-1], X.indptr[1:], strict=True):
        order = start + rng.permutation(stop - start)
        shuffled.indices[start:stop], shuffled.data[start:stop] = X.indices[order], X.data[order]
    weights = []
    for rows in (X, shuffled):
        net = sl.Network([sl.Linear(500, 16), sl.LSHLinear(16, 80, density=0.5)], random_state=0)
        weights.append(net.fit(rows, Y, epochs=1, batch_size=300, verbose=False).layers[0].weight)
    assert_same_bits(*weights)
