"""Dense scoring: all windows of a tile in one fully convolutional pass, for models that were trained so.

The network works in parts on pieces of the slide (`models.parts`), which lie on multiples of their side. A
piece is computed with all around it that its cells depend on, so a window's votes are the same however the
slide is cut; and it is computed once, and kept while tiles to come need it. The network gives a window every
10 px: for wider strides every so many are kept, for narrower ones the slide is passed over again, shifted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from hnscc_qp.geometry import STEP_PX, Grid
from hnscc_qp.models.parts import WINDOW_CELLS, Runtime, gather
from hnscc_qp.scoring.tiles import Tile, plan_tiles
from hnscc_qp.slides.holes import Area

_TILE_PIECES = 2
"""Pieces along one side of a tile."""
_MOST_WAITING_BYTES = 512 << 20
"""Of pixels and features that wait for tiles to come; it bounds the length of a row of tiles."""
_WAITING_ROWS = 3
_WHITE = 255


class Shift(NamedTuple):
    """Of a pass over the slide, in px less than 10: a narrow stride takes several."""

    down: int
    right: int


class Piece(NamedTuple):
    """A square of cells: row and column of pieces."""

    panel: int
    """A row of tiles goes over one; nothing is kept for the next, which would be long."""
    shift: Shift
    row: int
    column: int


class Cells(NamedTuple):
    """A rectangle of the slide's cells: of a piece, what windows depend on."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.bottom - self.top, self.right - self.left


