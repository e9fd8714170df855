"""Optimizer steps on the rows that a batch touched.

The gradient of a row is summed and applied at once: weights and moments of a row are read and
written once per batch, and no gradient matrix exists. A row is processed by one thread and summed
in a fixed order, so that the result does not depend on the number of threads. `m` and `v` have the
shape of w, or are None if the rule keeps no such state; a `v` of shape (n, 1) keeps the mean over
each row. Each of the three is float32 or, as uint16, bfloat16 (_typed_arrays), which is rounded at
random.
"""
from cython.parallel cimport prange, threadid
from libc.math cimport sqrt
from libc.stdint cimport int32_t, int64_t, uint16_t, uint32_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from ._groups cimport sum_rows, sum_rows_csr
from ._scratch cimport aligned_size, free_aligned, malloc_aligned
from ._simd cimport (
    DTYPE_BFLOAT16, DTYPE_FLOAT32, DTYPE_FLOAT32_PER_ROW, DTYPE_NONE, RULE_ADAM, RULE_SGD, loops_t,
    prefetch_run, rule_t, table, typed_array_t,
)
from ._typed_arrays cimport PREFETCH_DISTANCE, prefetch_row, rows_per_task, typed_array_of


cdef class Rule:
    """The parts of an optimizer's step that do not depend on the row, computed in advance."""


def sgd(float lr, float momentum, bint nesterov, float decay, int64_t step=0):
    """g' = g + decay w;  m = momentum m + g';  w -= lr (g' + momentum m if nesterov else m)"""
    cdef Rule r = Rule()
    r.rule.kind = RULE_SGD
    r.rule.lr, r.rule.momentum, r.rule.nesterov, r.rule.decay = lr, momentum, nesterov, decay
    r.rule.key = _key(step)
    return r


cdef uint32_t _key(int64_t step) noexcept:
    # Keys of successive steps are far apart: random numbers are a mix of key + position.
    return <uint32_t>step * 0x9E3779B1u


cdef double _power(double x, int64_t n) noexcept:
    # x^n by products: pow differs by processor
    cdef double power = 1
    while n:
        if n & 1:
            power *= x
        x *= x
        n >>= 1
    return power


def adam(double lr, double beta1, double beta2, double eps, double decay, int64_t step):
    """m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2;
    w = (1 - lr decay) w - lr m^ / (sqrt(v^) + eps)

    m^ = m / (1 - b1^step), v^ = v / (1 - b2^step) with the step of the whole network, also for rows
    that were not touched before: the semantics of torch.optim.SparseAdam. The decay is AdamW's.
    """
    cdef Rule r = Rule()
    r.rule.kind = RULE_ADAM
    r.rule.beta1, r.rule.beta2, r.rule.eps, r.rule.decay = beta1, beta2, eps, lr * decay
    # The inner loops hold the betas in float32: corrected by the given ones, v^ would be off by
    # 1.3e-5 for beta2 = 0.999 and by 1.4e-3 for 0.99999.
    beta1, beta2 = r.rule.beta1, r.rule.beta2
    r.rule.lr = lr / (1 - _power(beta1, step))
    r.rule.root_scale = 1 / sqrt(1 - _power(beta2, step))
    r.rule.key = _key(step)
    return r


cdef inline void _prefetch(const typed_array_t *w, const typed_array_t *m, const typed_array_t *v,
                           Py_ssize_t row, Py_ssize_t d) noexcept nogil:
    prefetch_row(w, row, d)
    prefetch_row(m, row, d)
    prefetch_row(v, row, d)


def update_rows(Rule rule, w, m, v, const int32_t[::1] rows, const float[:, ::1] dw, int n_threads):
    """Apply the gradient dw[r] to row rows[r] (distinct).   O(len(rows) * d)"""
    cdef Py_ssize_t r, n = rows.shape[0], d = dw.shape[1]
    cdef typed_array_t ws = typed_array_of(w, True), ms = typed_array_of(m, True)
    cdef typed_array_t vs = typed_array_of(v, True, d)
    cdef const loops_t *f = table()
    if n == 0 or d == 0:
        return
    for r in prange(n, nogil=True, schedule="static", num_threads=n_threads):
        if r + PREFETCH_DISTANCE < n:
            _prefetch(&ws, &ms, &vs, rows[r + PREFETCH_DISTANCE], d)
        f.update(&rule.rule, &ws, &ms, &vs, rows[r], rows[r] * d, &dw[r, 0], d)


