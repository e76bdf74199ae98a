"""`score`: a score map for every image of the project."""

from __future__ import annotations

import csv
import time
from pathlib import Path

from hnscc_qp.errors import CohortError, ScoreMapError, StepError
from hnscc_qp.files import atomic_path, sha256_file
from hnscc_qp.generation import make_manifest, step_key, write_manifest
from hnscc_qp.models.cascade import Cascade
from hnscc_qp.models.device import choose_device
from hnscc_qp.qupath.project import ImageEntry
from hnscc_qp.scoring.score_map import ScoreMap, read_score_map, write_score_map
from hnscc_qp.scoring.slide import score_slide
from hnscc_qp.steps.context import Context, Manifest, image_file, placement
from hnscc_qp.steps.train import load_cascade

STEP = "score"


def score_images(context: Context, *, only: tuple[str, ...] = ()) -> Manifest:
    """Score every image that is not scored yet with these models; one file per image.

    Each file says what it was made with, so a run that was stopped goes on with the next image.

    Args:
        context: of the study.
        only: names of images to score; the step is not done before all are.

    Raises:
        CohortError: the project has no image of such a name.
        HnsccQpError: not one image could be scored.
    """
    started = time.time()
    images = _wanted(context, only)
    cascade, models = load_cascade(context)
    if not isinstance(cascade, Cascade):
        raise StepError('dense models can\'t be scored yet; set recipe = "window"')
    settings = context.study.settings("scoring") | {"stain": context.stain}
    inputs = models | {f"image {image.entry_id}": placement(image) for image in context.project.images}
    if not only and (done := context.finished(STEP, settings, inputs)):
        return done
    folder = context.generation.step(STEP)
    device = choose_device(context.study.device)

    def score(image: ImageEntry) -> ScoreMap:
        path = score_map_file(context, image)
        key = step_key(STEP, settings, models | {"image": placement(image)})
        score_map = None if context.force else _kept(path, key)
        if score_map is None:
            score_map = score_slide(
                context.open_image(image),
                cascade=cascade,
                settings=context.study.scoring,
                device=device,
                progress=context.progress,
                provenance={"key": key, "image": image.name, "entry_id": image.entry_id} | models,
            )
            write_score_map(path, score_map)
        return score_map

    maps, failed = context.each_image(images, score, doing="scoring slides")
    manifest = make_manifest(
        step=STEP,
        settings=settings,
        inputs=inputs,
        outputs={
            image.entry_id: sha256_file(score_map_file(context, image))
            for image in images
            if image.entry_id in maps
        },
        counts={
            "images": len(maps),
            "windows": sum(one.windows for one in maps.values()),
            "unreadable windows": sum(one.unreadable for one in maps.values()),
        },
        started=started,
        failed=failed,
        notes=[] if cascade.secondary else ["scored by the primary model alone"],
    )
    if not only:
        _write_table(folder / "score.csv", images, maps)
        write_manifest(folder, manifest)
    return manifest


def score_map_file(context: Context, image: ImageEntry) -> Path:
    """Where the score map of an image lies."""
    return image_file(context.generation.step(STEP), image, ".ome.tiff")


def _wanted(context: Context, only: tuple[str, ...]) -> list[ImageEntry]:
    images = context.project.images
    if unknown := sorted(set(only) - {image.name for image in images}):
        names = ", ".join(image.name for image in images)
        raise CohortError(f"the project has no image {', '.join(unknown)}; it has {names}")
    return [image for image in images if not only or image.name in only]


def _kept(path: Path, key: str) -> ScoreMap | None:
    try:
        score_map = read_score_map(path)
    except ScoreMapError:  # missing or damaged: made again
        return None
    return score_map if score_map.provenance.get("key") == key else None


def _write_table(path: Path, images: list[ImageEntry], maps: dict[str, ScoreMap]) -> None:
    with atomic_path(path) as partial, partial.open("w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream)
        table.writerow(("image", "max_score", "windows", "unreadable_windows"))
        for image in images:
            if image.entry_id in maps:
                one = maps[image.entry_id]
                table.writerow(
                    (image.name, f"{one.max_votes / one.max_level:.4f}", one.windows, one.unreadable)
                )
