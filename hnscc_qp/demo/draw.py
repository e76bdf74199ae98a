"""A node's label image → pixels at 0.5 µm/px, as a scanner would see it stained with H&E.

Haematoxylin and eosin are laid down as two fields of optical density; Beer-Lambert makes them
light. So the stain of a slide can vary as a laboratory's does, without touching what is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage
from scipy.spatial import KDTree

from hnscc_qp.demo.anatomy import Floats, Labels, NodePlan, Tissue, lay_out, smooth_noise
from hnscc_qp.demo.nuclei import (
    BIZARRE,
    DEBRIS,
    FIBROBLAST,
    HISTIOCYTE,
    IMMUNOBLAST,
    LYMPHOCYTE,
    PX_PER_UM,
    TUMOR,
    Points,
    scatter,
    stamp,
    swell,
)
from hnscc_qp.geometry import Mpp

MPP = Mpp(1 / PX_PER_UM)
"""Micrometres per pixel of a drawn slide."""

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class DrawnNode:
    """A slide, and what it shows."""

    pixels: Pixels
    """(height, width, 3) at 0.5 µm/px."""
    truth: Labels
    """(height / 2, width / 2) `Tissue` values, one per µm²."""
    fold: npt.NDArray[np.bool_]
    """(height / 2, width / 2): where the section is folded over itself."""


_EOSIN = {
    Tissue.GLASS: 0.0,
    Tissue.FAT: 0.012,
    Tissue.CAPSULE: 0.55,
    Tissue.SINUS: 0.10,
    Tissue.CORTEX: 0.19,
    Tissue.MANTLE: 0.17,
    Tissue.GERMINAL: 0.28,
    Tissue.CORD: 0.25,
    Tissue.STROMA: 0.40,
    Tissue.TUMOR: 0.40,
    Tissue.KERATIN: 0.8,
    Tissue.NECROSIS: 0.5,
}
_HAEMATOXYLIN = {
    Tissue.CORTEX: 0.14,
    Tissue.MANTLE: 0.20,
    Tissue.GERMINAL: 0.09,
    Tissue.CORD: 0.10,
    Tissue.TUMOR: 0.13,
    Tissue.SINUS: 0.02,
    Tissue.STROMA: 0.03,
    Tissue.NECROSIS: 0.06,
    Tissue.KERATIN: 0.0,
    Tissue.CAPSULE: 0.02,
}
_STAINS = np.array([[0.65, 0.68, 0.34], [0.12, 0.86, 0.45]], np.float32)
"""Rows: haematoxylin, eosin; columns: how much red, green and blue they take."""


def draw_node(
    plan: NodePlan, *, seed: int | tuple[int, ...], size_um: tuple[int, int] = (1000, 800)
) -> DrawnNode:
    """Draw one slide; the same seed draws the same slide.

    Args:
        plan: what it holds.
        seed: of everything that is left to chance, the laboratory's stain included.
        size_um: (width, height) of the slide.
    """
    rng = np.random.default_rng(seed)
    labels = lay_out(plan, rng, size_um)
    haematoxylin, eosin = _ground(labels, rng)
    fibers_um = _fiber_distance(labels)
    eosin *= _fibers(labels, fibers_um, rng)
    tumor_centers = np.empty((0, 2))
    # Reactive nodes differ: what is large in one is nearly a tumor nucleus in another.
    histiocyte, immunoblast = swell(HISTIOCYTE, rng), swell(IMMUNOBLAST, rng)
    for kind in (DEBRIS, LYMPHOCYTE, FIBROBLAST, histiocyte, immunoblast, BIZARRE, TUMOR):
        centers = scatter(labels, kind, rng, apart_from=tumor_centers)
        if kind is BIZARRE or kind is TUMOR:
            tumor_centers = np.concatenate([tumor_centers, centers])
        stamp(haematoxylin, centers, kind, rng, fibers_um)
    _draw_cells(eosin, labels == Tissue.TUMOR, tumor_centers, rng)
    _draw_fat(eosin, labels == Tissue.FAT, rng)
    eosin *= 1 - 0.45 * np.clip(haematoxylin, 0, 1)
    fold = _fold(labels) if plan.fold else np.zeros(labels.shape, np.bool_)
    if plan.fold:
        thickness = 1 + ndimage.gaussian_filter(_enlarge(fold.astype(np.float32)), 3)
        haematoxylin, eosin = haematoxylin * thickness, eosin * thickness
    return DrawnNode(_shine_through(haematoxylin, eosin, rng), labels, fold)


def _enlarge(field: Floats) -> Floats:
    """1 µm/px → 0.5 µm/px."""
    size = field.shape[1] * PX_PER_UM, field.shape[0] * PX_PER_UM
    return np.array(Image.fromarray(field).resize(size, Image.Resampling.BILINEAR))


def _ground(labels: Labels, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Haematoxylin and eosin of what lies between the nuclei."""
    shape = labels.shape[0] * PX_PER_UM, labels.shape[1] * PX_PER_UM
    grain = 1 + 0.16 * smooth_noise(rng, shape, 5) + 0.12 * smooth_noise(rng, shape, 22)
    fields = []
    for table in (_HAEMATOXYLIN, _EOSIN):
        values = np.array([table.get(tissue, 0.0) for tissue in Tissue], np.float32)
        fields.append(_enlarge(ndimage.gaussian_filter(values[labels], 0.8)) * grain)
    haematoxylin, eosin = fields
    # Sinuses are crossed by threads, and foamy with the cytoplasm of histiocytes.
    sinus = _enlarge((labels == Tissue.SINUS).astype(np.float32))
    threads = np.abs(smooth_noise(rng, shape, 17))
    foam = np.clip(smooth_noise(rng, shape, 26), 0, 2)
    eosin += sinus * (0.16 * np.exp(-((threads / 0.2) ** 2)) + 0.11 * foam)
    # Necrosis is granular.
    necrosis = _enlarge((labels == Tissue.NECROSIS).astype(np.float32))
    eosin += necrosis * 0.13 * smooth_noise(rng, shape, 3.5)
    return haematoxylin, np.clip(eosin, 0, None)


