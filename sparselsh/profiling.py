"""Profile: multiply-adds, bytes, milliseconds and the plan of each layer in a training step."""
from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ._display import axes
from .layers import PHASES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .layers import Linear, Tally

__all__ = ["Profile"]


class Profile:
    """The result of :meth:`Network.profile`. `print` shows a table.

    Attributes
    ----------
    rows : list of dict
        One entry per layer: layer, plan, why, inputs and outputs (entries per sample),
        multiply_adds and bytes (per step, by phase), milliseconds (per step, forward and backward),
        rebuilds, dense_multiply_adds (per step, of the same layer without active sets) and share
        (multiply_adds of all phases, hashing included, over dense_multiply_adds).
    n_steps : int
        Steps that were measured.
    batch_size : int
    update_milliseconds : float
        Of the optimizer, for all layers together, per step.
    """

    def __init__(self, layers: Sequence[Linear], plans: Sequence[tuple[str, str]],
                 tallies: Sequence[Tally], n_steps: int, batch_size: int) -> None:
        self.n_steps, self.batch_size = n_steps, batch_size
        self.update_milliseconds = tallies[0].seconds["update"] / n_steps * 1e3
        parts = zip(layers, plans, tallies, strict=True)
        self.rows = [self._row(i, *part) for i, part in enumerate(parts)]

    def _row(self, i: int, layer: Linear, plan_report: tuple[str, str],
             tally: Tally) -> dict[str, Any]:
        plan, why = plan_report
        dense = tally.n_rows * layer.n_in * layer.n_out * (3 if i else 2) / self.n_steps
        macs = {phase: tally.macs[phase] / self.n_steps for phase in PHASES}
        return {
            "layer": f"{i} {type(layer).__name__}({layer.n_in}, {layer.n_out})",
            "plan": plan, "why": why,
            "inputs": tally.n_inputs / tally.n_rows, "outputs": tally.n_outputs / tally.n_rows,
            "multiply_adds": macs,
            "bytes": {phase: tally.bytes[phase] / self.n_steps for phase in PHASES},
            "milliseconds": {phase: tally.seconds[phase] / self.n_steps * 1e3
                             for phase in ("forward", "backward")},
            "rebuilds": tally.n_rebuilds, "dense_multiply_adds": dense,
            "share": sum(macs.values()) / dense,
        }

    def __repr__(self) -> str:
        head = ("layer", "plan", "in", "out", *PHASES, "sum", "of dense", "MB", "fwd ms", "bwd ms",
                "builds")
        table = [head]
        for row in self.rows:
            macs = row["multiply_adds"]
            table.append((
                row["layer"], row["plan"], f"{row['inputs']:.0f}", f"{row['outputs']:.0f}",
                *(f"{macs[phase] / 1e6:.2f}" for phase in PHASES),
                f"{sum(macs.values()) / 1e6:.2f}",
                f"{row['share']:.2%}", f"{sum(row['bytes'].values()) / 1e6:.1f}",
                *(f"{row['milliseconds'][phase]:.2f}" for phase in ("forward", "backward")),
                str(row["rebuilds"])))

        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = ["  ".join(cell.ljust(width) if k < 2 else cell.rjust(width)
                           for k, (cell, width) in enumerate(zip(line, widths, strict=True)))
                 for line in table]
        why = [f"{row['layer']}: {row['why']}" for row in self.rows if row["why"]]
        title = (f"Profile of {self.n_steps} steps of {self.batch_size} samples; "
                 "multiply-adds in millions per step")
        optimizer = f"optimizer: {self.update_milliseconds:.2f} ms per step"
        return "\n".join([title, *lines, optimizer, *why])

    def plot(self, ax: Any = None) -> Any:
        """Draw the multiply-adds of each layer by phase, beside those of the dense layer, as bars.

        Parameters
        ----------
        ax : matplotlib Axes or None
            None for a new figure.

        Returns
        -------
        matplotlib Axes

        Raises
        ------
        ImportError
            If matplotlib is missing.
        """
        ax = axes(ax, figsize=(1.5 + 1.2 * len(self.rows), 3.6))
        places = np.arange(len(self.rows))
        ax.bar(places - 0.2, [row["dense_multiply_adds"] for row in self.rows], 0.4,
               color="#d0d0d0", label="dense")

        bottom = np.zeros(len(self.rows))
        for phase in PHASES:
            height = np.array([row["multiply_adds"][phase] for row in self.rows])
            ax.bar(places + 0.2, height, 0.4, bottom=bottom, label=phase)
            bottom += height
        for place, top, row in zip(places, bottom, self.rows, strict=True):
            ax.annotate(f"{row['share']:.1%}", (place + 0.2, top), ha="center", va="bottom",
                        fontsize=8)

        ax.set_yscale("log")
        ax.set_xticks(places,
                      [row["layer"].split("(")[0] + "\n" + row["plan"] for row in self.rows])
        ax.set_ylabel("multiply-adds per step")
        ax.legend(fontsize=8)
        return ax
