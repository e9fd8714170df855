# Arrays that may be float32 or bfloat16, for kernels that read or update weights.
from libc.stdint cimport uint16_t

from ._simd cimport (
    DTYPE_BFLOAT16, DTYPE_FLOAT32_PER_ROW, DTYPE_NONE, loops_t, prefetch_run, typed_array_t,
)

cdef enum:
    PREFETCH_DISTANCE = 6  # rows; the fastest of 1, 2, 3, 4 and 6
    MIN_ROWS_PER_TASK = 16
    MAX_ROWS_PER_TASK = 256
    TASKS_PER_THREAD = 8  # within these limits, so that threads finish together


cdef inline Py_ssize_t rows_per_task(Py_ssize_t n_rows, int n_threads) noexcept nogil:
    # Tasks are long, so that a thread prefetches rows of its own task: with 16 rows per task, every
    # third row was prefetched by one core and written by another, and two threads took as long as
    # one.
    return min(<Py_ssize_t>MAX_ROWS_PER_TASK,
               max(<Py_ssize_t>MIN_ROWS_PER_TASK, n_rows // (TASKS_PER_THREAD * n_threads)))


cdef typed_array_t typed_array_of(object a, bint writable, Py_ssize_t d=*) except *


cdef inline const float *row_of(const loops_t *f, const typed_array_t *w, Py_ssize_t row,
                                Py_ssize_t d, float *wide) noexcept nogil:
    # row `row` in float32: in place, or converted into `wide`
    if w.dtype == DTYPE_BFLOAT16:
        f.to_float32(<const uint16_t *>w.data + row * d, wide, d)
        return wide
    return <const float *>w.data + row * d


cdef inline float row_dot(const loops_t *f, const typed_array_t *w, Py_ssize_t row, const float *x,
                          Py_ssize_t d) noexcept nogil:
    if w.dtype == DTYPE_BFLOAT16:
        return f.dot_bfloat16(<const uint16_t *>w.data + row * d, x, d)
    return f.dot(<const float *>w.data + row * d, x, d)


cdef inline void prefetch_row(const typed_array_t *s, Py_ssize_t row, Py_ssize_t d) noexcept nogil:
    if s.dtype == DTYPE_BFLOAT16:
        prefetch_run(<const uint16_t *>s.data + row * d, d * sizeof(uint16_t))
    elif s.dtype == DTYPE_FLOAT32_PER_ROW:
        prefetch_run(<const float *>s.data + row, sizeof(float))
    elif s.dtype != DTYPE_NONE:
        prefetch_run(<const float *>s.data + row * d, d * sizeof(float))


cdef inline float *offset_or_null(float *p, Py_ssize_t first) noexcept nogil:
    # the part of a thread, of memory that is allocated only if it is needed
    return p + first if p != NULL else NULL
