"""Which patients train, validate and test. Patients are never torn apart."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from hnscc_qp import study
from hnscc_qp.errors import CohortError
from hnscc_qp.patches.labels import Label, annotated_meanings
from hnscc_qp.patches.territories import polygons_only
from hnscc_qp.qupath.objects import PathObject
from hnscc_qp.qupath.project import ImageEntry

_POSITIVE_WORDS = frozenset({"positive", "pos", "1", "+"})
_NEGATIVE_WORDS = frozenset({"negative", "neg", "0", "-"})


class Side(StrEnum):
    """What a patient's images are for."""

    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"


@dataclass(frozen=True, slots=True)
class ImageCase:
    """One usable image: whose it is, and whether it has cancer."""

    entry_id: str
    name: str
    patient: str
    positive: bool
    tumor_drawn: bool = False
    """Whether a tumor is outlined; without it a positive slide has a status but no patches."""
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
        CohortError: the status is no status, or contradicts the annotations.
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
    return ImageCase(image.entry_id, image.name, patient, positive, tumor_drawn, tuple(notes))


def split_patients(cases: Iterable[ImageCase], settings: study.Split) -> dict[str, Side]:
    """Give every patient a side.

    A patient is positive if any image is; positive and negative patients are split apart, each
    with the wanted shares: first the test set, then validation from what is left. Every wanted side
    gets a patient of each status that has three or more. Patients are ordered by a hash of seed
    and name, so the result does not depend on the order of the cases.

    Raises:
        CohortError: `test_patients` names an unknown patient.
    """
    status: dict[str, bool] = {}
    for case in cases:
        status[case.patient] = status.get(case.patient, False) or case.positive
    unknown = sorted(set(settings.test_patients) - set(status))
    if unknown:
        raise CohortError(
            f"split.test_patients names {', '.join(unknown)}; known patients are {', '.join(sorted(status))}"
        )
    sides: dict[str, Side] = {}
    for positive in (True, False):
        group = [patient for patient, is_positive in status.items() if is_positive is positive]
        group.sort(key=lambda patient: hashlib.sha256(f"{settings.seed}/{patient}".encode()).digest())
        if settings.test_patients:
            test = [patient for patient in group if patient in settings.test_patients]
        else:
            test = group[: _share_of(len(group), settings.test, leave=1 + (settings.validation > 0))]
        development = [patient for patient in group if patient not in test]
        validation = development[: _share_of(len(development), settings.validation, leave=1)]
        sides |= dict.fromkeys(development, Side.TRAIN)
        sides |= dict.fromkeys(validation, Side.VALIDATION)
        sides |= dict.fromkeys(test, Side.TEST)
    return dict(sorted(sides.items()))


def _share_of(patients: int, share: float, *, leave: int) -> int:
    """The nearest number to the share: one at least if asked for, `leave` left over, where it can be."""
    wanted = math.floor(patients * share + 0.5)
    if patients > leave:
        return min(max(wanted, 1 if share > 0 else 0), patients - leave)
    return min(wanted, max(0, patients - 1))


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
