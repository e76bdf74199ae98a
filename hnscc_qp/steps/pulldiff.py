"""`pull --diff`: what review added, removed and changed since the last generation was pushed."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hnscc_qp.errors import StepError
from hnscc_qp.files import atomic_path
from hnscc_qp.qupath.objects import walk
from hnscc_qp.qupath.project import ImageEntry
from hnscc_qp.review.diff import ClassDiff, SlideDiff, class_areas, compare_areas
from hnscc_qp.review.diffpicture import draw_diff
from hnscc_qp.review.pushed import PushedImage
from hnscc_qp.steps.context import Context, image_file
from hnscc_qp.steps.pullsource import ReviewedProject, pixel_size_of, pushed_generations, read_pushes

_COLUMNS = (
    "image",
    "class",
    "before_um2",
    "after_um2",
    "added_um2",
    "removed_um2",
    "changed_in_um2",
    "changed_out_um2",
    "into",
)


def diff_review(context: Context, source: ReviewedProject) -> dict[str, Any]:
    """Compare every image with its state at the last push: a table, and a picture of each that differs.

    Before is what was annotated when the last generation was first pushed, and what it pushed; now is
    what the project holds.

    Returns:
        `since` (generation), `rows`, `files`, `failed`: image name → reason.

    Raises:
        StepError: no push kept a record to compare with.
        HnsccQpError: not one image could be compared.
    """
    pushes = pushed_generations(context)
    by_image = {own.entry_id: _last_recorded(read_pushes(pushes, own)) for _, own in source.images}
    recorded = [pushed for pushed in by_image.values() if pushed is not None]
    if not recorded:
        raise StepError(
            "no push has a record of what was annotated before it, so nothing can be compared; run: "
            f"hnscc-qp push {context.study.path}"
        )
    since = max((pushed.generation for pushed in recorded), key=int)
    folder = context.study.root / "review" / "diff"
    of_own = {own.entry_id: image for image, own in source.images}

    def compare(own: ImageEntry) -> tuple[SlideDiff, Path | None]:
        pushed = by_image[own.entry_id]
        assert pushed is not None and pushed.before is not None
        there = source.project.objects(of_own[own.entry_id])
        last = [one.item for one in pushed.detections if one.is_last]
        imported = source.project.imported_ids(of_own[own.entry_id])
        if not imported and not {item.id for item in last} & {item.id for _, item in walk(there)}:
            last = []  # not imported: nobody removed it
        before = class_areas([*pushed.before, *last])
        diff = compare_areas(
            before, class_areas(there), image=own.name, pixel_size=pixel_size_of(context, own)
        )
        path = image_file(folder, own, ".png")
        if not diff.differs:
            path.unlink(missing_ok=True)
            return diff, None
        with atomic_path(path) as partial:
            draw_diff(context.open_as_scanned(own), diff).save(partial, format="PNG")
        return diff, path

    images = [own for _, own in source.images if by_image[own.entry_id] is not None]
    done, failed = context.each_image(images, compare, doing="comparing with the last push")
    rows = [row for diff, _ in done.values() for row in diff.rows]
    table = folder / "diff.csv"
    _write(table, rows)
    files = [table, *(path for _, path in done.values() if path)]
    return {
        "since": since,
        "rows": [asdict(row) for row in rows],
        "files": [str(path) for path in files],
        "failed": failed,
    }


def _last_recorded(pushed: Sequence[PushedImage]) -> PushedImage | None:
    return next((image for image in reversed(pushed) if image.before is not None), None)


def _write(path: Path, rows: Sequence[ClassDiff]) -> None:
    with atomic_path(path) as partial, partial.open("w", newline="", encoding="utf-8") as out:
        table = csv.writer(out)
        table.writerow(_COLUMNS)
        for row in rows:
            values = asdict(row)
            values["into"] = "; ".join(f"{name} {area}" for name, area in row.into.items())
            table.writerow(values.values())
