"""The parts of a comparison as CSV, one row for each thing; shares with the ends of their exact intervals."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from hnscc_qp.files import atomic_path
from hnscc_qp.review.comparison import Comparison, SlideResult
from hnscc_qp.training.intervals import Proportion

Row = Mapping[str, Any]
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def write_tables(folder: Path, comparison: Comparison) -> tuple[str, ...]:
    """Write them all into a folder; their names. A table without rows has its header alone."""
    levels = range(comparison.threshold.levels)
    tables: dict[str, tuple[list[str], Iterable[Row]]] = {
        "slides.csv": (_SLIDE, (_slide(one, comparison) for one in comparison.slides)),
        "slide_levels.csv": (
            _SLIDE_LEVEL,
            (_slide_level(one, level, comparison) for one in comparison.slides for level in levels),
        ),
        "lesions.csv": (
            _LESION,
            (
                {name: getattr(one, name) for name in _LESION} | {"truth_ids": " ".join(one.truth_ids)}
                for one in comparison.lesions
            ),
        ),
        "truth_lesions.csv": (
            _TRUTH,
            (
                {name: getattr(one, name) for name in _TRUTH} | {"lesion_ids": " ".join(one.lesion_ids)}
                for one in comparison.truth_lesions
            ),
        ),
        "sweep.csv": (
            _SWEEP,
            (
                {name: getattr(one, name) for name in _SWEEP if hasattr(one, name)}
                | _share("sensitivity", one.sensitivity)
                | _share("specificity", one.specificity)
                | _share("lesion_sensitivity", one.lesion_sensitivity)
                for one in comparison.sweep
            ),
        ),
        "roc.csv": (
            ["set", "votes", "false_positive_rate", "sensitivity"],
            (
                {"set": of.set, **{name: getattr(one, name) for name in one.__slots__}}
                for of in comparison.figures
                for one in of.roc
            ),
        ),
        "froc.csv": (
            ["set", "score", "false_per_slide", "sensitivity"],
            (
                {"set": of.set, **{name: getattr(one, name) for name in one.__slots__}}
                for of in comparison.figures
                if of.froc
                for one in of.froc.points
            ),
        ),
        "disagreements.csv": (
            _DISAGREEMENT,
            ({name: getattr(one, name) for name in _DISAGREEMENT} for one in comparison.disagreements),
        ),
        "left_out.csv": (
            ["image", "what", "reason"],
            ({"image": one.image, "what": one.what, "reason": one.reason} for one in comparison.left_out),
        ),
    }
    if comparison.readers:
        tables["readers.csv"] = (
            _READER,
            (
                {name: getattr(one, name) for name in _READER if hasattr(one, name)}
                | {"left_out": len(one.left_out)}
                | dict(zip(("kappa_low", "kappa_high"), one.kappa_interval or (None, None), strict=True))
                | _share("sensitivity", one.sensitivity)
                | _share("specificity", one.specificity)
                for one in comparison.readers.readers
            ),
        )
    for name, (columns, rows) in tables.items():
        write_table(folder / name, columns, rows)
    # Left by a comparison with readers, it would be taken for this one's.
    if not comparison.readers:
        (folder / "readers.csv").unlink(missing_ok=True)
    return tuple(tables)


def write_table(path: Path, columns: list[str], rows: Iterable[Row]) -> None:
    """Write rows under their columns, atomically; text that a spreadsheet would run is quoted with `'`."""
    with atomic_path(path) as partial, partial.open("w", newline="", encoding="utf-8") as stream:
        table = csv.DictWriter(stream, columns)
        table.writeheader()
        for row in rows:
            table.writerow({name: _cell(value) for name, value in row.items()})


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 6)
    if isinstance(value, str) and value.startswith(_FORMULA):
        return f"'{value}"
    return value


def _share(name: str, share: Proportion | None) -> dict[str, Any]:
    if share is None:
        return dict.fromkeys(_share_columns(name)) | {f"{name}_of": 0}
    values = (share.value, share.count, share.of, *share.clopper_pearson)
    return dict(zip(_share_columns(name), values, strict=True))


def _share_columns(name: str) -> list[str]:
    return [name, f"{name}_count", f"{name}_of", f"{name}_low", f"{name}_high"]


_SLIDE = [
    "image",
    "patient",
    "side",
    "truth",
    "call",
    "max_score",
    "tissue_um2",
    "outlined",
    "truth_um2",
    "ai_um2",
    "overlap_um2",
    "regions",
    "false_regions",
    *(
        f"{figure}_{how}"
        for how in ("exact", "grid")
        for figure in ("dice", "iou", "area_ratio", "boundary_mean_um", "boundary_95_um")
    ),
]
_SLIDE_LEVEL = [
    "image",
    "side",
    "truth",
    "votes",
    "score",
    "ai_um2",
    "overlap_um2",
    "largest_um2",
    "regions",
    "false_regions",
]
_LESION = [
    "image",
    "patient",
    "side",
    "id",
    "x_qupath",
    "y_qupath",
    "area_um2",
    "longest_diameter_mm",
    "stratum",
    "max_score",
    "mean_score",
    "edge_distance_mm",
    "match",
    "truth_ids",
    "overlap_um2",
]
_TRUTH = [
    "image",
    "patient",
    "side",
    "id",
    "x_qupath",
    "y_qupath",
    "area_um2",
    "longest_diameter_mm",
    "stratum",
    "edge_distance_mm",
    "found",
    "max_score",
    "covered",
    "lesion_ids",
    "isolated_cells",
]
_SWEEP = [
    "set",
    "votes",
    "score",
    *_share_columns("sensitivity"),
    *_share_columns("specificity"),
    "false_um2_per_mm2",
    "false_um2_per_mm2_negative",
    *_share_columns("lesion_sensitivity"),
    "false_regions_per_slide",
    "dice",
]
_DISAGREEMENT = [
    "image",
    "patient",
    "side",
    "kind",
    "against",
    "reason",
    "detail",
    "object_id",
    "x_qupath",
    "y_qupath",
    "area_um2",
    "max_score",
]
_READER = [
    "reader",
    "slides",
    "left_out",
    "both_positive",
    "only_ai_positive",
    "only_reader_positive",
    "both_negative",
    "kappa",
    "kappa_low",
    "kappa_high",
    *_share_columns("sensitivity"),
    *_share_columns("specificity"),
    "only_ai_right",
    "only_reader_right",
    "mcnemar_p",
]


def _slide(slide: SlideResult, comparison: Comparison) -> dict[str, Any]:
    level = comparison.threshold.votes - 1
    row: dict[str, Any] = {
        name: getattr(slide, name)
        for name in ("image", "patient", "side", "truth", "call", "max_score", "tissue_um2", "outlined")
    }
    row["truth_um2"] = slide.truth_um2 if slide.outlined else None
    row |= {name: getattr(slide, name)[level] for name in ("ai_um2", "overlap_um2", "regions")}
    row["false_regions"] = slide.false_regions[level] if slide.outlined else None
    for how in ("exact", "grid"):
        overlap = getattr(slide, how)
        for figure in ("dice", "iou", "area_ratio", "boundary_mean_um", "boundary_95_um"):
            row[f"{figure}_{how}"] = getattr(overlap, figure) if overlap else None
    return row


def _slide_level(slide: SlideResult, level: int, comparison: Comparison) -> dict[str, Any]:
    row: dict[str, Any] = {name: getattr(slide, name) for name in ("image", "side", "truth")}
    row |= {"votes": level + 1, "score": (level + 1) / comparison.threshold.levels}
    for name in ("ai_um2", "overlap_um2", "largest_um2", "regions", "false_regions"):
        row[name] = getattr(slide, name)[level]
    return row
