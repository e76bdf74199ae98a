"""Each slide's share of the work on disk, so that what was stopped goes on and memory holds no slide.

A part is named by a key that covers all it depends on: it is there, whole and right, or not there.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hnscc_qp.files import atomic_path
from hnscc_qp.patches.cut import Pixels
from hnscc_qp.patches.labels import Deciders, Reasons, WindowLabels

_ARRAYS = ("x_px", "y_px", "label")


def labels_file(folder: Path, key: str) -> Path:
    """Where the labels of the slide with this key lie."""
    return folder / f"{key[:32]}.labels.npz"


def write_labels(path: Path, windows: WindowLabels, *, notes: Sequence[str]) -> None:
    """Write a slide's labels, with remarks on the slide."""
    words = {
        "ids": windows.annotation_ids.ids,
        "unmapped": windows.unmapped,
        "skipped": windows.skipped,
        "repaired": windows.repaired,
        "notes": notes,
    }
    with atomic_path(path) as partial, partial.open("wb") as stream:
        np.savez_compressed(
            stream,
            allow_pickle=False,
            reason=windows.reason.codes,
            starts=windows.annotation_ids.starts,
            numbers=windows.annotation_ids.numbers,
            words=np.frombuffer(json.dumps(words).encode(), np.uint8),
            **{name: getattr(windows, name) for name in _ARRAYS},
        )


def read_labels(path: Path) -> tuple[WindowLabels, tuple[str, ...]]:
    """Read what `write_labels` wrote: labels and remarks."""
    with np.load(path, allow_pickle=False) as stored:
        words = json.loads(stored["words"].tobytes())
        windows = WindowLabels(
            **{name: stored[name] for name in _ARRAYS},
            reason=Reasons(stored["reason"]),
            annotation_ids=Deciders(stored["starts"], stored["numbers"], tuple(words["ids"])),
            unmapped=words["unmapped"],
            skipped=tuple(words["skipped"]),
            repaired=tuple(words["repaired"]),
        )
    return windows, tuple(words["notes"])


class PatchPart:
    """A slide's patches: the table is written last, and with it the part is done."""

    def __init__(self, folder: Path, key: str) -> None:
        self._pixels = folder / f"{key[:32]}.patches.npy"
        self._table = folder / f"{key[:32]}.patches.parquet"

    @property
    def is_done(self) -> bool:
        """Whether the part is there."""
        return self._table.is_file()

    def new_pixels(self, shape: tuple[int, int, int, int]) -> Pixels:
        """A mapped file for the pixels; half of one does no harm without its table."""
        self._pixels.parent.mkdir(parents=True, exist_ok=True)
        return np.lib.format.open_memmap(self._pixels, mode="w+", dtype=np.uint8, shape=shape)

    def finish(self, table: pa.Table, *, notes: Sequence[str]) -> None:
        """Write the table: (patches,) rows, with the numbers of their pixels under `patch`."""
        schema = table.schema.with_metadata({b"notes": json.dumps(list(notes)).encode()})
        with atomic_path(self._table) as partial:
            pq.write_table(table.cast(schema), partial, compression="zstd")

    def read(self) -> tuple[pa.Table, Pixels]:
        """Table, and mapped pixels of its rows."""
        table = pq.read_table(self._table)
        if not len(table):
            return table, np.empty((0, 0, 0, 0), np.uint8)
        pixels = np.load(self._pixels, mmap_mode="r", allow_pickle=False)
        numbers = table["patch"].to_numpy()
        return table, pixels if len(numbers) == len(pixels) else pixels[numbers]

    @property
    def labels(self) -> list[str]:
        """Label of each patch."""
        return list(pq.read_table(self._table, columns=["label"])["label"].to_pylist())

    @property
    def rows(self) -> int:
        """Patches in it."""
        return int(pq.read_metadata(self._table).num_rows)

    @property
    def notes(self) -> tuple[str, ...]:
        """Remarks on the slide."""
        return tuple(json.loads((pq.read_schema(self._table).metadata or {})[b"notes"]))
