"""QuPath's objects, as plain values. Geometry is shapely, in QuPath px."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from uuid import UUID

from shapely.geometry.base import BaseGeometry

RGB = tuple[int, int, int]


class ObjectType(StrEnum):
    """Kinds of QuPath object, in GeoJSON's spelling."""

    ROOT = "root"
    ANNOTATION = "annotation"
    DETECTION = "detection"
    TILE = "tile"
    CELL = "cell"
    TMA_CORE = "tmaCore"


class RoiKind(StrEnum):
    """How QuPath holds a shape; `area_px` of an ellipse is exact, its `roi` a polygon of 100 points."""

    RECTANGLE = "RectangleROI"
    ELLIPSE = "EllipseROI"
    LINE = "LineROI"
    POLYGON = "PolygonROI"
    POLYLINE = "PolylineROI"
    POINTS = "PointsROI"
    GEOMETRY = "GeometryROI"


@dataclass(frozen=True, slots=True)
class PathClass:
    """A classification: `Tumor`, or derived from others as in `AI: Tumor`."""

    names: tuple[str, ...]
    color: RGB | None = None

    def __str__(self) -> str:
        return ": ".join(self.names)


@dataclass(frozen=True, slots=True)
class PathObject:
    """One object of an image's hierarchy."""

    type: ObjectType
    roi: BaseGeometry
    roi_kind: RoiKind
    area_px: float
    id: UUID | None = None
    name: str | None = None
    path_class: PathClass | None = None
    locked: bool = False
    measurements: Mapping[str, float] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    nucleus_roi: BaseGeometry | None = None
    color: RGB | None = None
    children: tuple[PathObject, ...] = ()


def walk(objects: Iterable[PathObject], depth: int = 1) -> Iterator[tuple[int, PathObject]]:
    """Every object with its depth (1 = directly under the root), parents before children."""
    # Not recursive: QuPath nests objects as deep as it likes.
    waiting = [(depth, item) for item in reversed(tuple(objects))]
    while waiting:
        level, item = waiting.pop()
        yield level, item
        waiting += [(level + 1, child) for child in reversed(item.children)]
