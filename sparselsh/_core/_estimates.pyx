"""Estimates of all outputs, and sums over all outputs of which few are computed.

By sign sketches, the estimate of w[j] . x + bias[j] and its standard deviation are those of
_bounded_search, for every neuron. A neuron without a sketch, of which only the norm is known, is
estimated by its bias; its deviation is that of a vector of this norm in a random direction. By rows
in int8, whose errors are known (_quantized.int8_errors), estimates are 20 to 80 times as accurate.

Beside the estimates, scores and distances of given neurons are computed here.
"""
from cython.parallel cimport prange, threadid
from libc.math cimport INFINITY, fmin, isfinite, ldexp, log1p, sqrt
from libc.stdint cimport int8_t, int32_t, int64_t, uint8_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy

from ._order cimport (
    key_id, random_at, select_smallest, top_begin, top_floor, top_kth, top_push, top_t,
)
from ._portable_math cimport portable_exp as exp, portable_log as log
from ._quantized cimport quantized_dots, quantized_rows_of, quantized_rows_t
from ._simd cimport SKETCH_BLOCK_NEURONS, loops_t, table
from ._sketches cimport BLOCKS_PER_SCAN, SCAN_BUFFER_LENGTH, tabulate

cdef enum:
    ROWS_PER_CALL = 256  # whose inner products are computed at a time
    N_BEST = 128  # neurons that a sum computes because they are probably large,
    N_DRAWN = 256  # and of the others, at first; twice as many in each round
    MAX_DRAWN_FRACTION = 4  # beyond n / this, all neurons are computed
    NEURONS_PER_SUM = 64  # neighbours whose probabilities are summed
    LANES = 8  # partial sums of a distance
    NUMBERS_PER_SUM = 4096  # numbers that are summed in float32; the sums are in double

cdef double MAX_TILT_DEVIATIONS = 3  # of an estimate, by which a neuron is drawn more often
cdef double ERROR_DEVIATIONS = 4  # standard deviations that an error reaches
cdef double ROUNDING = 4e-7  # of a float32 inner product, relative to the norms
cdef float NO_CHANCE = 1e-37  # exp_sum takes this for the exponential of -87 and less


ctypedef struct estimator_t:
    Py_ssize_t n_groups, n, n_neurons, n_short
    double scale
    const uint8_t *blocks
    const float *factors
    const float *errors
    const float *biases
    const int32_t *ids
    const int32_t *short_ids
    const float *short_biases
    const float *short_errors


cdef class Estimator:
    """The arrays of sketches, which it keeps alive."""
    cdef object arrays
    cdef estimator_t e


def prepare(const uint8_t[:, ::1] blocks, const float[::1] factors, const float[::1] errors,
            const float[::1] biases, const int32_t[::1] ids, Py_ssize_t n, Py_ssize_t n_neurons,
            const int32_t[::1] short_ids, const float[::1] short_biases,
            const float[::1] short_errors, double scale):
    """An estimator from the arrays of _bounded_search.prepare.

    Neuron short_ids[k] has no sketch; its bias and the norm of the rest of its vector are
    short_biases[k] and short_errors[k]. Both are, like all of a sketch, of vectors times `scale`.
    """
    cdef Estimator estimator = Estimator()
    cdef estimator_t *e = &estimator.e
    estimator.arrays = (blocks, factors, errors, biases, ids, short_ids, short_biases, short_errors)
    e.n_groups, e.n, e.n_neurons = blocks.shape[1] // 16, n, n_neurons
    e.n_short, e.scale = short_ids.shape[0], scale
    if n:
        e.blocks, e.factors, e.errors = &blocks[0, 0], &factors[0], &errors[0]
        e.biases = &biases[0] if biases.shape[0] else NULL
        e.ids = &ids[0]
    if e.n_short:
        e.short_ids, e.short_biases = &short_ids[0], &short_biases[0]
        e.short_errors = &short_errors[0]
    return estimator


