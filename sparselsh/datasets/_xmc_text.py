"""Data sets in text files: XMC and svmlight text to CSR matrices, whole or in chunks, and back.

XMC text, the format of the extreme classification repository and of SLIDE, begins with a line
``n_rows n_features n_labels``; svmlight text (LIBSVM's format) has no such line. Then comes one
line per row::

    label,label feature:value feature:value ...

Ids are integers from 0. A row without labels begins with a space. Only in XMC text is an empty line
a row (without labels and features); only in svmlight text does ``#`` begin a comment.

The parser is in the compiled core because the alternative, scikit-learn's
``load_svmlight_file(multilabel=True, zero_based=True)``, takes 16 times as long: 1.05 CPU seconds
(1.02 to 1.17) against 0.065 (0.06 to 0.19; the first reading in a process is the slowest) for 56 MB
of text, 41,902 rows with 4.1 million values; medians of 3, printed by ``python bench/read_xmc.py
FILE``. It also refuses unsorted rows, accepts NaN, names no line in its errors, and returns labels
as tuples of floats.
"""
from __future__ import annotations

import bz2
import functools
import gzip
import itertools
import lzma
import mmap
import os
import re
import stat
import zlib
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any, Literal

import numpy as np

from .. import _validation as check
from .._arrays.scipy import sp
from .._core import _format, _parse
from .._files import place, replacing
from .._validation import INT32_MAX

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from scipy.sparse import csr_array

    from .._arrays.types import Floats, MatrixLike, PathLike

__all__ = ["FileFormatError", "read_xmc", "write_xmc"]

_OPENERS: dict[str, Callable[..., Any]] = {
    ".gz": gzip.open, ".bz2": bz2.open,
    # not .lzma, whose header may ask for any amount of memory and has no checksum
    ".xz": functools.partial(lzma.open, format=lzma.FORMAT_XZ)}
_INTEGER = re.compile(rb"[+-]?\d+")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"  # written by editors on Windows
_MAX_HEADER_LINE_BYTES = 1 << 12
_MAX_HEADER_BYTES = 200  # of the part of the first line that is parsed
_MAX_TOKEN_BYTES = 10_000  # of the part of a wrong token that is examined
_MAX_QUOTED_BYTES = 32  # of a token in a message
_WRITE_CHUNK_BYTES = 1 << 24
_MAPPED_MIN_BYTES = 1 << 16  # smaller files are read: mapping takes as long as parsing them


class FileFormatError(ValueError):
    """The content of a file violates its format.

    Attributes
    ----------
    path : str
    line : int or None
        Line number, from 1; None where the error concerns the file as a whole.
    problem : str
        The error and the remedy.
    """

    def __init__(self, path: str, line: int | None, problem: str) -> None:
        super().__init__(path, line, problem)
        self.path, self.line, self.problem = path, line, problem

    def __str__(self) -> str:
        place = "" if self.line is None else f", line {self.line}"
        return f"{self.path!r}{place}: {self.problem}"


