"""Sign sketches: the packed signs of a random rotation of each neuron, and a factor per neuron.

In a trained layer only the few neurons with large norms are ever the best for an input, because the
inner product of a short vector is small whatever its angle. Only neurons whose norm reaches a floor
have a slot here; a scan does not read the others.
"""
from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import numpy as np

from .._arrays.bfloat16 import to_bfloat16
from .._arrays.linalg import matmul
from .._core import _single_query_search, _sketches
from ._cells import Cells
from ._options import MAX_SKETCH_BITS

if TYPE_CHECKING:
    from .._arrays.types import Floats, Ids
    from ._quantized_rows import QuantizedRows
    from .transforms import Transform


def random_rotation(n_bits: int, n_dims: int, rng: np.random.Generator) -> Floats:
    """Rows of random orthogonal matrices, (n_bits, n_dims): as many matrices as n_bits needs."""
    blocks = []
    for _ in range(-(-n_bits // n_dims)):
        q, r = np.linalg.qr(rng.standard_normal((n_dims, n_dims)))
        blocks.append(q * np.sign(np.diag(r)))  # the signs make the distribution uniform (Haar)
    return np.concatenate(blocks)[:n_bits].astype(np.float32)


class NoSketches:
    """Takes the place of sketches in an index without any; it does nothing and uses no memory."""

    cells = None
    n_bits = n_live = n_probed = nbytes = 0
    norm_floor = 0.0

    def update(self, rows: Ids, V: Floats, n_threads: int) -> None:
        """Do nothing."""

    def remove(self, rows: Ids) -> None:
        """Do nothing."""

    def resize(self, n_neurons: int) -> None:
        """Do nothing."""

    def tensors(self) -> dict[str, np.ndarray]:
        """No arrays."""
        return {}


class Sketches:
    """n_bits signs and a factor per neuron, and the scan over them.

    ``ids[s]`` is the neuron in slot s < n, or -1 in a slot that was freed; ``slot[j]`` is the slot
    of neuron j, or -1. Where there are cells, slots are sorted by the cell of their neuron
    (`sparselsh.index._cells`), so that a scan reads only the cells that are near the query; late
    slots, from ``cell_start[-1]`` on, are read one by one. Which neurons a scan finds depends
    neither on the order of the slots nor on the gaps.
    """

    def __init__(self, n_bits: int, n_neurons: int, n_dims: int, norm_floor: float,
                 rng: np.random.Generator) -> None:
        self.rotation = random_rotation(n_bits, n_dims, rng)
        self.norm_floor = norm_floor
        self.cells: Cells | None = None
        self.n_probed = 0
        self.n = self.n_gone = 0
        self.slot = np.full(n_neurons, -1, np.int32)
        self.blocks = np.empty((0, n_bits // 4 * 16), np.uint8)
        self.factors = np.empty(0, np.float32)
        self.ids, self.cell = np.empty((2, 0), np.int32)
        self.cell_start = np.zeros(1, np.int32)
        self._search: tuple[Any, ...] | None = None  # what `prepared` made, and for which arrays

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_search": None}

    @property
    def n_bits(self) -> int:
        """Bits per sketch."""
        return len(self.rotation)

    @property
    def n_live(self) -> int:
        """Neurons that have a sketch."""
        return self.n - self.n_gone

    @classmethod
    def restored(cls, n_neurons: int, n_dims: int, norm_floor: float,
                 tensors: dict[str, np.ndarray]) -> Self:
        """Sketches from the arrays of a file, checked, because a scan does not check them."""
        rotation, ids = tensors["rotation"], tensors["ids"]
        n_bits, n_blocks = len(rotation), -(-len(ids) // _sketches.NEURONS_PER_BLOCK)
        wanted = {"rotation": (np.float32, (n_bits, n_dims)), "ids": (np.int32, (len(ids),)),
                  "blocks": (np.uint8, (len(tensors["blocks"]), n_bits // 4 * 16)),
                  "factors": (np.float32, (len(tensors["blocks"]) * _sketches.NEURONS_PER_BLOCK,))}
        for name, (dtype, shape) in wanted.items():
            if tensors[name].dtype != dtype or tensors[name].shape != shape:
                raise ValueError(f"{name} must be {np.dtype(dtype)} of shape {shape}, "
                                 f"got {tensors[name].dtype} {tensors[name].shape}")
        for name in ("rotation", "factors"):
            if not np.isfinite(tensors[name]).all():
                raise ValueError(f"{name} must be finite")
        bad_ids = len(ids) and (ids.min() < 0 or ids.max() >= n_neurons
                                or len(np.unique(ids)) != len(ids))
        bad_bits = n_bits % 64 or not 0 < n_bits <= MAX_SKETCH_BITS
        if bad_bits or len(tensors["blocks"]) < n_blocks or bad_ids:
            raise ValueError("its sketches contradict each other")

        sketches = cls(64, n_neurons, n_dims, norm_floor, np.random.default_rng(0))
        sketches.rotation = rotation
        sketches.blocks, sketches.factors = tensors["blocks"], tensors["factors"]
        sketches.n = len(ids)
        sketches.ids = _extended(ids, len(sketches.factors))
        sketches.cell = np.zeros(len(sketches.factors), np.int32)
        sketches.slot[ids] = np.arange(len(ids), dtype=np.int32)

        if "cell_means" in tensors:
            cells = Cells.restored(n_dims, tensors)
            cell = tensors["cell"]
            if cell.dtype != np.int32 or cell.shape != ids.shape or (len(cell) and not (
                    0 <= cell.min() and cell.max() < cells.n)):
                raise ValueError("its cells contradict each other")
            sketches.partition(cells, cell)
        return sketches

    def update(self, rows: Ids, V: Floats, n_threads: int) -> None:
        """Sketch the neurons `rows` (distinct), with vectors V, whose norm reaches the floor."""
        squares = np.einsum("ij,ij->i", V, V)
        long = squares >= self.norm_floor**2
        self.remove(rows[~long])
        rows, V, squares = rows[long], np.ascontiguousarray(V[long]), squares[long]

        # neurons whose cell has changed get a new slot
        cell = np.zeros(len(rows), np.int32)
        if self.cells is not None:
            cell = self.cells.assign(V, n_threads)
        known = self.slot[rows] >= 0
        self.remove(rows[known][self.cell[self.slot[rows[known]]] != cell[known]])

        new = self.slot[rows] < 0
        n = self.n + int(np.count_nonzero(new))
        self._reserve(n)
        self.slot[rows[new]] = np.arange(self.n, n, dtype=np.int32)
        self.ids[self.n:n], self.cell[self.n:n] = rows[new], cell[new]
        self.n = n

        rotated = matmul(V, self.rotation, n_threads, transpose_b=True)
        _sketches.pack(rotated, self.slot[rows], self.blocks)
        sums = np.abs(rotated).sum(axis=1)
        self.factors[self.slot[rows]] = squares / np.maximum(sums, np.float32(1e-30))
        self._tidy()

    def remove(self, rows: Ids) -> None:
        """Free the slots of the neurons `rows`."""
        slots = self.slot[rows]
        slots = slots[slots >= 0]
        self.ids[slots] = -1
        self.slot[rows] = -1
        self.n_gone += len(slots)

    def _tidy(self) -> None:
        """Sort the slots again when more than an eighth of them are gaps or late."""
        late = 0 if self.cells is None else self.n - self.cell_start[-1]
        if self.n_gone + late > max(self.n // 8, 2048):
            self._sort()

    def _sort(self) -> None:
        self._search = None
        live = np.flatnonzero(self.ids[:self.n] >= 0).astype(np.int32)
        live = live[np.lexsort((self.ids[live], self.cell[live]))]

        n_blocks = -(-len(live) // _sketches.NEURONS_PER_BLOCK)
        blocks = np.zeros((n_blocks, self.blocks.shape[1]), np.uint8)
        factors = np.zeros(n_blocks * _sketches.NEURONS_PER_BLOCK, np.float32)
        _sketches.copy_slots(live, np.arange(len(live), dtype=np.int32), self.blocks, self.factors,
                             blocks, factors)

        ids, cell = self.ids[live], self.cell[live]
        self.n, self.n_gone = len(live), 0
        self.blocks, self.factors = blocks, factors
        self.ids, self.cell = _extended(ids, len(factors)), _extended(cell, len(factors))
        self.slot[ids] = np.arange(self.n, dtype=np.int32)
        if self.cells is not None:
            self.cell_start = np.searchsorted(cell, np.arange(self.cells.n + 1)).astype(np.int32)

    def partition(self, cells: Cells, cell: Ids) -> None:
        """Sort the slots into cells; cell[s] is the cell of the neuron in slot s."""
        self.cells, self.n_probed = cells, cells.n
        self.cell[:self.n] = cell
        self._sort()

    def resize(self, n_neurons: int) -> None:
        """Make room for more neurons, which have no sketch yet."""
        new = np.full(n_neurons - len(self.slot), -1, np.int32)
        self.slot = np.concatenate([self.slot, new])

    def _reserve(self, n: int) -> None:
        n_blocks = -(-n // _sketches.NEURONS_PER_BLOCK)
        if n_blocks > len(self.blocks):
            self._search = None
            n_blocks = n_blocks if not len(self.blocks) else n_blocks + n_blocks // 8
            size = n_blocks * _sketches.NEURONS_PER_BLOCK
            self.blocks = _extended(self.blocks, n_blocks)
            self.factors = _extended(self.factors, size)
            self.ids, self.cell = _extended(self.ids, size), _extended(self.cell, size)

    def prepare(self, transform: Transform) -> Self:
        """Store the matrix that maps an input to its rotated query and the scores of the cells.

        It is in bfloat16: a sum whose terms are off by 2^-9 ranks as well, and a single query reads
        half as many bytes.
        """
        self._search = None
        rows = self.rotation
        if self.cells is not None:
            rows = np.concatenate([self.rotation, self.cells.means])
        back = transform.query_map_
        rows = rows if back is None else matmul(rows, back, 1)
        self._query_rows: np.ndarray = to_bfloat16(rows[:, :-1])
        self._query_constant = np.ascontiguousarray(rows[:, -1])
        return self

    def _rotated(self, X: Floats, n_threads: int, with_cells: bool) -> Floats:
        n_rows = len(self._query_rows) if with_cells else len(self.rotation)
        return matmul(X, self._query_rows[:n_rows], n_threads, transpose_b=True,
                      bias=self._query_constant[:n_rows])

    def scan(self, X: Floats, n_best: int, n_threads: int) -> Ids:
        """Ids (n, n_best) of the neurons with the best estimates for each input; -1 for none.

        They are in no particular order, and come from the `n_probed` cells nearest to the input.
        """
        ids = np.empty((len(X), n_best), np.int32)
        if self.cells is None or self.n_probed >= self.cells.n:
            scores = np.empty((len(X), n_best), np.float32)
            rotated = self._rotated(X, n_threads, False)
            _sketches.scan(rotated, self.blocks, self.factors, self.ids, self.n, ids, scores,
                           n_threads)
        else:
            both = self._rotated(X, n_threads, True)
            n_bits = len(self.rotation)
            rotated = np.ascontiguousarray(both[:, :n_bits])
            cells = np.ascontiguousarray(both[:, n_bits:])
            _sketches.scan_cells(rotated, cells, self.n_probed, self.cell_start, self.cell,
                                 self.blocks, self.factors, self.ids, self.n, ids, n_threads)
        return ids

    def prepared(self, W: Floats, bias: Floats, rows: QuantizedRows | None, n_exact: int,
                 n_best: int) -> Any:
        """A search for single queries, of which the `n_best` best estimates are scored.

        None unless the plan is to probe some of the cells. With `rows`, the weights in fewer bits,
        these score first, and W scores the best `n_exact`. The search is rebuilt when one of the
        arrays has been replaced: call this for each query, under the lock of the index.
        """
        if self.cells is None or self.n_probed >= self.cells.n:
            return None
        wanted = self.n_probed, n_best, n_exact, self.n
        made = self._search
        if (made is None or made[1] != wanted or made[2] is not W or made[3] is not bias
                or made[4] is not rows):
            coarse, scales = (None, None) if rows is None else (rows.values, rows.scales)
            search = _single_query_search.prepare(
                self._query_rows, self._query_constant, len(self.rotation), self.n_probed,
                self.cell_start, self.cell, self.blocks, self.factors, self.ids, self.n, W, bias,
                coarse, scales, n_exact, n_best)
            made = self._search = search, wanted, W, bias, rows
        return made[0]

    def rank(self, X: Floats, candidates: Ids, n_best: int, n_threads: int) -> Ids:
        """Ids (n, n_best) of the candidates (n, m) with the best estimates, in no order."""
        ids = np.empty((len(X), n_best), np.int32)
        rotated = self._rotated(X, n_threads, False)
        _sketches.rank(rotated, candidates, self.blocks, self.factors, self.slot, ids, n_threads)
        return ids

    def tensors(self) -> dict[str, np.ndarray]:
        """The arrays of a file."""
        if self.n_gone:
            self._sort()
        n_blocks = -(-self.n // _sketches.NEURONS_PER_BLOCK)
        out: dict[str, np.ndarray] = {
            "rotation": self.rotation, "blocks": self.blocks[:n_blocks],
            "factors": self.factors[:n_blocks * _sketches.NEURONS_PER_BLOCK],
            "ids": self.ids[:self.n]}
        if self.cells is not None:
            out |= {"cell_centroids": self.cells.centroids, "cell_means": self.cells.means,
                    "cell": self.cell[:self.n]}
        return out

    @property
    def nbytes(self) -> int:
        """Bytes of sketches, factors, cells, and the maps between slots and neurons."""
        return sum(a.nbytes for a in (self.blocks, self.factors, self.ids, self.cell, self.slot))


def _extended(array: np.ndarray, n: int) -> np.ndarray:
    out = np.zeros((n, *array.shape[1:]), array.dtype)
    out[:len(array)] = array
    return out
