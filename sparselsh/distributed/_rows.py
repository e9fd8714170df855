"""Rows in a folder of CSR files, of which each process reads a part of each window."""
from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _validation as check
from .._arrays.csr import CSR, concatenate
from ..datasets import open_csr, read_window

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .._arrays.types import Floats, PathLike
    from ..datasets import CSRFile
    from ._shards import Shards

SUFFIX = ".csr"


class RowFolder:
    """Rows with labels in a folder of CSR files; made by :func:`open_rows`.

    Attributes
    ----------
    path : str
    files : list of CSRFile
        In the order of their names.
    shape : (int, int)
        Rows of all files, and features.
    n_labels : int
    """

    def __init__(self, path: str, files: list[CSRFile]) -> None:
        self.path, self.files = path, files
        self.shape = sum(len(file) for file in files), files[0].shape[1]
        self.n_labels = files[0].n_labels
        self._ends = np.cumsum([len(file) for file in files])

    def __len__(self) -> int:
        return self.shape[0]

    def rows(self, start: int, stop: int) -> tuple[CSR, CSR]:
        """Features and labels of some consecutive rows, which may lie in several files."""
        parts = []
        for file, end in zip(self.files, self._ends.tolist(), strict=True):
            first = end - len(file)
            a, b = max(start, first), min(stop, end)
            if a < b:
                parts.append(read_window(file, a - first, b - first))
        if not parts:
            parts = [read_window(self.files[0], 0, 0)]
        xs, ys = zip(*parts, strict=True)
        return (xs[0], ys[0]) if len(parts) == 1 else (concatenate(xs), concatenate(ys))

    def close(self) -> None:
        """Close the files."""
        for file in self.files:
            file.close()

    def __repr__(self) -> str:
        return (f"RowFolder({self.path!r}, {len(self.files)} files, {self.shape[0]} rows, "
                f"{self.shape[1]} features, {self.n_labels} labels)")


def open_rows(path: PathLike) -> RowFolder:
    """Open a folder of CSR files, for :meth:`ShardedNetwork.fit`.

    Each process reads a part of each window of rows and gets the others from the other processes,
    so that a row is read from the disk once. The files are those that
    :func:`sparselsh.datasets.write_csr` and ``sparselsh convert`` write, in the order of their
    names; a file may be made by each of many processes.

    Parameters
    ----------
    path : str or path-like
        A folder with files whose names end in .csr, all with the same numbers of features and
        labels. All processes must see it.

    Returns
    -------
    RowFolder

    Raises
    ------
    FileNotFoundError
        If there is no such folder, or no such file in it.
    ValueError
        If the files differ in features or labels, or one is damaged; the message names it.
    """
    path = os.path.abspath(check.path(path))
    if not os.path.isdir(path):
        raise FileNotFoundError(f"{path}: no such folder; give one with files that sparselsh "
                                "convert has written")
    names = sorted(name for name in os.listdir(path) if name.endswith(SUFFIX))
    if not names:
        raise FileNotFoundError(f"{path}: no file there ends in {SUFFIX}; write some with "
                                "sparselsh convert")
    files: list[CSRFile] = []
    try:
        for name in names:
            files.append(open_csr(os.path.join(path, name)))
            shape, wanted = [(file.shape[1], file.n_labels) for file in (files[-1], files[0])]
            if shape != wanted:
                raise ValueError(f"{files[-1].path}: {shape[0]} features and {shape[1]} labels, "
                                 f"but {names[0]} has {wanted[0]} and {wanted[1]}; number all "
                                 "alike")
    except BaseException:
        for file in files:
            file.close()
        raise
    return RowFolder(path, files)


class SplitRows:
    """A source of windows of rows, of which each process reads its part."""

    is_sparse = True

    def __init__(self, folder: RowFolder, window: int, weight: Floats | None,
                 shards: Shards) -> None:
        self.folder, self.window, self.weight, self.shards = folder, window, weight, shards
        self.n_rows = len(folder)

    def blocks(self) -> Iterator[tuple[CSR, CSR, Any]]:
        """X, Y and the weights of each window."""
        group = self.shards.group
        for start in range(0, self.n_rows, self.window):
            stop = min(start + self.window, self.n_rows)
            n = stop - start
            own = self.folder.rows(start + group.rank * n // group.size,
                                   start + (group.rank + 1) * n // group.size)
            weight = None if self.weight is None else self.weight[start:stop]
            if group.size == 1:
                yield *own, weight
                continue
            arrays = [a for part in own for a in (part.indptr, part.indices, part.data)]
            parts = self.shards.gather_arrays(arrays)
            x = concatenate([CSR(a, b, c, own[0].n_columns) for a, b, c, *_ in parts])
            y = concatenate([CSR(a, b, c, own[1].n_columns) for *_, a, b, c in parts])
            yield x, y, weight

    def some_rows(self, n: int) -> tuple[CSR, CSR, Any] | None:
        """The first n rows, to compare them."""
        weight = None if self.weight is None else self.weight[:n]
        return *self.folder.rows(0, min(n, self.n_rows)), weight
