"""The AI's regions and the pathologist's lesions of one slide, measured and matched.

A lesion is a connected piece of outlined tumor, as far as it lies in judged tissue. A region and a lesion
match if they share area: a lesion that any region touches is detected, one that none touches is missed, a
region that touches no lesion is false. Sizes are by longest diameter and say nothing of staging, which
needs the size of the metastasis in all sections.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import shapely
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.distance import pdist
from shapely.geometry.base import BaseGeometry

from hnscc_qp.geometry import Grid, PixelSize
from hnscc_qp.patches.territories import Windows, find_overlaps
from hnscc_qp.review.comparison import Lesion, SideName, Stratum, TruthLesion
from hnscc_qp.review.froc import EvaluationLesion
from hnscc_qp.review.judged import Judged
from hnscc_qp.scoring.extent import area_by_level, regions_by_level
from hnscc_qp.scoring.regions import TumorRegion
from hnscc_qp.scoring.score_map import ScoreMap

STRATA: tuple[Stratum, ...] = ("≥2 mm", "0.2 to 2 mm", "<0.2 mm")
_LEAST_JUDGED = 0.5
"""Share of a region that must lie in judged tissue for it to be called false."""
_AT_IMAGE_EDGE_PX = 1.0
_TOUCH_UM2 = 1e-3
"""Less shared area is what rounding leaves."""


@dataclass(frozen=True, slots=True)
class Levels:
    """What each threshold would find on a slide; entry i is of i + 1 votes."""

    ai_um2: tuple[float, ...]
    overlap_um2: tuple[float, ...]
    largest_um2: tuple[float, ...]
    regions: tuple[int, ...]
    false_regions: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Whose:
    """What is said of every lesion of a slide."""

    image: str
    patient: str
    side: SideName


def stratum_of(longest_diameter_mm: float) -> Stratum:
    """Size by longest diameter: from 2 mm, from 0.2 mm, and below."""
    return STRATA[0] if longest_diameter_mm >= 2 else STRATA[1] if longest_diameter_mm >= 0.2 else STRATA[2]


def measure_levels(score_map: ScoreMap, judged: Judged, block_um2: NDArray[np.float64]) -> Levels:
    """Areas and regions of a slide at every threshold.

    Args:
        score_map: of the slide.
        judged: what can be judged on it.
        block_um2: (rows, columns) area of each block within the image.
    """
    blocked = _blocks_of(judged.gaps, judged) > 0
    largest, regions, false_regions = [], [], []
    for _, labels, count in regions_by_level(score_map):
        flat = labels.ravel()
        area = np.bincount(flat, block_um2.ravel(), minlength=count + 1)[1:].astype(np.float64)
        largest.append(float(area.max(initial=0.0)))
        regions.append(count)
        matches = _matches(flat, count, area, judged, blocked)
        false_regions.append(matches.count("false"))
    return Levels(
        ai_um2=tuple(map(float, area_by_level(score_map, judged.judged_um2))),
        overlap_um2=tuple(map(float, area_by_level(score_map, judged.tumor_um2))),
        largest_um2=tuple(largest),
        regions=tuple(regions),
        false_regions=tuple(false_regions),
    )


def match_lesions(
    whose: Whose,
    score_map: ScoreMap,
    judged: Judged,
    regions: Sequence[TumorRegion],
    ids: Sequence[str],
    *,
    threshold_votes: int,
    counted: Sequence[EvaluationLesion],
) -> tuple[tuple[Lesion, ...], tuple[TruthLesion, ...]]:
    """Measure a slide's regions and outlined lesions, and match them.

    Args:
        whose: image, patient and side.
        score_map: of the slide.
        judged: what can be judged on it.
        regions: as `vectorize` gives them at the threshold.
        ids: of their detections.
        threshold_votes: the threshold.
        counted: the lesions of the FROC curve, to say which are isolated cells.
    """
    edge = tissue_edge(judged.area, score_map.image_size_px)
    pixel_size = score_map.grid.pixel_size
    labels, count = ndimage.label(score_map.votes >= threshold_votes)
    assert count == len(regions)
    pieces = _pieces(judged)
    piece_block, piece_number, piece_area = overlaps([piece for piece, _ in pieces], judged.grid)
    region_of = labels.ravel()[piece_block]
    names = _names(pieces, judged)
    touching = piece_area * pixel_size.area_um2(1.0) > _TOUCH_UM2
    pairs = sorted({*zip(region_of[touching].tolist(), piece_number[touching].tolist(), strict=True)})
    pairs = [(region - 1, piece) for region, piece in pairs if region]
    truth = tuple(
        _truth_lesion(
            whose,
            piece,
            names[number],
            pixel_size,
            edge=edge,
            votes=score_map.votes.ravel()[piece_block[(piece_number == number) & touching]],
            areas=piece_area[(piece_number == number) & touching],
            levels=score_map.max_level,
            threshold_votes=threshold_votes,
            lesion_ids=tuple(ids[region] for region, of in pairs if of == number),
            isolated=_is_isolated(piece, counted),
        )
        for number, (piece, _) in enumerate(pieces)
    )
    areas = np.array([region.area_um2 for region in regions])
    blocked = _blocks_of(judged.gaps, judged) > 0
    matches = _matches(labels.ravel(), count, areas, judged, blocked)
    overlap = np.bincount(labels.ravel(), judged.tumor_um2.ravel(), minlength=count + 1)[1:]
    lesions = []
    for index, region in enumerate(regions):
        place = region.polygon_qupath.representative_point()
        lesions.append(
            Lesion(
                image=whose.image,
                patient=whose.patient,
                side=whose.side,
                id=ids[index],
                x_qupath=place.x,
                y_qupath=place.y,
                area_um2=region.area_um2,
                longest_diameter_mm=region.longest_diameter_mm,
                stratum=stratum_of(region.longest_diameter_mm),
                max_score=region.max_score,
                mean_score=region.mean_score,
                edge_distance_mm=edge_distance_mm(region.polygon_qupath, edge, pixel_size),
                match=matches[index],
                truth_ids=tuple(names[piece] for of, piece in pairs if of == index),
                overlap_um2=float(overlap[index]),
            )
        )
    return tuple(lesions), truth


def tissue_edge(tissue: BaseGeometry, size: tuple[int, int]) -> BaseGeometry:
    """The outer edge of tissue in QuPath px: not its holes, nor where the image ends; may be empty."""
    outer = shapely.union_all([shapely.Polygon(part.exterior) for part in shapely.get_parts(tissue)])
    inside = shapely.box(0, 0, *size).buffer(-_AT_IMAGE_EDGE_PX)
    return outer.boundary.intersection(inside)


def edge_distance_mm(shape: BaseGeometry, edge: BaseGeometry, pixel_size: PixelSize) -> float | None:
    """From a shape's nearest point to the tissue's edge; None if the image shows no edge."""
    if edge.is_empty:
        return None
    scale = (pixel_size.x, pixel_size.y)
    shape, edge = (shapely.transform(one, lambda points: points * scale) for one in (shape, edge))
    return float(shape.distance(edge)) / 1000


def _matches(
    flat: NDArray[np.integer],
    count: int,
    area: NDArray[np.float64],
    judged: Judged,
    blocked: NDArray[np.bool_],
) -> list[Literal["detected", "false", "not judged"]]:
    """What each region is to the pathologist; `flat`: (blocks,) its number, from 1."""
    tumor = np.bincount(flat, judged.tumor_um2.ravel(), minlength=count + 1)[1:]
    seen = np.bincount(flat, judged.judged_um2.ravel(), minlength=count + 1)[1:]
    pointed = np.bincount(flat, blocked.ravel(), minlength=count + 1)[1:] > 0
    unclear = pointed | (seen < _LEAST_JUDGED * area) | (not judged.outlined)
    return [
        "detected" if found else "not judged" if doubtful else "false"
        for found, doubtful in zip(tumor > _TOUCH_UM2, unclear, strict=True)
    ]


def _pieces(judged: Judged) -> list[tuple[BaseGeometry, BaseGeometry]]:
    """Every connected piece of drawn tumor: what of it is judged, and as it was drawn."""
    found = []
    for drawn in shapely.get_parts(judged.drawn):
        inside = drawn.intersection(judged.tumor)
        if judged.grid.pixel_size.area_um2(inside.area) > _TOUCH_UM2:
            found.append((inside, drawn))
    return found


def overlaps(
    shapes: Sequence[BaseGeometry], grid: Grid
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float64]]:
    """Block number, shape number and area in QuPath px² of every overlap of disjoint shapes with blocks."""
    width, height = grid.block_qupath
    blocks = Windows(
        np.arange(grid.columns, dtype=float) * width,
        np.arange(grid.rows, dtype=float) * height,
        grid.block_qupath,
    )
    array = np.empty(len(shapes), object)
    array[:] = shapes
    return find_overlaps(array, blocks)


def _blocks_of(shape: BaseGeometry, judged: Judged) -> NDArray[np.float64]:
    block, _, area = overlaps(list(shapely.get_parts(shape)), judged.grid)
    rows, columns = judged.grid.rows, judged.grid.columns
    return np.bincount(block, area, minlength=rows * columns).reshape(rows, columns).astype(np.float64)


def _names(pieces: Sequence[tuple[BaseGeometry, BaseGeometry]], judged: Judged) -> list[str]:
    """Each piece by its largest annotation; several of one annotation by their number."""
    ids = [known_as for known_as, _ in judged.annotations]
    shapes = np.array([shape for _, shape in judged.annotations], object)
    tree = shapely.STRtree(shapes)
    owners = []
    for _, drawn in pieces:
        near = np.sort(tree.query(drawn, predicate="intersects"))
        owners.append(ids[near[int(np.argmax(shapely.area(shapely.intersection(shapes[near], drawn))))]])
    names = []
    for index, owner in enumerate(owners):
        several = owners.count(owner) > 1
        names.append(f"{owner} part {owners[: index + 1].count(owner)}" if several else owner)
    return names


def _is_isolated(piece: BaseGeometry, counted: Sequence[EvaluationLesion]) -> bool:
    return any(one.isolated_cells and one.shape_qupath.intersects(piece) for one in counted)


def _truth_lesion(
    whose: Whose,
    piece: BaseGeometry,
    name: str,
    pixel_size: PixelSize,
    *,
    edge: BaseGeometry,
    votes: NDArray[np.uint8],
    areas: NDArray[np.float64],
    levels: int,
    threshold_votes: int,
    lesion_ids: tuple[str, ...],
    isolated: bool,
) -> TruthLesion:
    place = piece.representative_point()
    corners = shapely.get_coordinates(piece.convex_hull) * (pixel_size.x, pixel_size.y)
    diameter_mm = float(pdist(corners).max()) / 1000
    over = float(areas[votes >= threshold_votes].sum())
    return TruthLesion(
        image=whose.image,
        patient=whose.patient,
        side=whose.side,
        id=name,
        x_qupath=place.x,
        y_qupath=place.y,
        area_um2=pixel_size.area_um2(piece.area),
        longest_diameter_mm=diameter_mm,
        stratum=stratum_of(diameter_mm),
        edge_distance_mm=edge_distance_mm(piece, edge, pixel_size),
        found=bool(lesion_ids),
        max_score=float(votes.max(initial=0)) / levels,
        covered=min(1.0, over / float(areas.sum())) if areas.sum() > 0 else 0.0,
        lesion_ids=lesion_ids,
        isolated_cells=isolated,
    )
