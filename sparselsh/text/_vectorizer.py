"""TextVectorizer: texts to sparse rows, by the kernels of _core/_text.pyx."""
from __future__ import annotations

import copy
import itertools
import math
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from .. import _validation as check
from .._arrays import portable
from .._arrays.csr import CSR, concatenate
from .._core import _text
from .._threads import resolve
from ._characters import word_bits
from ._inputs import checked_texts
from ._parameters import Parameters

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray
    from scipy.sparse import csr_array

    from .._arrays.types import Offsets

TEXTS_PER_CHUNK = 4096
MAX_CHUNK_BYTES = 1 << 26
MAX_TEXT_BYTES = 2**30  # offsets within a text are int32
MAX_NGRAM_WORDS = 8
MAX_FEATURES = 2**31 - 2
NO_STRINGS = np.zeros(0, np.uint8)


class TextVectorizer(Parameters):
    """Convert texts to sparse rows: TF-IDF of words and of runs of words.

    Words are those of scikit-learn's vectorizers: runs of two or more letters, digits and
    underscores of any language, in lower case. With the same parameters the rows are those of
    `TfidfVectorizer`, of float32, or of `HashingVectorizer` without signs. Texts are read by
    compiled code, on several threads.

    Parameters
    ----------
    ngram_range : pair of int
        Smallest and largest number of words in a feature: (1, 1) for words alone, (1, 2) for words
        and pairs of neighbours.
    min_df : int or float
        Runs in fewer texts than this, or than this fraction of the texts, are left out. Hashed
        features are all kept.
    max_features : int or None
        Keep this many runs, those in most texts.
    n_features : int or None
        None stores the runs in a vocabulary, which can name them and grow. A number hashes each run
        to one of this number of columns: no vocabulary is stored, and some runs share a column.
    lowercase : bool
        Convert the texts to lower case.
    sublinear_tf : bool
        Count a run that occurs c times in a text as 1 + log c.
    use_idf : bool
        Multiply by ``log((1 + n) / (1 + df)) + 1``, where df of the n texts of `fit` have the run.
    norm : {"l2"} or None
        Divide rows by their norm.
    n_threads : int or None
        Number of threads; None for :func:`sparselsh.get_num_threads`.

    Attributes
    ----------
    n_texts_ : int
        Number of texts of `fit`.
    idf_ : ndarray of shape (n_columns,), float64
        Factors of the features; empty without `use_idf`.

    Examples
    --------
    >>> import sparselsh as sl
    >>> vectorizer = sl.TextVectorizer(min_df=1)
    >>> X = vectorizer.fit_transform(["A red ball", "a blue ball"])
    >>> vectorizer.get_feature_names_out()
    array(['ball', 'blue', 'blue ball', 'red', 'red ball'], dtype=object)
    """

    n_texts_: int
    idf_: NDArray[np.float64]
    _offsets: Offsets
    _strings: NDArray[np.uint8]
    _plan: _text.TextRows

    def __init__(self, ngram_range: tuple[int, int] = (1, 2), *, min_df: float = 2,
                 max_features: int | None = None, n_features: int | None = None,
                 lowercase: bool = True, sublinear_tf: bool = True, use_idf: bool = True,
                 norm: str | None = "l2", n_threads: int | None = None) -> None:
        self.ngram_range = ngram_range
        self.min_df = min_df
        self.max_features = max_features
        self.n_features = n_features
        self.lowercase = lowercase
        self.sublinear_tf = sublinear_tf
        self.use_idf = use_idf
        self.norm = norm
        self.n_threads = n_threads

    # -- vocabulary ------------------------------------------------------------------------------

    def fit(self, texts: Any, y: Any = None) -> Self:
        """Learn the vocabulary and the factors of the features.

        Parameters
        ----------
        texts : list of str, or column of a data frame
        y : ignored

        Returns
        -------
        self

        Raises
        ------
        ValueError, TypeError
            If a parameter or a text is invalid, or no run is in enough texts.
        """
        self.__dict__.update(self._fitted(checked_texts(texts, "texts")).__dict__)
        return self

    def _fitted(self, texts: Sequence[str]) -> TextVectorizer:
        """A vectorizer with these parameters and the vocabulary of the texts.

        `fit` takes its state at once, so that an error leaves that of before.
        """
        self._check_parameters()
        new = TextVectorizer(**self.get_params(deep=False))
        new.n_texts_ = len(texts)
        if new.n_features is None:
            offsets, strings, counts = new._listed(texts)
            new._take_vocabulary(offsets, strings, new._factors(counts))
            return new
        new._take_vocabulary(np.zeros(1, np.int64), NO_STRINGS, np.zeros(0))
        if new.use_idf:
            counts = np.zeros(new.n_features, np.int64)
            for rows in new._rows_of_chunks(texts):
                counts += np.bincount(rows.indices, minlength=new.n_features)
            new._take_vocabulary(np.zeros(1, np.int64), NO_STRINGS, new._factors(counts))
        return new

    def _check_parameters(self) -> None:
        try:
            least, most = self.ngram_range
        except (TypeError, ValueError):
            raise ValueError("ngram_range must be a pair of integers, such as (1, 2), got "
                             f"{self.ngram_range!r}") from None
        most = check.integer(most, "ngram_range[1]", maximum=MAX_NGRAM_WORDS)
        check.integer(least, "ngram_range[0]", maximum=most)
        if isinstance(self.min_df, float):
            check.number(self.min_df, "min_df", minimum=0, maximum=1)
        else:
            check.integer(self.min_df, "min_df")
        if self.max_features is not None:
            check.integer(self.max_features, "max_features")
        if self.n_features is not None:
            check.integer(self.n_features, "n_features", maximum=MAX_FEATURES)
            if self.max_features is not None:
                raise ValueError(f"max_features={self.max_features} keeps runs of a vocabulary, "
                                 f"which n_features={self.n_features} does without; give one of "
                                 "the two")
        if self.norm is not None:
            check.choice(self.norm, "norm", ("l2",))
        check.threads(self.n_threads)

    def extended(self, texts: Sequence[str]) -> TextVectorizer:
        """A copy that also lists the runs that are in enough of the texts.

        They follow those that are listed already, whose columns and factors stay. Where runs are
        hashed there are none to list.
        """
        other = self.counting(self.n_texts_ + len(texts))
        if self.n_features is None:
            offsets, strings, counts = self._listed(texts, self)
            idf = self._factors(counts, other.n_texts_)
            other._take_vocabulary(
                np.concatenate([self._offsets, self._offsets[-1] + offsets[1:]]),
                np.concatenate([self._strings, strings]), np.concatenate([self.idf_, idf]))
        return other

    def counting(self, n_texts: int) -> TextVectorizer:
        """A copy that has seen so many texts."""
        other = copy.copy(self)
        other.n_texts_ = n_texts
        return other

    def _listed(self, texts: Sequence[str], known: TextVectorizer | None = None
                ) -> tuple[Offsets, NDArray[np.uint8], NDArray[np.int64]]:
        """Runs in the order of their bytes, and the number of texts with each.

        None of a vectorizer that knows runs already.
        """
        least = self.min_df if not isinstance(self.min_df, float) else self.min_df * len(texts)
        counter = _text.counter(word_bits(), self.lowercase, *self.ngram_range)
        n = 0
        for blob, starts in self._chunks(texts):
            n = _text.count(counter, blob, starts)
        counts, lengths = np.empty(n, np.int32), np.empty(n, np.int64)
        _text.counted(counter, counts, lengths)

        chosen = np.flatnonzero(counts >= least)
        if known is not None:
            offsets = np.concatenate([[0], np.cumsum(lengths[chosen])])
            strings = np.empty(offsets[-1], np.uint8)
            _text.take_ngrams(counter, chosen, offsets, strings)
            chosen = chosen[_is_new(known._plan, offsets, strings)]
        room = None if self.max_features is None else self.max_features - (
            0 if known is None else known.n_columns)
        if room is not None and len(chosen) > room:
            order = np.argsort(-counts[chosen], kind="stable")[:max(room, 0)]
            chosen = chosen[np.sort(order)]
        if not len(chosen) and known is None:
            raise ValueError(f"no word is in min_df={self.min_df} of the {len(texts)} texts or "
                             "more; give more texts, or TextVectorizer(min_df=1) as vectorizer")
        offsets = np.concatenate([[0], np.cumsum(lengths[chosen])])
        strings = np.empty(offsets[-1], np.uint8)
        _text.take_ngrams(counter, chosen, offsets, strings)
        return _sorted(offsets, strings, counts[chosen].astype(np.int64))

    def _factors(self, counts: NDArray[np.int64], n_texts: int | None = None
                 ) -> NDArray[np.float64]:
        if not self.use_idf:
            return np.zeros(0)
        n = self.n_texts_ if n_texts is None else n_texts
        factors = (1 + n) / (1 + counts)
        portable.log(factors)
        return factors + 1

    def _take_vocabulary(self, offsets: Offsets, strings: NDArray[np.uint8],
                         idf: NDArray[np.float64]) -> None:
        """Read texts by this vocabulary from now on; none where runs are hashed."""
        slots = np.zeros(0, np.uint64)
        if self.n_features is None:
            slots = np.zeros(1 << max(4, math.ceil(math.log2(2 * len(offsets)))), np.uint64)
            if not _text.fill_slots(offsets, strings, slots):
                raise ValueError("the vocabulary holds a run of words twice")
        self._offsets, self._strings, self.idf_ = offsets, strings, idf
        self._plan = _text.prepare(
            word_bits(), slots, offsets, strings, idf, self.n_columns, bool(self.lowercase),
            *self.ngram_range, bool(self.sublinear_tf), self.norm is not None)

    @property
    def n_columns(self) -> int:
        """Number of features of a row."""
        self._check_fitted()
        return len(self._offsets) - 1 if self.n_features is None else self.n_features

    def _check_fitted(self) -> None:
        if not hasattr(self, "n_texts_"):
            raise ValueError("this TextVectorizer has no vocabulary yet; call fit on texts")

    def get_feature_names_out(self, input_features: Any = None) -> NDArray[np.object_]:
        """The runs of words, by column.

        Parameters
        ----------
        input_features : ignored

        Returns
        -------
        ndarray of shape (n_columns,), object
            Strings.

        Raises
        ------
        ValueError
            If runs are hashed, or `fit` was not called.
        """
        self._check_fitted()
        if self.n_features is not None:
            raise ValueError("hashed features have no names; n_features=None lists them")
        whole = self._strings.tobytes()
        ends = self._offsets.tolist()
        names = [whole[a:b].decode() for a, b in itertools.pairwise(ends)]
        out = np.empty(len(names), object)
        out[:] = names
        return out

    # -- rows ------------------------------------------------------------------------------------

    def transform(self, texts: Any) -> csr_array:
        """The rows of texts.

        Parameters
        ----------
        texts : list of str, or column of a data frame

        Returns
        -------
        csr_array of shape (n_texts, n_columns), float32
            Column ids ascend in each row. Runs that are not in the vocabulary are left out.

        Raises
        ------
        ValueError, TypeError
            If there is no vocabulary yet, or a text is not a string.
        """
        self._check_fitted()
        return self.rows(checked_texts(texts, "texts")).to_scipy()

    def fit_transform(self, texts: Any, y: Any = None) -> csr_array:
        """`fit`, then `transform` of the same texts.

        Parameters
        ----------
        texts : list of str, or column of a data frame
        y : ignored

        Returns
        -------
        csr_array of shape (n_texts, n_columns), float32

        Raises
        ------
        ValueError, TypeError
            As for `fit`.
        """
        texts = checked_texts(texts, "texts")
        fitted = self._fitted(texts)
        rows = fitted.rows(texts).to_scipy()
        self.__dict__.update(fitted.__dict__)
        return rows

    def rows(self, texts: Sequence[str]) -> CSR:
        """The rows of checked texts."""
        if len(texts) == 1:
            return self._row(texts[0])
        parts = list(self._rows_of_chunks(texts))
        if not parts:
            return CSR(np.zeros(1, np.int64), np.zeros(0, np.int32), np.zeros(0, np.float32),
                       self.n_columns)
        return parts[0] if len(parts) == 1 else concatenate(parts)

    def _row(self, text: str) -> CSR:
        """`rows` of a single text, without what threads need."""
        blob = self._bytes(text)
        n = (len(blob) // 3 + 1) * (self.ngram_range[1] - self.ngram_range[0] + 1)
        ids, values = np.empty(n, np.int32), np.empty(n, np.float32)
        size = _text.row(self._plan, blob, ids, values)
        return CSR(np.array((0, size), np.int64), ids[:size], values[:size], self.n_columns)

    def _rows_of_chunks(self, texts: Sequence[str]) -> Iterator[CSR]:
        n_threads = resolve(self.n_threads)
        for blob, starts in self._chunks(texts):
            places, sizes = np.empty(len(starts), np.int64), np.empty(len(starts) - 1, np.int64)
            _text.room(self._plan, starts, places)
            ids, values = np.empty(places[-1], np.int32), np.empty(places[-1], np.float32)
            _text.rows(self._plan, blob, starts, places, ids, values, sizes, n_threads)
            indptr = np.concatenate([[0], np.cumsum(sizes)])
            out = np.empty(indptr[-1], np.int32), np.empty(indptr[-1], np.float32)
            _text.join(places, ids, values, indptr, *out, n_threads)
            yield CSR(indptr, *out, self.n_columns)

    def _chunks(self, texts: Sequence[str]) -> Iterator[tuple[NDArray[np.uint8], Offsets]]:
        """The bytes of some texts at a time, and where each begins."""
        first = 0
        while first < len(texts):
            last, n_bytes = first, 0
            while last < len(texts) and last - first < TEXTS_PER_CHUNK and (
                    n_bytes < MAX_CHUNK_BYTES):
                n_bytes += len(texts[last])
                last += 1
            blob, sizes = self._all_bytes(texts[first:last])
            starts = np.concatenate([[0], np.cumsum(sizes)])
            yield np.frombuffer(blob, np.uint8), starts.astype(np.int64, copy=False)
            first = last

    def _all_bytes(self, texts: Sequence[str]) -> tuple[bytes, list[int]]:
        """The bytes of some texts, one behind the other, and their numbers."""
        others = {i: self._bytes(text) for i, text in enumerate(texts)
                  if not text.isascii() or len(text) > MAX_TEXT_BYTES}
        if len(others) > len(texts) // 2:
            parts = [self._bytes(text) for text in texts]
            return b"".join(parts), list(map(len, parts))
        sizes, texts = list(map(len, texts)), list(texts)
        for i, part in others.items():
            sizes[i], texts[i] = len(part), part.decode("utf-8", "surrogatepass")
        return "".join(texts).encode("utf-8", "surrogatepass"), sizes

    def as_kernels_take(self, text: str) -> tuple[_text.TextRows, bytes]:
        """How rows are made, and a text, for a kernel that makes its row."""
        return self._plan, self._bytes(text)

    def _bytes(self, text: str) -> bytes:
        if self.lowercase and not text.isascii():
            text = text.lower()  # the kernels do it for ASCII
        blob = text.encode("utf-8", "surrogatepass")
        if len(blob) > MAX_TEXT_BYTES:
            raise ValueError(f"a text has {len(blob):,} bytes; give texts of at most "
                             f"{MAX_TEXT_BYTES:,}")
        return blob

    def ngrams(self, text: str) -> list[tuple[str, int]]:
        """Each run of words of a text and its column, -1 for one that is not listed."""
        blob = self._bytes(text)
        places = np.empty(2, np.int64)
        _text.room(self._plan, np.array([0, len(blob)], np.int64), places)
        words, found = np.empty(len(blob) + 1, np.uint8), np.empty((places[-1], 3), np.int64)
        n = _text.ngrams(self._plan, blob, words, found)
        whole = words.tobytes()
        return [(whole[a:b].decode(), j) for a, b, j in found[:n].tolist()]

    # -- state -----------------------------------------------------------------------------------

    def tensors(self) -> dict[str, np.ndarray]:
        """The arrays of a file."""
        return {"offsets": self._offsets, "strings": self._strings, "idf": self.idf_}

    def config(self) -> dict[str, Any]:
        """The plain values of a file."""
        return self.get_params(deep=False) | {"ngram_range": list(self.ngram_range),
                                              "n_texts": self.n_texts_}

    @classmethod
    def from_file(cls, tensors: dict[str, np.ndarray], config: dict[str, Any]) -> Self:
        """The vectorizer of a file, whose contents are checked."""
        config = dict(config)
        n_texts = check.integer(config.pop("n_texts"), "n_texts", minimum=0, maximum=2**62)
        vectorizer = cls(**config | {"ngram_range": tuple(config["ngram_range"])})
        vectorizer._check_parameters()
        offsets, strings, idf = _checked_vocabulary(tensors)
        vectorizer.n_texts_ = n_texts
        n_columns = len(offsets) - 1 if vectorizer.n_features is None else vectorizer.n_features
        if len(idf) not in (0, n_columns) or not np.isfinite(idf).all():
            raise ValueError(f"idf must be {n_columns} finite numbers, or none")
        vectorizer._offsets = offsets
        vectorizer._take_vocabulary(offsets, strings, idf)
        return vectorizer

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_plan"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if hasattr(self, "n_texts_"):
            self._take_vocabulary(self._offsets, self._strings, self.idf_)


def _is_new(plan: _text.TextRows, offsets: Offsets, strings: NDArray[np.uint8]
                 ) -> NDArray[np.bool_]:
    """Which of some runs of words a vocabulary does not list."""
    ids = np.empty(len(offsets) - 1, np.int32)
    _text.find(plan, offsets, strings, ids)
    return ids < 0


def _checked_vocabulary(tensors: dict[str, np.ndarray]
                        ) -> tuple[Offsets, NDArray[np.uint8], NDArray[np.float64]]:
    offsets, strings, idf = (tensors[name] for name in ("offsets", "strings", "idf"))
    kinds = (offsets.dtype, strings.dtype, idf.dtype)
    is_flat = all(a.ndim == 1 for a in (offsets, strings, idf))
    if kinds != (np.int64, np.uint8, np.float64) or not is_flat:
        raise ValueError("offsets, strings and idf must be vectors of int64, uint8 and float64")
    if not len(offsets) or offsets[0] != 0 or offsets[-1] != len(strings) or (
            np.diff(offsets) < 0).any():
        raise ValueError("offsets must rise from 0 to the length of the strings")
    strings.tobytes().decode()
    return offsets, strings, idf


def _sorted(offsets: Offsets, strings: NDArray[np.uint8], counts: NDArray[np.int64]
            ) -> tuple[Offsets, NDArray[np.uint8], NDArray[np.int64]]:
    """The strings in the order of their bytes, and their counts."""
    whole, ends = strings.tobytes(), offsets.tolist()
    names = [whole[a:b] for a, b in itertools.pairwise(ends)]
    order = sorted(range(len(names)), key=names.__getitem__)
    lengths = np.diff(offsets)[order]
    joined = np.frombuffer(b"".join([names[k] for k in order]), np.uint8)
    return np.concatenate([[0], np.cumsum(lengths)]), joined, counts[order]
