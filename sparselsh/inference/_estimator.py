"""EstimatorNetwork: a classifier of scikit-learn, whose layers are converted.

TextNetwork: a classifier of texts by fastText. FactorNetwork: item factors of a recommender, of
which the best are found.
"""
from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import numpy as np

from .. import _validation as check
from .._arrays.scipy import sp
from ._converted import ConvertedNetwork
from .readers import FittedClassifier, restored_fasttext

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from scipy.sparse import csr_array

    from .._arrays.types import Floats, Ids
    from ._file import Whole
    from ._inference_network import InferenceNetwork
    from .readers.fasttext import FastTextModel

ESTIMATOR_FORMAT, TEXT_FORMAT, FACTOR_FORMAT = (
    "sparselsh.estimator", "sparselsh.texts", "sparselsh.factors")
FIRST_LABELS = 32  # of a row with several labels, that are looked for first


class EstimatorNetwork(ConvertedNetwork):
    """A classifier of scikit-learn, converted for inference by :func:`from_sklearn`.

    Attributes
    ----------
    network : InferenceNetwork
        The layers; its outputs are in the order of `classes_`.
    classes_ : ndarray of shape (n_classes,)
    report : ConversionReport
    """

    _format = ESTIMATOR_FORMAT

    def __init__(self, fitted: FittedClassifier) -> None:
        self.classes_ = fitted.classes
        self._is_multilabel, self._transformers = fitted.is_multilabel, fitted.transformers
        self._threshold, self._features = fitted.threshold, fitted.features

    def transform(self, X: Any) -> Any:
        """X after the steps of the Pipeline before the classifier: the input of the layers.

        Parameters
        ----------
        X
            What the estimator takes.

        Returns
        -------
        array or sparse matrix

        Raises
        ------
        ValueError
            If X is a data frame with other columns than that of `fit`, or in another order.
        """
        columns = list(getattr(X, "columns", ()))
        if self._features is not None and columns and columns != self._features and all(
                isinstance(column, str) for column in columns):
            at = next((i for i, pair in enumerate(zip(columns, self._features, strict=False))
                       if pair[0] != pair[1]), min(len(columns), len(self._features)))
            raise ValueError(f"X must have the columns of fit in their order; column {at} is "
                             f"{columns[at:at + 1]}, and was {self._features[at:at + 1]}: give "
                             "X[estimator.feature_names_in_]")
        for transformer in self._transformers:
            X = transformer.transform(X)
        return X

    def topk(self, X: Any, k: int = 5) -> tuple[np.ndarray, Floats]:
        """The k classes with the largest scores.

        Parameters
        ----------
        X
            What the estimator takes.
        k : int

        Returns
        -------
        classes : ndarray of shape (n_samples, k)
            Best first.
        scores : ndarray of shape (n_samples, k), float32
            As from `decision_function` of the estimator; of an MLPClassifier before its softmax.

        Raises
        ------
        TypeError, ValueError
            If an argument does not fit.
        """
        k = check.integer(k, "k", maximum=len(self.classes_))
        ids, scores = self.network.topk(self.transform(X), k)
        return self.classes_[ids], scores

    def predict(self, X: Any) -> Any:
        """What `predict` of the estimator gives.

        Parameters
        ----------
        X
            What the estimator takes.

        Returns
        -------
        ndarray of shape (n_samples,), or csr_array of shape (n_samples, n_classes)
            The class of each row; where a row has several, 1 for those with a score above 0, or
            above 0.5 where a OneVsRestClassifier is one of regressors.

        Raises
        ------
        TypeError, ValueError
            If X does not fit.
        """
        if not self._is_multilabel:
            return self.topk(X, 1)[0][:, 0]
        return self._labels(self.transform(X))

    def _labels(self, x: Any) -> csr_array:
        x = x.tocsr() if sp.issparse(x) else np.asarray(x)
        k, n_rows = min(FIRST_LABELS, len(self.classes_)), x.shape[0]
        ids, scores = self.network.topk(x, k)
        rows, places = np.nonzero(scores > self._threshold)
        columns = ids[rows, places]
        more = np.flatnonzero(scores[:, -1] > self._threshold)
        if len(more) and k < len(self.classes_):  # all k labels: there may be others
            kept = ~np.isin(rows, more)
            there, others = np.nonzero(self.network.decision_function(x[more]) > self._threshold)
            rows = np.concatenate([rows[kept], more[there]])
            columns = np.concatenate([columns[kept], others])
        ones = np.ones(len(rows), np.int64)
        return sp.csr_array((ones, (rows, columns)), shape=(n_rows, len(self.classes_)))

    def decision_function(self, X: Any) -> Floats:
        """All scores.

        Parameters
        ----------
        X
            What the estimator takes.

        Returns
        -------
        ndarray of shape (n_samples, n_classes), float32

        Raises
        ------
        TypeError, ValueError
            If X does not fit.
        """
        return self.network.decision_function(self.transform(X))

    def _state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        if self._transformers:
            names = ", ".join(type(part).__name__ for part in self._transformers)
            raise ValueError(f"the steps before the classifier ({names}) are no arrays; convert "
                             "the classifier alone, pipeline[-1], and keep the steps with joblib")
        classes = self.classes_
        if not _are_storable(classes):
            raise TypeError(f"classes_ must be numbers or strings, got {classes.dtype}")
        return {}, {"classes": classes.tolist(), "is_multilabel": self._is_multilabel,
                    "dtype": classes.dtype.str, "threshold": self._threshold,
                    "features": self._features}

    @classmethod
    def _restored(cls, whole: Whole, network: InferenceNetwork, source: str) -> Self:
        dtype = np.dtype(str(whole.config["dtype"]))
        classes = np.array(whole.config["classes"], dtype)
        if not _are_storable(classes) or classes.shape != (whole.layers[-1].n_out,):
            raise ValueError("its classes do not fit its layers")
        is_multilabel = whole.config["is_multilabel"]
        if type(is_multilabel) is not bool:
            raise ValueError(f"is_multilabel must be true or false, got {is_multilabel!r}")
        threshold = check.number(whole.config.get("threshold", 0.0), "threshold")
        features = whole.config.get("features")
        if features is not None and not (isinstance(features, list)
                                         and all(isinstance(name, str) for name in features)):
            raise ValueError("its names of features are no strings")
        return cls(FittedClassifier([], classes, is_multilabel, [], threshold, features))


