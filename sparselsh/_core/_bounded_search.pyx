"""A search by sign sketches that goes on until its error bound says that nothing is missed.

The estimate est of an inner product <q, v> from the sketch of v (_sketches) has a known standard
deviation over the random rotation,

    sd = |e| |q| / sqrt(n_dims - 1),

where e is what the signs do not say of v (one number per neuron, `errors`); RaBitQ, Gao and Long
2024, theorem 3.2. A query therefore needs no number of candidates that was fixed in advance:

1. Scan cells in the order of the mean inner product of the query with their neurons, in rounds
   that make them 2^(1/3) times as many, until the second half of them holds at most a share of the
   n_evidence neurons with the best estimates so far, and few neurons are expected in the others
   whose score reaches t below: by the mean of each cell, and by the variance and a law of
   <q, v - m> over all neurons v and the means m of their cells. A query whose neighbours are spread
   over more cells thereby scans more.
2. Compute the 2 k + 8 neurons with the best estimates exactly; t is the k-th best score. Every
   neuron of the scanned cells with est + c sd >= t is a candidate. The 2 k + 8 candidates with the
   largest upper bounds are computed first: they may raise t for the rest.
3. Neurons without a sketch, which are short, are computed in the order of their norms while
   |v| |q| c' / sqrt(n_dims - 1) reaches t.

|q| is that of the rotated query: R has n_bits rows of length 1, of which each n_dims form a
rotation, so that |q|^2 is n_dims / n_bits times |R q|^2. Which neurons are computed depends on
neither the order of the slots nor the number of threads.

A search for one query takes some ten microseconds, and to pass each of two dozen arrays to a kernel
a tenth of one: so arrays are passed once, as a BoundedSearch.
"""
from cython.parallel cimport prange, threadid
from libc.math cimport INFINITY, fabs, fabsf, sqrt
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcpy, memset

from ._order cimport (
    key_id, key_score, score_key, select_smallest, sort_keys, top_begin, top_end, top_floor,
    top_kth, top_push, top_t,
)
from ._quantized cimport quantized_dots, quantized_rows_of, quantized_rows_t
from ._rotations cimport ROTATION_ROUNDS, rotate_row
from ._simd cimport SKETCH_BLOCK_NEURONS, loops_t, table
from ._sketches cimport BLOCKS_PER_SCAN, SCAN_BUFFER_LENGTH, tabulate

cdef enum:
    ROWS_PER_CALL = 256  # whose inner products are computed at a time
    CELLS_PER_FIRST = 32  # of them a query scans one in the first round,
    MIN_FIRST_CELLS = 3  # or this many
    ROUNDS_PER_DOUBLING = 3
    LISTED_PER_COPY = 64  # bytes that are set as fast as that of one listed neuron
    NEURONS_PER_LISTED = 64  # neurons that are scanned as fast as a listed one is computed

    N_TAIL_STEPS = 16  # per standard deviation, of the table of a law,
    N_TAILS = 32 * N_TAIL_STEPS  # which begins at the mean

TAIL_STEPS, TAIL_LENGTH = N_TAIL_STEPS, N_TAILS

# of float32 inner products, relative to the norms: far below what the bound of a sketch allows
cdef double ROUNDING = 5e-7

ctypedef struct work_t:
    float *projected
    uint8_t *lut
    float a, b, weight  # of the table, and of the biases
    float *estimates    # of the slots that were scanned, in the order of the scan
    int32_t *places
    float *values
    uint64_t *cell_keys
    uint8_t *cell_round  # in which it was scanned, from 1 on; 0: it was not
    uint64_t *evidence_keys
    uint64_t *best_keys
    uint64_t *wide_keys
    int32_t *rows
    float *products
    float *rotated      # a query while it is rotated, and spare room
    const uint8_t *able  # this query's; or NULL
    uint8_t *own_able    # that of a list
    uint64_t *found     # upper bounds of the candidates that are not computed yet
    Py_ssize_t n_found, capacity
    uint64_t last_checked  # the worst of the neurons with the best estimates, and
    float kth_checked      # the k-th best score of these
    int64_t n_scanned, n_computed, n_short
    bint failed
    float error         # of scores, by what is known of it
    top_t best, wide


ctypedef struct selection_t:
    const uint8_t *base    # of all queries; or NULL
    const int64_t *indptr  # of the lists, one per query; or NULL
    const int32_t *listed
    bint only


cdef class BoundedSearch:
    """The arrays of an index, which it keeps alive, and the parameters of `top_k`. Immutable."""


