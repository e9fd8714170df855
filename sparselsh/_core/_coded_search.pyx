"""Searches that leave nothing out, or as little as is wanted: by rows in four bits.

A neuron w, less the mean neuron, and a query x, less its own offset m, are rotated by the same
random rotation R. The entries of R (w - mean) are rounded to 16 levels a_j (c - 7.5), c in 0 .. 15,
with a_j such that the error e_j of the row is orthogonal to it, and those of R (x - m) to
8 bits. Then

    w . x + b = <R (w - mean), R (x - m)> + [m . (w - mean) + b] + mean . x

is known up to |e_j| |x - m| (Cauchy and Schwarz), or, over the random rotation, with the standard
deviation |e_j| |x - m| / sqrt(d - 1), as in _bounded_search. A pass over the codes estimates the
outputs. Rows are in the order of their lengths, the longest first, in parts of PART_ROWS: from the
bounds in the first part follows a score that k neurons reach, and parts are left out whose largest
bias and length say that none of their neurons reaches it. The 2 k + 8 neurons with the best
estimates are computed in float32; t is the k-th best. Of the others those are computed whose upper
bounds reach t, the largest first.

R is a product of random signs and Hadamard transforms of the first and of the last `order` numbers
in turn, order being the largest power of two that is not above the width: 4 of each where that is
not the width itself, else 2. (As in Gao and others, 2024, whose code rotates so.)

`blocks` is (n_blocks, n_groups, 64): see coded_scores in simd/loops.h. Slot s of it and of the
numbers of each row is that of neuron ids[s]. The width 8 n_groups is d, rounded up. `errors` are
what is multiplied by the length of the query: |e_j|, or 1 / MAX_RATIO of the length of the codes,
if that is more; the error of the query counts MAX_RATIO times.
"""
from cython.parallel cimport prange, threadid
from libc.math cimport INFINITY, erfc, fabs, fabsf, sqrt
from libc.stdint cimport int8_t, int32_t, int64_t, uint8_t, uint64_t
from libc.string cimport memcpy, memset

from ._order cimport (
    key_id, key_score, score_key, select_smallest, top_begin, top_end, top_floor, top_kth, top_push,
    top_t,
)
from ._quantized cimport quantized_dots, quantized_rows_of, quantized_rows_t
from ._rotations cimport rotate_row
from ._scratch cimport aligned_size, free_aligned, malloc_aligned
from ._simd cimport INT8_BLOCK_BYTES, INT8_LANES, loops_t, table

cdef extern from "math.h" nogil:
    float rintf(float x)

LANES = INT8_LANES
GROUP = 2 * INT8_BLOCK_BYTES // INT8_LANES  # inputs per group
ROWS_PER_PART = PART_ROWS

cdef enum:
    QUERIES_PER_PASS = 12  # that share the reading of the codes
    ROWS_PER_CALL = 256  # whose inner products are computed at a time
    PART_ROWS = 2048
    PART_BLOCKS = PART_ROWS // INT8_LANES
    MAX_RATIO = 12  # of the length of a row to its error, that `errors` tells

cdef float STEP = 0.335  # between levels, for normal numbers of variance 1: the least error
cdef double ROUNDING = 5e-7  # of a float32 inner product, relative to the lengths
cdef double SURE_DEVIATIONS = 8  # beyond them an estimate raises no doubt: 1e-15
# magnitudes beyond which numbers of queries, or outputs, could overflow or vanish
cdef float LARGEST = 1e15
cdef float SMALLEST = 1e-15


