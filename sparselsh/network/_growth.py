"""New labels and features of a trained network, with weights computed from rows that have them.

What there was stays as it is; the new weights follow the rules by which first weights are computed
from data (training/_label_vectors.py), with trained weights in the place of random ones. A new
label has few rows, and whatever it is confused with are rows of others: biases, and the rows that
classifiers learn from, come from its outputs for rows that the training has kept. No old label is
searched for: what a row has labels for, and frequent labels, say how high the others are.
"""
from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from .._arrays import bfloat16
from .._arrays.csr import CSR, concatenate
from .._arrays.linalg import matmul, row_chunks
from .._arrays.scipy import sp
from .._core import _estimates, _select
from .._threads import resolve
from ..refinement import fit_classifiers

if TYPE_CHECKING:
    from .._arrays.types import Floats, Ids, Offsets
    from ..layers import Linear
    from ._network import Network

MAX_OUTPUTS = 1 << 24  # of new labels that are computed to find what they are confused with
MIN_CONTRAST_ROWS = 2048
# Of the old labels, a quarter of the outputs are computed, those of frequent ones, but at least and
# at most so many; and those of the labels of the row.
MIN_FREQUENT, MAX_FREQUENT = 128, 512
# Rows that a classifier is to tell from those of its label: so many, or more where it has many.
MIN_OPPONENTS, OPPONENTS_PER_ROW = 64, 16
N_TAIL_ROWS = 512  # by which the probability in all other rows is estimated
N_LENGTHS = 2048  # trained vectors whose median length new ones get
NEWTON_STEPS = 8
MAX_LOG_ODDS = 30.0
MAX_LOGARITHM = 700.0  # whose exponential is finite
SEED = 0
THRESHOLD = 0.1  # of the weights of classifiers, as in Network.refine


class Rows(NamedTuple):
    """Rows to learn from: the new ones first, and some of those of before, for contrast."""

    x: CSR
    y: CSR
    weights: Floats  # how many rows each stands for
    n_new: int


