"""Checks of sparse rows in one pass, where NumPy needs several.

That of a single row must take less time than the inference for the row.
"""
from libc.math cimport isfinite
from libc.stdint cimport int32_t


def are_rows(const int32_t[::1] indptr, const int32_t[::1] indices, const float[::1] data,
             Py_ssize_t n_columns):
    """Whether these are sparse rows: ids distinct, ascending and below n_columns; values finite.

    False for arrays that do not begin at a multiple of four bytes, too.

    O(nnz)
    """
    cdef bint valid
    if indptr.shape[0] == 0 or data.shape[0] != indices.shape[0]:
        return False
    if <size_t> &indptr[0] % sizeof(int32_t) or data.shape[0] and (
            <size_t> &indices[0] | <size_t> &data[0]) % sizeof(int32_t):
        return False
    with nogil:
        valid = _are_rows(indptr, indices, data, n_columns)
    return valid


cdef bint _are_rows(const int32_t[::1] indptr, const int32_t[::1] indices, const float[::1] data,
                    Py_ssize_t n_columns) noexcept nogil:
    cdef Py_ssize_t i, k, n_rows = indptr.shape[0] - 1, n = indices.shape[0]
    cdef int32_t before
    cdef float sum_of_zeros = 0
    if indptr[0] != 0 or indptr[n_rows] != n:
        return False
    for i in range(n_rows):
        if indptr[i + 1] < indptr[i] or indptr[i + 1] > n:
            return False
        before = -1
        for k in range(indptr[i], indptr[i + 1]):
            if indices[k] <= before:
                return False
            before = indices[k]
            sum_of_zeros += 0 * data[k]  # NaN if the value is not finite
        if before >= n_columns:
            return False
    return isfinite(sum_of_zeros) != 0
