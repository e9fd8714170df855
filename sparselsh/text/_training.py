"""A network for sparse rows and ids, by the recipe for many labels.

Rows are held out, by which classifiers are weighted or removed and probabilities calibrated.
"""
from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from .. import _recipe
from .. import _validation as check
from .._arrays.csr import CSR, concatenate, from_scipy
from .._arrays.scipy import sp
from .._signals import held
from ..calibration import MIN_FIT_ROWS, best_threshold, thresholds_by_frequency
from ..layers import Linear, LSHLinear
from ..network import Network
from ..optim import Adam

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .._arrays.types import RandomState
    from ..callbacks import Callback
    from ..inference import InferenceNetwork

MIN_BATCH_ROWS, MAX_BATCH_ROWS = 64, 256
MIN_STEPS = 200  # of a training whose number of epochs is chosen
MAX_EPOCHS = 30
MAX_THRESHOLD_ROWS = 2048  # training rows that decide on a threshold where none were held out
SPLIT_SEED = 0
NO_ROWS = np.zeros(0, np.int64)
MAX_KEPT_ENTRIES = 1 << 18
RATE_OF_MORE = 1e-3  # of partial_fit


class Options(NamedTuple):
    """How a network is trained; see :class:`Tagger`."""

    hidden: int
    epochs: int | None
    batch_size: int | None
    lr: float | None
    dropout: float | None
    hold_out: int | None
    refine: bool
    kind: Literal["classes", "labels"]
    thresholds: Literal["one", "per-label"]
    random_state: RandomState
    n_threads: int | None
    callbacks: Sequence[Callback]
    verbose: bool
    shared_ids: bool = False
    effort: Literal["low", "default", "high"] = "default"
    validation: float | tuple[CSR, CSR] | None = None  # a fraction of the rows, or further rows
    resumed: Network | None = None  # whose training goes on, for `epochs` in all if these are given


