# A rotation by Hadamard matrices, for the modules that rotate queries as well.
from ._simd cimport loops_t

cdef enum:
    ROTATION_ROUNDS = 4  # of which two are enough where the order is the width

cdef void rotate_row(const loops_t *f, const float *signs, Py_ssize_t order, Py_ssize_t width,
                     float *x, float *spare) noexcept nogil
