"""What writing detections does to a project, by either backend: byte by byte, and as it is read back."""

from __future__ import annotations

import json
import math
import os
import resource
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import shapely
from contract_helpers import copy_tree, make_detection, tree_hashes
from pretend import pretend_qupath

from hnscc_qp.errors import ObjectDataError, ProjectError
from hnscc_qp.qupath.geojson import read_geojson
from hnscc_qp.qupath.objects import PathObject, walk
from hnscc_qp.qupath.ownership import is_ours
from hnscc_qp.qupath.qpdata import read_qpdata
from hnscc_qp.qupath.safewrite import KEPT_BACKUPS, undo_last_write
from hnscc_qp.steps.push import undo_push

WRITTEN = {
    "embedded": {"ai-detections/1 case-01.tif.geojson"},
    "paquo": {"data/1/data.qpdata", "data/1/summary.json"},
}


def detections(*numbers: int, **more) -> list[PathObject]:
    return [make_detection(number, with_hole=number % 3 == 0, **more) for number in numbers]


def ids(objects) -> set:
    return {item.id for item in objects}


def written_objects(path) -> tuple[PathObject, ...]:
    """What is in the written file, by readers without Java."""
    if path.suffix == ".qpdata":
        return read_qpdata(path, image="case-01.tif").objects
    return read_geojson(path).objects


def test_only_the_files_for_it_change(open_with, writable, backend):
    before = tree_hashes(writable)
    project = open_with(writable)
    path = project.write_detections(project.images[0], detections(1, 2, 3))
    after = tree_hashes(writable)
    assert {name for name in after if after[name] != before.get(name)} == WRITTEN[backend]
    assert before.keys() <= after.keys()
    assert path.relative_to(writable).as_posix() in WRITTEN[backend]
    assert not [*writable.rglob(".partial-*"), *writable.glob(".hnscc-qp/lock")]


def test_what_is_written_is_what_was_given(open_with, writable):
    project = open_with(writable)
    given = detections(1, 2, 3)
    found = [item for _, item in walk(written_objects(project.write_detections(project.images[0], given)))]
    for item in given:
        (there,) = (one for one in found if one.id == item.id)
        assert is_ours(there)
        # In place, exactly: as rounded to 0.01 px, in the single precision of QuPath's polygons.
        assert there.roi.symmetric_difference(item.roi).area < 1e-2
        assert shapely.hausdorff_distance(there.roi, item.roi) < 1e-4
        assert there.measurements == pytest.approx(item.measurements, rel=1e-7)
        assert there.path_class.names == ("AI", "Tumor")  # in the project's own colour, if it has one


def test_the_pathologists_objects_stay_as_they_are(open_with, writable, expected):
    project = open_with(writable)
    path = project.write_detections(project.images[0], detections(1, 2, 3))
    if path.suffix != ".qpdata":
        path = writable / "data" / "1" / "data.qpdata"
    others = [(depth, item) for depth, item in walk(read_qpdata(path, image="").objects) if not is_ours(item)]
    wanted = expected["images"][0]["objects"]
    assert len(others) == len(wanted)
    for (depth, item), one in zip(others, wanted, strict=True):
        assert one["id"] in (None, str(item.id))
        assert (depth, item.name, item.locked, item.roi_kind) == (
            one["depth"],
            one["name"],
            one["locked"],
            one["roi"],
        )
        assert (item.path_class and str(item.path_class)) == one["path_class"]
        assert item.area_px == pytest.approx(one["area_px"], rel=1e-6)
        measured = {key: None if math.isnan(value) else value for key, value in item.measurements.items()}
        assert measured == one["measurements"]
        assert shapely.hausdorff_distance(item.roi, shapely.from_wkt(one["wkt"])) < 0.015


def test_writing_twice_changes_no_byte(open_with, writable):
    for _ in range(2):
        project = open_with(writable)
        project.write_detections(project.images[0], detections(1, 2, 3))
        first = tree_hashes(writable)
        project.write_detections(project.images[0], detections(1, 2, 3))
        assert tree_hashes(writable) == first


def test_a_new_generation_takes_the_place_of_the_old(open_with, writable):
    project = open_with(writable)
    project.write_detections(project.images[0], detections(1, 2, 3))
    newer = [*detections(2, 3, score=0.75), *detections(1, 4, model="model-2")]
    path = project.write_detections(project.images[0], newer)
    ours = {item.id: item for _, item in walk(written_objects(path)) if is_ours(item)}
    assert ours.keys() == ids(newer)
    assert all(ours[item.id].measurements == pytest.approx(item.measurements) for item in newer)
    path = project.write_detections(project.images[0], [])
    assert not [item for _, item in walk(written_objects(path)) if is_ours(item)]


