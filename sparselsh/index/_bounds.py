"""How far a search goes before it stops, by the wanted recall.

A search leaves out a neuron whose inner product with the query is, by its sketch or its norm, too
unlikely to be among the best, and cells that add next to nothing to what the cells before them had.
The floors below hold without any queries, and queries only widen them: all of them were chosen by
what `bench/promise.py --parts` prints.
"""
from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, Self

from .. import _validation as check

if TYPE_CHECKING:
    from collections.abc import Iterable

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
EVIDENCE = ((0.96, 64, 1.0), (0.985, 96, 1.0), (1.0, 128, 1.6))
# A search for fewer neighbours than FEW_K takes this many times as much evidence: a query may be
# like one neuron only, and the neurons with the next best estimates are then in other cells
FEW_K, EVIDENCE_OF_FEW = 4, 1.5
# Where the spread of the cells is known, the second half may hold so many times more, and so many
# neurons may be expected in the other cells for each miss that is allowed
SHARE_WITH_SPREAD, EXPECTED_PER_MISS = 1.1, 1.7
ALL_CELLS = -1.0  # a share that no cells have
CELL_RAISE, MAX_CELL_RAISES = 2.0, 6  # of the cells that are scanned; after these, all are
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
    raises : list of tuple of int
        By k, ascending: how often the cells that are scanned were raised for the k best.
    """

    recall: float
    sketches: float
    cells: float
    evidence: int
    short: float
    raises: list[tuple[int, int]] = field(default_factory=list)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update({"raises": []} | state)  # which pickles of before do not have

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

    def cells_for(self, k: int, knows_spread: bool = False) -> tuple[float, int, float]:
        """`cells` and `evidence` for the k best, and neurons that cells left out may hold.

        The wider of those for the nearest k. Fewer cells are left out by fewer such neurons and a
        smaller share of the best estimates, then by more of them. Where the spread of the cells is
        known, the share is larger.
        """
        before = [times for other, times in self.raises if other <= k][-1:]
        after = [times for other, times in self.raises if other >= k][:1]
        times = max(before + after, default=0)
        cells, evidence = self.cells, self.evidence
        if k < FEW_K:
            evidence = round(evidence * EVIDENCE_OF_FEW)
        if times > MAX_CELL_RAISES or cells == ALL_CELLS:
            return ALL_CELLS, evidence, 0.0
        if knows_spread:
            cells *= SHARE_WITH_SPREAD
        for _ in range(times):
            if cells * evidence >= 1:
                cells /= CELL_RAISE
            else:  # already no estimate may be from the second half
                evidence = round(evidence * CELL_RAISE)
        missing = EXPECTED_PER_MISS * (1 - SKETCH_MISSES) * (1 - self.recall)
        return cells, evidence, missing / CELL_RAISE**times

    def wider(self, factor: float) -> Self:
        """Bounds that leave out less of the cells that are scanned."""
        return replace(self, sketches=self.sketches * factor, short=self.short * factor)

    def with_more_cells(self, ks: Iterable[int], others: Iterable[int]) -> Self:
        """Bounds that leave out fewer cells for each of `ks`, and as many for `others`."""
        times = {k: 0 for k in others} | dict(self.raises)
        times |= {k: times.get(k, 0) + 1 for k in ks}
        return replace(self, raises=sorted(times.items()))

    @classmethod
    def restored(cls, plain: Any) -> Self:
        """The bounds of a file, checked."""
        if not isinstance(plain, dict):
            raise ValueError("bounds must be a dict")
        recall = check.number(plain["recall"], "recall", above=0, below=1)
        sketches, short = (check.number(plain[name], name, minimum=0, maximum=1e6)
                           for name in ("sketches", "short"))
        cells = check.number(plain["cells"], "cells", minimum=ALL_CELLS, maximum=1e6)
        raises = plain.get("raises", [])  # which files of earlier versions do not have
        if not isinstance(raises, list) or not all(
                isinstance(pair, list) and len(pair) == 2 for pair in raises):
            raise ValueError("raises must be a list of pairs")
        return cls(recall, sketches, cells,
                   check.integer(plain["evidence"], "evidence", maximum=1 << 20), short,
                   sorted((check.integer(k, "k of raises"),
                           check.integer(times, "raises", minimum=0, maximum=MAX_CELL_RAISES + 1))
                          for k, times in raises))

    def plain(self) -> dict[str, Any]:
        """The numbers, for a file or a report."""
        return asdict(self)
