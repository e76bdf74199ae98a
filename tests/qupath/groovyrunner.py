"""Run the Groovy scripts in a real QuPath, as its `Run for project` does, on a small project."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
import tifffile
from shapely import box

from hnscc_qp.qupath.create import NewImage, create_project
from hnscc_qp.qupath.geojson import write_geojson
from hnscc_qp.qupath.objects import ObjectType, PathClass, PathObject
from hnscc_qp.qupath.ownership import detection_id
from hnscc_qp.qupath.shapes import roi_kind

SCRIPTS = Path(__file__).parents[2] / "qupath_scripts"
AI_TUMOR = PathClass(("AI", "Tumor"), (255, 127, 14))
# What is in the image, one JSON line per object, sorted by id.
DESCRIBE = """
import qupath.lib.io.GsonTools
import static qupath.lib.scripting.QP.*
def gson = GsonTools.getInstance()
getCurrentHierarchy().getAllObjects(false).sort { it.getID().toString() }.each { item ->
    def roi = item.getROI()
    println gson.toJson([
        type: item.getClass().getSimpleName(), id: item.getID().toString(), name: item.getName(),
        path_class: item.getPathClass()?.toString(), locked: item.isLocked(), color: item.getColor(),
        roi: roi.getClass().getSimpleName(), area: roi.getArea(), wkt: roi.getGeometry().toText(),
        measurements: item.getMeasurementList().asMap().collectEntries { [it.key, it.value as double] },
        parent: item.getParent().isRootObject() ? null : item.getParent().getID().toString(),
        nucleus: item.isCell() ? item.getNucleusROI()?.getArea() : null,
        description: item.isAnnotation() ? item.getDescription() : null,
        metadata: item.metaClass.respondsTo(item, 'getMetadata') ? item.getMetadata() as Map : null
    ])
}
"""


def run(project_file: Path, *scripts: str) -> list[str]:
    """Run scripts, with common variables, on the first image of a project and save; the lines they printed.

    Skips the test if there is no QuPath.
    """
    if "PAQUO_QUPATH_DIR" not in os.environ:
        pytest.skip("no QuPath: set PAQUO_QUPATH_DIR")
    pytest.importorskip("paquo.java")
    from jpype import JClass

    image_type = JClass("java.awt.image.BufferedImage").class_
    project = JClass("qupath.lib.projects.ProjectIO").loadProject(
        JClass("java.io.File")(str(project_file)), image_type
    )
    entry = project.getImageList()[0]
    image_data = entry.readImageData()
    scripting = JClass("qupath.lib.scripting.QP")
    printed = JClass("java.io.StringWriter")()
    binding = JClass("groovy.lang.Binding")()
    binding.setVariable("out", JClass("java.io.PrintWriter")(printed))
    scripting.setBatchProjectAndImage(project, image_data)
    try:
        # Classes are looked up by the JVM: Groovy's own parser may be older than the classes of the JVM.
        settings = JClass("org.codehaus.groovy.control.CompilerConfiguration")()
        settings.getOptimizationOptions().put("asmResolving", JClass("java.lang.Boolean").FALSE)
        for text in scripts:
            JClass("groovy.lang.GroovyShell")(binding, settings).evaluate(text)
    finally:
        scripting.resetBatchProjectAndImage()
    entry.saveImageData(image_data)
    project.syncChanges()
    return str(printed).splitlines()


def make(roi: Any, kind: ObjectType = ObjectType.ANNOTATION, **fields: Any) -> PathObject:
    return PathObject(kind, roi, **{"roi_kind": roi_kind(roi), "area_px": roi.area, "id": uuid4()} | fields)


def detection(number: int, **fields: Any) -> PathObject:
    """One of ours: an id that seals its outline, class `AI: Tumor`."""
    roi = fields.get("roi", box(50 * number, 10, 50 * number + 40, 30))
    ours = {
        "roi": roi,
        "id": detection_id(roi, slide_name="case", model_hash="model"),
        "path_class": AI_TUMOR,
        "measurements": {"score": 0.875},
    }
    return make(kind=ObjectType.DETECTION, **ours | fields)


def project_with(folder: Path, annotations: Sequence[PathObject] = ()) -> Path:
    slide = folder / "case.tif"
    tifffile.imwrite(slide, np.full((400, 600, 3), 255, np.uint8), tile=(128, 128), photometric="rgb")
    image = NewImage(slide, "case: 1", (600, 400), [(1, 600, 400)], annotations=annotations)
    return create_project(
        folder / "project", [image], path_classes=[PathClass(("Tumor",), (200, 0, 0)), AI_TUMOR]
    )


def offer(project: Path, detections: Sequence[PathObject]) -> None:
    write_geojson(project.parent / "ai-detections" / "1 case_ 1.geojson", detections)


def script(name: str) -> str:
    return (SCRIPTS / f"{name}.groovy").read_text(encoding="utf-8")


def describe(project: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run(project, DESCRIBE)]


def ids(described: list[dict[str, Any]]) -> set[str]:
    return {item["id"] for item in described}
