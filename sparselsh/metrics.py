"""Metrics of rankings of labels, and of approximate nearest-neighbour search.

The label metrics take the true labels of n rows and, per row, ids in the order of their scores,
best first, as ``Network.topk`` and ``LSHIndex.search`` return them. Each metric is in [0, 1].

A row without true labels counts as 0 in :func:`precision_at_k`, where every prediction for it is
wrong, as in the programs of the extreme classification repository. The other metrics leave such a
row out, because its value would be 0 / 0 for any list of ids.
"""
from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from . import _validation as check

if TYPE_CHECKING:
    from numpy.typing import ArrayLike
    from scipy.sparse import csr_array

    from ._arrays.types import MatrixLike

__all__ = [
    "brier_score",
    "calibration_curve",
    "expected_calibration_error",
    "log_loss",
    "micro_f1",
    "ndcg_at_k",
    "neighbour_recall",
    "precision_at_k",
    "propensities",
    "psp_at_k",
    "recall_at_k",
]

SMALLEST_PROBABILITY = 1e-7  # of a true label, in the log-loss: float32 has no better 1 - p
SUM_TOLERANCE = 1e-5  # by which a rounded probability may exceed 1
ROWS_PER_CHUNK = 256


def precision_at_k(Y_true: MatrixLike, ids: ArrayLike, k: int) -> float:
    """Fraction of the first k ids that are true labels.

    ``P@k = mean_i |{ids[i, :k]} & labels(i)| / k``

    Parameters
    ----------
    Y_true : sparse or dense matrix of shape (n, n_labels), or int array of shape (n,)
        Indicator, whose nonzero entries are the true labels, or one class id per row.
    ids : int array of shape (n, >= k)
        Labels in the order of their scores, best first, distinct within each row; -1 for none,
        which counts as a miss.
    k : int
        Number of ids per row that are used.

    Returns
    -------
    float

    Raises
    ------
    TypeError, ValueError
        An argument has the wrong type, shape or range, `Y_true` has no rows, or a label occurs
        twice in one row of `ids`.
    """
    return float(_hits(Y_true, ids, k)[1].mean())


def recall_at_k(Y_true: MatrixLike, ids: ArrayLike, k: int) -> float:
    """Fraction of the true labels that are among the first k ids.

    ``R@k = mean_i |{ids[i, :k]} & labels(i)| / |labels(i)|``, over the rows that have labels.

    Parameters
    ----------
    Y_true, ids, k
        As in :func:`precision_at_k`.

    Returns
    -------
    float

    Raises
    ------
    TypeError, ValueError
        As in :func:`precision_at_k`; also ValueError if no row has a label.
    """
    Y, hits = _hits(Y_true, ids, k)
    labelled, n_true = _labelled(Y)
    return float(np.mean(hits[labelled].sum(axis=1) / n_true))


def ndcg_at_k(Y_true: MatrixLike, ids: ArrayLike, k: int) -> float:
    """Normalised discounted cumulative gain: a hit at rank r counts 1 / log2(1 + r).

    ::

        nDCG@k = mean_i DCG(i) / DCG of an ideal list
        DCG(i) = sum_{r=1..k} [ids[i, r] in labels(i)] / log2(1 + r)

    The mean is over the rows that have labels; an ideal list begins with min(k, number of labels)
    hits [1]_.

    Parameters
    ----------
    Y_true, ids, k
        As in :func:`precision_at_k`.

    Returns
    -------
    float

    Raises
    ------
    TypeError, ValueError
        As in :func:`precision_at_k`; also ValueError if no row has a label.

    References
    ----------
    .. [1] K. Järvelin, J. Kekäläinen: Cumulated gain-based evaluation of IR techniques. ACM
       Transactions on Information Systems 20(4), 2002.
    """
    Y, hits = _hits(Y_true, ids, k)
    labelled, n_true = _labelled(Y)
    discount = 1 / np.log2(np.arange(2, k + 2))
    ideal = np.cumsum(discount)[np.minimum(k, n_true) - 1]
    return float(np.mean(hits[labelled] @ discount / ideal))


