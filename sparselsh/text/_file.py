"""The one file of a Tagger: that of its network, with the vectorizer and the names.

    text.offsets, text.strings, text.idf    the vocabulary and the factors of its runs of words
    text.names, text.name_ends              names of the labels, as UTF-8, and where each ends
    config["text"]                          which class it is of, and its parameters, as JSON

It can be read as a network, too, which takes rows and gives ids. The network of a compressed one is
an InferenceNetwork.
"""
from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .. import _files
from ..inference import INFERENCE_FORMAT, InferenceNetwork, load_served, save_served
from ..layers import Linear
from ..network import load_with, save_with

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from .._arrays.types import PathLike
    from ..network import Network

DAMAGES = (AttributeError, KeyError, OverflowError, TypeError, ValueError, RecursionError)
KEY = "text"


class Stored(NamedTuple):
    """Contents of a file; config is None for one of a network alone."""

    path: PathLike
    network: Network | InferenceNetwork
    tensors: dict[str, np.ndarray]
    config: dict[str, Any] | None

    @property
    def kind(self) -> str:
        """The name of the class that was saved."""
        if self.config is None:
            return type(self.network).__name__
        return str(self.config.get("kind"))

    @contextmanager
    def config_of(self, kind: str) -> Iterator[dict[str, Any]]:
        """The configuration of a class; an error in the block names the file."""
        if self.config is None or self.kind != kind:
            raise ValueError(f"{self.path}: holds a {self.kind}, no {kind}; read it with "
                             "sparselsh.load")
        try:
            _, last = self.network.layers
            if isinstance(last, Linear) and last.parameters[0].input_major:
                raise ValueError("its last layer is input-major")
            yield self.config
        except DAMAGES as error:
            raise _files.damaged(self.path, kind.lower(), error) from error


def write(path: PathLike, network: Network | InferenceNetwork, config: dict[str, Any],
          tensors: dict[str, np.ndarray]) -> None:
    """Write a network with what a class keeps beside it; config["kind"] is its name."""
    named = {f"{KEY}.{name}": a for name, a in tensors.items()}
    if isinstance(network, InferenceNetwork):
        save_served(network, path, named, {KEY: config})
    else:
        save_with(network, path, named, {KEY: config})


def read(path: PathLike, n_threads: int | None, mmap: bool = False) -> Stored:
    """Contents of a file of `write`, or of a network; `mmap` is for one that is compressed."""
    network: Network | InferenceNetwork
    if _files.metadata(path).get("format") == INFERENCE_FORMAT:
        network, tensors, config = load_served(InferenceNetwork, path, KEY, mmap=mmap,
                                               n_threads=n_threads)
    else:
        network, tensors, config = load_with(path, KEY, n_threads=n_threads)
    if not isinstance(config, dict | None):
        raise _files.damaged(path, "tagger", TypeError(f"{KEY} is {config!r}"))
    return Stored(path, network, tensors, config)


def names_as_tensors(names: Sequence[str]) -> dict[str, np.ndarray]:
    """Names as arrays."""
    parts = [name.encode("utf-8", "surrogatepass") for name in names]
    ends = np.cumsum([len(part) for part in parts], dtype=np.int64)
    return {"names": np.frombuffer(b"".join(parts), np.uint8), "name_ends": ends}


def names_of_tensors(tensors: dict[str, np.ndarray], n_names: int) -> list[str]:
    """What `names_as_tensors` gave, checked."""
    blob, ends = tensors["names"], tensors["name_ends"]
    if blob.dtype != np.uint8 or ends.dtype != np.int64 or blob.ndim != 1 or (
            ends.shape != (n_names,)):
        raise ValueError(f"names must be bytes with {n_names} ends")
    if (np.diff(ends, prepend=0) <= 0).any() or ends[-1] != len(blob):
        raise ValueError("the ends of names must rise to their number of bytes")
    whole, last = blob.tobytes(), ends.tolist()
    names = [whole[a:b].decode("utf-8", "surrogatepass")
             for a, b in zip([0, *last[:-1]], last, strict=True)]
    if len(set(names)) != len(names):
        raise ValueError("a name occurs twice")
    return names
