"""The promotion gate, beside a slow reading of its rule."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hnscc_qp.review.gate import FIGURES, SlideOutcome, decide
from hnscc_qp.study import Promotion
from hnscc_qp.training.intervals import draw_patients

RATES = (0.25, 0.5, 1, 2, 4, 8)
FEW = Promotion(resamples=100, min_patients=2)
SCORES = st.sampled_from([k / 16 for k in range(1, 17)])


@st.composite
def judged(draw: st.DrawFn) -> tuple[list[SlideOutcome], list[SlideOutcome]]:
    """The same slides as two generations see them."""
    current, candidate = [], []
    for number in range(draw(st.integers(1, 9))):
        positive = draw(st.booleans())
        lesions = draw(st.integers(0, 3)) if positive else 0
        truth = 1000.0 * lesions
        patient = f"P{draw(st.integers(1, 5))}"
        for into in (current, candidate):
            both = truth * draw(st.sampled_from([0.0, 0.25, 0.5, 1.0]))
            into.append(
                SlideOutcome(
                    entry_id=str(number),
                    image=f"S{number}",
                    patient=patient,
                    positive=positive,
                    call=draw(st.sampled_from(["positive", "negative", "no tissue"])),
                    lesions=tuple(draw(st.one_of(st.just(0.0), SCORES)) for _ in range(lesions)),
                    false_findings=tuple(draw(st.lists(SCORES, max_size=3))),
                    truth_um2=truth,
                    found_um2=both + draw(st.sampled_from([0.0, 100.0, 900.0])),
                    both_um2=both,
                )
            )
    return current, candidate


def read_at(curve: list[tuple[float, float]], rate: float) -> float:
    """The sensitivity at so many false detections per slide; beyond the last point it stays where it is."""
    reached = max(index for index, (x, _) in enumerate(curve) if x <= rate)
    (x, y), rest = curve[reached], curve[reached + 1 :]
    if not rest:
        return y
    return y + (rate - x) / (rest[0][0] - x) * (rest[0][1] - y)


def slow_figure(name: str, slides: list[SlideOutcome]) -> float | None:
    """The figure by its definition, of slides that are listed as often as they count."""
    if name in ("sensitivity", "specificity"):
        wanted = name == "sensitivity"
        right = [(one.call == "positive") is wanted for one in slides if one.positive is wanted]
        return right.count(True) / len(right) if right else None
    if name == "dice":
        area = sum(one.truth_um2 for one in slides) + sum(one.found_um2 for one in slides)
        return 2 * sum(one.both_um2 for one in slides) / area if area else None
    lesions = [score for one in slides for score in one.lesions]
    false = [score for one in slides for score in one.false_findings]
    if not lesions:
        return None
    # The curve from nothing found on, a point for each score, between points by straight lines.
    curve = [(0.0, 0.0)]
    for level in sorted({*lesions, *false} - {0.0}, reverse=True):
        per_slide = sum(score >= level for score in false) / len(slides)
        curve.append((per_slide, sum(score >= level for score in lesions) / len(lesions)))
    best = [read_at(curve, rate) for rate in RATES]
    return sum(best) / len(best)


def slow_differences(name: str, current: list[SlideOutcome], candidate: list[SlideOutcome]) -> list[float]:
    """Of every sample of patients in which both have the figure."""
    patients = sorted({one.patient for one in current})
    found = []
    for times in draw_patients(len(patients), resamples=FEW.resamples, seed=FEW.seed):
        sides = [
            [
                one
                for patient, often in zip(patients, times, strict=True)
                for _ in range(often)
                for one in slides
                if one.patient == patient
            ]
            for slides in (current, candidate)
        ]
        before, after = (slow_figure(name, slides) for slides in sides)
        if before is not None and after is not None:
            found.append(after - before)
    return found


@settings(max_examples=25, deadline=None)
@given(judged(), st.sampled_from(sorted(FIGURES)))
def test_gate_decides_as_a_slow_reading_of_its_rule(
    pair: tuple[list[SlideOutcome], list[SlideOutcome]], figure: str
) -> None:
    current, candidate = pair
    decision = decide(current, candidate[::-1], FEW.model_copy(update={"figure": figure}))
    about = {
        "sensitivity": lambda one: one.positive,
        "specificity": lambda one: not one.positive,
        "froc": lambda one: len(one.lesions) > 0,
        "dice": lambda one: one.truth_um2 > 0,
    }[figure]
    bearing = {one.patient for one in current if about(one)}
    wanted = False
    before, after = (slow_figure("sensitivity", slides) for slides in pair)
    if len(bearing) >= 2 and before is not None and after is not None and after >= before:
        low = float(np.percentile(slow_differences(figure, current, candidate), 2.5))
        wanted = low > 1e-12
        assert decision.figures[figure].interval is not None
        assert decision.figures[figure].interval[0] == pytest.approx(low, abs=1e-12)
    assert decision.passed is wanted
    for name in FIGURES:
        found = decision.figures[name]
        assert found.current == pytest.approx(slow_figure(name, current))
        assert found.candidate == pytest.approx(slow_figure(name, candidate))


@settings(max_examples=25, deadline=None)
@given(judged(), st.sampled_from(sorted(FIGURES)))
def test_identical_candidate_never_passes(
    pair: tuple[list[SlideOutcome], list[SlideOutcome]], figure: str
) -> None:
    assert not decide(pair[0], pair[0], FEW.model_copy(update={"figure": figure})).passed


def slides_of(patients: int, *, both_um2: float) -> list[SlideOutcome]:
    return [
        SlideOutcome(
            entry_id=str(number),
            image=f"S{number}.tif",
            patient=f"P{number}",
            positive=True,
            call="positive",
            lesions=(1.0,),
            false_findings=(),
            truth_um2=1000.0,
            found_um2=1000.0,
            both_um2=both_um2 + number,
        )
        for number in range(patients)
    ]


def test_too_few_patients_are_said_to_be_too_few_however_much_better_the_candidate_is() -> None:
    five = decide(slides_of(5, both_um2=200), slides_of(5, both_um2=900), Promotion())
    assert not five.passed
    assert five.reason == "too few patients: 5 of the test set bear on dice, 6 are needed to decide"
    assert decide(slides_of(6, both_um2=200), slides_of(6, both_um2=900), Promotion()).passed


def test_candidate_that_loses_a_positive_slide_is_kept_and_the_slide_is_named() -> None:
    current, candidate = slides_of(8, both_um2=200), slides_of(8, both_um2=900)
    candidate[3] = replace(candidate[3], call="negative")
    decision = decide(current, candidate, Promotion())
    assert not decision.passed
    assert "S3.tif found before, missed now" in decision.reason


def test_generations_judged_by_different_truths_are_not_compared() -> None:
    current = slides_of(6, both_um2=200)
    candidate = [replace(one, truth_um2=999.0) for one in current]
    with pytest.raises(ValueError, match="same truth"):
        decide(current, candidate, Promotion())
