"""Whether P(tumor) means what it says: reliability, calibration error, temperature (Guo et al. 2017).

Guo, Pleiss, Sun, Weinberger 2017, On Calibration of Modern Neural Networks, ICML, §2 and §4.2. The threshold
of whole slides is another thing, see `scoring.threshold`: it counts calls, which no temperature changes.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.special import expit, logit

_BINS = 10
_COLDEST, _HOTTEST = 0.05, 20.0


@dataclass(frozen=True, slots=True)
class Temperature:
    """What logits are divided by before they are shown as a probability."""

    value: float
    reason: str
    """Where it comes from, for people."""


@dataclass(frozen=True, slots=True)
class Reliability:
    """What share of windows is tumor among those of about the same P(tumor). Empty bins are left out."""

    mean_probability: tuple[float, ...]
    tumor_share: tuple[float, ...]
    windows: tuple[int, ...]
    calibration_error: float | None
    """Expected calibration error: mean distance of the two above, each bin by its windows (§2, eq. 3)."""

    def as_json(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def measure_reliability(probabilities: ArrayLike, labels: ArrayLike, *, bins: int = _BINS) -> Reliability:
    """Compare P(tumor) with the share of tumor, in bins of equal width.

    Args:
        probabilities: (n,) in 0..1.
        labels: (n,) 0 nontumor, 1 tumor.
        bins: how many; the first holds its both ends, the others their upper end.
    """
    probabilities, labels = np.asarray(probabilities, np.float64), np.asarray(labels).astype(bool)
    edges = np.linspace(0, 1, bins + 1)
    bin_of = np.searchsorted(edges[1:-1], probabilities, side="left")
    windows = np.bincount(bin_of, minlength=bins)
    used = windows > 0
    count = windows[used]
    mean = np.bincount(bin_of, weights=probabilities, minlength=bins)[used] / count
    share = np.bincount(bin_of, weights=labels, minlength=bins)[used] / count
    error = float(np.abs(mean - share) @ count / count.sum()) if len(count) else None
    return Reliability(tuple(mean.tolist()), tuple(share.tolist()), tuple(count.tolist()), error)


def fit_temperature(probabilities: ArrayLike, labels: ArrayLike) -> Temperature:
    """Choose the temperature with the least cross-entropy (§4.2).

    Where none can be chosen it is 1, and the reason says why: a class is missing, the windows are told
    apart so well that any sharper probability would be better still, or no better than by chance.

    Args:
        probabilities: (n,) P(tumor) at temperature 1, of windows that the network was not trained on.
        labels: (n,) 0 nontumor, 1 tumor.
    """
    labels = np.asarray(labels).astype(bool)
    margins = _margins(probabilities)
    if not labels.any() or labels.all():
        missing = "nontumor" if labels.any() else "tumor"
        return Temperature(1.0, f"not fitted: there is no {missing} window to fit it on")

    def slope(sharpness: float) -> float:
        """Of the cross-entropy over 1/temperature; it rises, since the cross-entropy is convex."""
        return float(np.mean((expit(sharpness * margins) - labels) * margins))

    if slope(1 / _HOTTEST) >= 0:
        return Temperature(1.0, "not fitted: the windows are told apart no better than by chance")
    if slope(1 / _COLDEST) <= 0:
        return Temperature(
            1.0, "not fitted: the windows are told apart so well that no probability is too sure"
        )
    sharpness = brentq(slope, 1 / _HOTTEST, 1 / _COLDEST, xtol=1e-9)
    return Temperature(float(1 / sharpness), f"fitted on {len(labels):,} windows")


def apply_temperature(probabilities: ArrayLike, temperature: float) -> NDArray[np.float64]:
    """P(tumor) at a temperature, from P(tumor) at temperature 1; 0.5 stays 0.5."""
    if temperature == 1:
        return np.asarray(probabilities, np.float64)
    return expit(_margins(probabilities) / temperature)


def _margins(probabilities: ArrayLike) -> NDArray[np.float64]:
    """The logit of tumor less that of nontumor; finite, and in the order of the probabilities."""
    found = np.asarray(probabilities)
    # A 1 stands for whatever is too close to tell from it.
    kind = np.finfo(found.dtype if found.dtype.kind == "f" else np.float64)
    closest = max(float(kind.epsneg) / 2, float(np.finfo(np.float64).epsneg))
    margins: NDArray[np.float64] = logit(
        found.astype(np.float64).clip(np.finfo(np.float64).tiny, 1 - closest)
    )
    return margins
