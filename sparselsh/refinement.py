"""Refinement: linear classifiers of a network's inputs, added to its outputs.

A hidden layer of some hundred units is a bottleneck: it does not pass on words that matter for few
labels. Linear systems for tagging have no such bottleneck, but one weight per word and label that
occur together, and need a search over a tree of labels. Here the network is the search: it finds
the labels with which an input is easily confused. One linear classifier per label learns to tell
those inputs from the inputs of the label, and re-ranks what the network finds.
"""
from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from . import _validation as check
from ._arrays.csr import CSR, from_scipy
from ._arrays.scipy import sp
from ._core import _logistic, _one_vs_rest

if TYPE_CHECKING:
    from collections.abc import Callable

    from scipy.sparse import csr_array

    from ._arrays.types import Floats, Ids, Offsets

    Start = tuple["Training", Ids]

__all__ = ["Refinement"]

MAX_WEIGHTS_PER_BLOCK = 1 << 22  # held before weights below the threshold are dropped
MAX_PASSES = 20  # over the rows of a label; few labels need more than ten
MAX_PASSES_AGAIN = 4  # from the dual variables of a training without some of the rows
MAX_CHECKED_ROWS = 2048  # that decide in which order weights are read
ADDING_COST = 4  # times that of reading a weight in order
GRADIENT_TOLERANCE = 0.3  # of the projected gradients, whose scale is 1
MAX_LOGISTIC_WEIGHTS = 1 << 25  # of all features and labels, which are held during the fit,
MAX_LOGISTIC_DUALS = 1 << 26  # and dual variables, of all rows and labels
LOGISTIC_COST = 10  # C of the logistic regression, times that of the classifiers
MAX_LOGISTIC_PASSES, MAX_LOGISTIC_PASSES_AGAIN = 10, 3
LOGISTIC_TOLERANCE = 0.02  # of the probabilities of a row, a root mean square over the rows
NO_DUALS, NO_ROWS = np.zeros(0, np.float32), np.zeros(0, np.int32)


class Training(NamedTuple):
    """What a training of classifiers leaves for another one, of the same rows and further ones."""

    candidates: Ids  # as `fit_refinement` leaves them
    costs: Floats
    starts: Offsets  # the samples of each label and their dual variables, as in `fit_classifiers`
    samples: Ids
    duals: Floats
    residuals: Floats | None  # of the logistic regression, with its weights and biases
    weight: Floats | None
    bias: Floats | None


