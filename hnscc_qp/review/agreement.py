"""How well two areas agree: overlap and distance of outlines, of polygons exactly and of whole blocks.

Dice: 2 |A∩B| / (|A| + |B|) (Dice 1945). IoU: |A∩B| / |A∪B| (Jaccard 1912). Boundary distance: from places
all along each outline to the nearest place of the other outline, both ways together; its mean (average
symmetric surface distance) and its 95th percentile (Huttenlocher et al. 1993's Hausdorff distance, made
robust). Definitions as in Maier-Hein et al. 2024, "Metrics reloaded", Nature Methods 21:195-212.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray
from scipy import ndimage
from shapely.geometry.base import BaseGeometry

from hnscc_qp.geometry import PixelSize
from hnscc_qp.patches.territories import polygons_only
from hnscc_qp.review.comparison import Overlap
from hnscc_qp.training.intervals import RESAMPLES, Estimate, bootstrap

Floats = NDArray[np.float64]
BoolMask = NDArray[np.bool_]

_STEP_UM = 5.0
"""Places along an outline are at most so far apart."""
_FEWEST_PLACES = 8
"""Along the smallest outline."""


@dataclass(frozen=True, slots=True)
class SlideAreas:
    """Areas of one slide, to be pooled; µm², of judged tissue."""

    patient: str
    ai_um2: float
    truth_um2: float
    both_um2: float


def exact_overlap(ai: BaseGeometry, truth: BaseGeometry, pixel_size: PixelSize) -> Overlap:
    """Agreement of two areas in QuPath px, exact up to the rounding of coordinates.

    Lines and points that an intersection has left in them are dropped.
    """
    scale = (pixel_size.x, pixel_size.y)
    ai, truth = (
        shapely.transform(polygons_only(shape), lambda points: points * scale) for shape in (ai, truth)
    )
    both = ai.intersection(truth).area
    distances = None
    if ai.area > 0 and truth.area > 0:
        distances = _outline_distances(ai.boundary, truth.boundary)
    return _overlap(ai.area, truth.area, both, distances)


def grid_overlap(ai: BoolMask, truth: BoolMask, *, block_um: float) -> Overlap:
    """Agreement of two masks of blocks; distances are between the middles of blocks at the rim."""
    distances = None
    if ai.any() and truth.any():
        rims = [mask & ~ndimage.binary_erosion(mask, border_value=0) for mask in (ai, truth)]
        away = [ndimage.distance_transform_edt(~rim) * block_um for rim in rims]
        distances = np.concatenate([away[1][rims[0]], away[0][rims[1]]])
    return _overlap(int(ai.sum()), int(truth.sum()), int((ai & truth).sum()), distances)


def _overlap(ai: float, truth: float, both: float, distances: Floats | None) -> Overlap:
    return Overlap(
        dice=dice(ai, truth, both),
        iou=iou(ai, truth, both),
        area_ratio=float(ai / truth) if truth > 0 else None,
        boundary_mean_um=None if distances is None else float(distances.mean()),
        boundary_95_um=None if distances is None else float(np.percentile(distances, 95)),
    )


def dice(ai: float, truth: float, both: float) -> float | None:
    """Of two areas and what they share; None where both are empty."""
    return float(2 * both / (ai + truth)) if ai + truth > 0 else None


def iou(ai: float, truth: float, both: float) -> float | None:
    """Of two areas and what they share; None where both are empty."""
    return float(both / (ai + truth - both)) if ai + truth > 0 else None


def pooled(
    slides: Sequence[SlideAreas],
    figure: Callable[[float, float, float], float | None] = dice,
    *,
    resamples: int = RESAMPLES,
    seed: int = 1,
) -> Estimate | None:
    """A figure of all slides' areas added up, with its interval by patients; None where all is empty.

    There is no interval where fewer than two patients have any of the areas.

    Args:
        slides: what is added up.
        figure: `dice` or `iou`.
        resamples: draws of the bootstrap.
        seed: of the draws.
    """
    patients = [slide.patient for slide in slides]
    estimate = bootstrap(patients, pooled_statistic(slides, figure), resamples=resamples, seed=seed)
    if estimate and len({one.patient for one in slides if one.ai_um2 > 0 or one.truth_um2 > 0}) < 2:
        return Estimate(estimate.value, None)
    return estimate


def pooled_statistic(
    slides: Sequence[SlideAreas], figure: Callable[[float, float, float], float | None] = dice
) -> Callable[[NDArray[np.int64]], float | None]:
    """The pooled figure of slides that each count so often: what `bootstrap` and `paired_bootstrap` call."""
    areas = np.array([(one.ai_um2, one.truth_um2, one.both_um2) for one in slides]).reshape(-1, 3)
    return lambda counts: figure(*map(float, counts @ areas))


def _outline_distances(first: BaseGeometry, second: BaseGeometry) -> Floats:
    """Distances in µm from places along each outline to the other outline."""
    return np.concatenate([_distances(first, second), _distances(second, first)])


def _distances(outline: BaseGeometry, other: BaseGeometry) -> Floats:
    places = []
    for line in shapely.get_parts(outline):
        count = max(_FEWEST_PLACES, int(np.ceil(line.length / _STEP_UM)))
        places.append(shapely.line_interpolate_point(line, (np.arange(count) + 0.5) / count, normalized=True))
    tree = shapely.STRtree(_segments(other))
    points = np.concatenate(places)
    (index, _), away = tree.query_nearest(points, return_distance=True, all_matches=False)
    distances = np.empty(len(points))
    distances[index] = away
    return distances


def _segments(outline: BaseGeometry) -> NDArray[np.object_]:
    """An outline's straight sides."""
    points, line = shapely.get_coordinates(shapely.get_parts(outline), return_index=True)
    same = line[1:] == line[:-1]
    sides: NDArray[np.object_] = shapely.linestrings(np.stack([points[:-1][same], points[1:][same]], axis=1))
    return sides
