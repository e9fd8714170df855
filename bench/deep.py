"""Deep sparse networks: accuracy, seconds and multiply-adds, beside dense ones.

usage: python -P bench/deep.py mnist TRAIN TEST    784-1000x5-10 at a density of 7.5 %, and dense
       python -P bench/deep.py wide TRAIN TEST     784-8192-8192-10 at 5 % and 1 %, and dense
       python -P bench/deep.py slide TRAIN TEST    SLIDE's settings on XMC text: DWTA, K = 6, L = 50
       options: --threads N --epochs N --lr LR --seed N --only NAMES --max-batches N
                --json FILE --plot FILE

TRAIN and TEST are XMC text; MNIST's values are divided by 255 and the mean of the training rows is
subtracted. "dense" is PyTorch. Each contender runs in a process of its own with
OMP_WAIT_POLICY=passive. --max-batches N measures N batches of the dense network, after one that
pays for new memory, and scales to an epoch; such a line has no accuracy. Seconds are those of
training alone.

The multiply-adds of each layer are counted by `Network.profile` over an epoch of the trained
network, as a fraction of those of a dense layer: with hashing and rebuilds, and in brackets the
products alone.
"""
import argparse
import itertools
import json
import sys
import time
from pathlib import Path

import numpy as np

import sparselsh as sl

sys.path.insert(0, str(Path(__file__).parent))
from common import child_environment, markdown_table, run_child, write_json

WIDE = {"sparse 5 %": 0.05, "sparse 1 %": 0.01}
CONTENDERS = {"mnist": ("sparse", "dense"), "wide": (*WIDE, "dense"), "slide": ("sparse",)}
BATCH = {"mnist": 1280, "wide": 512, "slide": 128}
LR = {"mnist": 8e-3, "wide": 2e-3, "slide": 7e-3}
LR_DENSE = {"mnist": 2e-3, "wide": 5e-4}
WEIGHT_DECAY = 0.05
EPOCHS = {"mnist": 5, "wide": 3, "slide": 15}
HIDDEN = {"mnist": [1000] * 5, "wide": [8192] * 2}


def load(args):
    """(X, Y, X_test, Y_test); digits as class ids and dense rows, less the mean training row."""
    (X, Y), (X_test, Y_test) = (sl.datasets.read_xmc(path) for path in (args.train, args.test))
    if args.what == "slide":
        return X, Y, X_test, Y_test
    X, X_test = (np.ascontiguousarray(A.toarray(), np.float32) / 255 for A in (X, X_test))
    mean = X.mean(axis=0)
    return X - mean, Y.indices, X_test - mean, Y_test.indices


def sparse_layers(what, name, n_in, n_out):
    """The layers of our contenders."""
    if what == "slide":
        return [sl.Linear(n_in, 128),
                sl.LSHLinear(128, n_out, density=0.005, active="sample",
                             family=sl.DWTA(bins=6, tables=50, bin_size=8), n_probes=8,
                             rebuild=sl.rebuild.Exponential(50, 0.1))]
    if what == "mnist":
        options = {"density": 0.075, "oversample": 6, "rebuild": sl.rebuild.Exponential(15, 0.25)}
        # layers that are sparse on both sides hash, even where another plan would be faster:
        # this benchmark counts their multiply-adds
        first, later = "exact", "gather"
    else:
        options = {"density": WIDE[name], "oversample": 6}
        first = later = "auto"
    widths = [n_in, *HIDDEN[what]]
    plans = [first, *[later] * (len(widths) - 2)]
    hidden = [sl.LSHLinear(a, b, activation="relu", plan=plan, **options)
              for (a, b), plan in zip(itertools.pairwise(widths), plans, strict=True)]
    return [*hidden, sl.Linear(widths[-1], n_out)]


def cycle():
    """The one cycle of digits, ours and PyTorch's.

    It starts at a fifth of the peak, because 235 steps are few to warm up.
    """
    return sl.schedules.OneCycle(start=0.2)


def run_ours(name, args):
    X, Y, X_test, Y_test = load(args)
    n_out = 10 if args.what != "slide" else Y.shape[1]
    net = sl.Network(sparse_layers(args.what, name, X.shape[1], n_out), random_state=args.seed,
                     n_threads=args.threads)
    if args.what == "slide":
        optimizer = sl.Adam(args.lr, schedule="linear", second_moment="row")
    else:
        optimizer = sl.Adam(args.lr, weight_decay=WEIGHT_DECAY, schedule=cycle())
    net.fit(X, Y, optimizer=optimizer, epochs=args.epochs, batch_size=args.batch_size,
            validation=(X_test, Y_test), verbose=False)
    result = {"seconds": [entry["seconds"] for entry in net.history],
              "cpu": [entry["cpu_seconds"] for entry in net.history],
              "accuracy": [entry["p_at_1"] for entry in net.history],
              "loss": [entry["loss"] for entry in net.history]}
    if args.what != "slide":
        profile = net.profile(X, Y, batch_size=args.batch_size, steps=None)
        print(profile, file=sys.stderr, flush=True)
        result["fractions"] = [row["share"] for row in profile.rows]
        macs = [row["multiply_adds"] for row in profile.rows]
        result["product_fractions"] = [
            fraction * (1 - of["hashing"] / sum(of.values()))
            for fraction, of in zip(result["fractions"], macs, strict=True)]
    return result


