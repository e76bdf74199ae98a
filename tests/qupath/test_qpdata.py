"""`data.qpdata`: what QuPath says, and nothing but one clear error for whatever is damaged."""

from __future__ import annotations

import json
import math
import os
import struct
import sys
import warnings
from pathlib import Path
from typing import Any

import javawriter as java
import numpy as np
import pytest
import shapely
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hnscc_qp.errors import ObjectDataError
from hnscc_qp.qupath.objects import ObjectType, PathObject, RoiKind, walk
from hnscc_qp.qupath.qpdata import QpData, read_image_type, read_qpdata

TYPES = {
    "PathAnnotationObject": ObjectType.ANNOTATION,
    "PathDetectionObject": ObjectType.DETECTION,
    "PathTileObject": ObjectType.TILE,
    "PathCellObject": ObjectType.CELL,
}
SAMPLES = ("0.3.2", "0.5.1", "0.6.0")
UUID_TEXT = "67caa187-04fe-4fa8-bf7b-51311dd09fe7"


def read(data: bytes, folder: Path) -> QpData:
    path = folder / "data.qpdata"
    path.write_bytes(data)
    return read_qpdata(path, image="case-01.svs")


def annotation(roi: bytes, **more: Any) -> bytes:
    return java.path_object("PathAnnotationObject", roi=roi, **more)


def small_file() -> bytes:
    """Every construct that QuPath writes, once."""
    measured = java.serializable(
        "qupath.lib.measurements.DefaultMeasurementList",
        [
            (
                "Ljava/util/ArrayList;",
                "list",
                java.serializable(
                    "java.util.ArrayList",
                    [("I", "size", struct.pack(">i", 1))],
                    own=java.block(struct.pack(">i", 1))
                    + java.serializable(
                        "qupath.lib.measurements.DoubleMeasurement",
                        [
                            ("D", "value", struct.pack(">d", 0.1)),
                            ("Ljava/lang/String;", "name", java.string("Area µm²")),
                        ],
                    ),
                ),
            )
        ],
    )
    floats = java.serializable(
        "qupath.lib.measurements.NumericMeasurementList$FloatList",
        [
            (
                "Ljava/util/List;",
                "names",
                java.serializable(
                    "java.util.CollSer",
                    [("I", "tag", struct.pack(">i", 1))],
                    own=java.block(struct.pack(">i", 2)) + java.string("a") + java.string("b"),
                ),
            ),
            ("[F", "values", java.numbers("F", [0.1, math.nan])),
        ],
    )
    cell = java.path_object(
        "PathCellObject",
        roi=java.bounded_roi("EllipseROI", 10, 20, 30, 40),
        measurements=floats,
        classified=java.path_class("Positive", parent=java.path_class("Tumor")),
        tail=java.bounded_roi("RectangleROI", 15, 25, 20, 30),
    )
    first = annotation(
        java.vertices_roi("PolygonROI", [(0, 0), (100, 0), (100, 50)]),
        name=java.string("Metastasis"),
        about=java.metadata({"Object ID": UUID_TEXT, "grade": "3"}),
        measurements=measured,
        children=[cell],
        locked=True,
        classified=java.path_class("Tumor"),
    )
    second = annotation(
        java.geometry_roi(shapely.box(0, 0, 9, 9).difference(shapely.box(3, 3, 6, 6)).wkb),
        classified=java.path_class(None),
    )
    return java.qpdata([first, second])


def test_small_file_is_read_field_by_field(tmp_path: Path) -> None:
    data = read(small_file(), tmp_path)
    assert (data.qupath_version, data.image_type) == ("0.5.1", "Brightfield (H&E)")
    first, second = data.objects
    assert (first.type, first.name, str(first.id), first.locked) == (
        ObjectType.ANNOTATION,
        "Metastasis",
        UUID_TEXT,
        True,
    )
    assert first.metadata == {"grade": "3"}
    assert first.measurements == {"Area µm²": 0.1}
    assert first.path_class is not None
    assert (first.path_class.names, first.path_class.color) == (("Tumor",), (200, 0, 0))
    assert first.area_px == 2500
    (cell,) = first.children
    assert cell.type is ObjectType.CELL
    assert str(cell.path_class) == "Tumor: Positive"
    assert cell.area_px == pytest.approx(math.pi * 100, rel=1e-15)
    assert cell.measurements["a"] == pytest.approx(0.1, rel=1e-7)
    assert math.isnan(cell.measurements["b"])
    assert cell.nucleus_roi is not None
    assert cell.nucleus_roi.bounds == (15, 25, 20, 30)
    assert second.path_class is None
    assert (second.roi_kind, second.area_px, len(second.roi.interiors)) == (RoiKind.GEOMETRY, 72, 1)


