"""How vectors are compared: what an index keeps of rows and queries, so that inner products rank.

Cosines are inner products of unit vectors. Of distances, |w - x|^2 / 2 = |x|^2 / 2 - (w.x -
|w|^2 / 2): the nearest row has the largest inner product plus the bias -|w|^2 / 2. Squares must
then be in the range of float32, and differences must not drown in what all rows share: rows are
multiplied by a power of two, and taken relative to their mean, where they need it.
"""
from __future__ import annotations

from typing import TYPE_CHECKING, Self

import numpy as np

from .. import _validation as check
from .._arrays.portable import row_products
from .._core import _estimates
from ._options import METRICS

if TYPE_CHECKING:
    from typing import Any

    from .._arrays.types import Floats, Ids

FAR = 4.0  # squared distance of the mean from zero, relative to that of the rows from the mean
ORIGIN_ROWS = 4096  # of which the mean is taken
UNSCALED = 2.0**-20, 2.0**50  # largest weights for which all squares that count are float32 numbers
FARTHEST = 2.0**60  # of a scaled query: farther ones differ from it in nothing that ranks
MAX_EXPONENT = 200  # of the scale of any rows in float32, and more


class Metric:
    """One of METRICS, and for distances the frame of reference: scale and origin.

    A row w is kept as ``2**exponent * w - origin``; a query is treated alike.

    Parameters
    ----------
    name : {"ip", "cosine", "l2"}
    exponent : int
    origin : ndarray of shape (n_in,), float32, or None
        None for zero.
    """

    def __init__(self, name: str, exponent: int = 0, origin: Floats | None = None) -> None:
        self.name, self.exponent, self.origin = name, exponent, origin

    @classmethod
    def of_rows(cls, name: str, W: Floats) -> Self:
        """The metric for the rows W."""
        if name != "l2":
            return cls(name)
        exponent = _exponent(max(float(W.max()), -float(W.min())))
        return cls(name, exponent, _far_origin(W, exponent))

    @classmethod
    def restored(cls, name: Any, exponent: Any, origin: np.ndarray | None, n_in: int) -> Self:
        """The metric of a file, checked."""
        check.choice(name, "metric", METRICS)
        exponent = check.integer(exponent, "exponent", minimum=-MAX_EXPONENT, maximum=MAX_EXPONENT)
        return cls(name, exponent,
                   None if origin is None else check.vector(origin, "origin", n_in))

    @property
    def is_distance(self) -> bool:
        """Whether smaller is better."""
        return self.name == "l2"

    def rows(self, W: Floats) -> Floats:
        """Rows as the index keeps them: W itself where nothing is to change."""
        if self.name == "cosine":
            return _unit_rows(W)
        if not self.exponent and self.origin is None:
            return W
        with np.errstate(over="ignore", invalid="ignore"):
            return _relative(W, self.exponent, self.origin)

    def biases(self, rows: Floats) -> Floats:
        """Their biases: with them, inner products rank as distances do; else zeros."""
        if not self.is_distance:
            return np.zeros(len(rows), np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            biases = (row_products(rows, rows, dtype=np.float64) / -2).astype(np.float32)
        far = np.flatnonzero(~np.isfinite(biases))
        if len(far):
            raise ValueError(f"row {far[0]} is too far from the rows given to fit for distances in "
                             "float32; fit an index of all rows")
        return biases

    def queries(self, X: Floats) -> Floats:
        """Queries as they enter inner products."""
        if self.name == "cosine":
            return _unit_rows(X)
        if not self.is_distance:
            return X
        if not self.exponent and self.origin is None and np.vdot(X, X) < FARTHEST**2:
            return X
        queries = _relative(X.astype(np.float64), self.exponent, self.origin)
        farthest = np.abs(queries).max(axis=1, initial=0, keepdims=True)
        queries *= FARTHEST / np.maximum(farthest, FARTHEST)
        return queries.astype(np.float32)

    def distances(self, X: Floats, kept: Floats, ids: Ids, n_threads: int) -> Floats:
        """Euclidean distances (n_queries, k) of X[i] from the rows ids[i]; inf for -1.

        X are queries of the user, `kept` is what :meth:`rows` returned for the rows.
        """
        out = np.empty(ids.shape, np.float32)
        origin = np.zeros(X.shape[1], np.float32) if self.origin is None else self.origin
        _estimates.distances(ids, X, kept, origin, self.exponent, out, n_threads)
        return out


def _relative(X: np.ndarray, exponent: int, origin: Floats | None) -> np.ndarray:
    X = np.ldexp(X, exponent) if exponent else X
    return X if origin is None else X - origin


def _exponent(largest: float) -> int:
    """Of the power of two that brings the largest weight to where its square is a float32 number.

    It leaves as much room as there is for rows that are much smaller.
    """
    if largest == 0 or UNSCALED[0] <= largest <= UNSCALED[1]:
        return 0
    return int(np.log2(UNSCALED[1]) if largest > 1 else 0) - int(np.frexp(largest)[1])


def _far_origin(W: Floats, exponent: int) -> Floats | None:
    """The mean of rows that are far from zero compared to the distances between them, or None.

    Inner products in float32 of such rows do not tell their distances.
    """
    some = np.ldexp(W[:: -(-len(W) // ORIGIN_ROWS)].astype(np.float64), exponent)
    mean = some.mean(axis=0)
    return mean.astype(np.float32) if mean @ mean > FAR * some.var(axis=0).sum() else None


def _unit_rows(X: Floats) -> Floats:
    """Rows of length 1; zeros stay zeros."""
    norms = np.sqrt(row_products(X, X, dtype=np.float64))
    return (X / np.where(norms > 0, norms, 1)[:, None]).astype(np.float32)
