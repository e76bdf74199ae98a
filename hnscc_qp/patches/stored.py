"""How patches and tiles lie on disk: arrays beside a table that carries the seal of its split."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from hnscc_qp.errors import StepError
from hnscc_qp.patches.seal import SealedSplit
from hnscc_qp.patches.split import Side

_SEAL = b"hnscc-qp split"


class Part(StrEnum):
    """The two sets that never meet; also their folders' names."""

    DEVELOPMENT = "development"
    TEST = "test"

    @classmethod
    def of(cls, side: Side) -> Part:
        """Where what was cut of a side of the split lies."""
        return cls.TEST if side is Side.TEST else cls.DEVELOPMENT


def sealed(schema: pa.Schema, split: SealedSplit) -> pa.Schema:
    """The schema as it is written: with the seal of the split that the rows were cut under."""
    return schema.with_metadata({_SEAL: split.seal.encode()})


def new_array(path: Path, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """An uint8 array of this shape to fill, mapped to a new file.

    With nothing in it, it is a plain one: a file of nothing can't be mapped.
    """
    if shape[0]:
        return np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
    with path.open("wb") as stream:
        np.save(stream, np.empty(shape, np.uint8), allow_pickle=False)
    return np.empty(shape, np.uint8)


def flush(array: npt.NDArray[np.uint8]) -> None:
    """See that what was filled in is in the file."""
    if isinstance(array, np.memmap):
        array.flush()


def read_sealed(
    place: Path,
    table_name: str,
    arrays: Mapping[str, bool],
    *,
    schema: pa.Schema,
    split: SealedSplit,
    what: str,
) -> tuple[list[npt.NDArray[Any]], pa.Table]:
    """Read a table and what lies beside it, a row of each array for each of its rows.

    Args:
        place: their folder.
        table_name: the table's file.
        arrays: file → whether it is mapped instead of loaded.
        schema: that the table must have.
        split: that it must have been cut under.
        what: `patches` or `tiles`: what they are, and the command that makes them.

    Raises:
        StepError: they are not there, damaged, no set, or cut under another split.
    """
    try:
        table = pq.read_table(place / table_name)
        loaded = [
            np.load(place / name, mmap_mode="r" if mapped and len(table) else None, allow_pickle=False)
            for name, mapped in arrays.items()
        ]
    except FileNotFoundError as error:
        raise StepError(f"there are no {what} in {place}; run: hnscc-qp {what}") from error
    except (OSError, ValueError, EOFError, pa.ArrowException) as error:
        raise StepError(f"the {what} in {place} are damaged ({error}); delete the folder") from error
    if not table.schema.equals(schema) or any(len(one) != len(table) for one in loaded):
        raise StepError(f"the {what} in {place} do not belong together; delete the folder")
    if (table.schema.metadata or {}).get(_SEAL) != split.seal.encode():
        raise StepError(f"the {what} in {place} were cut under another split; run its step with --force")
    return loaded, table
