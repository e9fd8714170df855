import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import reference
from support import UNIT, assert_same_bits, gaussian, random_csr, read_only, unwritten

from sparselsh._core import _buckets, _gemm, _losses, _select, _simd, _sparse_products, _updates

AVAILABLE = ", ".join(_simd.available_levels())


def import_with(level):
    """Run a process that imports the core with SPARSELSH_SIMD set."""
    code = "from sparselsh._core import _sparse_products, _simd, _updates; print(_simd.level())"
    environment = {**os.environ, "SPARSELSH_SIMD": level}
    return subprocess.run([sys.executable, "-P", "-c", code], env=environment, capture_output=True,
                          text=True)


@pytest.mark.parametrize("level", _simd.available_levels())
def test_the_environment_variable_chooses_the_level(level):
    done = import_with(level)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == level


def test_an_empty_environment_variable_leaves_the_fastest_level():
    assert import_with("").stdout.strip() == _simd.available_levels()[-1]


def test_an_unknown_level_in_the_environment_is_refused_by_name():
    done = import_with("mmx")
    assert done.returncode != 0
    assert f"ValueError: SIMD level 'mmx' is unknown; available: {AVAILABLE}" in done.stderr


@pytest.mark.parametrize("name", ["", "mmx", "Baseline", "v"])
def test_set_level_refuses_an_unknown_name_and_keeps_the_level(name):
    before = _simd.level()
    with pytest.raises(ValueError, match=f"'{name}' is unknown; available: {AVAILABLE}"):
        _simd.set_level(name)
    assert _simd.level() == before


@pytest.mark.parametrize("name", ["v3", "avx-vnni", "v4", "v4-vnni", "v4-bf16", "amx", "neon-dot"])
def test_set_level_refuses_a_level_that_the_processor_or_the_build_lacks(name):
    if name in _simd.available_levels():
        pytest.skip("this processor has it")
    before = _simd.level()
    with pytest.raises(ValueError, match=f"'{name}' is (unknown|not supported by this processor); "
                                         f"available: {AVAILABLE}"):
        _simd.set_level(name)
    assert _simd.level() == before


def test_set_level_takes_every_available_level(simd_level):
    assert _simd.level() == simd_level


def test_every_processor_runs_the_baseline():
    assert _simd.available_levels()[0] == "baseline"


def test_arrays_with_gaps_or_of_other_types_are_refused(rng):
    w, out, bias = gaussian(rng, 4, 6), np.zeros((1, 3), np.float32), np.zeros(0, np.float32)
    row = np.array([0, 1]), np.zeros(1, np.int32), np.ones(1, np.float32)
    for wrong in (w[:, ::2], w[:, ::-2], np.asfortranarray(w[:, :3])):
        with pytest.raises(ValueError, match="contiguous"):
            _sparse_products.weighted_rows(*row, wrong, bias, out, 1)
    with pytest.raises(ValueError, match="Buffer dtype mismatch"):
        _sparse_products.weighted_rows(*row, w.astype(float), bias, out, 1)
    with pytest.raises(ValueError, match="read-only"):
        _sparse_products.weighted_rows(*row, w[:, :3].copy(), bias, read_only(out), 1)
    with pytest.raises(ValueError, match="writable if it is updated"):
        _updates.update_rows(_updates.sgd(1, 0, False, 0), read_only(w), None, None, row[1],
                             w[:1].copy(), 1)


def product_in_bfloat16():
    rng = np.random.default_rng(0)
    a, b, out = gaussian(rng, 40, 70), gaussian(rng, 50, 70), unwritten((40, 50), np.float32)
    _gemm.matmul(a, False, b, True, np.zeros(0, np.float32), out, 1, True)
    return out


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # has threads
def test_forked_processes_and_new_threads_compute_with_every_level(simd_level):
    # Linux lends the tiles of AMX to a process
    want = product_in_bfloat16()
    with ThreadPoolExecutor(1) as pool:
        assert_same_bits(pool.submit(product_in_bfloat16).result(), want)
    child = os.fork()
    if not child:
        os._exit(0 if np.array_equal(product_in_bfloat16(), want) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# ---- several Python threads in one kernel


def weighted_rows(rng):
    indptr, indices, data = random_csr(rng, 20, 50, 0.3)
    w, bias = gaussian(rng, 50, 65), gaussian(rng, 65)

    def call(n_threads):
        out = unwritten((20, 65), np.float32)
        _sparse_products.weighted_rows(indptr, indices, data, w, bias, out, n_threads)
        return out

    return call


def update_grouped(rng):
    indptr, indices, data = random_csr(rng, 20, 50, 0.3)
    groups = read_only(*reference.group_columns(indptr, indices))
    w, x, rule = gaussian(rng, 50, 65), gaussian(rng, 20, 65), _updates.sgd(0.1, 0.0, False, 0.0)

    def call(n_threads):
        out = w.copy()
        _updates.update_grouped(rule, out, None, None, *groups, data, x, n_threads)
        return out

    return call


def softmax(rng):
    z, chosen = gaussian(rng, 20, 65), np.zeros(20, np.int32)

    def call(n_threads):
        out, losses = z.ravel().copy(), unwritten(20, np.float32)
        _losses.softmax_cross_entropy(
            np.arange(21) * 65, out, np.arange(21), chosen, 1.0, losses, n_threads)
        return np.append(out, losses)

    return call


def top_k(rng):
    scores = gaussian(rng, 20, 200)

    def call(n_threads):
        ids, best = unwritten((20, 9), np.int32), unwritten((20, 9), np.float32)
        _select.top_k(scores, None, ids, best, n_threads)
        return ids

    return call


def build(rng):
    codes = read_only(rng.integers(0, 8, (300, 4), dtype=np.int32))

    def call(n_threads):
        ids = unwritten((4, 300), np.int32)
        _buckets.build(codes, False, ids, *np.empty((3, 4, 8), np.int32), np.empty(4, np.int32),
                       n_threads)
        return ids

    return call


def product(rng):
    a, b = gaussian(rng, 33, 70), gaussian(rng, 50, 70)

    def call(n_threads):
        out = unwritten((33, 50), np.float32)
        _gemm.matmul(a, False, b, True, np.zeros(0, np.float32), out, n_threads, True)
        return out

    return call


@pytest.mark.parametrize("kernel", [weighted_rows, update_grouped, softmax, top_k, build, product])
def test_python_threads_in_one_kernel_do_not_disturb_each_other(kernel, n_threads):
    calls = [kernel(np.random.default_rng(seed)) for seed in range(2)]
    alone = [call(n_threads) for call in calls]

    def repeat(call):
        return [call(n_threads) for _ in range(200)]

    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(repeat, calls))
    for results, want in zip(together, alone, strict=True):
        for got in results:
            assert_same_bits(got, want)


def test_levels_agree_within_rounding():
    call = weighted_rows(np.random.default_rng(0))
    before, results = _simd.level(), []
    for level in _simd.available_levels():
        _simd.set_level(level)
        results.append(call(1))
    _simd.set_level(before)
    for got in results:
        # sums of at most 50 products of numbers below 5
        np.testing.assert_allclose(got, results[0], rtol=0, atol=2 * 52 * UNIT * 50 * 5)
