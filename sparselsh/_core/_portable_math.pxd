# exp and log with the same bits on every processor (portable_math.h).
cdef extern from "portable_math.h" nogil:
    double portable_exp(double x) noexcept
    double portable_log(double x) noexcept
    double portable_cos_pi(double x) noexcept
