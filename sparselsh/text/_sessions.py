"""Past sessions vote for the item that follows: nearest neighbors, ranked with a network's outputs.

A session that shares items with the query is a neighbor. Its similarity is the sum over shared
items of

    exp(-age / AGE_SCALE) * log(1 + n / n_with_item) * exp(-(n - s) / (n * RECENCY))

(age 0 is the last item of the query; n sessions are past, n_with_item of them have the item, and s
is the place of the neighbor among them, the latest last). The most similar ones vote for each of
their items with their similarity times a weight of its offset from the item that is shared last,
where this is the last item of the query or an older one. The score of an item is a logistic model
of its share of the votes, the output of the network, how often it was seen lately, and whether it
is in the query already, where the first two count less; `fit_votes` chooses its parameters.

Sources: the neighborhood is that of vector multiplication session-based kNN (M. Ludewig and D.
Jannach, "Evaluation of session-based recommendation algorithms", User Modeling and User-Adapted
Interaction 28, 2018, section on nearest neighbors: items of the query weighted by position, and by
inverse frequency, in a sample of the latest sessions). Decay by the position in the query, by the
age of the neighbor, and by the distance of an item from the shared one are the three factors of
STAN (D. Garg, P. Gupta, P. Malhotra, L. Vig and G. Shroff, "Sequence and time aware neighborhood
for session-based recommendations", SIGIR 2019, section on the proposed method); here the third is a
table that is fitted. Adding logarithms of votes and of a network multiplies what both say, as in a
product of experts (G. E. Hinton, "Training products of experts by minimizing contrastive
divergence", Neural Computation 14, 2002, equation 1).
"""
from __future__ import annotations

from operator import is_
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _validation as check
from .._core import _sessions
from ..inference import InferenceNetwork

if TYPE_CHECKING:
    from typing import TypeAlias

    from .._arrays.types import Floats, Ids, Offsets

    Found: TypeAlias = tuple[Ids, Floats, Floats, Ids]  # candidates, counts, outputs, ages

MAX_POSTINGS = 500  # sessions with an item that are read, the latest
AGE_SCALE = 3.0
RECENCY = 0.5
TREND_FRACTION = 0.1  # of the sessions, the latest
N_CANDIDATES = 170  # items with the most votes
MIN_CANDIDATES = 40  # with fewer votes the network names further ones,
N_FURTHER = 50  # so many
MAX_HELD_OUT_STEPS = 8192  # by which the parameters are fitted; at most a tenth of all
MIN_SPAN = 0.05  # fraction of the steps, the latest, of which they are a sample
MAX_ITERATIONS = 60
PRIOR_STEPS = 1.0  # weight of the prior, in steps
MAX_LOG = 20.0
AGES, OFFSETS = 6, 7

# The prior, and the parameters where no steps are held out: about what fits the clicks of two shops
# (docs/log/accuracy.md).
PRIOR = np.concatenate([
    [0.45, 0.75, -0.3, -0.2],  # output of the network, votes, and both for items of the query
    [-5.8, -0.3, 0.2],  # logarithm of the floor of votes, other items, trend
    [-0.9, -0.4, -0.8, -0.6, -0.7, -0.7],  # items of the query by age
    np.log([0.25, 0.75, 1.8, 1.1, 2.2, 1.1, 0.3]),  # offsets from the last item of the query
    np.log([0.2, 0.25, 0.35, 0.6, 0.6, 0.45, 0.25])])  # and from an older one


