"""Settings of SLIDE, MONGOOSE and BOLT on XMC text: hashed, beside the same network without it.

usage: python -P bench/published.py TRAIN TEST [--only slide,mongoose,bolt,dense] [--epochs N]
                                    [--lr LR] [--batch-size N] [--seed N] [--threads N]
                                    [--json FILE]

All have a hidden layer of 128 units with ReLU, Adam without a schedule, and no weights from the
data. Each training runs in a process of its own. `plan="rows"` lets the layer hash even where
`plan="auto"` would compute every neuron because that costs less: the column "computed" is measured,
not asked for. "labels found" is the fraction of the labels that the tables find for their own rows,
before they are added in any case: what K, L, policy and rebuilds are about.

What is as published, and what is not:

slide     DWTA, K = 8 (here 6: at K = 8 a table of 8^8 buckets is empty for 10^4 neurons), L = 50,
          0.5 % of the neurons, one set per sample, vanilla sampling, exponential rebuilds from 50
          steps on (arXiv 1903.03129, sections 3 and 5). Buckets have no reservoir.
mongoose  SimHash, and tables rebuilt when codes have drifted (ICLR 2021, the "smart scheduler").
          Its learned hash functions are not reproduced: the planes are random.
bolt      DWTA, tables frozen after the first epoch and labels added to the buckets that their
          inputs read (arXiv 2303.17727). Buckets have no reservoir.
"""
import argparse
import sys
from pathlib import Path

import numpy as np

import sparselsh as sl

sys.path.insert(0, str(Path(__file__).parent))
from common import child_environment, markdown_table, run_child, write_json

N_HIDDEN, DENSITY = 128, 0.005


def output_layer(name, n_labels):
    """The output layer of a setting."""
    if name == "dense":
        return sl.LSHLinear(N_HIDDEN, n_labels, density=1)
    options = {
        "slide": {"family": sl.DWTA(bins=6, tables=50, bin_size=8), "policy": "vanilla",
                  "rebuild": sl.rebuild.Exponential(50, 0.1)},
        "mongoose": {"family": sl.SimHash(bits=9, tables=20), "policy": "top",
                     "rebuild": sl.rebuild.OnDrift(0.1)},
        "bolt": {"family": sl.DWTA(bins=4, tables=64, bin_size=8), "policy": "top",
                 "rebuild": sl.rebuild.Frozen(1, sl.rebuild.Exponential(50, 0.1))},
    }[name]
    return sl.LSHLinear(N_HIDDEN, n_labels, density=DENSITY, active="sample", plan="rows",
                        **options)


class LabelsFound(sl.callbacks.Callback):
    """How many labels the tables find, in one step of each `EVERY`."""

    EVERY = 16

    def __init__(self):
        self.step, self.fractions = 0, []

    def on_active_sets(self, network, sets):
        self.step += 1
        if self.step % self.EVERY == 0:
            found, labels = sets[-1].found, sets[-1].labels
            rows = np.repeat(np.arange(len(found)), np.diff(labels.indptr))
            self.fractions.append((found[rows] == labels.indices[:, None]).any(axis=1).mean())


def train(name, args):
    """Train one setting; the figures of its epochs."""
    (X, Y), (X_test, Y_test) = (sl.datasets.read_xmc(path) for path in (args.train, args.test))
    hidden = sl.Linear(X.shape[1], N_HIDDEN, activation="relu")
    net = sl.Network([hidden, output_layer(name, Y.shape[1])], random_state=args.seed,
                     n_threads=args.threads)
    watch = LabelsFound()
    net.fit(X, Y, optimizer=sl.Adam(args.lr), epochs=args.epochs, batch_size=args.batch_size,
            callbacks=[] if name == "dense" else [watch], verbose=False)
    ids, _ = net.topk(X_test, 5)
    return {"cpu": [entry["cpu_seconds"] for entry in net.history],
            "computed": [entry["computed_share"] for entry in net.history],
            "loss": [entry["loss"] for entry in net.history],
            "found": float(np.mean(watch.fractions)) if watch.fractions else None,
            "p_at_1": sl.metrics.precision_at_k(Y_test, ids, 1),
            "p_at_5": sl.metrics.precision_at_k(Y_test, ids, 5)}


def table(results):
    """The figures as Markdown."""
    rows = []
    for name, result in results.items():
        share = result["found"]
        rows.append([name, f"{np.median(result['cpu']):.1f}",
                     f"{result['computed'][0]:.2%} to {result['computed'][-1]:.2%}",
                     "-" if share is None else f"{share:.0%}",
                     f"{result['p_at_1']:.1%}", f"{result['p_at_5']:.1%}"])
    return markdown_table(["setting", "CPU s per epoch", "computed, first to last epoch",
                           "labels found", "P@1", "P@5"], rows)


def main():
    """Train the settings one after the other and print a table."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train")
    parser.add_argument("test")
    parser.add_argument("--only", default="slide,mongoose,bolt,dense")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        import json

        print(json.dumps(train(args.child, args)))
        return

    results = {}
    for name in args.only.split(","):
        command = [sys.executable, "-P", __file__, *sys.argv[1:], "--child", name]
        results[name] = run_child(command, child_environment(args.threads))
        print(table({name: results[name]}).splitlines()[-1], file=sys.stderr, flush=True)
    print(table(results))
    if args.json:
        write_json(args.json, results)


if __name__ == "__main__":
    main()
