"""CSR files: sparse rows with labels as arrays in a file that is mapped into memory.

Layout, all numbers little-endian, each array at a multiple of 64 bytes, zeros between them::

    header      64 bytes: magic (16), version, CRC-32 of what follows in the header (uint32 each),
                n_rows, n_features, n_labels, number of values, number of label entries
                (uint64 each)
    x_indptr    int64    n_rows + 1       row i of X is x_indices[x_indptr[i] : x_indptr[i + 1]]
    y_indptr    int64    n_rows + 1
    x_indices   int32    values           ascending in a row
    x_data      float32  values
    y_indices   int32    label entries    ascending in a row
    checksums   uint32   one per block    CRC-32 of each 256 KB of the arrays above, one array after
                                          the other, and last the CRC-32 of these checksums

Files of version 1 end before the checksums.

Files are not trusted. Opening compares the header with the size of the file and checks the offsets,
16 bytes per row; so no number in a file can cause more memory to be allocated than the file has.
Ids and values are checked when their rows are read, in the copy that is returned. A block is
compared with its checksum when the first of its rows is read.
"""
from __future__ import annotations

import os
import struct
import tempfile
import zlib
from contextlib import ExitStack
from typing import IO, TYPE_CHECKING, Any, BinaryIO, NamedTuple, Self

import numpy as np

from .. import _validation as check
from .._arrays import csr
from .._arrays.csr import CSR
from .._arrays.scipy import sp
from .._display import size, table
from .._files import crc32, naming, place, replacing
from .._validation import INT32_MAX
from . import _xmc_text
from ._xmc_text import FileFormatError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from scipy.sparse import csr_array

    from .._arrays.types import MatrixLike, Offsets, PathLike

__all__ = ["CSRFile", "convert_xmc", "is_csr_file", "open_csr", "write_csr"]

# Not valid text, and damaged by a transfer that changes line ends.
MAGIC = b"\x89sparselsh.csr\r\n"
VERSION = 2
VERSIONS = (1, 2)  # that can be read
CHECKSUM_BLOCK_BYTES = 1 << 18
ALIGNMENT = 64  # bytes
_HEADER_START = struct.Struct("<16sII")  # magic, version, checksum
_HEADER_COUNTS = struct.Struct("<5Q")
_MAX_COUNT = 2**56  # exclusive; keeps byte offsets within int64
_DEFAULT_CHUNK_ROWS = 16_384
_OFFSETS_PER_CHECK = 1 << 20  # that are compared at a time


