"""How weights and the state of optimizers are stored: float32, or bfloat16 as the uint16 of its bits.

bfloat16 is the upper half of a float32. It halves the memory that a row takes on its way to the processor; arithmetic
stays in float32.
"""
from libc.stdint cimport uint16_t

from ._simd cimport STORE_BFLOAT, STORE_FLOAT, STORE_NONE, STORE_ROW, leaves_t, store_t, table


cdef store_t store_of(object a, bint writable, Py_ssize_t d=-1) except *:
    # The address and the kind of a C-contiguous array. With d given, one of shape (n, 1) holds one number for d of w.
    cdef store_t s
    cdef const float[::1] single
    cdef const uint16_t[::1] half
    s.data = NULL
    s.kind = STORE_NONE
    if a is None:
        return s
    if not a.flags.c_contiguous or (writable and not a.flags.writeable):
        raise ValueError("the array must be C-contiguous, and writable where it is updated")
    if a.dtype.char == "H":
        half = a.reshape(-1)
        s.kind = STORE_BFLOAT
        if half.shape[0]:
            s.data = <void *>&half[0]
    else:
        single = a.reshape(-1)
        s.kind = STORE_ROW if d > 1 and a.ndim == 2 and a.shape[1] == 1 else STORE_FLOAT
        if single.shape[0]:
            s.data = <void *>&single[0]
    return s


def widen(const uint16_t[::1] x, float[::1] y):
    """y = x, from bfloat16 to float32."""
    if x.shape[0]:
        table().widen(&x[0], &y[0], x.shape[0])


def narrow(const float[::1] x, uint16_t[::1] y):
    """y = x rounded to the nearest bfloat16, ties to even."""
    if x.shape[0]:
        table().narrow(&x[0], &y[0], x.shape[0])
