"""Outputs of a layer from 8-bit weights and 8-bit inputs, and the best of them exactly.

Weights are w[j] = scales[j] q[j], q of 8 bits (_quantized.quantize_int8). An input x is rounded to
x = s (u - z) with u in 0 .. 255: z is 128, or 0 where no input is negative, which then has twice
the resolution. Then w x = s scales[j] (q[j] u - z sum q[j]), whose sums are of integers and exact:
results have the same bits at each SIMD level and for any number of threads.

`blocks` is (n_blocks, n_groups, 16, 4): for 16 neurons and each four inputs, four bytes of each
neuron; neurons and inputs beyond the last are zero. `totals` is the sum of q[j].
"""
from cython.parallel cimport prange, threadid
from libc.math cimport INFINITY
from libc.stdint cimport int8_t, int32_t, uint8_t, uint64_t
from libc.string cimport memset

from ._order cimport key_id, key_score, score_key, sort_keys
from ._scratch cimport aligned_size, free_aligned, malloc_aligned
from ._simd cimport INT8_BLOCK_BYTES, INT8_LANES, loops_t, table

LANES = INT8_LANES  # neurons per block
GROUP = INT8_BLOCK_BYTES // INT8_LANES  # inputs per group

cdef enum:
    BLOCKS_PER_TASK = 16
    INPUTS_PER_TASK = 96  # sums of a task: at most 96 KB
    BYTES_PER_TASK = 1 << 20  # of weights, which stay in the second-level cache for all inputs


def pack_blocks(const int8_t[:, ::1] q, int8_t[:, :, :, ::1] blocks, int32_t[::1] totals,
                int n_threads):
    """blocks and totals of q, (n, d).   O(n d)"""
    cdef Py_ssize_t b, n_blocks = blocks.shape[0]
    if n_blocks == 0:
        return
    totals[:] = 0
    for b in prange(n_blocks, nogil=True, schedule="static", num_threads=n_threads):
        _pack_block(q, b * INT8_LANES, blocks[b], totals)


