"""A picture of a scored slide, for reports and people without QuPath at hand."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import shapely
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from shapely.geometry.base import BaseGeometry

from hnscc_qp.geometry import Mpp, Region
from hnscc_qp.qupath.objects import RGB
from hnscc_qp.qupath.ownership import AI_TUMOR
from hnscc_qp.scoring.regions import vectorize
from hnscc_qp.scoring.score_map import ScoreMap
from hnscc_qp.slides.reader import Slide

_INK: RGB = (40, 40, 40)
_REGION: RGB = AI_TUMOR.color or (255, 90, 0)
_TRUTH: RGB = (0, 120, 60)
_SCALE: tuple[RGB, ...] = ((255, 236, 120), (254, 178, 60), (240, 70, 40), (160, 0, 30))
"""Colours from low to high scores, away from the blue and purple of haematoxylin."""
_OPACITY = (0.35, 0.6)
"""Of the lowest and the highest score; a score of 0 is not painted."""


def draw_preview(
    slide: Slide,
    score_map: ScoreMap,
    threshold_votes: int,
    *,
    truth: Iterable[BaseGeometry] = (),
    longest_side_px: int = 1200,
) -> Image.Image:
    """Draw the slide, its scores, the regions at the threshold and, if given, the pathologist's annotations.

    Args:
        slide: for the picture beneath.
        score_map: of this slide.
        threshold_votes: 1..16.
        truth: polygons in QuPath px.
        longest_side_px: of the slide in the picture, which gets a legend below.
    """
    width, height = slide.size
    width_um, height_um = width * slide.pixel_size.x, height * slide.pixel_size.y
    mpp = Mpp(max(width_um, height_um) / longest_side_px)
    beneath = Image.fromarray(slide.read(Region(0, 0, width, height), mpp))
    picture = Image.composite(*_paint(score_map, beneath))
    to_picture = np.array([picture.width / width, picture.height / height])
    line_px = max(2, longest_side_px // 450)
    regions = [region.polygon_qupath for region in vectorize(score_map, threshold_votes=threshold_votes)]
    truth = list(truth)
    picture = _draw_outlines(picture, [(truth, _TRUTH), (regions, _REGION)], to_picture, line_px)
    legend = _draw_legend(
        max(picture.width, 560),
        title=slide.name,
        levels=score_map.max_level,
        threshold_votes=threshold_votes,
        with_truth=bool(truth),
        bar_um=_round_length(width_um),
        um_per_px=width_um / picture.width,
    )
    sheet = Image.new("RGB", (legend.width, picture.height + legend.height), "white")
    sheet.paste(picture, ((sheet.width - picture.width) // 2, 0))
    sheet.paste(legend, (0, picture.height))
    return sheet


def _colors(shares: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Scores 0..1 → (..., 3)."""
    stops = np.linspace(0, 1, len(_SCALE))
    channels = [np.interp(shares, stops, [color[channel] for color in _SCALE]) for channel in range(3)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


def _paint(score_map: ScoreMap, beneath: Image.Image) -> tuple[Image.Image, Image.Image, Image.Image]:
    """Colours, picture and mask for `Image.composite`."""
    shares = score_map.votes / score_map.max_level
    opacity = np.where(shares > 0, np.interp(shares, (0, 1), _OPACITY), 0)
    # The last blocks may reach beyond the image.
    width, height = score_map.image_size_px
    block_width, block_height = score_map.grid.block_qupath
    box = (0, 0, width / block_width, height / block_height)

    def enlarge(values: NDArray[np.uint8], how: Image.Resampling) -> Image.Image:
        return Image.fromarray(values).resize(beneath.size, how, box=box)

    mask = enlarge((opacity * 255).round().astype(np.uint8), Image.Resampling.NEAREST)
    return enlarge(_colors(shares), Image.Resampling.NEAREST), beneath, mask


def _draw_outlines(
    picture: Image.Image,
    layers: list[tuple[list[BaseGeometry], RGB]],
    to_picture: NDArray[np.float64],
    line_px: int,
) -> Image.Image:
    """Draw rings on a white edge, smoothly: at twice the size, then halved."""
    for geometries, color in layers:
        polygons = [part for part in shapely.get_parts(geometries) if part.geom_type == "Polygon"]
        rings = [ring for polygon in polygons for ring in (polygon.exterior, *polygon.interiors)]
        for ink, width in (("white", line_px + 2), (color, line_px)):
            mask = Image.new("L", (picture.width * 2, picture.height * 2))
            pen = ImageDraw.Draw(mask)
            for ring in rings:
                points = [tuple(point) for point in shapely.get_coordinates(ring) * to_picture * 2]
                pen.line(points, fill=255, width=width * 2, joint="curve")
            picture.paste(ink, mask=mask.resize(picture.size, Image.Resampling.BOX))
    return picture


def _draw_legend(
    width: int,
    *,
    title: str,
    levels: int,
    threshold_votes: int,
    with_truth: bool,
    bar_um: float,
    um_per_px: float,
) -> Image.Image:
    legend = Image.new("RGB", (width, 112), "white")
    pen = ImageDraw.Draw(legend)
    plain, small = ImageFont.load_default(17), ImageFont.load_default(13)
    note = "Research use only"
    pen.text((width - 16, 12), note, (190, 0, 0), plain, anchor="ra")
    room = width - 48 - pen.textlength(note, plain)
    if pen.textlength(title, plain) > room:
        while title and pen.textlength(title + "...", plain) > room:
            title = title[:-1]
        title += "..."
    pen.text((16, 12), title, _INK, plain)

    left, top, bar_width, bar_height = 16, 50, 240, 16
    shares = np.broadcast_to((np.arange(bar_width) + 0.5) / bar_width, (bar_height, bar_width))
    legend.paste(Image.fromarray(_colors(shares)), (left, top))
    for share, text in ((0, "0"), (1, "1")):
        pen.text((left + share * bar_width, top + bar_height + 18), text, _INK, small, anchor="mt")
    at = left + bar_width * threshold_votes / levels
    pen.line((at, top - 5, at, top + bar_height + 5), _INK, 2)
    label = f"threshold {threshold_votes}/{levels}"
    # Kept clear of the ends' labels.
    at = min(max(at, left + 60), left + bar_width - 60)
    pen.text((at, top + bar_height + 18), label, _INK, small, anchor="mt")
    pen.text((left + bar_width + 14, top + bar_height / 2), "score", _INK, small, anchor="lm")

    keys = [(_REGION, "AI: Tumor")] + ([(_TRUTH, "Pathologist")] if with_truth else [])
    x = left + bar_width + 80
    for row, (color, text) in enumerate(keys):
        y = top + 6 + row * 24
        pen.line((x, y, x + 24, y), color, 3)
        pen.text((x + 32, y), text, _INK, small, anchor="lm")

    bar_px = bar_um / um_per_px
    pen.line((width - 16 - bar_px, top + 8, width - 16, top + 8), _INK, 3)
    # In mm, for Pillow's font has no µ.
    pen.text((width - 16 - bar_px / 2, top + 22), f"{bar_um / 1000:g} mm", _INK, small, anchor="mt")
    return legend


def _round_length(width_um: float) -> float:
    """The largest 1, 2 or 5 × 10ⁿ µm that is at most an eighth of the width."""
    most = width_um / 8
    power = 10.0 ** np.floor(np.log10(most))
    return float(max(step * power for step in (1, 2, 5) if step * power <= most))
