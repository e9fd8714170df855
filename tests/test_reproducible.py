"""The same bits on every processor, if `set_reproducible` asks for it, with whole trainings.

Another processor is another level of the loops, NumPy without its faster functions, and OpenBLAS
with the kernels of another processor.
"""
import functools
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import sparselsh as sl
from sparselsh._arrays import portable
from sparselsh._core import _simd

WORKER = Path(__file__).with_name("reproducible_worker.py")
LEVELS = _simd.reproducible_levels()
CORES = ("SkylakeX", "Haswell", "Prescott") if platform.machine() == "x86_64" else ("",)


def numpy_features():
    """What NumPy uses beyond its baseline on this processor."""
    try:
        from numpy._core._multiarray_umath import __cpu_dispatch__, __cpu_features__
    except ImportError:  # NumPy 1
        from numpy.core._multiarray_umath import __cpu_dispatch__, __cpu_features__
    return " ".join(name for name in __cpu_dispatch__ if __cpu_features__.get(name))


@functools.cache
def digests(n_threads=1, case="", **environment):
    """Of the trainings of the worker, in a process with these variables."""
    clean = {name: value for name, value in os.environ.items()
             if not name.startswith(("SPARSELSH_", "OPENBLAS_", "NPY_"))}
    done = subprocess.run(
        [sys.executable, "-P", WORKER, str(n_threads), *([case] if case else [])],
        env=clean | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def on_this_processor():
    return digests(SPARSELSH_REPRODUCIBLE="across-machines")


@pytest.fixture
def across_machines():
    before = _simd.level()
    sl.set_reproducible("across-machines")
    yield
    _simd.set_level(before)


@pytest.mark.parametrize("level", LEVELS)
def test_trainings_are_the_same_with_other_instructions(level):
    core = CORES[LEVELS.index(level) % len(CORES)]
    assert digests(SPARSELSH_SIMD=level, OPENBLAS_CORETYPE=core) == on_this_processor()


def test_trainings_are_the_same_with_the_slowest_numpy_and_blas():
    found = digests(SPARSELSH_SIMD=LEVELS[0], OPENBLAS_CORETYPE=CORES[-1],
                    NPY_DISABLE_CPU_FEATURES=numpy_features())
    assert found == on_this_processor()


def test_trainings_are_the_same_with_two_threads():
    found = digests(2, SPARSELSH_REPRODUCIBLE="across-machines", OPENBLAS_NUM_THREADS="2")
    assert found == on_this_processor()


@pytest.mark.skipif(len(_simd.available_levels()) < 2, reason="this processor has one level")
@pytest.mark.parametrize("case", ["softmax, shared sets", "many labels", "hidden sketches"])
def test_trainings_differ_without_the_option(case):
    # else the tests above would show nothing; the usual levels of AArch64 may agree with each other
    one, other = (digests(case=case, SPARSELSH_SIMD=level)[case]
                  for level in (LEVELS[-1], _simd.available_levels()[-1]))
    assert one["weights"] != other["weights"] and one["scores"] != other["scores"]


# ---- the setting


def test_the_setting_is_read_back_and_undone():
    before = _simd.level()
    assert sl.get_reproducible() == "one-machine"
    sl.set_reproducible("across-machines")
    assert sl.get_reproducible() == "across-machines" and _simd.level() == LEVELS[-1]
    sl.set_reproducible("one-machine")
    assert sl.get_reproducible() == "one-machine"
    _simd.set_level(before)


def test_a_level_that_is_set_and_fits_stays():
    before = _simd.level()
    _simd.set_level(LEVELS[0])
    sl.set_reproducible("across-machines")
    assert _simd.level() == LEVELS[0]
    _simd.set_level(before)


@pytest.mark.parametrize("value", ["", "across", "Across-machines", "everywhere"])
def test_an_unknown_scope_is_refused(value):
    with pytest.raises(ValueError, match=f"scope must be .*across-machines.*, got '{value}'"):
        sl.set_reproducible(value)


@pytest.mark.parametrize("value", [None, True, 1])
def test_a_scope_is_a_string(value):
    with pytest.raises(TypeError, match="scope must be"):
        sl.set_reproducible(value)


def test_an_unknown_scope_in_the_environment_is_refused():
    done = subprocess.run([sys.executable, "-P", "-c", "import sparselsh"], capture_output=True,
                          text=True, env={**os.environ, "SPARSELSH_REPRODUCIBLE": "yes"})
    assert done.returncode and "SPARSELSH_REPRODUCIBLE must be" in done.stderr


# ---- what takes the place of LAPACK and of NumPy


@pytest.mark.parametrize("n", [1, 2, 3, 16, 33])
def test_eigenvectors_are_those_of_lapack(across_machines, rng, n):
    a = rng.standard_normal((n, n))
    a = a @ a.T
    values, vectors = portable.eigh(a)
    scale = np.abs(a).sum()
    np.testing.assert_allclose(values, np.linalg.eigvalsh(a), atol=1e-13 * scale)
    np.testing.assert_allclose(vectors @ np.diag(values) @ vectors.T, a, atol=1e-13 * scale)
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(n), atol=1e-13)


