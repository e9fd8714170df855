"""Rows in Parquet files, as Spark, Ray Data, Dask and pandas write them, into CSR files."""
from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _validation as check
from .._arrays.scipy import sp
from .._validation import INT32_MAX
from ._csr_file import write_csr
from ._xmc_text import FileFormatError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from scipy.sparse import csr_array

    from .._arrays.types import PathLike

FEATURES, VALUES, LABELS = "features", "values", "labels"  # columns
ROWS_PER_BATCH = 16_384


def convert_parquet(paths: PathLike | Sequence[PathLike], folder: PathLike, *,
                    n_features: int | None = None, n_labels: int | None = None) -> list[str]:
    """Write Parquet files as a folder of CSR files, for :func:`sparselsh.distributed.open_rows`.

    The columns are ``features`` (lists of integers, the feature ids of each row), ``values`` (lists
    of numbers of the same lengths; all values are 1 without this column) and ``labels`` (lists of
    integers, which may be empty). Each Parquet file becomes a CSR file of the same name; 16,384
    rows are in memory at a time.

    Parameters
    ----------
    paths : str, path-like or sequence of them
    folder : str or path-like
        It is created if it is missing; files of these names are replaced.
    n_features, n_labels : int or None
        Of all rows, also of those in other folders or in files that another process converts; None
        for the largest ids of these files plus one, for which they are read twice.

    Returns
    -------
    list of str
        The files that were written.

    Raises
    ------
    ImportError
        If pyarrow is missing.
    FileFormatError
        If a file is not a Parquet file, a column is missing or of another type, the lists of a row
        differ in length, or an id or a value is missing, too large or not finite; the message names
        file and row.
    FileNotFoundError, OSError
        If a file cannot be read or written.
    ValueError
        If there is no file, or two have the same name.
    """
    sources = [check.path(path, "paths") for path in
               ([paths] if isinstance(paths, (str, os.PathLike)) else paths)]
    folder = check.path(folder, "folder")
    names = [os.path.splitext(os.path.basename(path))[0] + ".csr" for path in sources]
    if not names:
        raise ValueError("paths has no file; give at least one")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"two of the paths would become {os.path.join(folder, twice)!r}; rename "
                         "one")
    if n_features is None or n_labels is None:
        largest = np.array([-1, -1])
        for path in sources:
            for x, y in _rows(path, INT32_MAX, INT32_MAX):
                largest = np.maximum(largest, [x[1].max(initial=-1), y[1].max(initial=-1)])
        n_features = int(largest[0]) + 1 if n_features is None else n_features
        n_labels = int(largest[1]) + 1 if n_labels is None else n_labels
    n_features = check.integer(n_features, "n_features", minimum=0, maximum=INT32_MAX)
    n_labels = check.integer(n_labels, "n_labels", minimum=0, maximum=INT32_MAX)

    os.makedirs(folder, exist_ok=True)
    written = [os.path.join(folder, name) for name in names]
    for path, out in zip(sources, written, strict=True):
        write_csr(out, _chunks(path, n_features, n_labels))
    return written


def _chunks(path: str, n_features: int, n_labels: int) -> Iterator[tuple[csr_array, csr_array]]:
    """X and Y of some rows at a time; at least once."""
    is_empty = True
    for (indptr, ids, values), (y_indptr, labels, ones) in _rows(path, n_features, n_labels):
        is_empty = False
        n = len(indptr) - 1
        X = sp.csr_array((values, ids, indptr), shape=(n, n_features))
        Y = sp.csr_array((ones, labels, y_indptr), shape=(n, n_labels))
        X.sum_duplicates()
        yield X, Y
    if is_empty:
        yield sp.csr_array((0, n_features), dtype=np.float32), sp.csr_array((0, n_labels),
                                                                           dtype=np.float32)


