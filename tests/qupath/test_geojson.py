"""GeoJSON: what QuPath accepted is read as QuPath read it; what is written is what every QuPath accepts."""

from __future__ import annotations

import gzip
import json
import math
import re
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import hypothesis.strategies as st
import numpy as np
import pytest
import shapely
from hypothesis import HealthCheck, given, settings
from shapely import LineString, MultiPoint, MultiPolygon, Point, Polygon, box

from hnscc_qp.errors import GeoJsonError
from hnscc_qp.qupath.geojson import default_color, read_geojson, sidecar_name, write_geojson
from hnscc_qp.qupath.objects import ObjectType, PathClass, PathObject, RoiKind
from hnscc_qp.qupath.shapes import ellipse, roi_kind

SQUARE = [[[10, 10], [20, 10], [20, 20], [10, 20], [10, 10]]]
BOWTIE = Polygon([(0, 0), (10, 10), (10, 0), (0, 10)])


def annotation(roi: Any, **fields: Any) -> PathObject:
    fields = {
        "type": ObjectType.ANNOTATION,
        "roi_kind": roi_kind(roi),
        "area_px": roi.area,
        "id": uuid4(),
    } | fields
    return PathObject(roi=roi, **fields)


def feature(**properties: Any) -> dict[str, Any]:
    return {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": SQUARE},
        "properties": properties,
    }


def read(tmp_path: Path, value: Any) -> Any:
    path = tmp_path / "in.geojson"
    path.write_text(json.dumps(value), encoding="utf-8")
    return read_geojson(path)


def read_one(tmp_path: Path, value: Any) -> PathObject:
    result = read(tmp_path, value)
    assert result.skipped == ()
    (item,) = result.objects
    return item


def written(tmp_path: Path, *objects: PathObject) -> list[dict[str, Any]]:
    path = tmp_path / "out.geojson"
    write_geojson(path, objects)
    features: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["features"]
    return features


# --- reading, against QuPath ------------------------------------------------------------------


def qupath_objects(account: str) -> list[dict[str, Any]]:
    """QuPath's account of what it read, such as `Detection/RectangleROI class=Tumor[200, 0, 0]`."""
    found = []
    for text in account.split(" | "):
        kind, roi = text.split(" ")[0].split("/")
        path_class = re.search(r"class=(.*?)\[", text)
        numbers = re.search(r"ml=\{(.*)\}", text)
        pairs = [pair.split(":") for pair in numbers[1].split(",")] if numbers else []
        name = re.search(r"name=(.*)$", text)
        found.append(
            {
                "type": kind.lower(),
                "roi": roi,
                "class": path_class and path_class[1],
                "name": name and name[1],
                "measurements": {key: float(value) for key, value in pairs},
                "nucleus": "nuc=True" in text,
                "children": 1 if "kids=1" in text else 0,
            }
        )
    return found


def our_account(item: PathObject) -> dict[str, Any]:
    return {
        "type": item.type.value,
        "roi": item.roi_kind.value,
        "class": item.path_class and str(item.path_class),
        "name": item.name,
        "measurements": dict(item.measurements),
        "nucleus": item.nucleus_roi is not None,
        "children": len(item.children),
    }


@pytest.mark.parametrize("version", ["0.6.0", "0.7.0"])
def test_whatever_qupath_accepted_is_read_as_qupath_read_it(
    shared: Path, tmp_path: Path, version: str
) -> None:
    cases = json.loads((shared / "qupath" / "geojson-acceptance.json").read_text(encoding="utf-8"))["cases"]
    path = tmp_path / "case.geojson"
    accepted = 0
    for case in cases:
        account = case["result"][version]
        text = case["input"] if isinstance(case["input"], str) else json.dumps(case["input"])
        path.write_text(text, encoding="utf-8")
        if account.startswith("EMPTY LIST"):
            with pytest.raises(GeoJsonError):
                read_geojson(path)
        elif account.startswith("EXC"):
            result = read_geojson(path)  # repaired or named, but never a crash
            assert result.objects or result.skipped, case["case"]
        elif account.endswith("EMPTY"):
            result = read_geojson(path)
            assert not result.objects and "empty or vanishes" in result.skipped[0], case["case"]
        else:
            accepted += 1
            ours = [our_account(item) for item in read_geojson(path).objects]
            np.testing.assert_equal(ours, qupath_objects(account), err_msg=case["case"])
    assert accepted > 40


