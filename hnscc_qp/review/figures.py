"""Figures 3 and 4 of the paper of any study, and the FROC curve, as PNG and SVG."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from hnscc_qp.review.comparison import Comparison, SetName, SlideResult
from hnscc_qp.review.reportcharts import FROC_TICKS, SETS, froc_place, froc_steps, set_of
from hnscc_qp.training.figures import BLUE, GREY, INK, ORANGE, draw_diagonal, new_figure, say, unit_square

_STYLES: dict[SetName, tuple[str, str]] = {"development": (BLUE, "--"), "test": (ORANGE, "-")}


def draw_figures(folder: Path, comparison: Comparison) -> list[Path]:
    """Draw `figure3-roc`, `figure4-scores` and `froc`; returns the PNGs, beside which the SVGs lie."""
    paths = [folder / f"{name}.png" for name in ("figure3-roc", "figure4-scores", "froc")]
    for path, draw in zip(paths, (draw_slide_roc, draw_scores, draw_froc), strict=True):
        draw(path, comparison)
    return paths


def draw_slide_roc(path: Path, comparison: Comparison) -> None:
    """ROC curves of slides by their highest score (Tang et al. 2022, Figure 3); dots at the threshold."""
    with new_figure(path, f"ROC of slides: {comparison.study}", width=4.2, height=4.6) as figure:
        axis = figure.subplots()
        for figures in comparison.figures:
            if not figures.roc:
                continue
            colour, style = _STYLES[figures.set]
            rates = np.array([(point.false_positive_rate, point.sensitivity) for point in figures.roc])
            label = f"{figures.set}: AUC {figures.auc}" if figures.auc else figures.set
            axis.plot(*rates.T, color=colour, linestyle=style, linewidth=1.6, clip_on=False, label=label)
            chosen = [point for point in figures.roc if point.votes >= comparison.threshold.votes]
            if chosen:
                at = min(chosen, key=lambda point: point.votes)
                axis.plot(at.false_positive_rate, at.sensitivity, "o", color=colour, clip_on=False)
        unit_square(axis)
        axis.set_xlabel("negative slides called positive (1 − specificity)")
        axis.set_ylabel("positive slides found (sensitivity)")
        if axis.lines:
            draw_diagonal(axis)
            label = f"threshold {comparison.threshold.votes}/{comparison.threshold.levels}"
            axis.plot([], [], "o", color=GREY, markersize=5, label=label)
            axis.legend(loc="lower right", frameon=False, fontsize=8)
        else:
            say(axis, "no curve: positive or negative slides are missing")


def draw_froc(path: Path, comparison: Comparison) -> None:
    """Lesion sensitivity against false detections per slide (CAMELYON16)."""
    with new_figure(path, f"FROC of lesions: {comparison.study}", width=4.8, height=4.4) as figure:
        axis = figure.subplots()
        for figures in comparison.figures:
            if figures.froc is None or not figures.froc.points:
                continue
            colour, style = _STYLES[figures.set]
            label = f"{figures.set}: {figures.froc.score} ({figures.froc.lesions} lesions)"
            steps = np.array(froc_steps(figures.froc))
            axis.plot(*steps.T, color=colour, linestyle=style, linewidth=1.6, clip_on=False, label=label)
        axis.set_xlim(0, 1)
        axis.set_ylim(0, 1)
        # The first mark stands for none.
        names = ["0", *(f"{value:g}" for value in FROC_TICKS[1:])]
        axis.set_xticks([froc_place(value) for value in FROC_TICKS], names)
        axis.set_xlabel("false detections per slide")
        axis.set_ylabel("outlined lesions found")
        if axis.lines:
            # A curve may run behind it.
            axis.legend(
                loc="lower right", edgecolor="none", fontsize=8, title="mean of ¼ to 8", title_fontsize=8
            )
        else:
            say(axis, "no curve: no lesions are outlined")


def draw_scores(path: Path, comparison: Comparison) -> None:
    """How the highest scores of positive and negative slides spread (Tang et al. 2022, Figure 4)."""
    levels = comparison.threshold.levels
    names = [name for name in SETS if any(set_of(slide) == name for slide in comparison.slides)]
    title = f"Highest score of every slide: {comparison.study}"
    with new_figure(path, title, width=6.6, height=0.9 + 1.9 * max(1, len(names))) as figure:
        axes = figure.subplots(max(1, len(names)), 1, squeeze=False, sharex=True)[:, 0]
        for axis, name in zip(axes, names, strict=False):
            _score_bars(axis, [slide for slide in comparison.slides if set_of(slide) == name], levels)
            at = (comparison.threshold.votes - 0.5) / levels
            axis.axvline(at, color=INK, linewidth=1, linestyle=(0, (4, 2)))
            axis.set_title(f"{name} set", fontsize=9, loc="left")
            axis.set_ylabel("slides")
        if names:
            # On the side with more room.
            leftwards = 2 * comparison.threshold.votes > levels
            axes[0].annotate(
                f"positive from {comparison.threshold.votes}/{levels} on",
                ((comparison.threshold.votes - 0.5) / levels, 1),
                xycoords=("data", "axes fraction"),
                xytext=(-4 if leftwards else 4, -9),
                textcoords="offset points",
                ha="right" if leftwards else "left",
                fontsize=7.5,
                color=INK,
            )
            axes[0].legend(frameon=False, fontsize=8, ncols=2, loc="upper right", bbox_to_anchor=(1, 1.22))
        else:
            say(axes[0], "no slides")
        axes[-1].set_xlim(-0.6 / levels, 1 + 0.6 / levels)
        axes[-1].set_xlabel("highest score: share of the windows over a place that are called tumor")


def _score_bars(axis: Axes, slides: list[SlideResult], levels: int) -> None:
    """Side by side, so that neither hides the other; hatched for print without colour."""
    width = 0.42 / levels
    for shift, truth, colour, hatch in ((-0.5, "negative", BLUE, ""), (0.5, "positive", ORANGE, "////")):
        counts = Counter(slide.max_votes for slide in slides if slide.truth == truth)
        votes = np.arange(levels + 1)
        axis.bar(
            votes / levels + shift * width,
            [counts[int(vote)] for vote in votes],
            width,
            color=colour,
            edgecolor="white" if hatch else colour,
            linewidth=0.4,
            hatch=hatch,
            label=f"{truth} by manual review",
        )
    axis.yaxis.set_major_locator(MaxNLocator(4, integer=True))
