"""A slide with what review added, removed and changed painted over it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import shapely
from PIL import Image, ImageDraw, ImageFont
from shapely.geometry.base import BaseGeometry

from hnscc_qp.geometry import Mpp, Region
from hnscc_qp.review.diff import SlideDiff
from hnscc_qp.slides.reader import Slide

_ADDED, _REMOVED, _CHANGED = (0, 114, 178), (213, 94, 0), (240, 228, 66)
"""Blue, vermilion and yellow of Okabe and Ito: told apart by colour-blind eyes, too."""
_OPACITY = 0.45
_LEGEND_PX = 64
_INK = (30, 30, 30)


def draw_diff(slide: Slide, diff: SlideDiff, *, longest_side_px: int = 1400) -> Image.Image:
    """Draw the slide with three kinds of area on it, and a legend that says how large they are."""
    width, height = slide.size
    size = slide.pixel_size
    mpp = Mpp(max(width * size.x, height * size.y) / longest_side_px)
    picture = Image.fromarray(slide.read(Region(0, 0, width, height), mpp))
    scale = np.array([picture.width / width, picture.height / height])
    layers = [
        (_ADDED, "added", diff.added, "+"),
        (_REMOVED, "removed", diff.removed, "-"),
        (_CHANGED, "class changed", diff.changed, "~"),
    ]
    for color, _, shape, _ in layers:
        picture = _paint(picture, shape, color, scale)
    wide = max(picture.width, 720)
    sheet = Image.new("RGB", (wide, picture.height + _LEGEND_PX), "white")
    sheet.paste(picture, ((wide - picture.width) // 2, 0))
    pen = ImageDraw.Draw(sheet)
    font, small = ImageFont.load_default(18), ImageFont.load_default(16)
    top = picture.height + 10
    pen.text((12, top), slide.name, _INK, font)
    pen.text((wide - 12, top), "Research use only", (190, 0, 0), font, anchor="ra")
    x = 12
    for color, text, shape, sign in layers:
        # Pillow's own font has neither µ nor ².
        words = f"{sign} {text}: {size.area_um2(shape.area) / 1e6:.4f} sq mm"
        pen.rectangle((x, top + 27, x + 18, top + 41), color, _INK)
        pen.text((x + 26, top + 26), words, _INK, small)
        x += 26 + int(pen.textlength(words, small)) + 28
    return sheet


def _paint(
    picture: Image.Image, shape: BaseGeometry, color: tuple[int, int, int], scale: np.ndarray
) -> Image.Image:
    """Fill a shape, holes left out, and draw its outline so that the smallest is seen."""
    fill, line = Image.new("L", picture.size), Image.new("L", picture.size)
    for polygon in shapely.get_parts(shape):
        if polygon.geom_type != "Polygon" or polygon.is_empty:
            continue
        ImageDraw.Draw(fill).polygon(_points(polygon.exterior, scale), fill=int(255 * _OPACITY))
        for hole in polygon.interiors:
            ImageDraw.Draw(fill).polygon(_points(hole, scale), fill=0)
        for ring in (polygon.exterior, *polygon.interiors):
            ImageDraw.Draw(line).line(_points(ring, scale), fill=255, width=3, joint="curve")
    painted = picture.copy()
    painted.paste(color, mask=fill)
    painted.paste(color, mask=line)
    return painted


def _points(ring: BaseGeometry, scale: np.ndarray) -> Sequence[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in shapely.get_coordinates(ring) * scale]
