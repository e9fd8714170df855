"""Rows in four bits whose errors are known: a search by them leaves out only what it may."""
from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .._arrays.bfloat16 import as_float32
from .._arrays.portable import row_products
from .._core import _coded_search

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from .._arrays.selection import Selection
    from .._arrays.types import Floats, Ids

ROWS_PER_CHUNK = 8192  # that are encoded at a time
BLOCKS_PER_STEP = 2  # the kernel compares the estimates of so many blocks at once
MAX_INPUTS = 1 << 16  # whose sums fit into 32 bits
LENGTHS = 1e-12, 1e12  # of rows that can be rotated in float32


class CodedRows:
    """Codes of the rows of W, relative to their mean, after a random rotation.

    Parameters
    ----------
    W, bias
        As for `IndexEngine`.
    centre : ndarray of shape (n_in,), float32
        The mean row.
    euclidean : bool
        Whether queries are taken relative to the centre too: where biases are -|w|^2 / 2, outputs
        are then as small as they can be.
    seed : int
        Of the rotation.
    n_threads : int
    """

    def __init__(self, W: np.ndarray, bias: Floats, centre: Floats, euclidean: bool, seed: int,
                 n_threads: int) -> None:
        n, n_in = W.shape
        n_groups = -(-n_in // _coded_search.GROUP)
        order = 1 << ((n_groups * _coded_search.GROUP).bit_length() - 1)
        self.signs = np.random.default_rng(seed).choice(np.array([-1, 1], np.float32), (4, order))
        self.centre = np.ascontiguousarray(centre, np.float32)
        self.euclidean = euclidean
        rows = np.arange(n, dtype=np.int32)
        lengths = np.concatenate([_lengths(V) for _, V in self._centred(W, rows)])
        self.ids = np.argsort(-lengths, kind="stable").astype(np.int32)
        self.slot = np.empty(n, np.int32)
        self.slot[self.ids] = np.arange(n, dtype=np.int32)
        self.blocks = np.zeros((0, n_groups, 4 * _coded_search.LANES), np.uint8)
        self.scales, self.errors, self.offsets = np.zeros((3, 0), np.float32)
        self.tops, self.lengths = np.zeros((2, 0), np.float32)  # the largest in each part
        self._reserve(n)
        self.refresh(W, bias, self.ids, n_threads)

    @property
    def usable(self) -> bool:
        """Whether all rows could be encoded."""
        largest = float(self.lengths.max(initial=0))
        return largest == 0 or LENGTHS[0] < largest < LENGTHS[1]

    @property
    def nbytes(self) -> int:
        """Bytes of codes, of the numbers of each row, and of the maps between slots and rows."""
        return sum(a.nbytes for a in (self.blocks, self.scales, self.errors, self.offsets,
                                      self.ids, self.slot))

    def _centred(self, W: np.ndarray, rows: Ids) -> Iterator[tuple[Ids, Floats]]:
        for start in range(0, len(rows), ROWS_PER_CHUNK):
            some = rows[start:start + ROWS_PER_CHUNK]
            with np.errstate(over="ignore", invalid="ignore"):  # such rows are not usable
                yield some, as_float32(W[some]) - self.centre

    def refresh(self, W: np.ndarray, bias: Floats, changed: Ids, n_threads: int) -> None:
        """Follow the rows that have changed in W, or are new."""
        if len(W) > len(self.slot):
            new = np.arange(len(self.slot), len(W), dtype=np.int32)
            self.ids = np.concatenate([self.ids, new])
            self.slot = np.concatenate([self.slot, new])
            self._reserve(len(W))
        for rows, V in self._centred(W, changed):
            slots = self.slot[rows]
            offsets = bias[rows].astype(np.float64)
            with np.errstate(over="ignore", invalid="ignore"):
                if self.euclidean:
                    offsets += V @ self.centre.astype(np.float64)
                self.offsets[slots] = offsets
                lengths = _lengths(V) * np.float32(1.00001)  # and what rounding may add
            _coded_search.encode(V, slots, self.signs, self.blocks, self.scales, self.errors,
                                 n_threads)
            part = slots // _coded_search.ROWS_PER_PART
            np.maximum.at(self.tops, part, self.offsets[slots])
            np.maximum.at(self.lengths, part, lengths)

    def remove(self, rows: Ids) -> None:
        """Find these rows no longer, until they change."""
        self.offsets[self.slot[rows]] = -np.inf

    def _reserve(self, n: int) -> None:
        step = BLOCKS_PER_STEP * _coded_search.LANES
        n_slots = -(-n // step) * step
        n_parts = -(-n_slots // _coded_search.ROWS_PER_PART)
        n_blocks = n_slots // _coded_search.LANES
        for name, size, rest in (("blocks", n_blocks, 0), ("scales", n_slots, 0),
                                 ("errors", n_slots, 0), ("offsets", n_slots, -np.inf),
                                 ("tops", n_parts, -np.inf), ("lengths", n_parts, 0)):
            known = getattr(self, name)
            if len(known) < size:
                longer = np.full((size, *known.shape[1:]), rest, known.dtype)
                longer[:len(known)] = known
                setattr(self, name, longer)

    def search(self, X: Floats, k: int, W: np.ndarray, bias: Floats, selection: Selection,
               deviations: float, n_threads: int) -> tuple[Ids, Floats, NDArray[np.int64],
                                                           NDArray[np.float64]]:
        """Ids and scores (n, k), neurons computed and doubts, (n,): see `_coded_search.top_k`."""
        ids, scores = np.empty((len(X), k), np.int32), np.empty((len(X), k), np.float32)
        counts, doubts = np.empty(len(X), np.int64), np.empty(len(X))
        able = None if selection.mask is None else selection.mask[self.ids]
        _coded_search.top_k(
            self.blocks, self.scales, self.errors, self.offsets, self.tops, self.lengths, self.ids,
            self.slot, self.signs, self.centre, self.centre if self.euclidean else None, W, bias,
            X, able, selection.indptr, selection.listed, selection.only, deviations, ids,
            scores, counts, doubts, n_threads)
        return ids, scores, counts, doubts


def _lengths(V: Floats) -> Floats:
    with np.errstate(over="ignore", invalid="ignore"):  # squares in float32 may vanish
        return np.sqrt(row_products(V, V, dtype=np.float64)).astype(np.float32)
