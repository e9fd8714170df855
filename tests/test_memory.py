"""Arrays that are aligned to cache lines."""
import numpy as np
import pytest

import sparselsh as sl
from sparselsh._arrays import aligned


@pytest.mark.parametrize("make", [aligned.empty, aligned.zeros])
@pytest.mark.parametrize("shape", [(0,), (1,), (3, 0), (7, 5), (300, 129)])
@pytest.mark.parametrize("dtype", [np.float32, np.uint16, np.float64])
def test_new_arrays_begin_at_a_cache_line(make, shape, dtype):
    array = make(shape, dtype)
    assert array.shape == shape and array.dtype == dtype
    assert array.flags.c_contiguous and array.flags.writeable and array.flags.aligned
    assert array.ctypes.data % aligned.ALIGNMENT == 0 or array.size == 0
    if make is aligned.zeros:
        assert not array.any()


def test_an_aligned_array_is_used_as_it_is_and_others_are_copied(rng):
    array = aligned.empty((8, 32))
    array[:] = rng.random(array.shape)
    assert aligned.aligned(array) is array
    for other in (aligned.aligned(array, copy=True), aligned.aligned(array.T),
                  aligned.aligned(array[1:, 1:])):
        assert not np.shares_memory(other, array)
        assert other.flags.c_contiguous and other.ctypes.data % aligned.ALIGNMENT == 0
    np.testing.assert_array_equal(aligned.aligned(array.T), array.T)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_and_optimizer_state_begin_at_cache_lines(rng, dtype):
    X, Y = np.eye(64, dtype=np.float32), np.eye(64, dtype=np.float32)
    net = sl.Network([sl.Linear(64, 32, dtype=dtype),
                      sl.LSHLinear(32, 64, density=0.25, dtype=dtype)], random_state=0)
    net.fit(X, Y, epochs=1, verbose=False)
    net.layers[1].set_weights(rng.random((64, 32), dtype=np.float32))
    net.fit(X, Y, optimizer=sl.Adam(state_dtype=dtype), epochs=1, verbose=False)
    for layer in net.layers:
        for array in (layer._w.value, *net.optimizer.arrays_of(layer._w)):
            assert array.ctypes.data % aligned.ALIGNMENT == 0
