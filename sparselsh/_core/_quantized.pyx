"""Products with rows of weights in float32, bfloat16 or int8 (with a scale per row), for inference.

`rows` is float32, uint16 (bfloat16: the upper halves of floats) or int8, (n_rows, d). `scales`,
(n_rows,), is read for int8 only, where row j stands for scales[j] rows[j]. Sums are in float32.
"""
from cython.parallel cimport prange
from libc.math cimport fabsf, sqrt
from libc.stdint cimport int8_t, int32_t, int64_t
from libc.string cimport memcpy, memset

from ._simd cimport loops_t, table

cdef extern from "math.h" nogil:
    float rintf(float x)


def quantize_int8(const float[:, ::1] w, int8_t[:, ::1] rows, float[::1] scales, int n_threads):
    """scales[j] = max |w[j]| / 127, rows[j] = w[j] / scales[j], rounded half to even.   O(n d)

    A row of zeros, or one so small that its scale is not a normal number, has scale 0 and zeros.
    """
    cdef Py_ssize_t j, n = w.shape[0], d = w.shape[1]
    if n == 0 or d == 0:
        scales[:] = 0
        return
    for j in prange(n, nogil=True, schedule="static", num_threads=n_threads):
        scales[j] = _quantize_row(&w[j, 0], d, &rows[j, 0])


cdef float _quantize_row(const float *w, Py_ssize_t d, int8_t *out) noexcept nogil:
    cdef Py_ssize_t k
    cdef float largest = 0, scale, inverse
    for k in range(d):
        if fabsf(w[k]) > largest:
            largest = fabsf(w[k])
    scale = largest / 127
    if scale < 1.2e-38:
        memset(out, 0, d)
        return 0
    inverse = 127 / largest
    for k in range(d):
        out[k] = <int8_t>rintf(w[k] * inverse)
    return scale


def int8_errors(const float[:, ::1] w, const int8_t[:, ::1] rows, const float[::1] scales,
                float[::1] out, int n_threads):
    """out[j] bounds |w[j] . x - scales[j] rows[j] . x| / |x| for all x.   O(n d)

    It is the length of w[j] - scales[j] rows[j] and, because both inner products are summed in
    float32, what rounding may add.
    """
    cdef Py_ssize_t j, n = w.shape[0], d = w.shape[1]
    if n == 0 or d == 0:
        out[:] = 0
        return
    for j in prange(n, nogil=True, schedule="static", num_threads=n_threads):
        out[j] = _int8_error(&w[j, 0], &rows[j, 0], scales[j], d)


cdef float _int8_error(const float *w, const int8_t *row, double scale,
                       Py_ssize_t d) noexcept nogil:
    # sums of d terms in at least four lanes
    cdef double square = 0, length = 0, difference, rounding = 1.2e-7 * (d / 4.0 + 8)
    cdef Py_ssize_t k
    for k in range(d):
        difference = w[k] - scale * row[k]
        square += difference * difference
        length += <double>w[k] * w[k]
    return <float>(1.000001 * (sqrt(square) + rounding * sqrt(length)))


cdef void _sum_run(const loops_t *f, const quantized_rows_t *s, const int32_t *indices,
                   const float *data, Py_ssize_t n, const float *bias, Py_ssize_t first,
                   Py_ssize_t size, float *out) noexcept nogil:
    if bias != NULL:
        memcpy(out, bias + first, size * sizeof(float))
    else:
        memset(out, 0, size * sizeof(float))
    quantized_sums(f, s, indices, data, n, first, size, out)


def weighted_rows(const int64_t[::1] indptr, const int32_t[::1] indices, const float[::1] data,
                  rows, scales, const float[::1] bias, float[:, ::1] out, int n_threads):
    """out[i] = bias + sum_k data[k] rows[indices[k]] over the entries k of row i.

    bias may be empty. As _sparse_products.weighted_rows, for rows of these dtypes, and with the
    outputs of each sample divided among the threads. Each sum is in the order of the entries, for
    any number of threads. O(nnz d)
    """
    cdef quantized_rows_t s
    cdef Py_ssize_t t, i, first, n = out.shape[0], d = out.shape[1], run = OUTPUTS_PER_TASK
    cdef Py_ssize_t n_runs = (d + run - 1) // run
    cdef const loops_t *f = table()
    cdef const int32_t *index = &indices[0] if indices.shape[0] else NULL
    cdef const float *value = &data[0] if indices.shape[0] else NULL
    cdef const float *b = &bias[0] if bias.shape[0] else NULL

    quantized_rows_of(rows, scales, &s)
    if n == 0 or d == 0:
        return

    for t in prange(n * n_runs, nogil=True, schedule="static", num_threads=n_threads):
        i = t // n_runs
        first = t % n_runs * run
        _sum_run(f, &s, index + indptr[i], value + indptr[i], indptr[i + 1] - indptr[i], b, first,
                 min(run, d - first), &out[i, first])
