# Made by docs/make_stubs.py.
from typing import Any

from numpy import float32, int32, uint8, uint16
from numpy.typing import NDArray

class SingleQuerySearch: ...
def prepare(
    query_rows: NDArray[uint16],
    query_constant: NDArray[float32],
    n_bits: int,
    n_probed: int,
    cell_start: NDArray[int32],
    cell: NDArray[int32],
    blocks: NDArray[uint8],
    factors: NDArray[float32],
    ids: NDArray[int32],
    n: int,
    w: NDArray[Any],
    bias: NDArray[float32],
    coarse: NDArray[Any] | None,
    coarse_scales: NDArray[float32] | None,
    n_exact: int,
    n_best: int,
) -> SingleQuerySearch: ...
def top_k(
    s: SingleQuerySearch,
    x: NDArray[float32],
    out_ids: NDArray[int32],
    out_scores: NDArray[float32],
) -> None: ...
