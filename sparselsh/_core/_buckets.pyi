# Made by docs/make_stubs.py.
from numpy import int32, uint8, uint64
from numpy.typing import NDArray

def capacity(n: int, n_buckets: int, slack: bool) -> int: ...
def build(
    codes: NDArray[int32],
    slack: bool,
    ids: NDArray[int32],
    start: NDArray[int32],
    count: NDArray[int32],
    room: NDArray[int32],
    tail: NDArray[int32],
    n_threads: int,
) -> None: ...
def move(
    rows: NDArray[int32],
    new_codes: NDArray[int32],
    codes: NDArray[int32],
    ids: NDArray[int32],
    start: NDArray[int32],
    count: NDArray[int32],
    room: NDArray[int32],
    tail: NDArray[int32],
    n_threads: int,
) -> None: ...
def insert(
    codes: NDArray[int32],
    samples: NDArray[int32],
    neurons: NDArray[int32],
    ids: NDArray[int32],
    start: NDArray[int32],
    count: NDArray[int32],
    room: NDArray[int32],
    tail: NDArray[int32],
    full: NDArray[uint8],
    n_threads: int,
) -> None: ...
def draw(
    codes: NDArray[int32],
    ids: NDArray[int32],
    start: NDArray[int32],
    count: NDArray[int32],
    seed: int,
    seen: NDArray[uint8],
    keys: NDArray[uint64],
    order: NDArray[int32],
    out_ids: NDArray[int32],
    n_threads: int,
) -> None: ...
def collide(
    codes: NDArray[int32],
    ids: NDArray[int32],
    start: NDArray[int32],
    count: NDArray[int32],
    min_count: int,
    names: NDArray[int32] | None,
    seen: NDArray[uint8],
    keys: NDArray[uint64],
    out_ids: NDArray[int32],
    out_counts: NDArray[int32],
    n_threads: int,
) -> None: ...
