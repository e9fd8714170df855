"""Projections to codes: signs (SimHash) and nearest vertices (cross-polytopes).

SimHash: Charikar 2002. Cross-polytopes: Andoni et al. 2015. A kernel with n_probes gives each table
the cheapest codes after the first, see cheapest_codes in hashing.h. The cost of a digit is the
square of the smallest change of the projections that changes it so (Lv et al. 2007, section 4.2).
"""
from cython.parallel cimport prange, threadid
from libc.stdint cimport int32_t
from libc.stdlib cimport free, malloc

from ._order cimport key_id, key_score, score_key, select_smallest, sort_keys
from ._probes cimport cheapest_codes, scratch_at, scratch_size, scratch_t
from ._scratch cimport aligned_size, free_aligned, malloc_aligned
from ._simd cimport DTYPE_FLOAT32, GEMM_MAX_TILE, GEMM_WORK_FLOATS, gemm_t, loops_t, table


# ---- signs

def pack_codes(const float[:, ::1] projections, int n_bits, int32_t[:, ::1] codes, int n_threads):
    """codes[i, t] = sum_b [projections[i, t * n_bits + b] > 0] << b.   O(n * n_tables * n_bits)

    projections is (n, n_tables * n_bits), codes (n, n_tables); n_bits <= 30.
    """
    cdef Py_ssize_t i, n = codes.shape[0], n_tables = codes.shape[1]
    cdef const loops_t *f = table()
    if n == 0 or n_tables == 0:
        return
    for i in prange(n, nogil=True, schedule="static", num_threads=n_threads):
        f.pack_signs(&projections[i, 0], n_bits, n_tables, &codes[i, 0])


cdef enum:
    ROWS_PER_BLOCK = 256  # their projections stay in a core's cache: 172 KB at 168 per row


cdef void _sign_block(const loops_t *f, gemm_t *whole, Py_ssize_t first, Py_ssize_t n, int n_bits,
                      Py_ssize_t n_tables, float *work, int32_t *codes) noexcept nogil:
    cdef gemm_t g = whole[0]
    cdef Py_ssize_t i
    g.m = n
    g.a = g.a + first * g.a_row
    g.c = work + GEMM_WORK_FLOATS
    f.gemm(&g, work)
    for i in range(n):
        f.pack_signs(g.c + i * g.n, n_bits, n_tables, codes + (first + i) * n_tables)


