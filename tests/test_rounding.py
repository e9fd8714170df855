"""Weights in 8 bits, rounded for the inputs that they meet."""
import numpy as np
import pytest

from sparselsh.inference import _rounding
from sparselsh.inference._int8_outputs import Int8Outputs


def few_directions(rng, n, d, n_directions):
    """Inputs near a few directions."""
    basis = rng.standard_normal((n_directions, d))
    x = rng.standard_normal((n, n_directions)) @ basis + 0.05 * rng.standard_normal((n, d))
    return x.astype(np.float32)


def error(weights, x, w):
    got = weights.estimates(x, w, np.zeros(len(w), np.float32), 1, 1)
    return np.linalg.norm(got - x @ w.T)


@pytest.mark.parametrize("d", [30, 64, 100])
def test_outputs_of_inputs_near_a_few_directions_err_less(rng, d):
    w = rng.standard_normal((500, d), dtype=np.float32)
    x = few_directions(rng, 600, d, 4)
    nearest, rounded = (Int8Outputs(w, 1, given) for given in (None, x[:300]))
    # four directions of d: most of what one weight loses, the others can make good
    assert error(rounded, x[300:], w) < 0.5 * error(nearest, x[300:], w)


def test_weights_are_rounded_to_the_nearest_where_inputs_tell_nothing(rng):
    w = rng.standard_normal((300, 96), dtype=np.float32)
    scales = np.abs(w).max(1) / np.float32(127)
    nearest = np.rint(w / scales[:, None]).astype(np.int8)
    for given in (rng.standard_normal((100, 96), dtype=np.float32),  # every direction the same
                  few_directions(rng, 40, 96, 3),                    # too few
                  np.zeros((200, 96), np.float32)):
        assert _rounding.rounded_for(w, nearest, scales, given, 1) is nearest


def test_rows_of_zeros_and_inputs_that_are_never_there_are_dealt_with(rng):
    w = rng.standard_normal((40, 80), dtype=np.float32)
    w[7] = 0
    x = few_directions(rng, 400, 80, 3)
    x[:, 20:30] = 0
    rounded = Int8Outputs(w, 1, x[:200])
    got = rounded.estimates(x[200:], w, np.zeros(40, np.float32), 1, 1)
    assert np.isfinite(got).all()
    np.testing.assert_array_equal(got[:, 7], 0)
    assert error(rounded, x[200:], w) < error(Int8Outputs(w, 1), x[200:], w)


def test_the_parts_and_threads_do_not_change_the_rounding(rng, monkeypatch):
    w = rng.standard_normal((700, 70), dtype=np.float32)
    x = few_directions(rng, 300, 70, 5)
    whole = Int8Outputs(w, 1, x)
    assert np.array_equal(whole.blocks, Int8Outputs(w, 2, x).blocks)
    monkeypatch.setattr(_rounding, "NEURONS_PER_CHUNK", 64)
    assert np.array_equal(whole.blocks, Int8Outputs(w, 1, x).blocks)
