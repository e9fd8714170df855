"""Word vectors as text (.vec), as fastText, word2vec and GloVe write them."""
from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .. import _files

if TYPE_CHECKING:
    from .._arrays.types import Floats, PathLike

MAX_DIGITS = 18  # of a count


def read_vec(path: PathLike) -> tuple[list[str], Floats]:
    """Read word vectors from text.

    The first line has the number of words and of dimensions, as from fastText and word2vec; without
    it, as in files of GloVe, the first line is the first word. Each other line has a word and its
    vector.

    Parameters
    ----------
    path : str or path-like
        Plain text in UTF-8.

    Returns
    -------
    words : list of str
    vectors : ndarray of shape (n_words, n_dims), float32

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is damaged; the message names the line.

    Examples
    --------
    >>> words, vectors = sl.datasets.read_vec("wiki.vec")  # doctest: +SKIP
    >>> index = sl.LSHIndex().fit(vectors, ids=words)  # doctest: +SKIP
    """
    path = _files.existing(path)
    words: list[str] = []
    rows: list[Floats] = []
    declared: tuple[int, int] | None = None
    with open(path, encoding="utf-8", errors="surrogateescape", newline="\n") as file:
        for number, line in enumerate(file, 1):
            line = line.rstrip("\r\n ")
            parts = line.split(" ")
            if number == 1 and len(parts) == 2 and all(
                    p.isdecimal() and len(p) <= MAX_DIGITS for p in parts):
                declared = int(parts[0]), int(parts[1])
                continue
            if not line and declared is None:
                raise _damaged(path, number, "is empty")
            width = len(rows[0]) if rows else declared[1] if declared else len(parts) - 1
            word, *numbers = line.rsplit(" ", width) if width else [line]
            try:
                with np.errstate(all="ignore"):  # of numbers that are too large
                    row = np.array(numbers, np.float32)
            except ValueError as error:
                text = str(error)[:80]
                raise _damaged(path, number, f"has a value that is no number ({text})") from error
            if len(row) != width or not width or not np.isfinite(row).all():
                raise _damaged(path, number, f"must have a word and {width} finite numbers")
            words.append(word)
            rows.append(row)
    if declared is not None and declared[0] != len(words):
        raise ValueError(f"{path}: has {len(words):,} words, and its first line says "
                         f"{declared[0]:,}; it is cut short: copy it again")
    if not rows:
        raise ValueError(f"{path}: has no word vectors; give a .vec file")
    return words, np.stack(rows)


def _damaged(path: PathLike, number: int, what: str) -> ValueError:
    return ValueError(f"{path}: line {number} {what}; copy the file again")
