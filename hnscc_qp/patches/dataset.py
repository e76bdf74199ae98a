"""Patches on disk, development and test apart, and the only ways to open them.

A step's folder holds `development/` and, from `patches`, `test/`; each with `patches.npy`, the
pixels, and `patches.parquet`, where each patch came from and why it has its label. Training takes
a `DevelopmentSet`: one can't be made while it holds a row of a test patient, whatever the files say.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import InitVar, dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from hnscc_qp.errors import SealedSplitError
from hnscc_qp.files import atomic_path, sha256_file
from hnscc_qp.geometry import WINDOW_PX
from hnscc_qp.patches.labels import Label
from hnscc_qp.patches.seal import SealedSplit
from hnscc_qp.patches.split import Side
from hnscc_qp.patches.stored import Part, flush, new_array, read_sealed, sealed

PIXELS = "patches.npy"
TABLE = "patches.parquet"

Pixels = npt.NDArray[np.uint8]
"""(patches, window, window, 3) uint8."""


SCHEMA = pa.schema(
    [
        ("patch", pa.int64()),
        ("entry_id", pa.string()),
        ("slide", pa.string()),
        ("image_sha256", pa.string()),
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
    image_sha256: str = ""
    """State of the image in the project that it was made from: `Project.fingerprint`."""


@dataclass(frozen=True, slots=True)
class _Patches:
    """Pixels, and the table that says of each what it is."""

    pixels: Pixels
    """Mapped from the file: only what is looked at is read."""
    table: pa.Table
    """One row per patch."""
    split: InitVar[SealedSplit]
    label: npt.NDArray[np.uint8] = field(init=False)
    """(patches,) 1 = tumor, 0 = nontumor."""
    side: npt.NDArray[np.str_] = field(init=False)
    """(patches,) `Side`."""
    patient: npt.NDArray[np.str_] = field(init=False)
    """(patches,)"""

    def __post_init__(self, split: SealedSplit) -> None:
        assert len(self.pixels) == len(self.table)
        tumor = np.asarray(pc.equal(self.table["label"], Label.TUMOR.name.lower()))
        for name, values in (
            ("label", tumor.astype(np.uint8)),
            ("side", np.asarray(self.table["side"].to_pylist(), np.str_)),
            ("patient", np.asarray(self.table["patient"].to_pylist(), np.str_)),
        ):
            values.flags.writeable = False
            object.__setattr__(self, name, values)
        # The table's own word is not enough: every row must be what the split says of its image.
        seen = self.table.select(["entry_id", "patient", "side"]).group_by(["entry_id", "patient", "side"])
        for row in seen.aggregate([]).to_pylist():
            split.check(row["entry_id"], row["patient"], row["side"], what="patch", step="patches")

    def on(self, side: Side) -> npt.NDArray[np.intp]:
        """Patches of a side of the split, in order."""
        return np.flatnonzero(self.side == side)


@dataclass(frozen=True, slots=True)
class DevelopmentSet(_Patches):
    """Patches that may be learnt from: training and validation.

    Raises:
        SealedSplitError: where it is made, if it holds any patch of a test patient.
    """

    def __post_init__(self, split: SealedSplit) -> None:
        split.admit(self.table["entry_id"].unique().to_pylist())
        _Patches.__post_init__(self, split)


@dataclass(frozen=True, slots=True)
class TestSet(_Patches):
    """Patches for the last figures only; not a `DevelopmentSet`, and nothing makes one of it."""

    __test__ = False  # to pytest

    def __post_init__(self, split: SealedSplit) -> None:
        _Patches.__post_init__(self, split)
        if set(self.side.tolist()) - {Side.TEST.value}:
            raise SealedSplitError("a test set holds patches of development; run hnscc-qp patches again")


def rows_table(rows: Sequence[PatchRow]) -> pa.Table:
    """Rows as a table of `SCHEMA`, numbered from 0."""
    columns = {
        name: [getattr(row, name) for row in rows]
        for name in SCHEMA.names
        if name not in ("patch", "side", "label", "annotation_ids")
    }
    columns["patch"] = list(range(len(rows)))
    columns["side"] = [row.side.value for row in rows]
    columns["label"] = [row.label.name.lower() for row in rows]
    columns["annotation_ids"] = [list(row.annotation_ids) for row in rows]
    return pa.table(columns, schema=SCHEMA)


def write_patches(
    folder: Path, part: Part, chunks: Iterable[tuple[pa.Table, Pixels]], *, count: int, split: SealedSplit
) -> dict[str, str]:
    """Write one part of a step's patches; the same rows and pixels give the same bytes.

    Chunks (one image's, say) are written as they come and not kept.

    Args:
        folder: of the step.
        part: which; a row that does not belong to it is refused.
        chunks: tables of `SCHEMA` with their pixels.
        count: patches in all.
        split: sealed into the files.

    Returns:
        File, from the step's folder on → SHA-256.

    Raises:
        SealedSplitError: a row belongs to the other part.
    """
    place = folder / part
    schema = sealed(SCHEMA, split)
    kind = DevelopmentSet if part is Part.DEVELOPMENT else TestSet
    with atomic_path(place / PIXELS) as pixel_file, atomic_path(place / TABLE) as table_file:
        out = new_array(pixel_file, (count, WINDOW_PX, WINDOW_PX, 3))
        done = 0
        with pq.ParquetWriter(table_file, schema, compression="zstd") as writer:
            for table, pixels in chunks:
                kind(pixels, table, split)
                numbers = pa.array(range(done, done + len(table)), pa.int64())
                writer.write_table(table.set_column(0, "patch", numbers).cast(schema))
                out[done : done + len(pixels)] = pixels
                done += len(table)
        assert done == count
        flush(out)
    return {f"{part}/{name}": sha256_file(place / name) for name in (PIXELS, TABLE)}


def open_development(folder: Path, split: SealedSplit) -> DevelopmentSet:
    """Open the patches of a step that may be learnt from; the pixels are mapped, not loaded.

    Raises:
        StepError: there are no patches, or they are damaged, or were cut under another split.
        SealedSplitError: a test patient's patch is among them.
    """
    return DevelopmentSet(*_read(folder / Part.DEVELOPMENT, split), split)


def open_test(folder: Path, split: SealedSplit) -> TestSet:
    """Open the test patches, for figures; raises as `open_development`."""
    return TestSet(*_read(folder / Part.TEST, split), split)


def _read(place: Path, split: SealedSplit) -> tuple[Pixels, pa.Table]:
    (pixels,), table = read_sealed(place, TABLE, {PIXELS: True}, schema=SCHEMA, split=split, what="patches")
    return pixels, table
