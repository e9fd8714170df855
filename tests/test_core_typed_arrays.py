"""Weights and optimizer state in bfloat16, and second moments with one number per row."""
import numpy as np
import pytest
import reference
from support import (
    SIZES,
    UNIT,
    assert_same_bits,
    eighths,
    gaussian,
    on_threads,
    random_csr,
    read_only,
    unwritten,
)

from sparselsh._core import _gemm, _sparse_products, _typed_arrays, _updates

pytestmark = pytest.mark.usefixtures("simd_level")


def narrow(x):
    out = np.empty(x.shape, np.uint16)
    _typed_arrays.to_bfloat16(np.ascontiguousarray(x).reshape(-1), out.reshape(-1))
    return out


def widen(x):
    out = np.empty(x.shape, np.float32)
    _typed_arrays.to_float32(x.reshape(-1), out.reshape(-1))
    return out


def neighbours(x):
    """The bfloat16 numbers below and above, by magnitude, as float32."""
    bits = np.asarray(x, np.float32).view(np.uint32)
    low = bits & np.uint32(0xFFFF0000)
    high = np.where(bits == low, low, low + np.uint32(0x10000))
    return low.view(np.float32), high.view(np.float32)


@pytest.mark.parametrize("n", (0, *SIZES, 1000))
def test_narrow_rounds_to_the_nearest_and_widen_gives_it_back(rng, n):
    x = gaussian(rng, n) * np.float32(10) ** rng.integers(-30, 30, n).astype(np.float32)
    below, above = neighbours(x)
    got = widen(narrow(x))
    np.testing.assert_array_equal(abs(got.astype(float) - x),
                                  np.minimum(abs(below.astype(float) - x),
                                             abs(above.astype(float) - x)))
    assert_same_bits(widen(narrow(got)), got)


def test_narrow_breaks_ties_to_even_and_keeps_the_special_numbers():
    ulp = 2.0**-7
    x = np.array([1 + ulp / 2, 1 + 3 * ulp / 2, -1 - ulp / 2, 0, -0.0, np.inf, -np.inf], np.float32)
    want = np.array([1, 1 + 2 * ulp, -1, 0, -0.0, np.inf, -np.inf], np.float32)
    assert_same_bits(widen(narrow(x)), want)
    assert np.isnan(widen(narrow(np.float32([np.nan])))).all()


# ---- weights in bfloat16: every kernel gives what it gives for the same numbers in float32


@pytest.fixture(params=[False, True], ids=["float32", "bfloat16"])
def in_bfloat16(request):
    """Whether the other factor of a product is rounded too."""
    return request.param


def both(w, call):
    """Results for float32 weights equal those for bfloat16; all sums are exact, in any order."""
    half = narrow(w)
    np.testing.assert_array_equal(widen(half), w)
    np.testing.assert_array_equal(on_threads(lambda n: call(read_only(half), n)), call(w, 1))


def returned(shape, kernel, *arguments, in_bfloat16=None):
    out = unwritten(shape, np.float32)
    more = () if in_bfloat16 is None else (in_bfloat16,)
    kernel(*arguments[:-1], out, arguments[-1], *more)
    return out


@pytest.mark.parametrize("transpose_a, transpose_b", [(False, False), (False, True), (True, False),
                                                      (True, True)])
@pytest.mark.parametrize("m, n, k", [(0, 5, 3), (1, 1, 1), (2, 300, 65), (9, 33, 0), (9, 31, 257),
                                     (300, 33, 17)])
def test_matmul(rng, m, n, k, transpose_a, transpose_b, in_bfloat16):
    a = eighths(rng, *((k, m) if transpose_a else (m, k)))
    b = eighths(rng, *((n, k) if transpose_b else (k, n)))
    for bias in (eighths(rng, n), eighths(rng, 0)):
        both(b, lambda b, threads, bias=bias: returned((m, n), _gemm.matmul, a, transpose_a, b,
                                                       transpose_b, bias, threads,
                                                       in_bfloat16=in_bfloat16))


@pytest.mark.parametrize("n, d, n_active", [(9, 17, 5), (0, 17, 5), (9, 17, 0), (9, 0, 5),
                                            (9, 1, 33), (33, 300, 79)])
def test_products_with_active_rows(rng, n, d, n_active, in_bfloat16):
    x, w, dz = eighths(rng, n, d), eighths(rng, 80, d), eighths(rng, n, n_active)
    rows, bias = read_only(rng.permutation(80)[:n_active].astype(np.int32)), eighths(rng, 80)
    both(w, lambda w, threads: returned((n, n_active), _gemm.active_outputs, x, w, rows, bias,
                                        threads, in_bfloat16=in_bfloat16))
    both(w, lambda w, threads: returned((n, d), _gemm.active_input_gradient, dz, w, rows, threads,
                                        in_bfloat16=in_bfloat16))


