"""How well a classifier tells tumor windows from nontumor ones."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit
from scipy.stats import binomtest
from sklearn.metrics import roc_auc_score

from hnscc_qp.errors import TrainingError
from hnscc_qp.models.networks import WindowClassifier
from hnscc_qp.training.probabilities import measure_reliability

_RESAMPLES = 1000
Interval = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Figures:
    """How well windows were called at P(tumor) > 0.5, and the area under the ROC curve.

    A share is None where there is nothing to take it of. Intervals are of 95 %. `..._wilson` (Wilson 1927)
    takes each window for a draw of its own, which is too narrow where windows of one patient are alike.
    `..._interval` draws patients with replacement, and is None where fewer than two have what is counted. Few
    patients can draw too narrow an interval, of no width where all windows are right, so that of a share is
    widened to hold Wilson's.
    """

    n: int
    accuracy: float | None
    auc: float | None
    """None where a class is missing."""
    auc_interval: Interval | None
    true_tumor: int
    false_tumor: int
    true_nontumor: int
    false_nontumor: int
    accuracy_interval: Interval | None
    accuracy_wilson: Interval | None
    sensitivity: float | None
    """Of tumor windows, the share called tumor."""
    sensitivity_interval: Interval | None
    sensitivity_wilson: Interval | None
    specificity: float | None
    """Of nontumor windows, the share called nontumor."""
    specificity_interval: Interval | None
    specificity_wilson: Interval | None
    calibration_error: float | None
    """See `probabilities.Reliability`."""
    brier: float | None
    """Mean squared distance of P(tumor) from the truth (Brier 1950)."""

    def as_json(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def predict_logits(
    classifier: WindowClassifier, pixels: NDArray[np.uint8], *, device: torch.device, batch_size: int = 64
) -> NDArray[np.float32]:
    """Logits (n, 2) for windows (n, 40, 40, 3); the classifier is left in eval mode, on `device`.

    All batches have one shape (the last is filled up), so a window's result does not hang on how
    many there are. 64 windows fill a CPU's caches best; a GPU takes larger batches.
    """
    classifier.to(device).eval()
    logits = np.empty((len(pixels), 2), np.float32)
    batch = torch.zeros((batch_size, *pixels.shape[1:]), dtype=torch.uint8)
    with torch.inference_mode():
        for start in range(0, len(pixels), batch_size):
            some = np.asarray(pixels[start : start + batch_size])
            batch.numpy()[: len(some)] = some
            result = classifier(batch.to(device).permute(0, 3, 1, 2))
            logits[start : start + len(some)] = result[: len(some)].cpu().numpy()
    return logits


def predict(
    classifier: WindowClassifier, pixels: NDArray[np.uint8], *, device: torch.device, batch_size: int = 64
) -> NDArray[np.float64]:
    """P(tumor), (n,) in 0..1, for windows (n, 40, 40, 3), at the classifier's temperature."""
    logits = predict_logits(classifier, pixels, device=device, batch_size=batch_size).astype(np.float64)
    return expit((logits[:, 1] - logits[:, 0]) / classifier.temperature)


def evaluate(probabilities: ArrayLike, labels: ArrayLike, groups: ArrayLike | None = None) -> Figures:
    """Compare P(tumor) with the labels.

    Args:
        probabilities: (n,) in 0..1.
        labels: (n,) 0 nontumor, 1 tumor.
        groups: (n,) each window's patient. Windows of one patient are alike, so the intervals are of
            patients drawn with replacement, not of windows.

    Raises:
        TrainingError: a probability is not a number in 0..1.
    """
    probabilities = np.asarray(probabilities)
    labels = np.asarray(labels).astype(bool)
    assert probabilities.shape == labels.shape and probabilities.ndim == 1
    if wrong := np.count_nonzero(~((probabilities >= 0) & (probabilities <= 1))):
        raise TrainingError(
            f"{wrong} of {len(probabilities)} probabilities are not numbers from 0 to 1; "
            "train the model again with a smaller learning_rate"
        )
    called = probabilities > 0.5  # as the larger of two logits
    both = labels.any() and not labels.all()
    right = called == labels
    patients = None if groups is None or not len(labels) else _Patients(np.asarray(groups))
    accuracy, accuracy_interval, accuracy_wilson = _share(right, np.ones_like(labels), patients)
    sensitivity, sensitivity_interval, sensitivity_wilson = _share(right, labels, patients)
    specificity, specificity_interval, specificity_wilson = _share(right, ~labels, patients)
    return Figures(
        n=len(labels),
        accuracy=accuracy,
        auc=float(roc_auc_score(labels, probabilities)) if both else None,
        auc_interval=patients.auc_interval(probabilities, labels) if patients and both else None,
        true_tumor=int((called & labels).sum()),
        false_tumor=int((called & ~labels).sum()),
        true_nontumor=int((~called & ~labels).sum()),
        false_nontumor=int((~called & labels).sum()),
        accuracy_interval=accuracy_interval,
        accuracy_wilson=accuracy_wilson,
        sensitivity=sensitivity,
        sensitivity_interval=sensitivity_interval,
        sensitivity_wilson=sensitivity_wilson,
        specificity=specificity,
        specificity_interval=specificity_interval,
        specificity_wilson=specificity_wilson,
        calibration_error=measure_reliability(probabilities, labels).calibration_error,
        brier=float(np.mean((probabilities.astype(np.float64) - labels) ** 2)) if len(labels) else None,
    )


