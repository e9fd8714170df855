"""Linear classifiers of sparse rows, one per label, each trained on a few of the rows.

    opponents   which rows each classifier learns from
    fit         squared hinge loss, by dual coordinate descent; most weights are dropped
    rerank      candidates by their scores plus those of their classifiers

X is CSR. So is W, (n_labels, n_features): what fit writes. Where rows are short, and the
classifiers of frequent labels long, rerank is faster by W transposed: it then reads the weights of
the features that are there, of all labels, and not those of the candidates, of all features.
"""
from cython.parallel cimport prange, threadid
from libc.math cimport INFINITY, fabsf
from libc.stdint cimport int32_t, int64_t, uint8_t, uint64_t
from libc.stdlib cimport free, malloc

from ._order cimport insertion_sort, key_id, key_score, random_at, score_key
from ._portable_math cimport portable_log
from ._simd cimport loops_t, prefetch_run, table

cdef enum:
    MIN_FIRST_OPPONENTS = 64  # of a label: the first that its classifier learns from
    MAX_PREFETCHED = 128  # entries of the row that comes next
    RANKS_PER_PART = 16  # 64 bytes of candidates
    ROWS_AHEAD = 2  # samples before a row is visited it is prefetched,
    OFFSETS_AHEAD = 6  # and samples before that, where it begins

# Part of the tolerance by which an opponent may miss the margin before it is worth an update.
cdef float SLACK = 0.25

cdef inline void _scatter(float a, const int32_t *indices, const float *data, Py_ssize_t n,
                          float *y) noexcept nogil:
    cdef Py_ssize_t k
    for k in range(n):
        y[indices[k]] += a * data[k]


cdef inline void _clear(const int32_t *indices, Py_ssize_t n, float *y) noexcept nogil:
    cdef Py_ssize_t k
    for k in range(n):
        y[indices[k]] = 0


cdef void _shuffle(int32_t *order, Py_ssize_t n, uint64_t seed, int64_t drawn) noexcept nogil:
    cdef Py_ssize_t q, other
    for q in range(n - 1):
        other = q + <Py_ssize_t>((random_at(seed, drawn + q) >> 32) * <uint64_t>(n - q) >> 32)
        order[q], order[other] = order[other], order[q]


cdef inline void _prefetch_row(rows_t x, int32_t sample) noexcept nogil:
    cdef int32_t i = sample if sample >= 0 else ~sample
    cdef int64_t first = x.indptr[i]
    cdef int64_t count = min(x.indptr[i + 1] - first, <int64_t>MAX_PREFETCHED)
    prefetch_run(x.indices + first, count * sizeof(int32_t))
    prefetch_run(x.data + first, count * sizeof(float))


