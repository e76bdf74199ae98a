"""How lessons from review bear on an image's annotations and on the labels of its windows."""

from __future__ import annotations

import hashlib
from uuid import UUID

import numpy as np
import numpy.typing as npt
import shapely

from hnscc_qp import study
from hnscc_qp.geometry import Grid
from hnscc_qp.patches.labels import Label, WindowLabels
from hnscc_qp.patches.territories import polygons_only
from hnscc_qp.qupath.objects import ObjectType, PathClass, PathObject, RoiKind
from hnscc_qp.review.verdicts import ImageLessons, Lesson, LessonKind


def learnt_annotations(lessons: ImageLessons | None, classes: study.Classes) -> tuple[PathObject, ...]:
    """Tumor that review taught, as annotations.

    Most of them are in the project, too: accepted regions are annotations there. Those of a copy of the
    project are here only.
    """
    found = []
    for lesson in lessons.of(LessonKind.POSITIVE) if lessons else ():
        roi = polygons_only(lesson.roi)
        found.append(
            PathObject(
                type=ObjectType.ANNOTATION,
                roi=roi,
                roi_kind=RoiKind.GEOMETRY,
                area_px=roi.area,
                id=_uuid(lesson.object_id),
                name=f"{lesson.because} in review",
                path_class=PathClass(tuple(part.strip() for part in classes.tumor[0].split(":"))),
            )
        )
    return tuple(found)


def with_lessons(windows: WindowLabels, lessons: ImageLessons | None, grid: Grid) -> WindowLabels:
    """Take out of the labels what review leaves in doubt.

    Windows that overlap an ignored region (a conflict between reviewers, say) become ignored. Of the tumor
    windows that overlap a region trusted by less than 1, that share stays, drawn once for good.
    """
    if lessons is None or not lessons.lessons:
        return windows
    doubted = np.zeros(len(windows.label), np.bool_)
    for lesson in lessons.lessons:
        if lesson.kind is LessonKind.IGNORED:
            doubted |= overlapping(windows, grid, lesson)
        elif lesson.kind is LessonKind.POSITIVE and lesson.trust < 1:
            touched = np.flatnonzero(overlapping(windows, grid, lesson) & (windows.label == Label.TUMOR))
            seed = int.from_bytes(hashlib.sha256(lesson.object_id.encode()).digest()[:8])
            doubted[touched[np.random.default_rng(seed).random(len(touched)) >= lesson.trust]] = True
    return windows.doubted(doubted & (windows.label != Label.IGNORED))


def overlapping(windows: WindowLabels, grid: Grid, lesson: Lesson) -> npt.NDArray[np.bool_]:
    """Which windows overlap a region by more than its edge: (windows,)."""
    scale_x, scale_y = grid.pixel_size.qupath_px_per(grid.mpp)
    x, y = windows.x_px * scale_x, windows.y_px * scale_y
    width, height = grid.window_px * scale_x, grid.window_px * scale_y
    left, top, right, bottom = lesson.roi.bounds
    near = np.flatnonzero((x < right) & (y < bottom) & (x + width > left) & (y + height > top))
    shapely.prepare(lesson.roi)
    boxes = shapely.box(x[near], y[near], x[near] + width, y[near] + height)
    found = np.zeros(len(windows.label), np.bool_)
    found[near] = shapely.intersects(lesson.roi, boxes) & ~shapely.touches(lesson.roi, boxes)
    return found


def _uuid(text: str) -> UUID | None:
    """QuPath 0.3 gives no ids; what stands in for one is none."""
    try:
        return UUID(text)
    except ValueError:
        return None
