"""What a training step computes, layer by layer: multiply-adds, bytes, milliseconds, and the plan that was chosen."""
from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ._csr import CSR
from .plotting import axes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ._types import Floats
    from .layers import BatchActive, Linear, Step

__all__ = ["Profile"]

PHASES = ("forward", "backward", "update", "hashing")


class Tally:
    """Counts of one layer over some steps. Layers add to it as they compute, from the very sets that they computed.

    Multiply-adds are counted where they are done, bytes where weights and optimizer state are read or written: each
    weight once a kernel, as kernels read a row once a batch.
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

    def products(self, macs: int, n_weights: int, n_updated: int, step: Step) -> None:
        """The three products of a layer, or two, that reads n_weights in each and updates n_updated."""
        self.add("forward", macs, 4 * n_weights)
        if step.training:
            self.add("backward", macs if step.need_input_gradient else 0, 4 * n_weights * step.need_input_gradient)
            self._update(macs, n_updated)

    def _update(self, macs: int, n_weights: int) -> None:
        self.add("update", macs, 8 * n_weights * (1 + self.n_states))

    def forward(self, active: CSR, x: Floats | CSR, n_in: int) -> None:
        """The outputs `active` of the inputs x, dense or CSR."""
        macs = self._pairs(active, x, n_in)
        self.add("forward", macs, 4 * min(macs, len(np.unique(active.indices)) * n_in))

    def backward(self, active: CSR, x: Floats | CSR, n_in: int, step: Step) -> None:
        """Gradients of weights, and of x if asked for, from the outputs that stayed."""
        macs = self._pairs(active, x, n_in)
        n_weights = min(macs, len(np.unique(active.indices)) * n_in)
        if step.need_input_gradient:
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
        """Note how many entries went in and came out."""
        self.n_rows += x.shape[0]
        self.n_inputs += _n_entries(x)
        self.n_outputs += _n_entries(output)


def _n_entries(x: Floats | BatchActive | CSR) -> int:
    if isinstance(x, CSR):
        return x.nnz
    return x.size if isinstance(x, np.ndarray) else x.values.size


class Profile:
    """What :meth:`Network.profile` found. `print` shows a table.

    Attributes
    ----------
    rows : list of dict
        One entry a layer: layer, plan, why, inputs and outputs (entries a sample), multiply_adds and bytes (a step, by
        phase), milliseconds (a step, forward and backward), rebuilds, dense_multiply_adds (of the same layer without
        active sets) and share (of them that were done, hashing included).
    n_steps : int
        Steps that were measured.
    batch_size : int
    update_milliseconds : float
        Of the optimizer, all layers together, a step.
    """

    def __init__(self, layers: Sequence[Linear], tallies: Sequence[Tally], n_steps: int, batch_size: int,
                 update_seconds: float) -> None:
        self.n_steps, self.batch_size = n_steps, batch_size
        self.update_milliseconds = update_seconds / n_steps * 1e3
        self.rows = [self._row(i, layer, tally) for i, (layer, tally) in enumerate(zip(layers, tallies, strict=True))]

    def _row(self, i: int, layer: Linear, tally: Tally) -> dict[str, Any]:
        plan, why = layer.plan_report()
        dense = tally.n_rows * layer.n_in * layer.n_out * (3 if i else 2) / self.n_steps
        macs = {phase: tally.macs[phase] / self.n_steps for phase in PHASES}
        return {
            "layer": f"{i} {type(layer).__name__}({layer.n_in}, {layer.n_out})", "plan": plan, "why": why,
            "inputs": tally.n_inputs / tally.n_rows, "outputs": tally.n_outputs / tally.n_rows,
            "multiply_adds": macs, "bytes": {phase: tally.bytes[phase] / self.n_steps for phase in PHASES},
            "milliseconds": {phase: tally.seconds[phase] / self.n_steps * 1e3 for phase in ("forward", "backward")},
            "rebuilds": tally.n_rebuilds, "dense_multiply_adds": dense, "share": sum(macs.values()) / dense,
        }

    def __repr__(self) -> str:
        head = ("layer", "plan", "in", "out", *PHASES, "sum", "of dense", "MB", "fwd ms", "bwd ms", "builds")
        table = [head]
        for row in self.rows:
            macs = row["multiply_adds"]
            table.append((row["layer"], row["plan"], f"{row['inputs']:.0f}", f"{row['outputs']:.0f}",
                          *(f"{macs[phase] / 1e6:.2f}" for phase in PHASES), f"{sum(macs.values()) / 1e6:.2f}",
                          f"{row['share']:.2%}", f"{sum(row['bytes'].values()) / 1e6:.1f}",
                          *(f"{row['milliseconds'][phase]:.2f}" for phase in ("forward", "backward")),
                          str(row["rebuilds"])))
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = ["  ".join(cell.ljust(width) if k < 2 else cell.rjust(width)
                           for k, (cell, width) in enumerate(zip(line, widths, strict=True))) for line in table]
        why = [f"{row['layer']}: {row['why']}" for row in self.rows if row["why"]]
        title = f"Profile of {self.n_steps} steps of {self.batch_size} samples; multiply-adds in millions a step"
        return "\n".join([title,
                          *lines, f"optimizer: {self.update_milliseconds:.2f} ms a step", *why])

    def plot(self, ax: Any = None) -> Any:
        """Bars of the multiply-adds of each layer, by phase, beside those of the dense layer; needs matplotlib.

        Parameters
        ----------
        ax : matplotlib axes or None
            None for a new figure.

        Returns
        -------
        matplotlib axes
        """
        ax = axes(ax, figsize=(1.5 + 1.2 * len(self.rows), 3.6))
        places = np.arange(len(self.rows))
        ax.bar(places - 0.2, [row["dense_multiply_adds"] for row in self.rows], 0.4, color="#d0d0d0", label="dense")
        bottom = np.zeros(len(self.rows))
        for phase in PHASES:
            height = np.array([row["multiply_adds"][phase] for row in self.rows])
            ax.bar(places + 0.2, height, 0.4, bottom=bottom, label=phase)
            bottom += height
        for place, top, row in zip(places, bottom, self.rows, strict=True):
            ax.annotate(f"{row['share']:.1%}", (place + 0.2, top), ha="center", va="bottom", fontsize=8)
        ax.set_yscale("log")
        ax.set_xticks(places, [row["layer"].split("(")[0] + "\n" + row["plan"] for row in self.rows])
        ax.set_ylabel("multiply-adds a step")
        ax.legend(fontsize=8)
        return ax
