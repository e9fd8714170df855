import numpy as np
import pytest
import reference
from scipy.optimize import minimize
from scipy.special import softmax
from support import UNIT, assert_same_bits, random_csr, read_only

from sparselsh._core import _logistic

pytestmark = pytest.mark.usefixtures("simd_level")

N, D, N_CLASSES = 60, 35, 5  # rows, features


@pytest.fixture
def x(rng):
    x = random_csr(rng, N, D, 0.2)
    assert (np.diff(x[0]) == 0).any()  # rows without features
    return x


@pytest.fixture
def classes(rng):
    return read_only(rng.integers(0, N_CLASSES - 1, N).astype(np.int32))  # none has the last one


def dense(indptr, indices, data):
    out = np.zeros((len(indptr) - 1, D))
    out[np.repeat(np.arange(len(out)), np.diff(indptr)), indices] = data
    return out


def fit(x, classes, costs, rows=None, n_passes=1000, tolerance=1e-6, seed=3, n_classes=N_CLASSES,
        start=None):
    """(number of passes, residuals, w, bias)"""
    norms = read_only((dense(*x) ** 2).sum(axis=1).astype(np.float32))
    rows = np.arange(N, dtype=np.int32) if rows is None else rows
    if start is None:
        start = (np.zeros((N, n_classes), np.float32), np.zeros((D, n_classes), np.float32),
                 np.zeros(n_classes, np.float32))
    arrays = [np.array(part) for part in start]
    n = _logistic.fit(*x, norms, classes, costs, n_passes, tolerance, seed, np.array(rows),
                      *arrays)
    return n, *arrays


@pytest.fixture
def costs(rng):
    return read_only(rng.uniform(0.2, 5, N).astype(np.float32))


def objective(v, x, classes, costs):
    w = v.reshape(D + 1, N_CLASSES)
    return reference.multinomial(w[:-1], w[-1], x, classes, costs)


def test_fit_reaches_the_least_objective(x, classes, costs):
    rows = dense(*x)
    best = minimize(objective, np.zeros((D + 1) * N_CLASSES), args=(rows, classes, costs),
                    method="L-BFGS-B", options={"ftol": 1e-14, "maxfun": 10**6}).fun
    n, residuals, w, bias = fit(x, classes, costs)
    assert n < 1000
    # its gradient by finite differences leaves L-BFGS above the minimum, by a little
    found = reference.multinomial(w.astype(float), bias.astype(float), rows, classes, costs)
    assert found <= best * (1 + 1e-6)

    # what the dual variables are at the optimum
    p = softmax(rows @ w + bias, axis=1)
    np.testing.assert_allclose(residuals, np.eye(N_CLASSES)[classes] - p, atol=1e-5)
    np.testing.assert_allclose(w, rows.T @ (costs[:, None] * residuals), atol=1e-4)


def test_few_passes_come_near(x, classes, costs):
    exact = fit(x, classes, costs)[2]
    n, _, near, _ = fit(x, classes, costs, n_passes=10, tolerance=0.02)
    assert n <= 10
    assert 0 < np.linalg.norm(near - exact) < 0.1 * np.linalg.norm(exact)


def test_rows_that_are_left_out_change_nothing(x, classes, costs):
    rows = np.arange(0, N, 2, dtype=np.int32)
    others = np.arange(1, N, 2)
    _, residuals, w, bias = fit(x, classes, costs, rows)
    assert not residuals[others].any()
    changed = classes.copy()
    changed[others] = 0
    assert_same_bits(w, fit(x, read_only(changed), costs, rows)[2])
    assert not np.array_equal(bias, fit(x, classes, costs)[3])


def test_a_fit_goes_on_with_more_rows(x, classes, costs):
    exact = fit(x, classes, costs)[2]
    start = fit(x, classes, costs, np.arange(0, N - 6, dtype=np.int32))[1:]
    n, _, near, _ = fit(x, classes, costs, n_passes=3, tolerance=0, start=start)
    anew = fit(x, classes, costs, n_passes=3, tolerance=0)[2]
    assert n == 3
    assert np.linalg.norm(near - exact) < 0.3 * np.linalg.norm(anew - exact)


def test_no_rows_and_no_classes_give_no_weights(x, classes, costs):
    n, _, w, bias = fit(x, classes, costs, np.zeros(0, np.int32))
    assert n == 0 and not w.any() and not bias.any()
    assert fit(x, classes, costs, n_classes=0)[0] == 0


def test_one_class_has_no_weights(x, costs):
    _, _, w, bias = fit(x, np.zeros(N, np.int32), costs, n_classes=1)
    assert np.abs(w).max() < 100 * UNIT and np.abs(bias).max() < 100 * UNIT
