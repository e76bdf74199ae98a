from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from scipy.special import expit
from sklearn.metrics import auc, roc_auc_score

from hnscc_qp.errors import TrainingError
from hnscc_qp.training.report import Predictions, Report, make_report, write_report

HISTORY = [
    {"number": number, "training_loss": 0.7 / number, "validation_loss": 0.8 / number, "validation_auc": 0.9}
    for number in range(1, 6)
]
PICTURES = ("confusion", "roc", "reliability", "learning-curve")


def predictions(n: int, *, patients: int = 4, seed: int = 1) -> Predictions:
    """Of a network that is right more often than not, and too sure."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    margins = rng.normal(2 * labels - 1, 1.5)
    names = np.array([f"P{patient}" for patient in rng.integers(0, patients, n)])
    return Predictions(expit(3 * margins), labels, names)


@pytest.fixture
def report() -> Report:
    return make_report({"validation": predictions(600), "test": predictions(3000, seed=2)})


def test_temperature_is_fitted_on_validation_alone(report: Report) -> None:
    other = make_report({"validation": predictions(600), "test": predictions(200, seed=5)})
    assert other.temperature == report.temperature
    assert report.temperature.value > 1.5
    assert report.temperature.reason == "fitted on 600 windows of 4 validation patients"


def test_figures_are_those_after_the_temperature(report: Report) -> None:
    for found in report.sides.values():
        assert found.figures.calibration_error == found.reliability.calibration_error
        assert found.reliability.calibration_error is not None
        assert found.reliability.calibration_error < found.uncalibrated.calibration_error  # type: ignore[operator]
    raw = predictions(3000, seed=2)
    assert report.sides["test"].figures.auc == pytest.approx(roc_auc_score(raw.labels, raw.probabilities))


def test_shortened_roc_curve_keeps_its_area_and_its_ends(report: Report) -> None:
    test = report.sides["test"]
    assert 100 < len(test.false_positive_rate) <= 502
    assert (test.false_positive_rate[0], test.true_positive_rate[0]) == (0, 0)
    assert (test.false_positive_rate[-1], test.true_positive_rate[-1]) == (1, 1)
    area = auc(test.false_positive_rate, test.true_positive_rate)
    assert area == pytest.approx(test.figures.auc, abs=2e-3)


def test_report_is_json_pictures_and_drawings(report: Report, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    write_report(tmp_path, report, title="primary model", history=HISTORY, best_epoch=4)
    written = json.loads((tmp_path / "evaluation.json").read_text())
    assert written["temperature"] == report.temperature.value
    assert written["sides"]["test"]["figures"]["auc"] == report.sides["test"].figures.auc
    for name in PICTURES:
        with Image.open(tmp_path / f"{name}.png") as picture:
            grey = np.asarray(picture.convert("L"))
        assert min(grey.shape) > 600
        assert (grey < 128).mean() > 0.003  # something is drawn
        drawing = ElementTree.parse(tmp_path / f"{name}.svg").getroot()
        texts = {"".join(one.itertext()) for one in drawing.iter("{http://www.w3.org/2000/svg}text")}
        assert "primary model" in texts
        assert any("Research use only" in text for text in texts)
    confusion = (tmp_path / "confusion.svg").read_text()
    figures = report.sides["test"].figures
    for count in (figures.true_tumor, figures.false_tumor, figures.true_nontumor, figures.false_nontumor):
        assert f">{count:,}<" in confusion
    assert f"test: AUC {figures.auc:.3f}" in (tmp_path / "roc.svg").read_text()
    assert "kept: 4" in (tmp_path / "learning-curve.svg").read_text()


def test_same_report_gives_the_same_bytes(report: Report, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for folder in ("one", "two"):
        write_report(tmp_path / folder, report, title="primary model")
    names = {path.name for path in (tmp_path / "one").iterdir()}
    assert names == {f"{name}.{kind}" for name in PICTURES[:3] for kind in ("png", "svg")} | {
        "evaluation.json"
    }
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


@pytest.mark.parametrize(
    "side",
    [
        predictions(10, patients=1),
        Predictions(np.array([0.2, 0.9]), np.array([0, 0]), np.array(["a", "b"])),
        Predictions(np.array([0.9]), np.array([1]), np.array(["a"])),
    ],
    ids=["ten windows of one patient", "no tumor", "a single window"],
)
def test_what_is_too_little_for_a_figure_still_gives_a_report(side: Predictions, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    report = make_report({"validation": side})
    write_report(tmp_path, report, title="little", history=HISTORY[:1], best_epoch=1)
    written = json.loads((tmp_path / "evaluation.json").read_text())
    assert written["sides"]["validation"]["figures"]["n"] == len(side.labels)
    assert all((tmp_path / f"{name}.png").is_file() for name in PICTURES)
    if len(set(side.labels)) < 2:
        assert "a class is missing" in (tmp_path / "roc.svg").read_text()


def test_no_windows_for_validation_leave_the_temperature(tmp_path: Path) -> None:
    report = make_report({"validation": predictions(0), "test": predictions(50)})
    assert list(report.sides) == ["test"]
    assert report.temperature.value == 1
    assert report.temperature.reason == "not fitted: there are no windows for validation"


def test_probabilities_that_are_not_numbers_are_refused_with_side_and_patient() -> None:
    some = predictions(20)
    some.probabilities[[3, 7]] = np.nan, np.inf
    with pytest.raises(
        TrainingError, match=f"2 of 20 test windows .* the first of patient {some.patients[3]}"
    ):
        make_report({"validation": predictions(20), "test": some})


def test_arrays_of_different_windows_are_refused() -> None:
    with pytest.raises(TrainingError, match="2 probabilities, 3 labels and 2 patients"):
        Predictions(np.array([0.1, 0.2]), np.array([0, 1, 0]), np.array(["a", "b"]))


class _Told:
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, line: str) -> None:
        self.warnings.append(line)


def test_training_is_not_lost_where_matplotlib_is_missing(
    report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "hnscc_qp.training.figures", None)
    monkeypatch.delattr("hnscc_qp.training.figures", raising=False)
    told: Any = _Told()
    write_report(tmp_path, report, title="primary model", progress=told)
    assert (tmp_path / "evaluation.json").is_file()
    assert len(told.warnings) == 1 and "install matplotlib" in told.warnings[0]
