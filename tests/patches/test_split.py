from __future__ import annotations

import random
from datetime import date, timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from shapely.geometry import LineString, box
from sklearn.model_selection import StratifiedKFold

from hnscc_qp import study
from hnscc_qp.errors import CohortError
from hnscc_qp.patches.cases import ImageCase, SkippedImage, case_of
from hnscc_qp.patches.split import Side, cut_date, split_patients
from hnscc_qp.patches.splittable import read_split_table
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


def dated(days: dict[str, str]) -> list[ImageCase]:
    return [
        ImageCase(str(n), f"{n}.tif", patient, n % 2 == 0, surgery=date.fromisoformat(day))
        for n, (patient, day) in enumerate(days.items())
    ]


def held_out(sides: dict[str, Side]) -> set[str]:
    return {patient for patient, side in sides.items() if side is Side.TEST}


def test_by_date_the_later_patients_test():
    days = {f"P{n}": f"2019-{n + 1:02}-15" for n in range(10)}
    sides = split_patients(dated(days), study.Split(by="date", test_from=date(2019, 8, 15)))
    assert held_out(sides) == {"P7", "P8", "P9"}
    assert Side.VALIDATION in sides.values()
    by_share = split_patients(dated(days), study.Split(by="date", test=0.5))
    assert held_out(by_share) == {"P5", "P6", "P7", "P8", "P9"}


def test_patients_of_one_day_stay_together_and_the_first_surgery_counts():
    days = {"P0": "2019-01-01", "P1": "2019-02-01", "P2": "2019-02-01", "P3": "2019-02-01"}
    again = ImageCase("9", "9.tif", "P0", True, surgery=date(2020, 1, 1))
    sides = split_patients([*dated(days), again], study.Split(by="date", test=0.3, validation=0.0))
    assert held_out(sides) == {"P1", "P2", "P3"}


@given(st.lists(st.integers(0, 6), min_size=1, max_size=30), st.floats(0.01, 0.99))
@hypothesis_settings(deadline=None)
def test_the_day_of_the_cut_comes_as_near_to_the_share_as_days_can(offsets, share):
    days = [date(2019, 1, 1) + timedelta(days=n) for n in offsets]
    cut = cut_date(days, share)
    options = [sum(day >= first for day in days) for first in sorted(set(days))[1:]]
    if not options:
        assert cut is None
    else:
        assert min(abs(n - share * len(days)) for n in options) == pytest.approx(
            abs(sum(day >= cut for day in days) - share * len(days))
        )


def test_a_missing_date_is_named():
    cases = [*dated({"P0": "2019-01-01"}), case("P7", True)]
    with pytest.raises(CohortError, match="no date of surgery of P7; add it in QuPath"):
        split_patients(cases, study.Split(by="date"))


def test_a_date_that_is_none_is_named():
    with pytest.raises(
        CohortError, match=r"a\.tif has 'surgery date' = '31\.3\.2019'; write the date as 2019-03-31"
    ):
        read(entry(patient="P1", status="negative", **{"surgery date": "31.3.2019"}))


@given(st.integers(2, 5), st.integers(5, 30), st.integers(5, 30), st.integers(0, 9))
@hypothesis_settings(deadline=None, max_examples=50)
def test_folds_cover_every_patient_once_and_are_alike_in_status_as_scikit_learns_are(
    k, positive, negative, seed
):
    cases = [case(f"P{n}", n < positive) for n in range(positive + negative)]
    folds = [
        held_out(split_patients(cases, study.Split(by="fold", folds=k, fold=n + 1, seed=seed)))
        for n in range(k)
    ]
    assert sorted(patient for fold in folds for patient in fold) == sorted({c.patient for c in cases})
    status = np.array([c.positive for c in cases])
    theirs = [status[test].sum() for _, test in StratifiedKFold(k).split(status, status)]
    ours = [sum(c.positive for c in cases if c.patient in fold) for fold in folds]
    assert sorted(ours) == sorted(theirs)
    assert max(map(len, folds)) - min(map(len, folds)) <= 1


