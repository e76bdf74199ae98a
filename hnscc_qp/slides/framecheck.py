"""Whether what was read of a place is what the file holds there, asked without `Slide`.

`Slide` reads through the pyramid and turns edges of pixels; here the corners of a place are
followed back to level 0, step by step, and level 0 alone is read. So a mistake in bounds, crops,
turns, pixel sizes or a level that lies askew shows as an offset between the two.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise, product

import numpy as np
import numpy.typing as npt
import openslide
from PIL import Image

from hnscc_qp.errors import SlideReadError
from hnscc_qp.geometry import Crop, Region, Turn, View
from hnscc_qp.slides.reader import RGBPixels, Slide

SEARCH_PX = 8
"""How far around a place what was read is looked for, in its own pixels."""
_MIN_CONTRAST = 3.0
"""Standard deviation in grey values; glass has about 1."""

Grey = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Offset:
    """Where what was read lies in the file."""

    x_px: int
    y_px: int
    correlation: float
    """Of the pixels at that offset, -1..1."""


def find_offset(
    slide: Slide, pixels: RGBPixels, region: Region, *, size: tuple[int, int] | None
) -> Offset | None:
    """Look in level 0 for what was read of a region; None if it is too plain to be told from elsewhere.

    Args:
        slide: which file, and how QuPath shows it.
        pixels: what was read of `region`.
        region: in QuPath px; it and `SEARCH_PX` around it lie within the image.
        size: (width, height) of the image that QuPath shows, if known: it tells better than the
            entry's arguments whether QuPath crops to the bounds.

    Returns:
        The offset in pixels of `pixels`, at most `SEARCH_PX` to each side.

    Raises:
        SlideReadError: level 0 can't be decoded there.
    """
    rows, columns = pixels.shape[:2]
    step_x, step_y = region.width / columns, region.height / rows
    around = Region(
        region.x - SEARCH_PX * step_x,
        region.y - SEARCH_PX * step_y,
        region.width + 2 * SEARCH_PX * step_x,
        region.height + 2 * SEARCH_PX * step_y,
    )
    wanted = _standardise(_grey(pixels))
    if wanted is None:
        return None
    try:
        level0 = _read_level0(slide, around, (columns + 2 * SEARCH_PX, rows + 2 * SEARCH_PX), size)
    except openslide.OpenSlideError as error:
        raise SlideReadError(
            f"level 0 of {slide.name} can't be read at x = {around.x:.0f}, y = {around.y:.0f} px: {error}; "
            "copy the slide again from the scanner, or leave the image out"
        ) from error
    found = _grey(level0)
    best = Offset(0, 0, -1.0)
    # From the middle out: of equals the nearest counts.
    shifts = sorted(range(-SEARCH_PX, SEARCH_PX + 1), key=abs)
    for x, y in sorted(product(shifts, shifts), key=lambda shift: abs(shift[0]) + abs(shift[1])):
        part = found[SEARCH_PX + y : SEARCH_PX + y + rows, SEARCH_PX + x : SEARCH_PX + x + columns]
        there = _standardise(part)
        correlation = -1.0 if there is None else float((wanted * there).mean())
        if correlation > best.correlation:
            best = Offset(x, y, correlation)
    return best


def correlate(one: RGBPixels, other: RGBPixels) -> float | None:
    """Correlation of two pictures of one size, -1..1; None if either is plain."""
    first, second = _standardise(_grey(one)), _standardise(_grey(other))
    return None if first is None or second is None else float((first * second).mean())


def _read_level0(
    slide: Slide, region: Region, pixels: tuple[int, int], size: tuple[int, int] | None
) -> RGBPixels:
    """The region, (width, height) = `pixels`, from level 0 by Pillow's own averaging."""
    quarters = sum(step.quarters for step in slide.view if isinstance(step, Turn)) % 4
    with openslide.OpenSlide(slide.path) as file:
        base = _base(file, slide, size)
        corners = (
            _to_level0(x, y, slide.view, base)
            for x, y in ((region.x, region.y), (region.x + region.width, region.y + region.height))
        )
        (left, right), (top, bottom) = (sorted(axis) for axis in zip(*corners, strict=True))
        x, y = int(left), int(top)
        # A pixel more on each side, so that the averaging never meets an end.
        read = file.read_region((x - 1, y - 1), 0, (int(right) - x + 4, int(bottom) - y + 4))
    white = Image.new("RGBA", read.size, "white")
    rgb = Image.alpha_composite(white, read).convert("RGB")
    box = (left - x + 1, top - y + 1, right - x + 1, bottom - y + 1)
    upright = pixels[::-1] if quarters % 2 else pixels
    return np.rot90(np.asarray(rgb.resize(upright, Image.Resampling.BOX, box=box)), -quarters)


def _base(file: openslide.OpenSlide, slide: Slide, size: tuple[int, int] | None) -> Region:
    """The part of level 0 that QuPath's own reader shows, before the view."""
    width, height = file.dimensions
    whole = Region(0, 0, width, height)
    names = ("x", "y", "width", "height")
    stored = [file.properties.get(f"openslide.bounds-{name}") for name in names]
    given = [float(value) for value in stored if value is not None]
    if len(given) < len(names):
        return whole
    bounds = Region(*given)
    if size is not None and not any(isinstance(step, Crop) for step in slide.view):
        for base in (bounds, whole):
            if _sizes(slide.view, base)[-1] == (float(size[0]), float(size[1])):
                return base
    return bounds if slide.crop_to_bounds else whole


def _sizes(view: View, base: Region) -> list[tuple[float, float]]:
    """Sizes of the image: of the base, and after each step."""
    sizes = [(base.width, base.height)]
    for step in view:
        width, height = sizes[-1]
        if isinstance(step, Crop):
            sizes.append((step.width, step.height))
        else:
            sizes.append((height, width) if step.quarters % 2 else (width, height))
    return sizes


def _to_level0(x: float, y: float, view: View, base: Region) -> tuple[float, float]:
    """Follow a point back, the last step first."""
    sizes = _sizes(view, base)
    for step, ((width, height), _) in reversed(list(zip(view, pairwise(sizes), strict=True))):
        if isinstance(step, Crop):
            x, y = x + step.x, y + step.y
        elif step.quarters == 1:
            x, y = y, height - x
        elif step.quarters == 2:
            x, y = width - x, height - y
        else:
            x, y = width - y, x
    return x + base.x, y + base.y


def _grey(pixels: RGBPixels) -> Grey:
    grey: Grey = pixels.mean(axis=2, dtype=np.float64)
    return grey


def _standardise(grey: Grey) -> Grey | None:
    """Mean 0 and standard deviation 1; None if there is next to no contrast."""
    deviation = grey.std()
    return None if deviation < _MIN_CONTRAST else (grey - grey.mean()) / deviation
