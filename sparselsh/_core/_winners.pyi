# Made by docs/make_stubs.py.
from numpy import float32, int32, int64
from numpy.typing import NDArray

def winners(
    indptr: NDArray[int64],
    indices: NDArray[int32] | None,
    data: NDArray[float32],
    places: NDArray[int32],
    bin_size: int,
    n_digits: int,
    seed: int,
    codes: NDArray[int32],
    n_threads: int,
) -> None: ...
def minima(
    indptr: NDArray[int64],
    indices: NDArray[int32] | None,
    data: NDArray[float32],
    n_digits: int,
    n_bits: int,
    seed: int,
    codes: NDArray[int32],
    n_threads: int,
) -> None: ...
