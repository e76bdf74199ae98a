"""Populations of nuclei: how each looks, where it lives, and how it is printed on a slide."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.spatial import KDTree

from hnscc_qp.demo.anatomy import Floats, Labels, Tissue, smooth_noise

PX_PER_UM = 2
"""Of a drawn slide."""
_ORIENTATIONS = 36

Points = npt.NDArray[np.float64]
"""(n, 2): x, y in µm."""


@dataclass(frozen=True, slots=True)
class Nuclei:
    """How one population of nuclei looks, and how thickly it lies in each tissue."""

    radius_um: tuple[float, float]
    aspect: tuple[float, float]
    density: tuple[float, float]
    """Optical density of haematoxylin inside."""
    spacing_um: Mapping[Tissue, float]
    rim: float = 0.0
    """Extra density along the membrane: vesicular nuclei have an empty middle and a sharp edge."""
    clumps: float = 0.15
    nucleoli: tuple[int, int] = (0, 0)
    ragged: float = 0.05
    along_fibers: bool = False
    inset_um: float = 0.0
    """How far from the tissue's edge they keep, so that an outline around the tissue holds them whole."""


LYMPHOCYTE = Nuclei(
    (2.9, 3.7),
    (1.0, 1.2),
    (0.95, 1.3),
    {
        Tissue.CORTEX: 7.4,
        Tissue.MANTLE: 6.1,
        Tissue.GERMINAL: 19,
        Tissue.CORD: 8.6,
        Tissue.SINUS: 21,
        Tissue.STROMA: 19,
        Tissue.TUMOR: 60,
    },
    clumps=0.28,
)
IMMUNOBLAST = Nuclei(
    (3.8, 5.4),
    (1.0, 1.35),
    (0.42, 0.7),
    {Tissue.CORTEX: 32, Tissue.CORD: 30, Tissue.GERMINAL: 11.2},
    rim=0.28,
    clumps=0.25,
    nucleoli=(1, 3),
)
HISTIOCYTE = Nuclei(
    (3.4, 5.2),
    (1.15, 1.8),
    (0.32, 0.6),
    {Tissue.SINUS: 13, Tissue.GERMINAL: 34, Tissue.NECROSIS: 45},
    rim=0.25,
    clumps=0.2,
    nucleoli=(0, 2),
    ragged=0.1,
)
FIBROBLAST = Nuclei(
    (4.2, 6.5),
    (3.2, 5.5),
    (0.6, 0.95),
    {Tissue.CAPSULE: 15, Tissue.STROMA: 15, Tissue.KERATIN: 14},
    along_fibers=True,
)
TUMOR = Nuclei(
    (4.6, 7.6),
    (1.05, 1.6),
    (0.4, 0.82),
    {Tissue.TUMOR: 12.6},
    rim=0.27,
    clumps=0.32,
    nucleoli=(1, 3),
    ragged=0.09,
    inset_um=4.0,
)
BIZARRE = Nuclei(
    (6.5, 9.5), (1.0, 1.7), (0.85, 1.15), {Tissue.TUMOR: 75}, clumps=0.3, ragged=0.14, inset_um=6.0
)
DEBRIS = Nuclei((0.8, 2.3), (1.0, 1.6), (0.5, 1.2), {Tissue.NECROSIS: 9.5, Tissue.GERMINAL: 40}, ragged=0.15)


def swell(kind: Nuclei, rng: np.random.Generator) -> Nuclei:
    """Make a population up to a quarter larger, all of its nuclei alike."""
    smallest, largest = kind.radius_um
    factor = rng.uniform(0.98, 1.24)
    return replace(kind, radius_um=(smallest * factor, largest * factor))


