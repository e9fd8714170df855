"""First weights made from the data, for a network of a sparse input, a hidden layer and labels.

Labels get random vectors. A feature's weights are the mean of the vectors of the labels it was seen with, a label's
weights point to the mean direction of its rows in the hidden layer. So a label that was seen once is found at once by
what its row has in common with others, and training begins with a classifier by nearest centroids.

Where features and labels are the same things, as the items of a session and the next one, a row's features say
as its labels do what goes with what: their vectors are then added to those of the labels.
"""
from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .._arrays.csr import CSR
from .._arrays.scipy import sp
from .._core import _products

if TYPE_CHECKING:
    from .._arrays.types import Floats

ROWS = 1 << 17  # of the hidden layer that are held at a time
HIDDEN_NORM = 2.5  # mean norm of the hidden activations of a row, and norm of the weights of a label: their product,
LABEL_NORM = 4.0  # 10, is the logit of a row that points where the label does
NO_BIAS = np.zeros(0, np.float32)
SAMPLE = 1 << 16  # rows that are looked at to see whether features and labels are the same things
OFTENER = 10  # than by chance a row's label is then among its features: 12,930 rows to 14 in sessions of a shop


def ids_are_shared(x: CSR, y: CSR) -> bool:
    """Whether feature j and label j seem to be the same thing.

    Their numbers must be equal, and rows must have a label among their own features much more often than among those
    of other rows, where frequent features and frequent labels may meet by chance.
    """
    if x.n_columns != y.n_columns:
        return False
    n = min(SAMPLE, x.shape[0])
    rows = np.arange(n) * x.shape[0] // max(n, 1)
    features, labels = (sp.csr_array((np.ones(part.nnz, bool), part.indices, part.indptr), shape=part.shape)
                        for part in (x.take(rows), y.take(rows)))
    others = labels[np.roll(np.arange(n), n // 2)]
    return bool(features.multiply(labels).nnz > OFTENER * max(1, features.multiply(others).nnz))


def label_vectors(x: CSR, y: CSR, n_hidden: int, relu: bool, shared: bool, rng: np.random.Generator,
                  n_threads: int) -> tuple[Floats, Floats]:
    """Weights of the features (n_features, n_hidden) and of the labels (n_labels, n_hidden).

    ``V_f = mean over the rows with feature f of x_f B``, where B, of a row, is the mean of the random vectors of its
    labels: a random projection of the features' mean labels. With `shared` numbers ``sum_f x_f r_f / |x|``, of the
    vectors of its features, is added to it. ``W_j ~ sum over the rows with label j of h / |h|``, where
    ``h = x V``. Features and labels without rows have none.   O((nnz(x) + nnz(y)) n_hidden)
    """
    random = rng.random((y.n_columns, n_hidden), dtype=np.float32)
    random -= np.float32(0.5)
    n_labels = np.maximum(np.diff(y.indptr), 1)
    parts = [slice(start, min(start + ROWS, x.shape[0])) for start in range(0, x.shape[0], ROWS)]

    features = np.zeros((x.n_columns, n_hidden), np.float32)
    counts = np.zeros(x.n_columns, np.int64)
    for part in parts:
        rows = y.slice(part.start, part.stop)
        means = rows._replace(data=np.repeat(np.float32(1) / n_labels[part].astype(np.float32), np.diff(rows.indptr)))
        inputs = x.slice(part.start, part.stop)
        vectors = _product(means, random, n_threads)
        if shared:
            vectors += _product(_of_length_one(inputs), random, n_threads)
        transposed = _transposed(inputs)
        features += _product(transposed, vectors, n_threads)
        counts += np.diff(transposed.indptr)
    del random
    features /= np.maximum(counts, 1).astype(np.float32)[:, None]

    labels, total = np.zeros((y.n_columns, n_hidden), np.float32), 0.0
    for part in parts:
        h = _product(x.slice(part.start, part.stop), features, n_threads)
        if relu:
            np.maximum(h, 0, out=h)
        norms = np.linalg.norm(h, axis=1, keepdims=True)
        total += float(norms.sum(dtype=np.float64))
        h *= _inverse(norms)
        labels += _product(_transposed(y.slice(part.start, part.stop)), h, n_threads)
    if total > 0:
        features *= np.float32(HIDDEN_NORM * x.shape[0] / total)
    labels *= np.float32(LABEL_NORM) * _inverse(np.linalg.norm(labels, axis=1, keepdims=True))
    return features, labels


def _of_length_one(x: CSR) -> CSR:
    return x._replace(data=x.data * np.repeat(_inverse(np.sqrt(x.squared_norms())), np.diff(x.indptr)))


def _inverse(norms: Floats) -> Floats:
    return np.divide(1, norms, out=np.zeros_like(norms), where=norms > 0)


def _transposed(x: CSR) -> CSR:
    columns = sp.csr_array((x.data, x.indices, x.indptr), shape=x.shape).tocsc()
    return CSR(columns.indptr.astype(np.int64), columns.indices.astype(np.int32, copy=False), columns.data, x.shape[0])


def _product(x: CSR, w: Floats, n_threads: int) -> Floats:
    out = np.empty((x.shape[0], w.shape[1]), np.float32)
    _products.weighted_rows(x.indptr, x.indices, x.data, w, NO_BIAS, out, n_threads)
    return out
