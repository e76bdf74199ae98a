"""What training shows of a picture instead of the picture itself.

It is turned and mirrored, stained differently, larger or smaller, sharper or less sharp, and noisy.
Everything here works on whole batches on the device, from parameters drawn on the CPU, so that every device
sees the same.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import conv2d, interpolate, pad

from hnscc_qp.geometry import STEP_PX, WINDOW_PX

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


def zoom(pixels: Tensor, target: Tensor, *, side_px: int) -> tuple[Tensor, Tensor]:
    """Show a tile larger or smaller.

    A window of what is shown covers more or less of the tile than the tile's own did; it has the label of
    the one whose centre is nearest.

    Args:
        pixels: (1, 3, side, side) uint8 RGB, of whole steps of 10 px.
        target: (windows, windows) label of each window of it, one every 10 px.
        side_px: side that is wanted, of whole steps.

    Returns:
        Pixels (1, 3, side_px, side_px) uint8, and the label of each window of them.
    """
    side = pixels.shape[-1]
    if side == side_px:
        return pixels, target
    shown = interpolate(pixels.float(), (side_px, side_px), mode="bilinear", antialias=side > side_px)
    corner = torch.arange(0, side_px - WINDOW_PX + 1, STEP_PX)
    centre = (corner + WINDOW_PX / 2) * (side / side_px)
    nearest = ((centre - WINDOW_PX / 2) / STEP_PX).round().long().clamp(0, len(target) - 1)
    return shown.round().clamp(0, 255).to(torch.uint8), target[nearest][:, nearest]


def refocus(pixels: Tensor, sharpness: float, noise_levels: float, generator: torch.Generator) -> Tensor:
    """Show pictures less sharp or sharper, and with noise.

    Each is moved towards its blurred self (Gaussian of 1 px) or away from it by up to ± `sharpness` of the
    difference, and gets noise of its own in every pixel and channel, of a deviation of up to `noise_levels`.

    Args:
        pixels: (n, 3, height, width) uint8 RGB.
        sharpness: 0 changes nothing, with 1 the least sharp is blurred by 1 px.
        noise_levels: grey levels of 255.
        generator: on the CPU; what each pixel gets is drawn on the pixels' device from a seed of it.

    Returns:
        uint8 of the same shape.
    """
    device = pixels.device
    drawn = torch.rand(2, len(pixels), 1, 1, 1, generator=generator).to(device)
    seed = int(torch.randint(2**62, (1,), generator=generator))
    line = torch.exp(-(torch.arange(-2, 3, device=device) ** 2) / 2)
    kernel = torch.outer(line, line) / line.sum() ** 2
    shown = pixels.float()
    padded = pad(shown, (2, 2, 2, 2), mode="replicate")
    blurred = conv2d(padded, kernel.expand(3, 1, 5, 5).contiguous(), groups=3)
    shown = shown + (2 * drawn[0] - 1) * sharpness * (shown - blurred)
    speckle = torch.randn(shown.shape, generator=torch.Generator(device).manual_seed(seed), device=device)
    return (shown + drawn[1] * noise_levels * speckle).round().clamp(0, 255).to(torch.uint8)
