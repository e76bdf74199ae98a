"""Squares of the slide that dense scoring works on, in cells of 10 px, and what windows need of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hnscc_qp.models.parts import WINDOW_CELLS


class Shift(NamedTuple):
    """Of a pass over the slide, in px less than 10: a narrow stride takes several."""

    down: int
    right: int


class Cells(NamedTuple):
    """A rectangle of the slide's cells, which may lie beyond its borders; bottom and right are left out."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.bottom - self.top, self.right - self.left


class Piece(NamedTuple):
    """A square of cells: row and column of pieces. Where it lies is up to whose piece it is."""

    panel: int
    """A row of tiles goes over one; nothing is kept for the next, which would be long."""
    shift: Shift
    row: int
    column: int


class Mesh(NamedTuple):
    """Squares side by side, moved `offset` cells down and right; rows and columns may be negative."""

    side: int
    """In cells."""
    offset: int

    def corner(self, piece: Piece) -> tuple[int, int]:
        """Its first row and column of cells."""
        return piece.row * self.side + self.offset, piece.column * self.side + self.offset

    def over(self, cells: Cells, *, panel: int, shift: Shift) -> Iterator[Piece]:
        """The pieces that meet a rectangle."""
        for row in self._span(cells.top, cells.bottom):
            for column in self._span(cells.left, cells.right):
                yield Piece(panel, shift, row, column)

    def _span(self, start: int, end: int) -> range:
        return range((start - self.offset) // self.side, (end - 1 - self.offset) // self.side + 1)


@dataclass(frozen=True, slots=True, eq=False)
class Wanted:
    """Which windows of a pass are wanted, as the network sees them, one each 10 px."""

    windows: NDArray[np.bool_]
    """(rows, columns)"""
    top: int
    left: int
    """Cells of the slide where they begin."""

    def needed_of(
        self, piece: Piece, mesh: Mesh, *, reach: int, crop: int, cells: int = WINDOW_CELLS
    ) -> Cells | None:
        """The part of a piece that any of the windows depends on; None if none does.

        Args:
            piece: which.
            mesh: that it is of.
            reach: how far around it what is made of a cell depends on cells of the piece.
            crop: edges lie on multiples of so many cells within the piece, so there are few sizes.
            cells: of a window that are made, along its side.
        """
        top, left = mesh.corner(piece)
        side, back = mesh.side, reach + cells - 1
        first_row, first_column = max(top - self.top - back, 0), max(left - self.left - back, 0)
        rows = slice(first_row, max(top - self.top + side + reach, 0))
        columns = slice(first_column, max(left - self.left + side + reach, 0))
        near = self.windows[rows, columns]
        down, across = (np.flatnonzero(near.any(axis=axis)) for axis in (1, 0))
        if not len(down):
            return None
        first_row, first_column = first_row + self.top - top, first_column + self.left - left
        (upper, lower), (start, end) = (
            (
                max(first + int(at[0]) - reach, 0) // crop * crop,
                min(-(-(first + int(at[-1]) + cells + reach) // crop) * crop, side),
            )
            for first, at in ((first_row, down), (first_column, across))
        )
        return Cells(top + upper, left + start, top + lower, left + end)

    def around(self, reach: int) -> Cells | None:
        """What lies under the windows and `reach` cells around them; None if there are none."""
        down, across = (np.flatnonzero(self.windows.any(axis=axis)) for axis in (1, 0))
        if not len(down):
            return None
        more = reach + WINDOW_CELLS
        return Cells(
            self.top + int(down[0]) - reach,
            self.left + int(across[0]) - reach,
            self.top + int(down[-1]) + more,
            self.left + int(across[-1]) + more,
        )
