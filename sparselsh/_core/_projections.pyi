# Made by docs/make_stubs.py.
from numpy import float32, int8, int32, int64
from numpy.typing import NDArray

def signed_sums(
    v: NDArray[float32],
    starts: NDArray[int64],
    ids: NDArray[int32],
    out: NDArray[float32],
    n_threads: int,
) -> None: ...
def signed_sums_csr(
    indptr: NDArray[int64],
    indices: NDArray[int32] | None,
    data: NDArray[float32],
    signs: NDArray[int8],
    out: NDArray[float32],
    n_threads: int,
) -> None: ...
def rotate(
    indptr: NDArray[int64],
    indices: NDArray[int32] | None,
    data: NDArray[float32],
    signs: NDArray[float32],
    out: NDArray[float32],
    n_threads: int,
) -> None: ...
