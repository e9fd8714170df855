"""Network: layers that are trained and used together.

    Network ─┬─ training.Training   state: optimizer, generator, history, progress
             ├─ layers              weights, and the indexes that find neurons
             └─ Refinement          classifiers of the inputs that re-rank the outputs of the layers

    _network     Network, load: data checks, training, inference; for `text`: the file with more
                 in it (save_with, load_with), and what an input adds to a score (contributions)
    _single_row  the answer for one sparse row by one call to the core
    _growth      new labels and features, with weights from rows
    _file        weights and configuration as a file
    _checkpoint  training state as arrays and plain values
"""
from ._checkpoint import check_training, restored_callbacks, training_plain
from ._growth import grow_from_rows, joined
from ._network import (
    Network,
    contributions,
    hidden_outputs,
    load,
    load_with,
    refined,
    save_with,
)

__all__ = [
    "Network", "contributions", "grow_from_rows", "hidden_outputs", "joined", "load", "load_with",
    "refined", "save_with",
]