cdef float _descend(const loops_t *f, const int32_t *samples, Py_ssize_t n, rows_t x,
                    const float *norms, const float *costs, Py_ssize_t n_passes,
                    Py_ssize_t n_passes_again, float tolerance, uint64_t seed, bint warm,
                    float *alpha, int32_t *order, char *touched, float *w) noexcept nogil:
    """Minimize over alpha; w becomes sum_i alpha_i y_i x_i. Returns the bias.

    The bias is the weight of a constant 1. touched marks the samples that were added to w; one that
    was subtracted again may leave a rounding error there.

    The positive samples and the first of the others, which are the hardest, come before all others.
    When they have converged, all are visited. Those whose alpha is 0 and whose gradient says that
    it stays 0 are left out of the passes that follow, until the others have converged again.
    With `warm`, alpha is where to start. If one of them is not 0, all samples are visited first,
    and there are at most n_passes_again passes.
    """
    cdef Py_ssize_t q, n_active = n, _pass
    cdef int32_t e, i
    cdef int64_t first, count, drawn = 0
    cdef float y, diagonal, gradient, projected, a, step, largest, smallest
    cdef float bias = 0, bar = INFINITY
    cdef bint is_whole

    for q in range(n):
        order[q] = <int32_t>q
        touched[q] = 0
        if not warm:
            alpha[q] = 0

    q = 0
    while q < n and samples[q] >= 0:
        q += 1
    n_active = min(n, q + max(MIN_FIRST_OPPONENTS, q))
    if warm:
        for q in range(n):
            if q + ROWS_AHEAD < n and alpha[q + ROWS_AHEAD] > 0:
                _prefetch_row(x, samples[q + ROWS_AHEAD])
            if alpha[q] > 0:
                i = samples[q]
                y = alpha[q]
                if i < 0:
                    i = ~i
                    y = -y
                first = x.indptr[i]
                _scatter(y, x.indices + first, x.data + first, x.indptr[i + 1] - first, w)
                bias += y
                touched[q] = 1
                n_active = n
                n_passes = min(n_passes, n_passes_again)
                bar = -INFINITY
    is_whole = n_active == n

    for _pass in range(n_passes):
        largest = -INFINITY
        smallest = INFINITY
        _shuffle(order, n_active, seed, drawn)
        drawn += n_active

        q = 0
        while q < n_active:
            if q + OFFSETS_AHEAD < n_active:
                i = samples[order[q + OFFSETS_AHEAD]]
                i = i if i >= 0 else ~i
                prefetch_run(x.indptr + i, 2 * sizeof(int64_t))
                prefetch_run(norms + i, sizeof(float))
                prefetch_run(costs + i, sizeof(float))
            if q + ROWS_AHEAD < n_active:
                _prefetch_row(x, samples[order[q + ROWS_AHEAD]])
            e = order[q]
            i = samples[e]
            y = 1
            if i < 0:
                i = ~i
                y = -1
            first = x.indptr[i]
            count = x.indptr[i + 1] - first
            diagonal = 0.5 / costs[i]
            gradient = (y * (bias + f.gather_dot(x.data + first, x.indices + first, count, w))
                        - 1 + diagonal * alpha[e])
            projected = gradient
            if alpha[e] == 0 and gradient > -SLACK * tolerance:
                projected = 0
                if gradient > bar:
                    n_active -= 1
                    order[q], order[n_active] = order[n_active], order[q]
                    continue

            largest = max(largest, projected)
            smallest = min(smallest, projected)
            if fabsf(projected) > 1e-12:
                a = max(alpha[e] - gradient / (norms[i] + 1 + diagonal), <float>0)
                step = (a - alpha[e]) * y
                alpha[e] = a
                touched[e] = 1
                bias += step
                _scatter(step, x.indices + first, x.data + first, count, w)
            q += 1

        if largest - smallest > tolerance:
            is_whole = False
            bar = largest if largest > 0 else INFINITY
        elif is_whole:
            break
        else:
            n_active = n
            is_whole = True
            bar = -INFINITY
    return bias


cdef int32_t _take(const int32_t *samples, Py_ssize_t n, rows_t x, const char *touched,
                   float threshold, float *w, int32_t *ids, float *values) noexcept nogil:
    """Move the weights of w that reach the threshold to ids and values; w is zero afterwards."""
    cdef Py_ssize_t e
    cdef int64_t k
    cdef int32_t i, j, size = 0
    for e in range(n):
        if touched[e]:
            i = samples[e] if samples[e] >= 0 else ~samples[e]
            for k in range(x.indptr[i], x.indptr[i + 1]):
                j = x.indices[k]
                if fabsf(w[j]) >= threshold and w[j] != 0:
                    ids[size] = j
                    values[size] = w[j]
                    size += 1
                w[j] = 0
    return size


