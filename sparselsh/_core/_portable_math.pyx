"""exp, log and cos with the same bits on every processor (portable_math.h)."""


def exp(double x):
    """exp(x)"""
    return portable_exp(x)


def log(double x):
    """log(x)"""
    return portable_log(x)


def cos_pi(double x):
    """cos(pi x), 0 <= x <= 1"""
    return portable_cos_pi(x)


def exp_each(double[::1] x):
    """x <- exp(x)"""
    cdef Py_ssize_t k
    with nogil:
        for k in range(x.shape[0]):
            x[k] = portable_exp(x[k])


def log_each(double[::1] x):
    """x <- log(x)"""
    cdef Py_ssize_t k
    with nogil:
        for k in range(x.shape[0]):
            x[k] = portable_log(x[k])
