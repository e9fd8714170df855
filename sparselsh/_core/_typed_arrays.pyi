# Made by docs/make_stubs.py.
from typing import Any

from numpy import float32, int32, uint16
from numpy.typing import NDArray

def to_float32(x: NDArray[uint16], y: NDArray[float32]) -> None: ...
def to_bfloat16(x: NDArray[float32], y: NDArray[uint16]) -> None: ...
def block_sums(w: NDArray[Any], n_rows: int, out: NDArray[float32], n_threads: int) -> None: ...
def centred_rows(
    w: NDArray[Any],
    bias: NDArray[float32],
    offset: NDArray[float32],
    rows: NDArray[int32],
    out: NDArray[float32],
    n_threads: int,
) -> None: ...
