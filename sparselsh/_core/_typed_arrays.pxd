# Arrays that may be float32 or bfloat16, for the kernels that read weights or update them.
from libc.stdint cimport uint16_t

from ._simd cimport (
    DTYPE_BFLOAT16, DTYPE_FLOAT32_PER_ROW, DTYPE_NONE, loops_t, prefetch_run, typed_array_t,
)

cdef enum:
    AHEAD = 6  # rows between asking for one and reading it: the best of 1, 2, 3, 4 and 6


cdef inline Py_ssize_t run_length(Py_ssize_t n_rows, int n_threads) noexcept nogil:
    # Rows that a thread takes at a time. Those that it asks for ahead are then its own: with runs of 16 every third
    # row was asked for by one core and written by another, and two threads took as long as one. Eight runs a thread,
    # so that threads end together.
    return min(<Py_ssize_t>256, max(<Py_ssize_t>16, n_rows // (8 * n_threads)))


cdef typed_array_t typed_array_of(object a, bint writable, Py_ssize_t d=*) except *


cdef inline const float *row_of(const loops_t *f, const typed_array_t *w, Py_ssize_t row, Py_ssize_t d,
                                float *wide) noexcept nogil:
    # row `row` in float32: where it stands, or widened into `wide`
    if w.dtype == DTYPE_BFLOAT16:
        f.widen(<const uint16_t *>w.data + row * d, wide, d)
        return wide
    return <const float *>w.data + row * d


cdef inline float row_dot(const loops_t *f, const typed_array_t *w, Py_ssize_t row, const float *x,
                          Py_ssize_t d) noexcept nogil:
    if w.dtype == DTYPE_BFLOAT16:
        return f.dot_bfloat(<const uint16_t *>w.data + row * d, x, d)
    return f.dot(<const float *>w.data + row * d, x, d)


cdef inline void prefetch_row(const typed_array_t *s, Py_ssize_t row, Py_ssize_t d) noexcept nogil:
    if s.dtype == DTYPE_BFLOAT16:
        prefetch_run(<const uint16_t *>s.data + row * d, d * sizeof(uint16_t))
    elif s.dtype == DTYPE_FLOAT32_PER_ROW:
        prefetch_run(<const float *>s.data + row, sizeof(float))
    elif s.dtype != DTYPE_NONE:
        prefetch_run(<const float *>s.data + row * d, d * sizeof(float))


cdef inline float *part_of(float *p, Py_ssize_t first) noexcept nogil:
    # a thread's part of memory that is there only where it is needed
    return p + first if p != NULL else NULL
