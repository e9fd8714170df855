"""Losses over logits of dense or active outputs; gradients are written in place of the logits.

Row i of the logits is z[offsets[i]:offsets[i + 1]]: of equal length for dense outputs and for one
active set per batch, of any length for one set per sample. The targets of row i are the entries
positions[indptr[i]:indptr[i + 1]], counted from the start of the row.
"""
from cython.parallel cimport prange
from libc.math cimport INFINITY
from libc.stdint cimport int32_t, int64_t

from ._portable_math cimport portable_exp as exp, portable_log as log
from ._simd cimport loops_t, table


cdef float _softmax_row(const loops_t *f, float *z, Py_ssize_t n, const int32_t *target,
                        Py_ssize_t n_targets, float scale) noexcept nogil:
    cdef Py_ssize_t k
    cdef float shift, total, wanted = 0
    if n_targets == 0 or n == 0:
        f.scale(0, z, n)
        return 0
    shift = f.max(z, n)
    for k in range(n_targets):
        wanted += z[target[k]]
    total = f.exp_sum(z, n, shift)
    f.scale(scale / total, z, n)
    for k in range(n_targets):
        z[target[k]] -= scale / n_targets
    return log(total) + shift - wanted / n_targets


def softmax_cross_entropy(const int64_t[::1] offsets, float[::1] z, const int64_t[::1] indptr,
                          const int32_t[::1] positions, float scale, float[::1] losses,
                          int n_threads):
    """losses[i] = log sum_j exp(z_ij) - sum_j y_ij z_ij;   z <- scale * (softmax(z) - y)

    y is 1 / (number of targets) at the targets of the row, else 0. A row without targets has loss
    and gradient 0.
    """
    cdef Py_ssize_t i, n = losses.shape[0]
    cdef const loops_t *f = table()
    cdef const int32_t *target = &positions[0] if positions.shape[0] else NULL
    cdef float *row = &z[0] if z.shape[0] else NULL
    for i in prange(n, nogil=True, schedule="static", num_threads=n_threads):
        losses[i] = _softmax_row(f, row + offsets[i], offsets[i + 1] - offsets[i],
                                 target + indptr[i], indptr[i + 1] - indptr[i], scale)


cdef void _softmax_part(const loops_t *f, float *z, Py_ssize_t n, const int32_t *target,
                        Py_ssize_t n_targets, float *part) noexcept nogil:
    cdef Py_ssize_t k
    cdef float wanted = 0
    part[0] = -INFINITY
    part[1] = 0
    if n:
        for k in range(n_targets):
            wanted += z[target[k]]
        part[0] = f.max(z, n)
        part[1] = f.exp_sum(z, n, part[0])
    part[2] = wanted


def softmax_parts(const int64_t[::1] offsets, float[::1] z, const int64_t[::1] indptr,
                  const int32_t[::1] positions, float[:, ::1] parts, int n_threads):
    """The first half of softmax_cross_entropy, for rows of logits that lie in several places.

    parts[i] = max_j z_ij, sum_j exp(z_ij - max) and the sum of z at the targets of row i, which are
    -inf, 0 and 0 for a row of no logits;   z <- exp(z - max)
    """
    cdef Py_ssize_t i, n = parts.shape[0]
    cdef const loops_t *f = table()
    cdef const int32_t *target = &positions[0] if positions.shape[0] else NULL
    cdef float *row = &z[0] if z.shape[0] else NULL
    for i in prange(n, nogil=True, schedule="static", num_threads=n_threads):
        _softmax_part(f, row + offsets[i], offsets[i + 1] - offsets[i], target + indptr[i],
                      indptr[i + 1] - indptr[i], &parts[i, 0])


def join_softmax_parts(const float[:, ::1] left, const float[:, ::1] right, float[:, ::1] out):
    """What softmax_parts gives for the rows of both, from what it gives for each of them."""
    cdef Py_ssize_t i
    cdef float shift
    with nogil:
        for i in range(out.shape[0]):
            shift = max(left[i, 0], right[i, 0])
            out[i, 1] = _rescaled(left[i, 1], left[i, 0], shift) + _rescaled(
                right[i, 1], right[i, 0], shift)
            out[i, 2] = left[i, 2] + right[i, 2]
            out[i, 0] = shift


cdef inline float _rescaled(float total, float old, float new) noexcept nogil:
    # a sum of exp(z - old) as one of exp(z - new), new >= old
    return total if old == new else <float>(total * exp(<double>old - <double>new))


