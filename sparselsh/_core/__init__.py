"""The compiled core: arrays in, arrays out; it knows no class of the package and trusts its input.

Between our loops runs Python, on one thread. One that spins while it waits for the next loop burns a core and takes it
from whoever else would use it, so libgomp is asked to let its threads sleep. It reads the variable
once, when it is loaded, which is here; neither the user's choice nor the environment of child processes
is touched.
"""
import os

_given = os.environ.get("OMP_WAIT_POLICY")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
try:
    from . import _products, _simd  # noqa: F401
except ImportError as error:
    if error.path != __file__:  # a compiled module is there but does not load: its message says more
        raise
    raise ImportError(f"{__path__[0]} holds no compiled modules: it is the source of sparselsh, not an installed copy. "
                      "Start Python in another folder or with the option -P, type `pytest` for `python -m pytest`, "
                      "or install the source in editable mode (CONTRIBUTING.md)") from None
finally:
    if _given is None:
        del os.environ["OMP_WAIT_POLICY"]