def _rows(path: str, n_features: int, n_labels: int) -> Iterator[tuple[Any, Any]]:
    """(offsets, ids, values) of the features and of the labels of some rows at a time, checked."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ImportError("Parquet needs pyarrow; type pip install "
                          '"sparselsh-nn[parquet]"') from error
    if not os.path.exists(path):
        raise FileNotFoundError(f"{path!r}: no such file")
    try:
        file = parquet.ParquetFile(path)
        there = file.schema_arrow.names
        missing = [name for name in (FEATURES, LABELS) if name not in there]
        if missing:
            raise FileFormatError(path, None, f"it has no column {missing[0]!r}; its columns are "
                                  f"{', '.join(map(repr, there))}")
        wanted = [name for name in (FEATURES, VALUES, LABELS) if name in there]
        first = 0
        for batch in file.iter_batches(ROWS_PER_BATCH, columns=wanted):
            part = {name: _list(path, first, name, batch.column(name)) for name in wanted}
            part.setdefault(VALUES, (part[FEATURES][0], np.ones(len(part[FEATURES][1]))))
            yield (_entries(path, first, part[FEATURES], part[VALUES], FEATURES, n_features),
                   _entries(path, first, part[LABELS],
                            (part[LABELS][0], np.ones(len(part[LABELS][1]))), LABELS, n_labels))
            first += batch.num_rows
    except (pyarrow.ArrowException, OSError) as error:
        raise FileFormatError(path, None, "is no readable Parquet file "
                              f"({str(error).splitlines()[0]})") from error


def _list(path: str, first: int, name: str, column: Any) -> tuple[np.ndarray, np.ndarray]:
    """Offsets and entries of a column of lists."""
    import pyarrow

    kind = column.type
    kinds = pyarrow.types
    if kinds.is_fixed_size_list(kind):
        column = column.cast(pyarrow.list_(kind.value_type))
    elif not (kinds.is_list(kind) or kinds.is_large_list(kind)):
        raise FileFormatError(path, None, f"the column {name!r} holds {kind}, not lists")
    entry = column.type.value_type
    if not (kinds.is_integer(entry) or (name == VALUES and kinds.is_floating(entry))):
        numbers = "numbers" if name == VALUES else "whole numbers"
        raise FileFormatError(path, None, f"the column {name!r} holds {kind}, not lists of "
                              f"{numbers}")
    if column.null_count:
        row = int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])
        raise _bad(path, first + row, f"{name} is missing; give an empty list")
    offsets = column.offsets.to_numpy().astype(np.int64)
    entries = column.values[offsets[0]:offsets[-1]]
    offsets -= offsets[0]
    if entries.null_count:
        place = int(np.flatnonzero(entries.is_null().to_numpy(zero_copy_only=False))[0])
        raise _bad(path, first + _row_of(offsets, place), f"an entry of {name} is missing")
    return offsets, entries.to_numpy(zero_copy_only=False)


def _entries(path: str, first: int, ids: tuple[np.ndarray, np.ndarray],
             values: tuple[np.ndarray, np.ndarray], name: str,
             n_columns: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Offsets, ids and values of rows, checked."""
    differ = np.flatnonzero(np.diff(ids[0]) != np.diff(values[0]))
    if len(differ):
        row = differ[0]
        counts = [int(offsets[row + 1] - offsets[row]) for offsets, _ in (ids, values)]
        raise _bad(path, first + row, f"it has {counts[0]} {name} and {counts[1]} values")
    outside = np.flatnonzero((ids[1] < 0) | (ids[1] >= n_columns))
    if len(outside):
        raise _bad(path, first + _row_of(ids[0], outside[0]),
                   f"the id {ids[1][outside[0]]} in {name} is outside 0..{n_columns - 1}")
    with np.errstate(over="ignore"):
        numbers = values[1].astype(np.float32)
    infinite = np.flatnonzero(~np.isfinite(numbers))
    if len(infinite):
        raise _bad(path, first + _row_of(ids[0], infinite[0]),
                   f"the value {values[1][infinite[0]]} is not finite in float32")
    return ids[0], ids[1].astype(np.int32), numbers


def _row_of(offsets: np.ndarray, entry: int) -> int:
    return int(np.searchsorted(offsets, entry, side="right")) - 1


def _bad(path: str, row: int, problem: str) -> FileFormatError:
    return FileFormatError(path, None, f"row {row}: {problem}")
