# A prepared search, for the module that runs it at the end of a network (_single_row_mlp).
from libc.stdint cimport int32_t, uint8_t, uint16_t

from ._quantized cimport quantized_rows_t

ctypedef struct search_t:
    Py_ssize_t d, n_dims, n_bits, n_cells, n_spread, n, n_neurons, n_short, n_evidence, slots, order
    const float *signs
    const uint16_t *query_rows
    const float *query_constant
    const int32_t *cell_start
    const int32_t *cell
    const float *cell_biases
    const int32_t *cell_sizes
    const float *cell_scales
    const float *tails
    const int32_t *slot
    const uint8_t *blocks
    const float *factors
    const float *errors
    const float *biases
    const int32_t *ids
    const int32_t *short_ids
    const float *short_norms
    const float *offset
    const float *bias
    double scale, offset_norm
    float deviations, cell_share, n_missing, short_deviations
    float variance, bias_variance
    quantized_rows_t exact, rough
    bint has_rough, euclidean

cdef class BoundedSearch:
    cdef object arrays
    cdef search_t s

cdef int search_queries(BoundedSearch search, const float *x, Py_ssize_t n, Py_ssize_t k,
                        int32_t *out_ids, float *out_scores) except -1 nogil
