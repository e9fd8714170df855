"""What a file holds of an index: arrays, and a dict of plain values.

The weights are not among them: they belong to the layer. A checkpoint also keeps the order of the
neurons in the buckets (`exactly`), and its layer knows the family.
"""
from __future__ import annotations

import json
import zlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _files
from .. import _validation as check
from ..hashing import family_config, family_from
from ._bounds import Bounds
from ._engine import IndexEngine
from ._options import METHODS, IndexOptions
from ._own_ids import OwnIds
from ._quantized_rows import QuantizedRows
from ._sketches import NoSketches, Sketches
from ._tables import NoTables, Tables
from .transforms import Transform

if TYPE_CHECKING:
    from .._arrays.types import Floats, Ids, PathLike
    from ._metric import Metric

FORMAT = "sparselsh.index"
ROWS_PER_SUM = 4096  # whose bits are summed at a time
DAMAGES = (KeyError, TypeError, IndexError, AttributeError, ValueError)  # that a bad state raises


def fingerprint(W: Floats, bias: Floats) -> int:
    """A checksum of some rows: enough to detect the weights of another layer."""
    step = max(1, len(W) // 256)
    return zlib.crc32(np.ascontiguousarray(bias[::step]).tobytes(), zlib.crc32(W[::step].tobytes()))


def weights_checksum(W: Floats, bias: Floats) -> int:
    """A checksum of all weights: of the sums of their bits over each row and over each column.

    It takes a fraction of the time of a CRC of all of them, and sees any change of one row.
    """
    columns = np.zeros(W.shape[1], np.uint32)
    value = zlib.crc32(np.ascontiguousarray(bias).view(np.uint8).data)
    for start in range(0, len(W), ROWS_PER_SUM):
        bits = np.ascontiguousarray(W[start:start + ROWS_PER_SUM]).view(np.uint32)
        value = zlib.crc32(bits.sum(axis=1, dtype=np.uint32).view(np.uint8).data, value)
        columns += bits.sum(axis=0, dtype=np.uint32)
    return zlib.crc32(columns.view(np.uint8).data, value)


class BucketIds:
    """The `ids` of tables, with zeros in the room between the buckets, which nobody has written.

    It gives the ids of some tables at a time: see `_files.parts_of`.
    """

    dtype = np.dtype(np.int32)

    def __init__(self, ids: np.ndarray, start: np.ndarray, count: np.ndarray) -> None:
        self.ids, self.start, self.count = ids, start, count
        self.shape, self.ndim = ids.shape, ids.ndim

    def __getitem__(self, tables: slice) -> np.ndarray:
        out = np.zeros_like(self.ids[tables])
        parts = zip(out, self.ids[tables], self.start[tables], self.count[tables], strict=True)
        for written, ids, start, count in parts:
            within = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
            slots = np.repeat(start, count) + within
            written[slots] = ids[slots]
        return out


# -- an engine as arrays and plain values --------------------------------------------------------


def state(engine: IndexEngine,
          exactly: bool = False) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arrays and plain values of an engine."""
    transform, sketches, options = engine.transform, engine.sketches, engine.options
    tensors: dict[str, Any] = {
        "offset": transform.offset_, "neuron_map": transform.neuron_map_,
        "query_map": transform.query_map_, "gone": engine.removed.astype(np.uint8)}
    if isinstance(engine.tables, Tables):
        tensors["codes"] = engine.tables.codes
        if exactly:
            tensors |= engine.tables.tensors()
            tensors["bucket_ids"] = BucketIds(engine.tables.ids, engine.tables.start,
                                              engine.tables.count)
    tensors |= sketches.tensors() | engine.rows.tensors("rows")

    config = {
        "arguments": options.plain(),
        "family": None if exactly else family_config(engine.family),
        "auto_family": options.family == "auto",
        "seed": engine.seed,
        "scaling": transform.scaling,
        "norm_floor": sketches.norm_floor,
        "n_candidates": engine.n_candidates or None,
        "n_computed": [engine.n_computed, engine.k_computed],
        "n_probes": engine.n_probes,
        "bounds": sketches.bounds.plain() if isinstance(sketches, Sketches) else None,
        "vector_scale": transform.scale_,
        "methods": engine.methods,
        "times": engine.times,
        "trials": engine.trials,
        "fingerprint": fingerprint(engine.W, engine.bias),
    }
    return {name: a for name, a in tensors.items() if a is not None}, config


def engine_of_layer(options: IndexOptions, W: Floats, bias: Floats, tensors: dict[str, np.ndarray],
                    config: dict[str, Any], n_threads: int) -> IndexEngine:
    """The engine of a state that a checkpoint keeps, over the weights of its layer."""
    try:
        return _restored(options, W, bias, tensors, config, n_threads)
    except DAMAGES as error:
        raise ValueError(f"the state of an index is damaged ({error})") from error


def engine_of_codes(options: IndexOptions, W: Floats, bias: Floats, codes: Ids, offset: Floats,
                    scale: float, seed: int, n_threads: int) -> IndexEngine:
    """The engine of tables, without sketches, whose neurons have these codes; they are checked."""
    tensors: dict[str, np.ndarray] = {
        "offset": offset, "codes": codes, "gone": np.zeros(len(W), np.uint8)}
    methods = {"single": "sketches", "batch": "sketches"}
    config: dict[str, Any] = {
        "seed": seed, "scaling": 0.0, "vector_scale": scale, "n_candidates": None, "n_probes": 1,
        "methods": methods, "times": {}, "trials": []}
    return engine_of_layer(options, W, bias, tensors, config, n_threads)


def engine_of_state(W: Floats, bias: Floats, tensors: dict[str, np.ndarray], config: dict[str, Any],
                    n_threads: int) -> IndexEngine:
    """The engine of `state`; W and bias must be the weights that it was saved over."""
    if (config["fingerprint"] != fingerprint(W, bias) or len(tensors["gone"]) != len(W)
            or config.get("weights") not in (None, weights_checksum(W, bias))):
        raise ValueError("it was saved over other weights than the W and bias given")
    family = family_from(config["family"])
    if config["auto_family"] and family is None:
        raise ValueError("the family that was chosen is missing")

    options = IndexOptions.checked("auto" if config["auto_family"] else family,
                                   **config["arguments"])
    engine = _restored(replace(options, family=family), W, bias, tensors, config, n_threads)
    engine.options = options
    return engine


def _restored(options: IndexOptions, W: Floats, bias: Floats, tensors: dict[str, np.ndarray],
              config: dict[str, Any], n_threads: int) -> IndexEngine:
    """The engine of a state, with the tables of `options.family`; all is checked."""
    n, n_in = W.shape
    if tensors["gone"].shape != (n,):
        raise ValueError(f"gone must have shape {(n,)}, got {tensors['gone'].shape}")
    removed = tensors["gone"].astype(bool)
    seed = check.integer(config["seed"], "seed", minimum=0)

    rows = QuantizedRows("float32", W)
    if options.storage != "float32":
        rows = QuantizedRows.restored(options.storage, W.shape, tensors["rows"],
                                      tensors.get("rows_scales"))
    scale = check.number(config.get("vector_scale", 1.0), "vector_scale", above=0)
    transform = Transform.restored(options.center, config["scaling"], scale, n_in, tensors)

    tables: Tables | NoTables = NoTables()
    family: Any = options.family
    if family is not None:
        tables = Tables(family, n, n_in + 1, options.dynamic, seed)
        tables.restore(tensors["codes"], n_threads)
        if "bucket_ids" in tensors:
            tables.restore_buckets(tensors)

    sketches: Sketches | NoSketches = NoSketches()
    if options.sketch_bits != 0:
        norm_floor = check.number(config["norm_floor"], "norm_floor", minimum=0, maximum=1e19)
        sketches = Sketches.restored(n, n_in + 1, norm_floor, tensors)
        if sketches.rotation.signs is not None and transform.query_map_ is not None:
            raise ValueError("rotation_signs contradict query_map: scaled queries have a matrix")
        sketches.prepare(transform, options.metric == "l2")
        sketches.has_biases = options.metric == "l2" or bool((bias != transform.offset_[-1]).any())
        sketches.set_bounds(Bounds.restored(config["bounds"]) if "bounds" in config
                            else Bounds.of_recall(options.recall))

    engine = IndexEngine(options, W, bias, transform, tables, sketches, rows, removed, seed)
    if config["n_candidates"] is not None:
        n_candidates = check.integer(config["n_candidates"], "n_candidates")
        if "bounds" in config:  # else it is that of a calibration, which had no bound
            engine.n_candidates = n_candidates
    n_computed, k_computed = config.get("n_computed", (0.0, 1))
    engine.n_computed = check.number(n_computed, "n_computed", minimum=0)
    engine.k_computed = check.integer(k_computed, "k_computed")
    if isinstance(sketches, Sketches) and "errors" not in tensors:
        _sketched_again(engine, n_threads)
    engine.n_probes = check.integer(config["n_probes"], "n_probes",
                                    maximum=1 if family is None else family.n_buckets)
    able = METHODS if engine.has_tables and engine.has_sketches else ("sketches", "exact")
    engine.methods = {kind: check.choice(config["methods"][kind], "methods", able)
                      for kind in engine.methods}
    engine.times = {kind: dict(times) for kind, times in config["times"].items()}
    engine.trials = [dict(trial) for trial in config["trials"]]
    return engine


def _sketched_again(engine: IndexEngine, n_threads: int) -> None:
    """Sketch all neurons of a file of an earlier version, which lacks the errors of sketches."""
    sketches = engine.sketches
    sketches.short_norms = np.full(len(engine.W) if sketches.norm_floor > 0 else 0, -1, np.float32)
    for name in ("blocks", "factors", "slot"):  # they may be mapped from a file
        setattr(sketches, name, getattr(sketches, name).copy())
    for rows in engine.row_chunks():
        rows = rows[~engine.removed[rows]]
        sketches.update(rows, *engine.directions(rows, n_threads), n_threads)
    sketches.prepare(engine.transform)


# -- files ---------------------------------------------------------------------------------------


def write(path: PathLike, engine: IndexEngine, ids: OwnIds | None, metric: Metric) -> None:
    """Write an engine, its metric and the ids that a user has given, as one safetensors file."""
    tensors, config = state(engine)
    if metric.origin is not None:
        tensors["origin"] = metric.origin
    if metric.exponent:
        config["exponent"] = metric.exponent
    config["weights"] = weights_checksum(engine.W, engine.bias)
    if ids is not None and ids.values.dtype.kind == "i":
        tensors["own_ids"] = ids.values
    elif ids is not None:
        config["own_ids"] = ids.values.tolist()
    _files.write_checked(path, tensors, FORMAT, json.dumps(config))


def own_ids(tensors: dict[str, np.ndarray], config: dict[str, Any], n_rows: int) -> OwnIds | None:
    """The ids in a file that `write` made, checked; None where there are none."""
    values = tensors.get("own_ids", config.get("own_ids"))
    return None if values is None else OwnIds(check.own_ids(values, n_rows))


def read(path: PathLike) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays and plain values of a file; ValueError where it is damaged."""
    tensors, metadata = _files.read(path, FORMAT)
    try:
        if "checksum" not in metadata:
            raise ValueError("it has no checksum")
        return tensors, json.loads(metadata["config"])
    except (KeyError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: the index in this file is damaged ({error}); "
                         "save it again") from error
