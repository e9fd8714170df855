"""Networks of shards: the same bits, what they cost, and what survives.

usage: python -P bench/distributed.py digests TRAIN.txt [--recipe]
       python -P bench/distributed.py overhead TRAIN.txt [--hidden 128] [--repeats 5]
       python -P bench/distributed.py faults
       python -P bench/distributed.py kills TRAIN.txt [--times 100]
       python -P bench/distributed.py labels [--labels 1e7] [--rows 1e6] [--one]
       python -P bench/distributed.py step --labels 1e9 --process 17 --of 1024
       python -P bench/distributed.py plan TRAIN.txt

`digests` trains with 1, 2 and 4 processes and compares checksums of all that a training leaves.
`overhead` compares CPU seconds with those of Network.fit, prints what of them is spent in
exchanges, how many times as quick two processes are as one, and what they could be if no thread
waited for a processor: the CPU seconds of one by those of the calling threads of two. `faults` lets
each process of two and of four fail in each way, prints after how many seconds the others say so,
and resumes with 1 and 2 processes. `kills` ends a process at random moments and resumes with 1 or 2
processes until the training is complete. `labels` trains many labels on made-up rows with two
processes, with one too where asked for, and prints time, memory and P@1. `step` takes steps of one
process of very many. `plan` compares the model of `sparselsh plan` with steps that it times.
Processes use torch.distributed, and one thread each.
"""
import argparse
import json
import os
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path

import numpy as np

import sparselsh as sl
from sparselsh import datasets, distributed

SHARDS = 4


# -- one process -----------------------------------------------------------------------------------


def rows(path):
    return datasets.read_xmc(path)


def network(args, shape, group):
    layers = [sl.Linear(shape[0], args.hidden, activation="relu"),
              sl.LSHLinear(args.hidden, shape[1])]
    if args.shards == 0:
        return sl.Network(layers, random_state=0, n_threads=1)
    return distributed.ShardedNetwork(layers, shards=args.shards, group=group, random_state=0,
                                      n_threads=1)


def digest(net):
    """A checksum of weights, biases, moments, hash codes and history of all shards."""
    whole = {}
    for part in net.shards.gather_json(net.checksums()):
        whole |= part
    history = [{key: entry[key] for key in ("loss", "computed_share")} for entry in net.history]
    text = json.dumps([whole, history], sort_keys=True)
    return zlib.crc32(text.encode())


class Exchanges:
    """CPU seconds of the calling thread in exchanges; other threads do nothing else."""

    def __init__(self, group):
        self.seconds, self.exchange = 0.0, group.exchange
        if group.size > 1:
            group.exchange = self.timed

    def timed(self, blocks):
        begin = time.thread_time()
        try:
            return self.exchange(blocks)
        finally:
            self.seconds += time.thread_time() - begin


def train(args):
    """The work of a process; prints one line of JSON."""
    group = distributed.group(timeout=args.timeout)
    X, Y = rows(args.train)
    exchanges = Exchanges(group)
    begin, cpu, own = time.perf_counter(), time.process_time(), time.thread_time()
    if args.resume:
        net = distributed.load(args.resume, group=group, n_threads=1)
        net.resume(X, Y, callbacks=[distributed.Checkpoint(args.resume, every_steps=20)],
                   verbose=False)
    else:
        net = network(args, (X.shape[1], Y.shape[1]), group)
        if args.recipe:
            net.initialize(X, Y)
        callbacks = ([distributed.Checkpoint(args.path, every_steps=20)] if args.path else [])
        net.fit(X, Y, epochs=args.epochs, callbacks=callbacks, verbose=False,
                optimizer=sl.Adam(1e-2, schedule="linear",
                                  second_moment="row" if args.recipe else "element"))
    wall, cpu = time.perf_counter() - begin, time.process_time() - cpu
    own = time.thread_time() - own
    if args.recipe:
        net.refine(X, Y, verbose=False)
    report = {"rank": group.rank, "wall": wall, "cpu": cpu, "n_bytes": group.n_bytes,
              "own": own, "exchanges": cpu - own + exchanges.seconds,
              "loss": net.history[-1]["loss"]}
    if args.shards:
        report["digest"] = digest(net)
        ids, scores = net.topk(X[:500], 5)
        report["answers"] = zlib.crc32(ids.tobytes(), zlib.crc32(scores.tobytes()))
    os.write(1, (json.dumps(report) + "\n").encode())
    if group.size > 1:
        group.close()


# -- several ---------------------------------------------------------------------------------------


