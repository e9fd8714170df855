"""Texts and their labels in files: JSONL, CSV, TSV, Parquet and fastText's lines.

The kind of a file follows from its name or, where that says nothing, from its first bytes. An error
names the file, the line and the remedy.
"""
from __future__ import annotations

import bz2
import csv
import gzip
import json
import lzma
import os
import sys
import zlib
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from ._files import UserError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterable, Iterator

SUFFIXES = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".csv": "csv", ".tsv": "tsv",
            ".parquet": "parquet"}
OPENERS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
PACKED = {b"\x28\xb5\x2f\xfd": "zstd", b"\x04\x22\x4d\x18": "LZ4", b"PK\x03\x04": "ZIP",
          b"7z\xbc\xaf\x27\x1c": "7-Zip", b"\xff\x06\x00\x00sNaPpY": "Snappy",
          b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz"}  # by their first bytes
KINDS = ("jsonl", "csv", "tsv", "parquet", "fasttext", "xmc")
TEXT_COLUMN = "text"
LABEL_COLUMNS = ("tags", "labels", "label", "tag")  # the first that a file has
FASTTEXT_LABEL = "__label__"
PEEKED_BYTES = 1 << 12


class Records(NamedTuple):
    """Texts and their labels, one string or a list of them each."""

    texts: list[str]
    labels: list[Any]


class Columns(NamedTuple):
    """Which columns to read: names of text columns, of the label column, and what parts labels."""

    text: list[str]
    label: str | None
    separator: str | None


def kind_of(path: str, given: str = "auto") -> str:
    """The kind of a file: one of KINDS; "xmc" stands for XMC text, svmlight text and CSR files."""
    if given != "auto":
        return given
    stem, suffix = os.path.splitext(path)
    if suffix in OPENERS:
        suffix = os.path.splitext(stem)[1]
    if suffix.lower() in SUFFIXES:
        return SUFFIXES[suffix.lower()]
    if not os.path.isfile(path):
        return "xmc"
    try:
        with _opened_bytes(path) as file:
            start = file.read(PEEKED_BYTES).removeprefix(b"\xef\xbb\xbf").lstrip()
    except (OSError, EOFError, lzma.LZMAError):
        return "xmc"  # whose reader says what is wrong
    if start.startswith(b"PAR1"):
        return "parquet"
    for magic, name in PACKED.items():
        if start.startswith(magic):
            raise UserError(f"{path!r}: is compressed by {name}; unpack it, or give a file of "
                            "gzip, bzip2 or xz whose name ends in .gz, .bz2 or .xz")
    if start.startswith(b"{"):
        return "jsonl"
    return "fasttext" if FASTTEXT_LABEL.encode() in start else "xmc"


def read_records(path: str, kind: str, columns: Columns, labelled: bool = True) -> Records:
    """Read texts and, if `labelled`, their labels; UserError for a file that has none."""
    texts, labels = [], []
    for text, label in _rows(path, kind, columns, labelled):
        texts.append(text)
        labels.append(label)
    if not texts:
        raise UserError(f"{path!r}: holds no records; check that it was written whole")
    if not labelled:
        return Records(texts, [])
    if kind == "fasttext" and all(len(label) == 1 for label in labels):
        labels = [label[0] for label in labels]
    if any(isinstance(label, list) for label in labels):
        labels = [label if isinstance(label, list) else [label] for label in labels]
        if not any(labels):
            raise UserError(f"{path!r}: no record has a label; give the column with --label")
    return Records(texts, labels)


def _rows(path: str, kind: str, columns: Columns, labelled: bool) -> Iterator[tuple[str, Any]]:
    if not os.path.exists(path):
        raise FileNotFoundError(2, "No such file", path)
    if os.path.isdir(path):
        raise UserError(f"{path!r}: is a folder; give a file in it")
    reader: Callable[..., Any] = {"jsonl": _of_jsonl, "csv": _of_csv, "tsv": _of_csv,
                                  "parquet": _of_parquet, "fasttext": _of_fasttext}[kind]
    options = {"delimiter": "\t"} if kind == "tsv" else {}
    try:
        yield from reader(path, columns, labelled, **options)
    except UnicodeDecodeError as error:
        raise UserError(f"{path!r}: is not UTF-8 text ({error.reason}); convert it, for example by "
                        "iconv") from error
    except (EOFError, lzma.LZMAError, zlib.error, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # not of the content
        raise UserError(f"{path!r}: cannot be decompressed ({error}); copy it again") from error


def _opened_bytes(path: str) -> IO[bytes]:
    return OPENERS.get(os.path.splitext(path)[1], open)(path, "rb")


def opened(path: str, **options: Any) -> IO[str]:
    """Open a text file, which its name may say is compressed."""
    opener = OPENERS.get(os.path.splitext(path)[1], open)
    return opener(path, "rt", encoding="utf-8-sig", **options)


def check_no_columns(args: argparse.Namespace, path: str) -> None:
    """Refuse options of texts where there are rows of features."""
    for name in ("text", "label", "separator"):
        if getattr(args, name, None):
            raise UserError(f"--{name}: is for texts, but {path!r} holds rows of features; name "
                            "the kind of the file with --format if it does not")


# -- records of one line ---------------------------------------------------------------------------


def text_of(record: dict[str, Any], columns: Columns, place: str) -> str:
    """The text of a JSON object."""
    parts = []
    for name in columns.text:
        if name not in record:
            raise UserError(f"{place}: has no {name!r}, but {_known(record)}; give the column with "
                            "--text")
        value = record[name]
        if value is not None and not isinstance(value, str):
            raise UserError(f"{place}: {name!r} must be a string, got {_short(value)}")
        parts.append(value or "")
    return " ".join(parts)


def json_object(line: str, place: str) -> dict[str, Any]:
    """The object of a line of JSONL."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place}: is no JSON ({error}); JSONL has one object per line") from None
    if not isinstance(found, dict):
        raise UserError(f"{place}: must be a JSON object such as {{\"text\": ..., \"tags\": ...}}, "
                        f"got {_short(found)}")
    return found


def without_labels(line: str) -> str:
    """The text of a line of fastText's format."""
    return " ".join(word for word in line.split() if not word.startswith(FASTTEXT_LABEL))


def _label(value: Any, columns: Columns, place: str, name: str) -> Any:
    """A label or a list of labels."""
    if value is None:
        return []
    if isinstance(value, str):
        return value if columns.separator is None else _parted(value, columns.separator)
    if isinstance(value, list) and all(isinstance(label, str) for label in value):
        return value
    raise UserError(f"{place}: {name!r} must be a string or a list of strings, got {_short(value)}")


def _parted(cell: str, separator: str) -> list[str]:
    return [part for part in map(str.strip, cell.split(separator)) if part]


def _label_column(names: Iterable[str], columns: Columns, place: str) -> str:
    known = list(names)
    if columns.label is not None:
        if columns.label not in known:
            raise UserError(f"{place}: has no {columns.label!r}, but {_known(known)}; give the "
                            "column with --label")
        return columns.label
    for name in LABEL_COLUMNS:
        if name in known:
            return name
    raise UserError(f"{place}: has none of {', '.join(LABEL_COLUMNS)}, but {_known(known)}; give "
                    "the column with --label")


def _known(names: Iterable[str]) -> str:
    shown = [repr(name)[:40] for name in names]
    return ", ".join(shown[:8]) + (", ..." if len(shown) > 8 else "") if shown else "nothing"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


# -- files -----------------------------------------------------------------------------------------


def _of_jsonl(path: str, columns: Columns, labelled: bool) -> Iterator[tuple[str, Any]]:
    label = columns.label
    with opened(path) as file:
        for n, line in enumerate(file, 1):
            if not line.strip():
                continue
            place = f"{path!r}, line {n}"
            record = json_object(line, place)
            text = text_of(record, columns, place)
            if not labelled:
                yield text, None
                continue
            if label is None:
                label = _label_column(record, columns, place)
            if label not in record:
                raise UserError(f"{place}: has no {label!r}, but {_known(record)}; give the column "
                                "with --label")
            yield text, _label(record[label], columns, place, label)


def _of_csv(path: str, columns: Columns, labelled: bool,
            delimiter: str = ",") -> Iterator[tuple[str, Any]]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    with opened(path, newline="") as file:
        rows = csv.reader(file, delimiter=delimiter, strict=True)
        try:
            names = next(rows, [])
            place = f"{path!r}, line 1"
            for name in columns.text:
                if name not in names:
                    raise UserError(f"{place}: has no column {name!r}, but {_known(names)}; give "
                                    "it with --text")
            texts = [names.index(name) for name in columns.text]
            label = names.index(_label_column(names, columns, place)) if labelled else 0
            _check_unique(names, [*texts, *([label] if labelled else [])], place)
            for row in rows:
                if not row:
                    continue
                if len(row) != len(names):
                    raise UserError(f"{path!r}, line {rows.line_num}: has {len(row)} fields, but "
                                    f"the first line {len(names)}; quote fields with separators")
                text = " ".join(row[i] for i in texts)
                yield text, _label(row[label], columns, "", "") if labelled else None
        except csv.Error as error:
            raise UserError(f"{path!r}, line {rows.line_num}: is no CSV ({error})") from error


def _check_unique(names: list[str], used: list[int], place: str) -> None:
    for i in used:
        if names.count(names[i]) > 1:
            raise UserError(f"{place}: has {names.count(names[i])} columns {names[i]!r}; rename "
                            "all but one")


def _of_fasttext(path: str, columns: Columns, labelled: bool) -> Iterator[tuple[str, Any]]:
    with opened(path) as file:
        for n, line in enumerate(file, 1):
            words = line.split()
            labels = [word.removeprefix(FASTTEXT_LABEL) for word in words
                      if word.startswith(FASTTEXT_LABEL)]
            if labelled and "" in labels:
                raise UserError(f"{path!r}, line {n}: a {FASTTEXT_LABEL} without a name")
            if words:
                yield without_labels(line), labels


def _of_parquet(path: str, columns: Columns, labelled: bool) -> Iterator[tuple[str, Any]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise UserError(f"{path!r}: Parquet needs pyarrow; type pip install "
                        '"sparselsh-nn[parquet]"') from error
    try:
        file = parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path!r}: is no readable Parquet file ({str(error).splitlines()[0]})"
                        ) from error
    with file:
        names = file.schema_arrow.names
        for name in columns.text:
            if name not in names:
                raise UserError(f"{path!r}: has no column {name!r}, but {_known(names)}; give it "
                                "with --text")
        label = _label_column(names, columns, repr(path)) if labelled else None
        _check_unique(names, [names.index(name) for name in
                              [*columns.text, *([label] if label else [])]], repr(path))
        n = 0
        for batch in _batches(path, file, [*columns.text, *([label] if label else [])]):
            for record in batch:
                n += 1
                place = f"{path!r}, row {n}"
                text = text_of(record, columns, place)
                yield text, None if label is None else _label(record[label], columns, place, label)


def _batches(path: str, file: Any, names: list[str]) -> Iterator[list[dict[str, Any]]]:
    """The records of a Parquet file, some at a time."""
    import pyarrow

    try:
        for batch in file.iter_batches(columns=names):
            yield batch.to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        what = " ".join(str(error).split())[:200]
        raise UserError(f"{path!r}: cannot be read ({what}); write it again") from error
