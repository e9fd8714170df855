"""Products of 8-bit weights and inputs (sparselsh._core._int8_products)."""
import numpy as np
import pytest
import reference
from support import assert_same_bits, assert_sums_close, gaussian, on_threads, read_only, unwritten

from sparselsh._core import _int8_products, _quantized, _simd
from sparselsh.inference._int8_outputs import Int8Outputs

pytestmark = pytest.mark.usefixtures("simd_level")

# inputs, outputs, numbers per input: around a block of 16 outputs, a group of 4 numbers, tiles of 4
# to 32 inputs and 64 or 512 numbers, a task of 256 outputs and 96 inputs
SHAPES = [(1, 1, 1), (1, 16, 4), (2, 17, 5), (7, 100, 63), (49, 33, 64), (5, 513, 130),
          (1, 300, 1030), (6, 40, 512), (16, 70, 516), (32, 32, 1100), (33, 50, 62), (97, 20, 70),
          (0, 5, 3), (3, 0, 3)]


def quantized(rng, n, d):
    w = gaussian(rng, n, d)
    q, scales = np.empty((n, d), np.int8), np.empty(n, np.float32)
    _quantized.quantize_int8(w, q, scales, 1)
    return w, *read_only(q, scales)


@pytest.mark.parametrize("n, n_out, d", SHAPES)
@pytest.mark.parametrize("positive", [False, True], ids=["any sign", "none negative"])
def test_outputs_have_the_bits_of_the_reference_at_every_level(rng, n, n_out, d, positive):
    w, q, scales = quantized(rng, n_out, d)
    x, bias = gaussian(rng, n, d), gaussian(rng, n_out)
    x = read_only(abs(x)) if positive else x
    weights = Int8Outputs(w, 1)
    got = on_threads(lambda n_threads: weights.outputs(x, bias, n_threads))
    assert_same_bits(got, reference.int8_outputs(q, scales, bias, x))


def test_extreme_sums_are_exact(rng):
    # 255 * 127 twice in a sum of 16 bits would saturate
    d = 4096
    w = np.full((20, d), 127, np.float32)
    w[1::2] *= -1
    x = np.ones((2, d), np.float32)
    x[1, 0] = -1
    out = Int8Outputs(w, 1).outputs(read_only(x), np.zeros(20, np.float32), 1)
    want = x.astype(float) @ w.T.astype(float)
    np.testing.assert_allclose(out, want, rtol=3e-7)


@pytest.mark.parametrize("value", [0.0, 1e-38, np.inf, np.nan])
def test_inputs_without_a_scale_count_as_zero(rng, value):
    w, bias = gaussian(rng, 20, 9), gaussian(rng, 20)
    x = np.zeros((2, 9), np.float32)
    x[0, 3] = value
    out = Int8Outputs(w, 1).outputs(x, bias, 1)
    assert_same_bits(out[1], bias)
    if not np.isnan(value):
        assert_same_bits(out[0], bias)


def test_blocks_hold_each_weight_at_its_place_and_zeros_beyond(rng):
    _, q, _ = quantized(rng, 37, 10)
    blocks, totals = unwritten((3, 3, 16, 4), np.int8), unwritten(48, np.int32)
    on_threads(lambda n_threads: _int8_products.pack_blocks(q, blocks, totals, n_threads) or blocks)
    whole = np.zeros((48, 12), np.int8)
    whole[:37, :10] = q
    np.testing.assert_array_equal(blocks.transpose(0, 2, 1, 3).reshape(48, 12), whole)
    np.testing.assert_array_equal(totals, whole.sum(axis=1, dtype=int))


@pytest.mark.parametrize("k", [1, 4, 9])
def test_exact_best_orders_the_candidates_by_their_float32_scores(rng, k):
    w, bias, x = gaussian(rng, 50, 33), gaussian(rng, 50), gaussian(rng, 3, 33)
    candidates = np.array([[3, 7, -1, 49, 20, 0], [5, 4, 3, 2, 1, 0], [-1] * 6], np.int32)

    def call(n_threads):
        ids, scores = unwritten((3, k), np.int32), unwritten((3, k), np.float32)
        _int8_products.exact_best(x, w, bias, read_only(candidates), ids, scores, n_threads)
        return ids, scores

    ids, scores = on_threads(call)
    exact = x.astype(float) @ w.T.astype(float) + bias
    magnitude = abs(x).astype(float) @ abs(w.T).astype(float) + abs(bias)
    for i in range(3):
        among = candidates[i][candidates[i] >= 0]
        want = among[np.argsort(-exact[i, among])][:k]
        np.testing.assert_array_equal(ids[i, :len(want)], want)
        assert_sums_close(scores[i, :len(want)], exact[i, want], magnitude[i, want], 34)
        assert (ids[i, len(want):] == -1).all() and np.isneginf(scores[i, len(want):]).all()


