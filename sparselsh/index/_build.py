"""From weights and, where there are some, queries to a tuned engine."""
from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _validation as check
from .._arrays.linalg import exact_topk
from .._arrays.portable import row_products, standard_normal
from . import _table_choice as choice
from . import _tuning as tuning
from ._bounds import ALL_CELLS, SKETCH_MISSES, Bounds
from ._cells import SAMPLE_PER_CELL, Cells, add_to_means
from ._engine import ROWS_PER_CHUNK, IndexEngine
from ._options import MAX_SKETCH_BITS
from ._quantized_rows import QuantizedRows
from ._rotations import FAST_MIN_INPUTS, FastRotation, MatrixRotation
from ._sketches import NoSketches, Sketches
from ._tables import NoTables, Tables
from .transforms import Transform, second_moment

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .._arrays.types import Floats, Ids, RandomState
    from ..protocols import HashFamily
    from ._options import IndexOptions
    from .transforms import NeuronSums

TRIAL_NEURONS = 16_384  # by which a scaling is chosen, besides the neighbours of the queries
TRIAL_QUERIES = 64  # neurons as queries, where there are none, that tell whether cells pay:
MAX_SCANNED = 0.6  # they do if fewer than this fraction of the sketches are in the cells scanned,
MAX_SCANNED_IN_CELLS = 0.8  # of the sketches, with queries: a scan of all needs no order of cells
CELLS_OF_ANY_QUERIES = 0.1  # with this factor of their bound; chosen by bench/promise.py
CELLS_MIN_NEURONS = 4096  # a full scan of fewer sketches is as fast as one by cells
MAX_SKETCH_BYTES = 40  # per neuron, that sketches take by default,
MAX_SKETCH_FRACTION = 1 / 16  # or this fraction of the weights of a neuron, if that is more
SPREAD_SAMPLE = 4096  # neurons by which the variance in cells is measured
GAIN_OF_CELLS = 0.02  # a scaling may find fewer by this, as it halves the cells that are scanned
FOUND_UNSCALED = 0.9  # of the neighbours, by few candidates: then wide queries are not scaled
NORM_SAMPLE = 4096  # neurons whose norms decide on the norm floor
MOST_NEIGHBOURS = 50  # up to this k searches hardly ever compute neurons below the norm floor,
NEURONS_PER_NEIGHBOUR = 128  # or up to this fraction of the neurons, if that is less
N_NEIGHBOURS = tuning.N_BEST


def drawn_seed(random_state: RandomState) -> int:
    """The seed of an index; a generator gives another one at each fit."""
    return int(check.generator(random_state).integers(2**31))


def build(options: IndexOptions, W: Floats, bias: Floats, queries: Floats | None, seed: int,
          n_threads: int, spare: Tables | NoTables | None = None,
          neurons: NeuronSums | None = None, is_part: bool = False) -> IndexEngine:
    """The engine over W and bias, both checked by the caller.

    Parameters
    ----------
    options : IndexOptions
    W, bias, seed
        As for :class:`IndexEngine`.
    queries : ndarray of shape (n_queries, n_in), float32, or None
        Without queries nothing is tuned, every neuron has a sketch, and of inner products all
        are estimated.
    n_threads : int
    spare : Tables, NoTables or None
        Tables that are no longer needed, whose memory is used again where it fits.
    neurons : NeuronSums or None
        Of more neurons than those of W, for the centring; None for those of W.
    is_part : bool
        Whether `tune_together` will set the bounds, which are those of the recall alone then.

    Returns
    -------
    IndexEngine
    """
    moment = None if queries is None else second_moment(queries, n_threads)
    transform = Transform(options.center, 0.0 if options.scaling == "auto" else options.scaling)
    transform.fit(W, bias, moment, n_threads, neurons)

    engine = IndexEngine(options, W, bias, transform, NoTables() if spare is None else spare,
                         NoSketches(), QuantizedRows.of(W, options.storage, n_threads),
                         np.zeros(len(W), bool), seed)
    if options.family is None:
        engine.tables = NoTables()
    else:
        engine.hash_all(_first_family(engine, queries, n_threads), n_threads)

    if options.sketch_bits == 0:
        return engine
    if queries is None or moment is None:
        engine.sketches = _sketched(engine, transform, 0.0, n_threads,
                                    _most_bits(options, W.shape[1]))
        engine.sketches.set_bounds(Bounds.of_recall(options.recall))
        if options.metric != "ip":  # norms that differ much need queries: bench/promise.py
            _partition_by_neurons(engine, n_threads)
    else:
        _build_tuned_sketches(engine, moment, queries, is_part, n_threads)
    return engine


