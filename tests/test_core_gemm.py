import numpy as np
import pytest
import reference
from support import (
    UNIT,
    assert_same_bits,
    assert_sums_close,
    eighths,
    gaussian,
    on_threads,
    read_only,
    unwritten,
)

from sparselsh._arrays import bfloat16
from sparselsh._core import _gemm, _updates

pytestmark = pytest.mark.usefixtures("simd_level")

# zero, one, around a vector and a tile, beyond one block of rows (256) and one of terms (256)
LENGTHS = (0, 1, 7, 8, 31, 33, 257, 600)
# each length in each position, and the long ones together
SHAPES = sorted({(m, 33, 8) for m in LENGTHS} | {(7, n, 31) for n in LENGTHS}
                | {(9, 33, k) for k in LENGTHS}
                | {(600, 31, 257), (257, 600, 33), (1, 1, 1), (0, 0, 0), (33, 257, 600),
                   (1030, 5, 33)})  # tiles (AMX) take 1,024 rows at a time
TRANSPOSES = [(False, False), (False, True), (True, False), (True, True)]
# samples, inputs, active rows of 80: an update sums 128 rows together
ACTIVE = [(9, 17, 5), (1, 1, 1), (0, 17, 5), (9, 17, 0), (9, 0, 5), (33, 64, 79), (257, 31, 80),
          (7, 257, 33)]


@pytest.fixture(params=[False, True], ids=["float32", "bfloat16"])
def in_bfloat16(request):
    """Whether the factors are rounded to bfloat16, which represents multiples of 1/8 up to 2."""
    return request.param


def matmul(a, transpose_a, b, transpose_b, bias, in_bfloat16=False):
    def call(n_threads):
        m = a.shape[1] if transpose_a else a.shape[0]
        n = b.shape[0] if transpose_b else b.shape[1]
        out = unwritten((m, n), np.float32)
        _gemm.matmul(a, transpose_a, b, transpose_b, bias, out, n_threads, in_bfloat16)
        return out

    return on_threads(call)


def operands(draw, rng, m, n, k, transpose_a, transpose_b):
    return (draw(rng, *((k, m) if transpose_a else (m, k))),
            draw(rng, *((n, k) if transpose_b else (k, n))))


@pytest.mark.parametrize("transpose_a, transpose_b", TRANSPOSES)
@pytest.mark.parametrize("m, n, k", SHAPES)
def test_matmul_takes_any_shape_transposed_or_not_with_a_bias_or_without(rng, m, n, k, transpose_a,
                                                                         transpose_b, in_bfloat16):
    a, b = operands(eighths, rng, m, n, k, transpose_a, transpose_b)
    for bias in (eighths(rng, n), eighths(rng, 0)):
        got = matmul(a, transpose_a, b, transpose_b, bias, in_bfloat16)
        np.testing.assert_array_equal(got, reference.matmul(a, transpose_a, b, transpose_b, bias))


@pytest.mark.parametrize("transpose_a, transpose_b", TRANSPOSES)
@pytest.mark.parametrize("k", [599, 1100])  # in bfloat16 a panel has 512 terms, in pairs
def test_matmul_rounds_like_a_sum_of_products(rng, transpose_a, transpose_b, k, in_bfloat16):
    m, n = 40, 70
    a, b = operands(gaussian, rng, m, n, k, transpose_a, transpose_b)
    bias = gaussian(rng, n)
    got = matmul(a, transpose_a, b, transpose_b, bias, in_bfloat16)
    if in_bfloat16:
        a, b = reference.rounded_to_bfloat16(a), reference.rounded_to_bfloat16(b)
    want = reference.matmul(a, transpose_a, b, transpose_b, bias)
    magnitude = reference.matmul(abs(a), transpose_a, abs(b), transpose_b, abs(bias))
    # AArch64 rounds the sum of a pair to odd: a whole unit instead of half of one
    n_roundings = 2 * (k + 1) if in_bfloat16 else k + 1
    assert_sums_close(got, want, magnitude, n_roundings)


def test_bfloat16_factors_round_to_the_nearest_with_ties_to_even(rng):
    unit = 2.0**-8  # half of the distance of two bfloat16 numbers above 1
    x = np.array([1, 1 + unit, 1 + 1.01 * unit, 1 + 3 * unit, 1 + 0.99 * unit, -1 - unit, 3.4e38,
                  np.inf], np.float32)
    want = np.array([1, 1, 1 + 2 * unit, 1 + 4 * unit, 1, -1, np.inf, np.inf])
    one, no_bias = np.ones((1, 1), np.float32), np.zeros(0, np.float32)
    got = matmul(read_only(x[:, None]), False, one, False, no_bias, True)[:, 0]
    np.testing.assert_allclose(got, want, rtol=1e-4 * unit)
    np.testing.assert_array_equal(matmul(one, False, read_only(x[:, None]), True, no_bias, True)[0],
                                  got)


