"""Names for types, for annotations only: no module imports them at run time."""
from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from scipy.sparse import sparray, spmatrix

Floats: TypeAlias = NDArray[np.float32]
Ids: TypeAlias = NDArray[np.int32]
Offsets: TypeAlias = NDArray[np.int64]
PathLike: TypeAlias = str | os.PathLike[str]
RandomState: TypeAlias = int | np.random.Generator | np.random.RandomState | None
MatrixLike: TypeAlias = "ArrayLike | sparray | spmatrix"


class HashFamily(Protocol):
    """What an index uses of a hash family; sparselsh/hashing/__init__.py describes each call."""

    tables: int

    @property
    def n_buckets(self) -> int: ...
    def fit(self, n_dims: int, random_state: RandomState = None) -> Self: ...
    def hash(self, V: Any, *, n_threads: int = 1) -> Ids: ...
    def probe(self, V: Any, n_probes: int, *, n_threads: int = 1) -> Ids: ...
    def config(self) -> dict[str, Any]: ...
