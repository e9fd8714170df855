"""Base class of LSHClassifier and LSHRegressor: parameters, checks, construction of the network.

Only `estimators` imports this module, and reports a missing scikit-learn.
"""
from __future__ import annotations

import itertools
import numbers
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from joblib import effective_n_jobs
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.model_selection import train_test_split
from sklearn.utils import check_random_state
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from .. import _recipe
from .. import _validation as check
from .._arrays.scipy import sp
from .._resources import available_memory as _available_memory
from ..callbacks import EarlyStopping, StopOnInterrupt
from ..callbacks import checked as checked_callbacks
from ..layers import Linear, LSHLinear
from ..network import Network, hidden_outputs
from ..optim import SGD, Adam

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import ArrayLike

    from .._arrays.types import Floats, MatrixLike
    from ..callbacks import Callback

SCHEDULES = {"constant": None, "linear": "linear", "cosine": "cosine"}
# Bounds of batch_size="auto"; a smaller batch may have no row of a class with a large weight.
MIN_BATCH_ROWS, MAX_BATCH_ROWS = 64, 256
MIN_STEPS = 1000  # of max_iter="auto", as far as MAX_EPOCHS allows
MIN_EPOCHS, MAX_EPOCHS = 5, 200
# From here on the bits of a row do not depend on the number of rows (_gemm.pyx: MAX_ROWS_FOR_DOTS).
ROW_INDEPENDENT_MIN_ROWS = 4
DEFAULT_LEARNING_RATE = 0.01
# A step of Adam changes an output by the rate times the size of the inputs. MNIST: 95 % right with
# nonzero values of a root mean square of 1/2 to 3, 91 % with 40 and 83 % with 170. Above this size
# inputs are scaled.
MAX_INPUT_SIZE = 4.0
# Classifiers, and weights computed from the data, are measured on rows of norm 1. Counts of words
# and TF-IDF values of norms of 2.5 and 15 lost 0.4 and 4 points of accuracy as they were (sections
# of 9,000 of Debian's packages), and counts of norm 7 lost 8 (1,200 made-up classes).
MAX_ROW_NORM = 2.0
MAX_SIZE_FROM_DATA = 2.0**40  # weights computed from the data fit inputs of any ordinary size
MAX_RATIO = 32.0  # of the size of the inputs to that of an ordinary feature
PARTIAL_FIT_RATE_FACTOR = 0.1  # partial_fit has no last epoch towards which the rate could fall


