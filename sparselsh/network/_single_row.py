"""The answer for one sparse row by one call to the core (_core/_single_row_mlp.pyx).

A small network computes for some microseconds, and to pass the arrays of layers and classifiers to
one kernel after the other takes as long. Here they are passed once, and again when one of them has
been replaced.
"""
from __future__ import annotations

from operator import is_
from typing import TYPE_CHECKING, Any

import numpy as np

from .._core import _single_row_mlp
from ..layers import Linear

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .._arrays.csr import CSR
    from .._arrays.types import Floats, Ids
    from ..calibration import Calibration
    from ..refinement import Refinement


class SingleRow:
    """Layers, classifiers and calibration as the core takes them for one row.

    Copies and pickles begin anew.
    """

    def __init__(self) -> None:
        self._n_found = 0
        self._scale = 0.0
        self._parts: tuple[Any, ...] = ()  # what the core reads
        self._mlp: Any = None

    def __reduce__(self) -> tuple[type[Any], tuple[()]]:
        return SingleRow, ()

    def topk(self, layers: Sequence[Linear], refinement: Refinement | None,
             calibration: Calibration | None, n_found: int, x: CSR, k: int,
             n_threads: int) -> tuple[Ids, Floats] | None:
        """The k best labels and their scores, (1, k) each, or None where the core cannot do it.

        `n_found` labels are found, and those of them that are candidates ranked again. With a
        calibration the scores are probabilities.
        """
        mlp = self.prepared(layers, refinement, calibration, n_found, k, n_threads)
        if mlp is None:
            return None
        n = k if refinement is not None or calibration is not None else n_found
        ids, scores = np.empty((1, n), np.int32), np.empty((1, n), np.float32)
        _single_row_mlp.top_k_sparse(mlp, x.indices, x.data, ids, scores)
        return (ids, scores) if n == k else (ids[:, :k], scores[:, :k])

    def prepared(self, layers: Sequence[Linear], refinement: Refinement | None,
                 calibration: Calibration | None, n_found: int, k: int, n_threads: int) -> Any:
        """What the core takes for `topk`, or None where it cannot do it."""
        *hidden, last = layers
        if not hidden or any(type(layer) is not Linear for layer in hidden):
            return None
        if refinement is not None and not k <= n_found <= refinement.n_candidates:
            return None
        search, is_searched = last.single_row_search(n_found)
        if (is_searched and search is None) or (not is_searched and n_threads > 1):
            return None  # several threads compute all outputs faster

        scale = 0.0 if refinement is None else refinement.scale
        parts = (search, refinement, calibration, *[array for layer in layers
                                                    for array in layer.stored()])
        if (n_found != self._n_found or scale != self._scale or len(parts) != len(self._parts)
                or not all(map(is_, parts, self._parts))):
            if not hidden[0].parameters[0].input_major:
                return None
            steps = hidden if search is not None else layers
            self._mlp = _single_row_mlp.prepare(
                [layer.single_row_step() for layer in steps], search,
                None if refinement is None else refinement.for_single_row(n_found),
                None if calibration is None else calibration.prepared())
            self._n_found, self._scale, self._parts = n_found, scale, parts
        return self._mlp
