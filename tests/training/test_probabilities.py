from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit
from sklearn.calibration import calibration_curve
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from hnscc_qp.training.probabilities import apply_temperature, fit_temperature, measure_reliability


@pytest.fixture
def overconfident() -> tuple[np.ndarray, np.ndarray]:
    """P(tumor) of a network whose logits are 2.5 times too large, and the truth."""
    rng = np.random.default_rng(11)
    margins = rng.normal(0, 1.5, 4000)
    return expit(2.5 * margins), rng.random(4000) < expit(margins)


def test_temperature_is_that_of_a_logistic_regression_without_intercept(
    overconfident: tuple[np.ndarray, np.ndarray],
) -> None:
    probabilities, labels = overconfident
    margins = np.log(probabilities / (1 - probabilities))
    regression = LogisticRegression(C=1e12, fit_intercept=False, tol=1e-10).fit(margins[:, None], labels)
    found = fit_temperature(probabilities, labels)
    assert found.value == pytest.approx(1 / regression.coef_[0, 0], rel=1e-4)
    assert found.value == pytest.approx(2.5, rel=0.1)
    assert found.reason == "fitted on 4,000 windows"


def test_temperature_makes_probabilities_mean_what_they_say(
    overconfident: tuple[np.ndarray, np.ndarray],
) -> None:
    probabilities, labels = overconfident
    fitted, judged = slice(0, 2000), slice(2000, None)
    temperature = fit_temperature(probabilities[fitted], labels[fitted]).value
    before = measure_reliability(probabilities[judged], labels[judged]).calibration_error
    after = measure_reliability(
        apply_temperature(probabilities[judged], temperature), labels[judged]
    ).calibration_error
    assert before is not None and after is not None
    assert after < before / 3


def test_temperature_changes_no_call_and_no_order(overconfident: tuple[np.ndarray, np.ndarray]) -> None:
    probabilities, labels = overconfident
    for kind in (np.float32, np.float64):
        # Those that the type can just tell from 0 and 1, and the ends themselves.
        ends = np.array([0, 1e-35, 1 - 2 * np.finfo(kind).epsneg, 1, 0.5], kind)
        raw = np.concatenate([probabilities.astype(kind), ends])
        truth = np.concatenate([labels, [0, 1, 0, 1, 1]])
        cooled = apply_temperature(raw, 1.8)
        assert np.isfinite(cooled).all()
        np.testing.assert_array_equal(cooled > 0.5, raw > 0.5)
        assert roc_auc_score(truth, cooled) == roc_auc_score(truth, raw)
    np.testing.assert_array_equal(apply_temperature(probabilities, 1), probabilities)


@pytest.mark.parametrize(
    ("probabilities", "labels", "reason"),
    [
        ([0.2, 0.9], [0, 0], "there is no tumor window"),
        ([0.2, 0.9], [1, 1], "there is no nontumor window"),
        ([], [], "there is no tumor window"),
        ([0.1, 0.2, 0.8, 0.9], [0, 0, 1, 1], "so well"),
        ([0.1, 0.2, 0.8, 0.9], [1, 1, 0, 0], "no better than by chance"),
        ([0.5, 0.5], [0, 1], "no better than by chance"),
    ],
)
def test_temperature_stays_1_where_none_can_be_told(
    probabilities: list[float], labels: list[int], reason: str
) -> None:
    found = fit_temperature(np.array(probabilities), labels)
    assert found.value == 1
    assert found.reason.startswith("not fitted") and reason in found.reason


def test_ten_windows_are_enough_for_a_temperature() -> None:
    labels = [0, 0, 0, 0, 1, 0, 1, 1, 1, 1]
    found = fit_temperature(np.linspace(0.05, 0.95, 10), labels)
    assert 0.05 < found.value < 20 and found.reason == "fitted on 10 windows"


def test_reliability_is_scikit_learns_curve_with_its_weights(
    overconfident: tuple[np.ndarray, np.ndarray],
) -> None:
    probabilities, labels = overconfident
    found = measure_reliability(probabilities, labels, bins=15)
    share, mean = calibration_curve(labels, probabilities, n_bins=15)
    np.testing.assert_allclose(found.tumor_share, share)
    np.testing.assert_allclose(found.mean_probability, mean)
    assert sum(found.windows) == len(labels)
    # The definition, window by window.
    error = 0.0
    for low in np.arange(15) / 15:
        inside = (probabilities > low) & (probabilities <= low + 1 / 15)
        if inside.any():
            error += inside.mean() * abs(probabilities[inside].mean() - labels[inside].mean())
    assert found.calibration_error == pytest.approx(error)


def test_ends_belong_to_the_outer_bins_and_empty_bins_are_left_out() -> None:
    found = measure_reliability([0, 0, 1, 1], [0, 1, 1, 1], bins=10)
    assert found.mean_probability == (0, 1)
    assert found.tumor_share == (0.5, 1)
    assert found.windows == (2, 2)
    assert found.calibration_error == 0.25
    assert measure_reliability([], []).calibration_error is None
