"""Votes of past sessions for the item that follows, ranked together with the outputs of a network.

Sessions that share items with the query vote for their items: k nearest neighbors of sessions
(text/_sessions.py has the formulas and their sources).

Design
------
A. An item has a run of postings: the sessions that hold it, where in them, and a strength. A query
   reads the runs of its last items, the latest first, so that the first posting of a session tells
   which item they share last.
B. Sums by session and by item are in hash tables of the size of what is read. Arrays of all
   sessions would have to be kept per thread, or cleared per query.
C. All sums are in the order of the postings: the result does not depend on the number of threads.
D. Only items with votes, and those that the caller adds, get an output of the network: some hundred
   rows of weights in place of all.
"""
from cython.parallel cimport prange
from libc.math cimport INFINITY, exp, log
from libc.stdint cimport int32_t, int64_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

from ._order cimport key_id, score_key, select_smallest, sort_keys
from ._quantized cimport (
    OUTPUTS_PER_TASK, quantized_dots, quantized_rows_of, quantized_rows_t, quantized_sums,
)
from ._simd cimport loops_t, table

cdef enum:
    MAX_OFFSET = 3  # offsets from the shared item beyond it count like it
    N_OFFSETS = 2 * MAX_OFFSET + 1
    N_COUNTS = 2 * N_OFFSETS  # by offset, where the shared item is the last of the query, or not
    N_AGES = 6  # ages of items of the query from the last one on count like it
    OUTPUT_SCALE = 0
    VOTE_SCALE = 1
    SEEN_OUTPUT_SCALE = 2
    SEEN_VOTE_SCALE = 3
    LOG_FLOOR = 4
    OTHERS = 5
    TREND = 6
    SEEN = 7
    COUNT = SEEN + N_AGES
    N_PARAMETERS = COUNT + N_COUNTS

ctypedef struct layer_t:
    quantized_rows_t w
    const float *bias
    bint relu

ctypedef struct neighbor_t:
    int32_t session  # -1 for a free slot
    int32_t place  # of the item that is shared last
    int32_t is_older  # whether this item is not the last one of the query
    float similarity

ctypedef struct found_t:
    # what one query finds; see _find
    Py_ssize_t n_seen, n_voted, n
    int32_t *seen  # distinct items of the query, the latest first
    int32_t *ages
    int32_t *ids
    float *counts  # (n, N_COUNTS)
    float *votes
    float *outputs


cdef class SessionRanker:
    """Past sessions and two layers, whose arrays it keeps alive."""
    cdef tuple arrays
    cdef const int32_t *items
    cdef const int64_t *starts
    cdef const int64_t *runs
    cdef const int32_t *sessions
    cdef const int32_t *places
    cdef const float *strengths
    cdef const float *age_weights
    cdef const float *input_weights
    cdef Py_ssize_t n_sessions, n_items, n_last, n_neighbors
    cdef layer_t *layers

    def __dealloc__(self):
        free(self.layers)


cdef const int32_t *_ints(const int32_t[::1] x) noexcept:
    return &x[0] if x.shape[0] else NULL


cdef const int64_t *_offsets(const int64_t[::1] x) noexcept:
    return &x[0] if x.shape[0] else NULL


cdef const float *_floats(const float[::1] x) noexcept:
    return &x[0] if x.shape[0] else NULL


def prepare(arrays, age_weights, input_weights, int n_neighbors, layers):
    """A SessionRanker.

    arrays are (items, starts, runs, sessions, places, strengths): session s holds
    items[starts[s]:starts[s + 1]], and item j is in sessions[runs[j]:runs[j + 1]], where its last
    place is in `places` and the strength of the posting in `strengths`; int32, int64, int64, int32,
    int32, float32. age_weights and input_weights, (n_last,) float32, weigh an item of a query by
    its age, in the similarity and as the input of the network. layers are two tuples (w, scales,
    bias, relu) as for _quantized: w of the first is (n_items, n_hidden), of the second
    (n_items, n_hidden) too.
    """
    cdef SessionRanker r = SessionRanker()
    cdef Py_ssize_t i
    r.arrays = (*arrays, age_weights, input_weights, *layers)
    r.items, r.starts, r.runs = _ints(arrays[0]), _offsets(arrays[1]), _offsets(arrays[2])
    r.sessions, r.places = _ints(arrays[3]), _ints(arrays[4])
    r.strengths = _floats(arrays[5])
    r.age_weights, r.input_weights = _floats(age_weights), _floats(input_weights)
    r.n_sessions, r.n_items = len(arrays[1]) - 1, len(arrays[2]) - 1
    r.n_last, r.n_neighbors = len(age_weights), n_neighbors
    r.layers = <layer_t *>calloc(2, sizeof(layer_t))
    if r.layers == NULL:
        raise MemoryError()
    for i in range(2):
        w, scales, bias, r.layers[i].relu = layers[i]
        quantized_rows_of(w, scales, &r.layers[i].w)
        r.layers[i].bias = _floats(bias)
    return r