def prepare(const uint16_t[:, ::1] query_rows, const float[::1] query_constant, signs,
            Py_ssize_t n_bits, Py_ssize_t n_dims, const int32_t[::1] cell_start,
            const int32_t[::1] cell, const float[::1] cell_biases, const int32_t[::1] cell_sizes,
            const float[::1] cell_scales, const float[::1] cell_tails, Py_ssize_t n_spread,
            float variance, float bias_variance,
            const uint8_t[:, ::1] blocks,
            const float[::1] factors, const float[::1] errors, const float[::1] biases,
            const int32_t[::1] ids, Py_ssize_t n,
            const int32_t[::1] slot, const int32_t[::1] short_ids, const float[::1] short_norms,
            const float[::1] offset, double scale, w, const float[::1] bias, coarse, coarse_scales,
            float deviations, float cell_share, Py_ssize_t n_evidence, float n_missing,
            float short_deviations, bint euclidean):
    """A search whose answers are those of the module's docstring.

    query_rows, (n_bits + n_cells + n_spread, d) in bfloat16, and query_constant map an input to the
    rotated query and its inner products with the means of the cells, and with n_spread directions
    whose squares, with `variance` |q|^2 and `bias_variance`, add up to the variance of <q, v - m>;
    n_spread is 0 if that is not known. Deviations of cell c are 1 / cell_scales[c] times the root
    of it. cell_tails[i] is the fraction of the neurons of a cell that
    are i / TAIL_STEPS standard deviations or more above its mean. n_missing neurons may be expected
    in the other cells, for each of the k best, and cell_sizes has one entry per cell. n_dims is the
    width of the rotation.
    With signs, those of a fast rotation of the n_dims = d inputs as in _rotations, query_rows is
    (n_cells + n_spread, d). Cell c holds the slots cell_start[c]
    to cell_start[c + 1]; slots from cell_start[n_cells] to n came later and belong to the cells in
    `cell`, one entry per slot. Cells are scanned in the order of <q, mean> + cell_biases[c]. Slot s
    of blocks, factors, errors and biases holds neuron ids[s], or none if that is -1; slot is the
    inverse. All factors are finite. biases are added to the estimates; it is empty where all are 0.
    short_ids are neurons without a sketch, by descending norm; their norms include
    the bias. offset, (d + 1,), is the mean neuron, and scale the factor
    of the vectors. w, (n_neurons, d), is float32. coarse is None, or w in bfloat16 or int8 with
    scales as in _quantized: candidates are first scored by it, and only the best 4 k + 12 by w.

    If `euclidean`, biases are -|v|^2 / 2, and the query is x - offset: neurons are then found by
    their distance from it. The distance of the k-th best so far stands for |q| in the bound of a
    neuron: e is orthogonal to v, and a nearer neuron than that leaves less of q orthogonal to it.
    """
    cdef BoundedSearch search = BoundedSearch()
    cdef search_t *s = &search.s
    cdef Py_ssize_t i
    cdef const float[:, :, ::1] signs_view

    search.arrays = (query_rows, query_constant, signs, cell_start, cell, cell_biases, cell_sizes,
                     cell_scales, cell_tails, blocks, factors, errors, biases, ids, slot, short_ids,
                     short_norms, offset, w, bias, coarse, coarse_scales)
    s.d, s.n_dims, s.n_bits = query_rows.shape[1], n_dims, n_bits
    s.n_cells, s.n, s.n_short = query_rows.shape[0] - n_bits - n_spread, n, short_ids.shape[0]
    s.n_spread, s.variance, s.bias_variance = n_spread, variance, bias_variance
    if signs is not None:
        signs_view = signs
        s.signs, s.order = &signs_view[0, 0, 0], signs_view.shape[2]
        s.n_cells = query_rows.shape[0] - n_spread
    # a cell may share its first and its last block with others
    s.slots = (n + 2 * s.n_cells * <Py_ssize_t>SKETCH_BLOCK_NEURONS
               + 3 * <Py_ssize_t>SKETCH_BLOCK_NEURONS)
    s.scale, s.offset_norm = scale, 0
    for i in range(offset.shape[0]):
        s.offset_norm += <double>offset[i] * offset[i]
    s.offset_norm = sqrt(s.offset_norm)
    s.deviations, s.cell_share, s.n_evidence = deviations, cell_share, n_evidence
    s.n_missing = n_missing
    s.short_deviations, s.euclidean = short_deviations, euclidean

    quantized_rows_of(w, None, &s.exact)
    s.n_neurons = s.exact.n
    s.has_rough = coarse is not None
    if s.has_rough:
        quantized_rows_of(coarse, coarse_scales, &s.rough)
    if query_rows.shape[0]:
        s.query_rows, s.query_constant = &query_rows[0, 0], &query_constant[0]
    s.offset, s.bias = &offset[0], &bias[0]
    if n:
        s.cell_start, s.cell, s.blocks = &cell_start[0], &cell[0], &blocks[0, 0]
        s.factors, s.errors, s.ids = &factors[0], &errors[0], &ids[0]
        s.biases = &biases[0] if biases.shape[0] else NULL
    s.slot = &slot[0]
    if s.n_cells:
        s.cell_biases = &cell_biases[0]
    if s.n_spread:
        s.cell_sizes, s.cell_scales, s.tails = &cell_sizes[0], &cell_scales[0], &cell_tails[0]
    if s.n_short:
        s.short_ids, s.short_norms = &short_ids[0], &short_norms[0]
    return search


# -- work memory -----------------------------------------------------------------------------------


cdef Py_ssize_t _n_first_best(Py_ssize_t k) noexcept nogil:
    return 2 * k + 8


cdef Py_ssize_t _n_wide(Py_ssize_t k) noexcept nogil:
    return 4 * k + 12


