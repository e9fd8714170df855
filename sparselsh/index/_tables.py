"""Hash tables over the neurons: a hash family and its buckets."""
from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np

from .._core import _buckets

if TYPE_CHECKING:
    from .._arrays.types import Floats, HashFamily, Ids

BUCKETS = ("ids", "start", "count", "room", "tail")

BUCKET_BYTES = 22  # start, count and room; with slack also the places of an empty bucket in `ids`
MUCH = 2**28  # bytes
USEFUL = 64  # buckets a neuron: more are nearly all empty


class NoTables:
    """In the place of tables in an index without any: follows no change, takes no memory."""

    family = None
    nbytes = 0

    def serves(self, *wanted: Any) -> bool:
        """Whether these tables can be filled anew."""
        return False

    def update(self, rows: Ids, V: Floats, n_threads: int) -> None:
        """Do nothing."""

    def remove(self, rows: Ids, n_threads: int) -> None:
        """Do nothing."""

    def resize(self, n_neurons: int, n_threads: int) -> None:
        """Do nothing."""


class Tables:
    """Who shares buckets with whom. `slack` leaves room for neurons to move; `seed` draws the hash functions."""

    def __init__(self, family: HashFamily, n_neurons: int, n_dims: int, slack: bool, seed: int) -> None:
        self.family = copy.copy(family).fit(n_dims, seed)  # one family may serve several indexes
        self.slack = slack
        self._drawn = n_dims, seed
        n_bytes = family.tables * family.n_buckets * BUCKET_BYTES
        if n_bytes > MUCH and family.n_buckets > USEFUL * n_neurons:  # a number in a file may ask for it
            raise ValueError(f"family {family!r} has {family.n_buckets} buckets a table for {n_neurons} neurons, which "
                             f"would take up to {n_bytes >> 20} MB; give one with fewer buckets")
        self.codes = np.full((n_neurons, family.tables), -1, np.int32)
        self._allocate()

    def serves(self, family: HashFamily, n_neurons: int, n_dims: int, slack: bool, seed: int) -> bool:
        """Whether these tables can be filled anew where others were asked for: new memory is paid for page by page."""
        own = self.family
        return (type(own) is type(family) and own.config() == family.config() and len(self.codes) == n_neurons
                and self.slack == slack and self._drawn == (n_dims, seed))

    def _allocate(self) -> None:
        n, n_tables = self.codes.shape
        n_buckets = self.family.n_buckets
        self.ids = np.empty((n_tables, _buckets.capacity(n, n_buckets, self.slack)), np.int32)
        self.start, self.count, self.room = (np.zeros((n_tables, n_buckets), np.int32) for _ in range(3))
        self.tail = np.zeros(n_tables, np.int32)
        self._seen = np.zeros((0, n), np.uint8)
        self._keys = np.empty((0, n), np.uint64)

    def encode(self, start: int, V: Floats, n_threads: int) -> None:
        """Take the codes of neurons start .. start + n, V being n rows; `build` sorts them in."""
        self.codes[start:start + V.shape[0]] = self.family.hash(V, n_threads=n_threads)

    def build(self, n_threads: int) -> None:
        """Sort all neurons into the tables."""
        _buckets.build(self.codes, self.slack, self.ids, self.start, self.count, self.room, self.tail, n_threads)

    def update(self, rows: Ids, V: Floats, n_threads: int) -> None:
        """Move the neurons `rows`, whose vectors now are V."""
        self._move(rows, self.family.hash(V, n_threads=n_threads), n_threads)

    def remove(self, rows: Ids, n_threads: int) -> None:
        """Take the neurons `rows` out of all tables."""
        self._move(rows, np.full((len(rows), self.family.tables), -1, np.int32), n_threads)

    def _move(self, rows: Ids, codes: Ids, n_threads: int) -> None:
        if self.slack:
            _buckets.move(rows, codes, self.codes, self.ids, self.start, self.count, self.room, self.tail, n_threads)
        else:
            self.codes[rows] = codes
            self.build(n_threads)

    def resize(self, n_neurons: int, n_threads: int) -> None:
        """Make room for more neurons, which are in no table yet."""
        new = np.full((n_neurons - len(self.codes), self.family.tables), -1, np.int32)
        self.codes = np.concatenate([self.codes, new])
        self._allocate()
        self.build(n_threads)

    def restore(self, codes: Ids, n_threads: int) -> None:
        """Take codes from a file."""
        if codes.shape != self.codes.shape or codes.dtype != np.int32:
            raise ValueError(f"codes must be int32 of shape {self.codes.shape}, got {codes.dtype} {codes.shape}")
        if codes.size and not (-1 <= codes.min() and codes.max() < self.family.n_buckets):
            raise ValueError(f"codes must lie in -1..{self.family.n_buckets - 1}")
        self.codes = np.ascontiguousarray(codes)
        self.build(n_threads)

    def insert(self, Q: Floats, samples: Ids, neurons: Ids, n_threads: int) -> None:
        """Add neurons[k] to the buckets of Q[samples[k]] in all tables, beside that of its own code.

        A table that has no room left is given half as much again. `build` forgets what was added.
        """
        codes = self.family.hash(Q, n_threads=n_threads)
        full = np.empty(len(self.ids), np.uint8)
        while len(samples):
            _buckets.insert(codes, samples, neurons, self.ids, self.start, self.count, self.room, self.tail, full,
                            n_threads)
            if not full.any():
                return
            spare = np.empty((len(self.ids), self.ids.shape[1] // 2 + 64), np.int32)
            self.ids = np.concatenate([self.ids, spare], axis=1)

    def tensors(self) -> dict[str, np.ndarray]:
        """The buckets as they are: neurons that moved stand in another order than after `build`."""
        return {f"bucket_{name}": getattr(self, name) for name in BUCKETS}

    def restore_buckets(self, tensors: dict[str, np.ndarray]) -> None:
        """Take what `tensors` gave, once the codes are restored. Moves trust it, so all of it is checked."""
        arrays = {name: tensors[f"bucket_{name}"] for name in BUCKETS}
        for name, a in arrays.items():
            wanted = getattr(self, name).shape
            grown = name == "ids" and a.ndim == 2 and len(a) == wanted[0] and a.shape[1] > wanted[1]  # by `insert`
            if (a.shape != wanted and not grown) or a.dtype != np.int32:
                raise ValueError(f"bucket_{name} must be int32 of shape {wanted}, got {a.dtype} {a.shape}")
        for t, (ids, start, count, room) in enumerate(zip(*(arrays[name] for name in BUCKETS[:4]), strict=True)):
            codes, tail = self.codes[:, t], arrays["tail"][t]
            if min(start.min(), count.min(), room.min()) < 0 or (count > room).any():
                raise ValueError(f"the buckets of table {t} have impossible sizes")
            used = np.flatnonzero(room)  # in the order of their places no bucket may reach into the next
            used = used[np.argsort(start[used], kind="stable")]
            ends = start[used].astype(np.int64) + room[used]
            if not 0 <= tail <= len(ids) or (ends[:-1] > start[used][1:]).any() or (len(ends) and ends[-1] > tail):
                raise ValueError(f"the buckets of table {t} overlap")
            bucket = np.repeat(np.arange(len(count)), count)
            within = np.arange(len(bucket)) - np.repeat(np.cumsum(count) - count, count)
            found = ids[start[bucket] + within]
            if len(found) and not 0 <= found.min() <= found.max() < len(codes):
                raise ValueError(f"the buckets of table {t} hold neurons that do not exist")
            # each neuron in the bucket of its code, and in another if it was inserted there; in none twice
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
            self._seen = np.zeros((n_threads, self._seen.shape[1]), np.uint8)
            self._keys = np.empty((n_threads, self._keys.shape[1]), np.uint64)
        return self._seen, self._keys

    def collide(self, Q: Floats, n_best: int, min_count: int, n_threads: int, n_probes: int = 1) -> tuple[Ids, Ids]:
        """Ids and numbers of tables of the n_best neurons for each query: (n, n_best) each.

        A neuron counts once for each table in which it is in one of the `n_probes` buckets probed.
        """
        codes = self.family.probe(Q, n_probes, n_threads=n_threads)
        ids, counts = np.empty((2, Q.shape[0], n_best), np.int32)
        _buckets.collide(codes, self.ids, self.start, self.count, min_count, *self._scratch(n_threads), ids, counts,
                         n_threads)
        return ids, counts

    def draw(self, Q: Floats, n_wanted: int, seed: int, n_threads: int, n_probes: int = 1) -> Ids:
        """Ids (n, n_wanted) of the neurons in whole buckets, of tables in random order, until there are enough."""
        codes = self.family.probe(Q, n_probes, n_threads=n_threads)
        ids = np.empty((Q.shape[0], n_wanted), np.int32)
        order = np.empty((n_threads, self.family.tables), np.int32)
        _buckets.draw(codes, self.ids, self.start, self.count, seed, *self._scratch(n_threads), order, ids, n_threads)
        return ids

    @property
    def nbytes(self) -> int:
        """Bytes of codes and buckets."""
        return sum(a.nbytes for a in (self.codes, self.ids, self.start, self.count, self.room, self.tail))
