"""The threshold of a positive slide, chosen on the development set (Tang et al. 2022, §2.5)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from hnscc_qp.errors import CohortError
from hnscc_qp.scoring.extent import votes_reached

Within = Literal["lowest", "middle"]
"""Which of the thresholds that separate the development set."""
LEVELS = 16
"""Windows over a block at the method's stride, and so the largest number of votes."""


@dataclass(frozen=True, slots=True)
class SlideScore:
    """A slide's truth and its highest score."""

    name: str
    patient: str
    positive: bool
    max_votes: int
    """0..levels"""
    levels: int = LEVELS
    """Windows over a block: 16, or 4 or 64 where the slide was scored at another stride."""
    largest_um2: tuple[float, ...] = ()
    """Area of the largest connected region that reaches each level; () where no smallest area counts."""

    def at_least(self, min_lesion_um2: float) -> SlideScore:
        """The slide by its regions of at least some area alone; with 0, as it is."""
        if min_lesion_um2 <= 0:
            return self
        return replace(self, max_votes=votes_reached(self.largest_um2, min_lesion_um2))

    def __post_init__(self) -> None:
        if not 0 <= self.max_votes <= self.levels:
            raise ValueError(f"{self.name} has {self.max_votes} votes; there are 0 to {self.levels}")


@dataclass(frozen=True, slots=True)
class Level:
    """How a threshold of so many votes does on the development set."""

    votes: int
    sensitivity: float
    specificity: float | None
    """None if there are no negative slides."""


@dataclass(frozen=True, slots=True)
class Threshold:
    """A slide is positive if a region of at least `votes` votes is large enough (with 0, any block)."""

    votes: int
    """1..levels"""
    levels: int
    """Windows over a block, of the slides it was chosen on."""
    separates: bool
    """It parts all positive from all negative slides of the development set."""
    interval: tuple[int, int] | None
    """Lowest and highest number of votes that separate, both included; None if none does."""
    sensitivity: float
    specificity: float | None
    missed: tuple[str, ...]
    """Positive slides below the threshold."""
    false_alarms: tuple[str, ...]
    """Negative slides that reach it."""
    sweep: tuple[Level, ...]
    """All levels, from 1 vote to all."""
    sentence: str
    """The choice and its reason, for people."""
    min_lesion_um2: float = 0.0

    @property
    def score(self) -> float:
        """The threshold as a score, the share of votes: 1/levels..1. It means the same at every stride."""
        return self.votes / self.levels


def choose_threshold(
    slides: Sequence[SlideScore], *, sensitivity: float, within: Within = "lowest"
) -> Threshold:
    """Choose the paper's threshold: the lower end of the interval that separates the development set.

    Where the highest score of every negative slide is below that of every positive one, the
    thresholds in between separate the set, and the lowest of them is taken (the paper's
    0.6875 = 11/16). Otherwise it is the highest threshold that keeps the wanted sensitivity; where
    even one vote misses too many slides, it is one vote. Without negative slides nothing
    can be separated, so the second rule holds and the specificity is unknown.

    Args:
        slides: the development set.
        sensitivity: wanted share of positive slides found, 0..1, where no threshold separates.
        within: `middle` takes the middle of the interval instead, the lower one of two.

    Raises:
        CohortError: no slide is positive.
    """
    positives = [slide for slide in slides if slide.positive]
    negatives = [slide for slide in slides if not slide.positive]
    if not positives:
        raise CohortError(
            "the development set has no positive slide to choose a threshold by; "
            "annotate tumor on one, or move a positive patient out of the test set"
        )
    levels = slides[0].levels
    if any(slide.levels != levels for slide in slides):
        raise CohortError(
            "slides were scored at different strides; score them again with one stride (hnscc-qp score)"
        )
    sweep = tuple(_judge(votes, positives, negatives) for votes in range(1, levels + 1))
    interval = _separating(positives, negatives)
    if interval:
        votes = interval[0] if within == "lowest" else sum(interval) // 2
    else:
        # Sensitivities are shares of a few slides: 0.7 wanted of 7/10 must not fail by rounding.
        votes = max((level.votes for level in sweep if level.sensitivity >= sensitivity - 1e-9), default=1)
    chosen = sweep[votes - 1]
    missed = tuple(slide.name for slide in positives if slide.max_votes < votes)
    false_alarms = tuple(slide.name for slide in negatives if slide.max_votes >= votes)
    patients = len({slide.patient for slide in slides})
    return Threshold(
        votes=votes,
        levels=levels,
        separates=interval is not None,
        interval=interval,
        sensitivity=chosen.sensitivity,
        specificity=chosen.specificity,
        missed=missed,
        false_alarms=false_alarms,
        sweep=sweep,
        sentence=(
            f"A score of {votes}/{levels} = {votes / levels:.4f} calls a slide positive. "
            f"{_reason(chosen, interval, levels, sensitivity, bool(negatives), within=within)} "
            f"On the development set ({len(slides)} slides of {patients} patients) it finds "
            f"{len(positives) - len(missed)} of {len(positives)} positive slides and falsely calls "
            f"{len(false_alarms)} of {len(negatives)} negative ones."
        ),
    )