def _first_family(engine: IndexEngine, queries: Floats | None, n_threads: int) -> HashFamily:
    options, n = engine.options, len(engine.W)
    family: Any = options.family
    if family != "auto":
        return family

    similarity = choice.DEFAULT_SIMILARITY
    if queries is not None:
        sample = tuning.few(queries)
        ids, _ = exact_topk(sample, engine.W, engine.bias, min(N_NEIGHBOURS, n), n_threads)
        neighbours = engine.vectors(ids.ravel(), n_threads).reshape(*ids.shape, -1)
        similarity = choice.similarity(engine.transform.queries(sample, n_threads), neighbours)
    return choice.first_family(n, similarity, options.recall)


def _build_tuned_sketches(engine: IndexEngine, moment: Floats, queries: Floats, is_part: bool,
                          n_threads: int) -> None:
    """Sketches with the scaling, the norm floor, the cells and the candidates that suit queries."""
    options, n = engine.options, len(engine.W)
    sample = tuning.few(queries)
    k = min(n, max(N_NEIGHBOURS, min(MOST_NEIGHBOURS, n // NEURONS_PER_NEIGHBOUR)))
    best, scores = exact_topk(sample, engine.W, engine.bias, k, n_threads)
    truth = np.ascontiguousarray(best[:, :N_NEIGHBOURS])
    if options.scaling == "auto" and not engine.has_tables:  # tables are hashed by it already
        engine.transform = _better_transform(engine, moment, sample, truth, n_threads)

    true_ids, places = np.unique(truth, return_inverse=True)
    true_norms = _norms(engine, true_ids, n_threads)[places.ravel()]
    norms = _norms(engine, np.arange(0, n, -(-n // NORM_SAMPLE), dtype=np.int32), n_threads)
    floor = 0.0
    if options.metric != "l2":  # which has no use for long neurons
        needed = tuning.needed_norms(engine.transform, sample, scores[:, -1], n_threads)
        floor = tuning.norm_floor(true_norms, needed, norms, options.recall)

    for least in dict.fromkeys((floor, 0.0)):
        n_bits = most = _most_bits(options, engine.W.shape[1], float((norms >= least).mean()))
        if options.sketch_bits is None and options.metric != "l2":
            choices = range(_least_bits(engine.W.shape[1]), most + 1, 64)
            n_bits = tuning.bits_that_pay(engine, sample, scores[:, truth.shape[1] - 1], least,
                                          choices, n_threads)
        engine.sketches = _sketched(engine, engine.transform, least, n_threads, n_bits)
        _partition(engine, n_threads)
        if is_part:
            tuning.bound(engine, sample, options.recall, n_threads)
        else:
            tuning.tune(engine, queries, truth.shape[1], options.recall, n_threads)
            if engine.sketches.cells is not None and tuning.scanned(engine) > MAX_SCANNED_IN_CELLS:
                engine.sketches.drop_cells(engine.transform)
                tuning.tune(engine, queries, truth.shape[1], options.recall, n_threads)
        if tuning.floor_pays(engine):
            return


def _norms(engine: IndexEngine, rows: Ids, n_threads: int) -> Floats:
    V, biases = engine.directions(rows, n_threads)
    return np.sqrt(row_products(V, V) + biases * biases)


def _least_bits(n_in: int) -> int:
    """Bits per sketch, at least, where a user does not say how many: 3/4 of the dimension."""
    return min(MAX_SKETCH_BITS, max(128, -(-3 * n_in // 256) * 64))


def _most_bits(options: IndexOptions, n_in: int, fraction: float = 1.0) -> int:
    """Bits per sketch, at most, if a `fraction` of the neurons have one."""
    if options.sketch_bits is not None:
        return options.sketch_bits
    # 4 bytes per neuron and 12 per sketch are not bits; error and bias, 8 more, do not count
    per_neuron = max(MAX_SKETCH_BYTES, MAX_SKETCH_FRACTION * 4 * n_in) - 4
    within = per_neuron / max(fraction, 1 / NORM_SAMPLE) - 12
    return max(_least_bits(n_in), min(512, int(within) // 8 * 64))


def _sketched(engine: IndexEngine, transform: Transform, norm_floor: float, n_threads: int,
              n_bits: int, chunks: Iterable[Ids] | None = None) -> Sketches:
    """Sketches of the neurons above the floor, or of those of `chunks`."""
    n, n_in = engine.W.shape
    rng = np.random.default_rng(engine.seed)
    rotation = (FastRotation.drawn(n_bits, n_in, rng) if _is_fast(transform, n_in)
                else MatrixRotation.drawn(n_bits, n_in + 1, rng))
    sketches = Sketches(rotation, n, norm_floor)
    for rows in engine.row_chunks() if chunks is None else chunks:
        sketches.update(rows, *engine.directions(rows, n_threads, transform), n_threads)
    return sketches.prepare(transform, engine.options.metric == "l2")


def _is_fast(transform: Transform, n_in: int) -> bool:
    """Whether queries are rotated by Hadamard matrices."""
    return n_in >= FAST_MIN_INPUTS and transform.query_map_ is None


def _better_transform(engine: IndexEngine, moment: Floats, sample: Floats, truth: Ids,
                      n_threads: int) -> Transform:
    """The scaling under which the sketches rank the true neighbours best, among some neurons."""
    rng = np.random.default_rng(engine.seed)
    others = rng.permutation(len(engine.W))[:TRIAL_NEURONS]
    rows = np.union1d(others, truth[truth >= 0]).astype(np.int32)
    chunks = np.array_split(rows, -(-len(rows) // ROWS_PER_CHUNK))
    n_best = min(len(rows), max(32, len(rows) // 256))
    recalls, n_bits = {}, _most_bits(engine.options, engine.W.shape[1])
    for scaling in tuning.SCALINGS:
        transform = Transform(engine.options.center, scaling)
        transform.fit(engine.W, engine.bias, moment, n_threads)
        sketches = _sketched(engine, transform, 0.0, n_threads, n_bits, chunks)
        ids = sketches.scan(sample, n_best, n_threads)
        recalls[transform] = tuning.recall_of(ids, truth)
        if _is_fast(transform, engine.W.shape[1]) and recalls[transform] >= FOUND_UNSCALED:
            return transform  # few candidates are enough, and a scaling would make queries slow
    return max(recalls, key=lambda each: recalls[each] + GAIN_OF_CELLS * (each.scaling > 0))


def _partition_by_neurons(engine: IndexEngine, n_threads: int) -> None:
    """Cells for any queries, unless neurons as queries need most of them, or miss neighbours.

    Neurons are near others. Shorter ones, noisy ones and those with coordinates in another order
    are not. What tells two neurons of a cell apart may be a direction in which those of other cells
    hardly differ.
    """
    _partition(engine, n_threads)
    sketches, bounds = engine.sketches, engine.sketches.bounds
    if sketches.cells is None:
        return
    rng = np.random.default_rng(engine.seed)
    near = np.ascontiguousarray(engine.W[::-(-len(engine.W) // TRIAL_QUERIES)])
    noise = near.std(axis=0) * standard_normal(rng, near.shape)
    within = replace(bounds, cells=bounds.cells * CELLS_OF_ANY_QUERIES)
    missed = (1 - SKETCH_MISSES) * (1 - bounds.recall)
    others = [near / np.float32(10), near + noise, rng.permuted(near, axis=1)]
    if not sketches.cells.by_distance:
        slots = sketches.slot[::-(-len(engine.W) // TRIAL_QUERIES)]  # of one cell one after another
        apart = near - engine.W[sketches.ids[np.where(slots > 0, slots - 1, 1)]]
        others.append(np.ascontiguousarray(apart[apart.any(axis=1)]))
    for queries in (near, *others):
        sketches.set_bounds(within)
        ids, _, counts = engine.by_bound(queries, N_NEIGHBOURS, n_threads)
        pays = queries is not near or counts[:, 1].mean() <= MAX_SCANNED * sketches.n
        sketches.set_bounds(replace(bounds, cells=ALL_CELLS))
        all_ids = engine.by_bound(queries, N_NEIGHBOURS, n_threads)[0]
        if not pays or tuning.recall_of(ids, all_ids) < 1 - missed:
            sketches.drop_cells(engine.transform)
            sketches.set_bounds(bounds)
            return
    sketches.set_bounds(within)


def _partition(engine: IndexEngine, n_threads: int) -> None:
    """Sort sketches, unless they are few, into cells: as many cells as each holds neurons."""
    sketches = engine.sketches
    if sketches.n < CELLS_MIN_NEURONS:
        return
    rng = np.random.default_rng(engine.seed)
    n_cells = int(np.sqrt(sketches.n))
    ids = sketches.ids[:sketches.n]
    picked = np.sort(ids[rng.permutation(len(ids))[:SAMPLE_PER_CELL * n_cells]])
    cells = Cells.fit(engine.directions(picked, n_threads)[0], n_cells, rng, n_threads,
                      by_distance=engine.options.metric == "l2")

    counts, cell = np.zeros(n_cells, np.int64), np.empty(len(ids), np.int32)
    all_biases, squares = np.empty(len(ids), np.float32), np.empty(len(ids))
    for start in range(0, len(ids), ROWS_PER_CHUNK):
        V, biases = engine.directions(ids[start:start + ROWS_PER_CHUNK], n_threads)
        all_biases[start:start + ROWS_PER_CHUNK] = biases
        squares[start:start + ROWS_PER_CHUNK] = row_products(V, V)
        cell[start:start + ROWS_PER_CHUNK] = part = cells.assign(V, n_threads)
        add_to_means(cells, counts, V, biases, part, n_threads)
    if not cells.by_distance:
        some = np.sort(rng.permutation(len(ids))[:SPREAD_SAMPLE])
        cells.measure_spread(engine.directions(ids[some], n_threads)[0], some, squares, all_biases,
                             cell, rng, n_threads)
    sketches.partition(cells, cell)
    sketches.prepare(engine.transform, engine.options.metric == "l2")
