"""Slides, lesions and patches as flat tables, each column with its unit, range and meaning."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from hnscc_qp.files import atomic_path
from hnscc_qp.review.comparison import Comparison, Lesion, SlideResult, TruthLesion

DICTIONARY = "data-dictionary"
Row = Mapping[str, Any]

_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""What a spreadsheet takes for a formula."""

_TYPES: dict[str, pa.DataType] = {
    "text": pa.string(),
    "whole number": pa.int64(),
    "number": pa.float64(),
    "yes/no": pa.bool_(),
}
Kind = Literal["text", "whole number", "number", "yes/no"]


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table, as the data dictionary has it."""

    name: str
    kind: Kind
    unit: str
    """Empty where there is none."""
    range: str
    """Lowest to highest, or the words that occur."""
    meaning: str


@dataclass(frozen=True, slots=True)
class Dataset:
    """A table to hand on."""

    name: str
    """Of its file, without the ending."""
    columns: tuple[Column, ...]
    rows: Iterable[Row]


_IMAGE = Column("image", "text", "", "a name", "the image's name in the QuPath project")
_PATIENT = Column("patient", "text", "", "a name", "whose slide it is")
_SIDE = Column(
    "side", "text", "", "train, validation, test", "side of the split; train and validation: development"
)
_ID = Column("id", "text", "", "a UUID", "the object's id in QuPath")
_X = Column("x_qupath", "number", "px", "0 to the image's width", "a place inside it, across")
_Y = Column("y_qupath", "number", "px", "0 to the image's height", "a place inside it, down")
_AREA = Column("area_um2", "number", "µm²", "above 0", "its area")
_DIAMETER = Column(
    "longest_diameter_mm", "number", "mm", "above 0", "between the two points that lie farthest apart"
)
_STRATUM = Column(
    "stratum", "text", "", "≥2 mm, 0.2 to 2 mm, <0.2 mm", "by longest diameter: size only, not staging"
)
_EDGE = Column(
    "edge_distance_mm", "number", "mm", "0 or more", "from its nearest point to the edge of the tissue"
)

SLIDE_COLUMNS = (
    _IMAGE,
    Column("entry_id", "text", "", "a number", "the image's id in the QuPath project"),
    _PATIENT,
    _SIDE,
    Column("truth", "text", "", "positive, negative", "by manual review"),
    Column("call", "text", "", "positive, negative, no tissue", "by the models, at the threshold"),
    Column("max_votes", "whole number", "votes", "0 to levels", "most votes of any place on the slide"),
    Column("levels", "whole number", "votes", "4, 16, 64", "windows over a place"),
    Column("max_score", "number", "", "0 to 1", "highest score: most votes as a share"),
    Column("threshold", "number", "", "above 0 to 1", "the score from which on a place is called tumor"),
    Column("width_px", "whole number", "px", "above 0", "width of the image as QuPath shows it"),
    Column("height_px", "whole number", "px", "above 0", "its height"),
    Column("pixel_width_um", "number", "µm", "above 0", "width of a pixel"),
    Column("pixel_height_um", "number", "µm", "above 0", "its height"),
    Column("tissue_um2", "number", "µm²", "0 or more", "judged tissue"),
    Column("outlined", "yes/no", "", "", "tumor is outlined, or the slide is negative"),
    Column(
        "truth_um2", "number", "µm²", "0 or more", "outlined tumor in judged tissue; empty if not outlined"
    ),
    Column("ai_um2", "number", "µm²", "0 or more", "area over the threshold"),
    Column(
        "overlap_um2", "number", "µm²", "0 or more", "of that, inside outlined tumor; empty if not outlined"
    ),
    Column("regions", "whole number", "", "0 or more", "connected regions over the threshold"),
    Column(
        "false_regions", "whole number", "", "0 or more", "of those, the ones that touch no outlined tumor"
    ),
    Column(
        "dice", "number", "", "0 to 1", "agreement of both areas, of polygons; empty where both are empty"
    ),
    Column("iou", "number", "", "0 to 1", "shared area by joint area; empty where both are empty"),
    Column(
        "area_ratio", "number", "", "0 or more", "AI's area by the outlined one; empty without the latter"
    ),
    Column("boundary_mean_um", "number", "µm", "0 or more", "mean distance between both outlines"),
    Column("boundary_95_um", "number", "µm", "0 or more", "95th percentile of the same distances"),
)
LESION_COLUMNS = (
    _IMAGE,
    _PATIENT,
    _SIDE,
    _ID,
    _X,
    _Y,
    _AREA,
    _DIAMETER,
    _STRATUM,
    Column("max_score", "number", "", "threshold to 1", "highest score in it"),
    Column("mean_score", "number", "", "threshold to 1", "mean score over it"),
    _EDGE,
    Column("match", "text", "", "detected, false, not judged", "whether it touches outlined tumor"),
    Column("truth_ids", "text", "", "UUIDs", "outlined lesions that it touches, with spaces between"),
    Column("overlap_um2", "number", "µm²", "0 or more", "of its area, inside outlined tumor"),
)
TRUTH_COLUMNS = (
    _IMAGE,
    _PATIENT,
    _SIDE,
    Column(
        "id", "text", "", "a UUID", "the annotation's id in QuPath; of several pieces of one, with its part"
    ),
    _X,
    _Y,
    _AREA,
    _DIAMETER,
    _STRATUM,
    _EDGE,
    Column("found", "yes/no", "", "", "a region over the threshold touches it"),
    Column("max_score", "number", "", "0 to 1", "highest score on it: thresholds up to this find it"),
    Column("covered", "number", "", "0 to 1", "share of its area over the threshold"),
    Column("lesion_ids", "text", "", "UUIDs", "regions that touch it, with spaces between"),
    Column("isolated_cells", "yes/no", "", "", "too small to count in the FROC curve (CAMELYON16)"),
)
PATCH_COLUMNS = (
    Column("set", "text", "", "development, test", "which pixel file holds it: SET/patches.npy of the study"),
    Column("patch", "whole number", "", "0 or more", "its place in that file"),
    Column("entry_id", "text", "", "a number", "the image's id in the QuPath project"),
    Column("slide", "text", "", "a name", "the image's name in the QuPath project"),
    Column("image_sha256", "text", "", "64 hex digits", "state of the image in the project when it was cut"),
    _PATIENT,
    _SIDE,
    Column("x_px", "whole number", "px of 1 µm", "0 or more", "left edge on the grid of windows"),
    Column("y_px", "whole number", "px of 1 µm", "0 or more", "top edge on the grid of windows"),
    Column("x_qupath", "number", "px", "0 to the image's width", "left edge in the image"),
    Column("y_qupath", "number", "px", "0 to the image's height", "top edge in the image"),
    Column("label", "text", "", "tumor, nontumor", "what it was taught as"),
    Column("reason", "text", "", "in words", "the rule that gave the label"),
    Column("annotation_ids", "text", "", "UUIDs", "annotations that decided it, with spaces between"),
)


def slide_rows(comparison: Comparison) -> list[Row]:
    """`SLIDE_COLUMNS` of every compared slide."""
    level = comparison.threshold.votes - 1
    return [_slide_row(slide, comparison, level) for slide in comparison.slides]


def lesion_rows(lesions: Sequence[Lesion]) -> list[Row]:
    """`LESION_COLUMNS` of every region over the threshold."""
    return [_of(one, LESION_COLUMNS) | {"truth_ids": " ".join(one.truth_ids)} for one in lesions]


def truth_rows(lesions: Sequence[TruthLesion]) -> list[Row]:
    """`TRUTH_COLUMNS` of every outlined lesion."""
    return [_of(one, TRUTH_COLUMNS) | {"lesion_ids": " ".join(one.lesion_ids)} for one in lesions]


def patch_rows(name: str, table: pa.Table) -> Iterable[Row]:
    """`PATCH_COLUMNS` of every patch of a set, in their order."""
    for batch in table.to_batches(max_chunksize=4096):
        for row in batch.to_pylist():
            yield row | {"set": name, "annotation_ids": " ".join(row["annotation_ids"] or ())}


def write_dataset_csv(path: Path, dataset: Dataset) -> int:
    """Write a table as CSV; how many rows it has.

    A text that a spreadsheet would run as a formula gets a `'` before it.
    """
    names = [column.name for column in dataset.columns]
    count = 0
    with atomic_path(path) as partial, partial.open("w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream)
        table.writerow(names)
        for row in dataset.rows:
            table.writerow([_cell(row[name]) for name in names])
            count += 1
    return count


def write_dataset_parquet(path: Path, dataset: Dataset) -> int:
    """Write a table as Parquet, every column's unit and meaning in its metadata; how many rows it has."""
    schema = pa.schema(
        [
            pa.field(
                column.name,
                _TYPES[column.kind],
                metadata={"unit": column.unit, "range": column.range, "meaning": column.meaning},
            )
            for column in dataset.columns
        ]
    )
    count = 0
    with atomic_path(path) as partial, pq.ParquetWriter(partial, schema, compression="zstd") as writer:
        chunk: list[Row] = []
        for row in dataset.rows:
            chunk.append({column.name: row[column.name] for column in dataset.columns})
            if len(chunk) == 4096:
                writer.write_table(pa.Table.from_pylist(chunk, schema=schema))
                count, chunk = count + len(chunk), []
        writer.write_table(pa.Table.from_pylist(chunk, schema=schema))
        count += len(chunk)
    return count


