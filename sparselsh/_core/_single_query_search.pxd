# A prepared search, for the module that runs it at the end of a network (_single_row_mlp).
from libc.stdint cimport int32_t, uint8_t, uint16_t

from ._quantized cimport quantized_rows_t

cdef class SingleQuerySearch:
    cdef object arrays
    cdef Py_ssize_t d, n_bits, n_cells, n_probed, n, n_best, n_exact
    cdef const uint16_t *query_rows
    cdef const float *query_constant
    cdef const int32_t *cell_start
    cdef const int32_t *cell
    cdef const uint8_t *blocks
    cdef const float *factors
    cdef const int32_t *ids
    cdef const float *bias
    cdef quantized_rows_t exact, rough

cdef int search_queries(SingleQuerySearch s, const float *x, Py_ssize_t n, Py_ssize_t k,
                        int32_t *out_ids, float *out_scores) except -1 nogil