def count_opponents(const int64_t[::1] indptr, const int32_t[::1] indices,
                    const uint8_t[::1] is_used, int32_t[:, ::1] candidates, int64_t[::1] counts):
    """Number of samples per label, which is added to counts: rows that have it, and opponents.

    indptr and indices hold the labels of each row. A row is an opponent of its candidates, (n,
    n_candidates), -1 for none. Candidates that the row has as labels, and those of rows that are
    not used, become -1. O(n_candidates * labels of the row) per row
    """
    cdef Py_ssize_t i, r, n_candidates = candidates.shape[1]
    cdef int64_t k
    cdef int32_t j

    with nogil:
        for i in range(candidates.shape[0]):
            for k in range(indptr[i], indptr[i + 1]):
                counts[indices[k]] += is_used[i]
            for r in range(n_candidates):
                j = candidates[i, r]
                for k in range(indptr[i], indptr[i + 1]):
                    if indices[k] == j:
                        j = -1
                if not is_used[i]:
                    j = -1
                candidates[i, r] = j
                if j >= 0:
                    counts[j] += 1


def list_opponents(const int64_t[::1] indptr, const int32_t[::1] indices,
                   const uint8_t[::1] is_used, const int32_t[:, ::1] candidates,
                   int64_t[::1] places, int32_t[::1] samples):
    """The samples that were counted, from places[j] on for label j; places are moved to their ends.

    i for a row that has the label, ~i for an opponent: first the rows that have it, then opponents
    among whose first 16 candidates it is, and so on. O(n_candidates) per row
    """
    cdef Py_ssize_t i, r, part, begin, n_candidates = candidates.shape[1]
    cdef int64_t k
    cdef int32_t j

    with nogil:
        for i in range(candidates.shape[0]):
            if is_used[i]:
                for k in range(indptr[i], indptr[i + 1]):
                    samples[places[indices[k]]] = <int32_t>i
                    places[indices[k]] += 1
        for part in range((n_candidates + RANKS_PER_PART - 1) // RANKS_PER_PART):
            begin = part * RANKS_PER_PART
            for i in range(candidates.shape[0]):
                for r in range(begin, min(begin + RANKS_PER_PART, n_candidates)):
                    j = candidates[i, r]
                    if j >= 0:
                        samples[places[j]] = ~<int32_t>i
                        places[j] += 1


def move_duals(const int64_t[::1] starts, const int32_t[::1] samples, const float[::1] duals,
               const int32_t[::1] rows, const int64_t[::1] new_starts,
               const int32_t[::1] new_samples, int32_t[::1] places, float[::1] new_duals):
    """Write the dual variable of each sample to the sample of the same label and row of others.

    The samples of label j are as in `fit`; row i of the first is row rows[i] of the others, where
    the label has it with the same sign, or its dual variable is lost. places, one entry per row of
    the others, is room. new_duals is zero before. O(len(samples) + len(new_samples))
    """
    cdef Py_ssize_t j, e
    cdef int32_t i, place
    with nogil:
        for e in range(places.shape[0]):
            places[e] = -1
        for j in range(starts.shape[0] - 1):
            for e in range(new_starts[j], new_starts[j + 1]):
                i = new_samples[e]
                places[i if i >= 0 else ~i] = <int32_t>(e - new_starts[j])
            for e in range(starts[j], starts[j + 1]):
                if duals[e] > 0:
                    i = samples[e]
                    place = places[rows[i if i >= 0 else ~i]]
                    if place >= 0 and (new_samples[new_starts[j] + place] >= 0) == (i >= 0):
                        new_duals[new_starts[j] + place] = duals[e]
            for e in range(new_starts[j], new_starts[j + 1]):
                i = new_samples[e]
                places[i if i >= 0 else ~i] = -1


def fit(const int64_t[::1] starts, const int32_t[::1] samples, const int64_t[::1] indptr,
        const int32_t[::1] indices, const float[::1] data, const float[::1] norms,
        const float[::1] costs, Py_ssize_t n_passes, Py_ssize_t n_passes_again, float tolerance,
        float threshold, uint64_t seed, const int64_t[::1] places, float[:, ::1] work,
        int32_t[::1] ids, float[::1] values, int32_t[::1] sizes, float[::1] bias,
        float[::1] duals, int n_threads):
    """min_w |w|^2 / 2 + sum_i costs[i] max(0, 1 - y_i (w . x_i + bias))^2 for each label.

    The samples of label j are samples[starts[j]:starts[j + 1]], an i >= 0 with y = 1, an i < 0 is
    sample ~i with y = -1; it is quickest if positive ones come first, then those with which the
    label is most easily confused. norms, (n,), are the squared norms of the rows. The weights that
    are kept go to ids and values from places[j] on, in any order, where there is room for every
    feature of the samples, and their number to sizes[j]. work, (n_threads, n_features), is zero
    before and after. The bias is the weight of a constant feature and as such a part of |w|. duals
    is empty, or has one entry per sample: the dual variables, at least 0, from which the descent
    starts, and then those that it has found; w is the sum of duals * y * x over the samples. A
    label that has some visits its samples at most n_passes_again times.

    Dual coordinate descent with shrinking (Hsieh et al., ICML 2008, algorithm 3 and section 3.3),
    until the projected gradients span no more than the tolerance, at most n_passes. Per label
    O(n_passes * nnz of its samples)
    """
    cdef Py_ssize_t j, n_labels = sizes.shape[0], most = 1
    cdef const loops_t *f = table()
    cdef rows_t x = rows_of(indptr, indices, data)
    cdef float *alpha
    cdef int32_t *order
    cdef char *touched
    cdef bint warm = duals.shape[0] > 0
    cdef int thread

    for j in range(n_labels):
        most = max(most, starts[j + 1] - starts[j])
    if n_labels == 0:
        return

    alpha = <float *>malloc((1 if warm else n_threads * most) * sizeof(float))
    order = <int32_t *>malloc(n_threads * most * sizeof(int32_t))
    touched = <char *>malloc(n_threads * most)
    if alpha == NULL or order == NULL or touched == NULL:
        free(alpha)
        free(order)
        free(touched)
        raise MemoryError()

    if samples.shape[0] and work.shape[1] and ids.shape[0]:
        for j in prange(n_labels, nogil=True, schedule="dynamic", chunksize=1,
                        num_threads=n_threads):
            thread = threadid()
            bias[j] = _descend(f, &samples[0] + starts[j], starts[j + 1] - starts[j], x, &norms[0],
                               &costs[0], n_passes, n_passes_again, tolerance, random_at(seed, j),
                               warm, &duals[0] + starts[j] if warm else alpha + thread * most,
                               order + thread * most, touched + thread * most,
                               &work[thread, 0])
            sizes[j] = _take(&samples[0] + starts[j], starts[j + 1] - starts[j], x,
                             touched + thread * most, threshold, &work[thread, 0],
                             &ids[0] + places[j], &values[0] + places[j])
    free(alpha)
    free(order)
    free(touched)


cdef inline void _add_columns(const rows_t *w, const int32_t *indices, const float *data,
                              Py_ssize_t nnz, float *out) noexcept nogil:
    # out += W x, for W transposed
    cdef Py_ssize_t k
    cdef int64_t first
    for k in range(nnz):
        prefetch_run(w.indptr + indices[k], 2 * sizeof(int64_t))
    for k in range(nnz):
        if k + 1 < nnz:
            _prefetch_row(w[0], indices[k + 1])
        first = w.indptr[indices[k]]
        _scatter(data[k], w.indices + first, w.data + first, w.indptr[indices[k] + 1] - first, out)


cdef float _log_sum_exp(const loops_t *f, const int32_t *ids, const float *scores, Py_ssize_t n,
                        float *spare) noexcept nogil:
    # of the scores that have an id; 0 without any
    cdef Py_ssize_t k, size = 0
    cdef float largest
    for k in range(n):
        if ids[k] >= 0:
            spare[size] = scores[k]
            size += 1
    if size == 0:
        return 0
    largest = f.max(spare, size)
    return largest + <float>portable_log(f.exp_sum(spare, size, largest))


cdef void rerank_row(const loops_t *f, const classifiers_t *c, const int32_t *indices,
                     const float *data, Py_ssize_t nnz, float *work, const int32_t *ids,
                     const float *scores, Py_ssize_t n, uint64_t *keys, Py_ssize_t k_best,
                     int32_t *out_ids, float *out_scores) noexcept nogil:
    # work, (n_features,) or by feature (n_labels,), is zero before and after; keys holds n
    cdef Py_ssize_t k, size = 0
    cdef int64_t first
    cdef float z, shift = 0

    if c.normalized:
        shift = _log_sum_exp(f, ids, scores, n, <float *>keys)
    if c.by_feature:
        _add_columns(&c.w, indices, data, nnz, work)
    else:
        _scatter(1, indices, data, nnz, work)
        for k in range(n):
            if ids[k] >= 0:
                prefetch_run(c.w.indptr + ids[k], 2 * sizeof(int64_t))
    for k in range(n):
        if ids[k] >= 0:
            if c.by_feature:
                z = work[ids[k]]
            else:
                if k + 1 < n and ids[k + 1] >= 0:
                    _prefetch_row(c.w, ids[k + 1])
                first = c.w.indptr[ids[k]]
                z = f.gather_dot(c.w.data + first, c.w.indices + first,
                                 c.w.indptr[ids[k] + 1] - first, work)
            keys[size] = score_key(scores[k] - shift + c.scale * (c.bias[ids[k]] + z),
                                   ids[k])
            size += 1
    if c.by_feature:
        for k in range(nnz):
            first = c.w.indptr[indices[k]]
            _clear(c.w.indices + first, c.w.indptr[indices[k] + 1] - first, work)
    else:
        _clear(indices, nnz, work)

    insertion_sort(keys, size)
    for k in range(k_best):
        out_ids[k] = key_id(keys[k]) if k < size else -1
        out_scores[k] = key_score(keys[k]) if k < size else -INFINITY


def rerank(const int64_t[::1] indptr, const int32_t[::1] indices, const float[::1] data,
           const int64_t[::1] w_indptr, const int32_t[::1] w_indices, const float[::1] w_data,
           const float[::1] bias, float scale, bint by_feature, bint normalized,
           const int32_t[:, ::1] ids, const float[:, ::1] scores, float[:, ::1] work,
           int32_t[:, ::1] out_ids, float[:, ::1] out_scores, int n_threads):
    """The k best candidates of each row by scores[i, q] + scale (W x_i + bias)[ids[i, q]].

    With `normalized`, the log of the sum of the exponentials of the row's scores is subtracted.

    ids is (n, n_candidates), -1 for none; the outputs are (n, k), best first. work, (n_threads,
    n_features), is zero before and after. O(nnz of the rows of W that are candidates). With
    by_feature W is given transposed and work is (n_threads, n_labels). O(nnz of the columns of W
    that a row has)
    """
    cdef Py_ssize_t i, n = ids.shape[0], n_candidates = ids.shape[1], k = out_ids.shape[1]
    cdef const loops_t *f = table()
    cdef rows_t x = rows_of(indptr, indices, data)
    cdef classifiers_t c
    cdef uint64_t *keys
    cdef int thread

    c.w, c.scale, c.by_feature = rows_of(w_indptr, w_indices, w_data), scale, by_feature
    c.normalized = normalized
    c.bias = &bias[0]
    if n == 0 or k == 0 or n_candidates == 0 or work.shape[1] == 0:
        return

    keys = <uint64_t *>malloc(n_threads * n_candidates * sizeof(uint64_t))
    if keys == NULL:
        raise MemoryError()

    for i in prange(n, nogil=True, schedule="dynamic", chunksize=8, num_threads=n_threads):
        thread = threadid()
        rerank_row(f, &c, x.indices + x.indptr[i], x.data + x.indptr[i],
                   x.indptr[i + 1] - x.indptr[i], &work[thread, 0], &ids[i, 0], &scores[i, 0],
                   n_candidates, keys + thread * n_candidates, k, &out_ids[i, 0],
                   &out_scores[i, 0])
    free(keys)
