"""Supervised models of fastText (.bin): the words of a text as rows of a table, and the layers.

The layout is that of version 12 of the format, in little-endian order: a magic number and the
version, the arguments, the dictionary, and two matrices. How a text becomes rows of the table is
described in [1]_ and in the documentation of fastText: its words, their character n-grams and the
n-grams of words, the last two hashed into buckets.

References
----------
.. [1] Joulin et al., "Bag of Tricks for Efficient Text Classification", EACL 2017.
"""
from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ... import _files
from ... import _validation as check
from ..._arrays.aligned import contiguous
from .affine import Affine

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..._arrays.types import Floats, PathLike

MAGIC, VERSION = 793712314, 12
ARGUMENTS = ("dim", "ws", "epoch", "minCount", "neg", "wordNgrams", "loss", "model", "bucket",
             "minn", "maxn", "lrUpdateRate")
SUPERVISED, HIERARCHICAL = 3, 1  # of `model` and `loss`
END = b"</s>"  # of a line
BEGIN_OF_WORD, END_OF_WORD = b"<", b">"
SPACES = b" \n\r\t\v\f\0"
TO_SPACES = bytes.maketrans(SPACES, b" " * len(SPACES))
HASH_START, HASH_PRIME, NGRAM_PRIME = 2166136261, 16777619, 116049371
WORD = 0  # type of an entry


class FastTextModel(NamedTuple):
    """A model: its layers, its labels, and what turns words into rows of the table."""

    layers: list[Affine]
    labels: list[str]
    words: dict[bytes, int]
    n_words: int
    word_ngrams: int
    bucket: int
    minn: int
    maxn: int

    def ids(self, text: str) -> list[int]:
        """The rows of the table of the words, character n-grams and word n-grams of a text."""
        out: list[int] = []
        hashes = []
        for token in (*_tokens(text.encode("utf-8", "surrogateescape")), END):
            row = self.words.get(token, -1)
            if row >= 0:
                out.append(row)
            if self.maxn > 0 and token != END:
                out += self._character_ngrams(token)
            hashes.append(_hash(token))
        if self.word_ngrams > 1:
            signed = [h - 2**32 if h >= 2**31 else h for h in hashes]
            for i in range(len(signed)):
                value = signed[i] % 2**64
                for j in range(i + 1, min(len(signed), i + self.word_ngrams)):
                    value = (value * NGRAM_PRIME + signed[j]) % 2**64
                    out.append(self.n_words + value % self.bucket)
        return out

    def _character_ngrams(self, token: bytes) -> Iterator[int]:
        word = BEGIN_OF_WORD + token + END_OF_WORD
        starts = [i for i in range(len(word)) if word[i] & 0xC0 != 0x80]
        ends = [*starts[1:], len(word)]
        for i in range(len(starts)):
            for n in range(self.minn, self.maxn + 1):
                if i + n > len(starts):
                    break
                is_edge = i == 0 or i + n == len(starts)
                if n > 0 and not (n == 1 and is_edge):
                    ngram = word[starts[i]:ends[i + n - 1]]
                    yield self.n_words + _hash(ngram) % self.bucket


def read_fasttext(path: PathLike) -> FastTextModel:
    """The model of a supervised .bin file, or an error that names what is not supported."""
    path = _files.existing(path)
    with open(path, "rb") as file:
        content = file.read()
    reader = _Reader(content, path)
    if len(content) < 8 or reader.numbers("i", 1)[0] != MAGIC:
        raise ValueError(f"{path}: not a .bin file of fastText; word vectors as text (.vec) are "
                         "read by datasets.read_vec, for LSHIndex")
    version, = reader.numbers("i", 1)
    if version != VERSION:
        raise ValueError(f"{path}: is of version {version} of the format, and {VERSION} is read; "
                         "train the model with fastText 0.9 or later")
    given = dict(zip(ARGUMENTS, reader.numbers("i", len(ARGUMENTS)), strict=True))
    reader.numbers("d", 1)  # of the sampling of frequent words, which training alone uses
    if given["model"] != SUPERVISED:
        raise ValueError(f"{path}: holds word vectors and no classifier; write them as text (.vec) "
                         "for datasets.read_vec and LSHIndex")
    if given["loss"] == HIERARCHICAL:
        raise ValueError(f"{path}: has the loss hs, whose outputs are nodes of a tree; train it "
                         "with -loss softmax, ova or ns")

    words, labels, n_words = reader.dictionary()
    table = reader.matrix("input matrix", given["dim"])
    outputs = reader.matrix("output matrix", given["dim"])
    word_ngrams, bucket, minn, maxn = (
        max(0, given[name]) for name in ("wordNgrams", "bucket", "minn", "maxn"))
    has_ngrams = maxn > 0 or word_ngrams > 1
    n_rows = n_words + bucket * has_ngrams
    if len(outputs) != len(labels) or len(table) < n_rows or (has_ngrams and not bucket):
        raise ValueError(f"{path}: its matrices have {len(table)} and {len(outputs)} rows, for "
                         f"{n_rows} words and n-grams and {len(labels)} labels; it is damaged: "
                         "copy it again")
    layers = [Affine("input", table, kind="embedding_bag"), Affine("output", outputs)]
    return FastTextModel(layers, labels, words, n_words, word_ngrams, bucket, minn, maxn)


