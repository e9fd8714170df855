"""Hash tables as CSR-like arrays, one row of each array per table.

Bucket b of table t holds the neurons ids[t, start[t, b] : start[t, b] + count[t, b]] and has room
for room[t, b] of them, so that a neuron can move without sorting the table anew:

    ids     | bucket 0 . . | bucket 1 | bucket 2 . | ... | bucket 1, moved here . . . | free |
              ^start[t, 0]                                                              ^tail[t]

A full bucket moves behind the last one and doubles its room; when that space is used up, the table
is sorted anew from `codes`. With slack 0 the layout is plain CSR. What a probe finds does not
depend on the order inside a bucket. Each table is processed by one thread.
"""
from cython.parallel cimport prange, threadid
from libc.stdint cimport int32_t, uint8_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from ._order cimport count_key, count_key_id, random_at, random_below, select_smallest, sort_keys
from ._simd cimport prefetch_run


cdef inline int32_t _room_for(int32_t count, bint slack) noexcept nogil:
    return count + (count >> 2) + 2 if slack else count


cdef int32_t _build_table(const int32_t *codes, Py_ssize_t n, Py_ssize_t stride,
                          Py_ssize_t n_buckets, bint slack, int32_t *own, int32_t *ids,
                          int32_t *start, int32_t *count, int32_t *room) noexcept nogil:
    # Counting sort: count, add up, place. `own`, NULL or (n,), receives the codes of this table, so
    # that the codes of all tables, which are interleaved, are read once and not twice.
    cdef Py_ssize_t j, b
    cdef int32_t c, end = 0

    memset(count, 0, n_buckets * sizeof(int32_t))
    for j in range(n):
        c = codes[j * stride]
        if own != NULL:
            own[j] = c
        if c >= 0:
            count[c] += 1

    for b in range(n_buckets):
        start[b] = end
        room[b] = _room_for(count[b], slack)
        end += room[b]

    for j in range(n):
        c = own[j] if own != NULL else codes[j * stride]
        if c >= 0:
            ids[start[c]] = <int32_t>j
            start[c] += 1

    for b in range(n_buckets):  # every start has moved to the end of its bucket
        start[b] -= count[b]
    return end


