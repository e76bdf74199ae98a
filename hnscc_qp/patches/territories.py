"""What overlapping outlines leave to each other, and which windows overlap what is left.

Everything is in QuPath px. Outlines are first cut into pieces: the overlap of a window with a
hand-drawn outline costs as much as the outline has vertices (100,000 is not rare), with a piece
of it next to nothing, and with a box from its inside a product of two numbers. All pairs are
worked on at once, as arrays: 50,000 annotations are not rare either.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import shapely
from shapely.geometry.base import BaseGeometry

from hnscc_qp.qupath.shapes import repair

Shapes = npt.NDArray[np.object_]
Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
Indices = npt.NDArray[np.intp]

_MIN_OVERLAP_PX2 = 1e-6
"""Less is what rounding leaves where two outlines share an edge."""
_PIECE_VERTICES = 128
_PIECE_WINDOWS = 64
_BOX_WINDOWS = 1 << 14
"""A box is cut only so that its pairs fit into memory."""
_PIECE_COVERS = 32
_JOINED_COVERS = 8
_PIECE_EXTENT = 0.25
"""Of a window; vertices crowded into less are not worth cutting further."""
_PAIRS_AT_ONCE = 1 << 20
_EDGES_AT_ONCE = 1 << 19


@dataclass(frozen=True, slots=True)
class Windows:
    """Windows of one size on the crossings of rising left and top edges, numbered row by row."""

    x: Floats
    y: Floats
    size: tuple[float, float]

    def spans(self, bounds: Floats) -> tuple[Indices, Indices, Indices, Indices]:
        """First column, first row, columns and rows of the windows that each box may overlap."""
        width, height = self.size
        left = np.searchsorted(self.x + width, bounds[:, 0], side="right")
        top = np.searchsorted(self.y + height, bounds[:, 1], side="right")
        right = np.searchsorted(self.x, bounds[:, 2], side="left")
        bottom = np.searchsorted(self.y, bounds[:, 3], side="left")
        return left, top, np.maximum(right - left, 0), np.maximum(bottom - top, 0)


@dataclass(frozen=True, slots=True)
class _Pieces:
    """Polygons, and the number of the outline that each is a piece of."""

    shapes: Shapes
    owners: Indices

    def __getitem__(self, which: Flags | Indices) -> _Pieces:
        return _Pieces(self.shapes[which], self.owners[which])

    @classmethod
    def joined(cls, parts: Iterable[_Pieces]) -> _Pieces:
        shapes: list[Shapes] = [np.empty(0, np.object_)]
        owners: list[Indices] = [np.empty(0, np.intp)]
        for part in parts:
            shapes.append(part.shapes)
            owners.append(part.owners)
        return cls(np.concatenate(shapes), np.concatenate(owners))


def polygons_only(shape: BaseGeometry) -> BaseGeometry:
    """The valid area of a shape; lines and points that repair leaves behind are dropped.

    Raises:
        TangledOutlineError: as `repair`.
    """
    if not shape.is_valid:
        shape = repair(shape)
    if shape.geom_type in ("Polygon", "MultiPolygon"):
        return shape
    # Twice: repair may nest a multipolygon in a collection.
    parts = shapely.get_parts(shapely.get_parts(shape))
    return shapely.union_all(parts[shapely.get_dimensions(parts) == 2])


def find_overlaps(
    shapes: Shapes, windows: Windows, *, first: Flags | None = None
) -> tuple[Indices, Indices, Floats]:
    """Which windows overlap the territory of which shape, and by how much.

    The territory of a shape is what the smaller shapes that overlap it leave of it; of equally
    large ones the later lies on top.

    Args:
        shapes: (n,) valid polygons and multipolygons.
        windows: where the windows are.
        first: (n,) shapes that lie on top of all others, whatever their size.

    Returns:
        Window numbers, shape numbers and areas in QuPath px²: three (pairs,) arrays, in rising order.
    """
    none = np.empty(0, np.intp), np.empty(0, np.intp), np.empty(0, np.float64)
    if not (len(shapes) and len(windows.x) and len(windows.y)):
        return none
    # From the top (the smallest, of these the latest) down.
    below = np.zeros(len(shapes), np.bool_) if first is None else ~first
    rank = np.empty(len(shapes), np.intp)
    rank[np.lexsort((-np.arange(len(shapes)), shapely.area(shapes), below))] = np.arange(len(shapes))
    pieces = _cut(_Pieces(shapes, np.arange(len(shapes))), windows)
    pieces = _cut(_carve(pieces, rank, windows), windows)
    if not len(pieces.shapes):
        return none
    keys, areas = [], []
    for window, piece, area in _overlap_areas(pieces, windows):
        keys.append(window * len(shapes) + pieces.owners[piece])
        areas.append(area)
    pairs, which = np.unique(np.concatenate(keys), return_inverse=True)
    # Summed over the pieces of a shape.
    sums = np.bincount(which, np.concatenate(areas), minlength=len(pairs)).astype(np.float64)
    real = sums > _MIN_OVERLAP_PX2
    window_numbers, shape_numbers = np.divmod(pairs[real], len(shapes))
    return window_numbers.astype(np.intp), shape_numbers.astype(np.intp), sums[real]


def _cut(pieces: _Pieces, windows: Windows) -> _Pieces:
    """Cut until each piece is a box, or has few vertices and few windows; drop what meets no window."""

    def is_large(some: _Pieces, bounds: Floats, extent: Floats) -> Flags:
        _, _, columns, rows = windows.spans(bounds)
        vertices = shapely.get_num_coordinates(some.shapes)
        many = (vertices > _PIECE_VERTICES) & (extent > _PIECE_EXTENT)
        large: Flags = (many | (columns * rows > _PIECE_WINDOWS)) & ~_is_box(some.shapes, bounds)
        return (large & (columns * rows > 0)) | (columns * rows > _BOX_WINDOWS)

    pieces = _Pieces.joined(_halve_while(pieces, is_large, windows))
    _, _, columns, rows = windows.spans(shapely.bounds(pieces.shapes))
    return pieces[columns * rows > 0]


def _carve(pieces: _Pieces, rank: Indices, windows: Windows) -> _Pieces:
    """Take from each piece what pieces of higher outlines cover."""
    tree = shapely.STRtree(pieces.shapes)
    covers = np.empty(0, np.intp), np.empty(0, np.intp)

    def is_crowded(some: _Pieces, bounds: Floats, extent: Floats) -> Flags:
        nonlocal covers
        below, above = tree.query(some.shapes, predicate="intersects")
        higher = rank[pieces.owners[above]] < rank[some.owners[below]]
        below, above = below[higher], above[higher]
        number = np.bincount(below, minlength=len(some.shapes))
        crowded: Flags = (number > _PIECE_COVERS) & (extent > _PIECE_EXTENT)
        # Kept for those that are not halved, in their new numbers.
        stays = ~crowded[below]
        covers = (np.cumsum(~crowded) - 1)[below[stays]], above[stays]
        return crowded

    carved = []
    for some in _halve_while(pieces, is_crowded, windows):
        carved.append(_Pieces(_take_away(some.shapes, pieces.shapes, *covers), some.owners))
    return _Pieces.joined(carved)


def _take_away(shapes: Shapes, covers: Shapes, below: Indices, above: Indices) -> Shapes:
    """Each shape without the covers above it; `below`: (pairs,) shape numbers, `above`: cover numbers."""
    left = shapes.copy()
    order = np.argsort(below, kind="stable")
    below, above = below[order], above[order]
    counts = np.bincount(below, minlength=len(shapes))
    first = counts.cumsum() - counts
    for nth in range(min(counts.max(initial=0), _JOINED_COVERS)):
        # One cover of each shape at a time, but of all shapes at once.
        which = np.flatnonzero((counts > nth) & (counts <= _JOINED_COVERS))
        left[which] = shapely.difference(left[which], covers[above[first[which] + nth]])
    for shape in np.flatnonzero(counts > _JOINED_COVERS):
        cover = shapely.union_all(covers[above[first[shape] : first[shape] + counts[shape]]])
        left[shape] = shapely.difference(left[shape], cover)
    return left


def _halve_while(
    pieces: _Pieces, is_large: Callable[[_Pieces, Floats, Floats], Flags], windows: Windows
) -> Iterable[_Pieces]:
    """Halve, across the longer side, what `is_large(pieces, bounds, extent in windows)`; give the rest."""
    while len(pieces.shapes):
        polygons, parents = shapely.get_parts(pieces.shapes, return_index=True)
        # Not what is empty, nor the line where a cut met an edge.
        pieces = _Pieces(polygons, pieces.owners[parents])[shapely.area(polygons) > 0]
        bounds = shapely.bounds(pieces.shapes)
        large = is_large(pieces, bounds, ((bounds[:, 2:] - bounds[:, :2]) / windows.size).max(axis=1))
        yield pieces[~large]
        pieces = pieces[large]
        x0, y0, x1, y1 = bounds[large].T
        wide = x1 - x0 > y1 - y0
        middle_x, middle_y = (x0 + x1) / 2, (y0 + y1) / 2
        lower = shapely.box(x0, y0, np.where(wide, middle_x, x1), np.where(wide, y1, middle_y))
        upper = shapely.box(np.where(wide, middle_x, x0), np.where(wide, y0, middle_y), x1, y1)
        pieces = _Pieces.joined(
            _Pieces(shapely.intersection(pieces.shapes, half), pieces.owners) for half in (lower, upper)
        )


@dataclass(frozen=True, slots=True)
class _Edges:
    """The sides of polygons, such that the inside lies on one hand of all of them, holes included."""

    start: Floats
    """(edges, 2)"""
    end: Floats
    """(edges, 2)"""
    first: Indices
    """(polygons + 1,) where each polygon's edges begin."""

    @classmethod
    def of(cls, polygons: Shapes) -> _Edges:
        """Take the edges of (n,) valid polygons."""
        # Shells clockwise, holes the other way.
        rings, of_polygon = shapely.get_rings(shapely.normalize(polygons), return_index=True)
        points, of_ring = shapely.get_coordinates(rings, return_index=True)
        within = of_ring[1:] == of_ring[:-1]
        counts = np.bincount(of_polygon[of_ring[1:][within]], minlength=len(polygons))
        return cls(points[:-1][within], points[1:][within], np.concatenate([[0], counts.cumsum()]))

    def areas_within(self, polygon: Indices, x: Floats, y: Floats, size: tuple[float, float]) -> Floats:
        """Area of polygon number `polygon` within the box at (x, y), for many pairs: (pairs,).

        By Green's theorem the area of P within [x₀, x₀+w] × [y₀, y₀+h] is the integral of
        clamp(x - x₀, 0, w) dy along those parts of P's outline that have y in [y₀, y₀+h].
        """
        counts = self.first[polygon + 1] - self.first[polygon]
        areas = np.empty(len(polygon))
        batches = np.cumsum(counts) // _EDGES_AT_ONCE
        for some in np.split(np.arange(len(polygon)), np.flatnonzero(np.diff(batches)) + 1):
            if not len(some):
                continue
            pair = np.repeat(np.arange(len(some)), counts[some])
            begin = counts[some].cumsum() - counts[some]
            edge = np.arange(len(pair)) + np.repeat(self.first[polygon[some]] - begin, counts[some])
            integral = _integrate(
                self.start[edge] - np.stack([x[some], y[some]], axis=1)[pair],
                self.end[edge] - np.stack([x[some], y[some]], axis=1)[pair],
                size,
            )
            areas[some] = -np.bincount(pair, integral, minlength=len(some))
        return areas


