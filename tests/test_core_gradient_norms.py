"""Squared norms of gradients that are never stored, against reference implementations."""
import numpy as np
import pytest
import reference
from support import PATTERNS, SIZES, UNIT, gaussian, on_threads, random_csr, unwritten

from sparselsh._core import _gradient_norms, _sparse_rows

pytestmark = pytest.mark.usefixtures("simd_level")


def assert_squares_close(got, want, largest, n_terms):
    """|g|^2 of a float32 g: each of d entries is off by at most n + 2 units of its largest value.

    `largest` is the squared norm with every product made positive, so that nothing cancels.
    """
    error = np.abs(got - want)
    bound = 4 * (n_terms + 2) * UNIT * largest
    assert np.all(error <= bound), f"off by {error.max()} of {largest.max()}"


@pytest.fixture(params=PATTERNS.values(), ids=PATTERNS)
def pattern(request):
    """(n_samples, n_neurons, density) of the active sets."""
    return request.param


def grouped(indptr, indices, n_columns):
    slot = np.full(n_columns, -1, np.int32)
    rows = np.empty(min(len(indices), n_columns), np.int32)
    starts = np.empty(len(rows) + 1, np.int64)
    entries, samples = np.empty((2, len(indices)), np.int32)
    n_rows = _sparse_rows.group_columns(indptr, indices, slot, rows, starts, entries, samples, 2)
    return rows[:n_rows], (starts[:n_rows + 1], entries, samples)


def measured(kernel, n_rows, *arguments):
    def call(n_threads):
        out = unwritten(n_rows, np.float64)
        getattr(_gradient_norms, kernel)(*arguments, out, n_threads)
        return out

    return on_threads(call)


@pytest.mark.parametrize("n", [0, 1, 17, _gradient_norms.RUN_LENGTH,
                               2 * _gradient_norms.RUN_LENGTH + 5])
def test_squares_of_runs(rng, n):
    a = gaussian(rng, n)
    want = reference.squares(a, _gradient_norms.RUN_LENGTH)
    assert_squares_close(measured("squares", len(want), a), want, want, _gradient_norms.RUN_LENGTH)


@pytest.mark.parametrize("d", SIZES)
@pytest.mark.parametrize("n, n_rows", [(0, 5), (1, 1), (7, 130), (40, 3)])
def test_active_squares(rng, n, n_rows, d):
    dz, x = gaussian(rng, n, n_rows), gaussian(rng, n, d)
    got = measured("active_squares", n_rows, dz, x)
    assert_squares_close(got, reference.active_squares(dz, x),
                         reference.active_squares(abs(dz), abs(x)), n + d)


@pytest.mark.parametrize("d", SIZES)
def test_grouped_squares(rng, pattern, d):
    n, m, density = pattern
    indptr, indices, data = random_csr(rng, n, m, density)
    rows, groups = grouped(indptr, indices, m)
    x = gaussian(rng, n, d)
    got = measured("grouped_squares", len(rows), *groups, data, x)
    want, largest = (reference.grouped_squares(indptr, indices, f(data), m, f(x))[rows]
                     for f in (np.array, abs))
    assert_squares_close(got, want, largest, n + d)


@pytest.mark.parametrize("x_density", [0, 0.3, 1])
@pytest.mark.parametrize("d", [1, 5, 40])
def test_grouped_squares_of_sparse_inputs(rng, pattern, d, x_density):
    n, m, density = pattern
    indptr, indices, data = random_csr(rng, n, m, density)
    rows, groups = grouped(indptr, indices, m)
    x = random_csr(rng, n, d, x_density)
    plain = reference.dense(*x, d)
    got = measured("grouped_squares_csr", len(rows), *groups, data, *x, d)
    want, largest = (reference.grouped_squares(indptr, indices, f(data), m, f(plain))[rows]
                     for f in (np.array, abs))
    assert_squares_close(got, want, largest, n + d)


@pytest.mark.parametrize("d", [0, 3])
def test_no_neurons_have_no_norms_and_no_columns_have_norm_zero(d):
    starts, nothing = np.zeros(5, np.int64), np.empty(0, np.int32)
    values, x = np.empty(0, np.float32), np.empty((2, d), np.float32)
    sparse = (np.zeros(3, np.int64), nothing, values)
    for n in (0, 4):
        for kernel, arguments in (
            ("active_squares", (np.ones((2, n), np.float32), x)),
            ("grouped_squares", (starts[:n + 1], nothing, nothing, values, x)),
            ("grouped_squares_csr", (starts[:n + 1], nothing, nothing, values, *sparse, d)),
        ):
            if n == 0 or d == 0:
                np.testing.assert_array_equal(measured(kernel, n, *arguments), np.zeros(n))
