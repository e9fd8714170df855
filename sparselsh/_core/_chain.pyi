# Made by docs/make_stubs.py.
from typing import Any

from numpy import float32, int32
from numpy.typing import NDArray

from ._search import Search

class Chain: ...
def chain(layers: list[tuple[Any, ...]], search: Search | None) -> Chain: ...
def ask(c: Chain, x: NDArray[float32], out_ids: NDArray[int32], out_scores: NDArray[float32]) -> None: ...
def ask_sparse(
    c: Chain,
    indices: NDArray[int32],
    data: NDArray[float32],
    out_ids: NDArray[int32],
    out_scores: NDArray[float32],
) -> None: ...
