"""New labels and features of a trained network, with weights computed from rows that have them.

What there was stays as it is; the new weights follow the rules by which first weights are computed
from data (training/_label_vectors.py), with trained weights in the place of random ones.
"""
from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from .._arrays import bfloat16
from .._arrays.csr import CSR, concatenate
from .._arrays.linalg import matmul
from .._arrays.scipy import sp
from .._threads import resolve
from ..refinement import fit_refinement

if TYPE_CHECKING:
    from .._arrays.types import Floats, Ids
    from ._network import Network

N_RIVALS = 50  # outputs of the old labels with which those of the new ones are compared
NEWTON_STEPS = 3
MAX_OUTPUTS = 1 << 22  # of new labels that are held at a time
THRESHOLD = 0.1  # of the weights of classifiers, as in Network.refine


class Rows(NamedTuple):
    """Rows to learn from: the new ones, and some of those of before, for contrast."""

    x: CSR
    y: CSR
    weights: Floats  # how many rows each stands for


def joined(x: CSR, y: CSR, old_x: CSR, old_y: CSR, n_seen: int) -> Rows:
    """New rows, and old ones that stand for `n_seen` and are not among the new ones."""
    known = set(_keys(_columns(x, 0, old_x.n_columns)))
    rows = np.array([i for i, key in enumerate(_keys(old_x)) if key not in known], np.int64)
    old_x = old_x._replace(n_columns=x.n_columns)
    old_y = old_y._replace(n_columns=y.n_columns)
    weights = np.ones(x.shape[0] + len(rows), np.float32)
    if len(rows):
        weights[x.shape[0]:] = max(1.0, n_seen / old_x.shape[0])
    return Rows(concatenate([x, old_x.take(rows)]), concatenate([y, old_y.take(rows)]), weights)


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
    x, y, weights = rows
    hidden, last = network.layers
    n_features, n_labels, n_threads = network.n_features, network.n_labels, resolve(
        network.n_threads)
    known = _columns(x, 0, n_features)
    h = np.array(hidden.all_outputs(known, n_threads))
    trained = bfloat16.as_float32(last.parameters[0].value)
    inputs = np.zeros((x.n_columns - n_features, hidden.n_out), np.float32)
    if len(inputs):
        own = _label_sums(y, n_labels, h)
        vectors = _feature_vectors(x, y, np.concatenate([_units(trained), _units(own)]))
        old = bfloat16.as_float32(hidden.parameters[0].value)
        old = old if hidden.parameters[0].input_major else old.T
        inputs[:] = vectors[n_features:] * _ratio(old, vectors[:n_features])
        h += _columns(x, n_features, x.n_columns).to_scipy() @ inputs
        if hidden.activation == "relu":
            np.maximum(h, 0, out=h)

    _, z = last.topk(h, min(N_RIVALS, n_labels), n_threads=n_threads)
    length = float(np.median(np.linalg.norm(trained, axis=1)))
    weight = _units(_label_sums(y, n_labels, h)) * np.float32(length)
    bias, candidates = _biases(h, weight, z, y, weights, n_labels, n_threads)

    if network.refinement is None or not len(weight):
        network.grow(len(inputs), weight, bias, inputs.T)
        return
    costs = np.float32(C) * weights
    with network.seed_drawn() as seed:
        refinement = fit_refinement(
            x, _new_only(y, n_labels), candidates, costs, threshold=THRESHOLD,
            scale=network.refinement.scale, n_candidates=network.refinement.n_candidates,
            seed=seed, n_threads=n_threads)
        network.grow(len(inputs), weight, bias, inputs.T, refinement)


