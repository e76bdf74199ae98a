from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import beta

from hnscc_qp.scoring.bound import bound_misses, patients_needed
from hnscc_qp.scoring.threshold import SlideScore


def positives(votes: list[int]) -> list[SlideScore]:
    return [SlideScore(f"s{i}", f"P{i}", True, reached) for i, reached in enumerate(votes)]


def test_with_too_few_positives_it_says_how_many_are_needed():
    bound = bound_misses(positives([16] * 12), alpha=0.1, confidence=0.95)
    assert (bound.votes, bound.patients, bound.needed) == (None, 12, 29)
    assert "takes 29 positive patients" in bound.sentence
    assert bound_misses([], alpha=0.1, confidence=0.95).votes is None


@pytest.mark.parametrize(
    ("alpha", "confidence", "needed"), [(0.1, 0.95, 29), (0.05, 0.95, 59), (0.5, 0.5, 1)]
)
def test_the_fewest_patients_are_those_of_which_none_may_be_missed(alpha, confidence, needed):
    # The rule of three, exactly: (1 - alpha) ** n <= 1 - confidence.
    assert (1 - alpha) ** needed <= 1 - confidence + 1e-12 < (1 - alpha) ** (needed - 1) + 1e-9
    assert patients_needed(alpha, confidence) == needed


def test_the_highest_threshold_whose_upper_limit_is_low_enough_is_taken():
    rng = np.random.default_rng(3)
    votes = rng.integers(2, 17, 80).tolist()
    bound = bound_misses(positives(votes), alpha=0.2, confidence=0.9)

    def upper(threshold: int) -> float:
        missed = sum(v < threshold for v in votes)
        return beta.ppf(0.9, missed + 1, len(votes) - missed)

    kept = [t for t in range(1, 17) if upper(t) <= 0.2]
    assert bound.votes == kept[-1] and upper(kept[-1] + 1) > 0.2
    assert bound.missed == sum(v < bound.votes for v in votes)


def test_a_patient_with_one_slide_found_is_not_missed():
    slides = [SlideScore(f"s{i}", f"P{i // 2}", True, 16 if i % 2 else 0) for i in range(60)]
    bound = bound_misses(slides, alpha=0.1, confidence=0.95)
    assert (bound.patients, bound.votes) == (30, 16)


def test_negative_slides_promise_nothing():
    slides = [SlideScore(f"n{i}", f"P{i}", False, 16) for i in range(40)]
    assert bound_misses(slides, alpha=0.1, confidence=0.95).patients == 0


def test_the_promise_is_kept():
    # Patients whose votes are even over 1..16; the miss rate of a threshold t is (t - 1) / 16.
    rng = np.random.default_rng(8)
    broken = 0
    for _ in range(400):
        bound = bound_misses(positives(rng.integers(1, 17, 40).tolist()), alpha=0.15, confidence=0.9)
        if bound.votes is not None and (bound.votes - 1) / 16 > 0.15:
            broken += 1
    # At most 10 % of 400, and three standard deviations of chance.
    assert broken <= 40 + 3 * 6