class Sessions:
    """Past sessions as numbers of items, and the parameters of their votes.

    Parameters
    ----------
    items : ndarray of shape (n_total,), int32
        The items of all sessions, one session after the other, the latest session last.
    lengths : ndarray of shape (n_sessions,), int32
        Sessions of fewer than two items are left out.
    n_items : int
    parameters : ndarray of shape (27,), float64
        As for `_core._sessions.losses`.
    """

    def __init__(self, items: Ids, lengths: Ids, n_items: int,
                 parameters: np.ndarray = PRIOR) -> None:
        is_long = lengths >= 2
        self.items = np.ascontiguousarray(items[np.repeat(is_long, lengths)])
        self.lengths, self.parameters, self.n_items = lengths[is_long], parameters, n_items
        self.arrays = self._postings()
        self.trends = self._trends()

    def _postings(self) -> tuple[np.ndarray, ...]:
        """What `_core._sessions.prepare` takes."""
        n, lengths = len(self.lengths), self.lengths
        starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        session = np.repeat(np.arange(n, dtype=np.int32), lengths)
        place = (np.arange(len(self.items)) - starts[session]).astype(np.int32)

        order = np.lexsort((place, session, self.items))
        item, session, place = self.items[order], session[order], place[order]
        is_last = np.ones(len(item), bool)  # place of the item in the session
        is_last[:-1] = (item[1:] != item[:-1]) | (session[1:] != session[:-1])
        item, session, place = item[is_last], session[is_last], place[is_last]
        counts = np.bincount(item, minlength=self.n_items)
        ends = np.cumsum(counts)
        is_late = np.arange(len(item)) >= (ends - MAX_POSTINGS)[item]
        item, session, place = item[is_late], session[is_late], place[is_late]

        runs = np.concatenate([[0], np.cumsum(np.bincount(item, minlength=self.n_items))])
        strengths = (np.log1p(n / np.maximum(counts, 1))[item]
                     * np.exp((session - n) / (RECENCY * max(n, 1))))
        return (self.items, starts, runs.astype(np.int64), session, place,
                strengths.astype(np.float32))

    def _trends(self) -> Floats:
        """Logarithm of how much more often each item occurs in the latest sessions."""
        n_late = int(self.lengths[len(self.lengths)
                                  - int(TREND_FRACTION * len(self.lengths)):].sum())
        late = np.bincount(self.items[len(self.items) - n_late:], minlength=self.n_items)
        every = np.bincount(self.items, minlength=self.n_items)
        return np.log((late + 1) / (TREND_FRACTION * every + 1)).astype(np.float32)

    def with_more(self, items: Ids, lengths: Ids, n_items: int) -> Sessions:
        """These sessions and later ones."""
        return Sessions(np.concatenate([self.items, items]),
                        np.concatenate([self.lengths, lengths]), n_items, self.parameters)

    def with_parameters(self, parameters: np.ndarray) -> Sessions:
        """The same sessions with other parameters."""
        return Sessions(self.items, self.lengths, self.n_items, parameters)


class Ranker:
    """Sessions and a network as the core reads them; it is replaced where either has changed."""

    def __init__(self, sessions: Sessions | None = None, network: Any = None, n_last: int = 1,
                 decay: float = 1.0, n_neighbors: int = 1) -> None:
        self._parts = () if sessions is None else _parts(sessions, network)
        self._options = (n_last, decay, n_neighbors)
        if sessions is None:
            return
        ages = np.arange(n_last)
        # Votes know the items of before, so the network is asked about the last ones.
        self._core = _sessions.prepare(
            sessions.arrays, np.exp(-ages / AGE_SCALE).astype(np.float32),
            (decay ** (3 * ages)).astype(np.float32), n_neighbors, _layers(network))

    def __reduce__(self) -> tuple[type[Any], tuple[()]]:
        return Ranker, ()

    def fits(self, sessions: Sessions, network: Any, n_last: int, decay: float,
             n_neighbors: int) -> bool:
        """Whether it was made of these, as they are now."""
        parts = _parts(sessions, network)
        return (self._options == (n_last, decay, n_neighbors)
                and len(parts) == len(self._parts) and all(map(is_, parts, self._parts)))

    def rank(self, sessions: Sessions, indptr: Offsets, queries: Ids, more: Ids, k: int,
             n_threads: int) -> tuple[Ids, Floats, np.ndarray]:
        """The k most probable candidates per query, and the number of items with votes."""
        n = len(indptr) - 1
        ids, p = np.empty((n, k), np.int32), np.empty((n, k), np.float32)
        n_voted = np.empty(n, np.int64)
        _sessions.rank(self._core, indptr, queries, more, sessions.parameters, sessions.trends,
                       N_CANDIDATES, ids, p, n_voted, n_threads)
        return ids, p, n_voted

    def count(self, weights: np.ndarray, indptr: Offsets, queries: Ids, more: Ids,
              n_threads: int) -> tuple[Found, np.ndarray]:
        """Candidates, counts, outputs and ages, and the number of items with votes."""
        n, width = len(indptr) - 1, N_CANDIDATES + more.shape[1]
        found = (np.empty((n, width), np.int32), np.empty((n, width, 2 * OFFSETS), np.float32),
                 np.empty((n, width), np.float32), np.empty((n, width), np.int32))
        n_voted = np.empty(n, np.int64)
        _sessions.count(self._core, indptr, queries, more, weights, *found, n_voted, n_threads)
        return found, n_voted


