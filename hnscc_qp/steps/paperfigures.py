"""The paper's figures that need slides and models, and what training drew already (Table 2, S1, S2)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hnscc_qp.errors import CheckpointError, HnsccQpError
from hnscc_qp.files import atomic_path
from hnscc_qp.generation import MANIFEST
from hnscc_qp.models.checkpoint import Classifier, load_card, load_model
from hnscc_qp.models.device import choose_device
from hnscc_qp.models.networks import depth_of, fold_batch_norms
from hnscc_qp.patches.labels import Label, annotated_meanings
from hnscc_qp.qupath.project import ImageEntry
from hnscc_qp.review.comparison import Comparison, SlideResult
from hnscc_qp.review.figures_slides import (
    PICTURE_PX,
    Delineation,
    PrimaryField,
    call_field,
    draw_delineations,
    draw_primary,
)
from hnscc_qp.scoring.regions import vectorize
from hnscc_qp.scoring.score_map import read_score_map
from hnscc_qp.scoring.threshold import votes_for
from hnscc_qp.slides.reader import Slide
from hnscc_qp.steps.context import Context
from hnscc_qp.steps.table2 import TABLE, write_table
from hnscc_qp.steps.trained import is_used

_DELINEATED = 6
_SHARES = ("accuracy", "sensitivity", "specificity", "auc")


def draw_slide_figures(context: Context, comparison: Comparison, folder: Path) -> None:
    """Draw `figure2-primary` and `figure5-outlines`; a slide that can't be read is left out, and said."""
    images = {image.entry_id: image for image in context.project.images}
    slides = [slide for slide in comparison.slides if slide.entry_id in images]
    primary = _primary(context)
    if primary is not None:
        fields = [
            _field(context, images[slide.entry_id], slide, comparison, primary)
            for slide in _for_primary(slides)
        ]
        found = [field for field in fields if field is not None]
        draw_primary(folder / "figure2-primary.png", found, study=comparison.study)
    outlined = [
        _delineation(context, images[slide.entry_id], slide, comparison) for slide in _outlined(slides)
    ]
    draw_delineations(
        folder / "figure5-outlines.png", [one for one in outlined if one is not None], study=comparison.study
    )


def copy_confusion(context: Context, folder: Path) -> None:
    """Figures S1 and S2: the confusion matrices that training drew of the models in use."""
    for stage, name in (("primary", "figureS1-primary"), ("secondary", "figureS2-secondary")):
        manifest = context.generation.manifest(stage)
        for suffix in (".png", ".svg") if manifest and is_used(manifest) else ():
            source = context.generation.step(stage) / "figures" / f"confusion{suffix}"
            if source.is_file():
                with atomic_path(folder / f"{name}{suffix}") as partial:
                    shutil.copyfile(source, partial)


def write_networks_table(context: Context, folder: Path) -> None:
    """Table 2: the networks tried, or the one that there is."""
    try:
        rows = json.loads((context.generation.step("networks") / f"{TABLE}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        rows = []
    rows = rows or _row_of_primary(context)
    if rows:
        write_table(folder, rows)


def _row_of_primary(context: Context) -> list[dict[str, Any]]:
    folder = context.generation.step("primary")
    try:
        card = load_card(folder)
    except CheckpointError:
        return []
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    row: dict[str, Any] = {
        "network": card.network,
        "chosen": True,
        "depth": depth_of(card.network),
        "parameters": card.parameters or 0,
        "recipe": card.recipe,
        "input_px": card.input_px,
        "weights": card.weights_origin["name"],
    }
    for side, figures in card.figures.items():
        row[f"{side} windows"] = figures.get("n")
        for share in _SHARES:
            row[f"{side} {share}"] = figures.get(share)
            row[f"{side} {share} interval"] = figures.get(f"{share}_interval")
            if share != "auc":
                row[f"{side} {share} wilson"] = figures.get(f"{share}_wilson")
    counts = manifest.get("counts", {})
    return [row | {"epochs": counts.get("epochs"), "seconds": card.seconds, "device": card.device}]


def _primary(context: Context) -> Classifier | None:
    try:
        primary, _ = load_model(context.generation.step("primary"), stain=context.stain)
    except HnsccQpError as error:
        context.progress.warn(f"Figure 2 is not drawn: {error}")
        return None
    return fold_batch_norms(primary).to(choose_device(context.study.device))


def _for_primary(slides: Sequence[SlideResult]) -> list[SlideResult]:
    """A positive and a negative slide, of the test set if it has them: those with most to see."""
    chosen = []
    for truth in ("positive", "negative"):
        of_truth = [slide for slide in slides if slide.truth == truth and slide.call != "no tissue"]
        if of_truth:
            chosen.append(
                max(
                    of_truth,
                    key=lambda slide: (slide.side == "test", slide.truth_um2, slide.max_votes, slide.image),
                )
            )
    return chosen


def _outlined(slides: Sequence[SlideResult]) -> list[SlideResult]:
    """Positive slides with an outline, those of the test set first, then the larger outlines."""
    outlined = [slide for slide in slides if slide.truth == "positive" and slide.outlined]
    outlined.sort(key=lambda slide: (slide.side != "test", -slide.truth_um2, slide.image))
    return outlined[:_DELINEATED]


def _field(
    context: Context, image: ImageEntry, slide: SlideResult, comparison: Comparison, primary: Classifier
) -> PrimaryField | None:
    try:
        opened = context.open_image(image)
        return call_field(
            opened,
            context.open_as_scanned(image),
            read_score_map(context.generation.path / slide.score_map),
            primary,
            around=_place(opened, slide, comparison),
            device=choose_device(context.study.device),
            title=f"{slide.image} ({slide.truth})",
        )
    except HnsccQpError as error:
        context.progress.warn(f"Figure 2 is without {slide.image}: {error}")
        return None


def _place(opened: Slide, slide: SlideResult, comparison: Comparison) -> tuple[float, float]:
    """Where there is most to see: the largest outline, else the largest region, else the middle."""
    for objects in (comparison.truth_lesions, comparison.lesions):
        here = [one for one in objects if one.image == slide.image]
        if here:
            largest = max(here, key=lambda one: one.area_um2)
            return largest.x_qupath, largest.y_qupath
    return opened.size[0] / 2, opened.size[1] / 2


def _delineation(
    context: Context, image: ImageEntry, slide: SlideResult, comparison: Comparison
) -> Delineation | None:
    try:
        opened = context.open_as_scanned(image)
        score_map = read_score_map(context.generation.path / slide.score_map)
        votes = votes_for(comparison.threshold.score, score_map.max_level)
        manual = [
            item.roi
            for item, meaning in annotated_meanings(context.objects(image), context.study.classes)
            if meaning is Label.TUMOR
        ]
        dice = slide.exact.dice if slide.exact else None
        return Delineation(
            title=slide.image + ("" if dice is None else f", Dice {dice:.2f}"),
            pixels=opened.thumbnail(PICTURE_PX),
            size_qupath=opened.size,
            pixel_size=opened.pixel_size,
            ai=tuple(region.polygon_qupath for region in vectorize(score_map, threshold_votes=votes)),
            manual=tuple(manual),
        )
    except HnsccQpError as error:
        context.progress.warn(f"Figure 5 is without {slide.image}: {error}")
        return None
