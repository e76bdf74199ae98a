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
