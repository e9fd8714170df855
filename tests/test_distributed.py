"""Networks of shards: the same bits for any number of processes, and what happens where one fails.

Processes of torch.distributed are forked by a server that has imported torch; `distributed_worker`
has what they do. MPI's are started by its launcher.
"""
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import tracemalloc
from pathlib import Path

import distributed_worker as worker
import numpy as np
import pytest

import sparselsh as sl
from sparselsh import _display, distributed
from sparselsh.distributed import AsIf, DistributedError, ShardedNetwork

WORKER = Path(worker.__file__)
LIMIT = 60  # seconds until a test gives its processes up
X, Y = worker.rows()


class Server:
    """Forks the processes of a group."""

    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, "-P", str(WORKER), "serve"], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        assert self.process.stdout.readline() == "ready\n"

    def start(self, folder, size, options):
        folder.mkdir(parents=True)
        with socket.socket() as listening:
            listening.bind(("127.0.0.1", 0))
            port = listening.getsockname()[1]
        job = {"size": size, "port": port, "folder": str(folder), "options": options}
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def wait(self):
        return json.loads(self.process.stdout.readline())


@pytest.fixture(scope="module")
def server():
    pytest.importorskip("torch", reason="the group Torch needs torch")
    server = Server()
    yield server
    server.process.stdin.close()
    server.process.wait(LIMIT)
    server.process.stdout.close()


@pytest.fixture
def torch_run(server, tmp_path):
    """Run `size` processes of torch.distributed; returns their reports, None for those killed."""
    n = [0]

    def run(size, during=lambda pids: None, **options):
        n[0] += 1
        folder = tmp_path / f"run{n[0]}"
        pids = server.start(folder, size, options)
        signal.signal(signal.SIGALRM, lambda *_: [os.kill(pid, signal.SIGKILL) for pid in pids])
        signal.alarm(LIMIT)
        during(pids)
        codes = server.wait()
        signal.alarm(0)
        reports = []
        for rank, code in enumerate(codes):
            path = folder / f"{rank}.json"
            reports.append(json.loads(path.read_text()) if path.exists() else None)
            if code not in (0, 75, -signal.SIGKILL) and "fault" not in options:
                pytest.fail((folder / f"{rank}.log").read_text())
        return reports

    return run


def alone(**options):
    """The report of one process."""
    return worker.run(**options)


def assert_same(report, wanted, *parts):
    for part in parts or ("sums", "history", "answers"):
        assert report[part] == wanted[part], part


# ---- one process


OPTIONS = [{}, {"dropout": 0.2}, {"dense": True}, {"loss": "bce", "name": "sgd"},
           {"candidates": 0}, {"name": "row"},
           {"compute_dtype": "bfloat16"}, {"name": "half", "weights": "bfloat16"}]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_one_shard_trains_as_a_network_bit_by_bit(options):
    options = dict(options)
    name = options.pop("name", "adam")
    net = worker.network(distributed.solo(), 1, **options)
    own = options.pop("dense", False)
    weights, dropout = options.pop("weights", "float32"), options.pop("dropout", 0)
    loss, compute_dtype = options.pop("loss", "softmax"), options.pop("compute_dtype", "float32")
    plain = sl.Network(
        [sl.Linear(worker.N_FEATURES, worker.N_HIDDEN, activation="relu", dropout=dropout,
                   dtype=weights),
         sl.LSHLinear(worker.N_HIDDEN, worker.N_LABELS, density=1.0 if own else 0.1,
                      dtype=weights, **options)],
        loss=loss, random_state=3, n_threads=2, compute_dtype=compute_dtype)
    for network in (net, plain):
        network.fit(X, Y, epochs=2, batch_size=worker.BATCH, optimizer=worker.optimizer(name),
                    verbose=False)
    for layer, other in zip(net.layers, plain.layers, strict=True):
        np.testing.assert_array_equal(layer.weight, other.weight)
        np.testing.assert_array_equal(layer.bias, other.bias)
    assert [e["loss"] for e in net.history] == [e["loss"] for e in plain.history]
    for found, wanted in zip(net.topk(X[:30], 6, exact=True), plain.topk(X[:30], 6, exact=True),
                             strict=True):
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("loss", ["softmax", "bce", "mse"])
@pytest.mark.parametrize("shards", [2, 16])
def test_shards_train_as_a_network_but_for_rounding(shards, loss):
    # the same weights at the start, and the same active sets: these hold the same neurons, whose
    # sums run in another order. Labels and a random fill alone: a difference in the last digit of a
    # code would give another set.
    plain = sl.Network([sl.Linear(worker.N_FEATURES, 32),
                        sl.LSHLinear(32, worker.N_LABELS, density=0.05, candidates=0)],
                       loss=loss, random_state=3)
    plain.fit(X[:64], Y[:64], epochs=1, optimizer=sl.SGD(1e-6), verbose=False)
    net = distributed.split(plain, shards=shards, group=distributed.solo())
    net._training.n_steps = plain._training.n_steps
    for network in (net, plain):
        network.fit(X, Y, epochs=1, batch_size=64, optimizer=sl.SGD(1e-2), shuffle=False,
                    verbose=False)
    for layer, other in zip(net.to_network().layers, plain.layers, strict=True):
        # 16 steps; measured 3e-8 for softmax, 6e-6 for sums of squares of 300 outputs
        np.testing.assert_allclose(layer.weight, other.weight, atol=2e-5)
    assert net.history[-1]["loss"] == pytest.approx(plain.history[-1]["loss"], rel=1e-5)


