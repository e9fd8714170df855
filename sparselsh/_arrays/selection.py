"""Selection: which neurons the queries of a search may find."""
from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from .types import Floats, Ids


class Selection(NamedTuple):
    """The neurons that queries may find: those of a mask, and of lists of their own.

    `mask`, (n_neurons,) uint8, is for all queries; None for all neurons. `indptr` and `listed` are
    the neurons of each query as CSR, or None: with `only` it may find those of them that the mask
    allows, else all others.
    """

    mask: np.ndarray | None = None
    indptr: np.ndarray | None = None
    listed: Ids | None = None
    only: bool = False

    @property
    def has_lists(self) -> bool:
        """Whether each query has neurons of its own."""
        return self.indptr is not None

    def slice(self, start: int, stop: int) -> Selection:
        """The selection for the queries from start to stop."""
        if self.indptr is None or self.listed is None:
            return self
        first, last = self.indptr[start], self.indptr[stop]
        return self._replace(indptr=self.indptr[start:stop + 1] - first,
                             listed=self.listed[first:last])

    def exclude_from(self, scores: Floats) -> Floats:
        """Set the scores (n_queries, n_neurons) of neurons that may not be found to -inf."""
        if self.mask is not None:
            scores[:, self.mask == 0] = -np.inf
        if self.indptr is not None and self.listed is not None:
            rows = np.repeat(np.arange(len(scores)), np.diff(self.indptr))
            if self.only:
                kept = np.full_like(scores, -np.inf)
                kept[rows, self.listed] = scores[rows, self.listed]
                scores[:] = kept
            else:
                scores[rows, self.listed] = -np.inf
        return scores


ALL = Selection()  # of which all neurons are