def test_exports_by_others_are_read_completely(shared: Path) -> None:
    for path in sorted((shared / "geojson").iterdir()):
        value = json.loads(path.read_text(encoding="utf-8"))
        features = value if isinstance(value, list) else value.get("features", [value])
        result = read_geojson(path)
        assert result.skipped == ()
        for item, raw in zip(result.objects, features, strict=True):
            expected = shapely.geometry.shape(raw["geometry"])
            assert item.area_px == pytest.approx(expected.area, rel=1e-6)
            assert item.roi.is_valid


# --- reading, piece by piece ------------------------------------------------------------------


def test_an_unclosed_ring_is_closed(tmp_path: Path) -> None:
    item = read_one(tmp_path, {"type": "Polygon", "coordinates": [SQUARE[0][:-1]]})
    assert item.roi.equals(box(10, 10, 20, 20))


def test_a_polygon_that_crosses_itself_keeps_both_halves(tmp_path: Path) -> None:
    item = read_one(tmp_path, shapely.geometry.mapping(BOWTIE))
    assert item.roi_kind is RoiKind.GEOMETRY
    assert item.area_px == pytest.approx(50)


def test_an_outline_that_crosses_itself_all_over_is_named_and_the_rest_kept(tmp_path: Path) -> None:
    tangled = Polygon(np.random.default_rng(1).uniform(0, 1000, (800, 2)))
    features = [feature(), feature() | {"geometry": shapely.geometry.mapping(tangled)}, feature()]
    found = read(tmp_path, {"type": "FeatureCollection", "features": features})
    assert len(found.objects) == 2
    assert len(found.skipped) == 1
    assert found.skipped[0].startswith("features[1]: an outline of 801 vertices crosses itself all over; ")


def test_an_ellipse_has_its_exact_area_and_the_bounds_of_its_polygon(tmp_path: Path) -> None:
    value = feature(objectType="annotation")
    value["geometry"]["isEllipse"] = True
    item = read_one(tmp_path, value)
    assert item.roi_kind is RoiKind.ELLIPSE
    assert item.area_px == pytest.approx(math.pi * 25)
    assert item.roi.bounds == pytest.approx((10, 10, 20, 20))


def test_a_class_may_come_in_any_spelling_since_qupath_0_2(tmp_path: Path) -> None:
    spellings: list[tuple[Any, PathClass | None]] = [
        ("AI: Tumor", PathClass(("AI", "Tumor"))),
        ({"name": "AI: Tumor", "color": [1, 2, 3]}, PathClass(("AI", "Tumor"), (1, 2, 3))),
        ({"names": ["AI", "Tumor"], "color": [1, 2, 3]}, PathClass(("AI", "Tumor"), (1, 2, 3))),
        ({"name": "Tumor", "colorRGB": -3670016}, PathClass(("Tumor",), (200, 0, 0))),
        (
            {"name": "Tumor", "colorRGB": -3670016, "parentClass": {"name": "AI"}},
            PathClass(("AI", "Tumor"), (200, 0, 0)),
        ),
        ({"name": "Tumor"}, PathClass(("Tumor",))),
        ({"name": "Tumor", "color": "#c80000"}, PathClass(("Tumor",), (200, 0, 0))),
        ({}, None),
        (None, None),
    ]
    for spelling, expected in spellings:
        assert read_one(tmp_path, feature(classification=spelling)).path_class == expected, spelling