@pytest.mark.parametrize("bits", [0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001, 0x7FC00000])
def test_a_factor_that_is_no_number_stays_one_in_bfloat16(bits):
    # adding half a unit to its bits would carry into the sign
    a, b = np.zeros((5, 40), np.float32), np.ones((40, 7), np.float32)
    a.view(np.uint32)[3, 17] = bits
    out = matmul(read_only(a), False, b, False, np.zeros(0, np.float32), True)
    assert np.isnan(out[3]).all()
    assert (out[[0, 1, 2, 4]] == 0).all()
    assert np.isnan(matmul(b, True, read_only(a), True, np.zeros(0, np.float32), True)[:, 3]).all()


def test_a_row_of_a_bfloat16_product_does_not_depend_on_the_rows_beside_it(rng):
    a, b, bias = gaussian(rng, 300, 270), gaussian(rng, 90, 270), gaussian(rng, 90)
    whole = matmul(a, False, b, True, bias, True)
    for rows in (slice(0, 1), slice(37, 60), slice(296, 300)):
        assert_same_bits(matmul(read_only(a[rows]), False, b, True, bias, True), whole[rows])


def test_a_row_of_a_product_does_not_depend_on_the_rows_beside_it(rng):
    # products with up to three rows are computed as dot products, which round in another order
    a, b, bias = gaussian(rng, 300, 270), gaussian(rng, 90, 270), gaussian(rng, 90)
    whole = matmul(a, False, b, True, bias)
    for rows in (slice(0, 4), slice(37, 60), slice(296, 300)):
        assert_same_bits(matmul(read_only(a[rows]), False, b, True, bias), whole[rows])
    few = matmul(read_only(a[:3]), False, b, True, bias)
    for i in range(3):
        assert_same_bits(matmul(read_only(a[i:i + 1]), False, b, True, bias), few[i:i + 1])


def active_rows(rng, n_active, n=80):
    """Distinct ids in random order, including the last one."""
    rows = np.concatenate([[n - 1], rng.permutation(n - 1)])[:n_active]
    return read_only(rows.astype(np.int32))


@pytest.mark.parametrize("n, d, n_active", ACTIVE)
def test_active_outputs_are_the_dense_ones_at_the_active_rows(rng, n, d, n_active, in_bfloat16):
    x, w, rows = eighths(rng, n, d), eighths(rng, 80, d), active_rows(rng, n_active)
    bias = eighths(rng, 80)

    def call(n_threads):
        z = unwritten((n, n_active), np.float32)
        _gemm.active_outputs(x, w, rows, bias, z, n_threads, in_bfloat16)
        return z

    np.testing.assert_array_equal(on_threads(call), reference.active_outputs(x, w, rows, bias))


@pytest.mark.parametrize("n, d, n_active", ACTIVE)
def test_active_input_gradient_is_the_gradient_times_the_active_rows(rng, n, d, n_active,
                                                                     in_bfloat16):
    dz, w, rows = eighths(rng, n, n_active), eighths(rng, 80, d), active_rows(rng, n_active)

    def call(n_threads):
        dx = unwritten((n, d), np.float32)
        _gemm.active_input_gradient(dz, w, rows, dx, n_threads, in_bfloat16)
        return dx

    np.testing.assert_array_equal(on_threads(call), reference.active_input_gradient(dz, w, rows))


@pytest.mark.parametrize("n, d, n_active", ACTIVE)
def test_products_of_bfloat16_weights_are_those_of_the_numbers_they_stand_for(rng, n, d, n_active,
                                                                              in_bfloat16):
    x, dz, rows = eighths(rng, n, d), eighths(rng, n, n_active), active_rows(rng, n_active)
    w, bias = eighths(rng, 80, d), eighths(rng, 80)
    halves = read_only(bfloat16.to_bfloat16(w))

    def call(n_threads):
        z, dx = unwritten((n, n_active), np.float32), unwritten((n, d), np.float32)
        _gemm.active_outputs(x, halves, rows, bias, z, n_threads, in_bfloat16)
        _gemm.active_input_gradient(dz, halves, rows, dx, n_threads, in_bfloat16)
        return z, dx

    z, dx = on_threads(call)
    np.testing.assert_array_equal(z, reference.active_outputs(x, w, rows, bias))
    np.testing.assert_array_equal(dx, reference.active_input_gradient(dz, w, rows))


MANY = [(1, 1, 1024), (9, 31, 1025), (33, 64, 1500), (3, 17, 2100), (256, 300, 1030)]


@pytest.mark.parametrize("n, d, n_active", MANY)
def test_active_input_gradient_of_many_neurons_is_summed_in_parts(rng, n, d, n_active,
                                                                  in_bfloat16):
    dz, w, rows = eighths(rng, n, n_active), eighths(rng, 2200, d), active_rows(rng, n_active, 2200)

    def call(n_threads):
        dx = unwritten((n, d), np.float32)
        _gemm.active_input_gradient(dz, w, rows, dx, n_threads, in_bfloat16)
        return dx

    one = on_threads(call)
    assert_same_bits(one, call(7))  # more threads than parts: rows are divided too
    np.testing.assert_array_equal(one, reference.active_input_gradient(dz, w, rows))


