"""A training's whole state as one file, so that it goes on after whatever stopped it.

One safetensors file holds every tensor, and in its header, as JSON, all else: it is there as a whole or
not at all, and nothing in it is pickled. Random numbers need no state: they follow from seed, epoch and
batch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from hnscc_qp.errors import CheckpointError
from hnscc_qp.models.checkpoint import write_tensors
from hnscc_qp.models.networks import find_misfit
from hnscc_qp.training.history import Epoch

STATE_FILE = "training.safetensors"
_FORMAT = 1
Tensors = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class Keeping:
    """Where a training keeps its state and its log, and how often."""

    folder: Path
    key: str
    """Identifies data and settings: a checkpoint with another is not gone on with."""
    every_seconds: float = 60.0
    """Between checkpoints; there is one after every epoch anyway."""

    @property
    def state_file(self) -> Path:
        """The checkpoint."""
        return self.folder / STATE_FILE


@dataclass(slots=True)
class Position:
    """How far a training is."""

    epoch: int = 1
    """Under way, from 1."""
    batch: int = 0
    """Of the epoch, the next one."""
    pieces: int = 1
    """Parts that a batch is computed in, as memory did not hold it whole."""
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)
    """Of the epoch's batches so far."""
    history: list[Epoch] = field(default_factory=list)
    best: int = -1
    """Index into the history."""


@dataclass(frozen=True, slots=True)
class State:
    """A checkpoint of a training, as read."""

    position: Position
    best: dict[str, Tensor]
    """Weights of the best epoch; empty before the first is over."""
    average: dict[str, Tensor]
    """Running average of the weights; empty where none is kept."""


def save_state(
    path: Path,
    *,
    key: str,
    network: str,
    position: Position,
    classifier: nn.Module,
    optimizer: torch.optim.Optimizer,
    best: Tensors,
    average: Tensors,
) -> None:
    """Write a checkpoint in place of the one before.

    Args:
        path: of the file.
        key: identifies data and settings; see `load_state`.
        network: what is trained, for a message.
        position: how far it is.
        classifier: in training.
        optimizer: of the classifier's parameters.
        best: weights of the best epoch.
        average: running average of the weights.

    Raises:
        StorageError: it can't be written; the one before stays.
    """
    tensors: dict[str, Tensor] = {}
    for prefix, some in (
        ("model", classifier.state_dict()),
        ("best", best),
        ("average", average),
        ("optimizer", _optimizer_tensors(optimizer)),
    ):
        tensors |= {f"{prefix}.{name}": one for name, one in some.items()}
    header = {"format": _FORMAT, "key": key, "network": network, "position": asdict(position)}
    write_tensors(path, tensors, metadata={"training": json.dumps(header)})


def load_state(
    path: Path, *, key: str, network: str, classifier: nn.Module, optimizer: torch.optim.Optimizer
) -> State | None:
    """Put classifier and optimizer where a checkpoint left them.

    Returns:
        The rest of its state; None if there is no checkpoint.

    Raises:
        CheckpointError: it is damaged, or of another network, other settings or other data; nothing
            is changed.
    """
    if not path.exists():
        return None
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})["training"])
            if header["format"] != _FORMAT:
                raise ValueError(f"its format is {header['format']}")
        if header["network"] != network:
            raise CheckpointError(f"{path} is a training of {header['network']}, not of {network}")
        if header["key"] != key:
            raise CheckpointError(f"{path} is a training on other patches or with other settings")
        tensors = safetensors.torch.load_file(path)
        position = Position(**header["position"])
        position.history = [Epoch(**values) for values in header["position"]["history"]]
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path} is damaged ({error})") from error
    model = _below("model", tensors)
    if misfit := find_misfit(classifier.state_dict(), model):
        raise CheckpointError(f"{path} is not of this network: {misfit}")
    classifier.load_state_dict(model)
    _restore_optimizer(optimizer, _below("optimizer", tensors))
    return State(position, _below("best", tensors), _below("average", tensors))


def _below(prefix: str, tensors: Tensors) -> dict[str, Tensor]:
    start = f"{prefix}."
    return {name.removeprefix(start): one for name, one in tensors.items() if name.startswith(start)}


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    states: dict[int, dict[str, Any]] = optimizer.state_dict()["state"]
    return {
        f"{number}.{name}": torch.as_tensor(one)
        for number, some in states.items()
        for name, one in some.items()
    }


def _restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Tensors) -> None:
    states: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        number, _, key = name.partition(".")
        states.setdefault(int(number), {})[key] = tensor
    # The groups as they are: what stands in them follows from the settings and the position.
    optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})
