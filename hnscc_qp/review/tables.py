"""The paper's Table 1 (cohort) and Table 3 (calls of slides) of a study, as CSV, JSON and Markdown."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from hnscc_qp import RESEARCH_USE_ONLY
from hnscc_qp.files import atomic_path, write_json, write_text
from hnscc_qp.review.comparison import Comparison, SetName, SlideResult, TruthLesion
from hnscc_qp.training.intervals import Proportion, percent

STRATA = ("≥2 mm", "0.2 to 2 mm", "<0.2 mm")
_SHARES = ("sensitivity", "specificity", "accuracy")


@dataclass(frozen=True, slots=True)
class Table:
    """A table for people: every cell is text."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def cohort_table(comparison: Comparison) -> Table:
    """Table 1: whose slides there are on each side, and what is outlined on them."""
    names: list[SetName] = [figures.set for figures in comparison.figures]
    columns: list[tuple[str, list[SlideResult], list[TruthLesion]]] = []
    for name in names:
        slides = [slide for slide in comparison.slides if (slide.side == "test") == (name == "test")]
        lesions = [one for one in comparison.truth_lesions if (one.side == "test") == (name == "test")]
        columns.append((name, slides, lesions))
    if len(columns) > 1:
        columns.append(("all", list(comparison.slides), list(comparison.truth_lesions)))
    cells = [_cohort_column(slides, lesions) for _, slides, lesions in columns]
    return Table(
        "Table 1: cohort",
        ("", *(name for name, _, _ in columns)),
        tuple((key, *(column[key] for column in cells)) for key in (cells[0] if cells else ())),
    )


def _cohort_column(slides: Sequence[SlideResult], lesions: Sequence[TruthLesion]) -> dict[str, str]:
    positive = [slide for slide in slides if slide.truth == "positive"]
    diameters = sorted(lesion.longest_diameter_mm for lesion in lesions)
    return {
        "patients": str(len({slide.patient for slide in slides})),
        "patients with a positive slide": str(len({slide.patient for slide in positive})),
        "slides": str(len(slides)),
        "positive slides": f"{len(positive)}"
        + (f" ({percent(len(positive) / len(slides))})" if slides else ""),
        "negative slides": str(len(slides) - len(positive)),
        "positive slides without outlined tumor": str(sum(not slide.outlined for slide in positive)),
        "slides without tissue": str(sum(slide.call == "no tissue" for slide in slides)),
        "judged tissue, mm²": f"{sum(slide.tissue_um2 for slide in slides) / 1e6:.2f}",
        "outlined tumor, mm²": f"{sum(slide.truth_um2 for slide in slides) / 1e6:.3f}",
        "outlined lesions": str(len(lesions)),
        **{
            f"lesions of {stratum}": str(sum(lesion.stratum == stratum for lesion in lesions))
            for stratum in STRATA
        },
        "longest diameter, mm: median (range)": (
            f"{median(diameters):.2f} ({diameters[0]:.2f} to {diameters[-1]:.2f})" if diameters else "none"
        ),
    }


def calls_table(comparison: Comparison) -> tuple[Table, list[dict[str, Any]]]:
    """Table 3: sensitivity, specificity and accuracy of slides on each set; for people, and as values."""
    rows: list[tuple[str, ...]] = []
    values: list[dict[str, Any]] = []
    for figures in comparison.figures:
        found: dict[str, Proportion | None] = {name: getattr(figures, name) for name in _SHARES}
        rows.append(
            (
                figures.set,
                str(figures.slides),
                *(_with_intervals(found[name]) for name in _SHARES),
                str(figures.auc) if figures.auc else "none",
            )
        )
        value: dict[str, Any] = {
            "set": figures.set,
            "slides": figures.slides,
            "patients": figures.patients,
            "no_tissue": figures.no_tissue,
        }
        for name, share in found.items():
            value[f"{name}_count"] = share.count if share else None
            value[f"{name}_of"] = share.of if share else None
            value[name] = share.value if share else None
            for method in ("clopper_pearson", "wilson"):
                low, high = getattr(share, method) if share else (None, None)
                value |= {f"{name}_{method}_low": low, f"{name}_{method}_high": high}
        value["auc"] = figures.auc.value if figures.auc else None
        low, high = figures.auc.interval if figures.auc and figures.auc.interval else (None, None)
        values.append(value | {"auc_low": low, "auc_high": high})
    columns = ("set", "slides", *_SHARES, "AUC")
    return Table("Table 3: calls of slides", columns, tuple(rows)), values


def _with_intervals(share: Proportion | None) -> str:
    """`75.9 % (22/29; 56.5 to 89.7)`: the exact interval."""
    if share is None:
        return "none"
    low, high = share.clopper_pearson
    return f"{percent(share.value)} ({share.count}/{share.of}; {100 * low:.1f} to {100 * high:.1f})"


def write_tables(folder: Path, comparison: Comparison) -> list[Path]:
    """Write `table1.*` and `table3.*`: CSV and JSON for programs, Markdown for people."""
    cohort = cohort_table(comparison)
    keys = cohort.columns[1:]
    cohort_values = [{"row": row[0]} | dict(zip(keys, row[1:], strict=True)) for row in cohort.rows]
    calls, calls_values = calls_table(comparison)
    notes = {
        "table1": (
            "Sizes are longest diameters of connected pieces of outlined tumor: size only, not staging."
        ),
        "table3": (
            f"At the threshold {comparison.threshold.votes}/{comparison.threshold.levels} = "
            f"{comparison.threshold.score:.4f}. In brackets: slides, and the exact 95 % interval (Clopper "
            "and Pearson); table3.csv holds Wilson's, too. AUC: interval by patients drawn with replacement. "
            "The development set chose the threshold, and its training patients taught the models: its "
            "figures flatter."
        ),
    }
    paths = []
    for name, table, values in (("table1", cohort, cohort_values), ("table3", calls, calls_values)):
        write_json(folder / f"{name}.json", values)
        write_csv(folder / f"{name}.csv", values)
        write_text(folder / f"{name}.md", as_markdown(table, note=notes[name]))
        paths += [folder / f"{name}{suffix}" for suffix in (".csv", ".json", ".md")]
    return paths


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Rows of the same keys as CSV."""
    with atomic_path(path) as partial, partial.open("w", newline="", encoding="utf-8") as stream:
        table = csv.DictWriter(stream, fieldnames=list(rows[0]) if rows else [])
        table.writeheader()
        table.writerows(rows)


def as_markdown(table: Table, *, note: str) -> str:
    """The table for people."""
    lines = [f"# {table.title}", "", f"**{RESEARCH_USE_ONLY}**", ""]
    for index, row in enumerate((table.columns, *table.rows)):
        # A bar in a value would end the cell.
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |")
        if not index:
            lines.append("|" + " --- |" * len(table.columns))
    return "\n".join([*lines, "", note]) + "\n"