@pytest.mark.parametrize("d", (1, 17, 64, 129))
@pytest.mark.parametrize("density", [0, 0.3])
def test_products_with_active_sets(rng, d, density):
    indptr, indices, data = random_csr(rng, 20, 40, density, eighths)
    groups = read_only(*reference.group_columns(indptr, indices))
    x, w, bias = eighths(rng, 20, d), eighths(rng, 40, d), eighths(rng, 40)
    x_csr = random_csr(rng, 20, d, 0.5, eighths)
    nnz = len(indices)
    both(w, lambda w, threads: returned(nnz, _sparse_products.sampled_dots, *groups, x, w, bias,
                                        threads))
    both(w, lambda w, threads: returned(nnz, _sparse_products.sampled_dots_csr, *groups, *x_csr, w,
                                        bias, threads))
    both(w, lambda w, threads: returned((20, d), _sparse_products.weighted_rows, indptr, indices,
                                        data, w, np.zeros(0, np.float32), threads))
    both(w, lambda w, threads: returned(len(x_csr[1]), _sparse_products.sampled_columns, *groups,
                                        data, w, x_csr[0], x_csr[1], threads))


@pytest.mark.parametrize("rows", [[], [2], [4, 4, 0, 1, 3, 2, 0]], ids=len)
@pytest.mark.parametrize("d", (0, *SIZES))
def test_centred_rows(rng, rows, d):
    w, bias, offset = eighths(rng, 5, d), eighths(rng, 5), eighths(rng, d + 1)
    rows = read_only(np.array(rows, np.int32))
    want = np.column_stack([w, bias])[rows] - offset
    both(w, lambda w, threads: returned(want.shape, _typed_arrays.centred_rows, w, bias, offset,
                                        rows, threads))
    np.testing.assert_array_equal(returned(want.shape, _typed_arrays.centred_rows, w, bias, offset,
                                           rows, 1), want)


@pytest.mark.parametrize("n, block", [(1, 1), (5, 2), (6, 2), (40, 64), (513, 64)])
@pytest.mark.parametrize("d", (0, *SIZES))
def test_block_sums(rng, n, block, d):
    w = eighths(rng, n, d)
    want = reference.block_sums(w, block)
    both(w, lambda w, threads: block_sums(w, block, want.shape, threads))
    np.testing.assert_array_equal(block_sums(w, block, want.shape, 1), want)


def block_sums(w, block, shape, n_threads):
    out = unwritten(shape, np.float32)
    _typed_arrays.block_sums(w, block, out, n_threads)
    return out


# ---- updates

RULES = {
    "sgd": ("sgd", (0.02, 0.0, False, 0.1), ""),
    "nesterov": ("sgd", (0.02, 0.9, True, 0.1), "m"),
    "adam": ("adam", (0.02, 0.9, 0.999, 1e-8, 0.3), "mv"),
}


def stepped(kernel, rule, state, *arguments):
    def call(n_threads):
        new = tuple(None if a is None else a.copy() for a in state)
        kernel(rule, *new, *arguments, n_threads)
        return new

    return on_threads(call)


def updates(rng, n_rows, d):
    """name: (kernel, arguments) that touch all of n_rows rows, or some of their columns."""
    rows = read_only(rng.permutation(n_rows).astype(np.int32))
    dense = read_only(np.arange(n_rows + 1) * n_rows,
                      np.tile(np.arange(n_rows, dtype=np.int32), n_rows))
    data, x = eighths(rng, n_rows * n_rows), eighths(rng, n_rows, d)
    groups = read_only(*reference.group_columns(*dense))
    x_csr = random_csr(rng, n_rows, d, 0.3, eighths)
    return {
        "update_rows": (_updates.update_rows, (rows, eighths(rng, n_rows, d))),
        "active_update": (_gemm.active_update, (rows, eighths(rng, n_rows, n_rows), x)),
        "update_grouped": (_updates.update_grouped, (*groups, data, x)),
        "update_grouped_csr": (_updates.update_grouped_csr, (*groups, data, *x_csr)),
    }