def test_a_plan_says_what_a_write_does_and_writes_nothing(open_with, writable, backend):
    before = tree_hashes(writable)
    project = open_with(writable)
    image = project.images[0]
    plan = project.plan_detections(image, detections(1, 2))
    assert (ids(plan.add), plan.remove, plan.keep, plan.held_back) == (ids(detections(1, 2)), (), (), ())
    assert tree_hashes(writable) == before
    if backend == "embedded":
        return  # QuPath has not taken in the file
    project.write_detections(image, detections(1, 2))
    plan = project.plan_detections(image, [*detections(1), *detections(2, score=0.5), *detections(3)])
    assert (ids(plan.add), ids(plan.remove), ids(plan.keep)) == (
        ids(detections(2, 3)), ids(detections(2)), ids(detections(1))
    )  # fmt: skip
    assert plan.replaced == 1


def test_undo_restores_every_byte(open_with, writable):
    before = tree_hashes(writable)
    times = {name: (writable / name).stat().st_mtime_ns for name in before}
    first = open_with(writable)
    for image in first.images[:2]:
        first.write_detections(image, detections(1, 2))
    between = tree_hashes(writable)
    second = open_with(writable)
    second.write_detections(second.images[0], detections(2, 3))
    second.write_detections(second.images[0], detections(4))
    assert undo_last_write(second.path) == ("case-01.tif",)
    assert tree_hashes(writable) == between
    assert undo_last_write(second.path) == ("case-01.tif", "case-02.tif")
    assert tree_hashes(writable) == before
    assert {name: (writable / name).stat().st_mtime_ns for name in before} == times
    with pytest.raises(ProjectError, match="no push of ours"):
        undo_last_write(second.path)


def test_undo_is_refused_once_someone_else_has_saved(open_with, writable):
    project = open_with(writable)
    path = project.write_detections(project.images[0], detections(1))
    with path.open("ab") as stream:
        stream.write(b" ")
    before = tree_hashes(writable)
    with pytest.raises(ProjectError, match="saved in QuPath since"):
        undo_last_write(project.path)
    assert tree_hashes(writable) == before


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="the system has no /proc")
def test_undo_is_refused_while_qupath_shows_the_image(open_with, writable, tmp_path):
    project = open_with(writable)
    untouched = tree_hashes(writable)
    image = project.images[0]
    project.write_detections(image, detections(1))
    context = SimpleNamespace(project=open_with(writable))
    before = tree_hashes(writable)
    with (
        pretend_qupath(tmp_path, project.slide_path(image)) as pid,
        pytest.raises(ProjectError, match=rf"open in QuPath \(process {pid} "),
    ):
        undo_push(context)
    assert tree_hashes(writable) == before
    assert undo_push(context) == (image.name,)
    assert tree_hashes(writable) == untouched


def test_old_backups_go(open_with, writable):
    for number in range(KEPT_BACKUPS + 2):
        project = open_with(writable)
        project.write_detections(project.images[0], detections(number))
    assert len(list((writable / ".hnscc-qp" / "backup").iterdir())) == KEPT_BACKUPS


# --- refusals: one line, and nothing is touched -------------------------------------------------


def refuse(project, folder, match: str, kind: type[Exception] = ProjectError) -> None:
    before = tree_hashes(folder)
    backups = sorted(folder.glob(".hnscc-qp/backup/*/*"))
    with pytest.raises(kind, match=match) as caught:
        project.write_detections(project.images[0], detections(1, 2, 3))
    assert "\n" not in str(caught.value)
    assert tree_hashes(folder) == before
    assert sorted(folder.glob(".hnscc-qp/backup/*/*")) == backups


def test_a_second_writer_waits_his_turn(open_with, writable):
    project = open_with(writable)
    lock = writable / ".hnscc-qp" / "lock"
    lock.parent.mkdir()
    lock.write_text(json.dumps({"host": "another-computer", "pid": 1, "time": "today"}))
    refuse(project, writable, "another hnscc-qp .*another-computer")
    lock.write_text(json.dumps({"host": socket.gethostname(), "pid": os.getpid()}))
    refuse(project, writable, "another hnscc-qp")
    # A dead one's lock does not count: no process has that number.
    lock.write_text(json.dumps({"host": socket.gethostname(), "pid": 2**22 + 1}))
    project.write_detections(project.images[0], detections(1))
    assert not lock.exists()


def test_qupath_saving_at_this_moment_is_not_disturbed(open_with, writable):
    project = open_with(writable)
    data = writable / "data" / "1" / "data.qpdata"
    (writable / "project.qpproj.tmp").touch()
    refuse(project, writable, "QuPath is saving")
    (writable / "project.qpproj.tmp").unlink()
    backup = data.with_name("data.qpdata.bkp")
    backup.write_bytes(data.read_bytes())
    if project.backend == "paquo":
        refuse(project, writable, "QuPath is saving")


