"""Hash tables over the neurons: a hash family and its buckets."""
from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np

from .._core import _buckets
from ..hashing import checked_codes

if TYPE_CHECKING:
    from collections.abc import Callable

    from .._arrays.types import Floats, Ids
    from ..protocols import HashFamily

BUCKET_ARRAYS = ("ids", "start", "count", "room", "tail")
BYTES_PER_BUCKET = 22  # start, count and room; with slack also an empty bucket's room in `ids`
MAX_SPARSE_TABLE_BYTES = 2**28  # of tables with more than
MAX_BUCKETS_PER_NEURON = 64  # beyond it nearly all buckets are empty


def nothing() -> None:
    """Do nothing."""


class NoTables:
    """Takes the place of tables in an index without any; it does nothing and uses no memory."""

    family = None
    nbytes = 0

    def serves(self, *wanted: Any) -> bool:
        """Whether these tables can be filled again."""
        return False

    def update(self, rows: Ids, V: Floats, n_threads: int) -> None:
        """Do nothing."""

    def remove(self, rows: Ids, n_threads: int) -> None:
        """Do nothing."""

    def resize(self, n_neurons: int, n_threads: int) -> None:
        """Do nothing."""

    def snapshot(self, rows: Ids) -> Callable[[], None]:
        """A function that does nothing."""
        return nothing