cdef void _estimate(const loops_t *f, const estimator_t *e, const float *rotated, double unit,
                    double unit_norm, double shift, uint8_t *lut, float *scores, float *out,
                    float *deviations) noexcept nogil:
    # scores holds a scan; all of `out` and `deviations` is written
    cdef Py_ssize_t block = 0, first, n_chunk, k, j
    cdef Py_ssize_t n_blocks = (e.n + SKETCH_BLOCK_NEURONS - 1) // SKETCH_BLOCK_NEURONS
    cdef float a, b
    cdef double back = 1 / (e.scale * unit), spread = unit_norm * back

    for j in range(e.n_neurons):
        out[j] = -INFINITY
        deviations[j] = 0
    tabulate(rotated, e.n_groups, lut, &a, &b)
    while block < n_blocks:
        first = block * <Py_ssize_t>SKETCH_BLOCK_NEURONS
        n_chunk = min(<Py_ssize_t>BLOCKS_PER_SCAN, n_blocks - block)
        f.sketch_scan(e.blocks + block * e.n_groups * 16, n_chunk, e.n_groups, lut, a, b,
                      e.factors + first, e.biases + first if e.biases != NULL else NULL,
                      <float>unit, NULL, 0, 0, NULL, scores)
        for k in range(min(n_chunk * <Py_ssize_t>SKETCH_BLOCK_NEURONS, e.n - first)):
            j = e.ids[first + k]
            if j >= 0:
                out[j] = <float>(scores[k] * back + shift)
                deviations[j] = <float>(e.errors[first + k] * spread)
        block += n_chunk
    for k in range(e.n_short):
        j = e.short_ids[k]
        out[j] = <float>(e.short_biases[k] / e.scale + shift)
        deviations[j] = <float>(e.short_errors[k] * spread)


def estimate(Estimator estimator, const float[:, ::1] rotated, const double[::1] units,
             const double[::1] unit_norms, const double[::1] shifts, float[:, ::1] out,
             float[:, ::1] deviations, int n_threads):
    """Estimates of w[j] . x[i] + bias[j], and their standard deviations: (n_queries, n_neurons).

    rotated[i] is units[i] times the rotated query i, (n_bits,), and unit_norms[i] the deviation of
    its inner product with a vector of length 1 in a random direction. shifts[i] is the inner
    product of x[i] with the mean neuron. Neurons that are neither in a slot nor among the short
    ones have -inf and 0. Per query O(n_neurons * n_bits / 128) byte shuffles.
    """
    cdef Py_ssize_t i, n = out.shape[0]
    cdef const estimator_t *e = &estimator.e
    cdef const loops_t *f = table()
    cdef uint8_t *luts
    cdef float *scores
    cdef int thread

    if n == 0 or e.n_neurons == 0:
        return
    luts = <uint8_t *>malloc(n_threads * e.n_groups * 16)
    scores = <float *>malloc(n_threads * SCAN_BUFFER_LENGTH * sizeof(float))
    try:
        if luts == NULL or scores == NULL:
            raise MemoryError()
        for i in prange(n, nogil=True, schedule="dynamic", num_threads=n_threads):
            thread = threadid()
            _estimate(f, e, &rotated[i, 0], units[i], unit_norms[i], shifts[i],
                      luts + thread * e.n_groups * 16, scores + thread * SCAN_BUFFER_LENGTH,
                      &out[i, 0], &deviations[i, 0])
    finally:
        free(luts)
        free(scores)


# -- the logarithm of a sum of exponentials --------------------------------------------------------


cdef double _log_of_row(const loops_t *f, float *z, Py_ssize_t n) noexcept nogil:
    # log sum exp of a row, which is overwritten
    cdef Py_ssize_t start = 0
    cdef float largest = f.max(z, n)
    cdef double total = 0
    if not isfinite(largest):
        return largest
    while start < n:
        total += f.exp_sum(z + start, min(<Py_ssize_t>NUMBERS_PER_SUM, n - start), largest)
        start += NUMBERS_PER_SUM
    return largest + log(total)


