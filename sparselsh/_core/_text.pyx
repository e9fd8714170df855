"""Texts to sparse rows: words, runs of words, their ids, and TF-IDF weights.

Design
------
A. A word is a run of two or more letters, digits and underscores, as ``\\w\\w+`` finds it. Which
   characters these are is a table of bits, made by Python's own `re`. ASCII letters are lowered
   here; what lower case is elsewhere depends on the context, and Python has done it before.
B. The words of a text are written one after the other, each with a blank behind it: a run of n
   words (an n-gram) is then a run of bytes, which is hashed and compared as it stands.
C. All n-grams of a text are hashed before the first is looked up, and the slots of the table are
   prefetched: the table is larger than the caches.
D. Rows do not depend on each other. Each is written where the longest that its bytes allow fits,
   and `join` moves them together.
"""
from cython.parallel cimport prange, threadid
from libc.math cimport log, sqrt
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcmp, memcpy

from ._order cimport sort_ids
from ._scratch cimport free_aligned, malloc_aligned

cdef extern from *:
    """
    #define prefetch_slot(p) __builtin_prefetch(p)
    """
    void prefetch_slot(const void *p) noexcept nogil

cdef enum:
    MIN_WORD_CHARACTERS = 2
    N_CODE_POINTS = 0x110000

# Bits of the murmur hash (A. Appleby, MurmurHash3, x86 variant of 32 bits)
cdef uint32_t C1 = 0xcc9e2d51, C2 = 0x1b873593


cdef inline uint32_t _rotated(uint32_t x, int n) noexcept nogil:
    return (x << n) | (x >> (32 - n))


cdef inline uint32_t _murmur(const uint8_t *p, Py_ssize_t n) noexcept nogil:
    """MurmurHash3_x86_32 with the seed 0, as for a little-endian processor."""
    cdef uint32_t h = 0, k
    cdef Py_ssize_t _, rest = n & 3
    for _ in range(n >> 2):
        k = (p[0] | <uint32_t>p[1] << 8 | <uint32_t>p[2] << 16 | <uint32_t>p[3] << 24)
        h = _rotated(h ^ _rotated(k * C1, 15) * C2, 13) * 5 + <uint32_t>0xe6546b64
        p += 4
    if rest:
        k = p[0]
        if rest > 1:
            k |= <uint32_t>p[1] << 8
        if rest > 2:
            k |= <uint32_t>p[2] << 16
        h ^= _rotated(k * C1, 15) * C2
    h ^= <uint32_t>n
    h = (h ^ h >> 16) * <uint32_t>0x85ebca6b
    h = (h ^ h >> 13) * <uint32_t>0xc2b2ae35
    return h ^ h >> 16


cdef inline int32_t _bucket(uint32_t h, int64_t n) noexcept nogil:
    """|h as a signed number| modulo n."""
    cdef int64_t value = <int32_t>h
    return <int32_t>((-value if value < 0 else value) % n)


# -- words -----------------------------------------------------------------------------------------

cdef inline int _decode(const uint8_t *p, Py_ssize_t n, uint32_t *code) noexcept nogil:
    """Bytes of the character at p, of at most n; what is no UTF-8 is one byte of no word."""
    cdef int length, i
    cdef uint32_t value
    if p[0] < 0xc0:
        length, value = 1, N_CODE_POINTS
    elif p[0] < 0xe0:
        length, value = 2, p[0] & 0x1f
    elif p[0] < 0xf0:
        length, value = 3, p[0] & 0x0f
    else:
        length, value = 4, p[0] & 0x07
    if length > n or length == 1:
        code[0] = N_CODE_POINTS
        return 1
    for i in range(1, length):
        if p[i] & 0xc0 != 0x80:
            code[0] = N_CODE_POINTS
            return 1
        value = value << 6 | (p[i] & 0x3f)
    code[0] = value
    return length


