# Made by docs/make_stubs.py.
from typing import Any

from numpy import float32, int32, int64
from numpy.typing import NDArray

def sampled_dots(
    rows: NDArray[int32],
    starts: NDArray[int64],
    entries: NDArray[int32],
    samples: NDArray[int32],
    x: NDArray[float32],
    w: NDArray[Any],
    bias: NDArray[float32],
    out: NDArray[float32],
    n_threads: int,
) -> None: ...
def sampled_dots_csr(
    rows: NDArray[int32],
    starts: NDArray[int64],
    entries: NDArray[int32],
    samples: NDArray[int32],
    x_indptr: NDArray[int64],
    x_indices: NDArray[int32],
    x_data: NDArray[float32],
    w: NDArray[Any],
    bias: NDArray[float32],
    out: NDArray[float32],
    n_threads: int,
) -> None: ...
def weighted_rows(
    indptr: NDArray[int64],
    indices: NDArray[int32],
    data: NDArray[float32],
    w: NDArray[Any],
    bias: NDArray[float32],
    out: NDArray[float32],
    n_threads: int,
) -> None: ...
def sampled_columns(
    rows: NDArray[int32],
    starts: NDArray[int64],
    entries: NDArray[int32],
    samples: NDArray[int32],
    data: NDArray[float32],
    w: NDArray[Any],
    x_indptr: NDArray[int64],
    x_indices: NDArray[int32],
    out: NDArray[float32],
    n_threads: int,
) -> None: ...
