"""Windows of noise and networks from scratch, on one thread: they are small."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread(one_thread: None) -> None:
    pass


@pytest.fixture
def windows() -> torch.Tensor:
    """(24, 3, 40, 40) uint8, each of its own mean colour so that a network tells them apart."""
    generator = torch.Generator().manual_seed(3)
    base = torch.randint(0, 200, (24, 3, 1, 1), generator=generator)
    noise = torch.randint(0, 56, (24, 3, 40, 40), generator=generator)
    return (base + noise).to(torch.uint8)
