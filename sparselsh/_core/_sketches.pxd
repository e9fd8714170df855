# Parts of a scan, for the module that searches by a bound (_bounded_search).
from libc.stdint cimport uint8_t

cdef enum:
    BLOCKS_PER_SCAN = 16  # 512 neurons; after each scan the score of the k-th best is updated
    SCAN_BUFFER_LENGTH = BLOCKS_PER_SCAN * 32 + 16  # scores that a scan may keep, and a register

cdef void tabulate(const float *q, Py_ssize_t n_groups, uint8_t *lut, float *a,
                   float *b) noexcept nogil