def test_a_feature_that_cannot_be_used_is_named_and_the_others_are_kept(tmp_path: Path) -> None:
    parent = feature(classification=["Tumor"], childObjects=[feature(name="child"), {"geometry": None}])
    features = [feature(), {"geometry": None}, 3, parent, feature(measurements={"a": "b", "c": "1.5"})]
    result = read(tmp_path, {"type": "FeatureCollection", "features": features})
    assert [item.name for item in result.objects] == [None, "child", None]
    assert result.objects[2].measurements == {"c": 1.5}
    assert [line.split(":")[0] for line in result.skipped] == [
        "features[1]",
        "features[2]",
        "features[3].childObjects[1]",
        "features[3]",
        "features[4]",
    ]


def test_a_root_gives_way_to_its_children(tmp_path: Path) -> None:
    root = {
        "type": "Feature",
        "geometry": {},
        "properties": {"objectType": "root", "childObjects": [feature()]},
    }
    assert read_one(tmp_path, root).type is ObjectType.ANNOTATION


def test_gzip_zip_and_a_byte_order_mark_are_read(tmp_path: Path) -> None:
    data = json.dumps([feature(name="Größe")], ensure_ascii=False).encode()
    (tmp_path / "plain.geojson").write_bytes(b"\xef\xbb\xbf" + data)
    (tmp_path / "a.geojson.gz").write_bytes(gzip.compress(data))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("inside/a.geojson", data)
        archive.writestr("inside/read me.txt", "no objects")
    for name in ("plain.geojson", "a.geojson.gz", "a.zip"):
        (item,) = read_geojson(tmp_path / name).objects
        assert item.name == "Größe", name


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"<xml/>",
        b'{"a": 1}',
        b"3",
        b"\xff\xd8\xff\xe0",
        b"\x1f\x8bdamaged",
        b"PK\x03\x04damaged",
        b"[" * 100_000,
    ],
)
def test_another_kind_of_file_is_refused_by_name(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "other.geojson"
    path.write_bytes(data)
    with pytest.raises(GeoJsonError, match=r"other\.geojson"):
        read_geojson(path)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(GeoJsonError, match="nowhere"):
        read_geojson(tmp_path / "nowhere.geojson")


# --- writing ----------------------------------------------------------------------------------


def test_every_member_that_qupath_reads_is_written(tmp_path: Path) -> None:
    child = annotation(box(12, 12, 14, 14), type=ObjectType.DETECTION)
    item = annotation(
        box(10, 10, 20, 20),
        name="Größe 组织",
        path_class=PathClass(("AI", "Tumor"), (1, 2, 3)),
        locked=True,
        measurements={"m µ": 0.5},
        metadata={"k": "v"},
        color=(4, 5, 6),
        children=(child,),
    )
    (one,) = written(tmp_path, item)
    assert one["id"] == str(item.id)
    children = one["properties"].pop("childObjects")
    assert one["properties"] == {
        "objectType": "annotation",
        "name": "Größe 组织",
        "color": [4, 5, 6],
        "classification": {"names": ["AI", "Tumor"], "color": [1, 2, 3]},
        "isLocked": True,
        "measurements": {"m µ": 0.5},
        "metadata": {"k": "v"},
    }
    assert [one["id"] for one in children] == [str(child.id)]
    assert children[0]["properties"] == {"objectType": "detection"}


def test_an_object_without_id_gets_none(tmp_path: Path) -> None:
    (one,) = written(tmp_path, annotation(box(0, 0, 1, 1), id=None))
    assert "id" not in one


def test_a_class_without_colour_gets_the_same_one_everywhere(tmp_path: Path) -> None:
    path_class = PathClass(("Gewebe äöü",))
    (one,) = written(tmp_path, annotation(box(0, 0, 1, 1), path_class=path_class))
    assert one["properties"]["classification"] == {
        "name": "Gewebe äöü",
        "color": [*default_color(path_class)],
    }
    assert default_color(path_class) == (127, 145, 96)


def test_a_nucleus_stands_beside_the_geometry_of_its_cell(tmp_path: Path) -> None:
    cell = annotation(box(0, 0, 9, 9), type=ObjectType.CELL, nucleus_roi=box(3, 3, 5, 5))
    (one,) = written(tmp_path, cell)
    assert shapely.geometry.shape(one["nucleusGeometry"]).equals(box(3, 3, 5, 5))
    (back,) = read_geojson(tmp_path / "out.geojson").objects
    assert back.nucleus_roi is not None and back.nucleus_roi.equals(box(3, 3, 5, 5))


def test_an_ellipse_is_marked_and_keeps_its_bounds(tmp_path: Path) -> None:
    roi, area_px = ellipse((10.5, 20.25, 110, 60))
    (one,) = written(tmp_path, annotation(roi, roi_kind=RoiKind.ELLIPSE, area_px=area_px))
    assert one["geometry"]["isEllipse"] is True
    assert shapely.geometry.shape(one["geometry"]).bounds == (10.5, 20.25, 110, 60)
    (back,) = read_geojson(tmp_path / "out.geojson").objects
    assert (back.roi_kind, back.area_px) == (RoiKind.ELLIPSE, pytest.approx(area_px))


def test_points_and_lines_come_back_as_they_were(tmp_path: Path) -> None:
    shapes = [
        Point(1, 2),
        MultiPoint([(1, 2), (3, 4)]),
        LineString([(0, 0), (5, 5)]),
        LineString([(0, 0), (5, 5), (9, 0)]),
    ]
    write_geojson(tmp_path / "a.geojson", [annotation(shape) for shape in shapes])
    back = read_geojson(tmp_path / "a.geojson").objects
    assert [item.roi_kind.value for item in back] == ["PointsROI", "PointsROI", "LineROI", "PolylineROI"]
    assert all(item.roi.equals(shape) for item, shape in zip(back, shapes, strict=True))


def test_parts_that_vanish_when_rounded_are_dropped(tmp_path: Path) -> None:
    speck = box(50, 50, 50.004, 50.004)
    (one,) = written(tmp_path, annotation(MultiPolygon([box(0, 0, 9, 9), speck])))
    assert shapely.geometry.shape(one["geometry"]).equals(box(0, 0, 9, 9))


def test_polygons_that_touch_once_rounded_become_one_valid_shape(tmp_path: Path) -> None:
    halves = MultiPolygon([box(0, 0, 10, 10), box(10.004, 0, 20, 10)])
    (one,) = written(tmp_path, annotation(halves))
    # A corner left on a side would be another ROI in QuPath 0.4 than in 0.6.
    assert sorted(map(tuple, one["geometry"]["coordinates"][0][:-1])) == [(0, 0), (0, 10), (20, 0), (20, 10)]


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        (annotation(box(0, 0, 1, 1), measurements={"score": math.nan}), "score"),
        (annotation(box(0, 0, 1, 1), measurements={"score": math.inf}), "score"),
        (annotation(box(0, 0, 0.003, 0.003)), "vanishes"),
        (annotation(LineString([(0, 0), (0.001, 0)])), "vanishes"),
        (annotation(Polygon([(0, 0), (math.inf, 0), (1, 1)])), "finite"),
        (annotation(box(0, 0, 1, 1), path_class=PathClass(("a:b",))), "a:b"),
        (annotation(box(0, 0, 1, 1), path_class=PathClass(("",))), "class"),
        (annotation(box(0, 0, 1, 1), path_class=PathClass(())), "class"),
        (annotation(box(0, 0, 1, 1), type=ObjectType.ROOT), "root"),
        (annotation(box(0, 0, 1, 1), name="\ud800"), "surrogates"),
    ],
)
def test_what_cannot_be_written_without_loss_is_refused_and_the_old_file_stays(
    tmp_path: Path, item: PathObject, reason: str
) -> None:
    path = tmp_path / "out.geojson"
    path.write_text("old")
    with pytest.raises(GeoJsonError, match=reason) as caught:
        write_geojson(path, [annotation(box(0, 0, 1, 1)), item])
    assert str(item.id) in str(caught.value) and "\n" not in str(caught.value)
    assert path.read_text() == "old"
    assert [*tmp_path.iterdir()] == [path]


