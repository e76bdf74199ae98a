from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_curve

from hnscc_qp.errors import CohortError
from hnscc_qp.scoring.threshold import SlideScore, choose_threshold, slide_status, votes_for

VOTES = st.lists(st.integers(0, 16), min_size=1, max_size=12)


def slides_of(positives: list[int], negatives: list[int]) -> list[SlideScore]:
    return [SlideScore(f"p{i}", f"P{i}", True, votes) for i, votes in enumerate(positives)] + [
        SlideScore(f"n{i}", f"N{i // 2}", False, votes) for i, votes in enumerate(negatives)
    ]


def test_the_papers_threshold_is_the_lower_end_of_the_separating_interval():
    threshold = choose_threshold(slides_of([16, 14, 16], [10, 3, 0]), sensitivity=1.0)
    assert threshold.votes == 11
    assert threshold.score == 0.6875
    assert threshold.separates
    assert threshold.interval == (11, 14)
    assert (threshold.sensitivity, threshold.specificity) == (1.0, 1.0)
    assert threshold.missed == threshold.false_alarms == ()
    assert threshold.sentence == (
        "A score of 11/16 = 0.6875 calls a slide positive. It is the lower end of the thresholds that "
        "separate the development set, 0.6875 to 0.8750. On the development set (6 slides of 5 patients) it "
        "finds 3 of 3 positive slides and falsely calls 0 of 3 negative ones."
    )


@pytest.mark.parametrize(
    ("negatives", "middle"), [([10, 3, 0], 12), ([9], 12), ([13], 14), ([0], 7)], ids=str
)
def test_the_middle_of_the_separating_interval_is_taken_on_demand_the_lower_of_two(negatives, middle):
    slides = slides_of([16, 14, 16], negatives)
    threshold = choose_threshold(slides, sensitivity=1.0, within="middle")
    low, high = threshold.interval
    assert threshold.votes == middle and 0 <= high - middle - (middle - low) <= 1
    assert (threshold.sensitivity, threshold.specificity) == (1.0, 1.0)
    assert "It is the middle of the thresholds that separate" in threshold.sentence
    apart = slides_of([16, 12, 9, 5], [10, 6, 2])
    assert choose_threshold(apart, sensitivity=1.0, within="middle") == choose_threshold(
        apart, sensitivity=1.0
    )


def test_without_separation_the_highest_threshold_that_keeps_the_sensitivity_is_taken():
    slides = slides_of([16, 12, 9, 5], [10, 6, 2])
    every = choose_threshold(slides, sensitivity=1.0)
    assert (every.votes, every.separates, every.interval) == (5, False, None)
    assert every.false_alarms == ("n0", "n1")
    most = choose_threshold(slides, sensitivity=0.75)
    assert (most.votes, most.missed, most.false_alarms) == (9, ("p3",), ("n0",))
    assert most.specificity == pytest.approx(2 / 3)
    assert "highest that keeps a sensitivity of 75%" in most.sentence


def test_a_share_is_not_missed_by_rounding():
    # 0.7 is not 7/10 in binary.
    assert choose_threshold(slides_of([9] * 7 + [1] * 3, [12]), sensitivity=0.7).votes == 9
    assert choose_threshold(slides_of([9] * 1 + [1] * 9, [12]), sensitivity=0.1).votes == 9


def test_positive_slides_without_a_vote_are_named_and_one_vote_is_the_threshold():
    threshold = choose_threshold(slides_of([16, 0], [3]), sensitivity=1.0)
    assert (threshold.votes, threshold.missed, threshold.sensitivity) == (1, ("p1",), 0.5)
    assert "none reaches a sensitivity of 100%" in threshold.sentence


def test_without_negative_slides_the_specificity_is_unknown():
    threshold = choose_threshold(slides_of([16, 12], []), sensitivity=1.0)
    assert (threshold.votes, threshold.separates, threshold.specificity) == (12, False, None)
    assert "There are no negative slides" in threshold.sentence


def test_without_positive_slides_there_is_no_threshold():
    with pytest.raises(CohortError, match="no positive slide"):
        choose_threshold(slides_of([], [3]), sensitivity=1.0)


def test_votes_out_of_range_are_refused():
    with pytest.raises(ValueError, match="17"):
        SlideScore("a", "A", True, 17)


def test_a_slide_at_the_threshold_is_positive():
    assert slide_status(11, 11) == "positive"
    assert slide_status(10, 11) == "negative"


@given(VOTES, VOTES)
def test_the_sweep_is_scikit_learns_roc_curve(positives, negatives):
    threshold = choose_threshold(slides_of(positives, negatives), sensitivity=1.0)
    truth = [1] * len(positives) + [0] * len(negatives)
    false_rate, true_rate, cuts = roc_curve(truth, positives + negatives, drop_intermediate=False)
    assert [level.votes for level in threshold.sweep] == list(range(1, 17))
    for level in threshold.sweep:
        # The last of roc_curve's falling cuts that is not below the level.
        at = np.nonzero(cuts >= level.votes)[0][-1]
        assert level.sensitivity == pytest.approx(true_rate[at])
        assert level.specificity == pytest.approx(1 - false_rate[at])


@given(VOTES, VOTES, st.floats(0.01, 1))
def test_no_other_level_fits_the_rule_better(positives, negatives, wanted):
    threshold = choose_threshold(slides_of(positives, negatives), sensitivity=wanted)
    perfect = [t for t in range(1, 17) if max(negatives) < t <= min(positives)]
    assert threshold.separates == bool(perfect)
    if perfect:
        assert threshold.interval == (perfect[0], perfect[-1])
        assert threshold.votes == perfect[0]
    else:
        keeping = [
            t for t in range(1, 17) if sum(v >= t for v in positives) >= wanted * len(positives) - 1e-6
        ]
        assert threshold.votes == (keeping[-1] if keeping else 1)
    called = [slide_status(votes, threshold.votes) for votes in positives]
    assert called.count("positive") / len(positives) == pytest.approx(threshold.sensitivity)
    assert called.count("negative") == len(threshold.missed)


def test_a_threshold_is_a_share_of_the_votes_at_every_stride():
    slides = [SlideScore("a", "1", True, 48, 64), SlideScore("b", "2", False, 43, 64)]
    chosen = choose_threshold(slides, sensitivity=1.0)
    assert (chosen.votes, chosen.levels, chosen.score) == (44, 64, 0.6875)
    assert "44/64 = 0.6875" in chosen.sentence
    assert [votes_for(chosen.score, levels) for levels in (4, 16, 64)] == [3, 11, 44]
    assert all(
        votes_for(votes / levels, levels) == votes for levels in (4, 16, 64) for votes in range(1, levels + 1)
    )
    assert votes_for(1e-12, 16) == 1
    with pytest.raises(CohortError, match="different strides"):
        choose_threshold([*slides, SlideScore("c", "3", True, 16)], sensitivity=1.0)
