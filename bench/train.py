"""P@1 against seconds of training: sparselsh and its rivals on the same files, one after the other, on as many threads.

usage: python -P bench/train.py TRAIN TEST [options]        contenders, see --help
       python -P bench/train.py --step-cost                 CPU milliseconds a step by the number of labels

Design
------
a. Each contender runs in a process of its own, which gets its number of threads and, but for the library, which sets
   its waits itself, OMP_WAIT_POLICY=passive before it imports anything. (Threads that spin while they wait are counted
   as CPU seconds, on a busy machine by the dozen.)
b. Seconds are those of training alone: data are in memory before, answers come after. Omikuji reads its file itself,
   which is in its seconds; the reading takes it some tenths of a second.
c. With --repeats contenders take turns, so that all meet the same states of a shared machine; figures are medians.
d. The networks are alike: sparse input, a linear hidden layer, a softmax over the labels, Adam with a learning rate
   that falls to zero, the same start of the first layer. PyTorch's first layer is an EmbeddingBag with sparse gradients
   and SparseAdam, as its documentation has it for such input.
e. "sampled" computes the labels of a batch and labels at random, 4,096 together, the count of sparselsh's default.
   "adaptive" is AdaptiveLogSoftmaxWithLoss, which knows one label a sample: each epoch draws one of the sample's, which
   gives the same loss on average. Its labels are in order of frequency, cut at n/20 and n/4.
f. --max-batches N measures N batches of the contenders that compute every label and scales to the whole training: where
   an epoch would take an hour. Such a line says so, and has no P@1.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import time

CONTENDERS = {
    "sparselsh": "the defaults",
    "sparselsh-option": "with --density, --lr and --second-moment",
    "sparselsh-all": "density=1: every label",
    "torch-dense": "PyTorch: EmbeddingBag, Linear, softmax over all labels",
    "torch-sampled": "PyTorch: softmax over labels and shared random ones",
    "torch-adaptive": "PyTorch: AdaptiveLogSoftmaxWithLoss",
    "napkinxc": "napkinXC: probabilistic label tree, its defaults",
    "pecos": "PECOS: XR-Linear, its defaults",
    "omikuji": "Omikuji: Parabel, its defaults",
}
COMPUTES_ALL = {"sparselsh-all", "torch-dense"}
N_SAMPLED = 4096
STEP_LABELS = (67_009, 670_091)


class Stopwatch:
    """Seconds of the process and of the wall, while it runs."""

    def __init__(self):
        self.cpu = self.wall = 0.0

    def __enter__(self):
        self._begin = time.process_time(), time.perf_counter()
        return self

    def __exit__(self, *_):
        self.cpu += time.process_time() - self._begin[0]
        self.wall += time.perf_counter() - self._begin[1]


# --- the library ------------------------------------------------------------------------------------------


def run_sparselsh(name, args):
    import sparselsh as sl

    (X, Y), test = (sl.datasets.read_xmc(path) for path in (args.train, args.test))
    options, optimizer = {}, None
    if name == "sparselsh-all":
        options = {"density": 1}
    if name == "sparselsh-option":
        options = {} if args.density is None else {"density": args.density}
        optimizer = sl.Adam(args.lr or 1e-2, schedule="linear", second_moment=args.second_moment)
    net = sl.Network([sl.Linear(X.shape[1], args.hidden), sl.LSHLinear(args.hidden, Y.shape[1], **options)],
                     random_state=0, n_threads=args.threads)
    if name in COMPUTES_ALL and args.max_batches:
        n = args.max_batches * args.batch_size
        net.fit(X[:args.batch_size], Y[:args.batch_size], epochs=1, verbose=False)
        with Stopwatch() as watch:
            net.fit(X[:n], Y[:n], epochs=1, batch_size=args.batch_size, verbose=False)
        return scaled(watch, len(range(0, min(n, X.shape[0]), args.batch_size)), X.shape[0], args)
    net.fit(X, Y, optimizer=optimizer, epochs=args.epochs, batch_size=args.batch_size, validation=test, verbose=False)
    curve, cpu, wall = [], 0.0, 0.0
    for entry in net.history:
        cpu, wall = cpu + entry["cpu_seconds"], wall + entry["seconds"]
        curve.append((cpu, wall, entry["p_at_1"]))
    return {"curve": curve, "n_rows": X.shape[0]}


def scaled(watch, n_measured, n_rows, args):
    """What a whole training would take, from some batches."""
    factor = args.epochs * -(-n_rows // args.batch_size) / n_measured
    return {"curve": [(watch.cpu * factor, watch.wall * factor, None)], "n_rows": n_rows,
            "note": f"{n_measured} batches, scaled to {args.epochs} epochs"}


# --- PyTorch ----------------------------------------------------------------------------------------------


def run_torch(name, args):
    import numpy as np
    import torch

    from sparselsh import datasets
    from sparselsh._arrays import csr

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    (X, Y), (X_test, Y_test) = (map(csr.from_scipy, datasets.read_xmc(p)) for p in (args.train, args.test))
    n_rows = Y.shape[0]
    head = {"torch-dense": Dense, "torch-sampled": Sampled, "torch-adaptive": Adaptive}[name](args.hidden, Y, rng)
    bag = torch.nn.EmbeddingBag(X.shape[1], args.hidden, mode="sum", sparse=True)
    torch.nn.init.normal_(bag.weight, std=2.5 / args.hidden**0.5)
    bias = torch.nn.Parameter(torch.zeros(args.hidden))
    optimizers = [torch.optim.SparseAdam([bag.weight, *head.sparse], lr=args.torch_lr),
                  torch.optim.Adam([bias, *head.dense], lr=args.torch_lr)]

    def hidden(x):
        offsets = torch.from_numpy(x.indptr[:-1].astype(np.int32))
        return bag(torch.from_numpy(x.indices), offsets, per_sample_weights=torch.from_numpy(x.data)) + bias

    n_batches = -(-n_rows // args.batch_size)

    def train(rows, progress):
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = args.torch_lr * (1 - progress)
            optimizer.zero_grad()
        head.loss(hidden(X.take(rows)), Y.take(rows)).backward()
        for optimizer in optimizers:
            optimizer.step()

    def precision():
        hits = 0
        with torch.no_grad():
            for start in range(0, X_test.shape[0], 512):
                stop = min(start + 512, X_test.shape[0])
                best = head.best(hidden(X_test.slice(start, stop)))
                labels = Y_test.slice(start, stop)
                hits += sum(j in labels.indices[a:b] for j, a, b in
                            zip(best, labels.indptr[:-1], labels.indptr[1:], strict=True))
        return hits / X_test.shape[0]

    watch, curve = Stopwatch(), []
    if name in COMPUTES_ALL and args.max_batches:
        order = rng.permutation(n_rows)
        train(order[:args.batch_size], 0)  # the first pays for new memory
        starts = range(0, min(n_rows, args.max_batches * args.batch_size), args.batch_size)
        with watch:
            for start in starts:
                train(order[start:start + args.batch_size], 0)
        return scaled(watch, len(starts), n_rows, args)
    for epoch in range(args.epochs):
        order = rng.permutation(n_rows)
        with watch:
            for number in range(n_batches):
                rows = order[number * args.batch_size:(number + 1) * args.batch_size]
                train(rows, (epoch + number / n_batches) / args.epochs)
        curve.append((watch.cpu, watch.wall, precision()))
    return {"curve": curve, "n_rows": n_rows}


def softmax_loss(z, labels, columns):
    """Cross entropy against the uniform distribution over the labels of a sample, at `columns` of z."""
    import numpy as np
    import torch

    counts = np.diff(labels.indptr)
    rows = np.repeat(np.arange(len(counts)), counts)
    share = torch.from_numpy((1 / counts[rows]).astype(np.float32))
    some = torch.from_numpy((counts > 0).astype(np.float32))
    chosen = z[torch.from_numpy(rows), torch.from_numpy(columns)]
    return (torch.logsumexp(z, 1) @ some - chosen @ share) / len(counts)


class Dense:
    """Softmax over all labels."""

    def __init__(self, n_hidden, Y, rng):
        import torch

        self.out = torch.nn.Linear(n_hidden, Y.n_columns)
        self.sparse, self.dense = [], list(self.out.parameters())

    def loss(self, h, labels):
        return softmax_loss(self.out(h), labels, labels.indices.astype("int64"))

    def best(self, h):
        return self.out(h).argmax(1).numpy()


class Sampled:
    """Softmax over the labels of the batch and random ones."""

    def __init__(self, n_hidden, Y, rng):
        import torch

        self.n_labels, self.rng = Y.n_columns, rng
        out = torch.nn.Linear(n_hidden, Y.n_columns)
        self.weight, self.bias = out.weight, torch.nn.Parameter(out.bias.detach()[:, None])
        self.sparse, self.dense = [self.weight, self.bias], []

    def loss(self, h, labels):
        import numpy as np
        import torch

        n_random = max(0, min(N_SAMPLED, self.n_labels) - len(np.unique(labels.indices)))
        ids = np.unique(np.concatenate([labels.indices, self.rng.integers(self.n_labels, size=n_random)]))
        rows = torch.from_numpy(ids)
        weight = torch.nn.functional.embedding(rows, self.weight, sparse=True)
        bias = torch.nn.functional.embedding(rows, self.bias, sparse=True)
        return softmax_loss(h @ weight.T + bias[:, 0], labels, np.searchsorted(ids, labels.indices))

    def best(self, h):
        return (h @ self.weight.T + self.bias[:, 0]).argmax(1).numpy()


class Adaptive:
    """AdaptiveLogSoftmaxWithLoss over labels in order of frequency, one drawn for each sample."""

    def __init__(self, n_hidden, Y, rng):
        import numpy as np
        import torch

        n, self.rng = Y.n_columns, rng
        self.order = np.argsort(-np.bincount(Y.indices, minlength=n), kind="stable")
        self.rank = np.argsort(self.order)
        self.out = torch.nn.AdaptiveLogSoftmaxWithLoss(n_hidden, n, [n // 20, n // 4])
        self.sparse, self.dense = [], list(self.out.parameters())

    def loss(self, h, labels):
        import numpy as np
        import torch

        counts = np.diff(labels.indptr)
        some = np.flatnonzero(counts)
        chosen = labels.indices[labels.indptr[some] + self.rng.integers(counts[some])]
        return self.out(h[torch.from_numpy(some)], torch.from_numpy(self.rank[chosen])).loss

    def best(self, h):
        return self.order[self.out.predict(h).numpy()]


# --- trees of linear models -------------------------------------------------------------------------------


def run_tree(name, args):
    import tempfile

    import numpy as np
    import scipy.sparse as sp

    from sparselsh import datasets

    train, test = ([sp.csr_matrix(part) for part in datasets.read_xmc(path)] for path in (args.train, args.test))
    watch = Stopwatch()
    with tempfile.TemporaryDirectory() as folder:
        answer = {"napkinxc": napkinxc, "pecos": pecos, "omikuji": omikuji}[name](*train, args, folder, test[0], watch)
    Y_test = test[1]
    hits = np.mean([j in Y_test.indices[a:b] for j, a, b in
                    zip(answer, Y_test.indptr[:-1], Y_test.indptr[1:], strict=True)])
    return {"curve": [(watch.cpu, watch.wall, float(hits))], "n_rows": train[0].shape[0]}


def napkinxc(X, Y, args, folder, X_test, watch):
    from napkinxc.models import PLT

    labels = [Y.indices[a:b].tolist() for a, b in zip(Y.indptr[:-1], Y.indptr[1:], strict=True)]
    model = PLT(folder, threads=args.threads, verbose=False)
    with watch:
        model.fit(X, labels)
    return [row[0] if row else -1 for row in model.predict(X_test, top_k=1)]


def pecos(X, Y, args, folder, X_test, watch):
    from pecos.xmc import Indexer, LabelEmbeddingFactory
    from pecos.xmc.xlinear.model import XLinearModel

    with watch:
        chain = Indexer.gen(LabelEmbeddingFactory.create(Y, X), threads=args.threads)
        model = XLinearModel.train(X, Y, C=chain, threads=args.threads)
    return model.predict(X_test, only_topk=1, threads=args.threads).tocsr().indices


def omikuji(X, Y, args, folder, X_test, watch):
    import omikuji

    with watch:
        model = omikuji.Model.train_on_data(args.train, omikuji.Model.default_hyper_param(), args.threads)
    rows = ([*zip(X_test.indices[a:b].tolist(), X_test.data[a:b].tolist(), strict=True)]
            for a, b in zip(X_test.indptr[:-1], X_test.indptr[1:], strict=True))
    return [best[0][0] if (best := model.predict(row, top_k=1)) else -1 for row in rows]


# --- one process a contender ------------------------------------------------------------------------------


def child(name, args):
    """The report of a contender that runs in a new process; None if its package is missing."""
    # the library asks libgomp for short waits itself; the others would wait for milliseconds, on the CPU clock
    waits = {} if "sparselsh" in name or name == "step-cost" else {"OMP_WAIT_POLICY": "passive"}
    counts = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(args.threads))
    environment = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"} | waits | counts
    python = dict(pair.split("=", 1) for pair in args.python).get(name, sys.executable)
    done = subprocess.run([python, "-P", __file__, *sys.argv[1:], "--child", name],
                          env=environment, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
        print(f"{name}: {last}", file=sys.stderr)
        return None
    return json.loads(done.stdout.splitlines()[-1])


def run_child(name, args):
    run = run_tree if name in ("napkinxc", "pecos", "omikuji") else run_torch if "torch" in name else run_sparselsh
    report = step_cost(args) if name == "step-cost" else run(name, args)
    try:
        import resource

        report["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    except ImportError:
        pass
    print(json.dumps(report))


def median(reports):
    """One report of several: medians point by point of the curve, and the spread of CPU seconds."""
    curves = [report["curve"] for report in reports]
    points = [[None if None in values else statistics.median(values) for values in zip(*at, strict=True)]
              for at in zip(*curves, strict=True)]
    cpu = [curve[-1][0] for curve in curves]
    return reports[0] | {"curve": points, "cpu_spread": [min(cpu), max(cpu)]}


def measure(names, args):
    """Reports by name; contenders take turns."""
    runs = {name: [] for name in names}
    for repeat in range(args.repeats):
        for name, reports in runs.items():
            if repeat == 0 or reports:
                print(f"{name}, run {repeat + 1} of {args.repeats} ...", file=sys.stderr, flush=True)
                report = child(name, args)
                if report is not None:
                    reports.append(report)
    return {key: median(reports) for key, reports in runs.items() if reports}


# --- the cost of a step -----------------------------------------------------------------------------------


def step_cost(args):
    """CPU milliseconds of a training step by the number of labels, with as many neurons active."""
    import numpy as np
    import scipy.sparse as sp

    import sparselsh as sl

    rng = np.random.default_rng(0)
    n_features, size = 135_909, args.batch_size
    nets = {n: sl.Network([sl.Linear(n_features, args.hidden), sl.LSHLinear(args.hidden, n)], random_state=0,
                          n_threads=args.threads) for n in args.labels}
    milliseconds = {n: [] for n in nets}
    for _ in range(args.steps):
        X = sp.csr_array((np.full(75 * size, 75**-0.5, np.float32), rng.integers(n_features, size=75 * size),
                          np.arange(0, 75 * size + 1, 75)), shape=(size, n_features))
        for n, net in nets.items():
            labels = rng.integers(n, size=(size, 5))
            Y = sp.csr_array((np.ones(5 * size, np.float32), labels.ravel(), np.arange(0, 5 * size + 1, 5)),
                             shape=(size, n))
            begin = time.process_time()
            net.partial_fit(X, Y, batch_size=size)
            milliseconds[n].append(1e3 * (time.process_time() - begin))
    return {"steps": [{"labels": n, "median_ms": statistics.median(ms[1:]), "mean_ms": statistics.fmean(ms[1:]),
                       "first_ms": ms[0]} for n, ms in milliseconds.items()]}


# --- figures ----------------------------------------------------------------------------------------------


def table(header, rows, markdown):
    if markdown:
        lines = ["| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *rows)]
    else:
        widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
                 for row in (header, *rows)]
    print("\n".join(lines))


def show_training(reports, args):
    rows = []
    for name, report in reports.items():
        cpu, wall, p_at_1 = report["curve"][-1]
        spread = " to ".join(f"{s:.1f}" for s in report["cpu_spread"]) if args.repeats > 1 else "one run"
        shown = "-" if p_at_1 is None else f"{p_at_1:.1%}"
        peak = f"{report['peak_mb']:,.0f}" if "peak_mb" in report else "-"
        rows.append([name, str(args.threads), shown, f"{cpu:.1f}", spread, f"{wall:.1f}", peak, report.get("note", "")])
    table(["contender", "threads", "P@1", "CPU s", "spread", "wall s", "peak MB", "note"], rows, args.markdown)


def show_steps(report, args):
    rows = [[f"{step['labels']:,}", f"{step['median_ms']:.1f}", f"{step['mean_ms']:.1f}", f"{step['first_ms']:.0f}"]
            for step in report["steps"]]
    table(["labels", "ms of CPU a step, median", "mean, rebuilds included", "first step"], rows, args.markdown)


def plot(reports, path):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator, NullFormatter

    figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
    for axis, column, label in zip(axes, (0, 1), ("CPU seconds of training", "wall seconds of training"), strict=True):
        for name, report in reports.items():
            points = [(point[column], 100 * point[2]) for point in report["curve"] if point[2] is not None]
            if points:
                axis.plot(*zip(*points, strict=True), marker="o", label=name)
        axis.set(xlabel=label, xscale="log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("P@1 on the test rows, %")
    axes[1].legend(fontsize="small")
    figure.savefig(path, dpi=150)


def parse():
    names = "\n".join(f"  {name:<18}{text}" for name, text in CONTENDERS.items())
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], epilog=f"contenders:\n{names}",
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", nargs="?", help="XMC text")
    parser.add_argument("test", nargs="?", help="XMC text")
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--only", help="contenders, separated by commas")
    parser.add_argument("--density", type=float, help="of sparselsh-option")
    parser.add_argument("--lr", type=float, help="of sparselsh-option")
    parser.add_argument("--second-moment", choices=("element", "row"), default="element", help="of sparselsh-option")
    parser.add_argument("--torch-lr", type=float, default=1e-2, help="of PyTorch's contenders; default: 1e-2, ours")
    parser.add_argument("--max-batches", type=int, help="measure so many where every label is computed, and scale")
    parser.add_argument("--step-cost", action="store_true", help="CPU milliseconds a step by the number of labels")
    parser.add_argument("--labels", type=int, nargs="+", default=STEP_LABELS, help="of --step-cost")
    parser.add_argument("--steps", type=int, default=60, help="of --step-cost")
    parser.add_argument("--python", metavar="NAME=PATH", action="append", default=[],
                        help="another interpreter for a contender: libpecos 1.2.8 does not run with NumPy 2")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--plot", metavar="FILE", help="P@1 after each epoch against seconds")
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not args.step_cost and not (args.train and args.test):
        parser.error("give TRAIN and TEST, or --step-cost")
    args.names = args.only.split(",") if args.only else [
        name for name in CONTENDERS
        if name != "sparselsh-option" or args.density or args.lr or args.second_moment != "element"]
    if unknown := set(args.names) - CONTENDERS.keys():
        parser.error(f"no contender {', '.join(unknown)}; there are {', '.join(CONTENDERS)}")
    return args


def main():
    args = parse()
    if args.child:
        run_child(args.child, args)
        return
    if args.step_cost:
        result = child("step-cost", args)
        if result is None:
            sys.exit(1)
        show_steps(result, args)
    else:
        reports = measure(args.names, args)
        show_training(reports, args)
        if args.plot:
            plot(reports, args.plot)
        result = [{"name": name, "threads": args.threads} | report for name, report in reports.items()]
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump(result, file, indent=2)


if __name__ == "__main__":
    main()
