# Aligned memory for the work of threads (scratch.h).
cdef extern from "scratch.h" nogil:
    Py_ssize_t aligned_size(Py_ssize_t n) noexcept
    void *malloc_aligned(size_t size) noexcept
    void free_aligned(void *p) noexcept
