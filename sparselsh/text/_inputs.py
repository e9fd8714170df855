"""Texts and names as people have them: lists, sets, columns of data frames, indicators.

What is refused names the row, the value and the remedy.
"""
from __future__ import annotations

import itertools
import math
import numbers
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .._arrays.csr import CSR
from .._arrays.scipy import sp

if TYPE_CHECKING:
    from numpy.typing import NDArray

SEPARATORS = (",", ";", "|")  # of names that somebody has joined
MAX_SHOWN = 60  # characters of a value in a message


class Names(NamedTuple):
    """Names of each row, as ids into a list of names."""

    one_per_row: bool
    ids: list[list[int]]
    names: list[str]

    def indicator(self, n_names: int | None = None) -> CSR:
        """A row of ones per row."""
        n = len(self.names) if n_names is None else n_names
        indptr = np.concatenate([[0], np.cumsum(list(map(len, self.ids)))]).astype(np.int64)
        indices = np.fromiter(itertools.chain.from_iterable(self.ids), np.int32, indptr[-1])
        return CSR(indptr, indices, np.ones(len(indices), np.float32), n)


def shown(value: Any) -> str:
    """A value for a message."""
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN - 3] + "..."


def as_list(values: Any, name: str, what: str) -> list[Any]:
    """A column or another sequence as a list."""
    if isinstance(values, str | bytes):
        raise TypeError(f"{name} must be a list of {what}, got the string {shown(values)}; put it "
                        "into a list")
    if isinstance(values, dict):
        raise TypeError(f"{name} must be a list of {what}, got a dict; give list(...) of its "
                        "values, in the order of the rows")
    if type(values) is list:
        return values
    if hasattr(values, "columns") or hasattr(values, "column_names"):  # whose rows are no values
        columns = list(getattr(values, "column_names", None) or values.columns)
        hint = f", such as {name}[{shown(columns[0])}]" if columns else ""
        raise TypeError(f"{name} must be a list of {what}, or a column of a data frame, got all "
                        f"its columns; give one{hint}")
    for method in ("tolist", "to_pylist", "to_list"):  # NumPy and pandas, Arrow, polars
        if hasattr(values, method):
            if getattr(values, "ndim", 1) != 1:
                raise ValueError(f"{name} must have one dimension, got shape {values.shape}; give "
                                 "one column")
            found = getattr(values, method)()
            return found if isinstance(found, list) else [found]
    if isinstance(values, Iterable) and not isinstance(values, set | frozenset):
        return list(values)
    raise TypeError(f"{name} must be a list of {what}, or a column of a data frame, got "
                    f"{type(values).__name__}")


def checked_texts(texts: Any, name: str, training: bool = False) -> list[str]:
    """Texts as a list of str; with `training` none may be empty."""
    found = as_list(texts, name, "texts")
    for i, text in enumerate(found):
        if type(text) is not str and not isinstance(text, str):
            if _is_missing(text):
                raise TypeError(f"{name}[{i}] is {text!r}: there is no text; leave the row out, or "
                                "give ''" if not training else
                                f"{name}[{i}] is {text!r}: there is no text; leave the row out")
            raise TypeError(f"{name}[{i}] must be a string, got {shown(text)} of type "
                            f"{type(text).__name__}; {_remedy(text)}")
        if training and (not text or text.isspace()):
            raise ValueError(f"{name}[{i}] is {shown(text)}: a text without words teaches nothing; "
                             "leave the row out")
    return found


def checked_sequences(sequences: Any, name: str) -> list[list[str]]:
    """Sequences of names as lists of lists of str."""
    found = as_list(sequences, name, "sequences of items")
    return [_sequence(row, name, i) for i, row in enumerate(found)]


def _sequence(row: Any, name: str, i: int) -> list[str]:
    if isinstance(row, str):
        raise TypeError(f"{name}[{i}] is the string {shown(row)}; give a list of items, as in "
                        f"[{shown(row)}]")
    if _is_missing(row):
        raise TypeError(f"{name}[{i}] is {row!r}: there are no items; leave the row out, or give "
                        "[]")
    if isinstance(row, set | frozenset | dict | bytes) or not isinstance(row, Iterable):
        raise TypeError(f"{name}[{i}] must be a list of items in their order, got {shown(row)} of "
                        f"type {type(row).__name__}")
    items = row.tolist() if hasattr(row, "tolist") else list(row)
    for item in items:
        if not isinstance(item, str):
            raise TypeError(f"{name}[{i}] has {shown(item)} of type {type(item).__name__} as an "
                            f"item; items are strings: {_remedy(item)}")
        if not item:
            raise ValueError(f"{name}[{i}] has the item '', which is no name; leave it out")
    return _plain(items)


