"""Sparse activations between two layers: which entries are kept.

    best_limits, keep_entries   the n largest of each row: first the cut-off, then the copy
    drop_dense, drop_csr        inverted dropout, with random numbers by counter
"""
from cython.parallel cimport prange, threadid
from libc.stdint cimport int32_t, int64_t, uint64_t
from libc.stdlib cimport free, malloc

from ._order cimport random_at, score_key, select_smallest

cdef uint64_t NO_LIMIT = 0xFFFFFFFFFFFFFFFF  # all entries of the row are kept


cdef inline int32_t _id(const int32_t *indices, Py_ssize_t k) noexcept nogil:
    return indices[k] if indices != NULL else <int32_t>k


cdef int32_t _limit(const int32_t *indices, const float *data, Py_ssize_t n, Py_ssize_t n_best,
                    bint positive, uint64_t *keys, uint64_t *limit) noexcept nogil:
    cdef Py_ssize_t k, size = 0
    for k in range(n):
        if data[k] > 0 or not positive:
            keys[size] = score_key(data[k], _id(indices, k))
            size += 1
    limit[0] = NO_LIMIT
    if size > n_best:
        select_smallest(keys, size, n_best)
        size = n_best
        limit[0] = 0
        for k in range(n_best):
            limit[0] = max(limit[0], keys[k])
    return <int32_t>size


def best_limits(const int64_t[::1] indptr, const int32_t[::1] indices, const float[::1] data,
                Py_ssize_t n_best, bint positive, uint64_t[::1] limits, int32_t[::1] sizes,
                int n_threads):
    """The cut-off of each row that keeps its n_best largest entries (above zero, if `positive`).

    Rows are CSR; `indices` is None for dense rows, whose entries are all columns in order. sizes,
    (n,), receives how many entries of a row are kept; limits, (n,), the largest key of a kept
    entry: score_key(value, id), ties by ascending id. n_best >= 1.   O(nnz)
    """
    cdef Py_ssize_t i, n = sizes.shape[0], widest = 1
    cdef const int32_t *index = NULL
    cdef const float *value = &data[0] if data.shape[0] else NULL
    cdef uint64_t *keys
    cdef bint is_sparse = indices is not None

    if n == 0:
        return

    if is_sparse and indices.shape[0]:
        index = &indices[0]
    for i in range(n):
        widest = max(widest, indptr[i + 1] - indptr[i])
    keys = <uint64_t *>malloc(n_threads * widest * sizeof(uint64_t))
    if keys == NULL:
        raise MemoryError()

    for i in prange(n, nogil=True, schedule="dynamic", chunksize=8, num_threads=n_threads):
        sizes[i] = _limit(index + indptr[i] if index != NULL else NULL, value + indptr[i],
                          indptr[i + 1] - indptr[i], n_best, positive, keys + threadid() * widest,
                          &limits[i])
    free(keys)


cdef void _keep(const int32_t *indices, const float *data, Py_ssize_t n, bint positive,
                uint64_t limit, int32_t *out_indices, float *out_data) noexcept nogil:
    cdef Py_ssize_t k, size = 0
    for k in range(n):
        if ((data[k] > 0 or not positive)
                and (limit == NO_LIMIT or score_key(data[k], _id(indices, k)) <= limit)):
            out_indices[size] = _id(indices, k)
            out_data[size] = data[k]
            size += 1


def keep_entries(const int64_t[::1] indptr, const int32_t[::1] indices, const float[::1] data,
                 bint positive, const uint64_t[::1] limits, const int64_t[::1] out_indptr,
                 int32_t[::1] out_indices, float[::1] out_data, int n_threads):
    """The entries of each row whose keys are within the limits of best_limits, in their order.

    out_indptr is the running sum of the sizes from best_limits. O(nnz)
    """
    cdef Py_ssize_t i, n = limits.shape[0]
    cdef const int32_t *index = NULL
    cdef bint is_sparse = indices is not None
    if n == 0 or out_indices.shape[0] == 0:
        return
    if is_sparse:
        index = &indices[0]
    for i in prange(n, nogil=True, schedule="dynamic", chunksize=8, num_threads=n_threads):
        _keep(index + indptr[i] if index != NULL else NULL, &data[0] + indptr[i],
              indptr[i + 1] - indptr[i], positive, limits[i], &out_indices[0] + out_indptr[i],
              &out_data[0] + out_indptr[i])


cdef void _drop_run(const int32_t *indices, float *data, Py_ssize_t n, uint64_t seed,
                    uint64_t first, double rate, float scale) noexcept nogil:
    # 53 random bits are compared with the rate: 0 drops nothing, a rate below 1 not everything
    cdef Py_ssize_t k
    for k in range(n):
        if (<double>(random_at(seed, first + <uint64_t>_id(indices, k)) >> 11)
                * (1.0 / 9007199254740992.0) < rate):
            data[k] = 0
        else:
            data[k] = data[k] * scale


def drop_dense(float[:, ::1] a, uint64_t seed, double rate, int n_threads):
    """a[i, j] <- 0 with probability `rate`, else a[i, j] / (1 - rate): inverted dropout, in place.

    The draw of (i, j) is random_at(seed, i * n_columns + j): it does not depend on the number of
    threads, and the gradient repeats it. O(a.size)
    """
    cdef Py_ssize_t i, n = a.shape[0], m = a.shape[1]
    cdef float scale = <float>(1 / (1 - rate))
    if n == 0 or m == 0:
        return
    for i in prange(n, nogil=True, schedule="static", num_threads=n_threads):
        _drop_run(NULL, &a[i, 0], m, seed, <uint64_t>(i * m), rate, scale)


def drop_csr(const int64_t[::1] indptr, const int32_t[::1] indices, float[::1] data,
             Py_ssize_t n_columns, uint64_t seed, double rate, int n_threads):
    """drop_dense for the stored entries of a sparse matrix, with the draws of their positions.

    O(nnz)
    """
    cdef Py_ssize_t i, n = indptr.shape[0] - 1
    cdef float scale = <float>(1 / (1 - rate))
    if indices.shape[0] == 0:
        return
    for i in prange(n, nogil=True, schedule="static", num_threads=n_threads):
        _drop_run(&indices[0] + indptr[i], &data[0] + indptr[i], indptr[i + 1] - indptr[i], seed,
                  <uint64_t>(i * n_columns), rate, scale)