class Refinement:
    """One linear classifier per label of the inputs of a network; made by :meth:`Network.refine`.

    The score of a label j becomes ``s_j = z_j - l + scale (w_j . x + b_j)``, where z are the
    outputs of the layers, if it is one of the row's `n_candidates` labels with the largest z. l is
    the logarithm of the sum of ``exp(z)`` over these: it makes scores of different rows comparable.
    W and b minimize, for each label j, ``|w_j|^2 / 2 + b_j^2 / 2 + C sum_i max(0, 1 - y_i (w_j .
    x_i + b_j))^2`` over the rows that have the label (y = 1) and the rows without it for which the
    network ranks it among its best labels (y = -1). So a classifier distinguishes labels that the
    network confuses, and has no information on rows for which the network does not rank its label
    high. Every other label therefore follows in the order of the network, with the score ``s_c +
    min(z_j - z_c, 0)``, where s_c is the smallest score and z_c the smallest output of the
    candidates.

    With `logistic` > 0, for rows that have one label each, W and b are the sum of these and
    `logistic` times those of a multinomial logistic regression, which minimize ``|W|^2 / 2 + |b|^2
    / 2 - 10 C sum_i log softmax(W x_i + b)_{y_i}``. The classifiers rank better, and the regression
    gives better probabilities; the sum does both.

    Attributes
    ----------
    weight : csr_array of shape (n_labels, n_features), float32
        W without the entries below the threshold.
    bias : ndarray of shape (n_labels,), float32
    scale : float
        Factor of the classifiers' outputs; can be set.
    n_candidates : int
        Number of outputs with the best z that are re-ranked; can be set.
    normalized : bool
        Whether l is subtracted; False in files of earlier versions.

    Notes
    -----
    The linear systems for many labels also train with a squared hinge loss on hard negatives [1]_
    [2]_, which there come from a tree of labels. The solver is the dual coordinate descent of
    [3]_, that of the regression the ascent of [4]_.

    References
    ----------
    .. [1] R. Babbar, B. Schölkopf, "DiSMEC: Distributed Sparse Machines for Extreme Multi-label
       Classification", WSDM 2017, arXiv:1609.02521.
    .. [2] H.-F. Yu et al., "PECOS: Prediction for Enormous and Correlated Output Spaces", JMLR 23
       (2022), arXiv:2010.05878, section 4.
    .. [3] C.-J. Hsieh et al., "A Dual Coordinate Descent Method for Large-scale Linear SVM", ICML
       2008, algorithm 3.
    .. [4] S. Shalev-Shwartz, T. Zhang, "Stochastic Dual Coordinate Ascent Methods for Regularized
       Loss Minimization", JMLR 14 (2013), arXiv:1209.1873.
    """

    def __init__(self, weight: CSR, bias: Floats, scale: float, n_candidates: int,
                 by_feature: bool = False, normalized: bool = False) -> None:
        self._w = weight
        self.bias = bias
        self.scale = scale
        self.n_candidates = n_candidates
        # whether the weights of the features of a row are fewer than those of its candidates
        self.by_feature = by_feature
        self.normalized = normalized
        self._columns: CSR | None = None
        self._work = np.zeros((0, 0), np.float32)
        self.training: Training | None = None

    @property
    def weight(self) -> csr_array:
        return self._w.to_scipy()

    def _read(self, n_threads: int) -> tuple[CSR, Floats]:
        """The weights as kernels read them; a row of zeros per thread, which they restore."""
        w = self._w
        if self.by_feature:
            if self._columns is None:
                self._columns = _transposed(w)
            w = self._columns
        width = len(self.bias) if self.by_feature else w.n_columns
        if len(self._work) < n_threads or self._work.shape[1] != width:
            self._work = np.zeros((n_threads, width), np.float32)
        return w, self._work

    def for_single_row(self, n_candidates: int) -> tuple[Any, ...]:
        """The classifiers as the core takes them for one row (_core/_single_row_mlp.pyx)."""
        w, work = self._read(1)
        return (w.indptr, w.indices, w.data, self.bias, self.scale, self.by_feature,
                self.normalized, work, n_candidates)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_work": np.zeros((0, 0), np.float32), "_columns": None,
                                "training": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update({"by_feature": False, "normalized": False, "_columns": None,
                              "training": None} | state)

    def __repr__(self) -> str:
        return (f"Refinement({self._w.shape[0]} labels, {self._w.n_columns} features, "
                f"{self._w.nnz} weights, scale={self.scale:g}, n_candidates={self.n_candidates})")


