"""Optimizer steps on the rows that a batch touched: the row's gradient is summed and applied at once.

Weights and moments of a row are read and written once a batch, and no gradient matrix exists. One thread
owns a row and sums it in a fixed order: the result does not depend on the number of threads.
`m` and `v` have the shape of w, or are None where the rule keeps no such state.
"""
from cython.parallel cimport prange, threadid
from libc.stdint cimport int32_t, int64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from ._simd cimport RULE_ADAM, RULE_SGD, leaves_t, prefetch_run, rule_t, table


cdef class Rule:
    """What an optimizer does to a row, with everything worked out that does not depend on the row."""


def sgd(float lr, float momentum, bint nesterov, float decay):
    """g' = g + decay w;  m = momentum m + g';  w -= lr (g' + momentum m if nesterov else m)"""
    cdef Rule r = Rule()
    r.rule.kind = RULE_SGD
    r.rule.lr, r.rule.momentum, r.rule.nesterov, r.rule.decay = lr, momentum, nesterov, decay
    return r


def adam(double lr, double beta1, double beta2, double eps, double decay, int64_t step):
    """m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2;  w = (1 - lr decay) w - lr m^ / (sqrt(v^) + eps)

    m^ = m / (1 - b1^step), v^ = v / (1 - b2^step) with the step of the whole network, also for rows that
    were not touched before: torch.optim.SparseAdam's semantics. The decay is AdamW's.
    """
    cdef Rule r = Rule()
    r.rule.kind = RULE_ADAM
    r.rule.beta1, r.rule.beta2, r.rule.eps, r.rule.decay = beta1, beta2, eps, lr * decay
    # The leaves hold the betas in float32: corrected by the ones asked for, v^ would be off by 1.3e-5 for
    # beta2 = 0.999 and by 1.4e-3 for 0.99999.
    beta1, beta2 = r.rule.beta1, r.rule.beta2
    r.rule.lr = lr / (1 - beta1 ** step)
    r.rule.root_scale = 1 / (1 - beta2 ** step) ** 0.5
    return r


cdef inline void _prefetch(float *w, float *m, float *v, Py_ssize_t row, Py_ssize_t d) noexcept nogil:
    prefetch_run(w + row * d, d * sizeof(float))
    if m != NULL:
        prefetch_run(m + row * d, d * sizeof(float))
    if v != NULL:
        prefetch_run(v + row * d, d * sizeof(float))


def update_rows(Rule rule, float[:, ::1] w, float[:, ::1] m, float[:, ::1] v, const int32_t[::1] rows,
                const float[:, ::1] dw, int n_threads):
    """Apply the gradient dw[r] to row rows[r] (distinct).   O(len(rows) * d)"""
    cdef Py_ssize_t r, n = rows.shape[0], d = w.shape[1]
    cdef float *w0
    cdef float *m0 = first_or_null(m)
    cdef float *v0 = first_or_null(v)
    cdef const leaves_t *f = table()
    if n == 0 or d == 0:
        return
    w0 = &w[0, 0]
    for r in prange(n, nogil=True, schedule="static", num_threads=n_threads):
        if r + 1 < n:
            _prefetch(w0, m0, v0, rows[r + 1], d)
        f.update(&rule.rule, w0 + rows[r] * d, row_or_null(m0, rows[r], d), row_or_null(v0, rows[r], d), &dw[r, 0], d)


def update_all(Rule rule, float[::1] w, float[::1] m, float[::1] v, const float[::1] dw, int n_threads):
    """Apply a dense gradient to all of a parameter, seen as one run of numbers.   O(len(w))"""
    cdef Py_ssize_t r, n = w.shape[0], chunk = 4096, n_chunks = (n + 4095) // 4096
    cdef const leaves_t *f = table()
    cdef float *m0 = &m[0] if m is not None and n else NULL
    cdef float *v0 = &v[0] if v is not None and n else NULL
    for r in prange(n_chunks, nogil=True, schedule="static", num_threads=n_threads):
        f.update(&rule.rule, &w[r * chunk], row_or_null(m0, r, chunk), row_or_null(v0, r, chunk), &dw[r * chunk],
                 min(chunk, n - r * chunk))


