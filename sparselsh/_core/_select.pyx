"""The k best per row, and active sets: the union of labels, candidates and a random fill."""
from cython.parallel cimport prange, threadid
from libc.math cimport INFINITY
from libc.stdint cimport int32_t, int64_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from ._order cimport random_at, random_below, sort_ids, top_begin, top_end, top_kth, top_push, top_t
from ._simd cimport prefetch_run

cdef enum:
    SCORES_PER_GROUP = 32  # whose maximum decides whether they are looked at
    MIN_GROUPS_PER_BEST = 2  # with fewer groups, most of them have one of the k best


cdef void _top_row(const float *scores, const int32_t *ids, Py_ssize_t n, Py_ssize_t k,
                   Py_ssize_t n_buffer, uint64_t *keys, int32_t *out_ids,
                   float *out_scores) noexcept nogil:
    cdef Py_ssize_t j
    cdef top_t top = top_begin(keys, n_buffer, k)
    for j in range(n):
        if ids == NULL:
            top_push(&top, scores[j], <int32_t>j)
        elif ids[j] >= 0:
            top_push(&top, scores[j], ids[j])
    top_end(&top, True, out_ids, out_scores)


cdef void _top_wide_row(const float *scores, Py_ssize_t n, Py_ssize_t n_groups, Py_ssize_t k,
                        Py_ssize_t n_buffer, uint64_t *keys, float *maxima, int32_t *out_ids,
                        float *out_scores) noexcept nogil:
    # Group g has the scores g, g + n_groups and so on. k groups have a maximum of at least the k-th
    # largest one, so that no lower score is needed.
    cdef Py_ssize_t g, j, start = n_groups
    cdef float floor
    cdef top_t top = top_begin(keys, n_buffer, k)
    memcpy(maxima, scores, n_groups * sizeof(float))
    while start < n:
        for g in range(min(n_groups, n - start)):
            maxima[g] = scores[start + g] if scores[start + g] > maxima[g] else maxima[g]
        start += n_groups
    for g in range(n_groups):
        top_push(&top, maxima[g], <int32_t>g)
    floor = top_kth(&top)
    top = top_begin(keys, n_buffer, k)
    for g in range(n_groups):
        if maxima[g] < floor:
            continue
        j = g
        while j < n:
            top_push(&top, scores[j], <int32_t>j)
            j += n_groups
    top_end(&top, True, out_ids, out_scores)


def top_k(const float[:, ::1] scores, ids, int32_t[:, ::1] out_ids, float[:, ::1] out_scores,
          int n_threads):
    """The k largest scores of each row, best first; ties by ascending id.

    scores is (n, m). ids is None (column j has id j) or an int32 array: (m,) for ids shared by all
    rows, or (n, m), where an entry of -1 is skipped. out_ids and out_scores are (n, k), filled up
    with -1 and -inf. Per row O(m) for k << m.
    """
    cdef Py_ssize_t i, n = scores.shape[0], m = scores.shape[1], k = out_ids.shape[1]
    cdef Py_ssize_t n_buffer = 4 * k + 64, id_stride = 0
    cdef const int32_t[:, ::1] id_table
    cdef const int32_t *first_id = NULL
    cdef Py_ssize_t n_groups = (m + SCORES_PER_GROUP - 1) // SCORES_PER_GROUP
    cdef bint by_groups = ids is None and n_groups >= MIN_GROUPS_PER_BEST * k
    cdef uint64_t *keys
    cdef float *maxima
    cdef int thread

    if n == 0 or k == 0:
        return
    if m == 0:
        out_ids[:, :] = -1
        out_scores[:, :] = -INFINITY
        return

    if ids is not None:
        id_table = ids.reshape(-1, m)
        first_id = &id_table[0, 0]
        id_stride = m if ids.ndim == 2 else 0

    keys = <uint64_t *>malloc(n_threads * (n_buffer * sizeof(uint64_t)
                                           + (n_groups * sizeof(float) if by_groups else 0)))
    if keys == NULL:
        raise MemoryError()
    maxima = <float *>(keys + n_threads * n_buffer)

    for i in prange(n, nogil=True, schedule="static", num_threads=n_threads):
        thread = threadid()
        if by_groups:
            _top_wide_row(&scores[i, 0], m, n_groups, k, n_buffer, keys + thread * n_buffer,
                          maxima + thread * n_groups, &out_ids[i, 0], &out_scores[i, 0])
            continue
        _top_row(&scores[i, 0], first_id + i * id_stride if first_id != NULL else NULL, m, k,
                 n_buffer, keys + thread * n_buffer, &out_ids[i, 0], &out_scores[i, 0])
    free(keys)


