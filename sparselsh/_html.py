"""What notebooks show of an object: a table, as plain HTML that takes on the notebook's own style."""
from __future__ import annotations

import inspect
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


def table(title: str, rows: Iterable[Sequence[object]], header: Sequence[str] | None = None) -> str:
    """A table of cells, which are escaped; the title stands above it."""
    def line(cells: Iterable[object], tag: str) -> str:
        return "<tr>" + "".join(f'<{tag} style="text-align: left">{escape(str(cell))}</{tag}>'
                                for cell in cells) + "</tr>"

    head = f"<thead>{line(header, 'th')}</thead>" if header else ""
    return (f"<div><strong>{escape(title)}</strong><table>{head}<tbody>{''.join(line(row, 'td') for row in rows)}"
            "</tbody></table></div>")


def size(n_bytes: float) -> str:
    """Bytes as people read them."""
    if n_bytes < 1000:
        return f"{n_bytes:.0f} bytes"
    for unit in ("kB", "MB"):
        n_bytes /= 1000
        if n_bytes < 1000:
            return f"{n_bytes:.1f} {unit}"
    return f"{n_bytes / 1000:.1f} GB"


class Shown:
    """Shows itself in notebooks: the arguments of its constructor, or what a subclass gives."""

    def _shown(self) -> tuple[str, list[tuple[str, str]]]:
        """Title and (name, value) rows."""
        rows = [(name, getattr(self, name)) for name in inspect.signature(type(self)).parameters]
        return type(self).__name__, [(name, value if isinstance(value, str) else repr(value)) for name, value in rows]

    def _repr_html_(self) -> str:
        return table(*self._shown())