def choose_threshold_and_area(
    slides: Sequence[SlideScore], *, sensitivity: float, within: Within = "lowest"
) -> Threshold:
    """Choose the threshold together with the smallest lesion area, by the same rule.

    It is the smallest area with which the development set is separated; where no area separates it, the one
    with the highest specificity at the wanted sensitivity, and of those the smallest. Areas that can make a
    difference lie just above the largest region of a negative slide at some threshold.

    Args:
        slides: the development set, with `largest_um2`.
        sensitivity: as `choose_threshold`.
        within: as `choose_threshold`.

    Raises:
        CohortError: as `choose_threshold`.
    """
    most = max((max(slide.largest_um2, default=0.0) for slide in slides if slide.positive), default=0.0)
    areas = {
        math.floor(area) + 1.0
        for slide in slides
        if not slide.positive
        for area in slide.largest_um2
        if 0 < area < most
    }
    best = choose_with_area(slides, 0.0, sensitivity=sensitivity, within=within)
    for area in sorted(areas):
        if best.separates:
            break
        tried = choose_with_area(slides, area, sensitivity=sensitivity, within=within)
        if _merit(tried, sensitivity) > _merit(best, sensitivity):
            best = tried
    return best


def choose_with_area(
    slides: Sequence[SlideScore], min_lesion_um2: float, *, sensitivity: float, within: Within = "lowest"
) -> Threshold:
    """`choose_threshold` where only regions of at least some area count."""
    counted = [slide.at_least(min_lesion_um2) for slide in slides]
    chosen = choose_threshold(counted, sensitivity=sensitivity, within=within)
    if min_lesion_um2 <= 0:
        return chosen
    sentence = f"Only regions of at least {min_lesion_um2:.0f} µm² count. {chosen.sentence}"
    return replace(chosen, min_lesion_um2=min_lesion_um2, sentence=sentence)


def _merit(threshold: Threshold, wanted: float) -> tuple[bool, float, float]:
    # More sensitivity than wanted is no merit.
    return threshold.separates, min(threshold.sensitivity, wanted), threshold.specificity or 0.0


def votes_for(score: float, levels: int) -> int:
    """The fewest votes of `levels` that reach a score, 0..1: at least one."""
    # 11/16 of 64 is 44, whatever rounding says.
    return max(1, math.ceil(score * levels - 1e-9))


def slide_status(max_votes: int, threshold_votes: int) -> Literal["positive", "negative"]:
    """Call a slide by its highest number of votes."""
    return "positive" if max_votes >= threshold_votes else "negative"


def _judge(votes: int, positives: Sequence[SlideScore], negatives: Sequence[SlideScore]) -> Level:
    found = sum(slide.max_votes >= votes for slide in positives)
    spared = sum(slide.max_votes < votes for slide in negatives)
    return Level(votes, found / len(positives), spared / len(negatives) if negatives else None)


def _separating(positives: Sequence[SlideScore], negatives: Sequence[SlideScore]) -> tuple[int, int] | None:
    if not negatives:
        return None
    low = max(slide.max_votes for slide in negatives) + 1
    high = min(slide.max_votes for slide in positives)
    return (low, high) if low <= high else None


def _reason(
    chosen: Level,
    interval: tuple[int, int] | None,
    levels: int,
    sensitivity: float,
    any_negatives: bool,
    *,
    within: Within,
) -> str:
    if interval:
        low, high = (f"{votes / levels:.4f}" for votes in interval)
        which = "lower end" if within == "lowest" else "middle"
        return f"It is the {which} of the thresholds that separate the development set, {low} to {high}."
    why = "No threshold separates the development set" if any_negatives else "There are no negative slides"
    if chosen.sensitivity < sensitivity - 1e-9:
        return f"{why}, and none reaches a sensitivity of {sensitivity:.0%}: it is the lowest there is."
    return f"{why}: it is the highest that keeps a sensitivity of {sensitivity:.0%}."
