"""What a process of the tests of sparselsh.distributed does: makes a network, trains it, reports.

usage: python -P tests/distributed_worker.py FOLDER '{"json": "options"}'
       python -P tests/distributed_worker.py serve

A process writes its report to FOLDER/RANK.json; the variables of its launcher say which it is.
`serve` imports torch, which takes seconds, once, and forks the processes of each line of standard
input: {"size": P, "port": N, "folder": FOLDER, "options": {...}}. It prints their ids, and then
their exit codes.
"""
import json
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
import warnings
import zlib
from pathlib import Path

import numpy as np
import scipy.sparse as sp

import sparselsh as sl
from sparselsh import distributed

N_ROWS, N_FEATURES, N_LABELS, N_HIDDEN, BATCH = 1024, 300, 6001, 34, 60


def rows(n=N_ROWS, n_labels=N_LABELS):
    """Rows of some words, with 0 to 3 labels that follow from them."""
    rng = np.random.default_rng(0)
    X = sp.random_array((n, N_FEATURES), density=0.04, format="csr", rng=rng, dtype=np.float32)
    counts = rng.integers(0, 4, n)
    indptr = np.concatenate([[0], np.cumsum(counts)])
    first = np.repeat(X.indices[np.minimum(X.indptr[:-1], X.nnz - 1)], counts)
    labels = (first * 19 + rng.integers(0, 3, indptr[-1])) % n_labels
    Y = sp.csr_array((np.ones(indptr[-1], np.float32), labels, indptr), shape=(n, n_labels))
    Y.sum_duplicates()
    return X, Y


def network(group, shards, *, loss="softmax", dropout=0.0, weights="float32", dense=False,
            n_labels=N_LABELS, compute_dtype="float32", **options):
    """A new network of shards."""
    output = {"density": 1.0} if dense else {"density": 0.1, **options}
    return distributed.ShardedNetwork(
        [sl.Linear(N_FEATURES, N_HIDDEN, activation="relu", dropout=dropout, dtype=weights),
         sl.LSHLinear(N_HIDDEN, n_labels, dtype=weights, **output)],
        shards=shards, group=group, loss=loss, random_state=3, n_threads=1,
        compute_dtype=compute_dtype)


def optimizer(name):
    """The optimizer of a name."""
    return {"adam": lambda: sl.Adam(1e-2, schedule="linear"),
            "row": lambda: sl.Adam(1e-2, second_moment="row", clip_norm=0.5),
            "half": lambda: sl.Adam(1e-2, state_dtype="bfloat16"),
            "half row": lambda: sl.Adam(1e-2, state_dtype="bfloat16", second_moment="row"),
            "sgd": lambda: sl.SGD(0.1, momentum=0.9)}[name]()


def digest(net):
    """{part: checksum per shard} of weights, moments and codes, and the history without times."""
    shards = net.shards
    whole = {}
    for part in shards.gather_json(net.checksums()):
        whole |= part
    history = [{key: entry[key] for key in entry
                if key not in ("seconds", "cpu_seconds", "samples_per_second")}
               for entry in net.history]
    return {"sums": whole, "history": history, "n_steps": net._training.n_steps}


class Fault(sl.callbacks.Callback):
    """Raises an error after a step, or sends this process a signal."""

    def __init__(self, kind, step, note):
        self.kind, self.step, self.note, self.n = kind, step, note, 0

    def on_step(self, network):
        self.n += 1
        if self.n != self.step:
            return
        self.note()
        if self.kind == "raise":
            raise OSError("a fault of the test")
        os.kill(os.getpid(), getattr(signal, self.kind))


def fault_in_checkpoint(kind, count, note):
    """Let the write of a shard, the count-th, fail or kill the process."""
    from sparselsh import _files

    real, n = _files.write_checked, [0]

    def write_checked(path, *arguments):
        n[0] += "shard-" in str(path)
        if n[0] == count and "shard-" in str(path):
            if kind == "full":
                raise OSError(28, "No space left on device", str(path))
            Path(path).write_bytes(b"half")
            note()
            os.kill(os.getpid(), signal.SIGKILL)
        return real(path, *arguments)

    _files.write_checked = write_checked