@pytest.mark.parametrize("version", SAMPLES)
def test_every_object_of_the_samples_is_as_qupath_says(shared: Path, version: str) -> None:
    sample = shared / "qupath" / "samples" / f"qupath-{version}"
    seen = 0
    for image in json.loads((sample / "expected.json").read_text(encoding="utf-8"))["images"]:
        data = read_qpdata(sample / "data" / image["entry_id"] / "data.qpdata", image=image["name"])
        assert data.qupath_version == version
        assert data.image_type == image["image_type"]
        found = list(walk(data.objects))
        assert len(found) == len(image["objects"])
        for (depth, item), expected in zip(found, image["objects"], strict=True):
            assert_agrees(item, depth, expected)
            seen += 1
    assert seen == 50


def assert_agrees(item: PathObject, depth: int, expected: dict[str, Any]) -> None:
    assert item.type is TYPES[expected["type"]]
    assert (str(item.id) if item.id else None) == expected["id"]
    assert item.name == expected["name"]
    assert (str(item.path_class) if item.path_class else None) == expected["path_class"]
    assert (item.locked, item.roi_kind) == (expected["locked"], expected["roi"])
    assert (depth, len(item.children)) == (depth, expected["n_children"])
    assert depth == expected["depth"]
    left, top, right, bottom = item.roi.bounds
    assert (left, top, right - left, bottom - top) == pytest.approx(expected["bounds"], rel=1e-12, abs=1e-9)
    assert item.area_px == pytest.approx(expected["area_px"], rel=1e-12)
    measured = {name: None if math.isnan(value) else value for name, value in item.measurements.items()}
    assert measured == expected["measurements"]
    shape = shapely.from_wkt(expected["wkt"])  # QuPath rounded it to 0.01 px
    assert item.roi.geom_type == shape.geom_type
    assert shapely.get_num_coordinates(item.roi) == shapely.get_num_coordinates(shape)
    assert shapely.hausdorff_distance(item.roi, shape) < 0.0072
    assert item.roi.is_valid


def test_reading_a_sample_needs_no_more_than_its_bytes(shared: Path) -> None:
    for path in sorted((shared / "qupath" / "samples").glob("*/data/*/data.qpdata")):
        assert read_image_type(path, image=path.name) == "Brightfield (H&E)"


def test_every_truncation_is_one_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "data.qpdata"
    read(small_file(), tmp_path)
    for size in reversed(range(len(small_file()))):
        os.truncate(path, size)
        with pytest.raises(ObjectDataError, match=r"^case-01\.svs: .*data\.qpdata.*; restore"):
            read_qpdata(path, image="case-01.svs")


def test_truncated_samples_are_one_clear_error(shared: Path, tmp_path: Path) -> None:
    whole = (shared / "qupath/samples/qupath-0.6.0/data/1/data.qpdata").read_bytes()
    for size in range(0, len(whole), 97):
        with pytest.raises(ObjectDataError):
            read(whole[:size], tmp_path)


@settings(
    max_examples=200,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)
@given(flips=st.lists(st.tuples(st.integers(4, 10_000), st.integers(0, 255)), min_size=1, max_size=4))
def test_flipped_bytes_give_objects_or_our_error(flips: list[tuple[int, int]], tmp_path: Path) -> None:
    data = bytearray(small_file())
    for place, value in flips:
        data[place % len(data)] = value
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            read(bytes(data), tmp_path)
        except ObjectDataError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize("version", SAMPLES)
