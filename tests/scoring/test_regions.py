from __future__ import annotations

import itertools
import json
import math
import time
from dataclasses import replace

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from shapely.affinity import translate

from hnscc_qp.geometry import Grid, Mpp, PixelSize
from hnscc_qp.qupath.objects import ObjectType, RoiKind
from hnscc_qp.scoring.regions import TumorRegion, to_detection, vectorize
from hnscc_qp.scoring.score_map import ScoreMap

MASKS = arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9)))


def mapped(mask: NDArray[np.bool_], *, pixel_size: tuple[float, float] = (1.0, 1.0)) -> ScoreMap:
    grid = Grid(*mask.shape, 10, 40, Mpp(1.0), PixelSize(Mpp(pixel_size[0]), Mpp(pixel_size[1])))
    width, height = grid.block_qupath
    size = math.ceil(mask.shape[1] * width), math.ceil(mask.shape[0] * height)
    votes = np.where(mask, 12, 3).astype(np.uint8)
    return ScoreMap(votes, np.full_like(votes, 16), grid, size, windows=1)


def count_components_by_flooding(mask: NDArray[np.bool_]) -> int:
    left, count = set(zip(*np.nonzero(mask), strict=True)), 0
    while left:
        count += 1
        flood = [left.pop()]
        while flood:
            y, x = flood.pop()
            for near in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                if near in left:
                    left.remove(near)
                    flood.append(near)
    return count


@settings(max_examples=300, deadline=None)
@given(MASKS)
def test_drawing_the_polygons_gives_back_exactly_the_mask(mask):
    regions = vectorize(mapped(mask), threshold_votes=11)
    y, x = (axis.ravel() for axis in np.indices(mask.shape))
    drawn = np.zeros(mask.size, int)
    for region in regions:
        polygon = region.polygon_qupath
        assert polygon.is_valid
        assert polygon.geom_type == "Polygon"
        # No side runs on: each corner turns.
        assert len(shapely.get_coordinates(polygon)) == len(shapely.get_coordinates(polygon.simplify(0)))
        inside = shapely.contains_xy(polygon, x * 10 + 5, y * 10 + 5)
        assert polygon.area == region.area_um2 == 100 * inside.sum()
        drawn += inside
    assert np.array_equal(drawn.reshape(mask.shape), mask.astype(int))
    assert len(regions) == count_components_by_flooding(mask)


@settings(deadline=None)
@given(MASKS, st.sampled_from([(1.0, 1.0), (0.25, 0.25), (0.5, 0.4), (0.2527, 0.2513)]))
def test_the_longest_diameter_is_that_of_all_pairs_of_corners(mask, pixel_size):
    for region in vectorize(mapped(mask, pixel_size=pixel_size), threshold_votes=11):
        corners = shapely.get_coordinates(region.polygon_qupath) * pixel_size
        longest = max(math.dist(a, b) for a, b in itertools.combinations(corners.tolist(), 2))
        assert region.longest_diameter_mm == pytest.approx(longest / 1000)


@settings(deadline=None)
@given(MASKS)
def test_unequal_pixels_keep_areas_in_micrometres(mask):
    regions = vectorize(mapped(mask, pixel_size=(0.2527, 0.5)), threshold_votes=11)
    assert sum(region.area_um2 for region in regions) == pytest.approx(100 * mask.sum(), rel=1e-3)


def test_a_ring_has_a_hole_and_an_island_in_it_is_another_region():
    mask = np.ones((7, 7), bool)
    mask[1:6, 1:6] = False
    mask[3, 3] = True
    ring, island = vectorize(mapped(mask), threshold_votes=11)
    assert len(ring.polygon_qupath.interiors) == 1
    assert ring.area_um2 == 100 * (49 - 25)
    assert ring.longest_diameter_mm == pytest.approx(0.07 * math.sqrt(2))
    assert island.polygon_qupath.equals(shapely.box(30, 30, 40, 40))


def test_blocks_that_touch_at_a_corner_are_two_regions():
    assert len(vectorize(mapped(np.eye(2, dtype=bool)), threshold_votes=11)) == 2


