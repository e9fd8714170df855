"""Networks of shards: the same bits for any number of processes, and what happens where one fails.

Processes of torch.distributed are forked by a server that has imported torch; `distributed_worker`
has what they do. MPI's are started by its launcher.
"""
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import tracemalloc
from pathlib import Path

import distributed_worker as worker
import numpy as np
import pytest
import scipy.sparse as sp

import sparselsh as sl
from sparselsh import _display, distributed
from sparselsh.distributed import AsIf, DistributedError, ShardedNetwork

WORKER = Path(worker.__file__)
LIMIT = 60  # seconds until a test gives its processes up
X, Y = worker.rows()


@pytest.fixture(scope="module")
def server():
    pytest.importorskip("torch", reason="the group Torch needs torch")
    server = worker.Server()
    yield server
    server.close()


@pytest.fixture
def torch_run(server, tmp_path):
    """Run `size` processes of torch.distributed; returns their reports, None for those killed."""
    n = itertools.count()

    def run(size, **options):
        folder = tmp_path / f"run{next(n)}"
        reports = server.run(folder, size, limit=LIMIT, **options)
        for rank, code in enumerate(server.codes):
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


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """A folder of a network with enough labels for an index per shard, calibrated."""
    n_labels = 40_000
    net = worker.network(distributed.solo(), 4, n_labels=n_labels)
    labels = (X.indices[X.indptr[:-1]] * 133) % n_labels
    net.fit(X[:700], labels[:700], epochs=3, verbose=False)
    net.refine(X[:700], labels[:700], verbose=False)
    net.calibrate(X[700:], labels[700:])
    net.topk(X[:1])
    path = tmp_path_factory.mktemp("searched") / "model"
    net.save(path)
    return path


def hits(found, exact):
    return np.mean([len(np.intersect1d(a, b)) / len(a) for a, b in zip(found, exact, strict=True)])


@pytest.mark.parametrize("k", [1, 5, 50])
def test_shards_that_are_calibrated_together_find_what_is_asked_for(searched, k):
    net = distributed.load(searched, group=distributed.solo())
    net.refinement = net.calibration = None
    last = net.layers[-1]
    ids, scores = net.topk(X, k)
    assert 0 < net.computed_share < 1
    exact, exact_scores = net.topk(X, k, exact=True)
    assert hits(ids, exact) >= last.recall  # on rows of which it has seen 1 of 16
    there = ids == exact
    np.testing.assert_allclose(scores[there], exact_scores[there], rtol=1e-5, atol=1e-5)
    alone = [hits(engine.search(h := sl.network._network.hidden_outputs(net, X), k, None, 1)[0],
                  engine.exact(h, k, 1)[0]) for engine in last._engines(1)]
    assert min(alone) < hits(ids, exact)  # a shard alone finds fewer of its own best


def test_bounds_of_a_search_are_kept_in_the_folder(searched, monkeypatch):
    from sparselsh.distributed import _layers

    net = distributed.load(searched, group=distributed.solo())
    monkeypatch.setattr(_layers, "tune_together", None)
    ids, scores = net.topk(X[:50], 5)
    monkeypatch.undo()
    net.layers[-1]._drop_searches()
    again = net.topk(X[:50], 5)
    np.testing.assert_array_equal(ids, again[0])
    np.testing.assert_array_equal(scores, again[1])


def probable(net):
    """What a network answers after it was calibrated, as lists."""
    y = (X.indices[X.indptr[:-1]] * 133) % 6001
    answers = []
    for kind, thresholds in (("classes", "one"), ("labels", "per-label")):
        net.calibrate(X[:400], y[:400], kind=kind, thresholds=thresholds)
        found = net.predict_labels(X[:60])
        answers += [net.predict_proba(X[:20]), found.indices, found.indptr, found.data,
                    *net.topk(X[:60], 4, probabilities=True), net.decision_function(X[:9]),
                    net.score(X[:9], [3, 900, -1]), net.predict(X[:40])]
    return [a.tolist() for a in answers]