def _remedy(value: Any) -> str:
    """What to do with a value that is no string; str() of some is no name of anything."""
    if _is_missing(value):
        return "leave it out"
    return "decode it" if isinstance(value, bytes) else "give str(...) of it"


def _plain(values: list[str]) -> list[str]:
    """The strings without types of their own, such as those of NumPy and of enumerations."""
    if all(type(value) is str for value in values):
        return values
    return [str.__str__(value) for value in values]


def _is_missing(value: Any) -> bool:
    return value is None or type(value).__name__ in ("NAType", "NaTType") or (
        isinstance(value, float) and math.isnan(value))


def has_names(values: Any) -> bool:
    """Whether these are lists of names, or an indicator data frame with named columns.

    ValueError for lists of numbers of different lengths, which are neither.
    """
    if hasattr(values, "columns") or hasattr(values, "column_names"):
        columns = list(getattr(values, "column_names", None) or values.columns)
        return len(columns) > 1 and all(isinstance(column, str) for column in columns)
    if sp.issparse(values) or getattr(values, "ndim", 1) != 1 or isinstance(values, str | bytes):
        return False
    if isinstance(values, np.ndarray) and values.dtype.kind != "O":
        return False
    if not isinstance(values, list | tuple) and not any(
            hasattr(values, method) for method in ("tolist", "to_pylist", "to_list")):
        return False
    rows = [row for row in as_list(values, "y", "labels")
            if isinstance(row, list | tuple | set | frozenset | np.ndarray)]
    if any(isinstance(item, str) for row in rows for item in row):
        return True
    if len({len(row) for row in rows}) > 1:
        raise ValueError("y has lists of numbers of different lengths; give lists of strings, the "
                         "names of the labels, or an indicator matrix")
    return False


def names_of(values: Any, name: str, n_rows: int, known: Sequence[str] = ()) -> Names:
    """The names of each row, from lists, sets, strings or an indicator data frame.

    Parameters
    ----------
    values
        What the user gave; one string per row is one name per row.
    name : str
        Of the argument, for messages.
    n_rows : int
    known : sequence of str
        Names that have the first ids, in this order. New names follow in their own order.

    Returns
    -------
    Names
        `names` begins with the known ones.
    """
    if hasattr(values, "columns") or hasattr(values, "column_names"):
        return _of_indicator(values, name, n_rows, known)
    if sp.issparse(values) or getattr(values, "ndim", 1) == 2:
        raise TypeError(f"{name} is a matrix, whose columns have no names; give lists of names, or "
                        "a data frame whose columns are named")
    found = as_list(values, name, "tags, one entry per text")
    if len(found) != n_rows:
        raise ValueError(f"{name} must have an entry for each of the {n_rows} rows, got "
                         f"{len(found)}")

    one_per_row = bool(found) and all(isinstance(value, str) for value in found)
    if one_per_row:
        rows = [[value] for value in found]
    else:
        rows = [value if type(value) is list else _row(value, name, i)
                for i, value in enumerate(found)]
    if not _are_names(rows):
        for i, row in enumerate(rows):
            for value in row:
                _check_name(value, name, i)
        rows = [_plain(row) for row in rows]
    if one_per_row:
        _check_joined(found, name)
    return _numbered(rows, one_per_row, known)


def _row(value: Any, name: str, i: int) -> list[Any]:
    if isinstance(value, str):
        raise TypeError(f"{name}[{i}] is the string {shown(value)}, and other rows are lists; give "
                        f"[{shown(value)}], a list of one tag")
    if _is_missing(value):
        raise TypeError(f"{name}[{i}] is {value!r}; give [] for a row without tags, or leave the "
                        "row out")
    if isinstance(value, numbers.Number):
        raise TypeError(f"{name}[{i}] is the number {value!r}; tags are strings, such as "
                        f"{str(value)!r}")
    if hasattr(value, "as_py"):  # an Arrow scalar
        value = value.as_py()
    if isinstance(value, dict | bytes) or not isinstance(value, Iterable):
        hint = "; decode it" if isinstance(value, bytes) else ""
        raise TypeError(f"{name}[{i}] must be a list of strings, got {shown(value)} of type "
                        f"{type(value).__name__}{hint}")
    return sorted(value, key=str) if isinstance(value, set | frozenset) else list(value)


def _are_names(rows: list[list[Any]]) -> bool:
    """Whether all values are plain strings that can be names, each looked at once."""
    try:
        values = set(itertools.chain.from_iterable(rows))
    except TypeError:  # lists, for example, which have no hash
        return False
    return all(type(value) is str and value and not value.isspace() for value in values)