def capacity(Py_ssize_t n, Py_ssize_t n_buckets, bint slack):
    """Entries needed per row of `ids`: all buckets with their room, a quarter more for moves."""
    return n if not slack else (n + n // 4 + 2 * n_buckets) * 5 // 4 + 64


def build(const int32_t[:, ::1] codes, bint slack, int32_t[:, ::1] ids, int32_t[:, ::1] start,
          int32_t[:, ::1] count, int32_t[:, ::1] room, int32_t[::1] tail, int n_threads):
    """Sort n neurons into n_tables tables.   O(n_tables * (n + n_buckets))

    codes is (n, n_tables), -1 for a neuron that is not in the table; start, count and room are
    (n_tables, n_buckets); ids is (n_tables, capacity(n, n_buckets, slack)).
    """
    cdef Py_ssize_t t, n = codes.shape[0], n_tables = codes.shape[1], n_buckets = start.shape[1]
    cdef int32_t *own

    if n_tables == 0:
        return
    if n == 0:
        start[:, :] = 0
        count[:, :] = 0
        room[:, :] = 0
        tail[:] = 0
        return

    own = <int32_t *>malloc(min(n_threads, n_tables) * n * sizeof(int32_t))
    if own == NULL:
        raise MemoryError()

    for t in prange(n_tables, nogil=True, schedule="dynamic", num_threads=min(n_threads, n_tables)):
        tail[t] = _build_table(&codes[0, t], n, n_tables, n_buckets, slack, own + threadid() * n,
                               &ids[t, 0], &start[t, 0], &count[t, 0], &room[t, 0])
    free(own)


cdef void _remove(int32_t j, int32_t *bucket, int32_t *count) noexcept nogil:
    cdef int32_t k = 0
    while bucket[k] != j:
        k += 1
    count[0] -= 1
    bucket[k] = bucket[count[0]]


cdef bint _insert(int32_t j, int32_t b, int32_t *ids, Py_ssize_t n_ids, int32_t *start,
                  int32_t *count, int32_t *room, int32_t *tail) noexcept nogil:
    # Returns False if the space behind the last bucket is used up.
    cdef int32_t wanted
    if count[b] == room[b]:
        wanted = 2 * room[b] + 2
        if tail[0] + wanted > n_ids:
            return False
        memcpy(ids + tail[0], ids + start[b], count[b] * sizeof(int32_t))
        start[b] = tail[0]
        room[b] = wanted
        tail[0] += wanted
    ids[start[b] + count[b]] = j
    count[b] += 1
    return True


cdef enum:
    STAGE_MOVES = 8  # moves between the three prefetches for one move


cdef inline void _prefetch_moves(const int32_t *rows, Py_ssize_t n_rows, Py_ssize_t r,
                                 const int32_t *new_codes, const int32_t *codes, Py_ssize_t stride,
                                 const int32_t *ids, const int32_t *start, const int32_t *count,
                                 const int32_t *room) noexcept nogil:
    # Each move is a chain of three reads that are far apart. Prefetches for later moves let their
    # waits overlap. They are hints: a move in between may change what is read here without harm.
    cdef int32_t old, new

    if r + 3 * STAGE_MOVES < n_rows:
        prefetch_run(codes + rows[r + 3 * STAGE_MOVES] * stride, sizeof(int32_t))
    if r + 2 * STAGE_MOVES < n_rows:
        old = codes[rows[r + 2 * STAGE_MOVES] * stride]
        new = new_codes[(r + 2 * STAGE_MOVES) * stride]
        if old != new:
            if old >= 0:
                prefetch_run(start + old, sizeof(int32_t))
                prefetch_run(count + old, sizeof(int32_t))
            if new >= 0:
                prefetch_run(start + new, sizeof(int32_t))
                prefetch_run(count + new, sizeof(int32_t))
                prefetch_run(room + new, sizeof(int32_t))

    if r + STAGE_MOVES < n_rows:
        old, new = codes[rows[r + STAGE_MOVES] * stride], new_codes[(r + STAGE_MOVES) * stride]
        if old != new:
            if old >= 0:
                prefetch_run(ids + start[old], count[old] * sizeof(int32_t))
            if new >= 0:
                prefetch_run(ids + start[new] + count[new], sizeof(int32_t))


cdef void _move_table(const int32_t *rows, Py_ssize_t n_rows, const int32_t *new_codes,
                      int32_t *codes, Py_ssize_t n, Py_ssize_t stride, Py_ssize_t n_buckets,
                      int32_t *ids, Py_ssize_t n_ids, int32_t *start, int32_t *count, int32_t *room,
                      int32_t *tail) noexcept nogil:
    cdef Py_ssize_t r
    cdef int32_t j, old, new
    cdef bint sorted_anew = False

    for r in range(n_rows):
        _prefetch_moves(rows, n_rows, r, new_codes, codes, stride, ids, start, count, room)
        j, new = rows[r], new_codes[r * stride]
        old = codes[j * stride]
        if old == new:
            continue
        codes[j * stride] = new
        if sorted_anew:
            continue
        if old >= 0:
            _remove(j, ids + start[old], &count[old])
        if new >= 0 and not _insert(j, new, ids, n_ids, start, count, room, tail):
            sorted_anew = True

    if sorted_anew:
        tail[0] = _build_table(codes, n, stride, n_buckets, True, NULL, ids, start, count, room)


def move(const int32_t[::1] rows, const int32_t[:, ::1] new_codes, int32_t[:, ::1] codes,
         int32_t[:, ::1] ids, int32_t[:, ::1] start, int32_t[:, ::1] count, int32_t[:, ::1] room,
         int32_t[::1] tail, int n_threads):
    """Give the neurons `rows` (distinct) new codes and move them to their buckets.

    A code of -1, old or new, means that the neuron is in no bucket. The tables were built with
    slack. O(len(rows) * n_tables * bucket length), amortised.
    """
    cdef Py_ssize_t t, n_tables = codes.shape[1], n_rows = rows.shape[0]
    if n_rows == 0 or n_tables == 0:
        return
    for t in prange(n_tables, nogil=True, schedule="dynamic", num_threads=n_threads):
        _move_table(&rows[0], n_rows, &new_codes[0, t], &codes[0, t], codes.shape[0], n_tables,
                    start.shape[1], &ids[t, 0], ids.shape[1], &start[t, 0], &count[t, 0],
                    &room[t, 0], &tail[t])


cdef bint _insert_table(const int32_t *codes, Py_ssize_t stride, const int32_t *samples,
                        const int32_t *neurons, Py_ssize_t n, int32_t *ids, Py_ssize_t n_ids,
                        int32_t *start, int32_t *count, int32_t *room,
                        int32_t *tail) noexcept nogil:
    # Returns True if the space behind the last bucket is used up.
    cdef Py_ssize_t k, e
    cdef int32_t b
    cdef bint there

    for k in range(n):
        b = codes[samples[k] * stride]
        if b < 0:
            continue
        there = False
        for e in range(count[b]):
            if ids[start[b] + e] == neurons[k]:
                there = True
                break
        if not there and not _insert(neurons[k], b, ids, n_ids, start, count, room, tail):
            return True
    return False


def insert(const int32_t[:, ::1] codes, const int32_t[::1] samples, const int32_t[::1] neurons,
           int32_t[:, ::1] ids, int32_t[:, ::1] start, int32_t[:, ::1] count, int32_t[:, ::1] room,
           int32_t[::1] tail, uint8_t[::1] full, int n_threads):
    """Add neuron neurons[k] to bucket codes[samples[k], t] of each table t, unless it is there.

    codes is (n_samples, n_tables): the codes of inputs, not of neurons, so that a neuron may be in
    several buckets of a table. full, (n_tables,), says which tables ran out of room; what was added
    before that stays. O(len(samples) * n_tables * bucket length)
    """
    cdef Py_ssize_t t, n = samples.shape[0], n_tables = codes.shape[1]
    full[:] = 0
    if n == 0 or n_tables == 0:
        return
    for t in prange(n_tables, nogil=True, schedule="dynamic", num_threads=n_threads):
        full[t] = _insert_table(&codes[0, t], n_tables, &samples[0], &neurons[0], n, &ids[t, 0],
                                ids.shape[1], &start[t, 0], &count[t, 0], &room[t, 0], &tail[t])


cdef enum:
    BUCKET_PREFETCH_DISTANCE = 4  # buckets
    QUERIES_PER_TASK = 4


cdef inline void _prefetch_bucket(int32_t code, Py_ssize_t t, const int32_t *ids, Py_ssize_t n_ids,
                                  const int32_t *start, const int32_t *count,
                                  Py_ssize_t n_buckets) noexcept nogil:
    if code >= 0:
        prefetch_run(ids + t * n_ids + start[t * n_buckets + code],
                     count[t * n_buckets + code] * sizeof(int32_t))


cdef inline void _prefetch_places(const int32_t *code, Py_ssize_t n_tables, Py_ssize_t n_probes,
                                  const int32_t *start, const int32_t *count,
                                  Py_ssize_t n_buckets) noexcept nogil:
    # the places of the buckets of a query
    cdef Py_ssize_t p, b
    for p in range(n_tables * n_probes):
        if code[p] >= 0:
            b = p // n_probes * n_buckets + code[p]
            prefetch_run(start + b, sizeof(int32_t))
            prefetch_run(count + b, sizeof(int32_t))


cdef Py_ssize_t _collide(const int32_t *code, const int32_t *next_code, Py_ssize_t n_tables,
                         Py_ssize_t n_probes, const int32_t *ids, Py_ssize_t n_ids,
                         const int32_t *start, const int32_t *count, Py_ssize_t n_buckets,
                         int min_count, Py_ssize_t n_best, const int32_t *names, uint8_t *seen,
                         uint64_t *keys, int32_t *out_ids, int32_t *out_counts) noexcept nogil:
    # next_code: the codes of the next query, or NULL; names: the ids of the neurons, or NULL
    cdef Py_ssize_t p, k, b, n_keys = 0, n_kept = 0, n_codes = n_tables * n_probes
    cdef const int32_t *bucket
    cdef int32_t j

    if next_code != NULL:
        _prefetch_places(next_code, n_tables, n_probes, start, count, n_buckets)
    for p in range(min(<Py_ssize_t>BUCKET_PREFETCH_DISTANCE, n_codes)):
        _prefetch_bucket(code[p], p // n_probes, ids, n_ids, start, count, n_buckets)

    for p in range(n_codes):
        if p + BUCKET_PREFETCH_DISTANCE < n_codes:
            _prefetch_bucket(code[p + BUCKET_PREFETCH_DISTANCE],
                             (p + BUCKET_PREFETCH_DISTANCE) // n_probes, ids, n_ids, start, count,
                             n_buckets)

        if code[p] < 0:
            continue

        b = p // n_probes * n_buckets + code[p]
        bucket = ids + p // n_probes * n_ids + start[b]
        if names != NULL:  # which are read at random places, for each neuron that is found
            for k in range(count[b]):
                prefetch_run(names + bucket[k], sizeof(int32_t))
        for k in range(count[b]):
            j = bucket[k]
            if seen[j] == 0:
                keys[n_keys] = <uint64_t>j
                n_keys += 1
            if seen[j] < 255:  # an inserted neuron may be in several buckets of a table
                seen[j] += 1

    for k in range(n_keys):
        j = <int32_t>keys[k]
        if seen[j] >= min_count:
            keys[n_kept] = count_key(seen[j], j if names == NULL else names[j])
            n_kept += 1
        seen[j] = 0  # only what was touched is cleared: no step costs O(n)

    if n_kept > n_best:
        select_smallest(keys, n_kept, n_best)
        n_kept = n_best
    sort_keys(keys, n_kept)
    for k in range(n_kept):
        out_ids[k] = count_key_id(keys[k])
        out_counts[k] = 255 - <int32_t>(keys[k] >> 32)

    for k in range(n_kept, n_best):
        out_ids[k] = -1
        out_counts[k] = 0
    return n_kept


cdef Py_ssize_t _draw(const int32_t *code, Py_ssize_t n_tables, Py_ssize_t n_probes,
                      const int32_t *ids, Py_ssize_t n_ids, const int32_t *start,
                      const int32_t *count, Py_ssize_t n_buckets, uint64_t seed,
                      Py_ssize_t n_wanted, uint8_t *seen, uint64_t *keys, int32_t *order,
                      int32_t *out_ids) noexcept nogil:
    cdef Py_ssize_t t, p, k, b, swap, n_keys, n_found = 0
    cdef const int32_t *bucket

    for t in range(n_tables):
        order[t] = <int32_t>t

    for t in range(n_tables):
        if n_found == n_wanted:
            break

        swap = t + random_below(seed, t, <int32_t>(n_tables - t))
        order[t], order[swap] = order[swap], order[t]

        for p in range(n_probes):
            b = code[order[t] * n_probes + p]
            if b < 0 or n_found == n_wanted:
                continue

            b += order[t] * n_buckets
            bucket = ids + order[t] * n_ids + start[b]
            n_keys = 0
            for k in range(count[b]):
                if not seen[bucket[k]]:
                    keys[n_keys] = <uint64_t>bucket[k]
                    n_keys += 1

            if n_keys > n_wanted - n_found:
                # Draw by neuron id, not by position: positions depend on the order of past moves.
                for k in range(n_keys):
                    keys[k] |= random_at(~seed, keys[k]) >> 32 << 32
                select_smallest(keys, n_keys, n_wanted - n_found)
                n_keys = n_wanted - n_found

            for k in range(n_keys):
                out_ids[n_found] = <int32_t>(keys[k] & 0x7FFFFFFF)
                seen[out_ids[n_found]] = 1
                n_found += 1

    for k in range(n_found):
        seen[out_ids[k]] = 0
    for k in range(n_found, n_wanted):
        out_ids[k] = -1
    return n_found


def draw(const int32_t[:, :, ::1] codes, const int32_t[:, ::1] ids, const int32_t[:, ::1] start,
         const int32_t[:, ::1] count, uint64_t seed, uint8_t[:, ::1] seen, uint64_t[:, ::1] keys,
         int32_t[:, ::1] order, int32_t[:, ::1] out_ids, int n_threads):
    """Vanilla sampling (SLIDE, section 3.1): whole buckets, tables in random order, up to n_wanted.

    codes is (n_queries, n_tables, n_probes); out_ids is (n_queries, n_wanted), in no order, filled
    up with -1. From the last bucket neurons are drawn at random. seen, (n_threads, n), is all zero
    before and after; keys is (n_threads, n), order (n_threads, n_tables). Per query O(n_tables +
    n_wanted), besides the last bucket.
    """
    cdef Py_ssize_t i, n_queries = codes.shape[0], n_tables = codes.shape[1]
    cdef Py_ssize_t n_wanted = out_ids.shape[1]
    cdef int thread
    if n_queries == 0 or n_wanted == 0:
        return
    if n_tables == 0 or codes.shape[2] == 0 or seen.shape[1] == 0:
        out_ids[:, :] = -1
        return
    for i in prange(n_queries, nogil=True, schedule="dynamic", chunksize=QUERIES_PER_TASK,
                    num_threads=n_threads):
        thread = threadid()
        _draw(&codes[i, 0, 0], n_tables, codes.shape[2], &ids[0, 0], ids.shape[1], &start[0, 0],
              &count[0, 0], start.shape[1], random_at(seed, <uint64_t>i), n_wanted,
              &seen[thread, 0], &keys[thread, 0], &order[thread, 0], &out_ids[i, 0])


def collide(const int32_t[:, :, ::1] codes, const int32_t[:, ::1] ids, const int32_t[:, ::1] start,
            const int32_t[:, ::1] count, int min_count, const int32_t[::1] names,
            uint8_t[:, ::1] seen, uint64_t[:, ::1] keys, int32_t[:, ::1] out_ids,
            int32_t[:, ::1] out_counts, int n_threads):
    """The n_best neurons that share most buckets with each query, with counts: SLIDE's candidates.

    codes is (n_queries, n_tables, n_probes) with n_tables <= 255: the buckets to probe, distinct
    within a table, so that a neuron, which is in one bucket of a table, counts once per table; -1
    is no bucket. out_ids and out_counts are (n_queries, n_best), best first, filled up with -1 and
    0. A neuron counts if it is in the probed buckets of at least min_count tables. seen,
    (n_threads, n), is all zero before and after; keys is (n_threads, n). names, (n,) or None, has
    ids that take the place of the numbers of the neurons, in out_ids and where counts are equal: so
    tables of some neurons find what tables of all would. Per query O(n_tables * n_probes + neurons
    in the probed buckets).
    """
    cdef Py_ssize_t i, n_queries = codes.shape[0], n_tables = codes.shape[1]
    cdef Py_ssize_t n_probes = codes.shape[2], n_best = out_ids.shape[1]
    cdef const int32_t *name = NULL
    cdef int thread

    if n_queries == 0 or n_best == 0:
        return
    if n_tables == 0 or n_probes == 0 or seen.shape[1] == 0:
        out_ids[:, :] = -1
        out_counts[:, :] = 0
        return

    if names is not None:
        name = &names[0]
    for i in prange(n_queries, nogil=True, schedule="dynamic", chunksize=QUERIES_PER_TASK,
                    num_threads=n_threads):
        thread = threadid()
        if i % QUERIES_PER_TASK == 0:
            _prefetch_places(&codes[i, 0, 0], n_tables, n_probes, &start[0, 0], &count[0, 0],
                             start.shape[1])
        _collide(&codes[i, 0, 0],
                 &codes[i + 1, 0, 0] if i + 1 < n_queries and (i + 1) % QUERIES_PER_TASK else NULL,
                 n_tables, n_probes, &ids[0, 0], ids.shape[1], &start[0, 0], &count[0, 0],
                 start.shape[1], min_count, n_best, name, &seen[thread, 0], &keys[thread, 0],
                 &out_ids[i, 0], &out_counts[i, 0])