def none_further(n: int) -> Ids:
    """No candidates beside those with votes."""
    return np.empty((n, 0), np.int32)


def _parts(sessions: Sessions, network: Any) -> tuple[Any, ...]:
    """The arrays that are read."""
    weights = [array for layer in network.layers for array in (
        layer.stored_rows() if isinstance(network, InferenceNetwork) else layer.stored())]
    return sessions, *weights


def _layers(network: Any) -> list[tuple[Any, ...]]:
    """Weights, scales, bias and whether a ReLU follows, of the two layers; a row per item."""
    layers = []
    for number, layer in enumerate(network.layers):
        if isinstance(network, InferenceNetwork):
            w, scales, bias, input_major = layer.stored_rows()
        else:
            w, scales, bias, input_major, _ = layer.single_row_step()
        if input_major != (number == 0):
            w, scales = np.ascontiguousarray(layer.weight.T if number == 0 else layer.weight), None
        layers.append((w, scales, bias, layer.activation == "relu"))
    return layers


def fit_votes(found: Found, labels: Ids, trends: Floats) -> np.ndarray:
    """The parameters with the largest likelihood of the labels, times that of the prior.

    Parameters
    ----------
    found : (ids, counts, outputs, ages)
        As from `_core._sessions.count`, for steps of which neither the sessions nor the network
        know.
    labels : ndarray of shape (n_steps,), int32
        The items that followed.
    trends : ndarray of shape (n_items,), float32

    Returns
    -------
    ndarray of shape (27,), float64
    """
    penalty, gradient = PRIOR_STEPS / max(len(labels), 1), np.empty(len(PRIOR))

    def cost(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        loss = _sessions.losses(*found, labels, trends, parameters, gradient)
        step = parameters - PRIOR
        return loss + penalty * float(step @ step), gradient + 2 * penalty * step

    from scipy.optimize import minimize  # 0.1 s, which `import sparselsh` need not take

    bounds = [(0.0, MAX_LOG)] * 2 + [(-MAX_LOG, MAX_LOG)] * (len(PRIOR) - 2)
    return minimize(cost, PRIOR, jac=True, method="L-BFGS-B", bounds=bounds,
                    options={"maxiter": MAX_ITERATIONS}).x


# -- files -----------------------------------------------------------------------------------------


def sessions_as_tensors(sessions: Sessions | None) -> dict[str, np.ndarray]:
    """The sessions, for a file."""
    if sessions is None:
        return {}
    return {"sessions.items": sessions.items, "sessions.lengths": sessions.lengths,
            "sessions.parameters": sessions.parameters}


def sessions_of_tensors(tensors: dict[str, np.ndarray], n_items: int) -> Sessions | None:
    """What `sessions_as_tensors` gave, checked."""
    if "sessions.items" not in tensors:
        return None
    items, lengths, parameters = (tensors[f"sessions.{name}"]
                                  for name in ("items", "lengths", "parameters"))
    if items.dtype != np.int32 or lengths.dtype != np.int32 or items.ndim != 1 or lengths.ndim != 1:
        raise ValueError("sessions.items and sessions.lengths must be vectors of int32")
    if (lengths < 2).any() or int(lengths.sum(dtype=np.int64)) != len(items):
        raise ValueError("the lengths of sessions must be 2 or more, and sum to the number of "
                         "their items")
    if len(items):
        check.ids(items, "sessions.items", n_items)
    if parameters.dtype != np.float64 or parameters.shape != PRIOR.shape:
        raise ValueError(f"sessions.parameters must be {len(PRIOR)} values of float64")
    if not (np.abs(parameters) <= MAX_LOG).all():
        raise ValueError(f"sessions.parameters must be at most {MAX_LOG:g} and finite")
    return Sessions(items, lengths, n_items, parameters)