def fit_refinement(x: CSR, y: CSR, candidates: Ids, costs: Floats, *, threshold: float,
                   scale: float, n_candidates: int, seed: int, n_threads: int,
                   logistic: float = 0.0, progress: Callable[[int], Any] = lambda n: None,
                   part: tuple[int, int] = (0, 1),
                   gathered: Callable[[list[Any]], list[list[Any]]] = lambda own: [own],
                   keep: bool = False, start: Start | None = None) -> Refinement:
    """Train the classifiers.

    Parameters
    ----------
    x : CSR of shape (n, n_features)
    y : CSR of shape (n, n_labels)
    candidates : ndarray of shape (n, n_negatives), int32
        Labels with which the rows are easily confused, best first, -1 for none; those that a row
        has become -1.
    costs : ndarray of shape (n,), float32
        C of each row; rows with 0 are left out.
    threshold, scale, n_candidates, logistic
        See :meth:`Network.refine`.
    seed, n_threads : int
    progress : callable
        Called with the number of labels that were trained since the last call.
    part : (int, int)
        (r, P): train every P-th block of labels from the r-th on, where others train the others.
    gathered : callable
        From the arrays of this part to those of all parts, in order.
    keep : bool
        Leave the `training` of the result for another one; for one part.
    start : (Training, rows) or None
        An earlier training, and the places of its rows among these, (n_before,), int32. Their
        labels and costs are the same, and `candidates` has theirs.

    Returns
    -------
    Refinement
    """
    starts, samples = _opponents(y, candidates, costs > 0)
    duals = np.zeros(len(samples) if keep or start is not None else 0, np.float32)
    if start is not None:
        before, rows = start
        _one_vs_rest.move_duals(before.starts, before.samples, before.duals, rows, starts, samples,
                                np.empty(x.shape[0], np.int32), duals)
    w, bias = fit_classifiers(x, starts, samples, costs, threshold=threshold, seed=seed,
                              n_threads=n_threads, progress=progress, part=part, gathered=gathered,
                              duals=duals)
    regression = None, None, None
    if logistic:
        regression = _regression(x, y, costs, seed, start)
        w, bias = _with_regression(w, bias, *regression[1:], logistic, threshold, keep)
    refinement = Refinement(w, bias, scale, n_candidates,
                            _is_read_by_feature(w, x, candidates[:, :n_candidates]),
                            normalized=True)
    if keep:
        refinement.training = Training(candidates, costs, starts, samples, duals, *regression)
    return refinement


def fit_classifiers(x: CSR, starts: Offsets, samples: Ids, costs: Floats, *, threshold: float,
                    seed: int, n_threads: int, progress: Callable[[int], Any] = lambda n: None,
                    part: tuple[int, int] = (0, 1),
                    gathered: Callable[[list[Any]], list[list[Any]]] = lambda own: [own],
                    duals: Floats = NO_DUALS) -> tuple[CSR, Floats]:
    """Train one classifier per label on the rows that are listed for it.

    Parameters
    ----------
    x : CSR of shape (n, n_features)
    starts : ndarray of shape (n_labels + 1,), int64
    samples : ndarray of shape (starts[-1],), int32
        From starts[j] on the rows of label j: i for a row that has it, and then ~i for one that
        does not, the hardest first.
    costs, threshold, seed, n_threads, progress, part, gathered
        As for `fit_refinement`.
    duals : ndarray of shape (starts[-1],) or (0,), float32
        Dual variables from which the training starts, which become those that it ends with.

    Returns
    -------
    weight : CSR of shape (n_labels, n_features)
    bias : ndarray of shape (n_labels,), float32
    """
    norms = x.squared_norms()
    n_labels, n_features = len(starts) - 1, x.n_columns
    work = np.zeros((n_threads, n_features), np.float32)
    feature_of, indices = _by_frequency(x)

    # maximum number of weights per label: one per entry of its rows, or one per feature
    n_entries = np.diff(x.indptr)[np.where(samples < 0, ~samples, samples)]
    counts = np.concatenate([[0], np.cumsum(n_entries)])
    max_weights = np.minimum(np.diff(counts[starts]), n_features)

    bias, sizes = np.zeros(n_labels, np.float32), np.zeros(n_labels, np.int32)
    blocks = _blocks(max_weights, MAX_WEIGHTS_PER_BLOCK)
    trained: list[Any] = [np.zeros(0, np.int32), np.zeros(0, np.float32)]
    parts = []
    for first, last in blocks[part[0]::part[1]]:
        offsets = np.concatenate([[0], np.cumsum(max_weights[first:last])])
        ids, values = np.empty(offsets[-1], np.int32), np.empty(offsets[-1], np.float32)
        _one_vs_rest.fit(starts[first:last + 1], samples, x.indptr, indices, x.data, norms, costs,
                         MAX_PASSES, MAX_PASSES_AGAIN, GRADIENT_TOLERANCE, threshold, seed + first,
                         offsets, work, ids, values, sizes[first:last], bias[first:last], duals,
                         n_threads)
        runs = [slice(start, start + n) for start, n in
                zip(offsets[:-1].tolist(), sizes[first:last].tolist(), strict=True)]
        parts.append((_joined(ids, runs), _joined(values, runs)))
        progress(last - first)

    if parts:
        trained = [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]
    ids, values = _of_all_parts(gathered([*trained, sizes, bias]), blocks, sizes, bias)
    indptr = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
    weight = sp.csr_array((values, feature_of[ids], indptr), shape=(n_labels, n_features))
    weight.sort_indices()
    ids = weight.indices.astype(np.int32, copy=False)
    return CSR(indptr, ids, weight.data, n_features), bias


