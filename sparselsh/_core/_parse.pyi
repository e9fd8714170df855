# Made by docs/make_stubs.py.
from _typeshed import ReadableBuffer
from numpy import float32, int32, int64
from numpy.typing import NDArray

KINDS: tuple[str, ...]
def count(text: ReadableBuffer) -> tuple[int, int, int]: ...
def parse(
    text: ReadableBuffer,
    start: int,
    line: int,
    header: bool,
    max_rows: int,
    n_features: int,
    n_labels: int,
    x_indptr: NDArray[int64],
    x_indices: NDArray[int32],
    x_data: NDArray[float32],
    y_indptr: NDArray[int64],
    y_indices: NDArray[int32],
) -> tuple[int, int, int, int]: ...
