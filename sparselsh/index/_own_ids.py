"""OwnIds: ids that a user has given to the rows of an index."""
from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import numpy as np

from .. import _validation as check

if TYPE_CHECKING:
    from .._arrays.types import Ids


class OwnIds:
    """Distinct ids of the rows, int64 or strings, in the order of the rows."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values
        self._order: np.ndarray | None = None  # that sorts them

    @property
    def none(self) -> Any:
        """What stands for no neuron: -1, or an empty string."""
        return "" if self.values.dtype.kind == "U" else -1

    def of_rows(self, rows: Ids) -> np.ndarray:
        """The ids of rows, of any shape; -1 becomes `none`."""
        if not len(self.values):
            return np.full(rows.shape, self.none)
        return np.where(rows >= 0, self.values[np.maximum(rows, 0)], self.none)

    def rows_of(self, ids: Any, name: str) -> Ids:
        """The rows of ids; ValueError for one that is not known."""
        given = check.array(ids, name)
        if given.ndim != 1 or (given.size and (given.dtype.kind in "iu")
                               != (self.values.dtype.kind == "i")):
            kind = "strings" if self.values.dtype.kind == "U" else "integers"
            raise ValueError(f"{name} must be a one-dimensional array of ids, which are {kind} in "
                             f"this index, got shape {given.shape} and dtype {given.dtype}")
        if not given.size:
            return np.zeros(0, np.int32)
        if self._order is None:
            self._order = np.argsort(self.values, kind="stable")
        places = np.searchsorted(self.values, given, sorter=self._order)
        rows = self._order[np.minimum(places, len(self.values) - 1)]
        unknown = self.values[rows] != given
        if unknown.any():
            raise ValueError(f"{name} must be ids of this index, got {given[unknown][0]!r}, which "
                             "is not one")
        return rows.astype(np.int32)

    def rows_or_none(self, ids: Any, name: str) -> Ids:
        """`rows_of`, where what stands for no neuron is -1."""
        given = check.array(ids, name)
        rows = np.full(given.shape, -1, np.int32)
        known = given != self.none
        rows[known] = self.rows_of(given[known], name)
        return rows

    def extended(self, values: np.ndarray) -> Self:
        """With the ids of new rows, which must be new too."""
        if values.dtype.kind != self.values.dtype.kind:
            kind = "strings" if self.values.dtype.kind == "U" else "integers"
            raise ValueError(f"ids must be {kind}, as those of this index, got dtype "
                             f"{values.dtype}")
        known = np.isin(values, self.values)
        if known.any():
            raise ValueError(f"ids must be new, but {values[known][0]!r} is in this index; use "
                             "update for its weights")
        return type(self)(np.concatenate([self.values, values]))
