"""Where and how a training computes: device, precision, and how many processes share it."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment

from hnscc_qp.study import Training


def processes() -> int:
    """How many processes `torchrun` started for this training; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first_process() -> bool:
    """Whether this process is the one that writes files and shows progress."""
    return int(os.environ.get("RANK", "0")) == 0


def make_fabric(device: torch.device, settings: Training) -> Fabric:
    """Lightning's Fabric for one process on `device`, or for those that `torchrun` started.

    With `torchrun` each process on a machine with GPUs takes the one of its local rank.
    """
    for name in ("lightning_fabric", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    world, local = processes(), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    precision: Literal["32-true", "bf16-mixed"] = (
        "bf16-mixed" if chosen_precision(device, settings) == "bfloat16" else "32-true"
    )
    devices: int | list[int] = [device.index] if device.index is not None and world == 1 else local
    with warnings.catch_warnings():
        # It recommends worker processes and the like to those who load data through it.
        warnings.simplefilter("ignore")
        fabric = Fabric(
            accelerator=device.type,
            devices=devices,
            num_nodes=world // local,
            strategy="ddp" if world > 1 else "auto",
            precision=precision,
            # Said and not guessed: a batch system's variables around a single process mean nothing.
            plugins=[TorchElasticEnvironment() if world > 1 else LightningEnvironment()],
        )
        fabric.launch()
    return fabric


def chosen_precision(device: torch.device, settings: Training) -> Literal["float32", "bfloat16"]:
    """What `auto` comes to on this device."""
    if settings.precision != "auto":
        return settings.precision
    able = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bfloat16" if able else "float32"


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Let the same seed give the same weights on a GPU too."""
    if not wanted:
        yield
        return
    # cuBLAS reads it when it starts.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before, benchmark = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        torch.backends.cudnn.benchmark = benchmark
