# The steps of one query, for the module that runs them in one call (_single_query_search).
from libc.stdint cimport int32_t, uint8_t, uint64_t

from ._quantized cimport quantized_rows_t
from ._simd cimport loops_t

cdef enum:
    BLOCKS_PER_SCAN = 16  # 512 neurons; after each scan the score of the k-th best is updated
    SCAN_BUFFER_LENGTH = BLOCKS_PER_SCAN * 32 + 16  # scores that a scan may keep, and a register

cdef void best_in_cells(const loops_t *f, const float *q, const float *cell_scores,
                        Py_ssize_t n_cells, Py_ssize_t n_probed, const int32_t *cell_start,
                        const int32_t *cell, const uint8_t *blocks, Py_ssize_t n_groups,
                        const float *factors, const int32_t *ids, Py_ssize_t n, uint8_t *lut,
                        float *scores, int32_t *found, uint64_t *keys, Py_ssize_t n_keys,
                        uint64_t *cell_keys, uint8_t *probed, Py_ssize_t n_best,
                        int32_t *out_ids) noexcept nogil
cdef void best_of(const loops_t *f, const int32_t *ids, Py_ssize_t n, const float *x,
                  const quantized_rows_t *w, const float *bias, int32_t *known, float *scores,
                  uint64_t *keys, Py_ssize_t k, int32_t *out_ids, float *out_scores) noexcept nogil
