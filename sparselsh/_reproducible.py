"""Whether results are the same on every processor (docs/design.md, section 5)."""
from __future__ import annotations

import os

from ._core import _simd

SCOPES = ("one-machine", "across-machines")
VARIABLE = "SPARSELSH_REPRODUCIBLE"


def get_reproducible() -> str:
    """Where results are the same, bit for bit.

    Returns
    -------
    str
        "one-machine" or "across-machines"; see :func:`set_reproducible`.
    """
    return SCOPES[_simd.is_reproducible()]


def set_reproducible(scope: str) -> None:
    """Set where the same training gives the same bits, for the whole process.

    With a `random_state`, results do not depend on the number of threads. By default they depend
    on the processor: loops use all its instructions, which sum in another order and round less
    often. With "across-machines" they use loops whose sums have one order and whose products are
    rounded one by one, on every x86-64 and AArch64 processor. A training takes longer;
    docs/design.md says what is covered and what it costs.

    Call it before networks and indexes are made, and not while another thread computes: networks
    that were trained before continue with the new loops. The environment variable
    SPARSELSH_REPRODUCIBLE sets it at import.

    Parameters
    ----------
    scope : str
        "one-machine", the default, or "across-machines".

    Raises
    ------
    TypeError, ValueError
        If `scope` is neither.

    Examples
    --------
    >>> import sparselsh as sl
    >>> sl.set_reproducible("across-machines")
    >>> sl.get_reproducible()
    'across-machines'
    >>> sl.set_reproducible("one-machine")
    """
    _set(scope, "scope")


def _set(scope: object, name: str) -> None:
    expected = f'{name} must be "one-machine" or "across-machines", got {scope!r}'
    if not isinstance(scope, str):
        raise TypeError(expected)
    if scope not in SCOPES:
        raise ValueError(expected)
    if SCOPES.index(scope) != _simd.is_reproducible():
        _simd.use_fastest(scope == "across-machines")


if os.environ.get(VARIABLE):
    _set(os.environ[VARIABLE], VARIABLE)