def _integrate(start: Floats, end: Floats, size: tuple[float, float]) -> Floats:
    """Integral of clamp(x, 0, width) dy along each edge where 0 ≤ y ≤ height: (edges,).

    Args:
        start: (edges, 2) points, counted from the box's corner.
        end: (edges, 2) likewise.
        size: (width, height) of the box.
    """
    width, height = size
    rise = end[:, 1] - start[:, 1]
    low, high = np.clip(start[:, 1], 0, height), np.clip(end[:, 1], 0, height)
    slope = np.divide(end[:, 0] - start[:, 0], rise, out=np.zeros(len(rise)), where=rise != 0)
    x_low = start[:, 0] + (low - start[:, 1]) * slope
    x_high = start[:, 0] + (high - start[:, 1]) * slope
    left, right = np.minimum(x_low, x_high), np.maximum(x_low, x_high)
    span = right - left
    # Shares of the edge left of the box and right of it, where the clamp holds.
    before = np.divide(-left, span, out=(left < 0).astype(np.float64), where=span > 0).clip(0, 1)
    after = np.divide(right - width, span, out=(right > width).astype(np.float64), where=span > 0).clip(0, 1)
    middle = (np.clip(left, 0, width) + np.clip(right, 0, width)) / 2
    total: Floats = (high - low) * ((1 - before - after) * middle + after * width)
    return total


