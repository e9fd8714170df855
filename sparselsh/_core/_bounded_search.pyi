# Made by docs/make_stubs.py.
from typing import Any

from numpy import float32, int32, int64, uint8, uint16
from numpy.typing import NDArray

class BoundedSearch: ...
TAIL_STEPS: int
TAIL_LENGTH: int
def prepare(
    query_rows: NDArray[uint16],
    query_constant: NDArray[float32],
    signs: NDArray[float32] | None,
    n_bits: int,
    n_dims: int,
    cell_start: NDArray[int32],
    cell: NDArray[int32],
    cell_biases: NDArray[float32],
    cell_sizes: NDArray[int32],
    cell_scales: NDArray[float32],
    cell_tails: NDArray[float32],
    n_spread: int,
    variance: float,
    bias_variance: float,
    blocks: NDArray[uint8],
    factors: NDArray[float32],
    errors: NDArray[float32],
    biases: NDArray[float32],
    ids: NDArray[int32],
    n: int,
    slot: NDArray[int32],
    short_ids: NDArray[int32],
    short_norms: NDArray[float32],
    offset: NDArray[float32],
    scale: float,
    w: NDArray[Any],
    bias: NDArray[float32],
    coarse: NDArray[Any] | None,
    coarse_scales: NDArray[float32] | None,
    deviations: float,
    cell_share: float,
    n_evidence: int,
    n_missing: float,
    short_deviations: float,
    euclidean: bool,
) -> BoundedSearch: ...
def top_k(
    search: BoundedSearch,
    x: NDArray[float32],
    able: NDArray[uint8] | None,
    indptr: NDArray[int64] | None,
    listed: NDArray[int32] | None,
    only: bool,
    out_ids: NDArray[int32],
    out_scores: NDArray[float32],
) -> None: ...
def top_k_batch(
    search: BoundedSearch,
    x: NDArray[float32],
    projected: NDArray[float32],
    able: NDArray[uint8] | None,
    indptr: NDArray[int64] | None,
    listed: NDArray[int32] | None,
    only: bool,
    out_ids: NDArray[int32],
    out_scores: NDArray[float32],
    counts: NDArray[int64],
    n_threads: int,
) -> None: ...
