"""A trained network served in float32, bfloat16 and int8: size of the file, P@k, microseconds.

usage: python -P bench/serving.py MODEL TRAIN TEST [--queries 1000] [--rounds 5] [--threads 1]
           [--unrefined] [--json FILE]

MODEL is a file that `sparselsh train --model` has written. It is converted once per storage, with
1,000 of the training rows for calibration, saved and loaded again. The network itself, loaded from
MODEL, is measured beside them. Times are CPU microseconds per query (all threads of the process),
for single queries and in batches of 256; the contenders take turns, and the median of the rounds
is printed with the smallest and the largest. Queries are sparse rows of TEST. "same first label" is
the fraction of the rows of TEST whose first label is the one that every neuron in float32 gives.
"memory" is the peak of a process of its own that maps the file (the network: loads it) and answers
300 single queries; the interpreter and its packages are in it. Linux only.
"""
import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import scipy.sparse as sp

import sparselsh as sl

sys.path.insert(0, str(Path(__file__).parent))
from common import (
    child_environment,
    markdown_table,
    per_call,
    restart_with,
    run_child,
    spread,
    thread_environment,
    write_json,
)

STORAGES = ("float32", "bfloat16", "int8")
N_CALIBRATION = 1000
BATCH = 256
K = 5


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("train")
    parser.add_argument("test")
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--unrefined", action="store_true", help="drop the refinement first")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--child", metavar="QUERIES", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(serve(args)))
        return
    restart_with(thread_environment(args.threads))

    train, _ = sl.datasets.read_xmc(args.train)
    X, Y = sl.datasets.read_xmc(args.test)
    calibration = train[::max(1, train.shape[0] // N_CALIBRATION)]
    with tempfile.TemporaryDirectory() as folder:
        contenders = {"Network": (network(args), Path(args.model).stat().st_size)}
        for storage in STORAGES:
            path = Path(folder) / f"{storage}.safetensors"
            sl.InferenceNetwork.from_network(network(args), calibration, storage=storage,
                                             random_state=0, n_threads=args.threads).save(path)
            served = sl.InferenceNetwork.load(path, n_threads=args.threads)
            print(served.report, end="\n\n", file=sys.stderr)
            contenders[storage] = served, path.stat().st_size
        rows = measured(contenders, X, Y, args)
        few = Path(folder) / "queries.npz"
        sp.save_npz(few, X[:300])
        for row in rows:
            path = Path(folder) / f"{row['name']}.safetensors"
            command = [sys.executable, "-P", __file__, args.model if row["name"] == "Network"
                       else str(path), "-", "-", "--child", str(few)]
            command += ["--unrefined"] * args.unrefined
            row["memory"] = run_child(command, child_environment(args.threads))

    header = ("served as", "file, MB", "memory, MB", "P@1", "P@5", "same first label",
              "single, us", "batch, us")
    print(markdown_table(header, [
        (row["name"], f"{row['bytes'] / 1e6:.1f}", f"{row['memory']:.0f}", f"{row['p1']:.2%}",
         f"{row['p5']:.2%}", f"{row['same']:.2%}", shown(row["single"]), shown(row["batch"]))
        for row in rows]))
    if args.json:
        write_json(args.json, rows)


def serve(args):
    """Peak memory in MB of a process that serves single queries, the rows of a file."""
    X = sp.load_npz(args.child)
    try:
        net = sl.InferenceNetwork.load(args.model, mmap=True, n_threads=1)
    except ValueError:
        net = network(args)
    for i in range(X.shape[0]):
        net.topk(X[i:i + 1], K)
    # not ru_maxrss, which a child inherits from the process that starts it
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e6


def network(args):
    """The network of the file."""
    net = sl.load(args.model, n_threads=args.threads)
    if args.unrefined:
        net.refinement = None
    return net


def measured(contenders, X, Y, args):
    """One dict of figures per contender."""
    singles = [X[i:i + 1] for i in range(min(args.queries, X.shape[0]))]
    batches = [X[i:i + BATCH] for i in range(0, min(8 * BATCH, X.shape[0]) - BATCH + 1, BATCH)]
    times = {(name, kind): [] for name in contenders for kind in ("single", "batch")}
    for round_ in range(args.rounds + 1):  # the first one builds and warms up
        for name, (net, _) in contenders.items():
            for kind, parts, n in (("single", singles, 1), ("batch", batches, BATCH)):
                _, cpu = per_call(lambda x, net=net: net.topk(x, K), parts)
                if round_:
                    times[name, kind].append(1e6 * cpu / n)

    first = contenders["float32"][0].topk(X, 1, exact=True)[0][:, 0]
    rows = []
    for name, (net, size) in contenders.items():
        ids = net.topk(X, K)[0]
        rows.append({
            "name": name, "bytes": size, "p1": sl.metrics.precision_at_k(Y, ids, 1),
            "p5": sl.metrics.precision_at_k(Y, ids, 5), "same": float(np.mean(ids[:, 0] == first)),
            "single": spread(times[name, "single"]), "batch": spread(times[name, "batch"])})
    return rows


def shown(figures):
    """Median with the smallest and the largest."""
    return f"{figures['median']:.0f} ({figures['min']:.0f}-{figures['max']:.0f})"


if __name__ == "__main__":
    main()
