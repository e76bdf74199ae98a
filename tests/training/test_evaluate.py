from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from sklearn.metrics import brier_score_loss, roc_auc_score

from hnscc_qp.errors import TrainingError
from hnscc_qp.models.networks import WindowClassifier
from hnscc_qp.training.evaluate import evaluate, predict, predict_logits
from hnscc_qp.training.intervals import proportion

CPU = torch.device("cpu")


@pytest.fixture
def judged() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probabilities with many ties, labels, and patients of very different size; one has no tumor."""
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 2, 200)
    patients = np.repeat(list("abcde"), [100, 50, 30, 15, 5])
    labels[patients == "d"] = 0
    return (labels * 0.3 + rng.random(200)).round(1).clip(0, 1), labels, patients


def test_figures_count_what_was_called_what(judged: tuple[np.ndarray, ...]) -> None:
    probabilities, labels, _ = judged
    figures = evaluate(probabilities, labels)
    called = probabilities > 0.5
    assert figures.true_tumor == (called & (labels == 1)).sum()
    assert figures.false_tumor == (called & (labels == 0)).sum()
    assert figures.true_nontumor == (~called & (labels == 0)).sum()
    assert figures.false_nontumor == (~called & (labels == 1)).sum()
    assert figures.accuracy == pytest.approx((called == labels).mean())
    assert figures.auc == roc_auc_score(labels, probabilities)
    assert figures.auc_interval is None


def test_interval_is_that_of_patients_drawn_with_replacement(judged: tuple[np.ndarray, ...]) -> None:
    probabilities, labels, patients = judged
    interval = evaluate(probabilities, labels, patients).auc_interval
    rng = np.random.default_rng(77)
    aucs = []
    for _ in range(600):
        drawn = np.concatenate([np.flatnonzero(patients == one) for one in rng.choice(list("abcde"), 5)])
        if 0 < labels[drawn].sum() < len(drawn):
            aucs.append(roc_auc_score(labels[drawn], probabilities[drawn]))
    assert interval == pytest.approx(np.percentile(aucs, [2.5, 97.5]), abs=0.03)
    assert evaluate(probabilities, labels, patients).auc_interval == interval


def test_intervals_of_shares_are_those_of_patients_drawn_with_replacement(
    judged: tuple[np.ndarray, ...],
) -> None:
    probabilities, labels, patients = judged
    figures = evaluate(probabilities, labels, patients)
    right = (probabilities > 0.5) == labels
    rng = np.random.default_rng(78)
    shares: dict[str, list[float]] = {"accuracy": [], "sensitivity": [], "specificity": []}
    for _ in range(1500):
        drawn = np.concatenate([np.flatnonzero(patients == one) for one in rng.choice(list("abcde"), 5)])
        for name, among in (
            ("accuracy", drawn),
            ("sensitivity", drawn[labels[drawn] == 1]),
            ("specificity", drawn[labels[drawn] == 0]),
        ):
            if len(among):
                shares[name].append(right[among].mean())
    for name, found in shares.items():
        low, high = np.percentile(found, [2.5, 97.5])
        wilson = getattr(figures, f"{name}_wilson")
        wanted = min(low, wilson[0]), max(high, wilson[1])
        assert getattr(figures, f"{name}_interval") == pytest.approx(wanted, abs=0.02), name


def test_wilson_interval_is_what_wilson_wrote(judged: tuple[np.ndarray, ...]) -> None:
    def by_hand(count: int, of: int) -> tuple[float, float]:
        z, share = 1.959963984540054, count / of
        middle = (share + z**2 / (2 * of)) / (1 + z**2 / of)
        half = z / (1 + z**2 / of) * np.sqrt(share * (1 - share) / of + z**2 / (4 * of**2))
        return middle - half, middle + half

    figures = evaluate(*judged)
    tumor = figures.true_tumor + figures.false_nontumor
    assert figures.sensitivity_wilson == pytest.approx(by_hand(figures.true_tumor, tumor))
    nontumor = figures.true_nontumor + figures.false_tumor
    assert figures.specificity_wilson == pytest.approx(by_hand(figures.true_nontumor, nontumor))
    assert figures.accuracy_wilson == pytest.approx(
        by_hand(figures.true_tumor + figures.true_nontumor, figures.n)
    )
    # The paper's test set, §3: 21 of 21 positive slides found.
    assert proportion(21, 21).wilson == pytest.approx(by_hand(21, 21))


def test_brier_score_is_scikit_learns(judged: tuple[np.ndarray, ...]) -> None:
    probabilities, labels, _ = judged
    assert evaluate(probabilities, labels).brier == pytest.approx(brier_score_loss(labels, probabilities))


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -0.1, 1.5])
def test_what_is_no_probability_is_refused(wrong: float) -> None:
    with pytest.raises(TrainingError, match="1 of 3 probabilities are not numbers from 0 to 1"):
        evaluate(np.array([0.1, wrong, 0.9]), [0, 1, 1])


def test_patients_of_one_class_each_leave_the_other_share_without_an_interval() -> None:
    figures = evaluate(np.array([0.2, 0.3, 0.9]), [0, 0, 1], ["a", "b", "c"])
    assert figures.specificity_interval is not None
    assert figures.sensitivity_interval is None  # one patient has tumor
    # Nothing varies between these patients, and three windows are no certainty.
    assert figures.accuracy_interval == figures.accuracy_wilson == proportion(3, 3).wilson
    alone = evaluate(np.array([0.2, 0.9]), [0, 1], ["a", "a"])
    assert alone.accuracy_interval is None and alone.accuracy_wilson is not None


def test_missing_class_has_no_auc() -> None:
    figures = evaluate(np.array([0.2, 0.9]), [0, 0], ["a", "b"])
    assert (figures.accuracy, figures.auc, figures.auc_interval) == (0.5, None, None)
    assert evaluate(np.empty(0), []).accuracy is None


def test_one_patient_has_no_interval() -> None:
    assert evaluate(np.array([0.2, 0.9]), [0, 1], ["a", "a"]).auc_interval is None


def test_one_patient_with_tumor_has_no_interval() -> None:
    # Nothing varies between resamples, and an interval of no width would claim certainty.
    assert evaluate(np.array([0.2, 0.9]), [0, 1], ["a", "b"]).auc_interval is None
    assert evaluate(np.array([0.2, 0.3, 0.9]), [0, 0, 1], ["a", "b", "c"]).auc_interval is None


def test_resamples_that_lack_a_class_do_not_count() -> None:
    # Two patients all tumor and two all nontumor: whatever is drawn, the order is right.
    figures = evaluate(np.array([0.1, 0.2, 0.8, 0.9]), [0, 0, 1, 1], ["a", "b", "c", "d"])
    assert figures.auc_interval == (1.0, 1.0)


def test_figures_are_json(judged: tuple[np.ndarray, ...]) -> None:
    assert json.loads(json.dumps(evaluate(*judged).as_json(), allow_nan=False))["n"] == 200


def test_prediction_is_the_softmax_of_the_network(patches: tuple[np.ndarray, np.ndarray]) -> None:
    pixels = patches[0][:10]
    classifier = WindowClassifier("mobilenet_v2", input_px=32)
    found = predict(classifier, pixels, device=CPU, batch_size=4)
    with torch.inference_mode():
        logits = classifier.eval()(torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()))
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, logits.softmax(1)[:, 1].numpy(), atol=1e-5)


def test_prediction_is_at_the_temperature_of_the_model(patches: tuple[np.ndarray, np.ndarray]) -> None:
    pixels = patches[0][:10]
    classifier = WindowClassifier("mobilenet_v2", input_px=32)
    logits = predict_logits(classifier, pixels, device=CPU).astype(np.float64)
    classifier.temperature = 4.0
    wanted = np.exp(logits / 4) / np.exp(logits / 4).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(predict(classifier, pixels, device=CPU), wanted[:, 1], rtol=1e-6)


def test_prediction_of_a_window_does_not_hang_on_its_neighbours(
    patches: tuple[np.ndarray, np.ndarray],
) -> None:
    pixels = patches[0][:9]
    classifier = WindowClassifier("mobilenet_v2", input_px=32).train()
    shapes = []
    classifier.register_forward_pre_hook(lambda _, inputs: shapes.append(inputs[0].shape))
    together = predict_logits(classifier, pixels, device=CPU, batch_size=4)
    alone = predict_logits(classifier, pixels[8:], device=CPU, batch_size=4)
    assert set(shapes) == {(4, 3, 40, 40)}
    np.testing.assert_array_equal(together[8:], alone)
    assert not classifier.training


def test_nothing_to_predict_gives_nothing() -> None:
    classifier = WindowClassifier("mobilenet_v2", input_px=32)
    assert predict(classifier, np.empty((0, 40, 40, 3), np.uint8), device=CPU).shape == (0,)
