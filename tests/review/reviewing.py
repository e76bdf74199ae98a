"""A study with detections pushed for review, and a pathologist's hands that work on its files.

What the hands leave is what `review_ai_detections.groovy` leaves; with a real QuPath that is tested in
`test_verdicts_in_qupath.py`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

from shapely.geometry import Polygon, box
from studies import write_study
from typer.testing import CliRunner

from hnscc_qp.cli.main import app
from hnscc_qp.generation import Generation, make_manifest, write_manifest
from hnscc_qp.qupath.geojson import read_geojson, sidecar_name, write_geojson
from hnscc_qp.qupath.objects import ObjectType, PathClass, PathObject, RoiKind
from hnscc_qp.qupath.ownership import AI_TUMOR, detection_id
from hnscc_qp.qupath.shapes import settle

REJECTED = PathClass(("AI", "Rejected"), (128, 128, 128))
TUMOR = PathClass(("Tumor",), (200, 0, 0))
WHEN = "2031-05-04T10:00:00Z"
"""After any push of a test."""

Objects = list[PathObject]


def found(x: float, y: float, width: float = 40, height: float = 40, *, model: str = "m1") -> PathObject:
    """A detection of ours, as `regions` makes it."""
    roi = settle(box(x, y, x + width, y + height).union(box(x, y, x + width / 2, y + height + 10)))
    return PathObject(
        ObjectType.DETECTION,
        roi,
        RoiKind.POLYGON,
        roi.area,
        detection_id(roi, slide_name="slide", model_hash=model),
        path_class=AI_TUMOR,
        measurements={"Area µm^2": roi.area, "AI: Max score": 0.875},
        metadata={"AI model": model, "AI generation": "001", "AI note": "Research use only"},
    )


def offer(study: Path, regions: Mapping[int, Sequence[PathObject]], *, generation: str = "001") -> None:
    """Make a generation current whose regions are these, by the number of the image (1 to 6)."""
    root = study.parent / "generations"
    folder = Generation(root / generation)
    for number in range(1, 7):
        items = [
            replace(item, metadata={**item.metadata, "AI generation": generation})
            for item in regions.get(number, ())
        ]
        file = folder.step("regions") / sidecar_name(str(number), f"S{number}.tif")
        write_geojson(file, items)
    outputs = {str(number): "0" for number in range(1, 7)}
    manifest = make_manifest(step="regions", settings={}, inputs={}, outputs=outputs, counts={}, started=0.0)
    write_manifest(folder.step("regions"), manifest)
    (root / "current").write_text(generation + "\n", encoding="utf-8")


def pushed_study(folder: Path, regions: Mapping[int, Sequence[PathObject]], *, more: str = "") -> Path:
    """A study of six slides with these detections pushed and imported by hand; returns its file."""
    study = write_study(folder)
    if more:
        study.write_text(study.read_text(encoding="utf-8") + more, encoding="utf-8")
    offer(study, regions)
    run("push", study)
    import_by_hand(study)
    return study


def import_by_hand(study: Path) -> None:
    """Take in what was pushed as QuPath does when a file is dropped on it: all of it, adding."""
    for number in range(1, 7):
        name = sidecar_name(str(number), f"S{number}.tif")
        offered = read_geojson(study.parent / "project" / "ai-detections" / name).objects
        edit(study, number, lambda there, new=offered: [*there, *new])


def run(command: str, *arguments: object, code: int = 0) -> str:
    """Run `hnscc-qp`; its standard output."""
    result = CliRunner().invoke(app, [command, *map(str, arguments)])
    assert result.exit_code == code, f"{result.output}\n{result.exception!r}"
    return result.stdout


def run_json(command: str, *arguments: object, code: int = 0) -> Any:
    return json.loads(run(command, *arguments, "--json", code=code))


def objects_file(study: Path, number: int, *, project: str = "project") -> Path:
    return study.parent / project / "annotations" / sidecar_name(str(number), f"S{number}.tif")


def edit(
    study: Path, number: int, change: Callable[[Objects], Sequence[PathObject]], *, project: str = "project"
) -> None:
    """Save an image after a change."""
    file = objects_file(study, number, project=project)
    there = list(read_geojson(file).objects) if file.is_file() else []
    write_geojson(file, change(there))


def judge(
    study: Path,
    number: int,
    detection: PathObject,
    verdict: Callable[[PathObject], PathObject | None],
    *,
    project: str = "project",
) -> None:
    """Put what a verdict makes of a detection in its place; None deletes it."""

    def change(there: Objects) -> Objects:
        assert any(item.id == detection.id for item in there), "it is not in the image"
        made = [verdict(item) if item.id == detection.id else item for item in there]
        return [item for item in made if item is not None]

    edit(study, number, change, project=project)


def accepted(item: PathObject, *, by: str = "ann", at: str = WHEN) -> PathObject:
    """As the review script leaves it."""
    signed = {"AI origin": str(item.id), "AI reviewer": by, "AI reviewed at": at}
    described = {"ANNOTATION_DESCRIPTION": f"AI detection, accepted by {by}, {at}"}
    return replace(
        item, type=ObjectType.ANNOTATION, path_class=TUMOR, name="from AI", metadata=signed | described
    )


def rejected(item: PathObject, *, by: str = "ann", at: str = WHEN) -> PathObject:
    """As the review script leaves it in QuPath before 0.6: only the name tells who."""
    return replace(item, path_class=REJECTED, name=f"rejected by {by}, {at}", metadata={})


def reshaped(item: PathObject, roi: Polygon) -> PathObject:
    return replace(item, roi=roi, area_px=roi.area)


def deleted(_: PathObject) -> None:
    return None


def drawn(roi: Polygon, path_class: PathClass = TUMOR) -> PathObject:
    """An annotation of the pathologist's own."""
    return PathObject(ObjectType.ANNOTATION, roi, RoiKind.POLYGON, roi.area, uuid4(), path_class=path_class)
