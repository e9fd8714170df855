"""What LSHClassifier and LSHRegressor have in common: parameters, checks, the network that is made for the data.

Imported by `estimators` alone, after it has found scikit-learn.
"""
from __future__ import annotations

import itertools
import numbers
import os
import warnings
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from joblib import effective_n_jobs
from sklearn.base import BaseEstimator
from sklearn.model_selection import train_test_split
from sklearn.utils import check_random_state
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from .. import _recipe
from .. import _validation as check
from .._arrays.scipy import sp
from ..callbacks import EarlyStopping, StopOnInterrupt
from ..layers import Linear, LSHLinear
from ..network import Network
from ..optim import SGD, Adam

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike

    from .._arrays.types import Floats, MatrixLike
    from ..callbacks import Callback

SCHEDULES = {"constant": None, "linear": "linear", "cosine": "cosine"}
BATCH = 64, 256  # least and largest by default; a small batch may lack the rows that a class weight is for
STEPS = 1000  # that a training takes at least, by default, as far as EPOCHS allows
EPOCHS = 5, 200
STEADY = 4  # rows from which on an output has the same bits whatever the others are: see FEW in _gemm.pyx
RATE = 0.01
PARTIAL_RATE = 0.1  # of `learning_rate_init`: partial_fit has no end to lower the rate towards


