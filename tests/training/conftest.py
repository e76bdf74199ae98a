"""Small patches that a network can learn in a few steps, on one thread."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from numpy.typing import NDArray


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def patches() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """96 patches, tumor purple and nontumor pink, with noise; labels alternate."""
    rng = np.random.default_rng(5)
    labels = np.arange(96) % 2
    colours = np.array([[220, 150, 190], [110, 60, 150]])[labels]
    noise = rng.integers(-30, 30, (96, 40, 40, 3))
    return (colours[:, None, None, :] + noise).clip(0, 255).astype(np.uint8), labels