def propensities(Y_train: MatrixLike, a: float = 0.55, b: float = 1.5) -> np.ndarray:
    """Probability that a true label was assigned, estimated from its number of occurrences.

    ::

        p_l = 1 / (1 + C (n_l + b)^-a),  C = (log n - 1) (b + 1)^a

    n is the number of rows and n_l the number of rows with label l. The model is that of [1]_, and
    the defaults are its values for most data sets; it uses a=0.5, b=0.4 for Wikipedia and a=0.6,
    b=2.6 for Amazon.

    Parameters
    ----------
    Y_train : sparse or dense matrix of shape (n, n_labels), or int array of shape (n,)
        Labels of the training set, as in :func:`precision_at_k`; at least 3 rows.
    a, b : float
        The constants of the model, both positive.

    Returns
    -------
    float64 array of shape (n_labels,), in (0, 1]

    Raises
    ------
    TypeError, ValueError
        An argument has the wrong type or range.

    References
    ----------
    .. [1] H. Jain, Y. Prabhu, M. Varma: Extreme multi-label loss functions for recommendation,
       tagging, ranking and other missing label applications. KDD 2016, section 4.
    """
    Y = check.indicator(Y_train, "Y_train")
    if Y.shape[0] < 3:
        raise ValueError(f"Y_train has {Y.shape[0]} rows; the model needs 3 or more, where "
                         "log(n) > 1")
    for name, value in (("a", a), ("b", b)):
        check.number(value, name, above=0)
    n_l = np.bincount(Y.indices, minlength=Y.shape[1])
    C = (np.log(Y.shape[0]) - 1) * (b + 1) ** a
    return 1 / (1 + C * (n_l + b) ** -a)


def psp_at_k(Y_true: MatrixLike, ids: ArrayLike, k: int, propensities: ArrayLike) -> float:
    """Propensity-scored precision: a hit counts 1 / propensity, so that rare labels count more.

    ::

        PSP@k = sum_i (sum of 1 / p_l over l in ids[i, :k] & labels(i))
              / sum_i (sum of the k largest 1 / p_l over l in labels(i))

    The sum over all rows is divided by the largest sum that any ids could reach, as the extreme
    classification repository reports it [1]_ [2]_. Rows without labels add 0 to both sums.

    Parameters
    ----------
    Y_true, ids, k
        As in :func:`precision_at_k`.
    propensities : float array of shape (n_labels,)
        Result of :func:`propensities` for the training labels.

    Returns
    -------
    float

    Raises
    ------
    TypeError, ValueError
        As in :func:`precision_at_k`; also ValueError if no row has a label, or `propensities` has
        the wrong length or is not in (0, 1].

    References
    ----------
    .. [1] H. Jain, Y. Prabhu, M. Varma: Extreme multi-label loss functions for recommendation,
       tagging, ranking and other missing label applications. KDD 2016.
    .. [2] K. Bhatia et al.: The extreme classification repository: multi-label datasets and code,
       2016. http://manikvarma.org/downloads/XC/XMLRepository.html
    """
    Y, hits = _hits(Y_true, ids, k)
    n_true = _labelled(Y)[1]
    p = check.numeric(propensities, "propensities").astype(np.float64)
    n_labels = Y.shape[1]
    # Class ids do not determine the number of labels; an indicator does.
    if p.ndim != 1 or len(p) < n_labels or (len(p) > n_labels and _ndim(Y_true) != 1):
        raise ValueError(f"propensities has shape {p.shape}; give one for each of the {n_labels} "
                         "labels")
    if not np.all((p > 0) & (p <= 1)):
        raise ValueError("propensities holds values outside (0, 1]; take them from "
                         "metrics.propensities")

    weight = 1 / p
    # Hits are true labels, so their ids are in range; the other ids may be -1.
    gained = weight[np.asarray(ids)[:, :k][hits]].sum()

    # The k largest weights of each row: sort by row, then by descending weight; keep ranks below k.
    weights = weight[Y.indices]
    row = np.repeat(np.arange(len(n_true)), n_true)
    weights = weights[np.lexsort((-weights, row))]
    rank = np.arange(len(row)) - np.repeat(np.cumsum(n_true) - n_true, n_true)
    return float(gained / weights[rank < k].sum())


