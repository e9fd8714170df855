"""Rounding of weights to 8 bits for the inputs that they meet.

Rounding to the nearest has the least error in each weight. The error of an output is the inner
product of these errors with the input, and where inputs lie near a few directions, the error of one
weight can be made good by the weights that are rounded after it (GPTQ: Frantar et al. 2022,
https://arxiv.org/abs/2210.17323). From few inputs the directions are known badly, so that this can
also do harm: inputs that it has not seen decide.
"""
from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .._arrays.linalg import matmul

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .._arrays.types import Floats

MAX_INPUTS = 2048  # of a layer; with more, inverting their moments would take many seconds
MIN_ROWS = 64  # of inputs, of which every fourth decides
DAMPINGS = (0.01, 0.1)  # added to the second moments, relative to their mean
MAX_TRIED_NEURONS = 2048  # by which the damping is chosen
MIN_GAIN = 0.95  # of the error, or weights are rounded to the nearest
COLUMNS_PER_BLOCK = 64
NEURONS_PER_CHUNK = 8192  # 32 MB at 1,024 inputs


def rounded_for(W: Floats, nearest: NDArray[np.int8], scales: Floats, inputs: Floats,
                n_threads: int) -> NDArray[np.int8]:
    """The weights (n_out, n_in), in steps of scales (n_out,), rounded for inputs (n, n_in).

    `nearest`, the weights rounded to the nearest step, are given back where inputs that were set
    aside find no less error in others.
    """
    n_in = W.shape[1]
    if n_in > MAX_INPUTS or len(inputs) < MIN_ROWS or not np.any(inputs):
        return nearest
    aside = np.arange(len(inputs)) % 4 == 3
    some = np.unique(np.linspace(0, len(W) - 1, min(len(W), MAX_TRIED_NEURONS)).astype(int))
    part, steps = np.ascontiguousarray(W[some]), scales[some]

    def error(rounded: NDArray[np.int8]) -> float:
        lost = rounded * steps[:, None] - part
        return float(np.linalg.norm(matmul(inputs[aside], lost, n_threads, transpose_b=True)))

    moments = _second_moments(inputs[~aside])
    errors = {damping: error(_compensated(part, steps, *_factor(moments, damping), n_threads))
              for damping in DAMPINGS}
    damping = min(errors, key=errors.__getitem__)
    if not errors[damping] < MIN_GAIN * error(nearest[some]):
        return nearest
    order, factor = _factor(_second_moments(inputs), damping)
    out = np.empty_like(nearest)
    for start in range(0, len(W), NEURONS_PER_CHUNK):
        rows = slice(start, start + NEURONS_PER_CHUNK)
        out[rows] = _compensated(W[rows], scales[rows], order, factor, n_threads)
    return out


def _second_moments(inputs: Floats) -> NDArray[np.float64]:
    x = inputs.astype(np.float64)
    return x.T @ x / len(x)


def _factor(moments: NDArray[np.float64], damping: float) -> tuple[NDArray[np.intp], Floats]:
    """The order of the inputs, and the upper Cholesky factor of the inverse of their moments."""
    diagonal = np.diag(moments)
    order = np.argsort(-diagonal, kind="stable")
    damped = moments[np.ix_(order, order)] + damping * diagonal.mean() * np.eye(len(moments))
    return order, np.linalg.cholesky(np.linalg.inv(damped)).T.astype(np.float32)


def _compensated(W: Floats, scales: Floats, order: NDArray[np.intp], factor: Floats,
                 n_threads: int) -> NDArray[np.int8]:
    """W in steps of the scales: each column makes good what the columns before it have lost."""
    rest = np.ascontiguousarray(W[:, order].T)
    n_in, n_out = rest.shape
    inverse = np.divide(1, scales, out=np.zeros_like(scales), where=scales > 0)
    out = np.empty((n_in, n_out), np.int8)
    for start in range(0, n_in, COLUMNS_PER_BLOCK):
        stop = min(start + COLUMNS_PER_BLOCK, n_in)
        lost = np.empty((stop - start, n_out), np.float32)
        for k in range(start, stop):
            steps = np.clip(np.rint(rest[k] * inverse), -127, 127)
            out[k] = steps
            lost[k - start] = (rest[k] - steps * scales) / factor[k, k]
            rest[k + 1:stop] -= factor[k, k + 1:stop, None] * lost[k - start]
        if stop < n_in:
            after = np.ascontiguousarray(factor[start:stop, stop:])
            rest[stop:] -= matmul(after, lost, n_threads, transpose_a=True)
    back = np.empty((n_out, n_in), np.int8)
    back[:, order] = out.T
    return back
