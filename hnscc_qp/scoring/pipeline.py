"""Tiles through the network: threads read ahead, and every finished tile is kept in the journal."""

from __future__ import annotations

import os
import time
from contextlib import closing
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from hnscc_qp.errors import StepError
from hnscc_qp.geometry import Grid
from hnscc_qp.progress import SILENT, Progress
from hnscc_qp.scoring.arithmetic import arithmetic
from hnscc_qp.scoring.journal import Journal, TileResult
from hnscc_qp.scoring.tiles import Tile, plan_tiles, read_ahead, tile_area, windows_over
from hnscc_qp.slides.holes import Patchwork, read_around_holes
from hnscc_qp.slides.reader import Slide
from hnscc_qp.study import Scoring

_MOST_READERS = 4


class TileScorer(Protocol):
    """A way to score a tile's windows."""

    stages: int
    tile_blocks: int
    """Window starts along one side of a tile."""
    halo_px: int
    """Context it needs around the windows, on each side."""

    def margins(self, pixels: torch.Tensor, wanted: NDArray[np.bool_]) -> NDArray[np.float32]:
        """See `ExactScorer.margins`."""


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """What was found of a slide's windows."""

    called: NDArray[np.uint8]
    """(window_rows, window_columns): 1 where both stages say tumor."""
    evaluated: NDArray[np.uint8]
    """The same: 1 where it was looked at."""
    probabilities: NDArray[np.float16] | None
    """(stages, window_rows, window_columns), NaN where a stage was not asked."""
    lost: int
    """Windows that could not be read."""
    reason: str | None
    """Why."""


def score_tiles(
    slide: Slide,
    grid: Grid,
    selected: NDArray[np.bool_],
    *,
    scorer: TileScorer,
    temperatures: tuple[float, ...],
    settings: Scoring,
    device: torch.device,
    journal: Journal | None = None,
    progress: Progress = SILENT,
) -> Scored:
    """Score the selected windows, tile by tile, in an order that is always the same.

    Memory holds a few tiles beside a few bytes per window of the slide.

    Args:
        slide: to read.
        grid: over it.
        selected: (window_rows, window_columns), of `select_windows`.
        scorer: exact or dense.
        temperatures: of the stages, for probabilities.
        settings: of the study.
        device: where the scorer works.
        journal: what is done already, and where to keep the rest.
        progress: told of every tile.

    Raises:
        StorageError: the journal can't be written.
        StepError: the device has too little memory.
    """
    called = np.zeros(selected.shape, np.uint8)
    evaluated = np.zeros_like(called)
    stages = scorer.stages if settings.probabilities else None
    probabilities = None if stages is None else np.full((stages, *selected.shape), np.nan, np.float16)
    lost, reason = 0, None
    readers = max(1, min(_MOST_READERS, os.cpu_count() or 1))

    def read(item: tuple[int, Tile]) -> TileResult | tuple[Patchwork, torch.Tensor]:
        number, tile = item
        if journal is not None and (kept := journal.get(number)) is not None:
            return TileResult.from_bytes(kept, shape=tile.wanted.shape, stages=stages)
        area = tile_area(tile, grid, side=scorer.tile_blocks, halo_px=scorer.halo_px)
        got = read_around_holes(slide, area, grid.mpp)
        pixels = torch.from_numpy(got.pixels.transpose(2, 0, 1).copy())
        return got, pixels.pin_memory() if device.type == "cuda" else pixels

    def score(tile: Tile, got: Patchwork, pixels: torch.Tensor) -> TileResult:
        """Score what could be read of a tile.

        In dense mode a window near a hole sees white there, as it does beyond the image's border.
        """
        wanted = tile.wanted & ~windows_over(got.holes, tile, grid)
        margins = np.full((scorer.stages, *wanted.shape), np.nan, np.float32)
        if wanted.any():
            try:
                margins = scorer.margins(pixels.to(device, non_blocking=True), wanted)
            except torch.OutOfMemoryError as error:
                raise StepError(
                    f"{device} has too little memory to score with; lower scoring.batch_size, or set device "
                    '= "cpu" in the study'
                ) from error
        # NaN, where a stage was not asked because the one before it said no, is above nothing.
        called = np.all(margins > 0, axis=0)
        return TileResult(
            wanted, called, None if stages is None else _probabilities(margins, temperatures), got.reason
        )

    tiles = enumerate(plan_tiles(selected, scorer.tile_blocks))
    task = progress.task(slide.name, int(selected.sum()), unit="windows")
    with closing(read_ahead(tiles, read, threads=readers, ahead=readers + 1)) as ready, task:
        rate = _Rate()
        with arithmetic(settings, device):
            for (number, tile), future in ready:
                got = future.result()
                if isinstance(got, TileResult):
                    result = got
                else:
                    result = score(tile, *got)
                    if journal is not None:
                        journal.append(number, result.to_bytes())
                    rate.count(int(result.evaluated.sum()))
                rows, columns = tile.wanted.shape
                part = np.s_[tile.row : tile.row + rows, tile.column : tile.column + columns]
                called[part], evaluated[part] = result.called, result.evaluated
                if probabilities is not None and result.probabilities is not None:
                    probabilities[:, part[0], part[1]] = result.probabilities
                lost += int((tile.wanted & ~result.evaluated).sum())
                reason = reason or result.reason
                task.advance(int(tile.wanted.sum()), note=rate.note)
    return Scored(called, evaluated, probabilities, lost, reason)


def _probabilities(margins: NDArray[np.float32], temperatures: tuple[float, ...]) -> NDArray[np.float16]:
    """P(tumor) of margins between logits, (stages, rows, columns)."""
    scaled = margins / np.array(temperatures, np.float32)[:, None, None]
    return torch.from_numpy(scaled).sigmoid().numpy().astype(np.float16)


class _Rate:
    """Windows per second since the first tile was asked for."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._windows = 0

    def count(self, windows: int) -> None:
        self._windows += windows

    @property
    def note(self) -> str:
        seconds = time.monotonic() - self._started
        return f"{self._windows / seconds:,.0f} windows/s" if self._windows and seconds else ""
