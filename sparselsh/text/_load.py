"""load: whatever was saved."""
from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .. import _validation as check
from . import _file
from ._recommender import Recommender
from ._tagger import Tagger

if TYPE_CHECKING:
    from .._arrays.types import PathLike

KINDS: dict[str, type[Tagger | Recommender]] = {"Recommender": Recommender, "Tagger": Tagger}


def load(path: PathLike, *, n_threads: int | None = None, mmap: bool = False) -> Any:
    """Read a file that the `save` of a network, a Tagger or a Recommender wrote.

    Parameters
    ----------
    path : str or path-like
    n_threads : int or None
        Number of threads of the kernels; None for :func:`sparselsh.get_num_threads`.
    mmap : bool
        Leave the weights of a compressed model in the file, as for :meth:`InferenceNetwork.load
        <sparselsh.InferenceNetwork.load>`.

    Returns
    -------
    Network, InferenceNetwork, Tagger or Recommender
        What was saved.

    Raises
    ------
    FileNotFoundError, IsADirectoryError
        If there is no such file, or `path` is a directory.
    ValueError
        If it is not a safetensors file, is truncated, or holds nothing of this library.
    """
    n_threads = check.threads(n_threads)
    stored = _file.read(path, n_threads, mmap)
    if stored.config is None:
        return stored.network
    if stored.kind not in KINDS:
        raise ValueError(f"{path}: holds a {stored.kind!r}, which this version does not know")
    return KINDS[stored.kind].of_file(stored, n_threads)
