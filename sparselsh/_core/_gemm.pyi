# Made by docs/make_stubs.py.
from typing import Any

from numpy import float32, int32, int64
from numpy.typing import NDArray

from ._updates import Rule

def matmul(
    a: NDArray[float32],
    transpose_a: bool,
    b: NDArray[Any],
    transpose_b: bool,
    bias: NDArray[float32],
    c: NDArray[float32],
    n_threads: int,
    in_bfloat16: bool = False,
) -> None: ...
def active_outputs(
    x: NDArray[float32],
    w: NDArray[Any],
    rows: NDArray[int32],
    bias: NDArray[float32],
    z: NDArray[float32],
    n_threads: int,
    in_bfloat16: bool = False,
) -> None: ...
def active_input_gradient(
    dz: NDArray[float32],
    w: NDArray[Any],
    rows: NDArray[int32],
    dx: NDArray[float32],
    n_threads: int,
    in_bfloat16: bool = False,
) -> None: ...
def segment_input_gradients(
    dz: NDArray[float32],
    w: NDArray[Any],
    rows: NDArray[int32],
    bounds: NDArray[int64],
    out: NDArray[float32],
    n_threads: int,
    in_bfloat16: bool = False,
) -> None: ...
def active_update(
    rule: Rule,
    w: NDArray[Any],
    m: NDArray[Any] | None,
    v: NDArray[Any] | None,
    rows: NDArray[int32],
    dz: NDArray[float32],
    x: NDArray[float32],
    n_threads: int,
    in_bfloat16: bool = False,
) -> None: ...
