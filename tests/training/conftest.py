"""Small patches and tiles that a network can learn in a few steps, on one thread."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray


@pytest.fixture(autouse=True)
def _one_thread(one_thread: None) -> None:
    pass


@pytest.fixture
def patches() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """96 patches, tumor purple and nontumor pink, with noise; labels alternate."""
    rng = np.random.default_rng(5)
    labels = np.arange(96) % 2
    colours = np.array([[220, 150, 190], [110, 60, 150]])[labels]
    noise = rng.integers(-30, 30, (96, 40, 40, 3))
    return (colours[:, None, None, :] + noise).clip(0, 255).astype(np.uint8), labels


@pytest.fixture
def tiles() -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.str_]]:
    """Six pieces of 160 px of three slides, in each a purple square; the labels of their 13 × 13 windows.

    A window is tumor if it holds any purple; the last column is ignored.
    """
    rng = np.random.default_rng(6)
    pixels = np.empty((6, 160, 160, 3), np.uint8)
    labels = np.zeros((6, 13, 13), np.uint8)
    for number in range(6):
        purple = np.zeros((160, 160), bool)
        top, left = rng.integers(0, 100, 2)
        purple[top : top + 60, left : left + 60] = True
        colours = np.where(purple[..., None], (110, 60, 150), (220, 150, 190))
        pixels[number] = (colours + rng.integers(-30, 30, colours.shape)).clip(0, 255)
        for row in range(13):
            for column in range(13):
                labels[number, row, column] = purple[row * 10 : row * 10 + 40, column * 10 :][:, :40].any()
    labels[:, :, -1] = 2
    return pixels, labels, np.array(["A", "A", "B", "B", "C", "C"])
