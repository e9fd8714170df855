"""What is done to arrays on their way into a file: checksums, and rows of a transpose."""
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from ._simd cimport prefetch_run

cdef extern from "crc32.h" nogil:
    bint has_fast_crc32()
    uint32_t fast_crc32(const uint8_t *p, Py_ssize_t n, uint32_t before)

cdef enum:
    BLOCK = 16  # rows; 16 floats are a cache line


def is_fast():
    """Whether this processor has the instructions of `crc32`."""
    return has_fast_crc32()


def crc32(const uint8_t[::1] data, uint64_t before):
    """CRC-32 of bytes that follow those whose CRC-32 is `before`, like zlib.crc32.

    A multiple of 16 bytes, at least 64. O(n)
    """
    cdef uint32_t value
    with nogil:
        value = fast_crc32(&data[0], data.shape[0], <uint32_t>before)
    return value


def transpose(const float[:, :] a, float[:, ::1] out):
    """out = a^T, where each row of a is contiguous. O(n_rows n_columns)"""
    cdef Py_ssize_t first = 0
    with nogil:
        while first < a.shape[0]:
            _transpose_rows(a, first, min(first + BLOCK, a.shape[0]), out)
            first += BLOCK


cdef void _transpose_rows(const float[:, :] a, Py_ssize_t first, Py_ssize_t last,
                          float[:, ::1] out) noexcept nogil:
    cdef Py_ssize_t i, j, n_columns = a.shape[1]
    cdef const float *rows[BLOCK]
    cdef float *column
    if n_columns == 0:
        return

    for i in range(first + BLOCK, min(last + BLOCK, a.shape[0])):
        prefetch_run(&a[i, 0], n_columns * sizeof(float))
    for i in range(first, last):
        rows[i - first] = &a[i, 0]
    for j in range(n_columns):
        column = &out[j, first]
        if last - first == BLOCK:  # a loop of known length is unrolled
            for i in range(BLOCK):
                column[i] = rows[i][j]
        else:
            for i in range(last - first):
                column[i] = rows[i][j]
