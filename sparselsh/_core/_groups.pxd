# The gradient of a row of weights, summed over the samples that touch it, for the modules that
# apply it (_updates) or measure it (_gradient_norms).
from libc.stdint cimport int32_t, int64_t
from libc.string cimport memset

from ._simd cimport loops_t

cdef enum:
    NEURONS_PER_BLOCK = 128  # whose dense gradients are summed together: 64 KB at 128 inputs


cdef inline void sum_rows(const loops_t *f, const int32_t *entries, const int32_t *samples,
                          Py_ssize_t n, const float *data, const float *x, Py_ssize_t d,
                          float *out) noexcept nogil:
    # out (d,) = sum_e data[entries[e]] x[samples[e]], x dense of d columns
    cdef Py_ssize_t e
    memset(out, 0, d * sizeof(float))
    for e in range(n):
        f.axpy(data[entries[e]], x + samples[e] * d, out, d)


cdef inline void sum_rows_csr(const int32_t *entries, const int32_t *samples, Py_ssize_t n,
                              const float *data, const int64_t *x_indptr, const int32_t *x_indices,
                              const float *x_data, Py_ssize_t d, float *out) noexcept nogil:
    # sum_rows for a sparse x
    cdef Py_ssize_t e
    cdef int64_t p
    cdef float a
    memset(out, 0, d * sizeof(float))
    for e in range(n):
        a = data[entries[e]]
        for p in range(x_indptr[samples[e]], x_indptr[samples[e] + 1]):
            out[x_indices[p]] += a * x_data[p]