def test_parts_of_an_input_gradient_do_not_depend_on_the_number_of_threads(rng, in_bfloat16):
    # sums that do round
    dz, w, rows = gaussian(rng, 40, 3000), gaussian(rng, 3100, 65), active_rows(rng, 3000, 3100)
    dx = [unwritten((40, 65), np.float32) for _ in range(4)]
    for n_threads, out in zip((1, 2, 5, 16), dx, strict=True):
        _gemm.active_input_gradient(dz, w, rows, out, n_threads, in_bfloat16)
    for out in dx[1:]:
        assert_same_bits(out, dx[0])


@pytest.mark.parametrize("bounds", [[0, 0], [0, 300], [0, 0, 7, 7, 130, 300, 300]])
@pytest.mark.parametrize("n, d", [(0, 5), (1, 1), (9, 31), (33, 64)])
def test_input_gradients_of_segments_are_those_of_their_neurons(rng, n, d, bounds):
    dz, w, rows = eighths(rng, n, bounds[-1]), eighths(rng, 400, d), active_rows(rng, bounds[-1],
                                                                                  400)
    bounds = read_only(np.array(bounds, np.int64))

    def call(n_threads):
        out = unwritten((len(bounds) - 1, n, d), np.float32)
        _gemm.segment_input_gradients(dz, w, rows, bounds, out, n_threads)
        return out

    one = on_threads(call)
    assert_same_bits(one, call(7))
    np.testing.assert_array_equal(one, reference.segment_input_gradients(dz, w, rows, bounds))


def test_the_input_gradient_of_a_segment_does_not_depend_on_the_others(rng):
    # sums that do round
    dz, w, rows = gaussian(rng, 40, 900), gaussian(rng, 1000, 65), active_rows(rng, 900, 1000)
    whole, part = unwritten((3, 40, 65), np.float32), unwritten((1, 40, 65), np.float32)
    bounds = np.array([0, 200, 700, 900])
    _gemm.segment_input_gradients(dz, w, rows, bounds, whole, 2)
    _gemm.segment_input_gradients(np.ascontiguousarray(dz[:, 200:700]), w, rows[200:700],
                                  np.array([0, 500]), part, 1)
    assert_same_bits(part[0], whole[1])


RULES = {
    "sgd": ("sgd", (0.02, 0.0, False, 0.1), ""),
    "nesterov": ("sgd", (0.02, 0.9, True, 0.1), "m"),
    "adam": ("adam", (0.02, 0.9, 0.999, 1e-8, 0.3, 3), "mv"),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("n, d, n_active", [*ACTIVE, (5, 3, 300)])
def test_active_update_applies_the_rule_to_the_active_rows_and_leaves_the_others(
        rng, rule, n, d, n_active, in_bfloat16):
    kind, arguments, moments = RULES[rule]
    n_rows = max(80, n_active + 20)
    w, x, dz = gaussian(rng, n_rows, d), eighths(rng, n, d), eighths(rng, n, n_active)
    m = gaussian(rng, n_rows, d) if "m" in moments else None
    v = read_only(gaussian(rng, n_rows, d) ** 2) if "v" in moments else None
    rows = active_rows(rng, n_active, n_rows)

    def call(n_threads):
        state = tuple(None if a is None else a.copy() for a in (w, m, v))
        _gemm.active_update(getattr(_updates, kind)(*arguments), *state, rows, dz, x, n_threads,
                            in_bfloat16)
        return state

    got = on_threads(call)
    want = reference.active_update(getattr(reference, kind)(*arguments), w, m, v, rows, dz, x)
    idle = np.setdiff1d(np.arange(n_rows), rows)
    for new, exact, old in zip(got, want, (w, m, v), strict=True):
        if new is not None:
            # some roundings per number (32), relative to the largest term; v also has the error of
            # 1 - 0.999, 1.3e-5 of it, which cancels in w
            tolerance = 32 * UNIT * (1 + abs(exact).max(initial=1))
            np.testing.assert_allclose(new, exact, rtol=2e-5 if old is v else 0, atol=tolerance)
            assert_same_bits(new[idle], old[idle])


def test_rows_are_gathered_from_beyond_the_reach_of_32_bits(rng):
    # rows * d exceeds 2^31 floats; pages that are never touched need no memory
    d = 2**20
    w = np.zeros((2**11 + 2, d), np.float32)
    rows = read_only(np.array([len(w) - 1], np.int32))
    w[-1, -1] = 3
    x = np.zeros((1, d), np.float32)
    x[0, -1] = 5
    z, dx = unwritten((1, 1), np.float32), unwritten((1, d), np.float32)
    _gemm.active_outputs(x, w, rows, np.zeros(len(w), np.float32), z, 1)
    assert z == 15
    _gemm.active_input_gradient(np.ones((1, 1), np.float32), w, rows, dx, 1)
    assert dx[0, -1] == 3
    _gemm.active_update(_updates.sgd(1, 0, False, 0), w, None, None, rows,
                        np.ones((1, 1), np.float32), x, 1)
    assert w[-1, -1] == -2