def write_dictionary(folder: Path, columns: Mapping[str, Sequence[Column]], *, notes: Sequence[str]) -> None:
    """Write `data-dictionary.csv`, and `.md` for people.

    Args:
        folder: of the files that it describes.
        columns: by file name.
        notes: what holds for all files.
    """
    head = ("file", "column", "type", "unit", "range", "meaning")
    rows = [
        (file, one.name, one.kind, one.unit, one.range, one.meaning)
        for file, of_file in columns.items()
        for one in of_file
    ]
    path = folder / f"{DICTIONARY}.csv"
    with atomic_path(path) as partial, partial.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([head, *rows])
    lines = ["# Data dictionary", "", *notes, ""]
    for file, of_file in columns.items():
        lines += [f"## {file}", "", "| column | type | unit | range | meaning |", "|" + " --- |" * 5]
        lines += [
            f"| `{one.name}` | {one.kind} | {one.unit} | {one.range} | {one.meaning} |" for one in of_file
        ]
        lines.append("")
    with atomic_path(folder / f"{DICTIONARY}.md") as partial:
        partial.write_text("\n".join(lines), encoding="utf-8")


def _slide_row(slide: SlideResult, comparison: Comparison, level: int) -> Row:
    overlap = slide.exact
    return {
        "image": slide.image,
        "entry_id": slide.entry_id,
        "patient": slide.patient,
        "side": slide.side,
        "truth": slide.truth,
        "call": slide.call,
        "max_votes": slide.max_votes,
        "levels": comparison.threshold.levels,
        "max_score": slide.max_score,
        "threshold": comparison.threshold.score,
        "width_px": slide.size_qupath[0],
        "height_px": slide.size_qupath[1],
        "pixel_width_um": slide.pixel_size_um[0],
        "pixel_height_um": slide.pixel_size_um[1],
        "tissue_um2": slide.tissue_um2,
        "outlined": slide.outlined,
        "truth_um2": slide.truth_um2 if slide.outlined else None,
        "ai_um2": slide.ai_um2[level],
        "overlap_um2": slide.overlap_um2[level] if slide.outlined else None,
        "regions": slide.regions[level],
        "false_regions": slide.false_regions[level] if slide.outlined else None,
        "dice": overlap.dice if overlap else None,
        "iou": overlap.iou if overlap else None,
        "area_ratio": overlap.area_ratio if overlap else None,
        "boundary_mean_um": overlap.boundary_mean_um if overlap else None,
        "boundary_95_um": overlap.boundary_95_um if overlap else None,
    }


def _of(one: object, columns: Sequence[Column]) -> dict[str, Any]:
    return {column.name: getattr(one, column.name) for column in columns}


def _cell(value: Any) -> Any:
    if isinstance(value, str) and value.startswith(_FORMULA):
        return f"'{value}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return value
