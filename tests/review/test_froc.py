"""Against a slow reading of CAMELYON16's definition on pixels, written here."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from shapely.geometry import MultiPolygon, Point, Polygon, box

from hnscc_qp.geometry import Mpp, PixelSize
from hnscc_qp.review.froc import (
    Detection,
    EvaluationLesion,
    FrocStatistic,
    SlideDetections,
    evaluation_lesions,
    find_peaks,
    froc,
    major_axis,
    match_detections,
)

MPP = 5.0
"""µm per pixel of the slow reading's masks."""


def slow_lesions(mask: np.ndarray) -> tuple[np.ndarray, set[int]]:
    """Numbered lesions of a pixel mask, and the numbers of those that are isolated cells."""
    if not mask.any():
        return np.zeros(mask.shape, int), set()
    distance = ndimage.distance_transform_edt(~mask) * MPP
    filled = ndimage.binary_fill_holes(distance < 37.5)
    numbered, count = ndimage.label(filled, np.ones((3, 3)))
    small = set()
    for number in range(1, count + 1):
        rows, columns = np.nonzero(numbered == number)
        spread = np.cov(np.stack([columns, rows]), bias=True) + np.eye(2) / 12
        if 4 * np.sqrt(np.linalg.eigvalsh(spread)[-1]) * MPP < 275:
            small.add(number)
    return numbered, small


def slow_froc(slides: list[tuple[np.ndarray, list[tuple[int, int, float]]]]) -> float:
    """The mean sensitivity of slides with a mask and detections (row, column, score)."""
    false, found, lesions = [], [], 0
    for mask, detections in slides:
        numbered, small = slow_lesions(mask)
        best = {number: 0.0 for number in range(1, numbered.max() + 1) if number not in small}
        lesions += len(best)
        for row, column, score in detections:
            number = numbered[row, column]
            if number == 0:
                false.append(score)
            elif number in best:
                best[number] = max(best[number], score)
        found += best.values()
    total = []
    for rate in (0.25, 0.5, 1, 2, 4, 8):
        points = [(0.0, 0.0)]
        for cut in sorted({score for score in false + found if score > 0}, reverse=True):
            points.append(
                (sum(s >= cut for s in false) / len(slides), sum(s >= cut for s in found) / lesions)
            )
        below = [point for point in points if point[0] <= rate][-1]
        above = next((point for point in points if point[0] > rate), None)
        if above is None:
            total.append(below[1])
        else:
            part = (rate - below[0]) / (above[0] - below[0])
            total.append(below[1] + part * (above[1] - below[1]))
    return sum(total) / 6


def lesions_of(tumor, size: tuple[int, int], mpp: float) -> list[EvaluationLesion]:
    return evaluation_lesions(tumor, size_qupath=size, pixel_size=PixelSize(Mpp(mpp), Mpp(mpp)))


def drawn_mask(rng: np.random.Generator) -> tuple[np.ndarray, MultiPolygon]:
    """A few rectangles in px of 5 µm; none lie 70 to 75 µm apart, where pixels and outlines may differ."""
    mask = np.zeros((160, 160), bool)
    shapes = []
    for _ in range(rng.integers(0, 5)):
        x, y = rng.integers(0, 17, 2) * 8
        w, h = rng.integers(1, 8, 2) * 8
        mask[y : y + h, x : x + w] = True
        shapes.append(box(x, y, min(160, x + w), min(160, y + h)))
    return mask, shapely.union_all(shapes) if shapes else MultiPolygon()


@pytest.mark.parametrize("seed", range(12))
def test_the_figure_is_that_of_a_slow_reading_on_pixels(seed):
    rng = np.random.default_rng(seed)
    slow, ours = [], []
    for number in range(4):
        mask, tumor = drawn_mask(rng)
        lesions = lesions_of(tumor, (160, 160), MPP)
        lines = shapely.union_all([one.shape_qupath.boundary for one in lesions])
        places = []
        for row, column in rng.integers(0, 160, (12, 2)):
            # On the very line, pixels and outlines may differ.
            if not lines.is_empty and Point(column + 0.5, row + 0.5).distance(lines) < 1.5:
                continue
            places.append((int(row), int(column), int(rng.integers(1, 17)) / 16))
        slow.append((mask, places))
        detections = [Detection(column + 0.5, row + 0.5, score) for row, column, score in places]
        ours.append(match_detections(detections, lesions, patient=str(number)))
        numbered, small = slow_lesions(mask)
        assert (len(lesions), ours[-1].isolated_cells) == (numbered.max(), len(small))
    result = froc(ours, resamples=20)
    if result is None:
        assert sum(len(one.hits) for one in ours) == 0
    else:
        assert result.score.value == pytest.approx(slow_froc(slow), abs=1e-12)


def test_by_hand():
    slides = [
        SlideDetections("A", hits=(0.9, 0.0), false=(0.8,)),
        SlideDetections("B", hits=(), false=(0.5, 0.5)),
    ]
    result = froc(slides, resamples=50)
    assert [(p.score, p.false_per_slide, p.sensitivity) for p in result.points] == [
        (0.9, 0.0, 0.5),
        (0.8, 0.5, 0.5),
        (0.5, 1.5, 0.5),
    ]
    assert result.at == ((0.25, 0.5), (0.5, 0.5), (1.0, 0.5), (2.0, 0.5), (4.0, 0.5), (8.0, 0.5))
    assert (result.score.value, result.lesions, result.slides) == (0.5, 2, 2)


