"""How `sparselsh train` and LSHClassifier train a network whose inputs are sparse and whose labels are many.

First weights from the data, few epochs at a rate that goes by the number of steps, then classifiers of the inputs where
a trial on some thousand rows says that they pay. docs/accuracy.md has what was tried.
"""
from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from . import metrics
from .csrfile import CSRFile
from .layers import Linear
from .losses import SoftmaxCrossEntropy
from .lsh_layers import LSHLinear
from .network import Network

if TYPE_CHECKING:
    from ._csr import CSR

MANY_LABELS = 1000  # a hidden layer of some hundred units has room for fewer
EPOCHS = 2  # that are worth their time from weights made of the data
PATH = 3.3  # rate times steps: twice the way that Adam can move a weight under a linear schedule
RATES = 5e-4, 2e-2
TRIAL_ROWS = 8192, 2048  # to learn from, to measure on
TRIAL_HIDDEN = 128


def suits(network: Network, X: Any) -> bool:
    """Whether the recipe is for this network and these inputs."""
    return (len(network.layers) == 2 and type(network.layers[0]) is Linear and isinstance(network.layers[1], LSHLinear)
            and network.n_labels >= MANY_LABELS and isinstance(network.loss, SoftmaxCrossEntropy)
            and (isinstance(X, CSRFile) or hasattr(X, "tocsr")))


def rate(n_rows: int, batch_size: int, epochs: int) -> float:
    """The learning rate at the first step: the more steps, the smaller."""
    return float(np.clip(PATH / (epochs * -(-n_rows // batch_size)), *RATES))


def refining_pays(network: Network, X: Any, Y: Any = None, *, seed: int = 0) -> bool:
    """Whether classifiers of the inputs rank the labels of unseen rows better than a network alone.

    A small network, with weights made of some thousand rows, is asked before and after. Classifiers learn to tell rows
    apart, and are good where a row's labels follow from its features, as those of a text do. Where the same features
    come with other labels each time, as in sessions of a shop, there is nothing to tell apart, and they do harm.
    """
    x, y = network._rows_of(X, Y)
    n = x.shape[0]
    n_train = min(TRIAL_ROWS[0], n * 4 // 5)
    chosen = np.random.default_rng(seed).permutation(n)[:n_train + TRIAL_ROWS[1]].astype(np.int64)
    train, test = np.sort(chosen[:n_train]), np.sort(chosen[n_train:])
    seen, y_train = _renumbered(y.take(train))
    if not len(test) or len(seen) == 0:
        return False
    trial = Network([Linear(x.shape[1], TRIAL_HIDDEN), LSHLinear(TRIAL_HIDDEN, len(seen))], random_state=seed,
                    n_threads=network.n_threads)
    x_train, x_test, truth = x.take(train).to_scipy(), x.take(test), y.take(test).to_scipy()
    trial.initialize(x_train, y_train)
    before = metrics.precision_at_k(truth, seen[trial._topk(x_test, 1, False)[0]], 1)
    trial.refine(x_train, y_train, verbose=False)
    return metrics.precision_at_k(truth, seen[trial._topk(x_test, 1, False)[0]], 1) > before


def _renumbered(y: CSR) -> tuple[np.ndarray, Any]:
    """The labels that occur, ascending, and the rows with these alone, numbered by their places."""
    seen, indices = np.unique(y.indices, return_inverse=True)
    return seen, y._replace(indices=indices.astype(np.int32), n_columns=max(1, len(seen))).to_scipy()
