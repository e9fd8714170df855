"""Cells: a coarse partition of the neurons, so that a query scans only some of them.

For inner products, a neuron belongs to the centroid to which it has the smallest angle (spherical
k-means: Dhillon and Modha 2001). A query probes the cells whose *mean* neuron has the largest inner
product with it. That is the query's average inner product with the neurons of the cell; long
neurons count more. For distances, both are by the distance from the centroid, the mean neuron
(k-means: Lloyd 1982): neurons of one direction may be far from each other.
"""
from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import numpy as np

from .._arrays.linalg import NO_BIAS, matmul
from .._arrays.portable import (
    double_matmul,
    eigh,
    exp,
    orthonormal,
    row_products,
    standard_normal,
)
from .._core import _sparse_products
from .._core._bounded_search import TAIL_LENGTH, TAIL_STEPS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .._arrays.types import Floats, Ids

SAMPLE_PER_CELL = 48  # vectors per cell from which the centroids are computed
N_ITERATIONS = 8  # of k-means
N_SPREAD, N_SPARE, N_POWERS = 8, 8, 3  # directions of the spread, and how they are computed
N_LONGEST = 64  # neurons of a sample that count alone in the law of a cell


class Cells:
    """The cells of an index.

    Attributes
    ----------
    centroids : ndarray of shape (n, n_dims), float32
        Of unit length; any vectors if `by_distance`.
    means : ndarray of shape (n, n_dims), float32
        The mean neuron of each cell.
    biases : ndarray of shape (n,), float32
        Mean biases; -|m|^2 / 2 of the mean m if `by_distance`.
    by_distance : bool
    sizes : ndarray of shape (n,), int32
        Neurons in each cell when the spread was measured; empty before, as those below.
    spread : ndarray of shape (N_SPREAD, n_dims), float32
    variances : ndarray of shape (2,), float32
    scales : ndarray of shape (n,), float32
    tails : ndarray of shape (TAIL_LENGTH,), float32
        How neurons of a cell differ from its mean: see `measure_spread`.
    """

    def __init__(self, centroids: Floats, means: Floats | None = None,
                 biases: Floats | None = None, by_distance: bool = False) -> None:
        self.centroids, self.by_distance = centroids, by_distance
        self.means = np.zeros_like(centroids) if means is None else means
        self.biases = np.zeros(len(centroids), np.float32) if biases is None else biases
        self.sizes, self.scales = np.zeros(0, np.int32), np.zeros(0, np.float32)
        self.spread = np.zeros((0, centroids.shape[1]), np.float32)
        self.variances = np.zeros(2, np.float32)
        self.tails = np.zeros(TAIL_LENGTH, np.float32)

    def __setstate__(self, state: dict[str, Any]) -> None:
        like = type(self)(state["centroids"])  # pickles of before know no spread
        self.__dict__.update(like.__dict__ | state)

    @property
    def n(self) -> int:
        """Number of cells."""
        return len(self.centroids)

    @classmethod
    def fit(cls, V: Floats, n_cells: int, rng: np.random.Generator, n_threads: int,
            by_distance: bool = False) -> Self:
        """Centroids of a sample V of the vectors."""
        U = V
        if not by_distance:
            U = V / np.maximum(np.linalg.norm(V, axis=1, keepdims=True), np.float32(1e-30))
        first = np.ascontiguousarray(U[rng.permutation(len(U))[:n_cells]])
        cells = cls(first, by_distance=by_distance)
        for _ in range(N_ITERATIONS):
            cell = cells.assign(U, n_threads)
            sums = _sums(U, cell, cells.n, n_threads)
            sizes = (np.bincount(cell, minlength=cells.n)[:, None].astype(np.float32)
                     if by_distance else np.linalg.norm(sums, axis=1, keepdims=True))
            means = sums / np.maximum(sizes, np.float32(1e-30))
            cells.centroids = np.where(sizes > 0, means, cells.centroids)
        return cells

    @classmethod
    def restored(cls, n_dims: int, tensors: dict[str, np.ndarray]) -> Self:
        """The cells of a file, checked."""
        centroids, means = tensors["cell_centroids"], tensors["cell_means"]
        for name, array in (("cell_centroids", centroids), ("cell_means", means)):
            fits = array.dtype == np.float32 and array.shape == (len(centroids), n_dims)
            if not fits or not np.isfinite(array).all():
                raise ValueError(f"{name} must be finite float32 of shape "
                                 f"{(len(centroids), n_dims)}")
        if not len(centroids):
            raise ValueError("cell_centroids must have at least one row")
        biases = tensors.get("cell_biases")  # files of earlier versions have them in the means
        if biases is not None and (biases.dtype != np.float32 or biases.shape != (len(centroids),)
                                   or not np.isfinite(biases).all()):
            raise ValueError(f"cell_biases must be finite float32 of shape {(len(centroids),)}")
        cells = cls(centroids, means, biases, "cells_by_distance" in tensors)
        if "cell_spread" in tensors:  # nor this
            cells.sizes, cells.scales, cells.spread, cells.variances, cells.tails = (
                tensors[name] for name in ("cell_sizes", "cell_scales", "cell_spread",
                                           "cell_variances", "cell_tails"))
            for name, array, dtype, shape in (
                    ("cell_sizes", cells.sizes, np.int32, (cells.n,)),
                    ("cell_scales", cells.scales, np.float32, (cells.n,)),
                    ("cell_spread", cells.spread, np.float32, (len(cells.spread), n_dims)),
                    ("cell_variances", cells.variances, np.float32, (2,)),
                    ("cell_tails", cells.tails, np.float32, (TAIL_LENGTH,))):
                if array.dtype != dtype or array.shape != shape or not np.isfinite(array).all():
                    raise ValueError(f"{name} must be finite {np.dtype(dtype)} of shape {shape}")
            if any((array < 0).any() for array in (cells.sizes, cells.scales, cells.variances,
                                                   cells.tails)):
                raise ValueError("cell_sizes, cell_scales, cell_variances and cell_tails must be "
                                 "at least 0")
        return cells

    def measure_spread(self, V: Floats, some: NDArray[np.int64], squares: NDArray[np.float64],
                       biases: Floats, cell: Ids, rng: np.random.Generator,
                       n_threads: int) -> None:
        """How neurons of a cell differ from its mean, by the vectors V of `some` of them.

        For a query q the variance of <q, v - m> is `variances[0]` |q|^2 and the squares of
        `spread` @ q, (N_SPREAD, n_dims): those of the directions in which it is largest.
        `variances[1]` is that of the biases, or of a normal law that has as large ones: a few
        biases may be far above all others. In a cell whose neurons are further from their mean than
        all are the deviation is 1 / `scales` times as large. `tails` is the law of <q, v - m> in
        these deviations: a mixture of normal laws, because some neurons are further from the mean
        than others.

        squares, biases and cell are those of all neurons: |v|^2, their biases, their cells.
        """
        rest = V - self.means[cell[some]]
        S = matmul(rest, rest, n_threads, transpose_a=True).astype(np.float64) / len(rest)
        values, vectors = _largest(S, rng)
        other = max(float(np.trace(S)) - values.sum(), 0) / max(len(S) - len(values), 1)
        spread = vectors * np.sqrt(np.maximum(values - other, 0))
        self.spread = np.ascontiguousarray(spread.T, np.float32)

        beyond = biases - self.biases[cell]
        longest = beyond.max()**2 / (2 * np.log(max(len(cell), 2)))
        bias_variance = max(np.square(beyond).mean(), longest)
        self.variances = np.array([other, bias_variance], np.float32)

        self.sizes = np.bincount(cell, minlength=self.n).astype(np.int32)
        own = np.bincount(cell, squares, minlength=self.n) / np.maximum(self.sizes, 1)
        own -= row_products(self.means, self.means, np.float64)
        mean = max(float((own * self.sizes).sum() / len(cell)), 1e-30)
        self.scales = np.sqrt(mean / np.maximum(own, mean)).astype(np.float32)
        self.tails = _tails(np.sqrt(row_products(rest, rest)) * self.scales[cell[some]])

    def assign(self, V: Floats, n_threads: int) -> Ids:
        """The cell of each row of V: (n,), int32."""
        products = matmul(V, self.centroids, n_threads, transpose_b=True)
        if self.by_distance:
            products -= half_squares(self.centroids)
        return products.argmax(axis=1).astype(np.int32)


