"""The map from scores to probabilities, against its formulas in NumPy."""
import numpy as np
import pytest
import reference
from support import read_only, unwritten

from sparselsh._core import _calibration


def parameters(rng, classes):
    """Arguments of the map, of the sizes that a calibration has."""
    at = np.sort(rng.normal(0, 2, 5))
    return read_only(
        np.array([0.0, 1.0, 2.5, 6.0]), rng.normal(0, 1, 4), rng.uniform(0.5, 2, 4),
        rng.normal(0, 0.2, 17), rng.normal(0, 0.5, 4), rng.normal(0.2, 0.4, 5),
        np.array([1.0, 2.0, 3.0, 5.0]), rng.normal(0, 0.3, 17), rng.normal(-1, 0.3, 17), at,
        rng.normal(0, 0.7, 5))


def scores_of(rng, n, n_ranked):
    scores = -np.sort(rng.normal(0, 3, (n, n_ranked)), axis=1).astype(np.float32)
    for i in range(0, n, 3):  # rows that have found fewer
        scores[i, rng.integers(0, n_ranked + 1):] = -np.inf
    return -np.sort(-scores, axis=1)


@pytest.mark.parametrize("classes", [True, False], ids=["classes", "labels"])
@pytest.mark.parametrize("n, n_ranked, n_labels", [
    (40, 12, 300), (40, 12, 12), (9, 1, 1), (9, 1, 5), (9, 2, 2), (0, 5, 9), (300, 7, 8)])
def test_probabilities_are_those_of_the_formulas(rng, classes, n, n_ranked, n_labels):
    scores = read_only(scores_of(rng, n, n_ranked))
    arguments = (scores, *parameters(rng, classes), classes, n_labels)
    p, rest = unwritten((n, n_ranked), np.float32), unwritten(n, np.float64)
    _calibration.ranked(*arguments, p, rest)
    want, want_rest = reference.ranked(*arguments)
    # float32 outputs of a sum of exponentials of float32 differences
    np.testing.assert_allclose(p, want, rtol=2e-6, atol=2e-7)
    np.testing.assert_allclose(rest, want_rest, rtol=2e-6)
    falls = np.diff(p, axis=1) < 0
    assert (falls | (p[:, 1:] == 0)).all()
    assert (p[np.isneginf(scores)] == 0).all() and (p >= 0).all() and (p <= 1).all()
