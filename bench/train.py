"""P@1 against seconds of training: sparselsh and PyTorch's networks on the same files and threads.

usage: python -P bench/train.py TRAIN TEST [options]        contenders: see --help
       python -P bench/train.py --step-cost                 the cost of a step by number of labels

How it measures
---------------
a. Each contender runs in a process of its own with the given number of threads. The processes of
   PyTorch get OMP_WAIT_POLICY=passive; sparselsh sets its waits itself. (Threads that spin while
   they wait would be counted as CPU seconds.)
b. Seconds are those of training alone: the data are in memory before, the test comes after. The
   batches of PyTorch's contenders are cut before their clock starts; sparselsh cuts its own on it.
c. With --repeats contenders take turns, so that all meet the same states of a shared machine.
   Figures are medians, with the smallest and the largest.
d. The networks are alike: sparse input, a linear hidden layer, a softmax over the labels, Adam with
   a learning rate that falls to zero, the same initialization of the first layer. PyTorch's first
   layer is an EmbeddingBag with sparse gradients and SparseAdam, as its documentation advises.
e. "torch-sampled" computes the labels of a batch and labels at random, 4,096 together, as many as
   the default of sparselsh. "torch-adaptive" is AdaptiveLogSoftmaxWithLoss, which takes one label
   per row: each epoch draws one of the labels of a row, which gives the same loss on average. Its
   labels are in order of frequency, cut at n/20 and n/4.
f. --max-batches N measures N batches of the contenders that compute every label and scales to the
   whole training, for sets on which an epoch takes an hour. Such a line says so and has no P@1.
"""
import argparse
import statistics
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from common import (
    Stopwatch,
    child_environment,
    log_x_axis,
    markdown_table,
    peak_megabytes,
    run_child,
    spread,
    text_table,
    write_json,
)

CONTENDERS = {
    "sparselsh": "the defaults of Network.fit",
    "sparselsh-option": "with --density, --lr and --second-moment",
    "sparselsh-all": "density=1: every label",
    "torch-dense": "PyTorch: EmbeddingBag, Linear, softmax over all labels",
    "torch-sampled": "PyTorch: softmax over the labels of the batch and random ones",
    "torch-adaptive": "PyTorch: AdaptiveLogSoftmaxWithLoss",
}
COMPUTES_ALL = {"sparselsh-all", "torch-dense"}
N_SAMPLED = 4096
STEP_LABELS = (67_009, 670_091)


# --- the library --------------------------------------------------------------------------------


def run_sparselsh(name, args):
    import sparselsh as sl

    (X, Y), test = (sl.datasets.read_xmc(path) for path in (args.train, args.test))
    options, optimizer = {}, None
    if name == "sparselsh-all":
        options = {"density": 1}
    if name == "sparselsh-option":
        options = {} if args.density is None else {"density": args.density}
        optimizer = sl.Adam(args.lr or 1e-2, schedule="linear", second_moment=args.second_moment)
    net = sl.Network([sl.Linear(X.shape[1], args.hidden),
                      sl.LSHLinear(args.hidden, Y.shape[1], **options)],
                     random_state=0, n_threads=args.threads)

    if name in COMPUTES_ALL and args.max_batches:
        n = args.max_batches * args.batch_size
        # the first batch pays for new memory
        net.fit(X[:args.batch_size], Y[:args.batch_size], epochs=1, verbose=False)
        with Stopwatch() as watch:
            net.fit(X[:n], Y[:n], epochs=1, batch_size=args.batch_size, verbose=False)
        n_measured = len(range(0, min(n, X.shape[0]), args.batch_size))
        return scaled(watch, n_measured, X.shape[0], args)

    net.fit(X, Y, optimizer=optimizer, epochs=args.epochs, batch_size=args.batch_size,
            validation=test, verbose=False)
    curve, cpu, wall = [], 0.0, 0.0
    for entry in net.history:
        cpu, wall = cpu + entry["cpu_seconds"], wall + entry["seconds"]
        curve.append((cpu, wall, entry["p_at_1"]))
    return {"curve": curve, "n_rows": X.shape[0]}