def _largest(S: NDArray[np.float64], rng: np.random.Generator
             ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The N_SPREAD largest eigenvalues of S and their vectors, in columns, nearly.

    By powers of S times random columns (randomized subspace iteration: Halko, Martinsson and Tropp
    2011, algorithm 4.4): wide inputs would take a third of a second otherwise.
    """
    n_dims = len(S)
    Q = orthonormal(standard_normal(rng, (n_dims, min(n_dims, N_SPREAD + N_SPARE)), np.float64))
    ridge = 1e-6 * np.trace(S) / n_dims + 1e-30  # so that no column vanishes
    for _ in range(N_POWERS):
        Q = orthonormal(double_matmul(S, Q) + ridge * Q)
    values, vectors = eigh(double_matmul(Q.T, double_matmul(S, Q)))
    return values[::-1][:N_SPREAD], double_matmul(Q, vectors[:, ::-1][:, :N_SPREAD])


def _tails(lengths: Floats) -> Floats:
    """The mixture of normal laws with these deviations, in units of their root mean square.

    Of the longest, which make its tail, each counts for itself, and the others in groups.
    """
    lengths = np.sort(lengths.astype(np.float64))[::-1]
    groups = [lengths[i:i + 1] for i in range(min(N_LONGEST, len(lengths)))]
    groups += [g for g in np.array_split(lengths[N_LONGEST:], N_LONGEST) if len(g)]
    rms = max(np.sqrt(np.square(lengths).mean()), 1e-30)
    tails = np.zeros(TAIL_LENGTH)
    for group in groups:
        deviation = max(np.sqrt(np.square(group).mean()) / rms, 1e-3)
        tails += len(group) * _above(np.arange(TAIL_LENGTH) / (TAIL_STEPS * deviation))
    return (tails / len(lengths)).astype(np.float32)


def _above(z: NDArray[np.float64]) -> NDArray[np.float64]:
    """The fraction of a normal law from z on, z >= 0, to some per cent of it.

    Karagiannidis and Lioumpas, An improved approximation for the Gaussian Q-function, IEEE
    Communications Letters 11, 2007.
    """
    z = np.maximum(z, 1e-3)
    below, density = -1.4 * z, -z * z / 2
    exp(below)
    exp(density)
    return (1 - below) * density / (1.135 * np.sqrt(2 * np.pi) * z)


def half_squares(rows: Floats) -> Floats:
    """|v|^2 / 2 of each row."""
    return row_products(rows, rows) / np.float32(2)


def _sums(V: Floats, cell: Ids, n_cells: int, n_threads: int) -> Floats:
    """Sum of the rows of V in each cell."""
    order = np.argsort(cell, kind="stable").astype(np.int32)
    starts = np.searchsorted(cell[order], np.arange(n_cells + 1)).astype(np.int64)
    totals = np.empty((n_cells, V.shape[1]), np.float32)
    _sparse_products.weighted_rows(starts, order, np.ones(len(V), np.float32), V, NO_BIAS, totals,
                                   n_threads)
    return totals


def add_to_means(cells: Cells, counts: np.ndarray, V: Floats, biases: Floats, cell: Ids,
                 n_threads: int) -> None:
    """Add the rows of V and their biases to the means of their cells, and to their counts, (n,)."""
    new = np.bincount(cell, minlength=cells.n)
    totals = cells.means * counts[:, None] + _sums(V, cell, cells.n, n_threads)
    bias_totals = cells.biases * counts + np.bincount(cell, biases, minlength=cells.n)
    counts += new
    cells.means = (totals / np.maximum(counts, 1)[:, None]).astype(np.float32)
    cells.biases = (bias_totals / np.maximum(counts, 1)).astype(np.float32)
    if cells.by_distance:
        cells.biases = -half_squares(cells.means)