cdef enum:
    SLOT_PREFETCH_DISTANCE = 16  # neurons


cdef Py_ssize_t _fill_at_random(int32_t *out, Py_ssize_t size, Py_ssize_t n_wanted, uint64_t seed,
                                int32_t *slot, Py_ssize_t n_neurons) noexcept nogil:
    # Drawing until enough neurons are new is fast while at most half are taken. Beyond that, take
    # the next free neuron after the drawn one: the fill is slightly clustered, which does no harm.
    cdef int32_t j
    cdef uint64_t counter = 0

    while size < n_wanted:
        prefetch_run(slot + random_below(seed, counter + SLOT_PREFETCH_DISTANCE,
                                         <int32_t>n_neurons), sizeof(int32_t))
        j = random_below(seed, counter, <int32_t>n_neurons)
        counter += 1
        if slot[j] >= 0 and 2 * size < n_neurons:
            continue
        while slot[j] >= 0:
            j = j + 1 if j + 1 < n_neurons else 0
        slot[j] = 0
        out[size] = j
        size += 1
    return size


cdef int32_t _union(const int32_t *labels, Py_ssize_t n_labels, const int32_t *candidates,
                    Py_ssize_t n, Py_ssize_t n_candidates, Py_ssize_t n_wanted, bint fill,
                    uint64_t seed, Py_ssize_t n_neurons, int32_t *slot, int32_t *spare,
                    int32_t *out) noexcept nogil:
    # candidates is (n, n_candidates): the best of every sample comes before the second best of any.
    cdef Py_ssize_t k, c, i, size = 0
    cdef int32_t j

    for k in range(n_labels):
        if k + SLOT_PREFETCH_DISTANCE < n_labels:
            prefetch_run(slot + labels[k + SLOT_PREFETCH_DISTANCE], sizeof(int32_t))
        j = labels[k]
        if slot[j] < 0:
            slot[j] = 0
            out[size] = j
            size += 1

    for c in range(n_candidates):
        for i in range(n):
            if size >= n_wanted:
                break
            if (i + SLOT_PREFETCH_DISTANCE < n
                    and candidates[(i + SLOT_PREFETCH_DISTANCE) * n_candidates + c] >= 0):
                prefetch_run(slot + candidates[(i + SLOT_PREFETCH_DISTANCE) * n_candidates + c],
                             sizeof(int32_t))
            j = candidates[i * n_candidates + c]
            if j >= 0 and slot[j] < 0:
                slot[j] = 0
                out[size] = j
                size += 1

    if fill and size < n_wanted:
        size = _fill_at_random(out, size, n_wanted, seed, slot, n_neurons)
    sort_ids(out, spare, size, n_neurons)
    for k in range(size):
        slot[out[k]] = -1
    return <int32_t>size


def batch_union(const int32_t[::1] labels, const int32_t[:, ::1] candidates, Py_ssize_t n_wanted,
                bint fill, uint64_t seed, int32_t[::1] slot, int32_t[::1] spare, int32_t[::1] out):
    """One active set for the whole batch: out[:size], ascending; returns size.

    First all labels; then candidates, (n, n_candidates) with -1 for none, while there are fewer
    than n_wanted, the first of every sample before the second of any; then, if `fill`, random
    neurons up to n_wanted. slot, (n_neurons,), is all -1 before and after; spare and out hold
    max(n_wanted, n_labels) entries. O(n_labels + n n_candidates + n_wanted), whatever the number of
    neurons.
    """
    cdef Py_ssize_t n_neurons = slot.shape[0]
    cdef Py_ssize_t n = candidates.shape[0], n_candidates = candidates.shape[1]
    if n_neurons == 0 or out.shape[0] == 0:
        return 0
    return _union(&labels[0] if labels.shape[0] else NULL, labels.shape[0],
                  &candidates[0, 0] if n and n_candidates else NULL, n, n_candidates,
                  min(n_wanted, n_neurons), fill, seed, n_neurons, &slot[0], &spare[0], &out[0])


cdef bint _add(int32_t *members, uint64_t mask, int32_t j) noexcept nogil:
    # Add j to a hash set, -1 where a place is free; False if it is a member already.
    cdef uint64_t place = (<uint64_t>j * <uint64_t>0x9E3779B97F4A7C15) >> 32 & mask
    while members[place] >= 0:
        if members[place] == j:
            return False
        place = place + 1 & mask
    members[place] = j
    return True


