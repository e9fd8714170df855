"""Sign sketches: the packed signs of a random rotation of each neuron, and two numbers per neuron.

One is the factor of the estimate, the other its error: how much of the neuron the signs do not say.

In a trained layer only the few neurons with large norms are ever the best for an input, because the
inner product of a short vector is small whatever its angle. Only neurons whose norm reaches a floor
have a slot here. Of the others the norm is kept: a search computes those whose norm is large enough
for its query, which is hardly ever any.
"""
from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import numpy as np

from .._arrays.aligned import locked_arrays, own_arrays
from .._arrays.bfloat16 import to_bfloat16
from .._arrays.linalg import matmul
from .._arrays.portable import row_products
from .._arrays.selection import ALL, Selection
from .._core import _bounded_search, _estimates, _sketches
from ._bounds import LARGE_K, Bounds
from ._cells import Cells
from ._options import MAX_SKETCH_BITS
from ._rotations import FastRotation, MatrixRotation, signs_shape
from ._tables import nothing

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from .._arrays.types import Floats, Ids
    from ._quantized_rows import QuantizedRows
    from .transforms import Transform


NO_NUMBERS = np.zeros(0, np.float32)
UNSCALED = 1e-12, 1e12  # largest numbers of a query whose squares neither vanish nor overflow
QUICK_MAX_SKETCHES = 1 << 15  # that one thread scans as quickly as several
N_SWEEPS = 2  # over the signs of a sketch: more gain little
SINGLE_CALL_MAX_QUERIES = 3  # up to here one single-threaded call beats three multi-threaded ones


class NoSketches:
    """Takes the place of sketches in an index without any; it does nothing and uses no memory."""

    cells = None
    n_bits = n_live = nbytes = 0
    norm_floor = 0.0

    def update(self, rows: Ids, V: Floats, biases: Floats, n_threads: int) -> None:
        """Do nothing."""

    def remove(self, rows: Ids) -> None:
        """Do nothing."""

    def resize(self, n_neurons: int) -> None:
        """Do nothing."""

    def own_arrays(self) -> None:
        """Do nothing."""

    def snapshot(self, rows: Ids) -> Callable[[], None]:
        """A function that does nothing."""
        return nothing

    def tensors(self) -> dict[str, np.ndarray]:
        """No arrays."""
        return {}


