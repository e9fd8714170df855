"""Initial weights from the data, for a network of sparse inputs, one hidden layer and labels.

Labels get random vectors. The weights of a feature are the mean of the vectors of the labels it
occurs with; the weights of a label point in the mean direction of its rows in the hidden layer. So
training starts from a nearest-centroid classifier, which finds a label that occurred only once by
the features that its row has in common with others.

A mean knows nothing of the other features of a row. Where rows are short, such as titles, the
weights of the features are those of a ridge regression of the vectors of the rows instead. As it is
linear in the vectors, it is a random projection of the regressions of all labels.

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
# Of the least squares: the penalty of the squared weights, in mean squared norms of a row, and the
# steps, after which it is nearly solved. Fewer hold the weights of rare features back, too.
RIDGE = 3.0
RIDGE_STEPS = 5
MIN_SOLVED_LABELS = 256  # few have room in a hidden layer, and gain nothing
# A mean. Longer rows rank their labels worse by least squares, with classifiers (docs/accuracy.md).
MAX_FEATURES_OF_SOLVED_ROWS = 30
MAX_SOLVED_ENTRIES = 1 << 27  # of the rows, which are held transposed, too
COLUMNS_PER_BLOCK = 64  # hidden units that are solved for at a time
# Largest numbers of the rows, as a power of two, up to which, and from the reciprocal on, their
# fourth powers neither overflow nor vanish; others are multiplied by one
MAX_EXPONENT = 24
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
    Otherwise, where rows have at most 30 features on average and labels
    are 256 or more, V minimizes nearly
    ``sum_i |x_i V - (B_i - mean B)|^2 + 3 q |V|^2``, where q is the mean of ``|x_i|^2``.
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
        Factors of the rows in the means; only their ratios count.

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
    x, _ = _in_range(x)
    sample_weight = _relative(sample_weight)
    random = rng.random((y.n_columns, n_hidden), dtype=np.float32)
    random -= np.float32(0.5)
    if (shared or y.n_columns < MIN_SOLVED_LABELS
            or x.nnz > min(MAX_FEATURES_OF_SOLVED_ROWS * x.shape[0], MAX_SOLVED_ENTRIES)):
        return _means_of_features(x, y, random, shared, n_threads, sample_weight)

    parts = [(x.slice(part.start, part.stop), None if sample_weight is None else
              sample_weight[part, None]) for part in _parts(x)]
    pairs = [(inputs, _transposed(inputs), weight) for inputs, weight in parts]
    total = np.float32(x.shape[0] if sample_weight is None else sample_weight.sum())
    squares = np.zeros(x.n_columns, np.float32)  # the diagonal of X^T X
    for inputs, transposed, weight in pairs:
        own = _squared(transposed)
        squares += _product(own, np.ones((inputs.shape[0], 1), np.float32) if weight is None
                            else weight, n_threads)[:, 0]
    ridge = np.float32(RIDGE) * squares.sum() / max(total, np.float32(1))

    features = np.empty((x.n_columns, n_hidden), np.float32)
    for first in range(0, n_hidden, COLUMNS_PER_BLOCK):
        block = slice(first, first + COLUMNS_PER_BLOCK)
        vectors = [_mean_vectors(y.slice(part.start, part.stop),
                                 np.ascontiguousarray(random[:, block]), n_threads)
                   for part in _parts(x)]
        mean = sum((v if w is None else v * w).sum(axis=0)
                   for v, (_, w) in zip(vectors, parts, strict=True)) / max(total, np.float32(1))
        pull = np.zeros((x.n_columns, vectors[0].shape[1]), np.float32)
        for v, (_, transposed, weight) in zip(vectors, pairs, strict=True):
            v -= mean
            if weight is not None:
                v *= weight
            pull += _product(transposed, v, n_threads)
        del vectors
        features[:, block] = _least_squares(pairs, pull, squares + ridge, ridge, n_threads)
    if not features.any():  # all rows have the same labels: there is nothing to tell apart
        return _means_of_features(x, y, random, shared, n_threads, sample_weight)
    return features


def _least_squares(pairs: list[tuple[CSR, CSR, Floats | None]], pull: Floats, diagonal: Floats,
                   ridge: np.float32, n_threads: int) -> Floats:
    """V with ``(X^T X + ridge) V = pull`` nearly, by some steps of conjugate gradients.

    `pairs` are parts of X, their transposes and the weights of their rows; `diagonal` is that of
    the matrix, by which the steps are scaled. Overwrites `pull`, which becomes the residual.
    """
    scale = _inverse(diagonal)[:, None]
    solution = np.zeros_like(pull)
    direction = pull * scale
    square = (pull * direction).sum(axis=0)
    for _ in range(RIDGE_STEPS):
        image = ridge * direction
        for inputs, transposed, weight in pairs:
            rows = _product(inputs, direction, n_threads)
            if weight is not None:
                rows *= weight
            image += _product(transposed, rows, n_threads)
        length = _ratio(square, (direction * image).sum(axis=0))
        solution += length * direction
        image *= length
        pull -= image
        np.multiply(pull, scale, out=image)
        before, square = square, (pull * image).sum(axis=0)
        direction *= _ratio(square, before)
        direction += image
    return solution


def _mean_vectors(y: CSR, random: Floats, n_threads: int) -> Floats:
    """The mean of the random vectors of the labels of each row."""
    n_labels = np.diff(y.indptr)
    weights = np.float32(1) / np.maximum(n_labels, 1).astype(np.float32)
    return _product(y._replace(data=np.repeat(weights, n_labels)), random, n_threads)


def _means_of_features(x: CSR, y: CSR, random: Floats, shared: bool, n_threads: int,
                       sample_weight: Floats | None) -> Floats:
    """V by the mean of the vectors of the rows of each feature."""
    features = np.zeros((x.n_columns, random.shape[1]), np.float32)
    counts = np.zeros(x.n_columns, np.int64)
    for part in _parts(x):
        inputs = x.slice(part.start, part.stop)
        vectors = _mean_vectors(y.slice(part.start, part.stop), random, n_threads)
        if shared:
            vectors += _product(_normalized(inputs), random, n_threads)
        if sample_weight is not None:
            vectors *= sample_weight[part, None]
        transposed = _transposed(inputs)
        features += _product(transposed, vectors, n_threads)
        counts += np.diff(transposed.indptr)
    features /= np.maximum(counts, 1).astype(np.float32)[:, None]
    return features


def label_directions(x: CSR, y: CSR, features: Floats, relu: bool, n_threads: int,
                     sample_weight: Floats | None,
                     whole: Callable[[Floats], Floats] = lambda h: h) -> tuple[Floats, Floats]:
    """V, scaled, and W of :func:`label_vectors`.

    `whole` gives the activations of all hidden units, (n, n_hidden), from those of the columns of
    `features`, where these are some of them.
    """
    x, factor = _in_range(x)
    sample_weight = _relative(sample_weight)
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
        features *= np.float32(HIDDEN_NORM * x.shape[0] / total * factor)
    labels *= np.float32(LABEL_NORM) * _inverse(np.linalg.norm(labels, axis=1, keepdims=True))
    return features, labels


def _parts(x: CSR) -> list[slice]:
    """Some rows at a time."""
    return [slice(start, min(start + ROWS_PER_PART, x.shape[0]))
            for start in range(0, max(1, x.shape[0]), ROWS_PER_PART)]


def _in_range(x: CSR) -> tuple[CSR, float]:
    """The rows, times a power of two where their numbers are very large or small, and the power."""
    largest = max(float(x.data.max()), -float(x.data.min())) if x.nnz else 0.0
    exponent = int(np.frexp(largest)[1])
    if largest == 0 or abs(exponent) <= MAX_EXPONENT:
        return x, 1.0
    factor = 2.0**min(max(-exponent, -100), 100)
    return x._replace(data=x.data * np.float32(factor)), factor


def _relative(sample_weight: Floats | None) -> Floats | None:
    """The weights of rows, with a mean of 1 of those above 0."""
    if sample_weight is None or not sample_weight.any():
        return sample_weight
    mean = sample_weight[sample_weight > 0].mean(dtype=np.float64)
    return (sample_weight / mean).astype(np.float32)


def _normalized(x: CSR) -> CSR:
    """The rows, scaled to norm 1."""
    factors = _inverse(np.sqrt(x.squared_norms()))
    return x._replace(data=x.data * np.repeat(factors, np.diff(x.indptr)))


def _squared(x: CSR) -> CSR:
    return x._replace(data=x.data * x.data)


def _inverse(norms: Floats) -> Floats:
    return np.divide(1, norms, out=np.zeros_like(norms), where=norms > 0)


def _ratio(a: Floats, b: Floats) -> Floats:
    """a / b, 0 where b is 0 but for rounding."""
    return np.divide(a, b, out=np.zeros_like(a), where=b >= np.finfo(np.float32).tiny)


def _transposed(x: CSR) -> CSR:
    columns = sp.csr_array((x.data, x.indices, x.indptr), shape=x.shape).tocsc()
    return CSR(columns.indptr.astype(np.int64), columns.indices.astype(np.int32, copy=False),
               columns.data, x.shape[0])


def _product(x: CSR, w: Floats, n_threads: int) -> Floats:
    out = np.empty((x.shape[0], w.shape[1]), np.float32)
    _sparse_products.weighted_rows(x.indptr, x.indices, x.data, w, NO_BIAS, out, n_threads)
    return out
