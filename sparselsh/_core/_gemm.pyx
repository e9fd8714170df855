"""Dense matrix products, also with the active rows of the weights, gathered while they are packed.

Why not BLAS: it has threads of its own, so that two pools contend for the cores in every training
step, and it needs the active rows copied together first. Here all loops share one pool, a row is
gathered where it is packed anyway, and the result is bitwise the same for any number of threads.

    matmul                  c = a b
    active_outputs          z = x w[rows]^T + bias[rows]
    active_input_gradient   dx = dz w[rows]
    segment_input_gradients the same by segments of the rows, one dx each
    active_update           w[rows] <- rule(w[rows], dz^T x), by blocks; the gradient is not stored

With in_bfloat16 the factors of a product are rounded to the nearest bfloat16 while they are packed,
and the sums are in float32: twice as fast at levels that multiply bfloat16 numbers, and right at
each.
"""
from cython.parallel cimport prange, threadid
from libc.stdint cimport int32_t, int64_t

from ._groups cimport NEURONS_PER_BLOCK
from ._parts cimport add_partial_sums
from ._scratch cimport aligned_size, free_aligned, malloc_aligned
from ._simd cimport (
    DTYPE_FLOAT32, GEMM_K, GEMM_MAX_TILE, GEMM_WORK_FLOATS, gemm_t, loops_t, rule_t, table,
    typed_array_t,
)
from ._typed_arrays cimport PREFETCH_DISTANCE, prefetch_row, row_dot, typed_array_of
from ._updates cimport Rule


cdef void _block(const loops_t *f, gemm_t *whole, Py_ssize_t first_row, Py_ssize_t n_rows,
                 Py_ssize_t first_column, Py_ssize_t n_columns, float *work) noexcept nogil:
    # a block of c as a product of its own
    cdef gemm_t g = whole[0]
    g.m, g.n = n_rows, n_columns
    g.a = g.a + first_row * g.a_row
    g.c = g.c + first_row * g.c_row + first_column
    if g.bias != NULL:
        g.bias = g.bias + first_column
    if g.rows != NULL and g.gather == 1:
        g.rows = g.rows + first_column
    else:
        g.b_first = g.b_first + first_column * g.b_column
    f.gemm(&g, work)


