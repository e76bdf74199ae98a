"""Whether a secondary is worth its place, on windows made up for it."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_curve

from hnscc_qp.training.report import Predictions
from hnscc_qp.training.worth import ENOUGH, keeps, weigh


def predictions(probabilities: np.ndarray, labels: np.ndarray) -> Predictions:
    patients = np.array([f"p{number % 3}" for number in range(len(labels))])
    return Predictions(probabilities, labels, patients)


def made_up(*, skill: float, seed: int = 1, of_each: int = 400) -> tuple[Predictions, Predictions]:
    """A fair primary, and a secondary that knows so much more."""
    generator = np.random.default_rng(seed)
    labels = np.repeat([0, 1], of_each)
    primary = 1 / (1 + np.exp(-(1.0 + labels + generator.normal(0, 1, len(labels)))))
    secondary = 1 / (1 + np.exp(-(skill * (2 * labels - 1) + generator.normal(0, 1, len(labels)))))
    return predictions(primary, labels), predictions(secondary, labels)


def test_secondary_that_tells_the_rest_apart_is_kept() -> None:
    primary, secondary = made_up(skill=2.0)
    worth = weigh(primary, secondary)
    assert worth.cascade_false < worth.stricter_false
    kept, reason = keeps(worth, "if_better")
    assert kept and f"leave {worth.cascade_false} " in reason and "3 validation patients" in reason


def test_secondary_that_rejects_by_chance_is_not_used_though_it_leaves_fewer_false_positives() -> None:
    primary, secondary = made_up(skill=0.0)
    worth = weigh(primary, secondary)
    assert worth.cascade_false < 0.6 * worth.primary_false  # it looks like a gain
    kept, reason = keeps(worth, "if_better")
    assert not kept and "primary alone" in reason
    assert keeps(worth, "always")[0]


def test_stricter_primary_is_the_point_of_its_roc_curve_with_the_sensitivity_of_the_cascade() -> None:
    primary, secondary = made_up(skill=0.5)
    worth = weigh(primary, secondary)
    false, true, _ = roc_curve(primary.labels, primary.probabilities, drop_intermediate=False)
    at_same_sensitivity = np.flatnonzero(np.isclose(true, worth.cascade_true / worth.tumor))[0]
    assert worth.stricter_false == pytest.approx(false[at_same_sensitivity] * worth.nontumor)
    assert worth.tumor == worth.nontumor == 400


def test_windows_of_one_probability_count_by_the_share_that_is_needed() -> None:
    labels = np.array([1, 1, 1, 1, 0, 0])
    primary = predictions(np.full(6, 0.9), labels)
    secondary = predictions(np.array([0.9, 0.1, 0.1, 0.1, 0.9, 0.1]), labels)
    worth = weigh(primary, secondary)
    assert (worth.cascade_true, worth.cascade_false) == (1, 1)
    assert worth.stricter_false == pytest.approx(2 / 4)  # a quarter of the tumor, a quarter of the rest


@pytest.mark.parametrize("missing", [0, 1])
def test_too_few_windows_to_tell_leave_the_primary_alone_and_say_so(missing: int) -> None:
    primary, secondary = made_up(skill=3.0, of_each=ENOUGH + 20)
    kept = np.ones(len(primary.labels), bool)
    kept[np.flatnonzero(primary.labels == missing)[: 20 + 20]] = False  # of this class some are left
    one, other = (
        predictions(found.probabilities[kept], found.labels[kept]) for found in (primary, secondary)
    )
    worth = weigh(one, other)
    assert not worth.is_enough
    used, reason = keeps(worth, "if_better")
    assert not used and f"fewer than {ENOUGH}" in reason and "can't tell" in reason


def test_cascade_that_finds_no_tumor_is_not_used() -> None:
    primary, secondary = made_up(skill=2.0)
    nothing = predictions(np.where(primary.labels == 1, 0.1, secondary.probabilities), primary.labels)
    worth = weigh(primary, nothing)
    assert (worth.cascade_true, worth.stricter_probability, worth.is_better) == (0, None, False)
    assert "find 0 of 400 tumor windows" in keeps(worth, "if_better")[1]


def test_stages_that_saw_different_windows_are_not_compared() -> None:
    primary, secondary = made_up(skill=1.0)
    with pytest.raises(ValueError, match="same windows"):
        weigh(primary, predictions(secondary.probabilities, 1 - secondary.labels))
