"""exp, log and cos by basic operations alone (sparselsh._core._portable_math)."""
import math

import numpy as np
import pytest

import sparselsh as sl
from sparselsh._arrays import portable
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


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_small_sigmoids_keep_their_digits(dtype):
    # those of float32 were zero below -17, so that unlikely labels were all alike
    from scipy.special import expit

    x = np.concatenate([np.linspace(-87, 20, 2000), [-1e30, 1e30]]).astype(dtype)
    y = x.copy()
    portable.sigmoid(y)
    np.testing.assert_allclose(y, expit(x.astype(float)), rtol=8 * np.finfo(dtype).eps)


def test_unlikely_labels_have_the_order_of_their_scores():
    X = np.eye(3, dtype=np.float32)
    network = sl.Network([sl.Linear(3, 4), sl.Linear(4, 6)], loss="bce", random_state=0)
    network.fit(X, np.eye(3, 6), epochs=1)
    *weights, bias = network.get_weights()
    network.set_weights([*weights, bias - np.float32(30)])
    p, z = network.predict_proba(X), network.decision_function(X)
    np.testing.assert_allclose(p, np.exp(z.astype(float)), rtol=1e-5)
    assert np.argmax(p, axis=1).tolist() == network.predict(X).tolist()
