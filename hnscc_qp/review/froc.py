"""Lesions found against false detections per slide: the FROC curve, as CAMELYON16 defines it.

A detection is a place with a score. One inside an outlined lesion finds it, with the highest score of those
inside; one outside is false. At each score the curve has the share of lesions found and the mean number of
false detections over ALL slides; its figure is the mean sensitivity at 1/4, 1/2, 1, 2, 4 and 8 false ones per
slide, between points by straight lines (Ehteshami Bejnordi et al. 2017, JAMA 318:2199-2210, and the
challenge's evaluation code). To a lesion belongs what lies within 37.5 µm of its outline, so that outlines
nearer than 75 µm are one, and its holes; if its major axis is then under 275 µm it is isolated tumour cells,
which count neither as found nor as missed, and what lies in it is not false.

The challenge's code drops the lowest of all scores, which loses a point of the curve if no lesion is missed;
here every score is a point.

Where the detections come from is each algorithm's own choice. Here they are the peaks of the score map:
see `find_peaks`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from scipy import ndimage
from shapely.geometry import Polygon
from shapely.geometry.base import BaseGeometry

from hnscc_qp.geometry import PixelSize
from hnscc_qp.review.comparison import Froc, FrocPoint
from hnscc_qp.training.intervals import RESAMPLES, Estimate, bootstrap

FALSE_PER_SLIDE = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
AROUND_UM = 37.5
"""Half of 75 µm, "the equivalent size of 5 tumor cells"."""
ISOLATED_UM = 275.0
PEAK_SHARE = 0.25
"""A second peak in one region stands this share of all votes above the pass to the higher one."""


@dataclass(frozen=True, slots=True)
class Detection:
    """A peak of a score map."""

    x_qupath: float
    y_qupath: float
    score: float
    """0..1"""


@dataclass(frozen=True, slots=True)
class SlideDetections:
    """What the curve needs of one slide."""

    patient: str
    hits: tuple[float, ...]
    """Of each lesion that counts, the highest score of the detections in it; 0 if there is none."""
    false: tuple[float, ...]
    """Scores of the detections in no lesion."""
    isolated_cells: int = 0
    """Lesions that do not count."""


@dataclass(frozen=True, slots=True)
class EvaluationLesion:
    """A lesion as the curve takes it."""

    shape_qupath: Polygon
    """With 37.5 µm around it as far as the image goes, without holes."""
    isolated_cells: bool


class FrocStatistic:
    """The curve's figure of slides that each count so often: what a bootstrap calls."""

    def __init__(self, slides: Sequence[SlideDetections]) -> None:
        scores = {score for slide in slides for score in (*slide.hits, *slide.false) if score > 0}
        self.scores = np.array(sorted(scores, reverse=True))
        """From high to low, (scores,)."""
        self._false = self._reaching([slide.false for slide in slides])
        self._hits = self._reaching([slide.hits for slide in slides])
        self._lesions = np.array([len(slide.hits) for slide in slides])

    def _reaching(self, values: Sequence[Sequence[float]]) -> NDArray[np.int64]:
        """How many values of each slide reach each score: (slides, scores)."""
        counts = np.zeros((len(values), len(self.scores)), np.int64)
        for row, of_slide in enumerate(values):
            counts[row] = (np.array(of_slide)[:, np.newaxis] >= self.scores).sum(axis=0)
        return counts

    def curve(self, counts: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
        """False detections per slide and sensitivity at each score; None if there is no lesion."""
        lesions = counts @ self._lesions
        if not lesions:
            return None
        return counts @ self._false / counts.sum(), counts @ self._hits / lesions

    def __call__(self, counts: NDArray[np.int64]) -> float | None:
        """The mean of the six sensitivities, slide i counted `counts[i]` times; None without a lesion."""
        curve = self.curve(counts)
        return None if curve is None else float(np.mean(_sensitivities(*curve)))


def froc(slides: Sequence[SlideDetections], *, resamples: int = RESAMPLES, seed: int = 1) -> Froc | None:
    """The curve over some slides, with the interval of its figure by patients; None without a lesion."""
    statistic = FrocStatistic(slides)
    patients = [slide.patient for slide in slides]
    curve = statistic.curve(np.ones(len(slides), np.int64))
    score = bootstrap(patients, statistic, resamples=resamples, seed=seed)
    if curve is None or score is None:
        return None
    if len({slide.patient for slide in slides if slide.hits}) < 2:
        score = Estimate(score.value, None)  # one patient's lesions: nothing varies
    false_per_slide, sensitivity = curve
    return Froc(
        points=tuple(
            FrocPoint(float(level), float(false), float(found))
            for level, false, found in zip(statistic.scores, false_per_slide, sensitivity, strict=True)
        ),
        at=tuple(zip(FALSE_PER_SLIDE, map(float, _sensitivities(*curve)), strict=True)),
        score=score,
        slides=len(slides),
        lesions=sum(len(slide.hits) for slide in slides),
        isolated_cells=sum(slide.isolated_cells for slide in slides),
    )


def _sensitivities(
    false_per_slide: NDArray[np.float64], sensitivity: NDArray[np.float64]
) -> NDArray[np.float64]:
    """At the six rates; beyond the last point of the curve it stays where it is."""
    # With no score at all high enough, nothing is found and nothing false.
    x, y = np.concatenate([[0.0], false_per_slide]), np.concatenate([[0.0], sensitivity])
    found: NDArray[np.float64] = np.interp(FALSE_PER_SLIDE, x, y)
    return found


def evaluation_lesions(
    tumor_qupath: BaseGeometry, *, size_qupath: tuple[int, int], pixel_size: PixelSize
) -> list[EvaluationLesion]:
    """The lesions that the curve counts, of the outlined tumor of one image.

    Args:
        tumor_qupath: polygons in QuPath px.
        size_qupath: width and height of the image, which cuts what is around a lesion.
        pixel_size: of the image.
    """
    scale = np.array([pixel_size.x, pixel_size.y])
    grown = shapely.transform(tumor_qupath, lambda points: points * scale).buffer(AROUND_UM, quad_segs=16)
    grown = grown.intersection(shapely.box(0, 0, *(size_qupath * scale)))
    filled = [Polygon(part.exterior) for part in shapely.get_parts(grown) if part.area > 0]
    return [
        EvaluationLesion(
            shapely.transform(part, lambda points: points / scale), major_axis(part) < ISOLATED_UM
        )
        for part in shapely.get_parts(shapely.union_all(filled))
        if part.area > 0
    ]


def major_axis(polygon: Polygon) -> float:
    """Major axis of the ellipse that has the second moments of a polygon without holes; in its own unit.

    The moments are integrals over the outline (Green's theorem).
    """
    # From the middle, so that the first moments vanish and little is lost by rounding.
    points = shapely.get_coordinates(polygon.exterior) - shapely.get_coordinates(polygon.centroid)
    a, b = points[:-1], points[1:]
    cross = a[:, 0] * b[:, 1] - b[:, 0] * a[:, 1]
    ends = np.stack([a, b, a + b])
    second = np.einsum("kei,kej,e->ij", ends, ends, cross) / 24
    covariance = second / (cross.sum() / 2)
    return float(4 * np.sqrt(max(0.0, np.linalg.eigvalsh(covariance)[-1])))


def match_detections(
    detections: Sequence[Detection], lesions: Sequence[EvaluationLesion], *, patient: str
) -> SlideDetections:
    """Which lesion each detection finds; a detection in isolated cells is neither found nor false."""
    places = shapely.points([(one.x_qupath, one.y_qupath) for one in detections] or np.empty((0, 2)))
    scores = np.array([one.score for one in detections])
    inside_any = np.zeros(len(detections), np.bool_)
    hits = []
    for lesion in lesions:
        inside = shapely.intersects(lesion.shape_qupath, places)
        inside_any |= inside
        if not lesion.isolated_cells:
            hits.append(float(scores[inside].max(initial=0.0)))
    return SlideDetections(
        patient=patient,
        hits=tuple(hits),
        false=tuple(map(float, scores[~inside_any])),
        isolated_cells=sum(lesion.isolated_cells for lesion in lesions),
    )


def find_peaks(
    votes: NDArray[np.uint8], *, levels: int, block_qupath: tuple[float, float]
) -> list[Detection]:
    """The peaks of a score map, each a detection at its middle with its score.

    Every connected region of blocks with a vote has its highest peak; a lower one in the same region is a
    peak of its own if it stands a quarter of all votes (4 of 16) above the pass between them. So a tumour
    with a ragged score is one detection, and two tumours that a few votes join are two.

    Args:
        votes: (rows, columns) 0..levels; 0 where nothing is to be found.
        levels: votes of a block that all windows call tumor.
        block_qupath: width and height of a block in QuPath px.

    Returns:
        By falling score; of one score row by row.
    """
    height = max(1, round(PEAK_SHARE * levels))
    rising: list[tuple[int, int, int]] = []  # (votes, row, column), not yet joined by a higher one
    settled: list[tuple[int, int, int]] = []
    for level in range(int(votes.max(initial=0)), 0, -1):
        regions, count = ndimage.label(votes >= level)
        by_region: dict[int, list[tuple[int, int, int]]] = {}
        for peak in rising:
            by_region.setdefault(int(regions[peak[1], peak[2]]), []).append(peak)
        new = np.setdiff1d(np.arange(1, count + 1), list(by_region))
        rising = [(level, row, column) for row, column in _middles(regions, new)]
        for peaks in by_region.values():
            highest, *lower = sorted(peaks, key=lambda peak: (-peak[0], peak[1], peak[2]))
            rising.append(highest)
            settled += [peak for peak in lower if peak[0] - level >= height]
    width, tall = block_qupath
    return [
        Detection((column + 0.5) * width, (row + 0.5) * tall, reached / levels)
        for reached, row, column in sorted(rising + settled, key=lambda peak: (-peak[0], peak[1], peak[2]))
    ]


def _middles(
    regions: NDArray[np.signedinteger[Any]], numbers: NDArray[np.signedinteger[Any]]
) -> list[tuple[int, int]]:
    """Of each numbered region, the block nearest to its centre of mass; of several the first."""
    if not len(numbers):
        return []
    rows, columns = np.nonzero(np.isin(regions, numbers))
    region = regions[rows, columns]
    size = np.bincount(region)
    size[size == 0] = 1
    off_row = rows - (np.bincount(region, rows) / size)[region]
    off_column = columns - (np.bincount(region, columns) / size)[region]
    # Rounded, so that blocks as near as each other are told apart by their place alone.
    order = np.lexsort((columns, rows, np.round(off_row**2 + off_column**2, 6), region))
    _, first = np.unique(region[order], return_index=True)
    return [(int(rows[at]), int(columns[at])) for at in order[first]]
