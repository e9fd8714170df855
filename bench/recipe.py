"""What each part of the recipe for many labels gives: first weights, epochs, refinement (docs/accuracy.md).

usage: python -P bench/recipe.py TRAIN.txt TEST.txt [--hidden 256] [--negatives 10 20 50 100] [--threads 2] [--seed 0]

XMC text. The first table has networks of either kind of first weights after some epochs, before and after `refine`; the
second one network that is refined with other numbers of negatives. CPU seconds are those of the training up to there.
"""
import argparse
import time

import sparselsh as sl
from sparselsh import _recipe

CASES = [("random", 1), ("random", 3), ("random", 5), ("data", 0), ("data", 1), ("data", 2), ("data", 3)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train")
    parser.add_argument("test")
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--negatives", type=int, nargs="*", default=[10, 20, 50, 100])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    X, Y = sl.datasets.read_xmc(args.train)
    X_test, Y_test = sl.datasets.read_xmc(args.test, n_features=X.shape[1], n_labels=Y.shape[1])
    propensities = sl.metrics.propensities(Y)

    def line(first, seconds, net):
        ids, _ = net.topk(X_test, 5)
        figures = [sl.metrics.precision_at_k(Y_test, ids, k) for k in (1, 5)]
        figures.append(sl.metrics.psp_at_k(Y_test, ids, 5, propensities))
        print(f"| {first} | " + " | ".join(f"{100 * f:.1f} %" for f in figures) + f" | {seconds:.1f} |", flush=True)

    def trained(weights, epochs):
        """A network and the CPU seconds of its training."""
        net = sl.Network([sl.Linear(X.shape[1], args.hidden), sl.LSHLinear(args.hidden, Y.shape[1])],
                         random_state=args.seed, n_threads=args.threads)
        begin = time.process_time()
        optimizer = None  # the library's default
        if weights == "data":
            n_steps = _recipe.steps(X.shape[0], 256, epochs)
            _recipe.begin(net, X, Y, n_steps)
            if epochs:
                optimizer = sl.Adam(_recipe.rate(n_steps), schedule="linear", second_moment="row")
        if epochs:
            net.fit(X, Y, epochs=epochs, optimizer=optimizer, verbose=False)
        return net, time.process_time() - begin

    def refined(net, **options):
        begin = time.process_time()
        net.refine(X, Y, verbose=False, **options)
        return time.process_time() - begin

    print("| first weights | epochs | refined | P@1 | P@5 | PSP@5 | CPU s |\n|---|--:|---|--:|--:|--:|--:|")
    for weights, epochs in CASES:
        net, seconds = trained(weights, epochs)
        line(f"{weights} | {epochs} | no", seconds, net)
        line(f"{weights} | {epochs} | yes", seconds + refined(net), net)
    net, _ = trained("data", _recipe.EPOCHS_FROM_DATA)
    print("\n| negatives a row | P@1 | P@5 | PSP@5 | CPU s of refining |\n|--:|--:|--:|--:|--:|")
    for n in args.negatives:
        seconds = refined(net, n_negatives=n)
        line(n, seconds, net)


if __name__ == "__main__":
    main()
