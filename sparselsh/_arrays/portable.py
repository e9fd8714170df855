"""What NumPy, LAPACK and the C library compute in ways that depend on the processor.

OpenBLAS has a set of kernels for each kind of processor, NumPy has other exponentials with AVX-512
and fuses products and sums of `einsum` on AArch64, and the C library has other logarithms with FMA,
which normal numbers are made of. At a reproducible
level (``_core._simd``) methods take their place that use basic operations alone, each of which IEEE
754 rounds in one way, in a fixed order.
"""
from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .._core import _portable_math, _simd

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_SWEEPS = 30  # of Jacobi's method, which needs about eight
NEGLIGIBLE = 1e-28  # squares beside the diagonal, relative to all
PRODUCTS_AT_A_TIME = 1 << 16


def orthonormal(a: np.ndarray) -> np.ndarray:
    """The Q of QR, (m, n), for m >= n and independent columns; R has a positive diagonal."""
    if not _simd.is_reproducible():
        q, r = np.linalg.qr(a)
        return q * np.where(np.diag(r) < 0, -1, 1).astype(a.dtype)
    rows = np.array(a.T, np.float64, order="C")  # Gram and Schmidt, modified
    for k, row in enumerate(rows):
        row /= np.sqrt((row * row).sum())
        rest = rows[k + 1:]
        rest -= (rest * row).sum(axis=1)[:, None] * row
    return np.ascontiguousarray(rows.T).astype(a.dtype)


def eigh(a: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues, ascending, and eigenvectors, in columns, of a symmetric float64 matrix."""
    if not _simd.is_reproducible():
        from scipy.linalg import eigh as by_lapack  # takes a tenth of a second to import

        return by_lapack(a, driver="evr")  # five times as fast as numpy's
    return _by_jacobi(a)


def exp(x: np.ndarray) -> None:
    """x <- exp(x)"""
    _each(np.exp, _portable_math.exp_each, x)


def log(x: np.ndarray) -> None:
    """x <- log(x)"""
    _each(np.log, _portable_math.log_each, x)


def sigmoid(x: np.ndarray) -> None:
    """x <- 1 / (1 + exp(-x)), which is above zero wherever exp(x) is."""
    np.negative(x, out=x)
    with np.errstate(over="ignore"):
        exp(x)
    x += 1
    np.divide(1, x, out=x)


def _each(usual: Callable[..., Any], portable: Callable[[np.ndarray], None], x: np.ndarray) -> None:
    if not _simd.is_reproducible():
        usual(x, out=x)
        return
    values = x.astype(np.float64).ravel()
    portable(values)
    with np.errstate(over="ignore"):  # of float32, as in NumPy's own
        x[...] = values.reshape(x.shape)


def double_matmul(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """``a @ b`` in float64."""
    if not _simd.is_reproducible():
        return a @ b
    out = np.zeros((len(a), b.shape[1]))
    for column, row in zip(a.T, b, strict=True):
        out += column[:, None] * row
    return out


def row_products(a: np.ndarray, b: np.ndarray, dtype: Any = None) -> Any:
    """Inner products, (n,), of rows of a, (n, m), with rows of b or, if it is (m,), with b.

    They are computed in `dtype`, by default that of a and b.
    """
    if not _simd.is_reproducible():
        return np.einsum("ij,ij->i" if b.ndim == 2 else "ij,j->i", a, b, dtype=dtype)
    out = np.empty(len(a), dtype or np.result_type(a, b))
    n = max(1, PRODUCTS_AT_A_TIME // max(1, a.shape[1]))
    for start in range(0, len(a), n):
        rows = slice(start, start + n)
        other = b[rows] if b.ndim == 2 else b
        with np.errstate(over="ignore", invalid="ignore"):  # as in einsum
            products = np.multiply(a[rows], other, dtype=out.dtype, order="C")
            products.sum(axis=1, out=out[rows])
    return out


def _by_jacobi(a: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    # In each round all rows take part in one rotation with one other; n - 1 rounds have all pairs.
    n = len(a)
    half = (n + 1) // 2
    A = np.zeros((2 * half, 2 * half))  # with a row of zeros if n is odd
    A[:n, :n] = a
    vectors = np.eye(2 * half)  # in rows
    total = (A * A).sum()
    ring = np.arange(2 * half)

    for _ in range(MAX_SWEEPS):
        beside = np.triu(A, 1)
        if not (beside * beside).sum() > NEGLIGIBLE * total:
            break
        for _ in range(2 * half - 1):
            p, q = ring[:half], ring[:half - 1:-1]
            off = A[p, q]
            is_zero = off == 0
            slope = (A[q, q] - A[p, p]) / np.where(is_zero, 1, 2 * off)
            t = np.where(slope < 0, -1, 1) / (np.abs(slope) + np.sqrt(1 + slope * slope))
            t[is_zero] = 0
            c = 1 / np.sqrt(1 + t * t)
            s = t * c
            for rows in (A, A.T, vectors):
                one, other = rows[p], rows[q]
                rows[p] = c[:, None] * one - s[:, None] * other
                rows[q] = s[:, None] * one + c[:, None] * other
            ring[1:] = np.roll(ring[1:], 1)

    values = np.diag(A)[:n]
    order = np.argsort(values, kind="stable")
    return values[order], np.ascontiguousarray(vectors[:n, :n][order].T)


def standard_normal(rng: np.random.Generator, shape: tuple[int, ...],
                    dtype: Any = np.float32) -> Any:
    """Independent normals of a generator."""
    if not _simd.is_reproducible():
        return rng.standard_normal(shape, dtype=dtype)
    n, parts = int(np.prod(shape)), [np.zeros(0)]
    while sum(map(len, parts)) < n:  # the polar method of Marsaglia: pairs of a point in a circle
        points = 2 * rng.random((n // 2 + 16, 2)) - 1
        squares = points[:, 0] * points[:, 0] + points[:, 1] * points[:, 1]
        inside = (squares < 1) & (squares > 0)
        squares = squares[inside]
        logarithms = squares.copy()
        _portable_math.log_each(logarithms)
        parts.append((points[inside] * np.sqrt(-2 * logarithms / squares)[:, None]).ravel())
    return np.concatenate(parts)[:n].reshape(shape).astype(dtype)
