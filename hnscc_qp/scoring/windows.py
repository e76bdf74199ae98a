"""Windows of 40 × 40 px as batches of pixels, for whoever keeps them; scoring cuts its own on the device."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from hnscc_qp.errors import SlideReadError
from hnscc_qp.geometry import Grid
from hnscc_qp.scoring.tiles import Tile, plan_tiles, read_ahead, select_windows, tile_area, windows_over
from hnscc_qp.slides.holes import Patchwork, read_around_holes
from hnscc_qp.slides.reader import Slide

_TILE_BLOCKS = 64


@dataclass(frozen=True, slots=True)
class WindowBatch:
    """Windows named by the grid block they start on."""

    rows: NDArray[np.intp]
    """(n,)"""
    columns: NDArray[np.intp]
    """(n,)"""
    pixels: NDArray[np.uint8]
    """(n, 3, window_px, window_px), RGB."""

    def __len__(self) -> int:
        return len(self.rows)


def iter_windows(
    slide: Slide,
    grid: Grid,
    *,
    tissue: NDArray[np.bool_],
    min_tissue: float,
    batch_size: int,
    on_unreadable: Callable[[int, SlideReadError], None],
    stride_blocks: int = 1,
    tile_blocks: int = _TILE_BLOCKS,
) -> Generator[WindowBatch, None, None]:
    """Cut the windows that `select_windows` marks, tile by tile, in an order that is always the same.

    Windows of the last row and column may reach up to one step beyond the image, where the reader
    gives white. Close the iterator (`contextlib.closing`) if it is left early: its thread ends then.

    Args:
        slide: to cut from.
        grid: over the slide.
        tissue: (rows, columns), by block.
        min_tissue: see `select_windows`.
        batch_size: of every batch but the last, which may be shorter.
        on_unreadable: called for a tile of which a part can't be decoded, with the number of windows that
            meet that part (they are left out) and the error.
        stride_blocks: see `select_windows`.
        tile_blocks: window starts along one side of a tile; it bears on speed and memory only.
    """
    selected = select_windows(grid, tissue, min_tissue=min_tissue, stride_blocks=stride_blocks)

    def read(tile: Tile) -> Patchwork:
        return read_around_holes(slide, tile_area(tile, grid, side=tile_blocks), grid.mpp)

    held: list[WindowBatch] = []
    with closing(read_ahead(plan_tiles(selected, tile_blocks), read)) as tiles:
        for tile, future in tiles:
            got = future.result()
            lost = windows_over(got.holes, tile, grid) & tile.wanted
            if lost.any():
                on_unreadable(int(lost.sum()), SlideReadError(got.reason))
            views = sliding_window_view(got.pixels, (grid.window_px, grid.window_px), axis=(0, 1))
            rows, columns = np.nonzero(tile.wanted & ~lost)
            start = 0
            while start < len(rows):
                stop = start + batch_size - sum(map(len, held))
                some_rows, some_columns = rows[start:stop], columns[start:stop]
                cut = views[some_rows * grid.step_px, some_columns * grid.step_px]  # copies
                held.append(WindowBatch(some_rows + tile.row, some_columns + tile.column, cut))
                start = stop
                if sum(map(len, held)) == batch_size:
                    yield _join(held)
                    held = []
    if held:
        yield _join(held)


def _join(parts: list[WindowBatch]) -> WindowBatch:
    pixels = np.concatenate([part.pixels for part in parts])
    return WindowBatch(
        np.concatenate([part.rows for part in parts]),
        np.concatenate([part.columns for part in parts]),
        pixels,
    )
