"""Annotations → the label of every window, with the rule that decided.

A window is tumor if it holds any cancer; necrosis and tumour-associated stroma are nontumor, and
so are negative slides and the non-cancerous part of positive ones (Tang et al. 2022, §2.2). Where a
study sees it otherwise it says so under `[patches]`; docs/labels.md tells the rules in a pathologist's words.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import overload

import numpy as np
import numpy.typing as npt

from hnscc_qp import study
from hnscc_qp.errors import CohortError
from hnscc_qp.geometry import Grid
from hnscc_qp.patches.outlines import (
    Label,
    Outlines,
    annotated_meanings,
    is_region,
    meaning_of,
    sort_annotations,
)
from hnscc_qp.patches.territories import Flags, Floats, Indices, Windows, find_overlaps
from hnscc_qp.qupath.objects import PathObject

__all__ = ["Label", "WindowLabels", "annotated_meanings", "is_region", "label_windows", "meaning_of"]

UNDER_ANNOTATION = "annotation"
NEGATIVE_SLIDE = "negative slide"
OUTSIDE_ANNOTATIONS = "outside annotations"
IGNORED_ANNOTATION = "ignored annotation"
BACKGROUND = "background"
TUMOR_NOT_DRAWN = "tumor not drawn"
TUMOR_NOT_OUTLINED = "tumor not outlined"
LITTLE_TUMOR = "too little tumor"
OUTSIDE_REGION = "outside annotated region"
DOUBTED = "in doubt after review"

REASONS = (
    UNDER_ANNOTATION,
    NEGATIVE_SLIDE,
    OUTSIDE_ANNOTATIONS,
    IGNORED_ANNOTATION,
    BACKGROUND,
    TUMOR_NOT_DRAWN,
    TUMOR_NOT_OUTLINED,
    LITTLE_TUMOR,
    OUTSIDE_REGION,
    DOUBTED,
)
"""Every rule by its word; a window's `reason` is one of them."""
_CODE = {reason: code for code, reason in enumerate(REASONS)}
_WHOLE = 1 - 1e-6
"""A share that rounding has left of one."""


@dataclass(frozen=True, slots=True)
class Reasons(Sequence[str]):
    """The rule that decided each window, as a number that stands for a word of `REASONS`."""

    codes: npt.NDArray[np.uint8]
    """(windows,)"""

    @staticmethod
    def code(reason: str) -> int:
        """The number that stands for a rule's word."""
        return _CODE[reason]

    def __len__(self) -> int:
        return len(self.codes)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Reasons: ...
    def __getitem__(self, index: int | slice) -> str | Reasons:
        return Reasons(self.codes[index]) if isinstance(index, slice) else REASONS[self.codes[index]]

    def __iter__(self) -> Iterator[str]:
        return map(REASONS.__getitem__, self.codes.tolist())


