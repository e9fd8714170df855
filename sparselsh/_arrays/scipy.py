"""scipy.sparse, imported when it is first used.

Importing it takes as long as importing the rest of the library with NumPy.
"""
from __future__ import annotations

from typing import Any


class _Sparse:
    """A proxy that imports the module when one of its names is first used."""

    def __getattr__(self, name: str) -> Any:
        import scipy.sparse

        value = getattr(scipy.sparse, name)
        setattr(self, name, value)
        return value


sp = _Sparse()
