# Partial sums: a fixed number of them, so that the result does not depend on the number of threads.
from libc.string cimport memcpy

from ._simd cimport loops_t


cdef inline void add_partial_sums(const loops_t *f, const float *parts, Py_ssize_t n_parts,
                                  Py_ssize_t stride, Py_ssize_t n, float *out) noexcept nogil:
    # out[k] = the sum of parts[p * stride + k] over p, in order
    cdef Py_ssize_t p
    memcpy(out, parts, n * sizeof(float))
    for p in range(1, n_parts):
        f.axpy(1, parts + p * stride, out, n)