def read_xmc(path: PathLike, *, n_features: int | None = None, n_labels: int | None = None,
             format: str = "auto", first_feature: int | Literal["auto"] = "auto"
             ) -> tuple[csr_array, csr_array]:
    """Read a file of sparse rows with labels.

    Parameters
    ----------
    path : str or path-like
        A text file, compressed if its name ends in ``.gz``, ``.bz2`` or ``.xz`` (its whole text is
        then held in memory while it is read).
    n_features, n_labels : int, optional
        The numbers of columns of `X` and `Y`; ids must be below them. By default those of the
        header or, in svmlight text, the largest id plus one.
    format : {"auto", "xmc", "svmlight"}
        With "auto", the file is XMC text if its first line consists of three integers.
    first_feature : 0, 1 or "auto"
        Id of the first feature in svmlight text; "auto" is 1 where feature 0 does not occur in the
        file. In XMC text it is 0, unless 1 is given.

    Returns
    -------
    X : csr_array of float32, shape (n_rows, n_features)
        Column ids are int32, sorted and distinct within each row. (Both index arrays are int64 for
        a file of 2**31 or more values, as SciPy requires.) Zeros in the file are stored.
    Y : csr_array of float32, shape (n_rows, n_labels)
        Indicator of the labels: every stored value is 1.

    Raises
    ------
    FileFormatError
        The content is not in the format: truncated or binary files, wrong counts, malformed
        numbers, NaN or infinite values, ids out of range, a feature that occurs twice in one row.
        The message is one line that names the file, the line, the token and the remedy.
    FileNotFoundError, IsADirectoryError, OSError
        The file cannot be opened.
    ValueError, TypeError
        An argument is invalid.

    Notes
    -----
    Features may be in any order, and a label may occur twice in one row: both are corrected
    silently. A last line without a newline is read if it is complete.

    svmlight text does not say whether its feature ids begin at 0 or 1. As in scikit-learn, the file
    is taken as one-based if feature 0 does not occur in it, and all ids are then lowered by one. So
    a zero-based file in which feature 0 never occurs is read with columns shifted by one: where
    that is possible, as in a small test set, give ``first_feature=0``, or add a header. Labels are
    not shifted. Query ids
    (``qid:``) are refused.

    A value is the float64 nearest to the decimal number, rounded to float32:
    ``numpy.float32(float(text))``.
    """
    X, Y, _ = read_shifted(path, n_features=n_features, n_labels=n_labels, format=format,
                           first_feature=first_feature)
    return X, Y


def read_shifted(path: PathLike, *, n_features: int | None = None, n_labels: int | None = None,
                 format: str = "auto", first_feature: int | str = "auto"
                 ) -> tuple[csr_array, csr_array, bool]:
    """What `read_xmc` returns, and whether ids were taken to begin at 1 by the look of the file."""
    path = check.path(path)
    n_features = None if n_features is None else check.integer(n_features, "n_features", minimum=0)
    n_labels = None if n_labels is None else check.integer(n_labels, "n_labels", minimum=0)
    if format not in ("auto", "xmc", "svmlight"):
        raise ValueError(f"format={format!r} is unknown; give 'auto', 'xmc' or 'svmlight'")
    if first_feature not in (0, 1, "auto"):
        raise ValueError(f"first_feature={first_feature!r} is unknown; give 0, 1 or 'auto'")

    text = _read(path)
    is_cut = text[-1:] != b"\n"
    if is_cut:
        text = text[:] + b"\n"  # the parser relies on it, and checks no other end of the buffer

    start = len(_BYTE_ORDER_MARK) if text[:3] == _BYTE_ORDER_MARK else 0
    first = _first_line(text, start)
    if format == "auto":
        is_header = len(first) == 3 and all(map(_INTEGER.fullmatch, first))
        format = "xmc" if is_header else "svmlight"

    source = _Source(path, text, is_cut)
    if format == "xmc":
        n_rows, n_features, n_labels = _header(path, text, start, n_features, n_labels)
        source.line = 2
        is_shifted = first_feature == 1
        X, Y = _parse_text(source, text.find(b"\n", start) + 1, n_rows, n_features + is_shifted,
                           n_labels)
        _check_complete(path, X.shape[0], n_rows)
        if is_shifted:
            X = _shifted(path, X, n_features)
        return X, Y, False
    X, Y, is_one_based = _parse_svmlight(source, start, n_features, n_labels, first_feature)
    return X, Y, is_one_based and first_feature == "auto"


def parse_rows(text: bytes, name: str, line: int, n_features: int) -> csr_array:
    """The features of rows of XMC text without a header, from its line `line` on; ids from 0."""
    is_cut = text[-1:] != b"\n"
    source = _Source(name, text + b"\n" * is_cut, is_cut, line)
    return _parse_text(source, 0, text.count(b"\n") + is_cut, n_features, None)[0]


def begins_with_header(text: bytes) -> bool:
    """Whether the first line of a file consists of three integers, as that of XMC text does."""
    first = _first_line(text, 0)
    return len(first) == 3 and all(map(_INTEGER.fullmatch, first))


