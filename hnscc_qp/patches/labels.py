"""Annotations → the label of every window, with the reason.

A window is tumor if it holds any cancer; necrosis and tumour-associated stroma are nontumor, and
so are negative slides and the non-cancerous part of positive ones (Tang et al. 2022, §2.2).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt
from shapely.geometry.base import BaseGeometry

from hnscc_qp import study
from hnscc_qp.errors import CohortError
from hnscc_qp.geometry import Grid
from hnscc_qp.patches.territories import Windows, find_overlaps, polygons_only
from hnscc_qp.qupath.objects import ObjectType, PathClass, PathObject, walk


class Label(IntEnum):
    """What a window is, or what an annotation makes of the windows under it."""

    NONTUMOR = 0
    TUMOR = 1
    IGNORED = 2


UNDER_ANNOTATION = "annotation"
NEGATIVE_SLIDE = "negative slide"
OUTSIDE_ANNOTATIONS = "outside annotations"
IGNORED_ANNOTATION = "ignored annotation"
BACKGROUND = "background"
TUMOR_NOT_DRAWN = "tumor not drawn"


@dataclass(frozen=True, slots=True)
class WindowLabels:
    """Every window that lies wholly within one image, row by row."""

    x_px: npt.NDArray[np.int32]
    """Left edge in grid px: (windows,)."""
    y_px: npt.NDArray[np.int32]
    """Top edge in grid px: (windows,)."""
    label: npt.NDArray[np.uint8]
    """`Label`: (windows,)."""
    reason: Sequence[str]
    """Why, in one of the words above."""
    annotation_ids: Sequence[tuple[str, ...]]
    """The annotations that decided; empty where none did."""
    unmapped: Mapping[str, int]
    """Class → how many annotations of it there are that the study gives no meaning."""
    skipped: tuple[str, ...]
    """Annotations with a meaning but no area, each in one line."""

    def count(self, label: Label) -> int:
        """How many windows have the label."""
        return int((self.label == label).sum())


def meaning_of(path_class: PathClass | None, classes: study.Classes) -> Label | None:
    """What the study makes of a class; None if it gives no meaning.

    The full name decides (`Tumor: Positive`); failing that the longest part of it from the front
    (`Tumor`), so that a derived class is what its base is unless the study says otherwise.
    """
    if path_class is None:
        return None
    meanings = dict.fromkeys(classes.nontumor, Label.NONTUMOR)
    meanings |= dict.fromkeys(classes.tumor, Label.TUMOR)
    meanings |= dict.fromkeys(classes.ignored, Label.IGNORED)
    for length in range(len(path_class.names), 0, -1):
        name = ": ".join(path_class.names[:length])
        if name in meanings:
            return meanings[name]
    return None


def annotated_meanings(
    objects: Sequence[PathObject], classes: study.Classes
) -> Iterator[tuple[PathObject, Label | None]]:
    """Every annotation, at any depth, with what the study makes of its class."""
    for _, item in walk(objects):
        if item.type is ObjectType.ANNOTATION:
            yield item, meaning_of(item.path_class, classes)


def label_windows(
    objects: Sequence[PathObject],
    *,
    name: str,
    size: tuple[int, int],
    grid: Grid,
    tissue: npt.NDArray[np.bool_],
    classes: study.Classes,
    positive: bool,
    settings: study.Patches,
) -> WindowLabels:
    """Label the windows that start every `settings.stride_px` and lie wholly within the image.

    Smaller annotations lie on larger ones: necrosis drawn inside a tumor is carved out of it, and
    a nest of tumor drawn inside that necrosis is tumor again; of two equally large ones the later
    lies on top. In the order of the rules, a window is

    1. ignored (`tumor not drawn`), if the slide is positive and no tumor is outlined;
    2. tumor, if it overlaps what is left of any tumor annotation;
    3. ignored (`ignored annotation`), if it overlaps what is left of an ignored one;
    4. ignored (`background`), if less than `settings.min_tissue` of it is tissue;
    5. nontumor.

    Args:
        objects: the image's top-level objects.
        name: the image, for messages.
        size: (width, height) of the image in QuPath px.
        grid: the image's grid.
        tissue: (grid.rows, grid.columns) bool.
        classes: what QuPath's classes mean.
        positive: status of the slide.
        settings: stride and smallest share of tissue.

    Raises:
        CohortError: the slide is negative and has a tumor annotation.
    """
    assert tissue.shape == (grid.rows, grid.columns)
    annotations = _outline(objects, classes)
    if not positive and annotations.any_tumor:
        raise CohortError(
            f"{name} is negative but has a tumor annotation; correct its status or delete the annotation"
        )
    stride = settings.stride_px // grid.step_px
    assert stride * grid.step_px == settings.stride_px, "windows must start on blocks"
    block_width, block_height = grid.block_qupath
    columns = _starts(size[0] / block_width, grid.window_columns, stride, grid.window_blocks)
    rows = _starts(size[1] / block_height, grid.window_rows, stride, grid.window_blocks)
    row, column = (index.ravel() for index in np.meshgrid(rows, columns, indexing="ij"))

    label = np.full(len(row), Label.NONTUMOR, np.uint8)
    reason = np.full(len(row), OUTSIDE_ANNOTATIONS if positive else NEGATIVE_SLIDE, object)
    deciders: list[tuple[str, ...]] = [()] * len(row)
    meanings = np.array([int(meaning) for meaning in annotations.meanings], np.uint8)
    if positive and Label.TUMOR not in annotations.meanings:
        label[:], reason[:] = Label.IGNORED, TUMOR_NOT_DRAWN
    else:
        windows, owners = find_overlaps(
            annotations.shapes,
            Windows(
                columns.astype(np.float64) * block_width,
                rows.astype(np.float64) * block_height,
                (grid.window_blocks * block_width, grid.window_blocks * block_height),
            ),
        )

        def overlaps(meaning: Label) -> npt.NDArray[np.bool_]:
            hit = np.zeros(len(row), np.bool_)
            hit[windows[meanings[owners] == meaning]] = True
            return hit

        tumor, ignored, nontumor = (overlaps(m) for m in (Label.TUMOR, Label.IGNORED, Label.NONTUMOR))
        scarce = _tissue_share(tissue, row, column, grid.window_blocks) < settings.min_tissue
        reason[nontumor] = UNDER_ANNOTATION
        # The strongest rule is written last.
        label[scarce], reason[scarce] = Label.IGNORED, BACKGROUND
        label[ignored], reason[ignored] = Label.IGNORED, IGNORED_ANNOTATION
        label[tumor], reason[tumor] = Label.TUMOR, UNDER_ANNOTATION
        by_annotation = (reason == UNDER_ANNOTATION) | (reason == IGNORED_ANNOTATION)
        decisive = by_annotation[windows] & (meanings[owners] == label[windows])
        for window, owner in zip(windows[decisive], owners[decisive], strict=True):
            deciders[window] += (annotations.ids[owner],)
    return WindowLabels(
        x_px=(column * grid.step_px).astype(np.int32),
        y_px=(row * grid.step_px).astype(np.int32),
        label=label,
        reason=reason.tolist(),
        annotation_ids=deciders,
        unmapped=annotations.unmapped,
        skipped=annotations.skipped,
    )


@dataclass(frozen=True, slots=True)
class _Outlines:
    """Annotations with a meaning and an area, in the order of the hierarchy."""

    shapes: npt.NDArray[np.object_]
    meanings: Sequence[Label]
    ids: Sequence[str]
    any_tumor: bool
    """Also counts tumor annotations without an area."""
    unmapped: Mapping[str, int]
    skipped: tuple[str, ...]


def _outline(objects: Sequence[PathObject], classes: study.Classes) -> _Outlines:
    shapes: list[BaseGeometry] = []
    meanings: list[Label] = []
    ids: list[str] = []
    skipped: list[str] = []
    unmapped: Counter[str] = Counter()
    any_tumor = False
    for number, (item, meaning) in enumerate(annotated_meanings(objects, classes), start=1):
        if meaning is None:
            unmapped[str(item.path_class) if item.path_class else "unclassified"] += 1
            continue
        any_tumor = any_tumor or meaning is Label.TUMOR
        # QuPath 0.3 gives no ids.
        known_as = str(item.id) if item.id else f"annotation {number}"
        shape = polygons_only(item.roi)
        if shape.area > 0:
            shapes.append(shape)
            meanings.append(meaning)
            ids.append(known_as)
        else:
            what = f"{item.name or known_as} ({item.path_class}, {item.roi_kind})"
            skipped.append(f"{what} has no area; outline it instead")
    array = np.empty(len(shapes), object)
    array[:] = shapes
    return _Outlines(array, meanings, ids, any_tumor, dict(unmapped), tuple(skipped))


def _starts(blocks: float, windows: int, stride: int, window_blocks: int) -> npt.NDArray[np.int64]:
    """First blocks of the windows along one side that do not reach beyond `blocks`."""
    starts = np.arange(0, windows, stride)
    # The slack is a hair's: a product of rounded numbers must not cost the last column.
    return starts[starts + window_blocks <= blocks + 1e-6]


def _tissue_share(
    tissue: npt.NDArray[np.bool_], row: npt.NDArray[np.int64], column: npt.NDArray[np.int64], blocks: int
) -> npt.NDArray[np.float64]:
    """Share of each window's blocks that are tissue: (windows,) in 0..1."""
    sums = np.pad(tissue, ((1, 0), (1, 0))).cumsum(axis=0, dtype=np.int64).cumsum(axis=1)
    bottom, right = row + blocks, column + blocks
    inside = sums[bottom, right] - sums[row, right] - sums[bottom, column] + sums[row, column]
    share: npt.NDArray[np.float64] = inside / blocks**2
    return share
