from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from shapely.geometry import LineString, box

from hnscc_qp import study
from hnscc_qp.errors import CohortError
from hnscc_qp.patches.split import ImageCase, Side, SkippedImage, case_of, split_patients
from hnscc_qp.qupath.project import ImageEntry


def case(patient: str, positive: bool, entry: str = "1") -> ImageCase:
    return ImageCase(entry, f"{patient}-{entry}.tif", patient, positive)


def entry(name: str = "a.tif", **metadata: str) -> ImageEntry:
    return ImageEntry("1", name, "file:/a.tif", "", (), metadata, None, None, None, None, True)


def counts(sides: dict[str, Side], patients: list[str]) -> tuple[int, int, int]:
    got = [sides[patient] for patient in patients]
    return got.count(Side.TRAIN), got.count(Side.VALIDATION), got.count(Side.TEST)


def test_shares_are_kept_within_each_status():
    positive, negative = [f"P{n}" for n in range(40)], [f"N{n}" for n in range(20)]
    cases = [case(p, True) for p in positive] + [case(n, False) for n in negative]
    sides = split_patients(cases, study.Split())
    assert counts(sides, positive) == (20, 8, 12)
    assert counts(sides, negative) == (10, 4, 6)


@given(st.lists(st.tuples(st.integers(0, 12), st.booleans()), max_size=40), st.integers(0, 99))
@hypothesis_settings(deadline=None)
def test_patients_are_whole_and_every_side_has_each_status(pairs, seed):
    cases = [case(f"P{patient}", positive, str(n)) for n, (patient, positive) in enumerate(pairs)]
    settings = study.Split(seed=seed)
    sides = split_patients(cases, settings)
    assert set(sides) == {c.patient for c in cases}
    shuffled = random.Random(seed).sample(cases, len(cases))
    assert split_patients(shuffled, settings) == sides
    for positive in (True, False):
        group = sorted({c.patient for c in cases if any(d.positive for d in cases if d.patient == c.patient)})
        if not positive:
            group = sorted({c.patient for c in cases} - set(group))
        train, validation, test = counts(sides, group)
        assert train >= (len(group) > 0)
        if len(group) >= 3:
            assert min(train, validation, test) >= 1


def test_the_seed_decides():
    cases = [case(f"P{n}", n % 2 == 0) for n in range(30)]
    assert split_patients(cases, study.Split(seed=1)) == split_patients(cases, study.Split(seed=1))
    assert split_patients(cases, study.Split(seed=1)) != split_patients(cases, study.Split(seed=2))


def test_a_side_that_is_not_asked_for_stays_empty():
    cases = [case(f"P{n}", True) for n in range(9)]
    sides = split_patients(cases, study.Split(test=0.0, validation=0.0))
    assert set(sides.values()) == {Side.TRAIN}


def test_named_test_patients_are_the_test_set():
    cases = [case(f"P{n}", True) for n in range(9)]
    sides = split_patients(cases, study.Split(test_patients=("P3", "P7")))
    assert {patient for patient, side in sides.items() if side is Side.TEST} == {"P3", "P7"}
    assert counts(sides, list(sides)) == (5, 2, 2)
    with pytest.raises(CohortError, match=r"names P99; known patients are P0, P1"):
        split_patients(cases, study.Split(test_patients=("P99",)))


def read(image: ImageEntry, objects=(), **cohort: str) -> ImageCase | SkippedImage:
    return case_of(image, objects, cohort=study.Cohort(**cohort), classes=study.Classes())


@pytest.mark.parametrize(
    ("word", "positive"),
    [("positive", True), (" Pos", True), ("1", True), ("+", True), ("NEG", False), ("-", False)],
)
def test_the_status_is_what_the_metadata_says(word, positive):
    found = read(entry(patient="P1", status=word))
    assert isinstance(found, ImageCase) and found.positive is positive and found.patient == "P1"


def test_a_word_that_is_no_status_is_named():
    with pytest.raises(CohortError, match=r"a\.tif has 'status' = 'maybe'; write positive or negative"):
        read(entry(patient="P1", status="maybe"))


def test_without_a_status_the_annotations_decide(annotate):
    tumor = [annotate(box(0, 0, 9, 9), "Tumor")]
    found = read(entry(patient="P1"), tumor)
    assert isinstance(found, ImageCase) and found.positive and found.tumor_drawn and not found.notes
    skipped = read(entry(patient="P1"))
    assert isinstance(skipped, SkippedImage) and "neither" in skipped.reason
    negative = read(entry(patient="P1"), unannotated="negative")
    assert isinstance(negative, ImageCase) and not negative.positive


def test_a_negative_status_contradicts_a_tumor_annotation(annotate):
    with pytest.raises(CohortError, match=r"a\.tif has 'status' = negative but a tumor annotation"):
        read(entry(patient="P1", status="negative"), [annotate(box(0, 0, 9, 9), "Tumor: Positive")])


@pytest.mark.parametrize("measured", [True, False])
def test_a_positive_slide_without_an_outline_counts_for_the_status_only(annotate, measured):
    objects = [annotate(LineString([(0, 0), (9, 9)]), "Tumor")] if measured else []
    found = read(entry(patient="P1", status="positive"), objects)
    assert isinstance(found, ImageCase) and found.positive and not found.tumor_drawn
    assert "slide status only" in found.notes[0]


def test_an_image_without_a_patient_is_its_own():
    found = read(entry(Patient="P1", status="negative"))
    assert isinstance(found, ImageCase) and found.patient == "a.tif"
    assert "keys there: Patient, status" in found.notes[0]