def write_xmc(path: PathLike, X: MatrixLike, Y: MatrixLike, *, format: str = "xmc") -> None:
    """Write sparse rows with labels.

    The file appears whole or not at all: a temporary file in the same folder is renamed when all
    data has reached the disk.

    Parameters
    ----------
    path : str or path-like
        Compressed if it ends in ``.gz``, ``.bz2`` or ``.xz``; a file of that name is replaced.
    X : sparse or dense matrix of shape (n_rows, n_features)
        Written as float32, with the fewest digits from which :func:`read_xmc` gets the same
        float32. Stored zeros are written.
    Y : sparse or dense matrix of shape (n_rows, n_labels), or int array of shape (n_rows,)
        Indicator, whose nonzero entries are the labels, or one class id per row.
    format : {"xmc", "svmlight"}
        svmlight text is written with feature ids from 1, as its readers expect, so that
        :func:`read_xmc` recognises them. It does not contain the shapes: give them when reading.

    Raises
    ------
    ValueError, TypeError
        The numbers of rows differ, a value is NaN or infinite in float32, or a row has neither
        labels nor features, which svmlight text cannot represent.
    OSError
        The file cannot be written.
    """
    if format not in ("xmc", "svmlight"):
        raise ValueError(f"format={format!r} is unknown; give 'xmc' or 'svmlight'")
    X, Y = _as_written(X, Y, format)
    path = place(path)
    with replacing(path) as file:
        opener = _OPENERS.get(os.path.splitext(path)[1])
        if opener is None:
            _write_rows(file, X, Y, format)
        else:
            with opener(file, "wb") as packed:
                _write_rows(packed, X, Y, format)


class _Source:
    """The text of a file, with the data that error messages need."""

    def __init__(self, path: str, text: bytes | mmap.mmap, is_cut: bool, line: int = 1,
                 n_rows_before: int = 0) -> None:
        self.path = path
        self.text = text
        self.is_cut = is_cut  # the file has no newline at its end; that of the text was added
        self.line = line  # number of the first line of the text
        self.n_rows_before = n_rows_before  # rows in the text before this chunk
        self.lines, self.colons, self.commas = _parse.count(text)


def chunks(path: PathLike, chunk_rows: int) -> Iterator[tuple[csr_array, csr_array]]:
    """Yield the rows of an XMC text file as (X, Y), `chunk_rows` rows each.

    X and Y are as of :func:`read_xmc`. At least one chunk is yielded, perhaps empty: it has the
    numbers of features and labels.
    """
    path = check.path(path)
    opener = _OPENERS.get(os.path.splitext(path)[1], open)
    with explained(path), opener(path, "rb") as file:
        first = file.readline(_MAX_HEADER_LINE_BYTES)
        if not first:
            raise _empty(path)
        first = first.removeprefix(_BYTE_ORDER_MARK)
        n_rows, n_features, n_labels = _header(path, first, 0, None, None)

        line, n_done = 2, 0
        while True:
            lines = list(itertools.islice(file, chunk_rows))
            if not lines and line > 2:
                break
            is_cut = not lines or lines[-1][-1:] != b"\n"
            source = _Source(path, b"".join(lines) + b"\n" * is_cut, is_cut, line, n_done)
            n_left = n_rows - n_done if lines else 0  # the newline that was added is no row
            X, Y = _parse_text(source, 0, n_left, n_features, n_labels)
            n_done += X.shape[0]
            line += max(1, len(lines))
            del source, lines
            yield X, Y

        _check_complete(path, n_done, n_rows)


def _read(path: str) -> bytes | mmap.mmap:
    """Content of the file: a memory map of a large uncompressed file, else bytes."""
    opener = _OPENERS.get(os.path.splitext(path)[1])
    with explained(path), open(path, "rb") as file:
        text: bytes | mmap.mmap
        if opener is not None:
            with opener(file) as unpacked:
                text = unpacked.read()
        elif (stat.S_ISREG((status := os.fstat(file.fileno())).st_mode)
              and status.st_size >= _MAPPED_MIN_BYTES):
            text = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        else:
            text = file.read()  # also of a pipe, which has no size and cannot be mapped
    if len(text) == 0:
        raise _empty(path)
    return text


