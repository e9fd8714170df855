"""Threads of Python, and processes that are forked, spawned or killed."""
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from copy import deepcopy

import numpy as np
import pytest
from support import assert_same_bits

import sparselsh as sl

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
POSIX = os.name == "posix"
# per kind of file; each starts one Python process
N_KILLS = int(os.environ.get("SPARSELSH_KILLS", "2"))


def trained(n_threads=2, **options):
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((200, 12), np.float32), rng.integers(0, 5000, 200)
    net = sl.Network([sl.Linear(12, 16, activation="relu"),
                      sl.LSHLinear(16, 300, activation="relu", density=0.2),
                      sl.LSHLinear(300, 5000, density=0.1)], random_state=0, n_threads=n_threads)
    return net.fit(X, y, epochs=2, batch_size=50, verbose=False, **options), X, y


@pytest.fixture(scope="module")
def net():
    return trained()


# ---- threads of Python


def test_threads_may_query_one_network_at_once(net):
    network, X, _ = net
    whole = [network.topk(X[i:i + 25]) for i in range(0, 200, 25)]
    barrier = threading.Barrier(8)

    def query(i):
        barrier.wait()
        return [network.topk(X[25 * i:25 * i + 25]) for _ in range(5)]

    with ThreadPoolExecutor(8) as pool:
        for answers, (ids, scores) in zip(pool.map(query, range(8)), whole, strict=True):
            for got in answers:
                assert_same_bits(got[0], ids)
                assert_same_bits(got[1], scores)


def test_a_query_from_another_thread_waits_for_the_end_of_a_training(net):
    network, X, y = deepcopy(net)
    n_seen = []

    class Query(sl.callbacks.Callback):
        def on_step(self, network):
            # from another thread during the training, and from this one, which holds the lock
            if not n_seen:
                n_seen.append(len(network.history))
                other.start()
                network.topk(X[:1])

    other = threading.Thread(target=lambda: n_seen.append((network.topk(X), len(network.history))))
    network.fit(X, y, epochs=2, batch_size=50, verbose=False, callbacks=Query())
    other.join()
    assert n_seen[0] == 2 and n_seen[1][1] == 4


def test_threads_that_train_one_network_run_one_after_the_other(net):
    _, X, y = net
    network, sequential = deepcopy(net[0]), deepcopy(net[0])
    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(network.partial_fit, X, y) for _ in range(4)]:
            done.result()
    for _ in range(4):
        sequential.partial_fit(X, y)
    for a, b in zip(network.get_weights(), sequential.get_weights(), strict=True):
        assert_same_bits(a, b)


def test_threads_may_share_an_index(rng):
    W, Q = rng.standard_normal((5000, 16), np.float32), rng.standard_normal((64, 16), np.float32)
    index = sl.LSHIndex(sl.SimHash(bits=6, tables=8), random_state=0, n_threads=2).fit(W)
    want = index.query(Q, n=20).toarray()
    with ThreadPoolExecutor(4) as pool:
        for got in pool.map(lambda i: index.query(Q[8 * i:8 * i + 8], n=20).toarray(), range(8)):
            assert any(np.array_equal(got, want[8 * i:8 * i + 8]) for i in range(8))


# ---- copies, as sent to other processes


@pytest.mark.parametrize("copy", [deepcopy, lambda net: pickle.loads(pickle.dumps(net))],
                         ids=["deepcopy", "pickle"])
def test_a_copy_is_independent_and_continues_training_alike(net, copy):
    network, X, y = net
    network = deepcopy(network)
    network.topk(X)
    other, before = copy(network), network.get_weights()
    other.partial_fit(X, y)
    for a, b in zip(network.get_weights(), before, strict=True):
        assert_same_bits(a, b)
    network.partial_fit(X, y)
    for a, b in zip(network.get_weights(), other.get_weights(), strict=True):
        assert_same_bits(a, b)
    for a, b in zip(network.topk(X), other.topk(X), strict=True):
        assert_same_bits(a, b)


# ---- other processes


@pytest.mark.parametrize("method", [pytest.param("fork", marks=needs_fork), "spawn"])
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_worker_process_predicts_and_trains_as_this_process(net, method):
    # this process has started OpenMP threads; a forked child must not wait for them
    network, X, y = net
    want, here = network.topk(X), deepcopy(network).partial_fit(X, y)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context(method)) as pool:
        got = pool.submit(network.topk, X).result()
        there = pool.submit(network.partial_fit, X, y).result()
    for a, b in zip((*got, *there.get_weights()), (*want, *here.get_weights()), strict=True):
        assert_same_bits(a, b)


