"""Stain normalisation through the command line: what is cut, and which models may score."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from studies import STUDY, write_study

from hnscc_qp.cli.main import main

MACENKO = '[stain]\nnormalisation = "macenko"\n'


def call(*arguments: object) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["hnscc-qp", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
    return int(ended.value.code or 0)


def pixels(folder: Path) -> np.ndarray:
    return np.load(folder / "generations" / "001" / "patches" / "development" / "patches.npy")


def test_normalised_patches_are_cut_at_the_same_places_in_other_colours(tmp_path: Path) -> None:
    study = write_study(tmp_path)
    assert call("patches", study) == 0
    plain = pixels(tmp_path)
    study.write_text(STUDY + MACENKO)
    assert call("patches", study) == 0
    normalised = pixels(tmp_path)
    assert normalised.shape == plain.shape
    assert np.abs(normalised.astype(int) - plain).mean() > 3
    fits = sorted((tmp_path / "generations" / "001" / "stain").glob("*.json"))
    assert len(fits) == 6
    assert all(json.loads(fit.read_text())["fallback"] is None for fit in fits)
    written = json.loads((tmp_path / "generations/001/patches/manifest.json").read_text())
    assert written["settings"]["stain"]["normalisation"] == "macenko"


def test_a_model_scores_only_slides_of_the_normalisation_it_was_trained_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = write_study(
        tmp_path, text=STUDY.replace("epochs = 5", "epochs = 1").replace("= 600", "= 40") + MACENKO
    )
    for step in (("patches",), ("train",), ("mine",), ("train", "--stage", "secondary")):
        assert call(step[0], study, *step[1:]) == 0
    card = json.loads((tmp_path / "generations" / "001" / "primary" / "model.json").read_text())
    assert card["stain"]["normalisation"] == "macenko"
    assert call("score", study) == 0
    capsys.readouterr()
    study.write_text(study.read_text().replace('"macenko"', '"reinhard"'))
    assert call("score", study) == 1
    said = capsys.readouterr().err
    assert "trained with the stain normalisation 'macenko', this study has 'reinhard'" in said
    study.write_text(study.read_text().replace('normalisation = "reinhard"', ""))
    assert call("score", study) == 1
    assert "this study has 'none'" in capsys.readouterr().err
