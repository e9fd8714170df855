"""A single row through all layers of a network, from the input to the best outputs, in one call.

In a small network the calls are the cost: a layer computes for one or two microseconds, and to pass
its arrays from Python to a kernel takes as long. So arrays are passed once, as a SingleRowMLP. One
thread.
"""
from libc.stdint cimport int32_t, uint8_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy

from ._bounded_search cimport BoundedSearch, search_queries
from ._calibration cimport Parameters, ranked_row
from ._one_vs_rest cimport classifiers_t, rerank_row, rows_of
from ._order cimport top_begin, top_end, top_push, top_t
from ._quantized cimport (
    OUTPUTS_PER_TASK, quantized_dots, quantized_rows_of, quantized_rows_t, quantized_sums,
)
from ._simd cimport loops_t, table
from ._text cimport TextRows, row_bytes, row_entries, text_row

ctypedef struct step_t:
    quantized_rows_t w
    const float *bias
    bint input_major  # w is (n_in, n_out), and rows of inputs are summed; else (n_out, n_in)
    bint relu
    Py_ssize_t n_in, n_out


cdef class SingleRowMLP:
    """Layers, whose arrays it keeps alive; a BoundedSearch may stand for the last one.

    With n_candidates, so many of the best outputs are ranked again by classifiers of the input.
    With a calibration the scores become probabilities.
    """
    cdef list arrays
    cdef step_t *steps
    cdef Py_ssize_t n_steps, widest, n_candidates
    cdef BoundedSearch search
    cdef tuple kept
    cdef classifiers_t classifiers
    cdef Parameters calibration
    cdef float *work

    def __dealloc__(self):
        free(self.steps)


def prepare(layers, search, classifiers, calibration):
    """A SingleRowMLP from tuples (w, scales, bias, input_major, relu).

    search is a BoundedSearch or None. w is float32, or bfloat16 or int8 with scales as in
    _quantized; bias is (n_out,). classifiers is None or (indptr, indices, data, bias, scale,
    by_feature, normalized, work, n_candidates): W as CSR, its bias, and the rest as for
    _one_vs_rest.rerank, with n_candidates of at most the number of outputs. calibration is None or
    Parameters of at most that many ranks.
    """
    cdef SingleRowMLP mlp = SingleRowMLP()
    cdef const float[::1] bias
    cdef float[:, ::1] work
    cdef step_t *step
    cdef Py_ssize_t i

    mlp.arrays, mlp.search, mlp.calibration = list(layers), search, calibration
    mlp.n_steps = len(mlp.arrays)
    mlp.steps = <step_t *>calloc(max(mlp.n_steps, 1), sizeof(step_t))
    if mlp.steps == NULL:
        raise MemoryError()

    for i in range(mlp.n_steps):
        step = &mlp.steps[i]
        w, scales, biases, input_major, relu = mlp.arrays[i]
        quantized_rows_of(w, scales, &step.w)
        step.input_major, step.relu = input_major, relu
        step.n_in, step.n_out = (step.w.n, step.w.d) if input_major else (step.w.d, step.w.n)
        bias = biases
        step.bias = &bias[0]
        mlp.widest = max(mlp.widest, step.n_in, step.n_out)

    if classifiers is not None:
        mlp.kept = tuple(classifiers)
        (indptr, indices, data, biases, scale, by_feature, normalized, zeros,
         mlp.n_candidates) = mlp.kept
        bias, work = biases, zeros
        mlp.work = &work[0, 0]
        mlp.classifiers.w = rows_of(indptr, indices, data)
        mlp.classifiers.bias = &bias[0]
        mlp.classifiers.scale, mlp.classifiers.by_feature = scale, by_feature
        mlp.classifiers.normalized = normalized
    return mlp


cdef void _sum_rows(const loops_t *f, const step_t *s, const int32_t *indices, const float *data,
                    Py_ssize_t n, float *out) noexcept nogil:
    cdef Py_ssize_t first = 0
    memcpy(out, s.bias, s.n_out * sizeof(float))
    while first < s.n_out:
        quantized_sums(f, &s.w, indices, data, n, first,
                       min(<Py_ssize_t>OUTPUTS_PER_TASK, s.n_out - first), out + first)
        first += OUTPUTS_PER_TASK


cdef void _forward(const loops_t *f, const step_t *s, const float *x, int32_t *indices, float *data,
                   float *out) noexcept nogil:
    # indices and data hold n_in each
    cdef Py_ssize_t k, n = 0
    if s.input_major:
        for k in range(s.n_in):
            indices[n], data[n] = <int32_t>k, x[k]
            n += x[k] != 0
        _sum_rows(f, s, indices, data, n, out)
    else:
        quantized_dots(f, &s.w, NULL, s.n_out, x, out)
        for k in range(s.n_out):
            out[k] += s.bias[k]


cdef void _clip(const step_t *s, float *out) noexcept nogil:
    cdef Py_ssize_t k
    if s.relu:
        for k in range(s.n_out):
            out[k] = out[k] if out[k] > 0 else 0


