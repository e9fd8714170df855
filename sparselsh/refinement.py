"""Refinement: linear classifiers of a network's inputs, added to its outputs.

A hidden layer of some hundred units is a bottleneck: words that matter for few labels do not get through. The linear
systems for tagging have none, but a weight for each word and label that were seen together, and pay for it with a
search over a tree of labels. Here the network is the search. It says which labels an input is easily taken for; for
each label a linear classifier learns to tell those inputs from its own, and ranks what the network finds.
"""
from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from . import _validation as check
from ._arrays.csr import CSR
from ._arrays.scipy import sp
from ._core import _one_vs_rest

if TYPE_CHECKING:
    from collections.abc import Callable

    from scipy.sparse import csr_array

    from ._arrays.types import Floats, Ids, Offsets

__all__ = ["Refinement"]

MAX_WEIGHTS_PER_BLOCK = 1 << 22  # weights that are held before those below the threshold are dropped
MAX_PASSES = 20  # over a label's rows; few labels need more than ten
TOLERANCE = 0.1  # of the projected gradients, whose scale is 1


class Refinement:
    """One linear classifier a label, of the inputs of a network; made by :meth:`Network.refine`.

    The outputs of the network become ``z + scale (W x + b)``: z are those of its layers, W and b minimize, for each
    label j, ``|w_j|^2 / 2 + b_j^2 / 2 + C sum_i max(0, 1 - y_i (w_j . x_i + b_j))^2`` over the rows that have the label
    (y = 1) and those without it for which the network ranks it among its best (y = -1).

    Attributes
    ----------
    weight : csr_array of shape (n_labels, n_features), float32
        W without the entries below the threshold.
    bias : ndarray of shape (n_labels,), float32
    scale : float
        What the classifiers count beside the layers; can be set.
    n_candidates : int
        Outputs with the best z that are ranked anew; can be set.

    Notes
    -----
    A squared hinge on hard negatives is what the linear systems for many labels train too [1]_ [2]_; there a tree of
    labels gives the negatives. The solver is the dual coordinate descent of [3]_.

    References
    ----------
    .. [1] R. Babbar, B. Schölkopf, "DiSMEC: Distributed Sparse Machines for Extreme Multi-label Classification",
       WSDM 2017, arXiv:1609.02521.
    .. [2] H.-F. Yu et al., "PECOS: Prediction for Enormous and Correlated Output Spaces", JMLR 23 (2022),
       arXiv:2010.05878, section 4.
    .. [3] C.-J. Hsieh et al., "A Dual Coordinate Descent Method for Large-scale Linear SVM", ICML 2008, algorithm 3.
    """

    def __init__(self, weight: CSR, bias: Floats, scale: float, n_candidates: int) -> None:
        self._w = weight
        self.bias = bias
        self.scale = scale
        self.n_candidates = n_candidates
        self._work = np.zeros((0, 0), np.float32)

    @property
    def weight(self) -> csr_array:
        return self._w.to_scipy()

    def _workspace(self, n_threads: int) -> Floats:
        """One row of zeros per thread; the kernels leave them so."""
        if len(self._work) < n_threads:
            self._work = np.zeros((n_threads, self._w.n_columns), np.float32)
        return self._work

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_work": np.zeros((0, 0), np.float32)}

    def __repr__(self) -> str:
        return (f"Refinement({self._w.shape[0]} labels, {self._w.n_columns} features, {self._w.nnz} weights, "
                f"scale={self.scale:g}, n_candidates={self.n_candidates})")


def fit_refinement(x: CSR, y: CSR, candidates: Ids, costs: Floats, *, threshold: float, scale: float, n_candidates: int,
        seed: int, n_threads: int, progress: Callable[[int], Any] = lambda n: None) -> Refinement:
    """Train the classifiers.

    Parameters
    ----------
    x, y : CSR
        Inputs and labels of n rows.
    candidates : ndarray of shape (n, n_negatives), int32
        Labels that the rows are easily taken for, -1 for none; those that a row has do not count.
    costs : ndarray of shape (n,), float32
        C of each row; rows of 0 are left out.
    threshold, scale, n_candidates
        See :meth:`Network.refine`.
    progress : callable
        Called with the number of labels that are done.
    """
    starts, samples = _opponents(y, candidates, costs > 0)
    norms = x.squared_norms()
    n_labels, n_features = y.n_columns, x.n_columns
    work = np.zeros((n_threads, n_features), np.float32)

    # room that the weights of a label may take: one for each entry of its rows, or for each feature
    counts = np.concatenate([[0], np.cumsum(np.diff(x.indptr)[np.where(samples < 0, ~samples, samples)])])
    room = np.minimum(np.diff(counts[starts]), n_features)
    bias = np.zeros(n_labels, np.float32)
    parts, sizes = [], np.zeros(n_labels, np.int32)
    for first, last in _blocks(room, MAX_WEIGHTS_PER_BLOCK):
        places = np.concatenate([[0], np.cumsum(room[first:last])])
        ids, values = np.empty(places[-1], np.int32), np.empty(places[-1], np.float32)
        _one_vs_rest.fit(starts[first:last + 1], samples, x.indptr, x.indices, x.data, norms, costs, MAX_PASSES,
                         TOLERANCE, threshold, seed + first, places, work, ids, values, sizes[first:last],
                         bias[first:last], n_threads)
        runs = [slice(p, p + n) for p, n in zip(places[:-1].tolist(), sizes[first:last].tolist(), strict=True)]
        parts.append((_joined(ids, runs), _joined(values, runs)))
        progress(last - first)
    indptr = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
    weight = sp.csr_array((np.concatenate([v for _, v in parts]), np.concatenate([i for i, _ in parts]), indptr),
                          shape=(n_labels, n_features))
    weight.sort_indices()
    return Refinement(CSR(indptr, weight.indices.astype(np.int32, copy=False), weight.data, n_features), bias, scale,
               n_candidates)


