"""Slides as QuPath shows them, read at any resolution.

This is the only place that knows OpenSlide's level 0: everywhere else counts in QuPath px.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import numpy.typing as npt
import openslide
from PIL import Image

from hnscc_qp.errors import (
    MissingMppError,
    SlideNotFoundError,
    SlideReadError,
    UnsupportedServerError,
    UnusableSlideError,
)
from hnscc_qp.geometry import Mpp, PixelSize, Region, Turn, View
from hnscc_qp.slides.resample import Edges, average_area, pixel_edges, snap, whole_factors

RGBPixels = npt.NDArray[np.uint8]
"""(height, width, 3) uint8."""

_T = TypeVar("_T")
_Coordinate = TypeVar("_Coordinate", float, Edges)

_CHUNK_LEVEL_PX = 2048
"""Pixels of a level held at once, per side; bounds the memory of a large read."""
_CELL_LEVEL_PX = 256
_FINER_TOLERANCE = 1.01
"""A level may be coarser than wanted by 1 %: the next finer one costs 4 or 16 times as much."""
_TOO_COARSE = 1.05


@dataclass(frozen=True, slots=True)
class Level:
    """One level of the pyramid.

    A level's sides are level 0's divided and rounded, so the quotient of the sides is a little off
    (4443 / 2221 = 2.0005 for a level made of 2 × 2 averages) and by the far edge of a large slide
    it is off by whole pixels. As QuPath does, the downsample is taken to be whole where that
    explains the sides; otherwise it is the quotient, for each axis on its own.
    """

    number: int
    size: tuple[int, int]
    downsample: tuple[float, float]
    """Level-0 px per pixel of this level, (x, y)."""
    openslide_downsample: float
    """What OpenSlide places its reads by: the mean of both quotients."""


class Slide:
    """One open slide; `size` and every `Region` are in QuPath px.

    Safe to share among threads, to send to other processes and to keep across a fork: the file is
    opened at the first read of each process.
    """

    def __init__(self, path: Path, *, pixel_size: PixelSize | None, crop_to_bounds: bool, view: View) -> None:
        self.path = path
        self.crop_to_bounds = crop_to_bounds
        self.view = view
        self._given_pixel_size = pixel_size
        self._lock = threading.Lock()
        self._handle: tuple[int, openslide.OpenSlide] | None = None
        slide = self._open()
        width, height = slide.dimensions
        x, y, size = 0, 0, [width, height]
        if crop_to_bounds:
            x, y, *size = (
                int(slide.properties.get(f"openslide.bounds-{key}", whole))
                for key, whole in (("x", 0), ("y", 0), ("width", width), ("height", height))
            )
        self._quarters, x, y, width, height = _follow(view, x, y, (size[0], size[1]), name=path.name)
        self.bounds: tuple[int, int] = (x, y)
        self._upright_size = (width, height)
        """Before it is turned; reading is done so, and what was read is turned."""
        self.size = _swap_if(self._quarters % 2, self._upright_size)
        self.levels = _levels(slide)
        stored = _stored_pixel_size(slide.properties)
        if stored is not None and self._quarters % 2:
            stored = PixelSize(stored.y, stored.x)
        self._slide_pixel_size = stored

    def __reduce__(self) -> tuple[object, ...]:
        return _reopen, (self.path, self._given_pixel_size, self.crop_to_bounds, self.view)

    def __repr__(self) -> str:
        return f"Slide({str(self.path)!r})"

    @property
    def name(self) -> str:
        """File name."""
        return self.path.name

    @property
    def as_scanned(self) -> Slide:
        """The slide in its own colours: this one, unless its stain is normalised."""
        return self

    @property
    def pixel_size(self) -> PixelSize:
        """Size of a QuPath px: QuPath's calibration, else the scanner's.

        Raises:
            MissingMppError: there is neither.
        """
        found = self._given_pixel_size or self._slide_pixel_size
        if found is None:
            raise MissingMppError(
                f"{self.name} has no pixel size; set it in QuPath (Image tab → Pixel width, Pixel height) "
                "and save the image, then run again"
            )
        return found

    @property
    def pixel_size_source(self) -> Literal["QuPath", "slide"] | None:
        """Who says so; None if nobody does."""
        if self._given_pixel_size is not None:
            return "QuPath"
        return "slide" if self._slide_pixel_size is not None else None

    def read(self, region: Region, mpp: Mpp) -> RGBPixels:
        """Read a region, averaged to pixels of `mpp` µm.

        A pixel is the exact mean of the area it covers in the best level: the coarsest that is no
        coarser than wanted. Regions that start on the same grid of output pixels agree byte for
        byte where they overlap. What is transparent or beyond the image is white.

        Returns:
            (height, width, 3) uint8; width = round(region.width · pixel_size.x / mpp), height likewise.

        Raises:
            MissingMppError: the pixel size is not known.
            SlideReadError: part of the region can't be decoded.
        """
        step_x, step_y = self.pixel_size.qupath_px_per(mpp)
        x_edges = pixel_edges(region.x, step_x, round(region.width / step_x))
        y_edges = pixel_edges(region.y, step_y, round(region.height / step_y))
        return self._read_between(x_edges, y_edges, (step_x, step_y))

    def to_qupath(self, level0: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Where points of the file's level 0 lie in the image that QuPath shows: (n, 2) → (n, 2)."""
        x, y = (level0 - self.bounds).T
        return np.column_stack(_turn(x, y, self._upright_size, self._quarters))

    def thumbnail(self, max_px: int) -> RGBPixels:
        """The whole image, its longer side `max_px` at most; needs no pixel size."""
        width, height = self.size
        step = max(1.0, max(width, height) / max_px)
        columns, rows = max(1, round(width / step)), max(1, round(height / step))
        return self._read_between(
            np.linspace(0, width, columns + 1),
            np.linspace(0, height, rows + 1),
            (width / columns, height / rows),
        )

    def _read_between(self, x_edges: Edges, y_edges: Edges, step: tuple[float, float]) -> RGBPixels:
        """Average between edges in QuPath px that lie `step` apart."""
        back = -self._quarters % 4
        x_edges, y_edges = map(_rising, _turn(x_edges, y_edges, self.size, back))
        pixels = self._read_upright(x_edges, y_edges, _swap_if(back % 2, step))
        return np.ascontiguousarray(np.rot90(pixels, back)) if back else pixels

    def _read_upright(self, x_edges: Edges, y_edges: Edges, step: tuple[float, float]) -> RGBPixels:
        """The same before the image is turned."""
        level = self._level_for(step)
        x_edges = snap((x_edges + self.bounds[0]) / level.downsample[0])
        y_edges = snap((y_edges + self.bounds[1]) / level.downsample[1])
        # Decided by step and phase, which all regions of one grid share, so all go the same way.
        step_x, step_y = step[0] / level.downsample[0], step[1] / level.downsample[1]
        in_phase = x_edges[0].is_integer() and y_edges[0].is_integer()
        factors = whole_factors(step_x, step_y) if in_phase else None

        columns, rows = len(x_edges) - 1, len(y_edges) - 1
        pixels = np.empty((rows, columns, 3), np.uint8)
        chunk_x, chunk_y = max(1, int(_CHUNK_LEVEL_PX / step_x)), max(1, int(_CHUNK_LEVEL_PX / step_y))
        for row in range(0, rows, chunk_y):
            for column in range(0, columns, chunk_x):
                across, down = x_edges[column : column + chunk_x + 1], y_edges[row : row + chunk_y + 1]
                left, top = math.floor(across[0]), math.floor(down[0])
                right, bottom = math.ceil(across[-1]), math.ceil(down[-1])
                image = self._read_on_white(level, left, top, right, bottom)
                part = average_area(image, across - left, down - top, factors=factors)
                pixels[row : row + chunk_y, column : column + chunk_x] = part
        return pixels

    def _level_for(self, step: tuple[float, float]) -> Level:
        """The coarsest level that is no coarser than `step` px of level 0."""
        fine_enough = [
            level
            for level in self.levels
            if all(
                down <= wanted * _FINER_TOLERANCE for down, wanted in zip(level.downsample, step, strict=True)
            )
        ]
        return max(fine_enough, key=lambda level: level.downsample, default=self.levels[0])

    def _read_on_white(self, level: Level, left: int, top: int, right: int, bottom: int) -> Image.Image:
        """RGB pixels of a level; white beyond the image that QuPath shows."""
        (x, y), (width, height) = self.bounds, self._upright_size
        inner = (
            max(left, math.floor(x / level.downsample[0])),
            max(top, math.floor(y / level.downsample[1])),
            min(right, level.size[0], math.ceil((x + width) / level.downsample[0])),
            min(bottom, level.size[1], math.ceil((y + height) / level.downsample[1])),
        )
        if inner == (left, top, right, bottom):
            return self._read_rgb(level, *inner)
        canvas = Image.new("RGB", (right - left, bottom - top), "white")
        if inner[0] < inner[2] and inner[1] < inner[3]:
            canvas.paste(self._read_rgb(level, *inner), (inner[0] - left, inner[1] - top))
        return canvas

    def _read_rgb(self, level: Level, left: int, top: int, right: int, bottom: int) -> Image.Image:
        """RGB pixels of a level, all within it."""
        if level.openslide_downsample.is_integer():
            return self._read_openslide(level, left, top, right - left, bottom - top)
        # OpenSlide takes the place in whole level-0 px, and where that is not a whole pixel of the
        # level it interpolates. Reading in fixed cells gives each pixel the same shift, half a level-0
        # px at most, whatever the region.
        cell = _CELL_LEVEL_PX
        image = Image.new("RGB", (right - left, bottom - top))
        for cell_y in range(top // cell * cell, bottom, cell):
            for cell_x in range(left // cell * cell, right, cell):
                size = min(cell, level.size[0] - cell_x), min(cell, level.size[1] - cell_y)
                image.paste(self._read_openslide(level, cell_x, cell_y, *size), (cell_x - left, cell_y - top))
        return image

    def _read_openslide(self, level: Level, x: int, y: int, width: int, height: int) -> Image.Image:
        """One read of OpenSlide's, on white."""
        place = (round(x * level.openslide_downsample), round(y * level.openslide_downsample))
        slide = self._open()
        try:
            rgba = slide.read_region(place, level.number, (width, height))
        except openslide.OpenSlideError:
            # An error sticks to a handle, so this one may be another place's, met by another
            # thread. A handle of our own tells; the next read opens a new one for all.
            self._forget(slide)
            try:
                with openslide.OpenSlide(self.path) as fresh:
                    rgba = fresh.read_region(place, level.number, (width, height))
            except openslide.OpenSlideError as error:
                upright = (float(place[0] - self.bounds[0]), float(place[1] - self.bounds[1]))
                x_qupath, y_qupath = map(int, _turn(*upright, self._upright_size, self._quarters))
                raise SlideReadError(
                    f"{self.name} can't be read at x = {x_qupath}, y = {y_qupath} px (level {level.number}): "
                    f"{error}; copy the slide again from the scanner, or leave the image out"
                ) from error
        if rgba.getchannel("A").getextrema() == (255, 255):
            return rgba.convert("RGB")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")

    def _open(self) -> openslide.OpenSlide:
        with self._lock:
            # A handle does not survive a fork: parent and child would share its place in the file.
            if self._handle is None or self._handle[0] != os.getpid():
                self._handle = (os.getpid(), _open_file(self.path))
            return self._handle[1]

    def _forget(self, slide: openslide.OpenSlide) -> None:
        with self._lock:
            if self._handle is not None and self._handle[1] is slide:
                self._handle = None


def open_slide(
    path: Path, *, pixel_size: PixelSize | None = None, crop_to_bounds: bool = True, view: View = ()
) -> Slide:
    """Open a slide as QuPath shows it.

    Args:
        path: the slide, or the first of its files.
        pixel_size: QuPath's calibration, if it has one: it wins over the scanner's.
        crop_to_bounds: whether QuPath crops to the slide's bounds: unless the entry says `--no-crop`.
        view: how QuPath crops and turns the image further.

    Raises:
        SlideNotFoundError: there is no such file.
        SlideReadError: the file is not a slide that OpenSlide reads.
        UnsupportedServerError: QuPath shows a part that reaches beyond the image.
    """
    return Slide(path, pixel_size=pixel_size, crop_to_bounds=crop_to_bounds, view=view)


def require_mpp(slide: Slide, mpp: Mpp) -> None:
    """Refuse a slide that is coarser than the model's resolution by more than 5 %.

    Raises:
        MissingMppError: its pixel size is not known.
        UnusableSlideError: it is too coarse.
    """
    coarsest = max(slide.pixel_size.x, slide.pixel_size.y)
    if coarsest > mpp * _TOO_COARSE:
        raise UnusableSlideError(
            f"{slide.name} is {coarsest:.4g} µm/px, coarser than the {mpp} µm/px the model needs; "
            "scan or export it at a finer resolution, or correct the pixel size in QuPath (Image tab)"
        )


def _reopen(path: Path, pixel_size: PixelSize | None, crop_to_bounds: bool, view: View) -> Slide:
    return Slide(path, pixel_size=pixel_size, crop_to_bounds=crop_to_bounds, view=view)


def _follow(
    view: View, x: int, y: int, size: tuple[int, int], *, name: str
) -> tuple[int, int, int, int, int]:
    """Quarters that the image is turned by, and the part of level 0 that is shown: x, y, width, height."""
    quarters = 0
    for step in view:
        if isinstance(step, Turn):
            quarters = (quarters + step.quarters) % 4
            continue
        shown = _swap_if(quarters % 2, size)
        right, bottom = step.x + step.width, step.y + step.height
        if right > shown[0] or bottom > shown[1]:
            raise UnsupportedServerError(
                f"QuPath shows a part of {name} that reaches beyond its {shown[0]} × {shown[1]} px "
                f"({step}); correct the slide's path in QuPath"
            )
        corners = [
            _turn(float(a), float(b), shown, -quarters % 4) for a, b in ((step.x, step.y), (right, bottom))
        ]
        (x0, x1), (y0, y1) = (sorted(map(int, axis)) for axis in zip(*corners, strict=True))
        x, y, size = x + x0, y + y0, (x1 - x0, y1 - y0)
    return quarters, x, y, *size


def _turn(
    x: _Coordinate, y: _Coordinate, size: tuple[int, int], quarters: int
) -> tuple[_Coordinate, _Coordinate]:
    """Where points of an image of `size` lie once it is turned clockwise; edges may come out falling."""
    width, height = size
    turned = ((x, y), (height - y, x), (width - x, height - y), (y, width - x))
    return turned[quarters]


def _rising(edges: Edges) -> Edges:
    return edges[::-1] if edges[0] > edges[-1] else edges


def _swap_if(odd: int, pair: tuple[_T, _T]) -> tuple[_T, _T]:
    return (pair[1], pair[0]) if odd else pair


def _open_file(path: Path) -> openslide.OpenSlide:
    if not path.exists():
        raise SlideNotFoundError(f"there is no slide {path}; put it back, or correct its place in QuPath")
    try:
        return openslide.OpenSlide(path)
    except openslide.OpenSlideUnsupportedFormatError as error:
        raise SlideReadError(
            f"{path} is not a slide that OpenSlide reads; convert it to a tiled pyramidal TIFF"
        ) from error
    except openslide.OpenSlideError as error:
        raise SlideReadError(f"{path} can't be opened: {error}; copy it again from the scanner") from error


def _levels(slide: openslide.OpenSlide) -> tuple[Level, ...]:
    width, height = slide.dimensions
    return tuple(
        Level(
            number,
            (size[0], size[1]),
            (_downsample(width, size[0]), _downsample(height, size[1])),
            float(slide.level_downsamples[number]),
        )
        for number, size in enumerate(slide.level_dimensions)
    )


def _downsample(full_px: int, level_px: int) -> float:
    whole = round(full_px / level_px)
    return float(whole) if abs(full_px / whole - level_px) < 1 else full_px / level_px


def _stored_pixel_size(properties: Mapping[str, str]) -> PixelSize | None:
    try:
        return PixelSize(
            Mpp(float(properties[openslide.PROPERTY_NAME_MPP_X])),
            Mpp(float(properties[openslide.PROPERTY_NAME_MPP_Y])),
        )
    except (KeyError, ValueError):
        return None
