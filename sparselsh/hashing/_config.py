"""A hash family as an argument, which may be one of the user's, and as plain values, for files."""
from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _validation as check
from ._cross_polytope import CrossPolytope
from ._dwta import DWTA
from ._minhash import MinHash
from ._rows import MAX_BUCKETS, MAX_TABLES
from ._simhash import SimHash

if TYPE_CHECKING:
    from ..protocols import HashFamily

FAMILIES = {family.__name__: family for family in (SimHash, CrossPolytope, DWTA, MinHash)}
METHODS = ("fit", "hash", "probe", "config")


def checked_family(family: Any, others: str = "or None") -> HashFamily | None:
    """The family, which may be one of the user's, or None.

    TypeError names what it lacks of :class:`sparselsh.protocols.HashFamily`; `others` are what the
    argument may be besides.
    """
    if family is None or type(family) in FAMILIES.values():
        return family
    missing = [name for name in ("tables", "n_buckets", *METHODS) if not hasattr(family, name)]
    if isinstance(family, type) or len(missing) == len(METHODS) + 2:
        raise TypeError(f"family must be a hash family such as SimHash() {others}, got {family!r}")
    if missing:
        raise TypeError(f"family {family!r} lacks {', '.join(missing)}; "
                        "sparselsh.protocols.HashFamily says what a family of your own needs")
    check.integer(family.tables, "family.tables", maximum=MAX_TABLES)
    check.integer(family.n_buckets, "family.n_buckets", maximum=MAX_BUCKETS)
    return family


def checked_codes(family: HashFamily, codes: np.ndarray, shape: tuple[int, ...],
                  method: str) -> np.ndarray:
    """What `hash` or `probe` of a family gave, as kernels may trust it."""
    if type(family) in FAMILIES.values():
        return codes
    codes = np.asarray(codes)
    if codes.shape != shape or codes.dtype.kind not in "iu":
        raise ValueError(f"{type(family).__name__}.{method} must give whole numbers of shape "
                         f"{shape}, got {codes.dtype} of shape {codes.shape}")
    if codes.size and not (-1 <= codes.min() and codes.max() < family.n_buckets):
        raise ValueError(f"{type(family).__name__}.{method} must give buckets of 0 to "
                         f"n_buckets - 1 = {family.n_buckets - 1}, or -1, got {codes.min()} to "
                         f"{codes.max()}")
    return np.ascontiguousarray(codes, np.int32)


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
