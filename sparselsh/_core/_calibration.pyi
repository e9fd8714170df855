# Made by docs/make_stubs.py.
from numpy import float32, float64, uint8
from numpy.typing import NDArray

class Parameters: ...
def losses(
    scores: NDArray[float32],
    hit: NDArray[uint8],
    n_missed: NDArray[float64],
    weight: NDArray[float64],
    knots: NDArray[float64],
    slopes: NDArray[float64],
    costs: NDArray[float64],
    log_t: NDArray[float64],
    best: NDArray[float64],
    rest: NDArray[float64],
    classes: bool,
    has_tail: bool,
    d_log_t: NDArray[float64],
    d_best: NDArray[float64],
    d_rest: NDArray[float64],
    d_slopes: NDArray[float64],
    d_costs: NDArray[float64],
) -> float: ...
def prepare(
    knots: NDArray[float64],
    location: NDArray[float64],
    spread: NDArray[float64],
    temperature: NDArray[float64],
    slopes: NDArray[float64],
    rank: NDArray[float64],
    rank_steps: NDArray[float64],
    best: NDArray[float64],
    rest: NDArray[float64],
    first_at: NDArray[float64],
    first_shift: NDArray[float64],
    classes: bool,
    n_labels: int,
    n_ranked: int,
) -> Parameters: ...
def ranked(
    parameters: Parameters,
    scores: NDArray[float32],
    p: NDArray[float32],
    rests: NDArray[float64],
) -> None: ...
