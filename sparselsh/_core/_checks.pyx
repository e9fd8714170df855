"""Checks of sparse rows in one pass, where NumPy needs several.

That of a single row must take less time than the inference for the row.
"""
from libc.float cimport FLT_MAX
from libc.math cimport fabsf
from libc.stdint cimport int32_t


def are_rows(const int32_t[::1] indptr, const int32_t[::1] indices, const float[::1] data,
             Py_ssize_t n_columns, bint without_zeros=False):
    """Whether these are sparse rows: ids distinct, ascending and below n_columns; values finite.

    False for arrays that do not begin at a multiple of four bytes, too, and, if `without_zeros`,
    where a value is zero.

    O(nnz)
    """
    cdef bint valid
    if indptr.shape[0] == 0 or data.shape[0] != indices.shape[0]:
        return False
    if <size_t> &indptr[0] % sizeof(int32_t) or data.shape[0] and (
            <size_t> &indices[0] | <size_t> &data[0]) % sizeof(int32_t):
        return False
    with nogil:
        valid = (_are_lists(indptr, indices, n_columns)
                 and _are_finite(data, without_zeros))
    return valid


cdef bint _are_lists(const int32_t[::1] indptr, const int32_t[::1] indices,
                     Py_ssize_t n_columns) noexcept nogil:
    cdef Py_ssize_t i, k, first, last, n_rows = indptr.shape[0] - 1, n = indices.shape[0]
    cdef int falls
    if indptr[0] != 0 or indptr[n_rows] != n:
        return False
    for i in range(n_rows):
        first, last = indptr[i], indptr[i + 1]
        if last < first or last > n:
            return False
        falls = 0  # no early end: the loop is one of vectors
        for k in range(first + 1, last):
            falls |= indices[k] <= indices[k - 1]
        if falls or last > first and (indices[first] < 0 or indices[last - 1] >= n_columns):
            return False
    return True


cdef bint _are_finite(const float[::1] data, bint without_zeros) noexcept nogil:
    cdef Py_ssize_t k
    cdef int bad = 0
    if without_zeros:
        for k in range(data.shape[0]):
            bad |= (fabsf(data[k]) > FLT_MAX) | (data[k] != data[k]) | (data[k] == 0)
    else:
        for k in range(data.shape[0]):
            bad |= (fabsf(data[k]) > FLT_MAX) | (data[k] != data[k])
    return bad == 0