def softmax_of_parts(const int64_t[::1] offsets, float[::1] z, const int64_t[::1] indptr,
                     const int32_t[::1] positions, const float[:, ::1] parts,
                     const float[:, ::1] whole, const int64_t[::1] n_targets, float scale,
                     float[::1] losses, int n_threads):
    """The second half of softmax_cross_entropy:   z <- scale * (softmax(z) - y), and the losses.

    z and parts are what softmax_parts left of n_parts parts of each row, part p of row i in row
    i * n_parts + p; whole, (n, 3), is what its parts give together, here and elsewhere; n_targets,
    (n,), is the number of targets of the whole row. With one part per row the results are those of
    softmax_cross_entropy, bit by bit.
    """
    cdef Py_ssize_t i, p, r, k, n = whole.shape[0]
    cdef Py_ssize_t n_parts = parts.shape[0] // n if n else 0
    cdef const loops_t *f = table()
    cdef const int32_t *target = &positions[0] if positions.shape[0] else NULL
    cdef float *row = &z[0] if z.shape[0] else NULL
    cdef float factor
    for i in prange(n, nogil=True, schedule="static", num_threads=n_threads):
        losses[i] = 0
        if n_targets[i]:
            losses[i] = <float>(log(whole[i, 1]) + whole[i, 0] - whole[i, 2] / n_targets[i])
        for p in range(n_parts):
            r = i * n_parts + p
            factor = _rescaled(scale / whole[i, 1], parts[r, 0], whole[i, 0])
            f.scale(factor if n_targets[i] else 0, row + offsets[r], offsets[r + 1] - offsets[r])
            for k in range(indptr[r], indptr[r + 1]):
                row[offsets[r] + target[k]] -= scale / n_targets[i]


cdef float _sigmoid_row(const loops_t *f, float *z, Py_ssize_t n, const int32_t *target,
                        Py_ssize_t n_targets, float scale) noexcept nogil:
    cdef Py_ssize_t k
    cdef float wanted = 0, loss
    for k in range(n_targets):
        wanted += z[target[k]]
    loss = f.sigmoid_sum(z, n) - wanted
    f.scale(scale, z, n)
    for k in range(n_targets):
        z[target[k]] -= scale
    return loss


def binary_cross_entropy(const int64_t[::1] offsets, float[::1] z, const int64_t[::1] indptr,
                         const int32_t[::1] positions, float scale, float[::1] losses,
                         int n_threads):
    """losses[i] = sum_j log(1 + exp(z_ij)) - sum_j y_ij z_ij;   z <- scale * (sigmoid(z) - y)

    y is 1 at the targets, else 0.
    """
    cdef Py_ssize_t i, n = losses.shape[0]
    cdef const loops_t *f = table()
    cdef const int32_t *target = &positions[0] if positions.shape[0] else NULL
    cdef float *row = &z[0] if z.shape[0] else NULL
    for i in prange(n, nogil=True, schedule="static", num_threads=n_threads):
        losses[i] = _sigmoid_row(f, row + offsets[i], offsets[i + 1] - offsets[i],
                                 target + indptr[i], indptr[i + 1] - indptr[i], scale)


cdef float _squared_row(const loops_t *f, float *z, Py_ssize_t n, const int32_t *target,
                        const float *value, Py_ssize_t n_targets, float scale) noexcept nogil:
    cdef Py_ssize_t k
    cdef float loss
    for k in range(n_targets):
        z[target[k]] -= value[k]
    loss = f.dot(z, z, n)
    f.scale(2 * scale, z, n)
    return loss


def squared_error(const int64_t[::1] offsets, float[::1] z, const int64_t[::1] indptr,
                  const int32_t[::1] positions, const float[::1] values, float scale,
                  float[::1] losses, int n_threads):
    """losses[i] = sum_j (z_ij - y_ij)^2;   z <- 2 * scale * (z - y)

    y is `values` at the targets, else 0.
    """
    cdef Py_ssize_t i, n = losses.shape[0]
    cdef const loops_t *f = table()
    cdef const int32_t *target = &positions[0] if positions.shape[0] else NULL
    cdef const float *value = &values[0] if positions.shape[0] else NULL
    cdef float *row = &z[0] if z.shape[0] else NULL
    for i in prange(n, nogil=True, schedule="static", num_threads=n_threads):
        losses[i] = _squared_row(f, row + offsets[i], offsets[i + 1] - offsets[i],
                                 target + indptr[i], value + indptr[i], indptr[i + 1] - indptr[i],
                                 scale)


def locate(const int64_t[::1] indptr, const int32_t[::1] indices, const int64_t[::1] label_indptr,
           const int32_t[::1] labels, int32_t[::1] positions):
    """indices[indptr[i] + positions[k]] == labels[k] for the labels k of row i.

    positions[k] is -1 if the row lacks the label. Rows are ascending. O(n_labels * log(row length))
    """
    cdef Py_ssize_t i, k, low, high, middle
    with nogil:
        for i in range(label_indptr.shape[0] - 1):
            for k in range(label_indptr[i], label_indptr[i + 1]):
                low, high = indptr[i], indptr[i + 1]
                while low < high:
                    middle = (low + high) // 2
                    if indices[middle] < labels[k]:
                        low = middle + 1
                    else:
                        high = middle
                positions[k] = (<int32_t>(low - indptr[i])
                                if low < indptr[i + 1] and indices[low] == labels[k] else -1)


def locate_shared(const int32_t[::1] ids, const int32_t[::1] labels, int32_t[::1] positions):
    """ids[positions[k]] == labels[k].   O(n_labels * log(len(ids)))

    ids are ascending and contain every label.
    """
    cdef Py_ssize_t k, low, length
    with nogil:
        for k in range(labels.shape[0]):
            low, length = 0, ids.shape[0]
            while length > 1:  # no branch on a comparison: every other prediction would be wrong
                low += (length // 2) * (ids[low + length // 2] <= labels[k])
                length -= length // 2
            positions[k] = <int32_t>low
