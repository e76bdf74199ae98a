"""What the pathologist drew on one slide, and where it can be judged.

Of overlapping annotations the smaller one lies on top, as it does for the labels of windows: necrosis drawn
in a tumor is carved out of it. What an ignored annotation covers, and on a slide with region annotations
what lies outside them, is not judged; nor is glass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray
from scipy import ndimage
from shapely.geometry.base import BaseGeometry

from hnscc_qp import study
from hnscc_qp.errors import CohortError
from hnscc_qp.geometry import Grid
from hnscc_qp.patches.labels import Label
from hnscc_qp.patches.outlines import Outlines, sort_annotations
from hnscc_qp.patches.sources.trace import outline_pieces
from hnscc_qp.patches.territories import Windows, find_overlaps, polygons_only
from hnscc_qp.qupath.objects import PathObject

BoolMask = NDArray[np.bool_]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """One slide's outlined tumor and judged tissue, as polygons and as areas of blocks."""

    grid: Grid
    tumor: BaseGeometry
    """Outlined tumor in judged tissue, in QuPath px; may be empty."""
    drawn: BaseGeometry
    """Outlined tumor within the image, on glass and under ignored annotations, too."""
    area: BaseGeometry
    """Judged tissue."""
    tumor_um2: Floats
    """(rows, columns): outlined tumor in each block's judged tissue."""
    judged_um2: Floats
    """(rows, columns): judged tissue of each block."""
    outlined: bool
    """The slide is negative, or tumor is outlined on it."""
    annotations: tuple[tuple[str, BaseGeometry], ...]
    """Id and shape of each tumor annotation."""
    gaps: BaseGeometry
    """Where tumor is pointed at but not outlined."""
    remarks: tuple[str, ...]
    """Annotations that were skipped or repaired, each in one line."""


def judge(
    objects: Sequence[PathObject],
    *,
    name: str,
    size: tuple[int, int],
    grid: Grid,
    tissue: BoolMask,
    classes: study.Classes,
    settings: study.Patches,
    positive: bool,
) -> Judged:
    """Sort out one slide's annotations.

    Args:
        objects: the image's top-level objects.
        name: the image, for messages.
        size: (width, height) of the image in QuPath px.
        grid: of the score map.
        tissue: (grid.rows, grid.columns) bool.
        classes: what QuPath's classes mean.
        settings: which of overlapping annotations lies on top, and the like.
        positive: the slide's status.

    Raises:
        AnnotationError: as `sort_annotations`.
        CohortError: the slide is negative and has a tumor annotation.
    """
    outlines = sort_annotations(
        objects, name=name, size=size, pixel_size=grid.pixel_size, classes=classes, settings=settings
    )
    if outlines.any_tumor and not positive:
        raise CohortError(
            f"{name} takes part as negative but has a tumor annotation; correct its status or delete the "
            "annotation, then run hnscc-qp patches"
        )
    image = shapely.box(0, 0, *size)
    tumor, ignored = _territories(outlines, tumor_on_top=settings.nested == "tumor")
    tumor, ignored = tumor.intersection(image), ignored.intersection(image)
    scope = image
    if positive and len(outlines.regions) and settings.nontumor_on_positive != "annotated":
        # A tumor that reaches beyond the region is judged: somebody drew it.
        scope = shapely.union_all([*outlines.regions, tumor]).intersection(image)
    elif positive and settings.nontumor_on_positive == "annotated":
        scope = shapely.union_all(list(outlines.shapes)).intersection(image)
    glass_free = tissue_area(tissue, grid, size)
    area = polygons_only(scope.difference(ignored).intersection(glass_free))
    judged_tumor = polygons_only(tumor.intersection(area))
    is_tumor = outlines.meanings == Label.TUMOR
    return Judged(
        grid=grid,
        tumor=judged_tumor,
        drawn=tumor,
        area=area,
        tumor_um2=block_areas(judged_tumor, grid),
        judged_um2=block_areas(area, grid),
        outlined=not positive or bool(is_tumor.any()),
        annotations=tuple(
            (known_as, shape)
            for known_as, shape, tumorous in zip(outlines.ids, outlines.shapes, is_tumor, strict=True)
            if tumorous
        ),
        gaps=shapely.union_all(list(outlines.marks)),
        remarks=(*outlines.skipped, *outlines.repaired),
    )


def tissue_area(tissue: BoolMask, grid: Grid, size: tuple[int, int]) -> BaseGeometry:
    """The blocks of a mask as polygons in QuPath px, cut at the image's edge."""
    labels, count = ndimage.label(tissue)
    if not count:
        return shapely.MultiPolygon()
    blocks = shapely.union_all(outline_pieces(labels))
    return shapely.transform(blocks, lambda points: np.minimum(points * grid.block_qupath, size))


def block_areas(shape: BaseGeometry, grid: Grid) -> Floats:
    """How much of each block a valid area covers, exactly: (grid.rows, grid.columns) µm²."""
    areas = np.zeros(grid.rows * grid.columns)
    parts = shapely.get_parts(shape)
    if len(parts):
        width, height = grid.block_qupath
        blocks = Windows(
            np.arange(grid.columns, dtype=float) * width,
            np.arange(grid.rows, dtype=float) * height,
            grid.block_qupath,
        )
        block, _, area = find_overlaps(parts, blocks)
        areas += np.bincount(block, area, minlength=len(areas))
    return grid.pixel_size.area_um2(1.0) * areas.reshape(grid.rows, grid.columns)


def _territories(outlines: Outlines, *, tumor_on_top: bool) -> tuple[BaseGeometry, BaseGeometry]:
    """What belongs to tumor and what to ignored annotations."""
    tumor: BaseGeometry = shapely.MultiPolygon()
    ignored: BaseGeometry = shapely.MultiPolygon()
    meanings, areas = outlines.meanings, shapely.area(outlines.shapes)
    # From the bottom: tumor on top goes last, and of each the largest first, of equally large the earlier.
    order = np.lexsort((np.arange(len(areas)), -areas, tumor_on_top & (meanings == Label.TUMOR)))
    runs = np.split(order, np.flatnonzero(np.diff(meanings[order].astype(int))) + 1)
    for run in runs if len(order) else ():
        shape = shapely.union_all(outlines.shapes[run])
        tumor, ignored = tumor.difference(shape), ignored.difference(shape)
        if meanings[run[0]] == Label.TUMOR:
            tumor = tumor.union(shape)
        elif meanings[run[0]] == Label.IGNORED:
            ignored = ignored.union(shape)
    return polygons_only(tumor), polygons_only(ignored)
