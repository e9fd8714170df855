"""Losses over all outputs or over the active ones, which always include the labels.

Each is the mean over the samples of a sum over the neurons that were computed.
"""
from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from . import _validation as check
from ._arrays.batch_active import BatchActive
from ._arrays.csr import CSR
from ._core import _losses

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._arrays.types import Floats, Ids, Offsets
    from .protocols import Loss as OwnLoss

__all__ = ["BinaryCrossEntropy", "MeanSquaredError", "SoftmaxCrossEntropy"]


class _Loss:
    """Calls a kernel over rows of logits, dense, shared or sparse; a subclass names the kernel."""

    _apply: Callable[..., None]
    outputs: Literal["classes", "labels", "values"]

    def __call__(self, output: Floats | BatchActive | CSR, labels: CSR, *,
                 sample_weight: Any = None, n_threads: int = 1) -> tuple[float, Floats]:
        """The loss, and its gradient, which overwrites the output.

        Parameters
        ----------
        output : ndarray of shape (n, n_out), float32, BatchActive or CSR
        labels : CSR of shape (n, n_out)
        sample_weight : None or ndarray of shape (n,), float32
            Factors of the losses of the samples, and so of their gradients. The mean is over n, not
            over the sum of the factors.
        n_threads : int

        Returns
        -------
        loss : float
        d_output : ndarray, float32
            The memory of output, output.values or output.data.
        """
        z, offsets, positions = _rows(output, labels)
        n = len(offsets) - 1
        losses = np.zeros(n, np.float32)
        self._apply(offsets, z.reshape(-1), labels, positions, 1 / max(n, 1), losses, n_threads)

        if sample_weight is not None:
            losses *= sample_weight
            if isinstance(output, CSR):
                z *= np.repeat(sample_weight, np.diff(offsets))
            else:
                z *= sample_weight[:, None]
        return float(losses.sum(dtype=np.float64)) / max(n, 1), z

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


def _rows(output: Floats | BatchActive | CSR, labels: CSR) -> tuple[Floats, Offsets, Ids]:
    """Logits, the start of each row, and the positions of the labels in their rows."""
    if isinstance(output, CSR):
        positions = np.empty(labels.nnz, np.int32)
        _losses.locate(output.indptr, output.indices, labels.indptr, labels.indices, positions)
        return output.data, output.indptr, positions
    if isinstance(output, BatchActive):
        z, positions = output.values, np.empty(labels.nnz, np.int32)
        _losses.locate_shared(output.ids, labels.indices, positions)
    else:
        z, positions = output, labels.indices
    return z, np.arange(len(z) + 1, dtype=np.int64) * z.shape[1], positions


class SoftmaxCrossEntropy(_Loss):
    """``log sum_j exp(z_j) - mean of z over the labels``.

    The cross entropy against the uniform distribution over the labels of the sample. Over active
    outputs the sum runs over these: sampled softmax. A sample without labels has loss and gradient
    zero.
    """

    outputs = "classes"

    def _apply(self, offsets: Offsets, z: Floats, labels: CSR, positions: Ids, scale: float,
               losses: Floats, n_threads: int) -> None:
        _losses.softmax_cross_entropy(offsets, z, labels.indptr, positions, scale, losses,
                                      n_threads)


class BinaryCrossEntropy(_Loss):
    """``sum_j log(1 + exp(z_j)) - sum of z over the labels``.

    Each neuron is a binary classifier.
    """

    outputs = "labels"

    def _apply(self, offsets: Offsets, z: Floats, labels: CSR, positions: Ids, scale: float,
               losses: Floats, n_threads: int) -> None:
        _losses.binary_cross_entropy(offsets, z, labels.indptr, positions, scale, losses, n_threads)


class MeanSquaredError(_Loss):
    """``sum_j (z_j - y_j)^2``; targets that are not stored are zero."""

    outputs = "values"

    def _apply(self, offsets: Offsets, z: Floats, labels: CSR, positions: Ids, scale: float,
               losses: Floats, n_threads: int) -> None:
        _losses.squared_error(offsets, z, labels.indptr, positions, labels.data, scale, losses,
                              n_threads)


class CustomLoss(_Loss):
    """Calls a loss of the user's own: see :class:`sparselsh.protocols.Loss`."""

    def __init__(self, function: OwnLoss) -> None:
        self.function = function
        self.outputs = function.outputs

    def __call__(self, output: Floats | BatchActive | CSR, labels: CSR, *,
                 sample_weight: Any = None, n_threads: int = 1) -> tuple[float, Floats]:
        stored, offsets, positions = _rows(output, labels)
        n, sizes = len(offsets) - 1, np.diff(offsets)
        width = int(sizes.max(initial=0))
        is_computed = np.arange(width) < sizes[:, None]
        is_ragged = isinstance(output, CSR)
        z = np.zeros((n, width), np.float32) if is_ragged else stored
        if is_ragged:
            z[is_computed] = stored
        targets = np.zeros((n, width), np.float32)
        rows = np.repeat(np.arange(n), np.diff(labels.indptr))
        there = positions >= 0
        values = labels.data if self.outputs == "values" else np.ones(labels.nnz, np.float32)
        targets[rows[there], positions[there]] = values[there]

        losses, gradient = self._called(z, targets, is_computed)
        weight = np.float32(1 / max(n, 1)) * (1 if sample_weight is None else sample_weight)
        gradient = gradient * np.broadcast_to(weight, n)[:, None]
        if is_ragged:
            stored[:] = gradient[is_computed]
        else:
            stored[...] = gradient
        return float((losses * np.broadcast_to(weight, n)).sum()), stored

    def _called(self, z: Floats, targets: Floats,
                is_computed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        name = type(self.function).__name__
        try:
            losses, gradient = map(np.asarray, self.function(z, targets, is_computed))
        except TypeError as error:
            raise TypeError(f"loss {name}: {error}; sparselsh.protocols.Loss says how it is called "
                            "and what it gives") from error
        if losses.shape != (len(z),) or gradient.shape != z.shape:
            raise ValueError(f"loss {name} must give losses of shape ({len(z)},) and a gradient of "
                             f"shape {z.shape}, got {losses.shape} and {gradient.shape}")
        return losses.astype(np.float64), gradient

    def __repr__(self) -> str:
        return repr(self.function)


def checked(loss: Any) -> Loss:
    """The loss of a name, one of this module, or one of the user's own."""
    if isinstance(loss, Loss):
        return loss
    if isinstance(loss, str) or not callable(loss) or isinstance(loss, type):
        return LOSSES[check.choice(loss, "loss", tuple(LOSSES))]()
    if not hasattr(loss, "outputs"):
        raise TypeError(f"loss {loss!r} lacks outputs, which says what outputs stand for: "
                        "'classes', 'labels' or 'values'; see sparselsh.protocols.Loss")
    check.choice(loss.outputs, "loss.outputs", ("classes", "labels", "values"))
    return CustomLoss(loss)


Loss: TypeAlias = SoftmaxCrossEntropy | BinaryCrossEntropy | MeanSquaredError | CustomLoss
LOSSES: dict[str, type[SoftmaxCrossEntropy | BinaryCrossEntropy | MeanSquaredError]] = {
    "softmax": SoftmaxCrossEntropy, "bce": BinaryCrossEntropy, "mse": MeanSquaredError}
