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
    "ndcg_at_k",
    "neighbour_recall",
    "precision_at_k",
    "propensities",
    "psp_at_k",
    "recall_at_k",
]


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
    true_ids = np.asarray(true_ids)
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
