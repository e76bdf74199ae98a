"""The eight orientations of a square window: rotations by 90° and flips (Tang et al. 2022, §2.3)."""

from __future__ import annotations

import torch
from torch import Tensor

ORIENTATIONS = 8


def orient(windows: Tensor, orientation: Tensor) -> Tensor:
    """Turn each window to one of its eight orientations.

    Args:
        windows: (n, channels, side, side), any dtype.
        orientation: (n,) integers in 0..7 on the same device: 1 flips left and right, 2 flips top
            and bottom, 4 then transposes; together they make every rotation and reflection once.
    """
    codes = orientation.view(-1, 1, 1, 1)
    windows = torch.where((codes & 1).bool(), windows.flip(3), windows)
    windows = torch.where((codes & 2).bool(), windows.flip(2), windows)
    return torch.where((codes & 4).bool(), windows.transpose(2, 3), windows)


def draw_orientations(patches: int, each: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Pairs of a patch and an orientation, in random order: each patch in `each` different orientations.

    With `each` = 8 an epoch holds every patch in every orientation, as the paper's does (42,000
    iterations of 128 are 30 epochs of 8 · 22,400 patches). Drawn on the CPU, so that every device
    sees the same.

    Returns:
        Indices of patches and their orientations, 0..7: two (patches · each,) tensors.
    """
    orientations = torch.rand(patches, ORIENTATIONS, generator=generator).argsort(dim=1)[:, :each]
    order = torch.randperm(patches * each, generator=generator)
    return order // each, orientations.reshape(-1)[order]
