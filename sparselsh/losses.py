"""Losses over all outputs or over the active ones, which always include the labels.

Each is the mean over the samples of a sum over the neurons that were computed.
"""
from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from ._arrays.batch_active import BatchActive
from ._arrays.csr import CSR
from ._core import _losses

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._arrays.types import Floats, Ids, Offsets

__all__ = ["BinaryCrossEntropy", "MeanSquaredError", "SoftmaxCrossEntropy"]


class _Loss:
    """Calls a kernel over rows of logits, dense, shared or sparse; a subclass names the kernel."""

    _apply: Callable[..., None]

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

    def _apply(self, offsets: Offsets, z: Floats, labels: CSR, positions: Ids, scale: float,
               losses: Floats, n_threads: int) -> None:
        _losses.softmax_cross_entropy(offsets, z, labels.indptr, positions, scale, losses,
                                      n_threads)


class BinaryCrossEntropy(_Loss):
    """``sum_j log(1 + exp(z_j)) - sum of z over the labels``.

    Each neuron is a binary classifier.
    """

    def _apply(self, offsets: Offsets, z: Floats, labels: CSR, positions: Ids, scale: float,
               losses: Floats, n_threads: int) -> None:
        _losses.binary_cross_entropy(offsets, z, labels.indptr, positions, scale, losses, n_threads)


class MeanSquaredError(_Loss):
    """``sum_j (z_j - y_j)^2``; targets that are not stored are zero."""

    def _apply(self, offsets: Offsets, z: Floats, labels: CSR, positions: Ids, scale: float,
               losses: Floats, n_threads: int) -> None:
        _losses.squared_error(offsets, z, labels.indptr, positions, labels.data, scale, losses,
                              n_threads)


Loss: TypeAlias = SoftmaxCrossEntropy | BinaryCrossEntropy | MeanSquaredError
LOSSES: dict[str, type[Loss]] = {
    "softmax": SoftmaxCrossEntropy, "bce": BinaryCrossEntropy, "mse": MeanSquaredError}
