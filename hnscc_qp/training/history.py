"""How a training went, epoch by epoch: values, `log.csv`, and TensorBoard where it is installed."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hnscc_qp.files import atomic_path

LOG_FILE = "log.csv"
TENSORBOARD_FOLDER = "tensorboard"


@dataclass(frozen=True, slots=True)
class Epoch:
    """What one epoch came to."""

    number: int
    """From 1."""
    learning_rate: float
    """At its last batch."""
    training_loss: float
    validation_loss: float
    validation_accuracy: float
    validation_auc: float
    iterations: int = 0
    """From the beginning of the training."""
    seconds: float = 0.0
    """From the beginning of the training, pauses left out."""
    iterations_per_second: float = 0.0
    """Of this epoch's batches."""

    def judged(self) -> tuple[Any, ...]:
        """All but the clock: what the same training gives again."""
        return tuple(getattr(self, field.name) for field in fields(self)[:7])


@dataclass(frozen=True, slots=True)
class FitResult:
    """How training went. The classifier holds the weights of the best epoch."""

    history: tuple[Epoch, ...]
    best_epoch: int
    stopped_early: bool
    """As the validation loss fell no more."""
    out_of_time: bool
    """As `--max-minutes` were over; training can go on from its checkpoint."""
    seconds: float

    def as_json(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def write_log(folder: Path, history: Sequence[Epoch]) -> None:
    """Write `log.csv`, a line per epoch."""
    with atomic_path(folder / LOG_FILE) as partial, partial.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, [field.name for field in fields(Epoch)])
        writer.writeheader()
        writer.writerows(asdict(epoch) for epoch in history)


class TensorBoard:
    """TensorBoard's log of a training, if the package is there; else nothing."""

    def __init__(self, folder: Path | None) -> None:
        """Log below `folder`."""
        self._writer: Any = None
        if folder is not None and find_spec("tensorboard") is not None:
            from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415

            self._writer = SummaryWriter(str(folder / TENSORBOARD_FOLDER))

    def add(self, epoch: Epoch) -> None:
        """Log an epoch."""
        if self._writer is not None:
            for name, value in asdict(epoch).items():
                if name not in ("number", "iterations"):
                    self._writer.add_scalar(name, value, epoch.iterations)
            self._writer.flush()

    def close(self) -> None:
        """End the log."""
        if self._writer is not None:
            self._writer.close()
