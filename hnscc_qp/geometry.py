"""Units and frames.

Three frames occur, and a name says which one a value is in:

- *level 0*: OpenSlide's pixels, counted from the corner of the whole scan;
- *QuPath px*: the pixels of the image that QuPath shows, level 0 cropped to the slide's bounds, and
  where the project says so cropped further and turned. Every annotation, detection and
  `Region` is in this frame;
- *grid px*: pixels of the model's resolution (1.0 µm/px), counted from QuPath's origin.

Level 0 is met in `hnscc_qp.slides` only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NewType

Mpp = NewType("Mpp", float)
"""Micrometres per pixel."""

WINDOW_PX = 40
STEP_PX = 10
WINDOW_MPP = Mpp(1.0)
"""The method's windows: 40 × 40 px at 1.0 µm/px, one every 10 px (Tang et al. 2022, §2.2 and 2.5)."""


@dataclass(frozen=True, slots=True)
class PixelSize:
    """Size of one QuPath pixel in µm; scanners with unequal sides exist."""

    x: Mpp
    y: Mpp

    def __post_init__(self) -> None:
        for value in (self.x, self.y):
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"a pixel size must be a positive number of µm, not {value}")

    def qupath_px_per(self, mpp: Mpp) -> tuple[float, float]:
        """Width and height, in QuPath px, of one pixel of `mpp` µm."""
        return mpp / self.x, mpp / self.y

    def area_um2(self, area_px: float) -> float:
        """Convert an area in QuPath px² to µm²."""
        return area_px * self.x * self.y


@dataclass(frozen=True, slots=True)
class Region:
    """A rectangle in QuPath px; it may be fractional and may reach beyond the image."""

    x: float
    y: float
    width: float
    height: float

    def __post_init__(self) -> None:
        if not (self.width > 0 and self.height > 0):
            raise ValueError(f"a region needs a positive size, not {self.width} × {self.height}")


@dataclass(frozen=True, slots=True)
class Turn:
    """The image turned clockwise by quarters."""

    quarters: int

    def __post_init__(self) -> None:
        if self.quarters not in (1, 2, 3):
            raise ValueError(f"an image is turned by 1, 2 or 3 quarters, not {self.quarters}")


@dataclass(frozen=True, slots=True)
class Crop:
    """A part of the image, in the px of what it is cut from."""

    x: int
    y: int
    width: int
    height: int

    def __post_init__(self) -> None:
        if self.x < 0 or self.y < 0 or self.width <= 0 or self.height <= 0:
            raise ValueError(f"{self} is no part of an image")


View = tuple[Turn | Crop, ...]
"""What QuPath does to a file's image before it shows it, the first step first; mostly nothing."""


@dataclass(frozen=True, slots=True)
class Grid:
    """The blocks of `step_px` grid px that cover an image, and the windows that start on them.

    Block (row, column) covers grid px [column·step, (column+1)·step) × [row·step, (row+1)·step).
    A window covers `window_blocks` × `window_blocks` blocks, so a block away from the border lies in
    `window_blocks`² windows: 16 for 40 px windows every 10 px (Tang et al. 2022, §2.5). The last
    row and column may reach up to one step beyond the image, so that every pixel lies in a block.
    """

    rows: int
    columns: int
    step_px: int
    window_px: int
    mpp: Mpp
    pixel_size: PixelSize

    def __post_init__(self) -> None:
        if self.window_px % self.step_px:
            raise ValueError(f"a window of {self.window_px} px can't be walked in steps of {self.step_px} px")

    @classmethod
    def over(
        cls, size: tuple[int, int], pixel_size: PixelSize, *, mpp: Mpp, step_px: int, window_px: int
    ) -> Grid:
        """Cover an image of `size` (width, height) in QuPath px."""
        scale_x, scale_y = pixel_size.qupath_px_per(mpp)
        # A hair of slack: 0.1 + 0.2 must not add a column.
        columns = math.ceil(size[0] / (scale_x * step_px) - 1e-9)
        rows = math.ceil(size[1] / (scale_y * step_px) - 1e-9)
        return cls(rows, columns, step_px, window_px, mpp, pixel_size)

    @classmethod
    def of_method(cls, size: tuple[int, int], pixel_size: PixelSize, *, step_px: int = STEP_PX) -> Grid:
        """The method's grid over an image of `size` (width, height) in QuPath px."""
        return cls.over(size, pixel_size, mpp=WINDOW_MPP, step_px=step_px, window_px=WINDOW_PX)

    @property
    def window_blocks(self) -> int:
        """Blocks along one side of a window."""
        return self.window_px // self.step_px

    @property
    def window_rows(self) -> int:
        """Rows of windows; 0 if the image is smaller than a window."""
        return max(0, self.rows - self.window_blocks + 1)

    @property
    def window_columns(self) -> int:
        """Columns of windows; 0 if the image is smaller than a window."""
        return max(0, self.columns - self.window_blocks + 1)

    @property
    def block_qupath(self) -> tuple[float, float]:
        """Width and height of a block in QuPath px."""
        scale_x, scale_y = self.pixel_size.qupath_px_per(self.mpp)
        return scale_x * self.step_px, scale_y * self.step_px

    def region(self, row: int, column: int, *, rows: int, columns: int) -> Region:
        """The QuPath px that `rows` × `columns` blocks from (row, column) on cover."""
        width, height = self.block_qupath
        return Region(column * width, row * height, columns * width, rows * height)

    def window(self, row: int, column: int) -> Region:
        """The QuPath px that the window starting on block (row, column) covers."""
        return self.region(row, column, rows=self.window_blocks, columns=self.window_blocks)
