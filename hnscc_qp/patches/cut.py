"""The pixels of chosen windows, read from the slide in large blocks."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from hnscc_qp.geometry import Grid, Region
from hnscc_qp.slides.reader import Slide

_BLOCK_PX = 1000


def cut_windows(slide: Slide, grid: Grid, x_px: npt.ArrayLike, y_px: npt.ArrayLike) -> npt.NDArray[np.uint8]:
    """Read the windows whose top left corners lie at (x_px, y_px) grid px.

    Neighbouring windows are read together, in blocks of about 1 mm.

    Returns:
        (windows, grid.window_px, grid.window_px, 3) uint8, in the order asked for.
    """
    x, y = np.asarray(x_px, np.int64), np.asarray(y_px, np.int64)
    side = grid.window_px
    scale_x, scale_y = grid.pixel_size.qupath_px_per(grid.mpp)
    pixels = np.empty((len(x), side, side, 3), np.uint8)
    blocks = np.stack([y // _BLOCK_PX, x // _BLOCK_PX], axis=1).reshape(-1, 2)
    _, group = np.unique(blocks, axis=0, return_inverse=True)
    order = np.argsort(group.ravel(), kind="stable")
    for members in np.split(order, np.flatnonzero(np.diff(group.ravel()[order])) + 1):
        if not len(members):
            continue
        left, top = int(x[members].min()), int(y[members].min())
        width, height = int(x[members].max()) + side - left, int(y[members].max()) + side - top
        area = Region(left * scale_x, top * scale_y, width * scale_x, height * scale_y)
        block = slide.read(area, grid.mpp)
        for member in members:
            row, column = y[member] - top, x[member] - left
            pixels[member] = block[row : row + side, column : column + side]
    return pixels
