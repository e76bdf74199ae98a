"""Tiles through the network: threads read ahead, and every finished tile is kept in the journal."""

from __future__ import annotations

import os
import time
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from hnscc_qp.errors import StepError
from hnscc_qp.geometry import Grid
from hnscc_qp.models.memory import held_memory, is_out_of_memory
from hnscc_qp.progress import SILENT, Progress
from hnscc_qp.scoring.arithmetic import arithmetic
from hnscc_qp.scoring.journal import Journal, TileResult
from hnscc_qp.scoring.tiles import P, Reading, Tile, read_ahead, windows_over
from hnscc_qp.slides.holes import Patchwork, read_around_holes
from hnscc_qp.slides.reader import Slide
from hnscc_qp.study import Scoring

_MOST_READERS = 4


class TileScorer(Protocol[P]):
    """A way to score a tile's windows, from pieces of the slide that tiles may share."""

    stages: int
    tiling: tuple[int, ...]
    """What decides, for a selection, which tiles there are, and how sums round: blocks and cores."""

    def tiles(self, selected: NDArray[np.bool_]) -> Iterator[Tile]:
        """Tiles that hold every selected window once, in an order that is always the same."""

    def plan(self, tiles: Iterable[Tile]) -> Iterator[Reading[P]]:
        """What is read for each of these tiles; `margins` is then asked for them in this order."""

    def margins(
        self, tile: Tile, wanted: NDArray[np.bool_], pixels: Mapping[P, NDArray[np.uint8]]
    ) -> NDArray[np.float32]:
        """Logit of tumor less that of nontumor, by stage: (stages, rows, columns).

        Args:
            tile: the next of those that were planned.
            wanted: (rows, columns) windows, of those that the tile wants.
            pixels: (height, width, 3) uint8 RGB of all that has been read and is not done.

        Returns:
            NaN for windows that a stage was not asked for; above 0 is tumor.
        """


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """What was found of a slide's windows."""

    called: NDArray[np.uint8]
    """(window_rows, window_columns): 1 where both stages say tumor."""
    evaluated: NDArray[np.uint8]
    """The same: 1 where it was looked at."""
    probabilities: NDArray[np.floating] | None
    """(stages, window_rows, window_columns), NaN where a stage was not asked."""
    lost: NDArray[np.uint8]
    """(window_rows, window_columns): 1 where it could not be read."""
    reason: str | None
    """Why."""


def score_tiles(
    slide: Slide,
    grid: Grid,
    selected: NDArray[np.bool_],
    *,
    scorer: TileScorer[P],
    temperatures: tuple[float, ...],
    settings: Scoring,
    device: torch.device,
    journal: Journal | None = None,
    progress: Progress = SILENT,
    as_type: type[np.float16] | type[np.float32] = np.float16,
) -> Scored:
    """Score the selected windows, tile by tile, in an order that is always the same.

    Memory holds a few tiles and what waits for the next row of them, beside a few bytes per window.

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
        as_type: of the probabilities; a journal keeps float16.

    Raises:
        StorageError: the journal can't be written.
        StepError: the device has too little memory.
    """
    called = np.zeros(selected.shape, np.uint8)
    evaluated = np.zeros_like(called)
    stages = scorer.stages if settings.probabilities else None
    probabilities = None if stages is None else np.full((stages, *selected.shape), np.nan, as_type)
    lost, reason = np.zeros_like(called), None

    def keep(tile: Tile, result: TileResult) -> None:
        nonlocal reason
        rows, columns = tile.wanted.shape
        part = np.s_[tile.row : tile.row + rows, tile.column : tile.column + columns]
        called[part] = result.called
        evaluated[part] = result.evaluated
        if probabilities is not None and result.probabilities is not None:
            known = ~np.isnan(result.probabilities)
            probabilities[:, part[0], part[1]][known] = result.probabilities[known]
        lost[part] = tile.wanted & ~result.evaluated
        reason = reason or result.reason

    task = progress.task(slide.name, int(selected.sum()), unit="windows")
    with task, arithmetic(settings, device), held_memory(device):
        waiting: list[tuple[int, Tile]] = []
        for number, tile in enumerate(scorer.tiles(selected)):
            if journal is not None and (kept := journal.get(number)) is not None:
                keep(tile, TileResult.from_bytes(kept, shape=tile.wanted.shape, stages=stages))
                task.advance(int(tile.wanted.sum()))
            else:
                waiting.append((number, tile))
        rate = _Rate()
        with closing(_read_pieces(slide, grid, [tile for _, tile in waiting], scorer)) as read:
            for (number, tile), pieces in zip(waiting, read, strict=True):
                result = _score(
                    tile,
                    grid,
                    scorer,
                    pieces,
                    temperatures=temperatures if stages else None,
                    device=device,
                )
                if journal is not None:
                    journal.append(number, result.to_bytes())
                keep(tile, result)
                rate.count(int(result.evaluated.sum()))
                task.advance(int(tile.wanted.sum()), note=rate.note)
    return Scored(called, evaluated, probabilities, lost, reason)


