"""From the scores of the best labels of a row to their probabilities (calibration.py).

In NumPy the map is some dozens of calls on small arrays: several times as long, for a single row,
as the search that it follows. One thread; a row costs about a microsecond.
"""
from libc.math cimport INFINITY, fabs, fmax, fmin, isfinite, nextafterf
from libc.stdint cimport int64_t, uint8_t
from libc.stdlib cimport free, malloc

from ._portable_math cimport portable_exp as exp, portable_log as log

cdef enum:
    N_FEATURES = 4
    N_GAPS = 6  # scores that the features of a row read, the best one included
    N_BENDS = 3
    N_INPUTS = 1 + (1 + N_BENDS) * N_FEATURES
    POOL_PASSES = 8
    N_POOLED = 7  # the last of the ranks after which log odds may jump, and two more

cdef double[N_BENDS] BENDS = [-1.0, 0.0, 1.0]
cdef double MAX_FEATURE = 3.0, MAX_LOG = 50.0, MAX_PRODUCT = 1e200


cdef double _linear(const double *u, const double *w) noexcept nogil:
    cdef double total = w[0]
    cdef int i
    for i in range(N_INPUTS - 1):
        total += u[i] * w[i + 1]
    return total


cdef void _row_inputs(const float *s, Py_ssize_t n, const double *location, const double *spread,
                      double *u) noexcept nogil:
    """The features of a row, standardized, and their parts beyond the bends."""
    cdef double[N_FEATURES] f
    cdef double best = s[0] if isfinite(s[0]) else 0, crowd = 0, gaps = 0
    cdef Py_ssize_t r, n_gaps = 0
    cdef int i, b

    for r in range(1, min(n, <Py_ssize_t>N_GAPS)):
        if isfinite(s[r]):
            gaps += best - s[r]
            n_gaps += 1
    for r in range(n):
        if isfinite(s[r]):
            crowd += exp(<double>(s[r] - s[0]))
    f[0], f[1] = best, best - s[1] if n > 1 and isfinite(s[1]) else 0
    f[2], f[3] = gaps / max(<Py_ssize_t>1, n_gaps), log(fmax(crowd, 1))
    for i in range(N_FEATURES):
        u[i] = fmin(fmax((f[i] - location[i]) / spread[i], -MAX_FEATURE), MAX_FEATURE)
        for b in range(N_BENDS):
            u[(1 + b) * N_FEATURES + i] = fmax(u[i] - BENDS[b], 0)


cdef double _bent(double x, const double *at, const double *shift, Py_ssize_t n) noexcept nogil:
    """x plus a shift that is interpolated between some points; never falling."""
    cdef double before = at[0] + shift[0], here
    cdef Py_ssize_t i
    if x <= at[0]:
        return before + (x - at[0])
    for i in range(1, n):
        here = fmax(before, at[i] + shift[i])
        if x < at[i]:
            return before + (here - before) * ((x - at[i - 1]) / (at[i] - at[i - 1]))
        before = here
    return before + (x - at[n - 1])


def losses(const float[:, ::1] scores, const uint8_t[:, ::1] hit, const double[::1] n_missed,
           const double[::1] weight, const double[::1] knots, const double[::1] slopes,
           const double[::1] costs, const double[::1] log_t, const double[::1] best,
           const double[::1] rest, bint classes, bint has_tail, double[::1] d_log_t,
           double[::1] d_best, double[::1] d_rest, double[::1] d_slopes, double[::1] d_costs):
    """The negative log-likelihood of rows, and its derivatives by what the map is made of.

    scores are (n, n_ranked), best first, -inf for none; hit marks those that are true, n_missed
    counts the labels beyond them. A row has the logarithm of its temperature, the log odds of its
    best label (of "labels" alone) and those of the rest, or the logarithm of its expected number; a
    rank has a cost. The derivatives by the logarithms of the slopes of phi, and by the costs, are
    added to d_slopes and d_costs.
    """
    cdef Py_ssize_t i, n = scores.shape[0], n_ranked = scores.shape[1]
    cdef double total = 0
    cdef double *g = <double *>malloc(2 * max(n_ranked, 1) * sizeof(double))

    if g == NULL:
        raise MemoryError()
    with nogil:
        for i in range(n):
            d_log_t[i] = d_best[i] = d_rest[i] = 0
            if weight[i] > 0 and n_ranked:
                total += _row_loss(&scores[i, 0], &hit[i, 0], n_ranked, n_missed[i], weight[i],
                                   knots, slopes, costs, log_t[i], best[i], rest[i], classes,
                                   has_tail, g, &d_log_t[i], &d_best[i], &d_rest[i], d_slopes,
                                   d_costs)
    free(g)
    return total