def log_sum_exp_rows(float[:, ::1] z, double[::1] out, int n_threads):
    """out[i] = log sum_j exp(z[i, j]), where z, which is overwritten, has a column.   O(size of z)

    It is -inf where all of a row is, and not finite where an entry is +inf.
    """
    cdef Py_ssize_t i, n = z.shape[0], m = z.shape[1]
    cdef const loops_t *f = table()
    for i in prange(n, nogil=True, schedule="static", num_threads=n_threads):
        out[i] = _log_of_row(f, &z[i, 0], m)


ctypedef struct draw_t:
    float *estimates
    float *tilted      # then exp(tilted - the largest of them)
    double *sums       # of NEURONS_PER_SUM of these
    float *products
    int32_t *rows
    uint64_t *keys


cdef Py_ssize_t _n_sums(Py_ssize_t n) noexcept nogil:
    return (n + NEURONS_PER_SUM - 1) // NEURONS_PER_SUM


cdef int _begin(draw_t *w, Py_ssize_t n) noexcept nogil:
    # one block of memory, the widest numbers first; -1 if there is not enough
    cdef Py_ssize_t n_keys = 3 * N_BEST + 64
    w.sums = <double *>malloc(8 * (_n_sums(n) + n_keys) + 4 * (2 * n + 2 * ROWS_PER_CALL))
    if w.sums == NULL:
        return -1
    w.keys = <uint64_t *>(w.sums + _n_sums(n))
    w.estimates = <float *>(w.keys + n_keys)
    w.tilted = w.estimates + n
    w.products = w.tilted + n
    w.rows = <int32_t *>(w.products + ROWS_PER_CALL)
    return 0


cdef uint64_t _seed(const float *x, Py_ssize_t d) noexcept nogil:
    # of the bits of a query, so that its answer does not depend on the queries around it
    cdef uint64_t seed = 0x9E3779B97F4A7C15
    cdef uint64_t bits
    cdef Py_ssize_t k
    for k in range(d):
        bits = 0
        memcpy(&bits, x + k, sizeof(float))
        seed = (seed ^ bits) * <uint64_t>0x100000001B3
        seed ^= seed >> 29
    return seed


cdef double _uniform(uint64_t seed, uint64_t counter) noexcept nogil:
    return (random_at(seed, counter) >> 11) * 1.1102230246251565e-16


cdef void _outputs(const loops_t *f, const quantized_rows_t *w, const float *bias, const float *x,
                   float *out) noexcept nogil:
    # all of them, of rows in any dtype
    cdef Py_ssize_t j
    quantized_dots(f, w, NULL, w.n, x, out)
    for j in range(w.n):
        out[j] += bias[j]


cdef double _norm(const float *x, Py_ssize_t d) noexcept nogil:
    # in double: squares in float32 may vanish or overflow
    cdef double square = 0
    cdef Py_ssize_t k
    for k in range(d):
        square += <double>x[k] * x[k]
    return sqrt(square)


cdef double _coded_norm(const quantized_rows_t *codes, Py_ssize_t j) noexcept nogil:
    # the length of a row in int8
    cdef const int8_t *row = <const int8_t *>codes.rows + j * codes.d
    cdef int64_t square = 0
    cdef Py_ssize_t k
    for k in range(codes.d):
        square += <int32_t>row[k] * <int32_t>row[k]
    return codes.scales[j] * sqrt(<double>square)


