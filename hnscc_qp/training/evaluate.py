"""How well a classifier tells tumor windows from nontumor ones."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit
from sklearn.metrics import roc_auc_score

from hnscc_qp.errors import TrainingError
from hnscc_qp.models.networks import WindowClassifier
from hnscc_qp.training.intervals import DrawnPatients, Interval, proportion
from hnscc_qp.training.probabilities import measure_reliability

_RESAMPLES = 1000


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
    patients = (
        None if groups is None or not len(labels) else DrawnPatients(np.asarray(groups), resamples=_RESAMPLES)
    )
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


def _share(
    right: NDArray[np.bool_], among: NDArray[np.bool_], patients: DrawnPatients | None
) -> tuple[float | None, Interval | None, Interval | None]:
    """The share of some windows that is right, its interval by patients, and Wilson's."""
    share = proportion(int(right[among].sum()), int(among.sum()))
    if share is None:
        return None, None, None
    wilson = share.wilson
    drawn = patients.share_interval(right, among) if patients else None
    interval = (min(drawn[0], wilson[0]), max(drawn[1], wilson[1])) if drawn else None
    return share.value, interval, wilson
