"""Which patients train, validate and test. Patients are never torn apart."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from enum import StrEnum

from hnscc_qp import study
from hnscc_qp.errors import CohortError, listed
from hnscc_qp.patches.cases import ImageCase
from hnscc_qp.patches.splittable import SplitTable


class Side(StrEnum):
    """What a patient's images are for."""

    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"


@dataclass(frozen=True, slots=True)
class _Patient:
    name: str
    positive: bool
    surgery: date | None
    """The first, where there were several."""


def split_patients(
    cases: Iterable[ImageCase],
    settings: study.Split,
    *,
    known: Mapping[str, bool] | None = None,
    table: SplitTable | None = None,
) -> dict[str, Side]:
    """Give every patient a side, in one of four ways (`settings.by`).

    A patient is positive if any image is. `patient` puts a share of the positive and a share of the
    negative patients into the test set, in the order of a hash of seed and name; `date` those whose
    first surgery was on or after a day; `fold` one of `folds` parts that are alike in status; `file` as a
    table says. Validation is drawn among the others, within each status, unless the table says it.
    Every wanted side of a draw gets a patient of each status that has three or more. The result does
    not depend on the order of the cases.

    Args:
        cases: the images.
        settings: how.
        known: patients that already have a side, true for test: they keep it where sides are drawn, so that
            a cohort can grow.
        table: for `file`.

    Raises:
        CohortError: `test_patients` names an unknown patient, a date is missing, there are too few
            patients for the folds, or the table leaves a patient out.
    """
    patients = _patients(cases)
    test, validation = _test_patients(patients, settings, known or {}, table)
    sides = {patient.name: Side.TEST if patient.name in test else Side.TRAIN for patient in patients}
    for name in validation if validation is not None else _draw_validation(patients, test, settings):
        sides[name] = Side.VALIDATION
    return dict(sorted(sides.items()))


def cut_date(patients_dates: Sequence[date], share: float) -> date | None:
    """The first day of test: such that the share from it on is nearest to the wanted; None for no test set.

    All of one day stay together, and some patient stays before it.
    """
    days = sorted(set(patients_dates))[1:]
    wanted = share * len(patients_dates)
    if not days or not share:
        return None
    return min(days, key=lambda day: (abs(sum(d >= day for d in patients_dates) - wanted), -day.toordinal()))


def surgery_dates(cases: Iterable[ImageCase]) -> list[date]:
    """Every patient's first surgery; those without are left out."""
    return [patient.surgery for patient in _patients(cases) if patient.surgery]


def _patients(cases: Iterable[ImageCase]) -> list[_Patient]:
    """In the order of their names."""
    found: dict[str, _Patient] = {}
    for case in cases:
        before = found.get(case.patient)
        days = [day for day in (before.surgery if before else None, case.surgery) if day]
        positive = case.positive or (before is not None and before.positive)
        found[case.patient] = _Patient(case.patient, positive, min(days, default=None))
    return [found[name] for name in sorted(found)]


def _test_patients(
    patients: Sequence[_Patient],
    settings: study.Split,
    known: Mapping[str, bool],
    table: SplitTable | None,
) -> tuple[set[str], set[str] | None]:
    """The test patients, and the validation patients if somebody names them."""
    if table is not None:
        return _by_table(patients, table, settings)
    if settings.test_patients:
        return _named(patients, settings), None
    if settings.by == "date":
        return _by_date(patients, settings, known), None
    if settings.by == "fold":
        return _by_fold(patients, settings, known), None
    test = set()
    for group in _by_status(patients, settings.seed):
        test |= _draw(group, settings.test, leave=1 + (settings.validation > 0), known=known)
    return test, None


def _named(patients: Sequence[_Patient], settings: study.Split) -> set[str]:
    names = [patient.name for patient in patients]
    if unknown := sorted(set(settings.test_patients) - set(names)):
        raise CohortError(
            f"split.test_patients names {', '.join(unknown)}; known patients are {', '.join(names)}"
        )
    return set(settings.test_patients)


def _by_date(patients: Sequence[_Patient], settings: study.Split, known: Mapping[str, bool]) -> set[str]:
    if missing := [patient.name for patient in patients if patient.surgery is None]:
        raise CohortError(
            f"no date of surgery of {listed(missing)}; add it in QuPath (Project → Edit project metadata, "
            "under the key that cohort.surgery_date names), or split by patient"
        )
    days = {patient.name: patient.surgery for patient in patients if patient.surgery}
    first = settings.test_from or cut_date(list(days.values()), settings.test)
    test = {name for name, day in days.items() if first and day >= first}
    if settings.test_from is None:
        # The nearest day to a share moves as a cohort grows; who has a side keeps it.
        test = {name for name in days if known.get(name, name in test)}
    return test


def _by_fold(patients: Sequence[_Patient], settings: study.Split, known: Mapping[str, bool]) -> set[str]:
    test: set[str] = set()
    dealt = 0
    for group in _by_status(patients, settings.seed):
        if group and len(group) < settings.folds:
            status = "positive" if group[0].positive else "negative"
            raise CohortError(
                f"split.folds = {settings.folds}, but there are only {len(group)} {status} patients; "
                f"use {len(group)} folds at most"
            )
        # Dealt round, the negative ones from where the positive ones ended: no fold is much larger.
        for number, patient in enumerate(group, start=dealt):
            if known.get(patient.name, number % settings.folds == settings.fold - 1):
                test.add(patient.name)
        dealt += len(group)
    return test


def _by_table(
    patients: Sequence[_Patient], table: SplitTable, settings: study.Split
) -> tuple[set[str], set[str] | None]:
    if missing := [patient.name for patient in patients if patient.name not in table.sides]:
        raise CohortError(f"{table.path} has no line for {listed(missing)}; add one for each")
    there = {patient.name: table.sides[patient.name] for patient in patients}
    test = {name for name, side in there.items() if side == Side.TEST.value}
    validation = {name for name, side in there.items() if side == Side.VALIDATION.value}
    if not validation and "development" in there.values():
        undecided = [p for p in patients if there[p.name] == "development"]
        return test, _draw_validation(undecided, set(), settings)
    return test, validation


def _draw_validation(patients: Sequence[_Patient], test: set[str], settings: study.Split) -> set[str]:
    drawn: set[str] = set()
    for group in _by_status([patient for patient in patients if patient.name not in test], settings.seed):
        drawn |= _draw(group, settings.validation, leave=1, known={})
    return drawn


def _by_status(patients: Sequence[_Patient], seed: int) -> list[list[_Patient]]:
    """Positive and negative patients, each in an order that seed and names decide."""
    order = sorted(patients, key=lambda patient: hashlib.sha256(f"{seed}/{patient.name}".encode()).digest())
    return [[patient for patient in order if patient.positive is positive] for positive in (True, False)]


def _draw(group: Sequence[_Patient], share: float, *, leave: int, known: Mapping[str, bool]) -> set[str]:
    """The first of the group up to the share; those with a side keep it and count."""
    kept = {patient.name for patient in group if known.get(patient.name)}
    new = [patient.name for patient in group if patient.name not in known]
    wanted = _share_of(len(group), share, leave=leave) - len(kept)
    return kept | set(new[: max(0, wanted)])


def _share_of(patients: int, share: float, *, leave: int) -> int:
    """The nearest number to the share: one at least if asked for, `leave` left over, where it can be."""
    wanted = math.floor(patients * share + 0.5)
    if patients > leave:
        return min(max(wanted, 1 if share > 0 else 0), patients - leave)
    return min(wanted, max(0, patients - 1))
