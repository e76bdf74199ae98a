"""`pull`: read the pathologist's verdicts from a reviewed project into the review log."""

from __future__ import annotations

import csv
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import shapely
from shapely.geometry.base import BaseGeometry

from hnscc_qp.errors import HnsccQpError, StepError, listed
from hnscc_qp.files import atomic_path
from hnscc_qp.generation import Generation, make_manifest, write_manifest
from hnscc_qp.patches.labels import Label, annotated_meanings
from hnscc_qp.patches.territories import polygons_only
from hnscc_qp.qupath.project import ImageEntry
from hnscc_qp.review.log import Entry, ReviewLog, now
from hnscc_qp.review.pushed import PushedImage
from hnscc_qp.review.verdict_lessons import lessons_from, standing
from hnscc_qp.review.verdict_reading import ImageReading, is_same_outline, read_verdicts
from hnscc_qp.review.verdicts import UNKNOWN_REVIEWER, Lessons, Verdict, VerdictKind
from hnscc_qp.steps import push
from hnscc_qp.steps.context import Context, Manifest
from hnscc_qp.steps.pullsource import (
    ReviewedProject,
    as_utc,
    facts_of,
    open_reviewed,
    pushed_generations,
    read_pushes,
    slide_file,
    was_pushed,
)

STEP = "pull"
VERDICT_EVENT = "verdict"
_CLOCK_TOLERANCE_S = 120
_COLUMNS = (
    "image",
    "patient",
    "object",
    "verdict",
    "reviewer",
    "time",
    "time is",
    "class",
    "generation",
    "model",
    "project",
    "area_before_um2",
    "area_after_um2",
    "added_um2",
    "removed_um2",
)


def review_log(context: Context) -> ReviewLog:
    """The study's review log."""
    return ReviewLog(context.study.root / "review")


def pull_verdicts(
    context: Context, *, project: Path | None = None, reviewer: str = UNKNOWN_REVIEWER
) -> Manifest:
    """Compare a reviewed project with what was pushed, and log what is new; doing it again adds nothing.

    Args:
        context: the study.
        project: a copy of the study's project that somebody reviewed; the study's own if None.
        reviewer: who drew, edited and deleted what bears no name.

    Raises:
        StepError: nothing was pushed yet.
        StudyError: the copy has no image of the study.
        ReviewLogError: the log is broken.
        HnsccQpError: not one image could be read.
    """
    started = time.time()
    log = review_log(context)
    entries = log.read()
    source = open_reviewed(context, project)
    pushes = pushed_generations(context)
    if not pushes:
        raise StepError(f"nothing was pushed for review yet; run: hnscc-qp push {context.study.path}")
    logged = _logged(entries)
    pushed: dict[str, tuple[PushedImage, ...]] = {}
    fingerprints: dict[str, str] = {}

    def read(own: ImageEntry) -> ImageReading:
        image = next(one for one, study_image in source.images if study_image is own)
        fingerprints[own.entry_id] = source.project.fingerprint(image)
        pushed[own.entry_id] = read_pushes(pushes, own)
        return read_verdicts(
            facts_of(context, source, image, own, reviewer=reviewer),
            source.project.objects(image),
            pushed[own.entry_id],
            imported=source.project.imported_ids(image),
            classes=context.study.classes,
        )

    images = [own for _, own in source.images if was_pushed(pushes, own)]
    if not images:
        raise StepError(
            f"nothing was pushed into the images of {source.project.path} yet; run: hnscc-qp push "
            f"{context.study.path}"
        )
    readings, failed = context.each_image(images, read, doing="reading verdicts")
    fresh = [
        verdict
        for entry_id, reading in readings.items()
        for verdict in _news(reading, logged, source.name, entry_id, reviewer=reviewer)
    ]
    added = log.append(VERDICT_EVENT, [verdict.as_json() for verdict in fresh])
    order = _note_order(entries, added)
    entries = (*entries, *added)
    lessons = read_lessons(context, entries=entries)
    rows = [_row(own, readings[own.entry_id], fresh) for own in images if own.entry_id in readings]
    _write_table(log.folder / "verdicts.csv", standing(verdicts_of(entries)))
    said = Counter(str(verdict.kind) for reading in readings.values() for verdict in reading.verdicts)
    manifest = make_manifest(
        step=STEP,
        settings={"project": source.name, "backend": source.project.backend},
        inputs=fingerprints,
        outputs={"log": lessons.head or ""},
        counts={
            "images": len(rows),
            "new entries": len(added),
            **{str(kind): said[str(kind)] for kind in VerdictKind},
            "not in QuPath": sum(reading.not_imported for reading in readings.values()),
            "conflicts": len(lessons.conflicts),
        },
        started=started,
        failed=failed,
        notes=(
            *source.notes,
            *(note for reading in readings.values() for note in reading.notes),
            *_note_unknown(context, readings),
            *_note_generations(context, readings),
            *_note_clocks(readings, pushed),
            *order,
            *_note_left(context, pushes, source),
            *(f"conflict, left out of learning: {conflict}" for conflict in lessons.conflicts),
            *(f"{name}: {reason}" for name, reason in lessons.left_out.items()),
        ),
    )
    manifest["images"] = rows
    write_manifest(context.generation.step(STEP), manifest)
    return manifest