class Tables:
    """The codes of the neurons and their buckets.

    `slack` leaves room for neurons to move; `seed` draws the hash functions.
    """

    def __init__(self, family: HashFamily, n_neurons: int, n_dims: int, slack: bool,
                 seed: int) -> None:
        self.family = copy.copy(family).fit(n_dims, seed)  # indexes may share a family
        self.slack = slack
        self._drawn = n_dims, seed

        # a damaged file may hold any number of buckets
        n_bytes = family.tables * family.n_buckets * BYTES_PER_BUCKET
        is_sparse = family.n_buckets > MAX_BUCKETS_PER_NEURON * n_neurons
        if n_bytes > MAX_SPARSE_TABLE_BYTES and is_sparse:
            raise ValueError(f"family {family!r} has {family.n_buckets} buckets per table for "
                             f"{n_neurons} neurons, which would take up to {n_bytes >> 20} MB; "
                             "give one with fewer buckets")
        self.codes = np.full((n_neurons, family.tables), -1, np.int32)
        self._allocate()

    def serves(self, family: HashFamily, n_neurons: int, n_dims: int, slack: bool,
               seed: int) -> bool:
        """Whether these tables can be filled again in place of new ones with these arguments.

        New memory costs a page fault per page.
        """
        own = self.family
        return (type(own) is type(family) and own.config() == family.config()
                and getattr(own, "in_bfloat16", None) == getattr(family, "in_bfloat16", None)
                and len(self.codes) == n_neurons
                and self.slack == slack and self._drawn == (n_dims, seed))

    def _allocate(self) -> None:
        n, n_tables = self.codes.shape
        n_buckets = self.family.n_buckets
        self.ids = np.empty((n_tables, _buckets.capacity(n, n_buckets, self.slack)), np.int32)
        self.start, self.count, self.room = (np.zeros((n_tables, n_buckets), np.int32)
                                             for _ in range(3))
        self.tail = np.zeros(n_tables, np.int32)
        self._seen = np.zeros((0, n), np.uint8)
        self._keys = np.empty((0, n), np.uint64)

    def hash(self, V: Floats, n_threads: int) -> Ids:
        """Buckets (n, tables) of the rows of V."""
        codes = self.family.hash(V, n_threads=n_threads)
        return checked_codes(self.family, codes, (V.shape[0], self.family.tables), "hash")

    def _probed(self, Q: Floats, n_probes: int, n_threads: int) -> Ids:
        codes = self.family.probe(Q, n_probes, n_threads=n_threads)
        return checked_codes(self.family, codes, (Q.shape[0], self.family.tables, n_probes),
                             "probe")

    def encode(self, start: int, V: Floats, n_threads: int) -> None:
        """Hash the neurons start .. start + n, whose vectors are the n rows of V; see `build`."""
        self.codes[start:start + V.shape[0]] = self.hash(V, n_threads)

    def build(self, n_threads: int) -> None:
        """Sort all neurons into the tables."""
        _buckets.build(self.codes, self.slack, self.ids, self.start, self.count, self.room,
                       self.tail, n_threads)

    def update(self, rows: Ids, V: Floats, n_threads: int) -> None:
        """Move the neurons `rows`, whose vectors now are V."""
        self._move(rows, self.hash(V, n_threads), n_threads)

    def remove(self, rows: Ids, n_threads: int) -> None:
        """Take the neurons `rows` out of all tables."""
        self._move(rows, np.full((len(rows), self.family.tables), -1, np.int32), n_threads)

    def _move(self, rows: Ids, codes: Ids, n_threads: int) -> None:
        if self.slack:
            _buckets.move(rows, codes, self.codes, self.ids, self.start, self.count, self.room,
                          self.tail, n_threads)
        else:
            self.codes[rows] = codes
            self.build(n_threads)

    def resize(self, n_neurons: int, n_threads: int) -> None:
        """Make room for more neurons, which are in no table yet."""
        new = np.full((n_neurons - len(self.codes), self.family.tables), -1, np.int32)
        self.codes = np.concatenate([self.codes, new])
        self._allocate()
        self.build(n_threads)

    def snapshot(self, rows: Ids) -> Callable[[], None]:
        """A function that undoes later changes of the neurons `rows`."""
        attributes = self.__dict__.copy()
        rows = rows[rows < len(self.codes)]
        codes = self.codes[rows]

        def undo() -> None:
            self.__dict__.update(attributes)
            self.codes[rows] = codes
            self.build(1)  # buckets may be half changed

        return undo

    def restore(self, codes: Ids, n_threads: int) -> None:
        """Take codes from a file; they are checked."""
        if codes.shape != self.codes.shape or codes.dtype != np.int32:
            raise ValueError(f"codes must be int32 of shape {self.codes.shape}, "
                             f"got {codes.dtype} {codes.shape}")
        if codes.size and not (-1 <= codes.min() and codes.max() < self.family.n_buckets):
            raise ValueError(f"codes must lie in -1..{self.family.n_buckets - 1}")
        self.codes = np.ascontiguousarray(codes)
        self.build(n_threads)

    def insert(self, Q: Floats, samples: Ids, neurons: Ids, n_threads: int) -> None:
        """Add neurons[k] to the buckets of Q[samples[k]] in all tables.

        They stay in the buckets of their own codes. When a table is full, all get half as much room
        again. `build` discards these additions.
        """
        codes = self.hash(Q, n_threads)
        full = np.empty(len(self.ids), np.uint8)
        while len(samples):
            _buckets.insert(codes, samples, neurons, self.ids, self.start, self.count, self.room,
                            self.tail, full, n_threads)
            if not full.any():
                return
            spare = np.empty((len(self.ids), self.ids.shape[1] // 2 + 64), np.int32)
            self.ids = np.concatenate([self.ids, spare], axis=1)

    def tensors(self) -> dict[str, np.ndarray]:
        """The buckets as they are: neurons that moved are in another order than after `build`."""
        return {f"bucket_{name}": getattr(self, name) for name in BUCKET_ARRAYS}

    def restore_buckets(self, tensors: dict[str, np.ndarray]) -> None:
        """Take what `tensors` gave, after `restore`; all of it is checked, as moves do not."""
        arrays = {name: tensors[f"bucket_{name}"] for name in BUCKET_ARRAYS}
        for name, a in arrays.items():
            wanted = getattr(self, name).shape
            grown = (name == "ids" and a.ndim == 2 and len(a) == wanted[0]
                     and a.shape[1] > wanted[1])  # by `insert`
            if (a.shape != wanted and not grown) or a.dtype != np.int32:
                raise ValueError(f"bucket_{name} must be int32 of shape {wanted}, "
                                 f"got {a.dtype} {a.shape}")

        per_table = zip(*(arrays[name] for name in BUCKET_ARRAYS[:4]), strict=True)
        for t, (ids, start, count, room) in enumerate(per_table):
            codes, tail = self.codes[:, t], arrays["tail"][t]
            if min(start.min(), count.min(), room.min()) < 0 or (count > room).any():
                raise ValueError(f"the buckets of table {t} have impossible sizes")

            # in the order of their starts, no bucket may reach into the next
            used = np.flatnonzero(room)
            used = used[np.argsort(start[used], kind="stable")]
            ends = start[used].astype(np.int64) + room[used]
            if (not 0 <= tail <= len(ids) or (ends[:-1] > start[used][1:]).any()
                    or (len(ends) and ends[-1] > tail)):
                raise ValueError(f"the buckets of table {t} overlap")

            bucket = np.repeat(np.arange(len(count)), count)
            within = np.arange(len(bucket)) - np.repeat(np.cumsum(count) - count, count)
            found = ids[start[bucket] + within]
            if len(found) and not 0 <= found.min() <= found.max() < len(codes):
                raise ValueError(f"the buckets of table {t} hold neurons that do not exist")

            # a neuron is in the bucket of its code, and in others if inserted there; in none twice
            coded = np.flatnonzero(codes >= 0)
            pairs = bucket * len(codes) + found
            own = codes[coded] * np.int64(len(codes)) + coded
            if len(np.unique(pairs)) != len(pairs) or not np.isin(own, pairs).all():
                raise ValueError(f"the buckets of table {t} contradict the codes")

        for name, a in arrays.items():
            setattr(self, name, np.array(a, order="C"))

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_seen": self._seen[:0], "_keys": self._keys[:0]}  # scratch memory

    def _scratch(self, n_threads: int) -> tuple[np.ndarray, np.ndarray]:
        if len(self._seen) < n_threads:
            seen = np.zeros((n_threads, self._seen.shape[1]), np.uint8)
            # both or none: a kernel trusts that they have as many rows
            self._keys = np.empty((n_threads, self._keys.shape[1]), np.uint64)
            self._seen = seen
        return self._seen, self._keys

    def collide(self, Q: Floats, n_best: int, min_count: int, n_threads: int,
                n_probes: int = 1, names: Ids | None = None) -> tuple[Ids, Ids]:
        """The n_best neurons per query and the numbers of tables that found them, (n, n_best) each.

        A neuron counts once per table in which it is in one of the `n_probes` buckets probed.
        `names` are ids in place of the numbers of the neurons.
        """
        codes = self._probed(Q, n_probes, n_threads)
        ids, counts = np.empty((2, Q.shape[0], n_best), np.int32)
        _buckets.collide(codes, self.ids, self.start, self.count, min_count, names,
                         *self._scratch(n_threads), ids, counts, n_threads)
        return ids, counts

    def draw(self, Q: Floats, n_wanted: int, seed: int, n_threads: int, n_probes: int = 1) -> Ids:
        """Ids (n, n_wanted) of the neurons in whole buckets of tables in random order."""
        codes = self._probed(Q, n_probes, n_threads)
        ids = np.empty((Q.shape[0], n_wanted), np.int32)
        order = np.empty((n_threads, self.family.tables), np.int32)
        _buckets.draw(codes, self.ids, self.start, self.count, seed, *self._scratch(n_threads),
                      order, ids, n_threads)
        return ids

    @property
    def nbytes(self) -> int:
        """Bytes of codes and buckets."""
        arrays = (self.codes, self.ids, self.start, self.count, self.room, self.tail)
        return sum(a.nbytes for a in arrays)