def _check_name(value: Any, name: str, i: int) -> None:
    if isinstance(value, str):
        if value and not value.isspace():
            return
        raise ValueError(f"{name}[{i}] has the tag {value!r}, which is no name; leave it out")
    if _is_missing(value):
        raise TypeError(f"{name}[{i}] has the tag {value!r}; leave it out")
    if isinstance(value, numbers.Number):
        raise TypeError(f"{name}[{i}] has the number {value!r} as a tag; tags are strings, such as "
                        f"{str(value)!r}")
    hint = ": decode it" if isinstance(value, bytes) else ""
    raise TypeError(f"{name}[{i}] has {shown(value)} of type {type(value).__name__} as a tag; tags "
                    f"are strings{hint}")


def _check_joined(values: Sequence[str], name: str) -> None:
    """Refuse strings that are lists: all their parts are parts of other strings, too."""
    whole = set(values)
    for separator in SEPARATORS:
        owners: dict[str, int] = {}
        for value in whole:
            for part in {part.strip() for part in value.split(separator)}:
                owners[part] = owners.get(part, 0) + 1
        for i, value in enumerate(values):
            parts = [part.strip() for part in value.split(separator)]
            if len(parts) > 1 and all(part and owners[part] > 1 for part in parts):
                raise ValueError(
                    f"{name}[{i}] is {shown(value)}, whose parts are tags of other rows, too: give "
                    f"lists, as [[t.strip() for t in row.split({separator!r})] for row in {name}]; "
                    "if it is one name, give lists of one name each")


def _of_indicator(frame: Any, name: str, n_rows: int, known: Sequence[str]) -> Names:
    """The names of a data frame or an Arrow table of zeros and ones, one column per name."""
    columns = list(getattr(frame, "column_names", None) or frame.columns)
    for column in columns:
        if not isinstance(column, str):
            raise TypeError(f"{name} has the column {column!r} of type {type(column).__name__}; "
                            "rename columns to strings, the names of the tags")
    if len(set(columns)) != len(columns):
        raise ValueError(f"{name} has two columns of one name; make them one")
    shape = (frame.num_rows, frame.num_columns) if hasattr(frame, "num_rows") else frame.shape
    if shape[0] != n_rows:
        raise ValueError(f"{name} must have an entry for each of the {n_rows} rows, got {shape[0]}")

    ids: list[list[int]] = [[] for _ in range(n_rows)]
    names = list(known)
    places = {value: j for j, value in enumerate(names)}
    for column in columns:
        values = _column(frame, column, name)
        j = places.setdefault(column, len(names))
        if j == len(names):
            names.append(column)
        for i in np.flatnonzero(values).tolist():
            ids[i].append(j)
    return Names(False, [sorted(row) for row in ids], names)


def _column(frame: Any, column: str, name: str) -> NDArray[Any]:
    part = frame[column]
    if getattr(part, "ndim", 1) != 1:  # pandas gives every column of the name
        raise ValueError(f"{name} has two columns named {column!r}; make them one")
    if hasattr(part, "sparse"):
        part = part.sparse.to_dense()
    values = np.asarray(part.to_numpy() if hasattr(part, "to_numpy") else part)
    if values.dtype.kind not in "biufO" or not np.isin(values, (0, 1)).all():
        bad = next(value for value in values.tolist() if value not in (0, 1))
        raise ValueError(f"{name} has {shown(bad)} in the column {column!r}; an indicator holds "
                         "zeros and ones, and a column of tags is given as a column, such as "
                         f"frame[{column!r}]")
    return values


def _numbered(rows: list[list[str]], one_per_row: bool, known: Sequence[str]) -> Names:
    places = dict(zip(known, range(len(known)), strict=True))
    new = sorted(set(itertools.chain.from_iterable(rows)).difference(places))
    places |= {value: j for j, value in enumerate(new, len(known))}
    ids = [sorted({*map(places.__getitem__, row)}) for row in rows]
    return Names(one_per_row, ids, [*known, *new])


def checked_name(value: Any, name: str, known: dict[str, int]) -> int:
    """The id of a known name."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a string, got {shown(value)} of type "
                        f"{type(value).__name__}")
    if value not in known:
        import difflib

        close = difflib.get_close_matches(value, known, n=3)
        hint = f"; did you mean {', '.join(map(repr, close))}?" if close else ""
        raise ValueError(f"{name} is {shown(value)}, which the model does not know{hint}")
    return known[value]
