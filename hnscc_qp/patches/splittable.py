"""A split from a CSV file: who is on which side, line by line."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hnscc_qp.errors import CohortError

_SIDES = ("train", "validation", "development", "test")


@dataclass(frozen=True, slots=True)
class SplitTable:
    """What the file says."""

    path: Path
    sides: Mapping[str, str]
    """Patient → `train`, `validation`, `test`, or `development` where validation is to be drawn."""


def read_split_table(path: Path, patient_of: Mapping[str, str]) -> SplitTable:
    """Read a CSV with a column `side` and a column `patient` or `slide`.

    Args:
        path: of the file, UTF-8; commas or semicolons.
        patient_of: image name → patient, of every image in the project.

    Raises:
        CohortError: it can't be read, or a line is wrong; with the line's number.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise CohortError(f"there is no file {path}; correct split.file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise CohortError(f"{path} can't be read as UTF-8 text: {error}; save it as CSV UTF-8") from error
    first = text.partition("\n")[0]
    lines = csv.reader(text.splitlines(), delimiter=";" if ";" in first and "," not in first else ",")
    header = [column.strip().lower() for column in next(lines, [])]
    keys = [column for column in ("patient", "slide") if column in header]
    if "side" not in header or len(keys) != 1:
        raise CohortError(
            f"{path}, line 1: needs the column 'side' and one of 'patient' and 'slide', "
            f"but has {', '.join(header) or 'nothing'}"
        )
    patients = set(patient_of.values())
    sides: dict[str, str] = {}
    said_on: dict[str, int] = {}
    for values in lines:
        where = f"{path}, line {lines.line_num}"
        if not any(value.strip() for value in values):
            continue
        if len(values) != len(header):
            raise CohortError(f"{where}: has {len(values)} values, the header {len(header)}; correct it")
        row = dict(zip(header, (value.strip() for value in values), strict=True))
        side, name = row["side"].lower(), row[keys[0]]
        if side not in _SIDES:
            raise CohortError(f"{where}: the side is '{row['side']}'; write one of {', '.join(_SIDES)}")
        patient = patient_of.get(name) if keys[0] == "slide" else name
        if patient is None or patient not in patients:
            raise CohortError(
                f"{where}: the project has no {keys[0]} '{name}'; correct it or delete the line"
            )
        if sides.setdefault(patient, side) != side:
            raise CohortError(
                f"{where}: {patient} is '{side}' here but '{sides[patient]}' on line {said_on[patient]}; "
                "a patient has one side"
            )
        said_on.setdefault(patient, lines.line_num)
    return SplitTable(path, sides)