cdef Py_ssize_t _n_evidence(const search_t *s, Py_ssize_t k) noexcept nogil:
    return max(s.n_evidence, _n_first_best(k))


cdef int _begin(work_t *w, const search_t *s, Py_ssize_t k,
                const selection_t *selection) noexcept nogil:
    # one block of memory, the widest numbers first; -1 if there is not enough
    cdef Py_ssize_t n_rows = s.n_bits + s.n_cells + s.n_spread
    cdef Py_ssize_t n_evidence = 3 * _n_evidence(s, k) + 64, n_best = 4 * k + 64
    cdef Py_ssize_t n_wide = 3 * _n_wide(k) + 64 if s.has_rough else 0
    cdef Py_ssize_t n_floats = n_rows + s.slots + 16 + SCAN_BUFFER_LENGTH + ROWS_PER_CALL
    cdef Py_ssize_t n_rotated = s.d + s.order
    cdef char *p = <char *>malloc(
        8 * (s.n_cells + n_evidence + n_best + n_wide) + 4 * (n_floats + n_rotated)
        + 4 * (SCAN_BUFFER_LENGTH + ROWS_PER_CALL) + 4 * s.n_bits + s.n_cells
        + (s.n_neurons if selection.indptr != NULL else 0))

    memset(w, 0, sizeof(work_t))
    if p == NULL:
        return -1
    w.cell_keys = <uint64_t *>p
    w.evidence_keys = w.cell_keys + s.n_cells
    w.best_keys = w.evidence_keys + n_evidence
    w.wide_keys = w.best_keys + n_best
    w.projected = <float *>(w.wide_keys + n_wide)
    w.estimates = w.projected + n_rows
    w.values = w.estimates + s.slots + 16
    w.products = w.values + SCAN_BUFFER_LENGTH
    w.rotated = w.products + ROWS_PER_CALL
    w.places = <int32_t *>(w.rotated + n_rotated)
    w.rows = w.places + SCAN_BUFFER_LENGTH
    w.lut = <uint8_t *>(w.rows + ROWS_PER_CALL)
    w.cell_round = w.lut + 4 * s.n_bits
    w.able = selection.base
    if selection.indptr != NULL:
        w.own_able = w.cell_round + s.n_cells
        w.able = w.own_able
        if selection.base != NULL and not selection.only:
            memcpy(w.own_able, selection.base, s.n_neurons)
        else:
            memset(w.own_able, not selection.only, s.n_neurons)
    return 0


cdef void _end(work_t *w) noexcept nogil:
    free(w.cell_keys)
    free(w.found)


cdef void _append(work_t *w, float bound, int32_t j) noexcept nogil:
    cdef Py_ssize_t capacity
    cdef uint64_t *longer
    if w.n_found == w.capacity:
        capacity = 2 * w.capacity + 512
        longer = <uint64_t *>realloc(w.found, capacity * sizeof(uint64_t))
        if longer == NULL:
            w.failed = True
            return
        w.found, w.capacity = longer, capacity
    w.found[w.n_found] = score_key(bound, j)
    w.n_found += 1


# -- the steps of one query ------------------------------------------------------------------------


cdef void _compute(const loops_t *f, const search_t *s, work_t *w, const float *x,
                   const uint64_t *keys, const int32_t *ids, Py_ssize_t n) noexcept nogil:
    # score the neurons of the keys, or of the ids if there are no keys
    cdef Py_ssize_t start = 0, c, n_rows
    cdef const quantized_rows_t *rows = &s.rough if s.has_rough else &s.exact
    w.n_computed += n
    while start < n:
        n_rows = min(<Py_ssize_t>ROWS_PER_CALL, n - start)
        for c in range(n_rows):
            w.rows[c] = key_id(keys[start + c]) if keys != NULL else ids[start + c]
        quantized_dots(f, rows, w.rows, n_rows, x, w.products)
        for c in range(n_rows):
            top_push(&w.best, w.products[c] + s.bias[w.rows[c]], w.rows[c])
            if s.has_rough:
                top_push(&w.wide, w.products[c] + s.bias[w.rows[c]], w.rows[c])
        start += n_rows


cdef float _rough_error(const loops_t *f, const search_t *s, work_t *w, const float *x,
                        const uint64_t *keys, Py_ssize_t n) noexcept nogil:
    # the largest error of rough scores of the neurons of the keys
    cdef Py_ssize_t start = 0, c, n_rows
    cdef float error = 0
    cdef float by_weights[ROWS_PER_CALL]
    while start < n:
        n_rows = min(<Py_ssize_t>ROWS_PER_CALL, n - start)
        for c in range(n_rows):
            w.rows[c] = key_id(keys[start + c])
        quantized_dots(f, &s.rough, w.rows, n_rows, x, w.products)
        quantized_dots(f, &s.exact, w.rows, n_rows, x, by_weights)
        for c in range(n_rows):
            error = max(error, fabsf(w.products[c] - by_weights[c]))
        start += n_rows
    return error


cdef float _kth(work_t *w) noexcept nogil:
    # the k-th best score so far, less what it may be too large by
    return top_kth(&w.best) - 2 * w.error


