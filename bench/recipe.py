"""What each part of the recipe for many labels gives (docs/accuracy.md).

usage: python -P bench/recipe.py TRAIN TEST [--hidden 256] [--negatives 10 20 50 100] [--threads 2]
           [--seed 0] [--json FILE]

XMC text. The first table has networks of either kind of first weights after some epochs, before and
after `refine`; the second one network that is refined with other numbers of negatives. CPU seconds
are those of the training up to there.
"""
import argparse
import sys
import time
from pathlib import Path

import sparselsh as sl
from sparselsh import _recipe

sys.path.insert(0, str(Path(__file__).parent))
from common import markdown_table, write_json

CASES = [("random", 1), ("random", 3), ("random", 5),
         ("data", 0), ("data", 1), ("data", 2), ("data", 3)]
MEASURES = ("p_at_1", "p_at_5", "psp_at_5")
HEADER = ("P@1, %", "P@5, %", "PSP@5, %")


class Bench:
    """The data, and what is trained on them."""

    def __init__(self, args):
        self.args = args
        self.X, self.Y = sl.datasets.read_xmc(args.train)
        self.X_test, self.Y_test = sl.datasets.read_xmc(
            args.test, n_features=self.X.shape[1], n_labels=self.Y.shape[1])
        self.propensities = sl.metrics.propensities(self.Y)

    def trained(self, weights, epochs):
        """A network and the CPU seconds of its training."""
        X, Y, args = self.X, self.Y, self.args
        net = sl.Network([sl.Linear(X.shape[1], args.hidden),
                          sl.LSHLinear(args.hidden, Y.shape[1])],
                         random_state=args.seed, n_threads=args.threads)
        begin = time.process_time()
        optimizer = None  # the library's default
        if weights == "data":
            n_steps = _recipe.steps(X.shape[0], 256, epochs)
            _recipe.begin(net, X, Y, n_steps)
            if epochs:
                rate = _recipe.rate(n_steps)
                optimizer = sl.Adam(rate, schedule="linear", second_moment="row")
        if epochs:
            net.fit(X, Y, epochs=epochs, optimizer=optimizer, verbose=False)
        return net, time.process_time() - begin

    def refined(self, net, **options):
        """The CPU seconds of a refinement."""
        begin = time.process_time()
        net.refine(self.X, self.Y, verbose=False, **options)
        return time.process_time() - begin

    def scores(self, net, cpu_s):
        ids, _ = net.topk(self.X_test, 5)
        figures = {f"p_at_{k}": sl.metrics.precision_at_k(self.Y_test, ids, k) for k in (1, 5)}
        figures["psp_at_5"] = sl.metrics.psp_at_k(self.Y_test, ids, 5, self.propensities)
        return figures | {"cpu_s": cpu_s}


def cells(line):
    return [*(f"{100 * line[key]:.1f}" for key in MEASURES), f"{line['cpu_s']:.1f}"]


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train")
    parser.add_argument("test")
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--negatives", type=int, nargs="*", default=[10, 20, 50, 100])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()

    bench = Bench(args)
    document = {"hidden": args.hidden, "threads": args.threads, "cases": [], "negatives": []}
    for weights, epochs in CASES:
        case = {"weights": weights, "epochs": epochs}
        net, seconds = bench.trained(weights, epochs)
        document["cases"].append(case | {"refined": False} | bench.scores(net, seconds))
        seconds += bench.refined(net)
        document["cases"].append(case | {"refined": True} | bench.scores(net, seconds))
    net, _ = bench.trained("data", _recipe.EPOCHS_FROM_DATA)
    for n in args.negatives:
        seconds = bench.refined(net, n_negatives=n)
        document["negatives"].append({"negatives": n} | bench.scores(net, seconds))

    print(markdown_table(
        ["first weights", "epochs", "refined", *HEADER, "CPU s"],
        [[line["weights"], line["epochs"], line["refined"], *cells(line)]
         for line in document["cases"]]))
    print()
    print(markdown_table(["negatives per row", *HEADER, "CPU s of refining"],
                         [[line["negatives"], *cells(line)] for line in document["negatives"]]))
    if args.json:
        write_json(args.json, document)


if __name__ == "__main__":
    main()
