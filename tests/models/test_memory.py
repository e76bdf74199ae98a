"""Memory that a network frees is used again."""

from __future__ import annotations

import multiprocessing
import platform
import resource
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from hnscc_qp.models import memory
from hnscc_qp.models.memory import held_memory

BLOCK_BYTES, TIMES = 64 * 2**20, 4


def pages_cleared() -> int:
    """How many pages the system had to make for large blocks that come and go."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(TIMES):
        torch.empty(BLOCK_BYTES, dtype=torch.uint8).fill_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def resident_pages() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1])


def pages_of_a_process() -> tuple[int, int, int]:
    """Pages cleared in the main thread and in another, and pages given back at the end."""
    with held_memory(torch.device("cpu")):
        # Blocks are aligned, so that it takes a few until one fits where another was.
        here = min(pages_cleared() for _ in range(4))
        with ThreadPoolExecutor(1) as pool:
            there = min(pool.submit(pages_cleared).result() for _ in range(4))
        held = resident_pages()
    return here, there, held - resident_pages()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's allocator is spoken to")
def test_freed_memory_is_used_again_by_all_threads_and_given_back_after_it() -> None:
    # In a process of its own: how threads share the heap is decided when the first of them start.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        here, there, given_back = pool.submit(pages_of_a_process).result()
    pages = BLOCK_BYTES // resource.getpagesize()
    assert here < pages
    assert there < pages
    assert given_back > pages / 2


def test_memory_is_left_alone_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_glibc", lambda: pytest.fail("glibc was asked"))
    with held_memory(torch.device("cuda")):
        pass
