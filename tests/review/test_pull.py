"""`pull`, through the command line, over files as a pathologist leaves them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest
from reviewing import (
    TUMOR,
    accepted,
    deleted,
    drawn,
    edit,
    found,
    import_by_hand,
    judge,
    offer,
    pushed_study,
    rejected,
    reshaped,
    run,
    run_json,
)
from shapely import affinity, box

from hnscc_qp.cli.running import make_context
from hnscc_qp.qupath.objects import PathClass
from hnscc_qp.review.verdicts import LessonKind, Verdict, VerdictKind
from hnscc_qp.steps.pull import read_lessons, review_log, verdicts_of

ONE, TWO, THREE, FOUR = found(20, 20), found(100, 20), found(200, 20), found(300, 20)


def verdicts(study: Path) -> tuple[Verdict, ...]:
    return verdicts_of(review_log(make_context(study, as_json=True)).read())


def lessons(study: Path):
    return read_lessons(make_context(study, as_json=True))


def test_every_kind_of_verdict_is_told_apart(tmp_path: Path) -> None:
    five = found(20, 200)
    study = pushed_study(tmp_path, {2: [ONE, TWO, THREE, FOUR], 4: [five, found(100, 200), found(200, 200)]})
    larger = box(200, 20, 250, 70)
    judge(study, 2, ONE, accepted)
    judge(study, 2, TWO, rejected)
    judge(study, 2, THREE, lambda item: reshaped(accepted(item), larger))
    judge(study, 2, FOUR, lambda item: replace(item, path_class=PathClass(("Necrosis",))))
    judge(study, 4, five, deleted)
    edit(study, 6, lambda there: [*there, drawn(box(50, 50, 90, 100))])
    counts = run_json("pull", study)["counts"]
    kinds = {str(kind): counts[str(kind)] for kind in VerdictKind}
    assert kinds == {
        "accepted": 1,
        "rejected": 1,
        "redrawn": 1,
        "reclassified": 1,
        "deleted": 1,
        "untouched": 2,
        "missed": 1,
    }
    said = {verdict.object_id: verdict for verdict in verdicts(study)}
    assert len(said) == 6, "untouched is not in the log"
    for item in (ONE, TWO):
        verdict = said[str(item.id)]
        assert (verdict.reviewer, verdict.time, verdict.time_is) == ("ann", "2031-05-04T10:00:00Z", "stated")
        assert (verdict.model, verdict.generation, verdict.image) == ("m1", "001", "S2.tif")
        assert verdict.patient == "P2"
    assert said[str(FOUR.id)].path_class == "Necrosis"
    assert said[str(five.id)].found_id is None
    # 1 µm/px: added and removed are the two halves of what differs.
    redrawn = said[str(THREE.id)]
    assert redrawn.area_before_um2 == pytest.approx(THREE.roi.area)
    assert redrawn.area_after_um2 == pytest.approx(larger.area)
    assert redrawn.added_um2 == pytest.approx(larger.difference(THREE.roi).area)
    assert redrawn.removed_um2 == pytest.approx(THREE.roi.difference(larger).area)
    (missed,) = (verdict for verdict in said.values() if verdict.kind is VerdictKind.MISSED)
    assert (missed.area_before_um2, missed.added_um2, missed.image) == (0, 2000, "S6.tif")


def test_pulling_twice_adds_nothing_and_a_changed_mind_supersedes(tmp_path: Path) -> None:
    study = pushed_study(tmp_path, {2: [ONE, TWO]})
    judge(study, 2, ONE, rejected)
    assert run_json("pull", study)["counts"]["new entries"] == 1
    before = review_log(make_context(study, as_json=True)).path.read_bytes()
    assert run_json("pull", study)["counts"]["new entries"] == 0
    assert review_log(make_context(study, as_json=True)).path.read_bytes() == before
    judge(study, 2, ONE, lambda item: accepted(item, at="2031-05-05T10:00:00Z"))
    assert run_json("pull", study)["counts"]["new entries"] == 1
    assert [verdict.kind for verdict in verdicts(study)] == ["rejected", "accepted"]
    (image,) = lessons(study)
    assert [(lesson.kind, lesson.because) for lesson in image.lessons] == [("positive", "accepted")]
    # Taken back: the detection lies there as it was pushed.
    judge(study, 2, ONE, lambda _: ONE)
    run("pull", study)
    assert verdicts(study)[-1].kind is VerdictKind.UNTOUCHED
    assert not lessons(study).images
    log = review_log(make_context(study, as_json=True)).path.read_bytes()
    assert log.startswith(before), "nothing is ever taken out of the log"


def test_new_tumor_that_is_deleted_again_is_taken_back(tmp_path: Path) -> None:
    study = pushed_study(tmp_path, {2: [ONE]})
    mine = drawn(box(200, 200, 260, 260))
    edit(study, 2, lambda there: [*there, mine])
    run("pull", study)
    assert len(lessons(study).images) == 1
    edit(study, 2, lambda there: [item for item in there if item.id != mine.id])
    assert run_json("pull", study)["counts"]["new entries"] == 1
    assert not lessons(study).images


def test_annotations_from_before_the_push_are_not_missed_tumor(tmp_path: Path) -> None:
    # S1, S3 and S5 have a tumor annotation from the beginning.
    study = pushed_study(tmp_path, {1: [ONE]})
    assert run_json("pull", study)["counts"]["missed"] == 0
    # Not even with new ids, as an import gives them.
    edit(study, 1, lambda there: [replace(item, id=uuid4()) for item in there])
    counts = run_json("pull", study)["counts"]
    assert (counts["missed"], counts["untouched"], counts["new entries"]) == (0, 1, 0)


def test_verdicts_are_known_by_the_outline_where_an_import_gave_new_ids(tmp_path: Path) -> None:
    study = pushed_study(tmp_path, {2: [ONE, TWO]})
    judge(study, 2, ONE, lambda item: replace(rejected(item), id=uuid4()))
    judge(study, 2, TWO, lambda item: replace(accepted(item), id=uuid4(), metadata={}))
    counts = run_json("pull", study)["counts"]
    assert (counts["rejected"], counts["accepted"], counts["deleted"], counts["missed"]) == (1, 1, 0, 0)
    assert {verdict.object_id for verdict in verdicts(study)} == {str(ONE.id), str(TWO.id)}


def test_tumor_outlined_anew_in_the_place_of_a_detection_is_redrawn_not_missed(tmp_path: Path) -> None:
    study = pushed_study(tmp_path, {2: [ONE, TWO, THREE]})
    judge(study, 2, ONE, lambda _: drawn(box(22, 22, 62, 64)))
    # Two fragments of one lesson, deleted and outlined as one.
    judge(study, 2, TWO, deleted)
    judge(study, 2, THREE, lambda _: drawn(box(90, 10, 250, 80)))
    counts = run_json("pull", study)["counts"]
    assert (counts["redrawn"], counts["missed"], counts["deleted"]) == (3, 0, 0)


def test_a_project_reviewed_from_an_older_generation_counts_for_that_one(tmp_path: Path) -> None:
    study = pushed_study(tmp_path, {2: [ONE, TWO]})
    judge(study, 2, ONE, rejected)
    offer(study, {2: [THREE]}, generation="002")
    run("push", study)
    said = run_json("pull", study)
    assert [(verdict.kind, verdict.generation) for verdict in verdicts(study)] == [("rejected", "001")]
    assert any("generation 001; current is 002" in note for note in said["notes"])
    import_by_hand(study)
    judge(study, 2, THREE, accepted)
    edit(study, 2, lambda there: [*there, drawn(box(300, 200, 360, 260))])
    run("pull", study)
    assert [(verdict.kind, verdict.generation) for verdict in verdicts(study)[1:]] == [
        ("accepted", "002"),
        ("missed", "002"),
    ]


def test_two_reviewers_in_two_copies_are_listed_where_they_differ_and_teach_nothing_there(
    tmp_path: Path,
) -> None:
    study = pushed_study(tmp_path, {2: [ONE, TWO, THREE], 4: [FOUR]})
    copy = tmp_path / "bea" / "project"
    shutil.copytree(study.parent / "project", copy)
    judge(study, 2, ONE, accepted)
    judge(study, 2, TWO, rejected)
    judge(study, 4, FOUR, rejected)
    by_bea = {"project": "bea/project"}
    judge(study, 2, ONE, lambda item: rejected(item, by="bea"), **by_bea)
    judge(study, 2, TWO, lambda item: rejected(item, by="bea"), **by_bea)
    run("pull", study)
    assert not lessons(study).conflicts
    said = run_json("pull", study, "--project", copy)
    assert said["counts"]["conflicts"] == 1
    (note,) = (note for note in said["notes"] if note.startswith("conflict"))
    assert str(ONE.id) in note and "accepted by ann, rejected by bea" in note
    taught = lessons(study)
    of_two = {lesson.object_id: lesson for lesson in taught.find("2").lessons}
    assert of_two[str(ONE.id)].kind is LessonKind.IGNORED
    assert of_two[str(TWO.id)].kind is LessonKind.HARD_NEGATIVE
    assert of_two[str(TWO.id)].reviewers == ("ann", "bea")
    assert taught.find("4").lessons[0].reviewers == ("ann",)
    # Ann comes round, and there is nothing to list any more.
    judge(study, 2, ONE, lambda item: rejected(item, at="2031-06-01T08:00:00Z"))
    assert run_json("pull", study)["counts"]["conflicts"] == 0
    assert run_json("pull", study, "--project", copy)["counts"]["new entries"] == 0


def test_nameless_work_in_a_copy_is_whoever_pull_is_told(tmp_path: Path) -> None:
    study = pushed_study(tmp_path, {2: [ONE]})
    judge(study, 2, ONE, deleted)
    edit(study, 2, lambda there: [*there, *[replace(ONE, id=TWO.id, roi=TWO.roi)]])
    edit(study, 2, lambda there: [*there, drawn(box(200, 200, 260, 260))])
    run("pull", study, "--reviewer", "Dr Chen")
    assert {verdict.reviewer for verdict in verdicts(study)} == {"Dr Chen"}
    assert run_json("pull", study)["counts"]["new entries"] == 0, "the same without a name is not news"


def test_a_slide_that_left_the_study_is_named_and_teaches_nothing(tmp_path: Path) -> None:
    study = pushed_study(tmp_path, {2: [ONE], 4: [TWO]})
    judge(study, 2, ONE, rejected)
    judge(study, 4, TWO, rejected)
    run("pull", study)
    project_file = study.parent / "project" / "project.qpproj"
    project = json.loads(project_file.read_text(encoding="utf-8"))
    project["images"] = [image for image in project["images"] if image["imageName"] != "S2.tif"]
    project_file.write_text(json.dumps(project), encoding="utf-8")
    said = run_json("pull", study)
    assert any("not in" in note and "S2.tif" in note for note in said["notes"])
    taught = lessons(study)
    assert [image.image for image in taught] == ["S4.tif"]
    assert "S2.tif" in taught.left_out
    assert len(verdicts(study)) == 2, "what was said stays"


def test_a_copy_of_another_study_is_refused_by_name(tmp_path: Path) -> None:
    study = pushed_study(tmp_path / "one", {2: [ONE]})
    other = pushed_study(tmp_path / "other", {2: [ONE]})
    file = other.parent / "project" / "project.qpproj"
    file.write_text(file.read_text(encoding="utf-8").replace("/S", "/T"), encoding="utf-8")
    assert run("pull", study, "--project", other.parent / "project", code=1) == ""


def test_a_clock_that_is_wrong_is_told_and_changes_no_order(tmp_path: Path) -> None:
    study = pushed_study(tmp_path, {2: [ONE]})
    judge(study, 2, ONE, lambda item: rejected(item, at="2001-01-01T00:00:00Z"))
    said = run_json("pull", study)
    assert any("a clock is wrong" in note and "before it was pushed" in note for note in said["notes"])
    judge(study, 2, ONE, lambda item: accepted(item, at="2000-01-01T00:00:00Z"))
    run("pull", study)
    (image,) = lessons(study)
    assert image.lessons[0].kind is LessonKind.POSITIVE, "the later entry counts, not the later time"


def test_what_was_pushed_and_never_imported_has_no_verdict(tmp_path: Path) -> None:
    study = pushed_study(tmp_path, {2: [ONE]})
    offer(study, {2: [TWO], 4: [THREE]}, generation="002")
    run("push", study)
    counts = run_json("pull", study)["counts"]
    assert (counts["deleted"], counts["untouched"], counts["not in QuPath"]) == (0, 1, 2)


def test_one_damaged_record_keeps_the_other_images_from_nothing(tmp_path: Path) -> None:
    study = pushed_study(tmp_path, {2: [ONE], 4: [TWO]})
    judge(study, 4, TWO, rejected)
    (record,) = (study.parent / "generations" / "001" / "push" / "pushed").glob("2 *")
    record.write_text("{", encoding="utf-8")
    said = run_json("pull", study, code=2)
    assert said["failed"].keys() == {"S2.tif"}
    assert [verdict.image for verdict in verdicts(study)] == ["S4.tif"]


def test_nothing_pushed_is_said_in_one_line(tmp_path: Path) -> None:
    study = pushed_study(tmp_path, {2: [ONE]})
    shutil.rmtree(study.parent / "generations" / "001" / "push")
    assert run("pull", study, code=1) == ""


def test_hard_negatives_spare_tumor_that_somebody_drew_there(tmp_path: Path) -> None:
    study = pushed_study(tmp_path, {2: [ONE]})
    judge(study, 2, ONE, rejected)
    edit(study, 2, lambda there: [*there, drawn(box(20, 20, 30, 30))])
    run("pull", study)
    taught = lessons(study).find("2")
    (negative,) = taught.of(LessonKind.HARD_NEGATIVE)
    (positive,) = taught.of(LessonKind.POSITIVE)
    assert negative.roi.area == pytest.approx(ONE.roi.area - 100)
    assert negative.roi.intersection(positive.roi).area == 0
    assert not lessons(study).conflicts, "one person may reject an outline and draw a better one"


@pytest.mark.parametrize(
    ("more", "kind", "trust"),
    [
        ("", LessonKind.POSITIVE, 1.0),
        ("\n[review]\naccepted_trust = 0.25\n", LessonKind.POSITIVE, 0.25),
        ("\n[review]\naccepted_trust = 0\n", LessonKind.IGNORED, 1.0),
    ],
)
def test_accepted_regions_count_as_much_as_the_study_trusts_them(
    tmp_path: Path, more: str, kind: LessonKind, trust: float
) -> None:
    study = pushed_study(tmp_path, {2: [ONE]}, more=more.replace("= 0\n", "= 0.0\n"))
    judge(study, 2, ONE, accepted)
    run("pull", study)
    ((lesson,),) = (image.lessons for image in lessons(study))
    assert (lesson.kind, lesson.trust) == (kind, trust)


def test_deleted_detections_are_ignored_unless_the_study_takes_them_for_rejected(tmp_path: Path) -> None:
    study = pushed_study(tmp_path, {2: [ONE, TWO]})
    judge(study, 2, ONE, deleted)
    run("pull", study)
    assert lessons(study).find("2").lessons[0].kind is LessonKind.IGNORED
    study.write_text(
        study.read_text(encoding="utf-8") + '\n[review]\ndeleted = "rejected"\n', encoding="utf-8"
    )
    assert lessons(study).find("2").lessons[0].kind is LessonKind.HARD_NEGATIVE


def test_what_was_cut_off_is_a_hard_negative(tmp_path: Path) -> None:
    study = pushed_study(tmp_path, {2: [ONE]})
    smaller = affinity.scale(ONE.roi, 0.5, 0.5)
    judge(study, 2, ONE, lambda item: reshaped(item, smaller))
    run("pull", study)
    taught = lessons(study).find("2")
    (negative,) = taught.of(LessonKind.HARD_NEGATIVE)
    assert negative.roi.area == pytest.approx(ONE.roi.area - smaller.area)
    assert taught.of(LessonKind.POSITIVE)[0].because is VerdictKind.REDRAWN


def test_marks_without_an_area_are_no_missed_tumor(tmp_path: Path) -> None:
    from shapely import LineString

    from hnscc_qp.qupath.objects import ObjectType, PathObject, RoiKind

    study = pushed_study(tmp_path, {2: [ONE]})
    line = LineString([(10, 200), (50, 220), (80, 210)])
    mark = PathObject(ObjectType.ANNOTATION, line, RoiKind.POLYLINE, 0.0, uuid4(), path_class=TUMOR)
    edit(study, 2, lambda there: [*there, mark])
    assert run_json("pull", study)["counts"]["missed"] == 0
