"""Hash families map each row to a bucket number per table.

    family           similarity        rows             digit of the code
    SimHash          cosine            dense, sparse    sign of a projection
    CrossPolytope    cosine            dense, sparse    largest coordinate of a rotation, its sign
    DWTA             order of entries  non-negative     largest entry of a bin of coordinates
    MinHash          Jaccard           sets             smallest hash value of a bin of features

    _simhash, _cross_polytope, _dwta, _minhash   one family per file
    _projections   Gaussian and sparse random projections of dense and sparse rows
    _rows          checks of the rows that are hashed
    _laws          collision probabilities
    _choice        bits and tables for a wanted recall
    _config        a family as an argument, and as plain values, for files

A family is any object with what `sparselsh.protocols.HashFamily` names, and may have

    is_angular                      whether angles decide, so that rows are hashed centred
    collision_probability(similarity)
                                    the probability that two rows share the bucket of one table

V is a C-contiguous float32 array or `sparselsh._arrays.csr.CSR`, of finite values. The same row
gets the same codes whether it is dense or sparse, for any number of threads; with Gaussian
projections, unless a projection is within rounding of zero.
"""
from ._choice import choose_bits_and_tables
from ._config import FAMILIES, checked_codes, checked_family, family_config, family_from
from ._cross_polytope import CrossPolytope
from ._dwta import DWTA
from ._minhash import MinHash
from ._simhash import SimHash

__all__ = ["DWTA", "CrossPolytope", "MinHash", "SimHash", "choose_bits_and_tables"]
