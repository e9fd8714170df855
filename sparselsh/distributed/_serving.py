"""Answers from servers of which each has some labels: what a server needs, and what asks them.

    Front ──► hidden layer of the queries ──► every Part: its k best ──► merged, ranked, calibrated

How the servers are started and called, by Ray Serve or by anything else, is up to the caller.
"""
from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _validation as check
from .._threads import Lock, resolve
from ..calibration import ranked_for
from ..layers import Linear, LSHLinear
from ..network import Network
from . import _folder
from ._groups import AsIf
from ._layers import RowLSHLinear, merge_topk
from ._shards import DistributedError, Shards

if TYPE_CHECKING:
    from collections.abc import Callable

    from .._arrays.types import Floats, Ids, MatrixLike, PathLike

CALLS_AT_ONCE = 8  # per part


class Part:
    """The labels of some shards of a saved network, for one server of several.

    Parameters
    ----------
    path : str or path-like
        A folder that :meth:`ShardedNetwork.save` wrote. Only the files of these shards are read.
    part, parts : int
        The number of this part, from 0, and the number of parts, which divides that of the shards.
    n_threads : int or None

    Attributes
    ----------
    n_labels : int
        Labels of this part.

    Raises
    ------
    FileNotFoundError, ValueError
        As for :func:`load`; also if `parts` does not divide the shards.
    """

    def __init__(self, path: PathLike, part: int, parts: int, *,
                 n_threads: int | None = None) -> None:
        self.part, self.parts = part, parts
        path = os.path.abspath(check.path(path))
        name, config = _folder.read_head(path)
        shards = Shards(config["shards"], AsIf(part, parts))
        self._layer = RowLSHLinear(LSHLinear.from_config(config["layers"][1]), shards)
        _folder.restore_outputs(self._layer, path, name, config)
        self.n_labels = self._layer.n_rows
        self.n_threads = n_threads
        self._lock = Lock()

    def topk(self, h: Floats, k: int, exact: bool = False) -> tuple[Ids, Floats]:
        """The k best labels of this part for each row of the hidden layer.

        Parameters
        ----------
        h : ndarray of shape (n, n_hidden), float32
            As returned by :meth:`Front.hidden`.
        k : int
        exact : bool

        Returns
        -------
        ids, scores : ndarray of shape (n, k)

        Raises
        ------
        ValueError, TypeError
            If an argument is invalid.
        """
        h = check.dense(h, "h", n_columns=self._layer.n_in)
        k = check.integer(k, "k")
        with self._lock:
            return self._layer.own_topk(h, k, exact=bool(exact), n_threads=resolve(self.n_threads))

    def __repr__(self) -> str:
        return f"Part({self.part} of {self.parts}, {self.n_labels} labels)"


class Front:
    """The hidden layer, classifiers and calibration of a saved network whose labels are on servers.

    Parameters
    ----------
    path : str or path-like
        A folder that :meth:`ShardedNetwork.save` wrote.
    ask : callable
        ``ask(part, h, k, exact)`` returns the result of :meth:`Part.topk` of this part. It is
        called in several threads.
    parts : int
    timeout : float
        Seconds after which a part that has not answered counts as missing.
    n_threads : int or None

    Raises
    ------
    FileNotFoundError, ValueError
        As for :func:`load`.
    """

    def __init__(self, path: PathLike, ask: Callable[[int, Floats, int, bool], tuple[Ids, Floats]],
                 parts: int, *, timeout: float = 1.0, n_threads: int | None = None) -> None:
        if not callable(ask):
            raise TypeError("ask must be a function of part, h, k and exact, got "
                            f"{type(ask).__name__}")
        path = os.path.abspath(check.path(path))
        name, config = _folder.read_head(path)
        self.timeout, self.parts = check.number(timeout, "timeout", above=0), parts
        n_shards = Shards(config["shards"], AsIf(0, parts)).n
        hidden = Linear.from_config(config["layers"][0])
        outputs = _Asked(config["layers"][1], ask, parts, n_shards, self.timeout)
        loss, dtype = config["loss"], config["compute_dtype"]
        self._net = _Shown([hidden, outputs], loss=loss, n_threads=n_threads, random_state=0,
                            compute_dtype=dtype)
        _folder.restore_front(self._net, path, name, config)

    def hidden(self, X: MatrixLike) -> Floats:
        """The hidden layer of the queries, which `Part.topk` takes.

        Parameters
        ----------
        X : array or sparse matrix of shape (n, n_features)

        Returns
        -------
        ndarray of shape (n, n_hidden), float32

        Raises
        ------
        ValueError, TypeError
            As for :meth:`Network.topk`.
        """
        return self._net.hidden(check.matrix(X, n_columns=self._net.n_features))

    def topk(self, X: MatrixLike, k: int = 5, *, exact: bool = False, probabilities: bool = False,
             partial: bool = False) -> tuple[Any, ...]:
        """The k labels with the largest scores: those of `ShardedNetwork.topk`.

        Parameters
        ----------
        X : array or sparse matrix of shape (n, n_features)
        k : int
        exact, probabilities : bool
            As for :meth:`Network.topk`.
        partial : bool
            Return the results of the parts that answer in time. If False, a part that does not is
            an error.

        Returns
        -------
        ids, scores : ndarray of shape (n, k)
        share : float
            With `partial`: the fraction of the labels whose parts have answered.

        Raises
        ------
        ValueError, TypeError
            As for :meth:`Network.topk`.
        DistributedError
            Without `partial`, if a part does not answer in time, or its answer is an error.
        """
        net = self._net
        X, k = check.matrix(X, n_columns=net.n_features), check.integer(k, "k")
        n_wanted = k if not probabilities else ranked_for(net.calibration, k, None)
        h = _Rows.of(net.hidden(X), partial)
        ids, scores = net.ranked(X, n_wanted, bool(exact), h)
        if probabilities and net.calibration is not None:
            scores = net.calibration.ranked(scores)
        found = ids[:, :k], scores[:, :k]
        return (*found, h.share) if partial else found

    def __repr__(self) -> str:
        return f"Front({self._net.n_labels} labels in {self.parts} parts)"