cdef Py_ssize_t _split(const words_t *w, const uint8_t *p, Py_ssize_t n, uint8_t *out,
                       int32_t *starts) noexcept nogil:
    """Write the words, each with a blank behind it; starts also gets where the last one ends.

    out holds n + 1 bytes, starts _max_words(n) + 1.
    """
    cdef const uint8_t *end = p + n
    cdef Py_ssize_t size = 0, begin, n_characters, n_words = 0
    cdef uint32_t code = 0
    cdef uint8_t character
    cdef int length = 1, i

    while p < end:
        begin, n_characters, length = size, 0, 1
        while p < end:
            if p[0] < 128:
                character = w.ascii[p[0]]
                if not character:
                    length = 1
                    break
                out[size] = character
                size += 1
                p += 1
            else:
                length = _decode(p, end - p, &code)
                if code >= N_CODE_POINTS or not w.is_word[code >> 3] >> (code & 7) & 1:
                    break
                for i in range(length):
                    out[size + i] = p[i]
                size += length
                p += length
            n_characters += 1

        if n_characters >= MIN_WORD_CHARACTERS:
            starts[n_words] = <int32_t>begin
            n_words += 1
            out[size] = c" "
            size += 1
        else:
            size = begin
        p += length  # the character that ended the word

    starts[n_words] = <int32_t>size
    return n_words


cdef inline Py_ssize_t _max_words(Py_ssize_t n_bytes) noexcept nogil:
    return (n_bytes + 1) // (MIN_WORD_CHARACTERS + 1) + 1


cdef inline Py_ssize_t _max_ngrams(const words_t *w, Py_ssize_t n_bytes) noexcept nogil:
    return _max_words(n_bytes) * (w.n_max - w.n_min + 1)


cdef void _set_words(words_t *w, const uint8_t[::1] is_word, bint lowercase, int n_min,
                     int n_max) except *:
    cdef int c
    if is_word.shape[0] * 8 != N_CODE_POINTS:
        raise ValueError("is_word must have a bit per code point")
    w.is_word, w.n_min, w.n_max = &is_word[0], n_min, n_max
    for c in range(128):
        w.ascii[c] = 0
        if is_word[c >> 3] >> (c & 7) & 1:
            w.ascii[c] = c + 32 if lowercase and c"A" <= c <= c"Z" else c


# -- a row -----------------------------------------------------------------------------------------


cdef class TextRows:
    """How a text becomes a row; it keeps the arrays alive."""


ctypedef struct work_t:
    double *values
    uint32_t *hashes
    int32_t *starts
    int32_t *ids
    int32_t *spare
    uint8_t *words


def prepare(const uint8_t[::1] is_word, const uint64_t[::1] slots, const int64_t[::1] offsets,
            const uint8_t[::1] strings, const double[::1] idf, int64_t n_features, bint lowercase,
            int n_min, int n_max, bint sublinear, bint normalize):
    """How a text becomes a row, for the functions below.

    is_word has a bit per code point. slots, as `fill_slots` makes them, offsets (n_features + 1)
    and strings are the vocabulary; with empty slots an n-gram has the id |murmur hash| modulo
    n_features. idf is (n_features,), or empty for none.
    """
    cdef TextRows plan = TextRows()
    plan.arrays = [is_word, slots, offsets, strings, idf]
    _set_words(&plan.words, is_word, lowercase, n_min, n_max)
    plan.slots = &slots[0] if slots.shape[0] else NULL
    plan.mask = slots.shape[0] - 1
    plan.offsets = &offsets[0] if offsets.shape[0] else NULL
    plan.strings = &strings[0] if strings.shape[0] else NULL
    plan.idf = &idf[0] if idf.shape[0] else NULL
    plan.n_features = n_features
    plan.sublinear, plan.normalize = sublinear, normalize
    return plan


cdef inline int32_t _find(const uint64_t *slots, uint64_t mask, const int64_t *offsets,
                          const uint8_t *strings, uint32_t h, const uint8_t *key,
                          Py_ssize_t n) noexcept nogil:
    """The id of an n-gram, or -1."""
    cdef uint64_t place = h & mask
    cdef int64_t j
    while slots[place]:
        if slots[place] >> 32 == h:
            j = <int64_t>(<uint32_t>slots[place]) - 1
            if offsets[j + 1] - offsets[j] == n and memcmp(strings + offsets[j], key, n) == 0:
                return <int32_t>j
        place = (place + 1) & mask
    return -1


