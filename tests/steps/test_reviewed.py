"""What review takes out of the labels, and what it adds to the annotations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import shapely
from shapely.geometry import box
from shapely.geometry.base import BaseGeometry
from studies import annotation

from hnscc_qp.files import write_json
from hnscc_qp.geometry import Grid, Mpp, PixelSize
from hnscc_qp.patches.labels import DOUBTED, Label, WindowLabels, label_windows
from hnscc_qp.review.verdicts import ImageLessons, Lesson, LessonKind, Lessons, VerdictKind
from hnscc_qp.steps.lessonfile import image_lessons_as_json, lessons_as_json, read_lessons
from hnscc_qp.steps.reviewed import learnt_annotations, with_lessons
from hnscc_qp.study import Classes, Patches

SIZE = (800, 600)
GRID = Grid.of_method(SIZE, PixelSize(Mpp(0.5), Mpp(0.5)))
TUMOR = box(100, 100, 500, 400)


def lessons(*items: tuple[LessonKind, BaseGeometry, float]) -> ImageLessons:
    return ImageLessons(
        entry_id="1",
        image="a.tif",
        slide="a.tif",
        patient="P1",
        lessons=tuple(
            Lesson(kind, roi, trust, VerdictKind.ACCEPTED, str(annotation(roi).id), "001", ("anna",))
            for kind, roi, trust in items
        ),
    )


def labels() -> WindowLabels:
    return label_windows(
        [annotation(TUMOR)],
        name="a.tif",
        size=SIZE,
        grid=GRID,
        tissue=np.ones((GRID.rows, GRID.columns), np.bool_),
        classes=Classes(),
        positive=True,
        settings=Patches(stride_px=10),
    )


def overlapping(windows: WindowLabels, roi: BaseGeometry) -> np.ndarray:
    """Slowly: one window after another."""
    return np.array(
        [
            box(2 * x, 2 * y, 2 * x + 80, 2 * y + 80).intersection(roi).area > 1e-9
            for x, y in zip(windows.x_px, windows.y_px, strict=True)
        ]
    )


def test_windows_where_reviewers_disagree_are_ignored_and_no_others() -> None:
    before, place = labels(), shapely.Point(500, 250).buffer(60)
    after = with_lessons(before, lessons((LessonKind.IGNORED, place, 1.0)), GRID)
    touched = overlapping(before, place)
    assert touched.any()
    assert (after.label[touched] == Label.IGNORED).all()
    assert (after.label[~touched] == before.label[~touched]).all()
    assert {after.reason[i] for i in np.flatnonzero(touched)} == {DOUBTED}


@pytest.mark.parametrize("trust", [0.0, 0.25, 0.5, 1.0])
def test_region_gives_the_share_of_its_windows_that_it_is_trusted_for(trust: float) -> None:
    before = labels()
    taught = lessons((LessonKind.POSITIVE, TUMOR, trust))
    after = with_lessons(before, taught, GRID)
    share = after.count(Label.TUMOR) / before.count(Label.TUMOR)
    assert share == pytest.approx(trust, abs=0.1)
    assert share == trust or 0 < trust < 1
    assert after.count(Label.NONTUMOR) == before.count(Label.NONTUMOR)
    assert (with_lessons(before, taught, GRID).label == after.label).all()


def test_tumor_learnt_from_a_copy_of_the_project_is_an_annotation() -> None:
    taught = lessons((LessonKind.POSITIVE, TUMOR, 1.0), (LessonKind.HARD_NEGATIVE, box(0, 0, 9, 9), 1.0))
    (item,) = learnt_annotations(taught, Classes(tumor=("Cancer: invasive",)))
    assert item.roi.equals(TUMOR)
    assert str(item.path_class) == "Cancer: invasive"
    assert learnt_annotations(None, Classes()) == ()


def test_lessons_read_back_to_the_last_digit(tmp_path: Path) -> None:
    odd = shapely.transform(TUMOR, lambda points: points / 3)
    taught = lessons((LessonKind.POSITIVE, odd, 0.3))
    write_json(
        tmp_path / "lessons.json",
        lessons_as_json(Lessons((taught,), (), {}, "abc"), (taught,), {"b.tif": "refused"}),
    )
    read = read_lessons(tmp_path)["1"]
    assert image_lessons_as_json(read) == image_lessons_as_json(taught)
    assert read.lessons[0].roi.equals_exact(odd, 0.0)