def _are_storable(classes: np.ndarray) -> bool:
    """Whether a file can name these classes: they are numbers, or strings."""
    return classes.dtype.kind in "biufU" or (
        classes.dtype.kind == "O" and all(isinstance(c, str) for c in classes.flat))


class TextNetwork(ConvertedNetwork):
    """A classifier of texts by fastText, converted for inference by :func:`from_fasttext`.

    Attributes
    ----------
    network : InferenceNetwork
        It takes counts of the rows of its table; its outputs are in the order of `labels`.
    labels : list of str
    report : ConversionReport
    """

    _format = TEXT_FORMAT

    def __init__(self, model: FastTextModel) -> None:
        self._model, self.labels = model, model.labels

    def transform(self, texts: Sequence[str]) -> csr_array:
        """The rows of the table that the words of each text stand for, with their weights.

        Parameters
        ----------
        texts : sequence of str

        Returns
        -------
        csr_array of shape (n_texts, n_rows), float32

        Raises
        ------
        TypeError
            If it is not a sequence of texts.
        """
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise TypeError(f"texts must be a sequence of texts, got {texts!r:.80}")
        found = [self._model.ids(text) for text in texts]
        counts = np.array([len(ids) for ids in found], np.int64)
        weights = np.repeat((1 / np.maximum(counts, 1)).astype(np.float32), counts)
        indptr = np.concatenate([[0], np.cumsum(counts)])
        flat = np.array([i for ids in found for i in ids], np.int64)
        rows = sp.csr_array((weights, flat, indptr), shape=(len(found), self.network.n_features))
        rows.sum_duplicates()
        return rows

    def topk(self, texts: Sequence[str], k: int = 5, *,
             exact: bool = False) -> tuple[list[list[str]], Floats]:
        """The k labels with the largest scores.

        Parameters
        ----------
        texts : sequence of str
            A line end in a text is a space.
        k : int
        exact : bool
            Compute every output.

        Returns
        -------
        labels : list of list of str
            Best first.
        scores : ndarray of shape (n_texts, k), float32
            Before softmax or sigmoid.

        Raises
        ------
        TypeError, ValueError
            If an argument does not fit.
        """
        k = check.integer(k, "k", maximum=len(self.labels))
        ids, scores = self.network.topk(self.transform(texts), k, exact=exact)
        return [[self.labels[i] for i in row] for row in ids], scores

    def _state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        config = self._model._replace(layers=[], words={})._asdict()
        words = b"\0".join(self._model.words)
        return {"words": np.frombuffer(words, np.uint8)}, {"model": config}

    @classmethod
    def _restored(cls, whole: Whole, network: InferenceNetwork, source: str) -> Self:
        words = whole.tensors["words"].tobytes().split(b"\0")
        return cls(restored_fasttext(whole.config["model"], words, whole.layers[0].n_in,
                                     whole.layers[-1].n_out))


