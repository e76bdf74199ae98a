"""ASAP's XML, the format of the CAMELYON challenges.

Coordinates are pixels of the file's level 0, as OpenSlide counts. A spline is what ASAP draws: through its
points, each stretch a centripetal Catmull-Rom curve (Catmull and Rom 1974; Yuksel et al. 2011).
ASAP's own export of masks joins the points by straight lines instead.
"""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import shapely
from shapely.geometry import MultiPoint, Point, Polygon
from shapely.geometry.base import BaseGeometry

from hnscc_qp.errors import TangledOutlineError, TruthError
from hnscc_qp.patches.territories import polygons_only

Points = npt.NDArray[np.float64]
"""(n, 2): x, y."""

_STEPS = 16
"""Straight pieces for one stretch of a spline."""
_AREAS = {"Polygon", "Spline", "Rectangle"}
_KNOWN = {*_AREAS, "Dot", "PointSet", "Measurement"}
_NO_GROUP = "None"
"""ASAP's word for an annotation that is in no group."""


@dataclass(frozen=True, slots=True)
class AsapRead:
    """What a file holds, in pixels of the file's level 0."""

    shapes: tuple[tuple[str, str, BaseGeometry], ...]
    """Class, ASAP's name, shape."""
    notes: tuple[str, ...]
    """What was repaired or left out, each in one line."""


def read_asap(path: Path, *, classes: Mapping[str, str], holes: Collection[str]) -> AsapRead:
    """Read an annotation file.

    Annotations of the groups in `holes` are cut out of all areas. One without a group goes by its name.

    Args:
        path: the XML file.
        classes: group → class; a group that is not named is its own class, the empty class means none.
        holes: groups that are cut out, such as `_2` of CAMELYON16.

    Raises:
        TruthError: the file is damaged, is not ASAP's, or holds an annotation of unknown type, without
            coordinates, with too few, or that crosses itself all over.
    """
    try:
        root = ET.parse(path).getroot()
    except OSError as error:
        raise TruthError(f"{path} can't be read: {error.strerror}; check the file") from error
    except ET.ParseError as error:
        raise TruthError(f"{path} is damaged XML ({error}); save it in ASAP again") from error
    if root.tag != "ASAP_Annotations":
        raise TruthError(f"{path} is XML, but not ASAP's (its root is {root.tag}); save it in ASAP")
    shapes: list[tuple[str, str, BaseGeometry]] = []
    cut: list[BaseGeometry] = []
    notes: list[str] = []
    for number, element in enumerate(root.iterfind("./Annotations/Annotation"), start=1):
        name = element.get("Name") or f"annotation {number}"
        where = f"{path.name}: {name}"
        kind = element.get("Type", "")
        if kind not in _KNOWN:
            raise TruthError(
                f"{where} is of type '{kind}', known are {', '.join(sorted(_KNOWN))}; correct it in ASAP"
            )
        if kind == "Measurement":
            notes.append(f"{where} is a measurement, not an annotation; left out")
            continue
        shape = _shape(kind, _points(element, where), where, notes)
        group = element.get("PartOfGroup") or _NO_GROUP
        group = name if group == _NO_GROUP else group
        if group in holes:
            if shape.area > 0:
                cut.append(shape)
            continue
        path_class = classes.get(group, group)
        if path_class:
            shapes.append((path_class, name, shape))
    return AsapRead(tuple(_cut_out(shapes, cut)), tuple(notes))


def evaluate_spline(points: Points, *, steps: int = _STEPS) -> Points:
    """Points along the closed curve that ASAP draws through `points`: (n · steps, 2).

    Before and after the stretch that closes the curve ASAP goes on as if the last two points
    were mirrored, not along the neighbours; so do we, because that is what was seen.
    """
    # Two equal neighbours have no stretch between them.
    points = points[(points != np.roll(points, 1, axis=0)).any(axis=1)]
    count = len(points)
    if count < 3:
        return points
    following = np.roll(points, -1, axis=0)
    before, after = np.roll(points, 1, axis=0), np.roll(points, -2, axis=0)
    after[count - 2] = 2 * following[count - 2] - points[count - 2]
    before[count - 1] = 2 * points[count - 1] - following[count - 1]
    return _catmull_rom(before, points, following, after, steps).reshape(-1, 2)


