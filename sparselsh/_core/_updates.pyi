# Made by docs/make_stubs.py.
from typing import Any

from numpy import float32, int32, int64
from numpy.typing import NDArray

class Rule: ...
def sgd(lr: float, momentum: float, nesterov: bool, decay: float, step: int = 0) -> Rule: ...
def adam(lr: float, beta1: float, beta2: float, eps: float, decay: float, step: int) -> Rule: ...
def update_rows(
    rule: Rule,
    w: NDArray[Any],
    m: NDArray[Any] | None,
    v: NDArray[Any] | None,
    rows: NDArray[int32],
    dw: NDArray[float32],
    n_threads: int,
) -> None: ...
def update_all(
    rule: Rule,
    w: NDArray[Any],
    m: NDArray[Any] | None,
    v: NDArray[Any] | None,
    dw: NDArray[float32],
    n_threads: int,
) -> None: ...
def update_grouped(
    rule: Rule,
    w: NDArray[Any],
    m: NDArray[Any] | None,
    v: NDArray[Any] | None,
    rows: NDArray[int32],
    starts: NDArray[int64],
    entries: NDArray[int32],
    samples: NDArray[int32],
    data: NDArray[float32],
    x: NDArray[float32],
    n_threads: int,
) -> None: ...
def update_grouped_csr(
    rule: Rule,
    w: NDArray[Any],
    m: NDArray[Any] | None,
    v: NDArray[Any] | None,
    rows: NDArray[int32],
    starts: NDArray[int64],
    entries: NDArray[int32],
    samples: NDArray[int32],
    data: NDArray[float32],
    x_indptr: NDArray[int64],
    x_indices: NDArray[int32],
    x_data: NDArray[float32],
    n_threads: int,
) -> None: ...
def sum_groups(
    starts: NDArray[int64],
    entries: NDArray[int32],
    data: NDArray[float32],
    out: NDArray[float32],
) -> None: ...
def sum_columns(d_out: NDArray[float32], out: NDArray[float32], n_threads: int) -> None: ...
