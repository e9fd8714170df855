"""LSHIndex: the neurons with the largest inner products with an input.

The structure of an index, and the modules of the package:

                      LSHIndex          checks arguments, locks, reports
                          │
    _build ─► _tuning ─► IndexEngine ◄─ layers use one directly
                          │
         ┌────────────────┼──────────────────┬──────────────────┐
      Transform        Tables             Sketches        QuantizedRows
      centring,        hash buckets:      sign bits and   rows of the weights
      scaling          active sets,       cells: search   in fewer bits
                       probing

    _lsh_index       LSHIndex: arguments, documentation, locking, report, plot
    _metric          inner products, cosines, distances: what is kept of rows and queries
    _options         the options of an index, checked once
    _engine          IndexEngine: search, candidates, changes, for trusted arrays
    _build           weights and queries to a tuned engine
    _bounds          how far a search goes before it stops, by the wanted recall
    _own_ids         ids that a user has given to the rows
    _tuning          trials on queries: recall, bounds, the plan
    _table_choice    K and L of SimHash tables
    _tables          hash tables over the neurons
    _rotations       random rotations, by a matrix or by Hadamard matrices
    _sketches        sign sketches, and the scan over them
    _cells           a coarse partition of the neurons, so that a scan reads a part
    _quantized_rows  rows in bfloat16 or int8
    _coded_rows      rows in four bits, by which searches leave out nothing, or little
    _file            an engine as arrays and plain values
    transforms       transforms of the vectors that keep the ranking
"""
from ._bounds import Bounds
from ._build import N_NEIGHBOURS, build, drawn_seed
from ._coded_rows import CodedRows
from ._engine import (
    BATCH_PLAN_MIN_ROWS,
    FOUND_PER_CANDIDATE,
    MIN_NEURONS_PER_CANDIDATE,
    IndexEngine,
)
from ._file import engine_of_codes, engine_of_layer, engine_of_state, state
from ._lsh_index import LSHIndex
from ._options import IndexOptions
from ._quantized_rows import STORAGES, QuantizedRows
from ._table_choice import default_family
from ._tuning import (
    reach_of_short,
    recall_of,
    split_in_blocks,
    take_bounds,
    tune,
    tune_together,
)
from .transforms import NeuronSums

__all__ = ["LSHIndex"]