def _fiber_distance(labels: Labels) -> Floats:
    """(height, width) at 1 µm/px: fibres run along lines of equal value, around what they enclose."""
    solid = np.isin(labels, (Tissue.TUMOR, Tissue.NECROSIS, Tissue.KERATIN))
    around = ndimage.distance_transform_edt(~solid) if solid.any() else np.zeros(labels.shape)
    strip = ndimage.distance_transform_edt(np.isin(labels, (Tissue.CAPSULE, Tissue.KERATIN)))
    distance = np.where(labels == Tissue.STROMA, around, strip)
    return distance.astype(np.float32)


def _fibers(labels: Labels, fibers_um: Floats, rng: np.random.Generator) -> Floats:
    """What to multiply eosin by: lamellae of collagen and keratin, 1 elsewhere."""
    shape = labels.shape[0] * PX_PER_UM, labels.shape[1] * PX_PER_UM
    bend = 3.2 * smooth_noise(rng, shape, 60) + 1.0 * smooth_noise(rng, shape, 16)
    wave = np.sin(2 * np.pi * (_enlarge(fibers_um) + bend) / 4.2)
    patch = np.clip(0.7 + 0.5 * smooth_noise(rng, shape, 40), 0.15, 1.4)
    clefts = 0.6 * np.clip(-wave - 0.4, 0, None) / 0.6 * np.clip(smooth_noise(rng, shape, 34), 0, 1)
    fibrous = _enlarge(np.isin(labels, (Tissue.CAPSULE, Tissue.STROMA, Tissue.KERATIN)).astype(np.float32))
    collagen: Floats = np.clip(1 + fibrous * (0.3 * wave * patch - clefts), 0.05, None)
    return collagen


def _cells(inside: npt.NDArray[np.bool_], centers: Points) -> tuple[Floats, npt.NDArray[np.intp]]:
    """For each pixel of `inside`: µm to the border with the next cell (twice over), and its cell."""
    rows, columns = np.nonzero(inside)
    found = KDTree(centers).query(np.stack([columns, rows], axis=1), k=2)
    distance, cell = np.asarray(found[0]), np.asarray(found[1])
    return (distance[:, 1] - distance[:, 0]).astype(np.float32), cell[:, 0]


def _draw_cells(
    eosin: Floats, inside: npt.NDArray[np.bool_], centers: Points, rng: np.random.Generator
) -> None:
    """Give each tumor cell its own tone of cytoplasm and a border."""
    if len(centers) < 2:
        return
    border, cell = _cells(inside, centers)
    tone = np.zeros(inside.shape, np.float32)
    tone[inside] = rng.normal(0, 0.075, len(centers))[cell] + 0.16 * np.exp(-((border / 1.5) ** 2)) - 0.03
    eosin += _enlarge(tone)


def _draw_fat(eosin: Floats, inside: npt.NDArray[np.bool_], rng: np.random.Generator) -> None:
    """Empty cells with thin walls."""
    if not inside.any():
        return
    height, width = inside.shape
    spacing = 44
    x, y = np.meshgrid(np.arange(0, width, spacing), np.arange(0, height, spacing))
    centers = np.stack([x.ravel(), y.ravel()], axis=1) + rng.normal(0, 8, (x.size, 2))
    border, _ = _cells(inside, centers)
    walls = np.zeros(inside.shape, np.float32)
    walls[inside] = 0.34 * np.exp(-((border / 2.2) ** 2))
    edge = inside & ~ndimage.binary_erosion(inside, iterations=2)
    walls[edge] = np.maximum(walls[edge], 0.22)
    eosin += ndimage.gaussian_filter(_enlarge(walls), 1)


def _fold(labels: Labels) -> npt.NDArray[np.bool_]:
    """A band across one side of the node, where the section lies double."""
    height, width = labels.shape
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    line = width * (0.77 + 0.05 * np.sin(y / height * 5)) + 0.12 * (y - height / 2)
    band: npt.NDArray[np.bool_] = (np.abs(x - line) < 17) & (labels > Tissue.FAT)
    return band


def _shine_through(haematoxylin: Floats, eosin: Floats, rng: np.random.Generator) -> Pixels:
    """Beer-Lambert: what light is left, for a laboratory's stain and a scanner's lamp."""
    stains = _STAINS + rng.normal(0, 0.012, _STAINS.shape).astype(np.float32)
    strength = rng.uniform((0.9, 0.88), (1.12, 1.14)).astype(np.float32)
    lamp = np.array([243, 242, 245], np.float32) + rng.normal(0, 1.5, 3).astype(np.float32)
    haematoxylin = ndimage.gaussian_filter(haematoxylin, 0.55) * strength[0]
    eosin = ndimage.gaussian_filter(eosin, 0.55) * strength[1]
    shade = 1 + 0.006 * smooth_noise(rng, eosin.shape, 600)
    channels: Sequence[Floats] = [
        lamp[channel]
        * shade
        * np.exp(-np.log(10) * (haematoxylin * stains[0, channel] + eosin * stains[1, channel]) * 0.72)
        for channel in range(3)
    ]
    light = np.stack(channels, axis=-1)
    light += 1.6 * rng.standard_normal(light.shape, dtype=np.float32)
    return np.clip(light, 0, 255).astype(np.uint8)
