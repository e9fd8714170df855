# Made by docs/make_stubs.py.
from numpy import float32, int32, int64
from numpy.typing import NDArray

def fit(
    indptr: NDArray[int64],
    indices: NDArray[int32],
    data: NDArray[float32],
    norms: NDArray[float32],
    classes: NDArray[int32],
    costs: NDArray[float32],
    n_passes: int,
    tolerance: float,
    seed: int,
    order: NDArray[int32],
    residuals: NDArray[float32],
    w: NDArray[float32],
    bias: NDArray[float32],
) -> None: ...