def test_more_folds_than_patients_of_a_status_are_refused():
    cases = [case(f"P{n}", n < 3) for n in range(12)]
    with pytest.raises(CohortError, match=r"split\.folds = 5, but there are only 3 positive patients"):
        split_patients(cases, study.Split(by="fold"))


@given(st.lists(st.booleans(), max_size=25), st.lists(st.booleans(), max_size=25), st.integers(0, 9))
@hypothesis_settings(deadline=None)
def test_a_cohort_that_grows_moves_nobody_between_development_and_test(first, later, seed):
    settings = study.Split(seed=seed)
    old = [case(f"A{n}", positive) for n, positive in enumerate(first)]
    before = split_patients(old, settings)
    known = {patient: side is Side.TEST for patient, side in before.items()}
    # Names that sort and hash among the old ones.
    grown = old + [case(f"A{n}b", positive) for n, positive in enumerate(later)]
    after = split_patients(grown, settings, known=known)
    assert all((after[patient] is Side.TEST) == tests for patient, tests in known.items())
    positive = [c.patient for c in grown if c.positive]
    if len(positive) >= 10 and not any(first):
        assert abs(len(held_out(after) & set(positive)) - 0.3 * len(positive)) <= 0.5


PATIENT_OF = {"a.tif": "P1", "b.tif": "P1", "c.tif": "P2", "d.tif": "P3"}


def table(tmp_path, text: str):
    (tmp_path / "split.csv").write_text(text, encoding="utf-8")
    return read_split_table(tmp_path / "split.csv", PATIENT_OF)


@pytest.mark.parametrize(
    "text",
    [
        "patient,side\nP1,test\nP2,train\nP3,validation\n",
        "slide,side\na.tif,test\nb.tif,test\nc.tif,train\nd.tif,validation\n",
        "\ufeffSide;Patient;note\r\nTest; P1;x\r\n\r\ntrain;P2;\r\nvalidation;P3;\r\n",
    ],
)
def test_a_table_says_the_sides(tmp_path, text):
    cases = [case(patient, True) for patient in ("P1", "P2", "P3")]
    sides = split_patients(cases, study.Split(by="file", file="split.csv"), table=table(tmp_path, text))
    assert sides == {"P1": Side.TEST, "P2": Side.TRAIN, "P3": Side.VALIDATION}


def test_a_table_may_leave_validation_to_be_drawn(tmp_path):
    drawn = table(tmp_path, "patient,side\nP1,test\nP2,development\nP3,development\n")
    sides = split_patients(
        [case(p, True) for p in ("P1", "P2", "P3")], study.Split(by="file", file="x"), table=drawn
    )
    assert sides["P1"] is Side.TEST and {sides["P2"], sides["P3"]} == {Side.TRAIN, Side.VALIDATION}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("patient,part\nP1,test\n", r"line 1: needs the column 'side'"),
        ("", r"line 1: .* but has nothing"),
        ("patient,slide,side\n", r"line 1: .*one of 'patient' and 'slide'"),
        ("patient,side\nP1,test\nP2,tset\n", r"line 3: the side is 'tset'; write one of train"),
        ("patient,side\nP1,test\nP9,train\n", r"line 3: the project has no patient 'P9'"),
        ("slide,side\nx.tif,train\n", r"line 2: the project has no slide 'x\.tif'"),
        (
            "slide,side\na.tif,train\nc.tif,test\nb.tif,test\n",
            r"line 4: P1 is 'test' here but 'train' on line 2",
        ),
        ("patient,side\nP1\n", r"line 2: has 1 values, the header 2"),
    ],
)
def test_a_wrong_line_of_a_table_is_named_by_its_number(tmp_path, text, said):
    with pytest.raises(CohortError, match=said):
        table(tmp_path, text)


def test_a_patient_without_a_line_and_a_table_that_is_missing_are_named(tmp_path):
    short = table(tmp_path, "patient,side\nP1,test\n")
    with pytest.raises(CohortError, match=r"has no line for P2; add one"):
        split_patients([case("P1", True), case("P2", True)], study.Split(by="file", file="x"), table=short)
    with pytest.raises(CohortError, match=r"there is no file .*none\.csv; correct split\.file"):
        read_split_table(tmp_path / "none.csv", PATIENT_OF)


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
