"""The study's cohort: which images take part, whose they are, and on which side of the split."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from hnscc_qp.errors import AnnotationError, StepError
from hnscc_qp.files import sha256_file, write_json
from hnscc_qp.patches.labels import annotated_meanings
from hnscc_qp.patches.seal import Member, SealedSplit
from hnscc_qp.patches.split import ImageCase, Side, SkippedImage, case_of, split_patients
from hnscc_qp.qupath.objects import PathObject
from hnscc_qp.qupath.project import ImageEntry
from hnscc_qp.steps.context import Context

COHORT_FILE = "cohort.json"


@dataclass(frozen=True, slots=True)
class CohortImage:
    """An image that takes part, with its objects."""

    entry: ImageEntry
    objects: tuple[PathObject, ...]
    case: ImageCase
    side: Side


@dataclass(frozen=True, slots=True)
class ReadCohort:
    """All images that take part, and what is to be said about them and the others."""

    images: tuple[CohortImage, ...]
    failed: dict[str, str]
    notes: tuple[str, ...]


def read_cohort(context: Context) -> ReadCohort:
    """Read every image's objects, and put its patient on a side of the split.

    Raises:
        AnnotationError: no image has a tumor annotation, or the study names a class that none has.
        CohortError: an image's status is no status, or contradicts its annotations.
        HnsccQpError: no image can be read.
    """
    study = context.study
    read, failed = context.each_image(context.project.images, context.objects, doing="reading objects")
    _check_classes(context, read.values(), complete=not failed)
    cases: dict[str, ImageCase] = {}
    notes: list[str] = []
    for image in context.project.images:
        if image.entry_id not in read:
            continue
        case = case_of(image, read[image.entry_id], cohort=study.cohort, classes=study.classes)
        if isinstance(case, SkippedImage):
            notes.append(f"{case.name} takes no part: it {case.reason}")
        else:
            cases[image.entry_id] = case
            notes += case.notes
    sides = split_patients(cases.values(), study.split)
    images = tuple(
        CohortImage(
            image,
            read[image.entry_id],
            cases[image.entry_id],
            sides[cases[image.entry_id].patient],
        )
        for image in context.project.images
        if image.entry_id in cases
    )
    return ReadCohort(images, failed, tuple(notes))


def write_members(folder: Path, images: tuple[CohortImage, ...]) -> None:
    """Write `cohort.json`: every image that takes part, with patient, status and side."""
    write_json(
        folder / COHORT_FILE,
        [
            {
                "entry_id": image.entry.entry_id,
                "image": image.entry.name,
                "patient": image.case.patient,
                "positive": image.case.positive,
                "side": str(image.side),
            }
            for image in images
        ],
    )


def read_members(folder: Path) -> SealedSplit:
    """Read what `write_members` wrote: the split that patches were cut under.

    Raises:
        StepError: it is missing or damaged.
        SealedSplitError: it was changed such that a patient is on both sides.
    """
    path = folder / COHORT_FILE
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        by_entry = {
            row["entry_id"]: Member(row["patient"], row["positive"], Side(row["side"])) for row in rows
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StepError(f"{path} is missing or damaged; run hnscc-qp patches with --force") from error
    return SealedSplit(by_entry, sha256_file(path))


def _check_classes(context: Context, read: Iterable[tuple[PathObject, ...]], *, complete: bool) -> None:
    """Every class that the study names must be on some annotation: a misspelt one would go unnoticed."""
    classes = context.study.classes
    there: Counter[str] = Counter()
    for objects in read:
        for item, _ in annotated_meanings(objects, classes):
            if item.path_class:
                # A derived class stands for its bases too.
                names = item.path_class.names
                there.update(": ".join(names[:length]) for length in range(1, len(names) + 1))
    listed = ", ".join(f"{name} ({count})" for name, count in sorted(there.items())) or "none"
    for meaning, wanted in (
        ("tumor", classes.tumor),
        ("nontumor", classes.nontumor),
        ("ignored", classes.ignored),
        ("region", classes.region),
    ):
        missing = [name for name in wanted if name not in there]
        # An image that can't be read may hold the class.
        if missing and there and complete:
            raise AnnotationError(
                f"no annotation has the class {', '.join(missing)} that the study names under "
                f"classes.{meaning}; correct it to one of those there: {listed}"
            )
    if not any(name in there for name in classes.tumor):
        raise AnnotationError(
            f"no image of {context.project.path} has a tumor annotation ({', '.join(classes.tumor)}); "
            f"outline tumors in QuPath and save; classes there: {listed}"
        )
