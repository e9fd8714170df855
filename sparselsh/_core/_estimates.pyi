# Made by docs/make_stubs.py.
from typing import Any

from numpy import float32, float64, int32, int64, uint8
from numpy.typing import NDArray

class Estimator: ...
def prepare(
    blocks: NDArray[uint8],
    factors: NDArray[float32],
    errors: NDArray[float32],
    biases: NDArray[float32],
    ids: NDArray[int32],
    n: int,
    n_neurons: int,
    short_ids: NDArray[int32],
    short_biases: NDArray[float32],
    short_errors: NDArray[float32],
    scale: float,
) -> Estimator: ...
def estimate(
    estimator: Estimator,
    rotated: NDArray[float32],
    units: NDArray[float64],
    unit_norms: NDArray[float64],
    shifts: NDArray[float64],
    out: NDArray[float32],
    deviations: NDArray[float32],
    n_threads: int,
) -> None: ...
def log_sum_exp_rows(z: NDArray[float32], out: NDArray[float64], n_threads: int) -> None: ...
def log_sum_exp(
    codes: NDArray[Any],
    scales: NDArray[float32] | None,
    code_errors: NDArray[float32],
    x: NDArray[float32],
    w: NDArray[Any],
    bias: NDArray[float32],
    wanted: float,
    out: NDArray[float64],
    errors: NDArray[float64],
    counts: NDArray[int64],
    n_threads: int,
) -> None: ...
def coded_outputs(
    codes: NDArray[Any],
    scales: NDArray[float32] | None,
    code_errors: NDArray[float32],
    bias: NDArray[float32],
    x: NDArray[float32],
    out: NDArray[float32],
    deviations: NDArray[float32],
    n_threads: int,
) -> None: ...
def score(
    ids: NDArray[int32],
    x: NDArray[float32],
    w: NDArray[Any],
    bias: NDArray[float32],
    out: NDArray[float32],
    n_threads: int,
) -> None: ...
def distances(
    ids: NDArray[int32],
    x: NDArray[float32],
    w: NDArray[float32],
    origin: NDArray[float32],
    exponent: int,
    out: NDArray[float32],
    n_threads: int,
) -> None: ...