def encode(const float[:, ::1] v, const int32_t[::1] rows, const float[:, ::1] signs,
           uint8_t[:, :, ::1] blocks, float[::1] scales, float[::1] errors, int n_threads):
    """Write the codes of v[r], (d,), into slot rows[r], distinct.   O(n d log d)

    signs is (4, order).
    """
    cdef Py_ssize_t r, n = v.shape[0], d = v.shape[1], width = 8 * blocks.shape[1]
    cdef Py_ssize_t order = signs.shape[1], size = 2 * aligned_size(width)
    cdef const loops_t *f = table()
    cdef float *work
    if n == 0:
        return
    work = <float *>malloc_aligned(n_threads * size * sizeof(float))
    if work == NULL:
        raise MemoryError()
    for r in prange(n, nogil=True, schedule="static", num_threads=n_threads):
        _encode_row(f, &v[r, 0], d, &signs[0, 0], order, width, work + threadid() * size,
                    &blocks[rows[r] // INT8_LANES, 0, rows[r] % INT8_LANES * 4], &scales[rows[r]],
                    &errors[rows[r]])
    free_aligned(work)


cdef void _encode_row(const loops_t *f, const float *v, Py_ssize_t d, const float *signs,
                      Py_ssize_t order, Py_ssize_t width, float *x, uint8_t *row, float *scale,
                      float *error) noexcept nogil:
    cdef Py_ssize_t k
    cdef double square = 0, product = 0, coded = 0, factor, level
    cdef float inverse
    cdef int code
    cdef uint8_t *byte
    memcpy(x, v, d * sizeof(float))
    memset(x + d, 0, (width - d) * sizeof(float))
    rotate_row(f, signs, order, width, x, x + aligned_size(width))
    for k in range(width):
        square += <double>x[k] * x[k]
    inverse = <float>(sqrt(width / square) / STEP) if square > 0 else 0
    for k in range(width):
        code = <int>rintf(min(max(x[k] * inverse + 7.5, <float>0), <float>15))
        level = code - 7.5
        product += level * x[k]
        coded += level * level
        byte = row + k // 8 * INT8_BLOCK_BYTES + k % 4
        if k % 8 < 4:
            byte[0] = <uint8_t>((byte[0] & 0xF0) | code)
        else:
            byte[0] = <uint8_t>((byte[0] & 0x0F) | code << 4)
    factor = square / product if product > 0 else 0
    scale[0] = <float>factor
    # |a c - v|^2, with <a c, v> = |v|^2; its rounding, and that of the rotation
    level = factor * sqrt(coded)
    error[0] = <float>(max(sqrt(max(level * level - square, 0.0)), level / MAX_RATIO)
                       + 4e-6 * level)


def scores(const uint8_t[:, :, ::1] blocks, const float[::1] scales, const float[::1] offsets,
           const int8_t[:, ::1] x, const float[::1] factors, float[:, ::1] out):
    """The inner loop alone: coded_scores of simd/loops.h, for rows x of 8 n_groups numbers."""
    cdef Py_ssize_t i, k
    cdef int32_t totals[QUERIES_PER_PASS]
    for i in range(min(x.shape[0], <Py_ssize_t>QUERIES_PER_PASS)):
        totals[i] = 0
        for k in range(x.shape[1]):
            totals[i] += x[i, k]
    table().coded_scores(&blocks[0, 0, 0], blocks.shape[0], blocks.shape[1], &x[0, 0], x.shape[0],
                         totals, &factors[0], &scales[0], &offsets[0], &out[0, 0], out.shape[1])


ctypedef struct query_t:
    double length  # |x - m|,
    double error   # of its codes,
    double shift   # mean . x
    bint estimated

ctypedef struct coded_t:
    Py_ssize_t n, d, width, order, n_blocks, n_parts
    const uint8_t *blocks
    const float *scales
    const float *errors
    const float *offsets
    const float *tops     # per part, the largest offset,
    const float *lengths  # and the largest length
    const int32_t *ids
    const int32_t *slot
    const float *signs
    const float *centre  # (d,), the mean, of which `shift` is multiplied with a query
    const float *middle  # (d,), or NULL for 0: m
    quantized_rows_t rows  # w, in float32 or bfloat16
    const float *bias
    double largest       # of the lengths of w - mean

ctypedef struct work_t:
    float *x
    float *spare
    int8_t *codes
    float *estimates  # QUERIES_PER_PASS rows
    float *kept
    int32_t *places
    float *values
    float *products
    int32_t *rows
    uint64_t *keys
    uint64_t *best_keys
    uint64_t *found
    uint8_t *wanted   # parts that a query of this pass must read


cdef void _take_query(const loops_t *f, const coded_t *c, work_t *w, const float *x, query_t *q,
                      int8_t *codes, float *factor, int32_t *total) noexcept nogil:
    # the codes of a query, which stand for factor times them
    cdef Py_ssize_t k
    cdef float peak = 0, inverse
    cdef double difference, square = 0, error = 0
    memset(w.x + c.d, 0, (c.width - c.d) * sizeof(float))
    for k in range(c.d):
        w.x[k] = x[k] - (c.middle[k] if c.middle != NULL else 0)
        peak = max(peak, fabsf(w.x[k]))
    q.shift = 0
    for k in range(c.d):
        q.shift += <double>c.centre[k] * x[k]
    factor[0], total[0], q.length, q.error, q.estimated = 0, 0, 0, 0, True
    memset(codes, 0, c.width)
    if peak == 0:
        return
    if not (SMALLEST < peak < LARGEST and SMALLEST < peak * c.largest < LARGEST):
        q.estimated = c.largest == 0
        return
    rotate_row(f, c.signs, c.order, c.width, w.x, w.spare)
    peak = 0
    for k in range(c.width):
        peak = max(peak, fabsf(w.x[k]))
    inverse = 127 / peak
    for k in range(c.width):
        codes[k] = <int8_t>rintf(w.x[k] * inverse)
        total[0] += codes[k]
        difference = w.x[k] - <double>peak / 127 * codes[k]
        error += difference * difference
        square += <double>w.x[k] * w.x[k]
    factor[0] = peak / 254
    q.length, q.error = sqrt(square), sqrt(error) + 2e-6 * sqrt(square)


cdef Py_ssize_t _part_rows(const coded_t *c, Py_ssize_t p) noexcept nogil:
    return min(<Py_ssize_t>PART_ROWS, c.n_blocks * INT8_LANES - p * PART_ROWS)


cdef void _score_part(const loops_t *f, const coded_t *c, work_t *w, Py_ssize_t p, Py_ssize_t n,
                      const int32_t *totals, const float *factors) noexcept nogil:
    # the estimates of a part of the rows, for n queries
    cdef Py_ssize_t first = p * PART_ROWS
    f.coded_scores(c.blocks + first // INT8_LANES * (c.width // 8) * INT8_BLOCK_BYTES,
                   _part_rows(c, p) // INT8_LANES, c.width // 8, w.codes, n, totals, factors,
                   c.scales + first, c.offsets + first, w.estimates + first,
                   c.n_blocks * INT8_LANES)


cdef float _threshold(const coded_t *c, const query_t *q, float kth) noexcept nogil:
    # what an estimate, without the shift, must reach
    if not kth > -INFINITY:
        return -INFINITY
    return <float>(kth - q.shift
                   - ROUNDING * (fabs(kth) + 2 * fabs(q.shift) + 2 * q.length * c.largest))


cdef void _compute(const loops_t *f, const coded_t *c, work_t *w, const float *x,
                   const uint64_t *keys, Py_ssize_t n, top_t *best) noexcept nogil:
    cdef Py_ssize_t start = 0, r, n_rows
    while start < n:
        n_rows = min(<Py_ssize_t>ROWS_PER_CALL, n - start)
        for r in range(n_rows):
            w.rows[r] = c.ids[key_id(keys[start + r])]
        quantized_dots(f, &c.rows, w.rows, n_rows, x, w.products)
        for r in range(n_rows):
            top_push(best, w.products[r] + c.bias[w.rows[r]], w.rows[r])
        start += n_rows


cdef double _tail(double deviations) noexcept nogil:
    # the probability that a Gaussian exceeds this many standard deviations
    return 0.5 * erfc(deviations * 0.7071067811865476)


cdef void _answer(const loops_t *f, const coded_t *c, work_t *w, const float *x, const query_t *q,
                  float *estimates, Py_ssize_t k, double deviations, int32_t *out_ids,
                  float *out_scores, int64_t *count, double *doubt) noexcept nogil:
    cdef Py_ssize_t m = 2 * k + 8, start, i, j, n, p
    cdef Py_ssize_t n_found = 0, n_computed
    cdef uint64_t last = 0
    cdef float t, slack, kth, reach
    cdef double size = q.length + MAX_RATIO * q.error
    cdef double unit = sqrt((q.length * q.length + (MAX_RATIO * q.error) * (MAX_RATIO * q.error))
                            / <double>(c.width - 1))
    cdef bint strict = not (deviations > 0 and deviations * unit < size)
    cdef top_t top = top_begin(w.keys, 3 * m + 64, m)
    cdef top_t best = top_begin(w.best_keys, 3 * k + 64, k)

    # the m best estimates
    for p in range(c.n_parts):
        start = p * PART_ROWS
        if not w.wanted[p]:
            continue
        n = f.at_least(estimates + start, NULL, 0, _part_rows(c, p), top_floor(&top), w.places,
                       w.values)
        for i in range(n):
            if w.values[i] > -INFINITY:
                top_push(&top, w.values[i], <int32_t>(start + w.places[i]))
    top_kth(&top)
    n = min(top.n, m)
    select_smallest(w.keys, top.n, n)
    for i in range(n):
        last = max(last, w.keys[i])
    _compute(f, c, w, x, w.keys, n, &best)
    n_computed = n

    # those whose upper bounds reach the k-th best
    t = _threshold(c, q, top_kth(&best))
    slack = <float>(size if strict else deviations * unit)
    if q.estimated:
        for p in range(c.n_parts):
            start = p * PART_ROWS
            if not w.wanted[p]:
                continue
            n = f.at_least(estimates + start, c.errors + start, slack, _part_rows(c, p), t,
                           w.places, w.values)
            for i in range(n):
                j = start + w.places[i]
                if estimates[j] > -INFINITY and score_key(estimates[j], <int32_t>j) > last:
                    w.found[n_found] = score_key(w.values[i], <int32_t>j)
                    n_found += 1
    else:  # a query of which the codes say nothing
        for j in range(c.n):
            if estimates[j] > -INFINITY and score_key(estimates[j], <int32_t>j) > last:
                w.found[n_found] = score_key(0, <int32_t>j)
                n_found += 1
    start = 0
    while start < n_found:  # the largest bounds first: they may raise t for the rest
        n = min(max(m, <Py_ssize_t>ROWS_PER_CALL), n_found - start)
        if start + n < n_found:
            select_smallest(w.found + start, n_found - start, n)
        _compute(f, c, w, x, w.found + start, n, &best)
        n_computed += n
        start += n
        if start < n_found and q.estimated:
            t = _threshold(c, q, top_kth(&best))
            i = start
            for j in range(start, n_found):
                w.found[i] = w.found[j]
                i += key_score(w.found[j]) >= t
            n_found = i

    doubt[0] = 0
    if not strict and q.estimated and best.n >= k:
        kth = _threshold(c, q, top_kth(&best))
        reach = <float>(SURE_DEVIATIONS * unit)
        for p in range(c.n_parts):
            start = p * PART_ROWS
            if not w.wanted[p]:
                continue
            n = f.at_least(estimates + start, c.errors + start, reach, _part_rows(c, p), kth,
                           w.places, w.values)
            for i in range(n):
                j = start + w.places[i]
                if (estimates[j] > -INFINITY and estimates[j] + slack * c.errors[j] < t
                        and score_key(estimates[j], <int32_t>j) > last):
                    doubt[0] += _tail((kth - estimates[j]) / (unit * c.errors[j]))
    count[0] = n_computed
    top_end(&best, True, out_ids, out_scores)


cdef void _restrict(const coded_t *c, work_t *w, float *estimates, const uint8_t *able,
                    const int32_t *listed, Py_ssize_t n_listed, bint has_lists,
                    bint only) noexcept nogil:
    # -inf for neurons that a query may not find
    cdef Py_ssize_t i, j
    if able != NULL:
        for j in range(c.n):
            estimates[j] = estimates[j] if able[j] else -INFINITY
    if has_lists and only:
        for i in range(n_listed):
            w.kept[i] = estimates[c.slot[listed[i]]]
        for j in range(c.n):
            estimates[j] = -INFINITY
        for i in range(n_listed):
            estimates[c.slot[listed[i]]] = w.kept[i]
    elif has_lists:
        for i in range(n_listed):
            estimates[c.slot[listed[i]]] = -INFINITY


cdef float _certain(const loops_t *f, const coded_t *c, work_t *w, const query_t *q,
                    const float *estimates, Py_ssize_t k) noexcept nogil:
    # what k neurons of the first part reach for certain, as an estimate
    cdef Py_ssize_t i, n
    cdef double size = q.length + MAX_RATIO * q.error
    cdef float kth
    cdef top_t best = top_begin(w.best_keys, 3 * k + 64, k)
    if not q.estimated:
        return -INFINITY
    n = f.at_least(estimates, c.errors, <float>-size, _part_rows(c, 0), -INFINITY, w.places,
                   w.values)
    for i in range(n):
        if w.values[i] > top_floor(&best):
            top_push(&best, w.values[i], <int32_t>i)
    kth = top_kth(&best)
    return <float>(kth - ROUNDING * (fabs(kth) + 2 * q.length * c.largest))


cdef void _pass(const loops_t *f, const coded_t *c, work_t *w, const float *x, Py_ssize_t n,
                Py_ssize_t k, double deviations, const uint8_t *able, const int64_t *first,
                const int32_t *listed, bint only, int32_t *out_ids, float *out_scores,
                int64_t *counts, double *doubts) noexcept nogil:
    # some queries at once
    cdef query_t queries[QUERIES_PER_PASS]
    cdef float factors[QUERIES_PER_PASS]
    cdef int32_t totals[QUERIES_PER_PASS]
    cdef Py_ssize_t i, p, n_padded = c.n_blocks * INT8_LANES
    cdef float *estimates = w.estimates
    cdef float least
    for i in range(n):
        _take_query(f, c, w, x + i * c.d, &queries[i], w.codes + i * c.width, &factors[i],
                    &totals[i])

    _score_part(f, c, w, 0, n, totals, factors)
    memset(w.wanted, able != NULL or first != NULL, c.n_parts)
    w.wanted[0] = True
    if able == NULL and first == NULL:
        for i in range(n):
            least = _certain(f, c, w, &queries[i], estimates + i * n_padded, k)
            for p in range(1, c.n_parts):
                w.wanted[p] |= not (c.tops[p] + queries[i].length * c.lengths[p] < least)
    for p in range(1, c.n_parts):
        if w.wanted[p]:
            _score_part(f, c, w, p, n, totals, factors)

    for i in range(n):
        if able != NULL or first != NULL:
            _restrict(c, w, estimates, able, listed + first[i] if listed != NULL else NULL,
                      first[i + 1] - first[i] if first != NULL else 0, first != NULL, only)
        _answer(f, c, w, x + i * c.d, &queries[i], estimates, k, deviations, out_ids + i * k,
                out_scores + i * k, counts + i, doubts + i)
        estimates += n_padded


cdef Py_ssize_t _begin(work_t *w, const coded_t *c, Py_ssize_t k, Py_ssize_t n,
                       char *memory) noexcept nogil:
    # lay out the memory of a thread for n queries at a time, or only return its size
    cdef Py_ssize_t n_padded = c.n_blocks * INT8_LANES, at = 0, i, m = 2 * k + 8
    cdef Py_ssize_t sizes[13]
    cdef void *parts[13]
    sizes[0] = 4 * c.width
    sizes[1] = 4 * c.width
    sizes[2] = n * c.width
    sizes[3] = 4 * n * n_padded
    sizes[4] = 4 * c.n
    sizes[5] = 4 * (PART_ROWS + 16)
    sizes[6] = 4 * (PART_ROWS + 16)
    sizes[7] = 4 * ROWS_PER_CALL
    sizes[8] = 4 * ROWS_PER_CALL
    sizes[9] = 8 * (3 * m + 64)
    sizes[10] = 8 * (3 * k + 64)
    sizes[11] = 8 * c.n
    sizes[12] = c.n_parts
    for i in range(13):
        parts[i] = memory + at
        at += (sizes[i] + 63) // 64 * 64
    w.x, w.spare, w.codes = <float *>parts[0], <float *>parts[1], <int8_t *>parts[2]
    w.estimates, w.kept = <float *>parts[3], <float *>parts[4]
    w.places, w.values = <int32_t *>parts[5], <float *>parts[6]
    w.products, w.rows = <float *>parts[7], <int32_t *>parts[8]
    w.keys, w.best_keys, w.found = (<uint64_t *>parts[9], <uint64_t *>parts[10],
                                    <uint64_t *>parts[11])
    w.wanted = <uint8_t *>parts[12]
    return at


def top_k(const uint8_t[:, :, ::1] blocks, const float[::1] scales, const float[::1] errors,
          const float[::1] offsets, const float[::1] tops, const float[::1] lengths,
          const int32_t[::1] ids, const int32_t[::1] slot, const float[:, ::1] signs,
          const float[::1] centre, middle, w, const float[::1] bias,
          const float[:, ::1] x, able, indptr, listed, bint only, double deviations,
          int32_t[:, ::1] out_ids, float[:, ::1] out_scores, int64_t[::1] counts,
          double[::1] doubts, int n_threads):
    """The k neurons with the largest w[j] . x[i] + bias[j], best first.

    blocks to errors, and signs, are what `encode` wrote and read, of an even number of blocks. Slot
    s < n is that of neuron ids[s], and slot is the inverse; offsets beyond are -inf. tops and
    lengths are, per part, the largest offset and length of a row. centre is the mean neuron,
    middle the offset of the queries, or None for 0, and offsets are the biases and what w - centre
    makes of it. able, by slots, indptr, listed and `only` are as in _bounded_search.top_k_batch.

    With `deviations` 0 a neuron is left out only if the bound of its error excludes it; else if its
    estimate is lower than the k-th best by so many standard deviations, or by the bound. doubts is
    the expected number of neurons that are missing, by the Gaussian tails of the estimates, and
    counts the number of neurons computed in float32. out_ids and out_scores are (n_queries, k),
    k > 0, filled up with -1 and -inf. Per query O(n_neurons * d) of four bits.
    """
    cdef Py_ssize_t i, n = x.shape[0], k = out_ids.shape[1], n_pass, size
    cdef const loops_t *f = table()
    cdef const uint8_t[::1] able_view
    cdef const int64_t[::1] indptr_view
    cdef const int32_t[::1] listed_view
    cdef const float[::1] middle_view
    cdef const uint8_t *able_at = NULL
    cdef const int64_t *first = NULL
    cdef const int32_t *list_ids = NULL
    cdef coded_t c
    cdef work_t unused
    cdef char *memory

    if n == 0 or k == 0:
        return
    quantized_rows_of(w, None, &c.rows)
    c.n, c.d, c.width, c.order = c.rows.n, c.rows.d, 8 * blocks.shape[1], signs.shape[1]
    c.n_blocks, c.blocks, c.scales = blocks.shape[0], &blocks[0, 0, 0], &scales[0]
    c.errors, c.offsets, c.signs, c.centre = &errors[0], &offsets[0], &signs[0, 0], &centre[0]
    c.bias, c.middle, c.tops, c.lengths = &bias[0], NULL, &tops[0], &lengths[0]
    c.ids, c.slot, c.n_parts, c.largest = &ids[0], &slot[0], tops.shape[0], 0
    for i in range(c.n_parts):
        c.largest = max(c.largest, <double>lengths[i])
    if middle is not None:
        middle_view = middle
        c.middle = &middle_view[0]
    if able is not None:
        able_view = able
        able_at = &able_view[0]
    if indptr is not None:
        indptr_view, listed_view = indptr, listed
        first = &indptr_view[0]
        if listed_view.shape[0]:
            list_ids = &listed_view[0]

    n_pass = min(<Py_ssize_t>QUERIES_PER_PASS, (n + n_threads - 1) // n_threads)
    size = _begin(&unused, &c, k, n_pass, NULL)
    memory = <char *>malloc_aligned(n_threads * size)
    if memory == NULL:
        raise MemoryError()
    for i in prange((n + n_pass - 1) // n_pass, nogil=True, schedule="dynamic",
                    num_threads=n_threads):
        _run_pass(f, &c, &x[0, 0], i * n_pass, min(n_pass, n - i * n_pass), n_pass, k, deviations,
                  able_at, first, list_ids, only, &out_ids[0, 0], &out_scores[0, 0], &counts[0],
                  &doubts[0], memory + threadid() * size)
    free_aligned(memory)


cdef void _run_pass(const loops_t *f, const coded_t *c, const float *x, Py_ssize_t start,
                    Py_ssize_t n, Py_ssize_t n_pass, Py_ssize_t k, double deviations,
                    const uint8_t *able, const int64_t *first, const int32_t *listed, bint only,
                    int32_t *out_ids, float *out_scores, int64_t *counts, double *doubts,
                    char *memory) noexcept nogil:
    cdef work_t w
    _begin(&w, c, k, n_pass, memory)
    _pass(f, c, &w, x + start * c.d, n, k, deviations, able, first + start if first != NULL else
          NULL, listed, only, out_ids + start * k, out_scores + start * k, counts + start,
          doubts + start)
