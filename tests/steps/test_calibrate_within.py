"""Which of the thresholds that separate the development set is taken, as a study asks for it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from scored_studies import TUMOR, write_scored
from studies import call


@pytest.mark.parametrize(("within", "votes"), [(None, 6), ("lowest", 6), ("middle", 10)])
def test_study_says_which_of_the_separating_thresholds_is_taken(
    tmp_path: Path, within: str | None, votes: int, capsys: pytest.CaptureFixture[str]
) -> None:
    # S3 and S6 are of the test set: what they reach decides nothing.
    maps = {f"S{number}.tif": {TUMOR: 14} for number in (1, 5)} | {"S3.tif": {TUMOR: 7}}
    study = write_scored(tmp_path, maps | {"S2.tif": {(4, 4, 6, 6): 5}, "S6.tif": {(4, 4, 6, 6): 9}})
    if within:
        study.write_text(study.read_text() + f'\n[calibration]\nwithin = "{within}"\n')
    assert call("calibrate", study) == 0
    found = json.loads((tmp_path / "generations/001/calibrate/threshold.json").read_text())
    assert (found["votes"], found["interval"]) == (votes, [6, 14])
    said = " ".join(capsys.readouterr().out.split())
    assert f"It is the {'middle' if within == 'middle' else 'lower end'} of the thresholds" in said


def test_another_word_is_refused_with_those_there_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = write_scored(tmp_path, {"S1.tif": {TUMOR: 14}})
    study.write_text(study.read_text() + '\n[calibration]\nwithin = "highest"\n')
    assert call("calibrate", study) == 1
    printed = capsys.readouterr().err
    assert "calibration.within" in printed and "'lowest' or 'middle'" in printed
