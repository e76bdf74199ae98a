"""The whole loop on a drawn cohort, as a user runs it: through the command line."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pyarrow.parquet as pq
import pytest
from shapely.geometry import box
from studies import TUMOR_BOX, call, write_study

from hnscc_qp.qupath.embedded import EmbeddedProject
from hnscc_qp.qupath.geojson import read_geojson
from hnscc_qp.scoring.score_map import read_score_map

STEPS = ("patches", "primary", "mine", "secondary", "score", "calibrate", "regions", "push", "compare")


@pytest.fixture
def study(done: Path, tmp_path: Path) -> Path:
    """The study file of a copy that a test may change."""
    shutil.copytree(done, tmp_path / "copy")
    return tmp_path / "copy" / "study.toml"


def manifest(folder: Path, step: str) -> dict[str, Any]:
    return json.loads((folder / "generations" / "001" / step / "manifest.json").read_text())


def hashes(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_every_step_leaves_a_manifest_that_names_inputs_settings_and_versions(done: Path) -> None:
    for step in STEPS:
        written = manifest(done, step)
        assert written["step"] == step
        assert written["failed"] == {}
        assert written["versions"]["hnscc-qp"]
        assert written["inputs"]


def test_patches_say_where_they_come_from_and_what_decided(done: Path) -> None:
    folder = done / "generations" / "001" / "patches"
    rows = []
    for part, of_part in (("development", {"train", "validation"}), ("test", {"test"})):
        rows += (some := pq.read_table(folder / part / "patches.parquet").to_pylist())
        assert {row["side"] for row in some} == of_part
        pixels = np.load(folder / part / "patches.npy")
        assert pixels.shape == (len(some), 40, 40, 3)
        assert pixels.dtype == np.uint8
    tumor = box(*TUMOR_BOX)
    for row in rows:
        window = box(row["x_qupath"], row["y_qupath"], row["x_qupath"] + 40, row["y_qupath"] + 40)
        holds_tumor = int(row["slide"][1]) % 2 == 1 and window.intersection(tumor).area > 0
        assert row["label"] == ("tumor" if holds_tumor else "nontumor")
        assert bool(row["annotation_ids"]) == holds_tumor
    states = manifest(done, "patches")["inputs"]
    assert all(row["image_sha256"] == states[f"image {row['entry_id']}"] for row in rows)
    sides = {row["patient"]: row["side"] for row in rows}
    assert set(sides.values()) == {"train", "validation", "test"}
    assert all(sides[row["patient"]] == row["side"] for row in rows)


def test_tumor_is_found_where_it_is(done: Path) -> None:
    with (done / "generations" / "001" / "calibrate" / "slides.csv").open() as stream:
        slides = {slide["image"]: slide for slide in csv.DictReader(stream)}
    assert len(slides) == 6
    tumor = box(*TUMOR_BOX)
    # A window that holds any tumor is tumor, so a region reaches up to 40 px beyond.
    around = tumor.buffer(40.01, join_style="mitre")
    for number in (1, 3, 5):
        slide = slides[f"S{number}.tif"]
        assert (slide["truth"], slide["call"]) == ("positive", "positive")
        found = read_geojson(done / "project" / "ai-detections" / f"{number} S{number}.tif.geojson").objects
        area = sum(item.roi.area for item in found)
        assert sum(item.roi.intersection(tumor).area for item in found) > 0.9 * tumor.area
        assert sum(item.roi.intersection(around).area for item in found) > 0.9 * area
    development = [slide for slide in slides.values() if slide["side"] != "test"]
    assert all(slide["call"] == slide["truth"] for slide in development)


def test_detections_are_ours_and_have_measurements(done: Path) -> None:
    found = [
        item
        for file in (done / "project" / "ai-detections").glob("*.geojson")
        for item in read_geojson(file).objects
    ]
    assert found
    for item in found:
        assert str(item.path_class) == "AI: Tumor"
        assert isinstance(item.id, UUID)
        assert item.id.version == 5
        assert item.measurements["Area µm^2"] == pytest.approx(item.roi.area, rel=1e-6)
        assert 0 < item.measurements["AI: Mean score"] <= item.measurements["AI: Max score"] <= 1


def test_run_again_does_nothing_twice(study: Path) -> None:
    before = hashes(study.parent / "generations")
    assert call("run", study) == 0
    after = hashes(study.parent / "generations")
    changed = {name for name in after if before.get(name) != after[name]}
    assert changed == {"001/push/manifest.json"}


def test_same_study_and_seed_give_the_same_bytes(done: Path, tmp_path: Path) -> None:
    shutil.copytree(done, tmp_path / "again", ignore=shutil.ignore_patterns("generations"))
    assert call("patches", tmp_path / "again") == 0
    one, other = (hashes(folder / "generations/001/patches") for folder in (done, tmp_path / "again"))
    assert one.pop("manifest.json") != other.pop("manifest.json")  # seconds and dates differ
    assert one == other


def test_changed_setting_makes_its_step_and_the_later_ones_stale(study: Path) -> None:
    old = {step: manifest(study.parent, step)["key"] for step in STEPS}
    study.write_text(study.read_text() + "\n[calibration]\nsensitivity = 0.5\n")
    assert call("run", study) == 0
    new = {step: manifest(study.parent, step)["key"] for step in STEPS}
    assert {step for step in STEPS if old[step] != new[step]} == {"calibrate"}


def test_slide_that_is_gone_is_named_and_the_others_are_done(
    study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _forget_original_places(study.parent)
    (study.parent / "slides" / "S2.tif").unlink()
    assert call("score", study, "--force") == 2
    printed = capsys.readouterr()
    assert "S2.tif" in printed.err
    assert set(manifest(study.parent, "score")["failed"]) == {"S2.tif"}
    assert manifest(study.parent, "score")["counts"]["images"] == 5


def test_stopped_scoring_goes_on_with_the_next_slide(study: Path) -> None:
    folder = study.parent / "generations" / "001" / "score"
    (folder / "manifest.json").unlink()
    gone, kept, *_ = sorted(folder.glob("*.ome.tiff"))
    before, at = gone.read_bytes(), kept.stat().st_mtime_ns
    gone.unlink()
    assert call("score", study) == 0
    assert gone.read_bytes() == before
    assert kept.stat().st_mtime_ns == at


def test_regions_that_were_removed_are_drawn_again(study: Path) -> None:
    folder = study.parent / "generations" / "001" / "regions"
    gone, *_ = sorted(folder.glob("*.geojson"))
    before = gone.read_bytes()
    gone.unlink()
    assert call("regions", study) == 0
    assert gone.read_bytes() == before


def test_only_the_image_asked_for_is_scored(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = study.parent / "generations" / "001" / "score"
    shutil.rmtree(folder)
    assert call("score", study, "--image", "S3.tif") == 0
    assert [path.name for path in folder.iterdir()] == ["3 S3.tif.ome.tiff"]
    assert read_score_map(folder / "3 S3.tif.ome.tiff").max_votes == 16
    assert call("score", study, "--image", "S9.tif") == 1
    assert "S9.tif" in capsys.readouterr().err


def test_json_is_all_that_goes_to_stdout(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("calibrate", study, "--force", "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["counts"]["development"]["true positive"] == 2
    assert call("run", study, "--json") == 0
    assert [step["step"] for step in json.loads(capsys.readouterr().out)] == list(STEPS)


def test_nothing_of_the_project_is_touched_but_our_own_folder(done: Path, tmp_path: Path) -> None:
    write_study(tmp_path / "fresh")
    before = hashes(tmp_path / "fresh" / "project")
    after = hashes(done / "project")
    ours = {name for name in after if name.startswith(("ai-detections/", ".hnscc-qp/"))}
    assert sum(name.startswith("ai-detections/") for name in ours) == 6
    assert set(before) == set(after) - ours


def test_push_can_be_planned_and_taken_back(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(study.parent / "project" / "ai-detections")
    before = hashes(study.parent)
    assert call("push", study, "--dry-run", "--json") == 0
    planned = json.loads(capsys.readouterr().out)["counts"]
    assert planned["added"] == planned["detections"] > 0
    assert hashes(study.parent) == before
    assert call("push", study) == 0
    pushed = hashes(study.parent / "project")
    assert call("push", study) == 0
    assert hashes(study.parent / "project") == pushed
    assert call("push", study, "--undo") == 0
    assert not list((study.parent / "project").glob("ai-detections/*.geojson"))


def test_images_that_qupath_never_saved_are_named_when_it_is_at_hand(
    study: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert call("push", study, "--json") == 0
    assert not any("not saved in QuPath" in note for note in json.loads(capsys.readouterr().out)["notes"])
    monkeypatch.setattr(EmbeddedProject, "backend", "paquo")
    for arguments in (("--dry-run",), ()):
        assert call("push", study, "--json", *arguments) == 0
        notes = json.loads(capsys.readouterr().out)["notes"]
        assert any("not saved in QuPath yet: S1.tif" in note for note in notes)


def _forget_original_places(folder: Path) -> None:
    """As on another machine: the absolute places that the project stores are not there."""
    project = folder / "project" / "project.qpproj"
    value = json.loads(project.read_text())
    root = Path(value["uri"].removeprefix("file://")).parents[1]
    project.write_text(json.dumps(value).replace(str(root), "/nowhere"))
    (folder / "study.toml").write_text(
        (folder / "study.toml").read_text().replace("backend", 'slides = ["slides"]\nbackend')
    )
