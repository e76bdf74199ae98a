"""Where there is tissue, one answer per block of the grid.

The rule is fixed, not fitted to the slide: Otsu's threshold and its kin always find two classes,
and so cut a slide that is tissue from edge to edge into tissue and an invented background.

Haematoxylin and eosin both hold back green more than the least held back of red and blue. Glass,
dust, shadows, mounting-medium grey, black borders and black ink hold back all three alike; green
ink holds back green least; blue ink holds back red far more than green. So a block is tissue if,
in optical density, green exceeds the lesser of red and blue clearly. Red and pink ink can't be
told from eosin by their colour.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from hnscc_qp.errors import SlideReadError
from hnscc_qp.geometry import Grid, Mpp
from hnscc_qp.slides.holes import Area, read_around_holes
from hnscc_qp.slides.reader import RGBPixels, Slide

BoolMask = npt.NDArray[np.bool_]

_MIN_TINT = 0.03
"""Optical density by which green must exceed; glass reaches 0.02, the palest stroma has 0.04."""
_MIN_PURITY = 0.12
"""The same as a share of green's density: dark grey and black carry a little colour from JPEG."""
_MIN_GREEN_TO_RED = 0.75
"""Haematoxylin has 1.0 and more, on the bluest scanners 0.85; blue ink about 0.65."""
_STRIP_ROWS = 256
_STRIP_COLUMNS = 4096


def find_tissue(
    slide: Slide, grid: Grid, *, on_unreadable: Callable[[SlideReadError], None] | None = None
) -> BoolMask:
    """Which blocks are tissue: (grid.rows, grid.columns) bool.

    Each block is judged by its mean colour (10 µm on the model's grid). Holes and specks smaller
    than a window are filled and dropped: neither can decide a window. What can't be decoded may be
    tissue, and is taken for it unless `on_unreadable` is given: whoever reads it at full resolution
    finds out.

    The scan is read in strips: memory grows with the grid alone, some ten bytes per block.

    Args:
        slide: to look at.
        grid: over the slide.
        on_unreadable: called for each part that can't be decoded, which then counts as no tissue.
    """
    block_mpp = Mpp(grid.mpp * grid.step_px)
    stained = np.empty((grid.rows, grid.columns), np.bool_)
    for row in range(0, grid.rows, _STRIP_ROWS):
        for column in range(0, grid.columns, _STRIP_COLUMNS):
            area = Area(
                row, column, min(_STRIP_ROWS, grid.rows - row), min(_STRIP_COLUMNS, grid.columns - column)
            )
            read = read_around_holes(slide.as_scanned, area, block_mpp)
            part = np.s_[row : row + area.height, column : column + area.width]
            stained[part] = is_stained(read.pixels)
            if read.holes and on_unreadable is None:
                stained[part] |= read.lost(area)
            elif on_unreadable is not None:
                stained[part] &= ~read.lost(area)
                for _ in read.holes:
                    on_unreadable(SlideReadError(read.reason))
    smallest = grid.window_blocks**2
    return _drop_small(~_drop_small(~stained, smallest), smallest)


def is_stained(pixels: RGBPixels) -> BoolMask:
    """The colour rule: (..., 3) uint8 → (...) bool."""
    density = _DENSITY[pixels]
    red, green, blue = density[..., 0], density[..., 1], density[..., 2]
    tint = green - np.minimum(red, blue)
    stained: BoolMask = (tint > _MIN_TINT) & (tint > _MIN_PURITY * green) & (green > _MIN_GREEN_TO_RED * red)
    return stained


_DENSITY = -np.log10((np.arange(256, dtype=np.float32) + 1) / 256)
"""Optical density of a grey value; 1 is added so that black has one."""


def _drop_small(mask: BoolMask, smallest: int) -> BoolMask:
    """`mask` without its 4-connected pieces of fewer than `smallest` blocks."""
    pieces, _ = ndimage.label(mask)
    large = np.bincount(pieces.ravel()) >= smallest
    large[0] = False
    kept: BoolMask = large[pieces]
    return kept
