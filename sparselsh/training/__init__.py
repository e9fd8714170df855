"""How a network is trained: steps, epochs, where batches come from.

    train ─► _epoch ─► _steps ─► Training.step      a loop over epochs, over batches, one step
      │                  │
      │                  └─ batches(source)         matrices, a CSR file or an iterable of chunks
      └─ Interrupts, callbacks, TrainingProgress    Ctrl-C, what users add, where it stands

    _step           Training: forward, loss, backward, update; knows layers, a loss, an optimizer
    _loop           epochs and steps
    _progress       TrainingProgress: how far a training is, so that it can be resumed
    _interrupts     Ctrl-C between steps
    _batches        where rows come from, and how they become batches
    _label_vectors  first weights from the data
"""
from ._batches import WINDOW_ROWS, Source, source_of
from ._label_vectors import ids_are_shared, label_vectors
from ._loop import callback_states, train, train_once
from ._progress import TrainingProgress
from ._step import Training
