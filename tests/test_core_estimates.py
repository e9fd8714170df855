"""Kernels that estimate all outputs (sparselsh._core._estimates)."""
import numpy as np
import pytest
import reference
from support import (
    SIZES,
    UNIT,
    assert_same_bits,
    assert_sums_close,
    gaussian,
    on_threads,
    read_only,
    unwritten,
)

from sparselsh._core import _estimates, _quantized, _sketches
from sparselsh.index import QuantizedRows

BLOCK = _sketches.NEURONS_PER_BLOCK
BITS = 64
pytestmark = pytest.mark.usefixtures("simd_level")


class Coded:
    """Weights with their codes, biases and queries."""

    def __init__(self, rng, n, d, n_queries=20, scale=1.0):
        self.w = read_only(scale * gaussian(rng, n, d))
        self.bias, self.x = np.array(gaussian(rng, n)), gaussian(rng, n_queries, d)
        codes = QuantizedRows.of(self.w, "int8", 1)
        self.codes, self.scales = read_only(codes.values, codes.scales)
        self.errors = unwritten(n, np.float32)
        _quantized.int8_errors(self.w, self.codes, self.scales, self.errors, 1)

    @property
    def outputs(self):
        return self.x.astype(float) @ self.w.astype(float).T + self.bias

    def log_sum_exp(self, wanted):
        def call(n_threads):
            n = len(self.x)
            out = unwritten(n, float), unwritten(n, float), unwritten(n, np.int64)
            _estimates.log_sum_exp(self.codes, self.scales, self.errors, self.x, self.w,
                                   read_only(self.bias), wanted, *out, n_threads)
            return out
        return on_threads(call)


