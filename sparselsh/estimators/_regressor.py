"""LSHRegressor: one or several target values per row."""
from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import numpy as np
from sklearn.base import RegressorMixin
from sklearn.utils.validation import validate_data

from .. import _validation as check
from .._arrays.scipy import sp
from ..layers import Linear
from ._base import LSHEstimator

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from .._arrays.types import MatrixLike


class LSHRegressor(RegressorMixin, LSHEstimator):
    """A neural network for regression, whose wide hidden layers compute only hashed neurons.

    Targets are scaled to mean 0 and variance 1 internally, so that the learning rate suits them.

    Parameters
    ----------
    hidden_layer_sizes, activation, hidden_density, dropout, solver
        As for :class:`LSHClassifier`, where "auto" is a dropout of 0.
    learning_rate_init, learning_rate, momentum, weight_decay
        As for :class:`LSHClassifier`. ``hidden_layer_sizes=(128, 4096), hidden_density=0.05``
        hashes the second layer.
    batch_size, max_iter, shuffle, validation_fraction, n_iter_no_change, tol
        As for :class:`LSHClassifier`.
    warm_start, random_state, n_jobs, verbose
        As for :class:`LSHClassifier`.
    early_stopping : bool
        Hold rows out, end the training when the error on them stops falling, and keep the best
        weights.

    Attributes
    ----------
    network_, input_scale_, n_features_in_, feature_names_in_, n_outputs_, n_layers_, n_iter_
        As for :class:`LSHClassifier`.
    loss_, loss_curve_ : float, list of float
        As for :class:`LSHClassifier`; of scaled targets.
    validation_scores_, best_validation_score_ : list of float, float
        R^2 after each epoch, over all outputs, and the best of them; None without
        `early_stopping`.
    y_mean_, y_scale_ : ndarray of shape (n_outputs,), float64
        Predictions are the outputs of the network, times `y_scale_`, plus `y_mean_`.

    Examples
    --------
    >>> import numpy as np
    >>> from sparselsh.estimators import LSHRegressor
    >>> X = np.random.default_rng(0).normal(size=(500, 4))
    >>> reg = LSHRegressor(random_state=0).fit(X, X[:, 0] * X[:, 1])
    >>> reg.score(X, X[:, 0] * X[:, 1]) > 0.9
    True
    """

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def partial_fit(self, X: MatrixLike, y: Any, sample_weight: ArrayLike | None = None) -> Self:
        """Train on the rows once, at a constant learning rate: a tenth of `learning_rate_init`.

        Targets are scaled as in the first call or in `fit`: the first rows should be numerous
        enough to show the range of the targets.

        Parameters
        ----------
        X, y, sample_weight
            As for `fit`.

        Returns
        -------
        self
        """
        self._check_parameters()
        return self._partial_fit(X, y, sample_weight, not hasattr(self, "network_"))

    def _validated(self, X: Any, y: Any, reset: bool) -> tuple[Any, Any]:
        X, y = validate_data(self, X, y, accept_sparse="csr", dtype=np.float32, multi_output=True,
                             y_numeric=True, reset=reset)
        if sp.issparse(y):
            raise TypeError("y must be dense, got a sparse matrix; convert it with toarray()")
        check.numeric(y, "y")
        return X, y

    def _encode(self, y: Any, reset: bool) -> Any:
        """Scaled targets, an ndarray of shape (n_samples, n_outputs), float32."""
        targets = y[:, None] if y.ndim == 1 else y
        if reset:
            self._y_ndim = y.ndim
            # unit avoids squares that overflow float64
            largest = np.abs(targets).max(axis=0).astype(np.float64)
            unit = targets / np.where(largest > 0, largest, 1.0)
            self.y_mean_ = unit.mean(axis=0) * largest
            scale = unit.std(axis=0) * largest
            self.y_scale_ = np.where(scale > 0, scale, 1.0)
        elif targets.shape[1] != len(self.y_mean_):
            raise ValueError(f"y must have {len(self.y_mean_)} columns as before, "
                             f"got {targets.shape[1]}")
        return ((targets - self.y_mean_) / self.y_scale_).astype(np.float32)

    def _weights(self, targets: Any, sample_weight: np.ndarray | None) -> np.ndarray | None:
        return sample_weight

    def _loss(self, X: Any) -> str:
        return "mse"

    def _output_layer(self, n_in: int) -> Linear:
        return Linear(n_in, len(self.y_mean_))

    def _strata(self, targets: Any) -> Any:
        return None

    def _scores(self, history: list[dict[str, Any]], targets: Any) -> list[float]:
        variance = targets.var(axis=0, dtype=np.float64).sum()
        return [1 - entry["val_loss"] / variance if variance > 0 else np.nan
                for entry in history]

    def _after_fit(self, X: Any, targets: Any, weight: np.ndarray | None,
                   held_out: tuple[Any, Any, Any] | None) -> None:
        pass

    def predict(self, X: MatrixLike) -> np.ndarray:
        """Predict values.

        Parameters
        ----------
        X : array or sparse matrix of shape (n_samples, n_features)

        Returns
        -------
        ndarray of shape (n_samples,) or (n_samples, n_outputs), as y in `fit`

        Raises
        ------
        MemoryError
            If an array of all values does not fit into the free memory.
        """
        outputs = self._outputs(self._validated_queries(X), "predict")
        values = outputs * self.y_scale_ + self.y_mean_
        return values[:, 0] if self._y_ndim == 1 else values
