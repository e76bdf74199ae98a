"""Figures of a set against scikit-learn, and against each other."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from drawncomparison import LEVELS, drawn_slide
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely.geometry import MultiPolygon
from sklearn.metrics import auc, roc_auc_score

from hnscc_qp.review.cohort import roc, set_figures, sweep
from hnscc_qp.review.measure import MeasuredSlide


def measured(slide) -> MeasuredSlide:
    return MeasuredSlide(
        result=slide,
        lesions=(),
        truth=(),
        detections=None,
        seen={},
        tumor=MultiPolygon(),
        density=0.3,
        unreadable=0,
        model="0",
        notes=(),
    )


def drawn(positives: list[int], negatives: list[int], *, threshold: int = 11) -> list[MeasuredSlide]:
    slides = [drawn_slide(n, tumor=True, max_votes=votes) for n, votes in enumerate(positives)]
    slides += [drawn_slide(n + 100, tumor=False, max_votes=votes) for n, votes in enumerate(negatives)]
    calls = [replace(one, call="positive" if one.max_votes >= threshold else "negative") for one in slides]
    return [measured(one) for one in calls]


VOTES = st.lists(st.integers(0, 16), min_size=1, max_size=8)


@settings(max_examples=30, deadline=None)
@given(VOTES, VOTES)
def test_the_area_under_the_roc_curve_is_scikit_learns(positives, negatives):
    slides = drawn(positives, negatives)
    points = roc([one.result for one in slides], 0.0)
    truth = [1] * len(positives) + [0] * len(negatives)
    expected = roc_auc_score(truth, positives + negatives)
    assert (points[0].sensitivity, points[0].false_positive_rate) == (0, 0)
    assert (points[-1].sensitivity, points[-1].false_positive_rate) == (1, 1)
    area = auc([one.false_positive_rate for one in points], [one.sensitivity for one in points])
    assert area == pytest.approx(expected)


def test_the_sweep_at_the_threshold_says_what_the_headline_says():
    slides = drawn([16, 12, 9], [3, 13, 0, 11])
    figures = set_figures("test", slides, threshold_votes=11, min_lesion_um2=0.0)
    rows = sweep("test", slides, levels=LEVELS, min_lesion_um2=0.0)
    at = rows[10]
    assert (at.votes, at.sensitivity, at.specificity) == (11, figures.sensitivity, figures.specificity)
    assert at.dice == pytest.approx(figures.dice.value)
    assert (figures.sensitivity.count, figures.sensitivity.of) == (2, 3)
    assert (figures.specificity.count, figures.specificity.of) == (2, 4)
    assert (figures.accuracy.count, figures.accuracy.of) == (4, 7)
    assert figures.auc.value == roc_auc_score([1] * 3 + [0] * 4, [16, 12, 9, 3, 13, 0, 11])


def test_a_higher_threshold_finds_no_more_and_errs_no_more():
    rows = sweep("test", drawn([16, 12, 9, 1], [3, 13, 0]), levels=LEVELS, min_lesion_um2=0.0)
    for figure, rising in (("sensitivity", False), ("specificity", True)):
        values = [getattr(row, figure).value for row in rows]
        assert values == sorted(values, reverse=not rising)
    false = [row.false_um2_per_mm2 for row in rows]
    assert false == sorted(false, reverse=True)


def test_a_slide_without_tissue_is_in_no_share():
    slides = drawn([16], [0])
    slides.append(measured(replace(drawn_slide(7, tumor=True, max_votes=0), call="no tissue")))
    figures = set_figures("test", slides, threshold_votes=11, min_lesion_um2=0.0)
    assert (figures.slides, figures.no_tissue, figures.sensitivity.of) == (3, 1, 1)


def test_one_patient_on_a_side_gives_no_interval():
    figures = set_figures("test", drawn([16, 12], [3]), threshold_votes=11, min_lesion_um2=0.0)
    assert figures.auc.value == 1.0 and figures.auc.interval is None
    assert np.isfinite(figures.dice.value)