def _read_pieces(
    slide: Slide, grid: Grid, tiles: Sequence[Tile], scorer: TileScorer[P]
) -> Generator[Mapping[P, Patchwork], None, None]:
    """For each tile what it needs and what waits for others; read ahead by threads, each piece once."""

    def read(what: Reading[P]) -> list[tuple[P, Patchwork]]:
        return [(piece, read_around_holes(slide, area, grid.mpp)) for piece, area in what.new.items()]

    readers = _readers()
    held: dict[P, Patchwork] = {}
    with closing(read_ahead(scorer.plan(tiles), read, threads=readers, ahead=readers)) as ready:
        for reading, future in ready:
            held.update(future.result())
            yield held
            for piece in reading.done:
                del held[piece]


def _readers() -> int:
    return max(1, min(_MOST_READERS, os.cpu_count() or 1))


def _score(
    tile: Tile,
    grid: Grid,
    scorer: TileScorer[P],
    pieces: Mapping[P, Patchwork],
    *,
    temperatures: tuple[float, ...] | None,
    device: torch.device,
) -> TileResult:
    """Score what could be read of a tile.

    In dense mode a window near a hole sees white there, as it does beyond the image's border.

    Args:
        tile: which.
        grid: of the slide.
        scorer: exact or dense.
        pieces: what was read for it, and for others.
        temperatures: of the stages, if probabilities are wanted.
        device: to name where memory ends.
    """
    lost = np.zeros(tile.wanted.shape, bool)
    reasons = []
    for got in pieces.values():
        if got.holes and (met := tile.wanted & windows_over(got.holes, tile, grid)).any():
            lost |= met
            reasons.append(got.reason)
    wanted = tile.wanted & ~lost
    try:
        margins = scorer.margins(tile, wanted, {piece: got.pixels for piece, got in pieces.items()})
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        remedy = "close other programs" if device.type == "cpu" else 'set device = "cpu" in the study'
        raise StepError(
            f"{device} has too little memory to score with; lower scoring.batch_size (window models), or "
            f"{remedy}"
        ) from error
    # NaN, where a stage was not asked because the one before it said no, is above nothing.
    called = np.all(margins > 0, axis=0)
    probabilities = None if temperatures is None else _probabilities(margins, temperatures)
    return TileResult(wanted, called, probabilities, min(filter(None, reasons), default=None))


def _probabilities(margins: NDArray[np.float32], temperatures: tuple[float, ...]) -> NDArray[np.float32]:
    """P(tumor) of margins between logits, (stages, rows, columns)."""
    scaled = margins / np.array(temperatures, np.float32)[:, None, None]
    likely: NDArray[np.float32] = torch.from_numpy(scaled).sigmoid().numpy()
    return likely


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
