"""Retraining that nobody attends: begun by `watch`, killed, taught by what was said elsewhere or earlier."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from scoring_studies import command, environment
from shapely.geometry import Polygon, box
from studies import annotation, call
from test_retrain import current, quick_steps

from hnscc_qp.qupath.geojson import read_geojson, write_geojson
from hnscc_qp.qupath.objects import ObjectType, PathClass, PathObject, RoiKind
from hnscc_qp.qupath.ownership import AI_TUMOR, detection_id
from hnscc_qp.review.log import ReviewLog
from hnscc_qp.steps import run
from hnscc_qp.steps.compare import compare_study
from hnscc_qp.steps.mine import mine_negatives

SMALL = ("per_class = 600", "per_class = 60")
"""So that a real retraining takes a moment."""
MISSED = box(280, 200, 360, 280)


@pytest.fixture(autouse=True)
def _no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """The report on a generation takes long, and nothing here is about it."""
    monkeypatch.setattr(run, "STEPS", tuple(one for one in run.STEPS if one[1] is not compare_study))


@pytest.fixture
def study(done: Path, tmp_path: Path) -> Path:
    """The study file of a copy with one generation, whose next one is cut from few patches."""
    study = shutil.copytree(done, tmp_path / "study") / "study.toml"
    study.write_text(study.read_text().replace(*SMALL))
    return study


def edit(project: Path, number: int, change: Callable[[list[PathObject]], list[PathObject]]) -> None:
    """Save an image after a change, as QuPath's export leaves it."""
    file = project / "annotations" / f"{number} S{number}.tif.geojson"
    there = list(read_geojson(file).objects) if file.is_file() else []
    write_geojson(file, change(there))


def events(study: Path) -> list[str]:
    log = ReviewLog(study.parent / "review")
    assert log.check().breaks == ()
    return [entry.event for entry in log.read()]


def made(study: Path, generation: str = "002") -> dict[str, Any]:
    """What a generation came to, without what holds the time of a verdict or a push."""
    folder = study.parent / "generations" / generation
    manifests = {path.parent.name: json.loads(path.read_text()) for path in folder.glob("*/manifest.json")}
    decision = json.loads((folder / "decision.json").read_text())
    return {
        "outputs": {step: one["outputs"] for step, one in manifests.items() if step != "lessons"},
        "figures": decision["figures"],
        "reason": decision["reason"],
        "maps": {path.name: path.read_bytes() for path in sorted(folder.glob("score/*.ome.tiff"))},
    }


