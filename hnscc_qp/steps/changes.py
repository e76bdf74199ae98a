"""What a generation learns from that its parent did not: slides, windows, lessons of review."""

from __future__ import annotations

import json
from typing import Any

from hnscc_qp.generation import Generation
from hnscc_qp.patches.split import Side
from hnscc_qp.steps import patches
from hnscc_qp.steps.cohort import read_members
from hnscc_qp.steps.drawn import AS_DRAWN
from hnscc_qp.steps.lessonfile import STEP as LESSONS

_LABELS = ("tumor", "nontumor")


def changes(before: Generation, after: Generation) -> dict[str, Any]:
    """Compare what two generations cut, once both have cut it.

    Returns:
        `slides`: names of those that are `new`, `gone`, or `changed` (annotated or taught otherwise);
        `windows` and `patches`, on each side of the split: [before, after]; `lessons`: regions by kind.

    Raises:
        StepError: one of them has no patches.
    """
    cut = [generation.need(patches.STEP, command="hnscc-qp patches") for generation in (before, after)]
    names = [_names(generation) for generation in (before, after)]
    states = [
        {entry: state for entry in known if (state := one["inputs"].get(f"image {entry}"))}
        for one, known in zip(cut, names, strict=True)
    ]
    everything = names[0] | names[1]
    drawn = [one.get(AS_DRAWN, {}) for one in cut]
    return {
        "slides": {
            "new": sorted(everything[entry] for entry in states[1].keys() - states[0].keys()),
            "gone": sorted(everything[entry] for entry in states[0].keys() - states[1].keys()),
            "changed": sorted(
                everything[entry]
                for entry in states[0].keys() & states[1].keys()
                if states[0][entry] != states[1][entry] and drawn[0].get(entry, 0) != drawn[1].get(entry, 1)
            ),
        },
        "windows": {label: [one["counts"]["windows"][label] for one in cut] for label in _LABELS},
        "patches": {
            f"{side} {label}": [one["counts"]["patches"][str(side)][label] for one in cut]
            for side in (Side.TRAIN, Side.VALIDATION)
            for label in _LABELS
        },
        "lessons": _lessons(after),
    }


def describe(found: dict[str, Any]) -> list[str]:
    """The changes as lines for people."""
    lines = []
    for what, names in found["slides"].items():
        if names:
            lines.append(f"slides {what}: {', '.join(names)}")
    for label, (before, after) in found["windows"].items():
        lines.append(f"{label} windows: {before:,} → {after:,} ({after - before:+,})")
    if found["lessons"]:
        lines.append(
            "from review: " + ", ".join(f"{count} {kind}" for kind, count in found["lessons"].items())
        )
    return lines


def _names(generation: Generation) -> dict[str, str]:
    folder = generation.step(patches.STEP)
    rows = json.loads((folder / "cohort.json").read_text(encoding="utf-8"))
    known = read_members(folder).by_entry
    return {row["entry_id"]: row["image"] for row in rows if row["entry_id"] in known}


def _lessons(generation: Generation) -> dict[str, int]:
    manifest = generation.manifest(LESSONS)
    counts = manifest["counts"]["regions"] if manifest else {}
    return {kind: count for kind, count in counts.items() if count}
