"""Losses over outputs of which each process has some: segments, one per own shard.

A segment of a row is a row of its own to the kernels. What the segments give is joined along the
tree of the shards, three numbers per sample and process, with which the flags of the step travel.
"""
from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .._arrays.batch_active import SegmentedActive
from .._core import _losses
from ..losses import BinaryCrossEntropy, MeanSquaredError, SoftmaxCrossEntropy

if TYPE_CHECKING:
    from .._arrays.csr import CSR
    from .._arrays.types import Floats, Ids, Offsets
    from ..losses import Loss
    from ._shards import Shards


class _Sharded:
    """Mixes into a loss: outputs of segments are joined, others are as in one process."""

    shards: Shards

    @property
    def plain(self) -> Loss:
        """The same loss for one process."""
        kinds: dict[Any, Any] = KINDS
        return next(base for base, kind in kinds.items() if type(self) is kind)()

    def __repr__(self) -> str:
        return repr(self.plain)

    def __call__(self, output: Any, labels: CSR, *, sample_weight: Any = None,
                 n_threads: int = 1) -> tuple[float, Floats]:
        if not isinstance(output, SegmentedActive):
            return super().__call__(  # type: ignore[misc]  # the loss that this mixes into
                output, labels, sample_weight=sample_weight, n_threads=n_threads)
        z, n = output.values, labels.shape[0]
        rows = _Segments.of(output, labels, self.shards, self.shards.starts(output.n_out))
        losses = np.zeros(n, np.float32)
        self._over_segments(rows, z.reshape(-1), labels, 1 / max(n, 1), losses, n_threads)
        if sample_weight is not None:
            losses *= sample_weight
            z *= sample_weight[:, None]
        return float(losses.sum(dtype=np.float64)) / max(n, 1), z

    def _over_segments(self, rows: _Segments, z: Floats, labels: CSR, scale: float, losses: Floats,
                       n_threads: int) -> None:
        """The losses of all labels of a row; each segment is a row of the kernel."""
        own = np.zeros(len(rows.offsets) - 1, np.float32)
        self._apply(rows.offsets, z, rows.labels, rows.positions,  # type: ignore[attr-defined]
                    scale, own, n_threads)
        parts = np.zeros((len(losses) * self.shards.n_own, 3), np.float32)
        parts[:, 2] = own
        losses[:] = self._joined(parts, len(losses))[:, 2]

    def _joined(self, parts: Floats, n: int) -> Floats:
        """(n, 3): the parts of all shards joined, from those of the own ones; flags travel too."""
        shards = self.shards
        own = shards.tree([np.ascontiguousarray(parts[s::shards.n_own])
                           for s in range(shards.n_own)], _join)
        # the fourth number of each row are the flags of its process
        block = np.empty((n, 4), np.float32)
        block[:, :3], block[:, 3] = own, shards.raised()
        whole = shards.by_owners(block, lambda parts: _whole_of(parts, shards))
        shards.flags = int(whole[0, 3]) if n else 0
        return np.ascontiguousarray(whole[:, :3])


def _whole_of(parts: Floats, shards: Shards) -> Floats:
    """(n, 4): what the processes have of each row, (P, n, 4), joined."""
    out = np.empty(parts.shape[1:], np.float32)
    out[:, :3] = shards.tree([np.ascontiguousarray(part[:, :3]) for part in parts], _join)
    out[:, 3] = np.bitwise_or.reduce(parts[:, :, 3].astype(np.int64), axis=0)
    return out


def _join(left: Floats, right: Floats) -> Floats:
    out = np.empty_like(left)
    _losses.join_softmax_parts(left, right, out)
    return out


class _Segments:
    """The rows of the kernels: segment s of sample i is row ``i n_segments + s``."""

    def __init__(self, offsets: Offsets, labels: CSR, positions: Ids) -> None:
        self.offsets, self.labels, self.positions = offsets, labels, positions

    @classmethod
    def of(cls, output: SegmentedActive, labels: CSR, shards: Shards, starts: Offsets) -> _Segments:
        n, width = output.values.shape
        bounds, n_segments = output.bounds, len(output.bounds) - 1
        offsets = np.empty(n * n_segments + 1, np.int64)
        offsets[:-1] = (np.arange(n, dtype=np.int64)[:, None] * width + bounds[:-1]).reshape(-1)
        offsets[-1] = n * width

        owned = shards.owns(labels.indices)
        samples = np.repeat(np.arange(n, dtype=np.int64), np.diff(labels.indptr))[owned]
        rows = shards.rows(labels.indices[owned], starts)
        order = np.argsort(samples * max(1, starts[-1]) + rows)
        samples, rows = samples[order], rows[order]

        positions = np.empty(len(rows), np.int32)
        _losses.locate_shared(output.rows, rows, positions)
        segments = np.searchsorted(starts, rows, side="right") - 1
        counts = np.bincount(samples * n_segments + segments, minlength=n * n_segments)
        indptr = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        positions = (positions - bounds[segments]).astype(np.int32)
        own = labels._replace(indptr=indptr, indices=rows, data=labels.data[owned][order])
        return cls(offsets, own, positions)


class ShardedSoftmax(_Sharded, SoftmaxCrossEntropy):
    """Softmax over the outputs of all shards."""

    def _over_segments(self, rows: _Segments, z: Floats, labels: CSR, scale: float, losses: Floats,
                       n_threads: int) -> None:
        indptr, positions = rows.labels.indptr, rows.positions
        parts = np.empty((len(rows.offsets) - 1, 3), np.float32)
        _losses.softmax_parts(rows.offsets, z, indptr, positions, parts, n_threads)
        whole = self._joined(parts, len(losses))
        _losses.softmax_of_parts(rows.offsets, z, indptr, positions, parts, whole,
                                 np.diff(labels.indptr), scale, losses, n_threads)


class ShardedBinary(_Sharded, BinaryCrossEntropy):
    """Binary cross entropy; only the loss crosses shards."""


class ShardedSquares(_Sharded, MeanSquaredError):
    """Squared error; only the loss crosses shards."""


KINDS: dict[type[Loss], type[_Sharded]] = {
    SoftmaxCrossEntropy: ShardedSoftmax, BinaryCrossEntropy: ShardedBinary,
    MeanSquaredError: ShardedSquares}


def sharded(loss: Loss, shards: Shards) -> Any:
    """The loss over outputs of shards; TypeError for one of the user's own."""
    kind = next((kind for base, kind in KINDS.items() if isinstance(loss, base)), None)
    if kind is None:
        raise TypeError(f"loss must be 'softmax', 'bce' or 'mse' in a network of shards, got "
                        f"{loss!r}; use Network for a loss of your own")
    out = kind()
    out.shards = shards
    return out
