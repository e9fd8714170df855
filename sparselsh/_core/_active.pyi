# Made by docs/make_stubs.py.
from numpy import float32, int32, int64, uint64
from numpy.typing import NDArray

def best_limits(
    indptr: NDArray[int64],
    indices: NDArray[int32],
    data: NDArray[float32],
    n_best: int,
    positive: bool,
    limits: NDArray[uint64],
    sizes: NDArray[int32],
    n_threads: int,
) -> None: ...
def keep_entries(
    indptr: NDArray[int64],
    indices: NDArray[int32],
    data: NDArray[float32],
    positive: bool,
    limits: NDArray[uint64],
    out_indptr: NDArray[int64],
    out_indices: NDArray[int32],
    out_data: NDArray[float32],
    n_threads: int,
) -> None: ...
def drop_dense(a: NDArray[float32], seed: int, rate: float, n_threads: int) -> None: ...
def drop_csr(
    indptr: NDArray[int64],
    indices: NDArray[int32],
    data: NDArray[float32],
    n_columns: int,
    seed: int,
    rate: float,
    n_threads: int,
) -> None: ...
