"""The recipe by which `sparselsh train` and LSHClassifier train on sparse inputs and many labels.

Initial weights from the data; few epochs at a rate that depends on the number of steps; dropout of
hidden units in long trainings; then classifiers of the inputs, if they learn their rows.
docs/accuracy.md lists the experiments.
"""
from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np

from . import metrics
from .calibration import ranked_labels
from .datasets import CSRFile
from .layers import LSHLinear
from .losses import SoftmaxCrossEntropy
from .network import Network, refined
from .refinement import MAX_LOGISTIC_DUALS, MAX_LOGISTIC_WEIGHTS

MIN_LABELS = 1000  # fewer labels fit into a hidden layer of some hundred units,
MIN_FEATURES_PER_UNIT = 8  # but words do not, even where labels are few
# Weight of the errors of the classifiers. A word of a short text weighs much, and occurs with many
# labels: short texts need a stronger penalty of the weights.
C_OF_SHORT_ROWS, C_OF_LONG_ROWS = 0.3, 1.0
# Where labels are few, each is trained against most of the others. Then the classifiers can count
# for nearly everything.
C_OF_SHORT_ROWS_AND_FEW_LABELS = 0.4
SCALES_OF_FEW_LABELS = (0, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96)
MAX_FEATURES_OF_SHORT_ROWS = 30  # a mean
# Factor of a logistic regression that is added to the classifiers where each row has one of few
# labels.
LOGISTIC = 0.0625
# Each row is a negative example for some labels. Their cost grows with the features of the row.
MIN_NEGATIVES = 50
MAX_NEGATIVE_FEATURES = 100  # features per row up to which they are as many as the effort says
MAX_CANDIDATES = 200  # where rows have very many labels


class Effort(NamedTuple):
    """What a training spends; docs/accuracy.md says what it is worth."""

    epochs: int  # from weights computed from the data
    n_negatives: int  # labels that a row is a negative example for
    n_candidates: int  # labels that the classifiers rank again
    n_hidden: int  # hidden units of `sparselsh train`


EFFORTS = {"low": Effort(1, 50, 50, 256), "default": Effort(2, 200, 50, 256),
           "high": Effort(4, 400, 100, 512)}
EPOCHS_FROM_DATA = EFFORTS["default"].epochs
# Learning rate times steps: twice the distance that Adam can move a weight under a linear schedule.
RATE_TIMES_STEPS = 3.3
MIN_RATE, MAX_RATE = 5e-4, 2e-2
DROPOUT = 0.2  # fraction of the hidden units, from DROPOUT_MIN_STEPS on
# Long enough to memorize the rows; in shorter trainings dropout lowers the accuracy.
DROPOUT_MIN_STEPS = 2000
# Rows that are held out, at most a tenth of all. Where labels are few, each has many rows and can
# spare some.
HELD_OUT_ROWS_OF_FEW_LABELS, HELD_OUT_ROWS_OF_MANY_LABELS = 4096, 1024
MIN_ROWS_TO_SPLIT = 500
# A part of the rows that were held out, from which on it pays to train the classifiers once more,
# on all rows.
MIN_HELD_OUT_TO_REPEAT = 0.05
SPLIT_SEED = 0  # a training that is resumed leaves the same rows out
MAX_CHECKED_ROWS = 2048  # training rows on which classifiers are checked
MIN_TRAINING_PRECISION = 0.5  # P@1 on these rows; classifiers below it are removed


def suits(network: Network, X: Any) -> bool:
    """Whether the recipe applies to this network and these inputs."""
    return (len(network.layers) == 2 and not isinstance(network.layers[0], LSHLinear)
            and isinstance(network.layers[1], LSHLinear)
            and isinstance(network.loss, SoftmaxCrossEntropy)
            and suits_data(X, network.n_labels, network.layers[0].n_out))