cdef void _sum_row(const loops_t *f, const quantized_rows_t *codes, const float *code_errors,
                   const quantized_rows_t *w, const float *bias, const float *x, double wanted,
                   draw_t *work, double *out, double *error, int64_t *count) noexcept nogil:
    cdef Py_ssize_t n = w.n, n_sums = _n_sums(n), i, j, k, b, n_best, n_round = N_DRAWN, n_done
    cdef Py_ssize_t n_drawn = 0
    cdef float largest
    cdef double size = _norm(x, w.d), mass = 0, below, target, chance, deviation
    cdef double spread = size / sqrt(<double>w.d), rounding, mean, variance
    cdef double term, terms = 0, squares = 0, expected = 0, total, shift
    cdef uint64_t seed = _seed(x, w.d), counter = 0
    cdef top_t top = top_begin(work.keys, 3 * N_BEST + 64, N_BEST)

    # E exp(2 z) for an output z with this mean and deviation is exp(2 (estimate + deviation^2))
    _outputs(f, codes, bias, x, work.estimates)
    for j in range(n):
        deviation = code_errors[j] * spread
        work.tilted[j] = <float>(work.estimates[j]
                                 + deviation * fmin(deviation, MAX_TILT_DEVIATIONS))
        if work.tilted[j] >= top_floor(&top):
            top_push(&top, work.tilted[j], <int32_t>j)
    top_kth(&top)
    n_best = min(top.n, <Py_ssize_t>N_BEST)
    select_smallest(work.keys, top.n, n_best)

    largest = -INFINITY
    for k in range(n_best):
        work.rows[k] = key_id(work.keys[k])
        work.tilted[work.rows[k]] = -INFINITY
    quantized_dots(f, w, work.rows, n_best, x, work.products)
    for k in range(n_best):
        work.products[k] += bias[work.rows[k]]
        if work.products[k] > largest:
            largest, i = work.products[k], work.rows[k]
    count[0], error[0] = n_best, 0
    if n_best == 0 or largest == -INFINITY:
        out[0] = largest
        return

    rounding = ROUNDING * (1 + size * _coded_norm(codes, i))
    shift = <double>largest
    total = 0
    for k in range(n_best):
        total += exp(work.products[k] - shift)

    largest = f.max(work.tilted, n)
    error[0] = rounding
    if largest == -INFINITY:  # there are no others
        out[0] = shift + log(total)
        return
    for b in range(n_sums):
        j = b * NEURONS_PER_SUM
        work.sums[b] = f.exp_sum(work.tilted + j, min(<Py_ssize_t>NEURONS_PER_SUM, n - j), largest)
        mass += work.sums[b]

    while isfinite(total) and isfinite(mass) and (n_drawn + n_round) * MAX_DRAWN_FRACTION <= n:
        # one draw in each of n_round equal parts of the probability
        n_done = b = 0
        below = 0
        while n_done < n_round:
            k = 0
            while n_done < n_round and k < ROWS_PER_CALL:
                target = (n_done + _uniform(seed, counter)) * mass / n_round
                while b < n_sums - 1 and below + work.sums[b] <= target:
                    below += work.sums[b]
                    b += 1
                target -= below
                i = b * NEURONS_PER_SUM
                while i < min(n, (b + 1) * NEURONS_PER_SUM) - 1 and work.tilted[i] <= target:
                    target -= work.tilted[i]
                    i += 1
                counter += 1
                n_done += 1
                work.rows[k] = <int32_t>i
                k += 1
            quantized_dots(f, w, work.rows, k, x, work.products)
            for i in range(k):
                j = work.rows[i]
                if work.tilted[j] <= NO_CHANCE:  # computed already, or too small to count
                    continue
                chance = work.tilted[j] / mass
                term = exp(fmin(<double>work.products[i] + bias[j] - shift, 700)) / chance
                deviation = code_errors[j] * spread
                terms += term
                squares += term * term
                expected += term * term * deviation * deviation
        n_drawn += n_round
        mean = terms / n_drawn
        variance = max(squares / n_drawn - mean * mean, expected / n_drawn) / n_drawn
        term = ERROR_DEVIATIONS * sqrt(variance) / (total + mean)
        count[0] = n_best + n_drawn
        if term < 1:
            out[0] = shift + log(total + mean)
            error[0] = rounding - log1p(-term)
            if error[0] <= max(wanted, 2 * rounding):
                return
        n_round = n_drawn

    count[0] = n
    _outputs(f, w, bias, x, work.estimates)
    out[0], error[0] = _log_of_row(f, work.estimates, n), rounding


