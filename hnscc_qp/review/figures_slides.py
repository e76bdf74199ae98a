"""Figures 2 and 5 of the paper: what the primary alone calls, and the outlines of AI and pathologist."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import shapely
import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from numpy.typing import NDArray
from shapely.geometry.base import BaseGeometry

from hnscc_qp.geometry import STEP_PX, WINDOW_MPP, WINDOW_PX, Mpp, PixelSize, Region
from hnscc_qp.models.checkpoint import Classifier
from hnscc_qp.models.dense import DenseClassifier
from hnscc_qp.scoring.score_map import ScoreMap
from hnscc_qp.slides.reader import RGBPixels, Slide
from hnscc_qp.training.figures import INK, new_figure, say

FIELD_UM = 3000.0
"""Side of the field of Figure 2 at most; a larger slide is shown around its largest region or outline."""
PICTURE_PX = 720
_TILE_WINDOWS = 16
_RED = (200, 0, 30)
_AI, _MANUAL = "#B3123A", "#00694D"


@dataclass(frozen=True, slots=True, eq=False)
class PrimaryField:
    """A field of a slide and what the primary calls its non-overlapping windows."""

    title: str
    pixels: RGBPixels
    called: NDArray[np.bool_]
    """(rows, columns), a window each."""
    width_um: float


@dataclass(frozen=True, slots=True, eq=False)
class Delineation:
    """A slide with both outlines."""

    title: str
    pixels: RGBPixels
    size_qupath: tuple[int, int]
    pixel_size: PixelSize
    ai: tuple[BaseGeometry, ...]
    """In QuPath px."""
    manual: tuple[BaseGeometry, ...]


def call_field(
    slide: Slide,
    shown: Slide,
    score_map: ScoreMap,
    primary: Classifier,
    *,
    around: tuple[float, float],
    device: torch.device,
    title: str,
) -> PrimaryField:
    """Call windows side by side, as Figure 2 of the paper shows them: no votes, no secondary.

    Args:
        slide: in the colours that the model is to see.
        shown: the same in its own colours.
        score_map: of the slide; windows that it did not look at are not called.
        primary: the primary, in eval mode, on the device.
        around: QuPath px that the field is laid around, within the slide.
        device: where the network works.
        title: of the field.

    Raises:
        SlideReadError: part of the field can't be decoded.
    """
    scale = slide.pixel_size.qupath_px_per(WINDOW_MPP)
    size_um = slide.size[0] * slide.pixel_size.x, slide.size[1] * slide.pixel_size.y
    columns, rows = (int(min(FIELD_UM, side) // WINDOW_PX) for side in size_um)
    # On the grid of scoring, so that the score map says which windows hold tissue.
    left, top = (
        int(np.clip(place / per_px - cells * WINDOW_PX / 2, 0, side - cells * WINDOW_PX)) // STEP_PX * STEP_PX
        for place, per_px, cells, side in zip(around, scale, (columns, rows), size_um, strict=True)
    )
    called = np.zeros((rows, columns), bool)
    for row in range(0, rows, _TILE_WINDOWS):
        for column in range(0, columns, _TILE_WINDOWS):
            height, width = min(_TILE_WINDOWS, rows - row), min(_TILE_WINDOWS, columns - column)
            corner = left + column * WINDOW_PX, top + row * WINDOW_PX
            found = _call_tile(
                slide, primary, corner=corner, windows=(width, height), scale=scale, device=device
            )
            called[row : row + height, column : column + width] = found
    region = Region(
        left * scale[0], top * scale[1], columns * WINDOW_PX * scale[0], rows * WINDOW_PX * scale[1]
    )
    width_um = float(columns * WINDOW_PX)
    mpp = Mpp(max(columns, rows) * WINDOW_PX / PICTURE_PX)
    return PrimaryField(
        title, shown.read(region, mpp), called & _looked_at(score_map, left, top, rows, columns), width_um
    )


def draw_primary(path: Path, fields: Sequence[PrimaryField], *, study: str) -> None:
    """Figure 2: the slide, the calls in red on white, and both merged; a row for each field."""
    with new_figure(
        path,
        f"Primary alone, non-overlapping windows: {study}",
        width=7.2,
        height=0.7 + _row_height([one.pixels for one in fields], 2.4) * max(1, len(fields)),
    ) as figure:
        axes = figure.subplots(max(1, len(fields)), 3, squeeze=False)
        for row, field in enumerate(fields):
            height, width = field.pixels.shape[:2]
            enlarged = _enlarge(field.called, height, width)
            red = np.where(enlarged[..., None], np.array(_RED, np.uint8), np.uint8(255))
            merged = field.pixels.copy()
            merged[enlarged] = (0.45 * merged[enlarged] + 0.55 * np.array(_RED)).astype(np.uint8)
            for axis, picture, name in zip(
                axes[row], (field.pixels, red, merged), ("slide", "called tumor", "merged"), strict=True
            ):
                axis.imshow(picture, interpolation="nearest")
                _frame(axis)
                if not row:
                    axis.set_title(name, fontsize=9)
            axes[row, 0].set_ylabel(field.title, fontsize=8)
            _scale_bar(axes[row, 0], field.width_um, width, height)
        if not fields:
            for axis in axes[0]:
                _frame(axis)
            say(axes[0, 1], "no slide to show")


def draw_delineations(path: Path, slides: Sequence[Delineation], *, study: str) -> None:
    """Figure 5: regions over the threshold (solid) and the pathologist's outlines (dashed)."""
    columns = min(3, max(1, len(slides)))
    rows = max(1, -(-len(slides) // columns))
    with new_figure(
        path,
        f"AI and manual outlines: {study}",
        width=0.2 + 2.4 * max(2, columns),
        height=0.9 + _row_height([one.pixels for one in slides], 2.4) * rows,
    ) as figure:
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        for axis, slide in zip(axes, slides, strict=False):
            height, width = slide.pixels.shape[:2]
            axis.imshow(slide.pixels)
            scale = (width / slide.size_qupath[0], height / slide.size_qupath[1])
            for shapes, colour, style in ((slide.manual, _MANUAL, (0, (4, 2))), (slide.ai, _AI, "solid")):
                rings = _rings(shapes, scale)
                axis.add_collection(LineCollection(rings, colors="white", linewidths=2.2, alpha=0.8))
                axis.add_collection(LineCollection(rings, colors=colour, linewidths=1.1, linestyles=[style]))
            _frame(axis)
            axis.set_title(slide.title, fontsize=8)
            _scale_bar(axis, slide.size_qupath[0] * slide.pixel_size.x, width, height)
        for axis in axes[len(slides) :]:
            axis.set_visible(bool(not slides))
        if not slides:
            _frame(axes[0])
            say(axes[0], "tumor is outlined on no slide")
            return
        handles = [
            axes[0].plot([], [], color=_AI, linewidth=1.4, label="AI, over the threshold")[0],
            axes[0].plot([], [], color=_MANUAL, linewidth=1.4, linestyle=(0, (4, 2)), label="pathologist")[0],
        ]
        figure.legend(handles=handles, loc="outside lower left", frameon=False, fontsize=8, ncols=2)


def _call_tile(
    slide: Slide,
    primary: Classifier,
    *,
    corner: tuple[int, int],
    windows: tuple[int, int],
    scale: tuple[float, float],
    device: torch.device,
) -> NDArray[np.bool_]:
    """Calls of (rows, columns) windows from a corner in grid px on; windows is (columns, rows)."""
    margin = primary.halo_px if isinstance(primary, DenseClassifier) else 0
    left, top = corner[0] - margin, corner[1] - margin
    width, height = (side * WINDOW_PX + 2 * margin for side in windows)
    region = Region(left * scale[0], top * scale[1], width * scale[0], height * scale[1])
    pixels = torch.from_numpy(slide.read(region, WINDOW_MPP)).to(device).permute(2, 0, 1)
    columns, rows = windows
    with torch.inference_mode():
        if isinstance(primary, DenseClassifier):
            # A window starts on every step; those side by side, within the margin, are wanted.
            logits = primary(pixels.unsqueeze(0))[0]
            first, step = margin // STEP_PX, WINDOW_PX // STEP_PX
            logits = logits[:, first : first + step * rows : step, first : first + step * columns : step]
        else:
            cut = pixels.unfold(1, WINDOW_PX, WINDOW_PX).unfold(2, WINDOW_PX, WINDOW_PX)
            flat = cut.permute(1, 2, 0, 3, 4).reshape(-1, 3, WINDOW_PX, WINDOW_PX)
            logits = primary(flat).T.reshape(2, rows, columns)
        called: NDArray[np.bool_] = (logits[1] > logits[0]).cpu().numpy()
    return called


def _looked_at(score_map: ScoreMap, left: int, top: int, rows: int, columns: int) -> NDArray[np.bool_]:
    """Windows side by side that scoring looked at themselves, (rows, columns).

    Coverage is the sum of the windows over a block, so each of them follows from it: the change from block
    to block is a window that begins less one that ends, along both axes.
    """
    per_window, step = score_map.grid.window_blocks, score_map.grid.step_px
    began = score_map.coverage.astype(np.int64)
    for axis in (0, 1):
        began = np.diff(began, axis=axis, prepend=0)
        for first in range(per_window):
            every = [slice(None), slice(None)]
            every[axis] = slice(first, None, per_window)
            began[tuple(every)] = np.cumsum(began[tuple(every)], axis=axis)
    found = began[top // step :: per_window, left // step :: per_window][:rows, :columns] > 0
    looked = np.zeros((rows, columns), bool)
    looked[: found.shape[0], : found.shape[1]] = found
    return looked


def _enlarge(called: NDArray[np.bool_], height: int, width: int) -> NDArray[np.bool_]:
    rows = np.arange(height) * called.shape[0] // height
    columns = np.arange(width) * called.shape[1] // width
    enlarged: NDArray[np.bool_] = called[rows[:, None], columns]
    return enlarged


def _rings(shapes: Sequence[BaseGeometry], scale: tuple[float, float]) -> list[NDArray[np.float64]]:
    polygons = [part for part in shapely.get_parts(list(shapes)) if part.geom_type == "Polygon"]
    return [
        shapely.get_coordinates(ring) * scale
        for polygon in polygons
        for ring in (polygon.exterior, *polygon.interiors)
    ]


def _row_height(pictures: Sequence[RGBPixels], width: float) -> float:
    """Inches that a row needs for pictures of so many inches across, with a line of text."""
    tallest = max((picture.shape[0] / picture.shape[1] for picture in pictures), default=1.0)
    return width * tallest + 0.25


def _frame(axis: Axes) -> None:
    axis.set_xticks([])
    axis.set_yticks([])
    axis.spines[:].set_visible(True)


def _scale_bar(axis: Axes, width_um: float, width_px: int, height_px: int) -> None:
    power = 10.0 ** np.floor(np.log10(width_um / 4))
    length_um = max(step * power for step in (1, 2, 5) if step * power <= width_um / 4)
    length = length_um / width_um * width_px
    x, y = 0.04 * width_px, 0.95 * height_px
    axis.plot([x, x + length], [y, y], color="white", linewidth=4, solid_capstyle="butt")
    axis.plot([x, x + length], [y, y], color=INK, linewidth=2, solid_capstyle="butt")
    axis.text(
        x + length / 2,
        y - 0.02 * height_px,
        f"{length_um / 1000:g} mm",
        ha="center",
        va="bottom",
        fontsize=7,
        bbox={"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.8},
    )
