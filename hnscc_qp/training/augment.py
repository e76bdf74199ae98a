"""What training shows of a picture instead of the picture itself: turned, mirrored, and stained differently.

Everything here works on whole batches on the device, from parameters drawn on the CPU, so that every device
sees the same.
"""

from __future__ import annotations

import torch
from torch import Tensor

ORIENTATIONS = 8

_HED = ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11), (0.27, 0.57, 0.78))
"""Optical density, in red, green and blue, of haematoxylin, eosin and DAB (Ruifrok and Johnston 2001,
Anal Quant Cytol Histol 23:291-299); the third stands for what is neither of the stains."""


def orient(windows: Tensor, orientation: Tensor) -> Tensor:
    """Turn each square to one of its eight orientations (Tang et al. 2022, §2.3).

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
    iterations of 128 are 30 epochs of 8 · 22,400 patches).

    Returns:
        Indices of patches and their orientations, 0..7: two (patches · each,) tensors.
    """
    orientations = torch.rand(patches, ORIENTATIONS, generator=generator).argsort(dim=1)[:, :each]
    order = torch.randperm(patches * each, generator=generator)
    return order // each, orientations.reshape(-1)[order]


def draw_stains(n: int, strength: float, generator: torch.Generator) -> Tensor:
    """Draw how each of `n` pictures is stained; see `restain`.

    Each stain's amount is multiplied by up to 1 ± `strength` and moved by up to ± `strength` / 5 of optical
    density (Tellez et al. 2019, Med Image Anal 58:101544, §3.1.2, whose "strong" is 0.2), and each
    colour of the light by up to 1 ± `strength` / 5, as scanners' white balance does.

    Returns:
        (n, 3, 4): what makes new optical densities of old ones, a matrix and a shift for each picture.
    """
    stains = torch.tensor(_HED)
    stains = stains / stains.norm(dim=1, keepdim=True)
    drawn = torch.rand(n, 3, 3, generator=generator) * 2 - 1
    gain, shift, light = 1 + strength * drawn[:, 0], strength / 5 * drawn[:, 1], strength / 5 * drawn[:, 2]
    # Row vectors: density → amounts → changed amounts → density.
    matrix = stains.inverse() @ torch.diag_embed(gain) @ stains
    moved = shift @ stains - torch.log10(1 + light)
    return torch.cat([matrix.transpose(1, 2), moved.unsqueeze(2)], dim=2)


def restain(pixels: Tensor, stains: Tensor) -> Tensor:
    """Show pictures in other stains.

    Args:
        pixels: (n, 3, height, width) uint8 RGB.
        stains: (n, 3, 4) of `draw_stains`, on the same device.

    Returns:
        uint8 of the same shape.
    """
    density = -torch.log10((pixels.float() + 1) / 256)
    flat = density.flatten(2)
    changed = torch.baddbmm(stains[:, :, 3:], stains[:, :, :3], flat).view_as(density)
    return (torch.pow(10.0, -changed) * 256 - 1).round().clamp(0, 255).to(torch.uint8)
