"""Shards: which labels and hidden units a process owns, and sums whose order knows no process.

A network has S shards, whatever the number P of processes; a process owns S / P neighbouring ones.
Label l belongs to shard ``l mod S``, and is row ``l div S`` of it; hidden units are cut into S
neighbouring blocks. Sums over shards follow one binary tree over neighbours: a process adds its
subtree, the receivers go on along the same tree, and the sum has the same bits for any P.
"""
from __future__ import annotations

import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from .. import _validation as check
from ._groups import Lost, as_bytes, host

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from .._arrays.types import Floats, Ids, Offsets
    from ._groups import Group

T = TypeVar("T")
OWNERS_MIN_PROCESSES = 16  # from here on samples are joined by owners: see `Shards.by_owners`
STOP, SAVE = 1, 2  # flags: end after this step, write a checkpoint after it


class DistributedError(RuntimeError):
    """A process was lost, or the processes do not agree; no step has happened in part.

    The others stop where they are. Start all processes again, in the same number or in another, and
    continue from the last checkpoint.

    Attributes
    ----------
    ranks : list of int
        The processes that were lost or that differ; empty where it is not known.
    """

    def __init__(self, message: str, ranks: Sequence[int] = ()) -> None:
        super().__init__(message)
        self.ranks = list(ranks)


class DistributedOSError(DistributedError, OSError):
    """Another process could not read or write: what handles an OSError handles it everywhere."""


