"""`patches`: labelled windows of every image that takes part.

Slide by slide, several at once: first every window is labelled, then, once all slides' counts are
known and each slide's share is fixed, the sampled ones are cut. What a slide has done lies in `parts/`
until the whole is written, so that a stopped run goes on with the next slide.
"""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from hnscc_qp.errors import AnnotationError, HnsccQpError, SlideReadError, listed
from hnscc_qp.files import sha256_json
from hnscc_qp.generation import make_manifest, write_manifest
from hnscc_qp.geometry import WINDOW_MPP, Grid
from hnscc_qp.patches.cut import cut_windows
from hnscc_qp.patches.dataset import SCHEMA, write_patches
from hnscc_qp.patches.labels import Label, WindowLabels, label_windows
from hnscc_qp.patches.parts import PatchPart, labels_file, read_labels, write_labels
from hnscc_qp.patches.sample import Quotas, Supply, draw_windows, share_out
from hnscc_qp.patches.split import Side
from hnscc_qp.patches.stored import Part
from hnscc_qp.qupath.project import ImageEntry
from hnscc_qp.slides.reader import Slide, require_mpp
from hnscc_qp.slides.tissue import find_tissue
from hnscc_qp.steps.cohort import (
    COHORT_FILE,
    CohortImage,
    ReadCohort,
    freeze_cohort,
    read_cohort,
    read_members,
    split_settings,
    write_members,
)
from hnscc_qp.steps.context import Context, Manifest, placement
from hnscc_qp.steps.drawn import AS_DRAWN, as_drawn
from hnscc_qp.steps.frozentruth import freeze_truth
from hnscc_qp.steps.reviewed import with_lessons

STEP = "patches"
_PARTS = "parts"
_SAMPLED = (Label.TUMOR, Label.NONTUMOR)