def test_a_network_of_shards_becomes_one_network_and_back():
    net = worker.network(distributed.solo(), 8)
    net.fit(X, Y, epochs=1, verbose=False)
    whole = net.to_network()
    again = distributed.split(whole, shards=8, group=distributed.solo())
    for network in (whole, again):
        ids, scores = network.topk(X[:50], 5, exact=True)
        wanted = net.topk(X[:50], 5, exact=True)
        np.testing.assert_array_equal(ids, wanted[0])
        np.testing.assert_array_equal(scores, wanted[1])
    np.testing.assert_array_equal(net.decision_function(X[:9]), whole.decision_function(X[:9]))


@pytest.mark.parametrize("n_labels", [1, 3, 7])
def test_shards_may_have_no_labels(n_labels):
    net = worker.network(distributed.solo(), 8, n_labels=n_labels, dense=True)
    y = np.arange(len(Y.indptr) - 1) % n_labels
    net.fit(X, y, epochs=2, verbose=False)
    ids, _scores = net.topk(X[:20], 9)
    assert (ids[:, :n_labels] >= 0).all() and (ids[:, n_labels:] == -1).all()
    np.testing.assert_array_equal(np.sort(ids[:, :n_labels]), np.tile(np.arange(n_labels), (20, 1)))


def test_a_search_in_shards_finds_what_computing_all_finds():
    n_labels = 40_000  # enough for an index per shard
    net = worker.network(distributed.solo(), 4, n_labels=n_labels)
    labels = (X.indices[X.indptr[:-1]] * 133) % n_labels
    net.fit(X, labels, epochs=3, verbose=False)
    ids, _scores = net.topk(X[:200], 5)
    assert 0 < net.computed_share < 1
    exact, _ = net.topk(X[:200], 5, exact=True)
    hits = np.mean([len(np.intersect1d(a, b)) / 5 for a, b in zip(ids, exact, strict=True)])
    assert hits >= 0.99  # the recall asked for is 0.995 of each shard's best


# ---- processes of torch.distributed


RUNS = [{}, {"name": "row", "recipe": True}, {"compute_dtype": "bfloat16"},
        {"name": "half", "weights": "bfloat16"},
        {"loss": "bce", "dropout": 0.2}, {"shards": 8, "n_labels": 20_003, "n_rows": 300}]


@pytest.mark.parametrize("options", RUNS, ids=str)
def test_any_number_of_processes_gives_the_same_bits(torch_run, options):
    wanted = alone(**options)
    for size in (2, 4):
        reports = torch_run(size, **options)
        assert [report["rank"] for report in reports] == list(range(size))
        for report in reports:
            assert report["engine"] == "Torch"
            assert_same(report, wanted)




class Together:
    """A group of threads of one process."""

    def __init__(self, rank, shared):
        self.rank, self.size, self.n_bytes, self.shared = rank, len(shared["sent"]), 0, shared

    def exchange(self, blocks):
        return np.array([sent[self.rank] for sent in self.all(np.array(blocks))])

    def exchange_bytes(self, blocks):
        return [np.array(sent[self.rank]) for sent in self.all(list(blocks))]

    def all(self, own):
        self.shared["sent"][self.rank] = own
        self.shared["barrier"].wait(LIMIT)
        sent = list(self.shared["sent"])
        self.shared["barrier"].wait(LIMIT)
        return sent

    def fail(self, what):
        self.shared["barrier"].abort()


