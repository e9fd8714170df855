"""A hash family as plain values, for files."""
from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._cross_polytope import CrossPolytope
from ._dwta import DWTA
from ._minhash import MinHash
from ._simhash import SimHash

if TYPE_CHECKING:
    from .._arrays.types import HashFamily

FAMILIES = {family.__name__: family for family in (SimHash, CrossPolytope, DWTA, MinHash)}


def family_config(family: HashFamily | None) -> dict[str, Any] | None:
    """A family as plain values, or None."""
    if family is None:
        return None
    if FAMILIES.get(type(family).__name__) is not type(family):
        raise TypeError(f"family must be one of {', '.join(FAMILIES)} to be saved, got {family!r}; "
                        "use pickle for others")
    return {"type": type(family).__name__} | family.config()


def family_from(config: dict[str, Any] | None) -> HashFamily | None:
    """The family that `family_config` describes, not fitted."""
    if config is None:
        return None
    arguments = {name: value for name, value in config.items() if name != "type"}
    return FAMILIES[config["type"]](**arguments)
