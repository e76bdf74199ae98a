"""What can be judged, against a slow reading of every point of a fine grid."""

from __future__ import annotations

import numpy as np
import pytest
from shapely.geometry import LineString, Point, Polygon, box
from studies import annotation

from hnscc_qp import study
from hnscc_qp.errors import CohortError
from hnscc_qp.geometry import Grid, Mpp, PixelSize
from hnscc_qp.qupath.objects import ObjectType, PathClass, PathObject, RoiKind
from hnscc_qp.review.judged import block_areas, judge
from hnscc_qp.review.lesions import edge_distance_mm, stratum_of, tissue_edge

SIZE = (200, 160)
CLASSES = study.Classes(tumor=("Tumor",), nontumor=("Necrosis",), ignored=("Ignore*",), region=("Region",))
GRID = Grid.of_method(SIZE, PixelSize(Mpp(1.0), Mpp(1.0)))


def judged(objects, *, positive=True, tissue=None, **settings):
    if tissue is None:
        tissue = np.ones((GRID.rows, GRID.columns), bool)
    return judge(
        objects,
        name="drawn",
        size=SIZE,
        grid=GRID,
        tissue=tissue,
        classes=CLASSES,
        settings=study.Patches(**settings),
        positive=positive,
    )


def top_class(objects, x: float, y: float, *, tumor_on_top: bool) -> str | None:
    """The class of the annotation on top of a point: the smallest, of equals the latest."""
    over = [
        (
            tumor_on_top and str(item.path_class) == "Tumor",
            -item.roi.area,
            number,
            str(item.path_class),
        )
        for number, item in enumerate(objects)
        if str(item.path_class) != "Region" and item.roi.contains(Point(x, y))
    ]
    return max(over)[-1] if over else None


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("nested", ["smaller", "tumor"])
def test_every_point_is_what_the_annotation_on_top_of_it_says(seed, nested):
    rng = np.random.default_rng(seed)
    objects = []
    for _ in range(7):
        x, y = rng.uniform(-20, 180), rng.uniform(-20, 140)
        shape = Polygon(rng.uniform(0, 90, (3, 2)) + np.array([x, y]))
        objects.append(annotation(shape, str(rng.choice(["Tumor", "Necrosis", "Ignore*"]))))
    tissue = rng.random((GRID.rows, GRID.columns)) < 0.8
    result = judged(objects, tissue=tissue, nested=nested)
    for x, y in rng.uniform(0, 1, (400, 2)) * SIZE:
        top = top_class(objects, x, y, tumor_on_top=nested == "tumor")
        on_tissue = bool(tissue[int(y // 10), int(x // 10)])
        assert result.area.contains(Point(x, y)) == (on_tissue and top != "Ignore*")
        assert result.tumor.contains(Point(x, y)) == (on_tissue and top == "Tumor")


def test_areas_of_blocks_add_up_to_the_outline():
    shape = Point(90, 70).buffer(45)
    areas = block_areas(shape, GRID)
    assert areas.sum() == pytest.approx(shape.area)
    for row, column in ((2, 5), (7, 9), (11, 8)):
        block = box(column * 10, row * 10, column * 10 + 10, row * 10 + 10)
        assert areas[row, column] == pytest.approx(shape.intersection(block).area)


def test_outside_a_region_annotation_a_positive_slide_is_not_judged():
    objects = [annotation(box(0, 0, 100, 160), "Region"), annotation(box(80, 40, 120, 80))]
    assert judged(objects).area.area == pytest.approx(100 * 160 + 20 * 40)
    with pytest.raises(CohortError, match="takes part as negative but has a tumor annotation"):
        judged(objects, positive=False)
    assert judged(objects[:1], positive=False).area.area == pytest.approx(200 * 160)
    only = judged(
        [annotation(box(0, 0, 50, 50)), annotation(box(60, 0, 90, 50), "Necrosis")],
        nontumor_on_positive="annotated",
    )
    assert only.area.area == pytest.approx(50 * 50 + 30 * 50)


def test_a_point_says_tumor_without_outlining_it():
    mark = PathObject(
        type=ObjectType.ANNOTATION,
        roi=LineString([(10, 10), (40, 10)]),
        roi_kind=RoiKind.LINE,
        area_px=0,
        path_class=PathClass(("Tumor",)),
    )
    result = judged([mark])
    assert not result.outlined and result.gaps.contains(Point(20, 10))


def test_the_edge_of_tissue_is_neither_a_hole_nor_the_images_end():
    tissue = box(0, 0, 100, 160).difference(box(40, 40, 60, 60))
    edge = tissue_edge(tissue, SIZE)
    assert edge_distance_mm(box(65, 45, 80, 55), edge, PixelSize(Mpp(1.0), Mpp(1.0))) == pytest.approx(0.02)
    assert edge_distance_mm(box(65, 45, 80, 55), edge, PixelSize(Mpp(2.0), Mpp(0.5))) == pytest.approx(0.04)
    whole = tissue_edge(box(0, 0, *SIZE), SIZE)
    assert edge_distance_mm(box(1, 1, 2, 2), whole, PixelSize(Mpp(1.0), Mpp(1.0))) is None


def test_sizes_change_at_2_mm_and_0_2_mm():
    assert [stratum_of(size) for size in (2.0, 1.999, 0.2, 0.199)] == [
        "≥2 mm",
        "0.2 to 2 mm",
        "0.2 to 2 mm",
        "<0.2 mm",
    ]