cdef int _run(gemm_t *g, bint by_columns, int n_threads) except -1:
    """Compute g, its rows or columns divided equally among the threads."""
    cdef const loops_t *f = table()
    cdef Py_ssize_t total = g.n if by_columns else g.m
    cdef Py_ssize_t size = ((total + n_threads - 1) // n_threads + 31) // 32 * 32  # whole tiles
    cdef Py_ssize_t t, n_parts
    cdef float *work

    if g.m == 0 or g.n == 0:
        return 0

    n_parts = (total + size - 1) // size
    work = <float *>malloc_aligned(n_parts * GEMM_WORK_FLOATS * sizeof(float))
    if work == NULL:
        raise MemoryError()

    for t in prange(n_parts, nogil=True, schedule="static", chunksize=1, num_threads=n_threads):
        if by_columns:
            _block(f, g, 0, g.m, t * size, min(size, total - t * size), work + t * GEMM_WORK_FLOATS)
        else:
            _block(f, g, t * size, min(size, total - t * size), 0, g.n, work + t * GEMM_WORK_FLOATS)
    free_aligned(work)
    return 0


cdef enum:
    MAX_ROWS_FOR_DOTS = 3  # of a; up to here dot products, which pack nothing, beat packed panels
    COLUMNS_PER_TASK = 256  # of c, computed as dot products


cdef void _dots(const loops_t *f, const float *a, Py_ssize_t m, Py_ssize_t k,
                const typed_array_t *b, Py_ssize_t first, Py_ssize_t last, Py_ssize_t n,
                const float *bias, float *c) noexcept nogil:
    cdef Py_ssize_t i, j
    for j in range(first, last):
        for i in range(m):
            c[i * n + j] = row_dot(f, b, j, a + i * k, k) + (bias[j] if bias != NULL else 0)


def matmul(const float[:, ::1] a, bint transpose_a, b, bint transpose_b, const float[::1] bias,
           float[:, ::1] c, int n_threads, bint in_bfloat16=False):
    """c = op(a) op(b) + bias; bias may be empty, b may be bfloat16.   2 m n k operations

    op(a) is (m, k), op(b) is (k, n): each the array or its transpose; c is (m, n).
    """
    cdef gemm_t g
    cdef Py_ssize_t m = c.shape[0], n = c.shape[1], k = a.shape[0] if transpose_a else a.shape[1]
    cdef Py_ssize_t t, run = COLUMNS_PER_TASK
    cdef const loops_t *f
    cdef typed_array_t bs = typed_array_of(b, False)

    if m == 0 or n == 0:
        return

    g.m, g.n, g.k = m, n, k
    g.a = &a[0, 0] if k else NULL
    g.b, g.b_dtype, g.b_first = bs.data, bs.dtype, 0
    g.a_row, g.a_column = a.shape[1], 1
    g.b_row, g.b_column = b.shape[1], 1
    if transpose_a:
        g.a_row, g.a_column = g.a_column, g.a_row
    if transpose_b:
        g.b_row, g.b_column = g.b_column, g.b_row
    g.rows = NULL
    g.gather = 0
    g.bias = &bias[0] if bias.shape[0] else NULL
    g.c = &c[0, 0]
    g.c_row = n
    g.in_bfloat16, g.packed = in_bfloat16, NULL

    if not in_bfloat16 and m <= MAX_ROWS_FOR_DOTS and transpose_b and not transpose_a and k:
        f = table()
        for t in prange((n + run - 1) // run, nogil=True, schedule="static", num_threads=n_threads):
            _dots(f, g.a, m, k, &bs, t * run, min((t + 1) * run, n), n, g.bias, g.c)
        return

    _run(&g, n >= m, n_threads)


def active_outputs(const float[:, ::1] x, w, const int32_t[::1] rows, const float[::1] bias,
                   float[:, ::1] z, int n_threads, bint in_bfloat16=False):
    """z = x w[rows]^T + bias[rows].   2 n len(rows) d operations"""
    cdef gemm_t g
    cdef typed_array_t ws = typed_array_of(w, False)
    cdef Py_ssize_t r, d = x.shape[1]
    cdef float *gathered

    if z.shape[0] == 0 or z.shape[1] == 0:
        return

    gathered = <float *>malloc_aligned(z.shape[1] * sizeof(float))
    if gathered == NULL:
        raise MemoryError()

    for r in range(z.shape[1]):
        gathered[r] = bias[rows[r]]

    g.m, g.n, g.k = z.shape[0], z.shape[1], d
    g.a = &x[0, 0] if d else NULL
    g.a_row, g.a_column = d, 1
    g.b, g.b_dtype, g.b_first = ws.data, ws.dtype, 0
    g.b_row, g.b_column = 1, d
    g.rows = &rows[0]
    g.gather = 1
    g.bias = gathered
    g.c = &z[0, 0]
    g.c_row = z.shape[1]
    g.in_bfloat16, g.packed = in_bfloat16, NULL

    try:
        _run(&g, True, n_threads)
    finally:
        free_aligned(gathered)


cdef enum:
    N_PARTIAL_SUMS = 4  # at most; fixed, so that the result does not depend on n_threads
    MAX_PARTIAL_SUM_FLOATS = 1 << 16  # of dx; larger sums would not stay in the second-level cache


cdef void _partial(const loops_t *f, gemm_t *whole, Py_ssize_t first_row, Py_ssize_t n_rows,
                   Py_ssize_t first, Py_ssize_t k, float *c, float *work) noexcept nogil:
    # some rows of the product, over the terms first : first + k
    cdef gemm_t g = whole[0]
    g.m, g.k = n_rows, k
    g.a = g.a + first_row * g.a_row + first * g.a_column
    g.rows = g.rows + first
    g.c = c + first_row * g.c_row
    f.gemm(&g, work)


def active_input_gradient(const float[:, ::1] dz, w, const int32_t[::1] rows, float[:, ::1] dx,
                          int n_threads, bint in_bfloat16=False):
    """dx = dz w[rows].   2 n len(rows) d operations

    From 1,024 neurons on, and for a small dx, the threads take parts of the neurons, and rows of dz
    if there are more threads than parts: if only the rows of dz were divided, each thread would
    pack all of w[rows].
    """
    cdef gemm_t g
    cdef typed_array_t ws = typed_array_of(w, False)
    cdef Py_ssize_t t, n = dx.shape[0], d = dx.shape[1], k = dz.shape[1], size = GEMM_WORK_FLOATS
    cdef Py_ssize_t n_bands, band, part, n_parts
    cdef const loops_t *f = table()
    cdef float *work
    cdef float *sums

    if n == 0 or d == 0:
        return

    g.m, g.n, g.k = n, d, k
    g.a = &dz[0, 0] if k else NULL
    g.a_row, g.a_column = k, 1
    g.b, g.b_dtype, g.b_first = ws.data, ws.dtype, 0
    g.b_row, g.b_column = d, 1
    g.rows = &rows[0] if k else NULL
    g.gather = 2
    g.bias = NULL
    g.c = &dx[0, 0]
    g.c_row = d
    g.in_bfloat16, g.packed = in_bfloat16, NULL

    if k < N_PARTIAL_SUMS * GEMM_K or n * d > MAX_PARTIAL_SUM_FLOATS:
        _run(&g, False, n_threads)
        return

    part = (k + N_PARTIAL_SUMS * GEMM_K - 1) // (N_PARTIAL_SUMS * GEMM_K) * GEMM_K  # whole panels
    n_parts = (k + part - 1) // part
    n_bands = (n_threads + n_parts - 1) // n_parts
    band = ((n + n_bands - 1) // n_bands + 7) // 8 * 8
    n_bands = (n + band - 1) // band

    work = <float *>malloc_aligned(n_threads * size * sizeof(float))
    sums = <float *>malloc_aligned(n_parts * aligned_size(n * d) * sizeof(float))
    if work == NULL or sums == NULL:
        free_aligned(work)
        free_aligned(sums)
        raise MemoryError()

    for t in prange(n_parts * n_bands, nogil=True, schedule="dynamic", chunksize=1,
                    num_threads=n_threads):
        _partial(f, &g, t % n_bands * band, min(band, n - t % n_bands * band), t // n_bands * part,
                 min(part, k - t // n_bands * part), sums + t // n_bands * aligned_size(n * d),
                 work + threadid() * size)

    for t in prange(n, nogil=True, schedule="static", num_threads=n_threads):
        add_partial_sums(f, sums + t * d, n_parts, aligned_size(n * d), d, &dx[t, 0])
    free_aligned(work)
    free_aligned(sums)


def segment_input_gradients(const float[:, ::1] dz, w, const int32_t[::1] rows,
                            const int64_t[::1] bounds, float[:, :, ::1] out, int n_threads,
                            bint in_bfloat16=False):
    """out[s] = dz[:, a:b] w[rows[a:b]] with a, b = bounds[s], bounds[s + 1].

    The input gradient by segments of the neurons, to be added in an order that the caller chooses.
    2 n len(rows) d operations.
    """
    cdef gemm_t g
    cdef typed_array_t ws = typed_array_of(w, False)
    cdef Py_ssize_t t, n = dz.shape[0], d = out.shape[2], k = dz.shape[1]
    cdef Py_ssize_t n_segments = out.shape[0], n_bands, band, size = GEMM_WORK_FLOATS
    cdef const loops_t *f = table()
    cdef float *work

    if n == 0 or d == 0 or n_segments == 0:
        return
    if k == 0:
        out[:, :, :] = 0
        return

    g.m, g.n, g.k = n, d, k
    g.a = &dz[0, 0]
    g.a_row, g.a_column = k, 1
    g.b, g.b_dtype, g.b_first = ws.data, ws.dtype, 0
    g.b_row, g.b_column = d, 1
    g.rows = &rows[0]
    g.gather = 2
    g.bias = NULL
    g.c = NULL
    g.c_row = d
    g.in_bfloat16, g.packed = in_bfloat16, NULL

    n_bands = (n_threads + n_segments - 1) // n_segments
    band = ((n + n_bands - 1) // n_bands + 7) // 8 * 8
    n_bands = (n + band - 1) // band
    work = <float *>malloc_aligned(n_threads * size * sizeof(float))
    if work == NULL:
        raise MemoryError()
    for t in prange(n_segments * n_bands, nogil=True, schedule="dynamic", chunksize=1,
                    num_threads=n_threads):
        _partial(f, &g, t % n_bands * band, min(band, n - t % n_bands * band), bounds[t // n_bands],
                 bounds[t // n_bands + 1] - bounds[t // n_bands], &out[t // n_bands, 0, 0],
                 work + threadid() * size)
    free_aligned(work)


cdef void _update_block(const loops_t *f, const rule_t *rule, gemm_t *whole, Py_ssize_t first,
                        Py_ssize_t n, const int32_t *rows, const typed_array_t *w,
                        const typed_array_t *m, const typed_array_t *v, float *work) noexcept nogil:
    cdef gemm_t g = whole[0]
    cdef Py_ssize_t r, d = g.n
    cdef float *dw = work + GEMM_WORK_FLOATS
    g.m = n
    g.a = g.a + first * g.a_row
    g.c = dw
    f.gemm(&g, work)
    for r in range(first, first + n):
        if r + PREFETCH_DISTANCE < first + n:
            prefetch_row(w, rows[r + PREFETCH_DISTANCE], d)
            prefetch_row(m, rows[r + PREFETCH_DISTANCE], d)
            prefetch_row(v, rows[r + PREFETCH_DISTANCE], d)
        f.update(rule, w, m, v, rows[r], rows[r] * d, dw + (r - first) * d, d)


def active_update(Rule rule, w, m, v, const int32_t[::1] rows, const float[:, ::1] dz,
                  const float[:, ::1] x, int n_threads, bint in_bfloat16=False):
    """Apply the gradient dz^T x to the rows (distinct) of w.   2 n len(rows) d operations

    dz is (n, len(rows)), x (n, d).
    """
    cdef gemm_t g
    cdef Py_ssize_t t, n_rows = rows.shape[0], d = x.shape[1]
    cdef Py_ssize_t size = aligned_size(GEMM_WORK_FLOATS + NEURONS_PER_BLOCK * x.shape[1])
    cdef Py_ssize_t n_blocks = (n_rows + NEURONS_PER_BLOCK - 1) // NEURONS_PER_BLOCK
    cdef Py_ssize_t block = NEURONS_PER_BLOCK
    cdef typed_array_t ws = typed_array_of(w, True), ms = typed_array_of(m, True)
    cdef typed_array_t vs = typed_array_of(v, True, d)
    cdef const loops_t *f = table()
    cdef float *work
    cdef float *packed
    cdef int thread

    if n_rows == 0 or d == 0:
        return

    g.n, g.k = d, dz.shape[0]
    g.a = &dz[0, 0] if g.k else NULL
    g.a_row, g.a_column = 1, n_rows
    g.b, g.b_dtype, g.b_first = &x[0, 0] if g.k else NULL, DTYPE_FLOAT32, 0
    g.b_row, g.b_column = d, 1
    g.rows = NULL
    g.gather = 0
    g.bias = NULL
    g.c_row = d
    g.in_bfloat16, g.packed = in_bfloat16, NULL

    work = <float *>malloc_aligned(n_threads * size * sizeof(float))
    packed = <float *>malloc_aligned((g.k + GEMM_MAX_TILE) * (d + GEMM_MAX_TILE) * sizeof(float))
    if work == NULL or packed == NULL:
        free_aligned(work)
        free_aligned(packed)
        raise MemoryError()

    f.pack_whole_b(&g, packed, work)
    g.packed = packed
    for t in prange(n_blocks, nogil=True, schedule="dynamic", chunksize=1, num_threads=n_threads):
        thread = threadid()
        _update_block(f, &rule.rule, &g, t * block, min(block, n_rows - t * block), &rows[0], &ws,
                      &ms, &vs, work + thread * size)
    free_aligned(packed)
    free_aligned(work)
