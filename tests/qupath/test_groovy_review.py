"""Reviewing AI detections and exporting the verdicts, run by a real QuPath behind a window of our own."""

from __future__ import annotations

import json
import os
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from groovyrunner import AI_TUMOR, describe, detection, ids, make, offer, project_with, run, script
from shapely import Point, Polygon, box

from hnscc_qp.qupath.embedded import EmbeddedProject
from hnscc_qp.qupath.geojson import read_geojson, sidecar_name
from hnscc_qp.qupath.objects import ObjectType, PathClass, PathObject

pytestmark = pytest.mark.qupath

AI_REJECTED = PathClass(("AI", "Rejected"), (128, 128, 128))
# Stands for the methods of QuPath's window that the script uses; their signatures are QuPath's.
WINDOW = """
import qupath.lib.gui.scripting.QPEx
class Window {
    Map<String, Runnable> commands = [:]
    Map<String, String> keys = [:]
    List centred = []
    Object installCommand(String path, Runnable action) { commands[path] = action }
    boolean setAccelerator(String path, String combination) { keys[path] = combination }
    Object getViewer() { this }
    void centerROI(roi) { centred << (roi.getCentroidX() as int) }
}
window = new Window()
def opened = window
QPEx.metaClass.static.getQuPath = { -> opened }
"""
CLOSE = """
GroovySystem.metaClassRegistry.removeMetaClass(qupath.lib.gui.scripting.QPEx)
println 'centred: ' + window.centred.join(' ')
"""
PRESS = "window.commands['AI review>{}'].run()\n"
SELECT = """
import static qupath.lib.scripting.QP.*
def wanted = {}
getCurrentHierarchy().getSelectionModel().clearSelection()
selectObjects(getAllObjects(false).findAll {{ wanted.contains(it.getID().toString()) }})
"""


def sized(number: int, height: float, **fields: Any) -> PathObject:
    """A detection whose centre is at x = 50 · number + 20, `height` px high."""
    roi = box(50 * number, 100, 50 * number + 40, 100 + height)
    return detection(number, roi=roi, **fields)


def review(project: Path, *steps: str) -> tuple[list[str], list[int]]:
    """Press commands of the menu (or run scripts) in turn; what they said, and the x that were centred."""
    texts = [PRESS.format(step) if step.istitle() else step for step in steps]
    lines = run(project, WINDOW, script("review_ai_detections"), *texts, CLOSE)
    return lines[1:-1], [int(x) for x in lines[-1].split()[1:]]


def select(*objects: PathObject) -> str:
    return SELECT.format([str(item.id) for item in objects])


def reviewed(tmp_path: Path, *detections: PathObject) -> Path:
    project = project_with(tmp_path)
    offer(project, detections)
    run(project, script("import_ai_detections"))
    return project


def by_id(project: Path) -> dict[str, dict[str, Any]]:
    return {item["id"]: item for item in describe(project)}


def export(project: Path) -> tuple[str, Path]:
    (line,) = run(project, script("export_annotations"))
    (file,) = (project.parent / "exported-annotations").iterdir()
    return line, file


def qupath_version() -> tuple[int, ...]:
    import paquo.java  # noqa: F401
    from jpype import JClass

    found = re.match(r"v?(\d+)\.(\d+)", str(JClass("qupath.lib.common.GeneralTools").getVersion()))
    assert found
    return int(found[1]), int(found[2])


def user() -> str:
    from jpype import JClass

    return str(JClass("java.lang.System").getProperty("user.name"))


def assert_just_now(time: str) -> None:
    assert timedelta(seconds=-1) <= datetime.now(UTC) - datetime.fromisoformat(time) < timedelta(minutes=5)


def test_next_and_previous_go_by_size_and_centre_the_region(tmp_path: Path) -> None:
    project = reviewed(tmp_path, sized(1, 10), sized(2, 30), sized(3, 20), sized(4, 20))
    said, centred = review(project, *["Next"] * 5, *["Previous"] * 4)
    assert centred[0] == 120 and centred[3] == 70 and set(centred[1:3]) == {170, 220}
    assert centred[4:] == centred[2::-1]
    assert said[:2] == ["region 1 of 4 to review", "region 2 of 4 to review"]
    assert said[4].startswith("no smaller region left; of the others 4 to review")
    assert said[8].startswith("no larger region left")
    assert review(project, "Previous")[1] == [70]


def test_the_commands_get_their_shortcuts_and_say_whose_verdicts_they_note(tmp_path: Path) -> None:
    project = project_with(tmp_path)
    shown = "window.keys.each { path, keys -> println path + ' ' + keys }"
    lines = run(project, WINDOW, script("review_ai_detections"), shown, CLOSE)
    assert lines[1:-1] == [
        "AI review>Next shift+n",
        "AI review>Previous shift+p",
        "AI review>Accept shift+y",
        "AI review>Reject shift+x",
    ]
    assert user() in lines[0]


