"""From one generation to the next and back, as a user does it: through the command line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from shapely.geometry import Polygon, box
from studies import TUMOR_BOX, annotation, call, write_study

from hnscc_qp.qupath.geojson import read_geojson, write_geojson
from hnscc_qp.qupath.objects import ObjectType
from hnscc_qp.review.log import ReviewLog
from hnscc_qp.review.verdicts import Verdict, VerdictKind
from hnscc_qp.steps import retrain, run
from hnscc_qp.steps.context import Context
from hnscc_qp.steps.promote import sole_builder
from hnscc_qp.studyfile import load_study

COPIED = {
    "train_primary": "primary",
    "mine_negatives": "mine",
    "train_secondary": "secondary",
    "score_images": "score",
}
"""Steps that take their time, and what they are called in a generation."""


@contextmanager
def quick_steps(**instead: Callable[[Context], dict[str, Any]]) -> Iterator[None]:
    """Steps that take their time copy what the parent's made; others may be replaced too."""

    def copying(step: str) -> Callable[[Context], dict[str, Any]]:
        def copy(context: Context) -> dict[str, Any]:
            parent, target = context.generation.parent, context.generation.step(step)
            assert parent is not None
            if not target.exists():
                shutil.copytree(parent.step(step), target)
            return context.generation.manifest(step) or {}

        return copy

    steps = {name: copying(step) for name, step in COPIED.items()} | instead
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            run, "STEPS", tuple((title, steps.get(step.__name__, step)) for title, step in run.STEPS)
        )
        yield


