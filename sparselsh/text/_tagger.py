"""Tagger: texts and names in, names and probabilities out."""
from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np

from .. import _validation as check
from .._arrays.csr import CSR
from .._core import _single_row_mlp
from .._signals import held
from .._threads import one_at_a_time
from ..callbacks import checked as checked_callbacks
from ..network import Network, contributions, grow_from_rows, joined
from ..network import load as load_network
from ._inputs import Names, checked_name, checked_texts, names_of
from ._named_network import NamedNetwork, as_attributes
from ._training import (
    Options,
    Trained,
    learn_and_take,
    refinement_cost,
    trained,
    with_more,
)
from ._vectorizer import TextVectorizer

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .._arrays.types import Floats, PathLike, RandomState
    from ..callbacks import Callback
    from ._file import Stored

MAX_TEXTS_PER_SEARCH = 4096  # whose rows are held in memory at a time


class Tagger(NamedNetwork):
    """Assign names to texts: tags, subjects, categories or products, a few or very many.

    Texts become TF-IDF rows of words and pairs of words. A network with one linear hidden layer
    finds the tags, and one linear classifier per tag (one-vs-rest) reranks them. A tenth of the
    texts is held out of the training. On these, probabilities are calibrated and the threshold is
    chosen. If they are a twentieth of the texts or more, the classifiers are then trained again on
    all texts. A trained Tagger is saved as one file. It has the interface of a scikit-learn
    classifier and does not need scikit-learn.

    Parameters
    ----------
    vectorizer : TextVectorizer, another transformer or None
        Converts texts to rows; None for ``TextVectorizer()``. Another transformer, such as those of
        scikit-learn, has `fit_transform` and `transform`, which return sparse rows.
    hidden : int
        Neurons of the hidden layer.
    epochs : int or None
        Passes over the texts; None for 2, or for more if there are few texts.
    batch_size : int or None
        Texts per step; None for a fortieth of them, from 64 to 256.
    lr : float or None
        Learning rate at the first step; None for one that decreases with the number of steps.
    dropout : float or None
        Fraction of the hidden neurons that a step leaves out; None for 0.2 in trainings of 2,000
        steps or more, and 0 otherwise.
    refine : bool
        Train one classifier of the words per tag (see :meth:`Network.refine
        <sparselsh.Network.refine>`); they are removed if they reduce the accuracy.
    effort : {"low", "default", "high"}
        Sets the epochs, the negative examples per text, and the number of reranked tags. "low"
        takes less time, "high" ranks better.
    threshold : float, "auto" or "per-tag"
        If texts may have several tags, `predict` returns those whose probability is at least this.
        "auto" is the threshold with the largest micro-averaged F1 on the texts that are held out.
        If F1 gains by smaller thresholds for rare tags, "auto" is one threshold per tag, a function
        of the number of texts with the tag. "per-tag" chooses a separate threshold for each tag
        that eight or more of the held-out texts have.
    hold_out : int or None
        Number of texts that are held out. None for a tenth, at most 1,024, or at most 4,096 if
        there are fewer than 1,000 tags; 0 if there are fewer than 500 texts.
    random_state : None, int or numpy.random.Generator
        Results do not depend on the number of threads.
    n_threads : int or None
        Number of threads; None for :func:`sparselsh.get_num_threads`.
    verbose : bool
        Show progress bars.

    Attributes
    ----------
    tags_, classes_ : ndarray of shape (n_tags,), object
        The names. Names that were added later are at the end.
    vectorizer_ : TextVectorizer or transformer
        As fitted.
    network_ : Network
        The network over the columns of `vectorizer_` and the ids of `tags_`.
    threshold_ : float, or ndarray of shape (n_tags,), float32
        The threshold that `predict` uses where texts may have several tags.

    Examples
    --------
    >>> import sparselsh as sl
    >>> texts = ["red apple", "green pear", "fast car", "slow bus"] * 5
    >>> tags = [["fruit"], ["fruit"], ["traffic"], ["traffic"]] * 5
    >>> tagger = sl.Tagger(random_state=0).fit(texts, tags)
    >>> tagger.predict(["a green apple", "the fast bus"])
    [['fruit'], ['traffic']]
    """

    vectorizer_: Any
    tags_: NDArray[np.object_]
    threshold_: Any
    _one_per_row: bool
    _not_in_files = ("random_state", "vectorizer")

    def __init__(self, vectorizer: Any = None, *, hidden: int = 128, epochs: int | None = None,
                 batch_size: int | None = None, lr: float | None = None,
                 dropout: float | None = None, refine: bool = True,
                 effort: Literal["low", "default", "high"] = "default",
                 threshold: float | Literal["auto", "per-tag"] = "auto",
                 hold_out: int | None = None, random_state: RandomState = None,
                 n_threads: int | None = None, verbose: bool = False) -> None:
        self.vectorizer = vectorizer
        self.hidden = hidden
        self.epochs = epochs
        self.batch_size = batch_size
        self.lr = lr
        self.dropout = dropout
        self.refine = refine
        self.effort = effort
        self.threshold = threshold
        self.hold_out = hold_out
        self.random_state = random_state
        self.n_threads = n_threads
        self.verbose = verbose

    # -- training --------------------------------------------------------------------------------

    def fit(self, texts: Any, tags: Any, *, validation: float | tuple[Any, Any] | None = None,
            callbacks: Sequence[Callback] = ()) -> Self:
        """Train on texts and their tags.

        Parameters
        ----------
        texts : list of str, or column of a data frame
            Columns of NumPy, pandas, polars and Arrow are accepted.
        tags : list of lists of str, list of str, or data frame
            The tags of each text, as lists, tuples, sets or a column of such, which may be empty;
            or one string per text, its only tag; or a data frame of zeros and ones with a column
            per tag, whose name is that of the column.
        validation : float, tuple (texts, tags) or None
            Texts whose loss and P@1 are measured after each epoch, for callbacks such as
            :class:`EarlyStopping <sparselsh.callbacks.EarlyStopping>`: a fraction of the texts, up
            to 0.5, which are held out in place of `hold_out`; or further texts and their tags. Tags
            that no training text has are ignored.
        callbacks : sequence of Callback
            See `sparselsh.callbacks`.

        Returns
        -------
        self

        Raises
        ------
        ValueError, TypeError
            If a parameter, a text or a tag is invalid; the message names the row, the value and
            the remedy.
        """
        return self._train(texts, tags, validation, callbacks)

    def resume(self, path: PathLike, texts: Any, tags: Any, *, epochs: int | None = None,
               validation: float | tuple[Any, Any] | None = None,
               callbacks: Sequence[Callback] = ()) -> Self:
        """Continue a `fit` that was interrupted, from the file of a checkpoint.

        ``fit(texts, tags, callbacks=[sl.callbacks.Checkpoint(path)])`` writes it after each epoch.
        Given the same texts, tags, parameters and callbacks, the tagger becomes the same, bit for
        bit, as without the interruption. `hidden`, `batch_size`, `lr`, `dropout` and
        `random_state` are those of the file.

        Parameters
        ----------
        path : str or path-like
            A file of :class:`Checkpoint <sparselsh.callbacks.Checkpoint>`.
        texts, tags, validation, callbacks
            As for `fit`.
        epochs : int or None
            Epochs of the whole training; more of them train longer than was planned. None for what
            was planned.

        Returns
        -------
        self

        Raises
        ------
        ValueError, TypeError
            As for `fit`; also if the file holds no training to continue, or one of other texts or
            tags.
        FileNotFoundError
            If there is no such file.
        """
        path = check.path(path)
        epochs = None if epochs is None else check.integer(epochs, "epochs")
        network = load_network(path, n_threads=self.n_threads)
        if network.training_progress is None:
            raise ValueError(f"{path}: holds a network, but no training to continue; give a file "
                             "of sparselsh.callbacks.Checkpoint")
        return self._train(texts, tags, validation, callbacks, (path, network, epochs))

    def _train(self, texts: Any, tags: Any, validation: Any, callbacks: Sequence[Callback],
               resumed: tuple[str, Network, int | None] | None = None) -> Self:
        self._check_parameters()
        callbacks = checked_callbacks(callbacks)
        texts = checked_texts(texts, "texts", training=True)
        if not texts:
            raise ValueError("texts must hold at least one text, got none")
        names = names_of(tags, "tags", len(texts))
        if not names.names:
            raise ValueError("tags must hold at least one tag, got none; give the tags of the "
                             "texts")
        further = self._checked_validation(validation, names)
        vectorizer = self._new_vectorizer()
        x = _rows_of_fit(vectorizer, texts)
        if isinstance(further, tuple):
            further = _rows_of(vectorizer, further[0]), further[1]
        options = self._options(names.one_per_row, callbacks)._replace(validation=further)
        if resumed is not None:
            path, network, epochs = resumed
            shape = x.n_columns, len(names.names)
            if (network.n_features, network.n_labels) != shape:
                raise ValueError(f"{path}: is of a training with {network.n_features} columns and "
                                 f"{network.n_labels} tags, but these texts give {shape[0]} and "
                                 f"{shape[1]}; give the texts and tags that it began with")
            options = options._replace(resumed=network, epochs=epochs)
        model = trained(x, names.indicator(), options)
        named = _named(names.names, names.one_per_row)
        if resumed is not None:
            named["hidden"] = model.network.layers[0].n_out
        self._take(vectorizer, model, named)
        return self

    @one_at_a_time
    def add_tags(self, texts: Any, tags: Any) -> Self:
        """Add new tags, and new words, to a trained Tagger.

        Texts without new words keep their scores for the known tags. The new tags learn from these
        texts and, as negative examples, from some training texts that the Tagger keeps as word ids.
        That takes a small part of the time of a training.

        Parameters
        ----------
        texts : list of str, or column of a data frame
            Texts that have the new tags, and others.
        tags : as for `fit`
            All tags of these texts, the new ones and the known ones.

        Returns
        -------
        self

        Raises
        ------
        ValueError, TypeError
            If it is not trained yet, an argument is invalid, or no tag is new.
        """
        texts, names = self._new_rows(texts, tags)
        if len(names.names) == len(self._names):
            raise ValueError("tags holds no tag that the model does not know; call partial_fit to "
                             "train on more texts with known tags")
        self._grow(texts, names, learns=False)
        return self

    @one_at_a_time
    def partial_fit(self, texts: Any, tags: Any) -> Self:
        """Train on more texts, once, at a small constant rate; the first call is `fit`.

        New tags and new words are added first, as by `add_tags`. Classifiers of known tags,
        probabilities and the threshold stay as they are. Ctrl-C waits for the end of the call.

        Parameters
        ----------
        texts, tags
            As for `fit`.

        Returns
        -------
        self

        Raises
        ------
        ValueError, TypeError
            As for `fit`.
        """
        if not hasattr(self, "network_"):
            return self.fit(texts, tags)
        texts, names = self._new_rows(texts, tags)
        x, y, learned = self._grow(texts, names, learns=True)
        learn_and_take(self, x, y, learned)
        return self

    def _checked_validation(self, validation: Any, names: Names
                            ) -> float | tuple[list[str], CSR] | None:
        """A fraction; or texts, and their rows of the tags that have these names."""
        if validation is None:
            return None
        if isinstance(validation, int | float) and not isinstance(validation, bool):
            if self.hold_out is not None:
                raise ValueError(f"validation={validation} holds texts out, in place of "
                                 f"hold_out={self.hold_out}; give one of them")
            return float(check.number(validation, "validation", above=0, maximum=0.5))
        if not isinstance(validation, tuple | list) or len(validation) != 2:
            raise TypeError("validation must be a fraction of the texts, or a pair (texts, tags), "
                            f"got {validation!r:.80}")
        texts = checked_texts(validation[0], "validation[0]")
        found = names_of(validation[1], "validation[1]", len(texts), names.names)
        n = len(names.names)
        kept = [[j for j in row if j < n] for row in found.ids]
        if not any(kept):
            raise ValueError("validation[1] holds no tag of the texts that are trained on; give "
                             "texts with such tags")
        if names.one_per_row:  # a row without its tag could not be right
            texts = [text for text, row in zip(texts, kept, strict=True) if row]
            kept = [row for row in kept if row]
        return texts, found._replace(ids=kept).indicator(n)

    def _new_rows(self, texts: Any, tags: Any) -> tuple[list[str], Names]:
        self._check_trainable()
        texts = checked_texts(texts, "texts", training=True)
        if not texts:
            raise ValueError("texts must hold at least one text, got none")
        names = names_of(tags, "tags", len(texts), self._names)
        if names.one_per_row != self._one_per_row:
            one, several = "one string per text", "a list per text"
            raise TypeError(f"tags must be {one if self._one_per_row else several}, as in fit, got "
                            f"{several if self._one_per_row else one}")
        return texts, names

    def _grow(self, texts: list[str], names: Names, learns: bool
              ) -> tuple[CSR, CSR, dict[str, Any]]:
        """Add new words and new tags and, unless the network `learns` the texts first, these.

        Returns the rows, and the attributes that count the texts.
        """
        vectorizer = known = self.vectorizer_
        if isinstance(vectorizer, TextVectorizer):
            vectorizer = vectorizer.extended(texts)
            known = vectorizer.counting(known.n_texts_)
            x = vectorizer.rows(texts)
        else:
            x = self._rows(texts)
        y = names.indicator()
        rows, network = joined(x, y, *self._kept), self.network_
        learned = {"vectorizer_": vectorizer, "_kept": with_more(self._kept, x, y)}
        taken = _named(names.names, self._one_per_row) | (
            {"vectorizer_": known} if learns else learned)
        with held():  # the parts change together, or an error leaves them as they were
            if x.n_columns > network.n_features or y.n_columns > network.n_labels:
                grow_from_rows(network, rows, refinement_cost(x, y.n_columns))
            if not isinstance(self.threshold_, float):
                taken["threshold_"] = network.calibration.threshold
            self.__dict__.update(taken)
        return x, y, learned

    @one_at_a_time
    def _take(self, vectorizer: Any, model: Trained, named: dict[str, Any]) -> None:
        """Be the tagger of these, all at once; `named` is what `_named` gives."""
        self.__dict__.update(
            named, vectorizer_=vectorizer, network_=model.network, _kept=model.kept,
            threshold_=(model.threshold if isinstance(self.threshold, str) else
                        float(self.threshold)))

    def _check_parameters(self) -> None:
        super()._check_parameters()
        check.choice(self.effort, "effort", ("low", "default", "high"))
        if isinstance(self.threshold, str):
            check.choice(self.threshold, "threshold", ("auto", "per-tag"))
        else:
            check.number(self.threshold, "threshold", above=0, below=1)

    def _new_vectorizer(self) -> Any:
        """A vectorizer without state, with the parameters of the given one."""
        if self.vectorizer is None:
            return TextVectorizer(n_threads=self.n_threads)
        if isinstance(self.vectorizer, TextVectorizer):
            return TextVectorizer(**self.vectorizer.get_params(deep=False))
        for method in ("fit_transform", "transform"):
            if not callable(getattr(self.vectorizer, method, None)):
                raise TypeError(f"vectorizer must have {method}, as those of scikit-learn have, "
                                f"got {self.vectorizer!r}; None is for TextVectorizer()")
        import copy

        return copy.deepcopy(self.vectorizer)

    def _options(self, one_per_row: bool, callbacks: Sequence[Callback]) -> Options:
        return Options(
            self.hidden, self.epochs, self.batch_size, self.lr, self.dropout, self.hold_out,
            bool(self.refine), "classes" if one_per_row else "labels",
            "per-label" if self.threshold == "per-tag" else "one", self.random_state,
            self.n_threads, callbacks, bool(self.verbose), effort=self.effort)

    # -- answers ---------------------------------------------------------------------------------

    @property
    def classes_(self) -> NDArray[np.object_]:
        """The names, as scikit-learn calls them."""
        return self.tags_

    @property
    def one_per_text(self) -> bool:
        """Whether each text has exactly one tag: `fit` was given one string per text."""
        self._check_fitted()
        return self._one_per_row

    @one_at_a_time
    def predict(self, texts: Any) -> list[list[str]] | NDArray[np.object_]:
        """The tags of each text.

        Parameters
        ----------
        texts : list of str, or column of a data frame

        Returns
        -------
        list of lists of str, or ndarray of shape (n_texts,), object
            If texts may have several tags: the tags whose probability reaches the threshold, best
            first; a list may be empty. If each text has one tag: the best tag.

        Raises
        ------
        ValueError, TypeError
            If it is not trained yet, or a text is not a string.
        """
        texts = self._checked(texts)
        if len(texts) == 1 and (names := self._names_of_single_text(texts[0])) is not None:
            return self.tags_[[self._ids[names[0]]]] if self._one_per_row else [names]
        if self._one_per_row:
            best = [self.network_.topk(x, 1)[0][:, 0] for x in self._parts(texts)]
            return self.tags_[np.concatenate(best) if best else np.zeros(0, np.int32)]
        return [[name for name, _ in row] for row in self._named_above(texts)]

    @one_at_a_time
    def predict_topk(self, texts: Any, k: int = 5,
                     threshold: float = 0.0) -> list[list[tuple[str, float]]]:
        """The k best tags of each text and their probabilities.

        Parameters
        ----------
        texts : list of str, or column of a data frame
        k : int
            All tags, if the model has fewer than k.
        threshold : float
            Leave out tags whose probability is below it, in [0, 1].

        Returns
        -------
        list of lists of (str, float)
            For each text, best first.

        Raises
        ------
        ValueError, TypeError
            If it is not trained yet, or an argument is invalid.
        """
        texts = self._checked(texts)
        k = min(check.integer(k, "k"), len(self._names))
        threshold = check.number(threshold, "threshold", minimum=0, maximum=1)
        if len(texts) == 1 and (row := self._of_single_text(texts[0], k, threshold)) is not None:
            return [row]
        found = []
        for x in self._parts(texts):
            for ids, p in zip(*self._best(x, k), strict=True):
                found.append(self._named(ids, p, threshold))
        return found

    @one_at_a_time
    def predict_proba(self, texts: Any) -> Floats:
        """The probabilities of all tags, in the order of `tags_`.

        Parameters
        ----------
        texts : list of str, or column of a data frame

        Returns
        -------
        ndarray of shape (n_texts, n_tags), float32
            Rows add up to 1 if each text has one tag.

        Raises
        ------
        ValueError, TypeError
            As for `predict`.
        """
        return self.network_.predict_proba(self._rows(self._checked(texts)))

    @one_at_a_time
    def explain(self, text: str, tag: str, n: int = 10) -> list[tuple[str, float]]:
        """The contribution of the words of a text to the score of a tag.

        The score of a tag is a sum over the words of the text and runs of words. Each adds a
        contribution through the layers and one by the classifier of the tag.

        Parameters
        ----------
        text : str
        tag : str
        n : int
            Maximum number of words; those with the largest absolute contributions are returned.

        Returns
        -------
        list of (str, float)
            Words or runs of words and their contributions to the score, largest first.

        Raises
        ------
        ValueError, TypeError
            If it is not trained yet, the model does not know the tag, or an argument is invalid.
        """
        (text,) = self._checked([text])
        label = checked_name(tag, "tag", self._ids)
        n = check.integer(n, "n")
        x = self._rows([text])
        weights = contributions(self.network_, x, label)
        names = self._feature_names(text, x)
        order = np.argsort(-abs(weights), kind="stable")[:n]
        best = sorted(order.tolist(), key=lambda k: -weights[k])
        return [(names[k], float(weights[k])) for k in best]

    def _feature_names(self, text: str, x: CSR) -> list[str]:
        """What the entries of the row of a text are called."""
        ids = x.indices.tolist()
        if isinstance(self.vectorizer_, TextVectorizer):
            known: dict[int, str] = {}
            for run, j in self.vectorizer_.ngrams(text):  # several, where hashes are equal
                known[j] = run if known.get(j, run) == run else f"{known[j]} / {run}"
            return [known[j] for j in ids]
        if hasattr(self.vectorizer_, "get_feature_names_out"):
            every = self.vectorizer_.get_feature_names_out()
            return [str(every[j]) for j in ids]
        return [f"feature {j}" for j in ids]

    @one_at_a_time
    def score(self, texts: Any, tags: Any) -> float:
        """The accuracy if each text has one tag, otherwise the micro-averaged F1.

        Parameters
        ----------
        texts : list of str, or column of a data frame
        tags : as for `fit`
            Tags that the model does not know count as missed.

        Returns
        -------
        float
            In [0, 1].

        Raises
        ------
        ValueError, TypeError
            If an argument is invalid.
        """
        texts = self._checked(texts)
        names = names_of(tags, "tags", len(texts), self._names)
        if not texts:
            raise ValueError("texts must hold at least one text, got none")
        found = self.predict(texts)
        rows = [[name] for name in found] if self._one_per_row else found
        hits = sum(len({self._ids[name] for name in row}.intersection(true))
                   for row, true in zip(rows, names.ids, strict=True))
        n = sum(map(len, rows)) + sum(map(len, names.ids))
        return 2 * hits / n if n else 1.0

    def _checked(self, texts: Any) -> list[str]:
        self._check_fitted()
        return checked_texts(texts, "texts")

    def _rows(self, texts: Sequence[str]) -> Any:
        """The rows of texts, as a CSR, which a network takes as it is."""
        return _rows_of(self.vectorizer_, texts)

    def _parts(self, texts: Sequence[str]) -> list[Any]:
        """The rows of all texts, some at a time."""
        return [self._rows(texts[first:first + MAX_TEXTS_PER_SEARCH])
                for first in range(0, len(texts), MAX_TEXTS_PER_SEARCH)]

    def _of_single_text(self, text: str, k: int, threshold: float
                        ) -> list[tuple[str, float]] | None:
        """`predict_topk` of a text by one call to the core, or None where it takes several."""
        network, vectorizer = self.network_, self.vectorizer_
        if not isinstance(network, Network) or not isinstance(vectorizer, TextVectorizer):
            return None
        plan, blob = vectorizer.as_kernels_take(text)
        names = self._names
        return network.answer_of_single_row(
            k, vectorizer.n_columns,
            lambda mlp: _single_row_mlp.top_k_text(mlp, plan, blob, names, k, threshold))

    def _names_of_single_text(self, text: str) -> list[str] | None:
        """`predict` of a text by one call to the core, or None where it takes several."""
        calibration, limit = self.network_.calibration, self.threshold_
        if calibration is None:
            return None
        if self._one_per_row:
            row = self._of_single_text(text, 1, 0.0)
            return None if not row else [row[0][0]]
        n, least = calibration.n_ranked, float(np.float32(limit if isinstance(limit, float)
                                                          else limit.min()))
        row = self._of_single_text(text, n, least)
        if row is None or (len(row) == n and n < len(self._names)):
            return None  # others may reach the threshold
        if not isinstance(limit, float):
            row = [(name, p) for name, p in row if p >= limit[self._ids[name]]]
        return [name for name, _ in row]

    def _best(self, x: Any, k: int) -> tuple[Any, Floats]:
        """Ids and probabilities of the k best tags of each row, -1 for none."""
        calibration = self.network_.calibration
        if calibration is not None and k <= calibration.n_ranked:
            return self.network_.topk(x, k, probabilities=True)
        ids, _ = self.network_.topk(x, k)
        p = self.network_.predict_proba(x)
        found = np.where(ids >= 0, np.take_along_axis(p, np.maximum(ids, 0), axis=1), 0)
        return ids, found.astype(np.float32)

    def _named(self, ids: Any, p: Floats, threshold: float) -> list[tuple[str, float]]:
        names = self._names
        return [(names[j], value) for j, value in zip(ids.tolist(), p.tolist(), strict=True)
                if j >= 0 and value >= threshold]

    def _named_above(self, texts: Sequence[str]) -> list[list[tuple[str, float]]]:
        """Names and probabilities of the tags that reach the threshold."""
        found: list[list[tuple[str, float]]] = []
        for x in self._parts(texts):
            if (rows := self._ranked_above(x)) is not None:
                found += rows
                continue
            labels = self.network_.predict_labels(x, self.threshold_)
            for a, b in itertools.pairwise(labels.indptr.tolist()):
                p = labels.data[a:b]
                order = np.argsort(-p, kind="stable")
                found.append(self._named(labels.indices[a:b][order], p[order], 0.0))
        return found

    def _ranked_above(self, x: Any) -> list[list[tuple[str, float]]] | None:
        """`_named_above` by the ranked tags alone; None where others may reach the threshold."""
        calibration, limits = self.network_.calibration, self.threshold_
        if calibration is None:
            return None
        ids, p = self.network_.topk(x, calibration.n_ranked, probabilities=True)
        every = calibration.n_ranked == len(self._names)
        if not every and p[:, -1].max(initial=0) >= np.min(limits):
            return None
        if not isinstance(limits, float):
            p = np.where(p >= limits[ids], p, np.float32(-1))
            return [self._named(*row, 0.0) for row in zip(ids, p, strict=True)]
        counts = (p >= limits).sum(axis=1).tolist()  # p falls
        return [self._named(ids[i, :n], p[i, :n], 0.0) for i, n in enumerate(counts)]

    # -- files -----------------------------------------------------------------------------------

    def _state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        vectorizer, threshold = self.vectorizer_, self.threshold_
        if not isinstance(vectorizer, TextVectorizer):
            raise TypeError(f"vectorizer={vectorizer!r} is an object of its own, which this file "
                            "cannot hold; use pickle, or a TextVectorizer")
        config = {"vectorizer": vectorizer.config(), "one_per_text": self.one_per_text,
                  "threshold": threshold if isinstance(threshold, float) else threshold.tolist()}
        return config, vectorizer.tensors()

    def _restore(self, stored: Stored, config: dict[str, Any], model: Trained,
                 names: list[str]) -> None:
        network = model.network
        vectorizer = TextVectorizer.from_file(
            stored.tensors, config["vectorizer"] | {"n_threads": self.n_threads})
        if vectorizer.n_columns != network.n_features:
            raise ValueError(f"the vocabulary has {vectorizer.n_columns} entries, the network "
                             f"{network.n_features}")
        threshold = config["threshold"]
        if isinstance(threshold, list):
            threshold = check.thresholds(threshold, network.n_labels)
        else:
            threshold = check.number(threshold, "threshold", above=0, maximum=1)
        if type(config["one_per_text"]) is not bool:
            raise ValueError("one_per_text must be true or false")
        self._take(vectorizer, model, _named(names, config["one_per_text"]))
        self.threshold_ = threshold

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import ClassifierTags, InputTags, Tags, TargetTags

        return Tags(estimator_type="classifier",
                    target_tags=TargetTags(required=True, multi_output=False),
                    classifier_tags=ClassifierTags(multi_label=True),
                    input_tags=InputTags(one_d_array=True, two_d_array=False, string=True))


def _named(names: Sequence[str], one_per_row: bool) -> dict[str, Any]:
    """The attributes of a tagger that follow from the names of its tags."""
    return as_attributes("tags_", names) | {"_one_per_row": one_per_row}


def _rows_of_fit(vectorizer: Any, texts: list[str]) -> CSR:
    if isinstance(vectorizer, TextVectorizer):
        return check.sparse(vectorizer.fit_transform(texts), "vectorizer")
    return _sparse(vectorizer.fit_transform(texts))


def _rows_of(vectorizer: Any, texts: Sequence[str]) -> CSR:
    if isinstance(vectorizer, TextVectorizer):
        return vectorizer.rows(texts)
    return _sparse(vectorizer.transform(texts))


def _sparse(rows: Any) -> CSR:
    """The rows that a transformer of the user gives."""
    from .._arrays.scipy import sp

    if not sp.issparse(rows):
        rows = sp.csr_array(check.dense(rows, "the rows of vectorizer"))
    return check.sparse(rows, "the rows of vectorizer")