def test_without_a_window_the_script_says_so(tmp_path: Path) -> None:
    (line,) = run(project_with(tmp_path), script("review_ai_detections"))
    assert "run this script there" in line


def test_an_accepted_region_becomes_an_annotation_that_says_it_came_from_ai(tmp_path: Path) -> None:
    shape = Polygon([(10, 10), (200.12, 20.46), (150, 180), (10, 170)], [[(50, 50), (60, 50), (60, 60)]])
    holed = detection(1, roi=shape, measurements={"score": 0.875, "blocks": 12.0})
    project = reviewed(tmp_path, holed, sized(8, 10))
    before = by_id(project)
    said, centred = review(project, "Next", "Accept")
    assert said == ["region 1 of 2 to review", "1 accepted; region 1 of 1 to review"]
    assert centred[-1] == 420
    after = by_id(project)
    assert after.keys() == before.keys()
    old, new = before[str(holed.id)], after[str(holed.id)]
    for key in ("wkt", "roi", "area", "measurements", "parent"):
        assert new.get(key) == old.get(key)
    assert (new["type"], new["path_class"], new["name"]) == ("PathAnnotationObject", "Tumor", "from AI")
    reviewer, time = re.fullmatch("AI detection, accepted by (.*), (.*)", new["description"]).groups()  # type: ignore[union-attr]
    assert reviewer == user()
    assert_just_now(time)
    if qupath_version() >= (0, 5):
        kept = {"AI origin": str(holed.id), "AI reviewer": reviewer, "AI reviewed at": time}
        assert kept.items() <= new["metadata"].items()
    # The project as the embedded backend reads it.
    embedded = EmbeddedProject(project)
    (annotation,) = (
        item for item in embedded.objects(embedded.images[0]) if item.type is ObjectType.ANNOTATION
    )
    assert annotation.id == holed.id and annotation.path_class and annotation.path_class.names == ("Tumor",)
    assert any(reviewer in text and time in text for text in annotation.metadata.values())


def test_a_rejected_region_stays_with_reviewer_and_time(tmp_path: Path) -> None:
    first, second, asked = sized(1, 30), sized(2, 20), sized(3, 10)
    project = reviewed(tmp_path, first, second, asked)
    name = f"{select(asked)}\ngetSelectedObjects().first().setName('ask Ann')"
    said, _ = review(project, name, select(first, asked), "Reject")
    assert said == ["2 rejected; no smaller region left; of the others 1 to review"]
    after = by_id(project)
    assert {item["path_class"] for item in after.values()} == {"AI: Tumor", "AI: Rejected"}
    verdict = after[str(first.id)]
    assert (verdict["type"], verdict["path_class"]) == ("PathDetectionObject", "AI: Rejected")
    reviewer, time = re.fullmatch("rejected by (.*), (.*)", verdict["name"]).groups()  # type: ignore[union-attr]
    assert reviewer == user()
    assert_just_now(time)
    assert after[str(asked.id)]["name"] == f"ask Ann; {verdict['name']}"
    if qupath_version() >= (0, 6):
        assert verdict["metadata"] == {"AI reviewer": reviewer, "AI reviewed at": time}


def test_a_rejected_region_can_be_accepted_after_all(tmp_path: Path) -> None:
    region = sized(1, 10)
    project = reviewed(tmp_path, region)
    said, _ = review(project, "Next", "Reject", select(region), "Accept")
    assert said[1:] == ["1 rejected; all regions are reviewed", "1 accepted; all regions are reviewed"]
    (annotation,) = describe(project)
    assert annotation["type"] == "PathAnnotationObject"
    assert annotation["name"].startswith("rejected by ") and annotation["name"].endswith("; from AI")


def test_verdicts_touch_nothing_but_ai_detections(tmp_path: Path) -> None:
    theirs = make(box(10, 200, 60, 260), path_class=PathClass(("Tumor",)))
    cell = make(box(100, 200, 110, 210), ObjectType.DETECTION, path_class=PathClass(("Tumor",)))
    project = project_with(tmp_path, [theirs, cell])
    run(project, script("import_annotations"))
    before = describe(project)
    said, _ = review(project, select(theirs, cell), "Accept", "Reject", "Next")
    assert said[0].startswith("select a region of class AI: Tumor or AI: Rejected first")
    assert said[1].startswith("select a region of class AI: Tumor first")
    assert said[2] == "all regions are reviewed"
    assert describe(project) == before


