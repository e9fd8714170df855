# Made by docs/make_stubs.py.
from numpy import float32, int8, int32
from numpy.typing import NDArray

LANES: int
GROUP: int
def pack_blocks(
    q: NDArray[int8],
    blocks: NDArray[int8],
    totals: NDArray[int32],
    n_threads: int,
) -> None: ...
def outputs(
    blocks: NDArray[int8],
    totals: NDArray[int32],
    scales: NDArray[float32],
    bias: NDArray[float32],
    x: NDArray[float32],
    activation: int,
    out: NDArray[float32],
    n_threads: int,
) -> None: ...
def exact_best(
    x: NDArray[float32],
    w: NDArray[float32],
    bias: NDArray[float32],
    candidates: NDArray[int32],
    ids: NDArray[int32],
    scores: NDArray[float32],
    n_threads: int,
) -> None: ...
