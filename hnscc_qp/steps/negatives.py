"""Where a development slide is known to be free of tumor: by its annotations, and by what review rejected."""

from __future__ import annotations

import numpy as np
import shapely
from numpy.typing import NDArray

from hnscc_qp.errors import SlideReadError
from hnscc_qp.geometry import STEP_PX, Grid
from hnscc_qp.patches.cut import cut_windows
from hnscc_qp.patches.labels import BACKGROUND, OUTSIDE_REGION, TUMOR_NOT_DRAWN, Label, label_windows
from hnscc_qp.patches.tiles import label_map
from hnscc_qp.qupath.project import ImageEntry
from hnscc_qp.review.verdicts import LessonKind
from hnscc_qp.slides.reader import Slide
from hnscc_qp.slides.tissue import find_tissue
from hnscc_qp.steps.context import Context
from hnscc_qp.steps.reviewed import with_lessons

_REJECTED_SHARE = 0.5
"""Of a window that must lie in a rejected region for it to be one of its windows."""
_MAY_BE_REJECTED = (TUMOR_NOT_DRAWN, BACKGROUND, OUTSIDE_REGION)
"""Windows that are ignored because nobody said what they are: here somebody did."""


def negative_windows(
    context: Context, image: ImageEntry, slide: Slide, *, positive: bool
) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Where a slide is nontumor, and which windows of it reviewers rejected.

    Args:
        context: of the study, in the generation that mines.
        image: of the development set.
        slide: of the image.
        positive: its status.

    Returns:
        For each window, one every 10 px, whether it is nontumor by the study's rules: (window rows, window
        columns) bool. And x and y, in grid px, of the windows every `mining.stride_px` that lie in rejected
        regions by half or more and hold no tumor: (n, 2).
    """
    grid = Grid.of_method(slide.size, slide.pixel_size)
    windows = label_windows(
        context.objects(image),
        name=image.name,
        size=slide.size,
        grid=grid,
        tissue=find_tissue(slide, grid),
        classes=context.study.classes,
        positive=positive,
        settings=context.study.patches.model_copy(update={"stride_px": STEP_PX}),
    )
    lessons = context.lessons.get(image.entry_id)
    windows = with_lessons(windows, lessons, grid)
    nontumor = label_map(windows, grid) == Label.NONTUMOR
    rejected = shapely.union_all(
        [lesson.roi for lesson in (lessons.of(LessonKind.HARD_NEGATIVE) if lessons else ())]
    )
    undecided = np.isin(windows.reason.codes, [windows.reason.code(one) for one in _MAY_BE_REJECTED])
    stride = context.study.mining.stride_px
    on_stride = (windows.x_px % stride == 0) & (windows.y_px % stride == 0)
    free = (windows.label == Label.NONTUMOR) | ((windows.label == Label.IGNORED) & undecided)
    scale_x, scale_y = grid.pixel_size.qupath_px_per(grid.mpp)
    x, y = windows.x_px * scale_x, windows.y_px * scale_y
    width, height = grid.window_px * scale_x, grid.window_px * scale_y
    left, top, right, bottom = rejected.bounds if not rejected.is_empty else (0.0, 0.0, 0.0, 0.0)
    near = np.flatnonzero(
        on_stride & free & (x < right) & (y < bottom) & (x + width > left) & (y + height > top)
    )
    boxes = shapely.box(x[near], y[near], x[near] + width, y[near] + height)
    inside = shapely.area(shapely.intersection(boxes, rejected)) >= _REJECTED_SHARE * width * height
    chosen = near[inside]
    return nontumor, np.stack([windows.x_px[chosen], windows.y_px[chosen]], axis=1).astype(np.int64)


def read_windows(slide: Slide, origins: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """The windows at (n, 2) x and y in grid px that can be decoded, and their pixels (n, 40, 40, 3)."""
    grid = Grid.of_method(slide.size, slide.pixel_size)
    lost: list[tuple[int, SlideReadError]] = []
    pixels = cut_windows(slide, grid, origins[:, 0], origins[:, 1], unreadable=lost)
    kept = np.setdiff1d(np.arange(len(origins)), [number for number, _ in lost])
    return origins[kept], pixels[kept]