def neighbour_recall(ids: ArrayLike, true_ids: ArrayLike) -> float:
    """Fraction of the true neighbours that a search found, at any rank.

    ``mean_i |{ids[i]} & {true_ids[i]}| / |{true_ids[i]}|``, over the rows that have true
    neighbours: "recall k@n" of nearest-neighbour search for tables of n and of k columns.

    Parameters
    ----------
    ids : int array of shape (n_rows, n)
        Ids that the search found; -1 for none.
    true_ids : int array of shape (n_rows, k)
        Ids of the true neighbours, distinct within each row; -1 for none.

    Returns
    -------
    float

    Raises
    ------
    TypeError, ValueError
        A table has the wrong dtype or shape or an id below -1, an id occurs twice in one row of
        `true_ids`, or no row has a true id.
    """
    true_ids = check.numeric(true_ids, "true_ids")
    true_ids = check.id_table(true_ids, len(true_ids) if true_ids.ndim else 0, "true_ids")
    ids = check.id_table(ids, len(true_ids), "ids")
    check.distinct(true_ids, "true_ids")
    is_id = true_ids >= 0
    n_true = is_id.sum(axis=1)
    if not n_true.any():
        raise ValueError("true_ids holds no id; give the exact neighbours of one row or more")

    width = max(ids.max(initial=0), true_ids.max(initial=0)) + 1
    found = np.isin(_keys(true_ids, width), _keys(ids, width)) & is_id
    rows = n_true > 0
    return float(np.mean(found.sum(axis=1)[rows] / n_true[rows]))

# -- probabilities -------------------------------------------------------------------------------