def start(size, *arguments, command="train", errors=subprocess.DEVNULL):
    """Start `size` processes of this script with the variables of torchrun."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
    own = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    processes = []
    for rank in range(size):
        there = {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1",
                 "MASTER_PORT": str(port), "LOCAL_WORLD_SIZE": str(size)} if size > 1 else {}
        processes.append(subprocess.Popen(
            [sys.executable, "-P", __file__, command, *map(str, arguments)], env=own | there,
            stdout=subprocess.PIPE, stderr=errors, text=True))
    return processes


def reports(processes):
    return [json.loads(process.communicate()[0].splitlines()[-1]) for process in processes]


def digests(args):
    extra = ["--recipe"] if args.recipe else []
    found = {}
    for size in (1, 2, 4):
        for report in reports(start(size, args.train, "--shards", SHARDS, "--hidden", args.hidden,
                                    "--epochs", args.epochs, *extra)):
            found[size, report["rank"]] = report["digest"], report["answers"]
        print(f"{size} processes: digest {found[size, 0][0]:08x}, answers {found[size, 0][1]:08x}",
              flush=True)
    print("equal" if len(set(found.values())) == 1 else "DIFFERENT")


def overhead(args):
    """CPU seconds of a training, alternating, against those of Network.fit."""
    cases = {"Network": (0, 1), "1 shard": (1, 1), "4 shards": (SHARDS, 1),
             "4 shards, 2 processes": (SHARDS, 2)}
    cpu, wall, shares, bounds = {name: [] for name in cases}, {name: [] for name in cases}, [], []
    for _ in range(args.repeats):
        for name, (shards, size) in cases.items():
            found = reports(start(size, args.train, "--shards", shards, "--hidden", args.hidden,
                                  "--epochs", args.epochs))
            cpu[name].append(sum(report["cpu"] for report in found))
            wall[name].append(max(report["wall"] for report in found))
        shares.append(sum(report["exchanges"] for report in found) / cpu[name][-1])
        bounds.append(cpu["4 shards"][-1] / max(report["own"] for report in found))
    base = statistics.median(cpu["Network"])
    for name in cases:
        median = statistics.median(cpu[name])
        print(f"{name:<24} {median:7.2f} CPU s {median / base - 1:+7.1%}   "
              f"{statistics.median(wall[name]):7.2f} s   minimum {min(cpu[name]):7.2f} CPU s "
              f"{min(cpu[name]) / min(cpu['Network']) - 1:+7.1%}")
    one, two = (wall[name] for name in list(cases)[2:])
    over = [b / a - 1 for a, b in zip(*(cpu[name] for name in list(cases)[2:]), strict=True)]
    print(f"2 processes by 1, both with 4 shards: {statistics.median(over):+.1%} CPU seconds, "
          f"{statistics.median(shares):.1%} of them in exchanges; "
          f"{statistics.median(one) / statistics.median(two):.2f} times as quick, "
          f"{statistics.median(bounds):.2f} if no thread waited for a processor")


def kills(args):
    """End a process at a random moment, resume, and compare the end with the undisturbed one."""
    rng = random.Random(args.seed)
    common = ["--shards", SHARDS, "--hidden", args.hidden, "--epochs", args.epochs]
    begin = time.perf_counter()
    (undisturbed,) = reports(start(1, args.train, *common))
    seconds = time.perf_counter() - begin
    n_killed = n_lost = n_complete = 0
    while n_killed < args.times:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "run"
            while True:
                is_begun = (path / "network.json").exists()
                size = rng.choice((1, 2))
                there = ["--resume", path] if is_begun else ["--path", path]
                processes = start(size, args.train, *common, *there)
                time.sleep(rng.uniform(0, 1.5 * seconds))
                victim = rng.choice(processes)
                if victim.poll() is None and n_killed < args.times:
                    victim.send_signal(signal.SIGKILL)
                    n_killed += 1
                outputs = [process.communicate()[0] for process in processes]
                if all(process.returncode == 0 for process in processes):
                    break
            ends = {json.loads(output.splitlines()[-1])["digest"] for output in outputs}
            n_complete += 1
            n_lost += ends != {undisturbed["digest"]}
        print(f"{n_killed} kills, {n_complete} trainings completed, {n_lost} differ", flush=True)


def faults(args):
    """Let each process fail in each way; seconds until the others know, and whether all is kept."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
    import distributed_worker as worker

    server, undisturbed = worker.Server(), worker.run(epochs=2)
    for size in (2, 4):
        for fault in ("SIGKILL", "SIGSTOP", "raise", "kill in checkpoint", "full", "SIGINT",
                      "SIGTERM"):
            for rank in range(size):
                with tempfile.TemporaryDirectory() as folder:
                    line = one_fault(server, Path(folder), size, fault, rank, undisturbed)
                print(f"{size} processes, {fault:<19} in {rank}: {line}", flush=True)
    server.close()