cdef void _update_grouped(const leaves_t *f, const rule_t *rule, float *w, float *m, float *v, Py_ssize_t d,
                          const int32_t *entries, const int32_t *samples, Py_ssize_t n, const float *data,
                          const float *x, float *buffer) noexcept nogil:
    cdef Py_ssize_t e
    memset(buffer, 0, d * sizeof(float))
    for e in range(n):
        f.axpy(data[entries[e]], x + samples[e] * d, buffer, d)
    f.update(rule, w, m, v, buffer, d)


def update_grouped(Rule rule, float[:, ::1] w, float[:, ::1] m, float[:, ::1] v, const int32_t[::1] rows,
                   const int64_t[::1] starts, const int32_t[::1] entries, const int32_t[::1] samples,
                   const float[::1] data, const float[:, ::1] x, int n_threads):
    """Apply the gradient S^T x: row rows[r] gets sum_e data[entries[e]] x[samples[e]].   O(nnz * d)

    The groups are those of _products.group_columns. S holds d_out over active sets and x the layer's input,
    or S is the sparse input and x holds d_out.
    """
    cdef Py_ssize_t r, n_rows = rows.shape[0], d = w.shape[1]
    cdef float *w0
    cdef float *m0 = first_or_null(m)
    cdef float *v0 = first_or_null(v)
    cdef float *buffers
    cdef const leaves_t *f = table()
    cdef int thread
    if n_rows == 0 or d == 0:
        return
    w0 = &w[0, 0]
    buffers = <float *>calloc(n_threads * d, sizeof(float))
    if buffers == NULL:
        raise MemoryError()
    for r in prange(n_rows, nogil=True, schedule="dynamic", chunksize=16, num_threads=n_threads):
        thread = threadid()
        if r + 1 < n_rows:
            _prefetch(w0, m0, v0, rows[r + 1], d)
        _update_grouped(f, &rule.rule, w0 + rows[r] * d, row_or_null(m0, rows[r], d), row_or_null(v0, rows[r], d), d,
                        &entries[starts[r]], &samples[starts[r]], starts[r + 1] - starts[r], &data[0],
                        &x[0, 0], buffers + thread * d)
    free(buffers)


cdef void _update_row_csr(const leaves_t *f, const rule_t *rule, float *w, float *m, float *v, Py_ssize_t d,
                          const int32_t *entries, const int32_t *samples, Py_ssize_t n, const float *data,
                          const int64_t *x_indptr, const int32_t *x_indices, const float *x_data,
                          float *buffer) noexcept nogil:
    # most cache lines of the row are touched: all of it is read and written, without looking for columns
    cdef Py_ssize_t e
    cdef int64_t p
    cdef float a
    memset(buffer, 0, d * sizeof(float))
    for e in range(n):
        a = data[entries[e]]
        for p in range(x_indptr[samples[e]], x_indptr[samples[e] + 1]):
            buffer[x_indices[p]] += a * x_data[p]
    f.update_touched(rule, w, m, v, buffer, d)


cdef void _update_columns_csr(const leaves_t *f, const rule_t *rule, float *w, float *m, float *v, Py_ssize_t d,
                              const int32_t *entries, const int32_t *samples, Py_ssize_t n, const float *data,
                              const int64_t *x_indptr, const int32_t *x_indices, const float *x_data,
                              float *buffer, int32_t *columns) noexcept nogil:
    # buffer: the gradient by column (d), then packed g, w, m, v (d each); columns: d marks, d ids
    cdef Py_ssize_t e, c, n_columns = 0
    cdef int64_t p
    cdef int32_t column
    cdef float a
    cdef int32_t *mark = columns
    cdef int32_t *touched = columns + d
    cdef float *g_packed = buffer + d
    cdef float *w_packed = buffer + 2 * d
    cdef float *m_packed = buffer + 3 * d if m != NULL else NULL
    cdef float *v_packed = buffer + 4 * d if v != NULL else NULL
    for e in range(n):
        a = data[entries[e]]
        for p in range(x_indptr[samples[e]], x_indptr[samples[e] + 1]):
            column = x_indices[p]
            if not mark[column]:
                mark[column] = 1
                touched[n_columns] = column
                n_columns += 1
                buffer[column] = 0
            buffer[column] += a * x_data[p]
    for c in range(n_columns):
        column = touched[c]
        mark[column] = 0
        g_packed[c] = buffer[column]
        w_packed[c] = w[column]
        if m != NULL:
            m_packed[c] = m[column]
        if v != NULL:
            v_packed[c] = v[column]
    f.update_touched(rule, w_packed, m_packed, v_packed, g_packed, n_columns)
    for c in range(n_columns):
        column = touched[c]
        w[column] = w_packed[c]
        if m != NULL:
            m[column] = m_packed[c]
        if v != NULL:
            v[column] = v_packed[c]


