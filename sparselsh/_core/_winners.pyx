"""Hashes of the best entry of each bin: winner-take-all and minwise hashing, both densified.

    winners   the largest value of each bin of coordinates
              (Yagnik et al. 2011; Chen and Shrivastava 2018)
    minima    the smallest hash value of each bin of features (Li et al. 2012; Shrivastava 2017)

Both use the nonzero entries only, so that sparse and dense rows get the same codes. Rows are CSR
arrays; `indices` is None for dense rows, whose entries are all columns in order. A bin in which a
row has no entry copies a bin in which it has one (`lender` in hashing.h). A row without entries
gets code 0 everywhere.
"""
from cython.parallel cimport prange, threadid
from libc.math cimport INFINITY
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc

from ._order cimport key_id, key_score, random_at, score_key, select_smallest, sort_keys
from ._probes cimport cheapest_codes, lender, scratch_at, scratch_size, scratch_t

cdef uint64_t EMPTY_BIN = 0xFFFFFFFFFFFFFFFF  # above every hash value, which has 32 bits


cdef inline Py_ssize_t column(const int32_t *indices, Py_ssize_t k) noexcept nogil:
    return indices[k] if indices != NULL else k


cdef const int32_t *address(const int32_t[::1] indices) noexcept:
    # NULL for dense rows, and if no row has an entry: a kernel then reads nothing through it
    return &indices[0] if indices is not None and indices.shape[0] else NULL


# ---- winner-take-all

cdef int32_t _largest(const float *values, Py_ssize_t n) noexcept nogil:
    # -1 if all are -inf
    cdef Py_ssize_t k
    cdef int32_t best = -1
    cdef float largest = -INFINITY
    for k in range(n):
        if values[k] > largest:
            largest, best = values[k], <int32_t>k
    return best


cdef int _runners_up(const float *values, Py_ssize_t n, int width, uint64_t *keys) noexcept nogil:
    # the keys of the `width` largest entries above -inf, best first; returns their number
    cdef Py_ssize_t k, n_keys = 0
    for k in range(n):
        if values[k] > -INFINITY:
            keys[n_keys] = score_key(values[k], <int32_t>k)
            n_keys += 1
    if n_keys > width:
        select_smallest(keys, n_keys, width)
        n_keys = width
    sort_keys(keys, n_keys)
    return <int>n_keys