def scatter(labels: Labels, kind: Nuclei, rng: np.random.Generator, apart_from: Points) -> Points:
    """Centres (x, y) in µm of a population: a shaken honeycomb in every tissue that it lives in."""
    height, width = labels.shape
    found = [np.empty((0, 2))]
    for tissue, spacing in kind.spacing_um.items():
        home = labels == tissue
        if not home.any():
            continue
        if kind.inset_um:
            home = ndimage.distance_transform_edt(home) > kind.inset_um
        rows = np.arange(0.0, height, spacing * 0.866)
        columns = np.arange(0.0, width, spacing)
        x, y = np.meshgrid(columns, rows)
        x[1::2] += spacing / 2
        points = np.stack([x.ravel(), y.ravel()], axis=1)
        points += rng.normal(0, 0.2 * spacing, points.shape)
        points = points[rng.random(len(points)) > 0.06]
        points = points[((points >= 0) & (points < (width, height))).all(axis=1)]
        at = points.astype(int)
        found.append(points[home[at[:, 1], at[:, 0]]])
    centers = np.concatenate(found)
    if len(apart_from) and len(centers):
        gap = kind.radius_um[1] * 1.2
        centers = centers[KDTree(apart_from).query(centers, distance_upper_bound=gap)[0] > gap]
    return centers


def stamp(
    field: Floats,
    centers: Points,
    kind: Nuclei,
    rng: np.random.Generator,
    fibers_um: Floats,
) -> None:
    """Print nuclei into `field`, the darker winning where they overlap."""
    sprites = [_nucleus(kind, np.pi * turn / _ORIENTATIONS, rng) for turn in range(_ORIENTATIONS)]
    choice = rng.integers(_ORIENTATIONS, size=len(centers))
    if kind.along_fibers:
        slope_y, slope_x = (ndimage.gaussian_filter(fibers_um, 2, order=order) for order in ((1, 0), (0, 1)))
        at = centers.astype(int)
        across = np.arctan2(slope_y[at[:, 1], at[:, 0]], slope_x[at[:, 1], at[:, 0]])
        along = across + np.pi / 2 + rng.normal(0, 0.2, len(centers))
        choice = np.round(along / np.pi * _ORIENTATIONS).astype(int) % _ORIENTATIONS
    corners = np.round(centers * PX_PER_UM).astype(int) - sprites[0].shape[0] // 2
    height, width = field.shape
    side = sprites[0].shape[0]
    for (x, y), sprite in zip(corners.tolist(), choice.tolist(), strict=True):
        left, top, right, bottom = max(x, 0), max(y, 0), min(x + side, width), min(y + side, height)
        if left < right and top < bottom:
            area = field[top:bottom, left:right]
            np.maximum(area, sprites[sprite][top - y : bottom - y, left - x : right - x], out=area)


def _nucleus(kind: Nuclei, angle: float, rng: np.random.Generator) -> Floats:
    """Haematoxylin of one nucleus, (side, side) at 0.5 µm/px, its long axis at `angle`."""
    aspect = rng.uniform(*kind.aspect)
    radius = rng.uniform(*kind.radius_um)
    half = int(np.ceil(kind.radius_um[1] * np.sqrt(kind.aspect[1]) * 1.25 * PX_PER_UM)) + 2
    y, x = np.mgrid[-half : half + 1, -half : half + 1].astype(np.float32) / PX_PER_UM
    along, aside = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    # `radius` is of the circle of equal area, but long thin nuclei keep it as their half length.
    long, short = (
        (radius, radius / aspect) if kind.along_fibers else (radius * aspect**0.5, radius / aspect**0.5)
    )
    theta = np.arctan2(aside, along)
    outline = np.ones_like(theta)
    for waves in (2, 3, 5):
        outline += kind.ragged / waves**0.5 * rng.normal() * np.cos(waves * theta + rng.uniform(0, 6.3))
    reach = np.hypot(along / long, aside / short) / outline
    chromatin = 1 + kind.clumps * smooth_noise(rng, reach.shape, 3.2)
    density = rng.uniform(*kind.density) * chromatin
    density += kind.rim * np.exp(-(((reach - 0.9) / 0.14) ** 2))
    for _ in range(rng.integers(kind.nucleoli[0], kind.nucleoli[1] + 1)):
        turn, away = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.5)
        center = away * long * np.cos(turn), away * short * np.sin(turn)
        size = rng.uniform(0.5, 1.0)
        density += 0.65 * np.exp(-(((along - center[0]) ** 2 + (aside - center[1]) ** 2) / size**2))
    edge = 1 / (1 + np.exp(np.clip((reach - 1) * short / 0.22, -30, 30)))
    nucleus: Floats = (np.clip(density, 0.05, 1.6) * edge).astype(np.float32)
    return nucleus
