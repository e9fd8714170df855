"""Counts of what a layer computes in a training step, for :meth:`Network.profile`."""
from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .._arrays.csr import CSR

if TYPE_CHECKING:
    from .._arrays.batch_active import BatchActive
    from .._arrays.types import Floats

PHASES = ("forward", "backward", "update", "hashing")


class Tally:
    """Counts of one layer over some steps; the layer adds to them what it computes.

    Multiply-adds are counted where they are done, bytes where weights and optimizer state are read
    or written. Each weight counts once per kernel, because a kernel reads a row once per batch.
    """

    def __init__(self, n_states: int) -> None:
        self.macs, self.bytes, self.seconds = ({phase: 0.0 for phase in PHASES} for _ in range(3))
        self.n_states = n_states  # arrays of state beside the weights
        self.n_rebuilds = self.n_rows = 0
        self.n_inputs = self.n_outputs = 0

    def add(self, phase: str, macs: int, n_bytes: int) -> None:
        """Add to a phase."""
        self.macs[phase] += macs
        self.bytes[phase] += n_bytes

    def products(self, macs: int, n_weights: int, n_updated: int, training: bool,
                 need_input_gradient: bool) -> None:
        """The products of a layer that reads n_weights in each and updates n_updated."""
        self.add("forward", macs, 4 * n_weights)
        if training:
            self.add("backward", macs * need_input_gradient, 4 * n_weights * need_input_gradient)
            self._update(macs, n_updated)

    def _update(self, macs: int, n_weights: int) -> None:
        self.add("update", macs, 8 * n_weights * (1 + self.n_states))

    def forward(self, active: CSR, x: Floats | CSR, n_in: int) -> None:
        """The outputs `active` of the inputs x, dense or CSR."""
        macs = self._pairs(active, x, n_in)
        self.add("forward", macs, 4 * min(macs, len(np.unique(active.indices)) * n_in))

    def backward(self, active: CSR, x: Floats | CSR, n_in: int,
                 need_input_gradient: bool) -> None:
        """Gradients of the weights and, if needed, of x, from the outputs that stayed."""
        macs = self._pairs(active, x, n_in)
        n_weights = min(macs, len(np.unique(active.indices)) * n_in)
        if need_input_gradient:
            self.add("backward", macs, 4 * n_weights)
        self._update(macs, n_weights)

    @staticmethod
    def _pairs(active: CSR, x: Floats | CSR, n_in: int) -> int:
        counts = np.diff(active.indptr)
        return int(counts @ np.diff(x.indptr)) if isinstance(x, CSR) else int(counts.sum()) * n_in

    def hashing(self, macs: int, n_bytes: int, rebuilt: bool = False) -> None:
        """Projections of inputs, and of neurons where tables are built."""
        self.add("hashing", macs, n_bytes)
        self.n_rebuilds += rebuilt

    def batch(self, x: Floats | CSR, output: Floats | BatchActive | CSR) -> None:
        """Count the entries of an input and of the output for it."""
        self.n_rows += x.shape[0]
        self.n_inputs += _n_entries(x)
        self.n_outputs += _n_entries(output)


def _n_entries(x: Floats | BatchActive | CSR) -> int:
    if isinstance(x, CSR):
        return x.nnz
    return x.size if isinstance(x, np.ndarray) else x.values.size
