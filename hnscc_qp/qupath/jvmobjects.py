"""QuPath's Java objects → ours. Knows QuPath's methods, but nothing of how Java is reached."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID

import shapely
from shapely.geometry.base import BaseGeometry

from hnscc_qp.qupath.objects import RGB, ObjectType, PathClass, PathObject, RoiKind
from hnscc_qp.qupath.qpdata import unpack_rgb
from hnscc_qp.qupath.shapes import ellipse

Java = Any
"""An object or class of Java's."""

_TYPES = {
    "PathAnnotationObject": ObjectType.ANNOTATION,
    "PathDetectionObject": ObjectType.DETECTION,
    "PathTileObject": ObjectType.TILE,
    "PathCellObject": ObjectType.CELL,
    "TMACoreObject": ObjectType.TMA_CORE,
}


def list_objects(hierarchy: Java) -> list[tuple[Java, int]]:
    """Every object below a hierarchy's root with the number of its children, in the order of `walk`."""
    # Not by recursion, for annotations may nest deeply.
    waiting = list(reversed(hierarchy.getRootObject().getChildObjectsAsArray()))
    listed = []
    while waiting:
        item = waiting.pop()
        children = item.getChildObjectsAsArray() if item.hasChildObjects() else ()
        listed.append((item, len(children)))
        waiting.extend(reversed(children))
    return listed


def convert_objects(hierarchy: Java, java: Callable[[str], Java]) -> tuple[PathObject, ...]:
    """Convert everything below a hierarchy's root; `java` gives a class by its name."""
    read_object = _ObjectReader(java)
    done: list[PathObject] = []
    for item, count in reversed(list_objects(hierarchy)):
        done.append(read_object(item, tuple(done.pop() for _ in range(count))))
    return tuple(reversed(done))


class _ObjectReader:
    """Asks one Java object after the other for its values."""

    def __init__(self, java: Callable[[str], Java]) -> None:
        self._wkb = java("org.locationtech.jts.io.WKBWriter")()
        self._classes: dict[Java, PathClass | None] = {}
        self._metadata_method: Java = None
        base = java("qupath.lib.objects.PathObject").class_
        if not hasattr(java("qupath.lib.objects.PathObject"), "getMetadata"):  # before 0.5
            self._metadata_method = base.getDeclaredMethod("getUnmodifiableMetadataMap")
            self._metadata_method.setAccessible(True)

    def __call__(self, item: Java, children: tuple[PathObject, ...]) -> PathObject:
        kind, roi, area_px = self._roi(item.getROI())
        object_type = _TYPES[str(item.getClass().getSimpleName())]
        nucleus = item.getNucleusROI() if object_type is ObjectType.CELL else None
        return PathObject(
            type=object_type,
            roi=roi,
            roi_kind=kind,
            area_px=area_px,
            id=UUID(str(item.getID())),
            name=text_or_none(item.getName()),
            path_class=self._path_class(item.getPathClass()),
            locked=bool(item.isLocked()),
            measurements=_measurements(item),
            metadata=self._metadata(item),
            nucleus_roi=None if nucleus is None else self._roi(nucleus)[1],
            color=_color(item.getColor()),
            children=children,
        )

    def _roi(self, roi: Java) -> tuple[RoiKind, BaseGeometry, float]:
        kind = RoiKind(str(roi.getClass().getSimpleName()))
        area_px = float(roi.getArea())
        left, top = float(roi.getBoundsX()), float(roi.getBoundsY())
        bounds = (left, top, left + float(roi.getBoundsWidth()), top + float(roi.getBoundsHeight()))
        if kind in (RoiKind.RECTANGLE, RoiKind.ELLIPSE) and not area_px:
            return kind, shapely.Polygon(), 0.0
        if kind is RoiKind.RECTANGLE:
            return kind, shapely.box(*bounds), area_px
        if kind is RoiKind.ELLIPSE:
            return kind, ellipse(bounds)[0], area_px
        shape = shapely.from_wkb(bytes(self._wkb.write(roi.getGeometry())))
        if kind is RoiKind.POINTS:
            shape = shapely.multipoints(shapely.get_coordinates(shape))
        return kind, shape, area_px

    def _path_class(self, item: Java) -> PathClass | None:
        if item is None:
            return None
        if item not in self._classes:
            self._classes[item] = read_path_class(item)
        return self._classes[item]

    def _metadata(self, item: Java) -> dict[str, str]:
        method = self._metadata_method
        found = item.getMetadata() if method is None else method.invoke(item)
        return {} if found.isEmpty() else {str(key): str(found.get(key)) for key in found.keySet()}


def _measurements(item: Java) -> dict[str, float]:
    if not item.hasMeasurements():
        return {}
    found = item.getMeasurementList()
    # Renamed in 0.6.
    names = found.getNames() if hasattr(found, "getNames") else found.getMeasurementNames()
    return {str(name): float(value) for name, value in zip(names, found.values(), strict=True)}


def read_path_class(item: Java) -> PathClass | None:
    """Convert QuPath's class; None for its nameless "unclassified"."""
    color = _color(item.getColor())
    names: list[str] = []
    while item is not None:
        name = text_or_none(item.getName())
        if name is not None:
            names.insert(0, name)
        item = item.getParentClass()
    return PathClass(tuple(names), color) if names else None


def _color(value: Java) -> RGB | None:
    return None if value is None else unpack_rgb(int(value))


def text_or_none(value: Java) -> str | None:
    """A Java string as ours; Java's null stays None."""
    return None if value is None else str(value)
