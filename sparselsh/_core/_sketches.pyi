# Made by docs/make_stubs.py.
from typing import Any

from numpy import float32, float64, int32, uint8
from numpy.typing import NDArray

NEURONS_PER_BLOCK: int
def pack(rotated: NDArray[float32], rows: NDArray[int32], blocks: NDArray[uint8]) -> None: ...
def refine(
    rotated: NDArray[float32],
    gram: NDArray[float32],
    signs: NDArray[float32],
    sums: NDArray[float32],
    products: NDArray[float64],
    squares: NDArray[float64],
    n_sweeps: int,
    n_threads: int,
) -> None: ...
def scan(
    queries: NDArray[float32],
    blocks: NDArray[uint8],
    factors: NDArray[float32],
    biases: NDArray[float32] | None,
    ids: NDArray[int32],
    n: int,
    out_ids: NDArray[int32],
    out_scores: NDArray[float32],
    n_threads: int,
) -> None: ...
def rerank(
    ids: NDArray[int32],
    x: NDArray[float32],
    w: NDArray[Any],
    scales: NDArray[float32] | None,
    bias: NDArray[float32],
    out_ids: NDArray[int32],
    out_scores: NDArray[float32],
    n_threads: int,
) -> None: ...
def copy_slots(
    sources: NDArray[int32],
    targets: NDArray[int32],
    blocks: NDArray[uint8],
    factors: NDArray[float32],
    out_blocks: NDArray[uint8],
    out_factors: NDArray[float32],
) -> None: ...
def rank(
    queries: NDArray[float32],
    candidates: NDArray[int32],
    blocks: NDArray[uint8],
    factors: NDArray[float32],
    biases: NDArray[float32] | None,
    slot: NDArray[int32],
    out_ids: NDArray[int32],
    n_threads: int,
) -> None: ...
