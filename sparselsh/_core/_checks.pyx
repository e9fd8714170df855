"""Checks of arrays that NumPy would make in several passes, for single rows: they must take less than the answer."""
from libc.math cimport isfinite
from libc.stdint cimport int32_t


def is_row(const int32_t[::1] indptr, const int32_t[::1] indices, const float[::1] data, Py_ssize_t n_columns):
    """Whether these are one sparse row of n_columns: ids in range, ascending and distinct, finite values.   O(nnz)"""
    cdef Py_ssize_t k, n = indices.shape[0]
    cdef int32_t before = -1
    cdef float sum_of_zeros = 0
    if indptr.shape[0] != 2 or indptr[0] != 0 or indptr[1] != n or data.shape[0] != n:
        return False
    for k in range(n):
        if indices[k] <= before:
            return False
        before = indices[k]
        sum_of_zeros += 0 * data[k]  # NaN for what is not finite
    return before < n_columns and isfinite(sum_of_zeros) != 0