class LSHEstimator(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Base class of both estimators. A subclass encodes targets and interprets outputs."""

    def __init__(self, hidden_layer_sizes: int | Sequence[int] = (128,), activation: str = "auto",
                 *, hidden_density: float = 1.0, dropout: float | Literal["auto"] = "auto",
                 solver: str = "adam", learning_rate_init: float | Literal["auto"] = "auto",
                 learning_rate: str = "linear", momentum: float = 0.9, weight_decay: float = 0.01,
                 batch_size: int | Literal["auto"] = "auto",
                 max_iter: int | Literal["auto"] = "auto", shuffle: bool = True,
                 early_stopping: bool = False, validation_fraction: float = 0.1,
                 n_iter_no_change: int = 5, tol: float = 1e-4, warm_start: bool = False,
                 random_state: int | np.random.RandomState | None = None,
                 n_jobs: int | None = None, verbose: bool = False) -> None:
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
        tags.transformer_tags.preserves_dtype = []  # `transform` gives float32
        return tags

    # -- training --------------------------------------------------------------------------------

    def fit(self, X: MatrixLike, y: Any, sample_weight: ArrayLike | None = None, *,
            callbacks: Sequence[Callback] = (),
            validation: tuple[Any, Any] | None = None) -> Self:
        """Train the estimator.

        A call that fails leaves the estimator as it was; with `warm_start`, its network between two
        steps.

        Parameters
        ----------
        X : array or sparse matrix of shape (n_samples, n_features)
        y : array of shape (n_samples,), or array or sparse matrix of shape (n_samples, n_outputs)
        sample_weight : array of shape (n_samples,) or None
            Factors of the loss of each sample, at least 0.
        callbacks : sequence of Callback
            See `sparselsh.callbacks`.
        validation : None or (X, y)
            Rows that are measured after each epoch, for `validation_scores_`; with `early_stopping`
            they are used in place of rows that are held out.

        Returns
        -------
        self

        Raises
        ------
        ValueError, TypeError
            If a parameter or an argument is invalid; the message names it.
        """
        given = checked_callbacks(callbacks)
        with self._restored_on_failure():
            self._fit(X, y, sample_weight, given, validation)
        return self

    @contextmanager
    def _restored_on_failure(self) -> Iterator[None]:
        """Return to the attributes of before, in one instruction, if the block fails."""
        before = self.__dict__.copy()
        try:
            yield
        except BaseException:
            while True:
                try:
                    self.__dict__ = before
                    break
                except KeyboardInterrupt:  # the user is told of the first one
                    continue
            raise

    def _fit(self, X: MatrixLike, y: Any, sample_weight: ArrayLike | None,
             callbacks: Sequence[Callback], validation: tuple[Any, Any] | None) -> None:
        continues = self.warm_start and hasattr(self, "network_")
        self._check_parameters()
        X, targets, weight = self._validated_data(X, y, sample_weight, reset=not continues)

        rng = check_random_state(self.random_state)
        if not continues:
            self.network_ = self._make_network(X, rng)
        from_data = not continues and self._starts_from_data(X)
        if not continues:
            self.input_scale_ = self._scale_of(X, from_data)
        X = self._scaled(X)
        if not (continues or from_data) and self.input_scale_ != 1:
            self._warn_of_small_features(X)

        # hold rows out before the network sees them
        stop = StopOnInterrupt()
        calls: list[Callback] = [stop, *callbacks]
        held_out: tuple[Any, Any, Any] | None = None
        measured = None if validation is None else self._measured(validation)
        if self.early_stopping:
            if measured is None:
                X, targets, weight, measured = self._split(X, targets, weight, rng)
            calls.append(EarlyStopping(patience=self.n_iter_no_change, min_delta=self.tol))
            held_out = *measured, None
        elif n_held_out := self._n_held_out(X):
            order = rng.permutation(X.shape[0])
            rows, kept = np.sort(order[:n_held_out]), np.sort(order[n_held_out:])
            held_out = X[rows], targets[rows], None if weight is None else weight[rows]
            X, targets, weight = X[kept], targets[kept], None if weight is None else weight[kept]

        network, n_before = self.network_, len(self.network_.history) if continues else 0
        batch_size = self._batch_size(X.shape[0])
        epochs = self._epochs(X.shape[0], batch_size, from_data)
        lr = self._rate
        if from_data:
            n_steps = _recipe.steps(X.shape[0], batch_size, epochs)
            lr = _recipe.rate(n_steps) if self.learning_rate_init == "auto" else lr
            dropout = None if self.dropout == "auto" else self.dropout
            _recipe.begin(network, X, targets, n_steps, dropout=dropout)

        optimizer = self._optimizer(lr, SCHEDULES[self.learning_rate],
                                    "row" if from_data else "element")
        network.fit(X, targets, sample_weight=weight, optimizer=optimizer, epochs=epochs,
                    batch_size=batch_size, validation=measured, shuffle=self.shuffle,
                    callbacks=calls, verbose=bool(self.verbose))
        if stop.interrupted:
            warnings.warn("Ctrl-C has ended the training; the model is that after the last step",
                          stacklevel=3)
        self._after_training(n_before, measured)

        if not stop.interrupted:
            self._refine(X, targets, weight, held_out)
        self._after_fit(X, targets, weight, held_out)

    def _scale_of(self, X: Any, from_data: bool) -> float:
        if from_data and self._has_classifiers(X):
            return _input_scale(X, MAX_ROW_NORM, by_row=True)
        suits = from_data and self.solver == "adam"  # steps of SGD grow with the inputs
        return _input_scale(X, MAX_SIZE_FROM_DATA if suits else MAX_INPUT_SIZE)

    def _has_classifiers(self, X: Any) -> bool:
        """Whether the network is to be refined."""
        return False

    def _warn_of_small_features(self, X: Any) -> None:
        squares = X.multiply(X) if sp.issparse(X) else X * X  # `*` of a csr_matrix is a product
        squares = np.asarray(squares.mean(axis=0, dtype=np.float64)).ravel()
        if np.sqrt(np.median(squares[squares > 0])) < 1 / MAX_RATIO:
            warnings.warn(
                "X has features of very different sizes; the training learns little from the small "
                "ones: scale each feature, as by make_pipeline("
                f"sklearn.preprocessing.MaxAbsScaler(), {type(self).__name__}())", stacklevel=4)

    def _scaled(self, X: Any) -> Any:
        """X as the network takes it."""
        scale = getattr(self, "input_scale_", 1.0)  # which pickles of before do not have
        return X if scale == 1 else X * np.float32(scale)

    def _validated_data(self, X: MatrixLike, y: Any, sample_weight: ArrayLike | None,
                        reset: bool) -> tuple[Any, Any, np.ndarray | None]:
        """Checked inputs, encoded targets and weights, without rows of weight zero."""
        X, y = self._validated(X, y, reset=reset)
        weight = None if sample_weight is None else _check_sample_weight(
            sample_weight, X, ensure_non_negative=True)
        targets = self._encode(y, reset=reset)
        weight = self._weights(targets, weight)
        return (X, targets, None) if weight is None else _with_weight(X, targets, weight)

    def _measured(self, validation: Any) -> tuple[Any, Any]:
        """Rows and encoded targets that a training is measured on."""
        try:
            X, y = validation
        except (TypeError, ValueError):
            raise ValueError("validation must be a pair (X, y)") from None
        X, y = self._validated(X, y, reset=False)
        return self._scaled(X), self._encode(y, reset=False)

    def transform(self, X: MatrixLike) -> Floats:
        """The outputs of the last hidden layer, a dense representation of the rows.

        Parameters
        ----------
        X : array or sparse matrix of shape (n_samples, n_features)

        Returns
        -------
        ndarray of shape (n_samples, n_hidden), float32

        Raises
        ------
        ValueError, TypeError
            If it is not trained yet, or X is invalid.
        """
        return of_rows(self._validated_queries(X), lambda x: hidden_outputs(self.network_, x))

    @property
    def _n_features_out(self) -> int:
        """Number of columns of `transform`."""
        return self.network_.layers[-1].n_in

    def _n_held_out(self, X: Any) -> int:
        """Number of rows to hold out of the training for `_after_fit`."""
        return 0

    @property
    def _epochs_from_data(self) -> int:
        """Epochs from weights computed from the data, where `max_iter` is "auto"."""
        return _recipe.EPOCHS_FROM_DATA

    def _starts_from_data(self, X: Any) -> bool:
        """Whether the network starts from weights computed from the data."""
        return False

    def _n_outputs(self) -> int:
        """Number of outputs whose order matters, as `_recipe` counts them."""
        return 0

    def _refine(self, X: Any, targets: Any, weight: np.ndarray | None,
                held_out: tuple[Any, Any, Any] | None) -> None:
        """Refine the trained network."""

    @property
    def _rate(self) -> float:
        if self.learning_rate_init == "auto":
            return DEFAULT_LEARNING_RATE
        return self.learning_rate_init

    def _partial_fit(self, X: MatrixLike, y: Any, sample_weight: ArrayLike | None,
                     first: bool) -> Self:
        with self._restored_on_failure():
            self._train_once(X, y, sample_weight, first)
        return self

    def _train_once(self, X: MatrixLike, y: Any, sample_weight: ArrayLike | None,
                    first: bool) -> None:
        X, targets, weight = self._validated_data(X, y, sample_weight, reset=first)
        if first:
            self.network_ = self._make_network(X, check_random_state(self.random_state))
            self.input_scale_ = _input_scale(X)

        X, network = self._scaled(X), self.network_
        if network.optimizer is None:
            network.optimizer = self._optimizer(PARTIAL_FIT_RATE_FACTOR * self._rate, None)
        elif network.optimizer.schedule is not None:  # that of a `fit`, at whose end the rate is 0
            network.optimizer.__dict__.update(  # both or, if it is interrupted, none
                schedule=None, lr=network.optimizer.lr * PARTIAL_FIT_RATE_FACTOR)

        network.fit(X, targets, sample_weight=weight, optimizer=network.optimizer, epochs=1,
                    batch_size=self._batch_size(X.shape[0]), shuffle=self.shuffle,
                    verbose=bool(self.verbose))
        self._after_training(len(network.history) - 1)
        self._after_fit(X, targets, weight, None)

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
            raise TypeError("hidden_layer_sizes must be an integer or a sequence of integers, "
                            f"got {sizes!r}") from None

    def _batch_size(self, n_rows: int) -> int:
        if self.batch_size != "auto":
            return min(self.batch_size, n_rows)
        return min(n_rows, int(np.clip(n_rows // 40, MIN_BATCH_ROWS, MAX_BATCH_ROWS)))

    def _epochs(self, n_rows: int, batch_size: int, from_data: bool) -> int:
        if self.max_iter != "auto":
            return self.max_iter
        if from_data:
            return self._epochs_from_data
        return int(np.clip(-(-MIN_STEPS * batch_size // n_rows), MIN_EPOCHS, MAX_EPOCHS))

    def _optimizer(self, lr: float, schedule: str | None,
                   second_moment: str = "element") -> SGD | Adam:
        if self.solver == "adam":
            return Adam(lr, weight_decay=self.weight_decay, schedule=schedule,
                        second_moment=second_moment)
        return SGD(lr, momentum=self.momentum, weight_decay=self.weight_decay, schedule=schedule)

    def _is_bottleneck(self, X: Any) -> bool:
        """Whether a hidden layer passes on little of X, and more without a ReLU."""
        return sp.issparse(X) and _recipe.suits_data(X, self._n_outputs(), self._hidden_sizes()[0])

    def _make_network(self, X: Any, rng: np.random.RandomState) -> Network:
        sizes = [X.shape[1], *self._hidden_sizes()]
        relu = self.activation == "relu" or (
            self.activation == "auto" and not (len(sizes) == 2 and self._is_bottleneck(X)))
        options: dict[str, Any] = {"activation": "relu" if relu else None,
                                   "dropout": 0.0 if self.dropout == "auto" else self.dropout}
        layers = []
        for i, (n_in, n_out) in enumerate(itertools.pairwise(sizes)):
            layers.append(Linear(n_in, n_out, **options) if i == 0 or self.hidden_density == 1 else
                          LSHLinear(n_in, n_out, density=self.hidden_density, **options))
        layers.append(self._output_layer(sizes[-1]))

        n_threads = None if self.n_jobs is None else effective_n_jobs(self.n_jobs)
        return Network(layers, loss=self._loss(X), random_state=int(rng.randint(2**31 - 1)),
                       n_threads=n_threads)

    def _split(self, X: Any, targets: Any, weight: np.ndarray | None,
               rng: np.random.RandomState) -> tuple[Any, Any, np.ndarray | None, tuple[Any, Any]]:
        try:
            stratify = self._strata(targets)
            rows, held_out = train_test_split(np.arange(X.shape[0]),
                                              test_size=self.validation_fraction,
                                              random_state=rng, stratify=stratify)
        except ValueError as error:
            raise ValueError("early_stopping=True holds out "
                             f"validation_fraction={self.validation_fraction} of the rows, "
                             f"which {X.shape[0]} rows do not allow ({error}); give more rows, "
                             "another fraction or early_stopping=False") from error
        weight = None if weight is None else weight[rows]
        return X[rows], targets[rows], weight, (X[held_out], targets[held_out])

    def _after_training(self, n_before: int, validation: tuple[Any, Any] | None = None) -> None:
        history = self.network_.history[n_before:]
        self.n_iter_ = max(1, len(history))  # empty if Ctrl-C ended the first epoch
        self.loss_curve_ = [entry["loss"] for entry in history]
        self.loss_ = self.loss_curve_[-1] if history else np.nan
        scores = None if validation is None else self._scores(history, validation[1])
        self.validation_scores_ = scores
        self.best_validation_score_ = None if scores is None else max(scores, default=np.nan)
        self.n_outputs_ = self.network_.n_labels
        self.n_layers_ = len(self.network_.layers) + 1

    # -- inference -------------------------------------------------------------------------------

    def _validated_queries(self, X: MatrixLike) -> Any:
        check_is_fitted(self, "network_")
        return self._scaled(validate_data(self, X, accept_sparse="csr", dtype=np.float32,
                                          reset=False))

    def _check_memory(self, X: Any, what: str) -> None:
        n_bytes = 4 * X.shape[0] * self.network_.n_labels
        available = _available_memory()
        if n_bytes > available:
            raise MemoryError(f"{what} of {X.shape[0]:,} rows and {self.network_.n_labels:,} "
                              f"outputs is a dense array of {n_bytes / 1e9:.1f} GB, and "
                              f"{available / 1e9:.1f} GB are free; pass fewer rows at a time, or "
                              "call predict_topk or predict, which need not hold all outputs")

    def _outputs(self, X: Any, what: str) -> Floats:
        self._check_memory(X, what)
        return of_rows(X, lambda x: self.network_.decision_function(x, exact=False))


def _input_scale(X: Any, most: float = MAX_INPUT_SIZE, *, by_row: bool = False) -> float:
    """The power of two that brings inputs of a size above `most` to a size of about one, or 1.

    Their size is the root mean square of the values that are not zero or, `by_row`, of the norms
    of the rows that are not.
    """
    values = (X.data if sp.issparse(X) else X).reshape(-1)
    n: Any
    if by_row:
        n = np.count_nonzero(np.diff(X.indptr) if sp.issparse(X) else X.any(axis=1))
    else:
        n = np.count_nonzero(values)
    largest = float(np.abs(values).max(initial=0))
    unit = values / np.float32(largest or 1)  # squares of large values overflow
    size = largest * np.sqrt(float(unit @ unit) / max(n, 1))
    return float(2.0 ** -np.round(np.log2(size))) if size > most else 1.0


def of_rows(X: Any, function: Callable[[Any], Any]) -> Any:
    """The function of some rows, whose bits do not depend on their number."""
    n = X.shape[0]
    if 0 < n < ROW_INDEPENDENT_MIN_ROWS:
        return function(X[np.arange(ROW_INDEPENDENT_MIN_ROWS) % n])[:n]
    return function(X)


def _with_weight(X: Any, targets: Any, weight: np.ndarray) -> tuple[Any, Any, np.ndarray]:
    """The rows with a weight above zero, and their weights, scaled to a mean of one."""
    rows = np.flatnonzero(weight > 0)
    if not len(rows):
        raise ValueError("sample_weight, times class_weight, must be above 0 for at least one row, "
                         "got only zeros")
    if len(rows) < X.shape[0]:
        X, targets, weight = X[rows], targets[rows], weight[rows]
    return X, targets, weight / weight.mean()