def test_flipped_bytes_in_samples_give_objects_or_our_error(
    shared: Path, tmp_path: Path, version: str
) -> None:
    whole = (shared / f"qupath/samples/qupath-{version}/data/2/data.qpdata").read_bytes()
    for place in range(4, len(whole), 101):
        data = bytearray(whole)
        data[place] ^= 0xFF >> (place % 7)
        try:
            read(bytes(data), tmp_path)
        except ObjectDataError as error:
            assert "case-01.svs" in str(error)


def test_annotations_may_nest_deeper_than_python_recurses(tmp_path: Path) -> None:
    nested = annotation(java.bounded_roi("RectangleROI", 0, 0, 1, 1))
    # Java nests streams by concatenation; building them from inside out keeps this linear enough.
    for _ in range(1500):
        nested = annotation(java.bounded_roi("RectangleROI", 0, 0, 1, 1), children=[nested])
    data = read(java.qpdata([nested]), tmp_path)
    assert [depth for depth, _ in walk(data.objects)] == list(range(1, 1502))


def test_hostile_nesting_of_values_is_our_error(tmp_path: Path) -> None:
    value = java.NULL
    for _ in range(5000):
        value = java.objects_array([value])
    with pytest.raises(ObjectDataError, match="nested more than"):
        read(java.qpdata([], end=value), tmp_path)


@pytest.mark.parametrize("code", [b"[D", b"[B", b"[Ljava.lang.Object;"])
def test_claimed_lengths_allocate_nothing(tmp_path: Path, code: bytes) -> None:
    array = b"\x75" + java.class_desc(code.decode(), 2) + struct.pack(">i", 2**31 - 1)
    with pytest.raises(ObjectDataError):
        read(java.qpdata([], end=array), tmp_path)


def test_object_with_two_parents_is_an_error(tmp_path: Path) -> None:
    # The root's handle is not known here, but the first object of a stream that only holds the
    # hierarchy is; so find it by trying every reference.
    found = 0
    for handle in range(60):
        reference = b"\x71" + struct.pack(">i", 0x7E0000 + handle)
        child = annotation(java.bounded_roi("RectangleROI", 0, 0, 1, 1))
        try:
            read(java.qpdata([child, reference]), tmp_path)
        except ObjectDataError as error:
            found += "two parents" in str(error)
    assert found >= 2  # the child itself, and the root, which would be a circle


@pytest.mark.parametrize(
    ("damaged", "named"),
    [
        (
            annotation(java.serializable("qupath.lib.roi.AreaROI$SerializationProxy")),
            "qupath.lib.roi.AreaROI",
        ),
        (java.path_object("PathNovelObject", roi=java.NULL), "PathNovelObject"),
        (annotation(java.NULL), "no ROI"),
        (annotation(java.bounded_roi("RectangleROI", 0, 0, math.nan, 1)), "on no image"),
        (annotation(java.geometry_roi(b"\x01\x02")), "no shape"),
        (
            annotation(
                java.bounded_roi("RectangleROI", 0, 0, 1, 1),
                measurements=java.serializable("a.NewMeasurementList"),
            ),
            "a.NewMeasurementList",
        ),
    ],
)
def test_what_is_not_understood_is_named(tmp_path: Path, damaged: bytes, named: str) -> None:
    with pytest.raises(ObjectDataError, match=named):
        read(java.qpdata([damaged]), tmp_path)


def test_missing_and_foreign_files_are_our_error(tmp_path: Path) -> None:
    with pytest.raises(ObjectDataError, match="No such file"):
        read_qpdata(tmp_path / "data.qpdata", image="a")
    with pytest.raises(ObjectDataError, match="Java object stream"):
        read(b"PK\x03\x04", tmp_path)
    with pytest.raises(ObjectDataError, match="not a QuPath data file"):
        read(b"\xac\xed\x00\x05" + java.string("EOF"), tmp_path)


def test_polygon_that_crosses_itself_is_filled_like_java_does(tmp_path: Path) -> None:
    # A pentagram: Java's non-zero winding fills the middle, the even-odd rule would not.
    star = [(100 * math.cos(4 * math.pi * i / 5), 100 * math.sin(4 * math.pi * i / 5)) for i in range(5)]
    (item,) = read(java.qpdata([annotation(java.vertices_roi("PolygonROI", star))]), tmp_path).objects
    assert item.roi.is_valid
    assert item.roi.contains(shapely.Point(0, 0))
    inner = math.cos(2 * math.pi / 5) / math.cos(math.pi / 5)  # radius of the inner corners
    assert item.area_px == pytest.approx(5 * 100**2 * inner * math.sin(math.pi / 5), rel=1e-6)