@dataclass(frozen=True, slots=True)
class Deciders(Sequence[tuple[str, ...]]):
    """The annotations that decided each window; mostly none, so they are kept one list after another."""

    starts: npt.NDArray[np.int64]
    """(windows + 1,) where each window's list begins in `numbers`."""
    numbers: npt.NDArray[np.int32]
    """Numbers of annotations, in `ids`."""
    ids: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.starts) - 1

    @overload
    def __getitem__(self, index: int) -> tuple[str, ...]: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[tuple[str, ...]]: ...
    def __getitem__(self, index: int | slice) -> tuple[str, ...] | Sequence[tuple[str, ...]]:
        if isinstance(index, slice):
            return [self[one] for one in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        return tuple(self.ids[n] for n in self.numbers[self.starts[index] : self.starts[index + 1]])


@dataclass(frozen=True, slots=True)
class WindowLabels:
    """Every window that lies wholly within one image, row by row."""

    x_px: npt.NDArray[np.int32]
    """Left edge in grid px: (windows,)."""
    y_px: npt.NDArray[np.int32]
    """Top edge in grid px: (windows,)."""
    label: npt.NDArray[np.uint8]
    """`Label`: (windows,)."""
    reason: Reasons
    """Why, in one of the words above."""
    annotation_ids: Deciders
    """The annotations that decided; empty where none did."""
    unmapped: Mapping[str, int]
    """Class → how many annotations of it there are that the study gives no meaning."""
    skipped: tuple[str, ...]
    """Annotations with a meaning that outline nothing, each in one line."""
    repaired: tuple[str, ...] = ()
    """Annotations whose outline had to be repaired, each in one line."""

    def doubted(self, windows: npt.NDArray[np.bool_]) -> WindowLabels:
        """The same labels, with some windows, (windows,) bool, ignored as review left them in doubt."""
        label, codes = self.label.copy(), self.reason.codes.copy()
        label[windows], codes[windows] = Label.IGNORED, _CODE[DOUBTED]
        return replace(self, label=label, reason=Reasons(codes))

    def count(self, label: Label) -> int:
        """How many windows have the label."""
        return int((self.label == label).sum())

    def count_reasons(self, label: Label) -> dict[str, int]:
        """How many windows each rule gave the label."""
        counts = np.bincount(self.reason.codes[self.label == label], minlength=len(REASONS))
        return {reason: int(count) for reason, count in zip(REASONS, counts, strict=True) if count}


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
    lies on top (`settings.nested`). In the order of the rules, a window is

    1. ignored (`tumor not drawn`), if the slide is positive and no tumor is outlined;
    2. tumor, if it overlaps what is left of the tumor annotations by `settings.min_tumor_um2`, and
       ignored (`too little tumor`) if by less;
    3. ignored (`tumor not outlined`), where a point, a line or an open outline says tumor;
    4. ignored (`ignored annotation`), if more than `settings.max_ignored` of it lies in what is left of
       an ignored one; this comes before 2 if `settings.tumor_over_ignored` is false;
    5. ignored (`background`), if less than `settings.min_tissue` of it is tissue; a tumor window, if
       less than `settings.min_tumor_tissue`;
    6. ignored (`outside annotated region`), if the slide is positive, it lies on no nontumor
       annotation, and `settings.nontumor_on_positive` does not reach there;
    7. nontumor.

    Args:
        objects: the image's top-level objects.
        name: the image, for messages.
        size: (width, height) of the image in QuPath px.
        grid: the image's grid.
        tissue: (grid.rows, grid.columns) bool.
        classes: what QuPath's classes mean.
        positive: status of the slide.
        settings: the rules.

    Raises:
        CohortError: the slide is negative and has a tumor annotation.
        AnnotationError: an annotation is of a kind that the settings call an error.
    """
    assert tissue.shape == (grid.rows, grid.columns)
    outlines = sort_annotations(
        objects, name=name, size=size, pixel_size=grid.pixel_size, classes=classes, settings=settings
    )
    if not positive and outlines.any_tumor:
        raise CohortError(
            f"{name} is negative but has a tumor annotation; correct its status or delete the annotation"
        )
    stride = settings.stride_px // grid.step_px
    assert stride * grid.step_px == settings.stride_px, "windows must start on blocks"
    block_width, block_height = grid.block_qupath
    columns = _starts(size[0] / block_width, grid.window_columns, stride, grid.window_blocks)
    rows = _starts(size[1] / block_height, grid.window_rows, stride, grid.window_blocks)
    windows = Windows(
        columns.astype(np.float64) * block_width,
        rows.astype(np.float64) * block_height,
        (grid.window_blocks * block_width, grid.window_blocks * block_height),
    )
    if positive and not (outlines.meanings == Label.TUMOR).any():
        number = len(rows) * len(columns)
        label = np.full(number, Label.IGNORED, np.uint8)
        reason = np.full(number, _CODE[TUMOR_NOT_DRAWN], np.uint8)
        deciders = Deciders(np.zeros(number + 1, np.int64), np.empty(0, np.int32), ())
    else:
        share = _tissue_share(tissue, rows, columns, grid.window_blocks)
        label, reason, deciders = _apply_rules(
            outlines, windows, tissue=share, grid=grid, positive=positive, settings=settings
        )
    return WindowLabels(
        x_px=np.tile((columns * grid.step_px).astype(np.int32), len(rows)),
        y_px=np.repeat((rows * grid.step_px).astype(np.int32), len(columns)),
        label=label,
        reason=Reasons(reason),
        annotation_ids=deciders,
        unmapped=outlines.unmapped,
        skipped=outlines.skipped,
        repaired=outlines.repaired,
    )


def _apply_rules(
    outlines: Outlines,
    windows: Windows,
    *,
    tissue: npt.NDArray[np.float32],
    grid: Grid,
    positive: bool,
    settings: study.Patches,
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8], Deciders]:
    """Labels, codes of the reasons, and deciders of all windows, row by row."""
    number = len(tissue)
    first = outlines.meanings == Label.TUMOR if settings.nested == "tumor" else None
    window, owner, area = find_overlaps(outlines.shapes, windows, first=first)
    meaning = outlines.meanings[owner]
    window_area = windows.size[0] * windows.size[1]

    def covered(which: Flags) -> Floats:
        """Area of each window under some of the annotations, in QuPath px²."""
        return np.bincount(window[which], area[which], minlength=number).astype(np.float64)

    tumor_area = covered(meaning == Label.TUMOR)
    little = (tumor_area > 0) & (grid.pixel_size.area_um2(1.0) * tumor_area < settings.min_tumor_um2)
    tumor = (tumor_area > 0) & ~little
    ignored = covered(meaning == Label.IGNORED) > settings.max_ignored * window_area
    nontumor = covered(meaning == Label.NONTUMOR) > 0
    marked, marker, _ = find_overlaps(outlines.marks, windows)

    label = np.full(number, Label.NONTUMOR, np.uint8)
    reason = np.full(number, _CODE[OUTSIDE_ANNOTATIONS if positive else NEGATIVE_SLIDE], np.uint8)

    def say(which: Flags | Indices, what: Label, why: str) -> None:
        label[which], reason[which] = what, _CODE[why]

    # The strongest rule is written last.
    if positive:
        say(~_in_region(outlines, windows, settings, number), Label.IGNORED, OUTSIDE_REGION)
    say(nontumor, Label.NONTUMOR, UNDER_ANNOTATION)
    say(tissue < settings.min_tissue, Label.IGNORED, BACKGROUND)
    if settings.tumor_over_ignored:
        say(ignored, Label.IGNORED, IGNORED_ANNOTATION)
    say(marked, Label.IGNORED, TUMOR_NOT_OUTLINED)
    say(little, Label.IGNORED, LITTLE_TUMOR)
    say(tumor, Label.TUMOR, UNDER_ANNOTATION)
    say(tumor & (tissue < settings.min_tumor_tissue), Label.IGNORED, BACKGROUND)
    if not settings.tumor_over_ignored:
        say(ignored, Label.IGNORED, IGNORED_ANNOTATION)

    why, what = reason[window], label[window]
    decisive = (
        ((why == _CODE[UNDER_ANNOTATION]) & (meaning == what))
        | ((why == _CODE[IGNORED_ANNOTATION]) & (meaning == Label.IGNORED))
        | ((why == _CODE[LITTLE_TUMOR]) & (meaning == Label.TUMOR))
    )
    by_mark = reason[marked] == _CODE[TUMOR_NOT_OUTLINED]
    decided = np.concatenate([window[decisive], marked[by_mark]])
    numbers = np.concatenate([owner[decisive], marker[by_mark] + len(outlines.ids)])
    order = np.argsort(decided, kind="stable")
    starts = np.zeros(number + 1, np.int64)
    np.cumsum(np.bincount(decided, minlength=number), out=starts[1:])
    ids = outlines.ids + outlines.mark_ids
    return label, reason, Deciders(starts, numbers[order].astype(np.int32), ids)


def _in_region(outlines: Outlines, windows: Windows, settings: study.Patches, number: int) -> Flags:
    """Where a positive slide may be nontumor though nobody drew it so: (windows,)."""
    if settings.nontumor_on_positive == "annotated":
        return np.zeros(number, np.bool_)
    if settings.nontumor_on_positive == "everywhere" and not len(outlines.regions):
        return np.ones(number, np.bool_)
    window, _, area = find_overlaps(outlines.regions, windows)
    inside = np.bincount(window, area, minlength=number)
    whole: Flags = inside >= _WHOLE * windows.size[0] * windows.size[1]
    return whole


def _starts(blocks: float, windows: int, stride: int, window_blocks: int) -> npt.NDArray[np.int64]:
    """First blocks of the windows along one side that do not reach beyond `blocks`."""
    starts = np.arange(0, windows, stride)
    # The slack is a hair's: a product of rounded numbers must not cost the last column.
    return starts[starts + window_blocks <= blocks + 1e-6]


def _tissue_share(
    tissue: npt.NDArray[np.bool_], rows: npt.NDArray[np.int64], columns: npt.NDArray[np.int64], blocks: int
) -> npt.NDArray[np.float32]:
    """Share of each window's blocks that are tissue: (rows · columns,) in 0..1."""
    sums = np.pad(tissue, ((1, 0), (1, 0))).cumsum(axis=0, dtype=np.int32).cumsum(axis=1, dtype=np.int32)
    top, bottom = sums[rows], sums[rows + blocks]
    inside = bottom[:, columns + blocks] - top[:, columns + blocks] - bottom[:, columns] + top[:, columns]
    share: npt.NDArray[np.float32] = inside.ravel().astype(np.float32) / np.float32(blocks**2)
    return share
