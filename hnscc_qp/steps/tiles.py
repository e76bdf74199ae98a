"""`tiles`: pieces of slides with the label of every window in them, for the dense recipe."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hnscc_qp.errors import AnnotationError
from hnscc_qp.generation import make_manifest, write_manifest
from hnscc_qp.geometry import STEP_PX, WINDOW_MPP, Grid
from hnscc_qp.patches.labels import Label, label_windows
from hnscc_qp.patches.split import Side
from hnscc_qp.patches.stored import Part
from hnscc_qp.patches.tiles import (
    PIECE_WINDOWS,
    Chunk,
    TileRow,
    choose_pieces,
    label_map,
    piece_labels,
    read_piece,
    write_tiles,
)
from hnscc_qp.slides.reader import Slide, require_mpp
from hnscc_qp.slides.tissue import find_tissue
from hnscc_qp.steps import patches
from hnscc_qp.steps.cohort import CohortImage, read_cohort, read_members
from hnscc_qp.steps.context import Context, Manifest
from hnscc_qp.steps.reviewed import with_lessons
from hnscc_qp.study import Patches

STEP = "tiles"


@dataclass(frozen=True, slots=True)
class _Labelled:
    """An image, and its labels by piece."""

    image: CohortImage
    slide: Slide
    grid: Grid
    pieces: NDArray[np.uint8]
    """(piece rows, piece columns, 45, 45)"""


def make_tiles(context: Context) -> Manifest:
    """Label every window of the images that the patches come from, and cut pieces of them.

    Raises:
        StepError: there are no patches yet: their split is the one that counts.
        AnnotationError: no piece has a labelled window.
        HnsccQpError: not one image could be used.
    """
    started = time.time()
    study = context.study
    cut = context.generation.need(patches.STEP, command=f"hnscc-qp patches {study.path}")
    split = read_members(context.generation.step(patches.STEP))
    settings = study.settings("classes", "truth", "patches") | {"max_tiles": study.training.dense.max_tiles}
    settings["patches"]["min_tissue"] = _rules(context).min_tissue
    settings |= {"stain": context.stain}
    inputs = {name: value for name, value in cut["inputs"].items() if name.startswith("image ")}
    inputs |= {"split": split.seal}
    if done := context.finished(STEP, settings, inputs):
        return done
    by_entry = {image.entry.entry_id: image for image in read_cohort(context).images}
    wanted = [image.entry for image in by_entry.values() if image.entry.entry_id in split.by_entry]
    labelled, failed = context.each_image(
        wanted, lambda entry: _label(context, by_entry[entry.entry_id]), doing="labelling every window"
    )
    chosen = _choose(
        list(labelled.values()), max_tiles=study.training.dense.max_tiles, seed=study.patches.seed
    )
    states = {entry_id: str(inputs[f"image {entry_id}"]) for entry_id in labelled}
    folder = context.generation.step(STEP)
    outputs: dict[str, str] = {}
    counts: Counter[tuple[Side, Label]] = Counter()
    unread: Counter[str] = Counter()
    reasons: dict[str, str] = {}
    with context.progress.task("cutting tiles", sum(map(len, chosen.values())), unit="tiles") as task:
        for part in Part:
            parts = [
                (labelled[entry_id], places)
                for entry_id, places in chosen.items()
                if Part.of(labelled[entry_id].image.side) is part
            ]

            def chunks(of: list[tuple[_Labelled, list[tuple[int, int]]]]) -> Iterator[Chunk]:
                for one, places in of:
                    for row, column in places:
                        entry = one.image.entry
                        (rows, pixels, labels), lost, reason = _cut(one, row, column, states[entry.entry_id])
                        if lost:
                            unread[entry.name] += lost
                            reasons.setdefault(entry.name, str(reason))
                        counts[one.image.side, Label.TUMOR] += rows[0].tumor
                        counts[one.image.side, Label.NONTUMOR] += rows[0].nontumor
                        yield rows, pixels, labels
                        task.advance(note=entry.name)

            count = sum(len(places) for _, places in parts)
            outputs |= write_tiles(folder, part, chunks(parts), count=count, split=split)
    notes = [
        f"{name}: {lost} windows of its tiles can't be decoded and are ignored ({reasons[name]})"
        for name, lost in unread.items()
    ]
    for note in notes:
        context.progress.warn(note)
    manifest = make_manifest(
        step=STEP,
        settings=settings,
        inputs=inputs,
        outputs=outputs,
        counts={
            "images": len(labelled),
            "tiles": {
                str(side): sum(
                    len(places)
                    for entry_id, places in chosen.items()
                    if labelled[entry_id].image.side is side
                )
                for side in Side
            },
            "windows": {
                str(side): {
                    label.name.lower(): counts[side, label] for label in (Label.TUMOR, Label.NONTUMOR)
                }
                for side in Side
            },
        },
        started=started,
        failed=failed,
        notes=notes,
    )
    write_manifest(folder, manifest)
    return manifest


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
        settings=_rules(context),
    )
    windows = with_lessons(windows, context.lessons.get(image.entry.entry_id), grid)
    return _Labelled(image, slide, grid, piece_labels(label_map(windows, grid)))


def _rules(context: Context) -> Patches:
    """Labelling for tiles: every window of the grid of scoring, with as little tissue as scoring looks at.

    Windows at the tissue's edge are scored. A network that never learnt what they are calls most of them
    tumor, and so a negative slide positive at every threshold.
    """
    rules = context.study.patches
    least = min(rules.min_tissue, context.study.scoring.min_tissue)
    return rules.model_copy(update={"stride_px": STEP_PX, "min_tissue": least})


def _choose(labelled: list[_Labelled], *, max_tiles: int, seed: int) -> dict[str, list[tuple[int, int]]]:
    """Entry id → rows and columns of its chosen pieces."""
    owner: list[int] = []
    places: list[tuple[int, int]] = []
    tumor: list[bool] = []
    for number, one in enumerate(labelled):
        usable = (one.pieces != Label.IGNORED).any(axis=(2, 3))
        for row, column in zip(*(index.tolist() for index in np.nonzero(usable)), strict=True):
            owner.append(number)
            places.append((row, column))
            tumor.append(bool((one.pieces[row, column] == Label.TUMOR).any()))
    if not owner:
        raise AnnotationError(
            "no image has a labelled window, so there are no tiles; annotate slides of more patients"
        )
    chosen = choose_pieces(
        tumor=np.array(tumor),
        side=[labelled[number].image.side for number in owner],
        slide=[labelled[number].image.entry.entry_id for number in owner],
        max_tiles=max_tiles,
        seed=seed,
    )
    found: dict[str, list[tuple[int, int]]] = {one.image.entry.entry_id: [] for one in labelled}
    for index in chosen:
        found[labelled[owner[index]].image.entry.entry_id].append(places[index])
    return found


def _cut(one: _Labelled, row: int, column: int, state: str) -> tuple[Chunk, int, str | None]:
    """A piece; how many labelled windows of it can't be decoded, which are ignored then; and why."""
    pixels, lost, reason = read_piece(one.slide, row, column)
    labels = np.where(lost, Label.IGNORED, one.pieces[row, column]).astype(np.uint8)
    ignored = int((labels != one.pieces[row, column]).sum())
    return ([_row(one, row, column, labels, state)], pixels[None], labels[None]), ignored, reason


def _row(one: _Labelled, row: int, column: int, labels: NDArray[np.uint8], state: str) -> TileRow:
    x_px, y_px = column * PIECE_WINDOWS * STEP_PX, row * PIECE_WINDOWS * STEP_PX
    scale_x, scale_y = one.grid.pixel_size.qupath_px_per(one.grid.mpp)
    return TileRow(
        entry_id=one.image.entry.entry_id,
        slide=one.image.entry.name,
        patient=one.image.case.patient,
        side=one.image.side,
        x_px=x_px,
        y_px=y_px,
        x_qupath=x_px * scale_x,
        y_qupath=y_px * scale_y,
        tumor=int((labels == Label.TUMOR).sum()),
        nontumor=int((labels == Label.NONTUMOR).sum()),
        image_sha256=state,
    )