def test_foreign_members_stand_beside_the_features(tmp_path: Path) -> None:
    path = tmp_path / "a.geojson"
    write_geojson(
        path, (annotation(box(0, 0, n, n)) for n in (1, 2)), foreign={"hnscc-qp": {"generation": "001"}}
    )
    value = json.loads(path.read_text(encoding="utf-8"))
    assert value["type"] == "FeatureCollection"
    assert value["hnscc-qp"] == {"generation": "001"}
    assert len(value["features"]) == 2
    write_geojson(path, [])
    assert read_geojson(path).objects == ()


def test_a_file_is_named_after_its_entry_and_safe_on_every_system() -> None:
    assert sidecar_name("3", "case 1/2: äöü?.svs") == "3 case 1_2_ äöü_.svs.geojson"
    assert len(sidecar_name("3", "x" * 500).encode()) < 255


# --- round trip -------------------------------------------------------------------------------

words = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
class_names = words.map(lambda text: re.sub(r"[:\r\n]", "", text).strip()).filter(bool)
bytes_ = st.integers(0, 255)
colors = st.tuples(bytes_, bytes_, bytes_)


@st.composite
def polygons(draw: st.DrawFn) -> Polygon:
    """A star around a centre, with a smaller copy of itself as a hole or not."""
    radii = np.array(draw(st.lists(st.floats(5, 500), min_size=3, max_size=12)))
    angles = np.arange(len(radii)) * 2 * np.pi / len(radii)
    star = np.column_stack((np.cos(angles), np.sin(angles))) * radii[:, None]
    centre = np.array(draw(st.tuples(st.floats(-1000, 200_000), st.floats(-1000, 200_000))))
    holes = [centre + star * 0.4] if draw(st.booleans()) else []
    return Polygon(centre + star, holes)


