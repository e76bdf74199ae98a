"""How a training went, epoch by epoch: values, `log.csv`, and TensorBoard where it is installed."""

from __future__ import annotations

import csv
import errno
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hnscc_qp.files import atomic_path, storing

LOG_FILE = "log.csv"
TENSORBOARD_FOLDER = "tensorboard"
_ROOM_BYTES = 2**20
"""Free on the disk, for a line of TensorBoard's."""


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
    """Write `log.csv`, a line per epoch.

    Raises:
        StorageError: it can't be written; the one before stays.
    """
    path = folder / LOG_FILE
    with (
        storing(path),
        atomic_path(path) as partial,
        partial.open("w", newline="", encoding="utf-8") as stream,
    ):
        writer = csv.DictWriter(stream, [field.name for field in fields(Epoch)])
        writer.writeheader()
        writer.writerows(asdict(epoch) for epoch in history)


class TensorBoard:
    """TensorBoard's log of a training, if the package is there; else nothing."""

    def __init__(self, folder: Path | None) -> None:
        """Log below `folder`."""
        self._writer: Any = None
        self._folder = folder
        if folder is not None and find_spec("tensorboard") is not None and _has_room(folder):
            # One that does not fit what else is installed is as good as none; a folder that can't be
            # written to is told of by whoever writes the checkpoint there.
            with suppress(ImportError, OSError):
                from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415

                self._writer = SummaryWriter(str(folder / TENSORBOARD_FOLDER))

    def add(self, epoch: Epoch) -> None:
        """Log an epoch.

        Raises:
            StorageError: it can't be written.
        """
        if self._writer is None or self._folder is None:
            return
        with storing(self._folder / TENSORBOARD_FOLDER):
            if not _has_room(self._folder):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            for name, value in asdict(epoch).items():
                if name not in ("number", "iterations"):
                    self._writer.add_scalar(name, value, epoch.iterations)
            self._writer.flush()

    def close(self) -> None:
        """End the log."""
        if self._writer is not None:
            with suppress(OSError):  # all epochs were flushed
                self._writer.close()


def _has_room(folder: Path) -> bool:
    """Whether TensorBoard can be let write: on a full disk its thread dies with a traceback of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    return shutil.disk_usage(folder).free >= _ROOM_BYTES
