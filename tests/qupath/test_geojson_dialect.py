"""GeoJSON for QuPath 0.3, read as QuPath 0.3 reads it; and what writing costs, in either dialect."""

from __future__ import annotations

import json
import re
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
import shapely
from groovyrunner import describe, project_with, run, script
from shapely import MultiPolygon, Point, Polygon, box

from hnscc_qp.errors import GeoJsonError
from hnscc_qp.qupath.geojson import Dialect, default_color, read_geojson, write_geojson
from hnscc_qp.qupath.objects import ObjectType, PathClass, PathObject, RoiKind
from hnscc_qp.qupath.shapes import ellipse, roi_kind

TYPES_0_3 = ("annotation", "detection", "tile", "cell", "tma_core")
LEGACY_IDS = {"PathDetectionObject": "detection", "PathAnnotationObject": "annotation"}


def make(roi: Any, kind: ObjectType = ObjectType.ANNOTATION, **fields: Any) -> PathObject:
    return PathObject(kind, roi, **{"roi_kind": roi_kind(roi), "area_px": roi.area, "id": uuid4()} | fields)


def written(tmp_path: Path, *objects: PathObject) -> list[dict[str, Any]]:
    path = tmp_path / "out.geojson"
    write_geojson(path, objects, dialect="0.3")
    features: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["features"]
    return features


# --- a reader after QuPath 0.3's, checked against what 0.3.2 made of the acceptance table ----------


def as_read_by_0_3(feature: dict[str, Any]) -> dict[str, Any]:
    properties = feature.get("properties", {})
    kind = LEGACY_IDS.get(str(feature.get("id")), "annotation")
    kind = properties.get("object_type", properties.get("type", kind))
    measurements = properties.get("measurements", [])
    names, color = class_read_by_0_3(properties.get("classification", {}))
    return {
        "type": kind if kind in TYPES_0_3 else "annotation",
        "class": names,
        "class color": color,
        "name": None if "name" not in properties else str(properties["name"]),
        "measurements": {one["name"]: one["value"] for one in measurements if isinstance(measurements, list)},
    }


def class_read_by_0_3(value: dict[str, Any]) -> tuple[tuple[str, ...], tuple[int, ...] | None]:
    names = class_read_by_0_3(value["parentClass"])[0] if "parentClass" in value else ()
    packed = value.get("colorRGB")
    color = None if packed is None else tuple((packed & 0xFFFFFF).to_bytes(3, "big"))
    return ((*names, value["name"]) if "name" in value else ()), color


def account_of_0_3(text: str) -> dict[str, Any]:
    """QuPath's account of what it read, such as `Detection/RectangleROI class=Tumor[200, 0, 0]`."""
    path_class = re.search(r"class=(.*?)\[(.*?)\]", text)
    name = re.search(r" name=(.*)$", text)
    numbers = re.search(r"ml=\{(.*)\}", text)
    pairs = [pair.split(":") for pair in numbers[1].split(",")] if numbers else []
    return {
        "type": text.split("/", maxsplit=1)[0].lower(),
        "class": (path_class[1],) if path_class else (),
        "class color": tuple(map(int, path_class[2].split(","))) if path_class else None,
        "name": name[1] if name else None,
        "measurements": {key: float(value) for key, value in pairs},
    }


def test_the_reader_of_these_tests_reads_as_qupath_0_3_did(shared: Path) -> None:
    cases = json.loads((shared / "qupath" / "geojson-acceptance.json").read_text(encoding="utf-8"))["cases"]
    checked = 0
    for case in cases:
        account, value = case["result"]["0.3.2"], case["input"]
        if account.startswith(("EXC", "EMPTY")) or " | " in account or not isinstance(value, dict):
            continue
        feature = value.get("features", [value])[0] if "features" in value else value
        ours, theirs = as_read_by_0_3(feature), account_of_0_3(account)
        if ours["class color"] is None:  # then QuPath made one up
            theirs["class color"] = None
        assert ours == theirs, case["case"]
        checked += 1
    assert checked > 35


# --- what is written for 0.3 ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "name_0_3"),
    [(kind, kind.value) for kind in ObjectType if kind.value in TYPES_0_3]
    + [(ObjectType.TMA_CORE, "tma_core")],
)
def test_qupath_0_3_gets_the_type_class_name_and_measurements(
    tmp_path: Path, kind: ObjectType, name_0_3: str
) -> None:
    (feature,) = written(
        tmp_path,
        make(
            box(10, 20, 40, 60),
            kind,
            name="Größe 组织",
            path_class=PathClass(("AI", "Tumor", "äöü"), (255, 90, 0)),
            measurements={"score": 0.875, "m µ": -1.0},
            locked=True,
        ),
    )
    assert as_read_by_0_3(feature) == {
        "type": name_0_3,
        "class": ("AI", "Tumor", "äöü"),
        "class color": (255, 90, 0),
        "name": "Größe 组织",
        "measurements": {"score": 0.875, "m µ": -1.0},
    }
    assert feature["properties"]["isLocked"] is True
    assert feature.keys() == {"type", "geometry", "properties"}
    assert shapely.geometry.shape(feature["geometry"]).equals(box(10, 20, 40, 60))


def test_what_qupath_0_3_throws_at_is_not_written(tmp_path: Path) -> None:
    (feature,) = written(tmp_path, make(box(0, 0, 1, 1)))
    assert feature["properties"] == {"object_type": "annotation"}


