"""Sources of training rows, and their division into batches.

A source yields *blocks*, triples (X, Y, weight) of checked rows, where `weight` is an array or
None: matrices are one block, a CSR file is read in windows, an iterable is taken chunk by chunk. A
window is freed before the next one is read; two chunks may be in memory while the next one is
made. Rows are shuffled within a block. A batch may span two blocks, so that the borders of blocks
affect nothing but the range of the shuffling.
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
Block: TypeAlias = tuple[Any, CSR, Any]  # X (array or CSR), Y, weights or None
WINDOW_ROWS = 65_536  # rows of a file in memory at a time


def source_of(X: Any, Y: Any, window: int, n_epochs: int,
              check_data: Callable[..., tuple[Any, CSR]], sample_weight: Any = None) -> Source:
    """The data that `fit` was given, as an object with `blocks()`, `is_sparse` and `n_rows`.

    `check_data(X, Y, x_name, y_name)` checks and converts one pair.
    """
    if isinstance(X, CSRFile):
        if Y is not None:
            raise ValueError("Y must be None where X is a CSR file, which has the labels too")
        return _File(X, window, check.sample_weight(sample_weight, len(X)))
    if Y is not None:
        X, Y = check_data(X, Y, "X", "Y")
        return _Matrices(X, Y, check.sample_weight(sample_weight, X.shape[0]))

    is_single = sp.issparse(X) or isinstance(X, (np.ndarray, str, os.PathLike))
    if is_single or not hasattr(X, "__iter__"):
        raise TypeError(f"Y is missing, and X, {type(X).__name__}, is neither a CSR file nor an "
                        "iterable of (X, Y): give Y, open_csr(path), or chunks")

    if sample_weight is not None:
        raise ValueError("sample_weight must be None where X is an iterable of chunks; give "
                         "matrices or a CSR file")
    return _Chunks(X, n_epochs, check_data)


def batches(blocks: Iterable[Block], batch_size: int,
            rng: np.random.Generator | None = None) -> Iterator[Block]:
    """Yield batches (x, y, weight) of `batch_size` rows; the last batch may be smaller.

    Rows are shuffled within each block by `rng`, and taken in order without one.
    """
    started, n_started = [], 0  # parts of a batch that continues in the next block
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
        del X, Y, weight, order  # frees the block before the next one is read

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

    def some_rows(self, n: int) -> Block | None:
        """At most n rows from all parts of the data, to compare them."""
        rows = np.linspace(0, self.n_rows - 1, min(n, self.n_rows)).astype(np.int64)
        weight = None if self.weight is None else self.weight[rows]
        return _take(self.X, rows), self.Y.take(rows), weight


class _File:
    """A CSR file: a block is a window of consecutive rows."""

    is_sparse = True

    def __init__(self, file: CSRFile, window: int, weight: Floats | None) -> None:
        self.file, self.window, self.weight = file, window, weight
        self.n_rows = len(file)

    def blocks(self) -> Iterator[Block]:
        for start in range(0, self.n_rows, self.window):
            stop = start + self.window
            weight = None if self.weight is None else self.weight[start:stop]
            yield *read_window(self.file, start, stop), weight

    def some_rows(self, n: int) -> Block | None:
        """The first n rows, to compare them."""
        weight = None if self.weight is None else self.weight[:n]
        return *read_window(self.file, 0, n), weight


class _Chunks:
    """An iterable of (X, Y): a block is a chunk.

    `n_rows` is known from the start for a list of chunks, else after the first epoch. Before that
    it is an estimate if the iterable has a `len`, and None if not.
    """

    def __init__(self, chunks: Any, n_epochs: int,
                 check_data: Callable[..., tuple[Any, CSR]]) -> None:
        self._chunks, self._check = chunks, check_data
        iterator = iter(chunks)
        if iterator is chunks and n_epochs > 1:
            raise ValueError("X is an iterator, which gives its chunks once, but "
                             f"epochs={n_epochs}; give a list or an object whose __iter__ starts "
                             "anew, or epochs=1")
        first = next(iterator, None)
        if first is None:
            raise ValueError("X gave no chunks; give at least one (X, Y)")

        self._n_chunks = len(chunks) if hasattr(chunks, "__len__") else None
        self.n_rows = _count(chunks)
        self.is_sparse = sp.issparse(next(check.chunks([first]))[0])
        # for the first epoch, with the chunk that was taken above
        self._next: Iterator[Any] | None = _chain([first], iterator)

    def blocks(self) -> Iterator[Block]:
        chunks, self._next = self._next, None
        n_rows = 0
        exact = self.n_rows is not None
        pairs = check.chunks(self._chunks if chunks is None else chunks)
        for i, (X, Y, x_name, y_name) in enumerate(pairs):
            if sp.issparse(X) != self.is_sparse:
                kinds = "sparse", "dense"
                raise TypeError(f"{x_name} must be {kinds[not self.is_sparse]} as in chunk 0, "
                                f"got a {kinds[self.is_sparse]} one; convert it")

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

    def some_rows(self, n: int) -> Block | None:
        """None: chunks are made when they are trained on."""
        return None


def _chain(first: list[Any], others: Iterator[Any]) -> Iterator[Any]:
    """The one entry of the list, which is removed from it, and then the others."""
    yield first.pop()
    yield from others


def _count(chunks: Any) -> int | None:
    """Number of rows of all chunks, where it is known without converting them."""
    if not isinstance(chunks, (list, tuple)):
        return None
    inputs = [chunk[0] for chunk in chunks if isinstance(chunk, (list, tuple)) and len(chunk) == 2]
    shapes: list[tuple[int, ...]] = [
        np.shape(X) if sp.issparse(X) or isinstance(X, np.ndarray) else () for X in inputs]
    return sum(shape[0] for shape in shapes) if len(shapes) == len(chunks) and all(shapes) else None
