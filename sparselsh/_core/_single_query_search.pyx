"""A search for one query at a time, from the input to the best neurons, in one call.

The steps are rotation, cells, sketches and exact products. Such a search takes some ten
microseconds. To pass each of a dozen arrays to a kernel takes a tenth of a microsecond, and to call
three kernels one after the other as long again: so arrays are passed once, as a SingleQuerySearch.
"""
from libc.math cimport INFINITY
from libc.stdint cimport int32_t, uint8_t, uint16_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset

from ._quantized cimport quantized_rows_of
from ._simd cimport loops_t, table
from ._sketches cimport SCAN_BUFFER_LENGTH, best_in_cells, best_of


cdef class SingleQuerySearch:
    """The arrays of an index, which it keeps alive, and the parameters of `top_k`. Immutable."""


def prepare(const uint16_t[:, ::1] query_rows, const float[::1] query_constant, Py_ssize_t n_bits,
            Py_ssize_t n_probed, const int32_t[::1] cell_start, const int32_t[::1] cell,
            const uint8_t[:, ::1] blocks, const float[::1] factors, const int32_t[::1] ids,
            Py_ssize_t n, w, const float[::1] bias, coarse, coarse_scales, Py_ssize_t n_exact,
            Py_ssize_t n_best):
    """A search of n_probed cells for the n_best neurons by sketch, and for the best of those.

    query_rows, (n_bits + n_cells, d) in bfloat16, and query_constant map an input to the rotated
    query and the scores of the cells; the other arrays are those of _sketches.scan_cells. w,
    (n_neurons, d), is float32. coarse is None, or w in bfloat16 or int8 with scales as in
    _quantized: candidates are first scored by it, and only the best n_exact by w.
    """
    cdef SingleQuerySearch s = SingleQuerySearch()

    s.arrays = (query_rows, query_constant, cell_start, cell, blocks, factors, ids, w, bias, coarse,
                coarse_scales)
    s.d, s.n_bits = query_rows.shape[1], n_bits
    s.n_cells, s.n_probed = query_rows.shape[0] - n_bits, n_probed
    s.n, s.n_best, s.n_exact = n, n_best, 0
    quantized_rows_of(w, None, &s.exact)
    if coarse is not None:
        quantized_rows_of(coarse, coarse_scales, &s.rough)
        s.n_exact = n_exact
    if n and s.d:
        s.query_rows, s.query_constant = &query_rows[0, 0], &query_constant[0]
        s.cell_start, s.cell, s.blocks = &cell_start[0], &cell[0], &blocks[0, 0]
        s.factors, s.ids, s.bias = &factors[0], &ids[0], &bias[0]
    return s


cdef int search_queries(SingleQuerySearch s, const float *x, Py_ssize_t n, Py_ssize_t k,
                        int32_t *out_ids, float *out_scores) except -1 nogil:
    # n queries, one after the other; k > 0
    cdef Py_ssize_t _i, r, n_rows = s.n_bits + s.n_cells
    cdef Py_ssize_t n_keys = max(3 * s.n_best + 64, s.n_best + max(k, s.n_exact) + 1)
    cdef Py_ssize_t n_floats = n_rows + max(<Py_ssize_t>SCAN_BUFFER_LENGTH, s.n_best) + s.n_exact
    cdef Py_ssize_t n_ints = max(<Py_ssize_t>SCAN_BUFFER_LENGTH, s.n_best) + s.n_best + s.n_exact
    cdef const loops_t *f = table()
    cdef const int32_t *candidates
    cdef Py_ssize_t n_candidates
    cdef uint64_t *keys
    cdef float *projected
    cdef float *scores
    cdef int32_t *found
    cdef int32_t *looked_at
    cdef uint8_t *lut

    if s.n == 0 or s.d == 0:
        for r in range(n * k):
            out_ids[r], out_scores[r] = -1, -INFINITY
        return 0

    # one block of memory, the widest numbers first
    keys = <uint64_t *>malloc((n_keys + s.n_cells) * 8 + (n_floats + n_ints) * 4 + 4 * s.n_bits
                              + s.n_cells)
    if keys == NULL:
        with gil:
            raise MemoryError()

    projected = <float *>(keys + n_keys + s.n_cells)
    scores = projected + n_rows
    found = <int32_t *>(projected + n_floats)
    looked_at = found + n_ints - s.n_best - s.n_exact
    lut = <uint8_t *>(found + n_ints)
    memset(lut + 4 * s.n_bits, 0, s.n_cells)

    for _i in range(n):
        f.dots_bfloat16(s.query_rows, NULL, n_rows, x, s.d, projected)
        for r in range(n_rows):
            projected[r] += s.query_constant[r]
        best_in_cells(f, projected, projected + s.n_bits, s.n_cells, s.n_probed, s.cell_start,
                      s.cell, s.blocks, s.n_bits // 4, s.factors, s.ids, s.n, lut, scores, found,
                      keys, n_keys, keys + n_keys, lut + 4 * s.n_bits, s.n_best, looked_at)
        candidates, n_candidates = looked_at, s.n_best
        if s.n_exact:
            best_of(f, candidates, n_candidates, x, &s.rough, s.bias, found, scores, keys,
                    s.n_exact, looked_at + s.n_best, projected + n_floats - s.n_exact)
            candidates, n_candidates = looked_at + s.n_best, s.n_exact

        best_of(f, candidates, n_candidates, x, &s.exact, s.bias, found, scores, keys, k, out_ids,
                out_scores)
        x += s.d
        out_ids += k
        out_scores += k
    free(keys)
    return 0


def top_k(SingleQuerySearch s, const float[:, ::1] x, int32_t[:, ::1] out_ids,
          float[:, ::1] out_scores):
    """The k neurons with the largest w[j] . x[i] + bias[j] among the candidates, best first.

    out_ids and out_scores are (n_queries, k), filled up with -1 and -inf. One thread. Per query
    O((n_bits + n_cells) d + n_cells + slots of the probed cells * n_bits / 128 + n_best d).
    """
    if x.shape[0] == 0 or out_ids.shape[1] == 0:
        return
    with nogil:
        search_queries(s, &x[0, 0] if s.d else NULL, x.shape[0], out_ids.shape[1], &out_ids[0, 0],
                       &out_scores[0, 0])
