"""Training of a network: steps, epochs and the sources of batches.

    train ─► _epoch ─► _steps ─► Training.step      loops over epochs and over batches; one step
      │                  │
      │                  └─ batches(source)         matrices, a CSR file or an iterable of chunks
      └─ Interrupts, callbacks, TrainingProgress    signals, code of users, the state of the run

    _step           Training: forward, loss, backward, update; holds layers, loss, optimizer
    _attempt        Attempt: a step that has begun, which is finished or undone
    _loop           epochs and steps
    _progress       TrainingProgress: how much of a training is done, for resuming it
    _batches        sources of rows, and their division into batches
    _label_vectors  initial weights computed from the data
"""
from ._attempt import Diverged
from ._batches import WINDOW_ROWS, Source, source_of
from ._label_vectors import feature_vectors, ids_are_shared, label_directions, label_vectors
from ._loop import ON_NONFINITE, callback_states, train, train_once
from ._progress import TrainingProgress
from ._step import Training
