"""`score`: a score map for every image of the project."""

from __future__ import annotations

import csv
import time
from collections.abc import Mapping
from pathlib import Path

from hnscc_qp.cluster import on_cluster
from hnscc_qp.errors import CohortError, HnsccQpError, StorageError
from hnscc_qp.files import atomic_path, sha256_file
from hnscc_qp.generation import make_manifest, write_manifest
from hnscc_qp.models.device import choose_device
from hnscc_qp.qupath.project import ImageEntry
from hnscc_qp.scoring.slide import choose_mode, choose_runtime
from hnscc_qp.steps.context import Context, Manifest, placement
from hnscc_qp.steps.scorejob import (
    STEP,
    ScoreJob,
    SlideResult,
    run_job,
    run_job_remotely,
    score_key,
    score_map_file,
    scoring_settings,
)
from hnscc_qp.steps.trained import load_cascade

__all__ = ["STEP", "score_images", "score_map_file"]


def score_images(context: Context, *, only: tuple[str, ...] = (), scheduler: str | None = None) -> Manifest:
    """Score every image that is not scored yet with these models; one file per image.

    Each file says what it was made with, so a run that was stopped goes on with the next image, and within an
    image with the next tile.

    Args:
        context: of the study.
        only: names of images to score; the step is not done before all are.
        scheduler: address of a Dask cluster that shares the study's, project's and slides' folders.

    Raises:
        CohortError: the project has no image of such a name.
        StudyError: the models were trained for another mode, or the runtime is not to be had.
        ClusterError: the cluster can't be reached or went away.
        HnsccQpError: not one image could be scored.
    """
    started = time.time()
    images = _wanted(context, only)
    cascade, models = load_cascade(context)
    mode = choose_mode(cascade, context.study.scoring)
    runtime = choose_runtime(cascade, context.study.scoring, choose_device(context.study.device))
    settings = scoring_settings(context, runtime)
    inputs = models | {f"image {image.entry_id}": placement(image) for image in context.project.images}
    done = None if only else context.finished(STEP, settings, inputs, file_of=score_map_file)
    if done and _are_whole(context, done["outputs"]):
        return done
    folder = context.generation.step(STEP)

    def job(image: ImageEntry) -> ScoreJob:
        key = score_key(context, image, models, runtime)
        return ScoreJob(
            context.study,
            context.generation.name,
            image,
            tuple(models.items()),
            key,
            runtime=runtime,
            force=context.force,
        )

    if scheduler is None:
        found, failed = context.each_image(
            images, lambda image: run_job(job(image), context, cascade), doing="scoring slides"
        )
    else:
        found, failed = _on_cluster(context, scheduler, images, [job(image) for image in images])
    notes = [] if cascade.secondary else ["scored by the primary model alone"]
    manifest = make_manifest(
        step=STEP,
        settings=settings,
        inputs=inputs,
        outputs={entry_id: one.sha256 for entry_id, one in found.items()},
        counts={
            "images": len(found),
            "mode": mode,
            "runtime": runtime,
            "windows": sum(one.windows for one in found.values()),
            "unreadable windows": sum(one.unreadable for one in found.values()),
        },
        started=started,
        failed=failed,
        notes=notes,
    )
    if not only:
        _write_table(folder / "score.csv", images, found)
        write_manifest(folder, manifest)
    return manifest


def _are_whole(context: Context, outputs: Mapping[str, str]) -> bool:
    """Whether the score maps of a manifest are as they were written."""
    return all(
        sha256_file(score_map_file(context, image)) == outputs[image.entry_id]
        for image in context.project.images
        if image.entry_id in outputs
    )


def _on_cluster(
    context: Context, scheduler: str, images: list[ImageEntry], jobs: list[ScoreJob]
) -> tuple[dict[str, SlideResult], dict[str, str]]:
    """As `Context.each_image`, by the workers of a cluster."""
    results: dict[str, SlideResult] = {}
    failed: dict[str, str] = {}
    first: HnsccQpError | None = None
    with context.progress.task("scoring slides", total=len(images), unit="images") as task:
        for index, outcome in on_cluster(
            scheduler, run_job_remotely, jobs, one_per="GPU", progress=context.progress
        ):
            image = images[index]
            result = _seen_here(outcome, score_map_file(context, image))
            if isinstance(result, SlideResult):
                results[image.entry_id] = result
                for warning in result.warnings:
                    context.progress.warn(warning)
            else:
                first = first or result
                failed[image.name] = str(result)
                context.progress.warn(str(result))
            task.advance(note=image.name)
    if first and not results:
        raise first
    # In the project's order, as one machine would have it.
    ordered = {image.entry_id: results[image.entry_id] for image in images if image.entry_id in results}
    return ordered, {image.name: failed[image.name] for image in images if image.name in failed}


def _seen_here(outcome: SlideResult | HnsccQpError, path: Path) -> SlideResult | HnsccQpError:
    """A worker's result, if its score map is here too."""
    if isinstance(outcome, SlideResult) and not (path.is_file() and sha256_file(path) == outcome.sha256):
        return StorageError(
            f"a worker wrote a score map, but it is not at {path}; share that folder, at the same path, with "
            "all workers"
        )
    return outcome


def _wanted(context: Context, only: tuple[str, ...]) -> list[ImageEntry]:
    images = context.project.images
    if unknown := sorted(set(only) - {image.name for image in images}):
        names = ", ".join(image.name for image in images)
        raise CohortError(f"the project has no image {', '.join(unknown)}; it has {names}")
    return [image for image in images if not only or image.name in only]


def _write_table(path: Path, images: list[ImageEntry], found: dict[str, SlideResult]) -> None:
    with atomic_path(path) as partial, partial.open("w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream)
        table.writerow(("image", "max_score", "windows", "unreadable_windows"))
        for image in images:
            if image.entry_id in found:
                one = found[image.entry_id]
                table.writerow((image.name, f"{one.max_score:.4f}", one.windows, one.unreadable))