def verdicts_of(entries: Sequence[Entry]) -> tuple[Verdict, ...]:
    """The verdicts in a log, in its order.

    Raises:
        ReviewLogError: one can't be read.
    """
    return tuple(Verdict.from_json(entry.body) for entry in entries if entry.event == VERDICT_EVENT)


def read_lessons(context: Context, *, entries: Sequence[Entry] | None = None) -> Lessons:
    """What the log has to teach, about the images that the study's project has now and that can be read.

    Raises:
        ReviewLogError: the log is broken.
    """
    if entries is None:
        entries = review_log(context).read()
    verdicts = verdicts_of(entries)
    spoken = {verdict.slide for verdict in verdicts}
    annotated: dict[str, BaseGeometry] = {}
    unreadable: dict[str, str] = {}
    for image in context.project.images:
        if slide_file(image) in spoken:
            try:
                annotated[image.entry_id] = _tumor(context, image)
            except HnsccQpError as error:
                unreadable[image.entry_id] = str(error)
    lessons = lessons_from(
        verdicts,
        present=[
            (image.entry_id, slide_file(image))
            for image in context.project.images
            if image.entry_id not in unreadable
        ],
        settings=context.study.review,
        classes=context.study.classes,
        annotated=annotated,
        head=entries[-1].hash if entries else None,
    )
    names = {image.entry_id: image.name for image in context.project.images}
    damaged = {names[entry_id]: reason for entry_id, reason in unreadable.items()}
    return replace(lessons, left_out={**lessons.left_out, **damaged})


def _tumor(context: Context, image: ImageEntry) -> BaseGeometry:
    """Where tumor is annotated now."""
    meanings = annotated_meanings(context.objects(image), context.study.classes)
    return shapely.union_all(
        [polygons_only(item.roi) for item, meaning in meanings if meaning is Label.TUMOR]
    )


def _logged(entries: Sequence[Entry]) -> dict[tuple[str, str, str], Verdict]:
    """The last word on every object from each project."""
    return {(verdict.project, *verdict.subject): verdict for verdict in verdicts_of(entries)}


def _news(
    reading: ImageReading,
    logged: Mapping[tuple[str, str, str], Verdict],
    project: str,
    entry_id: str,
    *,
    reviewer: str,
) -> list[Verdict]:
    """What the log does not say yet."""
    news = []
    seen = set()
    for verdict in reading.verdicts:
        seen.add(verdict.object_id)
        known = logged.get((project, *verdict.subject))
        if known is None:
            if verdict.kind is not VerdictKind.UNTOUCHED:
                news.append(verdict)
        elif not _says_the_same(known, verdict, reviewer=reviewer):
            news.append(verdict)
    for (of_project, of_entry, object_id), known in logged.items():
        gone = known.kind is VerdictKind.MISSED and object_id not in seen
        if gone and (of_project, of_entry) == (project, entry_id):
            news.append(_taken_back(known))
    return news


def _taken_back(known: Verdict) -> Verdict:
    """A missed tumor whose annotation is gone."""
    values = known.as_json() | {
        "kind": str(VerdictKind.UNTOUCHED),
        "found_id": None,
        "path_class": None,
        "time": now(),
        "time_is": "pulled",
        "area_after_um2": 0.0,
        "added_um2": 0.0,
    }
    return Verdict.from_json(values)


def _says_the_same(known: Verdict, verdict: Verdict, *, reviewer: str) -> bool:
    if known.kind is not verdict.kind or known.path_class != verdict.path_class:
        return False
    if verdict.kind is VerdictKind.UNTOUCHED:
        return True
    named = verdict.reviewer not in (known.reviewer, reviewer)
    later = verdict.time_is == "stated" and verdict.time != known.time
    return not named and not later and is_same_outline(known.roi, verdict.roi)


