"""Faults on purpose: allocations that fail, signals, kills, full disks, flipped bits, no memory.

    calls    public calls on small data, each with what must hold after it was ended by a fault
    harness  the faults
    malloc   (C) allocations that fail on request

`python -P tests/faults --help` runs them; tests/test_faults.py runs a few of each kind.
"""
