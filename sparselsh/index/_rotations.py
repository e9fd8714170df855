"""Random rotations of neurons and queries before the signs are taken.

A query is multiplied by the scaling and the rotation at once, by a matrix. Wide inputs that are not
scaled are rotated by Hadamard matrices instead: a matrix of 1,024 by 768 takes longer to read than
all that a search reads after it.
"""
from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Self

import numpy as np

from .._arrays.linalg import matmul
from .._arrays.portable import orthonormal, standard_normal
from .._core import _rotations

if TYPE_CHECKING:
    from .._arrays.types import Floats

FAST_MIN_INPUTS = 512  # from which on a rotation by Hadamard matrices is quicker


class MatrixRotation:
    """A random matrix R, (n_bits, n_dims).

    Rows of an orthogonal matrix up to n_bits = n_dims; from there on the columns are orthogonal and
    R^T R = n_bits / n_dims I (a tight frame), so that all rows tell as much.
    """

    signs = None

    def __init__(self, matrix: Floats) -> None:
        self.matrix = matrix
        self.n_bits, self.n_dims = matrix.shape

    @classmethod
    def drawn(cls, n_bits: int, n_dims: int, rng: np.random.Generator) -> Self:
        """A random one."""
        # the diagonal of R in QR is positive, which makes the distribution uniform (Haar)
        Q = orthonormal(standard_normal(rng, (max(n_bits, n_dims), n_dims), np.float64))
        return cls((Q[:n_bits] * np.sqrt(max(1.0, n_bits / n_dims))).astype(np.float32))

    @cached_property
    def gram(self) -> Floats:
        """R R^T, (n_bits, n_bits)."""
        return matmul(self.matrix, self.matrix, 1, transpose_b=True)

    def of_rows(self, V: Floats, n_threads: int) -> Floats:
        """The rotated rows, (n, n_bits)."""
        return matmul(V, self.matrix, n_threads, transpose_b=True)


class FastRotation:
    """The first n_bits coordinates of rotations by `_core._rotations`, of the first n_dims numbers.

    `signs`, (n_rotations, 4, order), are their random signs.
    """

    def __init__(self, n_bits: int, n_dims: int, signs: Floats) -> None:
        self.n_bits, self.n_dims, self.signs = n_bits, n_dims, signs

    @classmethod
    def drawn(cls, n_bits: int, n_dims: int, rng: np.random.Generator) -> Self:
        """A random one."""
        signs = rng.choice(np.array([-1, 1], np.float32), signs_shape(n_bits, n_dims))
        return cls(n_bits, n_dims, signs)

    def of_rows(self, V: Floats, n_threads: int) -> Floats:
        """The rotated rows, (n, n_bits)."""
        out = np.empty((len(V), self.n_bits), np.float32)
        _rotations.rotate(V, self.n_dims, self.signs, out, n_threads)
        return out

    @cached_property
    def matrix(self) -> Floats:
        """The matrix R of the rotation, (n_bits, n_dims), which only long sketches need."""
        return np.ascontiguousarray(self.of_rows(np.eye(self.n_dims, dtype=np.float32), 1).T)

    @cached_property
    def gram(self) -> Floats:
        """R R^T, (n_bits, n_bits)."""
        return matmul(self.matrix, self.matrix, 1, transpose_b=True)


def signs_shape(n_bits: int, n_dims: int) -> tuple[int, int, int]:
    """Of the signs of a FastRotation."""
    return -(-n_bits // n_dims), _rotations.ROUNDS, 1 << (n_dims.bit_length() - 1)
