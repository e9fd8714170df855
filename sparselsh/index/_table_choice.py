"""Which SimHash tables an index takes: K and L by a formula, then others around them on queries."""
from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..hashing import SimHash, choose_bits_and_tables

if TYPE_CHECKING:
    from .._arrays.types import Floats

DENSITY = 1 / 64  # share of the neurons that a query may be handed: of more, a scan of the sketches is quicker
SIMILARITY = 0.8  # of a query and its neighbours, where there are no queries to measure it on
BITS, TABLES, MOST_TABLES = (0, -2, 2), (1.0, 0.5, 2.0), 64  # what is tried: added to K, times L


def default_family(n_neurons: int) -> SimHash:
    """SimHash tables for training: buckets of some forty neurons, so that twelve tables find some hundreds."""
    bits = int(np.clip(np.round(np.log2(max(n_neurons, 1) / 40)), 1, 20))
    return SimHash(bits=bits, tables=12)


def first_family(n_neurons: int, similarity: float, recall: float) -> SimHash:
    """K and L in closed form; the default where none reaches the recall, as probing then looks into more buckets."""
    try:
        bits, tables = choose_bits_and_tables(DENSITY, n_neurons, similarity=similarity, recall=recall)
    except ValueError:
        return default_family(n_neurons)
    return SimHash(bits, tables) if tables <= MOST_TABLES else default_family(n_neurons)


def families_around(first: SimHash, n_neurons: int) -> list[SimHash]:
    """The first family, then those with fewer and more bits and tables."""
    most_bits = max(1, min(24, (2 * n_neurons).bit_length() - 1))
    settings = {(min(max(1, first.bits + more), most_bits), min(max(1, round(first.tables * times)), MOST_TABLES)): None
                for more in BITS for times in TABLES}
    return [SimHash(bits, tables) for bits, tables in settings]


def similarity(queries: Floats, neighbours: Floats) -> float:
    """The median cosine of queries (n, d) and k neighbours of each (n, k, d), in the space that is hashed."""
    products = np.einsum("nd,nkd->nk", queries, neighbours)
    norms = np.linalg.norm(queries, axis=1)[:, None] * np.linalg.norm(neighbours, axis=2)
    return float(np.clip(np.median(products / np.maximum(norms, np.finfo(np.float32).tiny)), 0.05, 0.99))


def cost(trial: dict[str, Any], n_neurons: int, n_in: int, n_handed: int) -> float:
    """Nanoseconds of a query by probing, about: a rule, so that the same fit chooses the same.

    Its numbers fit the times that `bench/probing.py` prints, on one core with AVX-512: each entry of a probed bucket is
    counted, and each neuron handed on, of those found, has its sketch gathered.
    """
    looked_at = trial["tables"] * trial["n_probes"] * (n_neurons / 2 ** trial["bits"] + 1)
    hashing = 0.05 * trial["tables"] * trial["bits"] * n_in
    return hashing + 2 * looked_at + 40 * min(n_handed, looked_at)