def log_sum_exp(codes, scales, const float[::1] code_errors, const float[:, ::1] x, w,
                const float[::1] bias, double wanted, double[::1] out, double[::1] errors,
                int64_t[::1] counts, int n_threads):
    """out[i] ~ log sum_j exp(w[j] . x[i] + bias[j]); neurons with the bias -inf do not count.

    codes and scales stand for w in int8, as in _quantized, and code_errors[j] |x| bounds the error
    of their inner product. The neurons with the largest estimates are computed by w, float32. Of
    the others some are drawn with probabilities p in proportion to exp(estimate + deviation^2); the
    mean of exp(output) / p over the draws is an unbiased estimate of their sum. errors[i] is four
    standard deviations of it, in the logarithm, and rounding. Draws are doubled until it is at most
    `wanted`, or a fourth of the neurons would be drawn: then all are computed. Draws depend on the
    bits of the query alone. counts is the number of neurons computed by w. Per query
    O(n_neurons * d) in int8, and O(counts * d) in float32.
    """
    cdef Py_ssize_t i, t, n = x.shape[0]
    cdef const loops_t *f = table()
    cdef quantized_rows_t coded, rows
    cdef draw_t *works

    quantized_rows_of(codes, scales, &coded)
    quantized_rows_of(w, None, &rows)
    if n == 0:
        return
    works = <draw_t *>calloc(n_threads, sizeof(draw_t))
    if works == NULL:
        raise MemoryError()
    try:
        for t in range(n_threads):
            if _begin(&works[t], rows.n) < 0:
                raise MemoryError()
        for i in prange(n, nogil=True, schedule="dynamic", num_threads=n_threads):
            _sum_row(f, &coded, &code_errors[0], &rows, &bias[0], &x[i, 0], wanted,
                     &works[threadid()], &out[i], &errors[i], &counts[i])
    finally:
        for t in range(n_threads):
            free(works[t].sums)
        free(works)


def coded_outputs(codes, scales, const float[::1] code_errors, const float[::1] bias,
                  const float[:, ::1] x, float[:, ::1] out, float[:, ::1] deviations,
                  int n_threads):
    """out[i, j] ~ w[j] . x[i] + bias[j] by the codes of `log_sum_exp`, and standard deviations.

    The deviations are those of an error of the length code_errors[j] in a random direction; 0 where
    the bias is -inf. Both are (n_queries, n_neurons). O(size of out * d)
    """
    cdef Py_ssize_t i, j, n = x.shape[0]
    cdef const loops_t *f = table()
    cdef quantized_rows_t coded
    cdef double spread

    quantized_rows_of(codes, scales, &coded)
    for i in prange(n, nogil=True, schedule="static", num_threads=n_threads):
        _outputs(f, &coded, &bias[0], &x[i, 0], &out[i, 0])
        spread = _norm(&x[i, 0], coded.d) / sqrt(<double>coded.d)
        for j in range(coded.n):
            deviations[i, j] = <float>(code_errors[j] * spread) if bias[j] > -INFINITY else 0


# -- scores of given neurons -----------------------------------------------------------------------


cdef void _score_row(const loops_t *f, const quantized_rows_t *w, const float *bias, const float *x,
                     const int32_t *ids, Py_ssize_t n, int32_t *rows, float *out) noexcept nogil:
    cdef Py_ssize_t start = 0, k, n_rows
    while start < n:
        n_rows = min(<Py_ssize_t>ROWS_PER_CALL, n - start)
        for k in range(n_rows):
            rows[k] = max(ids[start + k], <int32_t>0)
        quantized_dots(f, w, rows, n_rows, x, out + start)
        for k in range(n_rows):
            if ids[start + k] >= 0:
                out[start + k] += bias[rows[k]]
            else:
                out[start + k] = -INFINITY
        start += n_rows


