"""Activations of arrays (sparselsh._core._activations)."""
import numpy as np
import pytest
import reference
from support import assert_same_bits, gaussian, on_threads

from sparselsh._core import _activations
from sparselsh.inference.readers.affine import ACTIVATION_NUMBERS

pytestmark = pytest.mark.usefixtures("simd_level")

# the error function is approximated within 1.5e-7, other errors are of some roundings
MAX_ERROR = 4e-7


@pytest.mark.parametrize("name", ACTIVATION_NUMBERS)
@pytest.mark.parametrize("n, d", [(1, 1), (3, 17), (2, 1000), (0, 5), (3, 0)])
def test_activations_are_those_of_the_reference(rng, name, n, d):
    x = 4 * gaussian(rng, n, d)

    def call(n_threads):
        out = x.copy()
        _activations.activate(ACTIVATION_NUMBERS[name], out, n_threads)
        return out

    out = on_threads(call)
    want = reference.activation(name, x.astype(float))
    np.testing.assert_array_less(abs(out - want), MAX_ERROR * (1 + abs(x)))
    if name in (None, "relu"):
        assert_same_bits(out, want.astype(np.float32))


@pytest.mark.parametrize("name", [name for name in ACTIVATION_NUMBERS if name])
def test_far_inputs_have_the_limits(name):
    x = np.array([[-3e38, -1e4, -100, 100, 1e4, 3e38]], np.float32)
    want = reference.activation(name, x.astype(float))
    out = x.copy()
    _activations.activate(ACTIVATION_NUMBERS[name], out, 1)
    np.testing.assert_allclose(out, want, rtol=1e-6, atol=1e-6)