def test_a_region_that_closes_diagonally_around_a_gap_is_one_valid_polygon():
    mask = np.array([[1, 1, 1], [1, 0, 1], [1, 1, 0]], bool)
    (region,) = vectorize(mapped(mask), threshold_votes=11)
    assert region.polygon_qupath.is_valid
    assert len(region.polygon_qupath.interiors) == 1


def test_scores_are_those_of_the_regions_own_blocks(make_score_map):
    votes = np.array([[16, 11, 0, 12], [10, 11, 0, 13]], np.uint8)
    first, second = vectorize(make_score_map(votes), threshold_votes=11)
    assert (first.max_score, first.mean_score) == (1.0, pytest.approx((16 + 11 + 11) / 3 / 16))
    assert (second.max_score, second.mean_score) == (13 / 16, 12.5 / 16)
    assert first.threshold_score == 0.6875


def test_nothing_lies_outside_the_image(make_score_map):
    score_map = make_score_map(np.full((3, 4), 16, np.uint8), pixel_size=(0.25, 0.5), cut=0.5)
    assert score_map.image_size_px == (140, 50)
    (region,) = vectorize(score_map, threshold_votes=11)
    assert region.polygon_qupath.equals(shapely.box(0, 0, 140, 50))
    assert region.area_um2 == 140 * 0.25 * 50 * 0.5


def test_no_block_at_the_threshold_gives_no_region(make_score_map):
    assert vectorize(make_score_map(np.full((3, 4), 10, np.uint8)), threshold_votes=11) == []


def test_a_threshold_of_no_votes_is_refused(make_score_map):
    with pytest.raises(ValueError, match="at least one vote"):
        vectorize(make_score_map(np.zeros((3, 4), np.uint8)), threshold_votes=0)


def test_a_large_speckled_map_takes_no_minutes(make_score_map):
    votes = (np.random.default_rng(0).random((200, 250)) < 0.5).astype(np.uint8) * 16
    started = time.perf_counter()
    regions = vectorize(make_score_map(votes), threshold_votes=11)
    assert sum(region.area_um2 for region in regions) == 100 * (votes > 0).sum()
    assert time.perf_counter() - started < 10


@pytest.fixture
def region(make_score_map) -> TumorRegion:
    return vectorize(make_score_map(np.array([[16, 16], [12, 0]], np.uint8)), threshold_votes=11)[0]


def detect(region: TumorRegion, **changed: str):
    named = {"slide_name": "a.svs", "model_hash": "f00", "generation": "001"} | changed
    return to_detection(region, **named)


def test_a_detection_carries_class_measurements_and_the_note(region):
    found = detect(region)
    assert found.type is ObjectType.DETECTION
    assert str(found.path_class) == "AI: Tumor"
    assert found.path_class.color == (255, 90, 0)
    assert found.roi_kind is RoiKind.POLYGON
    assert found.name is None
    assert found.area_px == 300
    assert found.measurements == {
        "Area µm^2": 300,
        "Longest diameter mm": pytest.approx(0.02 * math.sqrt(2)),
        "AI: Max score": 1.0,
        "AI: Mean score": pytest.approx(44 / 48),
        "AI: threshold": 0.6875,
    }
    assert found.metadata == {
        "AI model": "f00",
        "AI generation": "001",
        "AI note": "Research use only",
    }
    json.dumps([found.measurements, found.metadata], allow_nan=False)


def test_a_detection_with_a_hole_is_a_geometry():
    mask = np.ones((3, 3), bool)
    mask[1, 1] = False
    (ring,) = vectorize(mapped(mask), threshold_votes=11)
    assert detect(ring).roi_kind is RoiKind.GEOMETRY


def test_an_id_depends_on_slide_model_and_outline_alone(region):
    first = detect(region).id
    assert first is not None
    assert first.version == 5
    assert detect(region, generation="002").id == first
    moved = translate(region.polygon_qupath, 0.001, 0)
    assert detect(replace(region, polygon_qupath=moved, mean_score=0.5)).id == first
    others = [
        detect(region, slide_name="b.svs").id,
        detect(region, model_hash="f01").id,
        detect(replace(region, polygon_qupath=translate(moved, 1, 0))).id,
    ]
    assert len({first, *others}) == 4
