"""What a person reads of verdicts, the review log and the queue."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hnscc_qp.cli import render
from hnscc_qp.review.log import LogCheck
from hnscc_qp.review.queue import ErrorRate

Manifest = dict[str, Any]

_KINDS = ("accepted", "redrawn", "rejected", "reclassified", "deleted", "missed", "untouched")
_SHOWN = 20
"""Places of the queue on the screen; the file has all."""


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


def print_queue(manifest: Manifest, *, folder: Path) -> None:
    """Slides by value, the head of the queue, and where the whole of it is."""
    counts = manifest["counts"]
    render.print_table(
        "slides, the most valuable first",
        ["rank", "image", "value", "places", "max score"],
        [
            (row["rank"], row["image"], f"{row['value']:.2f}", row["places"], f"{row['max score']:.4f}")
            for row in manifest["slides"]
        ],
    )
    render.print_table(
        f"what to look at next: {counts['queue']} places, {counts['random']} of them at random",
        ["rank", "image", "what", "x, y (QuPath px)", "value", "max score", "stages", "novelty", "mm²", ""],
        [
            (
                item["rank"],
                item["place"]["image"],
                item["place"]["stratum"],
                "{:.0f}, {:.0f}".format(*item["place"]["box_qupath"]),
                f"{item['value']:.2f}",
                f"{item['place']['max_score']:.4f}",
                _decimals(item["place"]["disagreement"], 3),
                _decimals(item["place"]["novelty"], 1),
                f"{item['place']['size_um2'] / 1e6:.4f}",
                None if item["drawn"] is None else "random",
            )
            for item in manifest["items"][:_SHOWN]
        ],
    )
    for note in manifest["notes"]:
        render.print_line(f"  {note}")
    if manifest["failed"]:
        render.print_table("left out", ["image", "why"], manifest["failed"].items())
    render.print_line(f"all of it: {folder / 'queue.csv'} and slides.csv; --push puts boxes into QuPath")


def print_boxes(boxes: Mapping[str, int], *, there: bool, backend: str) -> None:
    """How many boxes each image has, or had."""
    total = sum(boxes.values())
    if not there:
        render.print_line(f"{total} boxes taken away; what was touched stays")
    else:
        render.print_table(f"{total} boxes of class AI: Review", ["image", "boxes"], boxes.items())
    if backend == "embedded":
        render.print_line("in QuPath, run qupath_scripts/import_ai_detections.groovy for the project")


def print_watched(manifest: Manifest) -> None:
    """One line for each pull, and what is odd."""
    counts = manifest["counts"]
    said = ", ".join(f"{counts[kind]} {kind}" for kind in _KINDS if counts[kind]) or "no detections there"
    render.print_line(f"{manifest['written']} pulled: {counts['new entries']} new entries; {said}")
    for note in manifest["notes"] if counts["new entries"] else ():
        render.print_line(f"  {note}")
    for image, reason in manifest["failed"].items():
        render.print_line(f"  left out: {image}: {reason}")


def print_retrained(manifest: Manifest) -> None:
    """What came of a retraining that the rule asked for."""
    render.print_line(f"{manifest['written']} retrained: hnscc-qp generations tells what came of it")


def print_error_rates(rates: Sequence[ErrorRate]) -> None:
    """What the random part of the queue says of all places."""
    words = {"detection": "detections that are wrong", "silent": "silent places that hold tumor"}
    rows = []
    for rate in rates:
        low, high = rate.interval or (0.0, 0.0)
        rows.append(
            (
                words[rate.stratum],
                f"{rate.errors} of {rate.looked_at}",
                None if rate.rate is None else f"{100 * rate.rate:.1f} %",
                f"{100 * low:.1f} to {100 * high:.1f} %" if rate.interval else None,
                rate.drawn - rate.looked_at or None,
                rate.frame,
            )
        )
    render.print_table(
        "errors, by the places drawn at random",
        ["", "wrong", "estimate", "95 % interval", "still open", "places in all"],
        rows,
    )
    render.print_line("A place counts up to the first one that is open, in the order of the draws.")


def _decimals(value: float | None, places: int) -> str | None:
    return None if value is None else f"{value:.{places}f}"


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