cdef void _pack_block(const int8_t[:, ::1] q, Py_ssize_t first, int8_t[:, :, ::1] block,
                      int32_t[::1] totals) noexcept nogil:
    cdef Py_ssize_t j, k, d = q.shape[1]
    cdef int32_t total
    block[:, :, :] = 0
    for j in range(min(<Py_ssize_t>INT8_LANES, q.shape[0] - first)):
        total = 0
        for k in range(d):
            block[k // 4, j, k % 4] = q[first + j, k]
            total = total + q[first + j, k]
        totals[first + j] = total


cdef void _task(const loops_t *f, const int8_t *blocks, Py_ssize_t first_block,
                Py_ssize_t n_blocks, Py_ssize_t n_groups, const int32_t *totals,
                const float *scales, const float *bias, const uint8_t *u, Py_ssize_t row,
                const float *steps, const int32_t *zeros, Py_ssize_t first, Py_ssize_t n,
                Py_ssize_t n_out, int activation, int32_t *sums, float *out) noexcept nogil:
    cdef Py_ssize_t i, j = first_block * INT8_LANES
    cdef Py_ssize_t width = min(n_blocks * INT8_LANES, n_out - j)
    f.dots_blocks(blocks + first_block * n_groups * INT8_BLOCK_BYTES, n_blocks, n_groups,
                  totals + j, u + first * row, n, row, sums, n_blocks * INT8_LANES)
    for i in range(n):
        f.scale_dots(sums + i * n_blocks * INT8_LANES, totals + j, zeros[first + i],
                     steps[first + i], scales + j, bias + j, out + (first + i) * n_out + j, width)
        f.activate(activation, out + (first + i) * n_out + j, width)


def outputs(const int8_t[:, :, :, ::1] blocks, const int32_t[::1] totals, const float[::1] scales,
            const float[::1] bias, const float[:, ::1] x, int activation, float[:, ::1] out,
            int n_threads):
    """out[i, j] = activation(bias[j] + w[j] x[i]), x rounded as above.   O(n n_out d)

    activation is an ACTIVATION_ of simd/loops.h. d is at most 65,536, so that sums stay within 32
    bits. An input whose largest magnitude is not between 1e-30 and 1e30 is taken as zero.
    """
    cdef Py_ssize_t t, i, j, n = x.shape[0], n_out = out.shape[1], n_groups = blocks.shape[1]
    cdef Py_ssize_t n_blocks = blocks.shape[0], d = x.shape[1]
    # an odd number of cache lines, so that entries of different inputs are in different sets
    cdef Py_ssize_t row = 64 * ((4 * n_groups + 63) // 64 | 1)
    cdef Py_ssize_t run = min(<Py_ssize_t>BLOCKS_PER_TASK,
                              max(<Py_ssize_t>4, BYTES_PER_TASK // (n_groups * INT8_BLOCK_BYTES)))
    cdef Py_ssize_t n_runs = (n_blocks + run - 1) // run
    cdef Py_ssize_t n_parts = (n + INPUTS_PER_TASK - 1) // INPUTS_PER_TASK
    cdef Py_ssize_t n_sums = min(n, <Py_ssize_t>INPUTS_PER_TASK) * run * INT8_LANES
    cdef const loops_t *f = table()
    cdef uint8_t *u
    cdef float *steps
    cdef int32_t *zeros
    cdef int32_t *sums

    if n == 0 or n_out == 0:
        return
    if d == 0:
        for i in range(n):
            for j in range(n_out):
                out[i, j] = bias[j]
            f.activate(activation, &out[i, 0], n_out)
        return

    u = <uint8_t *>malloc_aligned(n * row)
    steps = <float *>malloc_aligned(n * sizeof(float))
    zeros = <int32_t *>malloc_aligned(n * sizeof(int32_t))
    sums = <int32_t *>malloc_aligned(n_threads * aligned_size(n_sums) * sizeof(int32_t))
    try:
        if u == NULL or steps == NULL or zeros == NULL or sums == NULL:
            raise MemoryError()
        for i in prange(n, nogil=True, schedule="static", num_threads=n_threads):
            memset(u + i * row + 4 * n_groups - 4, 0, 4)
            steps[i] = f.quantize_input(&x[i, 0], d, u + i * row, zeros + i)
        for t in prange(n_runs * n_parts, nogil=True, schedule="static", num_threads=n_threads):
            _task(f, &blocks[0, 0, 0, 0], t // n_parts * run,
                  min(run, n_blocks - t // n_parts * run), n_groups, &totals[0], &scales[0],
                  &bias[0], u, row, steps, zeros,
                  t % n_parts * INPUTS_PER_TASK,
                  min(<Py_ssize_t>INPUTS_PER_TASK, n - t % n_parts * INPUTS_PER_TASK), n_out,
                  activation, sums + threadid() * aligned_size(n_sums), &out[0, 0])
    finally:
        free_aligned(u)
        free_aligned(steps)
        free_aligned(zeros)
        free_aligned(sums)


cdef void _exact_row(const loops_t *f, const float *x, const float *w, Py_ssize_t d,
                     const float *bias, const int32_t *candidates, Py_ssize_t n_candidates,
                     Py_ssize_t k, uint64_t *keys, int32_t *found, float *scores, int32_t *ids,
                     float *best) noexcept nogil:
    cdef Py_ssize_t c, n = 0
    for c in range(n_candidates):
        if candidates[c] >= 0:
            found[n] = candidates[c]
            n += 1
    f.dots(w, found, n, x, d, scores)
    for c in range(n):
        keys[c] = score_key(scores[c] + bias[found[c]], found[c])
    sort_keys(keys, n)
    for c in range(k):
        ids[c] = key_id(keys[c]) if c < n else -1
        best[c] = key_score(keys[c]) if c < n else -INFINITY


def exact_best(const float[:, ::1] x, const float[:, ::1] w, const float[::1] bias,
               const int32_t[:, ::1] candidates, int32_t[:, ::1] ids, float[:, ::1] scores,
               int n_threads):
    """ids, scores (n, k): the largest of bias[j] + w[j] x[i] for j of candidates[i], (n, m).

    In float32, the best first, of equal ones the lowest id; a candidate may be -1, for none. Where
    there are fewer than k, the rest is -1 and -inf. O(n m d)
    """
    cdef Py_ssize_t i, n = x.shape[0], d = x.shape[1], m = candidates.shape[1], k = ids.shape[1]
    cdef Py_ssize_t size = aligned_size(max(m, <Py_ssize_t>1)) * 4
    cdef const loops_t *f = table()
    cdef const float *weights = &w[0, 0] if w.shape[0] and d else NULL
    cdef float *work
    cdef float *own

    if n == 0 or k == 0:
        return
    if m == 0:
        ids[:, :] = -1
        scores[:, :] = -INFINITY
        return

    work = <float *>malloc_aligned(n_threads * size * sizeof(float))
    if work == NULL:
        raise MemoryError()
    for i in prange(n, nogil=True, schedule="static", num_threads=n_threads):
        own = work + threadid() * size
        _exact_row(f, &x[i, 0] if d else NULL, weights, d, &bias[0], &candidates[i, 0], m, k,
                   <uint64_t *>own, <int32_t *>(own + size // 2), own + 3 * size // 4, &ids[i, 0],
                   &scores[i, 0])
    free_aligned(work)
