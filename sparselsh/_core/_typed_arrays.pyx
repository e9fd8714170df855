"""Weights and optimizer state in float32, or in bfloat16 as the uint16 of its bits.

bfloat16 is the upper half of a float32. It halves the memory that is read and written per row;
arithmetic stays in float32.
"""
from cython.parallel cimport prange
from libc.stdint cimport int32_t, uint16_t
from libc.string cimport memset

from ._simd cimport (
    DTYPE_BFLOAT16, DTYPE_FLOAT32, DTYPE_FLOAT32_PER_ROW, DTYPE_NONE, loops_t, table, typed_array_t,
)


cdef typed_array_t typed_array_of(object a, bint writable, Py_ssize_t d=-1) except *:
    # Address and dtype of a C-contiguous array; for d > 1, shape (n, 1) is one number per row.
    cdef typed_array_t s
    cdef const float[::1] single
    cdef const uint16_t[::1] half

    s.data = NULL
    s.dtype = DTYPE_NONE
    if a is None:
        return s
    if not a.flags.c_contiguous or (writable and not a.flags.writeable):
        raise ValueError("the array must be C-contiguous, and writable if it is updated")

    if a.dtype.char == "H":
        half = a.reshape(-1)
        s.dtype = DTYPE_BFLOAT16
        if half.shape[0]:
            s.data = <void *>&half[0]
    else:
        single = a.reshape(-1)
        s.dtype = (DTYPE_FLOAT32_PER_ROW if d > 1 and a.ndim == 2 and a.shape[1] == 1
                   else DTYPE_FLOAT32)
        if single.shape[0]:
            s.data = <void *>&single[0]
    return s


def to_float32(const uint16_t[::1] x, float[::1] y):
    """y = x, converted from bfloat16 to float32."""
    if x.shape[0]:
        table().to_float32(&x[0], &y[0], x.shape[0])


def to_bfloat16(const float[::1] x, uint16_t[::1] y):
    """y = x rounded to the nearest bfloat16, ties to even."""
    if x.shape[0]:
        table().to_bfloat16(&x[0], &y[0], x.shape[0])


cdef void _sum_block(const loops_t *f, const typed_array_t *w, Py_ssize_t first, Py_ssize_t last,
                     Py_ssize_t d, float *out) noexcept nogil:
    cdef Py_ssize_t r
    memset(out, 0, d * sizeof(float))
    for r in range(first, last):
        if w.dtype == DTYPE_BFLOAT16:
            f.axpy_bfloat16(1, <const uint16_t *>w.data + r * d, out, d)
        else:
            f.axpy(1, <const float *>w.data + r * d, out, d)


def block_sums(w, Py_ssize_t n_rows, float[:, ::1] out, int n_threads):
    """out[b] = the sum of the rows b * n_rows : (b + 1) * n_rows of w, in their order.   O(w.size)

    The last block may have fewer rows.
    """
    cdef Py_ssize_t b, n = w.shape[0], d = out.shape[1]
    cdef typed_array_t ws = typed_array_of(w, False)
    cdef const loops_t *f = table()
    if d == 0:
        return
    for b in prange(out.shape[0], nogil=True, schedule="static", num_threads=n_threads):
        _sum_block(f, &ws, b * n_rows, min((b + 1) * n_rows, n), d, &out[b, 0])


cdef void _centred_row(const loops_t *f, const typed_array_t *w, Py_ssize_t row, Py_ssize_t d,
                       float bias, const float *offset, float *out) noexcept nogil:
    cdef Py_ssize_t k
    cdef const float *values = row_of(f, w, row, d, out)
    for k in range(d):
        out[k] = values[k] - offset[k]
    out[d] = bias - offset[d]


def centred_rows(w, const float[::1] bias, const float[::1] offset, const int32_t[::1] rows,
                 float[:, ::1] out, int n_threads):
    """out[r] = (w[rows[r]], bias[rows[r]]) - offset, (len(rows), d + 1).   O(len(rows) d)"""
    cdef Py_ssize_t r, n = rows.shape[0], d = out.shape[1] - 1
    cdef typed_array_t ws = typed_array_of(w, False)
    cdef const loops_t *f = table()
    for r in prange(n, nogil=True, schedule="static", num_threads=n_threads):
        if r + PREFETCH_DISTANCE < n:
            prefetch_row(&ws, rows[r + PREFETCH_DISTANCE], d)
        _centred_row(f, &ws, rows[r], d, bias[rows[r]], &offset[0], &out[r, 0])
