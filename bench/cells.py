"""Which partition of the neurons needs the fewest per query: SimHash buckets or k-means cells.

usage: python -P bench/cells.py LAYER.npz [LAYER.npz ...]

A layer is what bench/make_layers.py writes. For each partition, with cells in the order in which a
query would probe them: the fraction of all neurons in the cells up to that of a true neighbour, at
quantiles 0.9, 0.95 and 0.98 over the five true neighbours of 300 queries. So many neurons have to
be examined for such a recall.
"""
import sys

import numpy as np

from sparselsh._arrays.linalg import exact_topk
from sparselsh.index._cells import Cells, add_to_means
from sparselsh.index.transforms import Transform, second_moment

QUANTILES = (0.9, 0.95, 0.98)


def fractions(cell, scores, truth):
    """Fraction of the neurons to examine, for each quantile; cells are probed by falling score."""
    sizes = np.bincount(cell, minlength=scores.shape[1])
    needed = []
    for score, ids in zip(scores, truth, strict=True):
        order = np.argsort(-score)
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order))
        needed.append(np.cumsum(sizes[order])[rank[cell[ids]]] / len(cell))
    return np.quantile(np.concatenate(needed), QUANTILES)


def simhash_cells(V, Q, n_bits, rng):
    """Codes of n_bits orthogonal planes, and scores that order buckets by the query's margins."""
    square = np.linalg.qr(rng.standard_normal((V.shape[1], V.shape[1])))[0]
    planes = square[:n_bits].astype(np.float32)
    code = ((V @ planes.T > 0) << np.arange(n_bits)).sum(axis=1)
    signs = np.where(np.arange(2**n_bits)[:, None] >> np.arange(n_bits) & 1, 1, -1)
    return code, Q @ planes.T @ signs.T


def kmeans_cells(V, Q, n_cells, rng):
    """Spherical k-means cells, and the inner products of the queries with their means."""
    cells = Cells.fit(V[rng.permutation(len(V))[:48 * n_cells]], n_cells, rng, 2)
    cell = cells.assign(V, 2)
    add_to_means(cells, np.zeros(n_cells, np.int64), V, np.zeros(len(V), np.float32), cell, 1)
    return cell, Q @ cells.means.T


def main(paths):
    """Print a table per layer."""
    for path in paths:
        with np.load(path) as z:
            W, b, H, X = (np.ascontiguousarray(z[key]) for key in ("W", "bias", "H", "Q"))
        X = X[:300]
        truth, _ = exact_topk(X, W, b, 5, 2)
        for scaling in (0.0, 0.5):
            transform = Transform(True, scaling).fit(W, b, second_moment(H, 2))
            V, Q = transform.neurons(W, b, 2), transform.queries(X, 2)
            cosines = [(V[ids] @ q / np.linalg.norm(V[ids], axis=1) / np.linalg.norm(q)).mean()
                       for q, ids in zip(Q, truth, strict=True)]
            angle = np.degrees(np.arccos(np.mean(cosines)))
            print(f"{path}, scaling {scaling}: {angle:.0f} degrees between a query and its "
                  "neighbours")
            rng = np.random.default_rng(0)
            for n_bits in (6, 8, 10):
                found = fractions(*simhash_cells(V, Q, n_bits, rng), truth)
                print(f"  SimHash, {2**n_bits:5} buckets: " + "  ".join(f"{f:.3f}" for f in found))
            for n_cells in (64, 256):
                found = fractions(*kmeans_cells(V, Q, n_cells, rng), truth)
                print(f"  k-means, {n_cells:5} cells:   " + "  ".join(f"{f:.3f}" for f in found))


if __name__ == "__main__":
    main(sys.argv[1:])
