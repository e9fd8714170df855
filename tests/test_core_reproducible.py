"""The reproducible levels give the same bits: each kernel with sums or with products and sums.

With SPARSELSH_DIGESTS=FILE each test adds a line with a digest of its results to the file, for a
comparison between machines (.ci/arm).
"""
import hashlib
import os

import numpy as np
import pytest
import reference
from support import (
    SIZES,
    assert_same_bits,
    eighths,
    gaussian,
    random_csr,
    read_only,
    unwritten,
)

from sparselsh._arrays import portable
from sparselsh._arrays.bfloat16 import to_bfloat16
from sparselsh._arrays.selection import Selection
from sparselsh._core import (
    _activations,
    _gemm,
    _gradient_norms,
    _hashing,
    _logistic,
    _losses,
    _projections,
    _quantized,
    _rotations,
    _simd,
    _sketches,
    _sparse_products,
    _updates,
)
from sparselsh.index import CodedRows
from sparselsh.index._rotations import signs_shape

NO_BIAS = np.zeros(0, np.float32)
LONGER = (*SIZES, 256, 257, 600, 1025)  # and around the runs of 256 that are summed together


@pytest.fixture
def on_levels(request):
    """Call with each reproducible level; the results have the same bits, and are returned."""
    before, state = _simd.level(), hashlib.sha256()

    def run(call):
        results = []
        for level in _simd.reproducible_levels():
            _simd.set_level(level)
            results.append(call())
        for result in results[1:]:
            for got, want in zip(result, results[0], strict=True):
                assert_same_bits(got, want)
        for array in results[0]:
            state.update(np.ascontiguousarray(array).tobytes())
        return results[0]

    yield run
    _simd.set_level(before)
    if path := os.environ.get("SPARSELSH_DIGESTS"):
        with open(path, "a") as file:
            file.write(f"{request.node.name} {state.hexdigest()[:16]}\n")


def test_the_levels_are_named_and_are_not_the_default():
    assert _simd.reproducible_levels()[0] == "reproducible-baseline"
    assert not set(_simd.available_levels()) & set(_simd.reproducible_levels())


def test_is_reproducible_tells_which_level_is_used():
    before = _simd.level()
    for level in _simd.available_levels():
        _simd.set_level(level)
        assert not _simd.is_reproducible()
    for level in _simd.reproducible_levels():
        _simd.set_level(level)
        assert _simd.is_reproducible() and _simd.level() == level
    _simd.use_fastest(True)
    assert _simd.level() == _simd.reproducible_levels()[-1]
    _simd.use_fastest(False)
    assert _simd.level() == _simd.available_levels()[-1]
    _simd.set_level(before)


@pytest.mark.skipif(len(_simd.available_levels()) < 2, reason="this processor has one level")
def test_other_levels_differ(rng):
    # else the tests of this file would show nothing; levels of AArch64 sum floats in one order, but
    # fuse products and sums
    z, results = gaussian(rng, 4, 1000), []
    before = _simd.level()
    for level in (_simd.reproducible_levels()[-1], _simd.available_levels()[-1]):
        _simd.set_level(level)
        c = unwritten((4, 4), np.float32)
        _gemm.matmul(z, False, z, True, NO_BIAS, c, 1)
        results.append(c)
    _simd.set_level(before)
    assert not np.array_equal(*results)


@pytest.mark.parametrize("k", LONGER)
@pytest.mark.parametrize("in_bfloat16", [False, True])
@pytest.mark.parametrize(("transpose_a", "transpose_b"), [(0, 0), (0, 1), (1, 0)])
def test_products(rng, on_levels, k, in_bfloat16, transpose_a, transpose_b):
    for m, n in ((1, 5), (3, 70), (37, 50)):
        a = gaussian(rng, *((k, m) if transpose_a else (m, k)))
        b, bias = gaussian(rng, *((n, k) if transpose_b else (k, n))), gaussian(rng, n)
        for stored in (b, read_only(to_bfloat16(b))):
            def call(a=a, b=stored, bias=bias, shape=(m, n)):
                c = unwritten(shape, np.float32)
                _gemm.matmul(a, transpose_a, b, transpose_b, bias, c, 1, in_bfloat16)
                return (c,)

            on_levels(call)


