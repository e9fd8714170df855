"""Outputs of one active set that all samples of a batch share."""
from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from .types import Floats, Ids, Offsets


class BatchActive(NamedTuple):
    """Outputs of the neurons `ids` for each sample; no other outputs are computed."""

    ids: Ids  # (n_active,) int32, ascending
    values: Floats  # (n_samples, n_active) float32
    n_out: int


class SegmentedActive(NamedTuple):
    """A shared active set of which this process computes some segments, one per shard."""

    ids: Ids  # (n_active,) int32, ascending: the whole set
    values: Floats  # (n_samples, len(rows)) float32: the outputs of the own neurons
    n_out: int
    rows: Ids  # (n_own,) int32, ascending: the own neurons of the set, as rows of the own weights
    bounds: Offsets  # (n_segments + 1,) int64: where in `rows` each shard begins
