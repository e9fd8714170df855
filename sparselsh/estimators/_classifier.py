"""LSHClassifier: classes and labels in, classes, labels and probabilities out."""
from __future__ import annotations

import copy
import inspect
import itertools
import json
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from joblib import effective_n_jobs
from sklearn.base import ClassifierMixin
from sklearn.utils import column_or_1d
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.multiclass import check_classification_targets, type_of_target
from sklearn.utils.validation import check_is_fitted, validate_data

from .. import _files, _recipe
from .. import _validation as check
from .._arrays.bfloat16 import as_float32, to_bfloat16
from .._arrays.csr import from_scipy
from .._arrays.scipy import sp
from ..calibration import MIN_FIT_ROWS, best_threshold, probabilities_of
from ..layers import Linear, LSHLinear
from ..network import load_with, save_with
from ..refinement import Refinement
from ..text import has_names, names_of
from ._base import LSHEstimator, of_rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike

    from .._arrays.types import Floats, MatrixLike, PathLike
    from ..network import Network

BCE_MAX_LABELS = 512  # with more, independent decisions learn worse than a softmax
MAX_THRESHOLD_ROWS = 2048  # training rows from which a threshold is determined without others
LEAST_BEST_OUTPUT = -40.0  # of a row whose sigmoids are normalized; exp(-40) rounds off
LSH_PARAMS = set(inspect.signature(LSHLinear).parameters) - {"n_in", "n_out", "density"}