class _Shown(Network):
    """A network of which the steps of an answer are taken one by one."""

    def hidden(self, X: Any) -> Floats:
        with self._lock:
            return np.array(self._hidden(X, 0, X.shape[0], resolve(self.n_threads)))

    def ranked(self, X: Any, k: int, exact: bool, h: Floats) -> tuple[Ids, Floats]:
        return self._ranked(X, 0, X.shape[0], k, exact, h=h)


class _Rows(np.ndarray):
    """The hidden layer of a call, and what has become of the call."""

    may_miss: bool  # whether parts may be missing
    share: float  # of the labels whose parts have answered

    @classmethod
    def of(cls, h: Floats, may_miss: bool) -> _Rows:
        """A view of h."""
        rows = h.view(cls)
        rows.may_miss, rows.share = may_miss, 1.0
        return rows


class _Asked(Linear):
    """An output layer whose neurons are elsewhere."""

    def __init__(self, config: dict[str, Any], ask: Callable[..., tuple[Ids, Floats]], parts: int,
                 n_shards: int, timeout: float) -> None:
        super().__init__(config["n_in"], config["n_out"])
        self.ask, self.parts, self.n_shards, self.timeout = ask, parts, n_shards, timeout
        self.initialized = True
        self._pool = ThreadPoolExecutor(CALLS_AT_ONCE * parts, "sparselsh-front")

    def topk(self, x: Any, k: int, *, exact: bool = False, n_threads: int = 1,
             selection: Any = None) -> tuple[Ids, Floats]:
        h = np.asarray(x)
        futures = [self._pool.submit(self.ask, part, h, k, exact) for part in range(self.parts)]
        wait(futures, self.timeout)
        found, missing = [], []
        for part, future in enumerate(futures):
            if not future.done():
                future.cancel()
                missing.append((part, f"it did not answer in {self.timeout:g} s"))
            elif future.exception() is not None:
                error = future.exception()
                missing.append((part, f"{type(error).__name__}: {error}"))
            else:
                found.append(future.result())
        if missing and not x.may_miss:
            part, why = missing[0]
            raise DistributedError(f"part {part} of {self.parts} is missing ({why}); start it "
                                   "again, or ask with partial=True for what the others have",
                                   [part for part, _ in missing])
        gone = {part for part, _ in missing}
        x.share = min(x.share, self._share_without(gone))
        empty = np.full((len(h), 1), -1, np.int32), np.full((len(h), 1), -np.inf, np.float32)
        return merge_topk([*found, empty], k, n_threads)

    def _share_without(self, gone: set[int]) -> float:
        parts = [Shards(self.n_shards, AsIf(part, self.parts)) for part in gone]
        return 1 - sum(int(part.starts(self.n_out)[-1]) for part in parts) / self.n_out

    def computed_fraction(self, k: int, *, exact: bool = False) -> float:
        return 1.0 if exact else 0.5  # a search for more labels may find others among the best
