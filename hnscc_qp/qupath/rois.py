"""QuPath's ROIs, as Java saved them → shapely, in QuPath px.

Each shape is what QuPath itself makes of the ROI (`GeometryTools.roiToGeometry`), but not rounded to
0.01 px where QuPath's own measurements are not. The image plane (c, z, t) is not kept: slides have one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.errors import ShapelyError
from shapely.geometry.base import BaseGeometry

from hnscc_qp.qupath.javastream import JavaObject, StreamError
from hnscc_qp.qupath.objects import RoiKind
from hnscc_qp.qupath.shapes import ellipse, refuse_tangled, repair

Roi = tuple[RoiKind, BaseGeometry, float]
"""How QuPath holds the shape, the shape, and its exact area in px²."""

_PROXIES = {f"qupath.lib.roi.{kind}$SerializationProxy": kind for kind in RoiKind}
_PROXIES["qupath.lib.roi.GeometryROI$WKBSerializationProxy"] = RoiKind.GEOMETRY
del _PROXIES["qupath.lib.roi.GeometryROI$SerializationProxy"]  # JTS's own classes, before QuPath 0.2

_MAX_COORDINATE_PX = 2.0**31


def is_polygon(item: JavaObject) -> bool:
    """Whether `read_polygons` is for it."""
    return _PROXIES.get(item.class_name) is RoiKind.POLYGON


def read_polygons(items: Sequence[JavaObject]) -> list[Roi]:
    """Convert many polygons at once: detections come by the hundred thousand.

    Raises:
        StreamError: coordinates make no shape.
        TangledOutlineError: a path crosses itself all over.
    """
    if not items:
        return []
    ordinates = [_ordinates(item) for item in items]
    counts = np.array([len(xs) for xs, _ in ordinates], dtype=np.intp)
    vertices = np.empty((counts.sum(), 2))
    for axis in (0, 1):
        np.concatenate([both[axis] for both in ordinates], out=vertices[:, axis], casting="same_kind")
    owners = np.repeat(np.arange(len(items)), counts)
    if len(outside := owners[~_lies_on_an_image(vertices)]):
        raise _off_every_image(items[int(outside[0])])
    shapes = np.full(len(items), shapely.Polygon(), dtype=object)
    closed = counts >= 3  # a click or two: QuPath has the polygon, but it covers nothing
    rings = shapely.linearrings(vertices[closed[owners]], indices=_renumbered(owners[closed[owners]]))
    shapes[closed] = shapely.polygons(rings)
    ends = np.cumsum(counts)
    for index in np.flatnonzero(~shapely.is_valid(shapes)).tolist():
        try:
            shapes[index] = _fill(vertices[ends[index] - counts[index] : ends[index]])
        except ShapelyError as error:
            raise StreamError(f"a ROI makes no shape ({error})", items[index].offset) from error
    return [
        (RoiKind.POLYGON, shape, area_px)
        for shape, area_px in zip(shapes, shapely.area(shapes).tolist(), strict=True)
    ]


def read_roi(item: Any, *, rounds_geometry: bool) -> Roi:
    """Convert one ROI's serialization proxy. An area without an inside becomes an empty polygon.

    Args:
        item: the proxy.
        rounds_geometry: whether the QuPath that wrote the file (0.6 and later) rounds a GeometryROI, when
            it reads it, to 0.01 px in single precision.

    Raises:
        StreamError: the ROI is of an unknown kind, or its coordinates make no shape.
        TangledOutlineError: its outline crosses itself all over.
    """
    if not isinstance(item, JavaObject):
        raise StreamError("there is no ROI where one should be", 0)
    kind = _PROXIES.get(item.class_name)
    try:
        match kind:
            case RoiKind.POLYGON:
                return read_polygons([item])[0]
            case RoiKind.RECTANGLE | RoiKind.ELLIPSE:
                return (kind, *_box_or_ellipse(kind, item))
            case RoiKind.GEOMETRY:
                return (kind, *_geometry(item, rounded=rounds_geometry))
            case RoiKind.LINE | RoiKind.POLYLINE | RoiKind.POINTS:
                return (kind, _line_or_points(kind, item), 0.0)
    except ShapelyError as error:
        raise StreamError(f"a ROI makes no shape ({error})", item.offset) from error
    raise StreamError(f"it holds a ROI of the unknown kind {item.class_name}", item.offset)


def _line_or_points(kind: RoiKind, item: JavaObject) -> BaseGeometry:
    vertices = np.array(_corners(item)) if kind is RoiKind.LINE else np.column_stack(_ordinates(item))
    if kind is RoiKind.POINTS:
        vertices = vertices[~np.isnan(vertices).any(axis=1)]  # QuPath drops them, too
    if not _lies_on_an_image(vertices).all():
        raise _off_every_image(item)
    if kind is RoiKind.POINTS:
        return shapely.multipoints(vertices)
    # A lone vertex is a line from it to itself.
    return shapely.linestrings(np.repeat(vertices, 2, axis=0) if len(vertices) == 1 else vertices)


def _box_or_ellipse(kind: RoiKind, item: JavaObject) -> tuple[BaseGeometry, float]:
    (x, y), (x2, y2) = _corners(item)
    if not all(abs(value) < _MAX_COORDINATE_PX for value in (x, y, x2, y2)):
        raise _off_every_image(item)
    left, top, right, bottom = bounds = min(x, x2), min(y, y2), max(x, x2), max(y, y2)
    area_px = (right - left) * (bottom - top)
    if not area_px:
        return shapely.Polygon(), 0.0
    return ellipse(bounds) if kind is RoiKind.ELLIPSE else (shapely.box(*bounds), area_px)


def _corners(item: JavaObject) -> tuple[tuple[float, float], tuple[float, float]]:
    return (item.field("x", float), item.field("y", float)), (
        item.field("x2", float),
        item.field("y2", float),
    )


def _ordinates(item: JavaObject) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    xs, ys = item.field("x", np.ndarray), item.field("y", np.ndarray)
    if xs.shape != ys.shape or xs.dtype.kind != "f" or ys.dtype.kind != "f":
        raise StreamError("a ROI has not as many x as y", item.offset)
    return xs, ys


def _geometry(item: JavaObject, *, rounded: bool) -> tuple[BaseGeometry, float]:
    geometry = shapely.from_wkb(item.field("wkb", np.ndarray).tobytes())
    if not _lies_on_an_image(shapely.get_coordinates(geometry)).all():
        raise _off_every_image(item)
    if rounded:
        geometry = shapely.transform(geometry, _round_as_jts)
    area_px = geometry.area
    if not shapely.is_valid(geometry) and area_px:
        parts = shapely.get_parts(repair(geometry))
        geometry = shapely.union_all(parts[shapely.get_dimensions(parts) == 2])
    return geometry, area_px


def _round_as_jts(coordinates: NDArray[np.float64]) -> NDArray[np.float64]:
    return (np.floor(coordinates / 0.01 + 0.5) * 0.01).astype(np.float32).astype(np.float64)


def _lies_on_an_image(vertices: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Per vertex; images are smaller than 2³¹ px. Beyond that, or not a number, bytes are damaged."""
    return np.asarray((np.abs(vertices) < _MAX_COORDINATE_PX).all(axis=1))