def rerank(refinement: Refinement, x: CSR, ids: Ids, scores: Floats, k: int,
           n_threads: int) -> tuple[Ids, Floats]:
    """The k best candidates of each row by their refined outputs.

    Parameters
    ----------
    refinement : Refinement
    x : CSR of shape (n_rows, n_features)
    ids, scores : ndarray of shape (n_rows, n_candidates)
        Candidates, and their outputs by the layers.
    k, n_threads : int

    Returns
    -------
    ids : ndarray of shape (n_rows, k), int32
    scores : ndarray of shape (n_rows, k), float32
    """
    w = refinement._w
    best = np.empty((len(ids), k), np.int32), np.empty((len(ids), k), np.float32)
    _one_vs_rest.rerank(x.indptr, x.indices, x.data, w.indptr, w.indices, w.data, refinement.bias,
                        refinement.scale, ids, scores, refinement._workspace(n_threads), *best,
                        n_threads)
    return best


def add_scores(refinement: Refinement, x: CSR, out: Floats, n_threads: int) -> None:
    """Add the scores of every classifier to all outputs (n_rows, n_labels), in place."""
    w = refinement._w
    _one_vs_rest.add_all(x.indptr, x.indices, x.data, w.indptr, w.indices, w.data, refinement.bias,
                         refinement.scale, refinement._workspace(n_threads), out, n_threads)


# -- files ---------------------------------------------------------------------------------------


def refinement_tensors(refinement: Refinement) -> dict[str, np.ndarray]:
    """The arrays of a file."""
    w = refinement._w
    return {"indptr": w.indptr, "indices": w.indices, "data": w.data, "bias": refinement.bias}


def refinement_config(refinement: Refinement) -> dict[str, Any]:
    """The plain values of a file."""
    return {"scale": refinement.scale, "n_candidates": refinement.n_candidates}


def refinement_of_file(tensors: dict[str, np.ndarray], config: dict[str, Any],
                       shape: tuple[int, int]) -> Refinement:
    """The refinement of a file; ValueError if it does not fit a network of this shape."""
    dtypes = {"indptr": np.int64, "indices": np.int32, "data": np.float32, "bias": np.float32}
    for name, dtype in dtypes.items():
        if tensors[name].dtype != dtype or tensors[name].ndim != 1:
            raise ValueError(f"refinement.{name} must be a vector of {np.dtype(dtype)}")
    indptr, indices, data, bias = (tensors[name] for name in dtypes)
    weight = check.sparse(sp.csr_array((data, indices, indptr), shape=shape), "refinement")
    return Refinement(weight, check.vector(bias, "refinement.bias", shape[0]),
                      check.number(config["scale"], "scale", minimum=0),
                      check.integer(config["n_candidates"], "n_candidates"))


# -- helpers of the fit --------------------------------------------------------------------------


def _opponents(y: CSR, candidates: Ids, kept: np.ndarray) -> tuple[Offsets, Ids]:
    """For each label its rows: i of those that have it, ~i of those for which it is a candidate."""
    found = (candidates >= 0) & kept[:, None]
    indptr = np.concatenate([[0], np.cumsum(found.sum(axis=1))])
    shape = y.shape
    negative = sp.csr_array((np.ones(indptr[-1], np.int8), candidates[found], indptr), shape=shape)
    own = np.repeat(kept, np.diff(y.indptr))
    owned = np.concatenate([[0], np.cumsum(np.diff(y.indptr) * kept)])
    positive = sp.csr_array((np.full(owned[-1], 2, np.int8), y.indices[own], owned), shape=shape)
    both = (negative + positive).tocsc()
    rows = both.indices.astype(np.int32, copy=False)
    return both.indptr.astype(np.int64), np.where(both.data >= 2, rows, ~rows)


def _joined(values: np.ndarray, runs: list[slice]) -> np.ndarray:
    return np.concatenate([values[run] for run in runs])


def _blocks(room: np.ndarray, limit: int) -> list[tuple[int, int]]:
    """Runs of labels whose room together does not exceed the limit, or that are a single label."""
    ends = np.cumsum(room)
    blocks, first = [], 0
    while first < len(room):
        used = ends[first - 1] if first else 0
        last = max(first + 1, int(np.searchsorted(ends, used + limit, side="right")))
        blocks.append((first, last))
        first = last
    return blocks