def wilson_interval(count: int, of: int) -> Interval | None:
    """95 % interval of a share, each of `of` for a draw of its own (Wilson 1927); None if there is none."""
    if not of:
        return None
    interval = binomtest(int(count), int(of)).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def _share(
    right: NDArray[np.bool_], among: NDArray[np.bool_], patients: _Patients | None
) -> tuple[float | None, Interval | None, Interval | None]:
    """The share of some windows that is right, its interval by patients, and Wilson's."""
    if not among.any():
        return None, None, None
    wilson = wilson_interval(right[among].sum(), among.sum())
    drawn = patients.share_interval(right, among) if patients else None
    assert wilson is not None
    interval = (min(drawn[0], wilson[0]), max(drawn[1], wilson[1])) if drawn else None
    return float(right[among].mean()), interval, wilson


class _Patients:
    """Patients drawn with replacement, the same draws for every figure."""

    def __init__(self, groups: NDArray[Any], seed: int = 1) -> None:
        names, self._group = np.unique(groups, return_inverse=True)
        self._count = len(names)
        generator = np.random.default_rng(seed)
        # How often each is drawn, (resamples, patients).
        even = np.full(self._count, 1 / self._count)
        self._drawn = generator.multinomial(self._count, even, size=_RESAMPLES)

    def share_interval(self, right: NDArray[np.bool_], among: NDArray[np.bool_]) -> Interval | None:
        """Percentiles of the share that is right among some of the windows."""
        of = np.bincount(self._group[among], minlength=self._count)
        if np.count_nonzero(of) < 2:
            return None  # nothing varies
        won = np.bincount(self._group[among & right], minlength=self._count)
        return _percentiles(self._drawn @ won, self._drawn @ of)

    def auc_interval(
        self, probabilities: NDArray[np.floating[Any]], labels: NDArray[np.bool_]
    ) -> Interval | None:
        """Percentiles of the AUC; resamples that lack a class are left out."""
        wins = _wins(probabilities, labels, self._group, self._count)
        tumor, nontumor = (
            np.bincount(self._group[side], minlength=self._count) for side in (labels, ~labels)
        )
        if min(np.count_nonzero(tumor), np.count_nonzero(nontumor)) < 2:
            return None  # one patient's tumor, or one's nontumor: nothing varies
        # A patient drawn twice counts twice on either side of each of its pairs.
        won = np.einsum("ri,ij,rj->r", self._drawn, wins, self._drawn, optimize=True)
        return _percentiles(won, (self._drawn @ tumor) * (self._drawn @ nontumor))


def _percentiles(won: NDArray[Any], possible: NDArray[Any]) -> Interval | None:
    some = possible > 0
    if not some.any():
        return None
    low, high = np.percentile(won[some] / possible[some], [2.5, 97.5])
    return float(low), float(high)


def _wins(
    probabilities: NDArray[np.floating[Any]], labels: NDArray[np.bool_], group: NDArray[np.intp], groups: int
) -> NDArray[np.float64]:
    """For tumor windows of group i against nontumor windows of group j: how many pairs are in order.

    Ties count half. The AUC is the sum over the number of pairs (Mann and Whitney).
    """
    tumor, tumor_group = probabilities[labels], group[labels]
    wins = np.zeros((groups, groups))
    for j in range(groups):
        others = np.sort(probabilities[~labels & (group == j)])
        below = np.searchsorted(others, tumor, "left") + np.searchsorted(others, tumor, "right")
        wins[:, j] = np.bincount(tumor_group, weights=below / 2, minlength=groups)
    return wins
