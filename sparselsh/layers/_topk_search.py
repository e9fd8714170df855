"""The index that `LSHLinear.topk` searches, kept up to date with the weights."""
from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .._arrays.aligned import locked_arrays, own_arrays
from .._threads import resolve
from ..index import IndexOptions, build, drawn_seed, engine_of_layer, state

if TYPE_CHECKING:
    from .._arrays.types import Floats, Ids
    from ..index import IndexEngine

MIN_NEURONS_PER_CHANGE = 4  # with fewer neurons per changed one, the index is rebuilt


class TopKSearch:
    """An index by sketches, built at the first search.

    Neurons that steps have changed are marked, and hashed again by the next search.

    Parameters
    ----------
    n_out : int
    recall : float
        Fraction of the five best outputs that a search is to find.
    seed : int
    """

    def __init__(self, n_out: int, recall: float, seed: int) -> None:
        self.n_out = n_out
        self.options = IndexOptions(recall=recall, plan="sketches")
        self.seed = seed
        self.engine: IndexEngine | None = None
        self._has_changed = np.zeros(n_out, bool)  # since the engine followed the weights

    def ready(self, W: np.ndarray, bias: Floats, inputs: Floats, n_threads: int) -> IndexEngine:
        """The engine, up to date with the weights.

        `inputs`, (n_inputs, n_in), is a sample of the layer's inputs, by which an index is
        calibrated when it is built.
        """
        n_changed = np.count_nonzero(self._has_changed)
        if (self.engine is None or n_changed > self.n_out // MIN_NEURONS_PER_CHANGE
                or (n_changed and locked_arrays(self.engine.sketches))):
            queries = inputs if len(inputs) else None
            self.engine = None  # so that there are never two in memory
            engine = build(self.options, W, bias, queries, drawn_seed(self.seed), n_threads)
            self._has_changed = np.zeros(self.n_out, bool)
            self.engine = engine
        elif n_changed:
            # taken out meanwhile: an error in between leaves no engine, not one that is half old
            engine, self.engine = self.engine, None
            engine.refresh(np.flatnonzero(self._has_changed).astype(np.int32), n_threads)
            self._has_changed = np.zeros(self.n_out, bool)
            self.engine = engine
        return self.engine

    def mark_changed(self, rows: Ids) -> None:
        """Note that a step has changed the neurons `rows`."""
        own_arrays(self)
        self._has_changed[rows] = True

    def add_neurons(self, W: np.ndarray, bias: Floats, n_threads: int) -> None:
        """Add the rows of W from n_out on; those before have not changed."""
        has_changed = np.concatenate([self._has_changed, np.zeros(len(W) - self.n_out, bool)])
        if self.engine is not None:
            self.engine.add(W, bias, n_threads)
        self._has_changed, self.n_out = has_changed, len(W)

    def drop(self) -> None:
        """Discard the index."""
        self.engine = None

    def rebind_weights(self, W: np.ndarray, bias: Floats) -> None:
        """Read these arrays from now on, which hold the same weights in another place."""
        if self.engine is not None:
            self.engine.rebind_weights(W, bias)

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """The index as it is: arrays by name, and plain values."""
        if self.engine is None:
            return {}, {}
        engine, self.engine = self.engine, None  # sketches are sorted for it: see `ready`
        tensors, plain = state(engine, exactly=True)
        self.engine = engine
        arrays = {f"searcher.{name}": a for name, a in tensors.items()}
        return arrays | {"changed": self._has_changed.view(np.uint8)}, {"searcher": plain}

    def restore(self, W: np.ndarray, bias: Floats, parts: dict[str, dict[str, np.ndarray]],
                arrays: dict[str, np.ndarray], plain: dict[str, Any]) -> None:
        """Take what `state` gave; it is checked."""
        if "searcher" not in plain:
            return
        engine = engine_of_layer(self.options, W, bias, parts["searcher"], plain["searcher"],
                                 resolve(None))
        changed = arrays["changed"]
        if changed.shape != (self.n_out,):
            raise ValueError(f"changed must have shape {(self.n_out,)}, got {changed.shape}")
        self.engine, self._has_changed = engine, changed.astype(bool)