def extended(refinement: Refinement, n_labels: int, n_features: int,
             new: tuple[CSR, Floats] | None = None) -> Refinement:
    """The classifiers with more labels and features.

    Parameters
    ----------
    refinement : Refinement
    n_labels, n_features : int
        Numbers of new ones.
    new : (weight, bias) or None
        Classifiers of the new labels, of all features; None for classifiers without weights.

    Returns
    -------
    Refinement
        With the scale and the candidates of `refinement`.
    """
    w = refinement._w
    indptr, ids, data, bias = w.indptr, w.indices, w.data, np.zeros(n_labels, np.float32)
    more = np.zeros(n_labels, np.int64)
    if new is not None:
        own, bias = new
        more = own.indptr[1:]
        ids, data = np.concatenate([ids, own.indices]), np.concatenate([data, own.data])
    weight = CSR(np.concatenate([indptr, indptr[-1] + more]), ids, data,
                 w.n_columns + n_features)
    return Refinement(weight, np.concatenate([refinement.bias, bias]), refinement.scale,
                      refinement.n_candidates, refinement.by_feature, refinement.normalized)


def rerank(refinement: Refinement, x: CSR, ids: Ids, scores: Floats, k: int,
           n_threads: int) -> tuple[Ids, Floats]:
    """The k candidates per row with the largest refined outputs.

    Parameters
    ----------
    refinement : Refinement
    x : CSR of shape (n_rows, n_features)
    ids, scores : ndarray of shape (n_rows, n_candidates)
        Candidates (int32), and their outputs of the layers (float32).
    k, n_threads : int

    Returns
    -------
    ids : ndarray of shape (n_rows, k), int32
    scores : ndarray of shape (n_rows, k), float32
    """
    best = np.empty((len(ids), k), np.int32), np.empty((len(ids), k), np.float32)
    w, work = refinement._read(n_threads)
    _one_vs_rest.rerank(x.indptr, x.indices, x.data, w.indptr, w.indices, w.data, refinement.bias,
                        refinement.scale, refinement.by_feature, refinement.normalized, ids,
                        scores, work, *best, n_threads)
    return best


def refined_topk(refinement: Refinement, x: CSR, ids: Ids, z: Floats, k: int,
                 n_threads: int) -> tuple[Ids, Floats]:
    """The k labels per row with the largest scores, among those that the network found.

    Parameters
    ----------
    refinement : Refinement
    x : CSR of shape (n_rows, n_features)
    ids, z : ndarray of shape (n_rows, n_found)
        Labels in the order of the network's outputs, best first, -1 for none (int32), and the
        outputs (float32); k and the candidates at least, or all labels.
    k, n_threads : int

    Returns
    -------
    ids : ndarray of shape (n_rows, k), int32
    scores : ndarray of shape (n_rows, k), float32
    """
    n = min(refinement.n_candidates, ids.shape[1])
    if k <= n:
        return rerank(refinement, x, np.ascontiguousarray(ids[:, :n]),
                      np.ascontiguousarray(z[:, :n]), k, n_threads)
    width = min(k, ids.shape[1])
    best = np.full((len(ids), k), -1, np.int32), np.full((len(ids), k), -np.inf, np.float32)
    best[0][:, :width], best[1][:, :width] = ids[:, :width], z[:, :width]
    head = rerank(refinement, x, np.ascontiguousarray(ids[:, :n]),
                  np.ascontiguousarray(z[:, :n]), n, n_threads)
    best[1][:, n:] = scores_below(best[1][:, n:], z[:, n - 1], head[1][:, -1])
    best[1][best[0] < 0] = -np.inf
    for out, part in zip(best, head, strict=True):
        out[:, :n] = part
    return best