@pytest.mark.parametrize("refined", [False, True])
def test_probabilities_are_those_of_one_process(refined):
    y = (X.indices[X.indptr[:-1]] * 133) % 6001

    def run(rank, group):
        net = worker.network(group, 4)
        net.fit(X, y, epochs=3, batch_size=worker.BATCH, verbose=False)
        if refined:
            net.refine(X, y, verbose=False)
        return probable(net)

    assert together(2, run) == [run(0, distributed.solo())] * 2


# ---- servers


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_servers_of_parts_answer_as_the_network(searched, parts):
    net = distributed.load(searched, group=distributed.solo(), n_threads=1)
    servers = [distributed.Part(searched, part, parts, n_threads=1) for part in range(parts)]
    assert sum(server.n_labels for server in servers) == net.n_labels
    front = distributed.Front(searched, lambda part, *query: servers[part].topk(*query), parts,
                              timeout=LIMIT, n_threads=1)
    for options in ({}, {"exact": True}, {"probabilities": True}):
        for found, wanted in zip(front.topk(X[:60], 7, **options), net.topk(X[:60], 7, **options),
                                 strict=True):
            np.testing.assert_array_equal(found, wanted)
    assert front.topk(X[:2], 3, partial=True)[2] == 1


def test_a_server_that_does_not_answer_is_missed_or_named(searched):
    servers = [distributed.Part(searched, part, 4, n_threads=1) for part in range(4)]
    stopped, released = threading.Event(), threading.Event()

    def ask(part, h, k, exact):
        if part == 2:
            released.wait(LIMIT)
        if part == 3 and stopped.is_set():
            raise ConnectionError("no")
        return servers[part].topk(h, k, exact)

    front = distributed.Front(searched, ask, 4, timeout=2, n_threads=1)
    try:
        with pytest.raises(DistributedError, match=r"part 2 of 4 is missing .*not answer in 2 s"):
            front.topk(X[:3], 5)
        ids, _, share = front.topk(X[:3], 5, partial=True)
        assert share == 0.75 and not (ids % 4 == 2).any() and (ids >= 0).all()
        stopped.set()
        ids, _, share = front.topk(X[:3], 5, partial=True)
        assert share == 0.5 and set((ids % 4).ravel()) <= {0, 1}
    finally:
        released.set()
    with pytest.raises(DistributedError, match=r"part 3 of 4 is missing \(ConnectionError: no"):
        front.topk(X[:3], 5)


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