def test_a_save_in_qupath_while_we_write_wins(open_with, writable, backend, monkeypatch):
    project = open_with(writable)
    path = project.write_detections(project.images[0], detections(5))
    back_up = type(project._writer)._back_up

    def save_meanwhile(self, *args, **more):
        made = back_up(self, *args, **more)
        path.write_bytes(saved)
        return made

    saved = path.read_bytes() + b" "
    with monkeypatch.context() as patch:
        patch.setattr(type(project._writer), "_back_up", save_meanwhile)
        with pytest.raises(ProjectError, match="changed by someone else"):
            project.write_detections(project.images[0], detections(1, 2, 3))
    assert path.read_bytes() == saved
    assert not list(writable.rglob(".partial-*"))


def test_a_full_disk_leaves_all_as_it_was(open_with, writable):
    project = open_with(writable)
    project.objects(project.images[0])
    many = detections(*range(100))
    before = tree_hashes(writable)
    largest = max(path.stat().st_size for path in (writable / "data" / "1").iterdir())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (min(largest, 10_000), hard))
    try:
        with pytest.raises(ProjectError, match=r"can't be written \(File too large\).*embedded"):
            project.write_detections(project.images[0], many)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert tree_hashes(writable) == before
    assert not list(writable.rglob(".partial-*"))
    project.write_detections(project.images[0], many)


def test_a_failure_between_the_two_swaps_is_undone(open_with, writable, backend, monkeypatch):
    if backend == "embedded":
        pytest.skip("there is one file to swap")
    project = open_with(writable)
    replace_path = type(writable).replace

    def fail_on_data(self, target):
        if target.name == "data.qpdata" and self.name.startswith(".partial-"):
            raise OSError(28, "No space left on device", str(target))
        return replace_path(self, target)

    before = tree_hashes(writable)
    with monkeypatch.context() as patch:
        patch.setattr(type(writable), "replace", fail_on_data)
        with pytest.raises(ProjectError, match="No space left on device"):
            project.write_detections(project.images[0], detections(1))
    assert tree_hashes(writable) == before


@contextmanager
def as_nobody() -> Iterator[None]:
    """Without root's right to write anywhere."""
    was = os.geteuid()
    if was == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(was)


def test_a_read_only_project_is_refused(open_with, writable):
    with tempfile.TemporaryDirectory() as folder:  # pytest's own is closed to others
        Path(folder).chmod(0o755)
        copy_tree(writable, Path(folder, "project"))
        copy_tree(writable.parent / "slides", Path(folder, "slides"))  # before 0.6 QuPath opens them
        project = open_with(Path(folder, "project"))
        folders = [path for path in Path(folder).rglob("*") if path.is_dir() and not path.is_symlink()]
        for path in folders:
            path.chmod(0o555)
        with as_nobody():
            refuse(project, Path(folder, "project"), "can't be written.*embedded")
        for path in folders:
            path.chmod(0o755)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="the system has no /proc")
def test_an_image_open_in_qupaths_window_is_not_written(open_with, writable, backend, tmp_path):
    project = open_with(writable)
    first, second, *_ = project.images
    with pretend_qupath(tmp_path, project.slide_path(first)):
        if backend == "embedded":  # a file beside the project disturbs nobody
            project.write_detections(first, detections(1))
        else:
            refuse(project, writable, r"case-01.tif is open in QuPath.*embedded")
        project.write_detections(second, detections(2))
    project.write_detections(first, detections(1))


def test_where_no_backup_can_be_made_nothing_is_written(open_with, writable):
    project = open_with(writable)
    (writable / ".hnscc-qp").write_text("in the way")
    refuse(project, writable, r"can't be written \(File exists|Not a directory")


def test_damaged_objects_are_not_written_over(open_with, writable):
    data = writable / "data" / "1" / "data.qpdata"
    data.write_bytes(data.read_bytes()[:-100])
    refuse(open_with(writable), writable, "case-01.tif", ObjectDataError)


def test_an_image_never_saved_gets_the_file_to_import(open_with, new_project):
    project = open_with(new_project)
    path = project.write_detections(project.images[0], detections(1, 2))
    assert path == new_project / "ai-detections" / "1 Präparat 1.geojson"
    assert ids(read_geojson(path).objects) == ids(detections(1, 2))
    assert not (new_project / "data" / "1" / "data.qpdata").exists()


def test_odd_class_names_and_measurements_of_others_survive(open_with, writable):
    project = open_with(writable)
    project.write_detections(project.images[0], detections(1))
    found = {str(item.path_class) for _, item in walk(open_with(writable).objects(project.images[0]))}
    assert {"Gewebe äöü 组织", "Ignore*", "Tumor: Positive"} <= found


def test_an_accepted_detection_is_not_offered_again(open_with, writable):
    (given,) = detections(1)
    project = open_with(writable)
    image = project.images[0]
    theirs = project.objects(image)[0]
    same_shape = replace(given, roi=theirs.roi, roi_kind=theirs.roi_kind)
    assert project.plan_detections(image, [same_shape]).held_back == (same_shape,)
