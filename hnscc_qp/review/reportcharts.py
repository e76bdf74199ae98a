"""Charts of the report as points of inline SVG: ROC, FROC, and the highest scores of slides."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from hnscc_qp.review.comparison import Comparison, Froc, SetName, SlideResult

SIDE_PX = 240
"""Of the square that curves are drawn in."""
SETS: tuple[SetName, ...] = ("development", "test")
FROC_TICKS = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)


@dataclass(frozen=True, slots=True)
class Curve:
    """One line of a chart."""

    set: SetName
    points: str
    """For SVG's polyline."""
    label: str


@dataclass(frozen=True, slots=True)
class Dot:
    """One slide in the chart of scores."""

    entry_id: str
    x: float
    y: float
    positive: bool
    title: str


@dataclass(frozen=True, slots=True)
class Strip:
    """The slides of one set and truth, by their highest score."""

    label: str
    set: SetName
    positive: bool
    height: float
    top: float
    dots: tuple[Dot, ...]


def set_of(slide: SlideResult) -> SetName:
    """Development is training and validation together."""
    return "test" if slide.side == "test" else "development"


def roc_curves(comparison: Comparison) -> list[Curve]:
    """Slide sensitivity against false alarms, a line for each set with both classes."""
    return [
        Curve(
            figures.set,
            _points([(point.false_positive_rate, point.sensitivity) for point in figures.roc]),
            f"{figures.set}: AUC {figures.auc}" if figures.auc else figures.set,
        )
        for figures in comparison.figures
        if figures.roc
    ]


def froc_curves(comparison: Comparison) -> list[Curve]:
    """Lesion sensitivity against false detections per slide, on a scale of powers of two."""
    return [
        Curve(figures.set, _points(froc_steps(figures.froc)), f"{figures.set}: mean {figures.froc.score}")
        for figures in comparison.figures
        if figures.froc and figures.froc.points
    ]


def froc_ticks() -> list[tuple[float, str]]:
    """Where the marks of the FROC chart's abscissa are, in px, and what they say."""
    names = {0.125: "0", 0.25: "1/4", 0.5: "1/2"}
    return [(SIDE_PX * froc_place(value), names.get(value, f"{value:g}")) for value in FROC_TICKS]


def froc_place(false_per_slide: float) -> float:
    """0..1 along the abscissa: the mark below 1/4 stands for none, 8 is the end."""
    if false_per_slide <= FROC_TICKS[0]:
        return 0.0
    return min(1.0, math.log2(false_per_slide / FROC_TICKS[0]) / 6)


def score_strips(comparison: Comparison, *, width: float) -> list[Strip]:
    """The highest score of every slide, a band for each set and truth; slides of one score are stacked.

    Args:
        comparison: whose slides.
        width: of the bands in px; one column for each number of votes, none included.
    """
    column = width / (comparison.threshold.levels + 1)
    strips = []
    top = 0.0
    for name in SETS:
        for positive in (True, False):
            slides = [
                slide
                for slide in comparison.slides
                if set_of(slide) == name and (slide.truth == "positive") is positive
            ]
            if not slides:
                continue
            dots, height = _stack(slides, positive=positive, column=column, top=top)
            strips.append(
                Strip(
                    f"{name}, {'positive' if positive else 'negative'} ({len(slides)})",
                    name,
                    positive,
                    height,
                    top,
                    dots,
                )
            )
            top += height + 26
    return strips


def _stack(
    slides: Sequence[SlideResult], *, positive: bool, column: float, top: float
) -> tuple[tuple[Dot, ...], float]:
    """Dots from the bottom of the band up; close together where many share a score."""
    most = max(Counter(slide.max_votes for slide in slides).values())
    step = min(11.0, 90 / most)
    height = max(16.0, most * step + 4)
    seen: Counter[int] = Counter()
    dots = []
    for slide in slides:
        votes = slide.max_votes
        dots.append(
            Dot(
                slide.entry_id,
                round((votes + 0.5) * column, 1),
                round(top + height - 6 - seen[votes] * step, 1),
                positive,
                f"{slide.image}: {slide.max_score:.4f}, {slide.truth}",
            )
        )
        seen[votes] += 1
    return tuple(dots), height


def froc_steps(froc: Froc) -> list[tuple[float, float]]:
    """The sensitivity that a number of false detections buys holds until the next point."""
    places = [(0.0, 0.0)]
    for point in sorted(froc.points, key=lambda point: (point.false_per_slide, point.sensitivity)):
        x = froc_place(point.false_per_slide)
        places += [(x, places[-1][1]), (x, point.sensitivity)]
    return [*places, (1.0, places[-1][1])]


def _points(places: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{SIDE_PX * x:.1f},{SIDE_PX * (1 - y):.1f}" for x, y in places)
