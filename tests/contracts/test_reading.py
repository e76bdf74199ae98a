"""What every backend says of a project, against what QuPath itself said and the raw files."""

from __future__ import annotations

import json
import math

import pytest
import shapely
from contract_helpers import tree_hashes

from hnscc_qp.errors import ObjectDataError, ProjectError, ProjectNotFoundError
from hnscc_qp.qupath.objects import ObjectType, RoiKind, walk

TYPES = {
    "PathAnnotationObject": ObjectType.ANNOTATION,
    "PathDetectionObject": ObjectType.DETECTION,
    "PathTileObject": ObjectType.TILE,
    "PathCellObject": ObjectType.CELL,
}


def test_images_are_as_qupath_says(open_with, backend, sample, expected):
    project = open_with(sample)
    assert (project.backend, project.path) == (backend, sample / "project.qpproj")
    assert project.qupath_version == expected["qupath_version"]
    assert [image.name for image in project.images] == [image["name"] for image in expected["images"]]
    for image, wanted in zip(project.images, expected["images"], strict=True):
        assert (image.entry_id, image.uri) == (wanted["entry_id"], wanted["uri"])
        assert (image.metadata, image.description) == (wanted["metadata"], wanted["description"])
        assert image.size == (wanted["width"], wanted["height"])
        assert (image.image_type, image.saved, image.unsupported) == (wanted["image_type"], True, None)
        mpp = (image.pixel_size.x, image.pixel_size.y) if image.pixel_size else (math.nan, math.nan)
        assert mpp == pytest.approx(tuple(wanted["mpp"]), nan_ok=True)


def test_classes_are_as_qupath_says(open_with, sample, expected):
    found = [{"name": str(item), "color": f"Color{item.color}"} for item in open_with(sample).path_classes]
    # The application adds its nameless class when it shows them.
    assert [one for one in found if one["name"]] == expected["path_classes"]


def test_every_object_is_as_qupath_says(open_with, sample, expected):
    project = open_with(sample)
    for image, image_expected in zip(project.images, expected["images"], strict=True):
        found = list(walk(project.objects(image)))
        wanted_objects = image_expected["objects"]
        assert len(found) == len(wanted_objects)
        for (depth, item), wanted in zip(found, wanted_objects, strict=True):
            assert (item.type, item.name) == (TYPES[wanted["type"]], wanted["name"])
            assert wanted["id"] in (None, str(item.id))
            assert (item.path_class and str(item.path_class)) == wanted["path_class"]
            assert (item.locked, item.roi_kind) == (wanted["locked"], wanted["roi"])
            assert (depth, len(item.children)) == (wanted["depth"], wanted["n_children"])
            assert item.area_px == pytest.approx(wanted["area_px"], rel=1e-6)
            measured = {key: None if math.isnan(value) else value for key, value in item.measurements.items()}
            assert measured == wanted["measurements"]
            left, top, width, height = wanted["bounds"]
            assert item.roi.bounds == pytest.approx((left, top, left + width, top + height), abs=0.02)
            # QuPath wrote the text, and 0.6 and later hold some shapes, rounded to 0.01 px.
            shape = shapely.from_wkt(wanted["wkt"])
            assert item.roi.geom_type == shape.geom_type
            assert shapely.get_num_coordinates(item.roi) == shapely.get_num_coordinates(shape)
            assert shapely.hausdorff_distance(item.roi, shape) < 0.015
            assert item.roi.is_valid


def test_areas_agree_with_the_shapes(open_with, sample):
    project = open_with(sample)
    for image in project.images:
        for _, item in walk(project.objects(image)):
            if item.roi_kind is RoiKind.ELLIPSE:
                assert item.roi.area == pytest.approx(item.area_px, rel=2e-3)
            else:
                assert item.roi.area == pytest.approx(item.area_px, rel=1e-4)


def test_reading_changes_no_byte(open_with, sample):
    before = tree_hashes(sample)
    project = open_with(sample)
    for image in project.images:
        project.objects(image)
        project.fingerprint(image)
        project.plan_detections(image, [])
        assert project.slide_path(image).is_file()
    assert tree_hashes(sample) == before


def test_fingerprints_tell_every_change_of_objects(open_with, sample):
    project = open_with(sample)
    first, second, third = map(project.fingerprint, project.images)
    assert len({first, second, third}) == 3
    data = sample / "data" / "1" / "data.qpdata"
    data.write_bytes(data.read_bytes() + b"\0")
    assert [*map(open_with(sample).fingerprint, project.images)] == [
        project.fingerprint(project.images[0]),
        second,
        third,
    ]
    assert project.fingerprint(project.images[0]) != first


@pytest.mark.parametrize("damage", ["cut short", "overwritten", "emptied"])
def test_damaged_objects_are_one_error_that_names_the_image(open_with, sample, damage):
    data = sample / "data" / "2" / "data.qpdata"
    content = data.read_bytes()
    if damage == "cut short":
        data.write_bytes(content[: len(content) * 2 // 3])
    elif damage == "overwritten":
        at = content.index(b"PathObjectHierarchy")
        data.write_bytes(content[:at] + bytes(200) + content[at + 200 :])
    else:
        data.write_bytes(b"")
    project = open_with(sample)
    assert len(project.images) == 3
    project.objects(project.images[0])
    with pytest.raises(ObjectDataError, match=r"^case-02\.tif: [^\n]*$"):
        project.objects(project.images[1])


def test_an_image_that_qupath_never_saved_has_no_objects(open_with, new_project):
    project = open_with(new_project)
    (image,) = project.images
    assert (image.name, image.saved, project.objects(image)) == ("Präparat 1", False, ())
    assert [str(item) for item in project.path_classes if item.names] == ["Tumor"]


def test_what_is_no_project_is_refused(open_with, tmp_path):
    with pytest.raises(ProjectNotFoundError):
        open_with(tmp_path / "nowhere")
    (tmp_path / "project.qpproj").write_text(json.dumps({"images": 3}), encoding="utf-8")
    with pytest.raises(ProjectError):
        open_with(tmp_path)