def update_all(Rule rule, w, m, v, const float[::1] dw, int n_threads):
    """Apply a dense gradient to a whole parameter, given as one run of numbers.   O(len(w))"""
    cdef Py_ssize_t r, n = dw.shape[0], chunk = 4096, n_chunks = (n + 4095) // 4096
    cdef typed_array_t ws = typed_array_of(w, True), ms = typed_array_of(m, True)
    cdef typed_array_t vs = typed_array_of(v, True)
    cdef const loops_t *f = table()
    for r in prange(n_chunks, nogil=True, schedule="static", num_threads=n_threads):
        f.update(&rule.rule, &ws, &ms, &vs, r, r * chunk, &dw[r * chunk], min(chunk, n - r * chunk))


cdef void _update_groups(const loops_t *f, const rule_t *rule, const typed_array_t *w,
                         const typed_array_t *m, const typed_array_t *v, Py_ssize_t d,
                         const int32_t *rows, const int64_t *starts, Py_ssize_t n_rows,
                         const int32_t *entries, const int32_t *samples, const float *data,
                         const float *x, float *buffer) noexcept nogil:
    cdef Py_ssize_t r
    for r in range(min(<Py_ssize_t>PREFETCH_DISTANCE, n_rows)):
        _prefetch(w, m, v, rows[r], d)
    for r in range(n_rows):
        if r + PREFETCH_DISTANCE < n_rows:
            _prefetch(w, m, v, rows[r + PREFETCH_DISTANCE], d)
        sum_rows(f, entries + starts[r], samples + starts[r], starts[r + 1] - starts[r], data, x, d,
                 buffer)
        f.update(rule, w, m, v, rows[r], rows[r] * d, buffer, d)


def update_grouped(Rule rule, w, m, v, const int32_t[::1] rows, const int64_t[::1] starts,
                   const int32_t[::1] entries, const int32_t[::1] samples, const float[::1] data,
                   const float[:, ::1] x, int n_threads):
    """Apply the gradient S^T x: row rows[r] gets sum_e data[entries[e]] x[samples[e]].   O(nnz * d)

    The groups are those of _sparse_rows.group_columns. Either S holds d_out over active sets and x
    is the input of the layer, or S is the sparse input and x holds d_out.
    """
    cdef Py_ssize_t t, n_rows = rows.shape[0], d = x.shape[1], size = aligned_size(d)
    cdef Py_ssize_t run = rows_per_task(n_rows, n_threads)
    cdef typed_array_t ws = typed_array_of(w, True), ms = typed_array_of(m, True)
    cdef typed_array_t vs = typed_array_of(v, True, d)
    cdef float *buffers
    cdef const loops_t *f = table()

    if n_rows == 0 or d == 0:
        return

    buffers = <float *>malloc_aligned(n_threads * size * sizeof(float))
    if buffers == NULL:
        raise MemoryError()

    for t in prange((n_rows + run - 1) // run, nogil=True, schedule="dynamic", chunksize=1,
                    num_threads=n_threads):
        _update_groups(f, &rule.rule, &ws, &ms, &vs, d, &rows[t * run], &starts[t * run],
                       min(run, n_rows - t * run), &entries[0], &samples[0], &data[0], &x[0, 0],
                       buffers + threadid() * size)
    free_aligned(buffers)


