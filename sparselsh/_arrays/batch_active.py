"""Outputs of one active set that all samples of a batch share."""
from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from .types import Floats, Ids


class BatchActive(NamedTuple):
    """Outputs of the neurons `ids` for each sample; no other outputs are computed."""

    ids: Ids  # (n_active,) int32, ascending
    values: Floats  # (n_samples, n_active) float32
    n_out: int