cdef size_t _work_bytes(const words_t *w, Py_ssize_t n_bytes) noexcept nogil:
    """Bytes that a text needs, in whole cache lines, so that threads do not share one."""
    cdef size_t n = _max_ngrams(w, n_bytes)
    return (n * (sizeof(double) + 3 * sizeof(int32_t))
            + (_max_words(n_bytes) + 1) * sizeof(int32_t) + n_bytes + 1 + 127) // 128 * 128


cdef work_t _work(char *memory, const words_t *w, Py_ssize_t n_bytes) noexcept nogil:
    cdef work_t work
    cdef Py_ssize_t n = _max_ngrams(w, n_bytes)
    work.values = <double *>memory
    work.hashes = <uint32_t *>(work.values + n)
    work.ids = <int32_t *>(work.hashes + n)
    work.spare = work.ids + n
    work.starts = work.spare + n
    work.words = <uint8_t *>(work.starts + _max_words(n_bytes) + 1)
    return work


cdef Py_ssize_t _all_ids(TextRows plan, const uint8_t *text, Py_ssize_t n_bytes,
                         work_t *work) noexcept nogil:
    """The id of every n-gram, -1 for those without; words by words, then the longer ones."""
    cdef const words_t *w = &plan.words
    cdef Py_ssize_t n_words = _split(w, text, n_bytes, work.words, work.starts), n = 0, i
    cdef int length

    for length in range(w.n_min, w.n_max + 1):
        for i in range(n_words - length + 1):
            work.hashes[n] = _murmur(work.words + work.starts[i],
                                     work.starts[i + length] - 1 - work.starts[i])
            if plan.slots != NULL:
                prefetch_slot(plan.slots + (work.hashes[n] & plan.mask))
            n += 1

    n = 0
    for length in range(w.n_min, w.n_max + 1):
        for i in range(n_words - length + 1):
            if plan.slots == NULL:
                work.ids[n] = _bucket(work.hashes[n], plan.n_features)
            else:
                work.ids[n] = _find(plan.slots, plan.mask, plan.offsets, plan.strings,
                                    work.hashes[n], work.words + work.starts[i],
                                    work.starts[i + length] - 1 - work.starts[i])
            n += 1
    return n


cdef size_t row_bytes(TextRows plan, Py_ssize_t n_bytes) noexcept nogil:
    # memory that `text_row` needs for a text of so many bytes
    return _work_bytes(&plan.words, n_bytes)


cdef Py_ssize_t row_entries(TextRows plan, Py_ssize_t n_bytes) noexcept nogil:
    # the most entries that the row can have
    return _max_ngrams(&plan.words, n_bytes)


cdef Py_ssize_t text_row(TextRows plan, const uint8_t *text, Py_ssize_t n_bytes, char *memory,
                         int32_t *ids, float *values) noexcept nogil:
    """Ids, ascending, and weights of a text; returns their number."""
    cdef work_t work = _work(memory, &plan.words, n_bytes)
    cdef Py_ssize_t n = _all_ids(plan, text, n_bytes, &work), n_found = 0, size = 0, i, j
    cdef double value, squares = 0

    for i in range(n):
        if work.ids[i] >= 0:
            work.ids[n_found] = work.ids[i]
            n_found += 1
    sort_ids(work.ids, work.spare, n_found, plan.n_features)

    i = 0
    while i < n_found:
        j = i + 1
        while j < n_found and work.ids[j] == work.ids[i]:
            j += 1
        value = <double>(j - i)
        if plan.sublinear and j - i > 1:
            value = 1 + log(value)
        if plan.idf != NULL:
            value *= plan.idf[work.ids[i]]
        squares += value * value
        ids[size], work.values[size] = work.ids[i], value
        size += 1
        i = j

    if plan.normalize and squares > 0:
        squares = sqrt(squares)
        for i in range(size):
            values[i] = <float>(work.values[i] / squares)
    else:
        for i in range(size):
            values[i] = <float>work.values[i]
    return size