class Sketches:
    """n_bits signs, a factor and an error per neuron, and the search by them.

    ``ids[s]`` is the neuron in slot s < n, or -1 in a slot that was freed; ``slot[j]`` is the slot
    of neuron j, or -1. Where there are cells, slots are sorted by the cell of their neuron
    (`sparselsh.index._cells`), so that a scan reads only the cells that are near the query; late
    slots, from ``cell_start[-1]`` on, are read one by one. Which neurons a scan finds depends
    neither on the order of the slots nor on the gaps.
    """

    def __init__(self, rotation: MatrixRotation | FastRotation, n_neurons: int,
                 norm_floor: float) -> None:
        self.rotation = rotation
        self.norm_floor = norm_floor
        self.bounds = Bounds.of_recall(0.98)
        self.cells: Cells | None = None
        self.euclidean = False  # neurons are found by their distance from the query
        self.n = self.n_gone = 0
        self.slot = np.full(n_neurons, -1, np.int32)
        # norms of the neurons without a sketch, else -1; no entries where all have one
        self.short_norms = np.full(n_neurons if norm_floor > 0 else 0, -1, np.float32)
        self.blocks = np.empty((0, rotation.n_bits // 4 * 16), np.uint8)
        self.factors, self.errors, self.biases = np.empty((3, 0), np.float32)
        self.ids, self.cell = np.empty((2, 0), np.int32)
        self.cell_start = np.zeros(1, np.int32)
        self.has_biases = False  # whether that of some neuron is not 0
        self._search: tuple[Any, ...] | None = None  # what `prepared` made, and for which arrays
        self._short: tuple[Ids, Floats] | None = None  # neurons without a sketch, longest first

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_search": None, "_short": None}

    @property
    def n_bits(self) -> int:
        """Bits per sketch."""
        return self.rotation.n_bits

    @property
    def n_live(self) -> int:
        """Neurons that have a sketch."""
        return self.n - self.n_gone

    @classmethod
    def restored(cls, n_neurons: int, n_dims: int, norm_floor: float,
                 tensors: dict[str, np.ndarray]) -> Self:
        """Sketches from the arrays of a file, checked, because a scan does not check them."""
        ids, n_bits = tensors["ids"], tensors["blocks"].shape[1] // 4
        n_blocks = -(-len(ids) // _sketches.NEURONS_PER_BLOCK)
        by_signs = "rotation_signs" in tensors
        name = "rotation_signs" if by_signs else "rotation"
        shape = signs_shape(n_bits, n_dims - 1) if by_signs else (n_bits, n_dims)
        wanted = {name: (np.float32, shape), "ids": (np.int32, (len(ids),)),
                  "blocks": (np.uint8, (len(tensors["blocks"]), n_bits // 4 * 16)),
                  "factors": (np.float32, (len(tensors["blocks"]) * _sketches.NEURONS_PER_BLOCK,))}
        for name, (dtype, shape) in wanted.items():
            if tensors[name].dtype != dtype or tensors[name].shape != shape:
                raise ValueError(f"{name} must be {np.dtype(dtype)} of shape {shape}, "
                                 f"got {tensors[name].dtype} {tensors[name].shape}")
        for name in ("errors", "biases"):  # which files of earlier versions do not have
            a, shape = tensors.get(name), tensors["factors"].shape
            if a is not None and (a.dtype != np.float32 or a.shape != shape):
                raise ValueError(f"{name} must be float32 of shape {shape}, got {a.dtype} "
                                 f"{a.shape}")
        for name in ("rotation", "factors", "errors", "biases"):
            if name in tensors and not np.isfinite(tensors[name]).all():
                raise ValueError(f"{name} must be finite")
        if by_signs and not (np.abs(tensors["rotation_signs"]) == 1).all():
            raise ValueError("rotation_signs must be 1 and -1")
        bad_ids = len(ids) and (ids.min() < 0 or ids.max() >= n_neurons
                                or len(np.unique(ids)) != len(ids))
        bad_bits = n_bits % 64 or not 0 < n_bits <= MAX_SKETCH_BITS
        if bad_bits or len(tensors["blocks"]) < n_blocks or bad_ids:
            raise ValueError("its sketches contradict each other")

        sketches = cls(FastRotation(n_bits, n_dims - 1, tensors["rotation_signs"]) if by_signs
                       else MatrixRotation(tensors["rotation"]), n_neurons, norm_floor)
        sketches.blocks, sketches.factors = tensors["blocks"], tensors["factors"]
        sketches.errors = tensors.get("errors", np.zeros_like(sketches.factors))
        sketches.biases = tensors.get("biases", np.zeros_like(sketches.factors))
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
        if norm_floor > 0 and "short_norms" in tensors:
            norms = tensors["short_norms"]
            if norms.dtype != np.float32 or norms.shape != (n_neurons,) or (
                    not np.isfinite(norms).all() or (norms[ids] != -1).any()):
                raise ValueError("short_norms must be finite float32, one per neuron, and -1 for "
                                 "those with a sketch")
            sketches.short_norms = norms
        return sketches

    def update(self, rows: Ids, V: Floats, biases: Floats, n_threads: int) -> None:
        """Sketch the neurons `rows` (distinct), with vectors V, if they reach the floor."""
        if biases.any():
            self.has_biases = True
        squares = row_products(V, V)
        lengths = squares + biases * biases
        long = lengths >= self.norm_floor**2
        self.remove(rows[~long])
        if len(self.short_norms):
            self.short_norms[rows] = np.where(long, -1, np.sqrt(lengths))
            self._short = None
        biases = biases[long]
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

        slots = self.slot[rows]
        signs, products, lengths = self._signs(self.rotation.of_rows(V, n_threads), n_threads)
        _sketches.pack(signs, slots, self.blocks)
        self.factors[slots] = factors = squares / np.maximum(products, np.float32(1e-30))
        self.errors[slots] = self._errors(factors, lengths, squares)
        self.biases[slots] = biases
        self._tidy()

    def _signs(self, rotated: Floats, n_threads: int) -> tuple[Floats, Floats, Any]:
        """Signs s for rows R v, numbers of these signs, and <R^T s, v> and |R^T s|^2 of each."""
        n, n_bits = rotated.shape
        if n_bits <= self.rotation.n_dims:  # the rows of R are orthonormal
            return rotated, np.abs(rotated).sum(axis=1), n_bits
        signs = np.where(rotated > 0, np.float32(1), np.float32(-1))
        sums = matmul(signs, self.rotation.gram, n_threads)
        products, squares = np.empty((2, n))
        _sketches.refine(rotated, self.rotation.gram, signs, sums, products, squares, N_SWEEPS,
                         n_threads)
        return signs, products.astype(np.float32), squares

    def _errors(self, factors: Floats, lengths: Any, squares: Floats) -> NDArray[np.float64]:
        """|e| of rows: f R^T s is v + e, with e orthogonal to v."""
        n_bits, n_dims = self.rotation.n_bits, self.rotation.n_dims
        # the table of sums is in steps of up to |q| / 64, whose errors are like independent ones
        table = n_bits / 48 * (n_dims - 1) / 63.75**2
        error = factors.astype(np.float64)**2 * lengths - squares
        return np.sqrt(np.maximum(error, 0) + factors.astype(np.float64)**2 * table)

    def own_arrays(self) -> None:
        """Copy arrays that are mapped read-only."""
        if locked_arrays(self):
            own_arrays(self)
            self._search = self._short = None  # they read the arrays of before

    def snapshot(self, rows: Ids) -> Callable[[], None]:
        """A function that undoes later changes of the neurons `rows`."""
        attributes = self.__dict__.copy()
        rows = rows[rows < len(self.slot)]
        slots = self.slot[rows]
        slots = slots[slots >= 0]
        touched = np.unique(slots // _sketches.NEURONS_PER_BLOCK)
        blocks = self.blocks[touched]
        names = "factors", "errors", "biases", "ids", "cell"
        numbers = {name: getattr(self, name)[slots] for name in names}
        norms = self.short_norms[rows] if len(self.short_norms) else None

        def undo() -> None:
            self.__dict__.update(attributes)
            self._search = self._short = None
            self.blocks[touched] = blocks
            for name, values in numbers.items():
                getattr(self, name)[slots] = values
            if norms is not None:
                self.short_norms[rows] = norms
            live = np.flatnonzero(self.ids[:self.n] >= 0).astype(np.int32)
            self.slot[:] = -1
            self.slot[self.ids[live]] = live

        return undo

    def remove(self, rows: Ids) -> None:
        """Free the slots of the neurons `rows`."""
        slots = self.slot[rows]
        slots = slots[slots >= 0]
        self.ids[slots] = -1
        self.slot[rows] = -1
        self.n_gone += len(slots)
        if len(self.short_norms):
            self.short_norms[rows] = -1
            self._short = None

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
        self.errors = _extended(self.errors[live], len(factors))
        self.biases = _extended(self.biases[live], len(factors))
        self.ids, self.cell = _extended(ids, len(factors)), _extended(cell, len(factors))
        self.slot[ids] = np.arange(self.n, dtype=np.int32)
        if self.cells is not None:
            self.cell_start = np.searchsorted(cell, np.arange(self.cells.n + 1)).astype(np.int32)

    def partition(self, cells: Cells, cell: Ids) -> None:
        """Sort the slots into cells; cell[s] is the cell of the neuron in slot s."""
        self.cells = cells
        self.cell[:self.n] = cell
        self._sort()

    @property
    def is_scanned_quickly(self) -> bool:
        """Whether one thread is enough for a query."""
        return self.cells is not None or self.n <= QUICK_MAX_SKETCHES

    def drop_cells(self, transform: Transform) -> None:
        """Scan all sketches from now on, in the order of the cells that there were."""
        self.cells = None
        self.cell[:self.n] = 0
        self.prepare(transform, self.euclidean)

    def resize(self, n_neurons: int) -> None:
        """Make room for more neurons, which have no sketch yet."""
        new = np.full(n_neurons - len(self.slot), -1, np.int32)
        self.slot, self._search = np.concatenate([self.slot, new]), None
        if len(self.short_norms):
            self.short_norms = np.concatenate([self.short_norms, new.astype(np.float32)])

    def _reserve(self, n: int) -> None:
        n_blocks = -(-n // _sketches.NEURONS_PER_BLOCK)
        if n_blocks > len(self.blocks):
            self._search = None
            n_blocks = n_blocks if not len(self.blocks) else n_blocks + n_blocks // 8
            size = n_blocks * _sketches.NEURONS_PER_BLOCK
            self.blocks = _extended(self.blocks, n_blocks)
            self.factors = _extended(self.factors, size)
            self.errors = _extended(self.errors, size)
            self.biases = _extended(self.biases, size)
            self.ids, self.cell = _extended(self.ids, size), _extended(self.cell, size)

    def prepare(self, transform: Transform, euclidean: bool = False) -> Self:
        """Store the matrix that maps an input to its rotated query and the scores of the cells.

        It is in bfloat16: a sum whose terms are off by 2^-9 ranks as well, and a single query reads
        half as many bytes. A fast rotation takes queries as they are.
        """
        self._search, self.euclidean = None, euclidean
        parts = [] if self.rotation.signs is not None else [self.rotation.matrix]
        if self.cells is not None:
            parts += [self.cells.means, self.cells.spread]
        rows = np.concatenate(parts) if parts else np.empty((0, len(transform.offset_)), np.float32)
        back = transform.query_map_
        rows = rows if back is None else matmul(rows, back, 1)
        self._query_rows: np.ndarray = to_bfloat16(rows[:, :-1])
        self._query_constant = np.zeros(len(rows), np.float32)
        if euclidean:  # queries are relative to the mean neuron, as neurons are
            self._query_constant = -row_products(rows[:, :-1], transform.offset_[:-1])
        self.offset, self._scale = transform.offset_.copy(), transform.scale_
        if euclidean:
            self.offset[-1] = -row_products(self.offset[None, :-1], self.offset[:-1])[0] / 2
        return self

    def set_bounds(self, bounds: Bounds) -> None:
        """How far later searches go."""
        self.bounds, self._search = bounds, None

    def _rotated(self, X: Floats, n_threads: int, with_cells: bool) -> Floats:
        if self.rotation.signs is not None:
            relative = X - self.offset[:-1] if self.euclidean else X
            rotated = self.rotation.of_rows(relative, n_threads)
            if not with_cells or self.cells is None:
                return rotated
            return np.concatenate([rotated, self._mapped(X, len(self._query_rows), n_threads)], 1)
        return self._mapped(X, len(self._query_rows) if with_cells else self.n_bits, n_threads)

    def _mapped(self, X: Floats, n_rows: int, n_threads: int) -> Floats:
        """The products of queries with the first rows of the matrix that `prepare` stores."""
        if len(X) <= SINGLE_CALL_MAX_QUERIES:  # as a search for few queries does it
            out = np.empty((len(X), n_rows), np.float32)
            rows = np.broadcast_to(np.arange(n_rows, dtype=np.int32), out.shape)
            _estimates.score(np.ascontiguousarray(rows), X, self._query_rows, self._query_constant,
                             out, 1)
            return out
        return matmul(X, self._query_rows[:n_rows], n_threads, transpose_b=True,
                      bias=self._query_constant[:n_rows])

    @property
    def _biases(self) -> Floats | None:
        return self.biases if self.has_biases else None

    def projected(self, X: Floats, n_threads: int) -> Floats:
        """The rotated queries and their inner products with the means and directions of the cells.

        (n, n_bits + n_cells + n_spread)
        """
        return self._rotated(X, n_threads, True)

    def unit_norms(self, projected: Floats) -> NDArray[np.float64]:
        """One standard deviation of <q, v> for a v of length 1 in a random direction: (n,)."""
        n_bits, n_dims = self.rotation.n_bits, self.rotation.n_dims
        rotated = projected[:, :n_bits].astype(np.float64)
        squares = row_products(rotated, rotated) * n_dims / n_bits
        return np.sqrt(squares / max(n_dims - 1, 1))

    def scan(self, X: Floats, n_best: int, n_threads: int) -> Ids:
        """Ids (n, n_best) of the neurons with the best estimates for each input; -1 for none.

        They are in no particular order.
        """
        ids = np.empty((len(X), n_best), np.int32)
        scores = np.empty((len(X), n_best), np.float32)
        rotated = self._rotated(X, n_threads, False)
        _sketches.scan(rotated, self.blocks, self.factors, self._biases, self.ids, self.n, ids,
                       scores, n_threads)
        return ids

    def search(self, X: Floats, k: int, W: Floats, bias: Floats, rows: QuantizedRows | None,
               n_threads: int,
               selection: Selection = ALL) -> tuple[Ids, Floats, NDArray[np.int64]]:
        """Ids and scores (n, k), and what it cost, (n, 3): see `_bounded_search.top_k_batch`."""
        ids, scores = np.empty((len(X), k), np.int32), np.empty((len(X), k), np.float32)
        counts = np.zeros((len(X), 3), np.int64)
        search = self.prepared(k, W, bias, rows)
        _bounded_search.top_k_batch(search, X, self.projected(X, n_threads), *selection, ids,
                                    scores, counts, n_threads)
        return ids, scores, counts

    def search_few(self, X: Floats, k: int, W: Floats, bias: Floats, rows: QuantizedRows | None,
                   selection: Selection = ALL) -> tuple[Ids, Floats]:
        """`search` for a few inputs, on one thread."""
        ids, scores = np.empty((len(X), k), np.int32), np.empty((len(X), k), np.float32)
        _bounded_search.top_k(self.prepared(k, W, bias, rows), X, *selection, ids, scores)
        return ids, scores

    def prepared(self, k: int, W: Floats, bias: Floats, rows: QuantizedRows | None) -> Any:
        """The search for the k best: by `rows` first, where they are the weights in fewer bits.

        It is made anew when one of the arrays has been replaced: call this for each query, under
        the lock of the index.
        """
        wanted = (k if self.bounds.raises else min(k, LARGE_K), self.n, self.n_gone,
                  self.has_biases)
        made = self._search
        if (made is None or made[1] != wanted or made[2] is not W or made[3] is not bias
                or made[4] is not rows or self._short is None):
            coarse, scales = (None, None) if rows is None else (rows.values, rows.scales)
            cells = self.cells
            share, evidence, missing = self.bounds.cells_for(
                k, cells is not None and len(cells.spread) > 0)
            if cells is not None and len(cells.spread):  # cells have grown since they were counted
                missing *= min(1.0, float(cells.sizes.sum()) / max(self.n_live, 1))
            search = _bounded_search.prepare(
                self._query_rows, self._query_constant, self.rotation.signs, self.rotation.n_bits,
                self.rotation.n_dims, self.cell_start,
                self.cell, *self._cell_numbers(), self.blocks, self.factors, self.errors,
                self.biases if self.has_biases else NO_NUMBERS, self.ids,
                self.n, self.slot, *self._shorts(), self.offset, self._scale, W, bias, coarse,
                scales, self.bounds.sketches_for(k), share, evidence, missing, self.bounds.short,
                self.euclidean)
            made = self._search = (search, wanted, W, bias, rows)
        return made[0]

    def _cell_numbers(self) -> tuple[Floats, NDArray[np.int32], Floats, Floats, int, float, float]:
        """Biases and sizes of the cells, and what is known of the spread in them."""
        cells = self.cells
        if cells is None:
            return NO_NUMBERS, np.zeros(0, np.int32), NO_NUMBERS, NO_NUMBERS, 0, 0.0, 0.0
        variance, bias_variance = cells.variances.tolist()
        return (cells.biases, cells.sizes, cells.scales, cells.tails, len(cells.spread), variance,
                bias_variance)

    def estimate(self, X: Floats, bias: Floats,
                 n_threads: int) -> tuple[Floats, Floats]:
        """Estimates of all outputs and their standard deviations, (n, n_neurons) each.

        A neuron that was removed has -inf and 0.
        """
        shape = len(X), len(self.slot)
        estimates, deviations = np.empty(shape, np.float32), np.empty(shape, np.float32)
        rotated, units, norms, shifts = self._for_estimates(X, n_threads)
        _estimates.estimate(self._estimator(bias), rotated, units, norms, shifts, estimates,
                            deviations, n_threads)
        return estimates, deviations

    def _estimator(self, bias: Floats) -> Any:
        short, norms = self._shorts()
        short_biases = (bias[short] - self.offset[-1]) * np.float32(self._scale)
        errors = np.sqrt(np.maximum(norms * norms - short_biases * short_biases, np.float32(0)))
        return _estimates.prepare(
            self.blocks, self.factors, self.errors, self.biases if self.has_biases else NO_NUMBERS,
            self.ids, self.n, len(self.slot), short, short_biases, errors, self._scale)

    def _for_estimates(self, X: Floats, n_threads: int) -> tuple[Floats, NDArray[np.float64],
                                                                 NDArray[np.float64],
                                                                 NDArray[np.float64]]:
        """The queries as estimates take them: rotated, their units, norms and shifts."""
        rotated = self._rotated(X, n_threads, False)
        peaks = np.abs(rotated).max(axis=1).astype(np.float64)
        # squares of longer or shorter queries would be inexact
        units = np.where((peaks > UNSCALED[0]) & (peaks < UNSCALED[1]), 1.0,
                         1 / np.maximum(peaks, 1e-300))
        units[peaks == 0] = 1
        rotated *= units.astype(np.float32)[:, None]
        shifts = row_products(X, self.offset[:-1], dtype=np.float64)
        shifts += np.float64(self.offset[-1])
        return rotated, units, self.unit_norms(rotated), shifts

    def _shorts(self) -> tuple[Ids, Floats]:
        """The neurons without a sketch and their norms, longest first."""
        if self._short is None:
            short = np.flatnonzero(self.short_norms >= 0)
            short = short[np.argsort(-self.short_norms[short], kind="stable")]
            self._short = short.astype(np.int32), self.short_norms[short]
        return self._short

    def rank(self, X: Floats, candidates: Ids, n_best: int, n_threads: int) -> Ids:
        """Ids (n, n_best) of the candidates (n, m) with the best estimates, in no order."""
        ids = np.empty((len(X), n_best), np.int32)
        rotated = self._rotated(X, n_threads, False)
        _sketches.rank(rotated, candidates, self.blocks, self.factors, self._biases, self.slot, ids,
                       n_threads)
        return ids

    def tensors(self) -> dict[str, np.ndarray]:
        """The arrays of a file."""
        if self.n_gone:
            self._sort()
        n_blocks = -(-self.n // _sketches.NEURONS_PER_BLOCK)
        out: dict[str, np.ndarray] = {
            "blocks": self.blocks[:n_blocks],
            "factors": self.factors[:n_blocks * _sketches.NEURONS_PER_BLOCK],
            "errors": self.errors[:n_blocks * _sketches.NEURONS_PER_BLOCK],
            "biases": self.biases[:n_blocks * _sketches.NEURONS_PER_BLOCK],
            "ids": self.ids[:self.n]}
        if self.rotation.signs is None:
            out["rotation"] = self.rotation.matrix
        else:
            out["rotation_signs"] = self.rotation.signs
        if len(self.short_norms):
            out["short_norms"] = self.short_norms
        if self.cells is not None:
            out |= {"cell_centroids": self.cells.centroids, "cell_means": self.cells.means,
                    "cell_biases": self.cells.biases, "cell": self.cell[:self.n]}
            if len(self.cells.spread):
                out |= {"cell_sizes": self.cells.sizes, "cell_scales": self.cells.scales,
                        "cell_spread": self.cells.spread,
                        "cell_variances": self.cells.variances, "cell_tails": self.cells.tails}
            if self.cells.by_distance:
                out["cells_by_distance"] = np.ones(1, np.uint8)
        return out

    @property
    def nbytes(self) -> int:
        """Bytes of sketches, their numbers, cells, and the maps between slots and neurons."""
        return sum(a.nbytes for a in (self.blocks, self.factors, self.errors, self.biases, self.ids,
                                      self.cell, self.slot, self.short_norms))


def _extended(array: np.ndarray, n: int) -> np.ndarray:
    out = np.zeros((n, *array.shape[1:]), array.dtype)
    out[:len(array)] = array
    return out