def _biases(h: Floats, weight: Floats, z: Floats, y: CSR, weights: Floats, n_labels: int,
            n_threads: int) -> tuple[Floats, Ids]:
    """Biases of the new labels, and the new labels with which each row may be confused.

    The probability of a label, in a softmax with the outputs z of the old labels, is on average the
    fraction of rows that have it, where a row counts one over the number of its labels.
    """
    n_new, n = len(weight), len(h)
    total = np.log(np.exp(z - z[:, :1]).sum(axis=1)) + z[:, 0]
    shares = weights / np.maximum(np.diff(y.indptr), 1)
    wanted = np.zeros(n_new)
    each = np.repeat(shares, np.diff(y.indptr))
    is_new = y.indices >= n_labels
    np.add.at(wanted, y.indices[is_new] - n_labels, each[is_new])
    bias = np.zeros(n_new, np.float32)
    step = max(1, MAX_OUTPUTS // max(n, 1))
    n_kept = min(n_new, N_RIVALS)
    best = np.full((n, 0), -np.inf, np.float32)
    ids = np.zeros((n, 0), np.int32)
    for first in range(0, n_new, step):
        part = slice(first, min(first + step, n_new))
        outputs = matmul(h, weight[part], n_threads, transpose_b=True)
        bias[part] = _solved(outputs - total[:, None], weights, wanted[part])
        outputs += bias[part]
        outputs[outputs < z[:, -1:]] = -np.inf  # the row has better labels
        best = np.concatenate([best, outputs], axis=1)
        ids = np.concatenate([ids, np.broadcast_to(np.arange(
            part.start, part.stop, dtype=np.int32) + n_labels, outputs.shape)], axis=1)
        if best.shape[1] > n_kept:
            order = np.argpartition(-best, n_kept - 1, axis=1)[:, :n_kept]
            best = np.take_along_axis(best, order, axis=1)
            ids = np.take_along_axis(ids, order, axis=1)
    return bias, np.ascontiguousarray(np.where(np.isfinite(best), ids, np.int32(-1)))


def _solved(margins: Floats, weights: Floats, wanted: np.ndarray) -> Floats:
    """b with ``sum_i weights_i sigmoid(margins_ij + b_j) = wanted_j``, by steps of Newton's."""
    top = margins.max(axis=0)
    b = np.log(np.maximum(wanted, 1e-6)) - top - np.log(
        weights @ np.exp(margins - top))  # without saturation: too low
    for _ in range(NEWTON_STEPS):
        p = 1 / (1 + np.exp(-(margins + b.astype(np.float32))))
        slope = weights @ (p * (1 - p))
        b += np.clip((wanted - weights @ p) / np.maximum(slope, 1e-6), -2, 2)
    return b.astype(np.float32)


def _columns(x: CSR, start: int, stop: int) -> CSR:
    """Some columns of the rows."""
    inside = (x.indices >= start) & (x.indices < stop)
    counts = np.concatenate([[0], np.cumsum(inside)])
    return CSR(counts[x.indptr].astype(np.int64), x.indices[inside] - np.int32(start),
               x.data[inside], stop - start)


def _new_only(y: CSR, n_labels: int) -> CSR:
    """The labels from n_labels on, with the numbers they have."""
    part = _columns(y, n_labels, y.n_columns)
    return CSR(part.indptr, part.indices + np.int32(n_labels), part.data, y.n_columns)


def _label_sums(y: CSR, n_labels: int, h: Floats) -> Floats:
    """The sums of the directions of the rows of each new label."""
    return _columns(y, n_labels, y.n_columns).to_scipy().T.tocsr() @ _units(h)


def _feature_vectors(x: CSR, y: CSR, vectors: Floats) -> Floats:
    """For each feature the mean over its rows of its value times the mean vector of the labels."""
    factors = np.repeat(1 / np.maximum(np.diff(y.indptr), 1), np.diff(y.indptr))
    means = sp.csr_array((factors.astype(np.float32), y.indices, y.indptr), shape=y.shape) @ vectors
    columns = x.to_scipy().T.tocsr()
    counts = np.maximum(np.diff(columns.indptr), 1).astype(np.float32)
    return (columns @ means) / counts[:, None]


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
