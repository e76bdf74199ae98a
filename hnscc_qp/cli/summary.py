"""What a person reads when steps are done."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from hnscc_qp import RESEARCH_USE_ONLY
from hnscc_qp.cli import render
from hnscc_qp.cli.compared import print_comparison
from hnscc_qp.steps.context import Context
from hnscc_qp.steps.table2 import accuracy_text, auc_text

Manifest = dict[str, Any]

_FINDINGS_OF_A_KIND = 5
"""Shown of one kind on one image; the report has all."""
_MOST_COLUMNS = 8


def print_summary(manifests: Sequence[Manifest], *, generation: Path) -> None:
    """One line or table per step, then what failed."""
    for manifest in manifests:
        _PRINTERS[manifest["step"]](manifest)
        for note in manifest["notes"]:
            render.print_line(f"  {note}")
    failed = {name: reason for manifest in manifests for name, reason in manifest["failed"].items()}
    if failed:
        what = "network" if manifests[0]["step"] == "networks" else "image"
        render.print_table("left out", [what, "why"], failed.items())
    render.print_line(f"files are in {generation}")


def print_objects(manifest: Manifest) -> None:
    """What is annotated in a project, image by image."""
    version = manifest["qupath_version"]
    written_by = f"written by QuPath {version}" if version else "not written by QuPath itself"
    render.print_table(
        f"{manifest['project']} ({written_by})",
        ["image", "size px", "µm/px", "type", "class", "objects", "area mm²", "remark"],
        [
            (
                row["image"],
                " × ".join(map(str, row["size_px"])) if row["size_px"] else None,
                " × ".join(f"{side:.4g}" for side in sorted(set(row["mpp"]))) if row["mpp"] else None,
                row["type"],
                row["path_class"],
                row["objects"],
                None if row["area_mm2"] is None else f"{row['area_mm2']:.4f}",
                row["remark"],
            )
            for row in manifest["rows"]
        ],
    )
    for note in manifest["notes"]:
        render.print_line(note)
    if manifest["files"]:
        render.print_line(f"{len(manifest['files'])} files in {Path(manifest['files'][0]).parent}")


def print_installation(parts: Sequence[dict[str, Any]]) -> None:
    """What is there and what is missing."""
    render.print_table(
        "installed",
        ["part", "version", ""],
        [(part["part"], part["version"] or "missing", part["meaning"]) for part in parts],
    )


def print_image_checks(found: Manifest) -> None:
    """Every image of a study, then the problems, each with its remedy."""
    render.print_table(
        f"{found['project']} (read by {found['backend']})",
        ["image", "size px", "in the file", "origin", "µm/px", "says", "levels", "objects", "places", ""],
        [
            (
                image["image"],
                _size(image["size_px"]),
                _size(image["slide_size_px"]),
                ", ".join(map(str, image["bounds_origin_px"] or ())),
                _size([f"{side:.4g}" for side in sorted(set(image["mpp"] or ()))]),
                image["mpp_source"],
                " ".join(f"{downsample:g}" for downsample in image["levels"]),
                image["objects"],
                f"{image['marks']} exact" if image["marks"] else None,
                "problem" if image["problems"] else "ok",
            )
            for image in found["images"]
        ],
    )
    for image in found["images"]:
        for step in image["view"]:
            render.print_line(f"{image['image']}: QuPath shows it through {step}")
        for remark in image["remarks"]:
            render.print_line(f"{image['image']}: {remark}")
        for problem in image["problems"]:
            render.print_line(f"problem: {problem}")
    for note in found["notes"]:
        render.print_line(note)


def print_label_check(manifest: Manifest) -> None:
    """What contradicts itself, how many windows each rule gave, and where the pictures are."""
    findings = manifest["findings"]
    counts = Counter((one["image"], one["severity"], one["rule"]) for one in findings)
    shown: Counter[tuple[str, str, str]] = Counter()
    rows = []
    for one in findings:
        kind = (one["image"], one["severity"], one["rule"])
        shown[kind] += 1
        if shown[kind] <= _FINDINGS_OF_A_KIND:
            rows.append((*kind, one["message"]))
        elif shown[kind] == _FINDINGS_OF_A_KIND + 1:
            rows.append((*kind, f"and {counts[kind] - _FINDINGS_OF_A_KIND} more"))
    if rows:
        render.print_table("findings", ["image", "how bad", "what", "in words"], rows)
    else:
        render.print_line("nothing was found")
    windows = manifest["counts"]["windows"]
    rules = sorted({rule for of_image in windows.values() for rule in of_image})
    columns = {image: Counter(of_image) for image, of_image in windows.items()}
    if len(columns) > _MOST_COLUMNS:
        columns = {"all images": sum(columns.values(), Counter())}
    render.print_table(
        "windows by rule",
        ["rule", *columns],
        [(rule, *(of_image[rule] for of_image in columns.values())) for rule in rules],
    )
    for path in manifest["files"]:
        render.print_line(path)
    render.print_line(RESEARCH_USE_ONLY)


def print_new(made: Manifest) -> None:
    """What a new project holds, and what to do next."""
    render.print_table(
        made["project"],
        ["image", "size px", "µm/px", "metadata"],
        [
            (
                row["image"],
                _size(row["size_px"]),
                _size([f"{side:.4g}" for side in sorted(set(row["mpp"] or ()))]),
                ", ".join(f"{key}: {value}" for key, value in row["metadata"].items()),
            )
            for row in made["images"]
        ],
    )
    for note in made["notes"]:
        render.print_line(note)
    if made["failed"]:
        render.print_table("left out", ["slide", "why"], made["failed"].items())
    render.print_line("")
    render.print_line("What to do next:")
    for number, step in enumerate(made["next"], start=1):
        render.print_line(f"  {number}. {step}")


def print_what_to_open(context: Context) -> None:
    """The end of a whole run: where to look, and what to do in QuPath."""
    generation = context.generation.path
    scripts = "qupath_scripts/import_ai_detections.groovy"
    if any(not image.saved for image in context.project.images):
        # Made without QuPath: the annotations lie beside the project, too.
        scripts = "qupath_scripts/import_annotations.groovy, then import_ai_detections.groovy"
    render.print_line("")
    render.print_line("What to open:")
    render.print_line(f"  pictures of all slides   {generation / 'regions'}/*.png")
    render.print_line(f"  calls of all slides      {generation / 'calibrate' / 'slides.csv'}")
    render.print_line(f"  the project, in QuPath   {context.project.path}")
    render.print_line(f"  objects, in QuPath       drop {scripts} on its window: Run > Run for project")
    render.print_line(f"  settings of the study    {context.study.path}")
    render.print_line(f"  the report, first of all {generation / 'compare' / 'report.html'}")
    render.print_line(RESEARCH_USE_ONLY)


def _size(sides: Sequence[object] | None) -> str | None:
    return " × ".join(map(str, sides)) if sides else None


def _patches(manifest: Manifest) -> None:
    counts = manifest["counts"]
    render.print_table(
        f"patches: {counts['images']} images",
        ["side", "patients", "tumor", "nontumor"],
        [
            (side, counts["patients"][side], patches["tumor"], patches["nontumor"])
            for side, patches in counts["patches"].items()
        ],
    )


def _tiles(manifest: Manifest) -> None:
    counts = manifest["counts"]
    render.print_table(
        f"tiles: {counts['images']} images",
        ["side", "tiles", "tumor windows", "nontumor windows"],
        [
            (side, number, counts["windows"][side]["tumor"], counts["windows"][side]["nontumor"])
            for side, number in counts["tiles"].items()
        ],
    )


def _model(manifest: Manifest) -> None:
    counts = manifest["counts"]
    if not counts["trained"]:
        render.print_line(f"{manifest['step']}: not trained")
        return
    unused = "" if counts.get("kept", True) else "; not used, see below"
    render.print_table(
        f"{manifest['step']} model: best of {counts['epochs']} epochs was {counts['best epoch']}{unused}",
        ["side", "windows", "accuracy", "AUC", "95 % interval (patients)"],
        [
            (
                side,
                figures["n"],
                _percent(figures["accuracy"]),
                _three(figures["auc"]),
                "{:.3f} to {:.3f}".format(*figures["auc_interval"]) if figures["auc_interval"] else None,
            )
            for side, figures in counts["figures"].items()
        ],
    )


def _networks(manifest: Manifest) -> None:
    rows = manifest["table"]
    sides = [side for side in ("validation", "test") if any(f"{side} auc" in row for row in rows)]
    render.print_table(
        "candidates for the primary (95 % intervals by patients)",
        [
            "network",
            "depth",
            "parameters",
            *(f"{share}, {side}" for side in sides for share in ("accuracy", "AUC")),
            "time",
            "",
        ],
        [
            (
                row["network"],
                row["depth"],
                f"{row['parameters'] / 1e6:.1f} M",
                *(text(row, side) for side in sides for text in (accuracy_text, auc_text)),
                f"{row['seconds']:.0f} s",
                "the primary" if row["chosen"] else None,
            )
            for row in rows
        ],
    )


def _mine(manifest: Manifest) -> None:
    counts = manifest["counts"]
    found = " and ".join(f"{number} ({side})" for side, number in counts["false positives"].items())
    render.print_line(
        f"hard negatives: {found} false positives in {counts['windows']} windows of {counts['images']} images"
    )


def _score(manifest: Manifest) -> None:
    counts = manifest["counts"]
    render.print_line(f"score: {counts['images']} images, {counts['windows']} windows")
    if counts["unreadable windows"]:
        render.print_line(f"  {counts['unreadable windows']} windows could not be decoded and are not scored")


def _calibrate(manifest: Manifest) -> None:
    render.print_table(
        "slides",
        ["image", "patient", "side", "max score", "truth", "call", ""],
        [
            (
                slide["image"],
                slide["patient"],
                slide["side"],
                f"{slide['max_score']:.4f}",
                slide["truth"],
                slide["call"],
                "wrong" if slide["truth"] and slide["truth"] != slide["call"] else None,
            )
            for slide in manifest["slides"]
        ],
    )
    for name in ("development", "test"):
        counts = manifest["counts"][name]
        positive = counts["true positive"] + counts["false negative"]
        negative = counts["true negative"] + counts["false positive"]
        render.print_line(
            f"{name}: sensitivity {counts['true positive']}/{positive}, "
            f"specificity {counts['true negative']}/{negative}"
        )
    # Neighbouring levels that do alike share a row: there may be 64 of them.
    development = [row for row in manifest["sweep"] if row["set"] == "development"]
    alike = [list(rows) for _, rows in groupby(development, key=_sweep_cells)]
    render.print_table(
        "every threshold, on the development set",
        ["votes", "score", "sensitivity", "specificity", "false µm² per mm² of negative slides"],
        [
            (
                " to ".join(map(str, sorted({rows[0]["votes"], rows[-1]["votes"]}))),
                " to ".join(f"{score:.4f}" for score in sorted({rows[0]["score"], rows[-1]["score"]})),
                *_sweep_cells(rows[0]),
            )
            for rows in alike
        ],
    )


def _sweep_cells(row: Manifest) -> tuple[str | None, ...]:
    shares = (_percent(row[name]["value"]) if row[name] else None for name in ("sensitivity", "specificity"))
    false = row["false_um2_per_mm2"]
    return (*shares, None if false is None else f"{false:.0f}")


def _regions(manifest: Manifest) -> None:
    counts = manifest["counts"]
    render.print_line(
        f"regions: {counts['regions']} on {counts['images with regions']} of {counts['images']} images"
    )


def _push(manifest: Manifest) -> None:
    columns = ["added", "replaced", "removed", "unchanged", "left to the pathologist"]
    render.print_table(
        f"push: {manifest['counts'].get('detections', 0)} detections ({manifest['settings']['backend']})",
        ["image", *columns],
        [(row["image"], *(row[column] for column in columns)) for row in manifest["images"]],
    )


def _percent(value: float | None) -> str | None:
    return None if value is None else f"{value:.1%}".replace("%", " %")


def _three(value: float | None) -> str | None:
    return None if value is None else f"{value:.3f}"


_PRINTERS: dict[str, Callable[[Manifest], None]] = {
    "patches": _patches,
    "tiles": _tiles,
    "primary": _model,
    "networks": _networks,
    "mine": _mine,
    "secondary": _model,
    "score": _score,
    "calibrate": _calibrate,
    "regions": _regions,
    "push": _push,
    "compare": print_comparison,
}