def kill_when(study: Path, seen: Callable[[Path], bool]) -> None:
    """Retrain in a process of its own, and kill it as soon as something is there."""
    generation = study.parent / "generations" / "002"
    with subprocess.Popen(
        command("retrain", study), env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as process:
        try:
            while process.poll() is None and not seen(generation):
                time.sleep(0.002)
        finally:
            process.kill()
        said = process.stderr.read().decode() if process.stderr else ""
    assert process.returncode == -9, f"it ended before it could be killed: {said}"


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="there is no SIGKILL")
def test_watch_retrains_by_the_rule_and_a_retraining_that_was_killed_makes_the_same(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study.write_text(study.read_text() + "\n[review]\nretrain_after = 1\n")
    edit(study.parent / "project", 1, lambda there: [*there, annotation(MISSED)])
    other = shutil.copytree(study.parent, tmp_path / "other") / "study.toml"
    at_once = ("--once", "--quiet-seconds", 0, "--interval", 0.1)

    assert call("watch", study, *at_once) == 0
    assert "retrained:" in capsys.readouterr().out
    assert events(study) == ["verdict", "generation judged"]
    assert current(study) == "001", "what does not pass the gate is not used"
    (lesson,) = json.loads((study.parent / "generations/002/lessons/lessons.json").read_text())["images"]
    assert [one["because"] for one in lesson["lessons"]] == ["missed"]
    assert call("watch", study, *at_once) == 0
    assert not (study.parent / "generations" / "003").exists(), "there is nothing new"

    assert call("pull", other) == 0
    kill_when(other, lambda folder: (folder / "primary" / "training.safetensors").exists())
    assert not (other.parent / "generations/002/primary/manifest.json").exists()
    cut = (other.parent / "generations/002/patches/manifest.json").stat().st_mtime_ns
    assert current(other) == "001"
    assert call("retrain", other) == 0
    assert (other.parent / "generations/002/patches/manifest.json").stat().st_mtime_ns == cut
    assert made(other) == made(study)
    assert events(other) == events(study), "judged and logged once"


def detection(roi: Polygon) -> PathObject:
    """One of ours, as `regions` makes it."""
    return PathObject(
        ObjectType.DETECTION,
        roi,
        RoiKind.POLYGON,
        roi.area,
        detection_id(roi, slide_name="slide", model_hash="m1"),
        path_class=AI_TUMOR,
        measurements={"AI: Max score": 0.875},
        metadata={"AI model": "m1", "AI generation": "001"},
    )


def signed(item: PathObject, by: str, **changed: Any) -> PathObject:
    """As the review script leaves what somebody has judged."""
    words = {"AI origin": str(item.id), "AI reviewer": by, "AI reviewed at": "2031-05-04T10:00:00Z"}
    return replace(item, metadata=words, **changed)


def windows_in(rows: list[dict[str, Any]], slide: str, roi: Polygon) -> list[dict[str, Any]]:
    """Rows of patches that lie in a place by more than half."""
    found = []
    for row in rows:
        window = box(row["x_qupath"], row["y_qupath"], row["x_qupath"] + 40, row["y_qupath"] + 40)
        if row["slide"] == slide and window.intersection(roi).area > 800:
            found.append(row)
    return found


def test_verdicts_on_an_older_generation_and_from_a_copy_of_the_project_reach_the_labels(
    study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = study.read_text().replace("per_class = 60", "per_class = 6000")
    study.write_text(text.replace("min_false_positives = 1000", "min_false_positives = 1000\nstride_px = 10"))
    rejected, found = detection(box(40, 40, 120, 120)), detection(MISSED)
    generations, project = study.parent / "generations", study.parent / "project"
    for number, item in ((2, rejected), (1, found)):
        write_geojson(generations / "001" / "regions" / f"{number} S{number}.tif.geojson", [item])
    assert call("push", study) == 0
    copy = shutil.copytree(project, study.parent / "copy")
    edit(project, 2, lambda there: [*there, rejected])
    edit(copy, 1, lambda there: [*there, found])

    with quick_steps():  # a newer generation is used before anybody has looked at the older one's
        assert call("retrain", study, "--force", "--promote") == 0
    assert call("push", study) == 0
    assert current(study) == "002"
    offered = read_geojson(project / "ai-detections" / "1 S1.tif.geojson").objects
    assert found.id not in {item.id for item in offered}

    no_tumor = PathClass(("AI", "Rejected"), (128, 128, 128))
    edit(project, 2, lambda there: [signed(item, "anna", path_class=no_tumor) for item in there])
    taken = {"type": ObjectType.ANNOTATION, "path_class": PathClass(("Tumor",), (200, 0, 0))}
    edit(copy, 1, lambda there: [signed(o, "bert", **taken) if o.id == found.id else o for o in there])
    assert call("pull", study) == 0
    assert call("pull", study, "--project", copy) == 0
    log = [entry.body for entry in ReviewLog(study.parent / "review").read() if entry.event == "verdict"]
    assert [(one["kind"], one["reviewer"], one["generation"]) for one in log] == [
        ("rejected", "anna", "001"),
        ("accepted", "bert", "001"),
    ]
    assert len({one["project"] for one in log}) == 2

    with quick_steps(mine_negatives=mine_negatives):
        assert call("retrain", study) == 0
    capsys.readouterr()
    cut = {
        name: pq.read_table(generations / name / "patches/development/patches.parquet").to_pylist()
        for name in ("002", "003")
    }
    before, after = (windows_in(cut[name], "S1.tif", MISSED) for name in ("002", "003"))
    assert {row["label"] for row in before} == {"nontumor"}
    assert {row["label"] for row in after} == {"tumor"} and len(after) > 10
    mined = pq.read_table(generations / "003/mine/development/patches.parquet").to_pylist()
    hard = [row for row in mined if row["reason"] == "rejected in review"]
    assert hard and hard == windows_in(hard, "S2.tif", rejected.roi.buffer(1))
    assert {row["label"] for row in hard} == {"nontumor"}
