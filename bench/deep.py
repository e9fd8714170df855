"""Deep sparse networks: accuracy, seconds and multiply-adds, beside dense ones.

usage: python -P bench/deep.py mnist TRAIN TEST         784-1000x5-10 at 7.5 %, and dense; loss curves, shares of a step
       python -P bench/deep.py wide TRAIN TEST          784-8192-8192-10 at 5 % and 1 %, and PyTorch dense
       python -P bench/deep.py slide TRAIN TEST         SLIDE's settings on XMC text: DWTA, K = 6, L = 50
       options: --threads N --epochs N --lr LR --seed N --only NAMES --max-batches N --json FILE --plot FILE

TRAIN and TEST are XMC text; MNIST's values are divided by 255 and the mean of the training rows subtracted. Each
contender runs in a process of its own with OMP_WAIT_POLICY=passive. --max-batches N measures N batches, after one
that pays for new memory, and scales to an epoch: for contenders whose epoch would take minutes; such a line has no
accuracy. Seconds are those of training alone. Behind the accuracies stand the multiply-adds of each layer over the
training as a share of a dense one's, hashing and rebuilds included, and in brackets those of the products alone.
"""
import argparse
import itertools
import json
import os
import subprocess
import sys
import time

WIDE = {"sparse 5 %": 0.05, "sparse 1 %": 0.01}
CONTENDERS = {"mnist": ("sparse", "dense"), "wide": (*WIDE, "dense"), "slide": ("sparse",)}
BATCH = {"mnist": 1280, "wide": 512, "slide": 128}
LR = {"mnist": 8e-3, "wide": 2e-3, "slide": 7e-3}
LR_DENSE = {"mnist": 2e-3, "wide": 5e-4}
WEIGHT_DECAY = 0.05
EPOCHS = {"mnist": 5, "wide": 3, "slide": 15}


def load(args):
    """(X, Y) of both files; digits as class ids and dense rows, less the mean of the training rows."""
    import numpy as np

    from sparselsh import datasets

    (X, Y), (X_test, Y_test) = (datasets.read_xmc(path) for path in (args.train, args.test))
    if args.what == "slide":
        return X, Y, X_test, Y_test
    to_dense = [np.ascontiguousarray(A.toarray(), np.float32) / 255 for A in (X, X_test)]
    mean = to_dense[0].mean(axis=0)
    return to_dense[0] - mean, Y.indices, to_dense[1] - mean, Y_test.indices


def sparse_layers(what, name, n_in, n_out):
    """The layers of our contenders."""
    import sparselsh as sl

    if what == "slide":
        return [sl.Linear(n_in, 128),
                sl.LSHLinear(128, n_out, density=0.005, active="sample", family=sl.DWTA(bins=6, tables=50, bin_size=8),
                             n_probes=8, rebuild=sl.rebuild.Exponential(50, 0.1))]
    widths = [n_in, *([1000] * 5 if what == "mnist" else [8192] * 2)]
    options = {"density": 1}
    if what == "mnist" and name == "sparse":
        options = {"density": 0.075, "oversample": 6, "rebuild": sl.rebuild.Exponential(15, 0.25)}
    elif what == "wide":
        options = {"density": WIDE[name], "oversample": 6}
    # layers that are sparse on both sides hash, whatever would be quickest: their multiply-adds are the question
    later = "gather" if what == "mnist" and name == "sparse" else "auto"
    plans = ["exact" if later == "gather" else "auto", *[later] * (len(widths) - 2)]
    hidden = [sl.LSHLinear(a, b, activation="relu", plan=plan, **options)
              for (a, b), plan in zip(itertools.pairwise(widths), plans, strict=True)]
    return [*hidden, sl.Linear(widths[-1], n_out)]


def cycle():
    """The one cycle of digits, ours and PyTorch's: a start at a fifth of the peak, as 235 steps are few to warm up."""
    import sparselsh as sl

    return sl.schedules.OneCycle(start=0.2)


def run_ours(name, args):
    import sparselsh as sl
    from sparselsh.profiling import Profile, Tally

    X, Y, X_test, Y_test = load(args)
    n_out = 10 if args.what != "slide" else Y.shape[1]
    net = sl.Network(sparse_layers(args.what, name, X.shape[1], n_out), random_state=args.seed, n_threads=args.threads)
    if args.what == "slide":
        optimizer = sl.Adam(args.lr, schedule="linear", second_moment="row")
    else:
        optimizer = sl.Adam(args.lr, weight_decay=WEIGHT_DECAY, schedule=cycle())
    if args.max_batches:
        size = args.batch_size
        net.fit(X[:size], Y[:size], optimizer=optimizer, epochs=1, batch_size=size, verbose=False)
        n = args.max_batches * size
        net.fit(X[:n], Y[:n], optimizer=optimizer, epochs=1, batch_size=size, verbose=False)
        last = net.history[-1]
        factor = X.shape[0] / n
        return {"seconds": last["seconds"] * factor, "cpu": last["cpu_seconds"] * factor, "note": f"{n} rows, scaled"}
    losses = []
    step = net._train_step
    tallies = [Tally(optimizer.n_states) for _ in net.layers] if args.what != "slide" and name != "dense" else None
    net._train_step = lambda *a: losses.append(step(*a, tallies=tallies)) or losses[-1]
    net.fit(X, Y, optimizer=optimizer, epochs=args.epochs, batch_size=args.batch_size, validation=(X_test, Y_test),
            verbose=False)
    del net._train_step
    result = {"seconds": sum(entry["seconds"] for entry in net.history) / args.epochs,
              "cpu": sum(entry["cpu_seconds"] for entry in net.history) / args.epochs,
              "accuracy": [entry["p_at_1"] for entry in net.history], "losses": [loss for loss, _ in losses]}
    if tallies:
        # of the whole training, first tables and rebuilds included
        profile = Profile(net.layers, tallies, len(losses), args.batch_size, tallies[0].seconds["update"])
        print(profile, file=sys.stderr, flush=True)
        result["shares"] = [row["share"] for row in profile.rows]
        result["products"] = [1 - row["multiply_adds"]["hashing"] / sum(row["multiply_adds"].values())
                              for row in profile.rows]
        if args.plot:
            profile.plot().figure.savefig(f"{args.plot}.profile.png", dpi=120)
    return result


