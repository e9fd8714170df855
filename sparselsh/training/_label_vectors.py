"""Initial weights from the data, for a network of sparse inputs, one hidden layer and labels.

Labels get random vectors. The weights of a feature are the mean of the vectors of the labels it
occurs with; the weights of a label point in the mean direction of its rows in the hidden layer. So
training starts from a nearest-centroid classifier, which finds a label that occurred only once by
the features that its row has in common with others.

Where features and labels are the same things, as the items of a session and the next item, the
features of a row tell like its labels what occurs together: their vectors are then added to those
of the labels.
"""
from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .._arrays.csr import CSR
from .._arrays.scipy import sp
from .._core import _sparse_products

if TYPE_CHECKING:
    from collections.abc import Callable

    from .._arrays.types import Floats

ROWS_PER_PART = 1 << 17  # rows whose hidden activations are held in memory at a time
# The product of the two norms, 10, is the logit of a row in exactly the direction of its label.
HIDDEN_NORM = 2.5  # mean norm of the hidden activations of a row
LABEL_NORM = 4.0  # norm of the weights of a label
NO_BIAS = np.zeros(0, np.float32)
SHARED_IDS_SAMPLE_ROWS = 1 << 16  # rows that `ids_are_shared` looks at
# Times as often as by chance; in sessions of a shop, 12,930 rows have a label among their features
# and 14 would by chance.
SHARED_IDS_MIN_RATIO = 10


def ids_are_shared(x: CSR, y: CSR) -> bool:
    """Whether feature j and label j seem to be the same thing.

    Their numbers must be equal, and rows must have a label among their own features much more often
    than among the features of other rows, where a frequent feature may equal a frequent label by
    chance.
    """
    if x.n_columns != y.n_columns:
        return False

    n = min(SHARED_IDS_SAMPLE_ROWS, x.shape[0])
    rows = np.arange(n) * x.shape[0] // max(n, 1)
    features, labels = (sp.csr_array((np.ones(part.nnz, bool), part.indices, part.indptr),
                                     shape=part.shape)
                        for part in (x.take(rows), y.take(rows)))
    others = labels[np.roll(np.arange(n), n // 2)]
    n_by_chance = max(1, features.multiply(others).nnz)
    return bool(features.multiply(labels).nnz > SHARED_IDS_MIN_RATIO * n_by_chance)


def label_vectors(x: CSR, y: CSR, n_hidden: int, relu: bool, shared: bool,
                  rng: np.random.Generator, n_threads: int,
                  sample_weight: Floats | None = None) -> tuple[Floats, Floats]:
    """Initial weights of the features and of the labels.

    ``V_f = mean over the rows with feature f of x_f B``, where B, of a row, is the mean of the
    random vectors of its labels: a random projection of the mean labels of the feature. If ids are
    `shared`, ``sum_f x_f r_f / |x|`` over the random vectors of the row's features is added to B.
    ``W_j ~ sum over the rows with label j of h / |h|``, where ``h = x V``. Features and labels
    without rows get zeros. Time: O((nnz(x) + nnz(y)) n_hidden).

    Parameters
    ----------
    x : CSR of shape (n_rows, n_features)
    y : CSR of shape (n_rows, n_labels)
    n_hidden : int
    relu : bool
        Whether the hidden layer has a ReLU.
    shared : bool
        Whether feature j and label j are the same thing.
    rng : numpy.random.Generator
    n_threads : int
    sample_weight : None or ndarray of shape (n_rows,), float32
        Factors of the rows in the means.

    Returns
    -------
    features : ndarray of shape (n_features, n_hidden), float32
    labels : ndarray of shape (n_labels, n_hidden), float32
    """
    features = feature_vectors(x, y, n_hidden, shared, rng, n_threads, sample_weight)
    return label_directions(x, y, features, relu, n_threads, sample_weight)


def feature_vectors(x: CSR, y: CSR, n_hidden: int, shared: bool, rng: np.random.Generator,
                    n_threads: int, sample_weight: Floats | None) -> Floats:
    """V of :func:`label_vectors`, before it is scaled; its columns do not depend on each other."""
    random = rng.random((y.n_columns, n_hidden), dtype=np.float32)
    random -= np.float32(0.5)
    n_labels = np.maximum(np.diff(y.indptr), 1)

    features = np.zeros((x.n_columns, n_hidden), np.float32)
    counts = np.zeros(x.n_columns, np.int64)
    for part in _parts(x):
        rows = y.slice(part.start, part.stop)
        weights = np.float32(1) / n_labels[part].astype(np.float32)
        means = rows._replace(data=np.repeat(weights, np.diff(rows.indptr)))
        inputs = x.slice(part.start, part.stop)
        vectors = _product(means, random, n_threads)
        if shared:
            vectors += _product(_normalized(inputs), random, n_threads)
        if sample_weight is not None:
            vectors *= sample_weight[part, None]
        transposed = _transposed(inputs)
        features += _product(transposed, vectors, n_threads)
        counts += np.diff(transposed.indptr)
    del random
    features /= np.maximum(counts, 1).astype(np.float32)[:, None]
    return features


def label_directions(x: CSR, y: CSR, features: Floats, relu: bool, n_threads: int,
                     sample_weight: Floats | None,
                     whole: Callable[[Floats], Floats] = lambda h: h) -> tuple[Floats, Floats]:
    """V, scaled, and W of :func:`label_vectors`.

    `whole` gives the activations of all hidden units, (n, n_hidden), from those of the columns of
    `features`, where these are some of them.
    """
    labels: Any = None
    total = 0.0
    for part in _parts(x):
        h = whole(_product(x.slice(part.start, part.stop), features, n_threads))
        if labels is None:
            labels = np.zeros((y.n_columns, h.shape[1]), np.float32)
        if relu:
            np.maximum(h, 0, out=h)
        norms = np.linalg.norm(h, axis=1, keepdims=True)
        total += float(norms.sum(dtype=np.float64))
        h *= _inverse(norms)
        if sample_weight is not None:
            h *= sample_weight[part, None]
        labels += _product(_transposed(y.slice(part.start, part.stop)), h, n_threads)

    if total > 0:
        features *= np.float32(HIDDEN_NORM * x.shape[0] / total)
    labels *= np.float32(LABEL_NORM) * _inverse(np.linalg.norm(labels, axis=1, keepdims=True))
    return features, labels


def _parts(x: CSR) -> list[slice]:
    """Some rows at a time."""
    return [slice(start, min(start + ROWS_PER_PART, x.shape[0]))
            for start in range(0, max(1, x.shape[0]), ROWS_PER_PART)]


def _normalized(x: CSR) -> CSR:
    """The rows, scaled to norm 1."""
    factors = _inverse(np.sqrt(x.squared_norms()))
    return x._replace(data=x.data * np.repeat(factors, np.diff(x.indptr)))


def _inverse(norms: Floats) -> Floats:
    return np.divide(1, norms, out=np.zeros_like(norms), where=norms > 0)


def _transposed(x: CSR) -> CSR:
    columns = sp.csr_array((x.data, x.indices, x.indptr), shape=x.shape).tocsc()
    return CSR(columns.indptr.astype(np.int64), columns.indices.astype(np.int32, copy=False),
               columns.data, x.shape[0])


def _product(x: CSR, w: Floats, n_threads: int) -> Floats:
    out = np.empty((x.shape[0], w.shape[1]), np.float32)
    _sparse_products.weighted_rows(x.indptr, x.indices, x.data, w, NO_BIAS, out, n_threads)
    return out
