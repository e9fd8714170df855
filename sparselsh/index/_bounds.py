"""How far a search goes before it stops, by the wanted recall.

A search leaves out a neuron whose inner product with the query is, by its sketch or its norm, too
unlikely to be among the best, and cells that add next to nothing to what the cells before them had.
The floors below hold without any queries, and queries only widen them: all of them were chosen by
what `bench/promise.py --parts` prints.
"""
from __future__ import annotations

from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any, Self

from .. import _validation as check

# Of the misses that a recall allows, the part that the bound of the sketches may cause; the rest is
# that of the cells
SKETCH_MISSES = 0.3
# Of the neurons whose estimate is too low by more than the bound, the fraction that is missed: the
# others are better than the k-th best by more than that. By k: the best one alone has no such luck.
MISSED_PER_TAIL = {1: 0.5, 2: 0.4, 3: 0.35, 4: 0.3}
MISSED_PER_TAIL_OF_LARGE_K = 0.25
LARGE_K = 5
MIN_DEVIATIONS = 0.25
# The second half of the cells scanned may hold this share of the best estimates, where the cells
# may miss CELL_MISSES_OF_SHARE of the neighbours; the fewer are allowed, the more evidence it needs
CELL_SHARE, CELL_MISSES_OF_SHARE, SHARE_POWER = 0.1, 0.05, 0.5
# Best estimates, and a factor of the share, up to a recall: of more of them, fewer are by chance in
# the first half
EVIDENCE = ((0.96, 40, 1.0), (0.985, 64, 1.0), (1.0, 128, 1.6))
ALL_CELLS = -1.0  # a share that no cells have
MIN_SHORT_DEVIATIONS = 4.5


@dataclass
class Bounds:
    """What a search leaves out.

    Attributes
    ----------
    recall : float
        The recall that these are for.
    sketches : float
        Factor of the standard deviations by which an estimate may be too low (`sketches_for`).
    cells : float
        Share of the best estimates that the second half of the cells scanned may hold.
    evidence : int
        Number of these best estimates, at least.
    short : float
        Standard deviations of the inner product with a neuron of which only the norm is known.
    """

    recall: float
    sketches: float
    cells: float
    evidence: int
    short: float

    @classmethod
    def of_recall(cls, recall: float) -> Self:
        """The floors for a recall, which need no queries."""
        misses = (1 - SKETCH_MISSES) * (1 - recall)
        share = CELL_SHARE * (misses / CELL_MISSES_OF_SHARE) ** SHARE_POWER
        evidence, factor = next((n, factor) for most, n, factor in EVIDENCE if recall <= most)
        return cls(recall, 1.0, factor * share, evidence, MIN_SHORT_DEVIATIONS)

    def sketches_for(self, k: int) -> float:
        """Standard deviations by which an estimate may be too low before its neuron is left out."""
        missed = MISSED_PER_TAIL.get(k, MISSED_PER_TAIL_OF_LARGE_K)
        tail = min(0.5, SKETCH_MISSES * (1 - self.recall) / missed)
        return self.sketches * max(MIN_DEVIATIONS, -NormalDist().inv_cdf(max(tail, 1e-15)))

    def wider(self, factor: float) -> Self:
        """Bounds that leave out less of the cells that are scanned."""
        return type(self)(self.recall, self.sketches * factor, self.cells, self.evidence,
                          self.short * factor)

    @classmethod
    def restored(cls, plain: Any) -> Self:
        """The bounds of a file, checked."""
        if not isinstance(plain, dict):
            raise ValueError("bounds must be a dict")
        recall = check.number(plain["recall"], "recall", above=0, below=1)
        sketches, short = (check.number(plain[name], name, minimum=0, maximum=1e6)
                           for name in ("sketches", "short"))
        cells = check.number(plain["cells"], "cells", minimum=ALL_CELLS, maximum=1e6)
        return cls(recall, sketches, cells,
                   check.integer(plain["evidence"], "evidence", maximum=1 << 20), short)

    def plain(self) -> dict[str, float]:
        """The numbers, for a file or a report."""
        return asdict(self)
