"""Fast random rotations: random signs and Hadamard matrices take turns.

Where the width is no power of two, the matrix, of the largest order below, is applied to the first
and to the last coordinates in turns, so that a row keeps its width and, like any rotation, its
length. O(width log width) additions, where a product takes width^2.
"""
from cython.parallel cimport prange, threadid
from libc.string cimport memcpy

from ._scratch cimport aligned_size, free_aligned, malloc_aligned
from ._simd cimport loops_t, table

cdef extern from "math.h" nogil:
    float sqrtf(float x)

ROUNDS = ROTATION_ROUNDS


cdef void rotate_row(const loops_t *f, const float *signs, Py_ssize_t order, Py_ssize_t width,
                     float *x, float *spare) noexcept nogil:
    # x, (width,), in place; signs is (4, order), and spare holds `order`
    cdef Py_ssize_t r, first, n_rounds = 2 if order == width else <Py_ssize_t>ROTATION_ROUNDS
    cdef float unit = 1 / sqrtf(<float>order)
    for r in range(n_rounds):
        first = width - order if r % 2 else 0
        f.hadamard(signs + r * order, x + first, spare, order)
        f.scale(unit, x + first, order)


def rotate(const float[:, ::1] v, Py_ssize_t width, const float[:, :, ::1] signs,
           float[:, ::1] out, int n_threads):
    """out[i] = the first n_out coordinates of all rotations of row i, one rotation after the other.

    Of each row of v the first `width` numbers count. signs is (n_rotations, 4, order), order the
    largest power of two up to the width. out has n_rotations * width columns, or fewer.
    O(n * n_rotations * width log width)
    """
    cdef Py_ssize_t i, r, n = out.shape[0], n_out = out.shape[1], order = signs.shape[2]
    cdef Py_ssize_t size = aligned_size(width), n_rotations = (n_out + width - 1) // width
    cdef const loops_t *f = table()
    cdef float *work
    cdef float *x
    if n == 0 or n_out == 0:
        return
    work = <float *>malloc_aligned(n_threads * 2 * size * sizeof(float))
    if work == NULL:
        raise MemoryError()
    for i in prange(n, nogil=True, schedule="static", num_threads=n_threads):
        x = work + threadid() * 2 * size
        for r in range(n_rotations):
            memcpy(x, &v[i, 0], width * sizeof(float))
            rotate_row(f, &signs[r, 0, 0], order, width, x, x + size)
            memcpy(&out[i, r * width], x, min(width, n_out - r * width) * sizeof(float))
    free_aligned(work)
