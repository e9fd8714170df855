# Made by docs/make_stubs.py.
from typing import Any

from numpy import float32, int8, int32, int64
from numpy.typing import NDArray

def quantize_int8(
    w: NDArray[float32],
    rows: NDArray[int8],
    scales: NDArray[float32],
    n_threads: int,
) -> None: ...
def int8_errors(
    w: NDArray[float32],
    rows: NDArray[int8],
    scales: NDArray[float32],
    out: NDArray[float32],
    n_threads: int,
) -> None: ...
def weighted_rows(
    indptr: NDArray[int64],
    indices: NDArray[int32],
    data: NDArray[float32],
    rows: NDArray[Any],
    scales: NDArray[float32] | None,
    bias: NDArray[float32],
    out: NDArray[float32],
    n_threads: int,
) -> None: ...
