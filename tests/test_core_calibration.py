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
    arguments = (*parameters(rng, classes), classes, n_labels)
    p, rest = unwritten((n, n_ranked), np.float32), unwritten(n, np.float64)
    _calibration.ranked(_calibration.prepare(*arguments, n_ranked), scores, p, rest)
    want, want_rest = reference.ranked(scores, *arguments)
    # float32 outputs of a sum of exponentials of float32 differences
    np.testing.assert_allclose(p, want, rtol=2e-6, atol=2e-7)
    np.testing.assert_allclose(rest, want_rest, rtol=2e-6)
    falls = np.diff(p, axis=1) < 0
    assert (falls | (p[:, 1:] == 0)).all()
    assert (p[np.isneginf(scores)] == 0).all() and (p >= 0).all() and (p <= 1).all()


@pytest.mark.parametrize("classes", [True, False], ids=["classes", "labels"])
@pytest.mark.parametrize("n, n_ranked, has_tail", [
    (30, 12, True), (30, 12, False), (9, 1, True), (0, 5, True)])
def test_losses_and_their_derivatives_are_those_of_the_formula(rng, classes, n, n_ranked, has_tail):
    scores = scores_of(rng, n, n_ranked)
    hit = np.zeros(scores.shape, np.uint8)
    n_missed = np.zeros(n)
    for i in range(n):
        true = rng.integers(0, n_ranked + 1, 1 if classes else 3)
        inside = [r for r in true if r < n_ranked and np.isfinite(scores[i, r])]
        hit[i, inside] = 1
        n_missed[i] = len(true) - len(inside)
    weight = np.where(np.isfinite(scores[:, 0]), rng.uniform(0.5, 2, n), 0)  # one row has no score
    fixed = read_only(scores, hit, n_missed, weight, np.array([0.0, 0.5, 1.0, 2.0]))
    parts = [rng.uniform(0.2, 1, 4), rng.uniform(0, 1, n_ranked), rng.normal(0, 0.3, n),
             rng.normal(-1, 1, n), rng.normal(-1, 1, n)]
    slopes = unwritten(4, np.float64)
    slopes[:] = 0
    by_cost = np.zeros(n_ranked)
    by_row = [unwritten(n, np.float64) for _ in range(3)]
    got = _calibration.losses(*fixed, *read_only(*parts), classes, has_tail, *by_row, slopes,
                              by_cost)
    assert got == pytest.approx(reference.calibration_loss(*fixed, *parts, classes, has_tail))

    step = 1e-5
    for i, found in enumerate([slopes, by_cost, *by_row]):
        for j in range(len(parts[i])):
            values = []
            for sign in (1, -1):
                moved = [part.copy() for part in parts]
                # by the logarithm of a slope, as that is what is fitted
                moved[i][j] = (moved[i][j] * np.exp(sign * step) if i == 0 else
                               moved[i][j] + sign * step)
                values.append(reference.calibration_loss(*fixed, *moved, classes, has_tail))
            # a central difference: its error is of the order of the square of the step
            assert found[j] == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-6,
                                                 abs=1e-6)
