"""Shares with exact intervals, and intervals by drawing patients with replacement.

Slides, and windows, of one patient are alike, so what is drawn is patients. Where two models are compared,
both are judged on the same draws (a paired bootstrap), so that what the patients have in common cancels out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binomtest

Interval = tuple[float, float]
Counts = NDArray[np.int64]

RESAMPLES = 2000
CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Proportion:
    """`count` of `of`, with 95 % intervals that take each for a draw of its own."""

    count: int
    of: int
    clopper_pearson: Interval
    """Exact (Clopper and Pearson 1934): covers at least 95 %, whatever the true share."""
    wilson: Interval
    """Score interval (Wilson 1927): narrower, covers 95 % on average."""

    @property
    def value(self) -> float:
        """The share, 0..1."""
        return self.count / self.of

    def __str__(self) -> str:
        low, high = self.clopper_pearson
        return f"{percent(self.value)} ({self.count}/{self.of}; {100 * low:.1f} to {100 * high:.1f})"


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with its interval by patients."""

    value: float
    interval: Interval | None
    """95 %, percentiles of the bootstrap; None where too few patients have what is counted."""

    def __str__(self) -> str:
        return f"{self.value:.3f}" + (
            "" if self.interval is None else " ({:.3f} to {:.3f})".format(*self.interval)
        )


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """What the second model is better by, judged on the same drawn patients."""

    difference: float
    """Second minus first."""
    interval: Interval | None
    share_better: float | None
    """Share of draws in which the second is strictly better."""
    resamples: int
    """Draws in which both figures could be computed."""


def proportion(count: int, of: int) -> Proportion | None:
    """`count` of `of` with its intervals; None if there is nothing to take a share of."""
    if not of:
        return None
    test = binomtest(int(count), int(of))
    exact = test.proportion_ci(CONFIDENCE, method="exact")
    wilson = test.proportion_ci(CONFIDENCE, method="wilson")
    return Proportion(
        int(count), int(of), (float(exact.low), float(exact.high)), (float(wilson.low), float(wilson.high))
    )


def percent(share: float) -> str:
    """`75.9 %`: a share 0..1 as people read it."""
    return f"{100 * share:.1f} %"


def draw_patients(patients: int, *, resamples: int = RESAMPLES, seed: int = 1) -> Counts:
    """How often each patient is in each draw with replacement: (resamples, patients)."""
    generator = np.random.default_rng(seed)
    return generator.multinomial(patients, np.full(patients, 1 / patients), size=resamples)


def bootstrap(
    patients: Sequence[str],
    statistic: Callable[[NDArray[np.int64]], float | None],
    *,
    resamples: int = RESAMPLES,
    seed: int = 1,
    needed: int = 2,
) -> Estimate | None:
    """A figure and its 95 % interval over patients drawn with replacement.

    Args:
        patients: whose each item is, (n,).
        statistic: of how often each item counts, (n,) whole numbers; None where it can't be computed.
        resamples: draws.
        seed: of the draws.
        needed: patients below which there is no interval.

    Returns:
        None if the figure can't be computed of the items as they are.
    """
    value = statistic(np.ones(len(patients), np.int64))
    if value is None:
        return None
    values = _drawn(patients, [statistic], resamples=resamples, seed=seed)[:, 0]
    values = values[~np.isnan(values)]
    if len(set(patients)) < needed or not len(values):
        return Estimate(value, None)
    return Estimate(value, _percentiles(values))


def paired_bootstrap(
    patients: Sequence[str],
    first: Callable[[NDArray[np.int64]], float | None],
    second: Callable[[NDArray[np.int64]], float | None],
    *,
    resamples: int = RESAMPLES,
    seed: int = 1,
) -> PairedDifference | None:
    """How much better the second model's figure is than the first's, on the same drawn patients.

    Args:
        patients: whose each item is, (n,).
        first: the figure of the first model, of how often each item counts; None where there is none.
        second: that of the second.
        resamples: draws.
        seed: of the draws.

    Returns:
        None if one of the figures can't be computed of the items as they are. The interval is None
        with fewer than two patients.
    """
    once = np.ones(len(patients), np.int64)
    before, after = first(once), second(once)
    if before is None or after is None:
        return None
    values = _drawn(patients, [first, second], resamples=resamples, seed=seed)
    gain = (values[:, 1] - values[:, 0])[~np.isnan(values).any(axis=1)]
    if len(set(patients)) < 2 or not len(gain):
        return PairedDifference(after - before, None, None, len(gain))
    return PairedDifference(after - before, _percentiles(gain), float((gain > 0).mean()), len(gain))


