"""Item factors and rows of pixels as layers for the benchmarks of retrieval.

usage: python -P bench/make_factors.py depends debian-packages.jsonl.xz OUT.npz [--factors 128]
       python -P bench/make_factors.py pixels TRAIN TEST OUT.npz

`depends`: factors of the dependencies of packages, by a truncated SVD of the incidence matrix of
the first nine tenths of the packages; a query is the mean of the factors of what a package depends
on. `pixels`: the rows of an XMC file, without their labels, to be searched by distance
(--metric l2).

OUT.npz holds W, bias, H (up to 4,000 queries of the training part, evenly spaced, on which an index
may calibrate) and Q (up to 2,000 of the test part), as that of bench/make_layers.py does.
"""
import argparse
import json
import lzma
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from make_layers import N_CALIBRATION, N_TEST, spaced

from sparselsh.datasets import read_xmc


def main():
    """Make a layer and save it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    kinds = parser.add_subparsers(dest="kind", required=True)
    depends = kinds.add_parser("depends")
    depends.add_argument("data")
    depends.add_argument("out")
    depends.add_argument("--factors", type=int, default=128)
    pixels = kinds.add_parser("pixels")
    pixels.add_argument("train")
    pixels.add_argument("test")
    pixels.add_argument("out")
    args = parser.parse_args()

    W, H, Q = of_depends(args) if args.kind == "depends" else of_pixels(args)
    print(f"{args.out}: {W.shape[0]} rows x {W.shape[1]}, {len(Q)} queries")
    np.savez(args.out, W=W, bias=np.zeros(len(W), np.float32), H=H, Q=Q)


def of_depends(args):
    """Factors, and the queries of packages."""
    from scipy.sparse import diags_array
    from sklearn.decomposition import TruncatedSVD
    from sklearn.preprocessing import MultiLabelBinarizer

    with lzma.open(args.data, "rt", encoding="utf-8") as file:
        rows = [set(json.loads(line).get("depends") or ()) for line in file]
    cut = len(rows) * 9 // 10
    packages = MultiLabelBinarizer(sparse_output=True).fit(rows[:cut])
    known = set(packages.classes_)
    train, test = (packages.transform([row & known for row in part if row & known])
                   for part in (rows[:cut], rows[cut:]))
    svd = TruncatedSVD(args.factors, random_state=0).fit(train.astype(np.float32))
    W = np.ascontiguousarray(svd.components_.T, np.float32)
    H, Q = (np.float32(diags_array(1 / part.sum(axis=1).A1) @ part @ W)
            for part in (spaced(train, N_CALIBRATION), spaced(test, N_TEST)))
    return W, H, Q


def of_pixels(args):
    """Rows of a training file, of which some are queries of the calibration, and of a test file."""
    train, _ = read_xmc(args.train)
    test, _ = read_xmc(args.test, n_features=train.shape[1])
    W, H, Q = (np.float32(part.toarray())
               for part in (train, spaced(train, N_CALIBRATION), spaced(test, N_TEST)))
    return W, H, Q


if __name__ == "__main__":
    main()