@pytest.mark.parametrize("n, n_late, n_short", [(1, 0, 0), (33, 5, 0), (700, 60, 90), (0, 0, 5)])
@pytest.mark.parametrize("with_biases", [True, False])
def test_estimates_are_those_of_the_signs_and_of_the_biases(rng, n, n_late, n_short, with_biases):
    n_blocks, n_neurons = -(-n // BLOCK), n + n_short + 3
    order = rng.permutation(n_neurons).astype(np.int32)
    ids, short = order[:n].copy(), order[n:n + n_short]
    ids[::7] = -1  # slots that are no longer used
    rotated, queries = gaussian(rng, n, BITS), gaussian(rng, 4, BITS)
    blocks = np.zeros((n_blocks, BITS // 4 * 16), np.uint8)
    _sketches.pack(rotated, np.arange(n, dtype=np.int32), blocks)
    factors, errors, biases = (np.zeros(n_blocks * BLOCK, np.float32) for _ in range(3))
    factors[:n], errors[:n] = abs(gaussian(rng, n)), abs(gaussian(rng, n))
    biases[:n] = gaussian(rng, n)
    short_biases, short_errors = gaussian(rng, n_short), abs(gaussian(rng, n_short))
    units, norms, shifts = (read_only(abs(rng.standard_normal(4)) + 0.5) for _ in range(3))
    scale = 0.25
    estimator = _estimates.prepare(
        read_only(blocks), *read_only(factors, errors),
        read_only(biases if with_biases else biases[:0]), read_only(ids), n, n_neurons,
        *read_only(short, short_biases, short_errors), scale)

    def call(n_threads):
        out = unwritten((4, n_neurons), np.float32), unwritten((4, n_neurons), np.float32)
        _estimates.estimate(estimator, queries, units, norms, shifts, *out, n_threads)
        return out

    got, deviations = on_threads(call)
    want, spread = np.full((4, n_neurons), -np.inf), np.zeros((4, n_neurons))
    live = np.flatnonzero(ids >= 0)
    scores = reference.sketch_scores(queries, rotated, factors[:n])[:, live]
    scores += units[:, None] * (biases[live] if with_biases else 0)
    want[:, ids[live]] = scores / (scale * units[:, None]) + shifts[:, None]
    want[:, short] = short_biases / scale + shifts[:, None]
    back = (norms / (scale * units))[:, None]
    spread[:, ids[live]], spread[:, short] = errors[live] * back, short_errors * back
    np.testing.assert_allclose(deviations, spread, rtol=4 * UNIT)
    bound = np.full((4, n_neurons), 1e-5)
    if n:
        bound[:, ids[live]] += (reference.sketch_error(queries, factors[:n])[:, live]
                                / (scale * units[:, None]))
    known = np.isfinite(want)
    np.testing.assert_array_equal(np.isfinite(got), known)
    assert np.all(np.abs(got[known] - want[known]) <= bound[known])


@pytest.mark.parametrize("d", SIZES)
def test_the_errors_of_int8_rows_bound_every_inner_product(rng, d):
    coded = Coded(rng, 50, d)
    for x in (coded.x, np.sign(coded.x), coded.w - coded.scales[:, None] * coded.codes):
        x = read_only(x.astype(np.float32))
        approximate = x.astype(float) @ (coded.codes * coded.scales[:, None].astype(float)).T
        off = np.abs(approximate - x.astype(float) @ coded.w.astype(float).T)
        assert np.all(off <= coded.errors * np.linalg.norm(x, axis=1)[:, None])


def test_the_errors_of_int8_rows_are_the_same_for_any_number_of_threads(rng):
    coded = Coded(rng, 50, 17)

    def call(n_threads):
        out = unwritten(50, np.float32)
        _quantized.int8_errors(coded.w, coded.codes, coded.scales, out, n_threads)
        return out

    difference = coded.w - coded.scales[:, None].astype(float) * coded.codes
    # the second term is the rounding of the inner products
    np.testing.assert_allclose(on_threads(call), np.linalg.norm(difference, axis=1), rtol=1e-3)


@pytest.mark.parametrize("d", SIZES)
def test_outputs_by_codes_are_off_by_their_deviations(rng, d):
    coded = Coded(rng, 300, d)
    coded.bias[5] = -np.inf

    def call(n_threads):
        out = unwritten((20, 300), np.float32), unwritten((20, 300), np.float32)
        _estimates.coded_outputs(coded.codes, coded.scales, coded.errors, read_only(coded.bias),
                                 coded.x, *out, n_threads)
        return out

    got, deviations = on_threads(call)
    assert np.all(np.isneginf(got[:, 5])) and np.all(deviations[:, 5] == 0)
    rest = np.arange(300) != 5
    off = got[:, rest] - coded.outputs[:, rest]
    assert np.all(np.abs(off) <= np.sqrt(d) * 1.001 * deviations[:, rest] + 1e-6)
    if d >= 15:  # enough terms for the errors to be like random ones
        ratio = np.sqrt((off**2).mean() / (deviations[:, rest]**2).mean())
        assert 0.8 < ratio < 1.2


@pytest.mark.parametrize("n", [1, 100, 128, 129, 5000])
@pytest.mark.parametrize("scale", [0.0, 0.05, 1.0])
def test_a_sum_of_exponentials_is_within_its_error(rng, n, scale):
    coded = Coded(rng, n, 40, scale=scale)
    coded.bias[::9] = -np.inf  # these do not count
    got, errors, counts = coded.log_sum_exp(1e-2)
    if not np.isfinite(coded.bias).any():
        assert np.all(np.isneginf(got))
        return
    want = reference.log_sum_exp(coded.outputs)
    # four standard deviations: one of 16,000 queries would be beyond
    assert np.all(np.abs(got - want) <= errors)
    assert np.all(errors <= 1e-2)
    assert np.all(counts <= max(n, 128))


def test_fewer_neurons_are_computed_where_a_larger_error_is_allowed(rng):
    coded = Coded(rng, 20_000, 40, scale=0.3)
    want = reference.log_sum_exp(coded.outputs)
    few = coded.log_sum_exp(1e-1)
    many = coded.log_sum_exp(1e-4)
    for got, errors, _ in (few, many):
        assert np.all(np.abs(got - want) <= errors)
    assert np.all(few[2] < 600) and np.all(few[2] < many[2])
    assert np.all(many[1] <= 1e-4)


def test_a_sum_has_no_bias_and_errors_as_large_as_it_says(rng):
    # of many queries, so that the mean is sharp: a bias of a tenth of the error would be seen
    coded = Coded(rng, 4000, 16, n_queries=2000, scale=0.4)
    got, errors, counts = coded.log_sum_exp(0.5)
    assert counts.max() < 1000
    relative = (got - reference.log_sum_exp(coded.outputs)) / (errors / 4)
    assert abs(relative.mean()) < 0.1
    assert 0.2 < relative.std() <= 1.1


def test_a_sum_depends_on_its_query_alone(rng):
    coded = Coded(rng, 5000, 24)
    every = coded.log_sum_exp(1e-2)
    coded.x = read_only(coded.x[7:8])
    for a, b in zip(every, coded.log_sum_exp(1e-2), strict=True):
        assert_same_bits(a[7:8], b)


@pytest.mark.parametrize("m", [1, 15, 16, 17, 9000])
def test_sums_over_rows_equal_the_reference(rng, m):
    z = np.array(30 * gaussian(rng, 6, m))
    z[1] = -np.inf
    z[2, : m // 2] = -np.inf

    def call(n_threads):
        out = unwritten(6, float)
        _estimates.log_sum_exp_rows(z.copy(), out, n_threads)
        return out

    got = on_threads(call)
    assert np.isneginf(got[1])
    rest = np.arange(6) != 1
    np.testing.assert_allclose(got[rest], reference.log_sum_exp(z[rest]), rtol=1e-6, atol=1e-6)
    z[3, 0] = np.inf
    assert np.isposinf(call(1)[3])


@pytest.mark.parametrize("storage", ["float32", "bfloat16"])
@pytest.mark.parametrize("n_ids", [0, 1, 300])
def test_scores_of_given_neurons_equal_the_reference(rng, storage, n_ids):
    coded = Coded(rng, 40, 33)
    ids = read_only(rng.integers(-1, 40, (20, n_ids)).astype(np.int32))
    rows = QuantizedRows.of(coded.w, storage, 1)

    def call(n_threads):
        out = unwritten((20, n_ids), np.float32)
        _estimates.score(ids, coded.x, rows.values, read_only(coded.bias), out, n_threads)
        return out

    meant = rows.to_float32()
    want = reference.given_scores(ids, coded.x, meant, coded.bias)
    size = reference.given_scores(ids, abs(coded.x), abs(meant), abs(coded.bias))
    got, known = on_threads(call), ids >= 0
    assert np.all(np.isneginf(got[~known]))
    assert_sums_close(got[known], want[known], size[known], 34)


def test_no_queries_are_dealt_with(rng):
    coded = Coded(rng, 300, 8, n_queries=0)
    got, errors, counts = coded.log_sum_exp(1e-2)
    assert len(got) == len(errors) == len(counts) == 0