cdef const float *_biases(const search_t *s, Py_ssize_t block) noexcept nogil:
    return s.biases + block * <Py_ssize_t>SKETCH_BLOCK_NEURONS if s.biases != NULL else NULL


cdef bint _counts(const search_t *s, const work_t *w, Py_ssize_t slot, Py_ssize_t start,
                  Py_ssize_t stop, bint late, int least) noexcept nogil:
    # whether the neuron in a slot may be found, and is in the slots start .. stop; of late slots,
    # if its cell was scanned in round `least` or later
    return (start <= slot and slot < stop and s.ids[slot] >= 0
            and (not late or w.cell_round[s.cell[slot]] >= least)
            and (w.able == NULL or w.able[s.ids[slot]] != 0))


cdef void _rank(const loops_t *f, const search_t *s, work_t *w, Py_ssize_t start, Py_ssize_t stop,
                bint late, int least, Py_ssize_t at, top_t *top) noexcept nogil:
    # the best of the estimates from w.estimates + at on, which are those of the slots start .. stop
    cdef Py_ssize_t block = start // SKETCH_BLOCK_NEURONS, k, n_chunk, n_found, slot
    cdef Py_ssize_t last = (stop + SKETCH_BLOCK_NEURONS - 1) // SKETCH_BLOCK_NEURONS
    while block < last:
        n_chunk = min(<Py_ssize_t>BLOCKS_PER_SCAN, last - block)
        n_found = f.at_least(w.estimates + at, NULL, 0, n_chunk * <Py_ssize_t>SKETCH_BLOCK_NEURONS,
                             top_floor(top), w.places, w.values)
        for k in range(n_found):
            slot = block * <Py_ssize_t>SKETCH_BLOCK_NEURONS + w.places[k]
            if _counts(s, w, slot, start, stop, late, least):
                top_push(top, w.values[k], s.ids[slot])
        at += n_chunk * <Py_ssize_t>SKETCH_BLOCK_NEURONS
        block += n_chunk


cdef Py_ssize_t _estimate(const loops_t *f, const search_t *s, work_t *w, Py_ssize_t start,
                          Py_ssize_t stop, Py_ssize_t at) noexcept nogil:
    # write the estimates of the slots start .. stop, in whole blocks, and return where they end
    cdef Py_ssize_t block = start // SKETCH_BLOCK_NEURONS, n_chunk
    cdef Py_ssize_t last = (stop + SKETCH_BLOCK_NEURONS - 1) // SKETCH_BLOCK_NEURONS
    cdef Py_ssize_t n_groups = s.n_bits // 4
    while block < last:
        n_chunk = min(<Py_ssize_t>BLOCKS_PER_SCAN, last - block)
        f.sketch_scan(s.blocks + block * n_groups * 16, n_chunk, n_groups, w.lut, w.a, w.b,
                      s.factors + block * <Py_ssize_t>SKETCH_BLOCK_NEURONS,
                      _biases(s, block), w.weight, NULL, 0, 0, NULL, w.estimates + at)
        at += n_chunk * <Py_ssize_t>SKETCH_BLOCK_NEURONS
        block += n_chunk
    return at


cdef Py_ssize_t _consider(const loops_t *f, const search_t *s, work_t *w, Py_ssize_t start,
                          Py_ssize_t stop, bint late, float slack, float threshold,
                          uint64_t computed, Py_ssize_t at) noexcept nogil:
    # candidates among the slots start .. stop: their upper bounds reach the threshold. Those with a
    # key up to `computed` are computed already. Returns where their estimates end.
    cdef Py_ssize_t block = start // SKETCH_BLOCK_NEURONS, k, n_chunk, n_found, slot
    cdef Py_ssize_t last = (stop + SKETCH_BLOCK_NEURONS - 1) // SKETCH_BLOCK_NEURONS
    cdef const float *scores
    while block < last:
        n_chunk = min(<Py_ssize_t>BLOCKS_PER_SCAN, last - block)
        scores = w.estimates + at
        n_found = f.at_least(scores, s.errors + block * <Py_ssize_t>SKETCH_BLOCK_NEURONS, slack,
                             n_chunk * <Py_ssize_t>SKETCH_BLOCK_NEURONS, threshold, w.places,
                             w.values)
        for k in range(n_found):
            slot = block * <Py_ssize_t>SKETCH_BLOCK_NEURONS + w.places[k]
            if (_counts(s, w, slot, start, stop, late, 1)
                    and score_key(scores[w.places[k]], s.ids[slot]) > computed):
                _append(w, w.values[k], s.ids[slot])
        at += n_chunk * <Py_ssize_t>SKETCH_BLOCK_NEURONS
        block += n_chunk
    return at


cdef float _threshold(float kth, double shift, double size, double scale) noexcept nogil:
    # an exact score as an inner product of the vectors that are sketched
    cdef double t = (kth - shift - ROUNDING * (fabs(kth) + fabs(shift) + size)) * scale
    return <float>t if t == t and kth > -INFINITY else -INFINITY


