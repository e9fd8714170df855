"""What notebooks show of an object: a table, as plain HTML that takes on the notebook's own style."""
import inspect
from html import escape


def table(title, rows, header=None):
    """A table of cells, which are escaped; the title stands above it."""
    def line(cells, tag):
        return "<tr>" + "".join(f'<{tag} style="text-align: left">{escape(str(cell))}</{tag}>'
                                for cell in cells) + "</tr>"

    head = f"<thead>{line(header, 'th')}</thead>" if header else ""
    return (f"<div><strong>{escape(title)}</strong><table>{head}<tbody>{''.join(line(row, 'td') for row in rows)}"
            "</tbody></table></div>")


def size(n_bytes):
    """Bytes as people read them."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if n_bytes < 1000 or unit == "GB":
            return f"{n_bytes:.0f} {unit}" if unit == "bytes" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1000


class Shown:
    """Shows itself in notebooks: the arguments of its constructor, or what a subclass gives."""

    def _shown(self):
        """Title and (name, value) rows."""
        rows = [(name, getattr(self, name)) for name in inspect.signature(type(self)).parameters]
        return type(self).__name__, [(name, value if isinstance(value, str) else repr(value)) for name, value in rows]

    def _repr_html_(self):
        return table(*self._shown())
