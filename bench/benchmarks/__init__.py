"""Benchmarks in asv's form. Sizes are small; all of them together take some seconds.

A `track_*_ratio` compares with a rival in the same run, in CPU seconds and on one thread each, so
that its figure can be compared between machines and on a busy one; above 1 the library is faster.
"""
import os

# NumPy's BLAS, a rival on one thread, reads this when NumPy is first imported
os.environ["OPENBLAS_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"
