"""The instruction set of the inner loops.

The fastest level that the processor supports is taken at import. The environment variable
SPARSELSH_SIMD (``baseline``, ``v3`` and others: simd/loops.h) or :func:`set_level` selects another,
so that tests can run each level. A reproducible level, such as ``reproducible-v3``, gives the
results of every other reproducible level, bit by bit; it is used when it is selected, never by
default.
"""
import os

from ._simd cimport loops_t

cdef extern from "simd/loops.h" nogil:
    ctypedef struct named_table "loops_t":
        const char *name
    const loops_t *loops()
    int loops_select(const char *name)
    void loops_select_fastest(int reproducible)
    int loops_are_reproducible()
    int loops_available(int reproducible, int i, const char **name)


cdef const loops_t *table() noexcept nogil:
    return loops()


cdef list _available(bint reproducible):
    cdef const char *name
    cdef int i = 0, runs
    levels = []
    while True:
        runs = loops_available(reproducible, i, &name)
        if runs < 0:
            return levels
        if runs:
            levels.append(name.decode())
        i += 1


def available_levels():
    """Names of the levels that this processor supports, from the slowest to the fastest."""
    return _available(False)


def reproducible_levels():
    """Names of the reproducible levels that this processor supports, as `available_levels`."""
    return _available(True)


def is_reproducible():
    """Whether the level in use is a reproducible one."""
    return bool(loops_are_reproducible())


def use_fastest(bint reproducible):
    """Use the fastest usual or reproducible level. Not to be called while a kernel runs."""
    loops_select_fastest(reproducible)


def level():
    """Name of the level in use."""
    return (<const named_table *>loops()).name.decode()


def set_level(str name):
    """Use the inner loops of one level. Not to be called while a kernel runs in another thread.

    Raises
    ------
    ValueError
        The name is unknown, or the processor lacks that instruction set.
    """
    encoded = name.encode()
    cdef int status = loops_select(encoded)
    if status < 0:
        reason = "is unknown" if status == -1 else "is not supported by this processor"
        raise ValueError(f"SIMD level {name!r} {reason}; "
                         f"available: {', '.join(available_levels())}")


if os.environ.get("SPARSELSH_SIMD"):
    set_level(os.environ["SPARSELSH_SIMD"])