def suits_data(X: Any, n_labels: int, n_hidden: int) -> bool:
    """Whether the hidden layer is a bottleneck between these inputs and these labels."""
    is_sparse = isinstance(X, CSRFile) or hasattr(X, "tocsr")
    return is_sparse and (n_labels >= MIN_LABELS or X.shape[1] >= MIN_FEATURES_PER_UNIT * n_hidden)


def begin(network: Network, X: Any, Y: Any, n_steps: int, *, dropout: float | None = None,
          shared_ids: bool | Literal["auto"] = "auto", sample_weight: Any = None) -> None:
    """Set the initial weights, and the dropout of the hidden layer: by n_steps if it is None."""
    network.initialize(X, Y, shared_ids=shared_ids, sample_weight=sample_weight)
    if dropout is None:
        dropout = DROPOUT if n_steps >= DROPOUT_MIN_STEPS else 0.0
    network.layers[0].dropout = dropout


def steps(n_rows: int, batch_size: int, epochs: int) -> int:
    """Number of steps of a training."""
    return epochs * -(-n_rows // batch_size)


def rate(n_steps: int) -> float:
    """The learning rate at the first step; smaller for more steps."""
    return float(np.clip(RATE_TIMES_STEPS / n_steps, MIN_RATE, MAX_RATE))


def n_held_out(n_rows: int, n_labels: int) -> int:
    """Rows that the training leaves out, by which it is calibrated; 0 where rows are few."""
    most = (HELD_OUT_ROWS_OF_FEW_LABELS if n_labels < MIN_LABELS else
            HELD_OUT_ROWS_OF_MANY_LABELS)
    return 0 if n_rows < MIN_ROWS_TO_SPLIT else min(most, n_rows // 10)


def split(X: Any, Y: Any, n_labels: int,
          n_rows: int | None = None) -> tuple[np.ndarray | None, Any]:
    """Leave rows out of a training that may be resumed, which stays one of all rows.

    Parameters
    ----------
    X, Y
        Sparse matrices, or a CSRFile and None.
    n_labels : int
    n_rows : int or None
        Number of rows to leave out; None for `n_held_out`.

    Returns
    -------
    sample_weight : ndarray of shape (n,), float32, or None
        0 for the rows that are left out, a random sample that depends on their number alone.
    held_out : (X, Y) or None
        These rows, in memory.
    """
    n_rows = n_held_out(X.shape[0], n_labels) if n_rows is None else n_rows
    if not n_rows:
        return None, None
    rows = np.sort(np.random.default_rng(SPLIT_SEED).permutation(X.shape[0])[:n_rows])
    weight = np.ones(X.shape[0], np.float32)
    weight[rows] = 0
    return weight, X[rows] if isinstance(X, CSRFile) else (X[rows], Y[rows])


def refine(network: Network, X: Any, Y: Any = None, held_out: tuple[Any, Any] | None = None, *,
           effort: str = "default", sample_weight: Any = None, verbose: bool = True,
           again: bool = False) -> bool:
    """Add classifiers of the inputs to a trained network; remove them if they do harm.

    Classifiers learn to tell rows apart. Where the labels of a row follow from its features, as
    those of a text do, they rank other rows better than the network alone. Where the same features
    occur with other labels each time, as in sessions of a shop, there is nothing to tell apart, and
    they learn noise. The rows that were held out tell which it is, and how much the classifiers
    count. Without such rows, P@1 on the training rows distinguishes the cases: it is 77 to 99 % on
    five data sets where classifiers help, and 31 % on the one where they do not (docs/accuracy.md).

    With `again`, the classifiers keep what `refine_again` starts from.

    Returns
    -------
    bool
        Whether the classifiers were kept.
    """
    options = _options(network, X, Y, effort) | {"sample_weight": sample_weight,
                                                 "verbose": verbose}
    if again:
        refined(network, X, Y, keep=True, **options)
    else:
        network.refine(X, Y, **options)
    if held_out is not None and getattr(held_out[1], "nnz", True):  # rows may have no label
        scales = {"scales": SCALES_OF_FEW_LABELS} if network.n_labels < MIN_LABELS else {}
        network.tune_refinement(*held_out, **scales)
        return network.refinement is not None

    n_rows = X.shape[0]
    rows = np.linspace(0, n_rows - 1, min(MAX_CHECKED_ROWS, n_rows)).astype(np.int64)
    x, y = X[rows] if isinstance(X, CSRFile) else (X.tocsr()[rows], _rows_of(Y, rows))
    computed_share = network.computed_share
    best, _ = network.topk(x, 1)
    network.computed_share = computed_share  # `topk` has overwritten that of the training
    if metrics.precision_at_k(y, best, 1) < MIN_TRAINING_PRECISION:
        network.refinement = None
    return network.refinement is not None


def repeats(n_held_out: int, n_rows: int) -> bool:
    """Whether so many rows, of all, are enough to train the classifiers once more, on all."""
    return n_held_out >= MIN_HELD_OUT_TO_REPEAT * n_rows


def refine_again(network: Network, X: Any, Y: Any, *, rows: np.ndarray | None = None,
                 effort: str = "default", sample_weight: Any = None, verbose: bool = True) -> None:
    """Train the classifiers once more, on all rows: on those that were held out as well.

    With `rows`, the places of the others among X, it starts from what `refine` has learned of them
    with `again`. How much the classifiers count and the map to probabilities stay
    as the held-out rows, when they were unseen, have determined them.
    """
    old, calibration = network.refinement, network.calibration
    assert old is not None
    options = _options(network, X, Y, effort) | {
        "scale": old.scale, "n_candidates": old.n_candidates}
    if old.training is not None:
        options["n_negatives"] = old.training.candidates.shape[1]
    refined(network, X, Y, sample_weight=sample_weight, verbose=verbose,
            rows=None if rows is None else rows.astype(np.int32), **options)
    network.calibration = calibration


def _options(network: Network, X: Any, Y: Any, effort: str) -> dict[str, Any]:
    """The arguments of `Network.refine` for rows like these."""
    spent = EFFORTS[effort]
    n_features = X.nnz / max(1, X.shape[0])  # of a row
    n = spent.n_candidates
    if hasattr(Y, "indptr"):
        n = min(MAX_CANDIDATES, max(n, ranked_labels(np.diff(Y.indptr), network.n_labels)))
    share = min(1.0, MAX_NEGATIVE_FEATURES / max(1, n_features))
    n_negatives = max(MIN_NEGATIVES, int(share * spent.n_negatives))
    suits_regression = (network.n_labels < MIN_LABELS and _has_one_label_each(Y)
                        and network.n_features * network.n_labels <= MAX_LOGISTIC_WEIGHTS
                        and X.shape[0] * network.n_labels <= MAX_LOGISTIC_DUALS)
    return {"logistic": LOGISTIC if suits_regression else 0.0,
            "n_negatives": max(n, n_negatives), "n_candidates": n,
            "C": refinement_cost(n_features, network.n_labels)}


def refinement_cost(n_features: float, n_labels: int) -> float:
    """C of the classifiers of rows with so many features on average."""
    if n_features > MAX_FEATURES_OF_SHORT_ROWS:
        return C_OF_LONG_ROWS
    return C_OF_SHORT_ROWS if n_labels >= MIN_LABELS else C_OF_SHORT_ROWS_AND_FEW_LABELS


def _has_one_label_each(Y: Any) -> bool:
    """Whether Y is class ids, or an indicator with one label in each row; False for a file."""
    if hasattr(Y, "indptr"):
        return bool((np.diff(Y.indptr) == 1).all())
    return Y is not None and np.ndim(Y) == 1


def _rows_of(Y: Any, rows: np.ndarray) -> Any:
    """The given rows of class ids or of an indicator."""
    return Y.tocsr()[rows] if hasattr(Y, "tocsr") else np.asarray(Y)[rows]