@dataclass(frozen=True, slots=True, eq=False)
class _Wanted:
    """Which windows of a pass are wanted, as the network sees them, one each 10 px."""

    windows: NDArray[np.bool_]
    top: int
    left: int
    """Cells of the slide where they begin."""

    def of(
        self, piece: Piece, side: int, *, reach: int, crop: int, cells: int = WINDOW_CELLS
    ) -> Cells | None:
        """The part of a piece that any depends on; None if none does.

        Args:
            piece: which.
            side: of pieces.
            crop: its edges lie on multiples of so many cells within the piece, so there are few sizes.
            reach: how far around it what is made of a cell depends on cells of the piece.
            cells: of a window that are made, along its side.
        """
        top, left = piece.row * side, piece.column * side
        back = reach + cells - 1
        first_row, first_column = max(top - self.top - back, 0), max(left - self.left - back, 0)
        rows = slice(first_row, max(top - self.top + side + reach, 0))
        columns = slice(first_column, max(left - self.left + side + reach, 0))
        near = self.windows[rows, columns]
        down, across = (np.flatnonzero(near.any(axis=axis)) for axis in (1, 0))
        if not len(down):
            return None
        first_row, first_column = first_row + self.top - top, first_column + self.left - left
        spans = [
            (
                max(first + int(at[0]) - reach, 0) // crop * crop,
                min(-(-(first + int(at[-1]) + cells + reach) // crop) * crop, side),
            )
            for first, at in ((first_row, down), (first_column, across))
        ]
        (upper, lower), (start, end) = spans
        return Cells(top + upper, left + start, top + lower, left + end)


class DenseScorer:
    """Scores a tile at once."""

    def __init__(self, stages: Sequence[Runtime], grid: Grid, *, piece_cells: int | None = None) -> None:
        """Take what computes each stage; `piece_cells` bears on speed and memory only."""
        self._runtimes = stages
        self._grid = grid
        self.stages = len(stages)
        self._phases = max(1, STEP_PX // grid.step_px)
        self._every = max(1, grid.step_px // STEP_PX)
        self._side = piece_cells or min(stage.piece_cells for stage in stages)
        self._crop = max(stage.crop_cells for stage in stages)
        self._tile_cells = self._side * _TILE_PIECES
        self.tile_blocks = self._tile_cells * STEP_PX // grid.step_px
        # All stages take the same pixels.
        self._pixel_margin = max(stage.network.parts[0].margin for stage in stages)
        self._kept: dict[Piece, dict[int, torch.Tensor]] = {}
        """What parts of the primary made of a piece."""
        self._blank: dict[int, torch.Tensor] = {}
        """What the first part of a stage makes of a white cell."""
        self._selected: dict[Shift, _Wanted] = {}
        assert self.tile_blocks % self._phases == 0, "a tile holds whole rounds of shifted passes"

    def tiles(self, selected: NDArray[np.bool_]) -> Iterator[Tile]:
        """See `TileScorer.tiles`."""
        self._selected = {shift: _Wanted(self._as_cells(selected, shift), 0, 0) for shift in self._shifts()}
        return plan_tiles(selected, self.tile_blocks, panel=self._panel_blocks)

    def areas(self, tile: Tile) -> dict[Piece, Area]:
        """See `TileScorer.areas`: what the tile's windows go back to, of each piece what any window does."""
        found: dict[Piece, Area] = {}
        for shift in self._shifts():
            wanted = self._wanted_of(tile, tile.wanted, shift)
            for number in range(self.stages):
                for piece in self._needed(number, shift, wanted, self._selected[shift])[0]:
                    found[piece] = self._area_of(piece)
        return found

    def margins(
        self, tile: Tile, wanted: NDArray[np.bool_], pixels: Mapping[Piece, NDArray[np.uint8]]
    ) -> NDArray[np.float32]:
        """See `TileScorer.margins`; the secondary is asked where the primary finds tumor."""
        found = np.full((self.stages, self.tile_blocks, self.tile_blocks), np.nan, np.float32)
        every, phases = self._every, self._phases
        for shift in self._shifts():
            down, right = (px // self._grid.step_px for px in shift)
            asked = self._wanted_of(tile, wanted, shift)
            for number in range(self.stages):
                margins = self._margins_of_stage(number, shift, asked, pixels)
                found[number, down::phases, right::phases] = margins[::every, ::every]
                asked = _Wanted(asked.windows & (margins > 0), asked.top, asked.left)
        rows, columns = wanted.shape
        return found[:, :rows, :columns].copy()

    def forget(self, pieces: Iterable[Piece]) -> None:
        """See `TileScorer.forget`."""
        for piece in pieces:
            self._kept.pop(piece, None)

    @property
    def _panel_blocks(self) -> int:
        """How far a row of tiles may go, so that what waits for the next row stays within bounds."""
        parts = [part for stage in self._runtimes for part in stage.network.parts[:-1]]
        per_cell = STEP_PX**2 * 3 + sum(4 * part.channels * part.side**2 for part in parts)
        cells = _MOST_WAITING_BYTES // (per_cell * self._phases**2 * _WAITING_ROWS * self._side)
        return max(1, cells // self._tile_cells) * self.tile_blocks

    def _shifts(self) -> list[Shift]:
        steps = range(0, self._phases * self._grid.step_px, self._grid.step_px)
        return (
            [Shift(down, right) for down in steps for right in steps] if self._phases > 1 else [Shift(0, 0)]
        )

    def _wanted_of(self, tile: Tile, windows: NDArray[np.bool_], shift: Shift) -> _Wanted:
        """Windows of a tile: (tile_cells, tile_cells)."""
        whole = np.zeros((self.tile_blocks, self.tile_blocks), bool)
        whole[: windows.shape[0], : windows.shape[1]] = windows
        top, left = (block * self._grid.step_px // STEP_PX for block in (tile.row, tile.column))
        return _Wanted(self._as_cells(whole, shift), top, left)

    def _as_cells(self, windows: NDArray[np.bool_], shift: Shift) -> NDArray[np.bool_]:
        """Windows of a pass, one each 10 px, of those of the stride."""
        if self._every == 1:
            down, right = (px // self._grid.step_px for px in shift)
            return windows[down :: self._phases, right :: self._phases]
        cells = np.zeros((windows.shape[0] * self._every, windows.shape[1] * self._every), bool)
        cells[:: self._every, :: self._every] = windows
        return cells

    def _area_of(self, piece: Piece) -> Area:
        """What is read for a piece: for any stage, and for windows of any tile."""
        reach = max(sum(part.margin for part in stage.network.parts[1:]) for stage in self._runtimes)
        cells = self._selected[piece.shift].of(piece, self._side, reach=reach, crop=self._crop)
        assert cells is not None, "only pieces that a window needs are read"
        rows, columns = cells.size
        margin, (down, right) = self._pixel_margin, piece.shift
        return Area(
            (cells.top - margin) * STEP_PX + down,
            (cells.left - margin) * STEP_PX + right,
            (rows + 2 * margin) * STEP_PX,
            (columns + 2 * margin) * STEP_PX,
        )

    def _needed(
        self, number: int, shift: Shift, asked: _Wanted, all_wanted: _Wanted
    ) -> list[dict[Piece, Cells]]:
        """What windows of a tile go back to in the pieces of each part of a stage.

        Args:
            number: of the stage.
            shift: of the pass.
            asked: windows of a tile.
            all_wanted: the rest of a piece, that none of these depends on, is left out; what others make of
                it is never looked at.
        """
        side, parts = self._side, self._runtimes[number].network.parts
        top, left = asked.top // side, asked.left // side
        panel = asked.left // (self._panel_blocks * self._grid.step_px // STEP_PX)
        own = [
            Piece(panel, shift, row, column)
            for row in range(top, top + _TILE_PIECES)
            for column in range(left, left + _TILE_PIECES)
        ]
        crops = {piece: asked.of(piece, side, reach=0, crop=self._crop, cells=1) for piece in own}
        found = [{piece: cells for piece, cells in crops.items() if cells}]
        for index in range(len(parts) - 1, 0, -1):
            reach = sum(part.margin for part in parts[index:])
            before = {
                Piece(panel, shift, row, column)
                for cells in found[0].values()
                for around in [self._around(number, index, cells)]
                for row in range(around.top // side, (around.bottom - 1) // side + 1)
                for column in range(around.left // side, (around.right - 1) // side + 1)
            }
            crops = {
                piece: all_wanted.of(piece, side, reach=reach, crop=self._crop) for piece in sorted(before)
            }
            found.insert(0, {piece: cells for piece, cells in crops.items() if cells})
        return found

    def _around(self, number: int, part: int, cells: Cells) -> Cells:
        """Cells that a part of a stage depends on."""
        parts = self._runtimes[number].network.parts
        margin = parts[part].margin
        more = margin + (WINDOW_CELLS - 1 if part == len(parts) - 1 else 0)
        return Cells(cells.top - margin, cells.left - margin, cells.bottom + more, cells.right + more)

    def _margins_of_stage(
        self,
        number: int,
        shift: Shift,
        asked: _Wanted,
        pixels: Mapping[Piece, NDArray[np.uint8]],
    ) -> NDArray[np.float32]:
        """Margins of the windows that are asked for, NaN elsewhere: (tile_cells, tile_cells)."""
        margins = np.full(asked.windows.shape, np.nan, np.float32)
        if not asked.windows.any():
            return margins
        # What the primary makes serves the tiles around this one, too. Which windows the secondary will be
        # asked for there is not known yet.
        keeps = number == 0
        needed = self._needed(number, shift, asked, self._selected[shift] if keeps else asked)
        passing: dict[Piece, torch.Tensor] = {}
        for part, pieces in enumerate(needed):
            is_last = part == len(needed) - 1
            made = {}
            if keeps and not is_last:
                made = {
                    piece: self._kept[piece][part] for piece in pieces if part in self._kept.get(piece, {})
                }
            missing = {piece: cells for piece, cells in pieces.items() if piece not in made}
            if part == 0 and missing:
                made |= self._of_pixels(number, missing, pixels)
            elif missing:
                inputs = [
                    self._input_of(number, part, cells, needed[part - 1], passing)
                    for cells in missing.values()
                ]
                made |= dict(zip(missing, self._runtimes[number].run(part, inputs), strict=True))
            if keeps and not is_last:
                for piece in missing:
                    self._kept.setdefault(piece, {})[part] = made[piece]
            passing = made
        for piece, cells in needed[-1].items():
            rows = slice(cells.top - asked.top, cells.bottom - asked.top)
            columns = slice(cells.left - asked.left, cells.right - asked.left)
            margins[rows, columns] = passing[piece].numpy()
        margins[~asked.windows] = np.nan
        return margins

    def _of_pixels(
        self, number: int, pieces: Mapping[Piece, Cells], pixels: Mapping[Piece, NDArray[np.uint8]]
    ) -> dict[Piece, torch.Tensor]:
        """The first part of a stage. What is white, as all beyond the image, is alike: computed once."""
        runtime, made, own = self._runtimes[number], {}, {}
        margin = runtime.network.parts[0].margin
        for piece, cells in pieces.items():
            area, (down, right) = self._area_of(piece), piece.shift
            top = (cells.top - margin) * STEP_PX + down - area.top
            left = (cells.left - margin) * STEP_PX + right - area.left
            height, width = ((length + 2 * margin) * STEP_PX for length in cells.size)
            values = pixels[piece][top : top + height, left : left + width]
            assert values.shape[:2] == (height, width), "what is computed lies in what was read"
            if (values == _WHITE).all():
                made[piece] = self._of_white(number).repeat(1, 1, *cells.size)
            else:
                own[piece] = torch.from_numpy(np.ascontiguousarray(values))
        if own:
            made |= dict(zip(own, runtime.run(0, list(own.values())), strict=True))
        return made

    def _of_white(self, number: int) -> torch.Tensor:
        if number not in self._blank:
            part = self._runtimes[number].network.parts[0]
            side = (self._crop + 2 * part.margin) * STEP_PX
            white = torch.full((side, side, 3), _WHITE, dtype=torch.uint8)
            (made,) = self._runtimes[number].run(0, [white])
            middle = slice(self._crop // 2 * part.side, (self._crop // 2 + 1) * part.side)
            self._blank[number] = made[..., middle, middle].clone()
        return self._blank[number]

    def _input_of(
        self,
        number: int,
        part: int,
        cells: Cells,
        lie: Mapping[Piece, Cells],
        before: Mapping[Piece, torch.Tensor],
    ) -> torch.Tensor:
        """What a part depends on, of the pieces that the part before made."""
        scale = self._runtimes[number].network.parts[part - 1].side
        around = self._around(number, part, cells)
        placed = [
            ((other.top - around.top) * scale, (other.left - around.left) * scale, before[piece])
            for piece, other in lie.items()
            if around.top < other.bottom
            and other.top < around.bottom
            and around.left < other.right
            and other.left < around.right
        ]
        rows, columns = around.size
        return gather(placed, size=(rows * scale, columns * scale))
