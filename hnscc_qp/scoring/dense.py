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


@dataclass(frozen=True, slots=True, eq=False)
class _Wanted:
    """Which windows of a pass are wanted, as the network sees them, one each 10 px."""

    windows: NDArray[np.bool_]
    top: int
    left: int
    """Cells of the slide where they begin."""

    def near(self, piece: Piece, side: int, reach: int) -> bool:
        """Whether any depends on a cell of the piece, if its cells depend on those `reach` cells around."""
        top, left = piece.row * side - self.top, piece.column * side - self.left
        back = reach + WINDOW_CELLS - 1
        rows = slice(max(top - back, 0), max(top + side + reach, 0))
        columns = slice(max(left - back, 0), max(left + side + reach, 0))
        return bool(self.windows[rows, columns].any())


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
        self._tile_cells = self._side * _TILE_PIECES
        self.tile_blocks = self._tile_cells * STEP_PX // grid.step_px
        # All stages take the same pixels.
        self._pixel_margin = max(stage.network.parts[0].margin for stage in stages)
        self._kept: dict[Piece, dict[tuple[int, int], torch.Tensor]] = {}
        """What parts of stages made of a piece."""
        self._blank: dict[int, torch.Tensor] = {}
        """What the first part of a stage makes of a white piece."""
        self._selected: dict[Shift, _Wanted] = {}
        assert self.tile_blocks % self._phases == 0, "a tile holds whole rounds of shifted passes"

    def tiles(self, selected: NDArray[np.bool_]) -> Iterator[Tile]:
        """See `TileScorer.tiles`."""
        self._selected = {shift: _Wanted(self._as_cells(selected, shift), 0, 0) for shift in self._shifts()}
        return plan_tiles(selected, self.tile_blocks, panel=self._panel_blocks)

    def areas(self, tile: Tile) -> dict[Piece, Area]:
        """See `TileScorer.areas`: the pieces of the first part that the tile's windows go back to."""
        margin, side = self._pixel_margin * STEP_PX, self._side * STEP_PX
        found: dict[Piece, Area] = {}
        for shift in self._shifts():
            wanted = self._wanted_of(tile, tile.wanted, shift)
            for number in range(self.stages):
                for piece in self._needed(number, shift, wanted, self._selected[shift])[0]:
                    top, left = piece.row * side + shift.down, piece.column * side + shift.right
                    found[piece] = Area(top - margin, left - margin, side + 2 * margin, side + 2 * margin)
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
                # The primary's pieces serve the tiles around this one, too. Which windows the secondary will
                # be asked for there is not known yet.
                all_wanted = self._selected[shift] if number == 0 else asked
                margins = self._margins_of_stage(number, shift, asked, all_wanted, pixels)
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

    def _needed(self, number: int, shift: Shift, asked: _Wanted, all_wanted: _Wanted) -> list[list[Piece]]:
        """Pieces of each part of a stage that windows go back to.

        Args:
            number: of the stage.
            shift: of the pass.
            asked: windows of a tile.
            all_wanted: a piece that none of these depends on is left out; what others make of it is never
                looked at.
        """
        side, parts = self._side, self._runtimes[number].network.parts
        top, left = asked.top // side, asked.left // side
        panel = asked.left // (self._panel_blocks * self._grid.step_px // STEP_PX)
        pieces = [
            Piece(panel, shift, row, column)
            for row in range(top, top + _TILE_PIECES)
            for column in range(left, left + _TILE_PIECES)
            if asked.windows[(row - top) * side :, (column - left) * side :][:side, :side].any()
        ]
        found = [pieces]
        for index in range(len(parts) - 1, 0, -1):
            back = parts[index].margin
            ahead = side - 1 + self._around(number, index) - back
            before = {
                Piece(panel, shift, row, column)
                for piece in pieces
                for row in range((piece.row * side - back) // side, (piece.row * side + ahead) // side + 1)
                for column in range(
                    (piece.column * side - back) // side, (piece.column * side + ahead) // side + 1
                )
            }
            reach = sum(part.margin for part in parts[index:])
            pieces = sorted(piece for piece in before if all_wanted.near(piece, side, reach))
            found.insert(0, pieces)
        return found

    def _around(self, number: int, part: int) -> int:
        """Cells of input beyond the side of a piece, both sides together."""
        parts = self._runtimes[number].network.parts
        return 2 * parts[part].margin + (WINDOW_CELLS - 1 if part == len(parts) - 1 else 0)

    def _margins_of_stage(
        self,
        number: int,
        shift: Shift,
        asked: _Wanted,
        all_wanted: _Wanted,
        pixels: Mapping[Piece, NDArray[np.uint8]],
    ) -> NDArray[np.float32]:
        """Margins of the windows that are asked for, NaN elsewhere: (tile_cells, tile_cells)."""
        margins = np.full(asked.windows.shape, np.nan, np.float32)
        if not asked.windows.any():
            return margins
        runtime, side = self._runtimes[number], self._side
        needed = self._needed(number, shift, asked, all_wanted)
        passing: dict[Piece, torch.Tensor] = {}
        for part, pieces in enumerate(needed):
            # The first part depends on pixels alone; the others on what was wanted around, too.
            keeps = part < len(needed) - 1 and (part == 0 or all_wanted is self._selected[shift])
            made = {
                piece: self._kept[piece][number, part]
                for piece in pieces
                if keeps and (number, part) in self._kept.get(piece, {})
            }
            missing = [piece for piece in pieces if piece not in made]
            if part == 0 and missing:
                made |= self._of_pixels(number, {piece: pixels[piece] for piece in missing})
            elif missing:
                inputs = [self._input_of(number, part, piece, passing) for piece in missing]
                made |= dict(zip(missing, runtime.run(part, inputs), strict=True))
            if keeps:
                for piece in missing:
                    self._kept.setdefault(piece, {})[number, part] = made[piece]
            passing = made
        for piece, windows in passing.items():
            row, column = piece.row * side - asked.top, piece.column * side - asked.left
            margins[row : row + side, column : column + side] = windows.numpy()
        margins[~asked.windows] = np.nan
        return margins

    def _of_pixels(self, number: int, pixels: Mapping[Piece, NDArray[np.uint8]]) -> dict[Piece, torch.Tensor]:
        """The first part of a stage. What lies beyond the image is white, and all alike: computed once."""
        blank = [piece for piece, values in pixels.items() if (values == _WHITE).all()]
        known = self._blank.get(number)
        own = [piece for piece in pixels if piece not in blank] + (blank[:1] if known is None else [])
        # The margin that only another stage needs is left out.
        spare = (self._pixel_margin - self._runtimes[number].network.parts[0].margin) * STEP_PX
        inputs = [
            torch.from_numpy(
                np.ascontiguousarray(values[spare : len(values) - spare, spare : len(values) - spare])
            )
            for values in (pixels[piece] for piece in own)
        ]
        made = dict(zip(own, self._runtimes[number].run(0, inputs), strict=True)) if own else {}
        if blank and known is None:
            known = self._blank[number] = made[blank[0]]
        return made | {piece: known for piece in blank if known is not None}

    def _input_of(
        self, number: int, part: int, piece: Piece, before: Mapping[Piece, torch.Tensor]
    ) -> torch.Tensor:
        """What a piece's part depends on, of the pieces that the part before made."""
        parts, side = self._runtimes[number].network.parts, self._side
        scale, margin = parts[part - 1].side, parts[part].margin
        around = self._around(number, part)
        placed = []
        for other, values in before.items():
            row = (other.row - piece.row) * side + margin
            column = (other.column - piece.column) * side + margin
            if -side < row < side + around and -side < column < side + around:
                placed.append((row * scale, column * scale, values))
        return gather(placed, extent=(side + around) * scale)
