"""Checks of single rows in one pass, where NumPy needs several.

They must take less time than the inference for the row.
"""
from libc.math cimport isfinite
from libc.stdint cimport int32_t


def is_row(const int32_t[::1] indptr, const int32_t[::1] indices, const float[::1] data,
           Py_ssize_t n_columns):
    """Whether this is one sparse row: ids distinct, ascending and below n_columns; values finite.

    O(nnz)
    """
    cdef Py_ssize_t k, n = indices.shape[0]
    cdef int32_t before = -1
    cdef float sum_of_zeros = 0
    if indptr.shape[0] != 2 or indptr[0] != 0 or indptr[1] != n or data.shape[0] != n:
        return False
    for k in range(n):
        if indices[k] <= before:
            return False
        before = indices[k]
        sum_of_zeros += 0 * data[k]  # NaN if the value is not finite
    return before < n_columns and isfinite(sum_of_zeros) != 0
