"""Against scikit-learn, published figures and slow repetition."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta
from sklearn.metrics import roc_auc_score

from hnscc_qp.training.intervals import DrawnPatients, bootstrap, paired_bootstrap, proportion, weighted_auc


def test_the_papers_22_of_29_prints_as_75_9_percent_with_its_interval():
    specificity = proportion(22, 29)
    # The definition: ends at which 22 or more, or 22 or fewer, of 29 have a probability of 2.5 %.
    low, high = beta.ppf(0.025, 22, 8), beta.ppf(0.975, 23, 7)
    assert specificity.clopper_pearson == pytest.approx((low, high))
    assert str(specificity) == "75.9 % (22/29; 56.5 to 89.7)"


def test_all_right_and_none_right_have_one_sided_ends():
    assert proportion(21, 21).clopper_pearson == pytest.approx((0.025 ** (1 / 21), 1.0))
    assert proportion(0, 5).clopper_pearson[0] == 0
    assert proportion(0, 0) is None


def test_wilsons_interval_is_that_of_its_formula():
    n, p, z = 29, 22 / 29, 1.959964
    middle = (p + z * z / 2 / n) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(p * (1 - p) / n + z * z / 4 / n / n)
    assert proportion(22, 29).wilson == pytest.approx((middle - half, middle + half), abs=1e-6)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 16), st.integers(0, 3)), min_size=1, max_size=15))
def test_the_auc_of_slides_that_count_several_times_is_scikit_learns_of_repeated_ones(slides):
    truth, scores, counts = map(np.array, zip(*slides, strict=True))
    many_truth, many_scores = np.repeat(truth, counts), np.repeat(scores, counts)
    auc = weighted_auc(truth, scores, counts)
    if len(set(many_truth.tolist())) < 2:
        assert auc is None
    else:
        assert auc == pytest.approx(roc_auc_score(many_truth, many_scores))


def test_patients_are_drawn_whole():
    patients = ["A", "A", "B", "C"]

    def uneven(counts):
        assert counts[0] == counts[1]
        return float(counts.sum())

    bootstrap(patients, uneven, resamples=100)


def test_the_interval_of_a_mean_is_what_slow_drawing_gives():
    values = {"A": [0.1, 0.3], "B": [0.9], "C": [0.4, 0.5, 0.6], "D": [0.2]}
    patients = [name for name, some in values.items() for _ in some]
    flat = np.array([value for some in values.values() for value in some])
    estimate = bootstrap(patients, lambda counts: float(counts @ flat / counts.sum()), resamples=4000)
    rng = np.random.default_rng(99)
    means = []
    for _ in range(4000):
        drawn = [value for name in rng.choice(list(values), 4) for value in values[name]]
        means.append(np.mean(drawn))
    assert estimate.value == pytest.approx(flat.mean())
    assert estimate.interval == pytest.approx(tuple(np.percentile(means, [2.5, 97.5])), abs=0.02)


def test_a_model_beside_itself_is_not_better():
    figure = lambda counts: float(counts @ np.arange(5) / counts.sum())  # noqa: E731
    difference = paired_bootstrap(list("ABCDE"), figure, figure, resamples=50)
    assert (difference.difference, difference.interval, difference.share_better) == (0, (0, 0), 0)


def test_what_two_models_share_cancels_out():
    hard = np.array([0.1, 0.9, 0.2, 0.8, 0.5])
    first = lambda counts: float(counts @ hard / counts.sum())  # noqa: E731
    second = lambda counts: float(counts @ (hard + 0.05) / counts.sum())  # noqa: E731
    difference = paired_bootstrap(list("ABCDE"), first, second, resamples=200)
    assert difference.interval == pytest.approx((0.05, 0.05))
    assert difference.share_better == 1


def test_one_patient_gives_no_interval_and_no_figure_gives_nothing():
    assert bootstrap(["A", "A"], lambda counts: 1.0, resamples=10).interval is None
    assert bootstrap(["A", "B"], lambda counts: None, resamples=10) is None
    assert paired_bootstrap(["A"], lambda c: 1.0, lambda c: 2.0, resamples=10).interval is None


def test_draws_without_the_figure_are_left_out():
    truth = [True, False, False]
    estimate = bootstrap(list("ABC"), lambda c: weighted_auc(truth, [3, 1, 2], c), resamples=200)
    assert estimate.value == 1.0 and estimate.interval == (1.0, 1.0)


def test_windows_counted_by_patient_have_the_intervals_of_windows_drawn_one_by_one():
    rng = np.random.default_rng(3)
    truth = rng.integers(0, 2, 200).astype(bool)
    patients = np.repeat(list("abcde"), [100, 50, 30, 15, 5])
    truth[patients == "d"] = False
    scores = (truth * 0.3 + rng.random(200)).round(1)
    drawn = DrawnPatients(patients, resamples=300)
    auc = bootstrap(patients, lambda counts: weighted_auc(truth, scores, counts), resamples=300)
    assert drawn.auc_interval(scores, truth) == pytest.approx(auc.interval)
    right = (scores > 0.5) == truth

    def sensitivity(counts):
        of = counts @ truth
        return counts @ (truth & right) / of if of else None

    share = bootstrap(patients, sensitivity, resamples=300)
    assert drawn.share_interval(right, truth) == pytest.approx(share.interval)