def _catmull_rom(p0: Points, p1: Points, p2: Points, p3: Points, steps: int) -> npt.NDArray[np.float64]:
    """The stretches from `p1` to `p2`, without their ends: (n, steps, 2); Barry and Goldman 1988."""

    def knots(a: Points, b: Points) -> npt.NDArray[np.float64]:
        length: Points = np.hypot(*(b - a).T)
        return np.sqrt(length)[:, np.newaxis, np.newaxis]

    t1 = knots(p0, p1)
    t2 = t1 + knots(p1, p2)
    t3 = t2 + knots(p2, p3)
    t = t1 + (t2 - t1) * (np.arange(steps) / steps)[:, np.newaxis]
    q0, q1, q2, q3 = (p[:, np.newaxis, :] for p in (p0, p1, p2, p3))
    a1 = (t1 - t) / t1 * q0 + t / t1 * q1
    a2 = (t2 - t) / (t2 - t1) * q1 + (t - t1) / (t2 - t1) * q2
    a3 = (t3 - t) / (t3 - t2) * q2 + (t - t2) / (t3 - t2) * q3
    b1 = (t2 - t) / t2 * a1 + t / t2 * a2
    b2 = (t3 - t) / (t3 - t1) * a2 + (t - t1) / (t3 - t1) * a3
    curve: npt.NDArray[np.float64] = (t2 - t) / (t2 - t1) * b1 + (t - t1) / (t2 - t1) * b2
    return curve


def _points(element: ET.Element, where: str) -> Points:
    """Coordinates in the order that they state."""
    rows = []
    for number, coordinate in enumerate(element.iterfind("./Coordinates/Coordinate")):
        try:
            x, y = float(coordinate.attrib["X"]), float(coordinate.attrib["Y"])
            order = int(coordinate.get("Order", number))
        except (KeyError, ValueError) as error:
            raise TruthError(
                f"{where}: coordinate {number + 1} is no place ({error}); correct it in ASAP"
            ) from error
        if not (math.isfinite(x) and math.isfinite(y)):
            raise TruthError(f"{where}: coordinate {number + 1} is not a finite number; correct it in ASAP")
        rows.append((order, x, y))
    if not rows:
        raise TruthError(f"{where} has no coordinates; delete it or draw it again in ASAP")
    places: Points = np.array(sorted(rows, key=lambda row: row[0]))[:, 1:]
    return places


def _shape(kind: str, points: Points, where: str, notes: list[str]) -> BaseGeometry:
    if kind == "Dot":
        return Point(points[0])
    if kind == "PointSet":
        return MultiPoint(points)
    if kind == "Rectangle" and len(points) == 2:
        return shapely.box(*points.min(axis=0), *points.max(axis=0))
    if len(np.unique(points, axis=0)) < 3:
        raise TruthError(
            f"{where} is an open {kind.lower()} of {len(points)} points, which encloses nothing; "
            "finish or delete it in ASAP"
        )
    polygon = Polygon(evaluate_spline(points) if kind == "Spline" else points)
    if polygon.is_valid:
        return polygon
    notes.append(f"{where} crosses itself; repaired, look at it in ASAP")
    try:
        return polygons_only(polygon)
    except TangledOutlineError as error:
        raise TruthError(f"{where}: {error}") from error


def _cut_out(
    shapes: list[tuple[str, str, BaseGeometry]], holes: list[BaseGeometry]
) -> list[tuple[str, str, BaseGeometry]]:
    """Areas without the holes; what is all hole goes. Dots stay."""
    if not holes:
        return shapes
    hole = shapely.union_all(holes)
    left = []
    for path_class, name, shape in shapes:
        rest = shape if shape.area == 0 else polygons_only(shapely.difference(shape, hole))
        if not rest.is_empty:
            left.append((path_class, name, rest))
    return left
