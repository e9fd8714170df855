# Memory that threads work in, a part each (scratch.h).
cdef extern from "scratch.h" nogil:
    Py_ssize_t whole_lines(Py_ssize_t n) noexcept
    void *malloc_lines(size_t size) noexcept
    void free_lines(void *p) noexcept
