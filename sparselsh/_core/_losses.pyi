# Made by docs/make_stubs.py.
from numpy import float32, int32, int64
from numpy.typing import NDArray

def softmax_cross_entropy(
    offsets: NDArray[int64],
    z: NDArray[float32],
    indptr: NDArray[int64],
    positions: NDArray[int32],
    scale: float,
    losses: NDArray[float32],
    n_threads: int,
) -> None: ...
def softmax_parts(
    offsets: NDArray[int64],
    z: NDArray[float32],
    indptr: NDArray[int64],
    positions: NDArray[int32],
    parts: NDArray[float32],
    n_threads: int,
) -> None: ...
def join_softmax_parts(
    left: NDArray[float32],
    right: NDArray[float32],
    out: NDArray[float32],
) -> None: ...
def softmax_of_parts(
    offsets: NDArray[int64],
    z: NDArray[float32],
    indptr: NDArray[int64],
    positions: NDArray[int32],
    parts: NDArray[float32],
    whole: NDArray[float32],
    n_targets: NDArray[int64],
    scale: float,
    losses: NDArray[float32],
    n_threads: int,
) -> None: ...
def binary_cross_entropy(
    offsets: NDArray[int64],
    z: NDArray[float32],
    indptr: NDArray[int64],
    positions: NDArray[int32],
    scale: float,
    losses: NDArray[float32],
    n_threads: int,
) -> None: ...
def squared_error(
    offsets: NDArray[int64],
    z: NDArray[float32],
    indptr: NDArray[int64],
    positions: NDArray[int32],
    values: NDArray[float32],
    scale: float,
    losses: NDArray[float32],
    n_threads: int,
) -> None: ...
def locate(
    indptr: NDArray[int64],
    indices: NDArray[int32],
    label_indptr: NDArray[int64],
    labels: NDArray[int32],
    positions: NDArray[int32],
) -> None: ...
def locate_shared(
    ids: NDArray[int32],
    labels: NDArray[int32],
    positions: NDArray[int32],
) -> None: ...