def test_without_a_lesion_there_is_no_curve():
    assert froc([SlideDetections("A", (), (0.5,))]) is None
    assert froc([]) is None


def test_one_patient_has_no_interval():
    slides = [SlideDetections("A", (0.5,), (0.25,)), SlideDetections("A", (0.0,), ())]
    assert froc(slides, resamples=20).score.interval is None


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=3, max_size=3).filter(any))
def test_a_slide_drawn_twice_counts_as_two_slides(counts):
    slides = [
        SlideDetections("A", (0.9, 0.1), (0.4,)),
        SlideDetections("B", (0.5,), (0.8, 0.2)),
        SlideDetections("C", (), (0.6,)),
    ]
    repeated = [slide for slide, count in zip(slides, counts, strict=True) for _ in range(count)]
    expected = FrocStatistic(repeated)(np.ones(len(repeated), np.int64))
    assert FrocStatistic(slides)(np.array(counts)) == (
        expected if expected is None else pytest.approx(expected)
    )


def test_outlines_nearer_than_75_um_are_one_lesion_and_small_ones_are_isolated_cells():
    near = MultiPolygon([box(0, 0, 400, 400), box(540, 0, 940, 400)])  # 70 µm apart
    assert [one.isolated_cells for one in lesions_of(near, (2000, 1000), 0.5)] == [False]
    far = MultiPolygon([box(0, 0, 600, 400), box(760, 0, 800, 40)])  # 80 µm; the second is 20 µm wide
    assert sorted(one.isolated_cells for one in lesions_of(far, (2000, 1000), 0.5)) == [False, True]


def test_a_hole_belongs_to_its_lesion():
    middle = Point(600, 600)
    ring = middle.buffer(500).difference(middle.buffer(300))
    (lesion,) = lesions_of(ring, (1200, 1200), 1.0)
    assert lesion.shape_qupath.contains(middle)
    (open_at_the_edge,) = lesions_of(ring, (600, 1200), 1.0)
    assert not open_at_the_edge.shape_qupath.contains(Point(590, 600))


def test_unequal_pixels_are_measured_in_um():
    size = PixelSize(Mpp(1.0), Mpp(0.25))
    (lesion,) = evaluation_lesions(box(50, 200, 100, 300), size_qupath=(500, 320), pixel_size=size)
    assert lesion.shape_qupath.bounds == pytest.approx((12.5, 50, 137.5, 320))


def test_the_major_axis_of_a_rectangle_and_of_an_ellipse():
    assert major_axis(box(1000, 1000, 1030, 1012)) == pytest.approx(4 * 30 / np.sqrt(12))
    ellipse = shapely.transform(Point(0, 0).buffer(1, quad_segs=200), lambda p: p * (50, 20))
    assert major_axis(ellipse) == pytest.approx(100, rel=1e-4)
    assert major_axis(Polygon([(0, 0), (0, 10), (30, 10), (30, 0)])) == pytest.approx(4 * 30 / np.sqrt(12))


def test_two_peaks_that_a_few_votes_join_are_two_detections():
    votes = np.array([[0, 2, 9, 3, 8, 2, 0]], np.uint8)
    peaks = find_peaks(votes, levels=16, block_qupath=(10.0, 10.0))
    assert [(p.x_qupath, p.y_qupath, p.score) for p in peaks] == [(25, 5, 9 / 16), (45, 5, 8 / 16)]


def test_a_ragged_tumour_is_one_detection():
    votes = np.array([[0, 16, 14, 16, 13, 15, 1]], np.uint8)
    (peak,) = find_peaks(votes, levels=16, block_qupath=(10.0, 10.0))
    assert (peak.x_qupath, peak.score) == (15, 1.0)


def test_regions_apart_are_detections_however_low():
    votes = np.zeros((5, 9), np.uint8)
    votes[1:4, 1:4] = 1
    votes[0, 8] = 16
    peaks = find_peaks(votes, levels=16, block_qupath=(20.0, 10.0))
    assert [(p.x_qupath, p.y_qupath, p.score) for p in peaks] == [(170, 5, 1.0), (50, 25, 1 / 16)]


def test_nothing_is_found_where_nothing_votes():
    assert find_peaks(np.zeros((4, 4), np.uint8), levels=16, block_qupath=(10.0, 10.0)) == []


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_every_region_has_its_highest_block_among_the_peaks(seed):
    votes = np.random.default_rng(seed).integers(0, 17, (8, 9)).astype(np.uint8)
    votes[votes < 8] = 0
    peaks = find_peaks(votes, levels=16, block_qupath=(1.0, 1.0))
    regions, count = ndimage.label(votes > 0)
    found = {}
    for peak in peaks:
        row, column = int(peak.y_qupath), int(peak.x_qupath)
        assert votes[row, column] == round(16 * peak.score)
        found.setdefault(regions[row, column], []).append(votes[row, column])
    assert sorted(found) == list(range(1, count + 1))
    for number, values in found.items():
        assert max(values) == votes[regions == number].max()
