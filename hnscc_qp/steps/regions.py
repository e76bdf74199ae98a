"""`regions`: score maps → polygons, as GeoJSON, a table and pictures."""

from __future__ import annotations

import csv
import time
from pathlib import Path

from hnscc_qp.files import atomic_path, sha256_file
from hnscc_qp.generation import make_manifest, write_manifest
from hnscc_qp.patches.labels import Label, annotated_meanings
from hnscc_qp.qupath.geojson import write_geojson
from hnscc_qp.qupath.objects import PathObject
from hnscc_qp.qupath.project import ImageEntry
from hnscc_qp.scoring.preview import draw_preview
from hnscc_qp.scoring.regions import TumorRegion, to_detection, vectorize
from hnscc_qp.scoring.score_map import ScoreMap, read_score_map
from hnscc_qp.scoring.threshold import votes_for
from hnscc_qp.steps import calibrate, score
from hnscc_qp.steps.context import Context, Manifest, image_file
from hnscc_qp.steps.trained import cascade_hash

STEP = "regions"
_COLUMNS = (
    "image",
    "id",
    "x_qupath",
    "y_qupath",
    "area_um2",
    "longest_diameter_mm",
    "max_score",
    "mean_score",
)


def draw_regions(context: Context) -> Manifest:
    """Outline what reaches the threshold: GeoJSON and a picture for each image, and `regions.csv`.

    Raises:
        StepError: there is no threshold yet.
        HnsccQpError: not one image could be done.
    """
    started = time.time()
    scored = context.generation.need(score.STEP, command=f"hnscc-qp score {context.study.path}")
    calibrated = context.generation.need(calibrate.STEP, command=f"hnscc-qp calibrate {context.study.path}")
    # A share of the votes: it means the same if slides were scored at another stride since.
    threshold_score = float(calibrated["counts"]["threshold score"])
    settings = {"threshold score": threshold_score}
    inputs = dict(scored["outputs"])
    if done := context.finished(STEP, settings, inputs, file_of=region_file):
        return done
    folder = context.generation.step(STEP)

    def draw(image: ImageEntry) -> list[tuple[object, ...]]:
        score_map = read_score_map(score.score_map_file(context, image))
        threshold_votes = votes_for(threshold_score, score_map.max_level)
        regions = vectorize(score_map, threshold_votes=threshold_votes)
        model_hash = cascade_hash(score_map.provenance)
        detections = [
            to_detection(
                region, slide_name=image.name, model_hash=model_hash, generation=context.generation.name
            )
            for region in regions
        ]
        write_geojson(region_file(context, image), detections)
        _save_picture(context, image, score_map, threshold_votes)
        return [_row(image, item, region) for item, region in zip(detections, regions, strict=True)]

    images = [image for image in context.project.images if image.entry_id in scored["outputs"]]
    tables, failed = context.each_image(images, draw, doing="outlining regions")
    rows = [row for table in tables.values() for row in table]
    with (
        atomic_path(folder / "regions.csv") as partial,
        partial.open("w", newline="", encoding="utf-8") as out,
    ):
        table = csv.writer(out)
        table.writerow(_COLUMNS)
        table.writerows(rows)
    manifest = make_manifest(
        step=STEP,
        settings=settings,
        inputs=inputs,
        outputs={
            image.entry_id: sha256_file(region_file(context, image))
            for image in images
            if image.entry_id in tables
        },
        counts={
            "images": len(tables),
            "images with regions": sum(bool(table) for table in tables.values()),
            "regions": len(rows),
        },
        started=started,
        failed=failed,
    )
    write_manifest(folder, manifest)
    return manifest


def region_file(context: Context, image: ImageEntry) -> Path:
    """Where the detections of an image lie."""
    return image_file(context.generation.step(STEP), image, ".geojson")


def picture_file(context: Context, image: ImageEntry) -> Path:
    """Where the picture of an image lies."""
    return image_file(context.generation.step(STEP), image, ".png")


def _save_picture(context: Context, image: ImageEntry, score_map: ScoreMap, threshold_votes: int) -> None:
    truth = [
        item.roi
        for item, meaning in annotated_meanings(context.objects(image), context.study.classes)
        if meaning is Label.TUMOR
    ]
    picture = draw_preview(context.open_as_scanned(image), score_map, threshold_votes, truth=truth)
    with atomic_path(picture_file(context, image)) as partial:
        picture.save(partial, format="PNG")


def _row(image: ImageEntry, detection: PathObject, region: TumorRegion) -> tuple[object, ...]:
    place = region.polygon_qupath.representative_point()
    return (
        image.name,
        detection.id,
        round(place.x, 2),
        round(place.y, 2),
        round(region.area_um2, 2),
        round(region.longest_diameter_mm, 4),
        round(region.max_score, 4),
        round(region.mean_score, 4),
    )