def calibration_curve(Y_true: MatrixLike, probabilities: ArrayLike, *, k: int = 1,
                      n_bins: int = 15) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Observed frequencies of true labels, by their predicted probability.

    The k labels with the largest probabilities of each row are put into bins of equal width.

    Parameters
    ----------
    Y_true : sparse or dense matrix of shape (n, n_labels), or int array of shape (n,)
        Indicator, whose nonzero entries are the true labels, or one class id per row.
    probabilities : array of shape (n, n_labels)
        In [0, 1], as of `predict_proba`.
    k : int
        Labels per row that are counted; 1 is the confidence of [1]_.
    n_bins : int

    Returns
    -------
    stated : float64 array of shape (n_bins,)
        Mean probability of each bin; 0 for an empty one.
    observed : float64 array of shape (n_bins,)
        Fraction of the bin's labels that are true.
    counts : int64 array of shape (n_bins,)

    Raises
    ------
    TypeError, ValueError
        An argument has the wrong type, shape or range.

    References
    ----------
    .. [1] C. Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, arXiv:1706.04599,
       section 2.
    """
    Y, p = _stated(Y_true, probabilities)
    k = check.rank(k, p.shape[1], "probabilities")
    n_bins = check.integer(n_bins, "n_bins")
    best = np.argpartition(-p, k - 1, axis=1)[:, :k]
    values = np.take_along_axis(p, best, axis=1).ravel().astype(np.float64)
    hits = np.asarray(Y[np.repeat(np.arange(len(p)), k), best.ravel()]).ravel() != 0

    bins = np.minimum((values * n_bins).astype(np.int64), n_bins - 1)
    counts = np.bincount(bins, minlength=n_bins)
    at_least_one = np.maximum(counts, 1)
    return (np.bincount(bins, values, n_bins) / at_least_one,
            np.bincount(bins, hits, n_bins) / at_least_one, counts)


def expected_calibration_error(Y_true: MatrixLike, probabilities: ArrayLike, *, k: int = 1,
                               n_bins: int = 15, debiased: bool = False) -> float:
    """Mean difference between predicted probabilities and observed frequencies, over bins.

    ``ECE = sum_b |bin b| / n |observed_b - stated_b|`` over the bins of :func:`calibration_curve`
    [1]_. It is above 0 even for perfect probabilities, because frequencies of few rows vary: for 15
    bins by about 0.35 / sqrt(n / 15). With `debiased` it is the root of the mean square of the
    differences minus their expected variance [2]_, ``observed_b (1 - observed_b) / (|bin b| - 1)``
    for each bin. The mean of this square over many samples equals its value for infinitely many
    rows.

    Parameters
    ----------
    Y_true, probabilities, k, n_bins
        As in :func:`calibration_curve`.
    debiased : bool
        Subtract the expected variance. Bins of one row are then left out, and the result is 0 if
        the variance is larger than the differences.

    Returns
    -------
    float

    Raises
    ------
    TypeError, ValueError
        As in :func:`calibration_curve`.

    References
    ----------
    .. [1] M. P. Naeini, G. F. Cooper, M. Hauskrecht, "Obtaining Well Calibrated Probabilities Using
       Bayesian Binning", AAAI 2015.
    .. [2] A. Kumar, P. Liang, T. Ma, "Verified Uncertainty Calibration", NeurIPS 2019,
       arXiv:1909.10155, section 4.
    """
    stated, observed, counts = calibration_curve(Y_true, probabilities, k=k, n_bins=n_bins)
    if debiased:
        stated, observed, counts = (a[counts > 1] for a in (stated, observed, counts))
        squares = (observed - stated)**2 - observed * (1 - observed) / (counts - 1)
        return float(np.sqrt(max(0.0, squares @ counts / max(counts.sum(), 1))))
    return float(np.abs(observed - stated) @ counts / counts.sum())


def log_loss(Y_true: MatrixLike, probabilities: ArrayLike) -> float:
    """Negative log-likelihood of the true labels, a mean over the rows.

    For class ids ``-log p[i, y_i]``; for an indicator the sum over all labels of
    ``-y log p - (1 - y) log(1 - p)``.

    Parameters
    ----------
    Y_true, probabilities
        As in :func:`calibration_curve`.

    Returns
    -------
    float
        In nats per row. Probabilities of true labels below 1e-7, and of others above 1 - 1e-7,
        count as these.

    Raises
    ------
    TypeError, ValueError
        As in :func:`calibration_curve`.
    """
    Y, p = _stated(Y_true, probabilities)
    rows = np.repeat(np.arange(len(p)), np.diff(Y.indptr))
    own = p[rows, Y.indices]
    total = -np.log(np.maximum(own.astype(np.float64), SMALLEST_PROBABILITY)).sum()
    if _ndim(Y_true) != 1:
        # that of all labels as if none were true, less that of the true ones
        for start in range(0, len(p), ROWS_PER_CHUNK):
            total += _surprise_of_false(p[start:start + ROWS_PER_CHUNK])
        total -= _surprise_of_false(own)
    return float(total / len(p))


def _surprise_of_false(p: np.ndarray) -> float:
    """The sum of -log(1 - p)."""
    rest = np.maximum(1 - p.astype(np.float64), SMALLEST_PROBABILITY)
    return -float(np.log(rest).sum())


def brier_score(Y_true: MatrixLike, probabilities: ArrayLike) -> float:
    """Squared difference between probabilities and true labels, summed over the labels of a row.

    ``mean_i sum_j (p_ij - y_ij)^2`` [1]_, from 0 to 2 for class ids.

    Parameters
    ----------
    Y_true, probabilities
        As in :func:`calibration_curve`.

    Returns
    -------
    float

    Raises
    ------
    TypeError, ValueError
        As in :func:`calibration_curve`.

    References
    ----------
    .. [1] G. W. Brier, "Verification of forecasts expressed in terms of probability", Monthly
       Weather Review 78(1), 1950.
    """
    Y, p = _stated(Y_true, probabilities)
    rows = np.repeat(np.arange(len(p)), np.diff(Y.indptr))
    total = np.einsum("ij,ij->", p, p, dtype=np.float64)
    return float((total + (1 - 2 * p[rows, Y.indices].astype(np.float64)).sum()) / len(p))


def micro_f1(Y_true: MatrixLike, Y_pred: MatrixLike) -> float:
    """F1 of all pairs of rows and labels: ``2 hits / (n predicted + n true)``.

    Parameters
    ----------
    Y_true, Y_pred : sparse or dense matrix of shape (n, n_labels), or int array of shape (n,)
        Indicators or class ids.

    Returns
    -------
    float
        0 where nothing is true and nothing predicted.

    Raises
    ------
    TypeError, ValueError
        An argument has the wrong type, or the shapes differ.
    """
    true, predicted = check.indicator(Y_true, "Y_true"), check.indicator(Y_pred, "Y_pred")
    n_labels = max(true.shape[1], predicted.shape[1])
    if true.shape[0] != predicted.shape[0] or (
            true.shape[1] != predicted.shape[1] and 1 not in (_ndim(Y_true), _ndim(Y_pred))):
        raise ValueError(f"Y_true {true.shape} and Y_pred {predicted.shape} must have the same "
                         "shape")
    of_true, of_predicted = (np.repeat(np.arange(y.shape[0]), np.diff(y.indptr)) * n_labels
                             + y.indices for y in (true, predicted))
    hits = np.isin(of_true, of_predicted, assume_unique=True).sum()
    return float(2 * hits / max(len(of_true) + len(of_predicted), 1))


def _stated(Y_true: MatrixLike, probabilities: ArrayLike) -> tuple[csr_array, np.ndarray]:
    """The labels as csr_array, and the checked probabilities."""
    Y = check.indicator(Y_true, "Y_true")
    p = check.numeric(probabilities, "probabilities")
    if p.dtype != np.float32:  # whole numbers would wrap around in -p, and bool has no -p
        p = p.astype(np.float64)
    if p.ndim != 2 or len(p) != Y.shape[0] or not len(p):
        raise ValueError(f"probabilities has shape {p.shape}; give one row for each of the "
                         f"{Y.shape[0]} rows of Y_true, at least one, and a column per label")
    n_labels = Y.shape[1]
    if p.shape[1] < n_labels or (p.shape[1] > n_labels and _ndim(Y_true) != 1):
        raise ValueError(f"probabilities has {p.shape[1]} columns; Y_true has {n_labels} labels")
    if not (p.size and p.min() >= 0 and p.max() <= 1 + SUM_TOLERANCE):  # False for NaN as well
        raise ValueError("probabilities holds values outside [0, 1] or NaN; take them from "
                         "predict_proba")
    return type(Y)((Y.data, Y.indices, Y.indptr), shape=(len(p), p.shape[1])), p


# -- helpers -------------------------------------------------------------------------------------


def _hits(Y_true: MatrixLike, ids: Any, k: int) -> tuple[csr_array, np.ndarray]:
    """The labels as csr_array, and which of the first k ids are true labels, bool (n, k)."""
    Y = check.indicator(Y_true, "Y_true")
    if Y.shape[0] == 0:
        raise ValueError("Y_true has no rows; give the labels of one row or more")
    ids = check.id_table(ids, Y.shape[0], "ids")
    k = check.rank(k, ids.shape[1], "ids")
    ids = ids[:, :k]
    check.distinct(ids, "ids")

    n_labels = Y.shape[1]
    if _ndim(Y_true) == 1:  # class ids do not determine the number of labels
        n_labels = max(n_labels, int(ids.max()) + 1)
    elif ids.max() >= n_labels:
        raise ValueError(f"ids holds {ids.max()}, but Y_true has {n_labels} labels; give ids below "
                         "that")

    row = np.repeat(np.arange(Y.shape[0]), np.diff(Y.indptr))
    true_keys = row * n_labels + Y.indices  # ascending, as rows are sorted
    if not len(true_keys):
        return Y, np.zeros(ids.shape, dtype=bool)
    keys = _keys(ids, n_labels)
    place = np.minimum(np.searchsorted(true_keys, keys), len(true_keys) - 1)
    return Y, (true_keys[place] == keys) & (ids >= 0)


def _keys(ids: np.ndarray, width: int) -> np.ndarray:
    """One int64 key per (row, id): row * width + id, or -1 for none."""
    return np.where(ids >= 0, np.arange(len(ids))[:, None] * width + ids, -1)


def _labelled(Y: csr_array) -> tuple[np.ndarray, np.ndarray]:
    """Which rows have labels, bool (n,), and the numbers of labels of those rows."""
    n_true = np.diff(Y.indptr)
    labelled = n_true > 0
    if not labelled.any():
        raise ValueError("Y_true has no labels in any row; the metric is a mean over the rows that "
                         "have some")
    return labelled, n_true[labelled]


def _ndim(Y: Any) -> int:
    return np.ndim(Y)
