"""What a person reads of verdicts, the review log and the queue."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hnscc_qp.cli import render
from hnscc_qp.review.log import LogCheck

Manifest = dict[str, Any]

_KINDS = ("accepted", "redrawn", "rejected", "reclassified", "deleted", "missed", "untouched")


def print_pull(manifest: Manifest, *, log: Path) -> None:
    """Verdicts of every image, what is new, and what is odd."""
    counts = manifest["counts"]
    print_table = render.print_table
    print_table(
        f"verdicts in {manifest['settings']['project']} ({manifest['settings']['backend']})",
        ["image", *_KINDS, "not in QuPath", "new in the log"],
        [
            (
                row["image"],
                *(row[kind] or None for kind in _KINDS),
                row["not in QuPath"] or None,
                row["new entries"],
            )
            for row in manifest["images"]
        ],
    )
    for note in manifest["notes"]:
        render.print_line(f"  {note}")
    if manifest["failed"]:
        render.print_table("left out", ["image", "why"], manifest["failed"].items())
    render.print_line(
        f"{counts['new entries']} new entries in {log / 'log.jsonl'}; all that stands: {log / 'verdicts.csv'}"
    )


def print_diff(diff: Manifest) -> None:
    """Areas by slide and class where they differ, and where the pictures are."""
    columns = ("before_um2", "after_um2", "added_um2", "removed_um2", "changed_in_um2", "changed_out_um2")
    rows = [row for row in diff["rows"] if any(row[name] for name in columns[2:])]
    if not rows:
        render.print_line(f"nothing differs since generation {diff['since']} was pushed")
        return
    render.print_table(
        f"mm² since generation {diff['since']} was pushed",
        ["image", "class", "before", "now", "added", "removed", "from other classes", "now in"],
        [
            (
                row["image"],
                row["path_class"],
                *(f"{row[name] / 1e6:.4f}" if row[name] else None for name in columns[:5]),
                ", ".join(f"{area / 1e6:.4f} {name}" for name, area in row["into"].items()) or None,
            )
            for row in rows
        ],
    )
    for path in diff["files"]:
        render.print_line(path)


def print_log(path: Path, check: LogCheck) -> None:
    """Every entry in a line, up to the first break."""
    render.print_table(
        str(path),
        ["n", "written", "event", "what"],
        [(entry.n, entry.time, entry.event, _say(entry.body)) for entry in check.entries],
    )
    print_log_check(path, check)


def print_log_check(path: Path, check: LogCheck) -> None:
    """Whether the chain holds, and where it does not."""
    for warning in check.warnings:
        render.print_line(f"  {warning}")
    if check.breaks:
        render.print_line(f"{path} is BROKEN; good are its first {len(check.entries)} lines")
        for problem in check.breaks:
            render.print_line(f"  {problem}")
        render.print_line("restore it from a backup; verdicts that QuPath still shows can be pulled again")
    elif check.entries:
        render.print_line(f"{len(check.entries)} entries, an unbroken chain; its head is {check.head}")
    else:
        render.print_line("the log is empty: nothing was pulled yet")


def _say(body: Mapping[str, Any]) -> str:
    if "kind" not in body:
        return ", ".join(
            f"{key}: {value}" for key, value in body.items() if not isinstance(value, dict | list)
        )
    parts = [f"{body['image']}: {body['kind']}", f"by {body['reviewer']}"]
    if body.get("generation"):
        parts.append(f"generation {body['generation']}")
    if body.get("project") != "project":
        parts.append(f"in {body['project']}")
    return ", ".join(parts) + f" ({body['object_id']})"
