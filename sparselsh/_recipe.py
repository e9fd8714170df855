"""How `sparselsh train` and LSHClassifier train a network whose inputs are sparse and whose labels are many.

First weights from the data, few epochs at a rate that goes by the number of steps, in long trainings with some of the
hidden units left out, then classifiers of the inputs, if they learn their rows. docs/accuracy.md has what was tried.
"""
from __future__ import annotations

from typing import Any, Literal

import numpy as np

from . import metrics
from .datasets import CSRFile
from .layers import Linear, LSHLinear
from .losses import SoftmaxCrossEntropy
from .network import Network

MANY_LABELS = 1000  # a hidden layer of some hundred units has room for fewer
EPOCHS = 2  # that are worth their time from weights made of the data
PATH = 3.3  # rate times steps: twice the way that Adam can move a weight under a linear schedule
RATES = 5e-4, 2e-2
DROPOUT = 0.2  # of hidden units, in
LONG = 2000  # steps and more: long enough to learn rows by heart; in short ones it takes from what there is to learn
CHECKED_ROWS = 2048
LEARNT = 0.5  # P@1 on rows of the training below which classifiers have found nothing


def suits(network: Network, X: Any) -> bool:
    """Whether the recipe is for this network and these inputs."""
    return (len(network.layers) == 2 and type(network.layers[0]) is Linear and isinstance(network.layers[1], LSHLinear)
            and network.n_labels >= MANY_LABELS and isinstance(network.loss, SoftmaxCrossEntropy)
            and (isinstance(X, CSRFile) or hasattr(X, "tocsr")))


def begin(network: Network, X: Any, Y: Any, n_steps: int, *, dropout: float | None = None,
          shared_ids: bool | Literal["auto"] = "auto") -> None:
    """Give a network its first weights, and its hidden layer a dropout for so many steps unless one is asked for."""
    network.initialize(X, Y, shared_ids=shared_ids)
    if dropout is None:
        dropout = DROPOUT if n_steps >= LONG else 0.0
    network.layers[0].dropout = dropout


def steps(n_rows: int, batch_size: int, epochs: int) -> int:
    """Steps of a training."""
    return epochs * -(-n_rows // batch_size)


def rate(n_steps: int) -> float:
    """The learning rate at the first step: the more steps, the smaller."""
    return float(np.clip(PATH / n_steps, *RATES))


def refine(network: Network, X: Any, Y: Any = None, *, sample_weight: Any = None, verbose: bool = True) -> bool:
    """Add classifiers of the inputs to a trained network; take them away, and return False, if they do harm.

    Classifiers learn to tell rows apart. Where a row's labels follow from its features, as those of a text do, they
    rank nearly all the rows right that they have learnt from, and others better than the network alone. Where the same
    features come with other labels each time, as in sessions of a shop, there is nothing to tell apart, and what they
    have learnt is noise. The rows of the training tell these cases apart: 77 to 99 % right in five sets of data where
    classifiers help, 31 % in the one where they do not (docs/accuracy.md).
    """
    network.refine(X, Y, sample_weight=sample_weight, verbose=verbose)
    n_rows = X.shape[0]
    rows = np.linspace(0, n_rows - 1, min(CHECKED_ROWS, n_rows)).astype(np.int64)
    x, y = X[rows] if isinstance(X, CSRFile) else (X.tocsr()[rows], _rows_of(Y, rows))
    computed_share = network.computed_share
    best, _ = network.topk(x, 1)
    network.computed_share = computed_share  # it is still that of the training
    if metrics.precision_at_k(y, best, 1) < LEARNT:
        network.refinement = None
    return network.refinement is not None


def _rows_of(Y: Any, rows: np.ndarray) -> Any:
    """Some rows of class ids, or of an indicator."""
    return Y.tocsr()[rows] if hasattr(Y, "tocsr") else np.asarray(Y)[rows]
