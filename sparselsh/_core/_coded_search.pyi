# Made by docs/make_stubs.py.
from typing import Any

from numpy import float32, float64, int8, int32, int64, uint8
from numpy.typing import NDArray

LANES: int
GROUP: int
ROWS_PER_PART: int
def encode(
    v: NDArray[float32],
    rows: NDArray[int32],
    signs: NDArray[float32],
    blocks: NDArray[uint8],
    scales: NDArray[float32],
    errors: NDArray[float32],
    n_threads: int,
) -> None: ...
def scores(
    blocks: NDArray[uint8],
    scales: NDArray[float32],
    offsets: NDArray[float32],
    x: NDArray[int8],
    factors: NDArray[float32],
    out: NDArray[float32],
) -> None: ...
def top_k(
    blocks: NDArray[uint8],
    scales: NDArray[float32],
    errors: NDArray[float32],
    offsets: NDArray[float32],
    tops: NDArray[float32],
    lengths: NDArray[float32],
    ids: NDArray[int32],
    slot: NDArray[int32],
    signs: NDArray[float32],
    centre: NDArray[float32],
    middle: NDArray[float32] | None,
    w: NDArray[Any],
    bias: NDArray[float32],
    x: NDArray[float32],
    able: NDArray[uint8] | None,
    indptr: NDArray[int64] | None,
    listed: NDArray[int32] | None,
    only: bool,
    deviations: float,
    out_ids: NDArray[int32],
    out_scores: NDArray[float32],
    counts: NDArray[int64],
    doubts: NDArray[float64],
    n_threads: int,
) -> None: ...
