"""Recommender: sequences of item names in, the next items out."""
from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import numpy as np

from .. import _validation as check
from .._arrays.csr import CSR
from .._signals import held
from ..callbacks import checked as checked_callbacks
from ..network import grow_from_rows, joined
from ._inputs import checked_sequences
from ._named_network import NamedNetwork, as_attributes
from ._training import Options, Trained, learn_more, refinement_cost, trained, with_more

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from .._arrays.types import Ids, RandomState
    from ..callbacks import Callback
    from ._file import Stored

MAX_LAST = 1000


class Recommender(NamedNetwork):
    """Names the items that follow: what a visitor looks at next, what belongs to what one has.

    Each item of a sequence but the first is learned from the items before it: the last `n_last`, an
    item of age a with the weight decay^a (age 0 is the one before; a repeated item counts once, by
    its last place). A network with one linear hidden layer, whose first weights come from the data,
    gives the probability of each item; sessions and histories of users are both sequences. Items
    are strings. A trained Recommender is saved as one file.

    Parameters
    ----------
    hidden : int
        Neurons of the hidden layer.
    n_last : int
        Number of items that are read.
    decay : float
        Weight of an item relative to that of the one after it, in (0, 1].
    epochs : int or None
        Passes over the sequences; None for 2, or more where they are few.
    batch_size, lr, dropout
        As for :class:`Tagger`.
    hold_out : int or None
        Number of steps of sequences that are held out, by which probabilities are calibrated; as
        for :class:`Tagger`.
    refine : bool
        Train one classifier of the items before per item. In sessions the same items are followed
        by other items each time, and classifiers seldom help.
    random_state, n_threads, verbose
        As for :class:`Tagger`.

    Attributes
    ----------
    items_ : ndarray of shape (n_items,), object
        The names. Those that were added follow those of `fit`.
    network_ : Network
        The network, whose features and labels are both the ids of `items_`.

    Examples
    --------
    >>> import sparselsh as sl
    >>> sessions = [["tea", "milk", "sugar"], ["tea", "milk", "cup"],
    ...             ["pen", "ink", "paper"]] * 10
    >>> shop = sl.Recommender(random_state=0).fit(sessions)
    >>> [name for name, _ in shop.recommend(["pen", "ink"], k=1)]
    ['paper']
    """

    items_: NDArray[np.object_]

    def __init__(self, *, hidden: int = 256, n_last: int = 10, decay: float = 0.8,
                 epochs: int | None = None, batch_size: int | None = None,
                 lr: float | None = None, dropout: float | None = None,
                 hold_out: int | None = None, refine: bool = False,
                 random_state: RandomState = None, n_threads: int | None = None,
                 verbose: bool = False) -> None:
        self.hidden = hidden
        self.n_last = n_last
        self.decay = decay
        self.epochs = epochs
        self.batch_size = batch_size
        self.lr = lr
        self.dropout = dropout
        self.hold_out = hold_out
        self.refine = refine
        self.random_state = random_state
        self.n_threads = n_threads
        self.verbose = verbose

    # -- training --------------------------------------------------------------------------------

    def fit(self, sequences: Any, *, callbacks: Sequence[Callback] = ()) -> Self:
        """Train on sequences of items.

        Parameters
        ----------
        sequences : list of lists of str, or column of a data frame
            The items of each session or user, in order. Those of one item teach nothing but the
            name of the item.
        callbacks : sequence of Callback
            See `sparselsh.callbacks`.

        Returns
        -------
        self

        Raises
        ------
        ValueError, TypeError
            If an argument is invalid; the message names the sequence, the value and the remedy.
        """
        self._check_parameters()
        callbacks = checked_callbacks(callbacks)
        found = checked_sequences(sequences, "sequences")
        names = sorted({item for row in found for item in row})
        x, y = self._steps(found, {name: j for j, name in enumerate(names)})
        options = Options(self.hidden, self.epochs, self.batch_size, self.lr, self.dropout,
                          self.hold_out, bool(self.refine), "classes", "one", self.random_state,
                          self.n_threads, callbacks, bool(self.verbose), shared_ids=True)
        self._take(trained(x, y, options), as_attributes("items_", names))
        return self

    def add_items(self, sequences: Any) -> Self:
        """Add the new items of sequences to a trained Recommender.

        What it has learned stays. New items learn from these sequences and, for contrast, from some
        steps of those of before, which the Recommender keeps as numbers.

        Parameters
        ----------
        sequences : list of lists of str, or column of a data frame
            Sequences with the new items, and the known ones around them.

        Returns
        -------
        self

        Raises
        ------
        ValueError, TypeError
            If there is no training yet, an argument is invalid, or no item is new.
        """
        self._check_trainable()
        found = checked_sequences(sequences, "sequences")
        if all(item in self._ids for row in found for item in row):
            raise ValueError("sequences hold no item that the model does not know; call "
                             "partial_fit to train on more sequences of known items")
        self._grow(found)
        return self

    def partial_fit(self, sequences: Any) -> Self:
        """Train on more sequences, once, at a small constant rate; the first call is `fit`.

        New items are added first, as by `add_items`.

        Parameters
        ----------
        sequences
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
            return self.fit(sequences)
        self._check_trainable()
        x, y = self._grow(checked_sequences(sequences, "sequences"))
        learn_more(self.network_, x, y, self.batch_size)
        return self

    def _grow(self, sequences: list[list[str]]) -> tuple[CSR, CSR]:
        new = sorted({item for row in sequences for item in row} - self._ids.keys())
        names = [*self._names, *new]
        x, y = self._steps(sequences, {name: j for j, name in enumerate(names)})
        kept, named = with_more(self._kept, x, y), as_attributes("items_", names)
        with held():  # the parts change together, or an error leaves them as they were
            if new:
                grow_from_rows(self.network_, joined(x, y, *self._kept), refinement_cost(x))
            self._take(Trained(self.network_, None, kept), named)
        return x, y

    def _take(self, model: Trained, named: dict[str, Any]) -> None:
        """Be the recommender of these, all at once; `named` is what `as_attributes` gives."""
        self.__dict__.update(named, network_=model.network, _kept=model.kept)

    def _check_parameters(self) -> None:
        super()._check_parameters()
        check.integer(self.n_last, "n_last", maximum=MAX_LAST)
        check.number(self.decay, "decay", above=0, maximum=1)

    # -- rows ------------------------------------------------------------------------------------

    def _steps(self, sequences: list[list[str]], ids: dict[str, int]) -> tuple[CSR, CSR]:
        """A row per item that follows others, and the item; ValueError if there is none."""
        flat = np.array([ids[item] for row in sequences for item in row], np.int32)
        lengths = np.array([len(row) for row in sequences], np.int64)
        ends = np.cumsum(lengths)
        first = np.repeat(ends - lengths, lengths)
        steps = np.flatnonzero(np.arange(len(flat)) > first)
        if not len(steps):
            raise ValueError("sequences must hold at least one of two items or more, got none")
        x = self._rows(flat, steps, first[steps], len(ids))
        n = len(steps)
        return x, CSR(np.arange(n + 1, dtype=np.int64), flat[steps], np.ones(n, np.float32),
                      len(ids))

    def _rows(self, flat: Ids, steps: np.ndarray, first: np.ndarray, n_items: int) -> CSR:
        """Rows of the items before each step, from its first one on."""
        rows, items, weights = [], [], []
        for age in range(self.n_last):
            there = np.flatnonzero(steps - 1 - age >= first)
            if not len(there):
                break
            rows.append(there)
            items.append(flat[steps[there] - 1 - age])
            weights.append(np.full(len(there), self.decay ** age, np.float32))
        if not rows:
            return CSR(np.zeros(len(steps) + 1, np.int64), np.zeros(0, np.int32),
                       np.zeros(0, np.float32), n_items)
        row, item, weight = (np.concatenate(parts) for parts in (rows, items, weights))
        order = np.lexsort((-weight, item, row))
        row, item, weight = row[order], item[order], weight[order]
        is_last = np.ones(len(row), bool)  # the last place of the item, which has the largest
        is_last[1:] = (row[1:] != row[:-1]) | (item[1:] != item[:-1])
        counts = np.bincount(row[is_last], minlength=len(steps))
        return CSR(np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), item[is_last],
                   weight[is_last], n_items)

    # -- answers ---------------------------------------------------------------------------------

    def recommend(self, items: Any, k: int = 10, exclude_seen: bool = True
                  ) -> list[tuple[str, float]] | list[list[tuple[str, float]]]:
        """The items that are likely to follow, and their probabilities.

        Parameters
        ----------
        items : list of str, or list of lists of str
            The items of one session or user so far, in order, or those of several. Items that the
            model does not know are passed over; without any that it knows, the answer is what
            follows most often.
        k : int
            Number of items; fewer where there are no more.
        exclude_seen : bool
            Leave out the items that are given.

        Returns
        -------
        list of (str, float), or list of such lists
            Best first. Probabilities are those of all items, those that are left out included.

        Raises
        ------
        ValueError, TypeError
            If there is no training yet, or an argument is invalid.
        """
        self._check_fitted()
        k = min(check.integer(k, "k"), len(self._names))
        is_one = isinstance(items, list | tuple) and all(isinstance(item, str) for item in items)
        sequences = checked_sequences([items] if is_one else items, "items")
        known = [[self._ids[item] for item in row if item in self._ids] for row in sequences]
        ends = np.cumsum([len(row) for row in known], dtype=np.int64)
        flat = np.array([j for row in known for j in row], np.int32)
        first = np.concatenate([[0], ends[:-1]])
        x = self._rows(flat, ends, first, len(self._names))
        found = [self._best(x.slice(i, i + 1), set(row) if exclude_seen else set(), k)
                 for i, row in enumerate(known)]
        return found[0] if is_one else found

    def _best(self, x: Any, seen: set[int], k: int) -> list[tuple[str, float]]:
        network, names = self.network_, self._names
        calibration = network.calibration
        if calibration is not None and k + len(seen) <= calibration.n_ranked:
            ids, p = network.topk(x, k + len(seen), probabilities=True)
        else:
            exclude = np.array(sorted(seen), np.int32) if seen else None
            ids, _ = network.topk(x, k, exclude=exclude)
            p = np.take_along_axis(network.predict_proba(x), np.maximum(ids, 0), axis=1)
        pairs = [(names[j], value) for j, value in zip(ids[0].tolist(), p[0].tolist(), strict=True)
                 if j >= 0 and j not in seen]
        return pairs[:k]

    def score(self, sequences: Any, k: int = 20) -> float:
        """Fraction of the items that follow others which are among the k recommended (HR@k).

        Items of before may follow again, as in published figures.

        Parameters
        ----------
        sequences : list of lists of str, or column of a data frame
            Steps to items that the model does not know count as missed.
        k : int

        Returns
        -------
        float
            In [0, 1].

        Raises
        ------
        ValueError, TypeError
            If there is no training yet, or an argument is invalid.
        """
        self._check_fitted()
        k = min(check.integer(k, "k"), len(self._names))
        found = checked_sequences(sequences, "sequences")
        new = {item for row in found for item in row} - self._ids.keys()
        n, names = len(self._names), [*self._names, *sorted(new)]
        x, y = self._steps(found, {name: j for j, name in enumerate(names)})
        inside = x.indices < n
        counts = np.concatenate([[0], np.cumsum(inside)])
        rows: Any = CSR(counts[x.indptr], x.indices[inside], x.data[inside], n)
        ids, _ = self.network_.topk(rows, k)
        return float((ids == y.indices[:, None]).any(axis=1).mean())

    # -- files -----------------------------------------------------------------------------------

    def _restore(self, stored: Stored, config: dict[str, Any], model: Trained,
                 names: list[str]) -> None:
        network = model.network
        if network.n_features != network.n_labels:
            raise ValueError(f"the network has {network.n_features} features and "
                             f"{network.n_labels} labels, which should be the same items")
        self._take(model, as_attributes("items_", names))
