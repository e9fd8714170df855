# An optimizer's rule and the addresses of optional state, for the other kernel that applies gradients (_gemm).
from ._simd cimport rule_t

cdef class Rule:
    cdef rule_t rule


cdef inline float *first_or_null(float[:, ::1] a) noexcept:
    return &a[0, 0] if a is not None and a.shape[0] and a.shape[1] else NULL


cdef inline float *row_or_null(float *a, Py_ssize_t row, Py_ssize_t d) noexcept nogil:
    return a + row * d if a != NULL else NULL
