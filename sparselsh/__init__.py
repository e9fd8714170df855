"""Neural networks on CPUs that compute only the neurons locality-sensitive hashing finds."""
from ._version import __version__

__all__ = ["__version__"]