cdef void _update_grouped_csr(const leaves_t *f, const rule_t *rule, float *w, float *m, float *v, Py_ssize_t d,
                              const int32_t *entries, const int32_t *samples, Py_ssize_t n, const float *data,
                              const int64_t *x_indptr, const int32_t *x_indices, const float *x_data,
                              float *buffer, int32_t *columns) noexcept nogil:
    cdef Py_ssize_t e, most = 0
    for e in range(n):
        most += x_indptr[samples[e] + 1] - x_indptr[samples[e]]
    if most > d // 8:  # a line of cache holds 16 floats: by then nearly every other one is touched
        _update_row_csr(f, rule, w, m, v, d, entries, samples, n, data, x_indptr, x_indices, x_data, buffer)
    else:
        _update_columns_csr(f, rule, w, m, v, d, entries, samples, n, data, x_indptr, x_indices, x_data, buffer,
                            columns)


def update_grouped_csr(Rule rule, float[:, ::1] w, float[:, ::1] m, float[:, ::1] v, const int32_t[::1] rows,
                       const int64_t[::1] starts, const int32_t[::1] entries, const int32_t[::1] samples,
                       const float[::1] data, const int64_t[::1] x_indptr, const int32_t[::1] x_indices,
                       const float[::1] x_data, int n_threads):
    """update_grouped for a sparse x: only the weights (active output) x (active input) are read or written.

    A weight whose gradient is zero, as it is where its input was active for no sample of the row, keeps its value and
    its moments, as a row does that no sample touched. O(sum nnz_i * nnz(x_i)), and O(d) for a row with d / 8 of them
    """
    cdef Py_ssize_t r, n_rows = rows.shape[0], d = w.shape[1]
    cdef float *w0
    cdef float *m0 = first_or_null(m)
    cdef float *v0 = first_or_null(v)
    cdef float *buffers
    cdef int32_t *columns
    cdef const leaves_t *f = table()
    cdef const int32_t *x_index = &x_indices[0] if x_indices.shape[0] else NULL
    cdef const float *x_value = &x_data[0] if x_indices.shape[0] else NULL
    cdef int thread
    if n_rows == 0 or d == 0:
        return
    w0 = &w[0, 0]
    buffers = <float *>calloc(n_threads * 5 * d, sizeof(float))
    columns = <int32_t *>calloc(n_threads * 2 * d, sizeof(int32_t))
    if buffers == NULL or columns == NULL:
        free(buffers)
        free(columns)
        raise MemoryError()
    for r in prange(n_rows, nogil=True, schedule="dynamic", chunksize=16, num_threads=n_threads):
        thread = threadid()
        _update_grouped_csr(f, &rule.rule, w0 + rows[r] * d, row_or_null(m0, rows[r], d), row_or_null(v0, rows[r], d),
                            d, &entries[starts[r]], &samples[starts[r]], starts[r + 1] - starts[r], &data[0],
                            &x_indptr[0], x_index, x_value, buffers + thread * 5 * d, columns + thread * 2 * d)
    free(buffers)
    free(columns)


def sum_groups(const int64_t[::1] starts, const int32_t[::1] entries, const float[::1] data, float[::1] out):
    """out[r] = sum_e data[entries[e]]: the bias gradient of the touched rows.   O(nnz)"""
    cdef Py_ssize_t r
    cdef int64_t e
    cdef float s
    with nogil:
        for r in range(out.shape[0]):
            s = 0
            for e in range(starts[r], starts[r + 1]):
                s = s + data[entries[e]]
            out[r] = s
