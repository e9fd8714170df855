"""The options of an index, checked once."""
from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

from .. import _validation as check
from ..hashing import checked_family
from ._quantized_rows import STORAGES

if TYPE_CHECKING:
    from ..protocols import HashFamily

METHODS = ("sketches", "probes", "exact")
METRICS = ("ip", "cosine", "l2")
MAX_SKETCH_BITS = 1024  # the scan adds the terms of a sketch in 16 bits


@dataclass(frozen=True)
class IndexOptions:
    """The arguments of :class:`LSHIndex` that decide what is built; see there."""

    family: HashFamily | Literal["auto"] | None = None
    center: bool = True
    scaling: float | Literal["auto"] = "auto"
    sketch_bits: int | None = None
    recall: float = 0.98
    plan: str = "auto"
    storage: str = "float32"
    dynamic: bool = False
    metric: str = "ip"

    @classmethod
    def checked(cls, family: Any, **arguments: Any) -> Self:
        """The options, or TypeError or ValueError for one that does not fit."""
        given = cls(family, **arguments)
        is_auto = isinstance(family, str) and family == "auto"
        chosen: Any = "auto" if is_auto else checked_family(family, ", 'auto' or None")

        scaling, sketch_bits = given.scaling, given.sketch_bits
        if scaling != "auto":
            scaling = check.number(scaling, "scaling", minimum=0, maximum=1)
        if sketch_bits is not None:
            sketch_bits = check.integer(sketch_bits, "sketch_bits", minimum=0,
                                        maximum=MAX_SKETCH_BITS)
            if sketch_bits % 64:
                raise ValueError(f"sketch_bits must be a multiple of 64, got {sketch_bits}")
        if family is None and sketch_bits == 0:
            raise ValueError("family=None and sketch_bits=0 leave nothing to search with; "
                             "give one of them")

        recall = check.number(given.recall, "recall", above=0, below=1)
        plan = check.choice(given.plan, "plan", ("auto", *METHODS))
        if plan == "probes" and (family is None or sketch_bits == 0):
            raise ValueError("plan='probes' needs tables and sketches; give a family, "
                             "and leave sketch_bits at None")
        storage = check.choice(given.storage, "storage", STORAGES)
        metric = check.choice(given.metric, "metric", METRICS)
        if metric == "l2":
            if scaling not in ("auto", 0):
                raise ValueError(f"scaling must be 'auto' or 0 with metric='l2', got {scaling:g}: "
                                 "scaled vectors have other distances")
            scaling = 0.0
        return cls(chosen, bool(given.center), scaling, sketch_bits, recall, plan, storage,
                   bool(given.dynamic), metric)

    def plain(self) -> dict[str, Any]:
        """The options but for `family`, for a file."""
        return {name: value for name, value in vars(self).items() if name != "family"}
