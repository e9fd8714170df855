# Made by docs/make_stubs.py.
from numpy import float32, int32, int64, uint8
from numpy.typing import NDArray

def count_opponents(
    indptr: NDArray[int64],
    indices: NDArray[int32],
    is_used: NDArray[uint8],
    candidates: NDArray[int32],
    counts: NDArray[int64],
) -> None: ...
def list_opponents(
    indptr: NDArray[int64],
    indices: NDArray[int32],
    is_used: NDArray[uint8],
    candidates: NDArray[int32],
    places: NDArray[int64],
    samples: NDArray[int32],
) -> None: ...
def move_duals(
    starts: NDArray[int64],
    samples: NDArray[int32],
    duals: NDArray[float32],
    rows: NDArray[int32],
    new_starts: NDArray[int64],
    new_samples: NDArray[int32],
    places: NDArray[int32],
    new_duals: NDArray[float32],
) -> None: ...
def fit(
    starts: NDArray[int64],
    samples: NDArray[int32],
    indptr: NDArray[int64],
    indices: NDArray[int32],
    data: NDArray[float32],
    norms: NDArray[float32],
    costs: NDArray[float32],
    n_passes: int,
    n_passes_again: int,
    tolerance: float,
    threshold: float,
    seed: int,
    places: NDArray[int64],
    work: NDArray[float32],
    ids: NDArray[int32],
    values: NDArray[float32],
    sizes: NDArray[int32],
    bias: NDArray[float32],
    duals: NDArray[float32],
    n_threads: int,
) -> None: ...
def rerank(
    indptr: NDArray[int64],
    indices: NDArray[int32],
    data: NDArray[float32],
    w_indptr: NDArray[int64],
    w_indices: NDArray[int32],
    w_data: NDArray[float32],
    bias: NDArray[float32],
    scale: float,
    by_feature: bool,
    normalized: bool,
    ids: NDArray[int32],
    scores: NDArray[float32],
    work: NDArray[float32],
    out_ids: NDArray[int32],
    out_scores: NDArray[float32],
    n_threads: int,
) -> None: ...
