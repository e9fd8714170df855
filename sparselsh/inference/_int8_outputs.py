"""Int8Outputs: outputs of a layer by 8-bit products, and exact ones of the best few."""
from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .._arrays.linalg import row_chunks
from .._core import _int8_products, _quantized, _select
from ._rounding import rounded_for

if TYPE_CHECKING:
    from .._arrays.selection import Selection
    from .._arrays.types import Floats, Ids

MAX_INPUTS = 1 << 16  # sums of more products may not fit into 32 bits
CANDIDATES_PER_FOUND, MORE_CANDIDATES = 4, 12  # of k outputs, 4 k + 12 are computed in float32


def n_candidates(k: int) -> int:
    """Outputs that are computed in float32 for the k best."""
    return CANDIDATES_PER_FOUND * k + MORE_CANDIDATES


class Int8Outputs:
    """A copy of weights (n_out, n_in) in 8 bits, with a scale per row, as the kernels read them.

    Inputs are rounded to 8 bits too; the products of both have the same bits on every processor.
    `given` are inputs for which the weights are rounded, or None, for the nearest.
    """

    def __init__(self, W: Floats, n_threads: int, given: Floats | None = None) -> None:
        n_out, n_in = W.shape
        values, self.scales = np.empty(W.shape, np.int8), np.empty(n_out, np.float32)
        _quantized.quantize_int8(W, values, self.scales, n_threads)
        if given is not None:
            values = rounded_for(W, values, self.scales, given, n_threads)
        lanes, group = _int8_products.LANES, _int8_products.GROUP
        n_blocks = -(-n_out // lanes)
        self.totals = np.zeros(n_blocks * lanes, np.int32)
        self.blocks = np.empty((n_blocks, max(1, -(-n_in // group)), lanes, group), np.int8)
        _int8_products.pack_blocks(values, self.blocks, self.totals, n_threads)

    def outputs(self, x: Floats, bias: Floats, n_threads: int, activation: int = 0) -> Floats:
        """All outputs, (n, n_out), as the rounded weights and inputs give them."""
        out = np.empty((len(x), len(bias)), np.float32)
        _int8_products.outputs(self.blocks, self.totals, self.scales, bias, x, activation, out,
                               n_threads)
        return out

    def topk(self, x: Floats, W: Floats, bias: Floats, k: int, n_threads: int,
             selection: Selection | None = None, widening: int = 1) -> tuple[Ids, Floats]:
        """Ids and float32 scores (n, k) of the largest outputs among the best of these.

        They are the best 4 k + 12, times `widening`.
        """
        n = len(x)
        ids, scores = np.empty((n, k), np.int32), np.empty((n, k), np.float32)
        width = min(widening * n_candidates(k), len(bias))
        for start, stop in row_chunks(n, len(bias)):
            part = x[start:stop]
            out = self.outputs(part, bias, n_threads)
            if selection is not None:
                out = selection.slice(start, stop).exclude_from(out)
            found = np.full((stop - start, width), -1, np.int32)
            about = np.empty((stop - start, width), np.float32)
            _select.top_k(out, None, found, about, n_threads)
            if selection is not None:
                found[np.isneginf(about)] = -1
            _int8_products.exact_best(part, W, bias, found, ids[start:stop], scores[start:stop],
                                      n_threads)
        return ids, scores

    def estimates(self, x: Floats, W: Floats, bias: Floats, k: int, n_threads: int) -> Floats:
        """All outputs, (n, n_out): the k largest in float32, and no other above these.

        Inputs are in 16 bits, as the sum of two parts in 8, so that weights alone are rounded.
        """
        n, half_bias = len(x), bias * np.float32(0.5)
        out = np.empty((n, len(bias)), np.float32)
        coarse = _rounded(x)
        for start, stop in row_chunks(n, 2 * len(bias)):  # both parts in one pass over the weights
            parts = np.concatenate([coarse[start:stop], x[start:stop] - coarse[start:stop]])
            sums = self.outputs(parts, half_bias, n_threads)
            np.add(sums[:stop - start], sums[stop - start:], out=out[start:stop])
        found, about = np.empty((len(x), k), np.int32), np.empty((len(x), k), np.float32)
        _select.top_k(out, None, found, about, n_threads)
        ids, scores = np.empty_like(found), np.empty_like(about)
        _int8_products.exact_best(x, W, bias, found, ids, scores, n_threads)
        np.minimum(out, scores[:, -1:], out=out)
        np.put_along_axis(out, ids, scores, 1)
        return out

    @property
    def nbytes(self) -> int:
        """Bytes of weights, scales and totals."""
        return self.blocks.nbytes + self.scales.nbytes + self.totals.nbytes


def _rounded(x: Floats) -> Floats:
    """Inputs (n, d) as `Int8Outputs.outputs` rounds them."""
    if x.size == 0:
        return x
    steps = np.where(x.min(axis=1) < 0, np.float32(127), np.float32(255))
    scales = (np.abs(x).max(axis=1) / steps)[:, None]
    return np.divide(x, scales, out=np.zeros_like(x), where=scales > 0).round() * scales