def batch_rows(n_rows: int, batch_size: int | None) -> int:
    """Rows per step."""
    if batch_size is not None:
        return min(batch_size, n_rows)
    return min(n_rows, int(np.clip(n_rows // 40, MIN_BATCH_ROWS, MAX_BATCH_ROWS)))


class Trained(NamedTuple):
    """A network, the probability from which on it names a label, and rows for contrast."""

    network: Network | InferenceNetwork
    threshold: Any
    kept: Kept


class Kept(NamedTuple):
    """Some rows that `add_tags` compares new ones with, and how many they stand for."""

    x: CSR
    y: CSR
    n_seen: int


def trained(x: CSR, y: CSR, options: Options, is_held_out: np.ndarray | None = None) -> Trained:
    """A network trained on the rows, but for some that are held out: these, or a sample."""
    fraction = options.validation if isinstance(options.validation, float) else None
    n_held_out = options.hold_out if fraction is None else n_rows_of(fraction, x.shape[0])
    kept, held_out = (_split(x, y, n_held_out) if is_held_out is None else
                      (np.flatnonzero(~is_held_out), np.flatnonzero(is_held_out)))
    X, Y = x.take(kept).to_scipy(), y.take(kept).to_scipy()
    held = x.take(held_out).to_scipy(), y.take(held_out).to_scipy()
    measured = held if fraction is not None else None
    if isinstance(options.validation, tuple):
        measured = options.validation[0].to_scipy(), options.validation[1].to_scipy()

    network = options.resumed
    if network is None:
        network = _fitted(X, Y, measured, options)
    else:
        network.resume(X, Y, epochs=options.epochs, callbacks=options.callbacks,
                       verbose=options.verbose, validation=measured)
    is_enough = len(held_out) >= MIN_FIT_ROWS
    repeats = (is_enough and held[1].nnz > 0 and is_held_out is None
               and _recipe.repeats(len(held_out), x.shape[0]))
    if options.refine:
        _recipe.refine(network, X, Y, held if is_enough else None, effort=options.effort,
                       verbose=options.verbose, again=repeats)
    if is_enough and held[1].nnz:
        network.calibrate(*held, kind=options.kind, thresholds=options.thresholds)
        if options.kind == "labels" and options.thresholds == "one":
            _set_thresholds(network, y, kept, *held)
        threshold = network.calibration.threshold
        if network.refinement is not None and repeats:
            _recipe.refine_again(network, x.to_scipy(), y.to_scipy(), rows=kept,
                                 effort=options.effort, verbose=options.verbose)
    else:
        threshold = _threshold_of(network, X, Y)
    return Trained(network, threshold, with_more(Kept(x.take(NO_ROWS), y.take(NO_ROWS), 0), x, y))


def _fitted(X: Any, Y: Any, measured: tuple[Any, Any] | None, options: Options) -> Network:
    """A network after all epochs, without classifiers."""
    network = Network([Linear(X.shape[1], options.hidden), LSHLinear(options.hidden, Y.shape[1])],
                      random_state=options.random_state, n_threads=options.n_threads)
    batch = batch_rows(X.shape[0], options.batch_size)
    epochs = options.epochs
    if epochs is None:
        epochs = max(_recipe.EFFORTS[options.effort].epochs,
                     min(MAX_EPOCHS, -(-MIN_STEPS * batch // X.shape[0])))
    n_steps = _recipe.steps(X.shape[0], batch, epochs)
    _recipe.begin(network, X, Y, n_steps, dropout=options.dropout, shared_ids=options.shared_ids)
    lr = _recipe.rate(n_steps) if options.lr is None else options.lr
    return network.fit(X, Y, optimizer=Adam(lr, schedule="linear", second_moment="row"),
                       epochs=epochs, batch_size=batch, callbacks=options.callbacks,
                       verbose=options.verbose, validation=measured)


def n_rows_of(fraction: float, n_rows: int) -> int:
    """Rows of a fraction; ValueError where that is none."""
    n = round(fraction * n_rows)
    if n == 0:
        raise ValueError(f"validation={fraction:g} of {n_rows} rows is none; give a larger "
                         "fraction, or rows of their own")
    return n


def with_more(kept: Kept, x: CSR, y: CSR) -> Kept:
    """The rows with some of the new ones, in proportion to what they stand for."""
    n_seen, n_old, n_new = kept.n_seen + x.shape[0], kept.x.shape[0], x.shape[0]
    n_entries = (kept.x.nnz + kept.y.nnz) * kept.n_seen / max(n_old, 1) + x.nnz + y.nnz
    n_wanted = int(n_seen * min(1.0, MAX_KEPT_ENTRIES / max(n_entries, 1)))
    parts, rng = [], np.random.default_rng(SPLIT_SEED)
    for rows, size, share in (((kept.x, kept.y), n_old, kept.n_seen / n_seen),
                              ((x, y), n_new, n_new / n_seen)):
        chosen = np.sort(rng.permutation(size)[:round(n_wanted * share)])
        parts.append([part._replace(n_columns=new.n_columns).take(chosen)
                      for part, new in zip(rows, (x, y), strict=True)])
    xs, ys = zip(*parts, strict=True)
    return Kept(concatenate(xs), concatenate(ys), n_seen)


def _split(x: CSR, y: CSR, n_held_out: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on, and rows to hold out; both ascend."""
    n = x.shape[0]
    if n_held_out is None:
        n_held_out = _recipe.n_held_out(n, y.n_columns)
    if n_held_out >= n:
        raise ValueError(f"hold_out={n_held_out} leaves none of the {n} rows to train on; give a "
                         "smaller number")
    order = np.random.default_rng(SPLIT_SEED).permutation(n)
    return np.sort(order[n_held_out:]), np.sort(order[:n_held_out])


def _set_thresholds(network: Network, y: CSR, trained_on: np.ndarray, X: Any, Y: Any) -> None:
    """Lower thresholds for rare labels, where that gains F1 on rows that were held out."""
    calibration = network.calibration
    counts = np.bincount(y.take(trained_on).indices, minlength=y.n_columns)
    ids, p = network.topk(X, calibration.n_ranked, probabilities=True)
    common = calibration.threshold
    assert isinstance(common, float)  # as calibrated with thresholds="one"
    calibration.threshold = thresholds_by_frequency(ids, p, from_scipy(Y), counts, common)


def _threshold_of(network: Network, X: Any, Y: Any) -> float:
    """The threshold with the largest F1 on training rows, for a network without calibration."""
    step = -(-X.shape[0] // MAX_THRESHOLD_ROWS)
    p, indicator = network.predict_proba(X[::step]), Y[::step]
    if not indicator.nnz:
        return 0.5
    return float(best_threshold(p, indicator.toarray() > 0, indicator.nnz))


def refinement_cost(x: CSR, n_labels: int) -> float:
    """C of the classifiers of rows like these."""
    return _recipe.refinement_cost(x.nnz / max(1, x.shape[0]), n_labels)


def n_steps_of(network: Network) -> int:
    """Steps of the network's optimizer; 0 without one."""
    return 0 if network.optimizer is None else network.optimizer.n_steps


def learn_more(network: Network, x: CSR, y: CSR, batch_size: int | None) -> None:
    """Train on the rows once, at a constant rate."""
    optimizer = network.optimizer
    if optimizer is None:
        network.optimizer = Adam(RATE_OF_MORE, second_moment="row")
    elif optimizer.schedule is not None:  # that of the training, at whose end the rate is 0
        optimizer.lr = min(optimizer.lr, RATE_OF_MORE)
        optimizer.schedule = None
    network.partial_fit(x.to_scipy(), y.to_scipy(), batch_size=batch_rows(x.shape[0], batch_size))


# -- files -----------------------------------------------------------------------------------------


def kept_as_tensors(kept: Kept) -> dict[str, np.ndarray]:
    """The rows for contrast, for a file."""
    return {"kept.x.indptr": kept.x.indptr, "kept.x.indices": kept.x.indices,
            "kept.x.data": kept.x.data, "kept.y.indptr": kept.y.indptr,
            "kept.y.indices": kept.y.indices}


def kept_of_tensors(tensors: dict[str, np.ndarray], n_seen: Any,
                    network: Network | InferenceNetwork) -> Kept:
    """What `kept_as_tensors` gave, checked."""
    n_seen = check.integer(n_seen, "n_seen", minimum=0, maximum=2**62)
    parts: list[CSR] = []
    for name, n_columns in (("x", network.n_features), ("y", network.n_labels)):
        indptr, indices = tensors[f"kept.{name}.indptr"], tensors[f"kept.{name}.indices"]
        data = (tensors["kept.x.data"] if name == "x" else
                np.ones(len(indices), np.float32))
        if indptr.dtype != np.int64 or indices.dtype != np.int32 or data.dtype != np.float32:
            raise ValueError(f"kept.{name} must be rows of int64, int32 and float32")
        matrix = sp.csr_array((data, indices, indptr), shape=(len(indptr) - 1, n_columns))
        parts.append(check.sparse(matrix, f"kept.{name}"))
    if parts[0].shape[0] != parts[1].shape[0]:
        raise ValueError("kept.x and kept.y must have as many rows")
    return Kept(parts[0], parts[1], n_seen)


def learn_and_take(model: Any, x: CSR, y: CSR, learned: dict[str, Any]) -> None:
    """`learn_more` of a Tagger or Recommender, with attributes that count these rows.

    They change once a step is done: a call that fails before can be made again.
    """
    n_steps = n_steps_of(model.network_)
    with held():
        try:
            learn_more(model.network_, x, y, model.batch_size)
        finally:
            if n_steps_of(model.network_) > n_steps:
                model.__dict__.update(learned)