def room(TextRows plan, const int64_t[::1] starts, int64_t[::1] places):
    """places[i + 1] = places[i] + the most entries that text[starts[i]:starts[i + 1]] can have."""
    cdef Py_ssize_t i
    places[0] = 0
    for i in range(starts.shape[0] - 1):
        places[i + 1] = places[i] + _max_ngrams(&plan.words, starts[i + 1] - starts[i])


def rows(TextRows plan, const uint8_t[::1] text, const int64_t[::1] starts,
         const int64_t[::1] places, int32_t[::1] ids, float[::1] values, int64_t[::1] sizes,
         int n_threads):
    """The row of each of the texts text[starts[i]:starts[i + 1]], UTF-8.

    Row i is ids and values from places[i] on, as `room` sets them, sizes[i] of each; ids ascend.
    A weight is c or, where the plan is sublinear, 1 + log c, of an n-gram that occurs c times,
    times its idf; divided by the norm of the row if the plan says so.   O(bytes)
    """
    cdef Py_ssize_t i, n = sizes.shape[0], longest = 0
    cdef const uint8_t *first = &text[0] if text.shape[0] else NULL
    cdef size_t n_bytes
    cdef char *memory
    if n == 0:
        return
    if places[n] == 0:
        sizes[:] = 0
        return

    for i in range(n):
        longest = max(longest, starts[i + 1] - starts[i])
    n_bytes = _work_bytes(&plan.words, longest)
    memory = <char *>malloc_aligned(n_threads * n_bytes)
    if memory == NULL:
        raise MemoryError()
    for i in prange(n, nogil=True, schedule="dynamic", chunksize=16, num_threads=n_threads):
        sizes[i] = text_row(plan, first + starts[i], starts[i + 1] - starts[i],
                            memory + threadid() * n_bytes, &ids[0] + places[i],
                            &values[0] + places[i])
    free_aligned(memory)


def row(TextRows plan, bytes text, int32_t[::1] ids, float[::1] values):
    """`rows` of a single text, on this thread; returns the number of its entries.

    ids and values have at least the room that `room` says.
    """
    cdef const uint8_t *p = <const uint8_t *>text
    cdef Py_ssize_t n_bytes = len(text), size
    cdef char *memory = <char *>malloc_aligned(_work_bytes(&plan.words, n_bytes))
    if memory == NULL:
        raise MemoryError()
    with nogil:
        size = text_row(plan, p, n_bytes, memory, &ids[0], &values[0])
    free_aligned(memory)
    return size


def join(const int64_t[::1] places, const int32_t[::1] ids, const float[::1] values,
         const int64_t[::1] indptr, int32_t[::1] out_ids, float[::1] out_values, int n_threads):
    """Move row i, from places[i] on, to indptr[i].   O(nnz)"""
    cdef Py_ssize_t i, n = indptr.shape[0] - 1
    cdef size_t size
    if n == 0 or out_ids.shape[0] == 0:
        return
    for i in prange(n, nogil=True, schedule="static", num_threads=n_threads):
        size = indptr[i + 1] - indptr[i]
        if size:
            memcpy(&out_ids[indptr[i]], &ids[places[i]], size * sizeof(int32_t))
            memcpy(&out_values[indptr[i]], &values[places[i]], size * sizeof(float))


def ngrams(TextRows plan, bytes text, uint8_t[::1] words, int64_t[:, ::1] found):
    """Every n-gram of a text: words[found[k, 0]:found[k, 1]] has the id found[k, 2], or -1.

    words holds len(text) + 1 bytes, found as many rows as `room` says; returns their number.
    """
    cdef const uint8_t *p = <const uint8_t *>text
    cdef Py_ssize_t n_bytes = len(text), n, k = 0, i, n_words = 0
    cdef char *memory = <char *>malloc_aligned(_work_bytes(&plan.words, n_bytes))
    cdef work_t work
    cdef int length
    if memory == NULL:
        raise MemoryError()
    work = _work(memory, &plan.words, n_bytes)
    n = _all_ids(plan, p, n_bytes, &work)
    n_words = _split(&plan.words, p, n_bytes, &words[0], work.starts)
    for length in range(plan.words.n_min, plan.words.n_max + 1):
        for i in range(n_words - length + 1):
            found[k, 0], found[k, 1] = work.starts[i], work.starts[i + length] - 1
            found[k, 2] = work.ids[k]
            k += 1
    free_aligned(memory)
    return n


