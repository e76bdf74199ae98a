"""What each image is in the cohort: whose, positive or negative, operated when."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date

from hnscc_qp import study
from hnscc_qp.errors import CohortError
from hnscc_qp.patches.labels import Label, annotated_meanings
from hnscc_qp.patches.territories import polygons_only
from hnscc_qp.qupath.objects import PathObject
from hnscc_qp.qupath.project import ImageEntry

_POSITIVE_WORDS = frozenset({"positive", "pos", "1", "+"})
_NEGATIVE_WORDS = frozenset({"negative", "neg", "0", "-"})


@dataclass(frozen=True, slots=True)
class ImageCase:
    """One usable image: whose it is, and whether it has cancer."""

    entry_id: str
    name: str
    patient: str
    positive: bool
    tumor_drawn: bool = False
    """Whether a tumor is outlined; without it a positive slide has a status but no patches."""
    surgery: date | None = None
    """Date of surgery, if the metadata says."""
    notes: tuple[str, ...] = ()
    """What a person should know, each in one line."""


@dataclass(frozen=True, slots=True)
class SkippedImage:
    """One image that the cohort leaves out."""

    entry_id: str
    name: str
    reason: str


def case_of(
    image: ImageEntry, objects: Sequence[PathObject], *, cohort: study.Cohort, classes: study.Classes
) -> ImageCase | SkippedImage:
    """What an image is in the cohort, from its metadata and its annotations.

    The status is what the metadata says; else positive if there is a tumor annotation; else as
    `cohort.unannotated` says. An image without a patient is its own patient.

    Raises:
        CohortError: the status is no status, or contradicts the annotations; the date is no date.
    """
    tumors = [item for item, meaning in annotated_meanings(objects, classes) if meaning is Label.TUMOR]
    positive = stated_status(image, cohort.status)
    if positive is None and not tumors:
        if cohort.unannotated == "skip":
            reason = f"has neither a '{cohort.status}' in its metadata nor a tumor annotation"
            return SkippedImage(image.entry_id, image.name, reason)
        positive = False
    elif positive is None:
        positive = True
    elif not positive and tumors:
        raise CohortError(
            f"{image.name} has '{cohort.status}' = negative but a tumor annotation; "
            "correct the metadata or delete the annotation"
        )
    notes = []
    patient = image.metadata.get(cohort.patient, "").strip()
    if not patient:
        patient = image.name
        there = ", ".join(sorted(image.metadata)) or "none"
        notes.append(
            f"{image.name} has no '{cohort.patient}' in its metadata (keys there: {there}); "
            "taken as a patient of its own"
        )
    tumor_drawn = any(item.roi.area > 0 or polygons_only(item.roi).area > 0 for item in tumors)
    if positive and not tumor_drawn:
        notes.append(
            f"{image.name} is positive but no tumor is outlined; it counts for the slide status only, "
            "outline the tumor to get patches"
        )
    return ImageCase(
        entry_id=image.entry_id,
        name=image.name,
        patient=patient,
        positive=positive,
        tumor_drawn=tumor_drawn,
        surgery=_surgery_date(image, cohort.surgery_date),
        notes=tuple(notes),
    )


def stated_status(image: ImageEntry, key: str) -> bool | None:
    """Whether the metadata says positive; None if it says nothing."""
    value = image.metadata.get(key, "").strip()
    word = value.lower()
    if not word:
        return None
    if word in _POSITIVE_WORDS:
        return True
    if word in _NEGATIVE_WORDS:
        return False
    raise CohortError(f"{image.name} has '{key}' = '{value}'; write positive or negative")


def _surgery_date(image: ImageEntry, key: str) -> date | None:
    value = image.metadata.get(key, "").strip()
    if not value:
        return None
    try:
        return date.fromisoformat(value)
    except ValueError as error:
        raise CohortError(f"{image.name} has '{key}' = '{value}'; write the date as 2019-03-31") from error
