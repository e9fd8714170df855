"""Multinomial logistic regression of sparse rows for few classes: each row computes all outputs.

W is (n_features, n_classes): the weights of a feature are next to each other.
"""
from libc.stdint cimport int32_t, int64_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from ._one_vs_rest cimport rows_of, rows_t
from ._order cimport random_at
from ._simd cimport loops_t, table


cdef void _shuffle(int32_t *order, Py_ssize_t n, uint64_t seed, uint64_t drawn) noexcept nogil:
    cdef Py_ssize_t q, other
    for q in range(n - 1):
        other = q + <Py_ssize_t>((random_at(seed, drawn + q) >> 32) * <uint64_t>(n - q) >> 32)
        order[q], order[other] = order[other], order[q]


def fit(const int64_t[::1] indptr, const int32_t[::1] indices, const float[::1] data,
        const float[::1] norms, const int32_t[::1] classes, const float[::1] costs,
        Py_ssize_t n_passes, float tolerance, uint64_t seed, int32_t[::1] order,
        float[:, ::1] residuals, float[:, ::1] w, float[::1] bias):
    """min_W |W|^2 / 2 + |bias|^2 / 2 - sum_i costs[i] log softmax(W^T x_i + bias)[classes[i]]

    norms, (n,), are the squared norms of the rows; order, (m,), the rows that are visited, which
    is shuffled. residuals, (n, n_classes), are the dual variables, at the optimum y_i - p_i with
    y_i the unit vector of the class and p_i the probabilities: W = sum_i costs[i] x_i residuals[i]
    is kept. residuals, w and bias are zero before, or what an earlier call left, with more rows or
    without. The bias is the weight of a constant feature.

    The residuals of a row move towards y - p, by the part that raises the dual objective whatever
    the curvature (Shalev-Shwartz and Zhang, JMLR 14, 2013, option III of the ascent), until the
    root mean square of |y - p - residual| in a pass is at most the tolerance, at most n_passes.
    Returns the number of passes. Per pass O(n_classes * nnz of the rows)
    """
    cdef Py_ssize_t q, _pass = 0, m = order.shape[0], n_classes = bias.shape[0]
    cdef int32_t i
    cdef int64_t first, e, nnz
    cdef float step, total
    cdef double missing
    cdef const loops_t *f = table()
    cdef rows_t x = rows_of(indptr, indices, data)
    cdef float *p
    if m == 0 or n_classes == 0:
        return 0
    p = <float *>malloc(n_classes * sizeof(float))
    if p == NULL:
        raise MemoryError()

    with nogil:
        for _pass in range(n_passes):
            missing = 0
            _shuffle(&order[0], m, seed, <uint64_t>_pass * m)
            for q in range(m):
                i = order[q]
                first, nnz = x.indptr[i], x.indptr[i + 1] - x.indptr[i]
                memcpy(p, &bias[0], n_classes * sizeof(float))
                if nnz:
                    f.sums(&w[0, 0], x.indices + first, x.data + first, nnz, n_classes, 0,
                           n_classes, p)
                total = f.exp_sum(p, n_classes, f.max(p, n_classes))
                f.scale(-1 / total, p, n_classes)
                p[classes[i]] += 1
                f.axpy(-1, &residuals[i, 0], p, n_classes)
                missing += f.dot(p, p, n_classes)

                # the curvature of the loss is at most 1 / 2 along a vector whose sum is 0
                step = 1 / (1 + costs[i] * (norms[i] + 1) / 2)
                f.axpy(step, p, &residuals[i, 0], n_classes)
                step *= costs[i]
                f.axpy(step, p, &bias[0], n_classes)
                for e in range(first, first + nnz):
                    f.axpy(step * x.data[e], p, &w[x.indices[e], 0], n_classes)
            if missing <= tolerance * tolerance * m:
                break
    free(p)
    return _pass + 1
