"""Tiles for the dense recipe: 480 px pieces of slides with the label of every window in them.

A slide's pieces overlap by 30 px, so that each window, one every 10 px, lies in just one of them. A step's
folder holds `development/` and `test/`, each with `tiles.npy` (the pixels), `labels.npy` (`Label` of every
window) and `tiles.parquet` (where each came from). Training takes `DevelopmentTiles`, which can't be made
while they hold one of a test patient.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import InitVar, dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.lib.stride_tricks import sliding_window_view

from hnscc_qp.errors import SealedSplitError
from hnscc_qp.files import atomic_path, sha256_file
from hnscc_qp.geometry import STEP_PX, WINDOW_MPP, WINDOW_PX, Grid
from hnscc_qp.patches.labels import Label, WindowLabels
from hnscc_qp.patches.seal import SealedSplit
from hnscc_qp.patches.split import Side
from hnscc_qp.patches.stored import Part, flush, new_array, read_sealed, sealed
from hnscc_qp.slides.holes import Area, read_around_holes
from hnscc_qp.slides.reader import Slide

PIECE_PX = 480
PIECE_WINDOWS = (PIECE_PX - WINDOW_PX) // STEP_PX + 1
"""Windows along one side of a piece: 45."""
PIXELS, LABELS, TABLE = "tiles.npy", "labels.npy", "tiles.parquet"

Pixels = npt.NDArray[np.uint8]
"""(pieces, 480, 480, 3)"""
Labels = npt.NDArray[np.uint8]
"""(pieces, 45, 45) of `Label`; [.., row, column] is the window that starts at (10 · column, 10 · row) px."""
Chunk = tuple[Sequence["TileRow"], Pixels, Labels]

SCHEMA = pa.schema(
    [
        ("entry_id", pa.string()),
        ("slide", pa.string()),
        ("image_sha256", pa.string()),
        ("patient", pa.string()),
        ("side", pa.string()),
        ("x_px", pa.int32()),
        ("y_px", pa.int32()),
        ("x_qupath", pa.float64()),
        ("y_qupath", pa.float64()),
        ("tumor", pa.int32()),
        ("nontumor", pa.int32()),
    ],
)


@dataclass(frozen=True, slots=True)
class TileRow:
    """Where a piece came from."""

    entry_id: str
    slide: str
    patient: str
    side: Side
    x_px: int
    """Left edge in grid px."""
    y_px: int
    """Top edge in grid px."""
    x_qupath: float
    """Left edge in QuPath px."""
    y_qupath: float
    """Top edge in QuPath px."""
    tumor: int
    """Windows in it with this label."""
    nontumor: int
    image_sha256: str = ""
    """State of the image in the project that it was made from: `Project.fingerprint`."""


@dataclass(frozen=True, slots=True)
class _Tiles:
    pixels: Pixels
    """Mapped from the file: only what is looked at is read."""
    labels: Labels
    table: pa.Table
    """One row per piece."""
    split: InitVar[SealedSplit]
    side: npt.NDArray[np.str_] = field(init=False)
    """(pieces,) `Side`."""
    patient: npt.NDArray[np.str_] = field(init=False)
    """(pieces,)"""
    slide: npt.NDArray[np.str_] = field(init=False)
    """(pieces,) the image's entry id."""

    def __post_init__(self, split: SealedSplit) -> None:
        assert len(self.pixels) == len(self.labels) == len(self.table)
        for name, column in (("side", "side"), ("patient", "patient"), ("slide", "entry_id")):
            object.__setattr__(self, name, np.asarray(self.table[column].to_pylist(), np.str_))
        for entry_id, patient, side in sorted(
            set(zip(self.slide.tolist(), self.patient.tolist(), self.side.tolist(), strict=True))
        ):
            split.check(entry_id, patient, side, what="tile", step="tiles")

    def __len__(self) -> int:
        return len(self.table)

    def on(self, side: Side) -> npt.NDArray[np.intp]:
        """Pieces of a side of the split, in order."""
        return np.flatnonzero(self.side == side.value)