def one_fault(server, folder, size, fault, rank, undisturbed):
    """A line about one process that fails in one way."""
    options = {"path": str(folder / "model"), "every": 6, "epochs": 2}
    found = server.run(folder / "run", size, fault=fault, fault_rank=rank,
                       fault_step=3 if fault in ("kill in checkpoint", "full") else 15,
                       timeout=3 if fault == "SIGSTOP" else 60, **options)
    others = [report for i, report in enumerate(found) if i != rank and report is not None]
    if fault == "full":
        line = "all warn and go on" if all(r.get("warnings") for r in others) else "NO WARNING"
        kept = all(r["sums"] == undisturbed["sums"] for r in others)
        return f"{line}; {'the same bits' if kept else 'OTHER BITS'}"
    seconds = [report["when"] - float((folder / "run" / "fault").read_text())
               for report in others]
    names = {report["error"] for report in others}
    named = sum(f"process {rank} (" in report.get("message", "") for report in others)
    same = []
    for number in (1, 2):
        copy = folder / f"copy{number}"
        shutil.copytree(folder / "model", copy)
        again = server.run(folder / f"again{number}", number, path=str(copy), resume=True)
        same += [report["sums"] == undisturbed["sums"] for report in again]
    return (f"{max(seconds):5.2f} s until the last of {len(others)} others has "
            f"{'/'.join(sorted(names))}, which names it in {named}; resumed with 1 and 2: "
            f"{'the same bits' if all(same) else 'OTHER BITS'}")


def made_up(n_rows, n_labels, n_features, seed):
    """Rows of 16 features, most of them of the label; labels of which few are frequent."""
    import scipy.sparse as sp

    rng = np.random.default_rng(seed)
    n_own, nnz, chunk = 12, 24, 65_536
    for start in range(0, n_rows, chunk):
        n = min(chunk, n_rows - start)
        labels = (float(n_labels) ** rng.random(n)).astype(np.int64) - 1
        which = rng.integers(0, n_own, (n, nnz - 8))
        own = (labels[:, None] * n_own + which + 1).astype(np.uint64)
        own = own * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(20)
        ids = np.concatenate([own.astype(np.int64), rng.integers(0, n_features, (n, 8))], axis=1)
        X = sp.csr_array((np.ones(n * nnz, np.float32), (ids % n_features).ravel(),
                          np.arange(0, n * nnz + 1, nnz)), shape=(n, n_features))
        X.sum_duplicates()
        yield X, sp.csr_array((np.ones(n, np.float32), labels, np.arange(n + 1)),
                              shape=(n, n_labels))


def labels(args):
    """Many labels, with two processes and perhaps with one."""
    n_labels, n_rows = int(args.labels or 1e7), int(args.rows)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        for name, n, seed in (("train", n_rows, 1), ("test", 10_000, 2)):
            datasets.write_csr(Path(folder) / f"{name}.csr",
                               made_up(n, n_labels, args.features, seed))
        for size in (2, 1) if args.one else (2,):
            found = reports(start(size, folder, "--shards", 2, "--hidden", args.hidden,
                                  "--batch-size", args.batch_size, "--candidates",
                                  args.candidates, command="many", errors=None))
            seconds = max(report["seconds"] for report in found)
            print(f"{size} processes: {n_rows / seconds:,.0f} rows per second of wall time, "
                  f"{n_rows / sum(r['cpu'] for r in found):,.0f} per CPU second, "
                  f"{sum(r['cpu'] for r in found):.0f} CPU s, at most "
                  f"{sum(r['memory'] for r in found):.2f} GB in memory, P@1 "
                  f"{found[0]['p_at_1']:.2%}, digest {found[0]['digest']:08x}", flush=True)


def many(args):
    """The work of a process of `labels`."""
    import resource

    group = distributed.group(timeout=args.timeout)
    train, test = (datasets.open_csr(Path(args.train) / f"{name}.csr")
                   for name in ("train", "test"))
    net = distributed.ShardedNetwork(
        [sl.Linear(train.shape[1], args.hidden, activation="relu"),
         sl.LSHLinear(args.hidden, train.n_labels, candidates=args.candidates)],
        shards=args.shards, group=group, random_state=0, n_threads=1)
    begin, cpu = time.perf_counter(), time.process_time()
    net.fit(train, epochs=1, batch_size=args.batch_size, verbose=group.rank == 0,
            optimizer=sl.Adam(args.lr, schedule="linear", second_moment="row",
                              state_dtype="bfloat16"))
    seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    X, Y = test[:2000]
    found = net.topk(X, 1, exact=True)[0][:, 0]
    report = {"seconds": seconds, "cpu": cpu, "memory": memory, "digest": digest(net),
              "p_at_1": float((found == Y.indices).mean())}
    os.write(1, (json.dumps(report) + "\n").encode())
    if group.size > 1:
        group.close()


