"""Verdicts that a real QuPath holds: pushed into its files, judged by its scripts and its hands, pulled."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from reviewing import found, offer, run, run_json
from studies import write_study

from hnscc_qp.cli.running import make_context
from hnscc_qp.qupath import jvm
from hnscc_qp.qupath.geojson import sidecar_name
from hnscc_qp.qupath.ownership import AI_REVIEW, detection_id
from hnscc_qp.review.verdicts import Verdict, VerdictKind
from hnscc_qp.steps.pull import review_log, verdicts_of
from hnscc_qp.steps.queueboxes import _write_boxes

pytestmark = pytest.mark.qupath

SCRIPTS = Path(__file__).parents[2] / "qupath_scripts"
DETECTIONS = {
    name: found(20 + 60 * number, 20 + 50 * (number % 3))
    for number, name in enumerate(("accept", "reject", "redraw", "retype", "delete", "leave"))
}
IMAGE = 2
"""S2: without annotations."""


@pytest.fixture(scope="session")
def qupath() -> None:
    if "PAQUO_QUPATH_DIR" not in os.environ:
        pytest.skip("no QuPath: set PAQUO_QUPATH_DIR")
    pytest.importorskip("paquo", reason="paquo is not installed")
    jvm._start_qupath()


@pytest.fixture(params=["paquo", "embedded"])
def study(qupath: None, request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Saved by QuPath, then pushed into through QuPath, or as files that the import script takes in."""
    study = write_study(tmp_path)
    text = study.read_text(encoding="utf-8").replace('"embedded"', f'"{request.param}"')
    study.write_text(text, encoding="utf-8")
    offer(study, {IMAGE: list(DETECTIONS.values())})
    in_qupath(study, lambda *_: None)
    run("push", study)
    if request.param == "embedded":
        in_qupath(study, import_script)
    return study


def in_qupath(study: Path, work: Callable[[Any, Any], None]) -> None:
    """Open S2 in QuPath, work, save."""
    from jpype import JClass

    project = JClass("qupath.lib.projects.ProjectIO").loadProject(
        JClass("java.io.File")(str(study.parent / "project" / "project.qpproj")),
        JClass("java.awt.image.BufferedImage").class_,
    )
    entry = project.getImageList()[IMAGE - 1]
    data = entry.readImageData()
    scripting = JClass("qupath.lib.scripting.QP")
    scripting.setBatchProjectAndImage(project, data)
    try:
        work(entry, data)
    finally:
        scripting.resetBatchProjectAndImage()
    entry.saveImageData(data)
    project.syncChanges()


def evaluate(*texts: str) -> None:
    """Run scripts one after the other, with common variables."""
    from jpype import JClass

    # Classes are looked up by the JVM: Groovy's own parser may be older than the classes of the JVM.
    settings = JClass("org.codehaus.groovy.control.CompilerConfiguration")()
    settings.getOptimizationOptions().put("asmResolving", JClass("java.lang.Boolean").FALSE)
    binding = JClass("groovy.lang.Binding")()
    binding.setVariable("out", JClass("java.io.PrintWriter")(JClass("java.io.StringWriter")()))
    for text in texts:
        JClass("groovy.lang.GroovyShell")(binding, settings).evaluate(text)


def import_script(_: Any, __: Any) -> None:
    evaluate((SCRIPTS / "import_ai_detections.groovy").read_text(encoding="utf-8"))


# Stands for the methods of QuPath's window that the review script uses.
WINDOW = """
import qupath.lib.gui.scripting.QPEx
class Window {
    Map<String, Runnable> commands = [:]
    Object installCommand(String path, Runnable action) { commands[path] = action }
    boolean setAccelerator(String path, String combination) { true }
    Object getViewer() { this }
    void centerROI(roi) { }
}
window = new Window()
def opened = window
QPEx.metaClass.static.getQuPath = { -> opened }
"""
PRESS = """
import static qupath.lib.scripting.QP.*
def choose = {{ id ->
    getCurrentHierarchy().getSelectionModel().clearSelection()
    selectObjects(getAllObjects(false).findAll {{ it.getID().toString() == id }})
}}
choose('{accept}')
window.commands['AI review>Accept'].run()
choose('{reject}')
window.commands['AI review>Reject'].run()
choose('{redraw}')
window.commands['AI review>Accept'].run()
GroovySystem.metaClassRegistry.removeMetaClass(qupath.lib.gui.scripting.QPEx)
"""


