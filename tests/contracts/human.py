"""A pathologist's hands: edits made through QuPath's own methods, and saved as QuPath saves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jpype import JClass


class Pathologist:
    """Has one image open in QuPath."""

    def __init__(self, project_file: Path, number: int = 0) -> None:
        image_type = JClass("java.awt.image.BufferedImage").class_
        project_io = JClass("qupath.lib.projects.ProjectIO")
        self.project = project_io.loadProject(JClass("java.io.File")(str(project_file)), image_type)
        self.entry = self.project.getImageList()[number]
        self.data = self.entry.readImageData()
        self.hierarchy = self.data.getHierarchy()

    def save(self) -> None:
        self.entry.saveImageData(self.data)
        self.project.syncChanges()

    def objects(self) -> list[Any]:
        return sorted(self.hierarchy.getFlattenedObjectList(None)[1:], key=lambda item: str(item.getID()))

    def annotate(self, x: float, y: float, width: float, height: float, *, path_class: str | None) -> None:
        self.hierarchy.addObject(
            _objects().createAnnotationObject(_box(x, y, width, height), _class(path_class))
        )

    def draw_detection(self, x: float, y: float, width: float, height: float, *, path_class: str) -> None:
        made = _objects().createDetectionObject(_box(x, y, width, height), _class(path_class))
        self.hierarchy.addObject(made)

    def import_geojson(self, file: Path) -> None:
        stream = JClass("java.io.ByteArrayInputStream")(file.read_bytes())
        self.hierarchy.addObjects(JClass("qupath.lib.io.PathIO").readObjectsFromGeoJSON(stream))

    def lock(self, item: Any) -> None:
        item.setLocked(True)

    def name(self, item: Any) -> None:
        item.setName("see this")

    def reclassify(self, item: Any) -> None:
        item.setPathClass(_class("Necrosis"))

    def declassify(self, item: Any) -> None:
        item.resetPathClass()

    def derive_class(self, item: Any) -> None:
        item.setPathClass(_class("AI: Tumor: wrong"))

    def color(self, item: Any) -> None:
        item.setColor(JClass("java.lang.Integer")(-16711936))

    def move(self, item: Any) -> None:
        item.setROI(item.getROI().translate(3, 0))

    def accept(self, item: Any) -> None:
        """Make an annotation of a detection, as QuPath's scripts do: a new object of the same shape."""
        made = _objects().createAnnotationObject(item.getROI(), _class("Tumor"))
        self.hierarchy.removeObject(item, True)
        self.hierarchy.addObject(made)

    def delete(self, item: Any) -> None:
        self.hierarchy.removeObject(item, True)

    def put_below(self, item: Any) -> None:
        """Nest an annotation of her own in it."""
        roi = item.getROI()
        made = _objects().createAnnotationObject(
            _box(roi.getBoundsX(), roi.getBoundsY(), roi.getBoundsWidth(), roi.getBoundsHeight())
        )
        item.addChildObject(made)

    def measure(self, item: Any) -> None:
        found = item.getMeasurementList()
        (found.put if hasattr(found, "put") else found.putMeasurement)("Distance to Tumor µm", 12.5)


def _objects() -> Any:
    return JClass("qupath.lib.objects.PathObjects")


def _class(name: str | None) -> Any:
    return None if name is None else JClass("qupath.lib.objects.classes.PathClass").fromString(name)


def _box(x: float, y: float, width: float, height: float) -> Any:
    plane = JClass("qupath.lib.regions.ImagePlane").getDefaultPlane()
    return JClass("qupath.lib.roi.ROIs").createRectangleROI(x, y, width, height, plane)