def is_fasttext(path: PathLike) -> bool:
    """Whether a file begins as a .bin of fastText does; False also where there is none."""
    try:
        with open(path, "rb") as file:
            return file.read(4) == struct.pack("<i", MAGIC)
    except OSError:
        return False


def restored_fasttext(config: dict[str, Any], words: list[bytes], n_rows: int,
                      n_labels: int) -> FastTextModel:
    """The model without its layers, from plain values; ValueError where these do not fit."""
    labels = [str(label) for label in config["labels"]]
    names = ("n_words", "word_ngrams", "bucket", "minn", "maxn")
    numbers = {name: check.integer(config[name], name, minimum=0) for name in names}
    n_buckets = numbers["bucket"] if numbers["maxn"] or numbers["word_ngrams"] > 1 else 0
    if (len(labels) != n_labels or len(words) != numbers["n_words"]
            or numbers["n_words"] + n_buckets > n_rows):
        raise ValueError("its words and labels do not fit its layers")
    if n_buckets == 0 and (numbers["maxn"] or numbers["word_ngrams"] > 1):
        raise ValueError("it has n-grams and no buckets for them")
    return FastTextModel([], labels, {word: i for i, word in enumerate(words)}, **numbers)


class _Reader:
    """Reads a file in memory from its beginning on."""

    def __init__(self, content: bytes, path: str) -> None:
        self.content, self.path, self.at = content, path, 0

    def _damaged(self, what: str) -> ValueError:
        return ValueError(f"{self.path}: its {what} is damaged, or the file is cut short; copy it "
                          "again")

    def numbers(self, kind: str, n: int) -> tuple[Any, ...]:
        layout = struct.Struct(f"<{n}{kind}")
        if self.at + layout.size > len(self.content):
            raise self._damaged("header")
        found = layout.unpack_from(self.content, self.at)
        self.at += layout.size
        return found

    def dictionary(self) -> tuple[dict[bytes, int], list[str], int]:
        """Words with their rows, labels, and the number of words."""
        size, n_words, n_labels = self.numbers("i", 3)
        _, pruned = self.numbers("q", 2)
        if pruned >= 0:
            raise ValueError(f"{self.path}: its dictionary is pruned, as `quantize -cutoff` does; "
                             "give the model as it was before")
        if min(size, n_words, n_labels) < 0 or size != n_words + n_labels:
            raise self._damaged("dictionary")
        words: dict[bytes, int] = {}
        labels: list[str] = []
        for _ in range(size):
            end = self.content.find(b"\0", self.at)
            if end < 0:
                raise self._damaged("dictionary")
            entry = self.content[self.at:end]
            self.at = end + 1
            self.numbers("q", 1)  # how often it was seen
            kind, = self.numbers("b", 1)
            if kind == WORD:
                words[entry] = len(words)
            else:
                labels.append(entry.decode("utf-8", "replace"))
        if len(words) != n_words or len(labels) != n_labels or not labels:
            raise self._damaged("dictionary")
        return words, labels, n_words

    def matrix(self, what: str, n_columns: int) -> Floats:
        if self.numbers("?", 1)[0]:
            raise ValueError(f"{self.path}: its {what} is quantized (.ftz); give the model as it "
                             "was before")
        rows, columns = self.numbers("q", 2)
        n_bytes = 4 * rows * columns
        if rows < 1 or columns != n_columns or self.at + n_bytes > len(self.content):
            raise self._damaged(what)
        out = contiguous(np.frombuffer(self.content, np.dtype("<f4"), rows * columns, self.at))
        self.at += n_bytes
        return out.reshape(rows, columns)


def _tokens(text: bytes) -> list[bytes]:
    """The words of a text; line ends are spaces."""
    return [token for token in text.translate(TO_SPACES).split(b" ") if token]


def _hash(token: bytes) -> int:
    """FNV-1a with 32 bits, over signed bytes."""
    value = HASH_START
    for byte in token:
        value = ((value ^ (byte if byte < 128 else byte | 0xFFFFFF00)) * HASH_PRIME) & 0xFFFFFFFF
    return value
