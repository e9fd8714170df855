# Rows of weights for inference: float32, bfloat16, or int8 with a scale per row.
from libc.stdint cimport int8_t, int32_t, uint16_t

from ._simd cimport DTYPE_BFLOAT16, DTYPE_FLOAT32, DTYPE_INT8, loops_t

cdef enum:
    OUTPUTS_PER_TASK = 1024  # they and these entries of eight rows stay in the first-level cache

ctypedef struct quantized_rows_t:
    int dtype
    Py_ssize_t n, d
    const void *rows
    const float *scales  # for int8: row j stands for scales[j] times its integers


cdef inline void quantized_sums(const loops_t *f, const quantized_rows_t *s, const int32_t *rows,
                                const float *a, Py_ssize_t n_rows, Py_ssize_t first, Py_ssize_t n,
                                float *out) noexcept nogil:
    # out += a[k] times the entries first .. first + n of row rows[k], for k in order
    if s.dtype == DTYPE_FLOAT32:
        f.sums(<const float *>s.rows, rows, a, n_rows, s.d, first, n, out)
    elif s.dtype == DTYPE_BFLOAT16:
        f.sums_bfloat16(<const uint16_t *>s.rows, rows, a, n_rows, s.d, first, n, out)
    else:
        f.sums_int8(<const int8_t *>s.rows, s.scales, rows, a, n_rows, s.d, first, n, out)


cdef inline void quantized_dots(const loops_t *f, const quantized_rows_t *s, const int32_t *rows,
                                Py_ssize_t n, const float *x, float *out) noexcept nogil:
    # out[k] = row rows[k] times x, or row k times x if rows is NULL
    cdef Py_ssize_t k
    if s.dtype == DTYPE_FLOAT32:
        f.dots(<const float *>s.rows, rows, n, x, s.d, out)
    elif s.dtype == DTYPE_BFLOAT16:
        f.dots_bfloat16(<const uint16_t *>s.rows, rows, n, x, s.d, out)
    else:
        f.dots_int8(<const int8_t *>s.rows, rows, n, x, s.d, out)
        for k in range(n):
            out[k] *= s.scales[k if rows == NULL else rows[k]]


cdef inline int quantized_rows_of(object rows, object scales, quantized_rows_t *out) except -1:
    # rows: float32, uint16 (bfloat16) or int8, (n, d); scales: (n,) float32, for int8 only. Both
    # must outlive `out`.
    cdef const float[:, ::1] floats
    cdef const uint16_t[:, ::1] halves
    cdef const int8_t[:, ::1] bytes_
    cdef const float[::1] factors

    out.n, out.d = rows.shape
    out.rows = NULL
    out.scales = NULL
    if rows.dtype.itemsize == 4:
        out.dtype = DTYPE_FLOAT32
        floats = rows
        if out.n and out.d:
            out.rows = &floats[0, 0]
    elif rows.dtype.itemsize == 2:
        out.dtype = DTYPE_BFLOAT16
        halves = rows
        if out.n and out.d:
            out.rows = &halves[0, 0]
    else:
        out.dtype = DTYPE_INT8
        bytes_ = rows
        factors = scales
        if out.n and out.d:
            out.rows = &bytes_[0, 0]
            out.scales = &factors[0]
    return 0
