"""Pictures of an evaluation, as PNG and SVG. Drawn without a display and without pyplot's global state."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from hnscc_qp import RESEARCH_USE_ONLY
from hnscc_qp.files import atomic_path
from hnscc_qp.training.probabilities import Reliability
from hnscc_qp.training.report import Report, SideReport

# Okabe and Ito's colours, which colour-blind people tell apart, with line styles for print without colour.
BLUE, ORANGE, GREY, INK = "#0072B2", "#D55E00", "#7A7A7A", "#222222"
_STYLES = ((BLUE, "-"), (ORANGE, "--"), ("#009E73", "-."), ("#CC79A7", ":"))
_SETTINGS: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "text.color": INK,
    "svg.hashsalt": "hnscc-qp",  # the same picture has the same bytes
    "svg.fonttype": "none",  # text stays text
}


def draw_confusion(path: Path, report: Report, *, title: str) -> None:
    """What was called what, one matrix per side (Tang et al. 2022, Figures S1 and S2)."""
    sides = list(report.sides.items())
    with new_figure(path, title, width=0.6 + 3.1 * max(1, len(sides)), height=3.5) as figure:
        axes = figure.subplots(1, max(1, len(sides)), squeeze=False)[0]
        for axis, (side, found) in zip(axes, sides, strict=True):
            _confusion(axis, side, found)


@dataclass(frozen=True, slots=True)
class RocCurve:
    """One line of a ROC picture, and the point on it where windows were called."""

    label: str
    false_positive_rate: Sequence[float]
    """Empty where a class is missing."""
    true_positive_rate: Sequence[float]
    called: tuple[float, float] | None

    @classmethod
    def of(
        cls,
        name: str,
        figures: Mapping[str, Any],
        false_positive_rate: Sequence[float],
        true_positive_rate: Sequence[float],
    ) -> RocCurve:
        """The curve with the AUC and its interval in its label.

        Args:
            name: of the side or model.
            figures: `Figures` as JSON values.
            false_positive_rate: from 0 to 1, with the rate below.
            true_positive_rate: from 0 to 1.
        """
        if not false_positive_rate:
            return cls(name, (), (), None)
        label = f"{name}: AUC {figures['auc']:.3f}"
        if figures["auc_interval"]:
            label += " ({:.3f} to {:.3f})".format(*figures["auc_interval"])
        called = (1 - figures["specificity"], figures["sensitivity"])
        return cls(label, false_positive_rate, true_positive_rate, called)


def draw_roc(path: Path, report: Report, *, title: str) -> None:
    """Sensitivity against false alarms at every threshold (Tang et al. 2022, Figure 3)."""
    curves = [
        RocCurve.of(side, found.figures.as_json(), found.false_positive_rate, found.true_positive_rate)
        for side, found in report.sides.items()
    ]
    draw_roc_curves(path, curves, title=title)


def draw_roc_curves(path: Path, curves: Sequence[RocCurve], *, title: str) -> None:
    """Draw curves into one picture; one whose class is missing is left out."""
    with new_figure(path, title, width=4.2, height=4.5) as figure:
        axis = figure.subplots()
        for curve, (colour, style) in zip(curves, _STYLES, strict=False):
            if curve.called is None:
                continue
            rates = curve.false_positive_rate, curve.true_positive_rate
            axis.plot(*rates, color=colour, linestyle=style, linewidth=1.6, clip_on=False, label=curve.label)
            axis.plot(*curve.called, "o", color=colour, markersize=5, clip_on=False)
        axis.set_xlabel("nontumor windows called tumor (1 − specificity)")
        axis.set_ylabel("tumor windows called tumor (sensitivity)")
        unit_square(axis)
        if axis.get_legend_handles_labels()[0]:
            draw_diagonal(axis)
            axis.plot([], [], "o", color=GREY, markersize=5, label="called at P(tumor) > 0.5")
            axis.legend(loc="lower right", frameon=False, fontsize=8)
        else:
            say(axis, "no curve: a class is missing")


def draw_reliability(path: Path, report: Report, *, title: str) -> None:
    """P(tumor) against the share of tumor, before and after the temperature, and how many windows."""
    sides = list(report.sides.items())
    with new_figure(path, title, width=0.6 + 3.1 * max(1, len(sides)), height=5.4) as figure:
        axes = figure.subplots(
            2, max(1, len(sides)), squeeze=False, sharex="col", gridspec_kw={"height_ratios": [3, 1]}
        )
        for index, (side, found) in enumerate(sides):
            curve, count = axes[0, index], axes[1, index]
            curve.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle=(0, (1, 2)))
            _reliability(curve, found.uncalibrated, "temperature 1", ORANGE, "s--")
            _reliability(curve, found.reliability, f"temperature {report.temperature.value:.2f}", BLUE, "o-")
            unit_square(curve)
            curve.set_title(f"{side} (n = {found.figures.n:,})", fontsize=9)
            curve.legend(loc="best", frameon=False, fontsize=7)
            shown = found.reliability
            count.bar(shown.mean_probability, shown.windows, width=0.06, color=BLUE)
            count.yaxis.set_major_locator(MaxNLocator(2, integer=True))
            count.set_xlabel("P(tumor)")
        axes[0, 0].set_ylabel("share that is tumor")
        axes[1, 0].set_ylabel("windows")


def draw_learning_curve(
    path: Path, history: Sequence[Mapping[str, Any]], *, best_epoch: int | None, title: str
) -> None:
    """Loss and validation AUC, epoch by epoch; a line marks the epoch that was kept.

    Args:
        path: of the PNG; the SVG lies beside.
        history: an epoch each, with `training_loss`, `validation_loss` and `validation_auc`.
        best_epoch: from 1.
        title: of the picture.
    """
    epochs = [row.get("number", index) for index, row in enumerate(history, start=1)]
    with new_figure(path, title, width=5.2, height=4.4) as figure:
        loss, auc = figure.subplots(2, 1, sharex=True)
        for axis, key, label, colour, style in (
            (loss, "training_loss", "training", ORANGE, "s--"),
            (loss, "validation_loss", "validation", BLUE, "o-"),
            (auc, "validation_auc", "validation", BLUE, "o-"),
        ):
            values = [np.nan if row.get(key) is None else row[key] for row in history]
            axis.plot(epochs, values, style, color=colour, markersize=3, linewidth=1.2, label=label)
        for axis in (loss, auc):
            if best_epoch is not None:
                axis.axvline(best_epoch, color=GREY, linewidth=0.8, linestyle=(0, (4, 2)))
        if best_epoch is not None:
            loss.annotate(
                f"kept: {best_epoch}",
                (best_epoch, 1),
                xycoords=("data", "axes fraction"),
                xytext=(3, -8),
                textcoords="offset points",
                fontsize=7,
                color=GREY,
            )
        loss.set_ylabel("loss (cross-entropy)")
        loss.set_ylim(0, loss.get_ylim()[1])
        loss.legend(frameon=False, fontsize=8)
        auc.set_ylabel("validation AUC")
        auc.set_xlabel("epoch")
        auc.set_xlim(min(epochs) - 0.5, max(epochs) + 0.5)
        auc.xaxis.set_major_locator(MaxNLocator(integer=True))


def _confusion(axis: Axes, side: str, found: SideReport) -> None:
    figures = found.figures
    counts = np.array(
        [
            [figures.true_tumor, figures.false_nontumor],
            [figures.false_tumor, figures.true_nontumor],
        ]
    )
    rows = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, rows, out=np.zeros((2, 2)), where=rows > 0)
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1.2)
    for (row, column), count in np.ndenumerate(counts):
        share = f"{100 * shares[row, column]:.1f} %" if rows[row, 0] else "none"
        axis.text(
            column,
            row,
            f"{count:,}\n{share}",
            ha="center",
            va="center",
            color="white" if shares[row, column] > 0.6 else INK,
            fontsize=10,
        )
    axis.set_xticks([0, 1], ["tumor", "nontumor"])
    axis.set_yticks([0, 1], ["tumor", "nontumor"], rotation=90, va="center")
    axis.set_xlabel("called")
    axis.set_ylabel("truth")
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    patients = f"{found.patients} patient{'s' if found.patients != 1 else ''}"
    accuracy = "" if figures.accuracy is None else f"\naccuracy {100 * figures.accuracy:.1f} %"
    axis.set_title(f"{side}, {patients}{accuracy}", fontsize=9)


def _reliability(axis: Axes, found: Reliability, label: str, colour: str, style: str) -> None:
    error = "" if found.calibration_error is None else f": error {found.calibration_error:.3f}"
    axis.plot(
        found.mean_probability,
        found.tumor_share,
        style,
        color=colour,
        markersize=4,
        linewidth=1.2,
        label=f"{label}{error}",
        clip_on=False,
    )


def unit_square(axis: Axes) -> None:
    """Both axes from 0 to 1, and as long as each other."""
    axis.set_xlim(0, 1)
    axis.set_ylim(0, 1)
    axis.set_box_aspect(1)


def draw_diagonal(axis: Axes) -> None:
    """Where a coin would lie."""
    axis.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle=(0, (1, 2)))


def say(axis: Axes, text: str) -> None:
    """Say why there is nothing to see."""
    axis.text(0.5, 0.5, text, ha="center", va="center", transform=axis.transAxes, color=GREY)


@contextmanager
def new_figure(path: Path, title: str, *, width: float, height: float) -> Iterator[Figure]:
    """A figure of so many inches, which is written to `path` and beside it as SVG when it is drawn."""
    with mpl.rc_context(_SETTINGS):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        figure.suptitle(title, fontsize=10, fontweight="bold")
        yield figure
        figure.supxlabel(RESEARCH_USE_ONLY, fontsize=6.5, color=GREY)
        # Neither date nor version: the same figures give the same bytes.
        for target, metadata in (
            (path, {"Software": None}),
            (path.with_suffix(".svg"), {"Date": None, "Creator": None}),
        ):
            with atomic_path(target) as partial:
                figure.savefig(partial, dpi=200, metadata=metadata)
