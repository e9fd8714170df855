import sys

import numpy as np
import pytest
import reference
from support import (
    PATTERNS,
    SIZES,
    UNIT,
    assert_same_bits,
    assert_sums_close,
    gaussian,
    on_threads,
    random_csr,
    read_only,
    unwritten,
)

from sparselsh._core import _sparse_products

pytestmark = pytest.mark.usefixtures("simd_level")


@pytest.fixture(params=PATTERNS.values(), ids=PATTERNS)
def pattern(request):
    """(n_samples, n_neurons, density) of the active sets."""
    return request.param


def groups_of(indptr, indices):
    return read_only(*reference.group_columns(indptr, indices))


def sampled_dots(indptr, indices, x, w, bias):
    def call(n_threads):
        out = unwritten(len(indices), np.float32)
        _sparse_products.sampled_dots(*groups_of(indptr, indices), x, w, bias, out, n_threads)
        return out

    return on_threads(call)


def sampled_dots_csr(indptr, indices, x_indptr, x_indices, x_data, w, bias):
    def call(n_threads):
        out = unwritten(len(indices), np.float32)
        groups = groups_of(indptr, indices)
        _sparse_products.sampled_dots_csr(*groups, x_indptr, x_indices, x_data, w, bias, out,
                                          n_threads)
        return out

    return on_threads(call)


def weighted_rows(indptr, indices, data, w, bias):
    def call(n_threads):
        out = unwritten((len(indptr) - 1, w.shape[1]), np.float32)
        _sparse_products.weighted_rows(indptr, indices, data, w, bias, out, n_threads)
        return out

    return on_threads(call)


def sampled_columns(indptr, indices, data, w, x_indptr, x_indices):
    def call(n_threads):
        out = unwritten(len(x_indices), np.float32)
        _sparse_products.sampled_columns(*groups_of(indptr, indices), data, w, x_indptr, x_indices,
                                         out, n_threads)
        return out

    return on_threads(call)


@pytest.mark.parametrize("d", SIZES)
def test_sampled_dots_are_the_dense_outputs_at_the_active_neurons(rng, pattern, d):
    n, m, density = pattern
    indptr, indices, _ = random_csr(rng, n, m, density)
    x, w, bias = gaussian(rng, n, d), gaussian(rng, m, d), gaussian(rng, m)
    want = reference.sampled_dots(indptr, indices, x, w, bias)
    magnitude = reference.sampled_dots(indptr, indices, abs(x), abs(w), abs(bias))
    assert_sums_close(sampled_dots(indptr, indices, x, w, bias), want, magnitude, d + 1)


@pytest.mark.parametrize("d", SIZES)
@pytest.mark.parametrize("x_density", [0, 0.05, 0.6])
def test_sampled_dots_csr_are_the_dense_outputs_of_a_sparse_input(rng, pattern, d, x_density):
    n, m, density = pattern
    indptr, indices, _ = random_csr(rng, n, m, density)
    x_indptr, x_indices, x_data = random_csr(rng, n, d, x_density)
    w, bias = gaussian(rng, m, d), gaussian(rng, m)
    want = reference.sampled_dots_csr(indptr, indices, x_indptr, x_indices, x_data, w, bias)
    magnitude = reference.sampled_dots_csr(
        indptr, indices, x_indptr, x_indices, abs(x_data), abs(w), abs(bias))
    got = sampled_dots_csr(indptr, indices, x_indptr, x_indices, x_data, w, bias)
    assert_sums_close(got, want, magnitude, d + 1)


def test_without_inputs_every_output_is_its_bias(rng):
    indptr, indices, _ = random_csr(rng, 9, 40, 0.3)
    w, bias = gaussian(rng, 40, 0), gaussian(rng, 40)
    nothing = read_only(np.zeros(10, np.int64), np.zeros(0, np.int32), np.zeros(0, np.float32))
    assert_same_bits(sampled_dots(indptr, indices, gaussian(rng, 9, 0), w, bias), bias[indices])
    assert_same_bits(sampled_dots_csr(indptr, indices, *nothing, w, bias), bias[indices])


@pytest.mark.parametrize("with_bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("d", (0, *SIZES))
def test_weighted_rows_are_a_sparse_matrix_times_a_dense_one(rng, pattern, d, with_bias):
    n, m, density = pattern
    indptr, indices, data = random_csr(rng, n, m, density)
    w, bias = gaussian(rng, m, d), gaussian(rng, d if with_bias else 0)
    want = reference.weighted_rows(indptr, indices, data, w, bias)
    magnitude = reference.weighted_rows(indptr, indices, abs(data), abs(w), abs(bias))
    assert_sums_close(weighted_rows(indptr, indices, data, w, bias), want, magnitude, m + 1)


def test_weighted_rows_of_a_matrix_without_columns_are_the_bias(rng):
    indptr, indices, data = random_csr(rng, 4, 0, 0.5)
    bias = gaussian(rng, 17)
    assert_same_bits(weighted_rows(indptr, indices, data, gaussian(rng, 0, 17), bias),
                     np.tile(bias, (4, 1)))


@pytest.mark.parametrize("d", SIZES)
@pytest.mark.parametrize("x_density", [0, 0.05, 0.6])
def test_sampled_columns_are_the_input_gradient_at_the_stored_inputs(rng, pattern, d, x_density):
    n, m, density = pattern
    indptr, indices, data = random_csr(rng, n, m, density)
    x_indptr, x_indices, _ = random_csr(rng, n, d, x_density)
    w = gaussian(rng, m, d)
    want = reference.sampled_columns(indptr, indices, data, w, x_indptr, x_indices)
    magnitude = reference.sampled_columns(indptr, indices, abs(data), abs(w), x_indptr, x_indices)
    got = sampled_columns(indptr, indices, data, w, x_indptr, x_indices)
    assert_sums_close(got, want, magnitude, m)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows commits memory that is never touched")
def test_rows_are_found_beyond_the_reach_of_32_bits():
    # rows * d exceeds 2^31 floats; pages that are never touched need no memory
    d = 2**20
    w = np.zeros((2**11 + 2, d), np.float32)
    last = len(w) - 1
    w[last, -1] = 3
    one = read_only(np.array([0, 1], np.int64), np.array([last], np.int32),
                    np.array([2], np.float32))
    x = np.zeros((1, d), np.float32)
    x[0, -1] = 5
    assert weighted_rows(*one, w, np.zeros(0, np.float32))[0, -1] == 6
    assert sampled_dots(*one[:2], x, w, np.zeros(len(w), np.float32)) == 15
    assert sampled_columns(*one, w, one[0], read_only(np.array([d - 1], np.int32))) == 6


def test_dots_of_numbers_of_very_different_sizes_keep_the_digits_of_the_largest(rng):
    n, m, d = 4, 30, 129
    indptr, indices, _ = random_csr(rng, n, m, 0.5)
    x = gaussian(rng, n, d)
    x = read_only(x * np.float32(10) ** rng.integers(-6, 7, (n, d)).astype(np.float32))
    w, bias = gaussian(rng, m, d), read_only(np.zeros(m, np.float32))
    want = reference.sampled_dots(indptr, indices, x, w, bias)
    magnitude = reference.sampled_dots(indptr, indices, abs(x), abs(w), bias)
    # far within the bound of 131 units: the sums are many short chains
    assert np.max(abs(sampled_dots(indptr, indices, x, w, bias) - want) / magnitude) < 8 * UNIT