class LSHClassifier(ClassifierMixin, LSHEstimator):
    """A neural network for few or very many classes, whose wide layers compute only hashed neurons.

    Binary, multiclass and multilabel: y is an array of class labels of any type, lists of names, or
    a dense or sparse indicator matrix of labels. A sparse indicator of any width is never converted
    to a dense one; `predict` then returns a sparse one.

    Parameters
    ----------
    hidden_layer_sizes : int or sequence of int
        Neurons of the hidden layers.
    activation : {"auto", "identity", "relu"}
        Activation of the hidden layers. "auto" is "identity" for sparse X and one hidden layer, if
        there are 1,000 labels or more, or eight times as many features as hidden neurons. The layer
        is then a bottleneck, and passes on more information without a ReLU. Otherwise it is "relu".
    density : float or "auto"
        Fraction of the output neurons that a training step computes, in (0, 1]. 1 computes all;
        "auto" computes at most 4,096 neurons. See :class:`~sparselsh.LSHLinear`.
    hidden_density : float
        The same for all hidden layers but the first; 1 is a dense layer.
    dropout : float or "auto"
        Fraction of the hidden neurons that a training step leaves out, in [0, 1). "auto" is 0.2 in
        trainings of 2,000 steps or more from weights computed from the data, and 0 otherwise.
    lsh_params : dict or None
        Other arguments of :class:`~sparselsh.LSHLinear` for the output layer, such as
        ``{"family": sl.DWTA()}``.
    loss : {"auto", "softmax", "bce"}
        "softmax" lets classes compete; "bce" decides on each label independently. "auto" is "bce"
        for an indicator of up to 512 labels, all of which are computed, where weights are not
        computed from the data (see `init`), and "softmax" otherwise: independent decisions on many
        labels learn badly.
    threshold : float, "auto" or "per-label"
        For an indicator, `predict` returns the labels whose probability, as of `predict_proba`, is
        at least this. "auto" is the threshold with the largest micro-averaged F1 on the rows held
        out for the calibration, and "per-label" one such threshold for each label that is true in
        eight or more of them. Without such rows "auto" is 0.5 with "bce", and chosen on training
        rows with "softmax".
    calibration_fraction : float or "auto"
        Fraction of the rows that are held out of the training, in [0, 1). On these, probabilities
        are calibrated (:meth:`Network.calibrate <sparselsh.Network.calibrate>`), thresholds are
        chosen, and the classifiers of `refine` are weighted or removed. "auto" is a tenth, at most
        1,024 rows, or at most 4,096 if there are fewer than 1,000 labels, and 0 for fewer than 500
        rows. With `early_stopping`, its rows are used. If each row has one class and these rows are
        a twentieth or more, the classifiers of "auto" are trained again at the end, on all rows.
    solver : {"adam", "sgd"}
    learning_rate_init : float or "auto"
        Learning rate at the first step. "auto" is 0.01 or, with weights computed from the data, a
        rate that is smaller the more steps there are.
    learning_rate : {"linear", "cosine", "constant"}
        Schedule by which the rate falls to zero at the last epoch, or "constant".
    momentum : float
        For "sgd".
    weight_decay : float
        Decoupled from the gradient with "adam" (AdamW), L2 with "sgd"; applied only to the rows of
        weights that a step touches.
    batch_size : int or "auto"
        Rows per step. "auto" is a fortieth of the rows, from 64 to 256.
    max_iter : int or "auto"
        Number of epochs. "auto" is the number that gives 1,000 steps, from 5 to 200, or 2 with
        weights computed from the data.
    shuffle : bool
        Draw a new random order of the rows for every epoch.
    early_stopping : bool
        Hold out rows, end the training when P@1 on them stops growing, and keep the best weights.
    validation_fraction : float
        Fraction of the rows that is held out, stratified by class where classes have enough rows.
    n_iter_no_change, tol : int, float
        `early_stopping` ends the training after this many epochs without a gain above `tol`.
    class_weight : None, "balanced" or dict
        Factors of the loss per class. A row of an indicator gets the mean of those of its labels.
    init : {"auto", "labels", "random"}
        "labels" computes initial weights from the data (see :meth:`Network.initialize
        <sparselsh.Network.initialize>`). "auto" does so for sparse X, one hidden layer and
        "softmax", if there are 1,000 labels or more, or eight times as many features as hidden
        neurons.
    refine : bool or "auto"
        Add one linear classifier of the inputs per label (see :meth:`Network.refine
        <sparselsh.Network.refine>`). "auto" does so under the conditions of `init`. It chooses
        their weight on the held-out rows, and removes them if they reduce the accuracy.
    effort : {"low", "default", "high"}
        Sets the epochs, the negative examples per row and the number of reranked labels, if `init`
        and `refine` apply. "low" trains in less time, "high" ranks better.
    warm_start : bool
        Continue with the network of the last `fit`, with a new optimizer.
    random_state : None, int or numpy.random.RandomState
        Results do not depend on the number of threads.
    n_jobs : int or None
        Number of threads; -1 for all processors, None for :func:`sparselsh.get_num_threads`.
    verbose : bool
        Show a progress bar.

    Attributes
    ----------
    network_ : Network
        The trained network: ``network_.plot_history()`` and so on. It takes rows that are
        multiplied by `input_scale_`; :meth:`save` writes one that takes them as they are.
    input_scale_ : float
        1, or the power of two by which large inputs are multiplied: those whose root mean square
        was above 4 where they were not zero or, where weights are computed from the data and there
        are classifiers, rows whose norms were above 2.
    classes_ : ndarray of shape (n_classes,)
        Class labels; the names of the labels where y is lists of names, or a data frame with named
        columns; for another indicator, the numbers of its columns.
    n_features_in_, feature_names_in_ : int, ndarray of str
        As in scikit-learn.
    n_outputs_, n_layers_, n_iter_ : int
    loss_, loss_curve_ : float, list of float
        Loss of the last epoch, and of each epoch.
    validation_scores_, best_validation_score_ : list of float, float
        Fraction of rows whose best label is correct after each epoch, and the best of them; None
        without `early_stopping`.
    threshold_ : float
        The threshold that `predict` uses, for an indicator.

    Notes
    -----
    `decision_function` and `predict_proba` hold all outputs of all rows. Where these do not fit
    into the free memory they raise MemoryError; call `predict_topk` then, which holds k outputs per
    row.

    Sample weights scale gradients. A weight of two is not exactly the same as a sample given twice,
    because the number of rows per batch stays the same.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sparselsh.estimators import LSHClassifier
    >>> X, y = load_digits(return_X_y=True)
    >>> clf = LSHClassifier(random_state=0)
    >>> clf = clf.fit(X[:1500] / 16, y[:1500])
    >>> clf.score(X[1500:] / 16, y[1500:]) > 0.9
    True
    """

    classes_: np.ndarray
    _named: Any  # the type in which names are predicted, or None
    _y_type: Any

    def __init__(self, hidden_layer_sizes: int | Sequence[int] = (128,), activation: str = "auto",
                 *, density: float | Literal["auto"] = "auto", hidden_density: float = 1.0,
                 dropout: float | Literal["auto"] = "auto",
                 lsh_params: dict[str, Any] | None = None, loss: str = "auto",
                 threshold: float | Literal["auto", "per-label"] = "auto",
                 calibration_fraction: float | Literal["auto"] = "auto", solver: str = "adam",
                 learning_rate_init: float | Literal["auto"] = "auto",
                 learning_rate: str = "linear", momentum: float = 0.9, weight_decay: float = 0.01,
                 batch_size: int | Literal["auto"] = "auto",
                 max_iter: int | Literal["auto"] = "auto", shuffle: bool = True,
                 early_stopping: bool = False, validation_fraction: float = 0.1,
                 n_iter_no_change: int = 5, tol: float = 1e-4,
                 class_weight: dict[Any, float] | Literal["balanced"] | None = None,
                 init: Literal["auto", "labels", "random"] = "auto",
                 refine: bool | Literal["auto"] = "auto",
                 effort: Literal["low", "default", "high"] = "default", warm_start: bool = False,
                 random_state: int | np.random.RandomState | None = None,
                 n_jobs: int | None = None, verbose: bool = False) -> None:
        super().__init__(
            hidden_layer_sizes, activation, hidden_density=hidden_density, dropout=dropout,
            solver=solver, learning_rate_init=learning_rate_init, learning_rate=learning_rate,
            momentum=momentum, weight_decay=weight_decay, batch_size=batch_size,
            max_iter=max_iter, shuffle=shuffle, early_stopping=early_stopping,
            validation_fraction=validation_fraction, n_iter_no_change=n_iter_no_change, tol=tol,
            warm_start=warm_start, random_state=random_state, n_jobs=n_jobs, verbose=verbose)
        self.density = density
        self.lsh_params = lsh_params
        self.loss = loss
        self.threshold = threshold
        self.calibration_fraction = calibration_fraction
        self.class_weight = class_weight
        self.init = init
        self.refine = refine
        self.effort = effort

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags

    # -- training --------------------------------------------------------------------------------

    def partial_fit(self, X: MatrixLike, y: Any, classes: ArrayLike | None = None,
                    sample_weight: ArrayLike | None = None) -> Self:
        """Train on the rows once, at a constant learning rate: a tenth of `learning_rate_init`.

        Parameters
        ----------
        X, y, sample_weight
            As for `fit`.
        classes : array or None
            Class labels, in any order; required in the first call unless y is an indicator or lists
            of names. In later calls, y and `classes` may have new ones: outputs are added for them,
            and `classes_` gets them at its end.

        Returns
        -------
        self

        Raises
        ------
        ValueError, TypeError
            As for `fit`; also if `class_weight` is "balanced", or `classes` is missing in the first
            call or lacks some of it later.
        """
        if self.class_weight == "balanced":
            raise ValueError("class_weight='balanced' needs all rows, which partial_fit does not "
                             "see; give the weights as a dict, or sample_weight")
        self._check_parameters()

        first = not hasattr(self, "network_")
        with self._restored_on_failure():  # with the classes and outputs of before
            if first:
                self._given_classes = None if classes is None else np.unique(classes)
            elif classes is not None:
                given = np.unique(classes)
                if not np.isin(self.classes_, given).all():
                    raise ValueError("classes must be those of the first call, and may be more: "
                                     f"{self.classes_}, got {np.asarray(classes)}")
                self._add_classes(given[~np.isin(given, self.classes_)])
            self._may_grow = not first
            try:
                self._train_once(X, y, sample_weight, first)
            finally:
                self.__dict__.pop("_given_classes", None)
                self.__dict__.pop("_may_grow", None)
        return self

    def _add_classes(self, new: np.ndarray) -> None:
        """Add classes, and outputs for them, behind those that there are."""
        if not len(new):
            return
        classes = np.concatenate([self.classes_, new])  # of a type that may round, or be str
        if classes.tolist() != self.classes_.tolist() + new.tolist():
            raise TypeError(f"y has the class {new.tolist()[0]!r} of dtype {new.dtype}, and the "
                            f"classes of before, such as {self.classes_.tolist()[0]!r}, are of "
                            f"dtype {self.classes_.dtype}; give classes of one type")
        # in a copy: a call that fails later leaves the network of before
        self.network_ = copy.deepcopy(self.network_).add_labels(len(new))
        self.classes_ = classes

    def _check_parameters(self) -> None:
        super()._check_parameters()
        check.choice(self.loss, "loss", ("auto", "softmax", "bce"))
        check.choice(self.init, "init", ("auto", "labels", "random"))
        check.choice(self.effort, "effort", tuple(_recipe.EFFORTS))
        if self.refine not in (True, False, "auto"):
            raise ValueError(f"refine must be True, False or 'auto', got {self.refine!r}")
        if isinstance(self.threshold, str):
            check.choice(self.threshold, "threshold", ("auto", "per-label"))
        else:
            check.number(self.threshold, "threshold", above=0, below=1)
        if self.init == "labels" and len(self._hidden_sizes()) != 1:
            raise ValueError("init='labels' is for one hidden layer, got hidden_layer_sizes="
                             f"{self.hidden_layer_sizes!r}; give one size, or init='auto'")
        if self.calibration_fraction != "auto":
            check.number(self.calibration_fraction, "calibration_fraction", minimum=0, below=1)

        if self.class_weight not in (None, "balanced") and not isinstance(self.class_weight, dict):
            raise ValueError("class_weight must be None, 'balanced' or a dict, "
                             f"got {self.class_weight!r}")
        if isinstance(self.class_weight, dict):
            for label, factor in self.class_weight.items():
                check.number(factor, f"class_weight[{label!r}]", minimum=0)
        if unknown := set(self._lsh_params()) - LSH_PARAMS:
            raise ValueError(f"lsh_params has {', '.join(sorted(map(repr, unknown)))}; it takes "
                             f"{', '.join(sorted(LSH_PARAMS))}")

    def _lsh_params(self) -> dict[str, Any]:
        if not isinstance(self.lsh_params, dict | None):
            raise TypeError("lsh_params must be a dict of arguments of LSHLinear, such as "
                            f"{{'family': SimHash()}}, or None, got {self.lsh_params!r}")
        return self.lsh_params or {}

    def _validated(self, X: Any, y: Any, reset: bool) -> tuple[Any, Any]:
        self._new_names: list[str] | None = None
        of_names = has_names(y)
        if of_names:
            y = self._indicator_of_names(X, y, reset)
        elif not reset and self._named is list:
            raise ValueError("y must be lists of names as before")
        X, y = validate_data(self, X, y, accept_sparse="csr", dtype=np.float32, multi_output=True,
                             reset=reset)
        if y.ndim == 2 and y.shape[1] == 1 and not of_names:
            y = column_or_1d(y.toarray() if sp.issparse(y) else y, warn=True)
        return X, y

    def _indicator_of_names(self, X: Any, y: Any, reset: bool) -> Any:
        """A sparse indicator of lists of names, or of a data frame with named columns."""
        if not reset and self._named is None:
            raise ValueError("y must be class labels, or an indicator matrix without names, as "
                             "before; got names")
        known = [] if reset else self.classes_.tolist()
        names = names_of(y, "y", X.shape[0] if hasattr(X, "shape") else len(X), known)
        if not names.names:
            raise ValueError("y must have at least one label, got none")
        if reset:
            self._new_names = names.names
            self._named_as = np.ndarray if hasattr(y, "columns") else list
        elif new := names.names[len(known):]:
            if not getattr(self, "_may_grow", False):
                raise ValueError(f"y has the label {new[0]!r}, which is not among those of before; "
                                 "partial_fit adds labels")
            self._add_classes(np.array(new))
        return names.indicator(len(names.names)).to_scipy()

    def _encode(self, y: Any, reset: bool) -> Any:
        """Class ids, or a float32 indicator as csr_array."""
        if self._new_names is not None or (not reset and self._named is not None
                                           and sp.issparse(y)):
            if reset:
                self._multilabel, self._named = True, self._named_as
                self._y_type, self.classes_ = self._named, np.array(self._new_names)
            return self._indicator(y)
        if not sp.issparse(y) and y.dtype == object:
            types = {type(value) for value in y.ravel()}
            if len(types) > 1:
                names = ", ".join(sorted(kind.__name__ for kind in types))
                raise TypeError(f"y has labels of the types {names}; give strings alone or numbers "
                                "alone")
        check_classification_targets(y)
        kind = type_of_target(y, input_name="y")
        if kind == "multiclass-multioutput":
            raise ValueError("y must be class labels or an indicator matrix of zeros and ones; "
                             "several classes per row as numbers are not supported")

        multilabel = kind == "multilabel-indicator"
        if reset:
            self._set_classes(y, multilabel)
        if multilabel != self._multilabel:
            raise ValueError("y must be an indicator matrix as before" if self._multilabel else
                             "y must be class labels as before, got an indicator matrix")
        return self._indicator(y) if multilabel else self._class_ids(y)

    def _set_classes(self, y: Any, multilabel: bool) -> None:
        self._multilabel, self._named = multilabel, None
        self._y_type = type(y) if sp.issparse(y) else np.ndarray
        given = getattr(self, "_given_classes", None)
        if multilabel:
            self.classes_ = np.arange(y.shape[1])
        elif given is not None:
            self.classes_ = given
        elif hasattr(self, "_given_classes"):
            raise ValueError("classes must be passed on the first call to partial_fit.")
        else:
            self.classes_ = np.unique(y)

    def _indicator(self, y: Any) -> Any:
        if y.shape[1] != len(self.classes_):
            raise ValueError(f"y must have {len(self.classes_)} columns as before, "
                             f"got {y.shape[1]}")
        indicator = sp.csr_array(y, dtype=np.float32)
        indicator.eliminate_zeros()
        return indicator

    def _class_ids(self, y: np.ndarray) -> np.ndarray:
        if getattr(self, "_may_grow", False):
            self._add_classes(np.unique(y[~np.isin(y, self.classes_)]))
        order = np.argsort(self.classes_, kind="stable")  # those that were added are at the end
        ids = np.searchsorted(self.classes_, y, sorter=order)
        ids = order[np.where(ids == len(order), 0, ids)]
        if (unknown := self.classes_[ids] != y).any():
            new = y[unknown].tolist()[0]
            raise ValueError("y has classes that are not among those of before, such as "
                             f"{new!r}; with warm_start give all classes from the start, or "
                             "call partial_fit, which adds classes")
        return ids

    def _weights(self, targets: Any, sample_weight: np.ndarray | None) -> np.ndarray | None:
        if self.class_weight is None:
            return sample_weight
        if self._multilabel:
            factors = self._label_factors(targets)
            n = np.diff(targets.indptr)
            weight = np.where(n > 0, (targets.astype(bool) @ factors) / np.maximum(n, 1), 1.0)
        else:
            present = np.unique(targets)
            factors = np.ones(len(self.classes_))
            factors[present] = compute_class_weight(
                self.class_weight, classes=self.classes_[present], y=self.classes_[targets])
            weight = factors[targets]
        return weight if sample_weight is None else weight * sample_weight

    def _label_factors(self, indicator: Any) -> np.ndarray:
        n_labels = indicator.shape[1]
        if self.class_weight == "balanced":
            counts = np.bincount(indicator.indices, minlength=n_labels)
            return indicator.nnz / (n_labels * np.maximum(counts, 1))
        factors = np.ones(n_labels)
        for label, factor in self.class_weight.items():
            j = check.integer(label, "class_weight key", minimum=0, maximum=n_labels - 1)
            factors[j] = factor
        return factors

    def _loss(self, X: Any) -> str:
        if self.loss != "auto":
            return self.loss
        n_labels, sizes = len(self.classes_), self._hidden_sizes()
        few = n_labels <= BCE_MAX_LABELS and self.density in ("auto", 1)
        by_recipe = len(sizes) == 1 and _recipe.suits_data(X, n_labels, sizes[0])
        return "bce" if self._multilabel and few and not by_recipe else "softmax"

    def _is_bottleneck(self, X: Any) -> bool:
        return (sp.issparse(X) and self.init == "labels") or super()._is_bottleneck(X)

    def _n_outputs(self) -> int:
        return len(self.classes_)

    def _output_layer(self, n_in: int) -> Linear:
        return LSHLinear(n_in, len(self.classes_), density=self.density, **self._lsh_params())

    def _n_held_out(self, X: Any) -> int:
        if self.calibration_fraction == "auto":
            return _recipe.n_held_out(X.shape[0], len(self.classes_))
        n = round(self.calibration_fraction * X.shape[0])
        return n if n >= MIN_FIT_ROWS else 0

    @property
    def _epochs_from_data(self) -> int:
        return _recipe.EFFORTS[self.effort].epochs

    def _starts_from_data(self, X: Any) -> bool:
        return self.init == "labels" or (self.init == "auto" and _recipe.suits(self.network_, X))

    def _has_classifiers(self, X: Any) -> bool:
        return _recipe.suits(self.network_, X) if self.refine == "auto" else bool(self.refine)

    def _refine(self, X: Any, targets: Any, weight: np.ndarray | None,
                held_out: tuple[Any, Any, Any] | None) -> None:
        options: dict[str, Any] = {"sample_weight": weight, "verbose": bool(self.verbose)}
        if not self._has_classifiers(X):
            return
        if self.refine != "auto":
            self.network_.refine(X, targets, **options)
        else:
            _recipe.refine(self.network_, X, targets, None if held_out is None else held_out[:2],
                           effort=self.effort, again=self._repeats(X, held_out), **options)

    def _strata(self, targets: Any) -> Any:
        if self._multilabel:
            return None
        counts = np.bincount(targets)
        n_held_out = len(targets) * self.validation_fraction
        enough = counts[counts > 0].min() > 1 and np.count_nonzero(counts) <= n_held_out
        return targets if enough else None

    def _scores(self, history: list[dict[str, Any]], targets: Any) -> list[float]:
        return [entry["p_at_1"] for entry in history]

    def _repeats(self, X: Any, held_out: tuple[Any, Any, Any] | None) -> bool:
        """Whether classifiers are trained once more, on many rows that were held out as well."""
        if held_out is None or self._multilabel or self.early_stopping or self.refine != "auto":
            return False
        n = held_out[0].shape[0]
        return (n >= MIN_FIT_ROWS and _recipe.repeats(n, X.shape[0] + n)
                and _recipe.suits(self.network_, X))

    def _refine_again(self, X: Any, targets: Any, weight: np.ndarray | None,
                      held_out: tuple[Any, Any, Any] | None) -> None:
        """Train the classifiers once more, on the rows that were held out as well."""
        network = self.network_
        if (not self._repeats(X, held_out) or network.refinement is None
                or network.calibration is None):
            return
        assert held_out is not None
        rows, own, own_weight = held_out
        every = None
        if weight is not None and own_weight is not None:
            every = np.concatenate([weight, own_weight])
        _recipe.refine_again(network, sp.vstack([X, rows], format="csr"),
                             np.concatenate([targets, own]), rows=np.arange(X.shape[0]),
                             effort=self.effort, sample_weight=every, verbose=bool(self.verbose))

    def _after_fit(self, X: Any, targets: Any, weight: np.ndarray | None,
                   held_out: tuple[Any, Any, Any] | None) -> None:
        network = self.network_
        if held_out is not None and held_out[0].shape[0] >= MIN_FIT_ROWS:
            network.calibrate(*held_out[:2], sample_weight=held_out[2],
                              kind="labels" if self._multilabel else "classes",
                              thresholds="per-label" if self.threshold == "per-label" else "one")
        if not self._multilabel:
            self._refine_again(X, targets, weight, held_out)
            return
        if not isinstance(self.threshold, str):
            self.threshold_: float | Floats = self.threshold
        elif network.calibration is not None:
            self.threshold_ = network.calibration.threshold
        elif network.loss.outputs == "classes":
            step = -(-X.shape[0] // MAX_THRESHOLD_ROWS)
            p, indicator = network.predict_proba(X[::step]), targets[::step]
            self.threshold_ = best_threshold(p, indicator.toarray() > 0, indicator.nnz)
        else:
            self.threshold_ = 0.5

    # -- inference -------------------------------------------------------------------------------

    def predict(self, X: MatrixLike) -> Any:
        """Predict the class, or the labels, of each row.

        Parameters
        ----------
        X : array or sparse matrix of shape (n_samples, n_features)

        Returns
        -------
        ndarray of shape (n_samples,), or indicator matrix of shape (n_samples, n_classes), int64
            Classes, or an indicator of the type that `fit` was given; lists of names where it was
            given lists. Rows of an indicator, and lists, may be empty.
        """
        X = self._validated_queries(X)
        if not self._multilabel:
            return self.classes_[self.network_.predict(X)]

        p = of_rows(X, lambda x: self.network_.predict_labels(x, self.threshold_))
        if self._y_type is list:
            names = self.classes_.tolist()
            return [[names[j] for j in p.indices[a:b].tolist()]
                    for a, b in itertools.pairwise(p.indptr.tolist())]
        found = sp.csr_array((np.ones(p.nnz, np.int64), p.indices, p.indptr), shape=p.shape)
        return found.toarray() if self._y_type is np.ndarray else self._kind_of_y(found)

    def _kind_of_y(self, indicator: Any) -> Any:
        return indicator if self._sparse_kind() == "sparse" else sp.csr_matrix(indicator)

    def _sparse_kind(self) -> str:
        """Which of SciPy's two interfaces a sparse indicator has, as files name them."""
        return "sparse" if issubclass(self._y_type, sp.sparray) else "matrix"

    def score(self, X: MatrixLike, y: Any, sample_weight: ArrayLike | None = None) -> float:
        """The fraction of rows whose prediction is right; with several labels, the whole set.

        Parameters
        ----------
        X, y, sample_weight
            As for `fit`.

        Returns
        -------
        float
            In [0, 1].

        Raises
        ------
        ValueError, TypeError
            If it is not trained yet, or an argument is invalid.
        """
        if not has_names(y) or getattr(self, "_named", None) is not list:
            return super().score(X, y, sample_weight)
        found = self.predict(X)
        names = names_of(y, "y", len(found), self.classes_.tolist())
        right = [{names.names[j] for j in ids} == set(row)
                 for ids, row in zip(names.ids, found, strict=True)]
        weights = None if sample_weight is None else np.asarray(sample_weight, float)
        return float(np.average(np.array(right, float), weights=weights))

    def save(self, path: PathLike) -> None:
        """Write the network, the classes and the parameters as one safetensors file, for `load`.

        Parameters
        ----------
        path : str or path-like

        Raises
        ------
        ValueError
            If it is not trained yet.
        TypeError
            If a class or a parameter is an object that the file cannot hold, such as a hash family:
            use pickle then.
        OSError
            If the file cannot be written.
        """
        check_is_fitted(self, "network_")
        threshold = getattr(self, "threshold_", None)
        kinds = {list: "list", np.ndarray: "array"}
        config = {
            "parameters": self.get_params(deep=False) | {"random_state": None},
            "classes": self.classes_.tolist(), "dtype": self.classes_.dtype.str,
            "multilabel": self._multilabel, "named": kinds.get(self._named),
            "y_type": kinds.get(self._y_type, self._sparse_kind()),
            "threshold": threshold.tolist() if isinstance(threshold, np.ndarray) else threshold,
            "input_scale": getattr(self, "input_scale_", 1.0),
            "feature_names": getattr(self, "feature_names_in_", np.zeros(0)).tolist()}
        try:
            json.dumps(config)
        except TypeError as error:
            raise TypeError("a parameter or a class is an object that a file cannot hold "
                            f"({error}); use pickle") from error
        save_with(_for_inputs_times(self.network_, config["input_scale"]), path, {},
                  {"classifier": config})

    @classmethod
    def load(cls, path: PathLike, *, n_jobs: int | None = None) -> Self:
        """Read a file of `save`; :func:`sparselsh.load` reads the network in it alone.

        Parameters
        ----------
        path : str or path-like
        n_jobs : int or None
            Number of threads.

        Returns
        -------
        LSHClassifier

        Raises
        ------
        FileNotFoundError, IsADirectoryError
            If there is no such file, or `path` is a directory.
        ValueError
            If it holds no classifier, or is damaged.
        """
        n_threads = None if n_jobs is None else effective_n_jobs(n_jobs)
        network, _, config = load_with(path, "classifier", n_threads=n_threads)
        if config is None:
            raise ValueError(f"{path}: holds no classifier; read it with sparselsh.load")
        try:
            return cls._of_file(network, config, n_jobs)
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
            raise _files.damaged(path, "classifier", error) from error

    @classmethod
    def _of_file(cls, network: Network, config: dict[str, Any], n_jobs: int | None) -> Self:
        classifier = cls(**config["parameters"] | {"n_jobs": n_jobs})
        classifier._check_parameters()
        classes = np.array(config["classes"], config["dtype"])
        if classes.shape != (network.n_labels,) or len(set(classes.tolist())) != len(classes):
            raise ValueError(f"classes must be {network.n_labels} different ones")
        types = {"list": list, "array": np.ndarray, "sparse": sp.csr_array,
                 "matrix": sp.csr_matrix, None: None}
        scale = check.number(config.get("input_scale", 1.0), "input_scale", above=0, maximum=1)
        if np.frexp(scale)[0] != 0.5:
            raise ValueError(f"input_scale must be a power of two, got {scale}")
        classifier.input_scale_ = scale
        classifier.network_, classifier.classes_ = _for_inputs_times(network, 1 / scale), classes
        classifier._multilabel = bool(config["multilabel"])
        classifier._named, classifier._y_type = types[config["named"]], types[config["y_type"]]
        classifier.n_features_in_ = network.n_features
        if config["feature_names"]:
            classifier.feature_names_in_ = np.array(config["feature_names"], object)
        if config["threshold"] is not None:
            limits = check.thresholds(config["threshold"], network.n_labels)
            is_one = not isinstance(config["threshold"], list)
            classifier.threshold_ = float(config["threshold"]) if is_one else limits
        classifier.n_outputs_, classifier.n_layers_ = network.n_labels, len(network.layers) + 1
        return classifier

    def predict_topk(self, X: MatrixLike, k: int = 5, *,
                     exact: bool = False) -> tuple[np.ndarray, Floats]:
        """The k best classes of each row.

        Parameters
        ----------
        X : array or sparse matrix of shape (n_samples, n_features)
        k : int
            At most the number of classes.
        exact : bool
            Compute every output instead of those that the index finds.

        Returns
        -------
        classes : ndarray of shape (n_samples, k)
            Best first.
        scores : ndarray of shape (n_samples, k), float32
            As of `decision_function` with more than two classes.

        Raises
        ------
        ValueError, TypeError
            If an argument is invalid.
        """
        X = self._validated_queries(X)
        k = check.integer(k, "k", maximum=len(self.classes_))
        ids, scores = self.network_.topk(X, k, exact=exact)
        return self.classes_[ids], scores

    def decision_function(self, X: MatrixLike) -> np.ndarray:
        """All outputs before softmax or sigmoid, as a dense array.

        Parameters
        ----------
        X : array or sparse matrix of shape (n_samples, n_features)

        Returns
        -------
        ndarray of shape (n_samples, n_classes), or (n_samples,) for two classes, float32

        Raises
        ------
        MemoryError
            If the array does not fit into the free memory.
        """
        z = self._outputs(self._validated_queries(X), "decision_function")
        if self._multilabel or len(self.classes_) > 2:
            return z
        return z[:, 1] - z[:, 0] if len(self.classes_) == 2 else z[:, 0]

    def predict_proba(self, X: MatrixLike) -> np.ndarray:
        """Probabilities of all classes, as a dense array.

        Parameters
        ----------
        X : array or sparse matrix of shape (n_samples, n_features)

        Returns
        -------
        ndarray of shape (n_samples, n_classes), float32; float64 for softmax of up to two classes
            Rows sum to one, except for an indicator with the loss "bce".

        Raises
        ------
        MemoryError
            If the array does not fit into the free memory.
        """
        X = self._validated_queries(X)
        self._check_memory(X, "predict_proba")
        if self.network_.calibration is not None or self._multilabel:
            return of_rows(X, self.network_.predict_proba)
        z: Any = self._outputs(X, "predict_proba")
        z = z if z.shape[1] > 2 else z.astype(np.float64)
        if self.network_.loss.outputs == "classes":
            return probabilities_of(self.network_.loss, z)
        # The sigmoids of the classes are independent. Far below zero they are exponentials, whose
        # ratios a shift keeps, and without it all of them may be zero.
        z += np.maximum(LEAST_BEST_OUTPUT - z.max(axis=1, keepdims=True), 0)
        p = probabilities_of(self.network_.loss, z)
        p /= p.sum(axis=1, keepdims=True)
        return p

    def predict_log_proba(self, X: MatrixLike) -> np.ndarray:
        """The logarithm of `predict_proba`.

        Parameters
        ----------
        X : array or sparse matrix of shape (n_samples, n_features)

        Returns
        -------
        ndarray
            Of the shape and dtype of `predict_proba`; -inf where a probability is 0.

        Raises
        ------
        MemoryError
            As for `predict_proba`.
        """
        with np.errstate(divide="ignore"):
            return np.log(self.predict_proba(X))


def _for_inputs_times(network: Network, scale: float) -> Network:
    """A network of which inputs have the outputs that those times `scale` have of this one."""
    if scale == 1:
        return network
    scaled = copy.deepcopy(network)
    weights = scaled.get_weights()
    first = as_float32(weights[0]) * np.float32(scale)
    weights[0] = to_bfloat16(first) if weights[0].dtype == np.uint16 else first
    scaled.set_weights(weights)
    refinement = scaled.refinement
    if refinement is not None:
        w = refinement.weight
        scaled.refinement = Refinement(
            from_scipy(w * np.float32(scale)), refinement.bias, refinement.scale,
            refinement.n_candidates, refinement.by_feature, refinement.normalized)
    return scaled