def scores_below(z: Floats, last_output: Floats, last_score: Floats) -> Floats:
    """Scores of labels that are no candidates: below the candidates, in the order of z.

    Parameters
    ----------
    z : ndarray of shape (n_rows, n), float32
        Outputs of the layers.
    last_output, last_score : ndarray of shape (n_rows,), float32
        The smallest output, and the smallest score, of the candidates of each row.

    Returns
    -------
    ndarray of shape (n_rows, n), float32
    """
    with np.errstate(invalid="ignore"):  # -inf of a row with fewer candidates
        return last_score[:, None] + np.minimum(z - last_output[:, None], 0)


def followed_by(first: tuple[Ids, Floats], others: tuple[Ids, Floats]) -> tuple[Ids, Floats]:
    """The labels of one search, and then those of another that it has not found.

    Parameters
    ----------
    first, others : (ids, z)
        Labels (int32, -1 for none) and their outputs (float32), best first, of shapes
        (n_rows, n) and (n_rows, k) with k > n.

    Returns
    -------
    ids, z : ndarray of shape (n_rows, k), int32 and float32
        Outputs after the first n are at most the last of these, so that the order is that of z.
    """
    (head, head_z), (ids, z) = first, others
    n, k = head.shape[1], ids.shape[1]
    width = int(ids.max(initial=0)) + int(head.max(initial=0)) + 2
    rows = np.arange(len(ids), dtype=np.int64)[:, None] * width
    is_known = np.isin(rows + ids, rows + head) | (ids < 0)
    order = np.argsort(is_known, axis=1, kind="stable")[:, :k - n]
    rest = np.take_along_axis(ids, order, axis=1)
    rest_z = np.minimum(np.take_along_axis(z, order, axis=1), head_z[:, -1:])
    repeated = np.take_along_axis(is_known, order, axis=1)  # where too few were found
    rest[repeated], rest_z[repeated] = -1, -np.inf
    return np.concatenate([head, rest], axis=1), np.concatenate([head_z, rest_z], axis=1)


def spread(ids: Ids, scores: Floats, z: Floats) -> Floats:
    """Scores of all labels: those of the candidates, and of the others below them.

    Parameters
    ----------
    ids, scores : ndarray of shape (n_rows, n_candidates), int32 and float32
        The candidates, -1 for none, and their scores.
    z : ndarray of shape (n_rows, n_labels), float32
        Outputs of the layers.

    Returns
    -------
    ndarray of shape (n_rows, n_labels), float32
    """
    found = ids >= 0
    rows, ranks = np.nonzero(found)
    outputs = np.full(ids.shape, np.inf, np.float32)
    outputs[rows, ranks] = z[rows, ids[rows, ranks]]
    out = scores_below(z, outputs.min(axis=1), np.where(found, scores, np.inf).min(axis=1))
    out[rows, ids[rows, ranks]] = scores[rows, ranks]
    return out


