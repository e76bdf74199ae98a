"""Each reason by its rule, and which rule comes first."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import shapely
from shapely.geometry import Point, box
from studies import SIZE, write_slide

from hnscc_qp.geometry import Grid, Mpp, PixelSize
from hnscc_qp.review.reasons import Looks, StainMap, look, median_of, read_stain, why_false, why_missed
from hnscc_qp.slides.reader import open_slide

ONE_UM = PixelSize(Mpp(1.0), Mpp(1.0))
PLAIN = Looks(density=0.30, blueness=0.6, slide_blueness=0.7, looked_at=1.0)
NOTHING = shapely.MultiPolygon()


def missed(looks: Looks = PLAIN, *, mm: float = 0.5, unreadable: int = 0) -> str:
    reason, detail = why_missed(looks, longest_diameter_mm=mm, cohort_density=0.3, unreadable=unreadable)
    assert detail
    return reason


def false(looks: Looks = PLAIN, shape=None, *, mm: float = 0.3, tumor=NOTHING, pixel_size=ONE_UM) -> str:
    shape = Point(500, 500).buffer(150) if shape is None else shape
    reason, detail = why_false(
        looks, shape, pixel_size, tumor=tumor, longest_diameter_mm=mm, cohort_density=0.3
    )
    assert detail
    return reason


def test_a_lesion_is_missed_because_it_is_small_or_pale_or_could_not_be_read() -> None:
    assert missed() == "unexplained"
    assert missed(mm=0.199) == "missed small lesion"
    assert missed(mm=0.2) == "unexplained"
    pale = replace(PLAIN, density=0.2)
    assert missed(pale) == "weak stain"
    assert missed(pale, mm=0.1) == "missed small lesion"
    unread = replace(PLAIN, looked_at=0.4)
    assert missed(unread, unreadable=7) == "unreadable"
    assert missed(unread, unreadable=0) == "unexplained"  # not looked at, but nothing was damaged


def test_a_region_near_outlined_tumor_is_an_annotation_gap() -> None:
    near, far = box(740, 400, 800, 600), box(760, 400, 800, 600)  # 90 and 110 µm from the circle
    assert false(tumor=near) == "annotation gap"
    assert false(tumor=far) == "unexplained"
    assert false(tumor=far, pixel_size=PixelSize(Mpp(0.5), Mpp(0.5))) == "annotation gap"


def test_a_round_blue_region_of_a_follicles_size_is_called_a_follicle() -> None:
    blue = replace(PLAIN, blueness=0.8)
    assert false(blue) == "follicle"
    assert false(PLAIN) == "unexplained"  # pinker than the slide
    assert false(blue, mm=1.6) == "unexplained"
    assert false(blue, mm=0.09) == "unexplained"
    assert false(blue, box(0, 0, 300, 100)) == "unexplained"  # long
    ragged = shapely.union_all([box(0, 0, 300, 60), box(0, 0, 60, 300)])
    assert false(blue, ragged) == "unexplained"


def test_weak_stain_comes_before_a_follicle() -> None:
    assert false(replace(PLAIN, blueness=0.8, density=0.1)) == "weak stain"


def test_stain_is_read_at_one_pixel_a_block(tmp_path) -> None:
    slide = open_slide(write_slide(tmp_path / "S.tif", tumor=True, seed=1))
    grid = Grid.of_method(SIZE, ONE_UM)
    stain = read_stain(slide, grid)
    colours = {(15, 15): (120, 70, 150), (15, 32): (225, 160, 195), (0, 0): (243, 243, 243)}
    for (row, column), colour in colours.items():
        density = -np.log10((np.array(colour) + 1) / 256)
        assert stain.density[row, column] == pytest.approx(density.mean(), abs=0.02)
    # Dark purple holds back relatively more red than pink.
    assert stain.blueness[15, 15] > stain.blueness[15, 32]


def test_a_place_is_seen_by_its_own_blocks() -> None:
    density = np.arange(12, dtype=np.float32).reshape(3, 4)
    stain = StainMap(density, np.where(density > 5, density, np.nan).astype(np.float32))
    coverage = np.zeros((3, 4), np.uint8)
    coverage[0] = 1
    seen = look(np.array([1, 2, 9]), stain, coverage, slide_blueness=0.5)
    assert (seen.density, seen.blueness, seen.looked_at) == (pytest.approx(4), 9, pytest.approx(2 / 3))
    assert look(np.array([], int), stain, coverage, slide_blueness=0.5).density == 0
    assert median_of(stain.blueness) == pytest.approx(8.5)