def together(size, work):
    """What work(rank, group) returns in each thread of a group of threads."""
    shared = {"sent": [None] * size, "barrier": threading.Barrier(size)}
    results = [None] * size

    def keep(rank):
        group = Together(rank, shared)
        try:
            results[rank] = work(rank, group)
        except BaseException:
            group.fail("")
            raise

    threads = [threading.Thread(target=keep, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
    return results


@pytest.mark.parametrize("options", [
    {"size": 16, "shards": 16}, {"size": 32, "shards": 64, "n_labels": 90, "candidates": 3},
    {"size": 16, "shards": 16, "name": "row"}, {"size": 2, "shards": 2, "dense": True}], ids=str)
def test_many_processes_give_the_same_bits(options):
    # more processes than hidden units, and than labels per shard
    options = dict(options)
    size, name = options.pop("size"), options.pop("name", "adam")
    x, y = worker.rows(200, options.get("n_labels", worker.N_LABELS))

    def run(rank, group):
        net = worker.network(group, **options)
        net.fit(x, y, epochs=1, batch_size=worker.BATCH, optimizer=worker.optimizer(name),
                verbose=False)
        answers = [a.tolist() for a in (*net.topk(x[:20], 6), *net.topk(x[:20], 6, exact=True))]
        return worker.digest(net), answers

    assert together(size, run) == [run(0, distributed.solo())] * size


def test_classifiers_are_divided_among_the_processes(monkeypatch):
    from sparselsh import refinement

    monkeypatch.setattr(refinement, "MAX_WEIGHTS_PER_BLOCK", 2000)  # dozens of blocks
    y, trained, ranks = np.arange(worker.N_ROWS) % 300, [0] * 4, threading.local()
    kernels = refinement._one_vs_rest

    def refined(rank, group):
        ranks.own = rank
        net = worker.network(group, 4, n_labels=300, dense=True)
        net.fit(X, y, epochs=1, verbose=False)
        net.refine(X, y, verbose=False)
        weight = net.refinement.weight
        return weight.indptr.tolist(), weight.indices.tolist(), weight.data.tolist(), \
            net.refinement.bias.tolist()

    class Counting:
        def __getattr__(self, name):
            return getattr(kernels, name)

        def fit(self, starts, *arguments, **options):
            trained[ranks.own] += len(starts) - 1
            return kernels.fit(starts, *arguments, **options)

    monkeypatch.setattr(refinement, "_one_vs_rest", Counting())
    found = together(4, refined)
    monkeypatch.undo()
    monkeypatch.setattr(refinement, "MAX_WEIGHTS_PER_BLOCK", 2000)
    wanted = refined(0, distributed.solo())
    assert found == [wanted] * 4
    assert sum(trained) == 300 and min(trained) > 0


def test_processes_that_differ_are_named(torch_run, tmp_path):
    alone(path=str(tmp_path / "model"))
    for report in torch_run(2, fault="other rows", fault_rank=1):
        assert report["error"] == "DistributedError"
        assert "the number of rows must be the same in all processes" in report["message"]
        assert "1024 in process 0" in report["message"]


def errors_of(size, work):
    """What processes, threads of one, have raised, as text; None for those that have not."""
    errors = [None] * size

    def run(rank, group):
        try:
            work(rank, group)
        except Exception as error:
            errors[rank] = f"{type(error).__name__}: {error}"

    together(size, run)
    return errors


def mixed(x):
    """As many rows, of which two are in another order."""
    order = np.arange(x.shape[0])
    order[[0, -1]] = order[[-1, 0]]
    return x[order]


DIFFERENT = [
    ("candidates of layers.1.", {"layer": {"candidates": 3}}),
    ("the state of the random generator", {"random_state": 4}),
    ("the rows", {"X": mixed(X)}), ("the rows", {"Y": mixed(Y)}),
    ("the rows", {"fit": {"sample_weight": np.linspace(0, 1, worker.N_ROWS)}}),
    ("optimizer", {"fit": {"optimizer": sl.Adam(1e-3)}}),
    ("callbacks that save", {"saves": True}),
    ("the number of rows of validation", {"fit": {"validation": (X[:9], Y[:9])}})]


@pytest.mark.parametrize("what, other", DIFFERENT, ids=[str(i) for i in range(len(DIFFERENT))])
def test_what_differs_is_named_before_a_training(tmp_path, what, other):
    # each of these let processes train different networks, or wait for each other
    def run(rank, group):
        own = other if rank == 1 else {}
        net = distributed.ShardedNetwork(
            [sl.Linear(worker.N_FEATURES, 8), sl.LSHLinear(8, worker.N_LABELS,
                                                           **own.get("layer", {}))],
            shards=4, group=group, random_state=own.get("random_state", 3))
        callbacks = [distributed.Checkpoint(tmp_path / "m")] if own.get("saves") else []
        net.fit(own.get("X", X), own.get("Y", Y), epochs=1, callbacks=callbacks, verbose=False,
                **own.get("fit", {}))

    for error in errors_of(2, run):
        assert re.search(f"DistributedError: {what}.* must be the same in all processes", error)


def test_functions_are_the_same_in_all_processes_wherever_they_are_in_memory():
    def run(rank, group):
        net = worker.network(group, 4)
        net.fit(X, Y, epochs=1, optimizer=sl.Adam(schedule=lambda t: 1 - t / 2), verbose=False)

    assert errors_of(2, run) == [None, None]


def test_weights_of_one_process_that_are_not_finite_are_known_to_all():
    def run(rank, group):
        net = worker.network(group, 4)
        net.fit(X[:100], Y[:100], epochs=1, verbose=False)
        training, seen = net._training, []
        seen.append(training._is_finite())
        if rank == 1:
            net.parts[1].parameters[0].value[0, 0] = np.inf
        seen.append(training._is_finite())
        return seen

    assert together(2, run) == [[True, False]] * 2


@pytest.mark.parametrize("kind", [sl.callbacks.BestModel, sl.callbacks.Checkpoint])
@pytest.mark.filterwarnings("ignore:.*did not save|.*cannot save|.*could not:RuntimeWarning")
def test_a_disk_that_is_full_for_one_process_ends_the_training_of_none(tmp_path, monkeypatch,
                                                                       kind):
    from sparselsh.distributed import _folder

    def full(net, path, name, token, with_training):
        raise OSError(28, "No space left on device", path)

    monkeypatch.setattr(_folder, "_write_head", full)  # which process 0 writes

    def run(rank, group):
        net = worker.network(group, 4)
        net.fit(X, Y, epochs=2, callbacks=[kind(tmp_path / "m")], verbose=False,
                validation=(X[:50], Y[:50]))
        assert len(net.history) == 2

    assert errors_of(2, run) == [None, None]


def grown(net, refine=False):
    """A network that is trained, gets labels and features, and is trained again."""
    net.fit(X, Y, epochs=1, batch_size=worker.BATCH, optimizer=net.made, verbose=False)
    if refine:
        net.refine(X, Y, verbose=False)
    net.partial_fit(X[:300], Y[:300], batch_size=worker.BATCH)
    net.add_labels(7).add_features(5)
    before = net.topk(sp.hstack([X[:20], sp.csr_array((20, 5))]).tocsr(), 3)
    more = sp.random_array((200, 305), density=0.04, format="csr", dtype=np.float32,
                           rng=np.random.default_rng(5))
    net.partial_fit(more, worker.N_LABELS - 3 + np.arange(200) % 10, batch_size=worker.BATCH)
    return before, net.topk(more[:50], 6, exact=True), net.topk(more[:50], 6)


GROWN = [{}, {"name": "row"}, {"name": "half"}, {"name": "half row"}, {"name": "half row",
         "weights": "bfloat16"}, {"name": "sgd", "loss": "bce"}]


@pytest.mark.parametrize("options", GROWN, ids=str)
def test_labels_and_rows_are_added_as_to_a_network(options):
    options = dict(options)
    name, weights = options.pop("name", "adam"), options.get("weights", "float32")
    net = worker.network(distributed.solo(), 1, **options)
    plain = sl.Network(
        [sl.Linear(worker.N_FEATURES, worker.N_HIDDEN, activation="relu", dtype=weights),
         sl.LSHLinear(worker.N_HIDDEN, worker.N_LABELS, density=0.1, dtype=weights)],
        loss=options.get("loss", "softmax"), random_state=3, n_threads=1)
    answers = []
    for network in (net, plain):
        network.made = worker.optimizer(name)
        answers.append(grown(network)[1])
    np.testing.assert_array_equal(*(answer[0] for answer in answers))
    np.testing.assert_array_equal(*(answer[1] for answer in answers))
    for layer, other in zip(net.layers, plain.layers, strict=True):
        np.testing.assert_array_equal(layer.weight, other.weight)
        np.testing.assert_array_equal(layer.bias, other.bias)


@pytest.mark.parametrize("options", GROWN, ids=str)
def test_labels_and_rows_are_added_by_any_number_of_processes(options, tmp_path):
    options = dict(options)
    name = options.pop("name", "adam")

    def run(group, path=tmp_path / "unused"):
        net = worker.network(group, 4, **options)
        net.made = worker.optimizer(name)
        found = [a.tolist() for answer in grown(net, refine=not options) for a in answer]
        net.save(path, training_state=True)
        again = distributed.load(path, group=group, n_threads=1)
        wide = sp.hstack([X, sp.csr_array((len(Y.indptr) - 1, 5))]).tocsr()
        wider = sp.hstack([Y, sp.csr_array((len(Y.indptr) - 1, 7))]).tocsr()
        for network in (net, again):
            network.partial_fit(wide, wider, batch_size=worker.BATCH)
        digest = worker.digest(net)
        assert digest == worker.digest(again)
        return digest, found

    wanted = run(distributed.solo(), tmp_path / "one")
    for size in (2, 4):
        path = tmp_path / f"{size}"
        assert together(size, lambda rank, group, path=path: run(group, path)) == [wanted] * size


def test_a_signal_ends_rows_that_are_added_in_all_processes(torch_run):
    for report in torch_run(2, fault="SIGINT", fault_step=9, added=True):
        assert report["error"] == "KeyboardInterrupt" and report["n_steps"] == 9


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
    path = str(tmp_path / "model")
    step = 3 if fault == "kill in checkpoint" else 15
    reports = torch_run(2, path=path, every=6, epochs=2, fault=fault, fault_rank=fault_rank,
                        fault_step=step, timeout=3 if fault == "SIGSTOP" else 60)
    message = reports[1 - fault_rank]["message"]
    assert reports[1 - fault_rank]["error"] == "DistributedError"
    assert f"process {fault_rank} (" in message and "of 2 was lost in step" in message
    assert f"resume from {path}" in message
    if fault == "raise":
        assert "OSError: a fault of the test" in message
    else:
        assert reports[fault_rank] is None

    copy = tmp_path / "copy"
    shutil.copytree(path, copy)
    assert_same(alone(path=str(copy), resume=True), undisturbed)
    for report in torch_run(2, path=path, resume=True):
        assert_same(report, undisturbed)


def test_an_error_in_a_resumed_training_is_told_to_the_others(torch_run, tmp_path):
    path = str(tmp_path / "model")
    alone(epochs=2, path=path, fault="SIGINT", fault_rank=0, fault_step=9)
    report, _ = torch_run(2, path=path, resume=True, fault="raise", fault_rank=1)
    assert report["error"] == "DistributedError"
    assert "process 1 (" in report["message"]
    assert "OSError: a fault of the test" in report["message"]


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


@pytest.mark.parametrize("make", [lambda path: path.write_text("kept"), os.mkfifo])
def test_a_folder_does_not_replace_a_file(folder, tmp_path, make):
    path = tmp_path / "file"
    make(path)
    with pytest.raises(NotADirectoryError, match="is a file; a network of shards is a folder"):
        distributed.load(folder).save(path)
    assert not path.is_dir()


def test_saving_again_replaces_the_set(folder):
    net = distributed.load(folder)
    (before,) = folder.glob("step-*")
    net.save(folder)
    (after,) = folder.glob("step-*")
    assert after != before
    again = distributed.load(folder)
    assert again.training_progress is None
    np.testing.assert_array_equal(again.layers[1].weight, net.layers[1].weight)


def test_a_second_training_into_a_folder_is_told_to_the_first(tmp_path):
    nets = [worker.network(distributed.solo(), 4, n_labels=50) for _ in range(2)]
    y = np.arange(worker.N_ROWS) % 50
    callback = [distributed.Checkpoint(tmp_path / "model")]
    nets[0].fit(X, y, epochs=1, callbacks=callback, verbose=False)
    nets[1].fit(X[:100], y[:100], epochs=1, callbacks=callback, verbose=False)
    with pytest.warns(RuntimeWarning, match="another program has written a network there"):
        nets[0].fit(X, y, epochs=1, callbacks=callback, verbose=False)
    assert len(nets[0].history) == 2  # the training goes on
    # the folder has the second whole, and nothing of the first
    assert distributed.load(tmp_path / "model").checksums() == nets[1].checksums()
    assert len(list((tmp_path / "model").glob("step-*"))) == 1
    nets[1].save(tmp_path / "model")
    nets[0].save(tmp_path / "other")


@pytest.mark.parametrize("x, y, options", [
    (X[:1], Y[:1], {}), (X[:5], Y[:5], {"batch_size": 100}),
    (X[:5], sp.csr_array((5, worker.N_LABELS)), {}), (sp.csr_array(X.shape), Y, {}),
    (sp.csr_array(([1.0, 2, 3], [7, 7, 2], [0, 3]), shape=(1, worker.N_FEATURES)),
     sp.csr_array(([1.0, 1], [9, 9], [0, 2]), shape=(1, worker.N_LABELS)), {})],
    ids=["one row", "a batch larger than the rows", "no labels", "no features", "ids that repeat"])
def test_rows_nobody_would_choose_train_alike(x, y, options):
    def run(rank, group):
        net = worker.network(group, 4)
        net.fit(x, y, epochs=2, verbose=False, **options)
        return worker.digest(net), [a.tolist() for a in net.topk(x, 3)]

    assert together(4, run) == [run(0, distributed.solo())] * 4


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
            return [blocks[0], np.frombuffer(b'["ValueError: no", false]', np.uint8)]

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
    weight = np.linspace(0, 1, worker.N_ROWS).astype(np.float32)

    def trained(rows, group):
        net = worker.network(group, 4)
        net.fit(rows, epochs=2, batch_size=worker.BATCH, window=250, sample_weight=weight,
                verbose=False)
        return worker.digest(net)

    found = together(4, lambda rank, group: trained(distributed.open_rows(parts), group))
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


@pytest.fixture
def parquet(tmp_path):
    """Writes rows as Parquet, and the path."""
    pyarrow = pytest.importorskip("pyarrow", reason="Parquet needs pyarrow")
    from pyarrow import parquet

    def write(name, types=("int32", "float", "int32"), kinds=("list_",) * 3, **columns):
        arrays = [pyarrow.array(columns[column],
                                getattr(pyarrow, kind)(pyarrow.type_for_alias(entry)))
                  for column, entry, kind in zip(("features", "values", "labels"), types, kinds,
                                                 strict=True) if column in columns]
        parquet.write_table(pyarrow.table(arrays, list(columns)), tmp_path / name,
                            row_group_size=100)
        return tmp_path / name

    return write


def lists(matrix):
    return [matrix.indices[a:b].tolist() for a, b in itertools.pairwise(matrix.indptr)]


def test_parquet_files_become_a_folder_of_rows(parquet, tmp_path, capsys):
    paths = []
    for i, (a, b) in enumerate(((0, 300), (300, 300), (300, worker.N_ROWS))):
        x, y = X[a:b], Y[a:b]
        values = [x.data[p:q].tolist() for p, q in itertools.pairwise(x.indptr)]
        order = [np.random.default_rng(row).permutation(len(v)) for row, v in enumerate(values)]
        paths.append(parquet(
            f"part-{i}.parquet", types=("int64", "double", "int32"),
            kinds=("large_list", "large_list", "list_"),
            features=[np.array(f, int)[o].tolist() for f, o in zip(lists(x), order, strict=True)],
            values=[np.array(v)[o].tolist() for v, o in zip(values, order, strict=True)],
            labels=lists(y)))
    assert command("convert", *paths, tmp_path / "rows", "--labels", worker.N_LABELS) == 0
    assert "wrote 3 files" in capsys.readouterr().out
    rows = distributed.open_rows(tmp_path / "rows")
    assert len(rows) == worker.N_ROWS and rows.n_labels == worker.N_LABELS
    x, y = rows.rows(0, len(rows))
    for found, wanted, values in ((x, X, X.data), (y, Y, np.ones(Y.nnz))):
        np.testing.assert_array_equal(found.indptr, wanted.indptr)
        np.testing.assert_array_equal(found.indices, wanted.indices)
        np.testing.assert_array_equal(found.data, values)


def test_parquet_without_values_has_ones_and_ids_that_repeat_are_added(parquet, tmp_path):
    path = parquet("a.parquet", features=[[5, 2, 5], []], labels=[[1, 1], []])
    (written,) = sl.datasets.convert_parquet(path, tmp_path / "rows")
    x, y = sl.datasets.open_csr(written)[:]
    assert x.toarray().tolist() == [[0, 0, 1, 0, 0, 2], [0] * 6]
    assert y.toarray().tolist() == [[0, 1], [0, 0]]


@pytest.mark.parametrize("columns, message", [
    ({"features": [[1]]}, "it has no column 'labels'; its columns are 'features'"),
    ({"features": [[1], [1, 2]], "values": [[1], [1]], "labels": [[1], [1]]},
     "row 1: it has 2 features and 1 values"),
    ({"features": [[1], None], "labels": [[1], [1]]}, "row 1: features is missing"),
    ({"features": [[1], [2]], "labels": [[1], [0, None]]}, "row 1: an entry of labels is missing"),
    ({"features": [[1], [2, -3]], "labels": [[1], [0]]}, "row 1: the id -3 in features"),
    ({"features": [[1], [2]], "labels": [[1], [9]]}, "row 1: the id 9 in labels is outside 0..4"),
    ({"features": [[1]], "values": [[float("nan")]], "labels": [[1]]}, "row 0: the value nan")])
def test_parquet_that_does_not_fit_is_refused(parquet, tmp_path, columns, message):
    path = parquet("a.parquet", **columns)
    with pytest.raises(sl.datasets.FileFormatError, match=re.escape(message)):
        sl.datasets.convert_parquet(path, tmp_path / "rows", n_labels=5)
    assert not list(tmp_path.glob("rows/*"))


def test_parquet_is_refused_by_kind_and_by_name(parquet, tmp_path):
    path = parquet("a.parquet", types=("double", "float", "int32"), features=[[1.5]], values=[[1]],
                   labels=[[1]])
    with pytest.raises(sl.datasets.FileFormatError, match="not lists of whole numbers"):
        sl.datasets.convert_parquet(path, tmp_path / "rows")
    (tmp_path / "b.parquet").write_bytes(b"PAR1")
    with pytest.raises(sl.datasets.FileFormatError, match="no readable Parquet file"):
        sl.datasets.convert_parquet(tmp_path / "b.parquet", tmp_path / "rows")
    with pytest.raises(ValueError, match=r"two of the paths would become .*a\.csr"):
        sl.datasets.convert_parquet([path, path], tmp_path / "rows")
    with pytest.raises(FileNotFoundError, match=r"none\.parquet.*no such file"):
        sl.datasets.convert_parquet(tmp_path / "none.parquet", tmp_path / "rows")


def test_parquet_lists_of_one_length_are_read_and_columns_of_numbers_refused(tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason="Parquet needs pyarrow")
    from pyarrow import parquet

    labels = pyarrow.array([[0], [1]], pyarrow.list_(pyarrow.int32()))
    fixed = pyarrow.array([[1, 2], [0, 3]], pyarrow.list_(pyarrow.int64(), 2))
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table([fixed, labels], ["features", "labels"]), path)
    (written,) = sl.datasets.convert_parquet(path, tmp_path / "rows", n_features=5, n_labels=3)
    with sl.datasets.open_csr(written) as file:
        x, y = file[:]
    assert x.toarray().tolist() == [[0, 1, 1, 0, 0], [1, 0, 0, 1, 0]] and y.shape == (2, 3)

    parquet.write_table(pyarrow.table([pyarrow.array([1, 2]), labels], ["features", "labels"]),
                        path)
    with pytest.raises(sl.datasets.FileFormatError, match="'features' holds int64, not lists"):
        sl.datasets.convert_parquet(path, tmp_path / "rows")


def test_parquet_needs_pyarrow(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"sparselsh-nn\[parquet\]"):
        sl.datasets.convert_parquet(tmp_path / "a.parquet", tmp_path / "rows")


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
    assert of(core_speed=0.5)["seconds_of_compute"] == 2 * one["seconds_of_compute"]


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


def test_weights_are_read_only():
    # those of the hidden layer were a view through which training state could be changed
    net = ShardedNetwork([sl.Linear(5, 4), sl.LSHLinear(4, 6, density=0.5)], shards=2,
                         random_state=0, n_threads=1)
    net.fit(np.eye(6, 5, dtype=np.float32), np.arange(6), epochs=1, verbose=False)
    for layer in net.layers:
        for array in (layer.weight, layer.bias):
            with pytest.raises(ValueError, match="read-only"):
                array[...] = 0