def test_the_best_outputs_are_found_with_float32_scores(rng):
    w, bias, x = gaussian(rng, 3000, 64), gaussian(rng, 3000), gaussian(rng, 60, 64)
    ids, scores = on_threads(lambda n: Int8Outputs(w, n).topk(x, w, bias, 5, n))
    exact = x.astype(float) @ w.T.astype(float) + bias
    best = np.argsort(-exact, axis=1)[:, :5]
    # an error of 1/254 of the largest weight and input is far below the gap to the 32nd output
    assert (np.sort(ids, axis=1) == np.sort(best, axis=1)).mean() > 0.999
    magnitude = abs(x).astype(float) @ abs(w.T).astype(float) + abs(bias)
    assert_sums_close(scores, np.take_along_axis(exact, ids, 1),
                      np.take_along_axis(magnitude, ids, 1), 65)


@pytest.mark.parametrize("positive", [False, True], ids=["any sign", "none negative"])
def test_estimates_are_exact_for_the_largest_and_near_for_others(rng, positive):
    w, bias, x = gaussian(rng, 900, 64), gaussian(rng, 900), gaussian(rng, 9, 64)
    x = abs(x) if positive else x.copy()
    x[3] = 0
    weights = Int8Outputs(w, 1)
    out = on_threads(lambda n: weights.estimates(x, w, bias, 20, n))
    exact = x.astype(float) @ w.T.astype(float) + bias
    # estimates that were above the 20th score are lowered to it, and sorts may take them first
    last = -np.sort(-out, axis=1)[:, 19:20]
    is_exact = abs(out - exact) < 1e-4
    assert is_exact[out > last].all()
    assert ((is_exact & (out >= last)).sum(axis=1) >= 20).all()
    # weights are rounded by at most half a step, inputs by half a step of the 127th of a step
    step = abs(w).max(axis=1) / 127
    bound = 0.5 * np.outer(abs(x).sum(axis=1), step) + 1e-3
    assert (abs(out - exact) < bound).all()
    one_part = weights.outputs(x, bias, 1)
    rms = [np.sqrt(np.mean((z - exact) ** 2)) for z in (out, one_part)]
    # of two errors, of which that of the inputs is as large or, in 255 steps, half, one is gone
    assert rms[0] < 0.95 * rms[1]


def test_levels_give_the_same_bits(rng):
    w, bias, x = gaussian(rng, 100, 77), gaussian(rng, 100), gaussian(rng, 9, 77)
    before, results = _simd.level(), []
    for level in _simd.available_levels():
        _simd.set_level(level)
        results.append(Int8Outputs(w, 1).outputs(x, bias, 1))
    _simd.set_level(before)
    for got in results[1:]:
        assert_same_bits(got, results[0])


@pytest.mark.parametrize("n, n_out, d", [(0, 5, 3), (4, 0, 3), (4, 5, 0)])
def test_no_inputs_outputs_or_columns_are_dealt_with(rng, n, n_out, d):
    w, bias, x = gaussian(rng, n_out, d), gaussian(rng, n_out), gaussian(rng, n, d)
    weights = Int8Outputs(w, 1)
    out = on_threads(lambda n_threads: weights.outputs(x, bias, n_threads))
    np.testing.assert_array_equal(out, np.broadcast_to(bias, (n, n_out)))  # no products
    for n_candidates, k in ((0, 3), (2, 0), (2, 3)):
        candidates = np.full((n, n_candidates), -1, np.int32)
        if n_out:
            candidates[:, :1] = n_out - 1

        def call(n_threads, candidates=candidates, k=k):
            ids, scores = unwritten((n, k), np.int32), unwritten((n, k), np.float32)
            _int8_products.exact_best(x, w, bias, candidates, ids, scores, n_threads)
            return ids, scores

        ids, scores = on_threads(call)
        found = ids >= 0
        assert (found.sum(axis=1) == min(k, n_candidates, n_out, 1)).all()
        assert (ids[found] == n_out - 1).all() and np.isneginf(scores[~found]).all()
