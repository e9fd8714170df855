"""Dense matrix products in the library's own threads (see _core/_gemm.pyx for why not BLAS)."""
import numpy as np

from ._core import _gemm

NO_BIAS = np.zeros(0, np.float32)


def matmul(a, b, n_threads, *, transpose_a=False, transpose_b=False, bias=NO_BIAS, out=None):
    """``op(a) @ op(b) + bias`` for C-contiguous float32 arrays; op transposes where asked to."""
    m = a.shape[1] if transpose_a else a.shape[0]
    n = b.shape[0] if transpose_b else b.shape[1]
    if out is None:
        out = np.empty((m, n), np.float32)
    _gemm.matmul(a, transpose_a, b, transpose_b, bias, out, n_threads)
    return out