def _overlap_areas(pieces: _Pieces, windows: Windows) -> Iterable[tuple[Indices, Indices, Floats]]:
    """Window number, piece number and area of their overlap, in batches that fit into memory."""
    bounds = shapely.bounds(pieces.shapes)
    is_box = _is_box(pieces.shapes, bounds)
    edges = _Edges.of(pieces.shapes)
    first_column, first_row, columns, rows = windows.spans(bounds)
    counts = columns * rows
    batches = np.cumsum(counts) // _PAIRS_AT_ONCE
    width, height = windows.size
    for batch in np.split(np.arange(len(counts)), np.flatnonzero(np.diff(batches)) + 1):
        piece = np.repeat(batch, counts[batch])
        nth = np.arange(len(piece)) - np.repeat(counts[batch].cumsum() - counts[batch], counts[batch])
        row = first_row[piece] + nth // columns[piece]
        column = first_column[piece] + nth % columns[piece]
        x, y = windows.x[column], windows.y[row]
        x0, y0, x1, y1 = bounds[piece].T
        overlap_x = np.minimum(x1, x + width) - np.maximum(x0, x)
        overlap_y = np.minimum(y1, y + height) - np.maximum(y0, y)
        area = np.maximum(overlap_x, 0) * np.maximum(overlap_y, 0)
        odd = np.flatnonzero(~is_box[piece] & (area > 0))
        area[odd] = edges.areas_within(piece[odd], x[odd], y[odd], windows.size)
        yield row * len(windows.x) + column, piece, area


def _is_box(shapes: Shapes, bounds: Floats) -> Flags:
    """Whether each polygon is the box of its bounds, to the last bits."""
    area = (bounds[:, 2] - bounds[:, 0]) * (bounds[:, 3] - bounds[:, 1])
    # A cut may leave a vertex more on an edge.
    few = shapely.get_num_coordinates(shapes) <= 8
    box: Flags = few & (area - shapely.area(shapes) <= 1e-12 * area)
    return box
