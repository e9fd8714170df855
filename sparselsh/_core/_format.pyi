# Made by docs/make_stubs.py.
from numpy import float32, int32, int64, uint8
from numpy.typing import NDArray

MAX_ID_BYTES: int
MAX_VALUE_BYTES: int
def format_rows(
    x_indptr: NDArray[int64],
    x_indices: NDArray[int32],
    x_data: NDArray[float32],
    y_indptr: NDArray[int64],
    y_indices: NDArray[int32],
    first: int,
    last: int,
    base: int,
    out: NDArray[uint8],
) -> int: ...
