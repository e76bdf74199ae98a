"""What people read of a comparison: the paper's tables and figures, and `report.html`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hnscc_qp.errors import CheckpointError, HnsccQpError
from hnscc_qp.models.checkpoint import ModelCard, load_card
from hnscc_qp.patches.labels import Label, annotated_meanings
from hnscc_qp.qupath.project import ImageEntry
from hnscc_qp.review.comparison import Comparison, SlideResult
from hnscc_qp.review.figures import draw_figures
from hnscc_qp.review.report import REPORT_FILE, write_report
from hnscc_qp.review.reportpictures import LONGEST_SIDE_PX, SlidePicture, bytes_per_slide, draw_slide
from hnscc_qp.review.tables import write_tables
from hnscc_qp.scoring.score_map import read_score_map
from hnscc_qp.steps.context import Context
from hnscc_qp.steps.paperfigures import copy_confusion, draw_slide_figures, write_networks_table
from hnscc_qp.steps.trained import is_used

_NOT_SHOWN = {"path", "name", "project", "slides", "device", "workers", "backend"}
"""Of the study's settings: where things lie on this machine, and what changes no result."""


def publish(context: Context, comparison: Comparison, folder: Path) -> list[Path]:
    """Write tables, figures and the report of a comparison.

    A slide whose picture can't be made is in the report without one, with the reason.

    Args:
        context: of the study.
        comparison: what is published.
        folder: for `report.html`, `tables/` and `figures/`.

    Returns:
        What a person should open, the report first.

    Raises:
        StorageError: something can't be written.
    """
    write_tables(folder / "tables", comparison)
    write_networks_table(context, folder / "tables")
    figures = folder / "figures"
    draw_figures(figures, comparison)
    draw_slide_figures(context, comparison, figures)
    copy_confusion(context, figures)
    write_report(
        folder / REPORT_FILE,
        comparison,
        _pictures(context, comparison),
        cards=_cards(context),
        settings=_settings(context),
    )
    return [folder / REPORT_FILE, folder / "tables", figures]


def _pictures(context: Context, comparison: Comparison) -> dict[str, SlidePicture | str]:
    images = {image.entry_id: image for image in context.project.images}
    max_bytes = bytes_per_slide(len(comparison.slides))
    pictures: dict[str, SlidePicture | str] = {}
    with context.progress.task("drawing the report", total=len(comparison.slides), unit="slides") as task:
        for slide in comparison.slides:
            try:
                pictures[slide.entry_id] = _picture(context, images[slide.entry_id], slide, max_bytes)
            except KeyError:
                pictures[slide.entry_id] = "the image is no longer in the project"
            except HnsccQpError as error:
                context.progress.warn(str(error))
                pictures[slide.entry_id] = str(error)
            task.advance(note=slide.image)
    return pictures


def _picture(context: Context, image: ImageEntry, slide: SlideResult, max_bytes: int) -> SlidePicture:
    score_map = read_score_map(context.generation.path / slide.score_map)
    truth = [
        item.roi
        for item, meaning in annotated_meanings(context.objects(image), context.study.classes)
        if meaning is Label.TUMOR
    ]
    pixels = context.open_as_scanned(image).thumbnail(LONGEST_SIDE_PX)
    return draw_slide(pixels, score_map, truth, max_bytes=max_bytes)


def _cards(context: Context) -> list[ModelCard]:
    cards = []
    for stage in ("primary", "secondary"):
        manifest = context.generation.manifest(stage)
        if manifest is None or not is_used(manifest):
            continue
        try:
            cards.append(load_card(context.generation.step(stage)))
        except CheckpointError as error:
            context.progress.warn(f"the report has no card of the {stage} model: {error}")
    return cards


def _settings(context: Context) -> dict[str, Any]:
    """All settings that bear on results; of files their names, not where they lie."""
    values = context.study.model_dump(mode="json", exclude=_NOT_SHOWN)
    values["training"] = context.study.training.in_use()
    values["truth"] = {str(number): source for number, source in enumerate(values["truth"], start=1)}
    shown: dict[str, Any] = _without_places(values)
    return shown


def _without_places(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_places(inner) for key, inner in value.items()}
    if isinstance(value, str) and Path(value).is_absolute():
        return Path(value).name
    return value