def scaled(watch, n_measured, n_rows, args):
    """What the whole training would take, from some batches."""
    factor = args.epochs * -(-n_rows // args.batch_size) / n_measured
    return {"curve": [(watch.cpu * factor, watch.wall * factor, None)], "n_rows": n_rows,
            "note": f"scaled from {n_measured} batches to all epochs"}


# --- PyTorch ------------------------------------------------------------------------------------


def run_torch(name, args):
    import torch
    from torch_networks import bag_inputs, embedding_bag, precision_at_1, set_rate

    from sparselsh import datasets

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    (X, Y), (X_test, Y_test) = (datasets.read_xmc(path) for path in (args.train, args.test))
    n_rows = Y.shape[0]
    heads = {"torch-dense": Dense, "torch-sampled": Sampled, "torch-adaptive": Adaptive}
    head = heads[name](args.hidden, Y, rng)
    bag = embedding_bag(X.shape[1], args.hidden)
    bias = torch.nn.Parameter(torch.zeros(args.hidden))
    optimizers = [torch.optim.SparseAdam([bag.weight, *head.sparse], lr=args.torch_lr),
                  torch.optim.Adam([bias, *head.dense], lr=args.torch_lr)]

    def hidden(inputs):
        ids, offsets, weights = inputs
        return bag(ids, offsets, per_sample_weights=weights) + bias

    def batches():
        """(inputs, labels) of an epoch, shuffled."""
        order = rng.permutation(n_rows)
        parts = [order[i:i + args.batch_size] for i in range(0, n_rows, args.batch_size)]
        return [(bag_inputs(X[rows]), Y[rows]) for rows in parts]

    def train(inputs, labels, progress):
        set_rate(optimizers, args.torch_lr * (1 - progress))
        for optimizer in optimizers:
            optimizer.zero_grad()
        head.loss(hidden(inputs), labels).backward()
        for optimizer in optimizers:
            optimizer.step()

    def precision():
        starts = range(0, X_test.shape[0], 512)
        with torch.no_grad():
            best = [head.best(hidden(bag_inputs(X_test[start:start + 512]))) for start in starts]
        return precision_at_1(np.concatenate(best), Y_test)

    watch, curve = Stopwatch(), []
    if name in COMPUTES_ALL and args.max_batches:
        parts = batches()
        train(*parts[0], 0)  # the first batch pays for new memory
        parts = parts[:args.max_batches]
        with watch:
            for part in parts:
                train(*part, 0)
        return scaled(watch, len(parts), n_rows, args)
    for epoch in range(args.epochs):
        parts = batches()
        with watch:
            for number, part in enumerate(parts):
                train(*part, (epoch + number / len(parts)) / args.epochs)
        curve.append((watch.cpu, watch.wall, precision()))
    return {"curve": curve, "n_rows": n_rows}


class Dense:
    """Softmax over all labels."""

    def __init__(self, n_hidden, Y, rng):
        import torch

        self.out = torch.nn.Linear(n_hidden, Y.shape[1])
        self.sparse, self.dense = [], list(self.out.parameters())

    def loss(self, h, labels):
        from torch_networks import softmax_loss

        return softmax_loss(self.out(h), labels, labels.indices.astype("int64"))

    def best(self, h):
        return self.out(h).argmax(1).numpy()


class Sampled:
    """Softmax over the labels of the batch and random ones."""

    def __init__(self, n_hidden, Y, rng):
        import torch

        self.rng = rng
        out = torch.nn.Linear(n_hidden, Y.shape[1])
        self.weight, self.bias = out.weight, torch.nn.Parameter(out.bias.detach()[:, None])
        self.sparse, self.dense = [self.weight, self.bias], []

    def loss(self, h, labels):
        import torch
        from torch_networks import sampled_labels, softmax_loss

        ids = sampled_labels(labels, N_SAMPLED, self.rng)
        rows = torch.from_numpy(ids)
        weight = torch.nn.functional.embedding(rows, self.weight, sparse=True)
        bias = torch.nn.functional.embedding(rows, self.bias, sparse=True)
        columns = np.searchsorted(ids, labels.indices)
        return softmax_loss(h @ weight.T + bias[:, 0], labels, columns)

    def best(self, h):
        return (h @ self.weight.T + self.bias[:, 0]).argmax(1).numpy()


class Adaptive:
    """AdaptiveLogSoftmaxWithLoss over labels in order of frequency, one drawn for each row."""

    def __init__(self, n_hidden, Y, rng):
        import torch

        n, self.rng = Y.shape[1], rng
        self.order = np.argsort(-np.bincount(Y.indices, minlength=n), kind="stable")
        self.rank = np.argsort(self.order)
        self.out = torch.nn.AdaptiveLogSoftmaxWithLoss(n_hidden, n, [n // 20, n // 4])
        self.sparse, self.dense = [], list(self.out.parameters())

    def loss(self, h, labels):
        import torch

        counts = np.diff(labels.indptr)
        rows = np.flatnonzero(counts)
        chosen = labels.indices[labels.indptr[rows] + self.rng.integers(counts[rows])]
        return self.out(h[torch.from_numpy(rows)], torch.from_numpy(self.rank[chosen])).loss

    def best(self, h):
        return self.order[self.out.predict(h).numpy()]


# --- one process per contender ------------------------------------------------------------------


def child(name, args):
    """The report of a contender, which runs in a new process."""
    passive = not (name == "step-cost" or "sparselsh" in name)
    return run_child([sys.executable, "-P", __file__, *sys.argv[1:], "--child", name],
                     child_environment(args.threads, passive))


def run_in_child(name, args):
    import json

    if name == "step-cost":
        report = step_cost(args)
    else:
        report = (run_torch if "torch" in name else run_sparselsh)(name, args)
    print(json.dumps(report | {"peak_mb": peak_megabytes()}))


def measure(args):
    """{"contenders": {name: report}, "left_out": {name: why}}; contenders take turns."""
    runs, left_out = {name: [] for name in args.names}, {}
    for repeat in range(args.repeats):
        for name, reports in runs.items():
            if name in left_out:
                continue
            print(f"{name}, run {repeat + 1} of {args.repeats}", file=sys.stderr, flush=True)
            try:
                reports.append(child(name, args))
            except RuntimeError as error:
                left_out[name] = str(error)
    contenders = {name: median(reports) for name, reports in runs.items() if reports}
    return {"threads": args.threads, "hidden": args.hidden, "batch_size": args.batch_size,
            "epochs": args.epochs, "contenders": contenders, "left_out": left_out}


def median(reports):
    """One report from several: medians point by point of the curve, and the spread at its end."""
    curves = [report["curve"] for report in reports]
    points = [[None if None in values else statistics.median(values)
               for values in zip(*points, strict=True)] for points in zip(*curves, strict=True)]
    ends = zip(*(curve[-1] for curve in curves), strict=True)
    cpu, wall, p_at_1 = (None if None in values else spread(values) for values in ends)
    return reports[0] | {"curve": points, "cpu_s": cpu, "wall_s": wall, "p_at_1": p_at_1}


# --- the cost of a step -------------------------------------------------------------------------


def step_cost(args):
    """CPU milliseconds of a training step by number of labels, with as many active neurons."""
    import scipy.sparse as sp

    import sparselsh as sl

    rng = np.random.default_rng(0)
    n_features, size = 135_909, args.batch_size
    nets = {n: sl.Network([sl.Linear(n_features, args.hidden), sl.LSHLinear(args.hidden, n)],
                          random_state=0, n_threads=args.threads) for n in args.labels}
    milliseconds = {n: [] for n in nets}

    def random_rows(n_columns, per_row, value):
        indices = rng.integers(n_columns, size=per_row * size)
        indptr = np.arange(0, per_row * size + 1, per_row)
        values = np.full(per_row * size, value, np.float32)
        return sp.csr_array((values, indices, indptr), shape=(size, n_columns))

    for _ in range(args.steps):
        X = random_rows(n_features, 75, 75**-0.5)
        for n, net in nets.items():
            Y = random_rows(n, 5, 1)
            begin = time.process_time()
            net.partial_fit(X, Y, batch_size=size)
            milliseconds[n].append(1e3 * (time.process_time() - begin))
    return {"steps": [{"labels": n, "median_ms": statistics.median(ms[1:]),
                       "mean_ms": statistics.fmean(ms[1:]), "first_ms": ms[0]}
                      for n, ms in milliseconds.items()]}


# --- tables and the chart -----------------------------------------------------------------------


HEADER = ["contender", "P@1, %", "training, CPU s", "min to max", "wall s", "peak memory, MB",
          "note"]


def lines(document):
    """The rows of the table."""
    rows = []
    for name, report in document["contenders"].items():
        cpu, wall, p_at_1 = report["cpu_s"], report["wall_s"], report["p_at_1"]
        some = f"{cpu['min']:.1f} to {cpu['max']:.1f}" if cpu["n"] > 1 else "one run"
        rows.append([name, "-" if p_at_1 is None else f"{100 * p_at_1['median']:.1f}",
                     f"{cpu['median']:.1f}", some, f"{wall['median']:.1f}",
                     f"{report['peak_mb']:,.0f}" if report["peak_mb"] else "-",
                     report.get("note", "")])
    return rows


def table(document):
    """The figures as Markdown."""
    notes = [f"- {name}: {why}" for name, why in document["left_out"].items()]
    return "\n".join([markdown_table(HEADER, lines(document)), *([""] if notes else []), *notes])


def plot(document, path):
    """P@1 after each epoch against seconds of training."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True, layout="constrained")
    for ax, column, label in zip(axes, (0, 1), ("CPU", "wall"), strict=True):
        for name, report in document["contenders"].items():
            points = [(p[column], 100 * p[2]) for p in report["curve"] if p[2] is not None]
            if points:
                ax.plot(*zip(*points, strict=True), marker="o", label=name)
        ax.set(xlabel=f"{label} seconds of training")
        log_x_axis(ax)
    axes[0].set_ylabel("P@1 on the test rows, %")
    axes[1].legend(fontsize="small")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def arguments():
    names = "\n".join(f"  {name:<18}{text}" for name, text in CONTENDERS.items())
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0],
                                     epilog=f"contenders:\n{names}",
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
    parser.add_argument("--second-moment", choices=("element", "row"), default="element",
                        help="of sparselsh-option")
    parser.add_argument("--torch-lr", type=float, default=1e-2,
                        help="of PyTorch's contenders; the default is that of sparselsh")
    parser.add_argument("--max-batches", type=int,
                        help="measure so many batches where every label is computed, and scale")
    parser.add_argument("--step-cost", action="store_true",
                        help="CPU milliseconds per step by number of labels")
    parser.add_argument("--labels", type=int, nargs="+", default=STEP_LABELS,
                        help="of --step-cost")
    parser.add_argument("--steps", type=int, default=60, help="of --step-cost")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--plot", metavar="FILE", help="P@1 after each epoch against seconds")
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not args.step_cost and not (args.train and args.test):
        parser.error("give TRAIN and TEST, or --step-cost")
    has_options = args.density or args.lr or args.second_moment != "element"
    args.names = args.only.split(",") if args.only else [
        name for name in CONTENDERS if name != "sparselsh-option" or has_options]
    if unknown := set(args.names) - CONTENDERS.keys():
        parser.error(f"--only: no contender {', '.join(sorted(unknown))}; "
                     f"there are {', '.join(CONTENDERS)}")
    return args


def main():
    args = arguments()
    if args.child:
        run_in_child(args.child, args)
        return
    if args.step_cost:
        document = child("step-cost", args)
        rows = [[f"{step['labels']:,}", f"{step['median_ms']:.1f}", f"{step['mean_ms']:.1f}",
                 f"{step['first_ms']:.0f}"] for step in document["steps"]]
        header = ["labels", "CPU ms per step, median", "mean, with rebuilds", "first step"]
        print((markdown_table if args.markdown else text_table)(header, rows))
    else:
        document = measure(args)
        print(table(document) if args.markdown else text_table(HEADER, lines(document)))
        if args.plot:
            plot(document, args.plot)
    if args.json:
        write_json(args.json, document)


if __name__ == "__main__":
    main()
