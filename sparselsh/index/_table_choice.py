"""The choice of SimHash tables for an index: K and L by a formula, then trials around them."""
from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..hashing import SimHash, choose_bits_and_tables

if TYPE_CHECKING:
    from .._arrays.types import Floats

MAX_FOUND_FRACTION = 1 / 64  # of the neurons, per query: beyond it a scan of the sketches is faster
DEFAULT_SIMILARITY = 0.8  # of a query and its neighbours, where there are no queries to measure it
TRIED_BITS_CHANGES = (0, -2, 2)  # added to K
TRIED_TABLES_FACTORS = (1.0, 0.5, 2.0)  # of L
MAX_TRIED_TABLES = 64


def default_family(n_neurons: int) -> SimHash:
    """SimHash for training: twelve tables, whose buckets of some forty neurons give hundreds."""
    bits = int(np.clip(np.round(np.log2(max(n_neurons, 1) / 40)), 1, 20))
    return SimHash(bits=bits, tables=12)


def first_family(n_neurons: int, similarity: float, recall: float) -> SimHash:
    """SimHash with K and L in closed form.

    Where none reaches the recall it is the default family, as probing then reads more buckets.
    """
    try:
        bits, tables = choose_bits_and_tables(MAX_FOUND_FRACTION, n_neurons, similarity=similarity,
                                              recall=recall)
    except ValueError:
        return default_family(n_neurons)
    return SimHash(bits, tables) if tables <= MAX_TRIED_TABLES else default_family(n_neurons)


def families_around(first: SimHash, n_neurons: int) -> list[SimHash]:
    """The first family, then those with fewer and more bits and tables."""
    most_bits = max(1, min(24, (2 * n_neurons).bit_length() - 1))
    settings = {(min(max(1, first.bits + more), most_bits),
                 min(max(1, round(first.tables * times)), MAX_TRIED_TABLES)): None
                for more in TRIED_BITS_CHANGES for times in TRIED_TABLES_FACTORS}
    return [SimHash(bits, tables) for bits, tables in settings]


def similarity(queries: Floats, neighbours: Floats) -> float:
    """The median cosine of queries (n, d) and their k neighbours (n, k, d), as they are hashed."""
    products = np.einsum("nd,nkd->nk", queries, neighbours)
    norms = np.linalg.norm(queries, axis=1)[:, None] * np.linalg.norm(neighbours, axis=2)
    cosines = products / np.maximum(norms, np.finfo(np.float32).tiny)
    return float(np.clip(np.median(cosines), 0.05, 0.99))


def cost(trial: dict[str, Any], n_neurons: int, n_in: int, n_handed: int) -> float:
    """Estimated nanoseconds per query by probing: a formula, so that the same fit chooses the same.

    Its constants fit the times that `bench/probing.py` prints, on one core with AVX-512: each entry
    of a probed bucket is counted, and for each of the `n_handed` neurons that pass, of those found,
    its sketch is read.
    """
    looked_at = trial["tables"] * trial["n_probes"] * (n_neurons / 2 ** trial["bits"] + 1)
    hashing = 0.05 * trial["tables"] * trial["bits"] * n_in
    return hashing + 2 * looked_at + 40 * min(n_handed, looked_at)