class LSHEstimator(BaseEstimator):
    """What both have in common. A subclass encodes targets and reads answers."""

    def __init__(self, hidden_layer_sizes: int | Sequence[int] = (128,), activation: str = "auto", *,
                 hidden_density: float = 1.0, dropout: float | Literal["auto"] = "auto", solver: str = "adam",
                 learning_rate_init: float | Literal["auto"] = "auto", learning_rate: str = "linear",
                 momentum: float = 0.9, weight_decay: float = 0.01,
                 batch_size: int | Literal["auto"] = "auto", max_iter: int | Literal["auto"] = "auto",
                 shuffle: bool = True, early_stopping: bool = False, validation_fraction: float = 0.1,
                 n_iter_no_change: int = 5, tol: float = 1e-4, warm_start: bool = False,
                 random_state: int | np.random.RandomState | None = None, n_jobs: int | None = None,
                 verbose: bool = False) -> None:
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.hidden_density = hidden_density
        self.dropout = dropout
        self.solver = solver
        self.learning_rate_init = learning_rate_init
        self.learning_rate = learning_rate
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.batch_size = batch_size
        self.max_iter = max_iter
        self.shuffle = shuffle
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.tol = tol
        self.warm_start = warm_start
        self.random_state = random_state
        self.n_jobs = n_jobs
        self.verbose = verbose

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags

    # -- training ---------------------------------------------------------------------------------------------

    def fit(self, X: MatrixLike, y: Any, sample_weight: ArrayLike | None = None) -> Self:
        """Train.

        Parameters
        ----------
        X : array or sparse matrix of shape (n_samples, n_features)
        y : array of shape (n_samples,), or array or sparse matrix of shape (n_samples, n_outputs)
        sample_weight : array of shape (n_samples,) or None

        Returns
        -------
        self
        """
        goes_on = self.warm_start and hasattr(self, "network_")
        self._check_parameters()
        X, y = self._validated(X, y, reset=not goes_on)
        weight = None if sample_weight is None else _check_sample_weight(sample_weight, X, ensure_non_negative=True)
        targets = self._encode(y, reset=not goes_on)
        weight = self._weights(targets, weight)
        rng = check_random_state(self.random_state)
        stop = StopOnInterrupt()
        callbacks: list[Callback] = [stop]
        validation = None
        if weight is not None:
            X, targets, weight = _with_weight(X, targets, weight)
        if not goes_on:
            self.network_ = self._make_network(X, rng)
        aside = None
        if self.early_stopping:
            X, targets, weight, validation = self._split(X, targets, weight, rng)
            callbacks.append(EarlyStopping(patience=self.n_iter_no_change, min_delta=self.tol))
        elif n_aside := self._n_aside(X):
            rows = rng.permutation(X.shape[0])
            aside, rows = rows[:n_aside], np.sort(rows[n_aside:])
            aside = X[aside], targets[aside]
            X, targets, weight = X[rows], targets[rows], None if weight is None else weight[rows]
        network, n_before = self.network_, len(self.network_.history) if goes_on else 0
        batch_size = self._batch_size(X.shape[0])
        made = not goes_on and self._takes_weights_of_data(X)
        epochs = self._epochs(X.shape[0], batch_size, made)
        lr = self._rate
        if made:
            n_steps = _recipe.steps(X.shape[0], batch_size, epochs)
            lr = _recipe.rate(n_steps) if self.learning_rate_init == "auto" else lr
            _recipe.begin(network, X, targets, n_steps, dropout=None if self.dropout == "auto" else self.dropout)
        network.fit(X, targets, sample_weight=weight,
                    optimizer=self._optimizer(lr, SCHEDULES[self.learning_rate], "row" if made else "element"),
                    epochs=epochs, batch_size=batch_size, validation=validation, shuffle=self.shuffle,
                    callbacks=callbacks, verbose=bool(self.verbose))
        if stop.interrupted:
            warnings.warn("Ctrl-C has ended the training; the model is that after the last step", stacklevel=2)
        self._after_training(n_before, validation)
        if not stop.interrupted:
            self._refine(X, targets, weight)
        self._after_fit(X, targets, aside if validation is None else validation)
        return self

    def _n_aside(self, X: Any) -> int:
        """How many rows what follows the training needs that the training has not seen."""
        return 0

    def _takes_weights_of_data(self, X: Any) -> bool:
        """Whether the network starts from weights made of the data."""
        return False

    def _refine(self, X: Any, targets: Any, weight: np.ndarray | None) -> None:
        """What follows the training."""

    @property
    def _rate(self) -> float:
        return RATE if self.learning_rate_init == "auto" else self.learning_rate_init

    def _partial_fit(self, X: MatrixLike, y: Any, sample_weight: ArrayLike | None, first: bool) -> Self:
        X, y = self._validated(X, y, reset=first)
        weight = None if sample_weight is None else _check_sample_weight(sample_weight, X, ensure_non_negative=True)
        targets = self._encode(y, reset=first)
        weight = self._weights(targets, weight)
        if weight is not None:
            X, targets, weight = _with_weight(X, targets, weight)
        if first:
            self.network_ = self._make_network(X, check_random_state(self.random_state))
        network = self.network_
        if network.optimizer is None:
            network.optimizer = self._optimizer(PARTIAL_RATE * self._rate, None)
        elif network.optimizer.schedule is not None:  # of a fit, which has lowered the rate to its end
            network.optimizer.schedule = None
            network.optimizer.lr *= PARTIAL_RATE
        network.fit(X, targets, sample_weight=weight, optimizer=network.optimizer, epochs=1,
                    batch_size=self._batch_size(X.shape[0]), shuffle=self.shuffle, verbose=bool(self.verbose))
        self._after_training(len(network.history) - 1)
        self._after_fit(X, targets, None)
        return self

    def _check_parameters(self) -> None:
        for i, size in enumerate(self._hidden_sizes()):
            check.integer(size, f"hidden_layer_sizes[{i}]")
        check.choice(self.activation, "activation", ("auto", "identity", "relu"))
        check.choice(self.solver, "solver", ("adam", "sgd"))
        check.choice(self.learning_rate, "learning_rate", tuple(SCHEDULES))
        if self.max_iter != "auto":
            check.integer(self.max_iter, "max_iter")
        if self.batch_size != "auto":
            check.integer(self.batch_size, "batch_size")
        check.number(self.validation_fraction, "validation_fraction", above=0, below=1)
        check.integer(self.n_iter_no_change, "n_iter_no_change")
        check.number(self.tol, "tol", minimum=0)
        check.number(self.hidden_density, "hidden_density", above=0, maximum=1)
        if self.dropout != "auto":
            check.number(self.dropout, "dropout", minimum=0, below=1)
        if self.learning_rate_init != "auto":
            check.number(self.learning_rate_init, "learning_rate_init", above=0)
        if self.n_jobs is not None:
            check.integer(self.n_jobs, "n_jobs", minimum=-(2**31))

    def _hidden_sizes(self) -> list[Any]:
        sizes: Any = self.hidden_layer_sizes
        if isinstance(sizes, numbers.Integral):
            return [sizes]
        try:
            return list(sizes)
        except TypeError:
            raise TypeError(f"hidden_layer_sizes must be an integer or a sequence of some, got {sizes!r}") from None

    def _batch_size(self, n_rows: int) -> int:
        if self.batch_size != "auto":
            return min(self.batch_size, n_rows)
        return min(n_rows, int(np.clip(n_rows // 40, *BATCH)))

    def _epochs(self, n_rows: int, batch_size: int, made: bool) -> int:
        if self.max_iter != "auto":
            return self.max_iter
        if made:
            return _recipe.EPOCHS
        return int(np.clip(-(-STEPS * batch_size // n_rows), *EPOCHS))

    def _optimizer(self, lr: float, schedule: str | None, second_moment: str = "element") -> SGD | Adam:
        if self.solver == "adam":
            return Adam(lr, weight_decay=self.weight_decay, schedule=schedule, second_moment=second_moment)
        return SGD(lr, momentum=self.momentum, weight_decay=self.weight_decay, schedule=schedule)

    def _make_network(self, X: Any, rng: np.random.RandomState) -> Network:
        sizes = [X.shape[1], *self._hidden_sizes()]
        relu = self.activation == "relu" or (self.activation == "auto" and not (sp.issparse(X) and len(sizes) == 2))
        options: dict[str, Any] = {"activation": "relu" if relu else None,
                                   "dropout": 0.0 if self.dropout == "auto" else self.dropout}
        layers = []
        for i, (n_in, n_out) in enumerate(itertools.pairwise(sizes)):
            layers.append(Linear(n_in, n_out, **options) if i == 0 or self.hidden_density == 1 else
                          LSHLinear(n_in, n_out, density=self.hidden_density, **options))
        layers.append(self._output_layer(sizes[-1]))
        n_threads = None if self.n_jobs is None else effective_n_jobs(self.n_jobs)
        return Network(layers, loss=self._loss(), random_state=int(rng.randint(2**31 - 1)), n_threads=n_threads)

    def _split(self, X: Any, targets: Any, weight: np.ndarray | None,
               rng: np.random.RandomState) -> tuple[Any, Any, np.ndarray | None, tuple[Any, Any]]:
        try:
            stratify = self._strata(targets)
            rows, held_out = train_test_split(np.arange(X.shape[0]), test_size=self.validation_fraction,
                                              random_state=rng, stratify=stratify)
        except ValueError as error:
            raise ValueError(f"early_stopping=True sets validation_fraction={self.validation_fraction} of the rows "
                             f"aside, which {X.shape[0]} rows do not allow ({error}); give more rows, another fraction "
                             "or early_stopping=False") from error
        weight = None if weight is None else weight[rows]
        return X[rows], targets[rows], weight, (X[held_out], targets[held_out])

    def _after_training(self, n_before: int, validation: tuple[Any, Any] | None = None) -> None:
        history = self.network_.history[n_before:]
        self.n_iter_ = max(1, len(history))  # Ctrl-C may have left none
        self.loss_curve_ = [entry["loss"] for entry in history]
        self.loss_ = self.loss_curve_[-1] if history else np.nan
        scores = None if validation is None else self._scores(history, validation[1])
        self.validation_scores_ = scores
        self.best_validation_score_ = None if scores is None else max(scores, default=np.nan)
        self.n_outputs_ = self.network_.n_labels
        self.n_layers_ = len(self.network_.layers) + 1

    # -- asking -----------------------------------------------------------------------------------------------

    def _asked(self, X: MatrixLike) -> Any:
        check_is_fitted(self, "network_")
        return validate_data(self, X, accept_sparse="csr", dtype=np.float32, reset=False)

    def _outputs(self, X: Any, what: str) -> Floats:
        n_bytes = 4 * X.shape[0] * self.network_.n_labels
        available = _available_memory()
        if n_bytes > available:
            raise MemoryError(f"{what} of {X.shape[0]:,} rows and {self.network_.n_labels:,} outputs is a dense array "
                              f"of {n_bytes / 1e9:.1f} GB, and {available / 1e9:.1f} GB are free; ask for fewer rows "
                              "at a time, or for predict_topk or predict, which need not hold all outputs")
        n = X.shape[0]
        if 0 < n < STEADY:
            X = X[np.arange(STEADY) % n]
        return self.network_.decision_function(X)[:n]


def _with_weight(X: Any, targets: Any, weight: np.ndarray) -> tuple[Any, Any, np.ndarray]:
    """The rows with a weight above zero, and their weights with a mean of one."""
    rows = np.flatnonzero(weight > 0)
    if not len(rows):
        raise ValueError("sample_weight, times class_weight, must be above 0 for one row at least, got zeros alone")
    if len(rows) < X.shape[0]:
        X, targets, weight = X[rows], targets[rows], weight[rows]
    return X, targets, weight / weight.mean()


def _available_memory() -> float:
    """Bytes that are free or that the system would give up, and infinity where it does not say."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            return 1024 * next(int(line.split()[1]) for line in file if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return float("inf")
