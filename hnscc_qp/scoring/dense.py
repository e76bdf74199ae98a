"""Dense scoring: all windows of a tile in one fully convolutional pass, for models that were trained so.

The network works in parts on pieces of the slide (`models.parts`). A piece is computed with all around it
that its cells depend on, so a window's votes are the same however the slide is cut; and it is computed once,
and kept while pieces of the next part need it.

Each part has a mesh of its own, which lies farther down and right than the next part's by as much as that one
reaches (the last part also takes a window's three further cells). So a piece depends on pieces of the part
before in its own row and the row above, never below, and little waits: a row of pieces of each part, two at
most, where a piece is twice as long as a part reaches. With one mesh for all parts every part would have to
be a row ahead of the next.

The network gives a window every 10 px: for wider strides every so many are kept, for narrower ones the
slide is passed over again, shifted.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray

from hnscc_qp.geometry import STEP_PX, Grid
from hnscc_qp.models.parts import WINDOW_CELLS, Runtime, gather
from hnscc_qp.scoring.pieces import Cells, Mesh, Piece, Shift, Wanted
from hnscc_qp.scoring.tiles import Reading, Tile, plan_tiles
from hnscc_qp.slides.holes import Area

_PANEL_PIECES = 2
"""A panel's width is a multiple of so many pieces, not of a tile's. Tiles hang on the machine's cores; panels
move what is computed at their edges, so they must not."""
_WAITING_ROWS = 2
"""Rows of pieces of each part for which there is room to wait for the next row of tiles: one waits where
tissue is solid, up to two along its border."""
_WHITE = 255

_Kept = dict[tuple[int, Piece], tuple[Cells, torch.Tensor]]
"""What a stage's parts made that is still needed, by part and piece: the cells it covers, and its values,
(1, channels, rows, columns)."""
_ToMake = list[dict[Piece, Cells]]
"""By parts of a stage: pieces, and how much of each."""


class _Stage:
    """One of the networks and its meshes."""

    def __init__(self, runtime: Runtime, *, side: int) -> None:
        self.runtime = runtime
        parts = runtime.network.parts
        self.last = len(parts) - 1
        self.reach = [sum(part.margin for part in parts[number + 1 :]) for number in range(len(parts))]
        """Cells around a window's that its answer depends on, of what each part makes."""
        self.pixel_reach = self.reach[0] + parts[0].margin
        # A window's last cells lie below and to the right of its first one, which names it.
        self.meshes = [Mesh(side, reach + WINDOW_CELLS - 1) for reach in self.reach[:-1]] + [Mesh(side, 0)]

    def inputs_of(self, part: int, cells: Cells) -> Cells:
        """Cells of the part before, or of pixels for the first, that a part's cells depend on."""
        margin = self.runtime.network.parts[part].margin
        more = margin + (WINDOW_CELLS - 1 if part == self.last else 0)
        return Cells(cells.top - margin, cells.left - margin, cells.bottom + more, cells.right + more)


@dataclass(frozen=True, slots=True)
class _TileWork:
    """What is done at a tile; planned before."""

    to_make: dict[Shift, _ToMake]
    """By pass: what the primary's parts make."""
    to_drop: dict[Shift, list[tuple[int, Piece]]]
    """By pass: part and piece of the primary that no later tile needs."""
    reading: Reading[Piece]


