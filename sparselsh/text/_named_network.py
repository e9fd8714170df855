"""NamedNetwork: what Tagger and Recommender share, a network whose ids have names, and its file."""
from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from .. import _validation as check
from .._threads import Lock, Unlocked, one_at_a_time
from ..inference import InferenceNetwork
from . import _file
from ._parameters import Parameters
from ._training import Kept, Trained, kept_as_tensors, kept_of_tensors

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .._arrays.types import PathLike


class NamedNetwork(Parameters):
    """A network whose labels have names. A subclass knows what its rows are made of."""

    network_: Any
    _kept: Kept
    _names: list[str]
    _ids: dict[str, int]
    _not_in_files: ClassVar[tuple[str, ...]] = ("random_state",)  # parameters

    @property
    def _lock(self) -> Lock | Unlocked:
        """What a call holds while names, the vocabulary and the network may grow together."""
        if isinstance(self.__dict__.get("network_"), InferenceNetwork):
            return Unlocked()  # it stays as it is
        lock: Lock | None = self.__dict__.get("_own_lock")
        return self.__dict__.setdefault("_own_lock", Lock()) if lock is None else lock

    def _check_parameters(self) -> None:
        """Check the parameters that both have."""
        values = vars(self)
        check.integer(values["hidden"], "hidden")
        for name in ("epochs", "batch_size"):
            if values[name] is not None:
                check.integer(values[name], name)
        if values["lr"] is not None:
            check.number(values["lr"], "lr", above=0)
        if values["dropout"] is not None:
            check.number(values["dropout"], "dropout", minimum=0, below=1)
        if values["hold_out"] is not None:
            check.integer(values["hold_out"], "hold_out", minimum=0)
        check.threads(values["n_threads"])

    def _check_fitted(self) -> None:
        if not hasattr(self, "network_"):
            raise ValueError(f"this {type(self).__name__} is not trained yet; call fit, or load a "
                             "file")

    def _check_trainable(self) -> None:
        self._check_fitted()
        if isinstance(self.network_, InferenceNetwork):
            raise ValueError(f"this {type(self).__name__} is compressed, and only answers; train "
                             "the one that it was made from")

    # -- files -----------------------------------------------------------------------------------

    @one_at_a_time
    def compressed(self, storage: str = "int8") -> Self:
        """A smaller copy with fewer bits per weight, for inference only.

        Parameters
        ----------
        storage : {"int8", "bfloat16"}
            As for :meth:`InferenceNetwork.from_network
            <sparselsh.InferenceNetwork.from_network>`.

        Returns
        -------
        Tagger or Recommender
            Without the training rows that `add_tags` and `add_items` need.

        Raises
        ------
        ValueError
            If it is not trained yet, this is a compressed copy, or `storage` is neither.
        """
        self._check_trainable()
        check.choice(storage, "storage", ("int8", "bfloat16"))
        other = type(self)(**self.get_params(deep=False))
        other.__dict__.update(self.__dict__)
        nothing = np.zeros(0, np.int64)
        other._kept = Kept(self._kept.x.take(nothing), self._kept.y.take(nothing), 0)
        other.network_ = InferenceNetwork.from_network(self.network_, storage=storage,
                                                       n_threads=self.network_.n_threads)
        other.network_.uncalibrated = "classes"
        return other

    @one_at_a_time
    def save(self, path: PathLike) -> None:
        """Write the network, the names and the vocabulary as one safetensors file.

        :func:`sparselsh.load` reads it. The file appears whole or not at all.

        Parameters
        ----------
        path : str or path-like

        Raises
        ------
        ValueError
            If it is not trained yet.
        TypeError
            If `vectorizer` is not a TextVectorizer, whose state the file cannot hold.
        OSError
            If the file cannot be written.
        """
        self._check_fitted()
        own, tensors = self._state()
        parameters = {name: value for name, value in self.get_params(deep=False).items()
                      if name not in self._not_in_files}
        config = {"kind": type(self).__name__, "parameters": parameters,
                  "n_seen": self._kept.n_seen} | own
        _file.write(path, self.network_, config,
                    tensors | _file.names_as_tensors(self._names) | kept_as_tensors(self._kept))

    def _state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Plain values and arrays of a file, beside those that both classes have."""
        return {}, {}

    @classmethod
    def load(cls, path: PathLike, *, n_threads: int | None = None) -> Self:
        """Read a file of `save`.

        Parameters
        ----------
        path : str or path-like
        n_threads : int or None
            Number of threads; None for :func:`sparselsh.get_num_threads`.

        Returns
        -------
        Tagger or Recommender
            An object of the class on which this is called.

        Raises
        ------
        FileNotFoundError, IsADirectoryError
            If there is no such file, or `path` is a directory.
        ValueError
            If it holds no object of this class, or is damaged.
        """
        return cls.of_file(_file.read(path, n_threads), n_threads)

    @classmethod
    def of_file(cls, stored: _file.Stored, n_threads: int | None) -> Self:
        """The object of a file, whose contents are checked."""
        with stored.config_of(cls.__name__) as config:
            made = cls(**config["parameters"] | {"n_threads": n_threads})
            made._check_parameters()
            names = _file.names_of_tensors(stored.tensors, stored.network.n_labels)
            if isinstance(stored.network, InferenceNetwork):
                stored.network.uncalibrated = "classes"  # as _training has a softmax
            kept = kept_of_tensors(stored.tensors, config["n_seen"], stored.network)
            made._restore(stored, config, Trained(stored.network, None, kept), names)
            return made

    def _restore(self, stored: _file.Stored, config: dict[str, Any], model: Trained,
                 names: list[str]) -> None:
        """Take the contents of a file, of which `_state` is yet to be checked."""
        raise NotImplementedError


def as_attributes(attribute: str, names: Sequence[str]) -> dict[str, Any]:
    """The attributes that follow from the names, which are the array `attribute` too."""
    array = np.empty(len(names), object)
    array[:] = names
    return {attribute: array, "_names": list(names),
            "_ids": {name: j for j, name in enumerate(names)}}
