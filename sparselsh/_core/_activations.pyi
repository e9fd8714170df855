# Made by docs/make_stubs.py.
from numpy import float32
from numpy.typing import NDArray

def activate(number: int, x: NDArray[float32], n_threads: int) -> None: ...