@needs_fork
def test_a_forked_child_uses_one_thread_and_its_locks_are_released():
    code = """if True:
        import os, threading, warnings
        import numpy as np, sparselsh as sl
        warnings.simplefilter("ignore")
        net = sl.Network([sl.Linear(4, 3).set_weights(np.ones((3, 4)))], n_threads=2)
        X = np.ones((64, 4), np.float32)

        def child(n_threads):
            pid = os.fork()
            if pid == 0:
                net.topk(X)
                os._exit(0 if sl.get_num_threads() == n_threads else 1)
            assert os.waitpid(pid, 0)[1] == 0

        sl.set_num_threads(2)
        child(2)  # no kernel has run yet: the child may use threads
        net.fit(X, np.zeros(64, int), verbose=False)
        child(1)
        holds, done = threading.Event(), threading.Event()

        def hold():
            with net._lock:
                holds.set()
                done.wait()

        thread = threading.Thread(target=hold)
        thread.start()
        holds.wait()
        child(1)  # the thread that holds the lock does not exist in the child
        done.set()
        thread.join()
        assert sl.get_num_threads() == 2
        print("done")"""
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True,
                          text=True, timeout=120)
    assert done.stdout.split() == ["done"], done.stderr


# ---- kill -9


KILLED = """if True:
    import sys
    import numpy as np, sparselsh as sl
    kind, path = sys.argv[1:]
    rng = np.random.default_rng(0)
    nets = []
    for value in (1.0, 2.0):
        net = sl.Network([sl.Linear(300, 400), sl.Linear(400, 300)], random_state=0, n_threads=1)
        for layer in net.layers:
            layer.set_weights(np.full((layer.n_out, layer.n_in), value, np.float32))
        nets.append(net)
    W = np.ones((3000, 64), np.float32)
    indexes = [sl.LSHIndex(random_state=0, n_threads=1).fit(
                   value * rng.standard_normal((3000, 64), np.float32))
               for value in (1, 2)]
    save = {"model": lambda i: nets[i].save(path),
            "checkpoint": lambda i: nets[i].save(path, training_state=True),
            "index": lambda i: indexes[i].save(path),
            "text": lambda i: sl.datasets.write_xmc(path, W[:200] * (i + 1), np.zeros(200, int)),
            "csr": lambda i: sl.datasets.write_csr(path, W * (i + 1), np.zeros(3000, int))}[kind]
    save(0)
    print("ready", flush=True)
    i = 0
    while True:
        i = 1 - i
        save(i)
"""


def whole(kind, path):
    """Read the file and check that it is one of the two that were written."""
    if kind in ("model", "checkpoint"):
        net = sl.load(path)
        values = {float(value) for layer in net.layers for value in np.unique(layer.weight)}
        assert values in ({1.0}, {2.0})
    elif kind == "index":
        rng = np.random.default_rng(0)
        for value in (1, 2):
            W = value * rng.standard_normal((3000, 64), np.float32)
            try:
                return sl.LSHIndex.load(path, W)
            except ValueError as error:
                assert "saved over other weights" in str(error)
        pytest.fail("neither index")
    else:
        if kind == "text":
            X, Y = sl.datasets.read_xmc(path)
        else:
            with sl.datasets.open_csr(path) as file:
                X, Y = file[:]
        assert (X.shape[0] == Y.shape[0] == (200 if kind == "text" else 3000)
                and set(X.data) in ({1.0}, {2.0}))


@pytest.mark.skipif(not POSIX, reason="no kill -9 on this system")
@pytest.mark.parametrize("kind", ["model", "checkpoint", "index", "text", "csr"])
def test_a_process_killed_while_saving_leaves_the_old_file_or_the_new_one(kind, tmp_path, rng):
    path = tmp_path / "file"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    # a save takes a few milliseconds: kills hit it at any point
    for delay in rng.uniform(0, 0.03, N_KILLS):
        with subprocess.Popen([sys.executable, "-P", "-c", KILLED, kind, str(path)],
                              env=environment, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout.readline() == "ready\n"
            threading.Event().wait(delay)
            process.send_signal(signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
        whole(kind, path)
