"""Against shapely's own areas, masks counted one by one, and distances by brute force."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely import affinity
from shapely.geometry import LineString, MultiPolygon, Point, box

from hnscc_qp.geometry import Mpp, PixelSize
from hnscc_qp.review.agreement import SlideAreas, dice, exact_overlap, grid_overlap, iou, pooled

ONE_UM = PixelSize(Mpp(1.0), Mpp(1.0))


def test_two_squares_by_hand():
    overlap = exact_overlap(box(0, 0, 100, 100), box(50, 0, 150, 100), ONE_UM)
    assert overlap.dice == pytest.approx(0.5)
    assert overlap.iou == pytest.approx(1 / 3)
    assert overlap.area_ratio == pytest.approx(1.0)


def test_an_outline_10_um_further_out_is_10_um_away():
    inner, outer = Point(500, 500).buffer(200, quad_segs=100), Point(500, 500).buffer(210, quad_segs=100)
    overlap = exact_overlap(outer, inner, ONE_UM)
    assert overlap.boundary_mean_um == pytest.approx(10, abs=0.05)
    assert overlap.boundary_95_um == pytest.approx(10, abs=0.05)


def test_distances_are_in_um_of_unequal_pixels():
    size = PixelSize(Mpp(0.5), Mpp(0.25))
    moved = exact_overlap(box(0, 0, 400, 800), box(0, 40, 400, 840), size)
    same = exact_overlap(box(0, 0, 200, 200), box(0, 10, 200, 210), ONE_UM)
    assert moved.boundary_mean_um == pytest.approx(same.boundary_mean_um)
    assert moved.dice == pytest.approx(same.dice)


@pytest.mark.parametrize("seed", range(5))
def test_distances_are_those_of_brute_force(seed):
    rng = np.random.default_rng(seed)
    shapes = [
        affinity.rotate(box(*rng.uniform(0, 100, 2), *rng.uniform(150, 300, 2)), rng.uniform(0, 90))
        for _ in range(2)
    ]
    overlap = exact_overlap(*shapes, ONE_UM)
    away = []
    for one, other in (shapes, shapes[::-1]):
        line = one.exterior
        for step in range(2000):
            away.append(line.interpolate((step + 0.5) / 2000, normalized=True).distance(other.exterior))
    # Both outlines weigh by their length there; here each counts 2000.
    weights = np.repeat([one.exterior.length for one in shapes], 2000)
    assert overlap.boundary_mean_um == pytest.approx(np.average(away, weights=weights), rel=0.01)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_blocks_count_as_their_squares_do(seed):
    rng = np.random.default_rng(seed)
    masks = [rng.random((6, 7)) < 0.4 for _ in range(2)]
    squares = [
        shapely.union_all([box(10 * x, 10 * y, 10 * x + 10, 10 * y + 10) for y, x in np.argwhere(mask)])
        for mask in masks
    ]
    grid, exact = grid_overlap(*masks, block_um=10), exact_overlap(*squares, ONE_UM)
    for figure in ("dice", "iou", "area_ratio"):
        ours, theirs = getattr(grid, figure), getattr(exact, figure)
        assert ours == (theirs if theirs is None else pytest.approx(theirs))


def test_distances_of_blocks_are_between_their_rims():
    first, second = np.zeros((20, 20), bool), np.zeros((20, 20), bool)
    first[5:10, 5:10] = True
    second[5:10, 7:12] = True
    overlap = grid_overlap(first, second, block_um=10)
    away = []
    rims = [
        [(y, x) for y, x in np.argwhere(m) if y in (5, 9) or x in (low, low + 4)]
        for m, low in ((first, 5), (second, 7))
    ]
    for one, other in (rims, rims[::-1]):
        away += [10 * min(np.hypot(y - v, x - u) for v, u in other) for y, x in one]
    assert overlap.boundary_mean_um == pytest.approx(np.mean(away))
    assert overlap.boundary_95_um == pytest.approx(np.percentile(away, 95))


def test_nothing_outlined_and_nothing_found_has_no_figure():
    empty = MultiPolygon()
    assert exact_overlap(empty, empty, ONE_UM).dice is None
    missed = exact_overlap(empty, box(0, 0, 1, 1), ONE_UM)
    assert (missed.dice, missed.area_ratio, missed.boundary_mean_um) == (0.0, 0.0, None)
    false = exact_overlap(box(0, 0, 1, 1), empty, ONE_UM)
    assert (false.dice, false.area_ratio) == (0.0, None)


def test_a_line_that_an_intersection_left_is_no_area():
    area = box(0, 0, 100, 100)
    with_line = shapely.GeometryCollection([area, LineString([(100, 50), (300, 50)])])
    assert exact_overlap(with_line, area, ONE_UM) == exact_overlap(area, area, ONE_UM)


def test_pooled_figures_are_of_areas_added_up_not_of_means():
    slides = [SlideAreas("A", 100, 100, 100), SlideAreas("B", 0, 900, 0), SlideAreas("C", 50, 0, 0)]
    assert pooled(slides, dice, resamples=20).value == pytest.approx(2 * 100 / (150 + 1000))
    assert pooled(slides, iou, resamples=20).value == pytest.approx(100 / (150 + 1000 - 100))
    assert pooled(slides, dice, resamples=20).interval is not None
    assert pooled([slides[0], SlideAreas("B", 0, 0, 0)], dice, resamples=20).interval is None
    assert pooled([SlideAreas("A", 0, 0, 0)], dice, resamples=20) is None
    assert pooled([], dice) is None