# -- vocabularies ----------------------------------------------------------------------------------


def murmur(bytes key):
    """MurmurHash3 of 32 bits with the seed 0, as an unsigned number."""
    return _murmur(<const uint8_t *>key, len(key))


def fill_slots(const int64_t[::1] offsets, const uint8_t[::1] strings, uint64_t[::1] slots):
    """The hash table of a vocabulary: n-gram j is strings[offsets[j]:offsets[j + 1]].

    slots is zero, its length a power of two above the number of n-grams. Returns whether the
    n-grams are distinct.   O(bytes)
    """
    cdef Py_ssize_t j, n = offsets.shape[0] - 1
    cdef uint64_t mask = slots.shape[0] - 1, place
    cdef const uint8_t *first = &strings[0] if strings.shape[0] else NULL
    cdef const uint64_t *table = &slots[0]
    cdef uint32_t h
    cdef bint distinct = True
    with nogil:
        for j in range(n):
            h = _murmur(first + offsets[j], offsets[j + 1] - offsets[j])
            if _find(table, mask, &offsets[0], first, h, first + offsets[j],
                     offsets[j + 1] - offsets[j]) >= 0:
                distinct = False
                break
            place = h & mask
            while slots[place]:
                place = (place + 1) & mask
            slots[place] = <uint64_t>h << 32 | <uint64_t>(j + 1)
    return distinct


def find(TextRows plan, const int64_t[::1] offsets, const uint8_t[::1] strings, int32_t[::1] ids):
    """ids[k] = the id of the n-gram strings[offsets[k]:offsets[k + 1]], -1 if it is not listed.

    The plan has a vocabulary.
    """
    cdef Py_ssize_t k, n
    cdef const uint8_t *key
    for k in range(ids.shape[0]):
        key, n = &strings[offsets[k]], offsets[k + 1] - offsets[k]
        ids[k] = _find(plan.slots, plan.mask, plan.offsets, plan.strings, _murmur(key, n), key, n)


cdef class NgramCounts:
    """In how many texts each n-gram occurs; grows as texts are counted."""
    cdef list arrays
    cdef words_t words
    cdef uint64_t *slots
    cdef uint64_t mask
    cdef int64_t *offsets
    cdef int32_t *counts
    cdef int64_t *last  # the text that was counted last
    cdef uint8_t *strings
    cdef int64_t n, n_room, n_bytes, bytes_room, n_texts

    def __dealloc__(self):
        free(self.slots)
        free(self.offsets)
        free(self.counts)
        free(self.last)
        free(self.strings)


cdef int _grow(NgramCounts c, int64_t n_room, int64_t bytes_room) except -1 nogil:
    """Make room for so many n-grams and bytes; after MemoryError it is as it was."""
    cdef int64_t *offsets
    cdef int64_t *last
    cdef int32_t *counts
    cdef uint8_t *strings
    cdef uint64_t *slots
    cdef uint64_t place, mask
    cdef int64_t j
    cdef uint32_t h

    if bytes_room > c.bytes_room:
        strings = <uint8_t *>realloc(c.strings, bytes_room)
        if strings == NULL:
            with gil:
                raise MemoryError()
        c.strings, c.bytes_room = strings, bytes_room
    if n_room <= c.n_room:
        return 0

    offsets = <int64_t *>realloc(c.offsets, (n_room + 1) * sizeof(int64_t))
    if offsets != NULL:
        c.offsets = offsets
    last = <int64_t *>realloc(c.last, n_room * sizeof(int64_t))
    if last != NULL:
        c.last = last
    counts = <int32_t *>realloc(c.counts, n_room * sizeof(int32_t))
    if counts != NULL:
        c.counts = counts
    mask = 1
    while mask < <uint64_t>(2 * n_room):
        mask *= 2
    slots = <uint64_t *>calloc(mask, sizeof(uint64_t))
    if offsets == NULL or last == NULL or counts == NULL or slots == NULL:
        free(slots)
        with gil:
            raise MemoryError()
    mask -= 1
    for j in range(c.n):
        h = _murmur(c.strings + c.offsets[j], c.offsets[j + 1] - c.offsets[j])
        place = h & mask
        while slots[place]:
            place = (place + 1) & mask
        slots[place] = <uint64_t>h << 32 | <uint64_t>(j + 1)
    free(c.slots)
    c.slots, c.mask, c.n_room = slots, mask, n_room
    c.offsets[0] = 0
    return 0


