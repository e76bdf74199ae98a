"""Where and how a training computes: device, precision, and how many processes share it."""

from __future__ import annotations

import ctypes
import logging
import os
import platform
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment

from hnscc_qp.study import Training

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
"""Numbers of glibc's malloc.h."""
_MMAPS, _TRIM_BYTES = 65536, 128 * 1024
"""glibc's own values."""
_NO_MEMORY = ("can't allocate memory", "could not create a primitive", "std::bad_alloc")
"""What torch, oneDNN and the standard library say on a CPU; seen with its address space limited."""


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
def held_memory(device: torch.device) -> Iterator[None]:
    """Keep freed memory for the next batch instead of giving it back to the system, on a CPU with glibc.

    Every batch frees and wants the same maps. glibc hands blocks over 32 MiB back at once, and the system
    clears each page again when it comes back: a quarter of a dense training's processor time at 64 px.
    Elsewhere, as with musl, on a Mac or under another allocator, nothing is changed.
    """
    malloc = _glibc() if device.type == "cpu" else None
    if malloc is None:
        yield
        return
    malloc.mallopt(_M_MMAP_MAX, 0)  # no mapping of its own for any block
    malloc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    try:
        yield
    finally:
        release_memory(device)


def release_memory(device: torch.device) -> None:
    """Give freed memory back, now and from here on: where it is short, what is held lies in pieces."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "cpu" and (malloc := _glibc()):
        malloc.mallopt(_M_MMAP_MAX, _MMAPS)
        malloc.mallopt(_M_TRIM_THRESHOLD, _TRIM_BYTES)
        malloc.malloc_trim(0)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an error says that memory does not hold what was wanted, on any device."""
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in _NO_MEMORY)


def _glibc() -> ctypes.CDLL | None:
    """glibc's allocator, unless something else is in its place."""
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc" or os.environ.get("LD_PRELOAD"):
        return None
    return ctypes.CDLL(None)


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
