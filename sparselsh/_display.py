"""Display of objects and of progress: HTML tables in notebooks, plots with matplotlib, bars.

Tables are plain HTML and take the style of the notebook. Plots need
``pip install "sparselsh-nn[plot]"``; users call them as methods: ``network.plot_history()``,
``index.plot_recall(queries)``.
"""
from __future__ import annotations

import inspect
import sys
import time
from html import escape
from typing import TYPE_CHECKING, Any, Self

from tqdm import tqdm

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


def table(title: str, rows: Iterable[Sequence[object]], header: Sequence[str] | None = None) -> str:
    """An HTML table with a title above it; the text of the cells is escaped."""
    def line(cells: Iterable[object], tag: str) -> str:
        return "<tr>" + "".join(f'<{tag} style="text-align: left">{escape(str(cell))}</{tag}>'
                                for cell in cells) + "</tr>"

    head = f"<thead>{line(header, 'th')}</thead>" if header else ""
    body = "".join(line(row, "td") for row in rows)
    return (f"<div><strong>{escape(title)}</strong><table>{head}<tbody>{body}"
            "</tbody></table></div>")


def size(n_bytes: float) -> str:
    """A number of bytes with a decimal unit, such as '1.5 MB'."""
    if n_bytes < 1000:
        return f"{n_bytes:.0f} bytes"
    for unit in ("kB", "MB"):
        n_bytes /= 1000
        if n_bytes < 1000:
            return f"{n_bytes:.1f} {unit}"
    return f"{n_bytes / 1000:.1f} GB"


class HtmlRepr:
    """Base class with an HTML table for notebooks: by default, the constructor's arguments."""

    def _shown(self) -> tuple[str, list[tuple[str, str]]]:
        """Title and (name, value) rows."""
        rows = [(name, getattr(self, name)) for name in inspect.signature(type(self)).parameters]
        return type(self).__name__, [(name, value if isinstance(value, str) else repr(value))
                                     for name, value in rows]

    def _repr_html_(self) -> str:
        return table(*self._shown())


# -- progress -------------------------------------------------------------------


class ProgressLine:
    """Replaces the bar if stderr is not a terminal: one line at the end, none meanwhile."""

    def __init__(self, title: str, unit: str, n: int) -> None:
        self.title, self.unit, self.n = title, unit, n
        self.total: int | None = None
        self._shown: dict[str, str] = {}
        self._begin = time.perf_counter()

    def update(self, n: int = 1) -> None:
        self.n += n

    def set_postfix(self, values: dict[str, str] | None = None, refresh: bool = True,
                    **more: str) -> None:
        self._shown = (values or {}) | more

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error: object, *_: object) -> None:
        if error is not None or sys.stderr is None:
            return
        seconds = time.perf_counter() - self._begin
        shown = [f"{name} {value}" for name, value in self._shown.items()]
        parts = [f"{self.n:,}{self.unit}", *shown, f"{seconds:.1f} s"]
        print(f"{self.title}: {', '.join(parts)}", file=sys.stderr, flush=True)


def progress_bar(title: str, unit: str, total: int | None, *, verbose: bool, initial: int = 0,
                 interval: float = 0.1) -> tqdm[Any] | ProgressLine:
    """A progress bar on a terminal, and one line at the end where stderr is a file or a pipe."""
    is_terminal = sys.stderr is not None and sys.stderr.isatty()
    if verbose and not is_terminal:
        return ProgressLine(title, unit, initial)
    return tqdm(total=total, initial=initial, unit=unit, desc=title, disable=not verbose,
                mininterval=interval)


# -- plots ----------------------------------------------------------------------

# Colours that colour-blind readers can distinguish (Okabe and Ito 2008), and marks for greyscale.
COLOURS = {"loss": "#0072B2", "val_loss": "#D55E00", "p_at_1": "#009E73", "sketches": "#0072B2",
           "probes": "#D55E00"}
MARKS = {"loss": "o", "val_loss": "s", "p_at_1": "^", "sketches": "o", "probes": "s"}
NAMES = {"loss": "training loss", "val_loss": "validation loss", "p_at_1": "P@1 of validation",
         "sketches": "scan of sketches", "probes": "probing of tables"}


def axes(ax: Any, figsize: tuple[float, float] = (6, 4)) -> Any:
    """The given axes, or those of a new figure for None; ImportError without matplotlib."""
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError('plotting needs the package matplotlib; '
                          'type: pip install "sparselsh-nn[plot]"') from error
    if ax is None:
        return plt.subplots(figsize=figsize, layout="constrained")[1]
    if not isinstance(ax, plt.Axes):
        raise TypeError(f"ax must be matplotlib Axes, or None for a new figure, got {ax!r}")
    return ax


def plot_history(history: Sequence[dict[str, Any]], ax: Any = None) -> Any:
    """Plot losses per epoch and, on a second axis at the right, P@1.

    Parameters
    ----------
    history : list of dict
        As `Network.history`.
    ax : matplotlib Axes or None
        None for a new figure.

    Returns
    -------
    Axes
    """
    if not history:
        raise ValueError("there is no history to plot; call fit first")
    ax = axes(ax)
    lines = [_line(ax, history, key) for key in ("loss", "val_loss")
             if any(key in entry for entry in history)]
    ax.set(xlabel="epoch", ylabel="loss", title="Training")
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.grid(alpha=0.3)
    if any("p_at_1" in entry for entry in history):
        right = ax.twinx()
        lines.append(_line(right, history, "p_at_1"))
        right.set(ylabel="P@1", ylim=(0, 1.02))
    ax.legend(handles=lines, loc="center right")
    return ax


def _line(ax: Any, history: Sequence[dict[str, Any]], key: str) -> Any:
    points = [(entry["epoch"], entry[key]) for entry in history if key in entry]
    return ax.plot(*zip(*points, strict=True), color=COLOURS[key], marker=MARKS[key],
                   label=NAMES[key])[0]


def plot_recall(trials: Sequence[dict[str, Any]], wanted: float | None = None,
                ax: Any = None) -> Any:
    """Plot recall by number of candidates.

    Parameters
    ----------
    trials : list of dict
        As returned by :meth:`LSHIndex.tune`: method, n_candidates, recall.
    wanted : float or None
        A recall to mark with a line.
    ax : matplotlib Axes or None
        None for a new figure.

    Returns
    -------
    Axes
    """
    ax = axes(ax)
    for method in dict.fromkeys(trial["method"] for trial in trials):
        points = sorted((trial["n_candidates"], trial["recall"]) for trial in trials
                        if trial["method"] == method)
        ax.plot(*zip(*points, strict=True), color=COLOURS[method], marker=MARKS[method],
                label=NAMES[method], linestyle="-" if method == "sketches" else "none")
    if wanted is not None:
        ax.axhline(wanted, color="0.4", linestyle="--", linewidth=1, label=f"wanted: {wanted:.1%}")

    ax.set(xlabel="candidates: neurons whose inner product is computed", ylabel="recall",
           title="Search", xscale="log")
    for which in ("major", "minor"):  # labels such as 20 and 30, not only powers of ten
        ax.tick_params(axis="x", which=which, labelrotation=45)
        getattr(ax.xaxis, f"set_{which}_formatter")("{x:,.0f}")
    ax.grid(alpha=0.3)
    ax.legend(loc="lower right")
    return ax