cdef Py_ssize_t _block_length(Py_ssize_t n, int n_threads) noexcept nogil:
    # the same number of blocks for each thread, and whole tiles
    cdef Py_ssize_t n_blocks = max(<Py_ssize_t>1, (n + ROWS_PER_BLOCK - 1) // ROWS_PER_BLOCK)
    n_blocks = (n_blocks + n_threads - 1) // n_threads * n_threads
    return max(<Py_ssize_t>8, (n + n_blocks * 8 - 1) // (n_blocks * 8) * 8)


def sign_codes(const float[:, ::1] v, const float[:, ::1] planes, int n_bits, int32_t[:, ::1] codes,
               int n_threads, bint in_bfloat16=False):
    """The codes of pack_codes(v planes), without storing the projections.

    v is (n, d), planes (d, n_tables * n_bits), codes (n, n_tables); n_bits <= 30. 2 n d n_tables
    n_bits operations. in_bfloat16 is as for _gemm.matmul.
    """
    cdef gemm_t g
    cdef Py_ssize_t t, n = codes.shape[0], n_tables = codes.shape[1], d = v.shape[1]
    cdef Py_ssize_t block = _block_length(n, n_threads)
    cdef Py_ssize_t size = aligned_size(GEMM_WORK_FLOATS + ROWS_PER_BLOCK * planes.shape[1])
    cdef const loops_t *f = table()
    cdef float *work
    cdef float *packed

    if n == 0 or n_tables == 0:
        return
    if d == 0:
        codes[:, :] = 0
        return

    g.n, g.k = planes.shape[1], d
    g.a, g.a_row, g.a_column = &v[0, 0], d, 1
    g.b, g.b_dtype, g.b_first = &planes[0, 0], DTYPE_FLOAT32, 0
    g.b_row, g.b_column = planes.shape[1], 1
    g.rows, g.gather, g.bias, g.c_row = NULL, 0, NULL, planes.shape[1]
    g.in_bfloat16, g.packed = in_bfloat16, NULL

    work = <float *>malloc_aligned(n_threads * size * sizeof(float))
    packed = <float *>malloc_aligned((d + GEMM_MAX_TILE) * (g.n + GEMM_MAX_TILE) * sizeof(float))
    if work == NULL or packed == NULL:
        free_aligned(work)
        free_aligned(packed)
        raise MemoryError()

    f.pack_whole_b(&g, packed, work)
    g.packed = packed
    for t in prange((n + block - 1) // block, nogil=True, schedule="dynamic", chunksize=1,
                    num_threads=n_threads):
        _sign_block(f, &g, t * block, min(block, n - t * block), n_bits, n_tables,
                    work + threadid() * size, &codes[0, 0])
    free_aligned(packed)
    free_aligned(work)


cdef void _probe_signs(const loops_t *f, const float *p, int n_bits, Py_ssize_t n_tables,
                       char *work, Py_ssize_t n_probes, int32_t *codes) noexcept nogil:
    cdef scratch_t s = scratch_at(work, n_bits, 2, 0, n_probes)
    cdef Py_ssize_t _
    cdef int b
    cdef int32_t code
    for _ in range(n_tables):
        f.pack_signs(p, n_bits, 1, &code)
        for b in range(n_bits):
            s.cost[2 * b], s.cost[2 * b + 1] = 0, <double>p[b] * p[b]
            s.delta[2 * b], s.delta[2 * b + 1] = 0, (code ^ (1 << b)) - code
        cheapest_codes(code, n_bits, 2, s.cost, s.delta, s.order, s.heap, n_probes, codes)
        p += n_bits
        codes += n_probes


def probe_signs(const float[:, ::1] projections, int n_bits, int32_t[:, :, ::1] codes,
                int n_threads):
    """codes[i, t, 0] as in pack_codes; then the codes with bits flipped, the cheapest first.

    The cost of a code is the sum of the squared projections of its flipped bits. projections is (n,
    n_tables * n_bits), codes (n, n_tables, n_probes), n_probes <= 2**n_bits. Per table O(n_bits^2 +
    n_probes log n_probes): bits are sorted by insertion.
    """
    cdef Py_ssize_t i, n = codes.shape[0], n_tables = codes.shape[1], n_probes = codes.shape[2]
    cdef Py_ssize_t size = scratch_size(n_bits, 2, 0, n_probes)
    cdef const loops_t *f = table()
    cdef char *work
    if n == 0 or n_tables == 0:
        return
    work = <char *>malloc(n_threads * size)
    if work == NULL:
        raise MemoryError()
    for i in prange(n, nogil=True, schedule="static", num_threads=n_threads):
        _probe_signs(f, &projections[i, 0], n_bits, n_tables, work + threadid() * size, n_probes,
                     &codes[i, 0, 0])
    free(work)


# ---- vertices of cross-polytopes

cdef void _vertices_row(const loops_t *f, const float *p, Py_ssize_t n_dims, Py_ssize_t n_polytopes,
                        Py_ssize_t n_tables, char *work, Py_ssize_t n_probes,
                        int32_t *codes) noexcept nogil:
    cdef Py_ssize_t width = min(2 * n_dims, n_probes), _, k, c, i, n_keys
    cdef scratch_t s = scratch_at(work, n_polytopes, width, 2 * n_dims, n_probes)
    cdef int32_t code, radix, digit
    cdef bint opposite
    cdef double best

    for _ in range(n_tables):
        code, radix = 0, 1
        for k in range(n_polytopes):
            c = f.largest_magnitude(p, n_dims)
            digit = <int32_t>(2 * c + (p[c] < 0))
            code += radix * digit
            if n_probes > 1:
                # The nearer of two opposite vertices comes first; the other may not be needed.
                n_keys = 0
                for c in range(n_dims):
                    opposite = p[c] < 0
                    s.keys[n_keys] = score_key(-p[c] if opposite else p[c],
                                               <int32_t>(2 * c + opposite))
                    n_keys += 1
                    if width > n_dims:
                        s.keys[n_keys] = score_key(p[c] if opposite else -p[c],
                                                   <int32_t>(2 * c + 1 - opposite))
                        n_keys += 1

                select_smallest(s.keys, n_keys, width)
                sort_keys(s.keys, width)
                best = key_score(s.keys[0])

                # Option 0 is the digit itself: both take the lowest of equally near vertices.
                for i in range(width):
                    s.cost[k * width + i] = ((best - key_score(s.keys[i]))
                                             * (best - key_score(s.keys[i])))
                    s.delta[k * width + i] = radix * (key_id(s.keys[i]) - digit)
            radix *= <int32_t>(2 * n_dims)
            p += n_dims
        cheapest_codes(code, n_polytopes, width, s.cost, s.delta, s.order, s.heap, n_probes, codes)
        codes += n_probes


def nearest_vertices(const float[:, ::1] projections, int n_dims, int n_polytopes,
                     int32_t[:, :, ::1] codes, int n_threads):
    """codes[i, t, 0] = sum_k v_k (2 n_dims)^k, v_k the vertex of polytope k nearest to the row.

    The row is given by n_dims projections per polytope. Vertex 2c is +e_c, vertex 2c + 1 is -e_c;
    of equally near ones the lowest is taken. Further codes ascend by sum_k (p_nearest - p_v)^2, p_v
    the projection on vertex v. projections is (n, n_tables * n_polytopes * n_dims), codes (n,
    n_tables, n_probes), n_probes <= (2 n_dims)^n_polytopes < 2^31. Per table O(n_polytopes * n_dims
    + n_probes log n_probes).
    """
    cdef Py_ssize_t i, n = codes.shape[0], n_tables = codes.shape[1], n_probes = codes.shape[2]
    cdef Py_ssize_t size = scratch_size(n_polytopes, min(2 * n_dims, n_probes), 2 * n_dims,
                                        n_probes)
    cdef const loops_t *f = table()
    cdef char *work
    if n == 0 or n_tables == 0:
        return
    work = <char *>malloc(n_threads * size)
    if work == NULL:
        raise MemoryError()
    for i in prange(n, nogil=True, schedule="static", num_threads=n_threads):
        _vertices_row(f, &projections[i, 0], n_dims, n_polytopes, n_tables,
                      work + threadid() * size, n_probes, &codes[i, 0, 0])
    free(work)