@contextmanager
def explained(path: str) -> Iterator[None]:
    """Context in which errors of opening and decompressing get messages with a remedy."""
    try:
        yield
    except FileNotFoundError:
        raise FileNotFoundError(f"{path!r} does not exist; check the path") from None
    except IsADirectoryError:
        raise IsADirectoryError(f"{path!r} is a directory; give the path of a file in it") from None
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise _damaged(path, error) from error
    except OSError as error:
        if error.errno is None:  # bz2's "Invalid data stream"
            raise _damaged(path, error) from error
        raise


def _empty(path: str) -> FileFormatError:
    return FileFormatError(path, None,
                           "the file is empty; check that it was written or copied whole")


def _first_line(text: bytes | mmap.mmap, start: int) -> list[bytes]:
    """Words of the line at `start`, up to the maximum length of a header."""
    return text[start : start + _MAX_HEADER_BYTES].split(b"\n")[0].split()


def _damaged(path: str, error: Exception) -> FileFormatError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return FileFormatError(path, None,
                           f"the compressed data is damaged ({reason}); copy or write it again")


def _header(path: str, text: bytes | mmap.mmap, start: int, n_features: int | None,
            n_labels: int | None) -> tuple[int, int, int]:
    """(n_rows, n_features, n_labels) of the first line; given counts take precedence."""
    words = _first_line(text, start)
    if len(words) != 3 or not all(map(_INTEGER.fullmatch, words)):
        raise FileFormatError(
            path, 1, f"the header {_quote(b' '.join(words))} is not 'n_rows n_features n_labels'; "
            "write that line first, or read with format='svmlight'")

    counts = [int(word) for word in words]
    # n_rows needs no smaller bound: it allocates nothing, and too few rows are an error later.
    for name, count, largest in zip(("n_rows", "n_features", "n_labels"), counts,
                                    (np.iinfo(np.int64).max, INT32_MAX, INT32_MAX), strict=True):
        if not 0 <= count <= largest:
            raise FileFormatError(path, 1, f"the header says {name}={_quote(str(count).encode())}, "
                                  f"which is outside 0 to {largest}; correct it")
    return (counts[0], counts[1] if n_features is None else n_features,
            counts[2] if n_labels is None else n_labels)


def _parse_text(source: _Source, start: int, n_rows: int | None, n_features: int | None,
                n_labels: int | None) -> tuple[csr_array, csr_array]:
    """(X, Y) of at most `n_rows` rows from `start` on.

    `n_rows` is None for text without a header, where lines may be blank. If `n_features` or
    `n_labels` is None, it is the largest id plus one.
    """
    has_header = n_rows is not None
    x_indptr = np.empty(source.lines + 1, np.int64)
    x_indices = np.empty(source.colons, np.int32)
    x_data = np.empty(source.colons, np.float32)
    y_indptr = np.empty(source.lines + 1, np.int64)
    y_indices = np.empty(source.lines + source.commas, np.int32)
    code, line, offset, n_found = _parse.parse(
        source.text, start, source.line, has_header, -1 if n_rows is None else n_rows,
        INT32_MAX if n_features is None else n_features,
        INT32_MAX if n_labels is None else n_labels,
        x_indptr, x_indices, x_data, y_indptr, y_indices)

    kind = _parse.KINDS[code]
    if kind == "rows" and n_rows is not None:
        raise FileFormatError(source.path, line, f"the header says {source.n_rows_before + n_rows} "
                              "rows, but more follow; correct the header")
    if kind != "ok":
        problem = _explain(source, kind, offset, n_features, n_labels)
        raise FileFormatError(source.path, line, problem)
    return (_as_csr(x_data, x_indices, x_indptr[: n_found + 1], n_features),
            _as_csr(None, y_indices, y_indptr[: n_found + 1], n_labels))


def _check_complete(path: str, n_found: int, n_rows: int) -> None:
    if n_found < n_rows:
        raise FileFormatError(path, n_found + 2, f"the file ends after {n_found} of the {n_rows} "
                              "rows that its header says; copy it again, or correct the header")


