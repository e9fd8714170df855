"""The kernel of fast rotations (sparselsh._core._rotations)."""
import numpy as np
import pytest
from scipy.linalg import hadamard
from support import UNIT, gaussian, on_threads, unwritten

from sparselsh._core import _rotations
from sparselsh.index._rotations import FastRotation, signs_shape

pytestmark = pytest.mark.usefixtures("simd_level")

# powers of two, and widths whose last coordinates overlap with the first
WIDTHS = [1, 2, 3, 16, 20, 64, 100, 129, 512, 784]


def matrix_of(signs, width):
    """The matrix of one rotation, by matrix products in float64."""
    order = signs.shape[1]
    R = np.eye(width)
    for r in range(2 if order == width else 4):
        first = width - order if r % 2 else 0
        part = slice(first, first + order)
        R[part] = hadamard(order) / np.sqrt(order) @ (signs[r][:, None] * R[part])
    return R


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("n_rotations", [1, 2])
def test_rows_are_rotated_as_by_matrices(rng, width, n_rotations):
    signs = rng.choice(np.float32([-1, 1]), signs_shape(n_rotations * width, width))
    v = gaussian(rng, 5, width + 3)  # numbers beyond the width do not count
    n_out = max(1, n_rotations * width - 1)

    def call(n_threads):
        out = unwritten((5, n_out), np.float32)
        _rotations.rotate(v, width, signs, out, n_threads)
        return out

    R = np.concatenate([matrix_of(each, width) for each in signs])[:n_out]
    x = v[:, :width].astype(float)
    bound = 64 * UNIT * np.linalg.norm(x, axis=1, keepdims=True)
    assert np.all(np.abs(on_threads(call) - x @ R.T) <= bound)


def test_a_rotation_keeps_lengths_and_angles(rng):
    rotation = FastRotation.drawn(784, 784, rng)
    np.testing.assert_allclose(rotation.matrix @ rotation.matrix.T, np.eye(784), atol=1e-5)


def test_no_rows_and_no_columns(rng):
    signs = np.ones((1, 4, 4), np.float32)
    _rotations.rotate(gaussian(rng, 0, 4), 4, signs, unwritten((0, 4), np.float32), 1)
    _rotations.rotate(gaussian(rng, 3, 4), 4, signs, unwritten((3, 0), np.float32), 1)


def test_signs_are_like_those_of_random_rotations():
    """Errors of the estimates have the deviations and the tails of the normal law."""
    rng = np.random.default_rng(0)
    steps = np.cumsum(rng.standard_normal((300, 600)), axis=1)  # neighbouring inputs are alike
    V = (steps - steps.mean(axis=0)).astype(np.float32)
    X = V[:50] + rng.standard_normal((50, 600)).astype(np.float32) * V.std()
    V = V[50:]
    n_bits, n_dims, z = 448, 600, []
    for _ in range(8):
        rotation = FastRotation.drawn(n_bits, n_dims, rng)
        rotated, queries = (rotation.of_rows(A, 1).astype(float) for A in (V, X))
        squares = (V.astype(float)**2).sum(axis=1)
        factors = squares / np.abs(rotated).sum(axis=1)
        errors = np.sqrt(factors**2 * n_bits - squares)
        true = X.astype(float) @ V.T
        rest = np.sqrt((X.astype(float)**2).sum(axis=1)[:, None] - true**2 / squares)
        z.append((queries @ np.sign(rotated).T * factors - true)
                 / (errors * rest / np.sqrt(n_dims - 1)))
    assert abs(np.mean(z)) < 0.05
    assert 0.9 < np.std(z) < 1.1
    assert 0.015 < (np.abs(z) > 2.0).mean() / 2 < 0.03
    assert (np.abs(z) > 4.5).mean() < 1e-4