def test_every_class_above_a_derived_one_has_a_colour(tmp_path: Path) -> None:
    (feature,) = written(tmp_path, make(box(0, 0, 1, 1), path_class=PathClass(("AI", "Tumor"))))
    value = feature["properties"]["classification"]
    for part in (value, value["parentClass"]):
        assert -(1 << 24) <= part["colorRGB"] < 0  # opaque, as Java's int
    assert class_read_by_0_3(value)[1] == default_color(PathClass(("AI", "Tumor")))
    assert class_read_by_0_3(value["parentClass"])[1] == default_color(PathClass(("AI",)))


def test_children_follow_their_parent_because_qupath_0_3_reads_none(tmp_path: Path) -> None:
    grandchild = make(box(2, 2, 3, 3), ObjectType.CELL, nucleus_roi=box(2.25, 2.25, 2.5, 2.5))
    child = make(box(1, 1, 5, 5), ObjectType.DETECTION, children=(grandchild,))
    features = written(tmp_path, make(box(0, 0, 9, 9), children=(child,)), make(Point(1, 2)))
    read = [as_read_by_0_3(feature)["type"] for feature in features]
    assert read == ["annotation", "detection", "cell", "annotation"]
    assert all("childObjects" not in feature["properties"] for feature in features)
    assert shapely.geometry.shape(features[2]["nucleusGeometry"]).equals(box(2.25, 2.25, 2.5, 2.5))


def test_an_object_that_cannot_be_written_for_0_3_is_named(tmp_path: Path) -> None:
    bad = make(box(0, 0, 1, 1), measurements={"score": float("nan")})
    with pytest.raises(GeoJsonError, match="score"):
        written(tmp_path, make(box(0, 0, 9, 9), children=(bad,)))
    assert [*tmp_path.iterdir()] == []


def varied() -> list[PathObject]:
    oval, oval_area = ellipse((100, 100, 300, 200))
    return [
        make(
            Polygon([(10, 10), (200.12, 20.46), (150, 180), (10, 170)], [[(50, 50), (60, 50), (60, 60)]]),
            name="Größe",
            path_class=PathClass(("AI", "Tumor"), (255, 90, 0)),
            measurements={"score": 0.5},
            color=(1, 2, 3),
        ),
        make(MultiPolygon([box(0, 50, 10, 60), box(30, 50, 40, 60)]), ObjectType.DETECTION, locked=True),
        make(oval, roi_kind=RoiKind.ELLIPSE, area_px=oval_area, path_class=PathClass(("Stroma",))),
        make(Point(300, 300)),
    ]


def test_our_reader_takes_the_0_3_dialect_too(tmp_path: Path) -> None:
    objects = varied()
    write_geojson(tmp_path / "a.geojson", objects, dialect="0.3")
    read = read_geojson(tmp_path / "a.geojson")
    assert read.skipped == ()
    for item, back in zip(objects, read.objects, strict=True):
        assert (back.type, back.roi_kind, back.name) == (item.type, item.roi_kind, item.name)
        assert str(back.path_class) == str(item.path_class)
        assert (back.measurements, back.color, back.locked) == (item.measurements, item.color, item.locked)
        assert back.area_px == pytest.approx(item.area_px, rel=1e-4)


@pytest.mark.qupath
def test_later_versions_of_qupath_take_the_0_3_dialect_too(tmp_path: Path) -> None:
    objects = varied()
    project = project_with(tmp_path)
    write_geojson(project.parent / "annotations" / "1 case_ 1.geojson", objects, dialect="0.3")
    run(project, script("import_annotations"))
    seen = {(item["type"], item.get("path_class"), round(item["area"], 1)) for item in describe(project)}
    assert seen == {
        (
            f"Path{item.type.capitalize()}Object",
            item.path_class and str(item.path_class),
            round(item.area_px, 1),
        )
        for item in objects
    }


# --- what it costs ----------------------------------------------------------------------------


def regions(count: int) -> Iterator[PathObject]:
    for number in range(count):
        roi = Point(50.123 * number, 7).buffer(30, quad_segs=3)
        yield make(
            roi,
            ObjectType.DETECTION,
            id=UUID(int=number),
            path_class=PathClass(("AI", "Tumor"), (255, 90, 0)),
            measurements={"score": 0.5},
        )


@pytest.mark.parametrize("dialect", ["0.4", "0.3"])
def test_memory_does_not_grow_with_the_number_of_objects(tmp_path: Path, dialect: Dialect) -> None:
    path = tmp_path / "many.geojson"
    write_geojson(path, regions(10), dialect=dialect)  # fill the libraries' caches first
    peaks = []
    for count in (200, 2000):
        tracemalloc.start()
        try:
            write_geojson(path, regions(count), dialect=dialect)
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    assert path.stat().st_size > 500_000
    assert peaks[1] < peaks[0] + 50_000


@pytest.mark.parametrize("dialect", ["0.4", "0.3"])
def test_no_coordinate_has_more_decimals_than_qupath_keeps(tmp_path: Path, dialect: Dialect) -> None:
    path = tmp_path / "a.geojson"
    broken = Polygon([(0.1234, 0.1), (1000.777, 900.3333), (1000.111, 0.2), (0.5555, 700.1)])
    write_geojson(path, [*regions(50), make(broken)], dialect=dialect)
    geometries = re.findall(r'"geometry": (.*?)\}', path.read_text(encoding="utf-8"))
    assert len(geometries) == 51
    assert not any(re.search(r"\.\d{3}", text) for text in geometries)
