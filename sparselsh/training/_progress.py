"""TrainingProgress: what was asked of a training, and where it stands.

An epoch that was left half-way is replayed from the state that the generator had at its start: it
draws the same order of rows, and batches that are done are skipped.
"""
from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, Self

from .. import _validation as check

if TYPE_CHECKING:
    import numpy as np


@dataclass
class TrainingProgress:
    """What was asked of a training, and where it stands."""

    epochs: int
    batch_size: int
    shuffle: bool
    window: int
    epoch: int = 0  # epochs that are done
    stopped: bool = False  # before its last epoch
    n_rows: int | None = None  # of the source, once that is known
    n_batches: int = 0  # of the epoch at hand that are done; the sums are over them
    n: int = 0
    loss: float = 0.0
    share: float = 0.0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    generator: Any = None  # state of the network's generator at the head of the epoch at hand
    callbacks: list[tuple[str, dict[str, Any]]] = field(default_factory=list)  # (name, state)

    @property
    def is_done(self) -> bool:
        """Whether there is nothing left to resume."""
        return self.stopped or self.epoch == self.epochs

    def plain(self) -> dict[str, Any]:
        """The fields without `callbacks`, for a file."""
        return {key: value for key, value in asdict(self).items() if key != "callbacks"}

    @classmethod
    def restored(cls, plain: dict[str, Any]) -> Self:
        """The progress that a file holds, checked."""
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
            raise ValueError(f"epoch must be at most epochs={progress.epochs}, got {progress.epoch}")
        return progress

    def begin_epoch(self, generator: np.random.Generator) -> None:
        """Set the sums to zero, or wind the generator back to the head of an epoch that goes on."""
        if self.n_batches:
            generator.bit_generator.state = self.generator
        else:
            self.generator = generator.bit_generator.state
            self.n, self.loss, self.share, self.seconds, self.cpu_seconds = 0, 0.0, 0.0, 0.0, 0.0

    def add(self, n: int, loss: float, share: float, seconds: float, cpu_seconds: float) -> None:
        """Count a batch of n rows."""
        self.n_batches += 1
        self.n += n
        self.loss += loss * n
        self.share += share * n
        self.seconds += seconds
        self.cpu_seconds += cpu_seconds

    def entry(self) -> dict[str, float]:
        """The epoch at hand for the history."""
        return {"loss": self.loss / self.n, "seconds": self.seconds,
                "cpu_seconds": self.cpu_seconds,
                "samples_per_second": self.n / max(self.seconds, 1e-9),
                "computed_share": self.share / self.n}

    def end_epoch(self) -> None:
        """Count the epoch."""
        self.epoch += 1
        self.n_batches = 0
        self.generator = None

    def fraction(self, number: int, n_rows: int | None) -> float:
        """Fraction of the training that is done before batch `number`.

        Without n_rows, the fraction at the start of the epoch.
        """
        if n_rows is None:
            return self.epoch / self.epochs
        n_batches = -(-n_rows // self.batch_size)
        return self.epoch / self.epochs + min(number, n_batches) * (1 / (self.epochs * n_batches))