def weighted_auc(truth: ArrayLike, scores: ArrayLike, counts: ArrayLike) -> float | None:
    """Area under the ROC curve, each item counted so often; None where a class is missing.

    Args:
        truth: (n,) bool, positive.
        scores: (n,)
        counts: (n,) how often each counts.
    """
    truth, counts = np.asarray(truth, dtype=bool), np.asarray(counts)
    _, rank = np.unique(np.asarray(scores), return_inverse=True)
    positive = np.bincount(rank, counts * truth)
    negative = np.bincount(rank, counts * ~truth)
    pairs = positive.sum() * negative.sum()
    if not pairs:
        return None
    # Pairs in order, ties half (Mann and Whitney 1947).
    below = np.cumsum(negative) - negative
    return float((positive * (below + negative / 2)).sum() / pairs)


class DrawnPatients:
    """Patients drawn with replacement, the same draws for every figure, where items are very many windows.

    What a figure needs is counted once for each patient, or pair of patients; a draw only weighs that.
    """

    def __init__(self, groups: NDArray[Any], *, resamples: int = RESAMPLES, seed: int = 1) -> None:
        """Draw among the patients of `groups`, (n,), whose each item is."""
        names, self._group = np.unique(groups, return_inverse=True)
        self._count = len(names)
        self._drawn = draw_patients(self._count, resamples=resamples, seed=seed)

    def share_interval(self, right: NDArray[np.bool_], among: NDArray[np.bool_]) -> Interval | None:
        """95 % interval of the share of some items that is right, (n,) each; None if nothing varies."""
        of = np.bincount(self._group[among], minlength=self._count)
        if np.count_nonzero(of) < 2:
            return None  # nothing varies
        won = np.bincount(self._group[among & right], minlength=self._count)
        return _percentiles_of_shares(self._drawn @ won, self._drawn @ of)

    def auc_interval(
        self, probabilities: NDArray[np.floating[Any]], labels: NDArray[np.bool_]
    ) -> Interval | None:
        """95 % interval of the AUC; draws that lack a class are left out. None if nothing varies."""
        wins = _wins(probabilities, labels, self._group, self._count)
        tumor, nontumor = (
            np.bincount(self._group[side], minlength=self._count) for side in (labels, ~labels)
        )
        if min(np.count_nonzero(tumor), np.count_nonzero(nontumor)) < 2:
            return None  # one patient's tumor, or one's nontumor: nothing varies
        # A patient drawn twice counts twice on either side of each of its pairs.
        won = np.einsum("ri,ij,rj->r", self._drawn, wins, self._drawn, optimize=True)
        return _percentiles_of_shares(won, (self._drawn @ tumor) * (self._drawn @ nontumor))


def _drawn(
    patients: Sequence[str],
    statistics: Sequence[Callable[[NDArray[np.int64]], float | None]],
    *,
    resamples: int,
    seed: int,
) -> NDArray[np.float64]:
    """Every figure of every draw, NaN where there is none: (resamples, figures)."""
    names, of_item = np.unique(np.asarray(patients, dtype=str), return_inverse=True)
    values = np.full((resamples, len(statistics)), np.nan)
    if not len(names):
        return values
    for row, drawn in enumerate(draw_patients(len(names), resamples=resamples, seed=seed)):
        counts = drawn[of_item]
        for column, statistic in enumerate(statistics):
            value = statistic(counts)
            if value is not None:
                values[row, column] = value
    return values


def _percentiles(values: NDArray[Any]) -> Interval:
    rest = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(values, [rest, 100 - rest])
    return float(low), float(high)


def _percentiles_of_shares(won: NDArray[Any], possible: NDArray[Any]) -> Interval | None:
    some = possible > 0
    return _percentiles(won[some] / possible[some]) if some.any() else None


def _wins(
    probabilities: NDArray[np.floating[Any]], labels: NDArray[np.bool_], group: NDArray[np.intp], groups: int
) -> NDArray[np.float64]:
    """For tumor items of group i against nontumor items of group j: how many pairs are in order.

    Ties count half. The AUC is the sum over the number of pairs (Mann and Whitney).
    """
    tumor, tumor_group = probabilities[labels], group[labels]
    wins = np.zeros((groups, groups))
    for j in range(groups):
        others = np.sort(probabilities[~labels & (group == j)])
        below = np.searchsorted(others, tumor, "left") + np.searchsorted(others, tumor, "right")
        wins[:, j] = np.bincount(tumor_group, weights=below / 2, minlength=groups)
    return wins
