"""Random projections that cost less than a matrix product: signed sums and Hadamard rotations.

    signed_sums, signed_sums_csr   planes of 0, +1 and -1 (Achlioptas 2003; SLIDE): additions only
    rotate                         H D3 H D2 H D1: O(m log m) additions
                                   (Ailon and Chazelle 2006; Andoni et al. 2015)

A kernel for both dense and sparse rows takes CSR arrays; `indices` is None for dense rows, whose
entries are all columns in order.
"""
from cython.parallel cimport prange, threadid
from libc.stdint cimport int8_t, int32_t, int64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from ._simd cimport SIGN_LANES, loops_t, prefetch_run, table


cdef void _sums_of_block(const loops_t *f, const float *v, Py_ssize_t n_rows, Py_ssize_t d,
                         const int64_t *starts, const int32_t *ids, Py_ssize_t n_planes,
                         float *columns, float *sums, float *out) noexcept nogil:
    # Rows become lanes: one addition then serves SIGN_LANES rows and reads contiguous memory.
    cdef Py_ssize_t c, p, r, lanes = SIGN_LANES
    memset(columns, 0, d * lanes * sizeof(float))
    for r in range(n_rows):
        for c in range(d):
            columns[c * lanes + r] = v[r * d + c]
    for p in range(n_planes):
        f.signed_sums(columns, ids + starts[2 * p], starts[2 * p + 1] - starts[2 * p],
                      starts[2 * p + 2] - starts[2 * p + 1], sums)
        for r in range(n_rows):
            out[r * n_planes + p] = sums[r]


def signed_sums(const float[:, ::1] v, const int64_t[::1] starts, const int32_t[::1] ids,
                float[:, ::1] out, int n_threads):
    """out[i, p] = sum v[i, plus ids of plane p] - sum v[i, minus ids of plane p].   O(n * len(ids))

    v is (n, d), out (n, n_planes), starts (2 * n_planes + 1,): the plus ids of plane p are
    ids[starts[2p]:starts[2p + 1]], its minus ids ids[starts[2p + 1]:starts[2p + 2]].
    """
    cdef Py_ssize_t i, n = out.shape[0], n_planes = out.shape[1], d = v.shape[1], lanes = SIGN_LANES
    cdef Py_ssize_t n_blocks = (n + lanes - 1) // lanes, size = (d + 1) * lanes
    cdef const loops_t *f = table()
    cdef const int32_t *id0 = &ids[0] if ids.shape[0] else NULL
    cdef float *work

    if n == 0 or n_planes == 0:
        return
    if d == 0:
        out[:, :] = 0
        return

    work = <float *>malloc(n_threads * size * sizeof(float))
    if work == NULL:
        raise MemoryError()

    for i in prange(n_blocks, nogil=True, schedule="static", num_threads=n_threads):
        _sums_of_block(f, &v[i * lanes, 0], min(lanes, n - i * lanes), d, &starts[0], id0, n_planes,
                       work + threadid() * size, work + threadid() * size + d * lanes,
                       &out[i * lanes, 0])
    free(work)


cdef void _sums_of_row(const loops_t *f, const int32_t *indices, const float *data, Py_ssize_t n,
                       const int8_t *signs, Py_ssize_t n_planes, float *minus,
                       float *out) noexcept nogil:
    # Plus and minus are separate, as in signed_sums: the same terms are added in the same order.
    cdef Py_ssize_t k, p
    memset(out, 0, n_planes * sizeof(float))
    memset(minus, 0, n_planes * sizeof(float))
    for k in range(n):
        if k + 4 < n:
            prefetch_run(signs + indices[k + 4] * n_planes, n_planes)
        f.add_signed(data[k], signs + indices[k] * n_planes, out, minus, n_planes)
    for p in range(n_planes):
        out[p] -= minus[p]


def signed_sums_csr(const int64_t[::1] indptr, const int32_t[::1] indices, const float[::1] data,
                    const int8_t[:, ::1] signs, float[:, ::1] out, int n_threads):
    """signed_sums for sparse rows: out[i] = sum_k data[k] signs[indices[k]].   O(nnz * n_planes)

    signs is (d, n_planes) of -1, 0 and 1. Zeros are not skipped: adding one to 16 sums at once is
    cheaper than finding the sums that it does not change.
    """
    cdef Py_ssize_t i, n = out.shape[0], n_planes = out.shape[1]
    cdef const loops_t *f = table()
    cdef const int32_t *index = &indices[0] if indices.shape[0] else NULL
    cdef const float *value = &data[0] if indices.shape[0] else NULL
    cdef const int8_t *sign = &signs[0, 0] if signs.shape[0] and n_planes else NULL
    cdef float *minus

    if n == 0 or n_planes == 0:
        return

    minus = <float *>malloc(n_threads * n_planes * sizeof(float))
    if minus == NULL:
        raise MemoryError()

    for i in prange(n, nogil=True, schedule="static", num_threads=n_threads):
        _sums_of_row(f, index + indptr[i], value + indptr[i], indptr[i + 1] - indptr[i], sign,
                     n_planes, minus + threadid() * n_planes, &out[i, 0])
    free(minus)


cdef void _rotate_row(const loops_t *f, const int32_t *indices, const float *data, Py_ssize_t n,
                      const float *signs, Py_ssize_t n_rotations, Py_ssize_t n_rounds, Py_ssize_t m,
                      float *x, float *out, Py_ssize_t n_out) noexcept nogil:
    cdef Py_ssize_t r, k
    for r in range(n_rotations):
        memset(x, 0, m * sizeof(float))
        if indices != NULL:
            for k in range(n):
                x[indices[k]] = data[k]
        elif n:
            memcpy(x, data, n * sizeof(float))
        for k in range(n_rounds):
            f.hadamard(signs + (r * n_rounds + k) * m, x, x + m, m)
        memcpy(out + r * m, x, min(m, n_out - r * m) * sizeof(float))


def rotate(const int64_t[::1] indptr, const int32_t[::1] indices, const float[::1] data,
           const float[:, :, ::1] signs, float[:, ::1] out, int n_threads):
    """out[i] = the first n_out coordinates of all rotations of row i, one rotation after the other.

    A rotation is x <- H (signs[r, k] * x) for each round k, H the Hadamard matrix of order m, x the
    row padded with zeros. signs is (n_rotations, n_rounds, m), m a power of two and at least the
    number of columns; out is (n, n_out) with n_out <= n_rotations * m. `indices` is None for dense
    rows. O(n * n_rotations * n_rounds * m log m) additions.
    """
    cdef Py_ssize_t i, n = out.shape[0], n_out = out.shape[1], m = signs.shape[2]
    cdef const loops_t *f = table()
    cdef bint is_sparse = indices is not None
    cdef const float *value = &data[0] if data.shape[0] else NULL
    cdef const int32_t *index = NULL
    cdef int32_t nothing = 0
    cdef float *work

    if n == 0 or n_out == 0:
        return

    if is_sparse:
        index = &indices[0] if indices.shape[0] else &nothing
    work = <float *>malloc(n_threads * 2 * m * sizeof(float))
    if work == NULL:
        raise MemoryError()

    for i in prange(n, nogil=True, schedule="static", num_threads=n_threads):
        _rotate_row(f, index + indptr[i] if is_sparse else NULL, value + indptr[i],
                    indptr[i + 1] - indptr[i], &signs[0, 0, 0], signs.shape[0], signs.shape[1], m,
                    work + threadid() * 2 * m, &out[i, 0], n_out)
    free(work)
