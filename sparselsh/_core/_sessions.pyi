# Made by docs/make_stubs.py.
from typing import Any

from numpy import float32, float64, int32, int64
from numpy.typing import NDArray

class SessionRanker: ...
def prepare(
    arrays: tuple[NDArray[Any], ...],
    age_weights: NDArray[Any],
    input_weights: NDArray[Any],
    n_neighbors: int,
    layers: list[tuple[Any, ...]],
) -> SessionRanker: ...
def count(
    ranker: SessionRanker,
    indptr: NDArray[int64],
    queries: NDArray[int32],
    more: NDArray[int32],
    weights: NDArray[float64],
    ids: NDArray[int32],
    counts: NDArray[float32],
    outputs: NDArray[float32],
    ages: NDArray[int32],
    n_voted: NDArray[int64],
    n_threads: int,
) -> None: ...
def rank(
    ranker: SessionRanker,
    indptr: NDArray[int64],
    queries: NDArray[int32],
    more: NDArray[int32],
    parameters: NDArray[float64],
    trends: NDArray[float32],
    n_best: int,
    ids: NDArray[int32],
    probabilities: NDArray[float32],
    n_voted: NDArray[int64],
    n_threads: int,
) -> None: ...
def losses(
    ids: NDArray[int32],
    counts: NDArray[float32],
    outputs: NDArray[float32],
    ages: NDArray[int32],
    labels: NDArray[int32],
    trends: NDArray[float32],
    parameters: NDArray[float64],
    gradient: NDArray[float64],
) -> float: ...