def step(args):
    """Steps of one process of many, as if the others were there."""
    import resource

    group = distributed.AsIf(args.process, args.of)
    n_labels, n = int(args.labels or 1e9), 16 * args.batch_size
    rng = np.random.default_rng(0)
    import scipy.sparse as sp

    X = sp.csr_array((np.ones(n * 100, np.float32), rng.integers(args.features, size=n * 100),
                      np.arange(0, n * 100 + 1, 100)), shape=(n, args.features))
    X.sum_duplicates()
    Y = sp.csr_array((np.ones(n, np.float32), rng.integers(n_labels, size=n),
                      np.arange(n + 1)), shape=(n, n_labels))
    net = distributed.ShardedNetwork(
        [sl.Linear(args.features, args.hidden), sl.LSHLinear(args.hidden, n_labels)],
        shards=args.of, group=group, random_state=0, n_threads=1)
    times = []

    class Clock(sl.callbacks.Callback):
        def on_step(self, network):
            times.append(time.thread_time())

    net.fit(X, Y, epochs=1, batch_size=args.batch_size, callbacks=[Clock()], verbose=False)
    steps = np.diff(times)
    print(f"{net.layers[1].weight.shape[0]:,} own labels; a step {1e3 * np.median(steps):.1f} ms "
          f"of CPU in the median of {len(steps)}; at most "
          f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GB in memory")


def plan(args):
    """Bytes and times of the model against counted and timed ones, for six shapes."""
    X, Y = rows(args.train)
    n_steps, pairs = 24, []
    for hidden, batch in ((64, 256), (128, 128), (128, 256), (256, 256), (512, 256), (128, 512)):
        layers = [sl.Linear(X.shape[1], hidden), sl.LSHLinear(hidden, Y.shape[1])]
        net = sl.Network(layers, random_state=0, n_threads=1)
        n = min(X.shape[0], n_steps * batch)
        net.fit(X[:n], Y[:n], epochs=1, batch_size=batch, verbose=False)
        cpu, count = time.thread_time(), 0
        while count < n_steps:
            net.partial_fit(X[:n], Y[:n], batch_size=batch)
            count += -(-n // batch)
        measured = (time.thread_time() - cpu) / count
        known = distributed.estimate(
            n_labels=Y.shape[1], n_features=X.shape[1], nnz=X.nnz / X.shape[0], n_hidden=hidden,
            n_active=min(4096, Y.shape[1]), batch_size=batch)["seconds_of_compute"]
        pairs.append((hidden, batch, measured, known))
    speed = statistics.median(known / measured for *_, measured, known in pairs)
    print(f"a core has {speed:.2f} times the speed of the one that the times are from")
    for hidden, batch, measured, known in pairs:
        print(f"hidden {hidden:>3}, batch {batch:>3}: {1e3 * measured:6.1f} ms measured, "
              f"{1e3 * known / speed:6.1f} estimated, {known / speed / measured - 1:+.0%}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    works = (train, digests, overhead, faults, kills, labels, many, step, plan)
    parser.add_argument("command", choices=[work.__name__ for work in works])
    parser.add_argument("train", nargs="?")
    for name, default in (("shards", SHARDS), ("hidden", 128), ("epochs", 1), ("repeats", 5),
                          ("times", 100), ("seed", 0), ("process", 17), ("of", 1024),
                          ("features", 1_000_000), ("batch-size", 256), ("timeout", 60)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--candidates", type=int, default=5)
    parser.add_argument("--labels", type=float, help="1e9 for step, 1e7 for labels")
    parser.add_argument("--rows", type=float, default=1e6)
    parser.add_argument("--lr", type=float, default=1e-2)
    parser.add_argument("--one", action="store_true")
    parser.add_argument("--folder")
    parser.add_argument("--recipe", action="store_true")
    parser.add_argument("--path")
    parser.add_argument("--resume")
    args = parser.parse_args()
    next(work for work in works if work.__name__ == args.command)(args)


if __name__ == "__main__":
    main()