def run_torch(name, args):
    """PyTorch dense, as one writes it: Linear, ReLU, cross entropy, AdamW and OneCycleLR."""
    import numpy as np
    import torch

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    X, Y, X_test, Y_test = load(args)
    widths = [X.shape[1], *([1000] * 5 if args.what == "mnist" else [8192] * 2), 10]
    modules = []
    for a, b in itertools.pairwise(widths):
        modules += [torch.nn.Linear(a, b), torch.nn.ReLU()]
    net = torch.nn.Sequential(*modules[:-1])
    optimizer = torch.optim.AdamW(net.parameters(), lr=args.lr, weight_decay=WEIGHT_DECAY)
    n_batches = -(-len(X) // args.batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, total_steps=args.epochs * n_batches + 1,
                                                   div_factor=1 / cycle().start)
    X, X_test, Y = torch.from_numpy(X), torch.from_numpy(X_test), torch.from_numpy(Y.astype(np.int64))
    losses, accuracy, wall, cpu = [], [], 0.0, 0.0
    for _ in range(args.epochs):
        batches = torch.randperm(len(X)).split(args.batch_size)
        if args.max_batches:
            batches = batches[:args.max_batches + 1]
        for number, rows in enumerate(batches):
            if number == 1 and args.max_batches:
                wall = cpu = 0.0
            begin = time.perf_counter(), time.process_time()
            loss = torch.nn.functional.cross_entropy(net(X[rows]), Y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
            wall, cpu = wall + time.perf_counter() - begin[0], cpu + time.process_time() - begin[1]
        if args.max_batches:
            factor = n_batches / args.max_batches
            return {"seconds": wall * factor, "cpu": cpu * factor, "note": f"{args.max_batches} batches, scaled"}
        with torch.no_grad():
            best = torch.cat([net(part).argmax(1) for part in X_test.split(1000)]).numpy()
        accuracy.append(float((best == Y_test).mean()))
        print(f"  {name}: {accuracy[-1]:.4f}", file=sys.stderr, flush=True)
    return {"seconds": wall / args.epochs, "cpu": cpu / args.epochs, "accuracy": accuracy, "losses": losses}


def plot(results, path):
    """Loss curves of the contenders."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt
    import numpy as np

    _, ax = plt.subplots(figsize=(6, 3.6), layout="constrained")
    for name, result in results.items():
        if "losses" in result:
            losses = np.convolve(result["losses"], np.ones(10) / 10, "valid")
            ax.plot(losses, label=f"{name}, test {result['accuracy'][-1]:.1%}")
    ax.set(xlabel="step", ylabel="training loss, mean of 10", yscale="log")
    ax.legend()
    ax.figure.savefig(path, dpi=120)


def main():
    """Run the contenders one after the other and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=tuple(CONTENDERS))
    parser.add_argument("train")
    parser.add_argument("test")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--lr", type=float, help="of all; else LR, and LR_DENSE for PyTorch")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="names, separated by commas")
    parser.add_argument("--max-batches", type=int)
    parser.add_argument("--json")
    parser.add_argument("--plot")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    for name, table in (("batch_size", BATCH), ("lr", LR_DENSE if args.worker == "dense" else LR), ("epochs", EPOCHS)):
        if getattr(args, name) is None:
            setattr(args, name, table[args.what])
    if args.worker:
        print(json.dumps((run_torch if args.worker == "dense" else run_ours)(args.worker, args)))
        return
    names = args.only.split(",") if args.only else CONTENDERS[args.what]
    environment = os.environ | {"OMP_WAIT_POLICY": "passive", "OMP_NUM_THREADS": str(args.threads)}
    environment.pop("OPENBLAS_CORETYPE", None)
    results = {}
    for name in names:
        command = [sys.executable, "-P", __file__, *sys.argv[1:], "--worker", name]
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        results[name] = json.loads(done.stdout.splitlines()[-1])
        r = results[name]
        accuracy = " ".join(f"{a:.4f}" for a in r.get("accuracy", ())) or r.get("note", "")
        shares = " ".join(f"{share:.2%} ({share * part:.2%})"
                          for share, part in zip(r.get("shares", ()), r.get("products", ()), strict=True))
        print(f"{name:12s} {r['cpu']:7.1f} CPU s {r['seconds']:7.1f} s an epoch | {accuracy} | {shares}", flush=True)
    if args.json:
        with open(args.json, "w") as file:
            json.dump(results, file)
    if args.plot:
        plot(results, args.plot)


if __name__ == "__main__":
    main()