class FactorNetwork(ConvertedNetwork):
    """A matrix factorization whose best items are searched; see :func:`from_implicit`.

    Attributes
    ----------
    network : InferenceNetwork
        It takes factors of users, and its outputs are the items.
    user_factors : ndarray of shape (n_users, n_factors), float32, or None
    report : ConversionReport
    """

    _format = FACTOR_FORMAT

    def __init__(self, network: InferenceNetwork, user_factors: Floats | None) -> None:
        self.network, self.user_factors = network, user_factors

    def recommend(self, users: Any, user_items: Any = None, N: int = 10, *,
                  filter_items: Any = None, exact: bool = False) -> tuple[Ids, Floats]:
        """The N best items for each user.

        Parameters
        ----------
        users : int, array of ids, or array of shape (n_users, n_factors)
            Numbers of rows of `user_factors`; or factors themselves.
        user_items : sparse matrix of shape (n_users, n_items), or None
            The items that each of these users has; they are left out.
        N : int
        filter_items : array of ids or None
            Items that are never recommended.
        exact : bool
            Compute every item.

        Returns
        -------
        ids : ndarray of shape (n_users, N), int32
            Best first; -1 where there are fewer. Without the first axis for one user.
        scores : ndarray of shape (n_users, N), float32

        Raises
        ------
        TypeError, ValueError
            If an argument does not fit.
        """
        is_one = np.ndim(users) == 0
        factors = self._factors(users)
        selection = None
        if user_items is not None:
            if not sp.issparse(user_items) or user_items.shape != (len(factors),
                                                                   self.network.n_labels):
                shape = getattr(user_items, "shape", type(user_items).__name__)
                raise ValueError("user_items must be a sparse matrix of shape "
                                 f"{(len(factors), self.network.n_labels)}, a row per user, "
                                 f"got {shape}")
            selection = sp.csr_array(user_items, copy=True)
            selection.data = np.ones(selection.nnz)  # values of -1 would cancel filter_items
        if filter_items is not None:
            unwanted = check.ids(filter_items, "filter_items", self.network.n_labels)
            if selection is None:
                selection = unwanted
            else:
                every = sp.csr_array((np.ones(len(unwanted)), unwanted, [0, len(unwanted)]),
                                     shape=(1, self.network.n_labels))
                selection = sp.csr_array(selection + sp.vstack([every] * len(factors)))
        ids, scores = self.network.topk(factors, N, exact=exact, exclude=selection)
        return (ids[0], scores[0]) if is_one else (ids, scores)

    def _state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        users = {} if self.user_factors is None else {"user_factors": self.user_factors}
        return users, {}

    @classmethod
    def _restored(cls, whole: Whole, network: InferenceNetwork, source: str) -> Self:
        users = whole.tensors.get("user_factors")
        if users is not None:
            users = check.dense(users, "user_factors", n_columns=whole.layers[0].n_in)
        return cls(network, users)

    def _factors(self, users: Any) -> NDArray[np.float32]:
        users = np.asarray(users)
        if users.ndim == 2:
            return check.dense(users, "users", n_columns=self.network.n_features)
        if self.user_factors is None:
            raise ValueError("users must be an array of factors: the matrix of items came without "
                             "users")
        return self.user_factors[check.ids(np.atleast_1d(users), "users", len(self.user_factors))]
