# Made by docs/make_stubs.py.
from numpy import float32
from numpy.typing import NDArray

ROUNDS: int
def rotate(
    v: NDArray[float32],
    width: int,
    signs: NDArray[float32],
    out: NDArray[float32],
    n_threads: int,
) -> None: ...
