"""The hashed and the dense network after as many steps: precision, and the cost of a step.

usage: python -P bench/equal_steps.py TRAIN TEST [--steps 500] [--batch-size 256] [--hidden 128]
           [--lrs 0.005 0.01 0.02] [--repeats 1] [--threads 2] [--json FILE]

Both networks are the library's and differ only in the density of the output layer: the default, and
1, where every neuron is computed, which gives PyTorch's numbers (tests/test_torch.py). They see the
same samples in the same order, start from the same weights, and use Adam with a rate that falls
linearly to zero over the steps; each is run with every rate. P@k is measured on the test set: by
every neuron for the dense network, by every neuron ("exact") and by the index ("found") for the
hashed one. `bench/train.py --only torch-dense --max-batches 8` measures the cost of a PyTorch step.
"""
import argparse
import json
import statistics
import time

import numpy as np

import sparselsh as sl


def main():
    args = arguments()
    sl.set_num_threads(args.threads)
    (X, Y), (X_test, Y_test) = (sl.datasets.read_xmc(path) for path in (args.train, args.test))
    n = min(args.steps * args.batch_size, X.shape[0])
    rows = np.sort(np.random.default_rng(0).permutation(X.shape[0])[:n])
    data = X[rows], Y[rows]
    results = []
    for repeat in range(args.repeats):
        for lr in args.lrs:
            for name, density in (("hashed", "auto"), ("dense", 1)):
                result = {"network": name, "lr": lr, "repeat": repeat}
                result |= run(args, density, lr, data, (X_test, Y_test))
                print(json.dumps(result), flush=True)
                results.append(result)
                if args.json:
                    with open(args.json, "w") as file:
                        json.dump(results, file, indent=1)
    report(results, args.steps)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("train")
    parser.add_argument("test")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--lrs", type=float, nargs="+", default=[5e-3, 1e-2, 2e-2])
    parser.add_argument("--repeats", type=int, default=1, help="runs of each, with other seeds")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json")
    return parser.parse_args()


def run(args, density, lr, data, test):
    """P@k and CPU milliseconds per step of one training."""
    X, Y = data
    net = sl.Network([sl.Linear(X.shape[1], args.hidden),
                      sl.LSHLinear(args.hidden, Y.shape[1], density=density)], random_state=0)
    # the first step pays for weights and tables
    net.partial_fit(X[:args.batch_size], Y[:args.batch_size])
    net = sl.Network(net.layers, random_state=1)
    for layer in net.layers:
        layer.initialize(np.random.default_rng(0), sparse_input=layer is net.layers[0])
    epochs = max(1, round(args.steps * args.batch_size / X.shape[0]))
    cpu = time.process_time()
    net.fit(X, Y, optimizer=sl.Adam(lr, schedule="linear"), epochs=epochs,
            batch_size=args.batch_size, verbose=False)
    n_steps = epochs * -(-X.shape[0] // args.batch_size)
    result = {"steps": n_steps, "cpu_ms_per_step": (time.process_time() - cpu) / n_steps * 1e3,
              "computed": net.history[-1]["computed_share"]}
    for how in ("exact",) if density == 1 else ("exact", "found"):
        ids, _ = net.topk(test[0], 5, exact=how == "exact")
        result |= {f"p_at_{k}_{how}": sl.metrics.precision_at_k(test[1], ids, k) for k in (1, 5)}
    return result


def report(results, steps):
    """The best rate of each network, side by side."""
    best = {}
    for name in ("dense", "hashed"):
        runs = [r for r in results if r["network"] == name]
        by_rate = {lr: [r for r in runs if r["lr"] == lr] for lr in {r["lr"] for r in runs}}
        best[name] = max(by_rate.values(),
                         key=lambda some: statistics.mean(r["p_at_1_exact"] for r in some))
    print(f"\nafter {steps} steps, each at its best rate")
    for name, runs in best.items():
        figures = {key: statistics.median(r[key] for r in runs) for key in runs[0]
                   if key not in ("network", "lr", "repeat")}
        print(f"{name}, lr {runs[0]['lr']:g}: "
              + ", ".join(f"{key} {value:.4g}" for key, value in figures.items()))
    dense, hashed = best["dense"], best["hashed"]
    for k in (1, 5):
        ratio = (statistics.median(r[f"p_at_{k}_found"] for r in hashed)
                 / statistics.median(r[f"p_at_{k}_exact"] for r in dense))
        print(f"P@{k} of the hashed network, found by its index: {ratio:.1%} of the dense one's")
    times = [statistics.median(r["cpu_ms_per_step"] for r in runs) for runs in (dense, hashed)]
    print(f"a dense step of this library costs {times[0] / times[1]:.1f} hashed ones")


if __name__ == "__main__":
    main()