@pytest.fixture(scope="module")
def kept(done: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The study that was run, with a second generation: a candidate that the gate has kept."""
    folder = tmp_path_factory.mktemp("kept") / "study"
    shutil.copytree(done, folder)
    with quick_steps():
        assert call("retrain", folder, "--force", "--by", "anna") == 0
    return folder


@pytest.fixture
def first(done: Path, tmp_path: Path) -> Path:
    """The study file of a copy with one generation that a test may change."""
    return shutil.copytree(done, tmp_path / "first") / "study.toml"


@pytest.fixture
def study(kept: Path, tmp_path: Path) -> Path:
    """The study file of a copy with a candidate that a test may change."""
    return shutil.copytree(kept, tmp_path / "copy") / "study.toml"


def asked(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    capsys.readouterr()
    assert call(*arguments, "--json") == 0
    return json.loads(capsys.readouterr().out)


def current(study: Path) -> str:
    return (study.parent / "generations" / "current").read_text().strip()


def manifest(study: Path, generation: str, step: str) -> dict[str, Any]:
    return json.loads((study.parent / "generations" / generation / step / "manifest.json").read_text())


def say(
    study: Path, kind: VerdictKind, number: int, roi: Polygon, *, by: str = "anna", of: str | None = None
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


def test_study_without_a_generation_is_left_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = write_study(tmp_path)
    for command in ("retrain", "rollback", "generations"):
        assert call(command, study) == 1
        assert "has no generation yet; run: hnscc-qp run" in capsys.readouterr().err
    assert not (tmp_path / "generations").exists()


def test_another_command_that_builds_is_waited_for_by_name(
    first: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with sole_builder(load_study(first)):
        assert call("retrain", first, "--force") == 1
    assert "is being written to by another hnscc-qp" in capsys.readouterr().err


def test_without_news_there_is_nothing_to_learn(first: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("retrain", first) == 1
    assert "nothing is new since generation 001" in capsys.readouterr().err
    assert not (first.parent / "generations" / "002").exists()


def test_saving_alone_and_what_is_drawn_on_test_slides_is_no_news(
    first: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As after a push through QuPath: all files are new, with detections in them; nobody drew anything."""
    for number in range(1, 7):
        file = first.parent / "project" / "annotations" / f"{number} S{number}.tif.geojson"
        found = read_geojson(file).objects if file.is_file() else ()
        pushed = replace(annotation(box(300, 20, 340, 60)), type=ObjectType.DETECTION)
        write_geojson(file, [*(replace(item, name="seen") for item in reversed(found)), pushed])
    annotate(first, 3, box(20, 20, 240, 300))
    say(first, VerdictKind.REJECTED, 6, box(260, 100, 340, 180))
    assert call("retrain", first) == 1
    said = capsys.readouterr().err
    assert "nothing is new since generation 001" in said
    assert "refused: S6.tif is a slide of P6, of the sealed test set" in said
    assert not (first.parent / "generations" / "002").exists()

    annotate(first, 1, box(280, 200, 360, 280))
    with quick_steps():
        assert call("retrain", first) == 0
    said = json.loads((first.parent / "generations/002/changes.json").read_text())
    assert said["slides"]["changed"] == ["S1.tif", "S3.tif"]


def test_candidate_is_built_beside_the_generation_in_use_and_kept(kept: Path) -> None:
    assert current(kept / "study.toml") == "001"
    said = manifest(kept / "study.toml", "002", "retrain")
    assert said["counts"] == {
        "generation": "002",
        "parent": "001",
        "promoted": False,
        "passed": False,
        "decisions by the test set": 1,
    }
    assert said["decision"]["reason"].startswith("too few patients: 1 of the test set bear on dice")
    record = json.loads((kept / "generations/002/generation.json").read_text())
    assert (record["parent"], record["by"], record["fine_tuned"]) == ("001", "anna", True)


def test_kept_candidate_is_promoted_on_demand_and_rolled_back(
    study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
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


def test_validation_may_decide_instead_and_spares_the_test_set(
    study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study.write_text(study.read_text() + '\n[promotion]\nside = "validation"\nfigure = "specificity"\n')
    said = asked(capsys, "retrain", study, "--promote")
    assert (said["decision"]["side"], said["decision"]["slides"]) == ("validation", 2)
    assert said["counts"]["decisions by the test set"] == 1


def test_stopped_at_any_step_the_same_command_goes_on(first: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generations = first.parent / "generations"
    (generations / "002").mkdir()  # as if it had been stopped even before it noted what it was about
    stops = ("make_patches", "train_primary", "mine_negatives", "score_images", "draw_regions", "judge")
    for number, name in enumerate(stops):
        with monkeypatch.context() as patch, quick_steps(**{name: _stop}):
            if name == "judge":
                patch.setattr(retrain, name, _stop)
            # Only what began is gone on with: nothing is new, so that nothing else would begin.
            assert call("retrain", first, *(["--from-scratch"] if number == 0 else [])) == 130
        assert current(first) == "001"
        assert sorted(path.name for path in generations.glob("0*")) == ["001", "002"]
    cut = (generations / "002/patches/manifest.json").stat().st_mtime_ns
    with quick_steps():
        assert call("retrain", first) == 0
    assert (generations / "002/patches/manifest.json").stat().st_mtime_ns == cut
    assert (generations / "002/decision.json").exists()
    assert json.loads((generations / "002/generation.json").read_text())["fine_tuned"] is False


def test_promotion_stopped_half_way_is_finished_and_logged_once(
    study: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("hnscc_qp.steps.promote.set_current", _stop)
        assert call("retrain", study, "--promote", "--by", "anna") == 130
    assert current(study) == "001"
    assert call("rollback", study, "--by", "berta") == 0  # of the promotion, which is finished first
    assert current(study) == "001"
    events = [one["event"] for one in asked(capsys, "generations", study)["history"]]
    assert events == ["generation judged", "generation promoted", "generation rolled back"]


def test_decision_that_was_not_carried_out_is_carried_out(
    study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(retrain, "promote", _stop)
        assert call("retrain", study, "--promote") == 130
    assert current(study) == "001"
    assert call("retrain", study, "--promote") == 0
    assert current(study) == "002"


def test_truth_that_is_kept_only_after_a_review_is_said_to_be_late(
    first: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(first.parent / "generations" / "test-truth")  # as in a study of an older version
    with quick_steps():
        assert call("retrain", first, "--force") == 0
    assert "is kept from now on: S3.tif, S6.tif; if they were reviewed before" in capsys.readouterr().err
    assert len(list((first.parent / "generations" / "test-truth").glob("*.json"))) == 2


def test_rollback_names_what_it_cant_use(first: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("rollback", first) == 1
    assert "the study's first" in capsys.readouterr().err
    assert call("rollback", first, "7") == 1
    assert "there is no generation 7; there are 001" in capsys.readouterr().err
    assert call("rollback", first, "1") == 1
    assert "in use already" in capsys.readouterr().err
    (first.parent / "generations" / "002").mkdir()
    assert call("rollback", first, "002") == 1
    assert "never finished" in capsys.readouterr().err


def test_rollback_is_no_way_around_the_gate(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("rollback", study, "002") == 1
    assert "generation 002 was never in use" in capsys.readouterr().err
    assert current(study) == "001"


def test_generation_in_use_that_nobody_promoted_is_pointed_out(
    study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (study.parent / "generations" / "current").write_text("002\n")
    notes = asked(capsys, "generations", study)["notes"]
    assert any("does not say who brought generation 002 into use" in note for note in notes)


def test_review_is_learnt_from_and_what_was_reviewed_on_test_slides_is_refused_by_name(
    study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = manifest(study, "002", "retrain")["decision"]["figures"]["dice"]["current"]
    text = study.read_text().replace("epochs = 5", "epochs = 2")
    study.write_text(text)
    assert {name for name, tests in sides(study).items() if tests} == {"P3", "P6"}
    region = box(260, 100, 340, 180)
    say(study, VerdictKind.REJECTED, 3, region)
    say(study, VerdictKind.REJECTED, 6, region)
    say(study, VerdictKind.REJECTED, 1, region)
    annotate(study, 1, box(280, 200, 360, 280))
    annotate(study, 3, box(20, 20, 240, 300))
    assert call("retrain", study, "--promote") == 0

    printed = capsys.readouterr().err
    for number in (3, 6):
        assert f"refused: S{number}.tif is a slide of P{number}, of the sealed test set" in printed
    taught = json.loads((study.parent / "generations/003/lessons/lessons.json").read_text())
    assert [image["image"] for image in taught["images"]] == ["S1.tif"]
    rows = pq.read_table(study.parent / "generations/003/mine/development/patches.parquet").to_pylist()
    assert {row["patient"] for row in rows} <= {"P1", "P2", "P4", "P5"}
    rejected = [row for row in rows if row["reason"] == "rejected in review"]
    assert rejected
    for row in rejected:
        window = box(row["x_qupath"], row["y_qupath"], row["x_qupath"] + 40, row["y_qupath"] + 40)
        assert (row["slide"], row["label"]) == ("S1.tif", "nontumor")
        assert window.intersection(region).area >= window.area / 2
        assert not window.intersects(box(*TUMOR_BOX).buffer(-0.01))

    said = manifest(study, "003", "retrain")
    assert said["changes"]["slides"] == {"new": [], "gone": [], "changed": ["S1.tif", "S3.tif"]}
    assert said["changes"]["lessons"] == {"hard negative": 1}
    tumor_before, tumor_after = said["changes"]["windows"]["tumor"]
    assert tumor_after > tumor_before
    # What review drew on a test slide is not what generations are judged by.
    assert said["decision"]["figures"]["dice"]["current"] == before

    card = json.loads((study.parent / "generations/003/primary/model.json").read_text())
    assert card["weights_origin"]["name"] == "the primary model of generation 001"
    assert card["training"]["window"]["epochs"] == 1
    # Now in use, it is a generation like any other: what is done is not done twice.
    written = {step: manifest(study, "003", step)["written"] for step in ("patches", "primary", "score")}
    assert call("run", study) == 0
    assert {step: manifest(study, "003", step)["written"] for step in written} == written
    assert manifest(study, "003", "push")["counts"]["images"] == 6


def test_test_patient_under_another_name_is_refused(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    project = study.parent / "project" / "project.qpproj"
    value = json.loads(project.read_text())
    value["images"][2]["metadata"]["patient"] = "P1"
    project.write_text(json.dumps(value))
    annotate(study, 3, box(20, 20, 380, 300))
    assert call("retrain", study) == 1
    assert "of the sealed test set of this study 3 S3.tif would be trained on" in capsys.readouterr().err
    assert current(study) == "001"


def test_torn_log_stops_retraining_with_one_line(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    say(study, VerdictKind.REJECTED, 1, box(260, 100, 340, 180))
    log = study.parent / "review" / "log.jsonl"
    log.write_text(log.read_text().replace("anna", "otto"))
    assert call("retrain", study) == 1
    assert "was changed: its content" in capsys.readouterr().err


def annotate(study: Path, number: int, roi: Polygon) -> None:
    """Draw one more tumor on a slide, as in QuPath."""
    file = study.parent / "project" / "annotations" / f"{number} S{number}.tif.geojson"
    write_geojson(file, [*read_geojson(file).objects, annotation(roi)])


def sides(study: Path) -> dict[str, bool]:
    return json.loads((study.parent / "generations" / "sides.json").read_text())["patients"]


def _stop(*_: object, **__: object) -> Any:
    raise KeyboardInterrupt