cdef void _winners_row(const int32_t *indices, const float *data, Py_ssize_t n,
                       const int32_t *places, Py_ssize_t n_permutations, Py_ssize_t bin_size,
                       Py_ssize_t n_bins, Py_ssize_t n_digits, uint64_t seed, float *values,
                       int32_t *winner, uint8_t *full, char *work, Py_ssize_t n_probes,
                       int32_t *codes) noexcept nogil:
    cdef Py_ssize_t k, q, b, t, i, width = min(bin_size, n_probes)
    cdef const int32_t *place
    cdef scratch_t s = scratch_at(work, n_digits, width, bin_size, n_probes)
    cdef int32_t code, radix, source
    cdef int n_keys
    cdef double gap
    cdef bint any_full = False

    for k in range(n_bins * bin_size):
        values[k] = -INFINITY

    for k in range(n):
        if data[k] != 0:
            place = places + column(indices, k) * n_permutations
            for q in range(n_permutations):
                if place[q] >= 0:
                    values[place[q]] = data[k]

    for b in range(n_bins):
        winner[b] = _largest(values + b * bin_size, bin_size)
        full[b] = winner[b] >= 0
        any_full |= full[b]

    for t in range(n_bins // n_digits):
        code, radix = 0, 1
        for k in range(n_digits):
            source = <int32_t>(t * n_digits + k)
            n_keys = 1
            if any_full:
                source = lender(seed, source, full, <int32_t>n_bins)
                code += radix * winner[source]
                if n_probes > 1:
                    n_keys = _runners_up(values + source * bin_size, bin_size, <int>width, s.keys)
                    for i in range(1, n_keys):
                        gap = <double>key_score(s.keys[0]) - key_score(s.keys[i])
                        s.cost[k * width + i] = gap * gap
                        s.delta[k * width + i] = radix * (key_id(s.keys[i]) - winner[source])

            for i in range(n_keys, width):
                s.cost[k * width + i] = INFINITY
            radix *= <int32_t>bin_size
        cheapest_codes(code, <int>n_digits, <int>width, s.cost, s.delta, s.order, s.heap, n_probes,
                       codes)
        codes += n_probes


def winners(const int64_t[::1] indptr, const int32_t[::1] indices, const float[::1] data,
            const int32_t[:, ::1] places, Py_ssize_t bin_size, Py_ssize_t n_digits, uint64_t seed,
            int32_t[:, :, ::1] codes, int n_threads):
    """codes[i, t, 0] = sum_k w_k bin_size^k, w_k the best slot of bin t * n_digits + k.

    The best slot of a bin is that of its largest entry. Column c is in slot places[c, q] % bin_size
    of bin places[c, q] // bin_size for each permutation q, and in no bin of it if places[c, q] is
    -1; of equal entries the lowest slot wins. Further codes ascend by sum_k (largest - taken)^2
    over entries of the bins; -1 where there are no more. places is (d, n_permutations), codes (n,
    n_tables, n_probes), n_bins = n_tables * n_digits, bin_size^n_digits < 2^31. Per row O(entries *
    n_permutations + n_bins * bin_size), and per table O(n_probes log n_probes).
    """
    cdef Py_ssize_t i, n = codes.shape[0], n_tables = codes.shape[1], n_probes = codes.shape[2]
    cdef Py_ssize_t n_bins = n_tables * n_digits, n_slots = n_bins * bin_size
    cdef Py_ssize_t probing = scratch_size(n_digits, min(bin_size, n_probes), bin_size, n_probes)
    cdef Py_ssize_t size = (probing + n_slots * 4 + n_bins * 5 + 7) // 8 * 8
    cdef const int32_t *index = address(indices)
    cdef const float *value = &data[0] if data.shape[0] else NULL
    cdef const int32_t *place = &places[0, 0] if places.shape[0] and places.shape[1] else NULL
    cdef char *work
    cdef char *mine

    if n == 0 or n_tables == 0:
        return

    work = <char *>malloc(n_threads * size)
    if work == NULL:
        raise MemoryError()

    for i in prange(n, nogil=True, schedule="static", num_threads=n_threads):
        mine = work + threadid() * size
        _winners_row(index + indptr[i] if index != NULL else NULL, value + indptr[i],
                     indptr[i + 1] - indptr[i], place, places.shape[1], bin_size, n_bins, n_digits,
                     seed, <float *>(mine + probing), <int32_t *>(mine + probing) + n_slots,
                     <uint8_t *>(mine + probing + 4 * (n_slots + n_bins)), mine, n_probes,
                     &codes[i, 0, 0])
    free(work)


# ---- minwise hashing

cdef void _minima_row(const int32_t *indices, const float *data, Py_ssize_t n, Py_ssize_t n_bins,
                      Py_ssize_t n_digits, int n_bits, uint64_t seed, uint64_t *least,
                      uint8_t *full, int32_t *codes) noexcept nogil:
    cdef Py_ssize_t k, b, t
    cdef uint64_t h, value
    cdef bint any_full = False

    for b in range(n_bins):
        least[b] = EMPTY_BIN

    for k in range(n):
        if data[k] != 0:
            h = random_at(seed, <uint64_t>column(indices, k))
            # the upper half of h selects the bin, the lower half is the value in it
            b = <Py_ssize_t>((h >> 32) * <uint64_t>n_bins >> 32)
            value = <uint32_t>h
            if value < least[b]:
                least[b] = value

    for b in range(n_bins):
        full[b] = least[b] != EMPTY_BIN
        any_full |= full[b]

    for t in range(n_bins // n_digits):
        h = 0
        for k in range(n_digits):
            if any_full:
                b = lender(seed + 1, <int32_t>(t * n_digits + k), full, <int32_t>n_bins)
                h = random_at(h, least[b])
        codes[t] = <int32_t>(h >> (64 - n_bits))


def minima(const int64_t[::1] indptr, const int32_t[::1] indices, const float[::1] data,
           Py_ssize_t n_digits, int n_bits, uint64_t seed, int32_t[:, ::1] codes, int n_threads):
    """codes[i, t] = the top n_bits of a hash of the smallest feature hashes of n_digits bins.

    With (r, v) the upper and lower 32 bits of random_at(seed, c), feature c is in bin r * n_bins >>
    32 and has value v; h <- random_at(h, smallest value) over the bins of a table, from h = 0.
    codes is (n, n_tables), n_bins = n_tables * n_digits, 1 <= n_bits <= 31. Per row O(entries +
    n_bins)
    """
    cdef Py_ssize_t i, n = codes.shape[0], n_tables = codes.shape[1], n_bins = n_tables * n_digits
    cdef Py_ssize_t size = (n_bins * 9 + 7) // 8
    cdef const int32_t *index = address(indices)
    cdef const float *value = &data[0] if data.shape[0] else NULL
    cdef uint64_t *work
    cdef uint64_t *mine

    if n == 0 or n_tables == 0:
        return

    work = <uint64_t *>malloc(n_threads * size * sizeof(uint64_t))
    if work == NULL:
        raise MemoryError()

    for i in prange(n, nogil=True, schedule="static", num_threads=n_threads):
        mine = work + threadid() * size
        _minima_row(index + indptr[i] if index != NULL else NULL, value + indptr[i],
                    indptr[i + 1] - indptr[i], n_bins, n_digits, n_bits, seed, mine,
                    <uint8_t *>(mine + n_bins), &codes[i, 0])
    free(work)
