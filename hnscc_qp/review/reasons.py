"""Why AI and manual review differ at a place, by stated rules; what no rule explains is `unexplained`.

The rules look at size, stain and shape only. They sort a list and judge no tissue: docs/comparison.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.geometry.base import BaseGeometry

from hnscc_qp.geometry import Grid, Mpp, PixelSize
from hnscc_qp.review.comparison import Reason
from hnscc_qp.slides.holes import Area, read_around_holes
from hnscc_qp.slides.reader import Slide

SMALL_MM = 0.2
WEAK = 0.7
"""Optical density below this share of the cohort's median is weak stain."""
NEAR_UM = 100.0
"""A false region so near to outlined tumor may be tumor that the outline left out."""
FOLLICLE_MM = (0.1, 1.5)
FOLLICLE_SOLIDITY = 0.75
"""Area by that of the convex hull."""
FOLLICLE_ELONGATION = 2.0
"""Longer by shorter side of the smallest rectangle around it."""
_STRIP_ROWS = 256
_STRIP_COLUMNS = 4096


@dataclass(frozen=True, slots=True, eq=False)
class StainMap:
    """Optical density of every block by its mean colour: (rows, columns) float32."""

    density: NDArray[np.float32]
    """Mean of red, green and blue; glass is near 0."""
    blueness: NDArray[np.float32]
    """Red by green: haematoxylin has 1 and more, eosin far less; NaN where there is no stain."""


@dataclass(frozen=True, slots=True)
class Looks:
    """What the rules need to know of a place."""

    density: float
    """Mean over its blocks."""
    blueness: float
    slide_blueness: float
    """Median over the slide's tissue."""
    looked_at: float
    """Share of its blocks that any window covered."""


def read_stain(slide: Slide, grid: Grid) -> StainMap:
    """Look at a slide at one pixel per block, in its own colours; what can't be decoded counts as glass."""
    block_mpp = Mpp(grid.mpp * grid.step_px)
    density = np.zeros((grid.rows, grid.columns), np.float32)
    blueness = np.full((grid.rows, grid.columns), np.nan, np.float32)
    for row in range(0, grid.rows, _STRIP_ROWS):
        for column in range(0, grid.columns, _STRIP_COLUMNS):
            area = Area(
                row, column, min(_STRIP_ROWS, grid.rows - row), min(_STRIP_COLUMNS, grid.columns - column)
            )
            read = read_around_holes(slide.as_scanned, area, block_mpp)
            optical = -np.log10((read.pixels.astype(np.float32) + 1) / 256)
            part = np.s_[row : row + area.height, column : column + area.width]
            density[part] = optical.mean(axis=-1)
            green = optical[..., 1]
            np.divide(optical[..., 0], green, out=blueness[part], where=green > 0.02)
    return StainMap(density, blueness)


def median_of(values: NDArray[np.float32]) -> float:
    """Of the finite values; 0 of none."""
    values = values[np.isfinite(values)]
    return float(np.median(values)) if len(values) else 0.0


def look(
    blocks: NDArray[np.intp], stain: StainMap, coverage: NDArray[np.uint8], *, slide_blueness: float
) -> Looks:
    """What is seen at some blocks of a slide.

    Args:
        blocks: their numbers, row by row.
        stain: of the slide.
        coverage: (rows, columns) windows over each block.
        slide_blueness: median over the slide's tissue.
    """
    blueness = stain.blueness.ravel()[blocks]
    blueness = blueness[np.isfinite(blueness)]
    return Looks(
        density=float(stain.density.ravel()[blocks].mean()) if len(blocks) else 0.0,
        blueness=float(blueness.mean()) if len(blueness) else 0.0,
        slide_blueness=slide_blueness,
        looked_at=float((coverage.ravel()[blocks] > 0).mean()) if len(blocks) else 0.0,
    )


def why_missed(
    looks: Looks, *, longest_diameter_mm: float, cohort_density: float, unreadable: int
) -> tuple[Reason, str]:
    """Why a lesion may have been missed: the first rule that applies, and its numbers."""
    if unreadable and looks.looked_at < 0.5:
        return "unreadable", f"only {looks.looked_at:.0%} of it could be read and scored"
    if longest_diameter_mm < SMALL_MM:
        return "missed small lesion", f"longest diameter {longest_diameter_mm:.2f} mm is under {SMALL_MM} mm"
    return _weak(looks, cohort_density) or (
        "unexplained",
        f"longest diameter {longest_diameter_mm:.2f} mm, stain {looks.density:.2f}; no rule applies",
    )


def why_false(
    looks: Looks,
    outline: BaseGeometry,
    pixel_size: PixelSize,
    *,
    tumor: BaseGeometry,
    longest_diameter_mm: float,
    cohort_density: float,
) -> tuple[Reason, str]:
    """Why a region may have been found where nothing is outlined: the first rule that applies.

    Args:
        looks: of the region.
        outline: of the region, in QuPath px.
        pixel_size: of the image.
        tumor: outlined tumor and marks of the slide, in QuPath px; may be empty.
        longest_diameter_mm: of the region.
        cohort_density: median over the slides.
    """
    scale = (pixel_size.x, pixel_size.y)
    shape, near = (shapely.transform(one, lambda points: points * scale) for one in (outline, tumor))
    if not near.is_empty and (away := shape.distance(near)) <= NEAR_UM:
        return "annotation gap", f"{away:.0f} µm from outlined tumor, {NEAR_UM:.0f} µm or less"
    if weak := _weak(looks, cohort_density):
        return weak
    solidity, elongation = _roundness(shape)
    small, large = FOLLICLE_MM
    if (
        small <= longest_diameter_mm <= large
        and solidity >= FOLLICLE_SOLIDITY
        and elongation <= FOLLICLE_ELONGATION
        and looks.blueness >= looks.slide_blueness
    ):
        return (
            "follicle",
            f"round (solidity {solidity:.2f}), {longest_diameter_mm:.2f} mm, at least as blue as the "
            f"slide's tissue ({looks.blueness:.2f} against {looks.slide_blueness:.2f})",
        )
    return (
        "unexplained",
        f"longest diameter {longest_diameter_mm:.2f} mm, stain {looks.density:.2f}; no rule applies",
    )


def _weak(looks: Looks, cohort: float) -> tuple[Reason, str] | None:
    if looks.density < WEAK * cohort:
        return (
            "weak stain",
            f"optical density {looks.density:.2f} is under {WEAK:.0%} of the cohort's {cohort:.2f}",
        )
    return None


def _roundness(shape: BaseGeometry) -> tuple[float, float]:
    """Solidity, and longer by shorter side of the smallest rectangle around a shape."""
    corners = shapely.get_coordinates(shapely.minimum_rotated_rectangle(shape))
    sides = sorted(np.hypot(*np.diff(corners[:3], axis=0).T).tolist())
    hull = shape.convex_hull.area
    return shape.area / hull if hull else 0.0, sides[-1] / sides[0] if sides and sides[0] else np.inf
