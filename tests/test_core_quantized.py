"""Kernels over rows in float32, bfloat16 and int8 (sparselsh._core._quantized), and the rows."""
import numpy as np
import pytest
import reference
from support import (
    SIZES,
    assert_same_bits,
    assert_sums_close,
    gaussian,
    on_threads,
    random_csr,
    read_only,
    unwritten,
)

from sparselsh._core import _quantized, _sketches
from sparselsh.index import QuantizedRows

STORAGES = ("float32", "bfloat16", "int8")
pytestmark = pytest.mark.usefixtures("simd_level")


def stored(rng, n, d, storage):
    """Rows as the kernels take them, read-only, and their values in float64."""
    rows = QuantizedRows.of(gaussian(rng, n, d), storage, 1)
    values, scales = read_only(rows.values), None if rows.scales is None else read_only(rows.scales)
    return values, scales, reference.stored(values, scales)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("d", [*SIZES, 2048 + 17])
@pytest.mark.parametrize("with_bias", [True, False])
def test_weighted_rows_are_sums_of_what_the_rows_stand_for(rng, storage, d, with_bias):
    values, scales, meant = stored(rng, 30, d, storage)
    indptr, indices, data = random_csr(rng, 5, 30, 0.4)
    bias = gaussian(rng, d if with_bias else 0)

    def call(n_threads):
        out = unwritten((5, d), np.float32)
        _quantized.weighted_rows(indptr, indices, data, values, scales, bias, out, n_threads)
        return out

    want = reference.weighted_rows(indptr, indices, data, meant, bias if with_bias else np.zeros(d))
    magnitude = reference.weighted_rows(indptr, indices, abs(data), abs(meant),
                                        abs(bias) if with_bias else np.zeros(d))
    assert_sums_close(on_threads(call), want, magnitude, 30 + 2)


@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (0, 0)])
@pytest.mark.parametrize("storage", STORAGES)
def test_no_rows_and_no_columns_are_dealt_with(rng, storage, shape):
    values, scales, _ = stored(rng, *shape, storage)
    out = unwritten((2, shape[1]), np.float32)
    _quantized.weighted_rows(np.zeros(3, np.int64), np.zeros(0, np.int32), np.zeros(0, np.float32),
                             values, scales, np.zeros(0, np.float32), out, 1)
    assert np.all(out == 0)


@pytest.mark.parametrize("d", SIZES)
def test_quantize_int8_equals_the_reference(rng, d):
    w = np.array(gaussian(rng, 9, d))
    w[3] = 0
    w[4] = 1e-39  # too small: its scale would not be a normal number
    w = read_only(w)

    def call(n_threads):
        rows, scales = unwritten((9, d), np.int8), unwritten(9, np.float32)
        _quantized.quantize_int8(w, rows, scales, n_threads)
        return rows, scales

    rows, scales = on_threads(call)
    want_rows, want_scales = reference.quantize_int8(w)
    assert_same_bits(scales, want_scales.astype(np.float32))
    # the kernel multiplies by a rounded 127 / max: a value halfway between two steps takes either
    assert np.abs(rows.astype(int) - want_rows).max() <= 1
    assert np.abs(rows * scales[:, None].astype(float) - w)[:3].max() <= 0.501 * scales.max()


@pytest.mark.parametrize("storage", STORAGES)
def test_rerank_ranks_by_what_the_rows_stand_for(rng, storage):
    values, scales, meant = stored(rng, 40, 33, storage)
    x, bias = gaussian(rng, 4, 33), gaussian(rng, 40)
    ids = np.array([rng.permutation(40)[:20] for _ in range(4)], np.int32)
    ids[1, :5] = -1

    def call(n_threads):
        out = unwritten((4, 6), np.int32), unwritten((4, 6), np.float32)
        _sketches.rerank(read_only(ids), x, values, scales, bias, *out, n_threads)
        return out

    got_ids, got_scores = on_threads(call)
    want_ids, want_scores = reference.rerank(ids, x, meant, bias, 6)
    np.testing.assert_array_equal(got_ids, want_ids)  # random scores: no ties
    # 35 terms below 30, at 2^-24 each
    np.testing.assert_allclose(got_scores, want_scores, rtol=0, atol=1e-4)


@pytest.mark.parametrize("storage", STORAGES)
def test_refresh_takes_the_rows_that_changed(rng, storage):
    w = np.array(gaussian(rng, 12, 20))
    rows = QuantizedRows.of(w.copy() if storage == "float32" else w, storage, 1)
    w[[2, 7]] *= 3
    rows.refresh(w, np.array([2, 7]), 1)
    want = QuantizedRows.of(w, storage, 1)
    assert_same_bits(rows.values, want.values)
    if storage == "int8":
        assert_same_bits(rows.scales, want.scales)
