# Probing in order of cost (hashing.h) and the memory that one thread needs for it.
from libc.stdint cimport int32_t, uint8_t, uint64_t

cdef extern from "hashing.h" nogil:
    ctypedef struct probe_t:
        pass
    void cheapest_codes(int32_t code, int n_digits, int width, const double *cost,
                        const int32_t *delta, int32_t *order, probe_t *heap, Py_ssize_t n_probes,
                        int32_t *codes) noexcept
    int32_t lender(uint64_t seed, int32_t bin, const uint8_t *full, int32_t n_bins) noexcept

cdef struct scratch_t:
    probe_t *heap      # 2 * n_probes + 2
    double *cost       # n_digits * width
    uint64_t *keys     # n_options, of one digit
    int32_t *delta     # n_digits * width
    int32_t *order     # n_digits


cdef inline Py_ssize_t scratch_size(Py_ssize_t n_digits, Py_ssize_t width, Py_ssize_t n_options,
                                    Py_ssize_t n_probes) noexcept nogil:
    # bytes, a multiple of 8
    return ((2 * n_probes + 2) * sizeof(probe_t) + n_digits * width * 12 + n_digits * 4
            + n_options * 8 + 7) // 8 * 8


cdef inline scratch_t scratch_at(char *p, Py_ssize_t n_digits, Py_ssize_t width,
                                 Py_ssize_t n_options, Py_ssize_t n_probes) noexcept nogil:
    # the widest types first, so that each part is aligned
    cdef scratch_t s
    s.heap = <probe_t *>p
    s.cost = <double *>(p + (2 * n_probes + 2) * sizeof(probe_t))
    s.keys = <uint64_t *>(s.cost + n_digits * width)
    s.delta = <int32_t *>(s.keys + n_options)
    s.order = s.delta + n_digits * width
    return s
