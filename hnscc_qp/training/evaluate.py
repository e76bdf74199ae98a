"""How well a classifier tells tumor windows from nontumor ones."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.special import softmax
from sklearn.metrics import roc_auc_score

from hnscc_qp.models.networks import WindowClassifier

_RESAMPLES = 1000


@dataclass(frozen=True, slots=True)
class Figures:
    """Accuracy at P(tumor) > 0.5, and the area under the ROC curve."""

    n: int
    accuracy: float | None
    auc: float | None
    """None where a class is missing."""
    auc_interval: tuple[float, float] | None
    """95 %, by resampling patients; None unless two patients or more have each class."""
    true_tumor: int
    false_tumor: int
    true_nontumor: int
    false_nontumor: int

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
) -> NDArray[np.float32]:
    """P(tumor), (n,) in 0..1, for windows (n, 40, 40, 3); see `predict_logits`."""
    logits = predict_logits(classifier, pixels, device=device, batch_size=batch_size)
    probabilities: NDArray[np.float32] = softmax(logits, axis=1)[:, 1]
    return probabilities


def evaluate(
    probabilities: NDArray[np.floating[Any]], labels: ArrayLike, groups: ArrayLike | None = None
) -> Figures:
    """Compare P(tumor) with the labels.

    Args:
        probabilities: (n,)
        labels: (n,) 0 nontumor, 1 tumor.
        groups: (n,) each window's patient. Windows of one patient are alike, so the interval is of
            patients drawn with replacement, not of windows.
    """
    labels = np.asarray(labels).astype(bool)
    called = probabilities > 0.5  # as the larger of two logits
    both = labels.any() and not labels.all()
    return Figures(
        n=len(labels),
        accuracy=float((called == labels).mean()) if len(labels) else None,
        auc=float(roc_auc_score(labels, probabilities)) if both else None,
        auc_interval=None if groups is None or not both else _auc_interval(probabilities, labels, groups),
        true_tumor=int((called & labels).sum()),
        false_tumor=int((called & ~labels).sum()),
        true_nontumor=int((~called & ~labels).sum()),
        false_nontumor=int((~called & labels).sum()),
    )


def _auc_interval(
    probabilities: NDArray[np.floating[Any]], labels: NDArray[np.bool_], groups: ArrayLike, seed: int = 1
) -> tuple[float, float] | None:
    """Percentile bootstrap of the AUC over groups; resamples that lack a class are left out."""
    names, group = np.unique(np.asarray(groups), return_inverse=True)
    wins = _wins(probabilities, labels, group, len(names))
    pairs = np.outer(
        np.bincount(group[labels], minlength=len(names)), np.bincount(group[~labels], minlength=len(names))
    )
    if min(np.count_nonzero(pairs.any(axis=axis)) for axis in (0, 1)) < 2:
        return None  # one patient's tumor, or one's nontumor: nothing varies
    generator = np.random.default_rng(seed)
    drawn = generator.multinomial(len(names), np.full(len(names), 1 / len(names)), size=_RESAMPLES)
    # A group drawn twice counts twice on either side of each of its pairs.
    won = np.einsum("ri,ij,rj->r", drawn, wins, drawn, optimize=True)
    possible = np.einsum("ri,ij,rj->r", drawn, pairs, drawn, optimize=True)
    if not possible.any():
        return None
    low, high = np.percentile(won[possible > 0] / possible[possible > 0], [2.5, 97.5])
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
