"""Fixtures for every test: the SIMD level in use, the number of threads, seeded random numbers."""
import os
import signal
import sys

# A shell that starts the tests in the background has them ignore Ctrl-C, which some of them send.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# OpenMP reads it once. Threads that wait for work then sleep, so that tests may use more threads
# than there are free cores.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import pytest
from hypothesis import settings

from sparselsh._core import _simd

# no time limits, and the same examples in every run
settings.register_profile("sparselsh", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("sparselsh")


@pytest.fixture(params=[*_simd.available_levels(), _simd.reproducible_levels()[-1]])
def simd_level(request):
    """Run the test with each instruction set that this processor has.

    Of the reproducible levels with one: tests/test_core_reproducible.py compares them.
    """
    before = _simd.level()
    _simd.set_level(request.param)
    yield request.param
    _simd.set_level(before)


@pytest.fixture(params=[1, 2], ids=["1 thread", "2 threads"])
def n_threads(request):
    return request.param


@pytest.fixture
def rng():
    return np.random.default_rng(20250611)


@pytest.fixture
def terminal(capsys, monkeypatch):
    """capsys, whose stderr takes itself for a terminal: there progress is a bar."""
    # of the class, as pytest puts another stream in its place after the set-up
    monkeypatch.setattr(type(sys.stderr), "isatty", lambda stream: True)
    return capsys