cdef inline void _gather(const typed_array_t *s, Py_ssize_t row, Py_ssize_t d,
                         const int32_t *columns, Py_ssize_t n, void *out) noexcept nogil:
    # The numbers of a row at some columns, in their dtype; if it has one number for all, that one.
    cdef Py_ssize_t c
    if s.dtype == DTYPE_BFLOAT16:
        for c in range(n):
            (<uint16_t *>out)[c] = (<const uint16_t *>s.data)[row * d + columns[c]]
    elif s.dtype == DTYPE_FLOAT32:
        for c in range(n):
            (<float *>out)[c] = (<const float *>s.data)[row * d + columns[c]]
    elif s.dtype == DTYPE_FLOAT32_PER_ROW:
        (<float *>out)[0] = (<const float *>s.data)[row]


cdef inline void _scatter(const typed_array_t *s, Py_ssize_t row, Py_ssize_t d,
                          const int32_t *columns, Py_ssize_t n, const void *values) noexcept nogil:
    cdef Py_ssize_t c
    if s.dtype == DTYPE_BFLOAT16:
        for c in range(n):
            (<uint16_t *>s.data)[row * d + columns[c]] = (<const uint16_t *>values)[c]
    elif s.dtype == DTYPE_FLOAT32:
        for c in range(n):
            (<float *>s.data)[row * d + columns[c]] = (<const float *>values)[c]
    elif s.dtype == DTYPE_FLOAT32_PER_ROW:
        (<float *>s.data)[row] = (<const float *>values)[0]


cdef inline bint _is_float(const typed_array_t *s) noexcept nogil:
    return s.dtype == DTYPE_FLOAT32 or s.dtype == DTYPE_NONE


cdef inline float *_run(const typed_array_t *s, Py_ssize_t first) noexcept nogil:
    return <float *>s.data + first if s.dtype == DTYPE_FLOAT32 else NULL


cdef void _update_row_csr(const loops_t *f, const rule_t *rule, const typed_array_t *w,
                          const typed_array_t *m, const typed_array_t *v, Py_ssize_t row,
                          Py_ssize_t d, const int32_t *entries, const int32_t *samples,
                          Py_ssize_t n, const float *data, const int64_t *x_indptr,
                          const int32_t *x_indices, const float *x_data,
                          float *buffer) noexcept nogil:
    # Most cache lines of the row are touched: read and write all of it, without collecting columns.
    sum_rows_csr(entries, samples, n, data, x_indptr, x_indices, x_data, d, buffer)
    f.update_touched(rule, _run(w, row * d), _run(m, row * d), _run(v, row * d), buffer, d)


cdef void _update_grouped_csr(const loops_t *f, const rule_t *rule, const typed_array_t *w,
                              const typed_array_t *m, const typed_array_t *v, Py_ssize_t row,
                              Py_ssize_t d, const int32_t *entries, const int32_t *samples,
                              Py_ssize_t n, const float *data, const int64_t *x_indptr,
                              const int32_t *x_indices, const float *x_data, float *buffer,
                              int32_t *columns) noexcept nogil:
    # buffer: the gradient by column (d), then packed g, w, m, v (d each); columns: d marks, d ids
    cdef Py_ssize_t e, c, n_columns = 0, n_kept = 0, most = 0
    cdef int64_t p
    cdef int32_t column
    cdef float a
    cdef int32_t *mark = columns
    cdef int32_t *touched = columns + d

    for e in range(n):
        most += x_indptr[samples[e] + 1] - x_indptr[samples[e]]
    if most > d // 8 and _is_float(w) and _is_float(m) and _is_float(v):
        # a cache line holds 16 floats: from here on nearly every other line is touched
        _update_row_csr(f, rule, w, m, v, row, d, entries, samples, n, data, x_indptr, x_indices,
                        x_data, buffer)
        return

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
        if buffer[column] != 0:
            buffer[d + n_kept] = buffer[column]
            touched[n_kept] = column
            n_kept += 1

    if n_kept:
        _step_packed(f, rule, w, m, v, row, d, touched, n_kept, buffer + d)