def run_torch(args):
    """PyTorch dense, as one writes it: Linear, ReLU, cross entropy, AdamW and OneCycleLR."""
    import torch

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    X, Y, X_test, Y_test = load(args)
    modules = []
    for a, b in itertools.pairwise([X.shape[1], *HIDDEN[args.what], 10]):
        modules += [torch.nn.Linear(a, b), torch.nn.ReLU()]
    net = torch.nn.Sequential(*modules[:-1])
    optimizer = torch.optim.AdamW(net.parameters(), lr=args.lr, weight_decay=WEIGHT_DECAY)
    n_batches = -(-len(X) // args.batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, args.lr, total_steps=args.epochs * n_batches + 1, div_factor=1 / cycle().start)
    X, X_test = torch.from_numpy(X), torch.from_numpy(X_test)
    Y = torch.from_numpy(Y.astype(np.int64))

    def train(batches):
        """Mean loss, wall and CPU seconds of some batches."""
        losses, begin = [], (time.perf_counter(), time.process_time())
        for rows in batches:
            loss = torch.nn.functional.cross_entropy(net(X[rows]), Y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        return (float(np.mean(losses)), time.perf_counter() - begin[0],
                time.process_time() - begin[1])

    result = {"seconds": [], "cpu": [], "accuracy": [], "loss": []}
    for _ in range(args.epochs):
        batches = torch.randperm(len(X)).split(args.batch_size)
        if args.max_batches:
            batches = batches[:args.max_batches + 1]
            train(batches[:1])
            _, wall, cpu = train(batches[1:])
            factor = n_batches / (len(batches) - 1)
            return {"seconds": [wall * factor], "cpu": [cpu * factor],
                    "note": f"scaled from {len(batches) - 1} batches to an epoch"}
        loss, wall, cpu = train(batches)
        with torch.no_grad():
            best = torch.cat([net(part).argmax(1) for part in X_test.split(1000)]).numpy()
        for key, value in (("seconds", wall), ("cpu", cpu), ("loss", loss),
                           ("accuracy", float((best == Y_test).mean()))):
            result[key].append(value)
        print(f"  dense: {result['accuracy'][-1]:.4f}", file=sys.stderr, flush=True)
    return result


def table(document):
    """The figures as Markdown."""
    rows = []
    for name, result in document["contenders"].items():
        accuracy = ", ".join(f"{100 * a:.2f}" for a in result.get("accuracy", ()))
        cpu, wall = result["cpu"], result["seconds"]
        some = f"{min(cpu):.1f} to {max(cpu):.1f}" if len(cpu) > 1 else "-"
        fractions = ", ".join(
            f"{100 * all_:.2f} ({100 * products:.2f})" for all_, products in zip(
                result.get("fractions", ()), result.get("product_fractions", ()), strict=True))
        rows.append([name, f"{np.median(cpu):.1f}", some, f"{np.median(wall):.1f}",
                     accuracy or result.get("note", "-"), fractions or "-"])
    notes = [f"- {name}: {why}" for name, why in document["left_out"].items()]
    header = ["network", "CPU s per epoch", "min to max", "wall s per epoch",
              "test accuracy after each epoch, %",
              "multiply-adds by layer, % of dense (products alone)"]
    return "\n".join([markdown_table(header, rows), *([""] if notes else []), *notes])


def plot(document, path):
    """Test accuracy after each epoch against CPU seconds."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots(figsize=(6, 3.4), layout="constrained")
    for name, result in document["contenders"].items():
        if "accuracy" in result:
            ax.plot(np.cumsum(result["cpu"]), 100 * np.array(result["accuracy"]), marker="o",
                    label=name)
    ax.set(xlabel="CPU seconds of training", ylabel="test accuracy, %")
    ax.grid(alpha=0.3)
    ax.legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main():
    """Run the contenders one after the other and print a table."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=tuple(CONTENDERS))
    parser.add_argument("train")
    parser.add_argument("test")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--lr", type=float, help="of all; else LR, and LR_DENSE for PyTorch")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="names, separated by commas")
    parser.add_argument("--max-batches", type=int, help="of the dense network")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--plot", metavar="FILE")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    rates = LR_DENSE if args.child == "dense" else LR
    for name, values in (("batch_size", BATCH), ("lr", rates), ("epochs", EPOCHS)):
        if getattr(args, name) is None:
            setattr(args, name, values[args.what])
    if args.child:
        report = run_torch(args) if args.child == "dense" else run_ours(args.child, args)
        print(json.dumps(report))
        return

    names = args.only.split(",") if args.only else CONTENDERS[args.what]
    document = {"what": args.what, "threads": args.threads, "epochs": args.epochs,
                "contenders": {}, "left_out": {}}
    for name in names:
        print(name, file=sys.stderr, flush=True)
        try:
            document["contenders"][name] = run_child(
                [sys.executable, "-P", __file__, *sys.argv[1:], "--child", name],
                child_environment(args.threads))
        except RuntimeError as error:
            document["left_out"][name] = str(error)
    print(table(document))
    if args.json:
        write_json(args.json, document)
    if args.plot:
        plot(document, args.plot)


if __name__ == "__main__":
    main()
