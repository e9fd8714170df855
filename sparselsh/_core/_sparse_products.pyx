"""Products with one sparse operand: forward and backward over active sets and sparse input.

S is a sparse (n, n_rows) matrix in CSR: indptr (n + 1,), indices and data (nnz,). Its columns are
rows of the dense matrix w, (n_rows, d): neurons where S holds active outputs, features where S is
the input.

    sampled_dots      S.data = (x w^T at S's pattern)   forward over active sets (SDDMM)
    weighted_rows     out = S w                         forward of sparse input, or dX over
                                                        active sets (SpMM)
    sampled_columns   dX at the pattern of a sparse X   dX where input and output are sparse

The gradient S^T x of w is never stored: _updates sums it row by row. w is float32 or bfloat16
(_typed_arrays).
"""
from cython.parallel cimport prange, threadid
from libc.stdint cimport int32_t, int64_t, uint16_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

from ._parts cimport add_partial_sums
from ._simd cimport DTYPE_BFLOAT16, loops_t, table, typed_array_t
from ._typed_arrays cimport (
    PREFETCH_DISTANCE, offset_or_null, prefetch_row, row_dot, row_of, rows_per_task, typed_array_of,
)


cdef void _dots_of_neurons(const loops_t *f, const typed_array_t *w, const int32_t *rows,
                           const int64_t *starts, Py_ssize_t n_rows, const float *bias,
                           const int32_t *entries, const int32_t *samples, const float *x,
                           Py_ssize_t d, float *out) noexcept nogil:
    cdef Py_ssize_t r
    cdef int64_t e
    for r in range(min(<Py_ssize_t>PREFETCH_DISTANCE, n_rows)):
        prefetch_row(w, rows[r], d)
    for r in range(n_rows):
        if r + PREFETCH_DISTANCE < n_rows:
            prefetch_row(w, rows[r + PREFETCH_DISTANCE], d)
        for e in range(starts[r], starts[r + 1]):
            out[entries[e]] = row_dot(f, w, rows[r], x + samples[e] * d, d) + bias[rows[r]]


def sampled_dots(const int32_t[::1] rows, const int64_t[::1] starts, const int32_t[::1] entries,
                 const int32_t[::1] samples, const float[:, ::1] x, w, const float[::1] bias,
                 float[::1] out, int n_threads):
    """out[k] = w[j] . x[i] + bias[j] for every active (i, j), k its position in the CSR.

    O(nnz * d). The groups of _sparse_rows.group_columns are processed neuron by neuron, so that a
    row of w is read from memory once per batch, while the samples, few enough, stay in cache.
    """
    cdef Py_ssize_t t, n_rows = rows.shape[0], d = x.shape[1]
    cdef Py_ssize_t run = rows_per_task(n_rows, n_threads)
    cdef const loops_t *f = table()
    cdef typed_array_t ws = typed_array_of(w, False)
    cdef const float *x0 = &x[0, 0] if x.shape[0] and d else NULL
    if n_rows == 0:
        return
    for t in prange((n_rows + run - 1) // run, nogil=True, schedule="dynamic", chunksize=1,
                    num_threads=n_threads):
        _dots_of_neurons(f, &ws, &rows[t * run], &starts[t * run], min(run, n_rows - t * run),
                         &bias[0], &entries[0], &samples[0], x0, d, &out[0])


cdef void _sparse_dots_of_neuron(const loops_t *f, const float *w, float bias,
                                 const int32_t *entries, const int32_t *samples, Py_ssize_t n,
                                 const int64_t *x_indptr, const int32_t *x_indices,
                                 const float *x_data, float *out) noexcept nogil:
    cdef Py_ssize_t e
    cdef int64_t first
    for e in range(n):
        first = x_indptr[samples[e]]
        out[entries[e]] = bias + f.gather_dot(x_data + first, x_indices + first,
                                              x_indptr[samples[e] + 1] - first, w)


def sampled_dots_csr(const int32_t[::1] rows, const int64_t[::1] starts, const int32_t[::1] entries,
                     const int32_t[::1] samples, const int64_t[::1] x_indptr,
                     const int32_t[::1] x_indices, const float[::1] x_data, w,
                     const float[::1] bias, float[::1] out, int n_threads):
    """sampled_dots for a sparse x: active outputs from active inputs.   O(sum nnz_i * nnz(x_i))

    A bfloat16 row is first converted to float32, for all samples: O(len(rows) * d) more.
    """
    cdef Py_ssize_t r, n_rows = rows.shape[0], d = w.shape[1]
    cdef const loops_t *f = table()
    cdef typed_array_t ws = typed_array_of(w, False)
    cdef const int32_t *x_index = &x_indices[0] if x_indices.shape[0] else NULL
    cdef const float *x_value = &x_data[0] if x_indices.shape[0] else NULL
    cdef float *wide = NULL
    cdef int thread

    if n_rows == 0:
        return
    if ws.dtype == DTYPE_BFLOAT16:
        wide = <float *>malloc((n_threads * d + 1) * sizeof(float))
        if wide == NULL:
            raise MemoryError()

    for r in prange(n_rows, nogil=True, schedule="dynamic", chunksize=16, num_threads=n_threads):
        thread = threadid()
        _sparse_dots_of_neuron(f, row_of(f, &ws, rows[r], d, offset_or_null(wide, thread * d)),
                               bias[rows[r]], &entries[starts[r]], &samples[starts[r]],
                               starts[r + 1] - starts[r], &x_indptr[0], x_index, x_value, &out[0])
    free(wide)


