"""Exact scoring: every 40 × 40 px window that holds tissue is seen by the network on its own.

The scan is read in large tiles, each pixel once but for a halo of one window; the windows are
views into a tile. One thread reads ahead while the network works (OpenSlide lets go of the GIL).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from hnscc_qp.errors import SlideReadError
from hnscc_qp.geometry import Grid
from hnscc_qp.models.cascade import Cascade
from hnscc_qp.progress import SILENT, Progress
from hnscc_qp.scoring.score_map import ScoreMap
from hnscc_qp.slides.reader import Slide
from hnscc_qp.study import Scoring

_TILE_BLOCKS = 64
_TILES_AHEAD = 2


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


@dataclass(frozen=True, slots=True)
class _Tile:
    """A rectangle of window starts, and which of them are wanted."""

    row: int
    column: int
    wanted: NDArray[np.bool_]


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
        blocks = sliding_window_view(tissue, (side, side))[::stride_blocks, ::stride_blocks]
        selected[::stride_blocks, ::stride_blocks] = blocks.sum(axis=(2, 3)) >= min_tissue * side**2
    return selected


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
        on_unreadable: called for a tile that can't be decoded, with the number of its windows (which
            are left out) and the error.
        stride_blocks: see `select_windows`.
        tile_blocks: window starts along one side of a tile; it bears on speed and memory only.
    """
    selected = select_windows(grid, tissue, min_tissue=min_tissue, stride_blocks=stride_blocks)

    def read(tile: _Tile) -> NDArray[np.uint8]:
        halo = grid.window_blocks - 1
        rows, columns = tile.wanted.shape
        region = grid.region(tile.row, tile.column, rows=rows + halo, columns=columns + halo)
        return slide.read(region, grid.mpp)

    held: list[WindowBatch] = []
    with closing(_read_ahead(_tiles(selected, tile_blocks), read)) as tiles:
        for tile, future in tiles:
            try:
                pixels = future.result()
            except SlideReadError as error:
                on_unreadable(int(tile.wanted.sum()), error)
                continue
            views = sliding_window_view(pixels, (grid.window_px, grid.window_px), axis=(0, 1))
            rows, columns = np.nonzero(tile.wanted)
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


def vote(
    slide: Slide,
    grid: Grid,
    *,
    tissue: NDArray[np.bool_],
    cascade: Cascade,
    device: torch.device,
    settings: Scoring,
    progress: Progress = SILENT,
) -> ScoreMap:
    """Let every window that holds tissue vote on its blocks (Tang et al. 2022, §2.5).

    A window that the cascade calls tumor adds one vote to each of its sixteen blocks. Windows that
    can't be decoded don't vote and don't count as coverage; a warning says how many there are.

    Raises:
        SlideReadError: not one window could be decoded.
    """
    called = np.zeros((grid.window_rows, grid.window_columns), np.uint8)
    evaluated = np.zeros_like(called)
    wanted = int(select_windows(grid, tissue, min_tissue=settings.min_tissue).sum())
    unreadable: list[tuple[int, SlideReadError]] = []
    cascade.to(device).eval()
    batches = iter_windows(
        slide,
        grid,
        tissue=tissue,
        min_tissue=settings.min_tissue,
        batch_size=settings.batch_size,
        on_unreadable=lambda count, error: unreadable.append((count, error)),
    )
    task = progress.task(slide.name, wanted, unit="windows")
    with closing(batches), task, torch.inference_mode():
        for batch in batches:
            # One shape for all batches: the network's kernels are chosen, and round, but once.
            pixels = np.zeros((settings.batch_size, *batch.pixels.shape[1:]), np.uint8)
            pixels[: len(batch)] = batch.pixels
            tumor = cascade.call_tumor(torch.from_numpy(pixels).to(device)).cpu().numpy()
            called[batch.rows, batch.columns] = tumor[: len(batch)]
            evaluated[batch.rows, batch.columns] = 1
            task.advance(len(batch))
    lost = sum(count for count, _ in unreadable)
    if lost:
        reason = unreadable[0][1]
        if lost == wanted:
            raise SlideReadError(f"{slide.name}: none of its {wanted} windows can be decoded: {reason}")
        progress.warn(
            f"{slide.name}: {lost} of {wanted} windows can't be decoded and are not scored ({reason}); "
            "review that part by eye or scan the slide again"
        )
    return ScoreMap(
        votes=_spread(called, grid),
        coverage=_spread(evaluated, grid),
        grid=grid,
        image_size_px=slide.size,
        windows=int(evaluated.sum()),
        unreadable=lost,
        provenance={"slide": slide.name},
    )


def _tiles(selected: NDArray[np.bool_], side: int) -> Iterator[_Tile]:
    for row in range(0, selected.shape[0], side):
        for column in range(0, selected.shape[1], side):
            wanted = selected[row : row + side, column : column + side]
            if wanted.any():
                yield _Tile(row, column, wanted)


def _read_ahead(
    tiles: Iterator[_Tile], read: Callable[[_Tile], NDArray[np.uint8]]
) -> Generator[tuple[_Tile, Future[NDArray[np.uint8]]], None, None]:
    """Read in one thread, a bounded number of tiles before they are asked for."""
    waiting: deque[tuple[_Tile, Future[NDArray[np.uint8]]]] = deque()
    with ThreadPoolExecutor(1, thread_name_prefix="read-ahead") as thread:
        try:
            for tile in tiles:
                waiting.append((tile, thread.submit(read, tile)))
                if len(waiting) > _TILES_AHEAD:
                    yield waiting.popleft()
            while waiting:
                yield waiting.popleft()
        finally:
            # Also where the consumer stops early or fails: no tile is read that nobody wants.
            for _, future in waiting:
                future.cancel()


def _join(parts: list[WindowBatch]) -> WindowBatch:
    pixels = np.concatenate([part.pixels for part in parts])
    return WindowBatch(
        np.concatenate([part.rows for part in parts]),
        np.concatenate([part.columns for part in parts]),
        pixels,
    )


def _spread(windows: NDArray[np.uint8], grid: Grid) -> NDArray[np.uint8]:
    """Add each window's value to all of its blocks: (window_rows, window_columns) → (rows, columns)."""
    if not windows.size:
        return np.zeros((grid.rows, grid.columns), np.uint8)
    side = grid.window_blocks
    around = sliding_window_view(np.pad(windows, side - 1), (side, side))
    blocks: NDArray[np.uint8] = around.sum(axis=(2, 3), dtype=np.uint8)
    return blocks