KERNELS = ("update_rows", "active_update", "update_grouped", "update_grouped_csr")


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("stored", ["w", "mv", "wmv"])
@pytest.mark.parametrize("d", [1, 17, 300])
def test_what_is_stored_in_bfloat16_is_a_neighbour_of_the_float32_result(rng, kernel, rule, stored,
                                                                         d):
    name, arguments, moments = RULES[rule]
    kernel, inputs = updates(rng, 20, d)[kernel]
    rule = getattr(_updates, name)(*arguments, 3)
    state = {"w": eighths(rng, 20, d)} | {s: read_only(eighths(rng, 20, d) ** 2) for s in moments}
    state = [state.get(s) for s in "wmv"]
    want = stepped(kernel, rule, state, *inputs)
    got = stepped(kernel, rule, [narrow(a) if s in stored and a is not None else a
                                 for s, a in zip("wmv", state, strict=True)], *inputs)

    for s, new, exact, old in zip("wmv", got, want, state, strict=True):
        if new is None:
            continue
        if s not in stored:
            assert_same_bits(new, exact)
        elif s == "m":
            np.testing.assert_array_equal(new, narrow(exact))
        else:
            below, above = neighbours(exact)
            assert ((widen(new) == below) | (widen(new) == above)).all()
            np.testing.assert_array_equal(widen(new)[exact == old], old[exact == old])


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("stored", ["", "wm"])
@pytest.mark.parametrize("d", [2, 17, 300])
def test_a_second_moment_a_row_is_the_mean_over_the_row(rng, kernel, stored, d):
    step = 7
    kernel, inputs = updates(rng, 20, d)[kernel]
    sums = stepped(kernel, _updates.sgd(1.0, 0.0, False, 0.0),
                   [np.zeros((20, d), np.float32), None, None], *inputs)
    gradient, touched = -sums[0].astype(float), np.ones((20, d), bool)
    if len(inputs) == 8:  # sparse inputs: where the gradient is not zero
        touched[:] = gradient != 0
    beta1, beta2 = np.float32([0.9, 0.999]).astype(float)
    w, m = eighths(rng, 20, d), eighths(rng, 20, d)
    v = read_only(eighths(rng, 20, 1) ** 2 + np.float32(0.125))
    state = [narrow(a) if s in stored else a for s, a in zip("wm", (w, m), strict=True)] + [v]
    rule = _updates.adam(0.02, 0.9, 0.999, 1e-8, 0.0, step)
    new_w, new_m, new_v = stepped(kernel, rule, state, *inputs)

    mean = (gradient**2).sum(axis=1) / np.maximum(touched.sum(axis=1), 1)
    want_v = beta2 * v[:, 0] + (1 - beta2) * mean
    want_m = np.where(touched, beta1 * m + (1 - beta1) * gradient, m)
    root = np.sqrt(want_v / (1 - beta2**step)) + 1e-8
    want_w = np.where(touched, w - 0.02 * want_m / (1 - beta1**step) / root[:, None], w)

    # a mean of d squares rounds like a sum; a bfloat16 number has 8 bits, off by at most one unit
    np.testing.assert_allclose(new_v[:, 0], want_v, rtol=(d + 8) * UNIT)

    for got, want in ((new_w, want_w), (new_m, want_m)):
        half = got.dtype == np.uint16
        np.testing.assert_allclose(widen(got) if half else got, want, rtol=2.0**-7 if half else 0,
                                   atol=1e-6 + (d + 8) * UNIT)


def test_update_all_rounds_at_random_too(rng):
    n = 10_000  # more than a chunk
    w, g = narrow(np.ones(n, np.float32)), np.full(n, 2.0**-10, np.float32)
    rule = _updates.sgd(1.0, 0.0, False, 0.0, 1)
    (new, _, _) = stepped(_updates.update_all, rule, [w, None, None], g)
    below = 1 - 2.0**-8  # the next number below 1; the step is a quarter of the way
    assert set(np.unique(widen(new))) == {np.float32(below), np.float32(1)}
    fraction = (widen(new) < 1).mean()
    assert abs(fraction - 0.25) < 5 * np.sqrt(0.25 * 0.75 / n)


@pytest.mark.parametrize("dtype", [np.float32, np.uint16])
def test_a_thousand_steps_below_half_a_unit_are_not_lost(dtype):
    # rounded to the nearest, 1 - 2^-12 is 1 in bfloat16, in each of a thousand steps
    n, n_steps, step = 4000, 1000, 2.0**-12
    w = np.ones((1, n), np.float32)
    w = narrow(w) if dtype == np.uint16 else w
    g = np.full((1, n), step, np.float32)
    for t in range(n_steps):
        _updates.update_rows(_updates.sgd(1.0, 0.0, False, 0.0, t), w, None, None,
                             np.zeros(1, np.int32), g, 1)
    values = widen(w) if dtype == np.uint16 else w
    # each step is rounded with a variance of at most ulp step; ulp is 2^-8 below 1
    sigma = np.sqrt(n_steps * 2.0**-8 * step / n)
    assert abs(values.mean() - (1 - n_steps * step)) < 5 * sigma + 1e-4 * (dtype == np.float32)


def test_the_random_numbers_of_two_steps_differ(rng):
    g = np.full((1, 1000), 2.0**-10, np.float32)

    def at(t):
        w = narrow(np.ones((1, 1000), np.float32))
        _updates.update_rows(_updates.sgd(1.0, 0.0, False, 0.0, t), w, None, None,
                             np.zeros(1, np.int32), g, 1)
        return widen(w) < 1

    one, two = at(1), at(2)
    np.testing.assert_array_equal(one, at(1))
    # independent: both fall with probability 1/16
    assert abs((one & two).mean() - 1 / 16) < 5 * np.sqrt(1 / 16 * 15 / 16 / 1000)
