"""`patches`: labelled windows of every image that takes part."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass

import numpy as np

from hnscc_qp.errors import AnnotationError, HnsccQpError
from hnscc_qp.generation import make_manifest, write_manifest
from hnscc_qp.geometry import WINDOW_MPP, Grid
from hnscc_qp.patches.cut import cut_windows
from hnscc_qp.patches.dataset import Part, PatchRow, rows_table, write_patches
from hnscc_qp.patches.labels import Label, WindowLabels, label_windows
from hnscc_qp.patches.sample import sample_balanced
from hnscc_qp.patches.split import Side
from hnscc_qp.qupath.project import ImageEntry
from hnscc_qp.slides.reader import Slide, require_mpp
from hnscc_qp.slides.tissue import find_tissue
from hnscc_qp.steps.cohort import (
    COHORT_FILE,
    CohortImage,
    freeze_cohort,
    read_cohort,
    read_members,
    split_settings,
    write_members,
)
from hnscc_qp.steps.context import Context, Manifest, placement

STEP = "patches"


@dataclass(frozen=True, slots=True)
class _Labelled:
    """An image's windows, before sampling."""

    image: CohortImage
    slide: Slide
    grid: Grid
    windows: WindowLabels


def make_patches(context: Context) -> Manifest:
    """Label every window, sample as many tumor as nontumor ones on each side, and cut them.

    Raises:
        AnnotationError: there is nothing to label by.
        CohortError: patients or statuses contradict each other.
        HnsccQpError: not one image could be used.
    """
    started = time.time()
    settings = context.study.settings("classes", "truth", "cohort", "patches")
    settings |= {"split": split_settings(context), "stain": context.stain}
    inputs = {f"image {image.entry_id}": _state(context, image) for image in context.project.images}
    if done := context.finished(STEP, settings, inputs):
        return done
    cohort = read_cohort(context)
    for note in cohort.notes:
        context.progress.warn(note)
    by_entry = {image.entry.entry_id: image for image in cohort.images}

    def label(entry: ImageEntry) -> _Labelled:
        return _label(context, by_entry[entry.entry_id])

    labelled, cant_label = context.each_image(
        [image.entry for image in cohort.images], label, doing="labelling windows"
    )
    chosen = _sample(context, list(labelled.values()))

    def cut(entry: ImageEntry) -> tuple[list[PatchRow], np.ndarray]:
        one, picked = labelled[entry.entry_id], chosen[entry.entry_id]
        pixels = cut_windows(one.slide, one.grid, one.windows.x_px[picked], one.windows.y_px[picked])
        return [_row(one, int(index), inputs[f"image {entry.entry_id}"]) for index in picked], pixels

    entries = [one.image.entry for one in labelled.values() if len(chosen[one.image.entry.entry_id])]
    cuts, cant_cut = context.each_image(entries, cut, doing="cutting patches")
    rows = [row for some, _ in cuts.values() for row in some]
    folder = context.generation.step(STEP)
    freeze_cohort(context, tuple(one.image for one in labelled.values()))
    write_members(folder, tuple(one.image for one in labelled.values()))
    split = read_members(folder)
    outputs = {COHORT_FILE: split.sha256}
    for part in Part:
        of_part = [(some, pixels) for some, pixels in cuts.values() if some and Part.of(some[0].side) is part]
        chunks = ((rows_table(some), pixels) for some, pixels in of_part)
        outputs |= write_patches(
            folder, part, chunks, count=sum(len(some) for some, _ in of_part), split=split
        )
    manifest = make_manifest(
        step=STEP,
        settings=settings,
        inputs=inputs,
        outputs=outputs,
        counts=_counts(labelled, rows),
        started=started,
        failed=cohort.failed | cant_label | cant_cut,
        notes=[*cohort.notes, *_remarks(labelled)],
    )
    write_manifest(folder, manifest)
    return manifest


def _state(context: Context, image: ImageEntry) -> str:
    try:
        return context.fingerprint(image)
    except HnsccQpError:  # said, by name, when the objects are read
        return f"unreadable, {placement(image)}"


def _label(context: Context, image: CohortImage) -> _Labelled:
    slide = context.open_image(image.entry)
    require_mpp(slide, WINDOW_MPP)
    grid = Grid.of_method(slide.size, slide.pixel_size)
    windows = label_windows(
        image.objects,
        name=image.entry.name,
        size=slide.size,
        grid=grid,
        tissue=find_tissue(slide, grid),
        classes=context.study.classes,
        positive=image.case.positive,
        settings=context.study.patches,
    )
    return _Labelled(image, slide, grid, windows)


def _sample(context: Context, labelled: list[_Labelled]) -> dict[str, np.ndarray]:
    """Entry id → indices into its windows."""
    sizes = [len(one.windows.label) for one in labelled]
    owner = np.repeat(np.arange(len(labelled)), sizes)
    first = np.cumsum([0, *sizes])
    settings = context.study.patches
    picked = sample_balanced(
        label=np.concatenate([one.windows.label for one in labelled]),
        side=[labelled[index].image.side for index in owner],
        slide=[labelled[index].image.entry.entry_id for index in owner],
        x_px=np.concatenate([one.windows.x_px for one in labelled]),
        y_px=np.concatenate([one.windows.y_px for one in labelled]),
        per_class=settings.per_class,
        seed=settings.seed,
    )
    if not len(picked):
        raise AnnotationError(
            "no side of the split has both tumor and nontumor windows, so there is nothing to learn from; "
            "annotate slides of more patients, or give positive and negative slides a status"
        )
    return {
        one.image.entry.entry_id: picked[owner[picked] == number] - first[number]
        for number, one in enumerate(labelled)
    }


def _row(one: _Labelled, index: int, state: str) -> PatchRow:
    windows = one.windows
    x_px, y_px = int(windows.x_px[index]), int(windows.y_px[index])
    scale_x, scale_y = one.grid.pixel_size.qupath_px_per(one.grid.mpp)
    return PatchRow(
        entry_id=one.image.entry.entry_id,
        slide=one.image.entry.name,
        patient=one.image.case.patient,
        side=one.image.side,
        x_px=x_px,
        y_px=y_px,
        x_qupath=x_px * scale_x,
        y_qupath=y_px * scale_y,
        label=Label(int(windows.label[index])),
        reason=windows.reason[index],
        annotation_ids=windows.annotation_ids[index],
        image_sha256=state,
    )


def _counts(labelled: dict[str, _Labelled], rows: list[PatchRow]) -> dict[str, object]:
    sampled = Counter((row.side, row.label) for row in rows)
    found: Counter[Label] = Counter()
    for one in labelled.values():
        found.update({label: one.windows.count(label) for label in Label})
    return {
        "images": len(labelled),
        "patients": {
            str(side): len({one.image.case.patient for one in labelled.values() if one.image.side is side})
            for side in Side
        },
        "windows": {label.name.lower(): found[label] for label in Label},
        "patches": {
            str(side): {label.name.lower(): sampled[side, label] for label in (Label.TUMOR, Label.NONTUMOR)}
            for side in Side
        },
    }


def _remarks(labelled: dict[str, _Labelled]) -> list[str]:
    unmapped: Counter[str] = Counter()
    remarks = []
    for one in labelled.values():
        unmapped.update(one.windows.unmapped)
        remarks += [f"{one.image.entry.name}: {line}" for line in one.windows.skipped + one.windows.repaired]
    if unmapped:
        listed = ", ".join(f"{name} ({count})" for name, count in sorted(unmapped.items()))
        remarks.append(f"annotations whose class the study gives no meaning decide nothing: {listed}")
    return remarks