@st.composite
def path_objects(draw: st.DrawFn, children: bool = True) -> PathObject:
    parts = draw(st.lists(polygons(), min_size=1, max_size=2))
    roi = parts[0] if len(parts) == 1 or parts[0].intersects(parts[1]) else MultiPolygon(parts)
    below = st.lists(path_objects(children=False), max_size=2).map(tuple) if children else st.just(())
    return annotation(
        roi,
        type=draw(st.sampled_from([ObjectType.ANNOTATION, ObjectType.DETECTION, ObjectType.TILE])),
        id=draw(st.none() | st.uuids()),
        name=draw(st.none() | words),
        path_class=draw(
            st.none() | st.builds(PathClass, st.lists(class_names, min_size=1, max_size=3).map(tuple), colors)
        ),
        locked=draw(st.booleans()),
        measurements=draw(
            st.dictionaries(words, st.floats(allow_nan=False, allow_infinity=False), max_size=3)
        ),
        metadata=draw(st.dictionaries(words, words, max_size=3)),
        color=draw(st.none() | colors),
        children=draw(below),
    )


def assert_same(back: PathObject, item: PathObject) -> None:
    assert back.roi.is_valid
    assert back.roi.hausdorff_distance(item.roi) < 0.015
    assert back.area_px == pytest.approx(item.area_px, abs=0.01 * item.roi.length)
    for one, other in zip(back.children, item.children, strict=True):
        assert_same(one, other)
    shape = {"roi": item.roi, "roi_kind": item.roi_kind, "area_px": item.area_px, "children": item.children}
    assert replace(back, **shape) == item


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(objects=st.lists(path_objects(), max_size=3))
def test_what_is_written_is_read_back(tmp_path: Path, objects: list[PathObject]) -> None:
    path = tmp_path / "round.geojson"
    write_geojson(path, objects)
    result = read_geojson(path)
    assert result.skipped == ()
    for back, item in zip(result.objects, objects, strict=True):
        assert_same(back, item)
    assert all(
        len(number.split(".")[-1]) <= 2 for number in re.findall(r"\[(-?\d+\.\d+), ", path.read_text("utf-8"))
    )


def test_ids_are_uuids_or_nothing(tmp_path: Path) -> None:
    known = "9f41d0ac-e745-4d3e-94cc-58d4e7d45552"
    for value, expected in [(known, UUID(known)), ("PathDetectionObject", None), (7, None), ("x" * 36, None)]:
        assert read_one(tmp_path, feature() | {"id": value}).id == expected
