# Made by docs/make_stubs.py.
from numpy import float32, float64, int32, int64, uint8, uint64
from numpy.typing import NDArray

class TextRows: ...
class NgramCounts: ...
def prepare(
    is_word: NDArray[uint8],
    slots: NDArray[uint64],
    offsets: NDArray[int64],
    strings: NDArray[uint8],
    idf: NDArray[float64],
    n_features: int,
    lowercase: bool,
    n_min: int,
    n_max: int,
    sublinear: bool,
    normalize: bool,
) -> TextRows: ...
def room(plan: TextRows, starts: NDArray[int64], places: NDArray[int64]) -> None: ...
def rows(
    plan: TextRows,
    text: NDArray[uint8],
    starts: NDArray[int64],
    places: NDArray[int64],
    ids: NDArray[int32],
    values: NDArray[float32],
    sizes: NDArray[int64],
    n_threads: int,
) -> None: ...
def row(plan: TextRows, text: bytes, ids: NDArray[int32], values: NDArray[float32]) -> int: ...
def join(
    places: NDArray[int64],
    ids: NDArray[int32],
    values: NDArray[float32],
    indptr: NDArray[int64],
    out_ids: NDArray[int32],
    out_values: NDArray[float32],
    n_threads: int,
) -> None: ...
def ngrams(plan: TextRows, text: bytes, words: NDArray[uint8], found: NDArray[int64]) -> int: ...
def murmur(key: bytes) -> int: ...
def fill_slots(
    offsets: NDArray[int64],
    strings: NDArray[uint8],
    slots: NDArray[uint64],
) -> bool: ...
def find(
    plan: TextRows,
    offsets: NDArray[int64],
    strings: NDArray[uint8],
    ids: NDArray[int32],
) -> None: ...
def counter(is_word: NDArray[uint8], lowercase: bool, n_min: int, n_max: int) -> NgramCounts: ...
def count(c: NgramCounts, text: NDArray[uint8], starts: NDArray[int64]) -> int: ...
def counted(c: NgramCounts, counts: NDArray[int32], lengths: NDArray[int64]) -> None: ...
def take_ngrams(
    c: NgramCounts,
    chosen: NDArray[int64],
    offsets: NDArray[int64],
    strings: NDArray[uint8],
) -> None: ...
