"""Rows of sparse matrices: those of a batch, and the transpose of their pattern.

    take_counts, take_rows   rows in another order: a batch
    group_columns            the transpose, touched columns only, to process weights row by row

Sparse rows are CSR: indptr (n + 1,), indices and data (nnz,), indices ascending within a row.
"""
from cython.parallel cimport prange
from libc.stdint cimport int32_t, int64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memmove

from ._order cimport sort_ids
from ._simd cimport prefetch_run

cdef enum:
    MAX_PARTS = 4  # of the columns; fixed, so that the order of groups does not depend on n_threads
    MIN_ENTRIES_FOR_PARTS = 4096  # fewer are grouped as one part
    N_SAMPLED_ENTRIES = 64  # whose quantiles are the borders of the parts
    LENGTH_PREFETCH_DISTANCE = 16  # rows
    ROW_PREFETCH_DISTANCE = 4  # rows


def take_counts(const int64_t[::1] indptr, const int64_t[::1] rows, int64_t[::1] out_indptr):
    """out_indptr[i + 1] - out_indptr[i] is the length of row rows[i]; out_indptr[0] is 0.

    O(len(rows))
    """
    cdef Py_ssize_t i, distance = LENGTH_PREFETCH_DISTANCE
    out_indptr[0] = 0
    for i in range(rows.shape[0]):
        if i + distance < rows.shape[0]:
            prefetch_run(&indptr[rows[i + distance]], 2 * sizeof(int64_t))
        out_indptr[i + 1] = out_indptr[i] + indptr[rows[i] + 1] - indptr[rows[i]]


def take_rows(const int64_t[::1] indptr, const int32_t[::1] indices, const float[::1] data,
              const int64_t[::1] rows, const int64_t[::1] out_indptr, int32_t[::1] out_indices,
              float[::1] out_data):
    """Row i of the output, from out_indptr[i] on, is row rows[i] of the input.

    O(nnz of the rows)
    """
    cdef Py_ssize_t i, n, first, distance = ROW_PREFETCH_DISTANCE
    with nogil:
        for i in range(rows.shape[0]):
            if i + distance < rows.shape[0]:
                first, n = (indptr[rows[i + distance]],
                            out_indptr[i + distance + 1] - out_indptr[i + distance])
                if n > 0:
                    prefetch_run(&indices[first], n * sizeof(int32_t))
                    prefetch_run(&data[first], n * sizeof(float))
            first, n = indptr[rows[i]], out_indptr[i + 1] - out_indptr[i]
            if n > 0:
                memcpy(&out_indices[out_indptr[i]], &indices[first], n * sizeof(int32_t))
                memcpy(&out_data[out_indptr[i]], &data[first], n * sizeof(float))


cdef inline int64_t _first_from(const int32_t *indices, int64_t low, int64_t high,
                                int32_t column) noexcept nogil:
    # the first entry in low:high that is not below `column`
    cdef int64_t length = high - low, half
    while length > 0:  # no branch on a comparison: every other prediction would be wrong
        half = (length + 1) // 2
        low += half * (indices[low + half - 1] < column)
        length -= half
    return low


