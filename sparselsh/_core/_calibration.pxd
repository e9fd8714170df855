# The map of one row, for the module that answers a single row (_single_row_mlp).
from libc.stdint cimport int64_t

cdef class Parameters:
    cdef list arrays
    cdef const double *knots
    cdef const double *location
    cdef const double *spread
    cdef const double *temperature
    cdef const double *best
    cdef const double *rest
    cdef const double *first_at
    cdef const double *first_shift
    cdef double *slopes  # exp of what is given, (n_knots,)
    cdef double *costs  # of the ranks, (n_ranked,), in the same memory
    cdef Py_ssize_t n_knots, n_first, n_ranked
    cdef int64_t n_labels
    cdef bint classes

cdef double ranked_row(Parameters q, const float *s, double *values, float *p) noexcept nogil
