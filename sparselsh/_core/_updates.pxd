# An optimizer's rule, for the other kernel that applies gradients (_gemm).
from ._simd cimport rule_t

cdef class Rule:
    cdef rule_t rule