cdef void _borders(const int32_t *indices, int64_t nnz, int64_t n_columns, Py_ssize_t n_parts,
                   int32_t *borders) noexcept nogil:
    # n_parts + 1 columns that divide the entries into about equal parts
    cdef int32_t drawn[N_SAMPLED_ENTRIES]
    cdef int32_t spare[N_SAMPLED_ENTRIES]
    cdef Py_ssize_t k, p
    borders[0], borders[n_parts] = 0, <int32_t>n_columns
    if n_parts > 1:
        for k in range(N_SAMPLED_ENTRIES):
            drawn[k] = indices[k * nnz // N_SAMPLED_ENTRIES]
        sort_ids(drawn, spare, N_SAMPLED_ENTRIES, n_columns)
        for p in range(1, n_parts):
            borders[p] = drawn[p * N_SAMPLED_ENTRIES // n_parts]


cdef Py_ssize_t _group_part(const int32_t *indices, const int64_t *limits, Py_ssize_t n,
                            Py_ssize_t n_limits, int64_t total, int32_t *slot, int32_t *rows,
                            int64_t *starts, int32_t *entries, int32_t *samples) noexcept nogil:
    # A counting sort whose counters are found through `slot`. In this part row i has the entries
    # limits[i * n_limits]:limits[i * n_limits + 1]. The first group starts at `total`.
    cdef Py_ssize_t i, k, r, n_rows = 0
    cdef int64_t first = total, count

    for i in range(n):
        for k in range(limits[i * n_limits], limits[i * n_limits + 1]):
            r = slot[indices[k]]
            if r < 0:
                r = n_rows
                slot[indices[k]] = <int32_t>r
                rows[r] = indices[k]
                starts[r] = 0
                n_rows += 1
            starts[r] += 1

    for r in range(n_rows):
        count = starts[r]
        starts[r] = total
        total += count

    for i in range(n):
        for k in range(limits[i * n_limits], limits[i * n_limits + 1]):
            r = slot[indices[k]]
            entries[starts[r]] = <int32_t>k
            samples[starts[r]] = <int32_t>i
            starts[r] += 1

    # every start has moved to the end of its group, which is the start of the next one
    for r in range(n_rows - 1, 0, -1):
        starts[r] = starts[r - 1]
    if n_rows:
        starts[0] = first
    for r in range(n_rows):
        slot[rows[r]] = -1
    return n_rows


def group_columns(const int64_t[::1] indptr, const int32_t[::1] indices, int32_t[::1] slot,
                  int32_t[::1] rows, int64_t[::1] starts, int32_t[::1] entries,
                  int32_t[::1] samples, int n_threads):
    """Transpose the pattern of S, touched columns only; returns their number.

    Group r is column rows[r]; its entries e in starts[r]:starts[r + 1] are at position entries[e]
    of the CSR, in row samples[e], ascending. Groups are in the order in which their columns first
    occur; from 4,096 entries on, the columns are divided into four parts, one after the other.
    slot, one entry per column, is all -1 before and after. rows holds min(nnz, n_columns) entries,
    starts one more, entries and samples nnz.   O(nnz), independent of the number of columns
    """
    cdef Py_ssize_t i, p, n = indptr.shape[0] - 1, n_rows = 0, n_columns = slot.shape[0]
    cdef int64_t nnz = indptr[n], first = indptr[0]
    cdef Py_ssize_t n_parts = MAX_PARTS if nnz - first >= MIN_ENTRIES_FOR_PARTS else 1
    cdef Py_ssize_t n_limits = n_parts + 1
    cdef int32_t borders[MAX_PARTS + 1]
    cdef int64_t n_entries[MAX_PARTS + 1]  # in the parts before
    cdef Py_ssize_t row_at[MAX_PARTS + 1]  # where the rows of a part are written
    cdef Py_ssize_t n_found[MAX_PARTS]
    cdef int64_t *limits

    if nnz == first:
        starts[0] = 0
        return 0

    limits = <int64_t *>malloc(n * n_limits * sizeof(int64_t))
    if limits == NULL:
        raise MemoryError()

    with nogil:
        _borders(&indices[first], nnz - first, n_columns, n_parts, borders)
        for p in range(n_limits):
            n_entries[p] = row_at[p] = 0

        for i in range(n):
            limits[i * n_limits], limits[i * n_limits + n_parts] = indptr[i], indptr[i + 1]
            for p in range(1, n_parts):
                limits[i * n_limits + p] = _first_from(&indices[0], limits[i * n_limits + p - 1],
                                                       indptr[i + 1], borders[p])
            for p in range(n_parts):
                n_entries[p + 1] += limits[i * n_limits + p + 1] - limits[i * n_limits + p]

        for p in range(n_parts):
            row_at[p + 1] = row_at[p] + min(n_entries[p + 1],
                                            <int64_t>(borders[p + 1] - borders[p]))
            n_entries[p + 1] += n_entries[p]

    for p in prange(n_parts, nogil=True, schedule="dynamic", chunksize=1,
                    num_threads=min(n_threads, n_parts)):
        n_found[p] = _group_part(&indices[0], limits + p, n, n_limits, n_entries[p], &slot[0],
                                 &rows[0] + row_at[p], &starts[0] + row_at[p], &entries[0],
                                 &samples[0])
    free(limits)

    for p in range(n_parts):
        if row_at[p] > n_rows:  # close the gap behind the previous part
            memmove(&rows[n_rows], &rows[row_at[p]], n_found[p] * sizeof(int32_t))
            memmove(&starts[n_rows], &starts[row_at[p]], n_found[p] * sizeof(int64_t))
        n_rows += n_found[p]
    starts[n_rows] = nnz - first
    return n_rows
