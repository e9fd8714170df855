"""Array types and layouts, on which the other Python modules build.

The kernels of `_core` read and write these arrays.

    csr           CSR, sparse rows as a tuple of arrays that the kernels read
    batch_active  BatchActive, outputs of one active set that a batch shares
    bfloat16      float32 to bfloat16 and back
    aligned       arrays that begin on a cache line
    linalg        dense products, sums and exact top k by the kernels
    portable      factorizations and functions with the same bits on every processor
    scipy         scipy.sparse, imported when it is first used
    selection     Selection, which neurons the queries of a search may find
    types         names of types for annotations
"""