def test_eigenvectors_of_equal_and_zero_values(across_machines):
    for a in (np.zeros((5, 5)), np.eye(5), np.ones((6, 6))):
        values, vectors = portable.eigh(a)
        np.testing.assert_allclose(vectors @ np.diag(values) @ vectors.T, a, atol=1e-14)
        np.testing.assert_allclose(vectors.T @ vectors, np.eye(len(a)), atol=1e-14)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_orthonormal_columns_are_those_of_lapack(rng, dtype):
    a = rng.standard_normal((40, 17)).astype(dtype)
    results, before = [], _simd.level()
    for name in ("one-machine", "across-machines"):
        sl.set_reproducible(name)
        results.append(portable.orthonormal(a))
    _simd.set_level(before)
    assert results[0].dtype == results[1].dtype == dtype
    np.testing.assert_allclose(*results, atol=1e-5 if dtype == np.float32 else 1e-12)


def test_normal_numbers_have_the_moments_of_the_normal_law(across_machines, rng):
    x = portable.standard_normal(rng, (500, 401))
    assert x.dtype == np.float32 and x.shape == (500, 401)
    n = x.size  # bounds of five standard deviations
    assert abs(x.mean()) < 5 / np.sqrt(n) and abs((x**2).mean() - 1) < 5 * np.sqrt(2 / n)
    assert abs((x**4).mean() - 3) < 5 * np.sqrt(96 / n)
    assert abs((x[:, ::2][:, :200] * x[:, 1::2]).mean()) < 5 / np.sqrt(n / 2)
    assert portable.standard_normal(rng, (0, 3), np.float64).shape == (0, 3)


def test_functions_are_those_of_numpy(across_machines, rng):
    x = (20 * rng.standard_normal(999)).astype(np.float32)
    for function, want in ((portable.exp, np.exp(x.astype(float))),
                           (portable.sigmoid, 1 / (1 + np.exp(-x.astype(float))))):
        y = x.copy()
        function(y)
        np.testing.assert_allclose(y, want, rtol=1.3e-7)  # one rounding, or two
    y = np.exp(x.astype(float))
    portable.log(y)
    np.testing.assert_allclose(y, x, rtol=1e-14)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("n", "m"), [(0, 5), (5, 0), (7, 1), (900, 131), (2, 1 << 17)])
def test_products_of_rows_are_those_of_einsum(across_machines, rng, n, m, dtype):
    a, b = rng.random((2, n, m + 1), dtype=np.float32)[..., :m]  # with gaps between rows
    bound = m * np.finfo(dtype).eps
    for other, subscripts in ((b, "ij,ij->i"), (rng.random(m, dtype=np.float32), "ij,j->i")):
        got = portable.row_products(a, other, dtype)
        assert got.dtype == dtype and got.shape == (n,)
        want = np.einsum(subscripts, a, other, dtype=np.float64)
        np.testing.assert_allclose(got, want, rtol=bound)  # all products are positive


@pytest.mark.parametrize("package", ["_arrays", "hashing", "index", "layers", "training"])
def test_products_of_rows_are_not_left_to_numpy(package):
    # it fuses them on AArch64; hash families are chosen by estimates of recall, for indexes alone
    sources = sorted((Path(sl.__file__).parent / package).glob("*.py"))
    assert sources
    assert not [path.name for path in sources if "np.einsum" in path.read_text()
                and path.name not in ("portable.py", "_table_choice.py")]


def test_products_in_float64_are_those_of_numpy(across_machines, rng):
    a, b = rng.standard_normal((5, 7)), rng.standard_normal((7, 3))
    np.testing.assert_allclose(portable.double_matmul(a, b), a @ b, rtol=1e-13, atol=1e-14)