@pytest.mark.parametrize("options", [
    {"size": 16, "shards": 16}, {"size": 32, "shards": 64, "n_labels": 90, "candidates": 3},
    {"size": 16, "shards": 16, "name": "row"}, {"size": 2, "shards": 2, "dense": True}], ids=str)
def test_many_processes_give_the_same_bits(options):
    # more processes than hidden units, and than labels per shard
    options = dict(options)
    size, name = options.pop("size"), options.pop("name", "adam")
    x, y = worker.rows(200, options.get("n_labels", worker.N_LABELS))
    shared = {"sent": [None] * size, "barrier": threading.Barrier(size)}
    results = [None] * size

    def run(rank, group):
        net = worker.network(group, **options)
        net.fit(x, y, epochs=1, batch_size=worker.BATCH, optimizer=worker.optimizer(name),
                verbose=False)
        answers = [a.tolist() for a in (*net.topk(x[:20], 6), *net.topk(x[:20], 6, exact=True))]
        return worker.digest(net), answers

    def keep(rank):
        results[rank] = run(rank, Together(rank, shared))

    threads = [threading.Thread(target=keep, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
    wanted = run(0, distributed.solo())
    for result in results:
        assert result == wanted


def test_classifiers_are_divided_among_the_processes(monkeypatch):
    from sparselsh import refinement

    monkeypatch.setattr(refinement, "MAX_WEIGHTS_PER_BLOCK", 2000)  # dozens of blocks
    shared = {"sent": [None] * 4, "barrier": threading.Barrier(4)}
    y, found, trained = np.arange(worker.N_ROWS) % 300, [None] * 4, [0] * 4
    fit = refinement._one_vs_rest.fit

    def refined(rank, group):
        net = worker.network(group, 4, n_labels=300, dense=True)
        net.fit(X, y, epochs=1, verbose=False)
        net.refine(X, y, verbose=False)
        weight = net.refinement.weight
        return weight.indptr.tolist(), weight.indices.tolist(), weight.data.tolist(), \
            net.refinement.bias.tolist()

    def keep(rank):
        found[rank] = refined(rank, Together(rank, shared))

    class Counting:
        def fit(self, starts, *arguments):
            rank = next(i for i, thread in enumerate(threads)
                        if thread is threading.current_thread())
            trained[rank] += len(starts) - 1
            return fit(starts, *arguments)

    monkeypatch.setattr(refinement, "_one_vs_rest", Counting())
    threads = [threading.Thread(target=keep, args=(rank,)) for rank in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
    monkeypatch.undo()
    monkeypatch.setattr(refinement, "MAX_WEIGHTS_PER_BLOCK", 2000)
    wanted = refined(0, distributed.solo())
    assert found == [wanted] * 4
    assert sum(trained) == 300 and min(trained) > 0


def test_processes_that_differ_are_named(torch_run, tmp_path):
    alone(path=str(tmp_path / "model"))
    for report in torch_run(2, during=lambda pids: None, fault="other rows", fault_rank=1):
        assert report["error"] == "DistributedError"
        assert "the number of rows must be the same in all processes" in report["message"]
        assert "1024 in process 0" in report["message"]


# ---- MPI


def mpi_run(folder, size, **options):
    """Run `size` processes of MPI; returns their reports, or None where one has failed."""
    pytest.importorskip("mpi4py", reason="the group MPI needs mpi4py")
    launcher = Path(sys.executable).with_name("mpiexec")
    launcher = str(launcher) if launcher.exists() else shutil.which("mpiexec")
    if launcher is None:
        pytest.skip("the group MPI needs mpiexec")
    folder.mkdir()
    done = subprocess.run([launcher, "-n", str(size), sys.executable, "-P", "-m", "mpi4py",
                           str(WORKER), str(folder), json.dumps(options)],
                          capture_output=True, text=True, timeout=LIMIT,
                          env=os.environ | {"OMP_NUM_THREADS": "1"})
    paths = [folder / f"{rank}.json" for rank in range(size)]
    return done, [json.loads(path.read_text()) if path.exists() else None for path in paths]


def test_mpi_gives_the_same_bits(tmp_path):
    _, reports = mpi_run(tmp_path / "run", 2)
    wanted = alone()
    for report in reports:
        assert report["engine"] == "MPI"
        assert_same(report, wanted)


def test_an_exception_under_mpi_ends_all_processes(tmp_path):
    done, reports = mpi_run(tmp_path / "run", 2, fault="raise", fault_rank=0)
    assert done.returncode and reports[1] is None


# ---- checkpoints, and what happens where a process fails


@pytest.mark.parametrize("options", [{}, {"name": "row"}, {"name": "half", "weights": "bfloat16"},
                                     {"shards": 1}, {"dense": True, "dropout": 0.2}], ids=str)
def test_a_training_that_is_resumed_gets_the_same_bits(tmp_path, options):
    wanted = alone(epochs=2, **options)
    path = str(tmp_path / "model")
    report = alone(epochs=2, path=path, fault="SIGINT", fault_rank=0, fault_step=25, **options)
    assert report["error"] == "KeyboardInterrupt" and report["n_steps"] == 26
    assert_same(alone(path=path, resume=True), wanted)


@pytest.fixture(scope="module")
def undisturbed():
    return alone(epochs=2)


FAULTS = ["SIGKILL", "SIGSTOP", "raise", "kill in checkpoint"]


@pytest.mark.parametrize("fault_rank", [0, 1])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_lost_process_is_named_and_the_training_goes_on(torch_run, tmp_path, undisturbed, fault,
                                                          fault_rank):
    path, times = str(tmp_path / "model"), []

    def during(pids):
        if fault != "SIGSTOP":
            return
        other = pids[1 - fault_rank]
        while state_of(pids[fault_rank]) != "T":
            time.sleep(0.01)
        begin = time.monotonic()
        while state_of(other) not in "ZX":
            time.sleep(0.01)
        times.append(time.monotonic() - begin)
        os.kill(pids[fault_rank], signal.SIGKILL)

    step = 3 if fault == "kill in checkpoint" else 15
    reports = torch_run(2, during, path=path, every=6, epochs=2, fault=fault,
                        fault_rank=fault_rank, fault_step=step,
                        timeout=3 if fault == "SIGSTOP" else 60)
    message = reports[1 - fault_rank]["message"]
    assert reports[1 - fault_rank]["error"] == "DistributedError"
    assert f"process {fault_rank} (" in message and "of 2 was lost in step" in message
    assert f"resume from {path}" in message
    if fault == "raise":
        assert "OSError: a fault of the test" in message
    else:
        assert reports[fault_rank] is None
    if times:
        assert times[0] < 60  # 3 seconds of timeout and some of a busy machine

    copy = tmp_path / "copy"
    shutil.copytree(path, copy)
    assert_same(alone(path=str(copy), resume=True), undisturbed)
    for report in torch_run(2, path=path, resume=True):
        assert_same(report, undisturbed)


def state_of(pid):
    """The state of a process: T for stopped, Z for ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "X"


@pytest.mark.parametrize("signal_name", ["SIGINT", "SIGTERM"])
def test_a_signal_ends_all_processes_after_the_same_step(torch_run, tmp_path, undisturbed,
                                                         signal_name):
    path = str(tmp_path / "model")
    reports = torch_run(2, path=path, epochs=2, fault=signal_name, fault_step=9)
    for report in reports:
        assert report["error"] == "KeyboardInterrupt" and report["n_steps"] == 10
    assert_same(alone(path=path, resume=True), undisturbed)


@pytest.mark.parametrize("fault_rank", [0, 1])
def test_on_a_full_disk_the_training_goes_on_and_the_checkpoint_of_before_stays(
        torch_run, tmp_path, undisturbed, fault_rank):
    path = str(tmp_path / "model")
    reports = torch_run(2, path=path, every=6, epochs=2, fault="full", fault_rank=fault_rank,
                        fault_step=3)
    for report in reports:
        assert_same(report, undisturbed)
        assert "No space left on device" in report["warnings"][0]
    assert len(list(Path(path).glob("step-*"))) == 1
    assert_same(alone(path=path, resume=True), undisturbed)


# ---- files


@pytest.fixture
def folder(tmp_path):
    net = worker.network(distributed.solo(), 4, n_labels=50)
    net.fit(X, np.arange(worker.N_ROWS) % 50, epochs=1, verbose=False)
    net.save(tmp_path / "model", training_state=True)
    return tmp_path / "model"


def shard_of(folder, s):
    (path,) = folder.glob(f"step-*/shard-{s:05d}-of-00004.safetensors")
    return path


def test_a_missing_or_damaged_file_is_named(folder):
    path = shard_of(folder, 2)
    data = path.read_bytes()
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"shard-00002-of-00004"):
        distributed.load(folder)
    path.write_bytes(data[:-5])
    with pytest.raises(ValueError, match=r"shard-00002-of-00004"):
        distributed.load(folder)
    damaged = bytearray(data)
    damaged[len(data) // 2] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match=r"shard-00002-of-00004.*checksum"):
        distributed.load(folder)
    path.write_bytes(shard_of(folder, 1).read_bytes())
    with pytest.raises(ValueError, match=r"shard-00002-of-00004.*its shard is 1 and not 2"):
        distributed.load(folder)


def test_a_shard_of_another_checkpoint_is_refused(folder, tmp_path):
    net = worker.network(distributed.solo(), 4, n_labels=50)
    net.fit(X, np.arange(worker.N_ROWS) % 50, epochs=1, verbose=False)
    net.save(tmp_path / "other", training_state=True)
    shutil.copy(shard_of(tmp_path / "other", 1), shard_of(folder, 1))
    with pytest.raises(ValueError, match=r"shard-00001-of-00004.*another checkpoint"):
        distributed.load(folder)


@pytest.mark.parametrize("change", [
    lambda head: head.update(checksum=1), lambda head: head.update(set="../x"),
    lambda head: head.update(format="sparselsh.network"), lambda head: head.pop("config")])
def test_a_damaged_head_is_named(folder, change):
    head = json.loads((folder / "network.json").read_text())
    change(head)
    (folder / "network.json").write_text(json.dumps(head))
    with pytest.raises(ValueError, match=r"network\.json.*damaged"):
        distributed.load(folder)


def test_a_folder_that_is_none_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        distributed.load(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=r"network.json: no such file"):
        distributed.load(tmp_path)


def test_saving_again_replaces_the_set(folder):
    net = distributed.load(folder)
    (before,) = folder.glob("step-*")
    net.save(folder)
    (after,) = folder.glob("step-*")
    assert after != before
    again = distributed.load(folder)
    assert again.training_progress is None
    np.testing.assert_array_equal(again.layers[1].weight, net.layers[1].weight)


def test_refinement_and_calibration_are_in_the_folder(tmp_path):
    net = worker.network(distributed.solo(), 4, n_labels=50)
    y = np.arange(worker.N_ROWS) % 50
    net.fit(X, y, epochs=1, verbose=False)
    net.refine(X, y, verbose=False).calibrate(X[:100], y[:100])
    net.save(tmp_path / "model")
    again = distributed.load(tmp_path / "model")
    for found, wanted in zip(again.topk(X[:20], 3, probabilities=True),
                             net.topk(X[:20], 3, probabilities=True), strict=True):
        np.testing.assert_array_equal(found, wanted)


# ---- arguments and groups


def test_shards_must_suit_the_processes():
    layers = [sl.Linear(30, 8), sl.LSHLinear(8, 100)]
    with pytest.raises(ValueError, match="power of two, got 6"):
        ShardedNetwork(layers, shards=6)
    with pytest.raises(ValueError, match="4 shards can be run by 1, 2, 4 processes, got 8"):
        ShardedNetwork(layers, shards=4, group=AsIf(0, 8))


@pytest.mark.parametrize("layers, message", [
    (lambda: [sl.LSHLinear(8, 100)], "layers must be a Linear and an LSHLinear"),
    (lambda: [sl.Linear(3, 8), sl.LSHLinear(8, 100, active="sample")], "active='sample'"),
    (lambda: [sl.Linear(3, 8), sl.LSHLinear(8, 100, policy="score")], "policy='score'"),
    (lambda: [sl.Linear(3, 8), sl.LSHLinear(8, 100, rebuild=sl.rebuild.OnDrift())], "OnDrift")])
def test_layers_that_cannot_be_sharded_are_refused(layers, message):
    with pytest.raises(ValueError, match=message):
        ShardedNetwork(layers(), shards=2)


def test_one_process_of_many_takes_a_step_as_if_the_others_were_there():
    group = AsIf(5, 16)
    net = worker.network(group, 16)
    net.fit(X, Y, epochs=1, batch_size=worker.BATCH, verbose=False)
    assert net.layers[1].weight.shape == (len(range(5, worker.N_LABELS, 16)), worker.N_HIDDEN)
    assert group.n_bytes > 0 and np.isfinite(net.history[-1]["loss"])


def test_a_process_of_many_has_no_array_of_all_labels():
    n_labels = 10**8
    x, y = worker.rows(120, n_labels)
    tracemalloc.start()
    net = worker.network(AsIf(17, 1024), 1024, n_labels=n_labels, density=4e-5)
    net.fit(x, y, epochs=1, batch_size=worker.BATCH, verbose=False)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # 3.3 bytes per label: tables have as many buckets as those of all labels, 40 labels each, of
    # which this process fills few. One int32 per label would be 4 bytes more.
    assert peak < 4 * n_labels


def test_nothing_of_torch_or_mpi_is_imported_before_it_is_needed():
    code = ("import sys; from sparselsh import distributed as d; d.group(); d.solo();"
            "assert not {'torch', 'mpi4py', 'ray'} & set(sys.modules)")
    subprocess.run([sys.executable, "-P", "-c", code], check=True)


def test_mpi_without_its_runner_is_refused(monkeypatch):
    monkeypatch.setenv("PMI_RANK", "0")
    with pytest.raises(RuntimeError, match="python -m mpi4py"):
        distributed.group()


def test_early_stopping_that_keeps_weights_is_refused():
    net = worker.network(distributed.solo(), 2)
    with pytest.raises(ValueError, match="restore_best=False"):
        net.fit(X, Y, callbacks=[sl.callbacks.EarlyStopping()], verbose=False)
    stopping = sl.callbacks.EarlyStopping(patience=1, restore_best=False, min_delta=100)
    net.fit(X, Y, epochs=5, callbacks=[stopping], verbose=False)
    assert len(net.history) == 2


def test_a_checkpoint_of_shards_refuses_other_networks(tmp_path):
    plain = sl.Network([sl.Linear(300, 8), sl.LSHLinear(8, worker.N_LABELS)])
    with pytest.raises(TypeError, match="saves a ShardedNetwork"):
        plain.fit(X, Y, epochs=1, callbacks=[distributed.Checkpoint(tmp_path / "m")],
                  verbose=False)


def test_a_call_that_fails_in_one_process_fails_in_all():
    from sparselsh.distributed._shards import Shards

    class Other(AsIf):
        def exchange_bytes(self, blocks):
            return [blocks[0], np.frombuffer(b'"ValueError: no"', np.uint8)]

    with (pytest.raises(DistributedError, match="process 1 of 2 could not read: ValueError: no"),
          Shards(2, Other(0, 2)).together("read")):
        pass


# ---- rows in a folder


@pytest.fixture
def parts(tmp_path):
    folder = tmp_path / "rows"
    folder.mkdir()
    for i, (a, b) in enumerate(((0, 300), (300, 310), (310, worker.N_ROWS))):
        sl.datasets.write_csr(folder / f"part-{i}.csr", X[a:b], Y[a:b])
    sl.datasets.write_csr(tmp_path / "whole.csr", X, Y)
    return folder


def test_a_folder_of_files_trains_as_one_file(parts):
    found = [None] * 4
    shared = {"sent": [None] * 4, "barrier": threading.Barrier(4)}
    weight = np.linspace(0, 1, worker.N_ROWS).astype(np.float32)

    def trained(rows, group):
        net = worker.network(group, 4)
        net.fit(rows, epochs=2, batch_size=worker.BATCH, window=250, sample_weight=weight,
                verbose=False)
        return worker.digest(net)

    def keep(rank):
        found[rank] = trained(distributed.open_rows(parts), Together(rank, shared))

    threads = [threading.Thread(target=keep, args=(rank,)) for rank in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
    wanted = trained(sl.datasets.open_csr(parts.parent / "whole.csr"), distributed.solo())
    assert found == [wanted] * 4
    assert trained(distributed.open_rows(parts), distributed.solo()) == wanted


def test_a_folder_that_does_not_fit_is_refused(parts):
    rows = distributed.open_rows(parts)
    assert len(rows) == worker.N_ROWS and rows.n_labels == worker.N_LABELS
    with pytest.raises(ValueError, match="X must have 6002 labels, got 6001"):
        worker.network(distributed.solo(), 4, n_labels=6002).fit(rows, verbose=False)
    with pytest.raises(ValueError, match="Y must be None"):
        worker.network(distributed.solo(), 4).fit(rows, Y, verbose=False)
    sl.datasets.write_csr(parts / "x.csr", X[:, :200], Y)
    with pytest.raises(ValueError, match=r"x\.csr: 200 features and 6001 labels, but part-0.csr"):
        distributed.open_rows(parts)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        distributed.open_rows(parts / "none")


# ---- cost, and the command line


@pytest.mark.parametrize("batch, hidden, size, candidates", [
    (60, 34, 2, 5), (60, 34, 4, 5), (100, 34, 16, 5), (7, 34, 8, 5), (60, 34, 4, 0),
    (256, 34, 32, 3)])
def test_the_bytes_of_a_step_are_those_that_are_estimated(batch, hidden, size, candidates):
    def sent(n_steps):
        group = AsIf(1, size)
        net = worker.network(group, 32, candidates=candidates)
        n = n_steps * batch % worker.N_ROWS
        assert n == n_steps * batch, "too few rows"
        net.fit(X[:n], Y[:n], epochs=1, batch_size=batch, verbose=False)
        return group.n_bytes

    known = distributed.estimate(n_labels=worker.N_LABELS, n_hidden=hidden, batch_size=batch,
                                 candidates=candidates, processes=size)
    # what is sent beside the steps, at the start and for the first tables, is the same for both:
    # the numbers of rows have as many digits
    assert sent(3) - sent(2) == known["bytes_sent_per_step"]


def test_an_estimate_follows_from_its_arguments():
    def of(**changes):
        return distributed.estimate(**{"n_labels": 10**8, "processes": 16, "cores": 32} | changes)

    one = of()
    assert of(processes=32)["bytes_per_process"] < one["bytes_per_process"]
    assert of(dtype="bfloat16")["bytes_per_process"] < 0.6 * one["bytes_per_process"]
    assert of(network=100)["rows_per_second"] > one["rows_per_second"]
    assert of(network=0.1)["bound"] == "network"
    assert of(n_active=65_536, network=400)["bound"] == "compute"
    assert of(processes=1)["bytes_sent_per_step"] == 0


def command(*arguments):
    from sparselsh.cli import _commands

    return _commands.main([str(argument) for argument in arguments])


@pytest.fixture
def text(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sl.datasets.write_xmc("rows.txt", X[:300], Y[:300, :1000])
    return tmp_path


def test_the_command_trains_saves_resumes_and_predicts_with_shards(text, capsys):
    options = ["--hidden", 16, "--quiet", "--shards", 4]
    assert command("train", "rows.txt", "--model", "model", "--checkpoint", "run",
                   "--validation", 0.1, "--early-stopping", 3, *options, "--json", "a.json") == 0
    assert command("predict", "model", "rows.txt", "-k", 3, "--output", "p.txt") == 0
    assert len((text / "p.txt").read_text().splitlines()) == 300
    capsys.readouterr()
    assert command("info", "model", "--json", "info.json") == 0
    n_bytes = sum(path.stat().st_size for path in (text / "model").rglob("*") if path.is_file())
    assert json.loads((text / "info.json").read_text())["bytes"] == n_bytes
    assert command("compress", "model", "-o", "small.safetensors") == 0
    assert f"of {_display.size(n_bytes)}" in capsys.readouterr().out
    assert command("train", "rows.txt", "--resume", "run", "--model", "again", "--quiet",
                   "--validation", 0.1, "--early-stopping", 3) == 0
    sums = [distributed.load(name, group=distributed.solo()).checksums()
            for name in ("model", "again")]
    assert sums[0] == sums[1]
    (text / "file").write_text("")
    assert command("train", "rows.txt", "--model", "file", *options) == 2
    assert "'file': is a file; a network of shards is a folder" in capsys.readouterr().err


def test_several_processes_without_shards_are_refused(text, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert command("train", "rows.txt") == 2
    assert "give --shards, a power of two" in capsys.readouterr().err


def test_the_command_plans(text, capsys):
    assert command("plan", "--labels", "1e9", "--processes", 1, 64, "--json", "plan.json") == 0
    assert "rows per second" in capsys.readouterr().out
    one, many = json.loads((text / "plan.json").read_text())["estimates"]
    assert one["bytes_per_process"] > 60 * many["bytes_per_process"]
