"""Bits and tables for a given density and recall."""
from __future__ import annotations

import numpy as np

from .. import _validation as check
from ._rows import MAX_BITS, MAX_TABLES


def choose_bits_and_tables(density: float, n_neurons: int, *, similarity: float = 0.8,
                           recall: float = 0.9) -> tuple[int, int]:
    """K and L of :class:`SimHash` tables that reach a recall and find few neurons.

    Parameters
    ----------
    density : float
        Largest fraction of the neurons that a query unrelated to all of them may find, above 0 and
        below 1.
    n_neurons : int
    similarity : float
        Cosine of a query and a neuron that should be found, above 0 and below 1.
    recall : float
        Probability of finding that neuron, above 0 and below 1.

    Returns
    -------
    bits, tables : int
        K and L.

    Raises
    ------
    TypeError
        If an argument is not a number.
    ValueError
        If an argument is out of range, or no K up to 24, with at most twice as many buckets as
        neurons, and L up to 255 reach both.

    Notes
    -----
    Let p = 1 - arccos(similarity) / pi be the probability that one bit agrees. A neuron at that
    similarity is in the same bucket of one table with probability p^K, so L tables find it with
    probability 1 - (1 - p^K)^L, and

        L(K) = ceil(ln(1 - recall) / ln(1 - p^K))

    is the number of tables needed. A neuron at a right angle agrees in a bit with probability 1/2
    and is found with probability 1 - (1 - 2^-K)^L, about 2^-K L. As L(K) is about
    p^-K ln(1 / (1 - recall)), that fraction falls with K like (2p)^-K: the smallest K with
    1 - (1 - 2^-K)^L(K) <= density takes the fewest tables.

    References
    ----------
    Indyk and Motwani, "Approximate nearest neighbors", STOC 1998, section 4; here K and L are
    chosen by a density in place of n^rho.
    """
    density = check.number(density, "density", above=0, below=1)
    n_neurons = check.integer(n_neurons, "n_neurons")
    similarity = check.number(similarity, "similarity", above=0, below=1)
    recall = check.number(recall, "recall", above=0, below=1)

    p = 1 - np.arccos(similarity) / np.pi
    most = min(MAX_BITS, (2 * n_neurons).bit_length() - 1)
    for bits in range(1, most + 1):
        tables = int(np.ceil(np.log1p(-recall) / np.log1p(-(p**bits))))
        found = -np.expm1(tables * np.log1p(-(0.5**bits)))
        if tables > MAX_TABLES:
            break
        if found <= density:
            return bits, tables

    raise ValueError(
        f"density={density:g} with recall={recall:g} at similarity={similarity:g} would need more "
        f"than {MAX_TABLES} tables or {most} bits: {bits} bits need {tables} tables, which find "
        f"{found:.2g} of the neurons; allow a higher density or a lower recall, or give a higher "
        "similarity")