def _row(image: ImageEntry, reading: ImageReading, fresh: Sequence[Verdict]) -> dict[str, Any]:
    said = Counter(verdict.kind for verdict in reading.verdicts)
    judged = [verdict for verdict in reading.verdicts if verdict.kind is not VerdictKind.UNTOUCHED]
    return {
        "image": image.name,
        **{str(kind): said[kind] for kind in VerdictKind},
        "not in QuPath": reading.not_imported,
        "new entries": sum(verdict.entry_id == image.entry_id for verdict in fresh),
        "added um2": round(sum(verdict.added_um2 for verdict in judged), 2),
        "removed um2": round(sum(verdict.removed_um2 for verdict in judged), 2),
    }


def _write_table(path: Path, verdicts: Sequence[Verdict]) -> None:
    with atomic_path(path) as partial, partial.open("w", newline="", encoding="utf-8") as out:
        table = csv.writer(out)
        table.writerow(_COLUMNS)
        for verdict in verdicts:
            table.writerow(
                (
                    verdict.image,
                    verdict.patient,
                    verdict.object_id,
                    verdict.kind,
                    verdict.reviewer,
                    verdict.time,
                    verdict.time_is,
                    verdict.path_class,
                    verdict.generation,
                    verdict.model,
                    verdict.project,
                    verdict.area_before_um2,
                    verdict.area_after_um2,
                    verdict.added_um2,
                    verdict.removed_um2,
                )
            )


def _note_unknown(context: Context, readings: Mapping[str, ImageReading]) -> tuple[str, ...]:
    unknown = sum(reading.unknown for reading in readings.values())
    if not unknown:
        return ()
    return (
        f"{unknown} objects speak of detections that this study has no record of (its folder "
        f"{context.study.root / 'generations'} was cleared, or they are another study's): left out",
    )


def _note_generations(context: Context, readings: Mapping[str, ImageReading]) -> tuple[str, ...]:
    current = context.generation.name
    older = Counter(
        verdict.generation
        for reading in readings.values()
        for verdict in reading.verdicts
        if verdict.generation not in (current, None) and verdict.kind is not VerdictKind.UNTOUCHED
    )
    return tuple(
        f"{count} verdicts are on detections of generation {name}; current is {current}"
        for name, count in sorted(older.items(), key=str)
    )


def _note_clocks(
    readings: Mapping[str, ImageReading], pushed: Mapping[str, Sequence[PushedImage]]
) -> tuple[str, ...]:
    """Verdicts from before what they are about was pushed, or from the future."""
    latest = as_utc(time.time() + _CLOCK_TOLERANCE_S)
    odd = []
    for entry_id, reading in readings.items():
        pushed_at = {
            str(one.item.id): one.pushed_at or ""
            for image in pushed.get(entry_id, ())
            for one in image.detections
        }
        for verdict in reading.verdicts:
            if verdict.kind is VerdictKind.UNTOUCHED:
                continue
            named = f"{verdict.object_id} of {verdict.image} was {verdict.kind} at {verdict.time}"
            if verdict.time > latest:
                odd.append(f"{named}, which is yet to come")
            elif verdict.time_is == "stated" and verdict.time < pushed_at.get(verdict.object_id, ""):
                odd.append(f"{named}, before it was pushed")
    if not odd:
        return ()
    return (
        f"a clock is wrong: {listed(odd)}; verdicts count in the order of the log, whatever their time says",
    )


def _note_order(before: Sequence[Entry], added: Sequence[Entry]) -> tuple[str, ...]:
    if not (before and added and added[0].time < before[-1].time):
        return ()
    return (
        f"this computer's clock runs behind: the log's last entry is of {before[-1].time}; the order of the "
        "lines counts",
    )


def _note_left(context: Context, pushes: Sequence[Generation], source: ReviewedProject) -> tuple[str, ...]:
    """Images that something was pushed into and that the project lacks."""
    there = {own.entry_id for _, own in source.images}
    left = {
        file.name.partition(" ")[0]: file.stem.partition(" ")[2]
        for generation in pushes
        for file in generation.step(push.STEP).glob("pushed/*.geojson")
    }
    gone = sorted(name for entry_id, name in left.items() if entry_id not in there)
    if not gone:
        return ()
    return (
        f"pushed once and not in {source.project.path} any more: {listed(gone)}; what was said of them stays "
        "in the log",
    )
