"""The queue knows how far the stages disagree from what scoring itself has kept."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from numpy.lib.stride_tricks import sliding_window_view
from studies import call

from hnscc_qp.files import write_json
from hnscc_qp.models.checkpoint import load_model, save_model
from hnscc_qp.study import Training
from hnscc_qp.training.evaluate import predict

CPU = torch.device("cpu")


@pytest.fixture
def study(done: Path, tmp_path: Path) -> Path:
    """A study with a secondary that is less sure than the primary, and probabilities beside a score map."""
    study = shutil.copytree(done, tmp_path / "copy") / "study.toml"
    more = "\n[scoring]\nprobabilities = true\n\n[review]\nplace_um = 100\n"
    study.write_text(study.read_text() + more)
    generation = study.parent / "generations" / "001"
    classifier, card = load_model(generation / "primary")
    with torch.no_grad():
        classifier.network.get_submodule("classifier.1").bias[1] -= 2
    saved = save_model(
        generation / "secondary",
        classifier,
        stage="secondary",
        training=Training(),
        weights_origin=card.weights_origin,
        data_sha256=card.data_sha256,
        patients={},
        figures={},
        device="cpu",
        seconds=0,
    )
    manifest = json.loads((generation / "secondary" / "manifest.json").read_text())
    manifest |= {"counts": {"trained": True, "kept": True}, "outputs": {"secondary model": saved.sha256}}
    write_json(generation / "secondary" / "manifest.json", manifest)
    return study


def test_disagreement_of_the_stages_is_what_both_say_of_the_windows_in_a_place(
    study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("score", study, "--image", "S1.tif") == 0
    assert call("calibrate", study) == 0
    assert call("regions", study) == 0
    capsys.readouterr()
    assert call("queue", study, "--length", 500, "--json") == 0
    said = json.loads(capsys.readouterr().out)
    measured = {item["place"]["image"]: item["place"]["disagreement"] is not None for item in said["items"]}
    assert measured == {name: name == "S1.tif" for name in measured} and len(measured) == 4
    places = [item["place"] for item in said["items"] if item["place"]["image"] == "S1.tif"]

    pixels = tifffile.imread(study.parent / "slides" / "S1.tif")
    windows = sliding_window_view(pixels, (40, 40), axis=(0, 1))[::10, ::10].transpose(0, 1, 3, 4, 2)
    shape = windows.shape[:2]
    stages = [load_model(study.parent / "generations/001" / stage)[0] for stage in ("primary", "secondary")]
    primary, secondary = (
        predict(stage, windows.reshape(-1, 40, 40, 3), device=CPU).reshape(shape) for stage in stages
    )
    both_asked = np.where(primary > 0.5, np.abs(primary - secondary), np.nan)
    assert np.nanmax(both_asked) > 0.05
    compared = 0
    for place in places:
        left, top, right, bottom = (side / 10 for side in place["box_qupath"])
        inside = both_asked[int(top) : int(np.ceil(bottom)), int(left) : int(np.ceil(right))]
        expected = 0.0 if np.isnan(inside).all() else float(np.nanmean(inside))
        compared += expected > 0
        assert place["disagreement"] == pytest.approx(expected, abs=2e-3), place
    assert compared
