"""TrainingProgress: the arguments of a training, and how much of it is done.

An interrupted epoch is replayed from the state that the generator had at its start: it draws the
same order of rows, and the batches that are done are skipped.
"""
from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, Self

from .. import _validation as check

if TYPE_CHECKING:
    import numpy as np


@dataclass
class TrainingProgress:
    """Arguments of a training, and how much of it is done.

    Attributes
    ----------
    epochs, batch_size, window : int
    shuffle : bool
        Arguments of `fit`.
    epoch : int
        Number of epochs that are done.
    stopped : bool
        Whether a callback ended the training before its last epoch.
    n_rows : int or None
        Rows of the source, once the number is known.
    n_batches, n : int
        Batches and rows of the current epoch that are done.
    loss, share : float
        Sums over these rows of the loss and of the computed fraction of the output neurons.
    seconds, cpu_seconds : float
        Time spent in these batches.
    generator : dict or None
        State of the network's generator at the start of the current epoch; None between epochs.
    callbacks : list of (str, dict)
        Name and state of each callback.
    """

    epochs: int
    batch_size: int
    shuffle: bool
    window: int
    epoch: int = 0
    stopped: bool = False
    n_rows: int | None = None
    n_batches: int = 0
    n: int = 0
    loss: float = 0.0
    share: float = 0.0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    generator: Any = None
    callbacks: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    @property
    def is_done(self) -> bool:
        """Whether there is nothing left to resume."""
        return self.stopped or self.epoch == self.epochs

    @property
    def has_begun(self) -> bool:
        """Whether the first epoch has begun."""
        return self.generator is not None or self.epoch > 0

    def plain(self) -> dict[str, Any]:
        """The fields without `callbacks`, for a file."""
        return {key: value for key, value in asdict(self).items() if key != "callbacks"}

    @classmethod
    def restored(cls, plain: dict[str, Any]) -> Self:
        """The checked progress of a file."""
        names = (f.name for f in fields(cls) if f.name != "callbacks")
        progress = cls(**{name: plain[name] for name in names})

        for name in ("epochs", "batch_size", "window"):
            check.integer(getattr(progress, name), name)
        for name in ("epoch", "n_batches", "n"):
            check.integer(getattr(progress, name), name, minimum=0)
        for name in ("loss", "share", "seconds", "cpu_seconds"):
            check.number(getattr(progress, name), name)
        if progress.n_rows is not None:
            check.integer(progress.n_rows, "n_rows")
        if progress.epoch > progress.epochs:
            raise ValueError(f"epoch must be at most epochs={progress.epochs}, "
                             f"got {progress.epoch}")
        return progress

    def begin_epoch(self, generator: np.random.Generator) -> None:
        """Reset the sums, or restore the generator to the start of an interrupted epoch."""
        if self.generator is not None:
            generator.bit_generator.state = self.generator
        else:
            self.__dict__.update(n=0, loss=0.0, share=0.0, seconds=0.0, cpu_seconds=0.0,
                                 generator=generator.bit_generator.state)

    def add(self, n: int, loss: float, share: float, seconds: float, cpu_seconds: float) -> None:
        """Count a batch of n rows."""
        self.__dict__.update(  # in one instruction, or not at all
            n_batches=self.n_batches + 1, n=self.n + n, loss=self.loss + loss * n,
            share=self.share + share * n, seconds=self.seconds + seconds,
            cpu_seconds=self.cpu_seconds + cpu_seconds)

    def skip(self) -> None:
        """Count a batch that was not trained on, and is not in the sums."""
        self.n_batches += 1

    def entry(self) -> dict[str, float]:
        """The history entry of the current epoch."""
        n = self.n or math.nan  # where every batch was skipped
        return {"loss": self.loss / n, "seconds": self.seconds, "cpu_seconds": self.cpu_seconds,
                "samples_per_second": self.n / max(self.seconds, 1e-9),
                "computed_share": self.share / n if self.n else 0.0}

    def end_epoch(self) -> None:
        """Count the current epoch as done."""
        self.__dict__.update(epoch=self.epoch + 1, n_batches=0, generator=None)

    def fraction(self, number: int, n_rows: int | None) -> float:
        """Fraction of the training that is done before batch `number` of the current epoch.

        Without n_rows, the fraction at the start of the epoch.
        """
        if n_rows is None:
            return self.epoch / self.epochs
        n_batches = -(-n_rows // self.batch_size)
        return self.epoch / self.epochs + min(number, n_batches) * (1 / (self.epochs * n_batches))
