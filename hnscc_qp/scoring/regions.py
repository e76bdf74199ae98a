"""Score map → tumor regions: exact outlines of blocks, as polygons with holes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.distance import pdist
from shapely.geometry import Polygon

from hnscc_qp.geometry import PixelSize
from hnscc_qp.patches.sources.trace import outline_pieces
from hnscc_qp.qupath.objects import ObjectType, PathObject, RoiKind
from hnscc_qp.qupath.ownership import AI_TUMOR, detection_id
from hnscc_qp.scoring.score_map import ScoreMap


@dataclass(frozen=True, slots=True)
class TumorRegion:
    """Blocks that reach the threshold and share sides."""

    polygon_qupath: Polygon
    area_um2: float
    longest_diameter_mm: float
    """Between the two points of the outline that are farthest apart."""
    max_score: float
    """0..1"""
    mean_score: float
    """Over its blocks, 0..1."""
    threshold_score: float
    """0..1"""


def vectorize(score_map: ScoreMap, *, threshold_votes: int) -> list[TumorRegion]:
    """Outline the blocks with at least `threshold_votes` votes, in the order of their first blocks.

    Blocks that touch at a corner only are different regions. Polygons are valid, follow the blocks'
    sides exactly, and are cut where the last blocks reach beyond the image.
    """
    if threshold_votes < 1:
        raise ValueError(f"a threshold is at least one vote, not {threshold_votes}")
    labels, count = ndimage.label(score_map.votes >= threshold_votes)
    if not count:
        return []
    numbers = np.arange(1, count + 1)
    largest = ndimage.maximum(score_map.votes, labels, numbers) / score_map.max_level
    mean = ndimage.mean(score_map.votes, labels, numbers) / score_map.max_level
    pixel_size = score_map.grid.pixel_size
    regions = []
    for index, outline in enumerate(outline_pieces(labels)):
        polygon = shapely.transform(outline, lambda blocks: _to_qupath(blocks, score_map)).normalize()
        regions.append(
            TumorRegion(
                polygon_qupath=polygon,
                area_um2=pixel_size.area_um2(polygon.area),
                longest_diameter_mm=_longest_diameter_um(polygon, pixel_size) / 1000,
                max_score=float(largest[index]),
                mean_score=float(mean[index]),
                threshold_score=threshold_votes / score_map.max_level,
            )
        )
    return regions


def to_detection(region: TumorRegion, *, slide_name: str, model_hash: str, generation: str) -> PathObject:
    """Make QuPath's object of a region.

    Its id depends on the slide, the model and the outline alone, so writing the same result again
    replaces objects and adds none.
    """
    polygon = region.polygon_qupath
    return PathObject(
        type=ObjectType.DETECTION,
        roi=polygon,
        roi_kind=RoiKind.GEOMETRY if polygon.interiors else RoiKind.POLYGON,
        area_px=polygon.area,
        id=detection_id(polygon, slide_name=slide_name, model_hash=model_hash),
        path_class=AI_TUMOR,
        measurements={
            "Area µm^2": region.area_um2,
            "Longest diameter mm": region.longest_diameter_mm,
            "AI: Max score": region.max_score,
            "AI: Mean score": region.mean_score,
            "AI: threshold": region.threshold_score,
        },
        metadata={"AI model": model_hash, "AI generation": generation, "AI note": "Research use only"},
    )


def _to_qupath(blocks: NDArray[np.float64], score_map: ScoreMap) -> NDArray[np.float64]:
    return np.minimum(blocks * score_map.grid.block_qupath, score_map.image_size_px)


def _longest_diameter_um(polygon: Polygon, pixel_size: PixelSize) -> float:
    # The two farthest points are corners of the convex hull.
    corners = shapely.get_coordinates(polygon.convex_hull) * (pixel_size.x, pixel_size.y)
    return float(pdist(corners).max())
