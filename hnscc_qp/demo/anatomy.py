"""Where each tissue of a generated lymph node lies: a label image at 1 µm/px, the truth of the demo."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage

Floats = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
Labels = npt.NDArray[np.uint8]

_SMALLEST_ISLAND_UM2 = 900


class Tissue(IntEnum):
    """What a µm² of a drawn node is."""

    GLASS = 0
    FAT = 1
    CAPSULE = 2
    SINUS = 3
    CORTEX = 4
    MANTLE = 5
    GERMINAL = 6
    CORD = 7
    STROMA = 8
    TUMOR = 9
    KERATIN = 10
    NECROSIS = 11


@dataclass(frozen=True, slots=True)
class Metastasis:
    """One deposit: a region of tumor islands, with the stroma that it calls up around itself."""

    center: tuple[float, float]
    """(x, y) as shares of the slide's width and height."""
    radius_um: float
    islands: float = 0.5
    """0: a solid sheet; 1: small nests far apart in stroma."""
    necrosis: bool = False
    pearls: int = 0


@dataclass(frozen=True, slots=True)
class NodePlan:
    """What to draw on one slide."""

    follicles: int = 6
    sinus_um: float = 12.0
    """Width of the subcapsular sinus; 25 and more is sinus histiocytosis."""
    medulla: float = 0.25
    """Radius of the medulla as a share of the slide's width."""
    fat: bool = True
    fold: bool = False
    metastases: tuple[Metastasis, ...] = ()


def smooth_noise(rng: np.random.Generator, shape: tuple[int, int], scale_px: float) -> Floats:
    """Noise of zero mean and unit variance whose blobs are about `scale_px` wide."""
    height, width = shape
    # Smoothed on a grid finer than its blobs, or the blobs would line up with the axes.
    grid_px = max(1.0, scale_px / 3)
    coarse = int(height / grid_px) + 2, int(width / grid_px) + 2
    grid: Floats = rng.standard_normal(coarse, dtype=np.float32)
    grid = ndimage.gaussian_filter(grid, scale_px / grid_px / 2.4)
    grid -= grid.mean()
    grid /= grid.std()
    if grid_px == 1:
        return grid[:height, :width]
    return np.asarray(Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC))


def lay_out(plan: NodePlan, rng: np.random.Generator, size_um: tuple[int, int]) -> Labels:
    """Draw up a node.

    Args:
        plan: what it holds.
        rng: source of every chance in it.
        size_um: (width, height) of the slide.

    Returns:
        (height, width) `Tissue` values, one per µm².
    """
    width, height = size_um
    shape = (height, width)
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    across = np.abs(x / width - 0.5) / rng.uniform(0.38, 0.45)
    down = np.abs(y / height - 0.5) / rng.uniform(0.37, 0.43)
    node = 1 - (across**2.3 + down**2.3) ** (1 / 2.3) + 0.055 * smooth_noise(rng, shape, 190) > 0
    node = _drop_small(node, 0.2 * node.size)
    depth = ndimage.distance_transform_edt(node).astype(np.float32)

    labels = np.where(node, Tissue.CORTEX, Tissue.GLASS).astype(np.uint8)
    if plan.fat:
        beyond = ndimage.distance_transform_edt(~node).astype(np.float32)
        side = smooth_noise(rng, shape, 420)
        to_border = np.minimum(np.minimum(x, width - 1 - x), np.minimum(y, height - 1 - y))
        rough = 12 * smooth_noise(rng, shape, 90)
        labels[~node & (beyond < 25 + 45 * side + rough) & (to_border > 14 + rough / 2)] = Tissue.FAT
    capsule_um = 13 + 3 * smooth_noise(rng, shape, 70)
    _lay_medulla(labels, plan, rng, depth)
    _lay_trabeculae(labels, rng, depth)
    _lay_follicles(labels, plan, rng, depth, capsule_um + plan.sinus_um)
    labels[node & (depth < capsule_um + plan.sinus_um * (1 + 0.3 * smooth_noise(rng, shape, 50)))] = (
        Tissue.SINUS
    )
    for metastasis in plan.metastases:
        _lay_metastasis(labels, metastasis, rng, depth > capsule_um)
    labels[node & (depth < capsule_um)] = Tissue.CAPSULE
    return labels


