"""Hash families: rows to bucket numbers, one per table.

    family           similarity        rows             a digit of the code
    SimHash          cosine            dense, sparse    sign of a projection
    CrossPolytope    cosine            dense, sparse    largest coordinate of a rotation, and its sign
    DWTA             order of entries  non-negative     largest entry of a bin of coordinates
    MinHash          Jaccard           sets             smallest hash value of a bin of features

A family is any object with

    tables, n_buckets               numbers: codes are 0 .. n_buckets - 1, one for each table
    fit(n_dims, random_state)       draw the hash functions; returns itself
    hash(V, *, n_threads=1)         (n, tables) int32: the bucket of each row in each table
    probe(V, n_probes, *, n_threads=1)
                                    (n, tables, n_probes) int32: the bucket of the row, then further buckets of
                                    the table in the order of how likely they hold near rows, all different;
                                    -1 for none
    collision_probability(similarity)
                                    the law: how likely two rows share the bucket of one table
    config()                        the constructor's arguments, to be saved

V is a C-contiguous float32 array or `sparselsh._arrays.csr.CSR`, of finite values. The same rows, dense and sparse, get the
same codes (Gaussian projections: where no projection is within rounding of zero), for any number of threads.
"""
from ._choice import choose_bits_and_tables
from ._config import FAMILIES, family_config, family_from
from ._cross_polytope import CrossPolytope
from ._dwta import DWTA
from ._minhash import MinHash
from ._simhash import SimHash

__all__ = ["DWTA", "CrossPolytope", "MinHash", "SimHash", "choose_bits_and_tables"]