def judge_all(_: Any, data: Any) -> None:
    """Accept and reject with the review script, do the rest by hand, and draw what was missed."""
    from jpype import JClass

    script = (SCRIPTS / "review_ai_detections.groovy").read_text(encoding="utf-8")
    evaluate(WINDOW, script, PRESS.format(**{name: item.id for name, item in DETECTIONS.items()}))
    hierarchy = data.getHierarchy()
    by_id = {str(item.getID()): item for item in hierarchy.getFlattenedObjectList(None)}
    of = {name: by_id[str(item.id)] for name, item in DETECTIONS.items()}
    path_class = JClass("qupath.lib.objects.classes.PathClass").fromString
    of["redraw"].setROI(of["redraw"].getROI().translate(10, 0))
    of["retype"].setPathClass(path_class("Necrosis"))
    hierarchy.removeObject(of["delete"], True)
    plane = JClass("qupath.lib.regions.ImagePlane").getDefaultPlane()
    roi = JClass("qupath.lib.roi.ROIs").createEllipseROI(200, 200, 60, 40, plane)
    hierarchy.addObject(
        JClass("qupath.lib.objects.PathObjects").createAnnotationObject(roi, path_class("Tumor"))
    )


def verdicts(study: Path) -> dict[str, Verdict]:
    return {
        verdict.object_id: verdict
        for verdict in verdicts_of(review_log(make_context(study, as_json=True)).read())
    }


def test_verdicts_made_in_qupath_are_pulled_with_who_and_when(study: Path) -> None:
    in_qupath(study, judge_all)
    counts = run_json("pull", study)["counts"]
    assert {str(kind): counts[str(kind)] for kind in VerdictKind} == dict.fromkeys(map(str, VerdictKind), 1)
    said = verdicts(study)
    from jpype import JClass

    user = str(JClass("java.lang.System").getProperty("user.name"))
    for name in ("accept", "reject"):
        verdict = said[str(DETECTIONS[name].id)]
        assert (verdict.reviewer, verdict.time_is) == (user, "stated")
        assert (verdict.model, verdict.generation) == ("m1", "001")
    assert said[str(DETECTIONS["redraw"].id)].kind is VerdictKind.REDRAWN
    assert said[str(DETECTIONS["redraw"].id)].added_um2 == pytest.approx(10 * 50, rel=0.2)
    assert said[str(DETECTIONS["delete"].id)].kind is VerdictKind.DELETED
    assert said[str(DETECTIONS["retype"].id)].path_class == "Necrosis"
    assert run_json("pull", study)["counts"]["new entries"] == 0
    # QuPath reads and saves the image again: still nothing is new.
    in_qupath(study, lambda *_: None)
    assert run_json("pull", study)["counts"]["new entries"] == 0


def test_new_ids_on_import_lose_no_verdict(study: Path) -> None:
    def refresh(_: Any, data: Any) -> None:
        judge_all(_, data)
        for item in data.getHierarchy().getFlattenedObjectList(None):
            if not item.isRootObject():
                item.refreshID()

    in_qupath(study, refresh)
    counts = run_json("pull", study)["counts"]
    assert (counts["accepted"], counts["rejected"], counts["untouched"]) == (1, 1, 1)


def test_boxes_come_and_go_and_touch_nothing_else(study: Path) -> None:
    in_qupath(study, judge_all)
    before = objects_of(study)
    roi = found(300, 250).roi.envelope
    wanted = replace(
        found(300, 250),
        roi=roi,
        id=detection_id(roi, slide_name="S2.tif", model_hash="queue"),
        path_class=AI_REVIEW,
    )
    context = make_context(study, as_json=True)
    _write_boxes(context, {str(IMAGE): [wanted]})
    if context.project.backend == "embedded":
        assert (study.parent / "project" / "ai-review" / sidecar_name(str(IMAGE), "S2.tif")).is_file()
        in_qupath(study, import_script)
    after = objects_of(study)
    assert after.keys() - before.keys() == {wanted.id}
    assert {key: after[key] for key in before} == before
    # A push of regions leaves the box alone, and pull does not take it for a verdict.
    run("push", study)
    if context.project.backend == "embedded":
        in_qupath(study, import_script)
    assert objects_of(study).keys() == after.keys()
    assert run_json("pull", study)["counts"]["new entries"] == 6
    run("queue", study, "--remove")
    if context.project.backend == "embedded":
        in_qupath(study, import_script)
    assert objects_of(study) == before


def objects_of(study: Path) -> dict[Any, Any]:
    context = make_context(study, as_json=True)
    image = context.project.images[IMAGE - 1]
    return {item.id: (item.type, item.path_class, item.roi.wkt) for item in context.project.objects(image)}
