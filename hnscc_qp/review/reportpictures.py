"""A slide for the report: a photograph, its votes as a small picture, and the outlines of manual review.

The votes are kept as grey levels, so that the browser can colour them for any threshold. They are pooled by
the LARGEST value: a lesion of one block stays visible.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray
from PIL import Image
from shapely.geometry.base import BaseGeometry

from hnscc_qp.scoring.score_map import ScoreMap
from hnscc_qp.slides.reader import RGBPixels

LONGEST_SIDE_PX = 1000
SHORTEST_SIDE_PX = 160
ALL_PICTURES_BYTES = 28_000_000
"""Of all slides of a report together; base64 makes a third more of it, which leaves room under 50 MB."""
_MOST_BYTES = 220_000
_QUALITY = 72


@dataclass(frozen=True, slots=True)
class SlidePicture:
    """What the browser needs to show one slide with any threshold."""

    width: int
    """Of the photograph, px."""
    height: int
    photo: str
    """A data URL, WebP."""
    votes: str
    """A data URL, grey PNG: votes times `grey_step`."""
    votes_size: tuple[int, int]
    """Width and height of the picture of votes, px."""
    covers: tuple[float, float]
    """How much of the photograph's width and height it covers: 1 or a little more."""
    grey_step: int
    levels: int
    outlines: str
    """SVG path data in px of the photograph: tumor as annotated."""

    @property
    def bytes(self) -> int:
        """What it takes in the file."""
        return len(self.photo) + len(self.votes) + len(self.outlines)


def bytes_per_slide(slides: int) -> int:
    """How large a slide's pictures may be, so that a report of so many slides stays light."""
    return min(_MOST_BYTES, ALL_PICTURES_BYTES // max(1, slides))


def draw_slide(
    pixels: RGBPixels,
    score_map: ScoreMap,
    truth: Iterable[BaseGeometry],
    *,
    max_bytes: int,
) -> SlidePicture:
    """Make the pictures of a slide.

    Args:
        pixels: the whole slide at `LONGEST_SIDE_PX` or smaller, see `Slide.thumbnail`.
        score_map: of the slide.
        truth: outlines of tumor in QuPath px.
        max_bytes: of photograph and votes together, before base64; the photograph shrinks until they fit.
    """
    image = Image.fromarray(pixels)
    while True:
        photo = _encode(image, "WEBP", quality=_QUALITY, method=4)
        pooled, block_px = _pool(score_map.votes, max(image.size))
        grey_step = 255 // score_map.max_level
        votes = _encode(Image.fromarray((pooled * grey_step).astype(np.uint8)), "PNG", optimize=True)
        too_much = (len(photo) + len(votes)) / max_bytes
        if too_much <= 1 or max(image.size) <= SHORTEST_SIDE_PX:
            break
        shrink = max(0.94 / too_much**0.5, SHORTEST_SIDE_PX / max(image.size))
        size = (max(1, round(image.width * shrink)), max(1, round(image.height * shrink)))
        image = image.resize(size, Image.Resampling.LANCZOS)
    width, height = score_map.image_size_px
    block_width, block_height = score_map.grid.block_qupath
    return SlidePicture(
        width=image.width,
        height=image.height,
        photo=_data_url(photo, "image/webp"),
        votes=_data_url(votes, "image/png"),
        votes_size=(pooled.shape[1], pooled.shape[0]),
        covers=(
            pooled.shape[1] * block_px * block_width / width,
            pooled.shape[0] * block_px * block_height / height,
        ),
        grey_step=grey_step,
        levels=score_map.max_level,
        outlines=_svg_path(truth, image.width / width, image.height / height),
    )


def _pool(votes: NDArray[np.uint8], side_px: int) -> tuple[NDArray[np.uint8], int]:
    """The largest of each square of blocks, so that no side exceeds `side_px`; and the square's side."""
    factor = max(1, -(-max(votes.shape) // side_px))
    rows, columns = (-(-length // factor) for length in votes.shape)
    padded = np.zeros((rows * factor, columns * factor), np.uint8)
    padded[: votes.shape[0], : votes.shape[1]] = votes
    return padded.reshape(rows, factor, columns, factor).max(axis=(1, 3)), factor


def _svg_path(shapes: Iterable[BaseGeometry], across: float, down: float) -> str:
    """Rings in px of the photograph, to half a px."""
    parts = []
    for shape in shapes:
        scaled = shapely.transform(shape, lambda points: points * (across, down))
        for polygon in shapely.get_parts(shapely.simplify(scaled, 0.4)):
            if polygon.geom_type != "Polygon" or polygon.is_empty:
                continue
            for ring in (polygon.exterior, *polygon.interiors):
                points = " ".join(f"{x:.1f},{y:.1f}" for x, y in shapely.get_coordinates(ring)[:-1])
                parts.append(f"M{points}Z")
    return "".join(parts)


def _encode(image: Image.Image, format_name: str, **options: int | bool) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format_name, **options)
    return buffer.getvalue()


def _data_url(data: bytes, mime_type: str) -> str:
    return f"data:{mime_type};base64,{base64.b64encode(data).decode('ascii')}"