def _off_every_image(item: JavaObject) -> StreamError:
    return StreamError("a ROI has a coordinate that lies on no image", item.offset)


def _renumbered(owners: NDArray[np.intp]) -> NDArray[np.intp]:
    """0, 0, 0, 2, 2, 2 → 0, 0, 0, 1, 1, 1."""
    return np.unique(owners, return_inverse=True)[1]


def _fill(vertices: NDArray[np.float64]) -> BaseGeometry:
    """Fill a closed path as Java does, by its non-zero winding rule; vertices: (n, 2).

    A path that crosses itself (a hasty hand with the wand) covers every point that it goes around.
    """
    ring = np.vstack((vertices, vertices[:1]))
    refuse_tangled(shapely.Polygon(ring))
    faces = shapely.get_parts(shapely.polygonize([shapely.union_all(shapely.linestrings(ring))]))
    return shapely.union_all([face for face in faces if _winding_number(ring, face.representative_point())])


def _winding_number(ring: NDArray[np.float64], point: shapely.Point) -> int:
    start, end = ring[:-1], ring[1:]
    rises = (start[:, 1] <= point.y) & (end[:, 1] > point.y)
    falls = (start[:, 1] > point.y) & (end[:, 1] <= point.y)
    step = end - start
    side = step[:, 0] * (point.y - start[:, 1]) - step[:, 1] * (point.x - start[:, 0])
    return int(np.count_nonzero(rises & (side > 0)) - np.count_nonzero(falls & (side < 0)))
