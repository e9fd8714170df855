# The row of one text, for the module that answers a single text (_single_row_mlp).
from libc.stdint cimport int32_t, int64_t, uint8_t, uint64_t

ctypedef struct words_t:
    const uint8_t *is_word  # a bit per code point
    uint8_t ascii[128]      # 0 for what is no part of a word; else the character, lowered if asked
    int n_min, n_max        # words per n-gram

cdef class TextRows:
    cdef list arrays
    cdef words_t words
    cdef const uint64_t *slots  # hash << 32 | id + 1, or 0; at hash & mask or behind it
    cdef uint64_t mask
    cdef const int64_t *offsets  # of the n-grams in `strings`
    cdef const uint8_t *strings
    cdef const double *idf
    cdef int64_t n_features
    cdef bint sublinear, normalize

cdef size_t row_bytes(TextRows plan, Py_ssize_t n_bytes) noexcept nogil
cdef Py_ssize_t row_entries(TextRows plan, Py_ssize_t n_bytes) noexcept nogil
cdef Py_ssize_t text_row(TextRows plan, const uint8_t *text, Py_ssize_t n_bytes, char *memory,
                         int32_t *ids, float *values) noexcept nogil
