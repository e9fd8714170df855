# Made by docs/make_stubs.py.
from numpy import float32, int32
from numpy.typing import NDArray

def pack_codes(
    projections: NDArray[float32],
    n_bits: int,
    codes: NDArray[int32],
    n_threads: int,
) -> None: ...
def sign_codes(
    v: NDArray[float32],
    planes: NDArray[float32],
    n_bits: int,
    codes: NDArray[int32],
    n_threads: int,
    in_bfloat16: bool = False,
) -> None: ...
def probe_signs(
    projections: NDArray[float32],
    n_bits: int,
    codes: NDArray[int32],
    n_threads: int,
) -> None: ...
def nearest_vertices(
    projections: NDArray[float32],
    n_dims: int,
    n_polytopes: int,
    codes: NDArray[int32],
    n_threads: int,
) -> None: ...
