"""Texts to rows: the kernels against `re`, Python's own lower case, and scikit-learn."""
import itertools

import numpy as np
import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st
from support import on_threads, read_only, unwritten

from sparselsh._core import _text
from sparselsh.text._characters import word_bits

# capital letters of which lower case depends on the context, or is longer; letters of two and
# more bytes; digits and marks that are no letters; half of a surrogate pair
SPECIAL = "ΣΟΦΟΣ İıß ǅ ÅÄÖ é́ 日本語 ١٢٣ ² ½ ൴ _a a_ 𐐀𐐁 \ud800 ‿ e\u0301 naïve 'don't'"
TEXTS = st.lists(st.one_of(st.text(max_size=40),
                           st.lists(st.sampled_from(["red", "Red", "car", "a", "x1", SPECIAL]),
                                    max_size=12).map(" ".join)), max_size=8)
RANGES = st.sampled_from([(1, 1), (1, 2), (2, 2), (1, 3), (3, 3)])


def bytes_of(texts, lowercase=True):
    parts = [(text.lower() if lowercase else text).encode("utf-8", "surrogatepass")
             for text in texts]
    starts = np.cumsum([0] + [len(part) for part in parts]).astype(np.int64)
    return np.frombuffer(b"".join(parts), np.uint8), starts


def vocabulary(runs):
    """(slots, offsets, strings) of distinct runs of words."""
    parts = [run.encode("utf-8", "surrogatepass") for run in runs]
    offsets = np.cumsum([0] + [len(part) for part in parts]).astype(np.int64)
    strings = np.frombuffer(b"".join(parts), np.uint8)
    slots = np.zeros(1 << (2 * len(parts)).bit_length(), np.uint64)
    assert _text.fill_slots(offsets, strings, slots)
    return slots, offsets, strings


def rows(plan, texts, lowercase=True):
    """(indptr, ids, values), the same on one thread and on two."""
    text, starts = bytes_of(texts, lowercase)
    places = unwritten(len(starts), np.int64)
    _text.room(plan, starts, places)

    def call(n_threads):
        ids, values = unwritten(places[-1], np.int32), unwritten(places[-1], np.float32)
        sizes = unwritten(len(texts), np.int64)
        _text.rows(plan, *read_only(text, starts, places), ids, values, sizes, n_threads)
        indptr = np.concatenate([[0], np.cumsum(sizes)])
        out = unwritten(indptr[-1], np.int32), unwritten(indptr[-1], np.float32)
        _text.join(places, ids, values, indptr, *out, n_threads)
        return indptr, *out

    return on_threads(call)


def assert_rows(got, texts, id_of, idf, *options):
    indptr, ids, values = got
    for i, text in enumerate(texts):
        want_ids, want = reference.text_row(text, id_of, idf, *options)
        row = slice(indptr[i], indptr[i + 1])
        np.testing.assert_array_equal(ids[row], want_ids)
        # one rounding to float32 of what is exact to some float64 units
        np.testing.assert_allclose(values[row], want, rtol=2**-23)


@given(st.binary(max_size=40))
def test_murmur_is_that_of_the_definition(key):
    assert _text.murmur(key) == reference.murmur(key)


def test_murmur_is_that_of_scikit_learn():
    utils = pytest.importorskip("sklearn.utils")
    for n in range(20):
        key = b"The quick brown fox jumps"[:n]
        assert _text.murmur(key) == utils.murmurhash3_32(key, 0, positive=True)


@given(TEXTS, RANGES, st.booleans(), st.booleans(), st.booleans())
def test_rows_of_a_vocabulary_are_those_of_the_reference(texts, ngram_range, lowercase, sublinear,
                                                         normalize):
    runs = sorted({run for text in texts for run in reference.ngrams(text, *ngram_range, lowercase)
                   })[::2]  # the others are not listed
    idf = np.linspace(1, 3, len(runs))
    plan = _text.prepare(word_bits(), *vocabulary(runs), idf, len(runs), lowercase, *ngram_range,
                         sublinear, normalize)
    places = {run: j for j, run in enumerate(runs)}
    assert_rows(rows(plan, texts, lowercase), texts, places.get, idf, *ngram_range, lowercase,
                sublinear, normalize)


@given(TEXTS, RANGES, st.sampled_from([1, 7, 1 << 20]))
def test_hashed_rows_are_those_of_the_reference(texts, ngram_range, n_features):
    nothing = np.zeros(0, np.uint64), np.zeros(0, np.int64), np.zeros(0, np.uint8), np.zeros(0)
    plan = _text.prepare(word_bits(), *nothing, n_features, True, *ngram_range, True, True)

    def id_of(run):
        h = reference.murmur(run.encode("utf-8", "surrogatepass"))
        return abs(h - (h >> 31 << 32)) % n_features

    assert_rows(rows(plan, texts), texts, id_of, np.ones(n_features), *ngram_range, True, True,
                True)


