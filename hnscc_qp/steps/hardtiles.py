"""Tiles for the dense secondary: only false positives and as many tumor windows have a label in them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hnscc_qp.geometry import STEP_PX
from hnscc_qp.patches.dataset import PatchRow
from hnscc_qp.patches.labels import Label
from hnscc_qp.patches.seal import SealedSplit
from hnscc_qp.patches.split import Side
from hnscc_qp.patches.stored import Part
from hnscc_qp.patches.tiles import (
    PIECE_WINDOWS,
    Chunk,
    DevelopmentTiles,
    TileRow,
    choose_pieces,
    open_development_tiles,
    read_piece,
    write_tiles,
)
from hnscc_qp.steps import tiles
from hnscc_qp.steps.context import Context
from hnscc_qp.training.mine import pair_with_tumor

Place = tuple[str, int, int]
"""Entry id, row and column of a piece."""


@dataclass(frozen=True, slots=True)
class _Piece:
    """A piece with the windows in it that count."""

    row: TileRow
    labels: NDArray[np.uint8]
    """(45, 45) of `Label`"""
    number: int | None
    """Where its pixels are in the tiles of the primary; None if they are to be read from the slide."""


def write_hard_tiles(
    context: Context, folder: Path, false_positives: Sequence[PatchRow], split: SealedSplit
) -> dict[str, str]:
    """Write the development tiles of the step whose folder it is, and return the files' hashes.

    On each side as many tumor windows are drawn at random as there are false positives; where there are fewer
    tumor windows, as many false positives (Tang et al. 2022, §2.4).

    Raises:
        StepError: there are no tiles yet.
        SlideReadError: a piece that was scanned can't be read any more.
    """
    easy = open_development_tiles(context.generation.step(tiles.STEP), split)
    seed = context.study.training.seed
    pieces: list[_Piece] = []
    for side in (Side.TRAIN, Side.VALIDATION):
        hard = np.flatnonzero([row.side is side for row in false_positives])
        tumor = _tumor_windows(easy, side)
        some_hard, some_tumor = pair_with_tumor(hard, np.arange(len(tumor)), seed=seed)
        pieces += _around([false_positives[index] for index in some_hard])
        pieces += _within(easy, tumor[some_tumor])
    chosen = choose_pieces(
        tumor=np.array([piece.number is not None for piece in pieces], np.bool_),
        side=[piece.row.side for piece in pieces],
        slide=[piece.row.entry_id for piece in pieces],
        max_tiles=context.study.training.dense.max_tiles,
        seed=seed,
    )
    images = {image.entry_id: image for image in context.project.images}

    def chunks() -> Iterator[Chunk]:
        for index in chosen:
            piece = pieces[index]
            if piece.number is not None:
                pixels = np.asarray(easy.pixels[piece.number])
            else:
                slide = context.open_development(images[piece.row.entry_id], split)
                step = PIECE_WINDOWS * STEP_PX
                # Mining takes no window that touches what can't be decoded, so no label here is of one.
                pixels, _, _ = read_piece(slide, piece.row.y_px // step, piece.row.x_px // step)
            yield [piece.row], pixels[None], piece.labels[None]

    written = write_tiles(folder, Part.DEVELOPMENT, chunks(), count=len(chosen), split=split)
    return {f"mined {name}": value for name, value in written.items()}


def _tumor_windows(easy: DevelopmentTiles, side: Side) -> NDArray[np.intp]:
    """Tumor windows of a side: (n, 3) of tile, row, column."""
    idx = easy.on(side)
    tile, row, column = np.nonzero(easy.labels[idx] == Label.TUMOR)
    return np.stack([idx[tile], row, column], axis=1)


def _around(false_positives: Sequence[PatchRow]) -> list[_Piece]:
    """The pieces that the false positives lie in."""
    by_place: dict[Place, list[PatchRow]] = {}
    step = PIECE_WINDOWS * STEP_PX
    for row in false_positives:
        by_place.setdefault((row.entry_id, row.y_px // step, row.x_px // step), []).append(row)
    pieces = []
    for (entry_id, top, left), rows in sorted(by_place.items()):
        labels = np.full((PIECE_WINDOWS, PIECE_WINDOWS), Label.IGNORED, np.uint8)
        for row in rows:
            labels[(row.y_px - top * step) // STEP_PX, (row.x_px - left * step) // STEP_PX] = Label.NONTUMOR
        first = rows[0]
        # Any window tells how large a px of the grid is in QuPath px, unless it lies at the origin.
        scale_x = next((row.x_qupath / row.x_px for row in rows if row.x_px), 0.0)
        scale_y = next((row.y_qupath / row.y_px for row in rows if row.y_px), 0.0)
        tile = TileRow(
            entry_id=entry_id,
            slide=first.slide,
            patient=first.patient,
            side=first.side,
            x_px=left * step,
            y_px=top * step,
            x_qupath=left * step * scale_x,
            y_qupath=top * step * scale_y,
            tumor=0,
            nontumor=len(rows),
            image_sha256=first.image_sha256,
        )
        pieces.append(_Piece(tile, labels, None))
    return pieces


def _within(easy: DevelopmentTiles, windows: NDArray[np.intp]) -> list[_Piece]:
    """The primary's tiles that tumor windows, (n, 3) of tile, row, column, lie in."""
    pieces = []
    for number in np.unique(windows[:, 0]):
        labels = np.full((PIECE_WINDOWS, PIECE_WINDOWS), Label.IGNORED, np.uint8)
        inside = windows[windows[:, 0] == number]
        labels[inside[:, 1], inside[:, 2]] = Label.TUMOR
        known = easy.table.slice(int(number), 1).to_pylist()[0]
        known |= {"side": Side(known["side"]), "tumor": len(inside), "nontumor": 0}
        pieces.append(_Piece(TileRow(**known), labels, int(number)))
    return pieces