def _parse_svmlight(source: _Source, start: int, n_features: int | None, n_labels: int | None,
                    first_feature: int | str) -> tuple[csr_array, csr_array, bool]:
    """(X, Y) of the rows from `start` on, and whether their feature ids begin at 1."""
    # one more than `n_features`, for ids that begin at 1
    limit = None if n_features is None else min(n_features + 1, INT32_MAX)
    X, Y = _parse_text(source, start, None, limit, n_labels)
    if X.shape[0] == 0:
        raise FileFormatError(source.path, None, "the file holds no rows, only blank lines or "
                              "comments; check that it was written whole")

    is_one_based = X.nnz > 0 and X.indices.min() > 0
    if first_feature == 1 and X.nnz and not is_one_based:
        _shifted(source.path, X, 0)  # raises
    is_one_based = is_one_based and first_feature != 0
    largest = X.indices.max(initial=-1)
    if limit is not None and largest == n_features and not is_one_based:
        _parse_text(source, start, None, n_features, n_labels)  # raises, with the line
    indices = X.indices - 1 if is_one_based else X.indices
    width = largest + 1 - is_one_based if n_features is None else n_features
    return _as_csr(X.data, indices, X.indptr, width), Y, is_one_based


def _shifted(path: str, X: csr_array, n_features: int) -> csr_array:
    """X with all ids lowered by one."""
    if X.indices.min(initial=1) == 0:
        raise FileFormatError(path, None, "feature 0 occurs in the file, whose ids are said to "
                              "begin at 1; read it with first_feature=0 (--zero-based)")
    return _as_csr(X.data, X.indices - 1, X.indptr, n_features)


def _as_csr(data: Floats | None, indices: np.ndarray, indptr: np.ndarray,
            n_columns: int | None) -> csr_array:
    """A csr_array of arrays that may be longer than needed; of ones where `data` is None."""
    nnz = int(indptr[-1])
    # SciPy requires one dtype for both index arrays, and would convert the ids to int64.
    index_dtype = np.int32 if nnz <= INT32_MAX else np.int64
    indices = indices[:nnz].astype(index_dtype, copy=False)
    indptr = indptr.astype(index_dtype, copy=False)
    data = np.ones(nnz, np.float32) if data is None else data[:nnz]
    if n_columns is None:
        n_columns = int(indices.max(initial=-1)) + 1
    matrix = sp.csr_array((data, indices, indptr), shape=(len(indptr) - 1, int(n_columns)))
    matrix.has_canonical_format = True  # ensured by the parser; SciPy need not check it
    return matrix


def _explain(source: _Source, kind: str, offset: int, n_features: int | None,
             n_labels: int | None) -> str:
    """Describe the error of the token (for duplicates, the row) at `offset`, and the remedy."""
    text = source.text
    end = text.find(b"\n", offset)
    if kind == "duplicate":
        return _explain_duplicate(text[offset:end])

    separator = rb"[,\s]" if kind == "label" else rb"\s"
    token = re.split(separator, text[offset : min(end, offset + _MAX_TOKEN_BYTES)])[0]
    if re.search(rb"[\0-\x08\x0e-\x1f]", token):
        return (f"{_quote(token)} is binary data; give a text file (a compressed one is known by "
                "its name)")

    if kind == "label":
        problem = _explain_id("label", token, n_labels, "n_labels")
    elif token.lower().startswith(b"qid:"):
        return f"{_quote(token)} is a query id, which is not read; remove it"
    else:
        id_, colon, value = token.partition(b":")
        if kind == "feature" and (colon or not id_.isdigit()):
            problem = _explain_id("feature", id_, n_features, "n_features")
        elif not value:
            problem = f"feature {_quote(token)} has no value; write id:value"
        else:
            problem = _explain_value(id_, value)

    if source.is_cut and offset + len(token) + 1 >= len(text):
        problem += ". The file ends in this token, so it may have been cut: copy it again"
    return problem


def _explain_id(what: str, token: bytes, limit: int | None, name: str) -> str:
    if not token:
        return (f"a {what} id is missing; write ids separated by one comma" if what == "label" else
                "a feature id is missing before ':'; write id:value")
    if re.fullmatch(rb"-\d+", token):
        return f"{what} {_quote(token)} is negative; number the {what}s from 0"
    if not re.fullmatch(rb"\+?\d+" if what == "label" else rb"\d+", token):
        return f"{what} {_quote(token)} is no integer id; give {what}s as numbers from 0"
    if limit is None or limit == INT32_MAX:
        return (f"{what} {_quote(token)} is over {INT32_MAX - 1}, the largest id; number the "
                f"{what}s from 0")
    return (f"{what} {_quote(token)} is not below {name}={limit}; correct the header or give a "
            f"larger {name}")