def _lay_medulla(labels: Labels, plan: NodePlan, rng: np.random.Generator, depth: Floats) -> None:
    height, width = labels.shape
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    hilum = width * rng.uniform(0.42, 0.58), height * rng.uniform(0.52, 0.62)
    reach = np.hypot(x - hilum[0], (y - hilum[1]) * 1.25) + 22 * smooth_noise(rng, labels.shape, 60)
    medulla = (reach < plan.medulla * width) & (depth > 110)
    winding = np.abs(smooth_noise(rng, labels.shape, 48))
    labels[medulla] = Tissue.CORD
    labels[medulla & (winding < 0.2 + plan.sinus_um / 120)] = Tissue.SINUS


def _lay_trabeculae(labels: Labels, rng: np.random.Generator, depth: Floats) -> None:
    winding = np.abs(smooth_noise(rng, labels.shape, 170))
    reach = depth < 120 + 30 * smooth_noise(rng, labels.shape, 60)
    inside = reach & (depth > 0)
    labels[inside & (winding < 0.075)] = Tissue.SINUS
    labels[inside & (winding < 0.035)] = Tissue.CAPSULE


def _lay_follicles(
    labels: Labels, plan: NodePlan, rng: np.random.Generator, depth: Floats, margin_um: Floats
) -> None:
    height, width = labels.shape
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    places = np.argwhere((depth > 85) & (depth < 190))
    taken: list[tuple[float, float, float]] = []
    for row, column in rng.permutation(places)[:400]:
        if len(taken) == plan.follicles:
            break
        radius = float(rng.uniform(38, 72))
        if any(np.hypot(column - cx, row - cy) < radius + other + 30 for cx, cy, other in taken):
            continue
        taken.append((column, row, radius))
        squeeze, angle = rng.uniform(0.8, 1.25), rng.uniform(0, np.pi)
        along = (x - column) * np.cos(angle) + (y - row) * np.sin(angle)
        aside = (y - row) * np.cos(angle) - (x - column) * np.sin(angle)
        reach = np.hypot(along * squeeze, aside / squeeze) + 4 * smooth_noise(rng, labels.shape, 30)
        free = depth > margin_um + 6
        labels[free & (reach < radius + 17)] = Tissue.MANTLE
        labels[free & (reach < radius)] = Tissue.GERMINAL


def _lay_metastasis(labels: Labels, plan: Metastasis, rng: np.random.Generator, free: Mask) -> None:
    height, width = labels.shape
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    center = plan.center[0] * width, plan.center[1] * height
    rough = 1 + 0.22 * smooth_noise(rng, labels.shape, max(30.0, 0.8 * plan.radius_um))
    deposit = free & (np.hypot(x - center[0], y - center[1]) < plan.radius_um * rough)
    # Islands are the high ground of a noise, parted by septa of stroma.
    ground = smooth_noise(rng, labels.shape, 46 - 16 * plan.islands)
    islands = deposit & (ground > 1.6 * (plan.islands - 1) + 0.2)
    islands = _drop_small(ndimage.binary_opening(islands, iterations=5), _SMALLEST_ISLAND_UM2)
    apart = ndimage.distance_transform_edt(~islands).astype(np.float32)
    deposit_apart = ndimage.distance_transform_edt(~deposit).astype(np.float32)
    band = 11 + 0.06 * plan.radius_um + 5 * smooth_noise(rng, labels.shape, 60)
    labels[free & ((apart < band) | (deposit_apart < 1))] = Tissue.STROMA
    labels[islands] = Tissue.TUMOR
    within = ndimage.distance_transform_edt(islands).astype(np.float32)
    if plan.necrosis:
        core = within > 0.5 * within.max() + 4 * smooth_noise(rng, labels.shape, 30)
        labels[islands & ndimage.binary_opening(core, iterations=3)] = Tissue.NECROSIS
    _lay_pearls(labels, plan.pearls, rng, within)


def _lay_pearls(labels: Labels, count: int, rng: np.random.Generator, within: Floats) -> None:
    height, width = labels.shape
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    for _ in range(count):
        places = np.argwhere((within > 22) & (labels == Tissue.TUMOR))
        if not len(places):
            return
        row, column = places[rng.integers(len(places))]
        radius = rng.uniform(9, 17) * (1 + 0.1 * smooth_noise(rng, labels.shape, 20))
        pearl = np.hypot((x - column) * rng.uniform(0.8, 1.2), y - row) < radius
        labels[pearl & (within > 8)] = Tissue.KERATIN


def _drop_small(mask: Mask, smallest_um2: float) -> Mask:
    parts, _ = ndimage.label(mask)
    large = np.bincount(parts.ravel()) >= smallest_um2
    large[0] = False
    kept: Mask = large[parts]
    return kept
