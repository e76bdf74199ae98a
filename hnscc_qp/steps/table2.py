"""Table 2 of Tang et al. 2022: networks side by side, for people and for programs."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hnscc_qp import RESEARCH_USE_ONLY
from hnscc_qp.files import atomic_path, write_json, write_text

TABLE = "table2"


def write_table(folder: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write the rows as CSV, JSON and Markdown.

    Args:
        folder: for `table2.csv`, `table2.json` and `table2.md`.
        rows: a network each, see `steps.networks`.
    """
    write_json(folder / f"{TABLE}.json", list(rows))
    columns = list(dict.fromkeys(key for row in rows for key in row))
    flat = [column for column in columns if not _is_interval(column)]
    header = []
    for column in columns:
        header += [column] if column in flat else [f"{column} low", f"{column} high"]
    with (
        atomic_path(folder / f"{TABLE}.csv") as partial,
        partial.open("w", newline="", encoding="utf-8") as file,
    ):
        table = csv.writer(file)
        table.writerow(header)
        for row in rows:
            cells: list[Any] = []
            for column in columns:
                value = row.get(column)
                cells += [value] if column in flat else list(value or (None, None))
            table.writerow(cells)
    write_text(folder / f"{TABLE}.md", _markdown(rows))


def _is_interval(column: str) -> bool:
    return column.endswith((" interval", " wilson"))


def _markdown(rows: Sequence[dict[str, Any]]) -> str:
    sides = [side for side in ("validation", "test") if any(f"{side} auc" in row for row in rows)]
    head = ["network", "depth", "parameters"]
    head += [f"{share}, {side}" for side in sides for share in ("accuracy", "AUC")]
    lines = [
        "# Candidates for the primary (Table 2 of Tang et al. 2022)",
        "",
        f"**{RESEARCH_USE_ONLY}**",
        "",
        "| " + " | ".join([*head, ""]) + " |",
        "|" + " --- |" * (len(head) + 1),
    ]
    for row in rows:
        cells = [row["network"], str(row["depth"]), f"{row['parameters'] / 1e6:.1f} M"]
        for side in sides:
            cells += [accuracy_text(row, side), auc_text(row, side)]
        lines.append("| " + " | ".join([*cells, "the primary" if row["chosen"] else ""]) + " |")
    lines += [
        "",
        "Depth: convolutions and linear layers on the longest way through. Parameters: with the head of two "
        "classes. Intervals of 95 % by patients drawn with replacement, for accuracy never narrower than "
        "Wilson's; none where fewer than two patients have what is counted. Validation chose each network's "
        "epoch and the network; test chose nothing. "
        "table2.csv holds sensitivity, specificity, Wilson's intervals and times, too.",
    ]
    return "\n".join(lines) + "\n"


def accuracy_text(row: dict[str, Any], side: str) -> str:
    """Such as `97.3 % (96.1 to 98.0)`."""
    if row.get(f"{side} accuracy") is None:
        return "none"
    text = f"{100 * row[f'{side} accuracy']:.1f} %"
    if interval := row[f"{side} accuracy interval"]:
        text += " ({:.1f} to {:.1f})".format(*(100 * end for end in interval))
    return text


def auc_text(row: dict[str, Any], side: str) -> str:
    """Such as `0.996 (0.991 to 0.998)`."""
    if row.get(f"{side} auc") is None:
        return "none"
    text = f"{row[f'{side} auc']:.3f}"
    if interval := row[f"{side} auc interval"]:
        text += " ({:.3f} to {:.3f})".format(*interval)
    return text