def _explain_value(id_: bytes, value: bytes) -> str:
    try:
        number = float(value)
    except ValueError:
        number = None
    token = f"value {_quote(value)} of feature {_quote(id_)}"
    if number is None or b"_" in value:
        return f"{token} is not a number; write a decimal such as 0.5 or 1e-3"
    if not np.isfinite(number) and re.search(rb"[a-df-zA-DF-Z]", value):
        return f"{token} is not finite; remove the feature or give a number"
    return f"{token} is too large for float32; scale the values"


def _explain_duplicate(row: bytes) -> str:
    seen = set()
    for token in row.partition(b"#")[0].split():
        id_, colon, _ = token.partition(b":")
        if colon:
            if int(id_) in seen:
                return f"feature {_quote(id_)} occurs twice in the row; merge its values into one"
            seen.add(int(id_))
    raise AssertionError("a row reported for a duplicate has none")


def _quote(token: bytes) -> str:
    """The token as shown in a message: printable, shortened, in quotes."""
    token = token if len(token) <= _MAX_QUOTED_BYTES else token[:_MAX_QUOTED_BYTES - 3] + b"..."
    return repr(token.decode("ascii", "backslashreplace")).replace("\\\\x", "\\x")


def _as_written(X: Any, Y: Any, format: str) -> tuple[csr_array, csr_array]:
    """(X, Y) as canonical csr_arrays; raises if the format cannot represent them."""
    Y = check.indicator(Y, "Y")
    if np.ndim(X) != 2 or X.shape[0] != Y.shape[0]:
        raise ValueError(f"X has shape {np.shape(X)} and Y {Y.shape}; give matrices with as many "
                         "rows each")
    if max(X.shape[1], Y.shape[1]) > INT32_MAX:
        raise ValueError(f"X has shape {X.shape} and Y {Y.shape}; ids are below {INT32_MAX}")

    with np.errstate(over="ignore"):  # overflow becomes infinity, which is refused below
        X = sp.csr_array(X, dtype=np.float32)
    if not X.has_canonical_format:
        X = X.copy()  # its arrays may be the caller's
        X.sum_duplicates()
    if not np.isfinite(X.data).all():
        row = np.searchsorted(X.indptr, np.flatnonzero(~np.isfinite(X.data))[0], side="right") - 1
        raise ValueError("X holds NaN, infinity or a value too large for float32 in row "
                         f"{row}; replace it")

    if format == "svmlight":
        empty = np.flatnonzero((np.diff(X.indptr) == 0) & (np.diff(Y.indptr) == 0))
        if len(empty):
            raise ValueError(f"row {empty[0]} has neither labels nor features, which svmlight text "
                             "cannot hold; drop it or use format='xmc'")
    return X, Y


def _write_rows(file: IO[bytes], X: csr_array, Y: csr_array, format: str) -> None:
    x_indptr, y_indptr = X.indptr.astype(np.int64), Y.indptr.astype(np.int64)
    x_indices = X.indices.astype(np.int32, copy=False)
    y_indices = Y.indices.astype(np.int32, copy=False)
    n_rows = X.shape[0]
    if format == "xmc":
        file.write(f"{n_rows} {X.shape[1]} {Y.shape[1]}\n".encode())
    if n_rows == 0:
        return

    # Chunks of rows are sized by the maximum length of their text.
    per_feature = _format.MAX_ID_BYTES + _format.MAX_VALUE_BYTES
    longest = np.arange(n_rows + 1) + per_feature * x_indptr + _format.MAX_ID_BYTES * y_indptr
    first = 0
    while first < n_rows:
        end = int(np.searchsorted(longest, longest[first] + _WRITE_CHUNK_BYTES, side="right"))
        last = max(first + 1, end - 1)
        out = np.empty(longest[last] - longest[first], np.uint8)
        size = _format.format_rows(x_indptr, x_indices, X.data, y_indptr, y_indices, first, last,
                                   0 if format == "xmc" else 1, out)
        file.write(out[:size].data)
        first = last
