"""Activations of whole arrays, in place."""
from cython.parallel cimport prange

from ._simd cimport loops_t, table


def activate(int number, float[:, ::1] x, int n_threads):
    """x = activation(x); number is an ACTIVATION_ of simd/loops.h, 0 for none.   O(n d)"""
    cdef Py_ssize_t i, n = x.shape[0], d = x.shape[1]
    cdef const loops_t *f = table()
    if n == 0 or d == 0:
        return
    for i in prange(n, nogil=True, schedule="static", num_threads=n_threads):
        f.activate(number, &x[i, 0], d)
