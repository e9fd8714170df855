"""Fitted estimators of scikit-learn as affine layers. scikit-learn itself is not imported."""
from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..._arrays.scipy import sp
from .affine import Affine

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..._arrays.types import Floats

MAX_DENSE_BYTES = 1 << 33  # of sparse coefficients, made dense
MLP_ACTIVATIONS = {"identity": None, "relu": "relu", "tanh": "tanh", "logistic": "sigmoid"}
TAKEN = ("from_sklearn takes linear classifiers of three classes or more, OneVsRestClassifier of "
         "linear classifiers, MLPClassifier, and a Pipeline that ends with "
         "one of them")


class FittedClassifier(NamedTuple):
    """The layers of a classifier, what its outputs mean, and what is done before them."""

    layers: list[Affine]
    classes: np.ndarray
    is_multilabel: bool
    transformers: list[Any]
    threshold: float = 0.0  # above which a score is a label, of those with several
    features: list[str] | None = None  # names of the columns of a data frame of `fit`


def read_estimator(estimator: Any) -> FittedClassifier:
    """The layers of a fitted estimator, or an error that names it and its step."""
    transformers: list[Any] = []
    name = ""
    while hasattr(estimator, "steps"):  # a Pipeline, which may end with another
        transformers += [step for _, step in estimator.steps[:-1]
                         if step is not None and step != "passthrough"]
        name, estimator = estimator.steps[-1]
    label = type(estimator).__name__ + (f" (step {name!r})" if name else "")

    threshold = 0.0
    if hasattr(estimator, "label_binarizer_") and hasattr(estimator, "estimators_"):
        layers = [_one_vs_rest(estimator.estimators_, label)]
        is_multilabel = bool(estimator.multilabel_)
        # as OneVsRestClassifier does: the first one says what the scores of all are
        if not _is_classifier(estimator.estimators_[0]):
            threshold = 0.5
    elif hasattr(estimator, "support_vectors_") and hasattr(estimator, "coef_"):
        raise ValueError(f"{label} has an output for each pair of classes, which are no scores of "
                         "the classes; take LinearSVC, or OneVsRestClassifier of it")
    elif hasattr(estimator, "coefs_") and hasattr(estimator, "classes_"):
        layers = _mlp(estimator, label)
        is_multilabel = estimator.out_activation_ == "logistic" and estimator.n_outputs_ > 1
    elif hasattr(estimator, "coef_") and hasattr(estimator, "classes_"):
        layers, is_multilabel = [_linear(estimator, label)], _has_several_labels(estimator)
    elif type(estimator).__module__.startswith("sklearn.") and not _is_fitted(estimator) \
            and any(hasattr(estimator, part) for part in ("hidden_layer_sizes", "fit_intercept",
                                                          "estimator")):
        raise ValueError(f"{label} is not fitted; call fit first, or it has no coef_; {TAKEN}")
    else:
        hint = "give its best_estimator_; " if hasattr(estimator, "best_estimator_") else ""
        raise TypeError(f"estimator must be a fitted classifier with linear layers, got {label}; "
                        f"{hint}{TAKEN}")

    classes = np.asarray(estimator.classes_)
    if len(classes) != layers[-1].n_out:
        raise ValueError(f"{label} has {len(classes)} classes and {layers[-1].n_out} outputs, "
                         f"which are no scores of the classes; {TAKEN}")
    features = None if transformers else getattr(estimator, "feature_names_in_", None)
    return FittedClassifier(layers, classes, is_multilabel, transformers, threshold,
                            None if features is None else list(map(str, features)))


def _is_fitted(estimator: Any) -> bool:
    """Whether it has an attribute such as fit sets, by the convention of its name."""
    return any(name.endswith("_") and not name.startswith("_") for name in vars(estimator))


def _is_classifier(estimator: Any) -> bool:
    return hasattr(estimator, "decision_function") and hasattr(estimator, "classes_")


def _has_several_labels(estimator: Any) -> bool:
    """Whether a linear classifier was fitted on an indicator of labels, as RidgeClassifier may."""
    binarizer = getattr(estimator, "_label_binarizer", None)
    return str(getattr(binarizer, "y_type_", "")).startswith("multilabel")


def _linear(estimator: Any, label: str) -> Affine:
    coefficients, intercept = estimator.coef_, np.ravel(estimator.intercept_)
    W = _dense(coefficients, f"{label}.coef_")
    if len(W) == 1 and len(estimator.classes_) == 2:
        raise ValueError(f"{label} has two classes and one output, of which there is nothing to "
                         "leave out; use the estimator itself")
    return Affine(label, W, np.broadcast_to(intercept, len(W)).astype(np.float32))


def _one_vs_rest(estimators: Sequence[Any], label: str) -> Affine:
    """One row per class; classes that all rows or none have in training have a constant score."""
    known = next((e for e in estimators if hasattr(e, "coef_")), None)
    if known is None:
        kind = type(estimators[0]).__name__
        raise ValueError(f"{label}: its estimators are {kind}, which has no coef_; {TAKEN}")
    W = np.zeros((len(estimators), known.coef_.shape[-1]), np.float32)
    bias = np.zeros(len(estimators), np.float32)
    for i, estimator in enumerate(estimators):
        if hasattr(estimator, "_linear_predictor"):  # of a generalized linear model
            raise ValueError(f"{label}: its estimators are {type(estimator).__name__}, whose "
                             f"predictions are no linear scores; {TAKEN}")
        if hasattr(estimator, "coef_"):
            row = estimator.coef_
            W[i] = (row.toarray() if sp.issparse(row) else np.asarray(row)).ravel()
            bias[i] = np.ravel(estimator.intercept_)[0]
        elif hasattr(estimator, "y_"):  # constant: its decision_function is the class itself
            bias[i] = np.ravel(estimator.y_)[0]
        else:
            raise ValueError(f"{label}: its estimator {i} is a {type(estimator).__name__}, which "
                             f"has no coef_; {TAKEN}")
    return Affine(label, W, bias)


def _mlp(estimator: Any, label: str) -> list[Affine]:
    activation = MLP_ACTIVATIONS[estimator.activation]
    if estimator.n_outputs_ == 1:
        raise ValueError(f"{label} has two classes and one output, of which there is nothing to "
                         "leave out; use the estimator itself")
    last = len(estimator.coefs_) - 1
    return [Affine(f"{label}.coefs_[{i}]", np.ascontiguousarray(W.T, np.float32),
                   np.asarray(b, np.float32), activation if i < last else None)
            for i, (W, b) in enumerate(zip(estimator.coefs_, estimator.intercepts_, strict=True))]


def _dense(coefficients: Any, name: str) -> Floats:
    if sp.issparse(coefficients):
        n_bytes = 4 * int(np.prod(coefficients.shape, dtype=np.int64))
        if n_bytes > MAX_DENSE_BYTES:
            raise ValueError(f"{name} is sparse, and takes {n_bytes / 2**30:.1f} GiB when it is "
                             "dense; leave features out (SelectKBest), or keep the estimator")
        coefficients = coefficients.toarray()
    return np.ascontiguousarray(np.atleast_2d(coefficients), np.float32)