def run(shards=4, timeout=60, fault=None, fault_rank=1, fault_step=5, path=None,
        resume=False, epochs=1, name="adam", every=None, recipe=False, n_rows=N_ROWS, added=False,
        folder=None, **options):
    """Train, or resume a training, and return what is to be reported."""
    def note():
        """Write when the fault happens, by a clock that all processes read."""
        if folder:
            Path(folder, "fault").write_text(str(time.monotonic()))

    group = distributed.group(timeout=timeout)
    X, Y = rows(n_rows, options.get("n_labels", N_LABELS))
    if fault == "other rows" and group.rank == fault_rank:
        X, Y = X[:-1], Y[:-1]
    callbacks = []
    if path:
        callbacks.append(distributed.Checkpoint(path, every_steps=every))
    if fault and group.rank == fault_rank:
        if fault in ("full", "kill in checkpoint"):
            fault_in_checkpoint(fault, fault_step, note)
        elif hasattr(signal, fault) or fault == "raise":
            callbacks.append(Fault(fault, fault_step, note))

    report = {"rank": group.rank, "size": group.size, "engine": type(group).__name__}
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            if added:
                net = added_to(network(group, shards, **options), X, Y, fault_step,
                               group.rank == fault_rank)
            else:
                net = trained(group, X, Y, shards, callbacks, path, resume, epochs, name, recipe,
                              options)
        report["warnings"] = [str(warning.message) for warning in caught
                              if warning.category is RuntimeWarning]
    except KeyboardInterrupt as interrupt:
        when = time.monotonic()
        return report | {"error": "KeyboardInterrupt", "when": when} | digest(interrupt.net)
    except (distributed.DistributedError, OSError) as error:
        return report | {"error": type(error).__name__, "message": str(error),
                         "when": time.monotonic()}
    report |= digest(net) | {"n_bytes": group.n_bytes}
    ids, scores = net.topk(X[:40], 7)
    exact = net.topk(X[:40], 7, exact=True)
    report["answers"] = [zlib.crc32(np.ascontiguousarray(a).tobytes())
                         for a in (ids, scores, *exact)]
    group.close()
    return report


def trained(group, X, Y, shards, callbacks, path, resume, epochs, name, recipe, options):
    """The network; a KeyboardInterrupt has it as `net`."""
    try:
        if resume:
            net = distributed.load(path, group=group, n_threads=1)
            net.resume(X, Y, callbacks=callbacks, verbose=False)
        else:
            net = network(group, shards, **options)
            if recipe:
                net.initialize(X, Y)
            net.fit(X, Y, epochs=epochs, batch_size=BATCH, optimizer=optimizer(name),
                    callbacks=callbacks, verbose=False)
        if recipe:
            net.refine(X, Y, verbose=False)
    except KeyboardInterrupt as interrupt:
        interrupt.net = net
        raise
    return net


def added_to(net, X, Y, fault_step, sends):
    """A network that has learnt by partial_fit, in which a step may send this process SIGINT."""
    step = net._training.step

    def step_with_signal(*args, **kwargs):
        if sends and net._training.n_steps == fault_step - 1:
            os.kill(os.getpid(), signal.SIGINT)
        return step(*args, **kwargs)

    net._training.step = step_with_signal
    try:
        return net.partial_fit(X, Y, batch_size=BATCH)
    except KeyboardInterrupt as interrupt:
        interrupt.net = net
        raise


def report(folder, options):
    """Run, and write what comes out; returns the exit code."""
    result = run(**options, folder=folder)
    path = Path(folder) / f"{result['rank']}.json"
    path.write_text(json.dumps(result))
    return 75 if "error" in result else 0


def child(rank, job):
    """The forked process of a rank."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(job["size"]), "MASTER_ADDR": "127.0.0.1",
                   "MASTER_PORT": str(job["port"]), "LOCAL_WORLD_SIZE": str(job["size"])}
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which shells let some ignore
    log = os.open(Path(job["folder"]) / f"{rank}.log", os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    code = 1
    try:
        code = report(job["folder"], job["options"])
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


class Server:
    """Has imported torch, and forks the processes of a group."""

    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, "-P", __file__, "serve"], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        if self.process.stdout.readline() != "ready\n":
            raise RuntimeError("the server of processes did not start")
        self.codes = []

    def run(self, folder, size, during=lambda pids: None, limit=60, **options):
        """The reports of `size` processes, None for those that were killed; `codes` are theirs."""
        folder.mkdir(parents=True)
        with socket.socket() as listening:
            listening.bind(("127.0.0.1", 0))
            port = listening.getsockname()[1]
        job = {"size": size, "port": port, "folder": str(folder), "options": options}
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        pids = json.loads(self.process.stdout.readline())
        signal.signal(signal.SIGALRM, lambda *_: [os.kill(pid, signal.SIGKILL) for pid in pids])
        signal.alarm(limit)
        during(pids)
        if options.get("fault") == "SIGSTOP":
            stopped = pids[options["fault_rank"]]
            while any(state_of(pid) not in "ZX" for pid in pids if pid != stopped):
                time.sleep(0.01)
            os.kill(stopped, signal.SIGKILL)
        self.codes = json.loads(self.process.stdout.readline())
        signal.alarm(0)
        paths = [folder / f"{rank}.json" for rank in range(size)]
        return [json.loads(path.read_text()) if path.exists() else None for path in paths]

    def close(self):
        """End the server."""
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


def state_of(pid):
    """The state of a process: T for stopped, Z for ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "X"


def serve():
    """Fork processes for each job."""
    import torch.distributed  # noqa: F401  # once, for all of them

    print("ready", flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        pids = []
        for rank in range(job["size"]):
            pid = os.fork()
            if pid == 0:
                child(rank, job)
            pids.append(pid)
        print(json.dumps(pids), flush=True)
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        print(json.dumps(codes), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve()
    else:
        sys.exit(report(sys.argv[1], json.loads(sys.argv[2])))
