"""SimHash tables on a trained layer: K and L that `LSHIndex(family="auto")` tries, and their cost.

usage: python -P bench/probing.py LAYER.npz [--recall 0.95]

Prints for every trial bits, tables, probes, recall, the measured microseconds per query (256
queries in a batch, one thread), and those that the formula in `sparselsh/_table_choice.py`
estimates. bench/make_layers.py makes the layers.
"""
import argparse

import numpy as np

import sparselsh as sl
from sparselsh.index import FOUND_PER_CANDIDATE
from sparselsh.index import _table_choice as choice


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("layer",
                        help="an .npz file with W, bias, H (queries to fit on) and Q (others)")
    parser.add_argument("--recall", type=float, default=0.95)
    args = parser.parse_args()
    sl.set_num_threads(1)
    with np.load(args.layer) as layer:
        W, b, H, Q = (np.ascontiguousarray(layer[name], np.float32)
                      for name in ("W", "bias", "H", "Q"))
    index = sl.LSHIndex("auto", plan="probes", recall=args.recall, random_state=0).fit(W, b, H)
    print(index, "\n bits tables probes recall  measured estimated")
    for trial in index.tune(Q):
        if trial["method"] == "probes":
            n_found = FOUND_PER_CANDIDATE * trial["n_candidates"]
            estimate = choice.cost(trial, *W.shape, n_found) / 1000
            print(f"{trial['bits']:5d} {trial['tables']:6d} {trial['n_probes']:6d} "
                  f"{trial['recall']:6.3f} {trial['microseconds']:9.1f} {estimate:9.1f}")
    print("chosen:", index.family_, "probes:", index.n_probes)


if __name__ == "__main__":
    main()
