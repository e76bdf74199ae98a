"""The pixels of chosen windows, read from the slide in large blocks, never one read per window."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from hnscc_qp.errors import SlideReadError
from hnscc_qp.geometry import Grid, Region
from hnscc_qp.slides.reader import Slide

Pixels = npt.NDArray[np.uint8]
"""(windows, side, side, 3) uint8."""
_Indices = npt.NDArray[np.intp]

_BLOCK_PX = 250
"""Side of a block in grid px, about that of a scanner's tile: bounds the memory of a read. Larger ones
decode tiles without tissue, smaller ones lay the same tile out again and again."""
_SMALLEST_BLOCK_PX = 125
_SPARSE = 0.1
"""A block whose windows cover less of it than this is read in quarters."""


def cut_windows(
    slide: Slide,
    grid: Grid,
    x_px: npt.ArrayLike,
    y_px: npt.ArrayLike,
    *,
    out: Pixels | None = None,
    unreadable: list[tuple[int, SlideReadError]] | None = None,
    threads: int = 1,
) -> Pixels:
    """Read the windows whose top left corners lie at (x_px, y_px) grid px.

    Neighbouring windows are read together, in blocks of a quarter of a millimetre.

    Args:
        slide: to cut from.
        grid: over the slide.
        x_px: (windows,) left edges.
        y_px: (windows,) top edges.
        out: where the pixels go, a mapped file, say; then memory is bounded by a block.
        unreadable: takes the number of each window that can't be decoded, in rising order, with the
            error, and its pixels stay as they are in `out`; without it the error is raised.
        threads: blocks read at once; they change no result.

    Returns:
        (windows, grid.window_px, grid.window_px, 3) uint8, in the order asked for: `out`, if given.

    Raises:
        SlideReadError: part of the slide can't be decoded.
    """
    x, y = np.asarray(x_px, np.int64), np.asarray(y_px, np.int64)
    side = grid.window_px
    pixels = np.zeros((len(x), side, side, 3), np.uint8) if out is None else out
    corners = np.stack([x, y])

    def read(members: _Indices) -> list[tuple[int, SlideReadError]]:
        forgive = unreadable is not None
        return _read_block_or_less(slide, grid, corners, members, out=pixels, forgive=forgive)

    blocks = _blocks(np.arange(len(x)), x, y, side, _BLOCK_PX)
    if threads == 1:
        lost = [one for members in blocks for one in read(members)]
    else:
        with ThreadPoolExecutor(threads, thread_name_prefix="block") as pool:
            lost = [one for some in pool.map(read, blocks) for one in some]
    if unreadable is not None:
        unreadable += sorted(lost, key=lambda one: one[0])
    return pixels


def _read_block_or_less(
    slide: Slide,
    grid: Grid,
    corners: npt.NDArray[np.int64],
    members: _Indices,
    *,
    out: Pixels,
    forgive: bool,
) -> list[tuple[int, SlideReadError]]:
    """Read the members of the windows at (2, n) corners; where a tile is damaged, those beside it alone.

    Returns:
        Members that can't be decoded, each with its error.
    """
    lost: list[tuple[int, SlideReadError]] = []
    waiting = [members]
    while waiting:
        some = waiting.pop()
        try:
            _read_block(slide, grid, corners[:, some], out=out, numbers=some)
        except SlideReadError as error:
            if not forgive:
                raise
            if len(some) == 1:
                lost.append((int(some[0]), error))
            else:
                waiting += [some[: len(some) // 2], some[len(some) // 2 :]]
    return lost


def _read_block(
    slide: Slide, grid: Grid, corners: npt.NDArray[np.int64], *, out: Pixels, numbers: _Indices
) -> None:
    """Read what holds the windows at (2, n) corners in one go, and cut them out to their numbers."""
    side = grid.window_px
    scale_x, scale_y = grid.pixel_size.qupath_px_per(grid.mpp)
    left, top = corners.min(axis=1).tolist()
    width, height = (np.ptp(corners, axis=1) + side).tolist()
    area = Region(left * scale_x, top * scale_y, width * scale_x, height * scale_y)
    block = slide.read(area, grid.mpp)
    for number, column, row in zip(numbers.tolist(), *(corners - [[left], [top]]).tolist(), strict=True):
        out[number] = block[row : row + side, column : column + side]


def _blocks(
    windows: _Indices, x: npt.NDArray[np.int64], y: npt.NDArray[np.int64], side: int, block_px: int
) -> Iterator[_Indices]:
    """Windows that are read together, each in the order of rows."""
    if not len(windows):
        return
    keys = np.stack([y[windows] // block_px, x[windows] // block_px], axis=1)
    _, group = np.unique(keys, axis=0, return_inverse=True)
    order = np.argsort(group.ravel(), kind="stable")
    for members in np.split(order, np.flatnonzero(np.diff(group.ravel()[order])) + 1):
        some = windows[members]
        some = some[np.lexsort((x[some], y[some]))]
        area = (np.ptp(x[some]) + side) * (np.ptp(y[some]) + side)
        if len(some) > 1 and block_px > _SMALLEST_BLOCK_PX and len(some) * side**2 < _SPARSE * area:
            yield from _blocks(some, x, y, side, block_px // 2)
        else:
            yield some