cdef float _distance(const search_t *s, float unit_norm, double half) noexcept nogil:
    # |q - v| / sqrt(n_dims - 1) from <q, v> - |v|^2 / 2, both vectors times the unit of the query
    cdef double n = max(s.n_dims - 1, <Py_ssize_t>1)
    cdef double square = unit_norm * unit_norm - 2 * half / n
    # the two terms have been rounded, and the distance of a neuron from itself is not 0
    if half == -INFINITY:
        return unit_norm
    return <float>sqrt(max(square, 1e-6 * unit_norm * unit_norm))


cdef float _kth_of_best(const loops_t *f, const search_t *s, work_t *w, const float *x,
                        Py_ssize_t k, top_t *top) noexcept nogil:
    # the k-th best score of the neurons with the best estimates, computed where they are others
    # than at the last call
    cdef Py_ssize_t start = 0, c, n_rows, n = min(_n_first_best(k), top.n)
    cdef const quantized_rows_t *rows = &s.rough if s.has_rough else &s.exact
    cdef top_t best = top_begin(w.best_keys, 4 * k + 64, k)
    cdef uint64_t last = 0
    select_smallest(w.evidence_keys, top.n, n)
    for c in range(n):
        last = max(last, w.evidence_keys[c])
    if last == w.last_checked:
        return w.kth_checked
    w.last_checked = last
    while start < n:
        n_rows = min(<Py_ssize_t>ROWS_PER_CALL, n - start)
        for c in range(n_rows):
            w.rows[c] = key_id(w.evidence_keys[start + c])
        quantized_dots(f, rows, w.rows, n_rows, x, w.products)
        for c in range(n_rows):
            top_push(&best, w.products[c] + s.bias[w.rows[c]], w.rows[c])
        start += n_rows
    w.kth_checked = top_kth(&best)
    return w.kth_checked


cdef bint _has_few_more(const search_t *s, const work_t *w, Py_ssize_t n, float unit_norm,
                        float threshold, float most) noexcept nogil:
    # whether at most `most` neurons are expected to reach the threshold in the cells from the n-th
    # on, by the law of the neurons of a cell
    cdef const float *spread = w.projected + s.n_bits + s.n_cells
    cdef double variance, scale, z, expected = 0
    cdef Py_ssize_t i, c
    variance = s.variance * <double>unit_norm * unit_norm * max(s.n_dims - 1, <Py_ssize_t>1)
    variance += s.bias_variance * <double>w.weight * w.weight
    for i in range(s.n_spread):
        variance += <double>spread[i] * spread[i]
    scale = N_TAIL_STEPS / sqrt(max(variance, 1e-300))
    for i in range(n, s.n_cells):
        c = key_id(w.cell_keys[i])
        z = (<double>threshold - key_score(w.cell_keys[i])) * scale * s.cell_scales[c]
        if z < N_TAILS:
            expected += s.cell_sizes[c] * s.tails[<int>max(z, 0.0)]
            if expected > most:
                return False
    return True


