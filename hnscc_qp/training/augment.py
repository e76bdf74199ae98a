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


def orient_randomly(windows: Tensor, generator: torch.Generator) -> Tensor:
    """Give each window an orientation of its own, drawn on the CPU so that every device sees the same."""
    orientation = torch.randint(ORIENTATIONS, (len(windows),), generator=generator)
    return orient(windows, orientation.to(windows.device))