cdef void _weighted_row(const loops_t *f, const int32_t *indices, const float *data, Py_ssize_t n,
                        const typed_array_t *w, const float *bias, Py_ssize_t d,
                        float *out) noexcept nogil:
    cdef Py_ssize_t k
    if bias != NULL:
        memcpy(out, bias, d * sizeof(float))
    else:
        memset(out, 0, d * sizeof(float))
    for k in range(n):
        if k + PREFETCH_DISTANCE < n:
            prefetch_row(w, indices[k + PREFETCH_DISTANCE], d)
        if w.dtype == DTYPE_BFLOAT16:
            f.axpy_bfloat16(data[k], <const uint16_t *>w.data + indices[k] * d, out, d)
        else:
            f.axpy(data[k], <const float *>w.data + indices[k] * d, out, d)


def weighted_rows(const int64_t[::1] indptr, const int32_t[::1] indices, const float[::1] data, w,
                  const float[::1] bias, float[:, ::1] out, int n_threads):
    """out[i] = bias + sum_k data[k] w[indices[k]] over the entries k of row i.

    bias may be empty. Forward: a sparse input reads one contiguous row of input-major weights per
    feature. Backward: dX[i] = sum over the active neurons of d_out times their weights. O(nnz * d)
    """
    cdef Py_ssize_t i, n = out.shape[0], d = out.shape[1]
    cdef const loops_t *f = table()
    cdef const int32_t *index = &indices[0] if indices.shape[0] else NULL
    cdef const float *value = &data[0] if indices.shape[0] else NULL
    cdef typed_array_t ws = typed_array_of(w, False)
    cdef const float *b = &bias[0] if bias.shape[0] else NULL
    if n == 0 or d == 0:
        return
    for i in prange(n, nogil=True, schedule="dynamic", chunksize=4, num_threads=n_threads):
        _weighted_row(f, index + indptr[i], value + indptr[i], indptr[i + 1] - indptr[i], &ws, b, d,
                      &out[i, 0])


cdef enum:
    N_PARTIAL_SUMS = 16  # at most; independent of n_threads, so that the result is too
    MIN_NEURONS_PER_SUM = 32


cdef void _columns_of_neuron(const loops_t *f, const float *w, const int32_t *entries,
                             const int32_t *samples, Py_ssize_t n, const float *data,
                             const int64_t *x_indptr, const int32_t *x_indices,
                             float *out) noexcept nogil:
    cdef Py_ssize_t e
    cdef int64_t first
    for e in range(n):
        first = x_indptr[samples[e]]
        f.gather_axpy(data[entries[e]], w, x_indices + first, out + first,
                      x_indptr[samples[e] + 1] - first)


cdef void _columns_of_part(const loops_t *f, const typed_array_t *w, Py_ssize_t d,
                           const int32_t *rows, const int64_t *starts, Py_ssize_t n_rows,
                           const int32_t *entries, const int32_t *samples, const float *data,
                           const int64_t *x_indptr, const int32_t *x_indices, float *wide,
                           float *out) noexcept nogil:
    cdef Py_ssize_t r
    for r in range(n_rows):
        _columns_of_neuron(f, row_of(f, w, rows[r], d, wide), entries + starts[r],
                           samples + starts[r], starts[r + 1] - starts[r], data, x_indptr,
                           x_indices, out)


def sampled_columns(const int32_t[::1] rows, const int64_t[::1] starts, const int32_t[::1] entries,
                    const int32_t[::1] samples, const float[::1] data, w,
                    const int64_t[::1] x_indptr, const int32_t[::1] x_indices, float[::1] out,
                    int n_threads):
    """out[p] = sum_k data[k] w[indices[k], x_indices[p]] over the entries k of S in the row of p.

    dX if the input is sparse too: only at the entries that the input stores. O(sum nnz_i *
    nnz(x_i)); each bfloat16 row of w is first converted to float32, once.

    The groups of _sparse_rows.group_columns are processed neuron by neuron, so that a row of w is
    read from memory once per batch: sample by sample, a wide layer would read each row as often as
    it is active, one cache line per entry. Up to 16 parts of the neurons are summed separately and
    added up in order.
    """
    cdef Py_ssize_t t, p, n_rows = rows.shape[0], d = w.shape[1], nnz = x_indices.shape[0]
    cdef Py_ssize_t n_parts = max(1, min(<Py_ssize_t>N_PARTIAL_SUMS, n_rows // MIN_NEURONS_PER_SUM))
    cdef Py_ssize_t run = 4096
    cdef Py_ssize_t size = (n_rows + n_parts - 1) // n_parts
    cdef const loops_t *f = table()
    cdef typed_array_t ws = typed_array_of(w, False)
    cdef float *parts
    cdef float *wide = NULL

    if nnz == 0:
        return
    if n_rows == 0:
        out[:] = 0
        return

    n_parts = (n_rows + size - 1) // size
    parts = <float *>calloc(n_parts * nnz, sizeof(float))
    if ws.dtype == DTYPE_BFLOAT16:
        wide = <float *>malloc((n_threads * d + 1) * sizeof(float))
    if parts == NULL or (wide == NULL and ws.dtype == DTYPE_BFLOAT16):
        free(parts)
        free(wide)
        raise MemoryError()

    for t in prange(n_parts, nogil=True, schedule="dynamic", chunksize=1, num_threads=n_threads):
        _columns_of_part(f, &ws, d, &rows[t * size], &starts[t * size],
                         min(size, n_rows - t * size), &entries[0], &samples[0], &data[0],
                         &x_indptr[0], &x_indices[0], offset_or_null(wide, threadid() * d),
                         parts + t * nnz)

    for p in prange((nnz + run - 1) // run, nogil=True, schedule="static", num_threads=n_threads):
        add_partial_sums(f, parts + p * run, n_parts, nnz, min(run, nnz - p * run), &out[p * run])
    free(parts)
    free(wide)