cdef bint _contains(const int32_t *members, uint64_t mask, int32_t j) noexcept nogil:
    cdef uint64_t place = (<uint64_t>j * <uint64_t>0x9E3779B97F4A7C15) >> 32 & mask
    while members[place] >= 0:
        if members[place] == j:
            return True
        place = place + 1 & mask
    return False


def hashed_union(const int32_t[::1] labels, const int32_t[:, ::1] candidates, Py_ssize_t n_wanted,
                 bint fill, uint64_t seed, Py_ssize_t n_neurons, int32_t[::1] spare,
                 int32_t[::1] out):
    """batch_union with a hash set in place of an array of n_neurons entries; returns size.

    The same set, bit by bit. O(n_labels + n n_candidates + n_wanted) time, and memory of at most 16
    bytes per entry of out.
    """
    cdef Py_ssize_t n = candidates.shape[0], n_candidates = candidates.shape[1], size = 0, k, c, i
    cdef uint64_t mask = 1, counter = 0
    cdef int32_t j
    cdef int32_t *members

    if n_neurons == 0 or out.shape[0] == 0:
        return 0
    n_wanted = min(n_wanted, n_neurons)
    while mask < <uint64_t>(2 * out.shape[0]):
        mask *= 2
    members = <int32_t *>malloc(mask * sizeof(int32_t))
    if members == NULL:
        raise MemoryError()
    memset(members, 255, mask * sizeof(int32_t))
    mask -= 1

    with nogil:
        for k in range(labels.shape[0]):
            if _add(members, mask, labels[k]):
                out[size] = labels[k]
                size += 1
        for c in range(n_candidates):
            for i in range(n):
                if size >= n_wanted:
                    break
                j = candidates[i, c]
                if j >= 0 and _add(members, mask, j):
                    out[size] = j
                    size += 1
        while fill and size < n_wanted:  # as _fill_at_random
            j = random_below(seed, counter, <int32_t>n_neurons)
            counter += 1
            if 2 * size < n_neurons and _contains(members, mask, j):
                continue
            while not _add(members, mask, j):
                j = j + 1 if j + 1 < n_neurons else 0
            out[size] = j
            size += 1
        sort_ids(&out[0], &spare[0], size, n_neurons)
    free(members)
    return size


def sample_union(const int64_t[::1] label_indptr, const int32_t[::1] labels,
                 const int32_t[:, ::1] candidates, Py_ssize_t n_wanted, bint fill, uint64_t seed,
                 int32_t[:, ::1] slot, int32_t[:, ::1] spare, int32_t[:, ::1] out,
                 int32_t[::1] sizes, int n_threads):
    """One active set per sample: out[i, :sizes[i]], ascending.

    As batch_union, per row: the labels of the row, its candidates in their order, then, if `fill`,
    random neurons, up to n_wanted. out is (n, max(n_wanted, most labels in a row)); slot,
    (n_threads, n_neurons), is all -1 before and after; spare is (n_threads, out.shape[1]). Row i
    draws from a random stream of its own, so that batches may number their seeds 0, 1, 2, ...: with
    seed + i, row i + 1 of a batch would equal row i of the next.
    """
    cdef Py_ssize_t i, n = out.shape[0], n_neurons = slot.shape[1]
    cdef Py_ssize_t n_candidates = candidates.shape[1]
    cdef const int32_t *label = &labels[0] if labels.shape[0] else NULL
    cdef const int32_t *candidate = &candidates[0, 0] if n and n_candidates else NULL
    cdef int thread

    if n == 0 or n_neurons == 0 or out.shape[1] == 0:
        sizes[:] = 0
        return

    n_wanted = min(n_wanted, n_neurons)
    for i in prange(n, nogil=True, schedule="dynamic", chunksize=4, num_threads=n_threads):
        thread = threadid()
        sizes[i] = _union(label + label_indptr[i], label_indptr[i + 1] - label_indptr[i],
                          candidate + i * n_candidates, 1, n_candidates, n_wanted, fill,
                          random_at(seed, <uint64_t>i), n_neurons, &slot[thread, 0],
                          &spare[thread, 0], &out[i, 0])


def compact(const int32_t[:, ::1] padded, const int64_t[::1] indptr, int32_t[::1] indices):
    """indices[indptr[i]:indptr[i + 1]] = the first entries of padded[i]."""
    cdef Py_ssize_t i, k
    for i in range(padded.shape[0]):
        for k in range(indptr[i + 1] - indptr[i]):
            indices[indptr[i] + k] = padded[i, k]
