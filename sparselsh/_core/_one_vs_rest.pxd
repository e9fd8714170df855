# Candidates of one row, for the module that ranks them at the end of a network (_single_row_mlp).
from libc.stdint cimport int32_t, int64_t, uint64_t

from ._simd cimport loops_t

ctypedef struct rows_t:
    const int64_t *indptr
    const int32_t *indices
    const float *data

cdef inline rows_t rows_of(const int64_t[::1] indptr, const int32_t[::1] indices,
                           const float[::1] data) noexcept:
    cdef rows_t rows
    rows.indptr = &indptr[0]
    rows.indices = &indices[0] if indices.shape[0] else NULL
    rows.data = &data[0] if data.shape[0] else NULL
    return rows

ctypedef struct classifiers_t:
    rows_t w  # (n_labels, n_features) or, with by_feature, transposed
    const float *bias
    float scale
    bint by_feature, normalized

cdef void rerank_row(const loops_t *f, const classifiers_t *c, const int32_t *indices,
                     const float *data, Py_ssize_t nnz, float *work, const int32_t *ids,
                     const float *scores, Py_ssize_t n, uint64_t *keys, Py_ssize_t k_best,
                     int32_t *out_ids, float *out_scores) noexcept nogil