def classifier_scores(refinement: Refinement, x: CSR, ids: Ids, n_threads: int) -> Floats:
    """``W x + b`` of the given labels of each row, 0 for -1: (n_rows, n), float32."""
    one = copy.copy(refinement)
    one.scale, one.normalized = 1.0, False
    found, scores = rerank(one, x, ids, np.zeros(ids.shape, np.float32), ids.shape[1], n_threads)
    out = np.zeros(ids.shape, np.float32)
    places = np.argsort(ids, axis=1, kind="stable")
    ordered = np.take_along_axis(scores, np.argsort(found, axis=1, kind="stable"), axis=1)
    np.put_along_axis(out, places, ordered, axis=1)
    out[ids < 0] = 0
    return out


# -- files ---------------------------------------------------------------------------------------


def refinement_tensors(refinement: Refinement) -> dict[str, np.ndarray]:
    """The arrays of a refinement, for a file."""
    w = refinement._w
    return {"indptr": w.indptr, "indices": w.indices, "data": w.data, "bias": refinement.bias}


def refinement_config(refinement: Refinement) -> dict[str, Any]:
    """The plain values of a refinement, for a file."""
    return {"scale": refinement.scale, "n_candidates": refinement.n_candidates,
            "by_feature": refinement.by_feature, "normalized": refinement.normalized}


def refinement_of_file(tensors: dict[str, np.ndarray], config: dict[str, Any],
                       shape: tuple[int, int]) -> Refinement:
    """The refinement from a file; ValueError if it does not fit a network of this shape."""
    dtypes = {"indptr": np.int64, "indices": np.int32, "data": np.float32, "bias": np.float32}
    for name, dtype in dtypes.items():
        if tensors[name].dtype != dtype or tensors[name].ndim != 1:
            raise ValueError(f"refinement.{name} must be a vector of {np.dtype(dtype)}")
    indptr, indices, data, bias = (tensors[name] for name in dtypes)
    weight = check.sparse(sp.csr_array((data, indices, indptr), shape=shape), "refinement")
    return Refinement(weight, check.vector(bias, "refinement.bias", shape[0]),
                      check.number(config["scale"], "scale", minimum=0),
                      check.integer(config["n_candidates"], "n_candidates"),
                      *(_flag(config, name) for name in ("by_feature", "normalized")))


def _flag(config: dict[str, Any], name: str) -> bool:
    """One of the plain values of a file; files of before have none."""
    flag = config.get(name, False)
    if type(flag) is not bool:
        raise ValueError(f"{name} must be true or false, got {flag!r}")
    return flag


# -- helpers of the fit --------------------------------------------------------------------------


def _regression(x: CSR, y: CSR, costs: Floats, seed: int,
                start: Start | None) -> tuple[Floats, Floats, Floats]:
    """Dual variables, weights and biases of a multinomial logistic regression."""
    n_labels, n_features = y.n_columns, x.n_columns
    residuals, n_passes = np.zeros((x.shape[0], n_labels), np.float32), MAX_LOGISTIC_PASSES
    before, rows = (None, NO_ROWS) if start is None else start
    if (before is None or before.residuals is None
            or not np.array_equal(before.costs, costs[rows])):
        weight = np.zeros((n_features, n_labels), np.float32)
        bias = np.zeros(n_labels, np.float32)
    else:
        residuals[rows] = before.residuals
        weight, bias = before.weight.copy(), before.bias.copy()
        n_passes = MAX_LOGISTIC_PASSES_AGAIN
    used = np.flatnonzero(costs > 0).astype(np.int32)
    classes = np.zeros(x.shape[0], np.int32)
    classes[used] = y.indices[y.indptr[used]]
    _logistic.fit(x.indptr, x.indices, x.data, x.squared_norms(), classes,
                  np.float32(LOGISTIC_COST) * costs, n_passes, LOGISTIC_TOLERANCE, seed, used,
                  residuals, weight, bias)
    return residuals, weight, bias


