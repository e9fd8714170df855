"""Projections to packed hash codes (SimHash: Charikar 2002; tables: Indyk and Motwani 1998)."""
from cython.parallel cimport prange
from libc.stdint cimport int32_t


cdef void _pack_row(const float *p, int n_bits, Py_ssize_t n_tables, int32_t *code) noexcept nogil:
    cdef Py_ssize_t t
    cdef int b
    cdef int32_t c
    for t in range(n_tables):
        c = 0
        for b in range(n_bits):
            c |= <int32_t>(p[b] > 0) << b
        code[t] = c
        p += n_bits


def pack_codes(const float[:, ::1] projections, int n_bits, int32_t[:, ::1] codes, int n_threads):
    """codes[i, t] = sum_b [projections[i, t * n_bits + b] > 0] << b.   O(n * n_tables * n_bits)

    projections is (n, n_tables * n_bits), codes (n, n_tables); n_bits <= 30.
    """
    cdef Py_ssize_t i, n = codes.shape[0], n_tables = codes.shape[1]
    if n == 0 or n_tables == 0:
        return
    for i in prange(n, nogil=True, schedule="static", num_threads=n_threads):
        _pack_row(&projections[i, 0], n_bits, n_tables, &codes[i, 0])