cdef double _row_loss(const float *s, const uint8_t *hit, Py_ssize_t n, double n_missed,
                      double weight, const double[::1] knots, const double[::1] slopes,
                      const double[::1] costs, double log_t, double best, double rest,
                      bint classes, bint has_tail, double *g, double *d_log_t, double *d_best,
                      double *d_rest, double[::1] d_slopes, double[::1] d_costs) noexcept nogil:
    cdef double t = exp(log_t), loss = 0, total = 0, d, e, p, z, gap, log_total = 0
    cdef double *odds = g + n  # which g, of 2 n numbers, has room for
    cdef double product = 1  # whose logarithm is a part of the loss: one logarithm for many ranks
    cdef Py_ssize_t r, k, n_knots = knots.shape[0]

    for r in range(n):
        g[r] = -INFINITY
        if isfinite(s[r]):
            z = 0
            gap = s[0] - s[r]
            for k in range(n_knots):
                if gap <= knots[k]:
                    break
                z += slopes[k] * _part(gap, &knots[0], n_knots, k)
            g[r] = -z * t - costs[r]
            if classes:
                odds[r] = exp(g[r])
                total += odds[r]

    if classes:
        if has_tail:
            total += exp(rest)
        if total <= 0:
            return 0
        log_total = log(total)
        loss = log_total
        d_rest[0] = exp(rest - log_total) * weight if has_tail else 0
        if has_tail and n_missed > 0:
            loss -= rest
            d_rest[0] -= weight
    elif has_tail:
        loss = exp(rest) - n_missed * rest
        d_rest[0] = (exp(rest) - n_missed) * weight

    for r in range(n):
        if g[r] == -INFINITY:
            continue
        if classes:
            p = odds[r] / total
            if hit[r] and not (has_tail and n_missed > 0):
                loss -= g[r]
        else:
            z = g[r] + best
            e = exp(-fabs(z))
            p = (1 if z >= 0 else e) / (1 + e)
            loss += fmax(z, 0) - (z if hit[r] else 0)
            product *= 1 + e
            if product > MAX_PRODUCT:
                loss += log(product)
                product = 1
        d = (p - hit[r]) * weight
        d_costs[r] -= d
        d_log_t[0] += d * (g[r] + costs[r])
        if not classes:
            d_best[0] += d
        gap = s[0] - s[r]
        for k in range(n_knots):
            if gap <= knots[k]:
                break
            d_slopes[k] -= slopes[k] * _part(gap, &knots[0], n_knots, k) * d * t
    return (loss + log(product)) * weight


cdef inline double _part(double gap, const double *knots, Py_ssize_t n_knots,
                         Py_ssize_t k) noexcept nogil:
    """How much of a gap, which is above the knot, lies between it and the next one."""
    if k + 1 < n_knots and gap > knots[k + 1]:
        return knots[k + 1] - knots[k]
    return gap - knots[k]


cdef class Parameters:
    """The parameters of a `Calibration`, whose arrays it keeps alive."""
    def __dealloc__(self):
        free(self.slopes)


