"""From one generation to the next and back, as a user does it: through the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from shapely.geometry import box
from shapely.geometry.base import BaseGeometry
from studies import STUDY, TUMOR_BOX, annotation, write_study

from hnscc_qp.cli.main import main
from hnscc_qp.qupath.geojson import read_geojson, write_geojson
from hnscc_qp.review.log import ReviewLog
from hnscc_qp.review.verdicts import Verdict, VerdictKind
from hnscc_qp.steps import retrain, run

SMALL = STUDY.replace("per_class = 600", "per_class = 150").replace("epochs = 5", "epochs = 4")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a study whose first generation is finished. Tests leave it as it is."""
    folder = tmp_path_factory.mktemp("done")
    assert call("run", write_study(folder, text=SMALL)) == 0
    return folder


@pytest.fixture
def study(done: Path, tmp_path: Path) -> Path:
    """The study file of a copy that a test may change."""
    shutil.copytree(done, tmp_path / "copy")
    return tmp_path / "copy" / "study.toml"


def call(*arguments: object) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["hnscc-qp", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
    return int(ended.value.code or 0)


def asked(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    capsys.readouterr()
    assert call(*arguments, "--json") == 0
    return json.loads(capsys.readouterr().out)


def current(study: Path) -> str:
    return (study.parent / "generations" / "current").read_text().strip()


def manifest(study: Path, generation: str, step: str) -> dict[str, Any]:
    return json.loads((study.parent / "generations" / generation / step / "manifest.json").read_text())


def say(
    study: Path, kind: VerdictKind, number: int, roi: BaseGeometry, *, by: str = "anna", of: str | None = None
) -> None:
    """Put a verdict on slide `S<number>.tif` into the study's log."""
    verdict = Verdict(
        kind=kind,
        image=f"S{number}.tif",
        entry_id=str(number),
        slide=f"S{number}.tif",
        patient=f"P{number}",
        object_id=of or str(annotation(roi).id),
        found_id=of or str(annotation(roi).id),
        roi=roi,
        pushed_roi=None if kind is VerdictKind.MISSED else roi,
        path_class="Tumor",
        reviewer=by,
        time="2026-11-24T18:00:00Z",
        time_is="stated",
        project="project",
        model="m",
        generation="001",
        area_before_um2=roi.area,
        area_after_um2=roi.area,
        added_um2=0.0,
        removed_um2=0.0,
    )
    ReviewLog(study.parent / "review").append("verdict", [verdict.as_json()])


def test_without_news_there_is_nothing_to_learn(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("retrain", study) == 1
    assert "nothing is new since generation 001" in capsys.readouterr().err
    assert not (study.parent / "generations" / "002").exists()


def test_candidate_is_built_beside_promoted_only_on_demand_and_rolled_back(
    study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = asked(capsys, "retrain", study, "--force", "--by", "anna")
    assert current(study) == "001"
    assert said["counts"] == {
        "generation": "002",
        "parent": "001",
        "promoted": False,
        "passed": False,
        "decisions by the test set": 1,
    }
    assert said["decision"]["reason"].startswith("too few patients: 1 of the test set bear on dice")
    card = json.loads((study.parent / "generations/002/primary/model.json").read_text())
    assert card["weights_origin"]["name"] == "the primary model of generation 001"
    assert card["training"]["window"]["epochs"] == 2

    assert call("retrain", study) == 1
    assert "generation 002 has learnt all that is known by now" in capsys.readouterr().err
    trained = (study.parent / "generations/002/primary/model.safetensors").stat().st_mtime_ns
    assert call("retrain", study, "--promote", "--by", "berta") == 0
    assert current(study) == "002"
    assert (study.parent / "generations/002/primary/model.safetensors").stat().st_mtime_ns == trained

    listed = asked(capsys, "generations", study)
    assert [one["state"] for one in listed["generations"]] == ["was in use", "in use"]
    (promoted,) = listed["generations"][1]["promoted"]
    assert (promoted["by"], promoted["overridden"]) == ("berta", True)
    assert listed["generations"][1]["parent"] == "001"
    # Judging the same two generations once more is no further use of the test set.
    assert listed["decisions by the test set"] == 1

    assert call("rollback", study, "--why", "misses follicles", "--by", "carla") == 0
    assert current(study) == "001"
    back = asked(capsys, "generations", study)["history"][-1]
    assert (back["event"], back["by"], back["from"], back["to"], back["reason"]) == (
        "generation rolled back",
        "carla",
        "002",
        "001",
        "misses follicles",
    )
    assert ReviewLog(study.parent / "review").check().breaks == ()


def test_generation_in_use_is_done_whichever_it_is(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("retrain", study, "--force", "--promote") == 0
    before = {step: manifest(study, "002", step)["written"] for step in ("patches", "primary", "score")}
    assert call("run", study) == 0
    assert {step: manifest(study, "002", step)["written"] for step in before} == before
    assert manifest(study, "002", "push")["counts"]["images"] == 6
    capsys.readouterr()


def test_stopped_at_any_step_the_same_command_goes_on(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generations = study.parent / "generations"
    stops = ("make_patches", "train_primary", "mine_negatives", "score_images", "draw_regions", "judge")
    for number, name in enumerate(stops):
        with monkeypatch.context() as patch:
            if name == "judge":
                patch.setattr(retrain, name, _stop)
            steps = [(title, _stop if step.__name__ == name else step) for title, step in run.STEPS]
            patch.setattr(run, "STEPS", tuple(steps))
            # Only what began is gone on with: nothing is new, and without --force nothing would begin.
            assert call("retrain", study, *(["--force"] if number == 0 else [])) == 130
        assert current(study) == "001"
        assert sorted(path.name for path in generations.glob("0*")) == ["001", "002"]
    trained = (generations / "002/primary/model.safetensors").stat().st_mtime_ns
    assert call("retrain", study) == 0
    assert (generations / "002/primary/model.safetensors").stat().st_mtime_ns == trained
    assert (generations / "002/decision.json").exists()


def test_promotion_stopped_half_way_is_finished_and_logged_once(
    study: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("hnscc_qp.steps.promote.set_current", _stop)
        assert call("retrain", study, "--force", "--promote", "--by", "anna") == 130
    assert current(study) == "001"
    assert call("rollback", study, "--by", "berta") == 0  # of the promotion that is finished first
    assert current(study) == "001"
    events = [one["event"] for one in asked(capsys, "generations", study)["history"]]
    assert events == ["generation judged", "generation promoted", "generation rolled back"]


def test_decision_that_was_not_carried_out_is_carried_out(
    study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(retrain, "promote", _stop)
        assert call("retrain", study, "--force", "--promote") == 130
    assert current(study) == "001"
    assert call("retrain", study, "--promote") == 0
    assert current(study) == "002"


def test_folder_of_a_candidate_that_never_began_is_taken(study: Path) -> None:
    (study.parent / "generations" / "002").mkdir()
    assert call("retrain", study, "--force", "--from-scratch") == 0
    card = json.loads((study.parent / "generations/002/primary/model.json").read_text())
    assert card["weights_origin"]["name"] != "the primary model of generation 001"
    assert card["training"]["window"]["epochs"] == 4


def test_rollback_names_what_it_cant_use(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("rollback", study) == 1
    assert "the study's first" in capsys.readouterr().err
    assert call("rollback", study, "7") == 1
    assert "there is no generation 7; there are 001" in capsys.readouterr().err
    assert call("rollback", study, "1") == 1
    assert "in use already" in capsys.readouterr().err
    (study.parent / "generations" / "002").mkdir()
    assert call("rollback", study, "002") == 1
    assert "never finished" in capsys.readouterr().err


def test_what_was_reviewed_on_a_test_slide_is_refused_by_name(
    study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tests = {name for name, side in sides(study).items() if side}
    assert tests == {"P3", "P6"}
    say(study, VerdictKind.REJECTED, 3, box(250, 100, 330, 180))
    say(study, VerdictKind.REJECTED, 6, box(100, 100, 180, 180))
    say(study, VerdictKind.REJECTED, 1, box(260, 100, 340, 180))
    assert call("retrain", study) == 0
    printed = capsys.readouterr().err
    for number in (3, 6):
        assert f"refused: S{number}.tif is a slide of P{number}, of the sealed test set" in printed
    taught = json.loads((study.parent / "generations/002/lessons/lessons.json").read_text())
    assert [image["image"] for image in taught["images"]] == ["S1.tif"]
    rows = pq.read_table(study.parent / "generations/002/mine/development/patches.parquet").to_pylist()
    assert {row["patient"] for row in rows} <= {"P1", "P2", "P4", "P5"}
    rejected = [row for row in rows if row["reason"] == "rejected in review"]
    assert rejected
    region = box(260, 100, 340, 180)
    for row in rejected:
        window = box(row["x_qupath"], row["y_qupath"], row["x_qupath"] + 40, row["y_qupath"] + 40)
        assert row["slide"] == "S1.tif"
        assert row["label"] == "nontumor"
        assert window.intersection(region).area >= window.area / 2
        assert not window.intersects(box(*TUMOR_BOX).buffer(-0.01))


def test_test_patient_under_another_name_is_refused(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    project = study.parent / "project" / "project.qpproj"
    value = json.loads(project.read_text())
    value["images"][2]["metadata"]["patient"] = "P1"
    project.write_text(json.dumps(value))
    say(study, VerdictKind.REJECTED, 1, box(260, 100, 340, 180))
    assert call("retrain", study) == 1
    assert "of the sealed test set of this study" in capsys.readouterr().err
    assert current(study) == "001"


def test_new_tumor_enters_learning_and_what_changed_is_said(
    study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = study.parent / "project" / "annotations" / "1 S1.tif.geojson"
    new = box(280, 40, 360, 120)
    write_geojson(file, [*read_geojson(file).objects, annotation(new)])
    found = asked(capsys, "retrain", study)["changes"]
    assert found["slides"] == {"new": [], "gone": [], "changed": ["S1.tif"]}
    before, after = found["windows"]["tumor"]
    assert after > before


def test_truth_of_the_test_set_stays_as_it_was_before_review(
    study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = asked(capsys, "retrain", study, "--force")["decision"]["figures"]["dice"]
    file = study.parent / "project" / "annotations" / "3 S3.tif.geojson"
    everything = annotation(box(20, 20, 380, 300))
    write_geojson(file, [*read_geojson(file).objects, everything])
    again = asked(capsys, "retrain", study, "--force")["decision"]["figures"]["dice"]
    assert again["current"] == said["current"]


def test_torn_log_stops_retraining_with_one_line(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    say(study, VerdictKind.REJECTED, 1, box(260, 100, 340, 180))
    log = study.parent / "review" / "log.jsonl"
    log.write_text(log.read_text().replace("anna", "otto"))
    assert call("retrain", study) == 1
    assert "line 1 was changed" in capsys.readouterr().err


def sides(study: Path) -> dict[str, bool]:
    return json.loads((study.parent / "generations" / "sides.json").read_text())["patients"]


def _stop(*_: object, **__: object) -> None:
    raise KeyboardInterrupt
