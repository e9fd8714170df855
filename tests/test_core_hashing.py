import numpy as np
import pytest
import reference
from support import SIZES, gaussian, on_threads, read_only, unwritten

from sparselsh._core import _hashing


def pack_codes(projections, n_bits, n_tables):
    def call(n_threads):
        codes = unwritten((len(projections), n_tables), np.int32)
        _hashing.pack_codes(projections, n_bits, codes, n_threads)
        return codes

    return on_threads(call)


@pytest.mark.parametrize("n_bits", [1, 2, 7, 16, 29, 30])
@pytest.mark.parametrize("n_tables", [1, 3, 16])
@pytest.mark.parametrize("n", [0, 1, 65])
def test_a_code_has_one_bit_per_positive_projection(rng, n_bits, n_tables, n):
    projections = gaussian(rng, n, n_tables * n_bits)
    codes = pack_codes(projections, n_bits, n_tables)
    np.testing.assert_array_equal(codes, reference.pack_codes(projections, n_bits))
    assert np.all((0 <= codes) & (codes < 1 << n_bits))


def test_only_numbers_above_zero_set_a_bit():
    projections = read_only(np.array([[0.0, -0.0, np.nan, -np.inf, np.inf, 1e-45, -1e-45]], np.float32))
    assert pack_codes(projections, 7, 1).item() == 0b0110000


def test_no_tables_give_no_codes(rng):
    assert pack_codes(gaussian(rng, 3, 0), 4, 0).shape == (3, 0)


@pytest.mark.parametrize("degrees", [10, 45, 60, 90, 120, 170])
@pytest.mark.parametrize("d", [2, 65])
def test_bits_agree_with_the_probability_one_minus_angle_over_pi(rng, degrees, d):
    n_bits, n_tables = 25, 800
    angle = np.deg2rad(degrees)
    x = np.zeros((2, d), np.float32)
    x[0, 0], x[1, :2] = 1, [np.cos(angle), np.sin(angle)]
    planes = gaussian(rng, d, n_bits * n_tables)
    a, b = pack_codes(x @ planes, n_bits, n_tables)
    equal = 1 - np.bitwise_count(a ^ b).sum() / planes.shape[1]
    p = 1 - angle / np.pi
    band = 5 * np.sqrt(p * (1 - p) / planes.shape[1])  # five standard deviations of independent bits
    assert abs(equal - p) < band


@pytest.mark.parametrize("scale", [1e-20, 1e-3, 1e3, 1e20])
@pytest.mark.parametrize("d", SIZES)
def test_codes_do_not_depend_on_the_length_of_a_vector(rng, scale, d):
    projections = gaussian(rng, d, 60)
    np.testing.assert_array_equal(
        pack_codes(projections, 20, 3), pack_codes(projections * np.float32(scale), 20, 3))
