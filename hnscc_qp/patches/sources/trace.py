"""Equal pixels or blocks → polygons that follow their sides exactly, with holes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from scipy import ndimage
from shapely.geometry import Polygon


def outline_pieces(labels: NDArray[np.integer[Any]]) -> list[Polygon]:
    """One polygon per label 1, 2, ..., in pixels; each label is one piece, connected by sides.

    The sides between pixels of the mask and others, joined to straight runs, are cut into
    faces by `polygonize`. Runs are broken wherever sides meet at right angles, so a corner where
    two pixels touch diagonally is a node, and each face is one side-connected piece, or a gap.
    """
    mask = np.pad(labels > 0, 1)
    # (y, x) of a side is that of its upper or left end; the padding stands for what lies outside.
    across = mask[1:, 1:] != mask[:-1, 1:]  # horizontal, above pixel (y, x)
    down = mask[1:, 1:] != mask[1:, :-1]  # vertical, left of pixel (y, x)
    horizontal = _runs(across, down)
    vertical = _runs(down.T, across.T)[:, :, ::-1]
    sides = shapely.linestrings(np.concatenate([horizontal, vertical]).astype(float))
    faces = shapely.get_parts(shapely.polygonize(sides))
    outlines: dict[int, Polygon] = {}
    for face in faces:
        # The pixel right below the leftmost of a face's highest corners lies in the face.
        x, y = min(face.exterior.coords, key=lambda point: (point[1], point[0]))
        outlines[int(labels[int(y), int(x)])] = face
    outlines.pop(0, None)  # gaps
    return [outlines[label] for label in sorted(outlines)]


def trace_values(
    tiles: Iterable[tuple[int, int, NDArray[np.integer[Any]]]], values: Iterable[int]
) -> dict[int, list[Polygon]]:
    """Outline the pieces of every value of an image that comes in tiles, in the image's pixels.

    Memory is that of a tile and of the outlines. Pieces touch by sides; what touches at a corner only
    is apart.

    Args:
        tiles: x and y of the first pixel, and (rows, columns) of values; together the image, each pixel once.
        values: wanted.

    Returns:
        Value → polygons, by their first pixel, row by row; values that do not occur have none.
    """
    parts: dict[int, list[Polygon]] = {value: [] for value in values}
    for x, y, tile in tiles:
        low, high = int(tile.min()), int(tile.max())
        if low == high:
            if low in parts:
                parts[low].append(shapely.box(x, y, x + tile.shape[1], y + tile.shape[0]))
            continue
        for value, found in parts.items():
            if low <= value <= high:
                labels, _ = ndimage.label(tile == value)
                found += [
                    shapely.transform(piece, lambda points, x=x, y=y: np.add(points, (x, y)))
                    for piece in outline_pieces(labels)
                ]
    return {value: _join(found) for value, found in parts.items()}


def _join(parts: list[Polygon]) -> list[Polygon]:
    """Parts that share sides as one; whole numbers, so nothing is rounded."""
    # Simplifying by nothing takes out the corners that lie on a side where tiles met.
    whole = shapely.get_parts(shapely.simplify(shapely.union_all(parts), 0))
    return sorted((part.normalize() for part in whole if not part.is_empty), key=_first_corner)


def _first_corner(polygon: Polygon) -> tuple[float, float]:
    points = shapely.get_coordinates(polygon.exterior)
    y, x = min(map(tuple, points[:, ::-1].tolist()))
    return y, x


def _runs(sides: NDArray[np.bool_], crossing: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Join unit sides along the last axis where no crossing side meets them: (n, 2, 2) points (x, y).

    At a corner of pixels sides meet in even number, so with two in line the two across are either
    both there or both absent, and the one below tells.
    """
    before = np.zeros_like(sides)
    before[:, 1:] = sides[:, :-1]
    starts = sides & ~(before & ~crossing)
    joined = np.zeros_like(sides)
    joined[:, :-1] = ~starts[:, 1:] & sides[:, 1:]
    ends = sides & ~joined
    y, first = np.nonzero(starts)
    _, last = np.nonzero(ends)
    return np.stack([np.stack([first, y], axis=-1), np.stack([last + 1, y], axis=-1)], axis=1)
