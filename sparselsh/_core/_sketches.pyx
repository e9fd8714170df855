"""One-bit sketches of the neurons and the scan that ranks them.

The estimator is that of RaBitQ (Gao and Long 2024). The sketch of a vector v is the signs s of a
rotation R v; the query stays real. Up to a factor,

    <q, v>  ~  f * <R q, s>,   f = |v|^2 / <R v, s>

The signs of 32 neurons are stored nibble by nibble (sketch_scan in simd/loops.h), so that one byte
shuffle looks up, for 16 neurons, a table of the 16 sums that a nibble can give, in 8 bits.
"""
from cython.parallel cimport prange, threadid
from libc.math cimport INFINITY, fabs
from libc.stdint cimport int32_t, uint8_t, uint64_t
from libc.stdlib cimport free, malloc

from ._order cimport top_begin, top_end, top_floor, top_push, top_t
from ._quantized cimport quantized_dots, quantized_rows_of, quantized_rows_t
from ._simd cimport SKETCH_BLOCK_NEURONS, loops_t, table

cdef enum:
    QUERIES_PER_SCAN = 8  # whose tables stay in the first-level cache with the blocks of a scan

NEURONS_PER_BLOCK = SKETCH_BLOCK_NEURONS


def pack(const float[:, ::1] rotated, const int32_t[::1] rows, uint8_t[:, ::1] blocks):
    """Write the signs of rotated[r], (n_bits,), as the sketch of neuron rows[r].

    blocks is (n_blocks, n_bits // 4 * 16), n_bits a multiple of 16. Neighbours share bytes, hence
    one thread. O(len(rows) * n_bits)
    """
    cdef Py_ssize_t r, _g, n_groups = rotated.shape[1] // 4
    cdef int32_t place
    cdef uint8_t nibble, keep
    cdef uint8_t *byte
    cdef const float *v
    cdef int shift

    with nogil:
        for r in range(rows.shape[0]):
            place = rows[r] % SKETCH_BLOCK_NEURONS
            shift = 4 if place >= 16 else 0
            keep = <uint8_t>(0x0F if shift else 0xF0)
            byte = &blocks[rows[r] // SKETCH_BLOCK_NEURONS, place % 16]
            v = &rotated[r, 0]
            for _g in range(n_groups):
                nibble = <uint8_t>((v[0] > 0) | (v[1] > 0) << 1 | (v[2] > 0) << 2 | (v[3] > 0) << 3)
                byte[0] = <uint8_t>((byte[0] & keep) | nibble << shift)
                byte += 16
                v += 4


cdef double _refine(const loops_t *f, const float *v, const float[:, ::1] gram, float *s, float *gs,
                    int n_sweeps, double *product) noexcept nogil:
    # `refine` for one row; returns <s, G s>
    cdef Py_ssize_t i, n = gram.shape[0]
    cdef double p = 0, square = 0, p_new, square_new
    cdef int _sweep
    for i in range(n):
        p += s[i] * <double>v[i]
        square += s[i] * <double>gs[i]
    for _sweep in range(n_sweeps):
        for i in range(n):
            p_new = p - 2 * s[i] * <double>v[i]
            square_new = square - 4 * s[i] * <double>gs[i] + 4 * <double>gram[i, i]
            # the squares of the cosines, and a margin for rounding; a square is never 0 but by it
            if p_new > 0 and p_new * p_new * square > p * p * square_new * (1 + 1e-6):
                f.axpy(-2 * s[i], &gram[i, 0], gs, n)
                s[i] = -s[i]
                p, square = p_new, square_new
    product[0] = p
    return square


def refine(const float[:, ::1] rotated, const float[:, ::1] gram, float[:, ::1] signs,
           float[:, ::1] sums, double[::1] products, double[::1] squares, int n_sweeps,
           int n_threads):
    """Change signs s of rows until R^T s has a smaller angle to v, for each v.

    More signs than dimensions do not say most of v where each is that of a coordinate of R v:
    another one may be nearer to v together with the others. Each sign of a row is changed, in turn,
    if that makes the cosine of R^T s and v larger (iterated conditional modes: Besag 1986).

    rotated, (n, n_bits), is R v; gram is R R^T; signs, (n, n_bits), are 1 and -1, those of rotated,
    and sums is signs @ gram. Both are changed. products, (n,), are <R^T s, v> and squares,
    (n,), |R^T s|^2 of the result.
    O(n * (n_sweeps * n_bits + changes * n_bits))
    """
    cdef Py_ssize_t r
    cdef const loops_t *f = table()
    for r in prange(rotated.shape[0], nogil=True, schedule="static", num_threads=n_threads):
        squares[r] = _refine(f, &rotated[r, 0], gram, &signs[r, 0], &sums[r, 0], n_sweeps,
                             &products[r])


cdef void tabulate(const float *q, Py_ssize_t n_groups, uint8_t *lut, float *a,
                   float *b) noexcept nogil:
    # lut[g][nibble] = round((sum of +-q over the nibble + spread_g) * scale), 0..255;
    # <R q, s> = sum_g lut / scale - sum_g spread_g
    cdef Py_ssize_t g
    cdef int nibble
    cdef float spread, widest = 0, total = 0, scale, low, high
    cdef float pair[2][4]

    for g in range(n_groups):
        spread = <float>(fabs(q[4 * g]) + fabs(q[4 * g + 1]) + fabs(q[4 * g + 2])
                         + fabs(q[4 * g + 3]))
        total += spread
        widest = spread if spread > widest else widest

    scale = 127.5 / widest if widest > 0 else 0
    for g in range(n_groups):
        spread = <float>(fabs(q[4 * g]) + fabs(q[4 * g + 1]) + fabs(q[4 * g + 2])
                         + fabs(q[4 * g + 3]))
        for nibble in range(4):
            low, high = 2 * (nibble & 1) - 1, 2 * (nibble >> 1) - 1
            pair[0][nibble] = low * q[4 * g] + high * q[4 * g + 1]
            pair[1][nibble] = low * q[4 * g + 2] + high * q[4 * g + 3] + spread
        for nibble in range(16):
            lut[16 * g + nibble] = <uint8_t>((pair[0][nibble & 3] + pair[1][nibble >> 2]) * scale
                                             + 0.5)
    a[0] = 1 / scale if scale > 0 else 0
    b[0] = -total


cdef void _scan(const loops_t *f, const float *queries, Py_ssize_t n_queries,
                const uint8_t *blocks, Py_ssize_t n_blocks, Py_ssize_t n_groups,
                const float *factors, const float *biases, const int32_t *ids, Py_ssize_t n,
                uint8_t *luts, float *scores, int32_t *found, uint64_t *keys, Py_ssize_t n_keys,
                Py_ssize_t n_best, int32_t *out_ids, float *out_scores) noexcept nogil:
    # for at most QUERIES_PER_SCAN queries
    cdef Py_ssize_t block = 0, first, n_chunk, i, k, n_found
    cdef float[QUERIES_PER_SCAN] a
    cdef float[QUERIES_PER_SCAN] b
    cdef top_t[QUERIES_PER_SCAN] tops
    for i in range(n_queries):
        tops[i] = top_begin(keys + i * n_keys, n_keys, n_best)
        tabulate(queries + i * n_groups * 4, n_groups, luts + i * n_groups * 16, &a[i], &b[i])
    while block < n_blocks:
        first = block * <Py_ssize_t>SKETCH_BLOCK_NEURONS
        n_chunk = min(<Py_ssize_t>BLOCKS_PER_SCAN, n_blocks - block)
        for i in range(n_queries):
            n_found = f.sketch_scan(blocks + block * n_groups * 16, n_chunk, n_groups,
                                    luts + i * n_groups * 16, a[i], b[i], factors + first,
                                    biases + first if biases != NULL else NULL, 1, NULL, 0,
                                    top_floor(&tops[i]), found, scores)
            for k in range(n_found):
                if first + found[k] < n and ids[first + found[k]] >= 0:
                    top_push(&tops[i], scores[k], ids[first + found[k]])
        block += n_chunk
    for i in range(n_queries):
        top_end(&tops[i], False, out_ids + i * n_best, out_scores + i * n_best)


def scan(const float[:, ::1] queries, const uint8_t[:, ::1] blocks, const float[::1] factors,
         biases, const int32_t[::1] ids, Py_ssize_t n, int32_t[:, ::1] out_ids,
         float[:, ::1] out_scores, int n_threads):
    """The neurons with the largest approximate scores for each rotated query, in any order.

    queries is (n_queries, n_bits), rotated. Slot s < n of blocks and factors, (n_blocks * 32,),
    holds neuron ids[s], or none if that is -1. biases, one per slot, are added to the scores; None
    for none. out_ids and out_scores are (n_queries, n_best), filled up with -1 and -inf. Which
    neurons are found does not depend on their order. Per query O(n * n_bits / 128) byte shuffles.
    """
    cdef Py_ssize_t i, n_queries = queries.shape[0], n_best = out_ids.shape[1]
    cdef Py_ssize_t n_groups = queries.shape[1] // 4, n_keys = 3 * n_best + 64
    cdef Py_ssize_t most = max(min(<Py_ssize_t>QUERIES_PER_SCAN, n_queries // n_threads), 1)
    cdef Py_ssize_t n_tasks = (n_queries + most - 1) // most
    cdef const loops_t *f = table()
    cdef int thread
    cdef uint8_t *luts
    cdef float *scores
    cdef int32_t *found
    cdef uint64_t *keys
    cdef Py_ssize_t n_blocks = (n + SKETCH_BLOCK_NEURONS - 1) // SKETCH_BLOCK_NEURONS
    cdef const float[::1] bias_view
    cdef const float *bias = NULL

    if n_queries == 0 or n_best == 0:
        return
    if n == 0:
        out_ids[:, :] = -1
        out_scores[:, :] = -INFINITY
        return

    if biases is not None:
        bias_view = biases
        bias = &bias_view[0]
    luts = <uint8_t *>malloc(n_threads * most * n_groups * 16)
    scores = <float *>malloc(n_threads * SCAN_BUFFER_LENGTH * sizeof(float))
    found = <int32_t *>malloc(n_threads * SCAN_BUFFER_LENGTH * sizeof(int32_t))
    keys = <uint64_t *>malloc(n_threads * most * n_keys * sizeof(uint64_t))

    try:
        if luts == NULL or scores == NULL or found == NULL or keys == NULL:
            raise MemoryError()
        for i in prange(n_tasks, nogil=True, schedule="dynamic", num_threads=n_threads):
            thread = threadid()
            _scan(f, &queries[i * most, 0], min(most, n_queries - i * most), &blocks[0, 0],
                  n_blocks, n_groups, &factors[0], bias, &ids[0], n,
                  luts + thread * most * n_groups * 16, scores + thread * SCAN_BUFFER_LENGTH,
                  found + thread * SCAN_BUFFER_LENGTH, keys + thread * most * n_keys, n_keys,
                  n_best, &out_ids[i * most, 0], &out_scores[i * most, 0])
    finally:
        free(luts)
        free(scores)
        free(found)
        free(keys)


cdef void _best_of(const loops_t *f, const int32_t *ids, Py_ssize_t n, const float *x,
                   const quantized_rows_t *w, const float *bias, int32_t *known, float *scores,
                   uint64_t *keys, Py_ssize_t k, int32_t *out_ids,
                   float *out_scores) noexcept nogil:
    # the best k of the ids, -1 for none; known and scores hold n numbers, keys n + k + 1
    cdef Py_ssize_t c, n_known = 0
    cdef top_t top = top_begin(keys, n + k + 1, k)
    for c in range(n):
        known[n_known] = ids[c]
        n_known += ids[c] >= 0
    quantized_dots(f, w, known, n_known, x, scores)
    for c in range(n_known):
        top_push(&top, scores[c] + bias[known[c]], known[c])
    top_end(&top, True, out_ids, out_scores)


def rerank(const int32_t[:, ::1] ids, const float[:, ::1] x, w, scales, const float[::1] bias,
           int32_t[:, ::1] out_ids, float[:, ::1] out_scores, int n_threads):
    """The k candidates with the largest w[j] . x[i] + bias[j], best first; ties by ascending id.

    ids is (n_queries, n_candidates), -1 for none; out_ids and out_scores are (n_queries, k). w is
    (n_neurons, d): float32, or bfloat16 or int8 with scales as in _quantized. Per query
    O(n_candidates * d), bound by reading random rows of w.
    """
    cdef Py_ssize_t i, n = ids.shape[0], n_candidates = ids.shape[1], k = out_ids.shape[1]
    cdef Py_ssize_t n_keys = n_candidates + k + 1
    cdef const loops_t *f = table()
    cdef quantized_rows_t s
    cdef uint64_t *keys
    cdef float *products
    cdef int32_t *known
    cdef int thread

    quantized_rows_of(w, scales, &s)
    if n == 0 or k == 0:
        return
    if n_candidates == 0 or s.n == 0 or s.d == 0:
        out_ids[:, :] = -1
        out_scores[:, :] = -INFINITY
        return

    keys = <uint64_t *>malloc(n_threads * n_keys * sizeof(uint64_t))
    products = <float *>malloc(n_threads * n_candidates * sizeof(float))
    known = <int32_t *>malloc(n_threads * n_candidates * sizeof(int32_t))

    try:
        if keys == NULL or products == NULL or known == NULL:
            raise MemoryError()
        for i in prange(n, nogil=True, schedule="dynamic", num_threads=n_threads):
            thread = threadid()
            _best_of(f, &ids[i, 0], n_candidates, &x[i, 0], &s, &bias[0],
                     known + thread * n_candidates, products + thread * n_candidates,
                     keys + thread * n_keys, k, &out_ids[i, 0], &out_scores[i, 0])
    finally:
        free(keys)
        free(products)
        free(known)


def copy_slots(const int32_t[::1] sources, const int32_t[::1] targets, const uint8_t[:, ::1] blocks,
               const float[::1] factors, uint8_t[:, ::1] out_blocks, float[::1] out_factors):
    """Copy sketch and factor of slot sources[r] to slot targets[r] of out_blocks and out_factors.

    The outputs are other arrays than the inputs. O(len(sources) * n_bits)
    """
    cdef Py_ssize_t r, g, n_groups = blocks.shape[1] // 16
    cdef const uint8_t *source
    cdef uint8_t *target
    cdef uint8_t nibble

    with nogil:
        for r in range(sources.shape[0]):
            source = &blocks[sources[r] // SKETCH_BLOCK_NEURONS, sources[r] % 16]
            target = &out_blocks[targets[r] // SKETCH_BLOCK_NEURONS, targets[r] % 16]
            for g in range(n_groups):
                nibble = (source[16 * g] >> 4 if sources[r] % SKETCH_BLOCK_NEURONS >= 16
                          else source[16 * g] & 0x0F)
                if targets[r] % SKETCH_BLOCK_NEURONS >= 16:
                    target[16 * g] = <uint8_t>((target[16 * g] & 0x0F) | nibble << 4)
                else:
                    target[16 * g] = <uint8_t>((target[16 * g] & 0xF0) | nibble)
            out_factors[targets[r]] = factors[sources[r]]


cdef void _rank(const float *q, const int32_t *candidates, Py_ssize_t n_candidates,
                const uint8_t *blocks, Py_ssize_t n_groups, const float *factors,
                const float *biases, const int32_t *slot, uint8_t *lut, uint64_t *keys,
                Py_ssize_t n_keys, Py_ssize_t n_best, int32_t *out_ids) noexcept nogil:
    cdef Py_ssize_t c, g
    cdef int32_t s, total
    cdef int shift
    cdef float a, b
    cdef const uint8_t *byte
    cdef top_t top = top_begin(keys, n_keys, n_best)

    tabulate(q, n_groups, lut, &a, &b)
    for c in range(n_candidates):
        s = slot[candidates[c]] if candidates[c] >= 0 else -1
        if s < 0:
            continue
        byte = blocks + s // <int32_t>SKETCH_BLOCK_NEURONS * n_groups * 16 + s % 16
        shift = 4 if s % <int32_t>SKETCH_BLOCK_NEURONS >= 16 else 0
        total = 0
        for g in range(n_groups):
            total += lut[16 * g + ((byte[16 * g] >> shift) & 15)]
        top_push(&top, factors[s] * (a * total + b) + (biases[s] if biases != NULL else 0),
                 candidates[c])
    top_end(&top, False, out_ids, NULL)


def rank(const float[:, ::1] queries, const int32_t[:, ::1] candidates,
         const uint8_t[:, ::1] blocks, const float[::1] factors, biases, const int32_t[::1] slot,
         int32_t[:, ::1] out_ids, int n_threads):
    """The candidates with the largest approximate scores for each rotated query, in any order.

    candidates is (n_queries, n_candidates), distinct per row, -1 for none; slot[j] is the slot of
    neuron j, or -1: the neuron is then skipped. out_ids is (n_queries, n_best), filled up with -1.
    The scores are those of `scan`. Per query O(n_candidates * n_bits / 4) look-ups: 20 times those
    of a scan, per neuron.
    """
    cdef Py_ssize_t i, n_queries = queries.shape[0], n_best = out_ids.shape[1]
    cdef Py_ssize_t n_groups = queries.shape[1] // 4
    cdef Py_ssize_t n_candidates = candidates.shape[1], n_keys = 3 * n_best + 64
    cdef const float[::1] bias_view
    cdef const float *bias = NULL
    cdef uint8_t *luts
    cdef uint64_t *keys
    cdef int thread

    if n_queries == 0 or n_best == 0:
        return
    if n_candidates == 0 or blocks.shape[0] == 0:
        out_ids[:, :] = -1
        return
    if biases is not None:
        bias_view = biases
        bias = &bias_view[0]

    luts = <uint8_t *>malloc(n_threads * n_groups * 16)
    keys = <uint64_t *>malloc(n_threads * n_keys * sizeof(uint64_t))

    try:
        if luts == NULL or keys == NULL:
            raise MemoryError()
        for i in prange(n_queries, nogil=True, schedule="dynamic", num_threads=n_threads):
            thread = threadid()
            _rank(&queries[i, 0], &candidates[i, 0], n_candidates, &blocks[0, 0], n_groups,
                  &factors[0], bias, &slot[0], luts + thread * n_groups * 16,
                  keys + thread * n_keys, n_keys, n_best, &out_ids[i, 0])
    finally:
        free(luts)
        free(keys)
