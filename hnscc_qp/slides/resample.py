"""Exact area averaging: the mean of the source over each output pixel, fractions of pixels included.

An output pixel depends only on where its edges lie, never on the region it was read with, so
that a slide may be cut into any tiles. Pillow's filters can't promise that: they take or leave
whole source pixels by their centres, and their phase follows the crop.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy.sparse import csr_array

Edges = npt.NDArray[np.float64]

_SNAP = 2.0**16
_ON_THE_GRID = 1e-6
_WHOLE = 1e-9


def pixel_edges(start: float, step: float, count: int) -> Edges:
    """Edges of `count` pixels of size `step` from `start` on: (count + 1,).

    Where the start is a multiple of the step, as on the model's grid, every edge is computed from
    its own number on that grid, so that two regions give the very same edge.
    """
    first = start / step
    if abs(first - round(first)) < _ON_THE_GRID:
        return np.arange(round(first), round(first) + count + 1, dtype=np.float64) * step
    return start + np.arange(count + 1, dtype=np.float64) * step


def snap(edges: Edges) -> Edges:
    """Edges to the nearest 2⁻¹⁶ px: what rounding left of a whole pixel is not a sliver of the next."""
    return np.round(edges * _SNAP) / _SNAP


def whole_factors(step_x: float, step_y: float) -> tuple[int, int] | None:
    """The steps as whole numbers of source pixels, if the fast way can take them.

    Pillow's `reduce` is it; it divides by multiplying with a truncated reciprocal, which is exact
    for powers of two only. Those are what pyramids ask for.
    """
    factors = round(step_x), round(step_y)
    close = all(abs(s - f) < _WHOLE * f for s, f in zip((step_x, step_y), factors, strict=True))
    return factors if close and math.prod(factors).bit_count() == 1 else None


def average_area(
    image: Image.Image, x_edges: Edges, y_edges: Edges, *, factors: tuple[int, int] | None
) -> npt.NDArray[np.uint8]:
    """Mean colour of an RGB image between the edges, rounded to whole numbers.

    Args:
        image: RGB source.
        x_edges: (columns + 1,) rising edges in source px, within 0..width.
        y_edges: (rows + 1,) likewise, within 0..height.
        factors: `whole_factors`, if the edges lie between source pixels: the fast way.

    Returns:
        (rows, columns, 3) uint8.
    """
    if factors is not None:
        box = (int(x_edges[0]), int(y_edges[0]), int(x_edges[-1]), int(y_edges[-1]))
        return np.asarray(image.reduce(factors, box=box) if factors != (1, 1) else image.crop(box))
    width, height = image.size
    columns, rows = len(x_edges) - 1, len(y_edges) - 1
    # One axis after the other, each a sparse product. It adds in the order of the source pixels,
    # so the same edges give the same sum, bit for bit, however many pixels are asked for.
    source = np.asarray(image).reshape(height, width * 3).astype(np.float32)
    narrow = (_overlaps(y_edges, height) @ source).reshape(rows, width, 3)
    across = np.ascontiguousarray(narrow.transpose(1, 0, 2)).reshape(width, rows * 3)
    sums = (_overlaps(x_edges, width) @ across).reshape(columns, rows, 3).transpose(1, 0, 2)
    areas = np.outer(np.diff(y_edges), np.diff(x_edges)).astype(np.float32)
    return (sums / areas[:, :, np.newaxis] + np.float32(0.5)).astype(np.uint8)


def _overlaps(edges: Edges, size: int) -> csr_array[np.float32]:
    """How much of each source pixel lies in each output pixel: (outputs, size), sparse."""
    low, high = edges[:-1, np.newaxis], edges[1:, np.newaxis]
    first = np.floor(low).astype(np.int32)
    reach = int((np.ceil(high).astype(np.int32) - first).max())
    source = first + np.arange(reach, dtype=np.int32)
    overlap = np.minimum(high, source + 1) - np.maximum(low, source)
    kept = overlap > 0
    starts = np.concatenate([[0], kept.sum(axis=1).cumsum()])
    return csr_array((overlap[kept].astype(np.float32), source[kept], starts), shape=(len(edges) - 1, size))
