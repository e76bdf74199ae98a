"""Shapes as QuPath takes them in from GeoJSON: valid, on its grid, and of which ROI kind."""

from __future__ import annotations

import math

import numpy as np
import shapely
from shapely.geometry import MultiLineString, MultiPoint, MultiPolygon, Polygon
from shapely.geometry.base import BaseGeometry

from hnscc_qp.errors import TangledOutlineError
from hnscc_qp.qupath.objects import RoiKind

DECIMALS = 2
GRID_PX = 0.01
"""QuPath rounds to `DECIMALS` when it writes; from 0.6 on it also snaps what it reads to this grid."""
_MAX_CROSSINGS = 5000
"""Repair takes some seconds for so many, and hours for a million; a hand, however hasty, crosses its own
line a few times."""
_SAMPLED_EDGES = 1000
_EDGES_AT_ONCE = 50


def settle(geometry: BaseGeometry) -> BaseGeometry:
    """Make `geometry` valid on the grid of 0.01 px; parts that vanish go, and all may vanish.

    Of a collection only the parts of the highest dimension stay, and of a polygon that crosses
    itself the even-odd parts, both as in QuPath. Points, lines and polygons stay what they are.

    Raises:
        ValueError: a coordinate is not finite.
        TangledOutlineError: as `repair`.
    """
    geometry = _joined(_simple_parts(shapely.force_2d(geometry)))
    if not np.isfinite(shapely.get_coordinates(geometry)).all():
        raise ValueError("a coordinate is not a finite number")
    # + 0.0 makes a rounded −0.0 a plain 0.0.
    rounded = shapely.transform(geometry, lambda points: np.round(points, DECIMALS) + 0.0)
    dimension = shapely.get_dimensions(geometry)
    if dimension == 1:
        return _joined([line for line in _simple_parts(rounded) if line.length > 0])
    if dimension == 0 or rounded.is_valid:
        return rounded
    repaired = _joined(_polygons(repair(geometry)))
    # Rounding a valid polygon may break it again; set_precision rounds such that it does not.
    settled = _joined(_polygons(shapely.set_precision(repaired, GRID_PX)))
    assert settled.is_valid
    return settled


def repair(geometry: BaseGeometry) -> BaseGeometry:
    """`shapely.make_valid` of an outline, in a time that has an end.

    Raises:
        TangledOutlineError: it crosses itself all over.
    """
    refuse_tangled(geometry)
    return shapely.make_valid(geometry)


def refuse_tangled(outline: BaseGeometry) -> None:
    """Refuse an outline that is not valid if it crosses itself too often, by a sample of its edges.

    Raises:
        TangledOutlineError: it does.
    """
    rings = shapely.get_rings(shapely.get_parts(outline))
    points, ring = shapely.get_coordinates(rings, return_index=True)
    edges = shapely.linestrings(np.stack([points[:-1], points[1:]], axis=1)[ring[1:] == ring[:-1]])
    tree = shapely.STRtree(edges)
    sampled = edges[:: max(1, len(edges) // _SAMPLED_EDGES)]
    crossed = 0
    # A crossing has two edges. Of a million edges one may cross most, so it stops when it knows.
    for start in range(0, len(sampled), _EDGES_AT_ONCE):
        some = sampled[start : start + _EDGES_AT_ONCE]
        crossed += tree.query(some, predicate="crosses").shape[1]
        crossed += tree.query(some, predicate="overlaps").shape[1]  # drawn to and fro on one line
        if crossed * len(edges) > 2 * _MAX_CROSSINGS * len(sampled):
            raise TangledOutlineError(
                f"an outline of {len(points):,} vertices crosses itself all over; simplify it in QuPath "
                "(Objects → Annotations → Simplify shape) or draw it anew"
            )


def roi_kind(geometry: BaseGeometry) -> RoiKind:
    """The ROI that QuPath 0.6 and later make of a settled geometry."""
    match geometry.geom_type:
        case "Point" | "MultiPoint":
            return RoiKind.POINTS
        case "LineString":
            return RoiKind.LINE if len(geometry.coords) == 2 else RoiKind.POLYLINE
        case "Polygon" if not geometry.interiors:
            return RoiKind.RECTANGLE if _is_rectangle(geometry) else RoiKind.POLYGON
        case _:
            return RoiKind.GEOMETRY


def ellipse(bounds: tuple[float, float, float, float]) -> tuple[BaseGeometry, float]:
    """Make the ellipse in `bounds` (left, top, right, bottom): QuPath's polygon of 100 points, exact area."""
    left, top, right, bottom = bounds
    radius_x, radius_y = (right - left) / 2, (bottom - top) / 2
    angle = np.arange(100) * (2 * math.pi / 100)
    x = (left + right) / 2 + radius_x * np.cos(angle)
    y = (top + bottom) / 2 + radius_y * np.sin(angle)
    return Polygon(np.column_stack((x, y))), math.pi * radius_x * radius_y


def _simple_parts(geometry: BaseGeometry) -> list[BaseGeometry]:
    if hasattr(geometry, "geoms"):
        return [part for child in geometry.geoms for part in _simple_parts(child)]
    return [] if geometry.is_empty else [geometry]


def _polygons(geometry: BaseGeometry) -> list[BaseGeometry]:
    return [part for part in _simple_parts(geometry) if isinstance(part, Polygon)]


def _joined(parts: list[BaseGeometry]) -> BaseGeometry:
    """Parts of the highest dimension among `parts` as one geometry."""
    if not parts:
        return Polygon()
    dimension = max(int(shapely.get_dimensions(part)) for part in parts)
    parts = [part for part in parts if shapely.get_dimensions(part) == dimension]
    return parts[0] if len(parts) == 1 else (MultiPoint, MultiLineString, MultiPolygon)[dimension](parts)


def _is_rectangle(polygon: Polygon) -> bool:
    """Four sides along the axes, as JTS has it; a corner more, even on a side, and QuPath keeps a polygon."""
    corners = shapely.get_coordinates(polygon)
    return len(corners) == 5 and bool((np.count_nonzero(np.diff(corners, axis=0), axis=1) == 1).all())
