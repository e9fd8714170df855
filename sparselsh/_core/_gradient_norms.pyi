# Made by docs/make_stubs.py.
from numpy import float32, float64, int32, int64
from numpy.typing import NDArray

RUN_LENGTH: int
def squares(a: NDArray[float32], out: NDArray[float64], n_threads: int) -> None: ...
def active_squares(
    dz: NDArray[float32],
    x: NDArray[float32],
    out: NDArray[float64],
    n_threads: int,
) -> None: ...
def grouped_squares(
    starts: NDArray[int64],
    entries: NDArray[int32],
    samples: NDArray[int32],
    data: NDArray[float32],
    x: NDArray[float32],
    out: NDArray[float64],
    n_threads: int,
) -> None: ...
def grouped_squares_csr(
    starts: NDArray[int64],
    entries: NDArray[int32],
    samples: NDArray[int32],
    data: NDArray[float32],
    x_indptr: NDArray[int64],
    x_indices: NDArray[int32],
    x_data: NDArray[float32],
    d: int,
    out: NDArray[float64],
    n_threads: int,
) -> None: ...
