"""A pytest plugin: in tests of kernels, the n-th allocation of each call fails, for every n.

    LD_PRELOAD=failing.so PYTHONPATH=tests python -P -m pytest -p faults.kernels tests/test_core_*

A call that got no memory must raise MemoryError. It is made again until no allocation is left that
fails, and the test then checks the result: what an earlier attempt wrote must not show. Calls of
one thread only, as the runtime of OpenMP ends the process where it gets no memory. Of each test
some parameters run, of each kernel some calls.
"""
import functools
import importlib
import itertools
import os
import pkgutil
from collections import Counter, defaultdict

from sparselsh import _core

from .harness import library

MOST_PARAMETERS = int(os.environ.get("SPARSELSH_FAULTS", "4"))  # of a test
MOST_CALLS = 50  # of a kernel in a test
LEAST_BYTES = 1
KERNEL = "cython_function_or_method"
# A counter keeps what it has counted before the failure. `TextVectorizer.fit` begins a new one.
NOT_REPEATED = {"_text.count"}

n_failed = Counter()  # allocations of each kernel
n_calls = Counter()


def pytest_configure(config):
    lib = library()
    for info in pkgutil.iter_modules(_core.__path__):
        module = importlib.import_module(f"{_core.__name__}.{info.name}")
        for name, kernel in list(vars(module).items()):
            full_name = f"{info.name}.{name}"
            if type(kernel).__name__ == KERNEL and full_name not in NOT_REPEATED:
                setattr(module, name, short_of_memory(lib, full_name, kernel))


def short_of_memory(lib, name, kernel):
    """The kernel, called with every allocation failing before it succeeds."""

    @functools.wraps(kernel)
    def call(*args, **kwargs):
        last = kwargs.get("n_threads", args[-1] if args else 1)
        n_calls[name] += 1
        if (isinstance(last, int) and last > 1) or n_calls[name] > MOST_CALLS:
            return kernel(*args, **kwargs)
        for n in itertools.count(1):
            lib.fault_arm(n, LEAST_BYTES)
            try:
                result = kernel(*args, **kwargs)
                did_fail = lib.fault_counted() >= n
            except MemoryError:
                did_fail, result = True, None
                if lib.fault_counted() < n:
                    raise  # of something else
            finally:
                lib.fault_arm(0, 0)
            if not did_fail:
                return result
            n_failed[name] += 1

    return call


def pytest_runtest_setup(item):
    n_calls.clear()


def pytest_collection_modifyitems(config, items):
    tests = defaultdict(list)
    for item in items:
        tests[item.nodeid.split("[")[0]].append(item)
    for same in tests.values():
        step = max(1, len(same) // MOST_PARAMETERS)
        for item in set(same) - set(same[::step][:MOST_PARAMETERS]):
            items.remove(item)


def pytest_terminal_summary(terminalreporter):
    terminalreporter.write_line(f"{n_failed.total():,} allocations of {len(n_failed)} kernels")