class _Section(NamedTuple):
    """An array in the file."""

    dtype: np.dtype
    offset: int  # bytes
    length: int  # entries

    @property
    def end(self) -> int:
        return self.offset + self.length * self.dtype.itemsize

    @property
    def n_blocks(self) -> int:
        """Blocks with a checksum."""
        return -(-(self.end - self.offset) // CHECKSUM_BLOCK_BYTES)


DTYPES = {"x_indptr": "<i8", "y_indptr": "<i8", "x_indices": "<i4", "x_data": "<f4",
          "y_indices": "<i4"}


def _sections(n_rows: int, x_nnz: int, y_nnz: int) -> dict[str, _Section]:
    """Positions of the arrays in the file, by name."""
    lengths = {"x_indptr": n_rows + 1, "y_indptr": n_rows + 1, "x_indices": x_nnz, "x_data": x_nnz,
               "y_indices": y_nnz}
    sections, end = {}, _HEADER_START.size + _HEADER_COUNTS.size
    for name, dtype in DTYPES.items():
        sections[name] = _Section(np.dtype(dtype), -(-end // ALIGNMENT) * ALIGNMENT, lengths[name])
        end = sections[name].end
    return sections


# --- reading --------------------------------------------------------------------------------------


def is_csr_file(path: PathLike) -> bool:
    """Whether a file begins with the magic bytes of CSR files."""
    if not os.path.isfile(path):  # reading from a pipe would consume its first bytes
        return False
    with open(path, "rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def open_csr(path: PathLike) -> CSRFile:
    """Open a file that :func:`write_csr` or :func:`convert_xmc` wrote.

    Parameters
    ----------
    path : str or path-like

    Returns
    -------
    CSRFile

    Raises
    ------
    FileFormatError
        The file has another format or a later version, is truncated or damaged.
    FileNotFoundError, IsADirectoryError, OSError
        The file cannot be opened.
    """
    return CSRFile(path)


class CSRFile:
    """Sparse rows with labels in a file that is mapped into memory; made by :func:`open_csr`.

    Indexing copies rows out of the file: ``file[10:20]``, ``file[[3, 1, 2]]`` or ``file[mask]``
    return (X, Y), both csr_array of float32. ``len(file)`` is the number of rows. A CSRFile is a
    context manager.

    Attributes
    ----------
    path : str
    shape : tuple of int
        (n_rows, n_features).
    n_labels : int
    nnz, label_nnz : int
        Number of stored values, and number of labels, summed over all rows.

    Raises
    ------
    FileFormatError
        Rows are read whose ids or values are damaged.
    ValueError
        Rows are read from a closed file.

    Notes
    -----
    Parts of a mapped file that were read may stay in memory while there is room; the operating
    system counts them as memory of the process and frees them when needed. Do not write into an
    open file: replace it, as `write_csr` does.
    """

    def __init__(self, path: PathLike) -> None:
        self.path = path = check.path(path)
        with _xmc_text.explained(path), open(path, "rb") as file:
            version, (n_rows, n_features, n_labels, x_nnz, y_nnz) = _read_header(path, file)
            raw = np.memmap(file, np.uint8, "r")

        self.shape, self.n_labels = (n_rows, n_features), n_labels
        self.nnz, self.label_nnz = x_nnz, y_nnz
        sections = _sections(n_rows, x_nnz, y_nnz)
        self._arrays: dict[str, np.ndarray] | None = {
            name: np.asarray(raw[s.offset:s.end]).view(s.dtype) for name, s in sections.items()}
        self._checksums: dict[str, np.ndarray] = {}  # of blocks, by array; none in old files
        self._is_sound: dict[str, np.ndarray] = {}  # whether they were compared
        if version > 1:
            self._read_checksums(np.asarray(raw[sections["y_indices"].end:]), sections)
        for part in "xy":
            self._verify(f"{part}_indptr", 0, n_rows + 1)
            n_entries = len(self._arrays[f"{part}_indices"])
            self._check_offsets(self._arrays[f"{part}_indptr"], n_entries)

    def _read_checksums(self, raw: np.ndarray, sections: dict[str, _Section]) -> None:
        own, last = raw[:-4].tobytes(), raw[-4:].tobytes()
        if zlib.crc32(own).to_bytes(4, "little") != last:
            raise self._damaged("the checksums differ from their own checksum")
        checksums, first = np.frombuffer(own, "<u4"), 0
        for name, section in sections.items():
            self._checksums[name] = checksums[first:first + section.n_blocks]
            self._is_sound[name] = np.zeros(section.n_blocks, bool)
            first += section.n_blocks

    def _verify(self, name: str, start: int, stop: int) -> None:
        """Compare the blocks of the entries start .. stop of an array with their checksums."""
        if name not in self._checksums or stop <= start or self._arrays is None:
            return
        array, size = self._arrays[name], self._arrays[name].itemsize
        first = start * size // CHECKSUM_BLOCK_BYTES
        last = (stop * size - 1) // CHECKSUM_BLOCK_BYTES
        is_sound = self._is_sound[name]
        for block in first + np.flatnonzero(~is_sound[first:last + 1]):
            begin = int(block) * CHECKSUM_BLOCK_BYTES // size
            part = array[begin:begin + CHECKSUM_BLOCK_BYTES // size]
            if crc32(part.view(np.uint8).data) != self._checksums[name][block]:
                raise self._damaged(f"{name} differs from its checksum at entry {begin:,} or one "
                                    "that follows")
            is_sound[block] = True

    def _verify_rows(self, runs: Iterable[tuple[int, int]]) -> None:
        """Compare the blocks of runs of rows (start, stop) with their checksums."""
        if not self._checksums or self._arrays is None:
            return
        for part, names in (("x", ("x_indices", "x_data")), ("y", ("y_indices",))):
            indptr = self._arrays[f"{part}_indptr"]
            for start, stop in runs:
                for name in names:
                    self._verify(name, int(indptr[start]), int(indptr[stop]))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> tuple[csr_array, csr_array]:
        n = len(self)
        if isinstance(rows, slice):
            start, stop, step = rows.indices(n)
            if step == 1:
                X, Y = read_window(self, start, max(start, stop))
                return X.to_scipy(), Y.to_scipy()
            rows = np.arange(start, stop, step)

        rows = np.asarray(rows) if np.ndim(rows) == 1 else None
        if rows is None or not (rows.dtype.kind in "iub" or rows.size == 0):
            raise TypeError("rows must be a slice, or a one-dimensional array of integers or truth "
                            "values; for one row write file[i:i + 1]")
        if rows.dtype == bool:
            if len(rows) != n:
                raise ValueError(f"rows must have a truth value for each of the {n} rows, "
                                 f"got {len(rows)}")
            rows = np.flatnonzero(rows)
        rows = rows.astype(np.int64)
        if rows.size and not (-n <= rows.min() and rows.max() < n):
            bad = rows.min() if rows.min() < -n else rows.max()
            raise IndexError(f"rows must lie in {-n}..{n - 1}, got {bad}")
        rows[rows < 0] += n

        self._verify_rows(_runs(np.unique(rows)))
        X, Y = (part.take(rows) for part in self._mapped())
        return _as_scipy(self._checked(X, Y))

    def chunks(self, n_rows: int = _DEFAULT_CHUNK_ROWS) -> Iterator[tuple[csr_array, csr_array]]:
        """Yield all rows in order, in chunks.

        Parameters
        ----------
        n_rows : int
            Rows per chunk; the last chunk may have fewer.

        Yields
        ------
        X : csr_array of shape (n_rows, n_features), float32
        Y : csr_array of shape (n_rows, n_labels), float32

        Raises
        ------
        ValueError
            If the file is closed, or `n_rows` is not a positive integer.
        """
        n_rows = check.integer(n_rows, "n_rows")
        for start in range(0, len(self), n_rows):
            yield self[start:start + n_rows]

    def close(self) -> None:
        """Close the file. Rows that were read from it remain valid.

        Returns
        -------
        None
            A later read of this object raises ValueError.
        """
        self._arrays = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[type[CSRFile], tuple[str]]:
        return CSRFile, (self.path,)  # another process maps the file itself

    def __repr__(self) -> str:
        return (f"<CSRFile {self.path!r}: {len(self):,} rows, {self.shape[1]:,} features, "
                f"{self.n_labels:,} labels{', closed' if self._arrays is None else ''}>")

    def _repr_html_(self) -> str:
        exists = os.path.exists(self.path)
        rows = [("rows", f"{len(self):,}"), ("features", f"{self.shape[1]:,}"),
                ("labels", f"{self.n_labels:,}"),
                ("size", size(os.path.getsize(self.path)) if exists else "the file was removed")]
        return table(f"CSRFile {self.path}{' (closed)' if self._arrays is None else ''}", rows)

    def _mapped(self) -> tuple[CSR, CSR]:
        """X and Y, not copied. The file has no values of labels: Y.data is arbitrary."""
        if self._arrays is None:
            raise ValueError(f"{self.path!r} is closed; open it again")
        a = self._arrays
        return (CSR(a["x_indptr"], a["x_indices"], a["x_data"], self.shape[1]),
                CSR(a["y_indptr"], a["y_indices"], a["y_indices"].view("<f4"), self.n_labels))

    def _checked(self, X: CSR, Y: CSR) -> tuple[CSR, CSR]:
        Y = Y._replace(data=np.ones(Y.nnz, np.float32))
        for part, what in ((X, "feature"), (Y, "label")):
            self._check_ids(part, what)
        if not np.isfinite(X.data).all():
            raise self._damaged("a value is NaN or infinite")
        return X, Y

    def _check_ids(self, part: CSR, what: str) -> None:
        ids = part.indices
        if ids.size == 0:
            return
        if ids.min() < 0 or ids.max() >= part.n_columns:
            bad = ids.min() if ids.min() < 0 else ids.max()
            raise self._damaged(f"the {what} id {bad} is outside 0..{part.n_columns - 1}")

        ascends = ids[1:] > ids[:-1]
        starts = part.indptr[1:-1]
        ascends[starts[(starts > 0) & (starts < len(ids))] - 1] = True  # between two rows
        if not ascends.all():
            raise self._damaged(f"the {what} ids of a row are not ascending")

    def _check_offsets(self, indptr: Offsets, nnz: int) -> None:
        if indptr[0] != 0 or indptr[-1] != nnz:
            raise self._damaged(f"the offsets of its rows go from {indptr[0]} to {indptr[-1]}, not "
                                f"from 0 to {nnz}")
        for start in range(0, len(indptr), _OFFSETS_PER_CHECK):
            part = indptr[start:start + _OFFSETS_PER_CHECK + 1]
            if (part[1:] < part[:-1]).any():
                raise self._damaged("the offsets of its rows decrease")

    def _damaged(self, problem: str) -> FileFormatError:
        return FileFormatError(self.path, None,
                               f"{problem}; the file is damaged: write or copy it again")


def read_window(file: CSRFile, start: int, stop: int) -> tuple[CSR, CSR]:
    """X and Y of the rows from start to stop, copied and checked, for use in the kernels."""
    stop = min(stop, len(file))
    file._verify_rows([(start, stop)])
    # The copy is checked: later changes of the file do not affect it.
    views = (part.slice(start, stop) for part in file._mapped())
    X, Y = (CSR(v.indptr, np.array(v.indices), np.array(v.data), v.n_columns) for v in views)
    return file._checked(X, Y)


def mapped_rows(file: CSRFile) -> tuple[CSR, CSR]:
    """X and Y of all rows, checked; the arrays of X are not copied."""
    file._verify_rows([(0, len(file))])
    return file._checked(*file._mapped())


def _runs(rows: np.ndarray) -> list[tuple[int, int]]:
    """Runs (start, stop) of consecutive numbers among distinct ascending ones."""
    if not len(rows):
        return []
    breaks = np.flatnonzero(np.diff(rows) > 1)
    starts, ends = rows[np.append(0, breaks + 1)], rows[np.append(breaks, len(rows) - 1)] + 1
    return list(zip(starts.tolist(), ends.tolist(), strict=True))


def _as_scipy(parts: tuple[CSR, CSR]) -> tuple[csr_array, csr_array]:
    X, Y = parts
    return X.to_scipy(), Y.to_scipy()


def _read_header(path: str, file: BinaryIO) -> tuple[int, tuple[int, ...]]:
    """The version and the five counts, checked against the size of the file."""
    front, counts = file.read(_HEADER_START.size), file.read(_HEADER_COUNTS.size)
    if not front.startswith(MAGIC):
        raise FileFormatError(path, None, "this is no CSR file; make one with write_csr, or from "
                              "XMC text with convert_xmc")
    if len(counts) < _HEADER_COUNTS.size:
        raise FileFormatError(path, None, "the file ends in its header; copy or write it again")

    _, version, checksum = _HEADER_START.unpack(front)
    if version not in VERSIONS:
        raise FileFormatError(path, None, f"the file has version {version} of the format, this "
                              f"library reads {VERSION}; write it again, or get a later library")

    n_rows, n_features, n_labels, x_nnz, y_nnz = numbers = _HEADER_COUNTS.unpack(counts)
    if (checksum != _header_checksum(version, counts) or max(n_features, n_labels) > INT32_MAX
            or max(numbers) >= _MAX_COUNT):
        raise FileFormatError(path, None, "the header is damaged; copy or write the file again")

    size = os.fstat(file.fileno()).st_size
    sections = _sections(n_rows, x_nnz, y_nnz)
    expected = sections["y_indices"].end
    if version > 1:
        expected += 4 * (1 + sum(section.n_blocks for section in sections.values()))
    if size != expected:
        raise FileFormatError(path, None, f"the file has {size} bytes, but its header asks for "
                              f"{expected}; it was cut or damaged: copy or write it again")
    return version, numbers


def _header_checksum(version: int, counts: bytes) -> int:
    # the one of version 1 does not cover the version
    return zlib.crc32(counts, 0 if version == 1 else zlib.crc32(MAGIC + bytes([version])))


# --- writing --------------------------------------------------------------------------------------


def write_csr(path: PathLike, X: MatrixLike | Iterable[Any], Y: MatrixLike | None = None, *,
              n_labels: int | None = None) -> None:
    """Write sparse rows with labels as a file for :func:`open_csr`.

    The file appears whole or not at all. Its arrays are first written to temporary files in the
    same folder, which therefore needs room for the data twice.

    Parameters
    ----------
    path : str or path-like
        A file of that name is replaced.
    X : matrix of shape (n_rows, n_features), or iterable of (X, Y)
        Sparse or dense; or chunks of rows, with Y None. At most two chunks are held in memory.
    Y : matrix of shape (n_rows, n_labels), int array of shape (n_rows,), or None
        Indicator, whose nonzero entries are the labels, or one class id per row. The same in a
        chunk.
    n_labels : int, optional
        By default the number of columns of Y; for class ids, the largest id plus one.

    Raises
    ------
    ValueError, TypeError
        As in :meth:`sparselsh.Network.fit`.
    OSError
        The file cannot be written.
    """
    n_labels = None if n_labels is None else check.integer(n_labels, "n_labels", minimum=0)
    given = [(X, Y, "X", "Y")] if Y is not None else check.chunks(X)
    _write(path, given, n_labels)


def convert_xmc(text_path: PathLike, csr_path: PathLike, *,
                chunk_rows: int = _DEFAULT_CHUNK_ROWS) -> None:
    """Write an XMC text file as a CSR file, `chunk_rows` rows in memory at a time.

    Parameters
    ----------
    text_path : str or path-like
        Text whose first line is ``n_rows n_features n_labels``; compressed if its name ends in
        ``.gz``, ``.bz2`` or ``.xz``.
    csr_path : str or path-like
        A file of that name is replaced.
    chunk_rows : int
        Rows in memory at a time.

    Raises
    ------
    FileFormatError
        The text is not in the format; see :func:`read_xmc`.
    ValueError, OSError
        An argument is invalid, or a file cannot be read or written.
    """
    chunk_rows = check.integer(chunk_rows, "chunk_rows")
    text_path = check.path(text_path, "text_path")
    if os.path.realpath(text_path) == os.path.realpath(check.path(csr_path, "csr_path")):
        raise ValueError(f"csr_path is the file to read, {text_path!r}; give another name")
    chunks = ((X, Y, "X", "Y") for X, Y in _xmc_text.chunks(text_path, chunk_rows))
    _write(csr_path, chunks, None)


def _write(path: PathLike, chunks: Iterable[tuple[Any, Any, str, str]],
           n_labels: int | None) -> None:
    """Write checked copies of (X, Y, name of X, name of Y)."""
    path = place(path)
    n_features, n_rows, n_found = None, 0, 0
    ends = {"x_indptr": 0, "y_indptr": 0}
    with naming(path), ExitStack() as stack:
        # The lengths of the arrays, and so their positions, are known after the last chunk.
        folder = os.path.dirname(path)
        spools = {name: stack.enter_context(tempfile.TemporaryFile(dir=folder)) for name in DTYPES}
        for X, Y, x_name, y_name in chunks:
            X, Y, n_columns = _rows(X, Y, x_name, y_name, n_features, n_labels)
            n_features, n_rows = X.n_columns, n_rows + X.shape[0]
            n_labels, n_found = n_columns, max(n_found, int(Y.indices.max(initial=-1)) + 1)
            for name, part in (("x_indptr", X), ("y_indptr", Y)):
                _append(spools[name], part.indptr[1:] + ends[name], name)
                ends[name] += part.nnz
            for name, array in (("x_indices", X.indices), ("x_data", X.data),
                                ("y_indices", Y.indices)):
                _append(spools[name], array, name)

        if n_features is None:
            raise ValueError("X gave no chunks; give at least one (X, Y)")
        if n_labels is not None and n_found > n_labels:  # class ids in a chunk before a matrix
            raise ValueError(f"Y holds the class id {n_found - 1}, but there are {n_labels} "
                             "labels; give n_labels")
        sizes = (n_rows, n_features, n_found if n_labels is None else n_labels, *ends.values())
        with replacing(path) as file:
            _assemble(file, spools, sizes)


def _rows(X: Any, Y: Any, x_name: str, y_name: str, n_features: int | None,
          n_labels: int | None) -> tuple[CSR, CSR, int | None]:
    """X and Y as CSR, and the number of labels: None for class ids without `n_labels`."""
    X = check.matrix(X, x_name, n_columns=n_features)
    if not isinstance(X, CSR):
        X = csr.from_scipy(sp.csr_array(X))
    if not sp.issparse(Y):
        Y = np.asarray(Y)
    if n_labels is None and Y.ndim == 2:
        n_labels = Y.shape[1]
    Y = check.targets(Y, X.shape[0], INT32_MAX if n_labels is None else n_labels, name=y_name,
                      x_name=x_name)
    return X, Y, n_labels


def _append(file: IO[bytes], array: np.ndarray, name: str) -> None:
    file.write(np.ascontiguousarray(array, DTYPES[name]).data)


def _assemble(file: IO[bytes], spools: Mapping[str, IO[bytes]], sizes: tuple[int, ...]) -> None:
    """Write the header, and the arrays at their positions."""
    counts = _HEADER_COUNTS.pack(*sizes)
    file.write(_HEADER_START.pack(MAGIC, VERSION, _header_checksum(VERSION, counts)) + counts)
    end, checksums = _HEADER_START.size + _HEADER_COUNTS.size, []
    for name, section in _sections(sizes[0], *sizes[3:]).items():
        file.write(bytes(section.offset - end))
        spool, end = spools[name], section.end
        spool.seek(0)
        start = bytes(8 if name.endswith("indptr") else 0)  # the offsets begin with a zero
        while block := start + spool.read(CHECKSUM_BLOCK_BYTES - len(start)):
            file.write(block)
            checksums.append(crc32(memoryview(block)))
            start = b""
        spool.close()  # frees its disk space
    own = np.array(checksums, "<u4").tobytes()
    file.write(own + zlib.crc32(own).to_bytes(4, "little"))
