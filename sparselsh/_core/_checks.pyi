# Made by docs/make_stubs.py.
from numpy import float32, int32
from numpy.typing import NDArray

def are_rows(
    indptr: NDArray[int32],
    indices: NDArray[int32],
    data: NDArray[float32],
    n_columns: int,
    without_zeros: bool = False,
) -> bool: ...