@pytest.mark.parametrize("d", SIZES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_products_with_active_rows(rng, on_levels, d, dtype):
    w, x, bias = gaussian(rng, 90, d), gaussian(rng, 40, d), gaussian(rng, 90)
    w = read_only(to_bfloat16(w)) if dtype == "bfloat16" else w
    rows, dz = read_only(np.arange(1, 78, 2, dtype=np.int32)), gaussian(rng, 40, 39)
    rule = _updates.adam(1e-2, 0.9, 0.999, 1e-8, 0.01, 7)

    def call():
        z, dx = unwritten((40, 39), np.float32), unwritten((40, d), np.float32)
        _gemm.active_outputs(x, w, rows, bias, z, 1)
        _gemm.active_input_gradient(dz, w, rows, dx, 1)
        parts = [np.array(w), np.zeros((90, d), np.float32), np.zeros((90, d), np.float32)]
        _gemm.active_update(rule, *parts, rows, dz, x, 1)
        squares = unwritten(39, np.float64)
        _gradient_norms.active_squares(dz, x, squares, 1)
        return z, dx, *parts, squares

    on_levels(call)


@pytest.mark.parametrize("n", LONGER)
def test_losses(rng, on_levels, n):
    offsets = read_only(np.arange(5) * n)
    z = read_only((3 * gaussian(rng, 4, n)).ravel())
    indptr, positions = read_only(np.arange(5)), read_only(np.zeros(4, np.int32))

    def call():
        results = []
        for kernel in (_losses.softmax_cross_entropy, _losses.binary_cross_entropy):
            gradient, losses = np.array(z), unwritten(4, np.float32)
            kernel(offsets, gradient, indptr, positions, 0.3, losses, 1)
            results += gradient, losses
        gradient, losses = np.array(z), unwritten(4, np.float32)
        _losses.squared_error(offsets, gradient, indptr, positions, z[:4], 0.3, losses, 1)
        return *results, gradient, losses

    on_levels(call)


@pytest.mark.parametrize("n", SIZES)
def test_multinomial_regression(rng, on_levels, n):
    x = random_csr(rng, 20, 50, 0.3)
    norms = read_only(rng.uniform(1, 2, 20).astype(np.float32))
    classes = read_only(rng.integers(0, n, 20).astype(np.int32))
    costs = read_only(np.full(20, 3, np.float32))

    def call():
        residuals, w = np.zeros((20, n), np.float32), np.zeros((50, n), np.float32)
        bias = np.zeros(n, np.float32)
        _logistic.fit(*x, norms, classes, costs, 3, 0.0, 5, np.arange(20, dtype=np.int32),
                      residuals, w, bias)
        return residuals, w, bias

    on_levels(call)


@pytest.mark.parametrize("number", range(1, 7))
def test_activations(rng, on_levels, number):
    for n in LONGER:
        x = 4 * gaussian(rng, 3, n)

        def call(x=x):
            y = np.array(x)
            _activations.activate(number, y, 1)
            return (y,)

        on_levels(call)


@pytest.mark.parametrize("d", SIZES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_sparse_products(rng, on_levels, d, dtype):
    indptr, indices, data = random_csr(rng, 20, 50, 0.3)
    groups = read_only(*reference.group_columns(indptr, indices))
    w, bias, x = gaussian(rng, 50, d), gaussian(rng, d), gaussian(rng, 20, d)
    biases = gaussian(rng, 50)
    stored = read_only(to_bfloat16(w)) if dtype == "bfloat16" else w
    y = random_csr(rng, 20, d, 0.9)

    def call():
        out = unwritten((20, d), np.float32)
        _sparse_products.weighted_rows(indptr, indices, data, stored, bias, out, 1)
        dots, more = (unwritten(len(indices), np.float32) for _ in range(2))
        _sparse_products.sampled_dots(*groups, x, stored, biases, dots, 1)
        _sparse_products.sampled_dots_csr(*groups, *y, stored, biases, more, 1)
        return out, dots, more

    on_levels(call)


RULES = {
    "sgd": _updates.sgd(0.1, 0.9, False, 1e-3), "nesterov": _updates.sgd(0.1, 0.9, True, 1e-3),
    "adam": _updates.adam(1e-2, 0.9, 0.999, 1e-8, 0.01, 1000),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("d", (*SIZES, 600))
def test_updates(rng, on_levels, rule, dtype, d):
    w, dw, m = gaussian(rng, 9, d), gaussian(rng, 5, d), gaussian(rng, 9, d)
    v = m * m
    if dtype == "bfloat16":
        w, m, v = (read_only(to_bfloat16(each)) for each in (w, m, v))
    rows = read_only(np.array([0, 2, 3, 5, 8], np.int32))
    seconds = [v, np.ones((9, 1), np.float32)] if rule == "adam" else [None]

    def call():
        results = []
        for second in seconds:
            state = [np.array(w), np.array(m), None if second is None else np.array(second)]
            _updates.update_rows(RULES[rule], *state, rows, dw, 1)
            results += [part for part in state if part is not None]
        return results

    on_levels(call)


@pytest.mark.parametrize("d", SIZES)
def test_hashing(rng, on_levels, d):
    v, planes = gaussian(rng, 40, d), gaussian(rng, d, 60)
    signs = read_only(rng.integers(-1, 2, (d, 60), dtype=np.int8))
    lists = [np.flatnonzero(p == s) for p in signs.T for s in (1, -1)]
    starts = np.cumsum([0] + [len(ids) for ids in lists], dtype=np.int64)
    ids = read_only(np.concatenate(lists).astype(np.int32))
    rotations = rng.choice(np.float32([-1, 1]), signs_shape(d, d))

    def call():
        codes = unwritten((40, 10), np.int32)
        _hashing.sign_codes(v, planes, 6, codes, 1)
        sums, turned = unwritten((40, 60), np.float32), unwritten((40, d), np.float32)
        _projections.signed_sums(v, starts, ids, sums, 1)
        _rotations.rotate(v, d, rotations, turned, 1)
        return codes, sums, turned

    on_levels(call)


@pytest.mark.parametrize("n", [1, 33, 257])
def test_sketches(rng, on_levels, n):
    rotated, queries = gaussian(rng, n, 128), gaussian(rng, 6, 128)
    blocks = np.zeros((-(-n // _sketches.NEURONS_PER_BLOCK), 128 // 4 * 16), np.uint8)
    _sketches.pack(rotated, read_only(np.arange(n, dtype=np.int32)), blocks)
    size = len(blocks) * _sketches.NEURONS_PER_BLOCK
    factors, biases = gaussian(rng, size), gaussian(rng, size)
    slots = read_only(np.arange(n, dtype=np.int32))

    def call():
        results = []
        for each in (None, biases):
            ids, scores = unwritten((6, n), np.int32), unwritten((6, n), np.float32)
            _sketches.scan(queries, blocks, factors, each, slots, n, ids, scores, 1)
            order = np.argsort(ids, axis=1)  # the kernel returns them in any order
            results.append(np.take_along_axis(scores, order, 1))
        return results

    on_levels(call)


@pytest.mark.parametrize("d", SIZES)
def test_rows_in_eight_bits(rng, on_levels, d):
    w, zeros = gaussian(rng, 50, d), np.zeros(d, np.float32)
    indptr, indices, data = random_csr(rng, 20, 50, 0.3)

    def call():
        rows, scales = unwritten((50, d), np.int8), unwritten(50, np.float32)
        _quantized.quantize_int8(w, rows, scales, 1)
        out = unwritten((20, d), np.float32)
        _quantized.weighted_rows(indptr, indices, data, rows, scales, zeros, out, 1)
        return rows, scales, out

    on_levels(call)


@pytest.mark.parametrize("d", SIZES)
def test_rows_in_four_bits(rng, on_levels, d):
    w, bias, x = gaussian(rng, 300, d), gaussian(rng, 300), gaussian(rng, 9, d)

    def call():
        rows = CodedRows(w, bias, np.zeros(d, np.float32), False, 3, 1)
        found = rows.search(x, 5, w, bias, Selection(), 0.0, 1)
        return rows.blocks, rows.scales, rows.errors, *found[:2]

    on_levels(call)


@pytest.mark.parametrize("n_bits", [16, 64, 192])
def test_refined_signs(rng, on_levels, n_bits):
    # sums of products of eighths are exact, so that only the kernel could round
    gram, rotated = eighths(rng, n_bits, n_bits), gaussian(rng, 40, n_bits)
    gram = gram + gram.T + n_bits * np.eye(n_bits, dtype=np.float32)

    def refine():
        signs = np.where(rotated > 0, np.float32(1), np.float32(-1))
        sums = signs @ gram
        products, squares = unwritten((2, 40), np.float64)
        _sketches.refine(rotated, gram * np.float32(0.1), signs, sums * np.float32(0.1), products,
                         squares, 2, 1)
        return signs, products, squares

    on_levels(refine)


@pytest.mark.parametrize("d", SIZES)
def test_products_of_rows_by_numpy(rng, on_levels, d):
    # not a kernel: it is the same at all levels, and must be so on other machines
    a, b = gaussian(rng, 70, d), gaussian(rng, 70, d)
    on_levels(lambda: (portable.row_products(a, b), portable.row_products(a, b[0], np.float64)))