@dataclass(frozen=True, slots=True)
class DevelopmentTiles(_Tiles):
    """Pieces that may be learnt from: training and validation.

    Raises:
        SealedSplitError: where it is made, if it holds any piece of a test patient.
    """

    def __post_init__(self, split: SealedSplit) -> None:
        split.admit(self.table["entry_id"].unique().to_pylist())
        _Tiles.__post_init__(self, split)


@dataclass(frozen=True, slots=True)
class TestTiles(_Tiles):
    """Pieces for the last figures only; not `DevelopmentTiles`, and nothing makes them so."""

    __test__ = False  # to pytest

    def __post_init__(self, split: SealedSplit) -> None:
        _Tiles.__post_init__(self, split)
        if set(self.side.tolist()) - {Side.TEST.value}:
            raise SealedSplitError("test tiles hold some of development; run hnscc-qp tiles again")


def label_map(windows: WindowLabels, grid: Grid) -> npt.NDArray[np.uint8]:
    """Labels of windows every 10 px as a map, (grid.window_rows, grid.window_columns) of `Label`.

    A window that was not labelled, as it reaches beyond the image, is ignored.
    """
    labels = np.full((grid.window_rows, grid.window_columns), Label.IGNORED, np.uint8)
    labels[windows.y_px // grid.step_px, windows.x_px // grid.step_px] = windows.label
    return labels


def piece_labels(labels: npt.NDArray[np.uint8]) -> Labels:
    """Cut a map of labels into the pieces that cover it, row by row: (piece rows, piece columns, 45, 45)."""
    rows, columns = (-(-length // PIECE_WINDOWS) for length in labels.shape)
    wide = np.full((rows * PIECE_WINDOWS, columns * PIECE_WINDOWS), Label.IGNORED, np.uint8)
    wide[: labels.shape[0], : labels.shape[1]] = labels
    return wide.reshape(rows, PIECE_WINDOWS, columns, PIECE_WINDOWS).swapaxes(1, 2)


def read_piece(
    slide: Slide, row: int, column: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_], str | None]:
    """Pixels of a piece, (480, 480, 3); white beyond the image, and where it can't be decoded.

    Args:
        slide: to read.
        row: of pieces, as `piece_labels` counts.
        column: of pieces.

    Returns:
        The pixels; which of its (45, 45) windows touch what can't be decoded; and why it can't.
    """
    step = PIECE_WINDOWS * STEP_PX
    area = Area(row * step, column * step, PIECE_PX, PIECE_PX)
    read = read_around_holes(slide, area, WINDOW_MPP)
    lost = sliding_window_view(read.lost(area), (WINDOW_PX, WINDOW_PX))[::STEP_PX, ::STEP_PX]
    touched: npt.NDArray[np.bool_] = np.any(lost, axis=(2, 3))
    return read.pixels, touched, read.reason


def choose_pieces(
    *,
    tumor: npt.NDArray[np.bool_],
    side: Sequence[Side],
    slide: Sequence[str],
    max_tiles: int,
    seed: int,
) -> npt.NDArray[np.intp]:
    """Choose pieces: at most `max_tiles` of development and as many of test.

    Training and validation share in proportion to what they have. On each side half of the pieces hold tumor,
    as far as there are such, and every slide gives as many, or all it has; which ones is drawn at random.

    Args:
        tumor: (n,) whether the piece holds a tumor window.
        side: (n,) of its patient.
        slide: (n,) a name that is unique in the project.
        max_tiles: cap.
        seed: of the random choice.

    Returns:
        Indices of the chosen pieces, rising.
    """
    sides, slides = np.asarray([one.value for one in side], np.str_), np.asarray(slide, np.str_)
    having = {one: int((sides == one.value).sum()) for one in Side}
    development = having[Side.TRAIN] + having[Side.VALIDATION]
    chosen: list[npt.NDArray[np.intp]] = []
    for one in Side:
        of = having[one] if one is Side.TEST else development
        quota = having[one] if of <= max_tiles else round(max_tiles * having[one] / of)
        with_tumor, without = (
            np.flatnonzero((sides == one.value) & (tumor == flag)) for flag in (True, False)
        )
        half = min(len(with_tumor), max(quota - quota // 2, quota - len(without)))
        chosen.append(_evenly(with_tumor, slides, half, seed))
        chosen.append(_evenly(without, slides, min(len(without), quota - half), seed))
    return np.sort(np.concatenate(chosen))


def _evenly(
    pool: npt.NDArray[np.intp], slides: npt.NDArray[np.str_], quota: int, seed: int
) -> npt.NDArray[np.intp]:
    """`quota` of the pool, in turn from every slide."""
    generator = np.random.default_rng(seed)
    pool = pool[generator.permutation(len(pool))]
    turn = np.zeros(len(pool), np.intp)
    for name in np.unique(slides[pool]):
        of_slide = np.flatnonzero(slides[pool] == name)
        turn[of_slide] = np.arange(len(of_slide))
    return pool[np.argsort(turn, kind="stable")[:quota]]


def write_tiles(
    folder: Path, part: Part, chunks: Iterable[Chunk], *, count: int, split: SealedSplit
) -> dict[str, str]:
    """Write one part of a step's tiles, chunk by chunk (one piece, say); none of it is kept in memory.

    Args:
        folder: of the step.
        part: which; a row that does not belong to it is refused.
        chunks: rows with their pixels and labels.
        count: pieces in all.
        split: sealed into the table.

    Returns:
        File, from the step's folder on → SHA-256.

    Raises:
        SealedSplitError: a row belongs to the other part.
    """
    place = folder / part
    kind = DevelopmentTiles if part is Part.DEVELOPMENT else TestTiles
    with (
        atomic_path(place / PIXELS) as pixel_file,
        atomic_path(place / LABELS) as label_file,
        atomic_path(place / TABLE) as table_file,
    ):
        pixels = new_array(pixel_file, (count, PIECE_PX, PIECE_PX, 3))
        labels = new_array(label_file, (count, PIECE_WINDOWS, PIECE_WINDOWS))
        tables = [SCHEMA.empty_table()]
        done = 0
        for rows, some_pixels, some_labels in chunks:
            table = _table(rows)
            kind(some_pixels, some_labels, table, split)
            pixels[done : done + len(rows)] = some_pixels
            labels[done : done + len(rows)] = some_labels
            done += len(rows)
            tables.append(table)
        assert done == count
        for array in (pixels, labels):
            flush(array)
        pq.write_table(pa.concat_tables(tables).cast(sealed(SCHEMA, split)), table_file, compression="zstd")
    return {f"{part}/{name}": sha256_file(place / name) for name in (PIXELS, LABELS, TABLE)}


def open_development_tiles(folder: Path, split: SealedSplit) -> DevelopmentTiles:
    """Open the tiles of a step that may be learnt from; the pixels are mapped, not loaded.

    Raises:
        StepError: there are none, or they are damaged, or were cut under another split.
        SealedSplitError: a test patient's tile is among them.
    """
    return DevelopmentTiles(*_read(folder / Part.DEVELOPMENT, split), split)


def open_test_tiles(folder: Path, split: SealedSplit) -> TestTiles:
    """Open the test tiles, for figures; raises as `open_development_tiles`."""
    return TestTiles(*_read(folder / Part.TEST, split), split)


def _table(rows: Sequence[TileRow]) -> pa.Table:
    columns = {name: [getattr(row, name) for row in rows] for name in SCHEMA.names if name != "side"}
    columns["side"] = [row.side.value for row in rows]
    return pa.table(columns, schema=SCHEMA)


def _read(place: Path, split: SealedSplit) -> tuple[Pixels, Labels, pa.Table]:
    arrays = {PIXELS: True, LABELS: False}
    (pixels, labels), table = read_sealed(place, TABLE, arrays, schema=SCHEMA, split=split, what="tiles")
    return pixels, labels, table
