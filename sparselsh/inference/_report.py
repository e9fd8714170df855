"""ConversionReport: the plan of each layer of a converted network, and why it was chosen."""
from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from .._display import axes

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["ConversionReport"]

TIMED_ROWS = (1, 256)  # per call: a single query and a batch


@dataclass
class LayerReport:
    """One layer of a conversion.

    Attributes
    ----------
    name : str
    shape : tuple of int
        (n_out, n_in).
    plan : dict
        For "single" queries and a "batch": "dense", "rows", "lsh" or "int8".
    reason : str
        Why the plan was chosen, with the figures that decided.
    density : float
        Fraction of the outputs that the next layer gets for a single query.
    recall : float or None
        Fraction of the true neighbours that an index, or products of 8 bits, find for held-out
        inputs; None without them.
    output_error : float or None
        Relative error of the network's outputs that this layer's plan alone causes, on the rows by
        which the plan was chosen; None where it causes none.
    microseconds_dense, microseconds : dict of int to float
        Per query, by the number of queries per call: with every neuron computed, and as planned.
    bytes_dense, bytes : int
        Of the weights, and of everything that the plans read.
    share : float or None
        Of a layer inside a model: the fraction of the model's time on the calibration inputs that
        it took before. The model becomes at most 1 / (1 - share) times as fast (Amdahl's law).
    """

    name: str
    shape: tuple[int, int]
    plan: dict[str, str]
    reason: str
    density: float = 1.0
    recall: float | None = None
    output_error: float | None = None
    microseconds_dense: dict[int, float] = field(default_factory=dict)
    microseconds: dict[int, float] = field(default_factory=dict)
    bytes_dense: int = 0
    bytes: int = 0
    share: float | None = None


