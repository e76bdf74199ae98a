"""How large what reaches each threshold is, over one score map."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from hnscc_qp.scoring.score_map import ScoreMap

Labels = NDArray[np.integer]
Floats = NDArray[np.float64]


def block_areas_um2(score_map: ScoreMap) -> Floats:
    """Area of each block within the image: (rows, columns); the last ones may reach beyond it."""
    grid = score_map.grid
    sides = []
    for count, block, size in zip(
        (grid.columns, grid.rows), grid.block_qupath, score_map.image_size_px, strict=True
    ):
        edges = np.minimum(np.arange(count + 1) * block, size)
        sides.append(np.diff(edges))
    return np.outer(sides[1], sides[0]) * grid.pixel_size.area_um2(1.0)


def regions_by_level(score_map: ScoreMap) -> Iterator[tuple[int, Labels, int]]:
    """For every number of votes, from 1 to all: the number, its regions as (rows, columns), how many.

    Regions are numbered from 1, row by row; blocks that touch at a corner only are apart, as for
    `regions.vectorize`.
    """
    for votes in range(1, score_map.max_level + 1):
        labels, count = ndimage.label(score_map.votes >= votes)
        yield votes, labels, int(count)


def largest_regions(score_map: ScoreMap) -> tuple[float, ...]:
    """Per level, from 1 vote to all: µm² of the largest connected region, 0 if there is none."""
    areas = block_areas_um2(score_map).ravel()
    return tuple(
        float(np.bincount(labels.ravel(), areas)[1:].max(initial=0.0))
        for _, labels, _ in regions_by_level(score_map)
    )


def votes_reached(largest_um2: Sequence[float], min_lesion_um2: float) -> int:
    """The most votes that a region of at least some area reaches; 0 if none does.

    With no smallest area this is the slide's highest number of votes.
    """
    reached = [votes for votes, area in enumerate(largest_um2, 1) if area > 0 and area >= min_lesion_um2]
    return max(reached, default=0)


def area_by_level(score_map: ScoreMap, weights: Floats) -> Floats:
    """Per level, from 1 vote to all: the sum of a weight over the blocks that reach it."""
    sums = np.bincount(score_map.votes.ravel(), weights.ravel(), minlength=score_map.max_level + 1)
    return np.cumsum(sums[::-1])[::-1][1:].astype(np.float64)