cdef inline Py_ssize_t _table_size(Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t size = 16
    while size < 2 * n:
        size *= 2
    return size


cdef inline Py_ssize_t _slot(int32_t key, Py_ssize_t size) noexcept nogil:
    return <Py_ssize_t>((<uint64_t><int64_t>key * <uint64_t>0x9E3779B97F4A7C15) >> 32) & (size - 1)


cdef int _see(SessionRanker r, const int32_t *query, Py_ssize_t n,
              found_t *out) noexcept nogil:
    # distinct items among the last n_last, each by its last place
    cdef Py_ssize_t age, i, last = min(n, r.n_last)
    cdef bint is_new
    out.seen = <int32_t *>malloc(2 * max(last, <Py_ssize_t>1) * sizeof(int32_t))
    if out.seen == NULL:
        return -1
    out.ages = out.seen + max(last, <Py_ssize_t>1)
    out.n_seen = 0
    for age in range(last):
        is_new = True
        for i in range(out.n_seen):
            if out.seen[i] == query[n - 1 - age]:
                is_new = False
                break
        if is_new:
            out.seen[out.n_seen], out.ages[out.n_seen] = query[n - 1 - age], <int32_t>age
            out.n_seen += 1
    return 0


cdef Py_ssize_t _neighbors(SessionRanker r, const found_t *found, neighbor_t **slots,
                           uint64_t **keys) noexcept nogil:
    """The nearest sessions as places in `slots`, which the caller frees, in `keys`; their number.

    -1 where memory is short.
    """
    cdef Py_ssize_t i, t, at, size, n = 0, n_postings = 0
    cdef int32_t session
    cdef float weight
    cdef neighbor_t *slot
    for i in range(found.n_seen):
        n_postings += r.runs[found.seen[i] + 1] - r.runs[found.seen[i]]
    if n_postings == 0:
        return 0

    size = _table_size(n_postings)
    slots[0] = <neighbor_t *>malloc(size * sizeof(neighbor_t))
    keys[0] = <uint64_t *>malloc(n_postings * sizeof(uint64_t))
    if slots[0] == NULL or keys[0] == NULL:
        return -1
    memset(slots[0], 0xff, size * sizeof(neighbor_t))
    for i in range(found.n_seen):
        weight = r.age_weights[found.ages[i]]
        for t in range(r.runs[found.seen[i]], r.runs[found.seen[i] + 1]):
            session = r.sessions[t]
            at = _slot(session, size)
            while slots[0][at].session != session and slots[0][at].session >= 0:
                at = (at + 1) & (size - 1)
            slot = &slots[0][at]
            if slot.session < 0:
                slot.session, slot.place = session, r.places[t]
                slot.is_older, slot.similarity = found.ages[i] > 0, 0
                keys[0][n] = at
                n += 1
            slot.similarity += weight * r.strengths[t]

    if n > r.n_neighbors:  # ties for the later session
        for i in range(n):
            slot = &slots[0][keys[0][i]]
            keys[0][i] = score_key(slot.similarity, <int32_t>(r.n_sessions - 1 - slot.session))
        select_smallest(keys[0], n, r.n_neighbors)
        n = r.n_neighbors
        for i in range(n):
            session = <int32_t>(r.n_sessions - 1 - key_id(keys[0][i]))
            at = _slot(session, size)
            while slots[0][at].session != session:
                at = (at + 1) & (size - 1)
            keys[0][i] = at
    return n


cdef int _find(SessionRanker r, const int32_t *query, Py_ssize_t n, const int32_t *more,
               Py_ssize_t n_more, const double *weights, Py_ssize_t n_best, bint keep_counts,
               found_t *out) noexcept nogil:
    """The n_best items with the most votes, then those of `more`: votes, counts and outputs.

    Votes are sums over neighbors of similarity times the weight of the item's offset from the
    shared one, divided by the sum of similarities; counts are the summands by offset. -1 where
    memory is short; what `out` points to is to be freed by _free in any case.
    """
    cdef neighbor_t *slots = NULL
    cdef uint64_t *keys = NULL
    cdef int32_t *where = NULL
    cdef int32_t *ids = NULL
    cdef float *votes = NULL
    cdef float *counts = NULL
    cdef float *hidden = NULL
    cdef const loops_t *f = table()
    cdef const neighbor_t *near
    cdef Py_ssize_t i, t, at, c, n_near, size, room = 0, n_ids = 0, n_chosen
    cdef int64_t first, last
    cdef int32_t item, offset
    cdef float total = 0
    cdef int failed = -1

    memset(out, 0, sizeof(found_t))
    if _see(r, query, n, out) < 0:
        return -1
    n_near = _neighbors(r, out, &slots, &keys)
    if n_near < 0:
        free(slots)
        free(keys)
        return -1
    for i in range(n_near):
        first = slots[keys[i]].session
        room += r.starts[first + 1] - r.starts[first]
    size = _table_size(room + n_more)
    room += n_more + 1
    where = <int32_t *>malloc(size * sizeof(int32_t))
    ids = <int32_t *>malloc(room * sizeof(int32_t))
    votes = <float *>calloc(room, sizeof(float))
    counts = <float *>calloc(room if keep_counts else 1, N_COUNTS * sizeof(float))
    if where != NULL and ids != NULL and votes != NULL and counts != NULL:
        memset(where, 0xff, size * sizeof(int32_t))
        for i in range(n_near):
            near = &slots[keys[i]]
            total += near.similarity
            first, last = r.starts[near.session], r.starts[near.session + 1]
            for t in range(first, last):
                item = r.items[t]
                at = _slot(item, size)
                while where[at] >= 0 and ids[where[at]] != item:
                    at = (at + 1) & (size - 1)
                if where[at] < 0:
                    where[at], ids[n_ids] = <int32_t>n_ids, item
                    n_ids += 1
                offset = <int32_t>(t - first) - near.place
                offset = max(min(offset, MAX_OFFSET), -MAX_OFFSET) + MAX_OFFSET
                c = near.is_older * N_OFFSETS + offset
                votes[where[at]] += near.similarity * <float>weights[c]
                if keep_counts:
                    counts[where[at] * N_COUNTS + c] += near.similarity

        out.n_voted = n_ids
        n_chosen = min(n_ids, n_best)
        out.ids = <int32_t *>malloc((n_chosen + n_more + 1) * sizeof(int32_t))
        out.votes = <float *>calloc(n_chosen + n_more + 1, sizeof(float))
        out.outputs = <float *>malloc((n_chosen + n_more + 1) * sizeof(float))
        out.counts = <float *>calloc(n_chosen + n_more + 1 if keep_counts else 1,
                                     N_COUNTS * sizeof(float))
        free(keys)
        keys = <uint64_t *>malloc((n_ids + 1) * sizeof(uint64_t))
        if (out.ids != NULL and out.votes != NULL and out.outputs != NULL and out.counts != NULL
                and keys != NULL):
            for i in range(n_ids):
                keys[i] = score_key(votes[i], ids[i])
            select_smallest(keys, n_ids, n_chosen)
            for i in range(n_chosen):
                item = key_id(keys[i])
                at = _slot(item, size)
                while ids[where[at]] != item:
                    at = (at + 1) & (size - 1)
                c = where[at]
                out.ids[i] = item
                out.votes[i] = votes[c] / total
                if keep_counts:
                    for t in range(N_COUNTS):
                        out.counts[i * N_COUNTS + t] = counts[c * N_COUNTS + t] / total
            out.n = n_chosen
            for i in range(n_more):  # of which the caller says that they have no votes
                if more[i] < 0:
                    continue
                at = _slot(more[i], size)
                while where[at] >= 0 and ids[where[at]] != more[i]:
                    at = (at + 1) & (size - 1)
                if where[at] < 0:
                    where[at], ids[n_ids] = <int32_t>n_ids, more[i]
                    n_ids += 1
                    out.ids[out.n] = more[i]
                    out.n += 1
            failed = 0
    if not failed:
        hidden = <float *>malloc((r.layers[0].w.d + 1) * sizeof(float))
        failed = -1 if hidden == NULL else 0
    if not failed:
        _outputs(r, f, out, hidden)
    free(slots)
    free(keys)
    free(where)
    free(ids)
    free(votes)
    free(counts)
    free(hidden)
    return failed


cdef void _outputs(SessionRanker r, const loops_t *f, const found_t *out,
                   float *hidden) noexcept nogil:
    """The outputs of the network for out.ids, from the items of the query."""
    cdef const layer_t *a = &r.layers[0]
    cdef const layer_t *b = &r.layers[1]
    cdef Py_ssize_t i, first = 0
    cdef float weight
    memcpy(hidden, a.bias, a.w.d * sizeof(float))
    for i in range(out.n_seen):
        weight = r.input_weights[out.ages[i]]
        first = 0
        while first < a.w.d:
            quantized_sums(f, &a.w, &out.seen[i], &weight, 1, first,
                           min(<Py_ssize_t>OUTPUTS_PER_TASK, a.w.d - first), hidden + first)
            first += OUTPUTS_PER_TASK
    if a.relu:
        for i in range(a.w.d):
            hidden[i] = hidden[i] if hidden[i] > 0 else 0
    quantized_dots(f, &b.w, out.ids, out.n, hidden, out.outputs)
    for i in range(out.n):
        out.outputs[i] += b.bias[out.ids[i]]


cdef void _free(found_t *found) noexcept nogil:
    free(found.seen)
    free(found.ids)
    free(found.votes)
    free(found.outputs)
    free(found.counts)


cdef inline int32_t _age(const found_t *found, int32_t item) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(found.n_seen):
        if found.seen[i] == item:
            return min(found.ages[i], <int32_t>(N_AGES - 1))
    return -1


def count(SessionRanker ranker, const int64_t[::1] indptr, const int32_t[::1] queries,
          const int32_t[:, ::1] more, const double[::1] weights, int32_t[:, ::1] ids,
          float[:, :, ::1] counts, float[:, ::1] outputs, int32_t[:, ::1] ages,
          int64_t[::1] n_voted, int n_threads):
    """What `rank` makes scores of: the candidates of each query, and what is known of each.

    Query i is queries[indptr[i]:indptr[i + 1]], the latest item last. ids are (n, n_best +
    more.shape[1]): the n_best items with the most votes by `weights`, (14,), then those of `more`
    that have no vote, -1 for none; counts (n, .., 14) are votes by offset, outputs those of the
    network, and ages those of items of the query, at most 5, -1 for other items. n_voted is the
    number of items with votes. O(postings + neighbors times their length + candidates times hidden
    units) per query.
    """
    cdef Py_ssize_t i, n = indptr.shape[0] - 1, width = ids.shape[1]
    cdef Py_ssize_t n_more = more.shape[1], n_failed = 0
    for i in prange(n, nogil=True, num_threads=n_threads, schedule="dynamic", chunksize=16):
        n_failed += _count_row(ranker, &queries[0] + indptr[i] if queries.shape[0] else NULL,
                               indptr[i + 1] - indptr[i],
                               &more[i, 0] if n_more else NULL, n_more, &weights[0],
                               width - n_more, &ids[i, 0], &counts[i, 0, 0], &outputs[i, 0],
                               &ages[i, 0], &n_voted[i])
    if n_failed:
        raise MemoryError()


cdef int _count_row(SessionRanker ranker, const int32_t *query, Py_ssize_t n,
                    const int32_t *more, Py_ssize_t n_more, const double *weights,
                    Py_ssize_t n_best, int32_t *ids, float *counts, float *outputs, int32_t *ages,
                    int64_t *n_voted) noexcept nogil:
    # 1 where memory is short
    cdef found_t found
    cdef Py_ssize_t j
    cdef int failed = _find(ranker, query, n, more, n_more, weights, n_best, True, &found)
    if not failed:
        n_voted[0] = found.n_voted
        for j in range(found.n):
            ids[j], outputs[j] = found.ids[j], found.outputs[j]
            ages[j] = _age(&found, found.ids[j])
        for j in range(found.n, n_best + n_more):
            ids[j], outputs[j], ages[j] = -1, 0, -1
        memcpy(counts, found.counts, found.n * N_COUNTS * sizeof(float))
        memset(counts + found.n * N_COUNTS, 0,
               (n_best + n_more - found.n) * N_COUNTS * sizeof(float))
    _free(&found)
    return 1 if failed else 0


def rank(SessionRanker ranker, const int64_t[::1] indptr, const int32_t[::1] queries,
         const int32_t[:, ::1] more, const double[::1] parameters, const float[::1] trends,
         int n_best, int32_t[:, ::1] ids, float[:, ::1] probabilities, int64_t[::1] n_voted,
         int n_threads):
    """The candidates of each query by their probability, best first.

    As for `count`; ids and probabilities are (n, k), -1 and 0 for none. `parameters` are those of
    `losses`, trends are (n_items,).
    """
    cdef Py_ssize_t i, n = indptr.shape[0] - 1, n_more = more.shape[1], n_failed = 0
    cdef double[N_COUNTS] weights
    for i in range(N_COUNTS):
        weights[i] = exp(parameters[COUNT + i])
    for i in prange(n, nogil=True, num_threads=n_threads, schedule="dynamic", chunksize=16):
        n_failed += _rank_row(ranker, &queries[0] + indptr[i] if queries.shape[0] else NULL,
                              indptr[i + 1] - indptr[i],
                              &more[i, 0] if n_more else NULL, n_more, &weights[0],
                              &parameters[0], trends, n_best, ids.shape[1], &ids[i, 0],
                              &probabilities[i, 0], &n_voted[i])
    if n_failed:
        raise MemoryError()


cdef int _rank_row(SessionRanker ranker, const int32_t *query, Py_ssize_t n,
                   const int32_t *more, Py_ssize_t n_more, const double *weights,
                   const double *b, const float[::1] trends, Py_ssize_t n_best, Py_ssize_t k,
                   int32_t *ids, float *probabilities, int64_t *n_voted) noexcept nogil:
    # 1 where memory is short
    cdef found_t found
    cdef uint64_t *keys = NULL
    cdef Py_ssize_t j, n_out
    cdef double floor = exp(b[LOG_FLOOR]), largest = -INFINITY, total, score, z, v
    cdef float best = -INFINITY
    cdef int32_t item, age
    cdef int failed = _find(ranker, query, n, more, n_more, weights, n_best, False, &found)
    if not failed:
        keys = <uint64_t *>malloc((found.n + 1) * sizeof(uint64_t))
        failed = -1 if keys == NULL else 0
    if not failed:
        n_voted[0] = found.n_voted
        for j in range(found.n):
            best = max(best, found.outputs[j])
        for j in range(found.n):  # the score takes the place of the output
            item = found.ids[j]
            age = _age(&found, item)
            z, v = <double>found.outputs[j] - best, log(found.votes[j] + floor)
            score = b[OUTPUT_SCALE] * z + b[VOTE_SCALE] * v + b[TREND] * trends[item]
            if age >= 0:
                score += b[SEEN_OUTPUT_SCALE] * z + b[SEEN_VOTE_SCALE] * v + b[SEEN + age]
            found.outputs[j] = <float>score
            largest = max(largest, score)
        total = exp(b[OTHERS] - largest) if found.n < trends.shape[0] else 0
        for j in range(found.n):
            total += exp(found.outputs[j] - largest)
            keys[j] = score_key(found.outputs[j], <int32_t>j)
        n_out = min(found.n, k)
        select_smallest(keys, found.n, n_out)
        sort_keys(keys, n_out)
        for j in range(n_out):
            item = key_id(keys[j])
            ids[j] = found.ids[item]
            probabilities[j] = <float>(exp(found.outputs[item] - largest) / total)
        for j in range(n_out, k):
            ids[j], probabilities[j] = -1, 0
    free(keys)
    _free(&found)
    return 1 if failed else 0


def losses(const int32_t[:, ::1] ids, const float[:, :, ::1] counts, const float[:, ::1] outputs,
           const int32_t[:, ::1] ages, const int32_t[::1] labels, const float[::1] trends,
           const double[::1] parameters, double[::1] gradient):
    """The mean negative log-likelihood of the labels, and its derivatives by the parameters.

    Arrays are those of `count`. The score of a candidate is a times its output relative to the
    largest of the row, plus b log(votes + floor), plus c times its trend; for an item of the query
    a and b are larger by a' and b', and a shift for its age is added. All other items together, if
    there are any, have the score `others`, and the probabilities are the softmax. parameters are a,
    b, a', b', log(floor), others, c, the shifts of six ages, and the logarithms of the fourteen
    weights of counts. One thread.
    """
    cdef Py_ssize_t i, j, t, n_found, n = ids.shape[0], width = ids.shape[1]
    cdef const double *b = &parameters[0]
    cdef double[N_COUNTS] weights
    cdef double floor = exp(b[LOG_FLOOR]), loss = 0, largest, total, vote, d, e, v, slope
    cdef double others
    cdef double *scores = <double *>malloc(4 * max(width, <Py_ssize_t>1) * sizeof(double))
    cdef double *votes = scores + width
    cdef double *logs = votes + width
    cdef double *relative = logs + width
    cdef float best
    cdef bint is_hit

    if scores == NULL:
        raise MemoryError()
    with nogil:
        for t in range(N_COUNTS):
            weights[t] = exp(b[COUNT + t])
        for t in range(N_PARAMETERS):
            gradient[t] = 0
        for i in range(n):
            best, n_found = -INFINITY, 0
            for j in range(width):
                if ids[i, j] >= 0:
                    best = max(best, outputs[i, j])
                    n_found += 1
            others = b[OTHERS] if n_found < trends.shape[0] else -INFINITY
            largest, is_hit = others, False
            for j in range(width):
                if ids[i, j] < 0:
                    continue
                vote = floor
                for t in range(N_COUNTS):
                    vote += weights[t] * counts[i, j, t]
                v = log(vote)
                votes[j], logs[j], relative[j] = vote, v, <double>outputs[i, j] - best
                scores[j] = (b[OUTPUT_SCALE] * relative[j] + b[VOTE_SCALE] * v
                             + b[TREND] * trends[ids[i, j]])
                if ages[i, j] >= 0:
                    scores[j] += (b[SEEN_OUTPUT_SCALE] * relative[j] + b[SEEN_VOTE_SCALE] * v
                                  + b[SEEN + ages[i, j]])
                largest = max(largest, scores[j])
                is_hit |= ids[i, j] == labels[i]
            total = exp(others - largest)
            for j in range(width):
                if ids[i, j] >= 0:
                    total += exp(scores[j] - largest)
            loss += log(total) + largest
            e = exp(others - largest) / total
            gradient[OTHERS] += e
            if not is_hit:
                loss -= b[OTHERS]
                gradient[OTHERS] -= 1
            for j in range(width):
                if ids[i, j] < 0:
                    continue
                d = exp(scores[j] - largest) / total
                if ids[i, j] == labels[i]:
                    d -= 1
                    loss -= scores[j]
                gradient[OUTPUT_SCALE] += d * relative[j]
                v = logs[j]
                gradient[VOTE_SCALE] += d * v
                slope = b[VOTE_SCALE]
                gradient[TREND] += d * trends[ids[i, j]]
                if ages[i, j] >= 0:
                    gradient[SEEN_OUTPUT_SCALE] += d * relative[j]
                    gradient[SEEN_VOTE_SCALE] += d * v
                    gradient[SEEN + ages[i, j]] += d
                    slope += b[SEEN_VOTE_SCALE]
                d *= slope / votes[j]
                gradient[LOG_FLOOR] += d * floor
                for t in range(N_COUNTS):
                    gradient[COUNT + t] += d * weights[t] * counts[i, j, t]
        for t in range(N_PARAMETERS):
            gradient[t] /= max(n, <Py_ssize_t>1)
    free(scores)
    return loss / max(n, <Py_ssize_t>1)
