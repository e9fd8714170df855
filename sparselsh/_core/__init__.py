"""The compiled core: arrays in, arrays out. It knows no class of the package and trusts its input.

Between two parallel loops Python runs on one thread, mostly for some tens of microseconds. A thread
that spins until the next loop occupies a core that others could use; by default those of libgomp
spin for milliseconds. A thread that sleeps at once wakes late, which costs a training step on two
threads a tenth or more of its time. So libgomp is told to let its threads spin for some 100
microseconds and then sleep. It reads the variable once, when it is loaded, which is here; neither
the user's setting nor the environment of child processes is changed.
"""
import os

_chosen = "OMP_WAIT_POLICY" in os.environ or "GOMP_SPINCOUNT" in os.environ
if not _chosen:
    os.environ["GOMP_SPINCOUNT"] = "10000"
try:
    from . import _simd, _sparse_products
except ImportError as error:
    if error.path != __file__:  # a compiled module exists but does not load: its message says more
        raise
    raise ImportError(f"{__path__[0]} holds no compiled modules: it is the source of sparselsh, "
                      "not an installed copy. Start Python in another folder or with the option "
                      "-P, type `pytest` for `python -m pytest`, or install the source in "
                      "editable mode (CONTRIBUTING.md)") from None
finally:
    if not _chosen:
        del os.environ["GOMP_SPINCOUNT"]
