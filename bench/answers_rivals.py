"""Labels and scores of PECOS and Omikuji for bench/answers.py, in an interpreter that has them.

usage: python -P bench/answers_rivals.py {pecos,omikuji} DATA.npz OUT.npz --threads 2

DATA.npz holds X, Y (training rows) and X_held_out, X_test, each as data, indices, indptr and shape.
OUT.npz gets ids and scores of the best 50 labels of both, (n, 50), filled up with -1 and 0, and the
CPU seconds of the training.
"""
import argparse
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import scipy.sparse as sp

sys.path.insert(0, str(Path(__file__).parent))
from common import Stopwatch

K = 50


def pecos(X, Y, queries, threads):
    from pecos.xmc import Indexer, LabelEmbeddingFactory
    from pecos.xmc.xlinear.model import XLinearModel

    with Stopwatch() as watch:
        chain = Indexer.gen(LabelEmbeddingFactory.create(Y, X), threads=threads)
        model = XLinearModel.train(X, Y, C=chain, threads=threads)
    with tempfile.TemporaryDirectory() as folder:
        model.save(folder)
        model = XLinearModel.load(folder, is_predict_only=True)
        found = [model.predict(rows, only_topk=K, threads=threads).tocsr() for rows in queries]
    return watch.cpu, [table(zip(rows.indptr[:-1], rows.indptr[1:], strict=True),
                             rows.indices, rows.data) for rows in found]


def omikuji(X, Y, queries, threads):
    import omikuji as package

    whole = np.flatnonzero((np.diff(X.indptr) > 0) & (np.diff(Y.indptr) > 0))  # it reads no others
    X, Y = X[whole], Y[whole]
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "train.txt")
        with open(path, "w", encoding="ascii") as file:
            file.write(f"{X.shape[0]} {X.shape[1]} {Y.shape[1]}\n")
            for x, y in zip(parts(X), parts(Y), strict=True):
                words = " ".join(f"{j}:{v:.6g}" for j, v in zip(X.indices[x], X.data[x],
                                                                strict=True))
                file.write(",".join(map(str, Y.indices[y])) + f" {words}\n")
        with Stopwatch() as watch:
            model = package.Model.train_on_data(path, package.Model.default_hyper_param(), threads)
    model.densify_weights(0.05)
    results = []
    for rows in queries:
        ids, scores = np.full((rows.shape[0], K), -1), np.zeros((rows.shape[0], K))
        for i, part in enumerate(parts(rows)):
            pairs = list(zip(rows.indices[part].tolist(), rows.data[part].tolist(), strict=True))
            for q, (label, score) in enumerate(model.predict(pairs, top_k=K)):
                ids[i, q], scores[i, q] = label, score
        results.append((ids, scores))
    return watch.cpu, results


def parts(rows):
    return [slice(a, b) for a, b in zip(rows.indptr[:-1], rows.indptr[1:], strict=True)]


def table(ranges, indices, data):
    ranges = list(ranges)
    ids, scores = np.full((len(ranges), K), -1), np.zeros((len(ranges), K))
    for i, (a, b) in enumerate(ranges):
        order = np.argsort(-data[a:b], kind="stable")
        ids[i, :b - a], scores[i, :b - a] = indices[a:b][order], data[a:b][order]
    return ids, scores


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rival", choices=["pecos", "omikuji"])
    parser.add_argument("data")
    parser.add_argument("out")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    with np.load(args.data) as file:
        X, Y, X_held_out, X_test = (
            sp.csr_matrix((file[f"{name}_data"], file[f"{name}_indices"], file[f"{name}_indptr"]),
                          shape=tuple(file[f"{name}_shape"]), dtype=np.float32)
            for name in ("X", "Y", "X_held_out", "X_test"))
    for matrix in (X, Y, X_held_out, X_test):
        matrix.sort_indices()
    train = pecos if args.rival == "pecos" else omikuji
    cpu, results = train(X, Y, (X_held_out, X_test), args.threads)
    (ids, scores), (ids_test, scores_test) = results
    np.savez(args.out, cpu=cpu, ids=ids, scores=scores, ids_test=ids_test, scores_test=scores_test)


if __name__ == "__main__":
    main()
