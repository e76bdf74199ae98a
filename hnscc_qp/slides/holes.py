"""Reading on where part of a slide can't be decoded: as little as can be is lost, and is named.

A region that fails is read in quarters, and those again, down to 10 px. The quarters' edges lie on
multiples of their size, counted from the image's corner, so that neighbouring regions lose the same pixels.
Where a large part is lost altogether, its corners and 12 more places tell; a file that is all
broken would take hours otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from hnscc_qp.errors import SlideReadError
from hnscc_qp.geometry import Mpp, PixelSize, Region
from hnscc_qp.slides.reader import RGBPixels, Slide

_LEAF_PX = 10
_PROBED_LEAVES = 8
_PROBES = 4


@dataclass(frozen=True, slots=True)
class Area:
    """A rectangle of whole pixels at one resolution, counted from the image's corner; it may reach beyond."""

    top: int
    left: int
    height: int
    width: int

    def region(self, pixel_size: PixelSize, mpp: Mpp) -> Region:
        """The same in QuPath px."""
        x, y = pixel_size.qupath_px_per(mpp)
        return Region(self.left * x, self.top * y, self.width * x, self.height * y)


@dataclass(frozen=True, slots=True)
class Patchwork:
    """The pixels of an area, white where they can't be decoded."""

    pixels: RGBPixels
    """(height, width, 3) uint8"""
    holes: tuple[Area, ...]
    """What can't be decoded, counted from the image's corner."""
    reason: str | None
    """The first error; None if there are no holes."""

    def lost(self, area: Area) -> npt.NDArray[np.bool_]:
        """Which pixels of the area that was read are lost: (height, width)."""
        lost = np.zeros(self.pixels.shape[:2], np.bool_)
        for hole in self.holes:
            top, left = hole.top - area.top, hole.left - area.left
            lost[max(top, 0) : top + hole.height, max(left, 0) : left + hole.width] = True
        return lost


def read_around_holes(slide: Slide, area: Area, mpp: Mpp, *, leaf_px: int = _LEAF_PX) -> Patchwork:
    """Read an area; what can't be decoded is white, and is told.

    Args:
        slide: to read.
        area: in pixels of `mpp`.
        mpp: of the pixels wanted.
        leaf_px: what is lost at least, and tried at last.
    """
    try:
        return Patchwork(slide.read(area.region(slide.pixel_size, mpp), mpp), (), None)
    except SlideReadError as error:
        pixels = np.full((area.height, area.width, 3), 255, np.uint8)
        holes: list[Area] = []
        side = leaf_px
        while side < max(area.height, area.width):
            side *= 2
        waiting = [(area, side)]
        while waiting:
            part, side = waiting.pop()
            read = None if part is area else _try(slide, part, mpp)
            if read is not None:
                top, left = part.top - area.top, part.left - area.left
                pixels[top : top + part.height, left : left + part.width] = read
            elif side <= leaf_px or (
                side > _PROBED_LEAVES * leaf_px and _all_lost(slide, part, mpp, leaf_px)
            ):
                holes.append(part)
            else:
                waiting += [(smaller, side // 2) for smaller in reversed(_cut(part, side // 2))]
        return Patchwork(pixels, tuple(holes), str(error) if holes else None)


def _try(slide: Slide, area: Area, mpp: Mpp) -> RGBPixels | None:
    try:
        return slide.read(area.region(slide.pixel_size, mpp), mpp)
    except SlideReadError:
        return None


def _all_lost(slide: Slide, part: Area, mpp: Mpp, leaf_px: int) -> bool:
    """Whether neither the corners nor places between them can be read."""

    def places(start: int, length: int) -> list[tuple[int, int]]:
        size = min(leaf_px, length)
        return [(start + (length - size) * step // (_PROBES - 1), size) for step in range(_PROBES)]

    return all(
        _try(slide, Area(top, left, height, width), mpp) is None
        for top, height in places(part.top, part.height)
        for left, width in places(part.left, part.width)
    )


def _cut(area: Area, side: int) -> list[Area]:
    """The area in pieces of `side` × `side` px at most, cut on multiples of the side."""

    def spans(start: int, length: int) -> list[tuple[int, int]]:
        edges = [start, *range((start // side + 1) * side, start + length, side), start + length]
        return [(low, high - low) for low, high in pairwise(edges)]

    return [
        Area(top, left, height, width)
        for top, height in spans(area.top, area.height)
        for left, width in spans(area.left, area.width)
    ]
