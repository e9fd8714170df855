"""Where training rows come from, and how they become batches.

A source gives *blocks*, triples (X, Y, weight) of checked rows, `weight` an array or None: matrices are one block, a
CSR file is read in windows, an iterable is taken chunk by chunk. A window is let go of before the next is read; of
chunks, two may be in memory when the next is made. Rows are shuffled inside a block; batches run on over the border of
two blocks, so that where blocks end changes nothing but the reach of the shuffling.
"""
from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from .. import _validation as check
from .._arrays.csr import CSR, concatenate
from .._arrays.scipy import sp
from ..datasets import CSRFile, read_window

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from .._arrays.types import Floats

Source: TypeAlias = "_Matrices | _File | _Chunks"
Block: TypeAlias = tuple[Any, CSR, Any]  # X, an array or CSR, Y, and weights or None
WINDOW_ROWS = 65_536  # rows of a file in memory at a time


def source_of(X: Any, Y: Any, window: int, n_epochs: int, check_data: Callable[..., tuple[Any, CSR]],
           sample_weight: Any = None) -> Source:
    """What `fit` was given, as an object with `blocks()`, `is_sparse` and `n_rows`.

    `check_data(X, Y, x_name, y_name)` checks one pair.
    """
    if isinstance(X, CSRFile):
        if Y is not None:
            raise ValueError("Y must be None where X is a CSR file, which has the labels too")
        return _File(X, window, check.sample_weight(sample_weight, len(X)))
    if Y is not None:
        X, Y = check_data(X, Y, "X", "Y")
        return _Matrices(X, Y, check.sample_weight(sample_weight, X.shape[0]))
    if sp.issparse(X) or isinstance(X, (np.ndarray, str, os.PathLike)) or not hasattr(X, "__iter__"):
        raise TypeError(f"Y is missing, and X, {type(X).__name__}, is neither a CSR file nor an iterable of (X, Y): "
                        "give Y, open_csr(path), or chunks")
    if sample_weight is not None:
        raise ValueError("sample_weight must be None where X is an iterable of chunks; give matrices or a CSR file")
    return _Chunks(X, n_epochs, check_data)


def batches(blocks: Iterable[Block], batch_size: int, rng: np.random.Generator | None = None) -> Iterator[Block]:
    """Yield batches (x, y, weight) of `batch_size` rows, the last perhaps smaller, shuffled inside blocks by `rng`."""
    started, n_started = [], 0  # parts of a batch that goes on in the next block
    for X, Y, weight in blocks:
        n = X.shape[0]
        order = np.arange(n) if rng is None else rng.permutation(n)
        stop = 0
        while stop < n:
            rows = order[stop:stop + batch_size - n_started]
            stop += len(rows)
            started.append((_take(X, rows), Y.take(rows), None if weight is None else weight[rows]))
            n_started += len(rows)
            if n_started == batch_size:
                yield _joined(started)
                started, n_started = [], 0
        del X, Y, weight, order  # before the next block comes
    if started:
        yield _joined(started)


def _take(X: Floats | CSR, rows: np.ndarray) -> Floats | CSR:
    return X.take(rows) if isinstance(X, CSR) else X[rows]


def _joined(parts: list[Block]) -> Block:
    if len(parts) == 1:
        return parts[0]
    xs, ys, weights = zip(*parts, strict=True)
    return ((concatenate(xs) if isinstance(xs[0], CSR) else np.concatenate(xs)), concatenate(ys),
            None if weights[0] is None else np.concatenate(weights))


class _Matrices:
    """X and Y in memory: one block."""

    def __init__(self, X: Floats | CSR, Y: CSR, weight: Floats | None) -> None:
        self.X, self.Y, self.weight = X, Y, weight
        self.n_rows = X.shape[0]
        self.is_sparse = isinstance(X, CSR)

    def blocks(self) -> Iterator[Block]:
        yield self.X, self.Y, self.weight


class _File:
    """A CSR file: a block is a window of consecutive rows."""

    is_sparse = True

    def __init__(self, file: CSRFile, window: int, weight: Floats | None) -> None:
        self.file, self.window, self.weight = file, window, weight
        self.n_rows = len(file)

    def blocks(self) -> Iterator[Block]:
        for start in range(0, self.n_rows, self.window):
            stop = start + self.window
            yield *read_window(self.file, start, stop), None if self.weight is None else self.weight[start:stop]


class _Chunks:
    """An iterable of (X, Y): a block is a chunk.

    `n_rows` is known from the first where the chunks are a list, else after the first epoch; before that it is
    estimated if there is a `len`, and None if not.
    """

    def __init__(self, chunks: Any, n_epochs: int, check_data: Callable[..., tuple[Any, CSR]]) -> None:
        self._chunks, self._check = chunks, check_data
        iterator = iter(chunks)
        if iterator is chunks and n_epochs > 1:
            raise ValueError(f"X is an iterator, which gives its chunks once, but epochs={n_epochs}; give a list or an "
                             "object whose __iter__ starts anew, or epochs=1")
        first = next(iterator, None)
        if first is None:
            raise ValueError("X gave no chunks; give at least one (X, Y)")
        self._n_chunks = len(chunks) if hasattr(chunks, "__len__") else None
        self.n_rows = _count(chunks)
        self.is_sparse = sp.issparse(next(check.chunks([first]))[0])
        self._next: Iterator[Any] | None = _chain([first], iterator)  # the first epoch; what was looked at is not lost

    def blocks(self) -> Iterator[Block]:
        chunks, self._next = self._next, None
        n_rows = 0
        exact = self.n_rows is not None
        for i, (X, Y, x_name, y_name) in enumerate(check.chunks(self._chunks if chunks is None else chunks)):
            if sp.issparse(X) != self.is_sparse:
                kinds = "sparse", "dense"
                raise TypeError(f"{x_name} must be {kinds[not self.is_sparse]} as in chunk 0, got a "
                                f"{kinds[self.is_sparse]} one; convert it")
            block = self._check(X, Y, x_name, y_name)
            del X, Y
            n_rows += block[0].shape[0]
            if not exact and self._n_chunks:
                self.n_rows = max(n_rows, round(n_rows * self._n_chunks / (i + 1)))
            yield *block, None
            del block
        if n_rows == 0:
            raise ValueError("X gave no rows; its __iter__ must start anew for each epoch")
        self.n_rows = n_rows


def _chain(first: list[Any], others: Iterator[Any]) -> Iterator[Any]:
    """The one entry of the list, which is then let go of, and the others."""
    yield first.pop()
    yield from others


def _count(chunks: Any) -> int | None:
    """Rows of all chunks, where looking at them costs nothing."""
    if not isinstance(chunks, (list, tuple)):
        return None
    shapes = [np.shape(chunk[0]) if sp.issparse(chunk[0]) or isinstance(chunk[0], np.ndarray) else ()
              for chunk in chunks if isinstance(chunk, (list, tuple)) and len(chunk) == 2]
    return sum(shape[0] for shape in shapes) if len(shapes) == len(chunks) and all(shapes) else None