def test_an_outline_that_crosses_itself_all_over_is_one_error(tmp_path: Path) -> None:
    corners = np.random.default_rng(1).uniform(0, 1000, (800, 2)).tolist()
    drawn = annotation(java.vertices_roi("PolygonROI", corners))
    with pytest.raises(ObjectDataError, match="an outline of 801 vertices crosses itself all over; simplify"):
        read(java.qpdata([drawn]), tmp_path)
    tangled = shapely.to_wkb(shapely.Polygon(corners))
    with pytest.raises(ObjectDataError, match="an outline of 801 vertices crosses itself all over; simplify"):
        read(java.qpdata([annotation(java.geometry_roi(tangled))]), tmp_path)


@pytest.mark.parametrize(
    ("roi", "wkt"),
    [
        (java.vertices_roi("PolygonROI", [(1, 1), (2, 2)]), "POLYGON EMPTY"),
        (java.bounded_roi("RectangleROI", 5, 5, 5, 9), "POLYGON EMPTY"),
        (java.bounded_roi("RectangleROI", 9, 8, 5, 5), "POLYGON ((9 5, 9 8, 5 8, 5 5, 9 5))"),
        (java.bounded_roi("LineROI", 9, 8, 5, 5), "LINESTRING (9 8, 5 5)"),
        (java.vertices_roi("PolylineROI", [(1, 1), (2, 2), (3, 1)]), "LINESTRING (1 1, 2 2, 3 1)"),
        (java.vertices_roi("PolylineROI", [(1, 1)]), "LINESTRING (1 1, 1 1)"),
        (java.vertices_roi("PointsROI", [(1, 1), (math.nan, 2), (3, 4)]), "MULTIPOINT ((1 1), (3 4))"),
    ],
)
def test_odd_rois_keep_their_kind(tmp_path: Path, roi: bytes, wkt: str) -> None:
    (item,) = read(java.qpdata([annotation(roi)]), tmp_path).objects
    assert item.roi.wkt == wkt


def test_text_beyond_ascii_survives_javas_utf8(tmp_path: Path) -> None:
    encoded = b"\xc0\x80\xed\xa0\xbd\xed\xb4\xac"  # NUL and U+1F52C, as Java writes them
    name = b"\x74" + struct.pack(">H", len(encoded)) + encoded
    data = java.qpdata([annotation(java.bounded_roi("LineROI", 0, 0, 1, 1), name=name)])
    assert read(data, tmp_path).objects[0].name == "\0\U0001f52c"


def test_the_work_grows_with_the_objects_and_no_faster(tmp_path: Path) -> None:
    triangle = java.vertices_roi("PolygonROI", [(0, 0), (9, 0), (9, 9)])

    def count_calls(objects: int) -> int:
        data = java.qpdata([java.path_object("PathDetectionObject", roi=triangle)] * objects)
        calls = 0

        def count(frame: object, event: str, argument: object) -> None:
            nonlocal calls
            calls += 1

        sys.setprofile(count)
        try:
            found = read(data, tmp_path).objects
        finally:
            sys.setprofile(None)
        assert len(found) == objects
        assert all(item.area_px == 40.5 for item in found)
        return calls

    assert count_calls(2_000) < 4.2 * count_calls(500)


def test_a_polygon_of_many_that_is_odd_is_mended_alone(tmp_path: Path) -> None:
    paths = [
        [(0, 0), (9, 0), (9, 9)],
        [(0, 0)],
        [(0, 0), (10, 10), (10, 0), (0, 10)],  # a bow tie
        [],
        [(0, 0), (4, 0), (4, 4), (0, 4), (0, 0)],
    ]
    data = java.qpdata([annotation(java.vertices_roi("PolygonROI", path)) for path in paths])
    objects = read(data, tmp_path).objects
    assert [item.area_px for item in objects] == [40.5, 0, 50, 0, 16]
    assert all(item.roi.is_valid for item in objects)
