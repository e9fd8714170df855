# Made by docs/make_stubs.py.
from numpy import float32, int32, int64
from numpy.typing import NDArray

def take_counts(
    indptr: NDArray[int64],
    rows: NDArray[int64],
    out_indptr: NDArray[int64],
) -> None: ...
def take_rows(
    indptr: NDArray[int64],
    indices: NDArray[int32],
    data: NDArray[float32],
    rows: NDArray[int64],
    out_indptr: NDArray[int64],
    out_indices: NDArray[int32],
    out_data: NDArray[float32],
) -> None: ...
def group_columns(
    indptr: NDArray[int64],
    indices: NDArray[int32],
    slot: NDArray[int32],
    rows: NDArray[int32],
    starts: NDArray[int64],
    entries: NDArray[int32],
    samples: NDArray[int32],
    n_threads: int,
) -> int: ...