def joined(x: CSR, y: CSR, old_x: CSR, old_y: CSR, n_seen: int) -> Rows:
    """New rows, and old ones that stand for `n_seen` and are not among the new ones.

    The more new labels, the fewer old rows; none without new labels.
    """
    n, n_old, n_labels = x.shape[0], old_x.shape[0], y.n_columns - old_y.n_columns
    n_wanted = _n_rows(n_labels) - min(n, _n_rows(n_labels) // 2) if n_labels else 0
    rows = np.random.default_rng(SEED).permutation(n_old)[:2 * n_wanted]
    weight = n_seen / max(1, len(rows))
    known = set(_keys(_columns(x, 0, old_x.n_columns)))
    rows = rows[[key not in known for key in _keys(old_x.take(rows))]]
    weight *= max(1, len(rows) / max(1, n_wanted))
    rows = np.sort(rows[:n_wanted])
    weights = np.ones(n + len(rows), np.float32)
    weights[n:] = max(1.0, weight)
    return Rows(concatenate([x, old_x._replace(n_columns=x.n_columns).take(rows)]),
                concatenate([y, old_y._replace(n_columns=y.n_columns).take(rows)]), weights, n)


def _n_rows(n_labels: int) -> int:
    """Rows for which the outputs of so many new labels are computed."""
    return max(2 * MIN_CONTRAST_ROWS, MAX_OUTPUTS // n_labels)


def _keys(x: CSR) -> list[bytes]:
    """What tells rows apart: their features."""
    whole, ends = x.indices.tobytes(), (x.indptr * x.indices.itemsize).tolist()
    return [whole[a:b] for a, b in itertools.pairwise(ends)]


def grow_from_rows(network: Network, rows: Rows, C: float) -> None:
    """Add the features and labels of the rows that are beyond those of the network.

    The weights of a new feature are the mean of the directions of the labels it occurs with, and
    those of a new label the mean direction of its rows, as long as those of other labels are
    usually; its bias makes its probability right on average. Where the network has classifiers of
    its inputs, each new label gets one, trained with C.

    For a network with one hidden layer.
    """
    x, y, weights, n_new = rows
    hidden, last = network.layers
    n_features, n_labels, n_threads = network.n_features, network.n_labels, resolve(
        network.n_threads)
    h = np.array(hidden.all_outputs(_columns(x, 0, n_features), n_threads))
    trained = bfloat16.as_float32(last.parameters[0].value)
    inputs = np.zeros((x.n_columns - n_features, hidden.n_out), np.float32)
    if len(inputs):
        inputs[:] = _feature_weights(x, y, h, hidden, trained)
        h += _columns(x, n_features, x.n_columns).to_scipy() @ inputs
        if hidden.activation == "relu":
            np.maximum(h, 0, out=h)

    some = trained[::-(-n_labels // N_LENGTHS)]
    weight = _units(_label_sums(y, n_labels, h)) * np.float32(
        np.median(np.linalg.norm(some, axis=1)))
    if not len(weight):
        network.grow(len(inputs), weight, np.zeros(0, np.float32), inputs.T)
        return
    totals = _totals(h, y, trained, last.stored()[1].ravel(), n_threads)
    bias, starts, samples = _confused(h, weight, totals, y, weights, n_new, n_labels,
                                      n_threads)
    if network.refinement is None:
        network.grow(len(inputs), weight, bias, inputs.T)
        return
    # a row without features stands for all others, and lets the bias of a classifier be negative
    x = x._replace(indptr=np.append(x.indptr, x.nnz))
    costs = np.float32(C) * np.append(weights, weights.sum())
    with network.seed_drawn() as seed:
        classifiers = fit_classifiers(x, starts, samples, costs, threshold=THRESHOLD, seed=seed,
                                      n_threads=n_threads)
        network.grow(len(inputs), weight, bias, inputs.T, classifiers)


def _totals(h: Floats, y: CSR, trained: Floats, bias: Floats, n_threads: int) -> Floats:
    """The logarithm of the sum of exponentials of the outputs of the old labels, per row.

    It is estimated: frequent labels, and those of the row, make most of it.
    """
    n_labels = len(trained)
    known = _columns(y, 0, n_labels)
    counts = np.bincount(known.indices, minlength=n_labels)
    n_frequent = min(max(MIN_FREQUENT, n_labels // 4), MAX_FREQUENT)
    frequent = np.sort(np.argsort(-counts, kind="stable")[:n_frequent])
    w, b = np.ascontiguousarray(trained[frequent]), bias[frequent]
    totals = np.empty(len(h))
    for start, stop in row_chunks(len(h), len(frequent)):
        z = matmul(h[start:stop], w, n_threads, transpose_b=True, bias=b)
        _estimates.log_sum_exp_rows(z, totals[start:stop], n_threads)
    is_other = np.ones(n_labels, bool)
    is_other[frequent] = False
    is_other = is_other[known.indices]
    row = np.repeat(np.arange(len(h)), np.diff(known.indptr))[is_other]
    label = known.indices[is_other]
    z = np.einsum("ij,ij->i", h[row], trained[label]) + bias[label]
    z -= totals[row]
    top = np.zeros(len(h))  # a label that is not frequent may be far above those that are
    np.maximum.at(top, row, z)
    totals += top + np.log1p(np.expm1(-top)
                             + np.bincount(row, np.exp(z - top[row]), minlength=len(h)))
    return totals.astype(np.float32)


def _confused(h: Floats, weight: Floats, totals: Floats, y: CSR, weights: Floats, n_new_rows: int,
              n_labels: int, n_threads: int) -> tuple[Floats, Offsets, Ids]:
    """Biases of the new labels, and which rows their classifiers are to tell apart.

    The probability of a label, in a softmax with the old ones, is on average the fraction of rows
    that have it, where a row counts one over the number of its labels. The rows are as for
    `fit_classifiers`: those of the label, those with the largest outputs of it, and one behind the
    last for all others.
    """
    n_new, n = len(weight), len(h)
    row = np.repeat(np.arange(n), np.diff(y.indptr))
    is_new = y.indices >= n_labels
    shares = (weights / np.maximum(np.diff(y.indptr), 1))[row[is_new]]
    row, label = row[is_new], y.indices[is_new] - n_labels
    order = np.argsort(label, kind="stable")
    row, label, shares = row[order], label[order], shares[order]
    counts, wanted = np.bincount(label, minlength=n_new), np.bincount(label, shares, n_new)
    own = np.einsum("ij,ij->i", h[row], weight[label]) - totals[row]

    near, w = np.arange(n), weights
    n_some = max(MIN_CONTRAST_ROWS, _n_rows(n_new) - (n - n_new_rows))
    if n_some < n_new_rows:
        some = np.sort(np.random.default_rng(SEED).permutation(n_new_rows)[:n_some])
        near = np.concatenate([some, near[n_new_rows:]])
        w = np.concatenate([weights[some] * np.float32(n_new_rows / n_some), weights[n_new_rows:]])
    place = np.full(n, -1)
    place[near] = np.arange(len(near))

    k = min(MIN_OPPONENTS, len(near))
    n_opponents = np.minimum(np.maximum(k, OPPONENTS_PER_ROW * counts), len(near))
    best = np.empty((n_new, k), np.int32), np.empty((n_new, k), np.float32)
    tails, more = np.empty(n_new), {}
    tail = np.unique(np.linspace(0, len(near) - 1, N_TAIL_ROWS).astype(np.int64))
    w_tail = w[tail] * (len(near) / len(tail))
    for first, stop in row_chunks(n_new, len(near)):
        z = matmul(weight[first:stop], h[near], n_threads, transpose_b=True)
        z -= totals[near]
        part = slice(*np.searchsorted(label, [first, stop]))
        at = place[row[part]]
        z[label[part][at >= 0] - first, at[at >= 0]] = -np.inf
        _select.top_k(z, None, best[0][first:stop], best[1][first:stop], n_threads)
        others = z[:, tail]
        others = np.where(others < best[1][first:stop, -1:], others, -np.inf).astype(np.float64)
        tails[first:stop] = _log_sums(others, w_tail)
        for j in np.flatnonzero(n_opponents[first:stop] > k):
            found = np.argpartition(-z[j], n_opponents[first + j] - 1)[:n_opponents[first + j]]
            found = found[np.argsort(-z[j, found], kind="stable")]
            more[first + j] = found[np.isfinite(z[j, found])]
    bias = _solved(best[1], w[best[0]], (label, own, weights[row]), tails, wanted)

    is_found = np.isfinite(best[1])
    sizes = is_found.sum(axis=1)
    for j, found in more.items():
        sizes[j] = len(found)
        is_found[j] = False
    starts = np.concatenate([[0], np.cumsum(counts + sizes + 1)])
    samples = np.full(starts[-1], ~n, np.int32)
    samples[starts[label] + np.arange(len(label)) - np.searchsorted(label, label)] = row
    labels, ranks = np.nonzero(is_found)
    samples[starts[labels] + counts[labels] + ranks] = ~near[best[0][labels, ranks]]
    for j, found in more.items():
        samples[starts[j] + counts[j]:starts[j + 1] - 1] = ~near[found]
    return bias, starts, samples


def _solved(margins: Floats, weights: Floats, own: tuple[Ids, Floats, Floats], tails: np.ndarray,
            wanted: np.ndarray) -> Floats:
    """b with ``sum_i weights_ji sigmoid(margins_ji + b_j) = wanted_j``, by steps of Newton's.

    The sum is over the margins, (n_labels, n), those of `own` (labels, margins, weights), and
    others that are far below, the logarithm of the sum of whose exponentials is in tails.
    """
    label, own_margins, own_weights = own
    n = len(wanted)
    top = margins[:, 0].astype(np.float64)
    np.maximum.at(top, label, own_margins)
    top[top == -np.inf] = 0  # of a label without margins
    total = ((weights * np.exp(margins - top[:, None])).sum(axis=1) + np.exp(tails - top)
             + np.bincount(label, own_weights * np.exp(own_margins - top[label]), n))
    b = np.log(np.maximum(wanted, 1e-6)) - top - np.log(total)  # without saturation: too low
    for _ in range(NEWTON_STEPS):
        p, q = _sigmoid(margins + b[:, None]), _sigmoid(own_margins + b[label])
        rest = np.exp(np.minimum(tails + b, MAX_LOG_ODDS))
        found = (weights * p).sum(axis=1) + np.bincount(label, own_weights * q, n) + rest
        slope = ((weights * p * (1 - p)).sum(axis=1) + rest
                 + np.bincount(label, own_weights * q * (1 - q), n))
        b += np.clip((wanted - found) / np.maximum(slope, 1e-6), -2, 2)
    return b.astype(np.float32)


def _log_sums(z: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The logarithm of the weighted sum of exponentials of each row; -inf for rows of -inf."""
    top = np.maximum(z.max(axis=1, initial=-np.inf), -MAX_LOGARITHM)
    with np.errstate(divide="ignore"):
        return np.log(np.exp(z - top[:, None]) @ weights) + top


def _sigmoid(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(z, -MAX_LOG_ODDS, MAX_LOG_ODDS)))


def _columns(x: CSR, start: int, stop: int) -> CSR:
    """Some columns of the rows."""
    inside = (x.indices >= start) & (x.indices < stop)
    return CSR(_ends(inside, x.indptr), x.indices[inside] - np.int32(start),
               x.data[inside], stop - start)


def _ends(is_chosen: np.ndarray, indptr: Offsets) -> Offsets:
    """The indptr of rows of which some entries are left."""
    counts = np.zeros(len(is_chosen) + 1, np.int64)
    np.cumsum(is_chosen, out=counts[1:])
    return counts[indptr]


def _label_sums(y: CSR, n_labels: int, h: Floats) -> Floats:
    """The sums of the directions of the rows of each new label."""
    rows = np.flatnonzero(np.diff(_ends(y.indices >= n_labels, y.indptr)))
    return _columns(y.take(rows), n_labels, y.n_columns).to_scipy().T.tocsr() @ _units(h[rows])


def _feature_weights(x: CSR, y: CSR, h: Floats, hidden: Linear, trained: Floats) -> Floats:
    """Weights of the new features, (n_new, n_hidden).

    A feature gets the mean over its rows of its value times the mean direction of the labels, and
    all of them are as much longer as trained ones are than those of known features would be.
    """
    n_features, n_labels = hidden.n_in, len(trained)
    rows = np.flatnonzero(np.diff(_ends(x.indices >= n_features, x.indptr)))
    x, own = x.take(rows), y.take(rows)
    factors = np.repeat(1 / np.maximum(np.diff(own.indptr), 1), np.diff(own.indptr))
    there, places = np.unique(own.indices, return_inverse=True)
    vectors = _units(np.concatenate([trained[there[there < n_labels]], _label_sums(
        y, n_labels, h)[there[there >= n_labels] - n_labels]]))
    means = sp.csr_array((factors.astype(np.float32), places, own.indptr),
                         shape=(len(rows), len(there))) @ vectors

    known = np.unique(x.indices[x.indices < n_features])
    known = known[::-(-len(known) // N_LENGTHS)] if len(known) else known
    n_columns = len(known) + x.n_columns - n_features
    column = np.full(x.n_columns, -1, np.int32)
    column[known] = np.arange(len(known))
    column[n_features:] = np.arange(len(known), n_columns)
    columns = column[x.indices]
    inside = columns >= 0
    chosen = sp.csr_array((x.data[inside], columns[inside], _ends(inside, x.indptr)),
                          shape=(len(rows), n_columns)).T.tocsr()
    sums = chosen @ means
    sums /= np.maximum(np.diff(chosen.indptr), 1).astype(np.float32)[:, None]
    parameter = hidden.parameters[0]
    old = parameter.value if parameter.input_major else parameter.value.T
    return sums[len(known):] * _ratio(bfloat16.as_float32(np.ascontiguousarray(old[known])),
                                      sums[:len(known)])


def _ratio(trained: Floats, computed: Floats) -> np.float32:
    """By how much trained vectors are longer than those that are computed as the new ones are."""
    lengths = np.linalg.norm(computed, axis=1)
    there = lengths > 0
    if not there.any():
        return np.float32(1)
    ratios = np.linalg.norm(trained[there], axis=1) / lengths[there]
    return np.float32(np.median(ratios))


def _units(vectors: Floats) -> Floats:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 0)
