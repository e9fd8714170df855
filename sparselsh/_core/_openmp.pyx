"""What the OpenMP runtime of the kernels says."""

cdef extern from *:
    """
    #ifdef _OPENMP
    #include <omp.h>
    static int sparselsh_max_threads(void) { return omp_get_max_threads(); }
    #else
    static int sparselsh_max_threads(void) { return 1; }
    #endif
    """
    int sparselsh_max_threads() noexcept nogil


def max_threads():
    """Threads that this Python thread may use by the settings of OpenMP, as others have set them.

    threadpoolctl, with which programs limit the threads of all their libraries, sets this number.
    """
    return sparselsh_max_threads()
