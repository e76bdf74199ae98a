"""What networks leave of a CPU's memory when a map is freed, and when it is not enough."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8
"""Numbers of glibc's malloc.h."""
_MMAPS, _TRIM_BYTES = 65536, 128 * 1024
"""glibc's own values."""
_NO_MEMORY = ("can't allocate memory", "could not create a primitive", "std::bad_alloc")
"""What torch, oneDNN and the standard library say on a CPU; seen with its address space limited."""


@contextmanager
def held_memory(device: torch.device) -> Iterator[None]:
    """Keep freed memory for the next maps instead of giving it back to the system, on a CPU with glibc.

    Every batch or piece frees and wants the same maps. glibc hands blocks over 32 MiB back at once, and the
    heaps of threads that have become empty, and the system clears each page again when it comes back: a
    quarter of a dense training's processor time at 64 px, 30 % of a forward pass. Elsewhere, as with musl,
    on a Mac or under another allocator, nothing is changed.
    """
    malloc = _glibc() if device.type == "cpu" else None
    if malloc is None:
        yield
        return
    malloc.mallopt(_M_MMAP_MAX, 0)  # no mapping of its own for any block
    malloc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    malloc.mallopt(_M_ARENA_MAX, 1)  # threads that start from now on take the same heap
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
