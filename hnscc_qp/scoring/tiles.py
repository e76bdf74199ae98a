"""A slide's windows by tiles: which there are, reading them ahead, and adding up the votes.

A tile is a square of window starts. What is computed for it is of one size, also where it reaches beyond the
image or the panel: a network rounds by the shape of what it gets.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from hnscc_qp.geometry import Grid
from hnscc_qp.slides.holes import Area

T = TypeVar("T")
R = TypeVar("R")
P = TypeVar("P", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Tile:
    """A square of window starts, and which of them are wanted."""

    row: int
    """Of blocks."""
    column: int
    wanted: NDArray[np.bool_]
    """(rows, columns); fewer at the far edges of the grid and of panels than in other tiles."""


@dataclass(frozen=True, slots=True)
class Reading(Generic[P]):
    """What of the slide is read for a tile, by names that tiles share."""

    new: dict[P, Area]
    """That no tile before it needed, in grid px."""
    done: list[P]
    """Of this and earlier tiles: what no tile to come needs."""


def select_windows(
    grid: Grid, tissue: NDArray[np.bool_], *, min_tissue: float, stride_blocks: int = 1
) -> NDArray[np.bool_]:
    """Mark the windows of which at least the share `min_tissue` is tissue.

    With one block of the window's sixteen (0.0625) every tissue block away from the border is
    covered by all of its windows.

    Args:
        grid: of the slide.
        tissue: (rows, columns), by block.
        min_tissue: 0..1; 0 marks all windows.
        stride_blocks: only windows on every so many rows and columns of blocks.

    Returns:
        (window_rows, window_columns)
    """
    if tissue.shape != (grid.rows, grid.columns):
        raise ValueError(f"tissue is {tissue.shape} on a grid of {(grid.rows, grid.columns)} blocks")
    selected = np.zeros((grid.window_rows, grid.window_columns), bool)
    if selected.size:
        side = grid.window_blocks
        blocks = _box_sums(tissue.view(np.uint8), side)[::stride_blocks, ::stride_blocks]
        selected[::stride_blocks, ::stride_blocks] = blocks >= min_tissue * side**2
    return selected


def spread(windows: NDArray[np.uint8], grid: Grid) -> NDArray[np.uint8]:
    """Add each window's value to all of its blocks: (window_rows, window_columns) → (rows, columns)."""
    if not windows.size:
        return np.zeros((grid.rows, grid.columns), np.uint8)
    side = grid.window_blocks
    return _box_sums(np.pad(windows, side - 1), side)


def plan_tiles(selected: NDArray[np.bool_], side: int, *, panel: int | None = None) -> Iterator[Tile]:
    """The tiles with wanted windows, row by row.

    With `panel`, rows go over so many columns only, and the next columns follow when these are done:
    neighbours come soon after each other on the largest slides, too. Tiles end where the panel ends.
    """
    panel = panel or max(side, selected.shape[1])
    for left in range(0, selected.shape[1], panel):
        for row in range(0, selected.shape[0], side):
            for column in range(left, min(left + panel, selected.shape[1]), side):
                wanted = selected[row : row + side, column : min(column + side, left + panel)]
                if wanted.any():
                    yield Tile(row, column, wanted)


def tile_area(tile: Tile, grid: Grid, *, side: int) -> Area:
    """What a full tile's windows cover, in grid px."""
    extent = (side - 1) * grid.step_px + grid.window_px
    return Area(tile.row * grid.step_px, tile.column * grid.step_px, extent, extent)


def windows_over(holes: Iterable[Area], tile: Tile, grid: Grid) -> NDArray[np.bool_]:
    """Which of a tile's windows meet what can't be read: the shape of `tile.wanted`."""
    met = np.zeros(tile.wanted.shape, bool)
    step, window = grid.step_px, grid.window_px
    for hole in holes:
        # The first window that ends beyond the hole's start, and the first that starts at its end or beyond.
        top, left = ((start - window) // step + 1 for start in (hole.top, hole.left))
        bottom, right = (-(-end // step) for end in (hole.top + hole.height, hole.left + hole.width))
        met[
            max(top - tile.row, 0) : max(bottom - tile.row, 0),
            max(left - tile.column, 0) : max(right - tile.column, 0),
        ] = True
    return met


def read_ahead(
    items: Iterable[T], read: Callable[[T], R], *, threads: int = 1, ahead: int = 2
) -> Generator[tuple[T, Future[R]], None, None]:
    """Read in threads, `ahead` items at most before they are asked for, and give them in their order.

    Close it (`contextlib.closing`) if it is left early: its threads end then.
    """
    waiting: deque[tuple[T, Future[R]]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="read-ahead") as pool:
        try:
            for item in items:
                waiting.append((item, pool.submit(read, item)))
                if len(waiting) > ahead:
                    yield waiting.popleft()
            while waiting:
                yield waiting.popleft()
        finally:
            # Also where the consumer stops early or fails: nothing is read that nobody wants.
            for _, future in waiting:
                future.cancel()


def _box_sums(values: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Sums of all `side` × `side` squares: (rows, columns) → (rows - side + 1, columns - side + 1).

    One axis after the other, in bytes: a large slide has a hundred million blocks.
    """
    rows, columns = (length - side + 1 for length in values.shape)
    down = values[:rows].copy()
    for shift in range(1, side):
        down += values[shift : shift + rows]
    sums = down[:, :columns].copy()
    for shift in range(1, side):
        sums += down[:, shift : shift + columns]
    return sums
