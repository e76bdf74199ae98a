"""Memory that a network frees is used again."""

from __future__ import annotations

import platform
import resource
from concurrent.futures import ThreadPoolExecutor
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


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's allocator is spoken to")
def test_freed_memory_is_used_again_by_all_threads_and_given_back_after_it() -> None:
    pages = BLOCK_BYTES // resource.getpagesize()
    with held_memory(torch.device("cpu")):
        # Blocks are aligned, so that it takes a few until one fits where another was.
        assert min(pages_cleared() for _ in range(4)) < pages
        with ThreadPoolExecutor(1) as pool:
            assert min(pool.submit(pages_cleared).result() for _ in range(4)) < pages
        held = resident_pages()
    assert resident_pages() < held - pages / 2


def test_memory_is_left_alone_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_glibc", lambda: pytest.fail("glibc was asked"))
    with held_memory(torch.device("cuda")):
        pass