def _with_regression(w: CSR, bias: Floats, weight: Floats, own_bias: Floats, factor: float,
                     threshold: float, keep: bool) -> tuple[CSR, Floats]:
    """Classifiers plus `factor` times a regression, whose weights are changed if not to keep."""
    weight = np.multiply(weight, np.float32(factor), out=None if keep else weight)
    weight[w.indices, np.repeat(np.arange(w.shape[0]), np.diff(w.indptr))] += w.data
    weight[np.abs(weight) < threshold] = 0
    return from_scipy(sp.csr_array(weight.T)), bias + np.float32(factor) * own_bias


def _is_read_by_feature(w: CSR, x: CSR, candidates: Ids) -> bool:
    """Whether rows like these have fewer weights at their features than at their candidates."""
    step = -(-max(len(candidates), 1) // MAX_CHECKED_ROWS)
    x, candidates = x.take(np.arange(0, x.shape[0], step)), candidates[::step]
    sizes, counts = np.diff(w.indptr), np.bincount(w.indices, minlength=w.n_columns)
    by_label = sizes[candidates[candidates >= 0]].sum()
    # adding and clearing takes longer than reading
    return bool(ADDING_COST * counts[x.indices].sum() < by_label)


def _transposed(w: CSR) -> CSR:
    columns = w.to_scipy().tocsc()
    return CSR(columns.indptr.astype(np.int64), columns.indices.astype(np.int32, copy=False),
               columns.data, w.shape[0])


def _opponents(y: CSR, candidates: Ids, is_used: np.ndarray) -> tuple[Offsets, Ids]:
    """(offsets, rows) per label: i for rows with the label, ~i for rows with it as a candidate.

    Rows with the label come first, then those for which it is among the first candidates.
    """
    labels = y.indptr, y.indices, is_used.view(np.uint8), candidates
    counts = np.zeros(y.n_columns, np.int64)
    _one_vs_rest.count_opponents(*labels, counts)
    starts = np.concatenate([[0], np.cumsum(counts)])
    samples = np.empty(starts[-1], np.int32)
    _one_vs_rest.list_opponents(*labels, starts[:-1].copy(), samples)
    return starts, samples


def _by_frequency(x: CSR) -> tuple[Ids, Ids]:
    """Features by falling frequency, and the entries of x as places in that order.

    The few that make up most entries are then next to each other, and stay in the cache.
    """
    feature_of = np.argsort(-np.bincount(x.indices, minlength=x.n_columns), kind="stable")
    place = np.empty(x.n_columns, np.int32)
    place[feature_of] = np.arange(x.n_columns, dtype=np.int32)
    return feature_of.astype(np.int32), place[x.indices]


def _of_all_parts(parts: list[list[Any]], blocks: list[tuple[int, int]], sizes: Ids,
                  bias: Floats) -> tuple[Ids, Floats]:
    """Ids and values of all labels, and their sizes and biases, from what each part has trained."""
    ids, values, ends = [], [], [0] * len(parts)
    for i, (first, last) in enumerate(blocks):
        part_ids, part_values, part_sizes, part_bias = parts[i % len(parts)]
        sizes[first:last], bias[first:last] = part_sizes[first:last], part_bias[first:last]
        start, end = ends[i % len(parts)], ends[i % len(parts)] + int(sizes[first:last].sum())
        ids.append(part_ids[start:end])
        values.append(part_values[start:end])
        ends[i % len(parts)] = end
    return np.concatenate(ids), np.concatenate(values)


def _joined(values: np.ndarray, runs: list[slice]) -> np.ndarray:
    return np.concatenate([values[run] for run in runs])


def _blocks(sizes: np.ndarray, limit: int) -> list[tuple[int, int]]:
    """Ranges of labels whose sizes sum to at most the limit, or that are a single label."""
    ends = np.cumsum(sizes)
    blocks, first = [], 0
    while first < len(sizes):
        used = ends[first - 1] if first else 0
        last = max(first + 1, int(np.searchsorted(ends, used + limit, side="right")))
        blocks.append((first, last))
        first = last
    return blocks
