"""Layers: parameters, forward and backward, and which neurons are computed.

The classes, and the modules of the package:

    Linear        every neuron
    LSHLinear     the neurons that hashing finds
      ├─ TableFinder or SketchFinder   which neurons a training step computes
      ├─ TopKSearch                    the index that topk searches
      └─ plans                         how the outputs of one set per sample are computed

    _linear           Linear
    _lsh_linear       LSHLinear
    _step             Step, the arguments of a forward pass; Place, the position of a layer
    _active_sets      the two finders
    _active_sketches  the sketches of a SketchFinder
    _topk_search      TopKSearch
    _plans            costs of the ways to compute a step
    _tally            counts of what a step computes
"""
from .._arrays.batch_active import BatchActive
from ._active_sets import new_finder
from ._linear import Linear
from ._lsh_linear import SEARCH_MIN_NEURONS, LSHLinear
from ._step import Place, Step, places_of
from ._tally import PHASES, Tally

__all__ = ["LSHLinear", "Linear"]