cdef void _step_packed(const loops_t *f, const rule_t *rule, const typed_array_t *w,
                       const typed_array_t *m, const typed_array_t *v, Py_ssize_t row, Py_ssize_t d,
                       const int32_t *touched, Py_ssize_t n, float *buffer) noexcept nogil:
    # One step on some columns of a row: their numbers are packed, in their dtype, and written back.
    cdef const typed_array_t *arrays[3]
    cdef typed_array_t packed[3]
    cdef Py_ssize_t k
    arrays[0], arrays[1], arrays[2] = w, m, v
    for k in range(3):
        packed[k].dtype = arrays[k].dtype
        packed[k].data = buffer + (k + 1) * d
        _gather(arrays[k], row, d, touched, n, packed[k].data)
    f.update(rule, &packed[0], &packed[1], &packed[2], 0, 0, buffer, n)
    for k in range(3):
        _scatter(arrays[k], row, d, touched, n, packed[k].data)


def update_grouped_csr(Rule rule, w, m, v, const int32_t[::1] rows, const int64_t[::1] starts,
                       const int32_t[::1] entries, const int32_t[::1] samples,
                       const float[::1] data, const int64_t[::1] x_indptr,
                       const int32_t[::1] x_indices, const float[::1] x_data, int n_threads):
    """update_grouped for a sparse x: only the weights (active output) x (active input) are touched.

    A weight whose gradient is zero, as it is if its input was active for no sample of the row,
    keeps its value and its moments, like a row that no sample touched; a v of one number per row
    takes the mean over the others. O(sum nnz_i * nnz(x_i)), and O(d) for a row with d / 8 of them
    """
    cdef Py_ssize_t r, n_rows = rows.shape[0], d = w.shape[1]
    cdef typed_array_t ws = typed_array_of(w, True), ms = typed_array_of(m, True)
    cdef typed_array_t vs = typed_array_of(v, True, d)
    cdef float *buffers
    cdef int32_t *columns
    cdef const loops_t *f = table()
    cdef const int32_t *x_index = &x_indices[0] if x_indices.shape[0] else NULL
    cdef const float *x_value = &x_data[0] if x_indices.shape[0] else NULL
    cdef int thread

    if n_rows == 0 or d == 0:
        return

    buffers = <float *>calloc(n_threads * 5 * d, sizeof(float))
    columns = <int32_t *>calloc(n_threads * 2 * d, sizeof(int32_t))
    if buffers == NULL or columns == NULL:
        free(buffers)
        free(columns)
        raise MemoryError()

    for r in prange(n_rows, nogil=True, schedule="dynamic", chunksize=16, num_threads=n_threads):
        thread = threadid()
        _update_grouped_csr(f, &rule.rule, &ws, &ms, &vs, rows[r], d, &entries[starts[r]],
                            &samples[starts[r]], starts[r + 1] - starts[r], &data[0], &x_indptr[0],
                            x_index, x_value, buffers + thread * 5 * d, columns + thread * 2 * d)
    free(buffers)
    free(columns)


def sum_groups(const int64_t[::1] starts, const int32_t[::1] entries, const float[::1] data,
               float[::1] out):
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


cdef void _sum_run(const loops_t *f, const float *d_out, Py_ssize_t n, Py_ssize_t n_out,
                   Py_ssize_t first, Py_ssize_t width, float *out) noexcept nogil:
    cdef Py_ssize_t i
    memset(out, 0, width * sizeof(float))
    for i in range(n):
        if i + 1 < n:
            prefetch_run(d_out + (i + 1) * n_out + first, width * sizeof(float))
        f.axpy(1, d_out + i * n_out + first, out, width)


cdef enum:
    COLUMNS_PER_TASK = 1024  # 4 KB of sums


def sum_columns(const float[:, ::1] d_out, float[::1] out, int n_threads):
    """out[j] = sum_i d_out[i, j]: the bias gradient of outputs that the batch shares.

    O(n * n_out)
    """
    cdef Py_ssize_t t, n_out = out.shape[0], run = COLUMNS_PER_TASK
    cdef const loops_t *f = table()
    for t in prange((n_out + run - 1) // run, nogil=True, schedule="static", num_threads=n_threads):
        _sum_run(f, &d_out[0, 0] if d_out.shape[0] else NULL, d_out.shape[0], n_out, t * run,
                 min(run, n_out - t * run), &out[t * run])
