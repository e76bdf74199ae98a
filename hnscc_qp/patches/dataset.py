"""Patches on disk: `patches.npy`, their pixels, and `patches.parquet`, where each came from and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from hnscc_qp.errors import StepError
from hnscc_qp.files import atomic_path
from hnscc_qp.geometry import Grid, Region
from hnscc_qp.patches.labels import Label
from hnscc_qp.patches.split import Side
from hnscc_qp.slides.reader import Slide

PIXELS = "patches.npy"
TABLE = "patches.parquet"

Pixels = npt.NDArray[np.uint8]
"""(patches, window, window, 3) uint8."""

_BLOCK_PX = 1000
_SCHEMA = pa.schema(
    [
        ("patch", pa.int64()),
        ("entry_id", pa.string()),
        ("slide", pa.string()),
        ("patient", pa.string()),
        ("side", pa.string()),
        ("x_px", pa.int32()),
        ("y_px", pa.int32()),
        ("x_qupath", pa.float64()),
        ("y_qupath", pa.float64()),
        ("label", pa.string()),
        ("reason", pa.string()),
        ("annotation_ids", pa.list_(pa.string())),
    ]
)


@dataclass(frozen=True, slots=True)
class PatchRow:
    """Where a patch came from, and why it has its label."""

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
    label: Label
    reason: str
    annotation_ids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PatchSet:
    """The patches of a generation."""

    pixels: Pixels
    """Mapped from the file: only what is looked at is read."""
    label: npt.NDArray[np.uint8]
    """(patches,) 1 = tumor, 0 = nontumor."""
    side: npt.NDArray[np.str_]
    """(patches,) `Side`."""
    table: pa.Table
    """One row per patch."""


def cut_windows(slide: Slide, grid: Grid, x_px: npt.ArrayLike, y_px: npt.ArrayLike) -> Pixels:
    """Read the windows whose top left corners lie at (x_px, y_px) grid px.

    Neighbouring windows are read together, in blocks of about 1 mm.

    Returns:
        (windows, grid.window_px, grid.window_px, 3) uint8, in the order asked for.
    """
    x, y = np.asarray(x_px, np.int64), np.asarray(y_px, np.int64)
    side = grid.window_px
    scale_x, scale_y = grid.pixel_size.qupath_px_per(grid.mpp)
    pixels = np.empty((len(x), side, side, 3), np.uint8)
    blocks = np.stack([y // _BLOCK_PX, x // _BLOCK_PX], axis=1).reshape(-1, 2)
    _, group = np.unique(blocks, axis=0, return_inverse=True)
    order = np.argsort(group.ravel(), kind="stable")
    for members in np.split(order, np.flatnonzero(np.diff(group.ravel()[order])) + 1):
        if not len(members):
            continue
        left, top = int(x[members].min()), int(y[members].min())
        width, height = int(x[members].max()) + side - left, int(y[members].max()) + side - top
        area = Region(left * scale_x, top * scale_y, width * scale_x, height * scale_y)
        block = slide.read(area, grid.mpp)
        for member in members:
            row, column = y[member] - top, x[member] - left
            pixels[member] = block[row : row + side, column : column + side]
    return pixels


def write_dataset(folder: Path, rows: Sequence[PatchRow], pixels: Pixels) -> None:
    """Write both files; the same rows and pixels give the same bytes."""
    assert len(rows) == len(pixels)
    columns = {
        name: [getattr(row, name) for row in rows]
        for name in _SCHEMA.names
        if name not in ("patch", "side", "label", "annotation_ids")
    }
    columns["patch"] = list(range(len(rows)))
    columns["side"] = [row.side.value for row in rows]
    columns["label"] = [row.label.name.lower() for row in rows]
    columns["annotation_ids"] = [list(row.annotation_ids) for row in rows]
    with atomic_path(folder / PIXELS) as partial:
        np.save(partial, np.ascontiguousarray(pixels), allow_pickle=False)
    with atomic_path(folder / TABLE) as partial:
        pq.write_table(pa.table(columns, schema=_SCHEMA), partial, compression="zstd")


def read_dataset(folder: Path) -> PatchSet:
    """Read what `write_dataset` wrote; the pixels are mapped, not loaded.

    Raises:
        StepError: there are no patches, or they are damaged.
    """
    try:
        pixels = np.load(folder / PIXELS, mmap_mode="r", allow_pickle=False)
        table = pq.read_table(folder / TABLE)
    except FileNotFoundError as error:
        raise StepError(f"there are no patches in {folder}; run: hnscc-qp patches") from error
    except (OSError, ValueError, EOFError, pa.ArrowException) as error:
        raise StepError(f"the patches in {folder} are damaged ({error}); delete the folder") from error
    if not table.schema.equals(_SCHEMA) or len(table) != len(pixels):
        raise StepError(f"the patches in {folder} do not belong together; delete the folder")
    names = np.asarray(table["label"].to_pylist(), np.str_)
    return PatchSet(
        pixels=pixels,
        label=(names == Label.TUMOR.name.lower()).astype(np.uint8),
        side=np.asarray(table["side"].to_pylist(), np.str_),
        table=table,
    )
