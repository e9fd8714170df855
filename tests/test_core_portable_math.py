"""exp, log and cos by basic operations alone (sparselsh._core._portable_math)."""
import math

import numpy as np
import pytest

from sparselsh._core import _portable_math


@pytest.mark.parametrize("x", [0.0, 1.0, -1.0, 0.5, 1e-300, -1e-20, 700.0, -700.0, -740.0, 709.7])
def test_exp_is_that_of_the_c_library_within_rounding(x):
    assert _portable_math.exp(x) == pytest.approx(math.exp(x), rel=3e-16, abs=1e-323)


def test_exp_and_log_are_accurate_and_know_the_limits():
    for x in np.random.default_rng(0).uniform(-30, 30, 2000):
        assert _portable_math.exp(x) == pytest.approx(math.exp(x), rel=3e-16)
        assert _portable_math.log(math.exp(x)) == pytest.approx(math.log(math.exp(x)), rel=3e-16)
    infinity = math.inf
    assert _portable_math.exp(800) == infinity and _portable_math.exp(-800) == 0
    assert _portable_math.exp(infinity) == infinity and _portable_math.exp(-infinity) == 0
    assert _portable_math.log(0) == -infinity and _portable_math.log(infinity) == infinity
    assert math.isnan(_portable_math.log(-1)) and math.isnan(_portable_math.exp(math.nan))
    assert math.isnan(_portable_math.log(math.nan))
    assert _portable_math.log(1) == 0 and _portable_math.log(5e-324) == math.log(5e-324)


def test_arrays_are_changed_in_place():
    x = np.linspace(-5, 5, 7)
    y = x.copy()
    _portable_math.exp_each(y)
    assert y.tolist() == [_portable_math.exp(value) for value in x]
    _portable_math.log_each(y)
    np.testing.assert_allclose(y, x, rtol=1e-15, atol=1e-15)


def test_cosines_are_accurate():
    for x in np.linspace(0, 1, 1001):
        assert _portable_math.cos_pi(x) == pytest.approx(math.cos(math.pi * x), abs=5e-16)
    assert [_portable_math.cos_pi(x) for x in (0, 0.5, 1)] == [1, 0, -1]