@dataclass(repr=False)
class ConversionReport:
    """Choices and measurements of a conversion. ``print(report)`` shows a table.

    Attributes
    ----------
    layers : list of LayerReport
    output_error : float or None
        ``|z' - z| / |z|`` of the network's outputs z' with the hidden layers as planned and z from
        all neurons, on rows that no choice has used; None where nothing was measured.
    agreement : float or None
        Fraction of those rows whose best output is the same.
    n_rows : int
        Number of those rows.
    microseconds_dense, microseconds : dict of int to float
        For the k best outputs, per row, with the whole network, by the number of rows per call.
    microseconds_outside : float
        Per row, of what is not converted: the rest of a model of which these are some layers.
    storage : str
        "float32", "bfloat16" or "int8".
    refinement : str
        The refinement in words, or "" without one.
    bytes_refinement : int
        Of its arrays in a file.
    bytes_file : int
        Of all arrays in the file that `InferenceNetwork.save` writes.
    """

    layers: list[LayerReport]
    output_error: float | None = None
    agreement: float | None = None
    n_rows: int = 0
    microseconds_dense: dict[int, float] = field(default_factory=dict)
    microseconds: dict[int, float] = field(default_factory=dict)
    microseconds_outside: float = 0.0
    storage: str = "float32"
    refinement: str = ""
    bytes_refinement: int = 0
    bytes_file: int = 0

    def fraction_of_time(self, layer: LayerReport, n: int) -> float | None:
        """The fraction of the time of the whole network that a layer took when it was dense.

        Parameters
        ----------
        layer : LayerReport
        n : int
            Number of queries per call, 1 or 256.

        Returns
        -------
        float or None
            None where it was not measured. With every other part as it is, the network becomes at
            most 1 / (1 - fraction) times as fast (Amdahl's law).
        """
        parts = [part.microseconds_dense.get(n) for part in self.layers]
        if layer.microseconds_dense.get(n) is None or None in parts:
            return None
        whole = sum(filter(None, parts)) + self.microseconds_outside
        return layer.microseconds_dense[n] / whole if whole else None

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values that JSON can hold.

        Returns
        -------
        dict
            The attributes by name; layers are dicts too.
        """
        return asdict(self)

    def __str__(self) -> str:
        rows: list[tuple[str, ...]] = [("layer", "shape", "plan 1; 256", "density", "recall",
                                        "error", "us 1", "dense", "us 256", "dense", "MB",
                                        "dense")]
        for layer in self.layers:
            plans = list(layer.plan.values())
            rows.append((layer.name, " x ".join(map(str, layer.shape)),
                         plans[0] if len(set(plans)) == 1 else "; ".join(plans),
                         f"{layer.density:.1%}", _percent(layer.recall),
                         _percent(layer.output_error), *self._times(layer),
                         f"{layer.bytes / 1e6:.1f}", f"{layer.bytes_dense / 1e6:.1f}"))
        rows.append(("all", "", "", "", "", _percent(self.output_error), *self._times(self),
                     f"{sum(layer.bytes for layer in self.layers) / 1e6:.1f}",
                     f"{sum(layer.bytes_dense for layer in self.layers) / 1e6:.1f}"))

        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = ["  ".join(cell.ljust(w) if i < 3 else cell.rjust(w)
                           for i, (cell, w) in enumerate(zip(row, widths, strict=True))).rstrip()
                 for row in rows]
        lines.insert(1, "-" * max(map(len, lines)))
        if self.agreement is not None:
            lines.append(f"the best output is the same for {self.agreement:.2%} of {self.n_rows} "
                         "rows that no choice has seen")
        lines += [f"{layer.name}: {layer.reason}" for layer in self.layers]
        if (len(self.layers) > 1 or self.microseconds_outside
                or any(layer.share is not None for layer in self.layers)):
            lines += filter(None, map(self._bound, self.layers))
        if self.microseconds_outside:
            lines.append(f"the rest of the network takes {self.microseconds_outside:.1f} us per "
                         "row, as before")
        if self.refinement:
            lines.append(f"refinement: {self.refinement}")
        if self.bytes_file:
            part = f", {self.bytes_refinement / 1e6:.1f} MB of them for the refinement"
            lines.append(f"file: {self.bytes_file / 1e6:.1f} MB of arrays, weights in "
                         f"{self.storage}{part if self.refinement else ''}")
        return "\n".join(lines)

    __repr__ = __str__

    def _bound(self, layer: LayerReport) -> str:
        """What a layer can bring at most, in words."""
        if layer.share is not None:
            return (f"{layer.name}: {layer.share:.1%} of the time of the model on the calibration "
                    f"inputs, dense (at most {1 / max(1 - layer.share, 1e-9):,.2f}x)")
        parts = [(n, self.fraction_of_time(layer, n)) for n in TIMED_ROWS]
        words = [f"{share:.1%} at {n} (at most {1 / max(1 - share, 1e-9):,.2f}x)"
                 for n, share in parts if share is not None]
        return f"{layer.name}: of the time of the whole network, dense: {' and '.join(words)}" \
            if words else ""

    @staticmethod
    def _times(part: LayerReport | ConversionReport) -> Iterator[str]:
        for n in TIMED_ROWS:
            yield _microseconds(part.microseconds.get(n))
            yield _microseconds(part.microseconds_dense.get(n))

    def plot(self, ax: Any = None) -> Any:
        """Draw the microseconds per query of each layer, dense and as planned, as bars.

        Parameters
        ----------
        ax : matplotlib Axes or None
            None for new ones.

        Returns
        -------
        matplotlib Axes

        Raises
        ------
        ImportError
            If matplotlib is missing.
        """
        ax = axes(ax, figsize=(7, 3.5))
        parts = [(layer.name, layer) for layer in self.layers] + [("all", self)]
        kinds = (("dense", "microseconds_dense"), ("as planned", "microseconds"))
        series = [(f"{kind}, {n} at once", [getattr(part, key).get(n, 0.0) for _, part in parts])
                  for n in TIMED_ROWS for kind, key in kinds]

        colours = ("#9ecae1", "#08519c", "#fdd0a2", "#d94801")
        for i, ((label, values), colour) in enumerate(zip(series, colours, strict=True)):
            ax.bar([x + 0.2 * (i - 1.5) for x in range(len(parts))], values, 0.2, label=label,
                   color=colour)
        ax.set_xticks(range(len(parts)), [name for name, _ in parts])
        ax.set_yscale("log")
        ax.set(xlabel="layer", ylabel="microseconds per query")
        ax.legend(frameon=False, fontsize="small")
        return ax


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.2%}"


def _microseconds(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"
