"""All of a model's evaluation in one call: figures, curves and temperature as JSON, and as pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_curve

from hnscc_qp.errors import TrainingError
from hnscc_qp.files import write_json
from hnscc_qp.progress import SILENT, Progress
from hnscc_qp.training.evaluate import Figures, evaluate
from hnscc_qp.training.probabilities import (
    Reliability,
    Temperature,
    apply_temperature,
    fit_temperature,
    measure_reliability,
)

FOLDER = "figures"
EVALUATION_FILE = "evaluation.json"
_ROC_POINTS = 500


@dataclass(frozen=True, slots=True)
class Predictions:
    """What a model said, at temperature 1, of windows whose truth is known."""

    probabilities: NDArray[np.floating[Any]]
    """(n,) P(tumor)"""
    labels: NDArray[np.integer[Any] | np.bool_]
    """(n,) 0 nontumor, 1 tumor."""
    patients: NDArray[np.str_]
    """(n,)"""

    def __post_init__(self) -> None:
        if not len(self.probabilities) == len(self.labels) == len(self.patients):
            raise TrainingError(
                f"{len(self.probabilities)} probabilities, {len(self.labels)} labels and "
                f"{len(self.patients)} patients are not of the same windows; pass one of each per window"
            )


@dataclass(frozen=True, slots=True)
class SideReport:
    """One side of the split, all but `uncalibrated` at the report's temperature."""

    figures: Figures
    patients: int
    false_positive_rate: tuple[float, ...]
    """Of the ROC curve, with the rate below; empty where a class is missing."""
    true_positive_rate: tuple[float, ...]
    reliability: Reliability
    uncalibrated: Reliability
    """At temperature 1."""

    def as_json(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "patients": self.patients,
            "figures": self.figures.as_json(),
            "roc": {
                "false_positive_rate": self.false_positive_rate,
                "true_positive_rate": self.true_positive_rate,
            },
            "reliability": self.reliability.as_json(),
            "reliability at temperature 1": self.uncalibrated.as_json(),
        }


@dataclass(frozen=True, slots=True)
class Report:
    """How well a model does on each side of the split, and the temperature of its probabilities."""

    temperature: Temperature
    sides: Mapping[str, SideReport]

    def figures(self) -> dict[str, dict[str, Any]]:
        """The figures of each side as JSON values, for a model card or a manifest."""
        return {side: found.figures.as_json() for side, found in self.sides.items()}

    def as_json(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "temperature": self.temperature.value,
            "temperature_reason": self.temperature.reason,
            "sides": {side: found.as_json() for side, found in self.sides.items()},
        }


def make_report(predictions: Mapping[str, Predictions], *, calibrate_on: str = "validation") -> Report:
    """Judge a model on each side of the split. A side without windows is left out.

    Args:
        predictions: by side, such as validation and test.
        calibrate_on: the side that the temperature is fitted on; it must not be one that is held out.

    Raises:
        TrainingError: a probability is not a number in 0..1, or arrays do not belong together.
    """
    known = {side: found for side, found in predictions.items() if len(found.labels)}
    for side, found in known.items():
        _refuse_wrong(side, found)
    temperature = Temperature(1.0, f"not fitted: there are no windows for {calibrate_on}")
    if basis := known.get(calibrate_on):
        temperature = fit_temperature(basis.probabilities, basis.labels)
        if temperature.value != 1:
            patients = len(np.unique(basis.patients))
            of = f"{patients} {calibrate_on} patient{'s' if patients != 1 else ''}"
            temperature = replace(temperature, reason=f"{temperature.reason} of {of}")
    return Report(temperature, {side: _report(found, temperature) for side, found in known.items()})


def write_report(
    folder: Path,
    report: Report,
    *,
    title: str,
    history: Sequence[Mapping[str, Any]] = (),
    best_epoch: int | None = None,
    progress: Progress = SILENT,
) -> None:
    """Write `evaluation.json` and the pictures, each as PNG and SVG.

    Args:
        folder: is made if need be.
        report: what to write.
        title: of the pictures, such as `primary model, mobilenet_v2`.
        history: of training, epoch by epoch, for the learning curve; none is drawn without.
        best_epoch: the one that was kept, from 1.
        progress: told if nothing can be drawn.
    """
    write_json(folder / EVALUATION_FILE, report.as_json())
    if (figures := _pictures(progress)) is None:
        return
    figures.draw_confusion(folder / "confusion.png", report, title=title)
    figures.draw_roc(folder / "roc.png", report, title=title)
    figures.draw_reliability(folder / "reliability.png", report, title=title)
    if history:
        figures.draw_learning_curve(
            folder / "learning-curve.png", history, best_epoch=best_epoch, title=title
        )


def draw_comparison(
    path: Path, evaluations: Mapping[str, Mapping[str, Any]], *, title: str, progress: Progress = SILENT
) -> None:
    """Draw the ROC curves of several models on validation into one picture, PNG and SVG.

    Args:
        path: of the PNG; the SVG lies beside.
        evaluations: what `write_report` wrote, by the model's name.
        title: of the picture.
        progress: told if nothing can be drawn.
    """
    if (figures := _pictures(progress)) is None:
        return
    curves = []
    for name, evaluation in evaluations.items():
        side = evaluation["sides"]["validation"]
        curves.append(
            figures.RocCurve.of(
                name, side["figures"], side["roc"]["false_positive_rate"], side["roc"]["true_positive_rate"]
            )
        )
    figures.draw_roc_curves(path, curves, title=title)


def _pictures(progress: Progress) -> ModuleType | None:
    """The module that draws; None if it can't, and a warning: a training of hours is not lost for that."""
    try:
        # Loaded here: matplotlib takes a second, and most commands draw nothing.
        from hnscc_qp.training import figures  # noqa: PLC0415
    except ImportError as error:
        progress.warn(f"no figures were drawn ({error}); install matplotlib and train with --force")
        return None
    return figures


def _refuse_wrong(side: str, found: Predictions) -> None:
    wrong = np.flatnonzero(~np.isfinite(found.probabilities))
    if len(wrong):
        raise TrainingError(
            f"{len(wrong)} of {len(found.labels)} {side} windows have a probability that is not a number, "
            f"the first of patient {found.patients[wrong[0]]}; train again with a smaller learning_rate"
        )


def _report(found: Predictions, temperature: Temperature) -> SideReport:
    labels = found.labels.astype(bool)
    probabilities = apply_temperature(found.probabilities, temperature.value)
    false_positive, true_positive = _roc(probabilities, labels)
    return SideReport(
        figures=evaluate(probabilities, labels, found.patients),
        patients=len(np.unique(found.patients)),
        false_positive_rate=false_positive,
        true_positive_rate=true_positive,
        reliability=measure_reliability(probabilities, labels),
        uncalibrated=measure_reliability(found.probabilities, labels),
    )


def _roc(
    probabilities: NDArray[np.float64], labels: NDArray[np.bool_]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The ROC curve in at most some hundred points, its ends among them."""
    if not labels.any() or labels.all():
        return (), ()
    false_positive, true_positive, _ = roc_curve(labels, probabilities)
    if len(false_positive) > _ROC_POINTS:
        # Even steps along the curve: its steep part has as many points as its flat one.
        along = np.cumsum(np.diff(false_positive, prepend=0) + np.diff(true_positive, prepend=0))
        kept = np.unique(np.searchsorted(along, np.linspace(0, along[-1], _ROC_POINTS)))
        kept = np.union1d(kept, [0, len(along) - 1])
        false_positive, true_positive = false_positive[kept], true_positive[kept]
    return tuple(false_positive.tolist()), tuple(true_positive.tolist())