@given(TEXTS, RANGES)
def test_a_lone_text_and_its_runs_are_those_of_a_batch(texts, ngram_range):
    runs = sorted({run for text in texts for run in reference.ngrams(text, *ngram_range)})
    plan = _text.prepare(word_bits(), *vocabulary(runs), np.ones(len(runs)), len(runs), True,
                         *ngram_range, True, True)
    indptr, ids, values = rows(plan, texts)
    for i, text in enumerate(texts):
        blob = text.lower().encode("utf-8", "surrogatepass")
        places = np.empty(2, np.int64)
        _text.room(plan, np.array([0, len(blob)]), places)
        out = unwritten(places[1], np.int32), unwritten(places[1], np.float32)
        n = _text.row(plan, blob, *out)
        row = slice(indptr[i], indptr[i + 1])
        np.testing.assert_array_equal(out[0][:n], ids[row])
        np.testing.assert_array_equal(out[1][:n], values[row])

        words, found = np.empty(len(blob) + 1, np.uint8), np.empty((places[1], 3), np.int64)
        n = _text.ngrams(plan, blob, words, found)
        whole = words.tobytes()
        assert [whole[a:b].decode() for a, b, _ in found[:n].tolist()] == reference.ngrams(
            text, *ngram_range)
        assert set(found[:n, 2].tolist()) == set(ids[row].tolist())


@given(TEXTS, RANGES)
def test_counts_are_the_numbers_of_texts(texts, ngram_range):
    counter = _text.counter(word_bits(), True, *ngram_range)
    n = 0
    for first in range(0, len(texts), 3):
        n = _text.count(counter, *bytes_of(texts[first:first + 3]))
    counts, lengths = unwritten(n, np.int32), unwritten(n, np.int64)
    _text.counted(counter, counts, lengths)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    strings = np.full(offsets[-1], 255, np.uint8)
    _text.take_ngrams(counter, np.arange(n), offsets, strings)

    whole = strings.tobytes()
    runs = [whole[a:b].decode() for a, b in itertools.pairwise(offsets)]
    every = [set(reference.ngrams(text, *ngram_range)) for text in texts]
    assert dict(zip(runs, counts.tolist(), strict=True)) == {
        run: sum(run in found for found in every) for run in set().union(*every)}
    chosen = np.arange(n)[::-2].copy()
    offsets = np.concatenate([[0], np.cumsum(lengths[chosen])])
    strings = np.full(offsets[-1], 255, np.uint8)
    _text.take_ngrams(counter, chosen, offsets, strings)
    assert strings.tobytes().decode() == "".join(runs[j] for j in chosen)


def test_counts_grow_past_their_first_room():
    texts = [" ".join(f"word{i}x{j}" for j in range(300)) for i in range(40)]
    counter = _text.counter(word_bits(), True, 1, 2)
    n = _text.count(counter, *bytes_of(texts))
    counts, lengths = np.empty(n, np.int32), np.empty(n, np.int64)
    _text.counted(counter, counts, lengths)
    assert n == 40 * (300 + 299) and set(counts) == {1}
    assert _text.count(counter, *bytes_of(texts)) == n


def test_a_vocabulary_that_holds_a_run_twice_is_found_out():
    offsets, strings = np.array([0, 2, 5, 7]), np.frombuffer(b"abcdeab", np.uint8)
    assert not _text.fill_slots(offsets, strings, np.zeros(8, np.uint64))
    assert _text.fill_slots(offsets[:3], strings, np.zeros(8, np.uint64))


def test_bytes_that_are_no_text_end_words():
    plan = _text.prepare(word_bits(), *vocabulary(["ab", "cd", "éé"]), np.ones(3), 3, True, 1, 1,
                         False, False)
    ids, values = np.empty(40, np.int32), np.empty(40, np.float32)
    for blob in (b"ab\xffcd", b"ab\xc3", b"ab\xe3\x81 cd", b"\xf0\x9f ab", b"\x80ab\xc3\xa9",
                 b"\xc3\xa9\xc3\xa9\xc3", b"ab\xf7\xbf\xbf\xbfcd", b"\xed\xa0\x80ab"):
        n = _text.row(plan, blob, ids, values)
        text = blob.decode("utf-8", "replace").replace("\ufffd", " ")
        want = [j for j, run in enumerate(["ab", "cd", "éé"]) if run in text.split()]
        assert ids[:n].tolist() == want, blob


@given(st.binary(max_size=60))
def test_any_bytes_are_read_within_their_bounds(blob):
    plan = _text.prepare(word_bits(), *vocabulary(["ab"]), np.ones(1), 1, True, 1, 2, True, True)
    places = np.empty(2, np.int64)
    _text.room(plan, np.array([0, len(blob)]), places)
    n = _text.row(plan, blob, np.empty(places[1], np.int32), np.empty(places[1], np.float32))
    assert n <= 1
