"""Projects read without Java: against QuPath's own words, moved, damaged, and of kinds we can't place."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import javawriter as java
import pytest
import shapely
from projectentry import entry

from hnscc_qp.errors import (
    ObjectDataError,
    ProjectError,
    ProjectNotFoundError,
    SlideNotFoundError,
    UnsupportedServerError,
)
from hnscc_qp.geometry import Crop, Turn
from hnscc_qp.qupath import project
from hnscc_qp.qupath.embedded import sidecar_path
from hnscc_qp.qupath.geojson import read_geojson, write_geojson
from hnscc_qp.qupath.objects import ObjectType, PathClass, PathObject, RoiKind, walk
from hnscc_qp.qupath.slidefinder import FileUri, SlideFinder

MakeProject = Callable[..., Path]
# Even where there is a QuPath.
open_project = partial(project.open_project, backend="embedded")


def tree_hashes(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def detection(kind: ObjectType = ObjectType.DETECTION) -> PathObject:
    return PathObject(
        kind, shapely.box(5, 5, 15, 25), RoiKind.RECTANGLE, 200.0, uuid4(), path_class=PathClass(("T",))
    )


# --- QuPath's own projects -------------------------------------------------------------------


def test_images_are_as_qupath_says(sample: Path) -> None:
    expected = json.loads((sample / "expected.json").read_text(encoding="utf-8"))
    project = open_project(sample)
    assert (project.qupath_version, project.backend, project.notes) == (
        expected["qupath_version"],
        "embedded",
        (),
    )
    assert project.path == sample / "project.qpproj"
    assert len(project.images) == 3
    for image, wanted in zip(project.images, expected["images"], strict=True):
        assert (image.name, image.entry_id, image.uri) == (wanted["name"], wanted["entry_id"], wanted["uri"])
        assert (image.metadata, image.description) == (wanted["metadata"], wanted["description"])
        assert image.size == (wanted["width"], wanted["height"])
        assert (image.image_type, image.saved, image.unsupported) == (wanted["image_type"], True, None)
        mpp = (image.pixel_size.x, image.pixel_size.y) if image.pixel_size else (math.nan, math.nan)
        assert mpp == pytest.approx(tuple(wanted["mpp"]), nan_ok=True)
        assert image.crop_to_bounds
        assert len(list(walk(project.objects(image)))) == len(wanted["objects"])


def test_classes_are_as_qupath_says(sample: Path) -> None:
    expected = json.loads((sample / "expected.json").read_text(encoding="utf-8"))["path_classes"]
    found = [{"name": str(item), "color": f"Color{item.color}"} for item in open_project(sample).path_classes]
    assert found == expected


def test_a_moved_sample_finds_its_slides(sample: Path) -> None:
    project = open_project(sample / "project.qpproj")
    found = [project.slide_path(image) for image in project.images]
    assert [path.name for path in found] == ["case-01.tif", "case-02.tif", "case-03 no mpp.tif"]
    assert all(path.parent == sample.parent / "slides" and path.is_file() for path in found)


def test_reading_changes_no_byte(sample: Path) -> None:
    before = tree_hashes(sample)
    project = open_project(sample)
    for image in project.images:
        project.objects(image)
        project.slide_path(image)
        project.fingerprint(image)
    assert tree_hashes(sample) == before
    project.write_detections(project.images[0], [detection()])
    after = tree_hashes(sample)
    assert {name: after[name] for name in before} == before
    added = {name for name in set(after) - set(before) if not name.startswith(".hnscc-qp/backup/")}
    assert added == {"ai-detections/1 case-01.tif.geojson"}


def test_image_type_is_found_without_a_summary(sample: Path) -> None:
    (sample / "data" / "1" / "summary.json").unlink()
    assert open_project(sample).images[0].image_type == "Brightfield (H&E)"


def test_calibration_in_the_project_rules_over_server_json(sample: Path) -> None:
    # QuPath builds its server from project.qpproj and never reads server.json.
    server = sample / "data" / "3" / "server.json"
    server.write_text(server.read_text(encoding="utf-8").replace("0.46", "0.99"), encoding="utf-8")
    pixel_size = open_project(sample).images[2].pixel_size
    assert pixel_size is not None
    assert pixel_size.x == 0.46
    project = json.loads((sample / "project.qpproj").read_text(encoding="utf-8"))
    del project["images"][2]["serverBuilder"]["metadata"]
    (sample / "project.qpproj").write_text(json.dumps(project), encoding="utf-8")
    image = open_project(sample).images[2]
    assert image.pixel_size is not None
    assert (image.pixel_size.x, image.size) == (0.99, (1536, 1024))


# --- opening ---------------------------------------------------------------------------------


def test_opening_says_what_is_wrong(make_project: MakeProject, tmp_path: Path) -> None:
    with pytest.raises(ProjectNotFoundError, match="no QuPath project at"):
        open_project(tmp_path / "nowhere")
    with pytest.raises(ProjectError, match=r"no \.qpproj file"):
        open_project(tmp_path)
    folder = make_project()
    (folder / "other.qpproj").write_text("{}", encoding="utf-8")
    with pytest.raises(ProjectError, match=r"several projects \(other\.qpproj, project\.qpproj\)"):
        open_project(folder)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("not JSON", "is not a QuPath project"),
        ("[" * 100_000, "is not a QuPath project"),
        ("[]", "is not a QuPath project"),
        ('{"type": "FeatureCollection"}', "is not a QuPath project"),
        ('{"version": "0.6.0", "images": []}', "holds no images; add slides to it in QuPath"),
        ('{"images": [{}]}', "QuPath 0.1"),
        ('{"version": "0.6.0", "images": [{}]}', "without a number"),
        ('{"version": "0.6.0", "images": [{"entryID": "../1"}]}', "without a number"),
        ('{"version": "0.6.0", "images": [{"entryID": 1}, {"entryID": 1}]}', "two images with one entryID"),
    ],
)
def test_what_is_not_a_project_is_said_so(tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / "project.qpproj").write_text(text, encoding="utf-8")
    with pytest.raises(ProjectError, match=problem):
        open_project(tmp_path)


def test_a_newer_qupath_is_read_but_noted(make_project: MakeProject) -> None:
    project = open_project(make_project(version="0.8.0-rc1"))
    assert len(project.images) == 1
    assert "0.8.0-rc1" in project.notes[0]


# --- entries ---------------------------------------------------------------------------------


def affine(**transform: float) -> dict[str, Any]:
    shown = {"width": 300, "height": 200}
    inner = entry()["serverBuilder"]
    return {"builderType": "affine", "builder": inner, "metadata": shown, "transform": transform}


def test_an_affine_map_by_quarters_is_a_turn(make_project: MakeProject) -> None:
    turned = affine(m00=0.0, m01=-1.0, m02=300.0, m10=1.0, m11=0.0, m12=0.0)
    still = affine(m00=1.0, m01=0.0, m02=0.0, m10=0.0, m11=1.0, m12=0.0)
    built = [entry(number) | {"serverBuilder": one} for number, one in enumerate((turned, still), start=1)]
    first, second = open_project(make_project(*built)).images
    assert (first.view, first.unsupported) == ((Turn(1),), None)
    assert (second.view, second.unsupported) == ((), None)


@pytest.mark.parametrize(
    ("builder", "reason"),
    [
        (
            {"builderType": "rotated", "builder": entry()["serverBuilder"], "rotation": "ROTATE_45"},
            "ROTATE_45",
        ),
        (
            {"builderType": "cropped", "builder": entry()["serverBuilder"], "region": {}},
            "shown cropped by QuPath",
        ),
        ({"builderType": "affine", "builder": entry()["serverBuilder"]}, "'affine' server"),
        (
            {
                "builderType": "rotated",
                "rotation": "ROTATE_90",
                "builder": {"builderType": "affine", "builder": entry()["serverBuilder"]},
            },
            "'affine' server",
        ),
        (affine(m00=1.0, m01=0.2, m10=0.0, m11=1.0, m02=0.0, m12=0.0), "not turned by whole quarters"),
        (affine(m00=-1.0, m01=0.0, m10=0.0, m11=1.0, m02=300.0, m12=0.0), "'affine' server"),  # mirrored
        (affine(m00=1.0, m01=0.0, m10=0.0, m11=1.0, m02=5.0, m12=0.0), "'affine' server"),  # out of sight
        ({"builderType": "sparse", "regions": []}, "shown sparse by QuPath"),
        ({"builderType": "of tomorrow"}, "'of tomorrow' server"),
        ({}, "stored without a server"),
        (
            entry(providerClassName="a.b.BioFormatsServerBuilder", args=["--series", "2"])["serverBuilder"],
            "--series 2",
        ),
        (entry(args=["--rotate", "ROTATE_90"])["serverBuilder"], "--rotate ROTATE_90"),
        (entry(uri="https://omero/webclient/?show=image-1")["serverBuilder"], "https://omero"),
        (entry(uri="file:/a/b.vsi#2")["serverBuilder"], "b.vsi#2"),
        (entry(providerClassName="qupath.ext.x.OmeroServerBuilder")["serverBuilder"], "OmeroServerBuilder"),
    ],
)
def test_what_can_not_be_placed_is_listed_and_named(
    make_project: MakeProject, builder: dict[str, Any], reason: str
) -> None:
    odd = entry() | {"serverBuilder": builder}
    project = open_project(make_project(odd, entry(2)))
    assert len(project.images) == 2
    image = project.images[0]
    assert image.name == "case-01.svs"
    assert image.unsupported is not None
    assert reason in image.unsupported
    with pytest.raises(UnsupportedServerError, match=r"^case-01\.svs is "):
        project.slide_path(image)


def test_crops_and_turns_are_read_from_the_innermost_out(make_project: MakeProject) -> None:
    cropped = {
        "builderType": "cropped",
        "builder": {"builderType": "pyramidize", "builder": entry()["serverBuilder"]},
        "region": {"x": 10, "y": 20, "width": 300, "height": 200, "z": 0, "t": 0},
    }
    turned = {"builderType": "rotated", "builder": cropped, "rotation": "ROTATE_270"}
    none = {"builderType": "rotated", "builder": entry()["serverBuilder"], "rotation": "ROTATE_NONE"}
    slice_3 = cropped | {"region": {"x": 10, "y": 20, "width": 300, "height": 200, "z": 3, "t": 0}}
    built = [entry(number) | {"serverBuilder": one} for number, one in enumerate((turned, none, slice_3))]
    first, second, third = open_project(make_project(*built)).images
    assert (first.view, first.unsupported, first.crop_to_bounds) == (
        (Crop(10, 20, 300, 200), Turn(3)),
        None,
        True,
    )
    assert (second.view, second.unsupported) == ((), None)
    assert third.unsupported == "shown cropped by QuPath"


def test_only_openslide_without_no_crop_crops_to_bounds(make_project: MakeProject) -> None:
    bio = "qupath.lib.images.servers.bioformats.BioFormatsServerBuilder"
    project = open_project(
        make_project(
            entry(1),
            entry(2, args=["--no-crop"]),
            entry(3, providerClassName=bio),
            entry(4, args=["--classname", "qupath.lib.images.servers.openslide.OpenslideServerBuilder"]),
        )
    )
    assert [image.crop_to_bounds for image in project.images] == [True, False, False, True]
    assert not any(image.unsupported for image in project.images)


@pytest.mark.parametrize(
    ("unit", "value", "expected"),
    [
        ("µm", 0.5, 0.5),
        ("\u03bcm", 0.5, 0.5),
        ("um", 1, 1.0),
        ("px", 1.0, None),
        ("µm", math.nan, None),
        ("µm", 0, None),
    ],
)
def test_pixel_size_counts_in_micrometres_only(
    make_project: MakeProject, unit: str, value: float, expected: float | None
) -> None:
    side = {"value": value, "unit": unit}
    metadata = {"pixelCalibration": {"pixelWidth": side, "pixelHeight": side}}
    project = open_project(make_project(entry(metadata=metadata)))
    pixel_size = project.images[0].pixel_size
    assert (pixel_size.x if pixel_size else None) == expected
    project.fingerprint(project.images[0])  # NaN must not break it


def test_an_image_never_saved_has_no_objects(make_project: MakeProject) -> None:
    project = open_project(make_project())
    (image,) = project.images
    assert (image.saved, image.image_type, image.size) == (False, None, None)
    assert project.objects(image) == ()


def test_damaged_objects_fail_for_their_image_alone(make_project: MakeProject) -> None:
    folder = make_project(entry(1), entry(2, "other.svs"), saved=True)
    data = folder / "data" / "1" / "data.qpdata"
    data.write_bytes(data.read_bytes()[:-40])
    project = open_project(folder)
    with pytest.raises(ObjectDataError, match=r"^case-01\.svs: .*byte \d+.*restore the file from a copy"):
        project.objects(project.images[0])
    assert project.objects(project.images[1]) == ()


def test_a_save_cut_short_is_not_an_empty_image(make_project: MakeProject) -> None:
    # QuPath moves data.qpdata to .bkp, writes anew, then removes the backup.
    folder = make_project(saved=True)
    data = folder / "data" / "1" / "data.qpdata"
    data.rename(data.with_name("data.qpdata.bkp"))
    project = open_project(folder)
    assert project.images[0].saved
    for _ in range(2):
        with pytest.raises(ObjectDataError, match=r"restore the file from QuPath's own, data\.qpdata\.bkp"):
            project.objects(project.images[0])
        data.write_bytes(b"")


def test_a_project_copied_without_its_data_is_not_empty(make_project: MakeProject) -> None:
    folder = make_project()
    (folder / "data" / "1" / "summary.json").write_text('{"imageType": "OTHER"}', encoding="utf-8")
    project = open_project(folder)
    assert project.images[0].image_type == "Other"
    for ask in (project.objects, project.fingerprint):
        with pytest.raises(ObjectDataError, match=r"^case-01\.svs: .*data\.qpdata"):
            ask(project.images[0])


# --- our own files ---------------------------------------------------------------------------


def test_annotations_beside_the_project_count_until_qupath_saves(make_project: MakeProject) -> None:
    folder = make_project(entry(1), entry(11, "other.svs"))
    for number, height in ((1, 30), (11, 40)):
        item = PathObject(
            ObjectType.ANNOTATION, shapely.box(0, 0, 5, height), RoiKind.RECTANGLE, 0.0, uuid4()
        )
        write_geojson(folder / "annotations" / f"{number} whatever.geojson", [item])
    project = open_project(folder)
    assert [project.objects(image)[0].roi.bounds[3] for image in project.images] == [30, 40]
    before = project.fingerprint(project.images[0])
    saved = make_saved(folder)
    project = open_project(folder)
    (item,) = project.objects(project.images[0])
    assert item.roi.bounds == (0, 0, 10, 20)
    assert project.fingerprint(project.images[0]) != before
    saved.unlink()
    project = open_project(folder)
    assert project.fingerprint(project.images[0]) == before


def make_saved(folder: Path) -> Path:
    data = folder / "data" / "1" / "data.qpdata"
    roi = java.bounded_roi("RectangleROI", 0, 0, 10, 20)
    data.write_bytes(java.qpdata([java.path_object("PathAnnotationObject", roi=roi)]))
    return data


def test_annotations_beside_the_project_are_never_lost_silently(make_project: MakeProject) -> None:
    folder = make_project()
    file = folder / "annotations" / "1 case.geojson"
    file.parent.mkdir()
    project = open_project(folder)
    file.write_text('{"type": "FeatureCollection", "features": [{"type": "Feature", "geometry": null}]}')
    with pytest.raises(ObjectDataError, match=r"^case-01\.svs: .*1 case\.geojson"):
        project.objects(project.images[0])
    file.write_text("{")
    with pytest.raises(ObjectDataError, match=r"^case-01\.svs: .*1 case\.geojson"):
        project.objects(project.images[0])
    (folder / "annotations" / "1 copy.geojson").write_text("{}")
    with pytest.raises(ObjectDataError, match="about the same image"):
        project.objects(project.images[0])


def test_detections_are_written_beside_the_data(make_project: MakeProject) -> None:
    folder = make_project(entry(1, "a/b: c.svs"), entry(11), saved=True)
    project = open_project(folder)
    image = project.images[0]
    (folder / "ai-detections").mkdir()
    old, foreign = (
        folder / "ai-detections" / name for name in ("1 old name.geojson", "11 case-01.svs.geojson")
    )
    old.touch()
    foreign.touch()
    before = tree_hashes(folder / "data")
    path = project.write_detections(image, [detection()])
    assert (
        path
        == sidecar_path(folder, "ai-detections", image)
        == folder / "ai-detections" / "1 a_b_ c.svs.geojson"
    )
    assert len(read_geojson(path).objects) == 1
    about = {"image": "a/b: c.svs", "entry_id": "1"}
    assert json.loads(path.read_text(encoding="utf-8"))["hnscc_qp"] == about
    assert (old.exists(), foreign.exists()) == (False, True)
    assert tree_hashes(folder / "data") == before


# --- slides ----------------------------------------------------------------------------------


def put(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"a slide")
    return path


def test_the_stored_place_comes_first_then_the_way_from_the_project_then_folders(
    make_project: MakeProject, tmp_path: Path
) -> None:
    stored = tmp_path / "old place" / "fäll 1%.svs"
    folder = make_project(
        entry(uri=stored.as_uri()), uri=(tmp_path / "old place" / "p" / "project.qpproj").as_uri()
    )
    project = open_project(folder, slide_folders=[tmp_path / "missing", tmp_path / "store"])
    image = project.images[0]
    with pytest.raises(SlideNotFoundError) as failed:
        project.slide_path(image)
    for place in (stored, tmp_path / "new" / stored.name, tmp_path / "missing", tmp_path / "store"):
        assert str(place) in str(failed.value)
    assert str(failed.value).startswith("the slide fäll 1%.svs of case-01.svs is not there")
    for place in (
        tmp_path / "store" / "deep" / "er" / stored.name,
        tmp_path / "store" / stored.name,
        tmp_path / "new" / stored.name,
        stored,
    ):
        put(place)
        again = open_project(folder, slide_folders=[tmp_path / "missing", tmp_path / "store"])
        assert again.slide_path(image) == place


def test_a_place_that_may_not_be_entered_is_one_without_the_slide(
    make_project: MakeProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Such as the home of a colleague on a server. Said by the system's own call, for root may enter anything.
    closed = tmp_path / "hers"
    stat = os.stat

    def refuse(path, **more):
        if str(path).startswith(str(closed)):
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, **more)

    folder = make_project(entry(uri=put(closed / "a.svs").as_uri()))
    monkeypatch.setattr(os, "stat", refuse)
    project = open_project(folder, slide_folders=[tmp_path / "store"])
    with pytest.raises(SlideNotFoundError, match=r"a\.svs of case-01.svs is not there"):
        project.slide_path(project.images[0])
    found = put(tmp_path / "store" / "a.svs")
    assert open_project(folder, slide_folders=[found.parent]).slide_path(project.images[0]) == found


def test_slides_of_one_name_are_not_guessed_between(make_project: MakeProject, tmp_path: Path) -> None:
    store = tmp_path / "store"
    for patient in ("p1", "p2"):
        put(store / patient / "case-01.svs")
    folder = make_project()
    project = open_project(folder, slide_folders=[store])
    with pytest.raises(SlideNotFoundError, match="can't be told apart"):
        project.slide_path(project.images[0])
    project = open_project(folder, slide_folders=[store / "p2", store])
    assert project.slide_path(project.images[0]) == store / "p2" / "case-01.svs"


def test_a_name_that_macos_spells_otherwise_is_found(make_project: MakeProject, tmp_path: Path) -> None:
    put(tmp_path / "store" / "Ka\u0308se.svs")
    project = open_project(
        make_project(entry(uri="file:///x/K%C3%A4se.svs")), slide_folders=[tmp_path / "store"]
    )
    assert project.slide_path(project.images[0]).is_file()


@pytest.mark.parametrize(
    ("uri", "root", "path"),
    [
        ("file:/data/a%20b.svs", "", "/data/a b.svs"),
        ("file:///data/a+b%23.svs", "", "/data/a+b#.svs"),
        ("file://localhost/data/ä.svs", "", "/data/ä.svs"),
        ("FILE:///D:/data/a.svs", "D:", "/data/a.svs"),
        ("file:/c:/a.svs", "C:", "/a.svs"),
        ("file:////server/share/a.svs", "//server", "/share/a.svs"),
        ("file://server/share/a.svs", "//server", "/share/a.svs"),
    ],
)
def test_file_uris_of_every_system_are_understood(uri: str, root: str, path: str) -> None:
    assert FileUri.parse(uri) == FileUri(root, path)


@pytest.mark.parametrize(
    "uri", ["", "http://a/b.svs", "C:/a.svs", "/a.svs", "file://[", "file:", "file:/a?x=1"]
)
def test_what_is_no_file_uri_is_none(uri: str) -> None:
    assert FileUri.parse(uri) is None


def test_a_windows_project_finds_its_slides_here(tmp_path: Path) -> None:
    slide = put(tmp_path / "slides" / "a.svs")
    finder = SlideFinder(
        stored_project_uri="file:/C:/study/qp/project.qpproj", project_dir=tmp_path / "qp", folders=[]
    )
    assert finder.find("file:/c:/study/slides/a.svs", image="a") == slide
    with pytest.raises(SlideNotFoundError, match=r"looked at D:/study/slides/a\.svs;"):
        finder.find("file:/D:/study/slides/a.svs", image="a")
    finder = SlideFinder(stored_project_uri=None, project_dir=tmp_path, folders=[tmp_path])
    assert finder.find("file:////server/share/a.svs", image="a") == slide
