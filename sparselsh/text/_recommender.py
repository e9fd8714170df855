"""Recommender: sequences of item names in, the next items out."""
from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from .. import _recipe
from .. import _validation as check
from .._arrays.csr import CSR
from .._signals import held
from .._threads import one_at_a_time, resolve
from ..calibration import MIN_FIT_ROWS
from ..callbacks import checked as checked_callbacks
from ..network import grow_from_rows, joined
from ._inputs import checked_sequences
from ._named_network import NamedNetwork, as_attributes
from ._sessions import (
    MAX_HELD_OUT_STEPS,
    MIN_CANDIDATES,
    MIN_SPAN,
    N_CANDIDATES,
    N_FURTHER,
    OFFSETS,
    PRIOR,
    Ranker,
    Sessions,
    fit_votes,
    none_further,
    sessions_as_tensors,
    sessions_of_tensors,
)
from ._training import (
    SPLIT_SEED,
    Options,
    Trained,
    learn_and_take,
    refinement_cost,
    trained,
    with_more,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from .._arrays.types import Floats, Ids, Offsets, RandomState
    from ..callbacks import Callback
    from ._file import Stored

MAX_LAST = 1000
MAX_NEIGHBORS = 100_000


class Recommender(NamedNetwork):
    """Rank the items that follow a sequence of items, such as what a visitor looks at next.

    A sequence is a session, or the history of a user. Items are strings. Each item of a sequence
    except the first is a training target. Its input are the `n_last` items before it. An item of
    age a has the weight decay^a, where age 0 is the item directly before. A repeated item counts
    once, by its last place. Two parts rank the items: a network with one linear hidden layer, whose
    first weights come from the data, and the votes of similar past sequences (nearest neighbors of
    sessions [1]_ [2]_). Their weights are fitted on the last sequences, which are held out. A
    trained Recommender is saved as one file, which contains the sequences as numbers.

    Parameters
    ----------
    hidden : int
        Neurons of the hidden layer.
    n_last : int
        Number of items of the input: the last ones of the sequence.
    decay : float
        Weight of an item relative to that of the item after it, in (0, 1]. It applies to the
        training. Together with votes, the network reads the items with decay^3, because the votes
        represent the earlier items.
    neighbors : int
        Number of past sequences that vote; 0 for the network alone.
    epochs : int or None
        Passes over the sequences; None for 2, or for more if there are few sequences.
    batch_size, lr, dropout
        As for :class:`Tagger`.
    hold_out : int or None
        Approximate number of steps of the last sequences that are held out. On these, the votes are
        weighted and the probabilities are calibrated. None for a tenth of all, at most 8,192.
    refine : bool
        Train one linear classifier of the input per item (one-vs-rest), instead of votes. It seldom
        helps for sessions, in which the same items are followed by other items each time.
    random_state, n_threads, verbose
        As for :class:`Tagger`.

    Attributes
    ----------
    items_ : ndarray of shape (n_items,), object
        The names. Names that were added later are at the end.
    network_ : Network
        The network, whose features and labels are both the ids of `items_`.

    References
    ----------
    .. [1] M. Ludewig and D. Jannach, "Evaluation of session-based recommendation algorithms", User
       Modeling and User-Adapted Interaction 28 (2018): vector multiplication session-based kNN.
    .. [2] D. Garg, P. Gupta, P. Malhotra, L. Vig and G. Shroff, "Sequence and time aware
       neighborhood for session-based recommendations", SIGIR 2019.

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

    _sessions: Sessions | None
    _ranker: Ranker

    def __init__(self, *, hidden: int = 256, n_last: int = 10, decay: float = 0.8,
                 neighbors: int = 300, epochs: int | None = None,
                 batch_size: int | None = None, lr: float | None = None,
                 dropout: float | None = None, hold_out: int | None = None,
                 refine: bool = False, random_state: RandomState = None,
                 n_threads: int | None = None, verbose: bool = False) -> None:
        self.hidden = hidden
        self.n_last = n_last
        self.decay = decay
        self.neighbors = neighbors
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
            The items of each session or user, in order. If the times of the sequences are known,
            sort them: the latest sequence last. A sequence of a single item contributes only the
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
        flat, lengths = _numbers(found, {name: j for j, name in enumerate(names)})
        x, y = self._steps(flat, lengths, len(names))
        options = Options(self.hidden, self.epochs, self.batch_size, self.lr, self.dropout,
                          self.hold_out, bool(self.refine), "classes", "one", self.random_state,
                          self.n_threads, callbacks, bool(self.verbose), shared_ids=True)
        if self.refine or not self.neighbors:
            self._take(trained(x, y, options), None, as_attributes("items_", names))
            return self

        n_past, sequences_held_out = self._held_out(lengths, x.shape[0])
        is_held_out = np.repeat(sequences_held_out, np.maximum(lengths - 1, 0))
        model = trained(x, y, options, is_held_out)
        sessions = Sessions(flat, lengths, len(names))
        if is_held_out.sum() >= MIN_FIT_ROWS:
            steps, first = (places[is_held_out] for places in _places(lengths))
            past = Sessions(flat[:lengths[:n_past].sum()], lengths[:n_past], len(names))
            sessions = sessions.with_parameters(
                self._vote_parameters(flat, steps, first, past, model.network))
        self._take(model, sessions, as_attributes("items_", names))
        return self

    def _held_out(self, lengths: Ids, n_steps: int) -> tuple[int, np.ndarray]:
        """Number of sequences that vote, and which of those after them are held out.

        The queries to come are some time after the training. Those that are held out are a sample
        of the last sequences, of which none votes while parameters are chosen.
        """
        n_held_out = self.hold_out
        if n_held_out is None:
            n_held_out = (0 if n_steps < _recipe.MIN_ROWS_TO_SPLIT else
                          min(MAX_HELD_OUT_STEPS, n_steps // 10))
        if n_held_out >= n_steps:
            raise ValueError(f"hold_out={n_held_out} leaves none of the {n_steps} rows to train "
                             "on; give a smaller number")
        counts = np.maximum(lengths - 1, 0)
        n_late = max(n_held_out, int(MIN_SPAN * n_steps))
        n_past = len(lengths) - int(np.searchsorted(np.cumsum(counts[::-1]), n_late, side="right"))
        late = n_past + np.random.default_rng(SPLIT_SEED).permutation(len(lengths) - n_past)
        is_held_out = np.zeros(len(lengths), bool)
        is_held_out[late[np.cumsum(counts[late]) <= n_held_out]] = True
        return n_past, is_held_out

    def _vote_parameters(self, flat: Ids, steps: np.ndarray, first: np.ndarray, past: Sessions,
                         network: Any) -> np.ndarray:
        """Parameters by the steps at these places of `flat`."""
        n_items, first = network.n_labels, np.maximum(first, steps - self.n_last)
        indptr, queries = _joined(flat, first, steps)
        ranker = Ranker(past, network, self.n_last, self.decay, self.neighbors)
        n_threads, weights = resolve(network.n_threads), np.exp(PRIOR[-2 * OFFSETS:])
        further = np.full((len(steps), min(N_FURTHER, n_items)), -1, np.int32)
        _, n_voted = ranker.count(weights, indptr, queries, further, n_threads)
        few = np.flatnonzero(n_voted < MIN_CANDIDATES)
        if len(few):
            rows: Any = self._rows(flat, steps[few], first[few], n_items)
            further[few] = network.topk(rows, further.shape[1])[0]
        found, _ = ranker.count(weights, indptr, queries, further, n_threads)
        return fit_votes(found, flat[steps], past.trends)

    @one_at_a_time
    def add_items(self, sequences: Any) -> Self:
        """Add the new items of sequences to a trained Recommender.

        The weights of known items stay the same. New items learn from these sequences and, as
        negative examples, from some earlier steps that the Recommender keeps as numbers.

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
            If it is not trained yet, an argument is invalid, or no item is new.
        """
        self._check_trainable()
        found = checked_sequences(sequences, "sequences")
        if all(item in self._ids for row in found for item in row):
            raise ValueError("sequences hold no item that the model does not know; call "
                             "partial_fit to train on more sequences of known items")
        self._grow(found, learns=False)
        return self

    @one_at_a_time
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
        x, y, learned = self._grow(checked_sequences(sequences, "sequences"), learns=True)
        learn_and_take(self, x, y, learned)
        return self

    def _grow(self, sequences: list[list[str]],
              learns: bool) -> tuple[CSR, CSR, dict[str, Any]]:
        """Add new items and, unless the network `learns` the sequences first, these.

        Returns the rows, and the attributes with the sequences.
        """
        new = sorted({item for row in sequences for item in row} - self._ids.keys())
        names = [*self._names, *new]
        flat, lengths = _numbers(sequences, {name: j for j, name in enumerate(names)})
        x, y = self._steps(flat, lengths, len(names))
        kept, named = with_more(self._kept, x, y), as_attributes("items_", names)
        sessions = self._sessions and self._sessions.with_more(flat, lengths, len(names))
        taken = learned = self._attributes(Trained(self.network_, None, kept), sessions, named)
        if learns:
            none = np.zeros(0, np.int32)
            sessions = self._sessions and self._sessions.with_more(none, none, len(names))
            taken = self._attributes(Trained(self.network_, None, self._kept), sessions, named)
        with held():  # the parts change together, or an error leaves them as they were
            if new:
                grow_from_rows(self.network_, joined(x, y, *self._kept),
                               refinement_cost(x, y.n_columns))
            if new or not learns:
                self.__dict__.update(taken)
        return x, y, learned

    @one_at_a_time
    def _take(self, model: Trained, sessions: Sessions | None, named: dict[str, Any]) -> None:
        """Be the recommender of these, all at once; `named` is what `as_attributes` gives."""
        self.__dict__.update(self._attributes(model, sessions, named))

    @staticmethod
    def _attributes(model: Trained, sessions: Sessions | None,
                    named: dict[str, Any]) -> dict[str, Any]:
        return {**named, "network_": model.network, "_kept": model.kept, "_sessions": sessions,
                "_ranker": Ranker()}

    def _check_parameters(self) -> None:
        super()._check_parameters()
        check.integer(self.n_last, "n_last", maximum=MAX_LAST)
        check.number(self.decay, "decay", above=0, maximum=1)
        check.integer(self.neighbors, "neighbors", minimum=0, maximum=MAX_NEIGHBORS)

    # -- rows ------------------------------------------------------------------------------------

    def _steps(self, flat: Ids, lengths: Ids, n_items: int) -> tuple[CSR, CSR]:
        """A row per item that follows others, and the item; ValueError if there is none."""
        steps, first = _places(lengths)
        if not len(steps):
            raise ValueError("sequences must hold at least one of two items or more, got none")
        n = len(steps)
        return self._rows(flat, steps, first, n_items), CSR(
            np.arange(n + 1, dtype=np.int64), flat[steps], np.ones(n, np.float32), n_items)

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

    @one_at_a_time
    def recommend(self, items: Any, k: int = 10, exclude_seen: bool = True
                  ) -> list[tuple[str, float]] | list[list[tuple[str, float]]]:
        """The items that are likely to follow, and their probabilities.

        Parameters
        ----------
        items : list of str, or list of lists of str
            The items of one session or user so far, in order, or those of several. Unknown items
            are ignored. If no item is known, the result are the items that follow most often, by
            the network alone.
        k : int
            Maximum number of items.
        exclude_seen : bool
            Leave out the items that are given.

        Returns
        -------
        list of (str, float), or list of such lists
            Best first. Probabilities are relative to all items, including those that are left out.

        Raises
        ------
        ValueError, TypeError
            If it is not trained yet, or an argument is invalid.
        """
        self._check_fitted()
        k = min(check.integer(k, "k"), len(self._names))
        is_one = isinstance(items, list | tuple) and all(isinstance(item, str) for item in items)
        sequences = checked_sequences([items] if is_one else items, "items")
        known = [[self._ids[item] for item in row if item in self._ids] for row in sequences]
        indptr = np.array([0, *itertools.accumulate(map(len, known))], np.int64)
        flat = np.array([j for row in known for j in row], np.int32)
        if self._sessions is None:
            x = self._rows(flat, indptr[1:], indptr[:-1], len(self._names))
            found = [self._best(x.slice(i, i + 1), set(row) if exclude_seen else set(), k)
                     for i, row in enumerate(known)]
            return found[0] if is_one else found

        n_seen = max((len(set(row)) for row in known), default=0) if exclude_seen else 0
        width = min(k + n_seen, N_CANDIDATES + N_FURTHER, len(self._names))
        ids, p = self._ranked(self._sessions, flat, indptr, width)
        names, found = self._names, []
        for i, (row, best, values) in enumerate(zip(known, ids.tolist(), p.tolist(), strict=True)):
            left_out = set(row) if exclude_seen else set()
            pairs = [(names[j], value) for j, value in zip(best, values, strict=True)
                     if j >= 0 and j not in left_out][:k]
            if len(pairs) < min(k, len(names) - len(left_out)):
                left_out.update(best)
                others, values = self._others(flat, indptr[i:i + 2], left_out, k - len(pairs))
                largest = pairs[-1][1] if pairs else 1.0
                pairs += [(names[j], min(value, largest)) for j, value in
                          zip(others, values, strict=True)]
            found.append(pairs)
        return found[0] if is_one else found

    def _ranked(self, sessions: Sessions, flat: Ids, indptr: Offsets, k: int
                ) -> tuple[Ids, Floats]:
        """The k most probable candidates per query; -1 where there are fewer.

        Without a vote the network answers alone.
        """
        network, n = self.network_, len(indptr) - 1
        options = (sessions, network, self.n_last, self.decay, self.neighbors)
        ranker = self._ranker
        if not ranker.fits(*options):  # another one, as copies of this object have the same
            ranker = self._ranker = Ranker(*options)
        n_threads = resolve(network.n_threads) if n > 1 else 1
        ids, p, n_voted = ranker.rank(sessions, indptr, flat, none_further(n), k, n_threads)

        if n and min(n_voted.tolist()) < MIN_CANDIDATES:  # of one, a tenth of the time of NumPy
            few = np.flatnonzero(n_voted < MIN_CANDIDATES)
            n_further, n_items = min(N_FURTHER, len(self._names)), len(self._names)
            rows: Any = self._rows(flat, indptr[1:][few], indptr[:-1][few], n_items)
            further = network.topk(rows, n_further)[0]
            parts = [flat[indptr[i]:indptr[i + 1]] for i in few]
            ends = np.concatenate([[0], np.cumsum([len(part) for part in parts])])
            ids[few], p[few], _ = ranker.rank(sessions, ends.astype(np.int64),
                                              np.concatenate(parts), further, k, n_threads)
            none = np.flatnonzero(n_voted == 0)
            if len(none):
                rows = self._rows(flat, indptr[1:][none], indptr[:-1][none], n_items)
                ids[none], p[none] = self._by_network(rows, k)
        return ids, p

    def _by_network(self, x: Any, k: int) -> tuple[Ids, Floats]:
        """The k most probable items per row by the network alone."""
        network, calibration = self.network_, self.network_.calibration
        if calibration is not None and k <= calibration.n_ranked:
            return network.topk(x, k, probabilities=True)
        ids, _ = network.topk(x, k)
        return ids, np.take_along_axis(network.predict_proba(x), np.maximum(ids, 0), axis=1)

    def _others(self, flat: Ids, ends: Offsets, left_out: set[int], k: int
                ) -> tuple[list[int], list[float]]:
        """The next k items in the order of the network, and their probabilities by it."""
        row: Any = self._rows(flat, ends[1:], ends[:1], len(self._names))
        best = self.network_.topk(row, min(k + len(left_out), len(self._names)))[0][0].tolist()
        others = [j for j in best if j >= 0 and j not in left_out][:k]
        return others, np.minimum.accumulate(self.network_.predict_proba(row)[0, others]).tolist()

    def _best(self, x: Any, seen: set[int], k: int) -> list[tuple[str, float]]:
        network, names = self.network_, self._names
        calibration = network.calibration
        if not seen or (calibration is not None and k + len(seen) <= calibration.n_ranked):
            ids, p = self._by_network(x, k + len(seen))
        else:
            ids, _ = network.topk(x, k, exclude=np.array(sorted(seen), np.int32))
            p = np.take_along_axis(network.predict_proba(x), np.maximum(ids, 0), axis=1)
        pairs = [(names[j], value) for j, value in zip(ids[0].tolist(), p[0].tolist(), strict=True)
                 if j >= 0 and j not in seen]
        return pairs[:k]

    @one_at_a_time
    def score(self, sequences: Any, k: int = 20) -> float:
        """Hit rate HR@k: the fraction of the following items that are among the k recommended.

        Items of the input may be recommended again, as in published figures.

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
            If it is not trained yet, or an argument is invalid.
        """
        self._check_fitted()
        k = min(check.integer(k, "k"), len(self._names))
        found = checked_sequences(sequences, "sequences")
        n = len(self._names)
        new = sorted({item for row in found for item in row} - self._ids.keys())
        flat, lengths = _numbers(found, {name: j for j, name in enumerate([*self._names, *new])})
        x, y = self._steps(flat, lengths, n + len(new))
        hits = np.zeros(x.shape[0], bool)
        if self._sessions is None:
            inside = x.indices < n
            counts = np.concatenate([[0], np.cumsum(inside)])
            rows: Any = CSR(counts[x.indptr], x.indices[inside], x.data[inside], n)
            ids, _ = self.network_.topk(rows, k)
        else:
            steps, first = _places(lengths)
            known = np.concatenate([[0], np.cumsum(flat < n)])  # items up to each place
            indptr, flat = _joined(flat[flat < n], known[first], known[steps])
            ids, _ = self._ranked(self._sessions, flat, indptr,
                                  min(k, N_CANDIDATES + N_FURTHER))
            for i in np.flatnonzero((ids[:, -1] < 0) | (ids.shape[1] < k)).tolist():
                n_left = k - int((ids[i] >= 0).sum())
                others, _ = self._others(flat, indptr[i:i + 2], set(ids[i].tolist()), n_left)
                hits[i] = y.indices[i] in others
        return float((hits | (ids == y.indices[:, None]).any(axis=1)).mean())

    # -- files -----------------------------------------------------------------------------------

    def _restore(self, stored: Stored, config: dict[str, Any], model: Trained,
                 names: list[str]) -> None:
        network = model.network
        if network.n_features != network.n_labels:
            raise ValueError(f"the network has {network.n_features} features and "
                             f"{network.n_labels} labels, which should be the same items")
        sessions = sessions_of_tensors(stored.tensors, len(names))
        if sessions is None:  # a file of before there were votes, or one without them
            self.neighbors = 0
        self._take(model, sessions, as_attributes("items_", names))

    def _state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        return {}, sessions_as_tensors(self._sessions)


def _numbers(sequences: list[list[str]], ids: dict[str, int]) -> tuple[Ids, Ids]:
    """The items of all sequences as numbers, and the length of each sequence."""
    flat = np.array([ids[item] for row in sequences for item in row], np.int32)
    return flat, np.array([len(row) for row in sequences], np.int32)


def _places(lengths: Ids) -> tuple[np.ndarray, np.ndarray]:
    """The place of each item that follows others, and of the first item of its sequence."""
    first = np.repeat(np.cumsum(lengths, dtype=np.int64) - lengths, lengths)
    steps = np.flatnonzero(np.arange(len(first)) > first)
    return steps, first[steps]


def _joined(flat: Ids, first: np.ndarray, last: np.ndarray) -> tuple[Offsets, Ids]:
    """Offsets and items of the runs flat[first:last], one after the other."""
    indptr = np.concatenate([[0], np.cumsum(last - first)])
    return indptr, flat[np.arange(indptr[-1]) + np.repeat(first - indptr[:-1], np.diff(indptr))]