class Shards:
    """The shards of a network, and the part of them that this process owns.

    Parameters
    ----------
    n : int
        S, a power of two.
    group : Group

    Attributes
    ----------
    first, last : int
        Own shards: first, first + 1, ... last - 1.
    step : int
        Number of the step that runs, for messages.
    checkpoint : str or None
        Where the last checkpoint is, for messages.
    written : dict of str to str
        The token of the set that this network has written or read last, by folder.
    """

    def __init__(self, n: int, group: Group) -> None:
        self.n = check.integer(n, "shards", minimum=1)
        if self.n & (self.n - 1):
            raise ValueError(f"shards must be a power of two, got {n}")
        if group.size > self.n or self.n % group.size:
            able = ", ".join(str(2**k) for k in range(self.n.bit_length()))
            raise ValueError(f"{self.n} shards can be run by {able} processes, got {group.size}; "
                             "start another number of them, or make the network with more shards")
        self.group = group
        self.n_own = self.n // group.size
        self.first = group.rank * self.n_own
        self.last = self.first + self.n_own
        self.step = 0
        self.checkpoint: str | None = None
        self.written: dict[str, str] = {}
        self.hosts: list[str] = []
        self._flags: list[Callable[[], int]] = []
        self.flags = 0  # that the last exchange has brought, of any process

    # -- who owns what ------------------------------------------------------------------------

    def columns(self, n_hidden: int, shard: int) -> int:
        """The first hidden unit of a shard."""
        return shard * n_hidden // self.n

    def own_columns(self, n_hidden: int) -> slice:
        """The hidden units of this process."""
        return slice(self.columns(n_hidden, self.first), self.columns(n_hidden, self.last))

    def n_rows(self, n_labels: int, shard: int) -> int:
        """Number of labels of a shard."""
        return (n_labels - shard + self.n - 1) // self.n

    def starts(self, n_labels: int) -> Offsets:
        """Where the rows of each own shard begin among the own rows, and where the last ends."""
        sizes = [self.n_rows(n_labels, s) for s in range(self.first, self.last)]
        return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)

    def labels(self, n_labels: int) -> Ids:
        """The label of each own row."""
        return np.concatenate([np.arange(s, n_labels, self.n, dtype=np.int32)
                               for s in range(self.first, self.last)])

    def owns(self, labels: Ids) -> np.ndarray:
        """Which of these labels this process owns."""
        shard = labels & np.int32(self.n - 1)
        return (shard >= self.first) & (shard < self.last)

    def rows(self, labels: Ids, starts: Offsets) -> Ids:
        """The own rows of labels that this process owns."""
        shard = (labels & np.int32(self.n - 1)) - self.first
        return (starts[shard] + (labels >> np.int32(self.n.bit_length() - 1))).astype(np.int32)

    # -- exchanges ----------------------------------------------------------------------------

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except Lost as lost:
            raise self._error(lost) from lost

    def _error(self, lost: Lost) -> DistributedError:
        names = [f"{rank} ({self.hosts[rank]})" if rank < len(self.hosts) else str(rank)
                 for rank in lost.ranks]
        size = self.group.size
        who = (f"process {', '.join(names)} of {size} was lost" if len(names) == 1 else
               f"processes {', '.join(names)} of {size} were lost" if names else
               f"one of {size} processes was lost")
        remedy = ("start all again and resume from the last checkpoint" if self.checkpoint is None
                  else f"start all again and resume from {self.checkpoint}")
        return DistributedError(f"{who} in step {self.step + 1} ({lost.what}); {remedy}",
                                lost.ranks)

    def exchange(self, blocks: np.ndarray) -> np.ndarray:
        """See :class:`Group`; DistributedError if a process is lost."""
        if self.group.size == 1:
            return blocks
        with self._named():
            return self.group.exchange(blocks)

    def exchange_bytes(self, blocks: Sequence[np.ndarray]) -> list[np.ndarray]:
        """See :class:`Group`; DistributedError if a process is lost."""
        if self.group.size == 1:
            return list(blocks)
        with self._named():
            return self.group.exchange_bytes(blocks)

    def gather(self, block: np.ndarray) -> np.ndarray:
        """The blocks of all processes, (P, ...)."""
        if self.group.size == 1:
            return block[None]
        return self.exchange(np.broadcast_to(block, (self.group.size, *block.shape)))

    def by_owners(self, own: np.ndarray, join: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """``join`` of what all processes have of each sample: (P, n, ...) to (n, ...).

        Few processes send each other all samples and join them all. Among many each joins some
        samples and sends what comes out, so that nothing grows with their number.
        """
        size = self.group.size
        if size < OWNERS_MIN_PROCESSES:
            return join(self.gather(own))
        n_each = -(-len(own) // size)
        blocks = np.zeros((size * n_each, *own.shape[1:]), own.dtype)
        blocks[:len(own)] = own
        joined = join(self.exchange(blocks.reshape(size, n_each, *own.shape[1:])))
        parts = self.gather(joined)
        return np.ascontiguousarray(parts.reshape(size * n_each, *parts.shape[2:])[:len(own)])

    def gather_topk(self, ids: Ids, scores: Floats) -> list[tuple[Ids, Floats]]:
        """What all processes have found for the same rows: ids and scores, (n, k) each."""
        both = self.gather(np.stack([ids, scores.view(np.int32)]))
        return [(part[0], part[1].view(np.float32)) for part in both]

    def gather_arrays(self, own: Sequence[np.ndarray]) -> list[list[np.ndarray]]:
        """Arrays of all processes, of shapes that may differ."""
        parts = []
        for array in own:
            array = np.ascontiguousarray(array)
            shapes = self.gather_json(list(array.shape))
            found = self.exchange_bytes([array.reshape(-1).view(np.uint8)] * self.group.size)
            parts.append([part.view(array.dtype).reshape(shape)
                          for part, shape in zip(found, shapes, strict=True)])
        return [list(arrays) for arrays in zip(*parts, strict=True)]

    def gather_bytes(self, value: bytes) -> list[bytes]:
        """The bytes of all processes."""
        return [part.tobytes() for part in self.exchange_bytes([as_bytes(value)]
                                                               * self.group.size)]

    def gather_json(self, value: Any) -> list[Any]:
        """The plain values of all processes."""
        return [json.loads(text) for text in self.gather_bytes(json.dumps(value).encode())]

    def agree(self, value: float) -> float:
        """The largest of the values of all processes."""
        return float(self.gather(np.array([value], np.float64)).max())

    def from_first(self, value: Any) -> Any:
        """The plain value of process 0."""
        return value if self.group.size == 1 else self.gather_json(value)[0]

    @contextmanager
    def together(self, what: str) -> Iterator[None]:
        """Context in which an error of one process becomes one of all, at its end.

        The process that has the error raises it, the others a DistributedError that names it.
        Nothing within the block may wait for other processes.
        """
        error: BaseException | None = None
        try:
            yield
        except Exception as raised:
            error = raised
        text = "" if error is None else f"{type(error).__name__}: {error}"
        found = [text, isinstance(error, OSError)]
        answers = [found] if self.group.size == 1 else self.gather_json(found)
        if error is not None:
            raise error
        failed = [rank for rank, (text, _) in enumerate(answers) if text]
        if failed:
            text, is_of_system = answers[failed[0]]
            kind = DistributedOSError if is_of_system else DistributedError
            raise kind(f"process {failed[0]} of {self.group.size} could not {what}: {text}", failed)

    def greet(self, facts: dict[str, Any]) -> None:
        """Compare what must be alike in all processes; DistributedError names those that differ."""
        if self.group.size == 1:
            return
        answers = self.gather_json({"host": host(), "facts": facts})
        self.hosts = [answer["host"] for answer in answers]
        for name in facts:
            values = [answer["facts"].get(name) for answer in answers]
            other = [rank for rank, value in enumerate(values) if value != values[0]]
            if other:
                raise DistributedError(
                    f"{name} must be the same in all processes, got {values[0]!r} in process 0 "
                    f"({self.hosts[0]}) and {values[other[0]]!r} in process {other[0]} "
                    f"({self.hosts[other[0]]})", other)

    # -- sums along the tree ------------------------------------------------------------------

    def tree(self, parts: Sequence[T], join: Callable[[T, T], T]) -> T:
        """The parts joined by neighbours, their results by neighbours, and so on."""
        while len(parts) > 1:
            parts = [join(parts[i], parts[i + 1]) for i in range(0, len(parts), 2)]
        return parts[0]

    def total(self, own: Sequence[np.ndarray]) -> np.ndarray:
        """The sum of an array per shard over all shards, of which `own` are those of this one."""
        return self.tree(list(self.gather(self.tree(own, np.add))), np.add)

    def total_of_columns(self, own: Sequence[Floats]) -> Floats:
        """`total` of arrays (n, n_hidden); of the sum the columns of this process, (n, width)."""
        part = self.tree(own, np.add)
        if self.group.size == 1:
            return part
        n, n_hidden = part.shape
        even = n_hidden % self.group.size == 0  # else some blocks have columns that none reads
        shape = self.group.size, n, self._widest(n_hidden)
        blocks = np.empty(shape, np.float32) if even else np.zeros(shape, np.float32)
        for rank, block in enumerate(blocks):
            columns = self._columns_of(n_hidden, rank)
            block[:, :columns.stop - columns.start] = part[:, columns]
        columns = self.own_columns(n_hidden)
        parts = self.exchange(blocks)[:, :, :columns.stop - columns.start]
        return np.ascontiguousarray(self.tree(list(parts), np.add))

    def whole_of_columns(self, own: Floats, n_hidden: int) -> Floats:
        """The columns of all processes, (n, n_hidden), from those of this one."""
        if self.group.size == 1:
            return own
        block = own
        if n_hidden % self.group.size:
            block = np.zeros((len(own), self._widest(n_hidden)), np.float32)
            block[:, :own.shape[1]] = own
        parts = self.gather(block)
        out = np.empty((len(own), n_hidden), np.float32)
        for rank, part in enumerate(parts):
            columns = self._columns_of(n_hidden, rank)
            out[:, columns] = part[:, :columns.stop - columns.start]
        return out

    def _columns_of(self, n_hidden: int, rank: int) -> slice:
        return slice(self.columns(n_hidden, rank * self.n_own),
                     self.columns(n_hidden, (rank + 1) * self.n_own))

    def _widest(self, n_hidden: int) -> int:
        return max(columns.stop - columns.start for columns in
                   (self._columns_of(n_hidden, rank) for rank in range(self.group.size)))

    # -- flags --------------------------------------------------------------------------------

    @contextmanager
    def flagging(self, *sources: Callable[[], int]) -> Iterator[None]:
        """Context in which each step carries the flags of these sources to all processes."""
        before, self._flags, self.flags = self._flags, [*self._flags, *sources], 0
        try:
            yield
        finally:
            self._flags = before

    def raised(self) -> int:
        """The flags of this process."""
        flags = 0
        for source in self._flags:
            flags |= source()
        return flags
