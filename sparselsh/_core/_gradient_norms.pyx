"""Squared norms of gradients that are never stored, for clipping by the global norm.

The gradient of a row is summed as in _updates, squared and discarded. Weights and state are neither
read nor written, so that the dominant cost of an update is not paid twice. `out` has one entry per
row (per run, for flat arrays). The caller adds them up in order, so that the sum does not depend on
the number of threads.
"""
from cython.parallel cimport prange, threadid
from libc.stdint cimport int32_t, int64_t

from ._groups cimport NEURONS_PER_BLOCK, sum_rows, sum_rows_csr
from ._scratch cimport aligned_size, free_aligned, malloc_aligned
from ._simd cimport DTYPE_FLOAT32, GEMM_WORK_FLOATS, gemm_t, loops_t, table

cdef enum:
    FLOATS_PER_SUM = 4096

RUN_LENGTH = FLOATS_PER_SUM  # for callers, who allocate `out`


def squares(const float[::1] a, double[::1] out, int n_threads):
    """out[r] = the sum of squares of a[r * RUN_LENGTH:(r + 1) * RUN_LENGTH].   O(len(a))"""
    cdef Py_ssize_t r, n = a.shape[0], run = FLOATS_PER_SUM
    cdef const loops_t *f = table()
    for r in prange((n + run - 1) // run, nogil=True, schedule="static", num_threads=n_threads):
        out[r] = f.dot(&a[r * run], &a[r * run], min(run, n - r * run))


cdef void _active_block(const loops_t *f, gemm_t *whole, Py_ssize_t first, Py_ssize_t n,
                        double *out, float *work) noexcept nogil:
    cdef gemm_t g = whole[0]
    cdef Py_ssize_t r
    g.m = n
    g.a = g.a + first * g.a_row
    g.c = work + GEMM_WORK_FLOATS
    f.gemm(&g, work)
    for r in range(n):
        out[first + r] = f.dot(g.c + r * g.n, g.c + r * g.n, g.n)


def active_squares(const float[:, ::1] dz, const float[:, ::1] x, double[::1] out, int n_threads):
    """out[r] = |row r of dz^T x|^2.   2 n n_rows d operations

    dz is (n, n_rows), x (n, d).
    """
    cdef gemm_t g
    cdef Py_ssize_t t, n_rows = dz.shape[1], d = x.shape[1]
    cdef Py_ssize_t size = aligned_size(GEMM_WORK_FLOATS + NEURONS_PER_BLOCK * x.shape[1])
    cdef Py_ssize_t n_blocks = (n_rows + NEURONS_PER_BLOCK - 1) // NEURONS_PER_BLOCK
    cdef Py_ssize_t block = NEURONS_PER_BLOCK
    cdef const loops_t *f = table()
    cdef float *work

    if n_rows == 0:
        return
    if d == 0 or dz.shape[0] == 0:
        out[:] = 0
        return

    g.n, g.k = d, dz.shape[0]
    g.a, g.a_row, g.a_column = &dz[0, 0], 1, n_rows
    g.b, g.b_dtype, g.b_first, g.b_row, g.b_column = &x[0, 0], DTYPE_FLOAT32, 0, d, 1
    g.rows, g.gather, g.bias, g.c_row = NULL, 0, NULL, d
    g.in_bfloat16, g.packed = False, NULL

    work = <float *>malloc_aligned(n_threads * size * sizeof(float))
    if work == NULL:
        raise MemoryError()

    for t in prange(n_blocks, nogil=True, schedule="dynamic", chunksize=1, num_threads=n_threads):
        _active_block(f, &g, t * block, min(block, n_rows - t * block), &out[0],
                      work + threadid() * size)
    free_aligned(work)


cdef double _grouped(const loops_t *f, const int32_t *entries, const int32_t *samples, Py_ssize_t n,
                     const float *data, const float *x, Py_ssize_t d, float *buffer) noexcept nogil:
    sum_rows(f, entries, samples, n, data, x, d, buffer)
    return f.dot(buffer, buffer, d)


def grouped_squares(const int64_t[::1] starts, const int32_t[::1] entries,
                    const int32_t[::1] samples, const float[::1] data, const float[:, ::1] x,
                    double[::1] out, int n_threads):
    """out[r] = |sum_e data[entries[e]] x[samples[e]]|^2 over group r.   O(nnz * d)

    The groups are those of _updates.update_grouped.
    """
    cdef Py_ssize_t r, n_rows = out.shape[0], d = x.shape[1], size = aligned_size(d)
    cdef const loops_t *f = table()
    cdef float *buffers

    if n_rows == 0:
        return
    if d == 0:
        out[:] = 0
        return

    buffers = <float *>malloc_aligned(n_threads * size * sizeof(float))
    if buffers == NULL:
        raise MemoryError()

    for r in prange(n_rows, nogil=True, schedule="dynamic", chunksize=16, num_threads=n_threads):
        out[r] = _grouped(f, &entries[starts[r]], &samples[starts[r]], starts[r + 1] - starts[r],
                          &data[0], &x[0, 0], d, buffers + threadid() * size)
    free_aligned(buffers)


cdef double _grouped_csr(const loops_t *f, const int32_t *entries, const int32_t *samples,
                         Py_ssize_t n, const float *data, const int64_t *x_indptr,
                         const int32_t *x_indices, const float *x_data, Py_ssize_t d,
                         float *buffer) noexcept nogil:
    sum_rows_csr(entries, samples, n, data, x_indptr, x_indices, x_data, d, buffer)
    return f.dot(buffer, buffer, d)


def grouped_squares_csr(const int64_t[::1] starts, const int32_t[::1] entries,
                        const int32_t[::1] samples, const float[::1] data,
                        const int64_t[::1] x_indptr, const int32_t[::1] x_indices,
                        const float[::1] x_data, Py_ssize_t d, double[::1] out, int n_threads):
    """grouped_squares for a sparse x of d columns.   O(sum nnz_i * nnz(x_i) + n_rows * d)"""
    cdef Py_ssize_t r, n_rows = out.shape[0], size = aligned_size(d)
    cdef const loops_t *f = table()
    cdef const int32_t *x_index = &x_indices[0] if x_indices.shape[0] else NULL
    cdef const float *x_value = &x_data[0] if x_indices.shape[0] else NULL
    cdef float *buffers

    if n_rows == 0:
        return
    if d == 0:
        out[:] = 0
        return

    buffers = <float *>malloc_aligned(n_threads * size * sizeof(float))
    if buffers == NULL:
        raise MemoryError()

    for r in prange(n_rows, nogil=True, schedule="dynamic", chunksize=16, num_threads=n_threads):
        out[r] = _grouped_csr(f, &entries[starts[r]], &samples[starts[r]],
                              starts[r + 1] - starts[r], &data[0], &x_indptr[0], x_index, x_value,
                              d, buffers + threadid() * size)
    free_aligned(buffers)
