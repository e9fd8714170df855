"""Network: layers, trained and used together.

    Network ─┬─ training.Training   optimizer, generator, history, progress: what it remembers
             ├─ layers              weights, and the indexes that find neurons
             └─ Refinement          classifiers of the inputs that rank anew what the layers find

    _network     Network, load: checks of data, training, inference
    _file        weights and configuration as a file
    _checkpoint  state of a training as arrays and plain values
"""
from ._network import Network, load

__all__ = ["Network", "load"]