def score(const int32_t[:, ::1] ids, const float[:, ::1] x, w, const float[::1] bias,
          float[:, ::1] out, int n_threads):
    """out[i, k] = w[j] . x[i] + bias[j] for j = ids[i, k]; -inf where that is -1.

    w is float32, (n_neurons, d), and has a row. O(size of ids * d)
    """
    cdef Py_ssize_t i, n = ids.shape[0], n_ids = ids.shape[1]
    cdef const loops_t *f = table()
    cdef quantized_rows_t s
    cdef int32_t *rows

    quantized_rows_of(w, None, &s)
    if n == 0 or n_ids == 0:
        return
    rows = <int32_t *>malloc(n_threads * ROWS_PER_CALL * sizeof(int32_t))
    if rows == NULL:
        raise MemoryError()
    try:
        for i in prange(n, nogil=True, schedule="static", num_threads=n_threads):
            _score_row(f, &s, &bias[0], &x[i, 0], &ids[i, 0], n_ids,
                       rows + threadid() * <Py_ssize_t>ROWS_PER_CALL, &out[i, 0])
    finally:
        free(rows)


# -- distances of given rows -----------------------------------------------------------------------


cdef double _distance(const float *x, const float *w, Py_ssize_t d) noexcept nogil:
    cdef double sums[LANES]
    cdef double difference, total = 0
    cdef Py_ssize_t k, group, lane
    for lane in range(LANES):
        sums[lane] = 0
    for group in range(d // LANES):
        for lane in range(LANES):
            difference = <double>x[group * LANES + lane] - w[group * LANES + lane]
            sums[lane] += difference * difference
    for k in range(d - d % LANES, d):
        difference = <double>x[k] - w[k]
        total += difference * difference
    for lane in range(LANES):
        total += sums[lane]
    return sqrt(total)


cdef bint _relative(const float *x, const float *origin, double scale, Py_ssize_t d,
                    float *out) noexcept nogil:
    # out = scale * x - origin; returns whether all of it is within float32
    cdef Py_ssize_t k
    cdef bint fits = True
    for k in range(d):
        out[k] = <float>(scale * x[k] - origin[k])
        fits = fits and isfinite(out[k])
    return fits


cdef double _far_distance(const float *x, const float *w, const float *origin, double scale,
                          Py_ssize_t d) noexcept nogil:
    cdef Py_ssize_t k
    cdef double difference, total = 0
    for k in range(d):
        difference = scale * x[k] - origin[k] - w[k]
        total += difference * difference
    return sqrt(total)


def distances(const int32_t[:, ::1] ids, const float[:, ::1] x, const float[:, ::1] w,
              const float[::1] origin, int exponent, float[:, ::1] out, int n_threads):
    """out[i, k] = |s x[i] - origin - w[ids[i, k]]| / s, s = 2^exponent; infinite where that is -1.

    Differences are summed in double: neither a square overflows, nor one that counts vanishes.
    O(size of ids * d)
    """
    cdef Py_ssize_t i, k, n = ids.shape[0], d = w.shape[1]
    cdef double scale = ldexp(1.0, exponent)
    cdef float *relative
    cdef float *q
    cdef bint fits

    relative = <float *>malloc(n_threads * d * sizeof(float))
    if relative == NULL:
        raise MemoryError()
    try:
        for i in prange(n, nogil=True, schedule="static", num_threads=n_threads):
            q = relative + threadid() * d
            fits = _relative(&x[i, 0], &origin[0], scale, d, q)
            for k in range(ids.shape[1]):
                if ids[i, k] < 0:
                    out[i, k] = INFINITY
                elif fits:
                    out[i, k] = <float>(_distance(q, &w[ids[i, k], 0], d) / scale)
                else:
                    out[i, k] = <float>(_far_distance(&x[i, 0], &w[ids[i, k], 0], &origin[0],
                                                      scale, d) / scale)
    finally:
        free(relative)
