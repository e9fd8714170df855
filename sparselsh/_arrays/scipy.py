"""scipy.sparse, imported when it is first used: it takes as long to import as the rest of the library with NumPy."""
from __future__ import annotations

from typing import Any


class _Sparse:
    """Stands for the module until one of its names is asked for."""

    def __getattr__(self, name: str) -> Any:
        import scipy.sparse

        value = getattr(scipy.sparse, name)
        setattr(self, name, value)
        return value


sp = _Sparse()
