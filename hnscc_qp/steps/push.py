"""`push`: hand the detections to the QuPath project."""

from __future__ import annotations

import time

from hnscc_qp.errors import ObjectDataError
from hnscc_qp.generation import make_manifest, write_manifest
from hnscc_qp.qupath.geojson import read_geojson
from hnscc_qp.qupath.project import ImageEntry
from hnscc_qp.steps import regions
from hnscc_qp.steps.context import Context, Manifest

STEP = "push"


def push_detections(context: Context) -> Manifest:
    """Write the detections of every image where QuPath can take them in; the pathologist's own stay.

    Raises:
        StepError: there are no regions yet.
        HnsccQpError: not one image could be written.
    """
    # Always done again: it is quick, and the files lie where a user may have moved or removed them.
    started = time.time()
    drawn = context.generation.need(regions.STEP, command=f"hnscc-qp regions {context.study.path}")
    images = [image for image in context.project.images if image.entry_id in drawn["outputs"]]
    inputs = dict(drawn["outputs"])
    settings = {"backend": context.project.backend}

    def push(image: ImageEntry) -> tuple[str, int]:
        read = read_geojson(regions.region_file(context, image))
        if read.skipped:
            raise ObjectDataError(f"{image.name}: {read.skipped[0]}; draw its regions again")
        return str(context.project.write_detections(image, read.objects)), len(read.objects)

    written, failed = context.each_image(images, push, doing="handing detections to QuPath")
    manifest = make_manifest(
        step=STEP,
        settings=settings,
        inputs=inputs,
        counts={"images": len(written), "detections": sum(count for _, count in written.values())},
        started=started,
        failed=failed,
    )
    manifest["files"] = [file for file, _ in written.values()]
    write_manifest(context.generation.step(STEP), manifest)
    return manifest
