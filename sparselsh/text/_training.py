"""A network for sparse rows and ids, by the recipe for many labels.

Rows are held out, by which classifiers are weighted or removed and probabilities calibrated.
"""
from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from .. import _recipe
from ..calibration import MIN_FIT_ROWS, best_threshold
from ..layers import Linear, LSHLinear
from ..network import Network
from ..optim import Adam

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .._arrays.csr import CSR
    from .._arrays.types import RandomState
    from ..callbacks import Callback

MIN_BATCH_ROWS, MAX_BATCH_ROWS = 64, 256
MIN_STEPS = 200  # of a training whose number of epochs is chosen
MAX_EPOCHS = 30
MAX_THRESHOLD_ROWS = 2048  # training rows that decide on a threshold where none were held out
SPLIT_SEED = 0


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


def batch_rows(n_rows: int, batch_size: int | None) -> int:
    """Rows per step."""
    if batch_size is not None:
        return min(batch_size, n_rows)
    return min(n_rows, int(np.clip(n_rows // 40, MIN_BATCH_ROWS, MAX_BATCH_ROWS)))


def trained(x: CSR, y: CSR, options: Options) -> tuple[Network, float | np.ndarray]:
    """A network trained on the rows, and the probability from which on it names a label."""
    network = Network([Linear(x.n_columns, options.hidden), LSHLinear(options.hidden, y.n_columns)],
                      random_state=options.random_state, n_threads=options.n_threads)
    kept, held_out = _split(x, y, options.hold_out)
    X, Y = x.take(kept).to_scipy(), y.take(kept).to_scipy()

    batch = batch_rows(X.shape[0], options.batch_size)
    epochs = options.epochs
    if epochs is None:
        epochs = max(_recipe.EPOCHS_FROM_DATA,
                     min(MAX_EPOCHS, -(-MIN_STEPS * batch // X.shape[0])))
    n_steps = _recipe.steps(X.shape[0], batch, epochs)
    _recipe.begin(network, X, Y, n_steps, dropout=options.dropout)
    lr = _recipe.rate(n_steps) if options.lr is None else options.lr
    network.fit(X, Y, optimizer=Adam(lr, schedule="linear", second_moment="row"), epochs=epochs,
                batch_size=batch, callbacks=options.callbacks, verbose=options.verbose)

    held: tuple[Any, Any] | None = None
    if len(held_out) >= MIN_FIT_ROWS:
        held = x.take(held_out).to_scipy(), y.take(held_out).to_scipy()
    if options.refine:
        _recipe.refine(network, X, Y, held, verbose=options.verbose)
    if held is not None and held[1].nnz:
        network.calibrate(*held, kind=options.kind, thresholds=options.thresholds)
        return network, network.calibration.threshold
    return network, _threshold_of(network, X, Y)


def _split(x: CSR, y: CSR, n_held_out: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on, and rows to hold out; both ascend."""
    n = x.shape[0]
    if n_held_out is None:
        n_held_out = _recipe.n_held_out(n, y.n_columns)
    order = np.random.default_rng(SPLIT_SEED).permutation(n)
    return np.sort(order[n_held_out:]), np.sort(order[:n_held_out])


def _threshold_of(network: Network, X: Any, Y: Any) -> float:
    """The threshold with the largest F1 on training rows, for a network without calibration."""
    step = -(-X.shape[0] // MAX_THRESHOLD_ROWS)
    p, indicator = network.predict_proba(X[::step]), Y[::step]
    if not indicator.nnz:
        return 0.5
    return float(best_threshold(p, indicator.toarray() > 0, indicator.nnz))