def prepare(const double[::1] knots, const double[::1] location, const double[::1] spread,
            const double[::1] temperature, const double[::1] slopes, const double[::1] rank,
            const double[::1] rank_steps, const double[::1] best, const double[::1] rest,
            const double[::1] first_at, const double[::1] first_shift, bint classes,
            int64_t n_labels, Py_ssize_t n_ranked):
    """Parameters for `ranked`, with the names of `Calibration`."""
    cdef Parameters p = Parameters()
    cdef Py_ssize_t r, k, n_knots = knots.shape[0]
    p.arrays = [knots, location, spread, temperature, best, rest, first_at, first_shift]
    p.knots, p.location, p.spread = &knots[0], &location[0], &spread[0]
    p.temperature = &temperature[0]
    p.best, p.rest, p.first_at, p.first_shift = &best[0], &rest[0], &first_at[0], &first_shift[0]
    p.n_knots, p.n_first, p.n_ranked = n_knots, first_at.shape[0], n_ranked
    p.n_labels, p.classes = n_labels, classes
    p.slopes = <double *>malloc((n_knots + max(n_ranked, 1)) * sizeof(double))
    if p.slopes == NULL:
        raise MemoryError()
    p.costs = p.slopes + n_knots
    for k in range(n_knots):
        p.slopes[k] = exp(slopes[k])
    for r in range(n_ranked):
        p.costs[r] = rank[0] * log(<double>(r + 1))
        for k in range(rank_steps.shape[0]):
            if r + 1 > rank_steps[k]:
                p.costs[r] += rank[k + 1]
    return p


def ranked(Parameters parameters, const float[:, ::1] scores, float[:, ::1] p, double[::1] rests):
    """Probabilities p of the ranked labels, (n, n_ranked), and of the rest of each row, (n,).

    scores are best first, -inf for none. The formulas are those of `Calibration`.
    """
    cdef Py_ssize_t i, n = scores.shape[0]
    cdef double *values = <double *>malloc(max(parameters.n_ranked, 1) * sizeof(double))
    if values == NULL:
        raise MemoryError()
    if parameters.n_ranked:
        with nogil:
            for i in range(n):
                rests[i] = ranked_row(parameters, &scores[i, 0], values, &p[i, 0])
    free(values)


cdef double ranked_row(Parameters q, const float *s, double *values, float *p) noexcept nogil:
    # values holds n_ranked
    cdef double[N_INPUTS] u
    cdef double t, gap, phi, left, total, floor, top = s[0] if isfinite(s[0]) else 0, mean, constant
    cdef float below
    cdef Py_ssize_t r, k, _, n = q.n_ranked, n_knots = q.n_knots
    cdef int64_t n_labels = q.n_labels
    cdef const double *knots = q.knots
    cdef bint all_ranked = n == n_labels, classes = q.classes

    _row_inputs(s, n, q.location, q.spread, u)
    t = exp(fmin(fmax(_linear(u, q.temperature), -MAX_LOG), MAX_LOG))
    left = _linear(u, q.rest)
    constant = 0 if classes else _linear(u, q.best)

    # log odds against the best label, or with the constant against none
    for r in range(n):
        if not isfinite(s[r]):
            values[r] = -INFINITY
            continue
        gap, phi = fmax(top - s[r], 0), 0
        for k in range(n_knots):
            if gap <= knots[k]:
                break
            phi += q.slopes[k] * _part(gap, knots, n_knots, k)
        values[r] = -phi * t - q.costs[r] + constant

    floor = 1.0 / max(<int64_t>1, n_labels - n)
    if classes:
        if all_ranked:
            left = -INFINITY
        top = fmax(left, 0)  # the log odds are at most 0
        total = exp(left - top)
        for r in range(n):
            total += exp(values[r] - top)
        left = exp(left - top) / total if total > 0 else 0
        mean = left
        for r in range(n):
            values[r] = fmax(exp(values[r] - top) / total if total > 0 else 0, left * floor)
            mean += values[r]
        mean = fmax(mean, 1e-30)
        for r in range(n):
            values[r] /= mean
        left /= mean
    else:
        values[0] = _bent(values[0], q.first_at, q.first_shift, q.n_first)
        for r in range(n):
            values[r] = 1 / (1 + exp(-values[r]))
        left = 0 if all_ranked else exp(fmin(left, log(<double>n_labels)))
        for _ in range(POOL_PASSES):
            for r in range(min(n, <Py_ssize_t>N_POOLED) - 1):
                if values[r] < values[r + 1]:
                    mean = 0.5 * (values[r] + values[r + 1])
                    values[r] = values[r + 1] = mean
        for r in range(n):
            values[r] = fmax(values[r], left * floor)

    # each below the one before, so that equal roundings do not change the order
    below = INFINITY
    for r in range(n):
        p[r] = <float>values[r] if isfinite(s[r]) else 0
        if r > 0:
            p[r] = <float>fmin(p[r], nextafterf(below, 0))
        below = p[r]
    return left
