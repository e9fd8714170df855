# Made by docs/make_stubs.py.
from numpy import float32, int32, int64
from numpy.typing import NDArray

def top_k(
    scores: NDArray[float32],
    ids: NDArray[int32] | None,
    out_ids: NDArray[int32],
    out_scores: NDArray[float32],
    n_threads: int,
) -> None: ...
def batch_union(
    labels: NDArray[int32],
    candidates: NDArray[int32],
    n_wanted: int,
    fill: bool,
    seed: int,
    slot: NDArray[int32],
    spare: NDArray[int32],
    out: NDArray[int32],
) -> int: ...
def hashed_union(
    labels: NDArray[int32],
    candidates: NDArray[int32],
    n_wanted: int,
    fill: bool,
    seed: int,
    n_neurons: int,
    spare: NDArray[int32],
    out: NDArray[int32],
) -> int: ...
def sample_union(
    label_indptr: NDArray[int64],
    labels: NDArray[int32],
    candidates: NDArray[int32],
    n_wanted: int,
    fill: bool,
    seed: int,
    slot: NDArray[int32],
    spare: NDArray[int32],
    out: NDArray[int32],
    sizes: NDArray[int32],
    n_threads: int,
) -> None: ...
def compact(padded: NDArray[int32], indptr: NDArray[int64], indices: NDArray[int32]) -> None: ...