cdef int _run(SingleRowMLP mlp, const int32_t *indices, const float *data, Py_ssize_t nnz,
              const float *x, Py_ssize_t k, int32_t *out_ids, float *out_scores) except -1 nogil:
    # the input is x, or, if x is NULL, the sparse row of indices and data
    cdef const loops_t *f = table()
    cdef Py_ssize_t i, j, n_ranked = k if mlp.calibration is None else mlp.calibration.n_ranked
    cdef Py_ssize_t n = max(n_ranked, mlp.n_candidates), n_keys = 4 * n + 64, size = mlp.widest
    cdef uint64_t *keys = <uint64_t *>malloc(n_keys * sizeof(uint64_t) + n * sizeof(double)
                                             + size * (3 * sizeof(float) + sizeof(int32_t))
                                             + 2 * n * (sizeof(float) + sizeof(int32_t)))
    cdef double *values = <double *>(keys + n_keys)
    cdef float *first = <float *>(values + n)
    cdef float *out = first
    cdef int32_t *found = <int32_t *>(first + 4 * size)
    cdef float *outputs = <float *>(found + n)
    cdef int32_t *ids = <int32_t *>(outputs + n)
    cdef float *scores = <float *>(ids + n)
    cdef top_t top

    if keys == NULL:
        with gil:
            raise MemoryError()
    if mlp.calibration is None:
        ids, scores = out_ids, out_scores
    if not mlp.n_candidates:
        found, outputs = ids, scores

    for i in range(mlp.n_steps):
        if x == NULL:
            _sum_rows(f, &mlp.steps[i], indices, data, nnz, out)
        else:
            _forward(f, &mlp.steps[i], x, <int32_t *>(first + 3 * size), first + 2 * size, out)
        _clip(&mlp.steps[i], out)
        x = out
        out = first + size if out == first else first

    if mlp.search is not None:
        search_queries(mlp.search, x, 1, n, found, outputs)
    else:
        top = top_begin(keys, n_keys, n)
        for j in range(mlp.steps[mlp.n_steps - 1].n_out):
            top_push(&top, x[j], <int32_t>j)
        top_end(&top, True, found, outputs)
    if mlp.n_candidates:
        rerank_row(f, &mlp.classifiers, indices, data, nnz, mlp.work, found, outputs, n, keys,
                   n_ranked, ids, scores)
    if mlp.calibration is not None:
        ranked_row(mlp.calibration, scores, values, outputs)
        for j in range(k):
            out_ids[j], out_scores[j] = ids[j], outputs[j]
    free(keys)
    return 0


def top_k(SingleRowMLP mlp, const float[:, ::1] x, int32_t[:, ::1] out_ids,
          float[:, ::1] out_scores):
    """The k best outputs for x, (1, n_in), best first.

    out_ids and out_scores are (1, k), filled up with -1 and -inf. O(weights of the layers), where
    an input-major layer skips inputs that are zero, and the cost of the BoundedSearch. k > 0,
    there is a layer or a BoundedSearch, and there are no classifiers.
    """
    with nogil:
        _run(mlp, NULL, NULL, 0, &x[0, 0], out_ids.shape[1], &out_ids[0, 0], &out_scores[0, 0])


def top_k_sparse(SingleRowMLP mlp, const int32_t[::1] indices, const float[::1] data,
                 int32_t[:, ::1] out_ids, float[:, ::1] out_scores):
    """`top_k` for a sparse row. There is a first layer, and it is input-major.

    With classifiers k is at most the number of candidates, and with a calibration that of ranks.
    """
    cdef Py_ssize_t n = indices.shape[0]
    with nogil:
        _run(mlp, &indices[0] if n else NULL, &data[0] if n else NULL, n, NULL, out_ids.shape[1],
             &out_ids[0, 0], &out_scores[0, 0])


def top_k_text(SingleRowMLP mlp, TextRows plan, bytes text, list names, Py_ssize_t k,
               double threshold):
    """[(name, score)] of the k best outputs for the row of a text, as `top_k_sparse` finds them.

    Output j is called names[j]; those whose score is below the threshold are left out. 0 < k, and
    at most the number of outputs. The text has at most as many features as the first layer inputs.
    """
    cdef const uint8_t *p = <const uint8_t *>text
    cdef Py_ssize_t n_bytes = len(text), n, j, most = row_entries(plan, n_bytes)
    cdef char *memory = <char *>malloc(row_bytes(plan, n_bytes)
                                       + (most + k) * (sizeof(float) + sizeof(int32_t)))
    cdef float *values = <float *>(memory + row_bytes(plan, n_bytes))
    cdef float *scores = values + most
    cdef int32_t *indices = <int32_t *>(scores + k)
    cdef int32_t *ids = indices + most
    if memory == NULL:
        raise MemoryError()
    try:
        with nogil:
            n = text_row(plan, p, n_bytes, memory, indices, values)
            _run(mlp, indices, values, n, NULL, k, ids, scores)
        return [(names[ids[j]], <double>scores[j]) for j in range(k)
                if ids[j] >= 0 and scores[j] >= threshold]
    finally:
        free(memory)
