"""Cells: a coarse partition of the neurons, so that a query scans only some of them.

For inner products, a neuron belongs to the centroid to which it has the smallest angle (spherical
k-means: Dhillon and Modha 2001). A query probes the cells whose *mean* neuron has the largest inner
product with it. That is the query's average inner product with the neurons of the cell; long
neurons count more. For distances, both are by the distance from the centroid, the mean neuron
(k-means: Lloyd 1982): neurons of one direction may be far from each other.
"""
from __future__ import annotations

from typing import TYPE_CHECKING, Self

import numpy as np

from .._arrays.linalg import NO_BIAS, matmul
from .._core import _sparse_products

if TYPE_CHECKING:
    from .._arrays.types import Floats, Ids

SAMPLE_PER_CELL = 48  # vectors per cell from which the centroids are computed
N_ITERATIONS = 8  # of k-means


class Cells:
    """`centroids`, (n, n_dims), `means`, (n, n_dims), and their `biases`, (n,).

    Centroids are of unit length, and biases are means; or `by_distance`, where centroids are any
    vectors and a bias is -|m|^2 / 2 of the mean m.
    """

    def __init__(self, centroids: Floats, means: Floats | None = None,
                 biases: Floats | None = None, by_distance: bool = False) -> None:
        self.centroids, self.by_distance = centroids, by_distance
        self.means = np.zeros_like(centroids) if means is None else means
        self.biases = np.zeros(len(centroids), np.float32) if biases is None else biases

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
        return cls(centroids, means, biases, "cells_by_distance" in tensors)

    def assign(self, V: Floats, n_threads: int) -> Ids:
        """The cell of each row of V: (n,), int32."""
        products = matmul(V, self.centroids, n_threads, transpose_b=True)
        if self.by_distance:
            products -= half_squares(self.centroids)
        return products.argmax(axis=1).astype(np.int32)


def half_squares(rows: Floats) -> Floats:
    """|v|^2 / 2 of each row."""
    return np.einsum("ij,ij->i", rows, rows) / np.float32(2)


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
