"""`push`: hand the detections to the QuPath project."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from hnscc_qp.errors import ObjectDataError, SlideNotFoundError, UnsupportedServerError, listed
from hnscc_qp.generation import make_manifest, write_manifest
from hnscc_qp.qupath.geojson import read_geojson
from hnscc_qp.qupath.objects import PathObject
from hnscc_qp.qupath.project import ImageEntry
from hnscc_qp.qupath.running import refuse_while_open, warn_of_running
from hnscc_qp.qupath.safewrite import undo_last_write
from hnscc_qp.review.log import now
from hnscc_qp.review.pushed import record_before, record_pushed
from hnscc_qp.steps import regions
from hnscc_qp.steps.context import Context, Manifest

STEP = "push"


def push_detections(context: Context) -> Manifest:
    """Write the detections of every image where QuPath can take them in; the pathologist's own stay.

    Raises:
        StepError: there are no regions yet.
        HnsccQpError: not one image could be written.
    """
    # Always done again: what is there already is not written, and a user may have moved or removed it.
    return _each(context, lambda image, found: str(context.project.write_detections(image, found)))


def plan_push(context: Context) -> Manifest:
    """What `push_detections` would add, replace, remove and leave; nothing is written.

    Raises:
        StepError, HnsccQpError: as `push_detections`.
    """
    return _each(context, None)


def undo_push(context: Context) -> tuple[str, ...]:
    """Put the project back to what it was before the last push that changed anything, to the last byte.

    Returns:
        The names of the images.

    Raises:
        ProjectError: there is nothing to undo, or it was saved in QuPath since, or is open there.
    """
    project = context.project

    def check(name: str) -> None:
        for image in project.images:
            if image.name == name and image.saved:
                with suppress(SlideNotFoundError, UnsupportedServerError):
                    refuse_while_open([project.slide_path(image)], image=name)

    return undo_last_write(project.path, check=check)


def _each(context: Context, write: Callable[[ImageEntry, tuple[PathObject, ...]], str] | None) -> Manifest:
    started = time.time()
    folder, time_of_push = context.generation.step(STEP), now()
    drawn = context.generation.need(regions.STEP, command=f"hnscc-qp regions {context.study.path}")
    images = [image for image in context.project.images if image.entry_id in drawn["outputs"]]

    def push(image: ImageEntry) -> dict[str, Any]:
        read = read_geojson(regions.region_file(context, image))
        if read.skipped:
            raise ObjectDataError(f"{image.name}: {read.skipped[0]}; draw its regions again")
        plan = context.project.plan_detections(image, read.objects)
        if write:
            # Recorded first: a push that is stopped half way has at most recorded what did not arrive.
            record_before(folder, image, context.project.objects(image))
            held_back = {item.id for item in plan.held_back}
            wanted = [item for item in read.objects if item.id not in held_back]
            record_pushed(folder, image, wanted, time=time_of_push)
        return {
            "image": image.name,
            "detections": len(read.objects),
            "added": len(plan.add) - plan.replaced,
            "replaced": plan.replaced,
            "removed": len(plan.remove) - plan.replaced,
            "unchanged": len(plan.keep),
            "left to the pathologist": plan.left,
            "file": write(image, read.objects) if write else None,
        }

    doing = "handing detections to QuPath" if write else "planning"
    pushed, failed = context.each_image(images, push, doing=doing)
    rows = list(pushed.values())
    into_qupath = write is not None and any(not str(row["file"]).endswith(".geojson") for row in rows)
    counted = [key for key in (rows[0] if rows else {}) if key not in ("image", "file")]
    manifest = make_manifest(
        step=STEP,
        settings={"backend": context.project.backend},
        inputs=drawn["outputs"],
        counts={"images": len(rows)} | {key: sum(row[key] for row in rows) for key in counted},
        started=started,
        failed=failed,
        notes=(
            *context.project.notes,
            *_note_unsaved(context.project.backend, images),
            *(warn_of_running() if into_qupath else ()),
        ),
    )
    manifest["images"] = rows
    if write:
        write_manifest(context.generation.step(STEP), manifest)
    return manifest


def _note_unsaved(backend: str, images: Sequence[ImageEntry]) -> tuple[str, ...]:
    """A line that names the images whose detections can't go into QuPath's own file, for there is none."""
    unsaved = [image.name for image in images if not image.saved]
    if backend == "embedded" or not unsaved:
        return ()
    return (
        f"not saved in QuPath yet: {listed(unsaved)}; their detections are files in ai-detections/, "
        "run qupath_scripts/import_ai_detections.groovy for the project, or save them there and push again",
    )
