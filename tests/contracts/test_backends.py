"""Which backend is taken, what is said about it, and what happens where QuPath is missing or old."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import shapely
from contract_helpers import copy_tree, make_detection, tree_hashes

from hnscc_qp.errors import BackendError
from hnscc_qp.qupath import jvm
from hnscc_qp.qupath.objects import walk
from hnscc_qp.qupath.project import open_project

OPEN = """
import sys
from hnscc_qp.errors import HnsccQpError
from hnscc_qp.qupath.project import open_project
try:
    project = open_project(__import__("pathlib").Path(sys.argv[1]), backend=sys.argv[2])
    images = [(image.name, len(project.objects(image))) for image in project.images]
    print(project.backend, *images, *project.notes, sep="|")
except HnsccQpError as error:
    print(f"{type(error).__name__}|{error}")
"""


def open_elsewhere(folder: Path, backend: str, **environment: str) -> list[str]:
    """Open in a process of its own, for a process has one Java; returns what it says on standard output."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PAQUO_")}
    command = [sys.executable, "-c", OPEN, str(folder), backend]
    done = subprocess.run(
        command, env=kept | environment, capture_output=True, text=True, check=True, cwd="/"
    )
    (line,) = done.stdout.splitlines()
    return line.split("|")


def test_importing_the_module_starts_no_java():
    code = "import sys, hnscc_qp.qupath.jvm; assert not {'jpype', 'paquo'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_paquo_auto_reads_the_files_and_says_so(new_project, monkeypatch):
    find_spec = jvm.importlib.util.find_spec
    monkeypatch.setattr(
        jvm.importlib.util, "find_spec", lambda name: None if name == "paquo" else find_spec(name)
    )
    project = open_project(new_project, backend="auto")
    assert project.backend == "embedded"
    assert any("paquo is not installed" in note for note in project.notes)
    assert not open_project(new_project, backend="embedded").notes
    with pytest.raises(BackendError, match=r"paquo is not installed; pip install .*embedded"):
        open_project(new_project, backend="paquo")


def test_a_wrong_folder_is_named(new_project, tmp_path):
    pytest.importorskip("paquo", reason="paquo is not installed")
    where = {"PAQUO_QUPATH_DIR": str(tmp_path)}
    kind, message = open_elsewhere(new_project, "paquo", **where)
    assert kind == "BackendError"
    assert str(tmp_path) in message and "set PAQUO_QUPATH_DIR" in message
    backend, _, note = open_elsewhere(new_project, "auto", **where)
    assert backend == "embedded"
    assert str(tmp_path) in note


def test_a_java_that_does_not_start_is_one_line(new_project, tmp_path):
    pytest.importorskip("paquo", reason="paquo is not installed")
    for path in ("lib/app", "lib/runtime/lib/server", "Contents/app", "Contents/runtime/Contents/Home/lib"):
        (tmp_path / path).mkdir(parents=True)
    for library in ("lib/runtime/lib/server/libjvm.so", "Contents/runtime/Contents/Home/lib/libjli.dylib"):
        (tmp_path / library).write_bytes(b"no library")
    where = {"PAQUO_QUPATH_DIR": str(tmp_path)}
    kind, message = open_elsewhere(new_project, "paquo", **where)
    assert (kind, "does not start" in message) == ("BackendError", True)
    assert open_elsewhere(new_project, "auto", **where)[0] == "embedded"


@pytest.mark.qupath
def test_auto_takes_qupath_and_says_which(new_project, qupath_dir):
    backend, image, note = open_elsewhere(new_project, "auto", PAQUO_QUPATH_DIR=str(qupath_dir))
    assert (backend, image) == ("paquo", "('Präparat 1', 0)")
    assert note.startswith(f"read and written by QuPath {jvm._start_qupath().version}")


@pytest.mark.qupath
def test_a_plain_locale_does_not_hide_a_project_with_umlauts(new_project, qupath_dir):
    backend, *_ = open_elsewhere(new_project, "paquo", PAQUO_QUPATH_DIR=str(qupath_dir), LC_ALL="C")
    assert backend == "paquo"


@pytest.mark.qupath
def test_an_image_of_a_newer_qupath_is_read_but_not_written(shared, tmp_path, qupath_dir):
    copy_tree(shared / "qupath/samples/qupath-0.6.0", tmp_path / "project")
    data = tmp_path / "project/data/1/data.qpdata"
    # A version never seen, of the same length.
    data.write_bytes(data.read_bytes().replace(b'"qupathVersion":"0.6.0"', b'"qupathVersion":"0.9.9"'))
    assert b"0.9.9" in data.read_bytes()
    project_file = tmp_path / "project/project.qpproj"
    project_file.write_text(
        project_file.read_text("utf-8").replace('"version": "0.6.0"', '"version": "0.9.9"'), "utf-8"
    )
    before = tree_hashes(tmp_path)
    project = open_project(project_file, backend="paquo")
    assert any("0.9.9, newer than" in note for note in project.notes)
    assert len(project.objects(project.images[0])) == 8
    with pytest.raises(BackendError, match=r"saved by QuPath 0\.9\.9.*PAQUO_QUPATH_DIR.*embedded"):
        project.write_detections(project.images[0], [make_detection(1)])
    assert tree_hashes(tmp_path) == before


@pytest.mark.qupath
def test_windows_and_network_places_of_slides_are_kept(new_project, qupath_dir):
    project_file = new_project / "project.qpproj"
    value = json.loads(project_file.read_text("utf-8"))
    first = value["images"][0]
    for number, uri in enumerate(("file:/D:/F%C3%A4lle/a%20b.svs", "file:////server/share/c.svs"), start=2):
        server = first["serverBuilder"] | {"uri": uri}
        value["images"].append(
            first | {"entryID": number, "imageName": f"image {number}", "serverBuilder": server}
        )
    project_file.write_text(json.dumps(value), "utf-8")
    found = [open_project(new_project, backend=backend).images for backend in ("embedded", "paquo")]
    assert found[0] == found[1]
    assert [image.uri for image in found[1]][1:] == [
        "file:/D:/F%C3%A4lle/a%20b.svs",
        "file:////server/share/c.svs",
    ]


@pytest.mark.qupath
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_hundred_thousand_objects_are_written_and_read(new_project, qupath_dir):
    from human import Pathologist

    hand = Pathologist(new_project / "project.qpproj")
    hand.annotate(5, 5, 580, 380, path_class="Tumor")
    hand.save()
    rois = shapely.box(*_grid(100_000))
    many = [_detection(roi) for roi in rois]
    project = open_project(new_project, backend="paquo")
    (image,) = project.images
    project.write_detections(image, many)
    found = [item for _, item in walk(project.objects(image))]
    assert {item.id for item in many} <= {item.id for item in found}
    assert len(found) == 100_001
    before = tree_hashes(new_project)
    project.write_detections(image, many)
    assert tree_hashes(new_project) == before


def _grid(count: int):
    import numpy as np

    x, y = np.arange(count) % 400 * 20.0, np.arange(count) // 400 * 20.0
    return x, y, x + 9.5, y + 12.25


def _detection(roi):
    from dataclasses import replace

    from hnscc_qp.qupath.ownership import detection_id

    item = make_detection(1)
    return replace(item, roi=roi, area_px=roi.area, id=detection_id(roi, slide_name="a", model_hash="b"))