class DenseScorer:
    """Scores a tile at once."""

    def __init__(self, stages: Sequence[Runtime], grid: Grid, *, piece_cells: int | None = None) -> None:
        """Take what computes each stage; `piece_cells` bears on speed and memory only."""
        self._side = piece_cells or min(stage.piece_cells for stage in stages)
        self._stages = [_Stage(stage, side=self._side) for stage in stages]
        self._grid = grid
        self.stages = len(stages)
        self._phases = max(1, STEP_PX // grid.step_px)
        """Passes along each axis: two for a stride of 5 px."""
        self._every = max(1, grid.step_px // STEP_PX)
        """Every so many windows of a pass one is kept: two for a stride of 20 px."""
        steps = range(0, self._phases * grid.step_px, grid.step_px)
        self._shifts = [Shift(down, right) for down in steps for right in steps]
        self._tile_cells = self._side * min(stage.tile_pieces for stage in stages)
        self._tile_blocks = self._tile_cells * STEP_PX // grid.step_px
        self._panel_blocks = self._panel_cells() * STEP_PX // grid.step_px
        cores = [stage.cores_each for stage in stages]
        self.tiling: tuple[int, ...] = (self._tile_blocks, self._panel_blocks, *cores)
        self._pixel_reach = max(stage.pixel_reach for stage in self._stages)
        self._pixel_mesh = Mesh(self._side, self._pixel_reach + WINDOW_CELLS - 1)
        self._kept: _Kept = {}
        """Of the primary."""
        self._work: dict[tuple[int, int], _TileWork] = {}
        """By row and column of tiles to come, in blocks."""
        self._areas: dict[Piece, Area] = {}
        """Where the pixels lie that are or will be read."""
        self._blank: dict[int, tuple[torch.Tensor, torch.memory_format]] = {}
        """What the first part of a stage makes of a white cell, and how it lays it out."""
        self._selected: dict[Shift, NDArray[np.bool_]] = {}
        assert self._tile_blocks % self._phases == 0, "a tile holds whole rounds of shifted passes"

    def tiles(self, selected: NDArray[np.bool_]) -> Iterator[Tile]:
        """See `TileScorer.tiles`."""
        # Of a slide that was left in the middle.
        for held in (self._kept, self._work, self._areas):
            held.clear()
        self._selected = {shift: self._as_cells(selected, shift) for shift in self._shifts}
        return plan_tiles(selected, self._tile_blocks, panel=self._panel_blocks)

    def plan(self, tiles: Iterable[Tile]) -> Iterator[Reading[Piece]]:
        """See `TileScorer.plan`."""
        for _, of_panel in groupby(tiles, key=self._panel_of):
            yield from self._plan_panel(list(of_panel))

    def margins(
        self, tile: Tile, wanted: NDArray[np.bool_], pixels: Mapping[Piece, NDArray[np.uint8]]
    ) -> NDArray[np.float32]:
        """See `TileScorer.margins`; the secondary is asked where the primary finds tumor."""
        found = np.full((self.stages, self._tile_blocks, self._tile_blocks), np.nan, np.float32)
        every, phases = self._every, self._phases
        work = self._work.pop((tile.row, tile.column))
        for shift in self._shifts:
            asked = self._wanted_of(tile, wanted, shift)
            to_make, made = work.to_make[shift], self._kept
            for number in range(self.stages):
                if number:
                    # Nothing is kept: which windows it will be asked for around this tile is not known.
                    made = {}
                    to_make = self._to_make(
                        number, self._panel_of(tile), shift, asked, within=asked, made=made
                    )
                margins = self._margins_of_stage(number, asked, to_make, made, pixels)
                if number == 0:
                    for used in work.to_drop[shift]:
                        del made[used]
                down, right = (px // self._grid.step_px for px in shift)
                found[number, down::phases, right::phases] = margins[::every, ::every]
                asked = Wanted(asked.windows & (margins > 0), asked.top, asked.left)
        for piece in work.reading.done:
            del self._areas[piece]
        rows, columns = wanted.shape
        return found[:, :rows, :columns].copy()

    def _panel_cells(self) -> int:
        """How far a row of tiles may go, so that what waits for the next row stays within bounds.

        But for networks of wide maps with a narrow stride, where the narrowest panel takes more.
        """
        primary = self._stages[0].runtime
        per_cell = STEP_PX**2 * 3 + sum(
            4 * part.channels * part.side**2 for part in primary.network.parts[:-1]
        )
        cells = primary.most_waiting_bytes // (per_cell * self._phases**2 * _WAITING_ROWS * self._side)
        unit = self._side * _PANEL_PIECES
        return max(1, cells // unit) * unit

    def _panel_of(self, tile: Tile) -> int:
        return tile.column // self._panel_blocks

    def _wanted_of(self, tile: Tile, windows: NDArray[np.bool_], shift: Shift) -> Wanted:
        """Windows of a tile: (tile_cells, tile_cells)."""
        whole = np.zeros((self._tile_blocks, self._tile_blocks), bool)
        whole[: windows.shape[0], : windows.shape[1]] = windows
        top, left = (block * self._grid.step_px // STEP_PX for block in (tile.row, tile.column))
        return Wanted(self._as_cells(whole, shift), top, left)

    def _as_cells(self, windows: NDArray[np.bool_], shift: Shift) -> NDArray[np.bool_]:
        """Windows of a pass, one each 10 px, of those of the stride."""
        if self._every == 1:
            down, right = (px // self._grid.step_px for px in shift)
            return windows[down :: self._phases, right :: self._phases]
        cells = np.zeros((windows.shape[0] * self._every, windows.shape[1] * self._every), bool)
        cells[:: self._every, :: self._every] = windows
        return cells

    def _windows_of_panel(self, panel: int, shift: Shift) -> Wanted:
        """All windows of a panel."""
        side = self._panel_blocks * self._grid.step_px // STEP_PX
        return Wanted(self._selected[shift][:, panel * side : (panel + 1) * side], 0, panel * side)

    def _plan_panel(self, tiles: Sequence[Tile]) -> Iterator[Reading[Piece]]:
        """Say what is read for each of its tiles; note what is made at each, and how long it is kept."""
        works: list[_TileWork] = []
        made: set[tuple[int, Piece]] = set()
        # The number of the last tile that needs it.
        last_use: dict[tuple[int, Piece], int] = {}
        last_look: dict[Piece, int] = {}
        for at, tile in enumerate(tiles):
            work = _TileWork({}, {shift: [] for shift in self._shifts}, Reading({}, []))
            works.append(work)
            panel = self._panel_of(tile)
            for shift in self._shifts:
                asked = self._wanted_of(tile, tile.wanted, shift)
                within = self._windows_of_panel(panel, shift)
                to_make = self._to_make(0, panel, shift, asked, within=within, made=made)
                work.to_make[shift] = to_make
                made |= {(part, piece) for part, pieces in enumerate(to_make) for piece in pieces}
                last_use |= dict.fromkeys(made & self._inputs_for(to_make, panel, shift), at)
                for piece in self._pixels_for(to_make, asked, panel, shift):
                    if piece not in last_look:
                        area = self._area_of(piece, within)
                        if area is None:
                            continue
                        work.reading.new[piece] = area
                    last_look[piece] = at
        for used, at in last_use.items():
            works[at].to_drop[used[1].shift].append(used)
        for piece, at in last_look.items():
            works[at].reading.done.append(piece)
        for tile, work in zip(tiles, works, strict=True):
            self._work[tile.row, tile.column] = work
            self._areas |= work.reading.new
            yield work.reading

    def _inputs_for(self, to_make: _ToMake, panel: int, shift: Shift) -> set[tuple[int, Piece]]:
        """Pieces of the primary's parts that those of the next parts are made of."""
        primary = self._stages[0]
        return {
            (part - 1, piece)
            for part, pieces in enumerate(to_make)
            if part
            for cells in pieces.values()
            for piece in primary.meshes[part - 1].over(
                primary.inputs_of(part, cells), panel=panel, shift=shift
            )
        }

    def _pixels_for(self, to_make: _ToMake, asked: Wanted, panel: int, shift: Shift) -> set[Piece]:
        """Pieces of pixels that the primary's first part takes, and all that a secondary may be asked for."""
        seen = [self._stages[0].inputs_of(0, cells) for cells in to_make[0].values()]
        if around := asked.around(self._pixel_reach):
            seen.append(around)
        return {piece for cells in seen for piece in self._pixel_mesh.over(cells, panel=panel, shift=shift)}

    def _to_make(
        self,
        number: int,
        panel: int,
        shift: Shift,
        asked: Wanted,
        *,
        within: Wanted,
        made: Container[tuple[int, Piece]],
    ) -> _ToMake:
        """What parts of a stage have yet to make for windows of a tile.

        Args:
            number: of the stage.
            panel: of the tile.
            shift: of the pass.
            asked: windows of the tile.
            within: pieces are made as far as any of these windows depends on them.
            made: part and piece, what is there already.
        """
        stage = self._stages[number]
        crop = stage.runtime.crop_cells
        tile = Cells(asked.top, asked.left, asked.top + self._tile_cells, asked.left + self._tile_cells)
        own = {
            piece: asked.needed_of(piece, stage.meshes[-1], reach=0, crop=crop, cells=1)
            for piece in stage.meshes[-1].over(tile, panel=panel, shift=shift)
        }
        found = [{piece: cells for piece, cells in own.items() if cells}]
        for part in range(stage.last - 1, -1, -1):
            mesh = stage.meshes[part]
            before = {
                piece
                for cells in found[0].values()
                for piece in mesh.over(stage.inputs_of(part + 1, cells), panel=panel, shift=shift)
                if (part, piece) not in made
            }
            needed = {
                piece: within.needed_of(piece, mesh, reach=stage.reach[part], crop=crop)
                for piece in sorted(before)
            }
            found.insert(0, {piece: cells for piece, cells in needed.items() if cells})
        return found

    def _area_of(self, piece: Piece, within: Wanted) -> Area | None:
        """What is read for a piece: what any of the windows depends on in any stage."""
        cells = within.needed_of(piece, self._pixel_mesh, reach=self._pixel_reach, crop=1)
        if cells is None:
            return None
        rows, columns = cells.size
        down, right = piece.shift
        return Area(
            cells.top * STEP_PX + down, cells.left * STEP_PX + right, rows * STEP_PX, columns * STEP_PX
        )

    def _margins_of_stage(
        self,
        number: int,
        asked: Wanted,
        to_make: _ToMake,
        made: _Kept,
        pixels: Mapping[Piece, NDArray[np.uint8]],
    ) -> NDArray[np.float32]:
        """Make what is to be made, and give margins of the windows asked for, NaN elsewhere.

        Returns:
            (tile_cells, tile_cells)
        """
        stage = self._stages[number]
        margins = np.full(asked.windows.shape, np.nan, np.float32)
        for part, pieces in enumerate(to_make):
            if not pieces:
                continue
            if part == 0:
                results = self._of_pixels(number, pieces, pixels)
            else:
                results = stage.runtime.run(
                    part,
                    [self._input_of(number, part, piece, cells, made) for piece, cells in pieces.items()],
                )
            if part < stage.last:
                made |= {
                    (part, piece): (cells, values)
                    for (piece, cells), values in zip(pieces.items(), results, strict=True)
                }
                continue
            for cells, values in zip(pieces.values(), results, strict=True):
                rows = slice(cells.top - asked.top, cells.bottom - asked.top)
                columns = slice(cells.left - asked.left, cells.right - asked.left)
                margins[rows, columns] = values.numpy()
        margins[~asked.windows] = np.nan
        return margins

    def _of_pixels(
        self, number: int, pieces: Mapping[Piece, Cells], pixels: Mapping[Piece, NDArray[np.uint8]]
    ) -> list[torch.Tensor]:
        """The first part of a stage. What is white, as all beyond the image, is alike: computed once."""
        stage = self._stages[number]
        inputs = [
            self._pixels_of(piece, stage.inputs_of(0, cells), pixels) for piece, cells in pieces.items()
        ]
        is_white = [bool((values == _WHITE).all()) for values in inputs]
        own = [values for values, white in zip(inputs, is_white, strict=True) if not white]
        results = iter(stage.runtime.run(0, own) if own else [])
        return [
            self._of_white(number, cells.size) if white else next(results)
            for cells, white in zip(pieces.values(), is_white, strict=True)
        ]

    def _of_white(self, number: int, size: tuple[int, int]) -> torch.Tensor:
        """(1, channels, *size), but `side` values to a cell."""
        if number not in self._blank:
            runtime = self._stages[number].runtime
            part, crop = runtime.network.parts[0], runtime.crop_cells
            side = (crop + 2 * part.margin) * STEP_PX
            (made,) = runtime.run(0, [torch.full((side, side, 3), _WHITE, dtype=torch.uint8)])
            middle = slice(crop // 2 * part.side, (crop // 2 + 1) * part.side)
            last = made.is_contiguous(memory_format=torch.channels_last)
            self._blank[number] = (
                made[..., middle, middle].clone(),
                torch.channels_last if last else torch.contiguous_format,
            )
        cell, layout = self._blank[number]
        return cell.repeat(1, 1, *size).contiguous(memory_format=layout)

    def _pixels_of(
        self, piece: Piece, cells: Cells, pixels: Mapping[Piece, NDArray[np.uint8]]
    ) -> torch.Tensor:
        """(height, width, 3) uint8 of a rectangle of cells; white where no window looks."""
        down, right = piece.shift
        top, left = cells.top * STEP_PX + down, cells.left * STEP_PX + right
        placed = [
            (
                self._areas[other].top - top,
                self._areas[other].left - left,
                torch.from_numpy(pixels[other]).permute(2, 0, 1)[None],
            )
            for other in self._pixel_mesh.over(cells, panel=piece.panel, shift=piece.shift)
            # Where none was read no window looks; that of tiles to come is not there yet.
            if other in pixels
        ]
        rows, columns = cells.size
        return gather(placed, size=(rows * STEP_PX, columns * STEP_PX), fill=_WHITE)[0].permute(1, 2, 0)

    def _input_of(self, number: int, part: int, piece: Piece, cells: Cells, made: _Kept) -> torch.Tensor:
        """What a part depends on, of the pieces that the part before made: (1, channels, rows, columns)."""
        stage = self._stages[number]
        scale = stage.runtime.network.parts[part - 1].side
        around = stage.inputs_of(part, cells)
        placed = []
        for other in stage.meshes[part - 1].over(around, panel=piece.panel, shift=piece.shift):
            if (part - 1, other) in made:
                lie, values = made[part - 1, other]
                placed.append(((lie.top - around.top) * scale, (lie.left - around.left) * scale, values))
        rows, columns = around.size
        return gather(placed, size=(rows * scale, columns * scale))