cdef Py_ssize_t _scan_cells(const loops_t *f, const search_t *s, work_t *w, const float *x,
                            Py_ssize_t k, float unit_norm, double shift, double size, double scale,
                            top_t *top) noexcept nogil:
    # step 1: estimates go to w.estimates, first those of late slots, the best of them to `top`;
    # returns the number of cells
    cdef const float *means = w.projected + s.n_bits
    cdef Py_ssize_t c, i, n = 0, wanted, most, n_later, at, end = s.cell_start[s.n_cells]
    cdef Py_ssize_t n_selected = 0, more
    cdef int number = 0
    cdef float t
    cdef double n_cells = max(<Py_ssize_t>MIN_FIRST_CELLS,
                              (s.n_cells + CELLS_PER_FIRST - 1) // CELLS_PER_FIRST)

    for c in range(s.n_cells):
        w.cell_keys[c] = score_key(means[c] + w.weight * s.cell_biases[c], <int32_t>c)
        w.cell_round[c] = 0
    at = _estimate(f, s, w, end, s.n, 0)
    most = <Py_ssize_t>(s.cell_share * _n_evidence(s, k))

    while n < s.n_cells:
        number += 1
        wanted = min(s.n_cells, max(<Py_ssize_t>n_cells, n + 1))
        n_cells *= 1.2599210498948732
        if wanted > n_selected:  # the best of all, twice as many as before; then the best of those
            more = min(s.n_cells, 2 * wanted)
            select_smallest(w.cell_keys + n_selected, s.n_cells - n_selected, more - n_selected)
            n_selected = more
        select_smallest(w.cell_keys + n, n_selected - n, wanted - n)
        if number == 1:
            sort_keys(w.cell_keys, wanted)  # so that the floor is high soon
        for i in range(n, wanted):
            c = key_id(w.cell_keys[i])
            w.cell_round[c] = <uint8_t>number
            n_later = at
            at = _estimate(f, s, w, s.cell_start[c], s.cell_start[c + 1], at)
            _rank(f, s, w, s.cell_start[c], s.cell_start[c + 1], False, 0, n_later, top)
        n = wanted
        if end < s.n:
            _rank(f, s, w, end, s.n, True, number, 0, top)
        if number < ROUNDS_PER_DOUBLING + 1:
            continue

        top_kth(top)
        n_later = 0
        for i in range(top.n):
            c = s.cell[s.slot[key_id(w.evidence_keys[i])]]
            n_later += w.cell_round[c] > number - ROUNDS_PER_DOUBLING
        if top.n == _n_evidence(s, k) and n_later <= most:
            if s.n_spread == 0:
                break
            t = _threshold(_kth_of_best(f, s, w, x, k, top), shift, size, scale)
            if _has_few_more(s, w, n, unit_norm, t, s.n_missing * k):
                break
    w.n_scanned += at
    return n


cdef void _scan(const loops_t *f, const search_t *s, work_t *w, const float *x, Py_ssize_t k,
                float unit_norm, double shift, double size, double scale) noexcept nogil:
    # steps 1 and 2
    cdef Py_ssize_t c, i, at = 0, n_scanned = 0, m = _n_first_best(k), n_evidence, n
    cdef float slack, t
    cdef top_t top
    cdef uint64_t computed = 0

    n_evidence = _n_evidence(s, k)
    top = top_begin(w.evidence_keys, 3 * n_evidence + 64, n_evidence)
    tabulate(w.projected, s.n_bits // 4, w.lut, &w.a, &w.b)
    if s.n_cells:
        n_scanned = _scan_cells(f, s, w, x, k, unit_norm, shift, size, scale, &top)
    else:
        w.n_scanned += _estimate(f, s, w, 0, s.n, 0)
        _rank(f, s, w, 0, s.n, False, 0, 0, &top)
    top_kth(&top)

    n = min(m, top.n)
    select_smallest(w.evidence_keys, top.n, n)
    for i in range(n):
        computed = max(computed, w.evidence_keys[i])
    _compute(f, s, w, x, w.evidence_keys, NULL, n)
    if s.has_rough:
        w.error = _rough_error(f, s, w, x, w.evidence_keys, n)
    t = _threshold(_kth(w), shift, size, scale)
    slack = s.deviations * (_distance(s, unit_norm, w.weight * t) if s.euclidean else unit_norm)

    if s.n_cells:
        at = _consider(f, s, w, s.cell_start[s.n_cells], s.n, True, slack, t, computed, 0)
        for i in range(n_scanned):
            c = key_id(w.cell_keys[i])
            at = _consider(f, s, w, s.cell_start[c], s.cell_start[c + 1], False, slack, t, computed,
                           at)
    else:
        _consider(f, s, w, 0, s.n, False, slack, t, computed, 0)

    if w.n_found > m:
        select_smallest(w.found, w.n_found, m)
        _compute(f, s, w, x, w.found, NULL, m)
        t = _threshold(_kth(w), shift, size, scale)
        i = m
        for c in range(m, w.n_found):
            w.found[i] = w.found[c]
            i += key_score(w.found[c]) >= t
        _compute(f, s, w, x, w.found + m, NULL, i - m)
    else:
        _compute(f, s, w, x, w.found, NULL, w.n_found)


cdef void _compute_short(const loops_t *f, const search_t *s, work_t *w, const float *x,
                         float unit_norm, double shift, double size, double scale) noexcept nogil:
    # step 3, some neurons at a time, because each may raise the threshold for the rest
    cdef Py_ssize_t i = 0, n, most = 8
    cdef float reach = s.short_deviations * unit_norm
    cdef int32_t ids[ROWS_PER_CALL]
    if s.biases != NULL:  # norms are those of (v, bias), and the query is (q, weight)
        reach = <float>sqrt(reach * reach + w.weight * w.weight)
    while i < s.n_short and (s.short_norms[i] * reach
                             >= _threshold(_kth(w), shift, size, scale)):
        n = 0
        while i < s.n_short and n < most:
            ids[n] = s.short_ids[i]
            n += w.able == NULL or w.able[s.short_ids[i]] != 0
            i += 1
        _compute(f, s, w, x, NULL, ids, n)
        w.n_short += n
        most = min(2 * most, <Py_ssize_t>ROWS_PER_CALL)


cdef void _find(const loops_t *f, const search_t *s, work_t *w, const float *x, Py_ssize_t k,
                const int32_t *only, Py_ssize_t n_only, double unit) noexcept nogil:
    # steps 1 to 3 for a query whose projection, times `unit`, is in w.projected; if n_only >= 0,
    # all neurons of `only` are computed instead
    cdef Py_ssize_t i
    cdef float unit_norm
    cdef double shift, size, square = 0

    w.n_found, w.error, w.last_checked = 0, 0, 0
    w.best = top_begin(w.best_keys, 4 * k + 64, k)
    if s.has_rough:
        w.wide = top_begin(w.wide_keys, 3 * _n_wide(k) + 64, _n_wide(k))
    if n_only >= 0:
        _compute(f, s, w, x, NULL, only, n_only)
        return
    w.weight = <float>unit
    if s.euclidean:
        for i in range(s.d):
            square += (<double>x[i] - s.offset[i]) * (<double>x[i] - s.offset[i])
        square *= unit * unit
    else:
        square = <double>f.dot(w.projected, w.projected, s.n_bits) * s.n_dims / s.n_bits
    unit_norm = <float>sqrt(square / max(s.n_dims - 1, <Py_ssize_t>1))
    shift = <double>f.dot(s.offset, x, s.d) + s.offset[s.d]
    size = s.offset_norm * sqrt(<double>f.dot(x, x, s.d)) if s.offset_norm > 0 else 0
    if s.n:
        _scan(f, s, w, x, k, unit_norm, shift, size, s.scale * unit)
    _compute_short(f, s, w, x, unit_norm, shift, size, s.scale * unit)


cdef double _in_range(const loops_t *f, const search_t *s, work_t *w) noexcept nogil:
    # scale the projection where squares of it would be inexact; returns the factor
    cdef Py_ssize_t i
    cdef float peak = 0
    cdef double unit = 1
    if 1e-24 < f.dot(w.projected, w.projected, s.n_bits) < 1e24:
        return unit
    for i in range(s.n_bits):
        peak = max(peak, fabsf(w.projected[i]))
    if peak > 0:
        unit = 1 / <double>peak
        for i in range(s.n_bits + s.n_cells + s.n_spread):
            w.projected[i] = <float>(w.projected[i] * unit)
    return unit


cdef bint _ranks(const loops_t *f, const search_t *s, work_t *w, const float *x, Py_ssize_t k,
                 top_t *exact) noexcept nogil:
    # the k best of w.wide by the weights themselves; false if one that is not among them may be
    # better: if its score is off by twice as much as the worst of those that are
    cdef Py_ssize_t c, n, i = 0
    cdef float rough, score, error = 0, last = INFINITY
    top_kth(&w.wide)
    exact[0] = top_begin(w.best_keys, 4 * k + 64, k)
    while i < w.wide.n:
        n = min(<Py_ssize_t>ROWS_PER_CALL, w.wide.n - i)
        for c in range(n):
            w.rows[c] = key_id(w.wide_keys[i + c])
        quantized_dots(f, &s.exact, w.rows, n, x, w.products)
        for c in range(n):
            rough, score = key_score(w.wide_keys[i + c]), w.products[c] + s.bias[w.rows[c]]
            error, last = max(error, fabsf(rough - score)), min(last, rough)
            top_push(exact, score, w.rows[c])
        i += n
    return w.wide.n < _n_wide(k) or last + 2 * error < top_kth(exact)


cdef void _answer(const loops_t *f, const search_t *s, work_t *w, const float *x, Py_ssize_t k,
                  const int32_t *only, Py_ssize_t n_only, int32_t *out_ids,
                  float *out_scores) noexcept nogil:
    # one query, whose projection is in w.projected
    cdef double unit = _in_range(f, s, w) if n_only < 0 else 1.0
    cdef search_t by_weights
    cdef top_t exact

    w.n_scanned = w.n_computed = w.n_short = 0
    _find(f, s, w, x, k, only, n_only, unit)
    if s.has_rough:
        if _ranks(f, s, w, x, k, &exact):
            top_end(&exact, True, out_ids, out_scores)
            return
        by_weights = s[0]
        by_weights.has_rough = False
        _find(f, &by_weights, w, x, k, only, n_only, unit)
    top_end(&w.best, True, out_ids, out_scores)


cdef void _mark(uint8_t *able, const int32_t *ids, Py_ssize_t n, bint value,
                const uint8_t *base) noexcept nogil:
    # able[j] = value, or base[j] if there is one, for the ids j
    cdef Py_ssize_t c
    if base != NULL:
        for c in range(n):
            able[ids[c]] = base[ids[c]]
    else:
        for c in range(n):
            able[ids[c]] = value


cdef void _answer_listed(const loops_t *f, const search_t *s, work_t *w, const float *x,
                         Py_ssize_t k, const selection_t *selection, Py_ssize_t i,
                         int32_t *out_ids, float *out_scores) noexcept nogil:
    # `_answer` for query i of a selection; w.own_able is left as it was
    cdef const uint8_t *base = selection.base
    cdef bint only = selection.only
    cdef const int32_t *listed
    cdef Py_ssize_t n

    if selection.indptr == NULL:
        _answer(f, s, w, x, k, NULL, -1, out_ids, out_scores)
        return
    listed = selection.listed + selection.indptr[i]
    n = selection.indptr[i + 1] - selection.indptr[i]
    if only and base == NULL and n <= max(4 * _n_first_best(k) + ROWS_PER_CALL,
                                          s.n_neurons // NEURONS_PER_LISTED):
        _answer(f, s, w, x, k, listed, n, out_ids, out_scores)
        return
    _mark(w.own_able, listed, n, only, base if only else NULL)
    _answer(f, s, w, x, k, NULL, -1, out_ids, out_scores)
    if n * LISTED_PER_COPY > s.n_neurons and (base == NULL or only):
        memset(w.own_able, not only, s.n_neurons)
    else:
        _mark(w.own_able, listed, n, not only, NULL if only else base)


cdef int _selection_of(able, indptr, listed, bint only, selection_t *selection) except -1:
    cdef const uint8_t[::1] able_view
    cdef const int64_t[::1] indptr_view
    cdef const int32_t[::1] listed_view
    memset(selection, 0, sizeof(selection_t))
    selection.only = only
    if able is not None:
        able_view = able
        selection.base = &able_view[0]
    if indptr is not None:
        indptr_view, listed_view = indptr, listed
        selection.indptr = &indptr_view[0]
        if listed_view.shape[0]:
            selection.listed = &listed_view[0]
    return 0


cdef void _project(const loops_t *f, const search_t *s, work_t *w,
                   const float *x) noexcept nogil:
    # the rotated query and its products with the means of the cells
    cdef Py_ssize_t r, k, n, first = s.n_bits if s.signs != NULL else 0, rotation = 0
    cdef Py_ssize_t n_mapped = s.n_bits + s.n_cells + s.n_spread - first
    if n_mapped:
        f.dots_bfloat16(s.query_rows, NULL, n_mapped, x, s.d, w.projected + first)
    for r in range(n_mapped):
        w.projected[first + r] += s.query_constant[r]
    while rotation * s.d < first:
        for k in range(s.d):
            w.rotated[k] = x[k] - s.offset[k] if s.euclidean else x[k]
        rotate_row(f, s.signs + rotation * ROTATION_ROUNDS * s.order, s.order, s.d, w.rotated,
                   w.rotated + s.d)
        n = min(s.d, first - rotation * s.d)
        memcpy(w.projected + rotation * s.d, w.rotated, n * sizeof(float))
        rotation += 1


cdef int _search(const search_t *s, const selection_t *selection, const float *x, Py_ssize_t n,
                 Py_ssize_t k, int32_t *out_ids, float *out_scores) except -1 nogil:
    cdef const loops_t *f = table()
    cdef Py_ssize_t i
    cdef work_t w
    cdef bint failed

    if _begin(&w, s, k, selection) < 0:
        with gil:
            raise MemoryError()
    for i in range(n):
        _project(f, s, &w, x)
        _answer_listed(f, s, &w, x, k, selection, i, out_ids, out_scores)
        x += s.d
        out_ids += k
        out_scores += k
    failed = w.failed
    _end(&w)
    if failed:
        with gil:
            raise MemoryError()
    return 0


cdef int search_queries(BoundedSearch search, const float *x, Py_ssize_t n, Py_ssize_t k,
                        int32_t *out_ids, float *out_scores) except -1 nogil:
    # n queries, one after the other; k > 0
    cdef selection_t everything
    memset(&everything, 0, sizeof(selection_t))
    return _search(&search.s, &everything, x, n, k, out_ids, out_scores)


def top_k(BoundedSearch search, const float[:, ::1] x, able, indptr, listed, bint only,
          int32_t[:, ::1] out_ids, float[:, ::1] out_scores):
    """The k neurons with the largest w[j] . x[i] + bias[j], best first: for a few queries.

    able is None, or uint8 (n_neurons,), 0 for neurons that no query may find. indptr and listed are
    None, or the neurons listed for each query, int64 and int32, distinct per query: with `only` it
    may find those alone, else all others. out_ids and out_scores are (n_queries, k), filled up with
    -1 and -inf. One thread. Per query
    O((n_bits + n_cells + n_spread) d + n_cells + scanned slots * n_bits / 128
    + computed neurons * d).
    """
    cdef selection_t selection
    if x.shape[0] == 0 or out_ids.shape[1] == 0:
        return
    _selection_of(able, indptr, listed, only, &selection)
    with nogil:
        _search(&search.s, &selection, &x[0, 0], x.shape[0], out_ids.shape[1], &out_ids[0, 0],
                &out_scores[0, 0])


def top_k_batch(BoundedSearch search, const float[:, ::1] x, const float[:, ::1] projected, able,
                indptr, listed, bint only, int32_t[:, ::1] out_ids, float[:, ::1] out_scores,
                int64_t[:, ::1] counts, int n_threads):
    """`top_k` for many queries.

    projected, (n_queries, n_bits + n_cells + n_spread), is what query_rows and query_constant make
    of x.
    counts is (n_queries, 3): neurons computed, slots scanned, and neurons computed that have no
    sketch.
    """
    cdef Py_ssize_t i, j, n = x.shape[0], k = out_ids.shape[1], n_rows = projected.shape[1]
    cdef const search_t *s = &search.s
    cdef const loops_t *f = table()
    cdef selection_t selection
    cdef bint failed = False
    cdef work_t *works
    cdef int thread

    if n == 0 or k == 0:
        return
    _selection_of(able, indptr, listed, only, &selection)
    works = <work_t *>calloc(n_threads, sizeof(work_t))
    if works == NULL:
        raise MemoryError()
    try:
        for i in range(n_threads):
            if _begin(&works[i], s, k, &selection) < 0:
                raise MemoryError()
        for i in prange(n, nogil=True, schedule="dynamic", num_threads=n_threads):
            thread = threadid()
            memcpy(works[thread].projected, &projected[i, 0], n_rows * sizeof(float))
            _answer_listed(f, s, &works[thread], &x[i, 0], k, &selection, i, &out_ids[i, 0],
                           &out_scores[i, 0])
            counts[i, 0], counts[i, 1] = works[thread].n_computed, works[thread].n_scanned
            counts[i, 2] = works[thread].n_short
        for i in range(n_threads):
            failed = failed or works[i].failed
        if failed:
            raise MemoryError()
    finally:
        for j in range(n_threads):
            _end(&works[j])
        free(works)