def counter(const uint8_t[::1] is_word, bint lowercase, int n_min, int n_max):
    """Counts of no text, for `count`."""
    cdef NgramCounts c = NgramCounts()
    c.arrays = [is_word]
    _set_words(&c.words, is_word, lowercase, n_min, n_max)
    _grow(c, 1 << 12, 1 << 16)
    return c


def count(NgramCounts c, const uint8_t[::1] text, const int64_t[::1] starts):
    """Count the n-grams of the texts text[starts[i]:starts[i + 1]], UTF-8.   O(bytes)

    At most 2**31 - 2 n-grams in all. Returns the number of distinct ones so far.
    """
    cdef Py_ssize_t i, k, n_words, longest = 0
    cdef const uint8_t *first = &text[0] if text.shape[0] else NULL
    cdef int32_t *at
    cdef uint8_t *words
    cdef int length
    cdef char *memory

    for i in range(starts.shape[0] - 1):
        longest = max(longest, starts[i + 1] - starts[i])
    memory = <char *>malloc((_max_words(longest) + 1) * sizeof(int32_t) + longest + 1)
    if memory == NULL:
        raise MemoryError()
    at = <int32_t *>memory
    words = <uint8_t *>(at + _max_words(longest) + 1)
    try:
        with nogil:
            for i in range(starts.shape[0] - 1):
                n_words = _split(&c.words, first + starts[i], starts[i + 1] - starts[i], words, at)
                for length in range(c.words.n_min, c.words.n_max + 1):
                    for k in range(n_words - length + 1):
                        _count_one(c, words + at[k], at[k + length] - 1 - at[k])
                c.n_texts += 1
    finally:
        free(memory)
    return c.n


cdef int _count_one(NgramCounts c, const uint8_t *key, Py_ssize_t n) except -1 nogil:
    cdef uint32_t h = _murmur(key, n)
    cdef int64_t j = _find(c.slots, c.mask, c.offsets, c.strings, h, key, n)
    cdef uint64_t place

    if j >= 0:
        if c.last[j] != c.n_texts:
            c.last[j] = c.n_texts
            c.counts[j] += 1
        return 0
    if c.n == c.n_room or c.n_bytes + n > c.bytes_room:
        _grow(c, 2 * c.n_room if c.n == c.n_room else c.n_room,
              2 * (c.bytes_room + n) if c.n_bytes + n > c.bytes_room else c.bytes_room)
    place = h & c.mask
    while c.slots[place]:
        place = (place + 1) & c.mask
    memcpy(c.strings + c.n_bytes, key, n)
    c.n_bytes += n
    c.counts[c.n], c.last[c.n] = 1, c.n_texts
    c.n += 1
    c.offsets[c.n] = c.n_bytes
    c.slots[place] = <uint64_t>h << 32 | <uint64_t>c.n
    return 0


def counted(NgramCounts c, int32_t[::1] counts, int64_t[::1] lengths):
    """The number of texts with each n-gram, and its bytes, in the order of their first texts."""
    cdef int64_t j
    for j in range(c.n):
        counts[j], lengths[j] = c.counts[j], c.offsets[j + 1] - c.offsets[j]


def take_ngrams(NgramCounts c, const int64_t[::1] chosen, const int64_t[::1] offsets,
                uint8_t[::1] strings):
    """strings[offsets[k]:offsets[k + 1]] = the n-gram number chosen[k]."""
    cdef Py_ssize_t k
    for k in range(chosen.shape[0]):
        if offsets[k + 1] > offsets[k]:
            memcpy(&strings[offsets[k]], c.strings + c.offsets[chosen[k]],
                   offsets[k + 1] - offsets[k])