def test_what_was_reviewed_does_not_come_back_with_the_next_import(tmp_path: Path) -> None:
    accepted, rejected, deleted, untouched, later = (
        sized(number, 60 - 10 * number) for number in range(1, 6)
    )
    offered = [accepted, rejected, deleted, untouched]
    project = reviewed(tmp_path, *offered)
    delete = "import static qupath.lib.scripting.QP.*\nremoveObjects(getSelectedObjects() as List, true)"
    review(project, "Next", "Accept", "Reject", select(deleted), delete)
    before = describe(project)
    assert ids(before) == {str(item.id) for item in (accepted, rejected, untouched)}

    def imported() -> str:
        (line,) = run(project, script("import_ai_detections"))
        return line.removeprefix("case: 1: ")

    assert imported().startswith(
        "0 added, 1 replaced, 0 removed, 2 kept as the pathologist left them, 1 left"
    )
    assert describe(project) == before
    # What the import itself removed, as it is not offered any more, may come again.
    offer(project, [accepted, rejected, deleted, later])
    assert imported().startswith("1 added, 0 replaced, 1 removed, 2 kept")
    offer(project, offered)
    assert imported().startswith(
        "1 added, 0 replaced, 1 removed, 2 kept as the pathologist left them, 1 left"
    )
    assert describe(project) == before
    review(project, select(accepted), delete)
    assert imported().startswith(
        "0 added, 1 replaced, 0 removed, 1 kept as the pathologist left them, 2 left"
    )
    wish = script("import_ai_detections").replace("bringBackDeleted = false", "bringBackDeleted = true")
    (line,) = run(project, wish)
    assert line.startswith(
        "case: 1: 2 added, 1 replaced, 0 removed, 1 kept as the pathologist left them, 0 left"
    )


def test_the_export_holds_annotations_and_verdicts_and_nothing_else(tmp_path: Path) -> None:
    theirs = make(box(10, 200, 60, 260), path_class=PathClass(("Stroma",)), name="Größe", locked=True)
    point = make(Point(300, 300), path_class=PathClass(("Tumor",)))
    cell = make(box(100, 200, 110, 210), ObjectType.DETECTION, path_class=PathClass(("Tumor",)))
    project = project_with(tmp_path, [theirs, point, cell])
    run(project, script("import_annotations"))
    accepted, rejected, untouched = sized(1, 30), sized(2, 20), sized(3, 10)
    offer(project, [accepted, rejected, untouched])
    run(project, script("import_ai_detections"))
    review(project, "Next", "Accept", "Reject")
    seen = by_id(project)
    line, file = export(project)
    assert line == f"case: 1: 3 annotations and 2 AI detections (1 rejected) written to {file}"
    read = read_geojson(file)
    assert read.skipped == ()
    ours = {str(item.id): item for item in read.objects}
    assert ours.keys() == {str(item.id) for item in (theirs, point, accepted, rejected, untouched)}
    for key, item in ours.items():
        assert f"Path{item.type.capitalize()}Object" == seen[key]["type"]
        assert str(item.path_class) == seen[key]["path_class"]
        assert (item.name, item.locked) == (seen[key].get("name"), seen[key]["locked"])
        assert item.area_px == pytest.approx(seen[key]["area"])
        assert item.measurements == pytest.approx(seen[key]["measurements"])
        if qupath_version() >= (0, 5):
            assert item.metadata == seen[key]["metadata"]
    assert describe(project) == [seen[key] for key in sorted(seen)]


def test_an_export_can_take_the_place_of_annotations_for_the_embedded_backend(tmp_path: Path) -> None:
    project = reviewed(tmp_path, sized(1, 30), sized(2, 20))
    review(project, "Next", "Accept", "Reject")
    _, file = export(project)
    unsaved = project_with_sidecar(tmp_path / "elsewhere", file)
    embedded = EmbeddedProject(unsaved)
    classes = {item.path_class for item in embedded.objects(embedded.images[0])}
    assert classes == {PathClass(("Tumor",), (200, 0, 0)), AI_REJECTED}


def project_with_sidecar(folder: Path, exported: Path) -> Path:
    folder.mkdir()
    project = project_with(folder)
    place = project.parent / "annotations" / exported.name
    place.parent.mkdir()
    os.link(exported, place)
    return project


def test_an_export_replaces_the_one_from_before_the_image_was_renamed(tmp_path: Path) -> None:
    project = reviewed(tmp_path, sized(1, 30))
    export(project)
    name = 'a/b "c": d?*. ' + 90 * "x"
    value = json.loads(project.read_text(encoding="utf-8"))
    for new in (name, "end. ."):
        value["images"][0]["imageName"] = new
        project.write_text(json.dumps(value), encoding="utf-8")
        _, file = export(project)
        assert file.name == sidecar_name("1", new)


def test_an_image_without_objects_is_exported_as_an_empty_collection(tmp_path: Path) -> None:
    line, file = export(project_with(tmp_path))
    assert line.startswith("case: 1: 0 annotations and 0 AI detections")
    assert read_geojson(file).objects == ()


def test_review_knows_the_class_that_detections_are_given() -> None:
    assert f"'{AI_TUMOR}'" in script("review_ai_detections")
