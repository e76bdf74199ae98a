"""The promotion gate: does a candidate replace the generation in use?

Both are judged on the same slides of the same patients, by the same truth. The interval of a difference is
the paired bootstrap over patients of `training.intervals`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hnscc_qp.errors import listed
from hnscc_qp.review.comparison import Call
from hnscc_qp.review.froc import FrocStatistic, SlideDetections
from hnscc_qp.study import Promotion
from hnscc_qp.training.intervals import CONFIDENCE, paired_bootstrap


@dataclass(frozen=True, slots=True)
class SlideOutcome:
    """What one generation makes of one slide of the frozen set."""

    entry_id: str
    image: str
    patient: str
    positive: bool
    """By the frozen truth."""
    call: Call
    """At the generation's own threshold; a slide without tissue was not called."""
    lesions: tuple[float, ...]
    """For each lesion that counts the highest score of the detections in it, 0..1; 0 if there is none."""
    false_findings: tuple[float, ...]
    """Scores of the detections in no lesion, 0..1."""
    truth_um2: float
    found_um2: float
    """Area over the generation's threshold."""
    both_um2: float
    """Area that is both."""

    @property
    def false_um2(self) -> float:
        """Area over the threshold outside the truth."""
        return self.found_um2 - self.both_um2


Slides = Sequence[SlideOutcome]
Counts = NDArray[np.int64]
"""(slides,) how often each slide counts."""


def sensitivity(slides: Slides, counts: Counts) -> float | None:
    """Share of the positive slides that are called positive; None if there is none."""
    positive = counts * [slide.positive for slide in slides]
    return _share(positive * [slide.call == "positive" for slide in slides], positive)


def specificity(slides: Slides, counts: Counts) -> float | None:
    """Share of the negative slides that are not called positive; None if there is none."""
    negative = counts * [not slide.positive for slide in slides]
    return _share(negative * [slide.call != "positive" for slide in slides], negative)


def dice(slides: Slides, counts: Counts) -> float | None:
    """Pooled Dice of the areas, 2 · both / (truth + found); None if there is neither truth nor finding."""
    both = counts * [2 * slide.both_um2 for slide in slides]
    return _share(both, counts * [slide.truth_um2 + slide.found_um2 for slide in slides])


def froc(slides: Slides) -> Figure:
    """CAMELYON16's figure for lesions, see `review.froc`; it is made once, and then counts slides quickly."""
    return FrocStatistic(
        [SlideDetections(slide.patient, slide.lesions, slide.false_findings) for slide in slides]
    )


def _share(part: NDArray[Any], whole: NDArray[Any]) -> float | None:
    of = float(whole.sum())
    return float(part.sum()) / of if of else None


Figure = Callable[[Counts], float | None]
"""A figure of some slides, each counted so often; more is better, None where there is nothing of it."""
FIGURES: Mapping[str, Callable[[Slides], Figure]] = {
    "sensitivity": lambda slides: partial(sensitivity, slides),
    "specificity": lambda slides: partial(specificity, slides),
    "froc": froc,
    "dice": lambda slides: partial(dice, slides),
}
_BEARING: Mapping[str, Callable[[SlideOutcome], bool]] = {
    "sensitivity": lambda slide: slide.positive,
    "specificity": lambda slide: not slide.positive,
    "froc": lambda slide: bool(slide.lesions),
    "dice": lambda slide: slide.truth_um2 > 0,
}
"""Which slides a figure is about: how many patients they are of decides whether it can decide."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One figure of both generations, and how sure their difference is."""

    current: float | None
    """None where the slides have nothing that it is about."""
    candidate: float | None
    difference: float | None
    """Of the candidate from the current one; more is better."""
    interval: tuple[float, float] | None
    """Of the difference; None where fewer than two patients bear on it."""
    patients: int
    """Who bear on it."""


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether the gate lets a candidate pass, and why."""

    passed: bool
    reason: str
    """For people, in one line."""
    side: str
    figure: str
    """The one that had to be better."""
    slides: int
    patients: int
    figures: Mapping[str, Difference]

    def as_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def decide(current: Slides, candidate: Slides, settings: Promotion) -> Decision:
    """Compare a candidate with the generation in use.

    It passes if its slide sensitivity is no lower and the interval of the difference of
    `settings.figure` lies above zero. What can't be told apart is not better.

    Args:
        current: of the generation in use.
        candidate: of the same slides.
        settings: which figure, how sure, and how many patients it takes.

    Raises:
        ValueError: they are not of the same slides, patients and truth.
    """
    before, after = (sorted(slides, key=lambda slide: slide.entry_id) for slides in (current, candidate))
    if [_truth(slide) for slide in before] != [_truth(slide) for slide in after]:
        raise ValueError("the two generations were not judged on the same slides by the same truth")
    figures = compare(before, after, settings)
    chosen, sensed = figures[settings.figure], figures["sensitivity"]
    passed, reason = False, ""
    if chosen.patients < settings.min_patients:
        reason = (
            f"too few patients: {chosen.patients} of the {settings.side} set bear on {settings.figure}, "
            f"{settings.min_patients} are needed to decide"
        )
    elif sensed.difference is None:
        reason = f"the {settings.side} set has no positive slide, so nobody can say that none is lost"
    elif sensed.difference < 0:
        reason = (
            f"slide sensitivity fell from {sensed.current:.3f} to {sensed.candidate:.3f}: "
            f"{listed(_lost(before, after))} found before, missed now"
        )
    elif chosen.interval is None or chosen.difference is None:
        reason = f"{settings.figure} can't be compared on the {settings.side} set"
    else:
        low, high = chosen.interval
        passed = low > 0
        change = f"{settings.figure} changed by {chosen.difference:+.3f} from {chosen.current:.3f}"
        interval = f"{CONFIDENCE:.0%} interval {low:+.3f} to {high:+.3f}"
        reason = (
            f"{change} ({interval}, {chosen.patients} patients), and no sensitivity is lost"
            if passed
            else f"not better beyond chance: {change} ({interval}, {chosen.patients} patients)"
        )
    return Decision(
        passed=passed,
        reason=reason,
        side=settings.side,
        figure=settings.figure,
        slides=len(before),
        patients=len({slide.patient for slide in before}),
        figures=figures,
    )


def compare(current: Slides, candidate: Slides, settings: Promotion) -> dict[str, Difference]:
    """Every figure of both, slide by slide in one order, with the paired interval of its difference."""
    patients = [slide.patient for slide in current]
    once = np.ones(len(current), np.int64)
    found = {}
    for name, figure_of in FIGURES.items():
        before, after = figure_of(current), figure_of(candidate)
        change = paired_bootstrap(
            patients,
            before,
            after,
            resamples=settings.resamples,
            seed=settings.seed,
        )
        bearing = len({slide.patient for slide in current if _BEARING[name](slide)})
        found[name] = Difference(
            before(once),
            after(once),
            change.difference if change else None,
            change.interval if change and bearing > 1 else None,
            patients=bearing,
        )
    return found


def _truth(slide: SlideOutcome) -> tuple[object, ...]:
    return slide.entry_id, slide.patient, slide.positive, len(slide.lesions), slide.truth_um2


def _lost(current: Slides, candidate: Slides) -> list[str]:
    return [
        before.image
        for before, after in zip(current, candidate, strict=True)
        if before.positive and before.call == "positive" and after.call != "positive"
    ]
