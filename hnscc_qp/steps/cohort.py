"""The study's cohort: which images take part, whose they are, and on which side of the split."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hnscc_qp.errors import AnnotationError, CohortError, SealedSplitError, StepError
from hnscc_qp.files import sha256_file, write_json
from hnscc_qp.patches.cases import ImageCase, SkippedImage, case_of
from hnscc_qp.patches.frozen import SIDES_FILE, Seat, freeze_sides, read_frozen
from hnscc_qp.patches.labels import annotated_meanings
from hnscc_qp.patches.seal import Member, SealedSplit
from hnscc_qp.patches.split import Side, cut_date, split_patients, surgery_dates
from hnscc_qp.patches.splittable import SplitTable, read_split_table
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
        CohortError: an image's status is no status, or contradicts its annotations; or the split can't
            be made as the study asks.
        SealedSplitError: the split would move a patient who has tested or trained in this study.
        HnsccQpError: no image can be read.
    """
    read, failed = context.each_image(context.project.images, context.objects, doing="reading objects")
    check_classes(context, read.values(), complete=not failed)
    cases, notes = _cases(context, read)
    frozen = read_frozen(sides_file(context))
    sides = sides_of(context, cases.values())
    notes += _say_date(context, cases)
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
    _check_files(images)
    if frozen:
        frozen.check(map(_seat, images))
    return ReadCohort(images, failed, tuple(notes))


def sides_of(context: Context, cases: Iterable[ImageCase]) -> dict[str, Side]:
    """Every patient's side, as the study's split and its earlier generations have it; writes nothing.

    Raises:
        CohortError: the split can't be made as the study asks.
    """
    frozen = read_frozen(sides_file(context))
    return split_patients(
        cases,
        context.study.split,
        known=frozen.patients if frozen and frozen.settings == split_settings(context) else None,
        table=_split_table(context),
    )


def split_settings(context: Context) -> dict[str, Any]:
    """What decides the sides, as JSON values; of a file its content, wherever it lies."""
    settings = context.study.settings("split")["split"]
    if context.study.split.file is not None:
        path = Path(context.study.split.file)
        settings["file"] = sha256_file(path) if path.is_file() else str(path)
    return dict(settings)


def freeze_cohort(context: Context, images: tuple[CohortImage, ...]) -> None:
    """Fix the sides of these images' patients for all generations to come.

    Raises:
        SealedSplitError: one of them has the other side already.
    """
    path = sides_file(context)
    frozen = read_frozen(path)
    seats = [_seat(image) for image in images]
    if frozen:
        frozen.check(seats)
    freeze_sides(path, frozen, seats, split_settings(context))


def sides_file(context: Context) -> Path:
    """Where the sides of a study's patients are kept for good."""
    return context.study.root / "generations" / SIDES_FILE


def _seat(image: CohortImage) -> Seat:
    file = image.entry.uri.rpartition("/")[2]
    return Seat(image.case.patient, f"{image.entry.entry_id} {file}", image.side is Side.TEST)


def _cases(
    context: Context, read: dict[str, tuple[PathObject, ...]]
) -> tuple[dict[str, ImageCase], list[str]]:
    """What each image is, by entry id, and remarks. All contradictions are named at once."""
    study = context.study
    cases: dict[str, ImageCase] = {}
    notes: list[str] = []
    wrong: list[str] = []
    for image in context.project.images:
        if image.entry_id not in read:
            continue
        try:
            case = case_of(image, read[image.entry_id], cohort=study.cohort, classes=study.classes)
        except CohortError as error:
            wrong.append(str(error))
            continue
        if isinstance(case, SkippedImage):
            notes.append(f"{case.name} takes no part: it {case.reason}")
        else:
            cases[image.entry_id] = case
            notes += case.notes
    if wrong:
        raise CohortError("; ".join(wrong))
    return cases, notes


def _split_table(context: Context) -> SplitTable | None:
    settings = context.study.split
    if settings.file is None:
        return None
    key = context.study.cohort.patient
    patient_of = {
        image.name: image.metadata.get(key, "").strip() or image.name for image in context.project.images
    }
    return read_split_table(Path(settings.file), patient_of)


def _say_date(context: Context, cases: dict[str, ImageCase]) -> list[str]:
    settings = context.study.split
    if settings.by != "date":
        return []
    day = settings.test_from or cut_date(surgery_dates(cases.values()), settings.test)
    return [f"split by date: patients first operated on from {day} on are the test set"] if day else []


def _check_files(images: tuple[CohortImage, ...]) -> None:
    """The same slide twice in a project, under two patients, must not be on both sides."""
    by_file: dict[str, CohortImage] = {}
    for image in images:
        other = by_file.setdefault(image.entry.uri, image)
        if (image.side is Side.TEST) is not (other.side is Side.TEST):
            raise SealedSplitError(
                f"{other.entry.name} and {image.entry.name} are the same file but belong to "
                f"{other.case.patient} and {image.case.patient}, and one of them tests; give them one patient"
            )


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


def check_classes(context: Context, read: Iterable[tuple[PathObject, ...]], *, complete: bool) -> None:
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