@dataclass(frozen=True, slots=True)
class _Labelled:
    """An image whose windows are labelled: what later stages need of it, and where the labels lie."""

    image: CohortImage
    key: str
    file: Path
    windows: Mapping[Label, int]
    rules: Mapping[Label, Mapping[str, int]]
    unmapped: Mapping[str, int]
    notes: tuple[str, ...]

    @property
    def supply(self) -> Supply:
        case = self.image.case
        return Supply(case.entry_id, case.patient, self.image.side, case.positive, self.windows)


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
    inputs = {f"image {image.entry_id}": state_of(context, image) for image in context.project.images}
    if done := context.finished(STEP, settings, inputs):
        return done
    folder = context.generation.step(STEP)
    parts = folder / _PARTS
    if context.force:
        shutil.rmtree(parts, ignore_errors=True)
    cohort = read_cohort(context)
    for note in cohort.notes:
        context.progress.warn(note)
    by_entry = {image.entry.entry_id: image for image in cohort.images}

    def label(entry: ImageEntry) -> _Labelled:
        image = by_entry[entry.entry_id]
        state = inputs[f"image {entry.entry_id}"]
        key = sha256_json([state, placement(entry), settings, image.case.positive])
        return _label(context, image, key, labels_file(parts, key))

    labelled, cant_label = context.each_image(
        [image.entry for image in cohort.images], label, doing="labelling windows", workers=context.workers
    )
    quotas = _share_out(context, list(labelled.values()))
    bare = _bare_sides(context, list(labelled.values()), quotas)

    entries = [one.image.entry for one in labelled.values() if any(quotas[key] for key in _keys(one))]
    threads = max(1, context.workers // len(entries))

    def cut(entry: ImageEntry) -> PatchPart:
        state = inputs[f"image {entry.entry_id}"]
        return _cut(context, labelled[entry.entry_id], quotas, state, threads=threads)

    cuts, cant_cut = context.each_image(entries, cut, doing="cutting patches", workers=context.workers)
    freeze_cohort(context, tuple(one.image for one in labelled.values()))
    late = _freeze_truth(context, cohort)
    write_members(folder, tuple(one.image for one in labelled.values()))
    split = read_members(folder)
    outputs = {COHORT_FILE: split.sha256}
    for part in Part:
        of_part = [some for entry, some in cuts.items() if Part.of(labelled[entry].image.side) is part]
        count = sum(some.rows for some in of_part)
        outputs |= write_patches(folder, part, (some.read() for some in of_part), count=count, split=split)
    lost = [note for some in cuts.values() for note in some.notes]
    manifest = make_manifest(
        step=STEP,
        settings=settings,
        inputs=inputs,
        outputs=outputs,
        counts=_counts(labelled, cuts),
        started=started,
        failed=cohort.failed | cant_label | cant_cut,
        notes=[*cohort.notes, *late, *_remarks(labelled), *bare, *lost],
    )
    manifest[AS_DRAWN] = as_drawn(context, cohort)
    write_manifest(folder, manifest)
    shutil.rmtree(parts, ignore_errors=True)
    return manifest


def _freeze_truth(context: Context, cohort: ReadCohort) -> list[str]:
    """Keep the truth of the test slides; a line on those for which it comes late."""
    kept = freeze_truth(context, cohort.images)
    if not kept or context.generation.parent is None:
        return []
    note = (
        f"the truth of test slides is kept from now on: {listed(kept)}; if they were reviewed before, it "
        "holds what earlier generations found on them, and the gate favours those"
    )
    context.progress.warn(note)
    return [note]


def state_of(context: Context, image: ImageEntry) -> str:
    """Hash of all that decides what an image gives, as the manifest has it among the inputs."""
    try:
        return context.fingerprint(image)
    except HnsccQpError:  # said, by name, when the objects are read
        return f"unreadable, {placement(image)}"


def _open(context: Context, entry: ImageEntry) -> tuple[Slide, Grid]:
    slide = context.open_image(entry)
    require_mpp(slide, WINDOW_MPP)
    return slide, Grid.of_method(slide.size, slide.pixel_size)


def _label(context: Context, image: CohortImage, key: str, file: Path) -> _Labelled:
    if file.is_file():
        windows, notes = read_labels(file)
    else:
        slide, grid = _open(context, image.entry)
        unreadable: list[SlideReadError] = []
        tissue = find_tissue(slide, grid, on_unreadable=unreadable.append)
        windows = label_windows(
            image.objects,
            name=image.entry.name,
            size=slide.size,
            grid=grid,
            tissue=tissue,
            classes=context.study.classes,
            positive=image.case.positive,
            settings=context.study.patches,
        )
        windows = with_lessons(windows, context.lessons.get(image.entry.entry_id), grid)
        notes = tuple(_slide_notes(windows, tissue, unreadable))
        write_labels(file, windows, notes=notes)
    lines = windows.skipped + windows.repaired + notes
    return _Labelled(
        image=image,
        key=key,
        file=file,
        windows={label: windows.count(label) for label in Label},
        rules={label: windows.count_reasons(label) for label in Label},
        unmapped=windows.unmapped,
        notes=tuple(f"{image.entry.name}: {line}" for line in lines),
    )


def _slide_notes(
    windows: WindowLabels, tissue: npt.NDArray[np.bool_], unreadable: Sequence[SlideReadError]
) -> list[str]:
    notes = []
    if unreadable:
        notes.append(
            f"{len(unreadable)} places can't be decoded and are taken for no tissue ({unreadable[0]})"
        )
    if not len(windows.label):
        notes.append("is smaller than a window, so it gives none")
    elif not tissue.any():
        notes.append("no tissue found, so all but annotated tumor is background; look whether it is H&E")
    return notes


def _share_out(context: Context, labelled: list[_Labelled]) -> Quotas:
    settings = context.study.patches
    quotas = share_out(
        [one.supply for one in labelled],
        per_class=settings.per_class,
        nontumor_from_negative=settings.nontumor_from_negative,
        seed=settings.seed,
    )
    if not any(quotas.values()):
        raise AnnotationError(
            "no side of the split has both tumor and nontumor windows, so there is nothing to learn from; "
            "annotate slides of more patients, or give positive and negative slides a status"
        )
    return quotas


def _bare_sides(context: Context, labelled: Sequence[_Labelled], quotas: Quotas) -> list[str]:
    """Say of each side that gives no patches, as there are as many of each class, which class it lacks."""
    notes = []
    for side in Side:
        here = [one for one in labelled if one.image.side is side]
        if any(quotas[key] for one in here for key in _keys(one)):
            continue
        lacks = [
            f"no {label.name.lower()} window"
            for label in _SAMPLED
            if not any(one.supply.windows.get(label) for one in here)
        ]
        patients = len({one.image.case.patient for one in here})
        if not lacks:
            lacks = [f"windows of both classes, but per_class = {context.study.patches.per_class} takes none"]
        notes.append(
            f"{side} gives no patches: its {patients} patients have {' and '.join(lacks)}; annotate slides "
            "of more patients, or change the split's seed or shares"
        )
        context.progress.warn(notes[-1])
    return notes


def _keys(one: _Labelled) -> list[tuple[str, Label]]:
    return [(one.image.entry.entry_id, label) for label in _SAMPLED]


def _cut(context: Context, one: _Labelled, quotas: Quotas, state: str, *, threads: int) -> PatchPart:
    """Draw an image's windows, cut them, and lay them down as a part."""
    entry = one.image.entry
    mine = [quotas[key] for key in _keys(one)]
    seed = context.study.patches.seed
    part = PatchPart(one.file.parent, sha256_json([one.key, mine, seed, str(one.image.side)]))
    if part.is_done:
        return part
    windows, _ = read_labels(one.file)
    drawn = []
    for label, quota in zip(_SAMPLED, mine, strict=True):
        there = np.flatnonzero(windows.label == label)
        drawn.append(there[draw_windows(len(there), quota, slide=entry.entry_id, label=label, seed=seed)])
    picked = np.sort(np.concatenate(drawn))
    slide, grid = _open(context, entry)
    lost: list[tuple[int, SlideReadError]] = []
    pixels = part.new_pixels((len(picked), grid.window_px, grid.window_px, 3))
    x_px, y_px = windows.x_px[picked], windows.y_px[picked]
    cut_windows(slide, grid, x_px, y_px, out=pixels, unreadable=lost, threads=threads)
    if len(lost) == len(picked):
        raise SlideReadError(f"{entry.name}: none of its {len(picked)} patches can be decoded: {lost[0][1]}")
    kept = np.setdiff1d(np.arange(len(picked)), [number for number, _ in lost])
    notes = []
    if lost:
        notes.append(
            f"{entry.name}: {len(lost)} of {len(picked)} patches can't be decoded and are left out "
            f"({lost[0][1]})"
        )
        context.progress.warn(notes[0])
    table = _table(one, grid, windows, picked=picked[kept], numbers=kept, state=state)
    part.finish(table, notes=notes)
    return part


def _table(
    one: _Labelled,
    grid: Grid,
    windows: WindowLabels,
    *,
    picked: npt.NDArray[np.intp],
    numbers: npt.NDArray[np.intp],
    state: str,
) -> pa.Table:
    """Rows of `SCHEMA` for an image's windows; `numbers` are those of their pixels in the part."""
    count = len(picked)
    scale_x, scale_y = grid.pixel_size.qupath_px_per(grid.mpp)
    x_px, y_px = windows.x_px[picked], windows.y_px[picked]
    return pa.table(
        {
            "patch": numbers,
            "entry_id": [one.image.entry.entry_id] * count,
            "slide": [one.image.entry.name] * count,
            "image_sha256": [state] * count,
            "patient": [one.image.case.patient] * count,
            "side": [one.image.side.value] * count,
            "x_px": x_px,
            "y_px": y_px,
            "x_qupath": x_px * scale_x,
            "y_qupath": y_px * scale_y,
            "label": [Label(label).name.lower() for label in windows.label[picked].tolist()],
            "reason": [windows.reason[index] for index in picked.tolist()],
            "annotation_ids": [list(windows.annotation_ids[index]) for index in picked.tolist()],
        },
        schema=SCHEMA,
    )


def _counts(labelled: Mapping[str, _Labelled], cuts: Mapping[str, PatchPart]) -> dict[str, Any]:
    sampled: Counter[tuple[Side, str]] = Counter()
    from_negative: Counter[Side] = Counter()
    for entry, part in cuts.items():
        image, names = labelled[entry].image, Counter(part.labels)
        sampled.update({(image.side, name): count for name, count in names.items()})
        if not image.case.positive:
            from_negative[image.side] += names[Label.NONTUMOR.name.lower()]
    rules: dict[Label, Counter[str]] = {label: Counter() for label in Label}
    for one in labelled.values():
        for label in Label:
            rules[label].update(one.rules[label])
    return {
        "images": len(labelled),
        "patients": {
            str(side): len({one.image.case.patient for one in labelled.values() if one.image.side is side})
            for side in Side
        },
        "windows": {label.name.lower(): rules[label].total() for label in Label},
        "rules": {label.name.lower(): dict(sorted(rules[label].items())) for label in Label},
        "patches": {
            str(side): {label.name.lower(): sampled[side, label.name.lower()] for label in _SAMPLED}
            for side in Side
        },
        "nontumor from negative slides": {str(side): from_negative[side] for side in Side},
    }


def _remarks(labelled: Mapping[str, _Labelled]) -> list[str]:
    unmapped: Counter[str] = Counter()
    remarks: list[str] = []
    for one in labelled.values():
        unmapped.update(one.unmapped)
        remarks += one.notes
    if unmapped:
        listed = ", ".join(f"{name} ({count})" for name, count in sorted(unmapped.items()))
        remarks.append(f"annotations whose class the study gives no meaning decide nothing: {listed}")
    return remarks
