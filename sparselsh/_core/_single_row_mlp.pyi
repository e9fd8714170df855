# Made by docs/make_stubs.py.
from typing import Any

from numpy import float32, int32
from numpy.typing import NDArray

from ._bounded_search import BoundedSearch
from ._calibration import Parameters
from ._text import TextRows

class SingleRowMLP: ...
def prepare(
    layers: list[tuple[Any, ...]],
    search: BoundedSearch | None,
    classifiers: tuple[Any, ...] | None,
    calibration: Parameters | None,
) -> SingleRowMLP: ...
def top_k(
    mlp: SingleRowMLP,
    x: NDArray[float32],
    out_ids: NDArray[int32],
    out_scores: NDArray[float32],
) -> None: ...
def top_k_sparse(
    mlp: SingleRowMLP,
    indices: NDArray[int32],
    data: NDArray[float32],
    out_ids: NDArray[int32],
    out_scores: NDArray[float32],
) -> None: ...
def top_k_text(
    mlp: SingleRowMLP,
    plan: TextRows,
    text: bytes,
    names: list[str],
    k: int,
    threshold: float,
) -> list[tuple[str, float]]: ...
