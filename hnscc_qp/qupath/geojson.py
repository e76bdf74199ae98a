"""Objects ↔ QuPath's GeoJSON: strict when writing, tolerant and explicit when reading.

What is written is what QuPath 0.4 to 0.7 all take in without loss (or, if asked for, QuPath 0.3). What
is read follows QuPath 0.6 and 0.7, older spellings included; a feature that can't be used is named,
the others are kept. Image planes (z, t) and whether a TMA core is missing are not kept.
"""

from __future__ import annotations

import gzip
import io
import json
import math
import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal
from uuid import UUID

import geojson
import shapely
from shapely.geometry.base import BaseGeometry

from hnscc_qp.errors import GeoJsonError, TangledOutlineError
from hnscc_qp.files import atomic_path
from hnscc_qp.qupath.objects import RGB, ObjectType, PathClass, PathObject, RoiKind, walk
from hnscc_qp.qupath.shapes import GRID_PX, ellipse, roi_kind, settle

Dialect = Literal["0.4", "0.3"]
"""The oldest QuPath that is to read a file: 0.4 and all later ones, or 0.3."""

_TYPES = {kind.value: kind for kind in ObjectType} | {"tma_core": ObjectType.TMA_CORE}
_OLD_TYPES = {  # QuPath 0.2 wrote the type as the feature's id
    "PathAnnotationObject": ObjectType.ANNOTATION,
    "PathDetectionObject": ObjectType.DETECTION,
    "PathTileObject": ObjectType.TILE,
    "PathCellObject": ObjectType.CELL,
    "TMACoreObject": ObjectType.TMA_CORE,
    "PathRootObject": ObjectType.ROOT,
}
_GEOMETRIES = frozenset(
    ("Point", "MultiPoint", "LineString", "MultiLineString", "Polygon", "MultiPolygon", "GeometryCollection")
)
_TOP_LEVEL = _GEOMETRIES | {"Feature", "FeatureCollection"}


class _UnusableError(ValueError):
    """Why a feature or an object can't be used; its message becomes part of a line for the user."""


@dataclass(frozen=True, slots=True)
class GeoJsonRead:
    """What a file held."""

    objects: tuple[PathObject, ...]
    skipped: tuple[str, ...]
    """What was left out: where in the file, and why."""


def default_color(path_class: PathClass) -> RGB:
    """The class's colour, or one that depends on nothing but its name (QuPath demands a colour)."""
    if path_class.color is not None:
        return path_class.color
    number = zlib.crc32(str(path_class).encode())
    return (number >> 16) & 0xFF, (number >> 8) & 0xFF, number & 0xFF


def pack_rgb(color: RGB) -> int:
    """A colour as Java's int: opaque ARGB, in two's complement. `qpdata.unpack_rgb` undoes it."""
    red, green, blue = color
    return (0xFF << 24 | red << 16 | green << 8 | blue) - (1 << 32)


def sidecar_name(entry_id: str, image_name: str) -> str:
    """File name `<entry id> <image name>.geojson`, safe on every system; the id alone identifies it."""
    safe = re.sub(r'[\x00-\x1f\x7f<>:"/\\|?*]', "_", image_name)[:80].rstrip(" .")
    return f"{entry_id} {safe}.geojson"


# --- writing ---------------------------------------------------------------------------------


def write_geojson(
    path: Path,
    objects: Iterable[PathObject],
    *,
    foreign: Mapping[str, Any] | None = None,
    dialect: Dialect = "0.4",
) -> None:
    """Write a FeatureCollection that QuPath 0.4 to 0.7 import alike, or QuPath 0.3.

    Shapes are rounded to 0.01 px, then repaired; parts that vanish by it are dropped. Detections
    keep their metadata in QuPath from 0.6 on only. Objects are written one by one, so `objects`
    may be a generator and memory does not grow with their number.

    Args:
        path: the file; a former one is replaced once all is written.
        objects: top-level objects; children go as `childObjects`.
        foreign: more members for the collection itself; QuPath ignores them.
        dialect: "0.3" for QuPath 0.3, which knows no ids and no children: ids are left out, and
            children follow their parent as objects of their own.

    Raises:
        GeoJsonError: an object can't be written without loss; nothing is replaced then.
    """
    with atomic_path(path) as partial, partial.open("wb") as stream:
        stream.writelines(_encode(objects, name=path.name, foreign=foreign, dialect=dialect))


def encode_geojson(
    objects: Iterable[PathObject], *, name: str, foreign: Mapping[str, Any] | None = None
) -> bytes:
    """Encode what `write_geojson` would write to a file of that name."""
    return b"".join(_encode(objects, name=name, foreign=foreign, dialect="0.4"))


def _encode(
    objects: Iterable[PathObject], *, name: str, foreign: Mapping[str, Any] | None, dialect: Dialect
) -> Iterator[bytes]:
    head = json.dumps({"type": "FeatureCollection", **(foreign or {})}, ensure_ascii=False, allow_nan=False)
    yield (head[:-1] + ', "features": [').encode()
    separator = "\n"
    for number, item in enumerate(objects):
        try:
            for feature in (_feature(item),) if dialect == "0.4" else _features_0_3(item):
                yield (separator + geojson.dumps(feature, ensure_ascii=False)).encode()
                separator = ",\n"
        except ValueError as error:  # _UnusableError, or text that is not Unicode
            title = f"{item.type} {number + 1} ({item.path_class or 'unclassified'}, id {item.id})"
            raise GeoJsonError(
                f"{name} was not written: {title}: {error}; mend or leave out that object"
            ) from error
    yield b"\n]}\n"


def _feature(item: PathObject) -> geojson.Feature:
    if item.type is ObjectType.ROOT:
        raise _UnusableError("it is the root, which has no shape")
    properties: dict[str, Any] = {"objectType": item.type.value}
    if item.name is not None:
        properties["name"] = item.name
    if item.color is not None:
        properties["color"] = list(item.color)
    if item.path_class is not None:
        properties["classification"] = _classification(item.path_class)
    if item.locked:
        properties["isLocked"] = True
    if item.measurements:
        properties["measurements"] = _finite(item.measurements)
    if item.metadata:
        properties["metadata"] = dict(item.metadata)
    if item.children:
        properties["childObjects"] = [_feature(child) for child in item.children]
    nucleus = {} if item.nucleus_roi is None else {"nucleusGeometry": _geometry(item.nucleus_roi)}
    return geojson.Feature(
        id=None if item.id is None else str(item.id),
        geometry=_geometry(item.roi, is_ellipse=item.roi_kind is RoiKind.ELLIPSE),
        properties=properties,
        **nucleus,
    )


def _features_0_3(item: PathObject) -> Iterator[geojson.Feature]:
    """The object and all below it, spelled as QuPath 0.3 does."""
    for _, one in walk([item]):
        feature = _feature(replace(one, id=None, children=()))
        properties = feature["properties"]
        del properties["objectType"]
        properties["object_type"] = "tma_core" if one.type is ObjectType.TMA_CORE else one.type.value
        if one.path_class is not None:
            properties["classification"] = _classification_0_3(one.path_class)
        if one.measurements:
            named = properties["measurements"]
            properties["measurements"] = [{"name": name, "value": named[name]} for name in named]
        yield feature


def _geometry(roi: BaseGeometry, *, is_ellipse: bool = False) -> dict[str, Any]:
    settled = settle(roi)
    if settled.is_empty:
        raise _UnusableError(f"its shape vanishes when rounded to {GRID_PX} px")
    # QuPath before 0.6 drops corners on a rectangle's sides, later ones keep them: drop them for all.
    box = shapely.envelope(settled)
    if settled.geom_type == "Polygon" and math.isclose(settled.area, box.area) and settled.equals(box):
        settled = box
    # QuPath takes the ellipse in the bounding box of a polygon so marked.
    mark = {"isEllipse": True} if is_ellipse else {}
    return dict(shapely.geometry.mapping(settled)) | mark


def _classification(path_class: PathClass) -> dict[str, Any]:
    names = path_class.names
    if not names or any(not name or name != name.strip() or re.search(r"[:\r\n]", name) for name in names):
        raise _UnusableError(f"QuPath can't hold a class named {names!r}")
    named: dict[str, Any] = {"name": names[0]} if len(names) == 1 else {"names": list(names)}
    return named | {"color": list(default_color(path_class))}


def _classification_0_3(path_class: PathClass) -> dict[str, Any]:
    *base, name = path_class.names
    parent = {"parentClass": _classification_0_3(PathClass(tuple(base)))} if base else {}
    return parent | {"name": name, "colorRGB": pack_rgb(default_color(path_class))}


def _finite(measurements: Mapping[str, float]) -> dict[str, float]:
    for name, value in measurements.items():
        if not math.isfinite(value):
            raise _UnusableError(f"measurement {name!r} is {value}")
    return {name: float(value) for name, value in measurements.items()}


# --- reading ---------------------------------------------------------------------------------


def read_geojson(path: Path) -> GeoJsonRead:
    """Read a FeatureCollection, features, or bare geometries, as JSON, gzipped or zipped.

    Beyond what QuPath takes in: unclosed rings are closed, polygons that cross themselves are
    split, a class may lack a colour. Shapes are settled on QuPath's grid of 0.01 px. What hangs
    below a feature that can't be used takes its place.

    Raises:
        GeoJsonError: the file can't be read or is not GeoJSON.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise GeoJsonError(f"{path} can't be read: {error.strerror or error}; check the file") from error
    return decode_geojson(data, path)


def decode_geojson(data: bytes, path: Path) -> GeoJsonRead:
    """Read the bytes of a file as `read_geojson` does; `path` is for its messages.

    Raises:
        GeoJsonError: they are not GeoJSON.
    """
    reader = _Reader()
    try:
        values = [json.loads(text) for text in _texts(data)]
    except (ValueError, EOFError, RecursionError, zipfile.BadZipFile, zlib.error) as error:
        raise GeoJsonError(f"{path} is not GeoJSON ({error}); export it from QuPath again") from error
    objects: list[PathObject] = []
    for value in values:
        if not isinstance(value, list) and _type_of(value) not in {
            "Feature",
            "FeatureCollection",
            *_GEOMETRIES,
        }:
            raise GeoJsonError(f"{path} is JSON, but not GeoJSON; export objects from QuPath as GeoJSON")
        objects += reader.read(value, "")
    return GeoJsonRead(tuple(objects), tuple(reader.skipped))


def _texts(data: bytes) -> list[bytes]:
    """The JSON texts in a file's bytes; `json.loads` tells their encoding and drops a byte order mark."""
    if data.startswith(b"\x1f\x8b"):
        return [gzip.decompress(data)]
    if data.startswith(b"PK"):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = [name for name in archive.namelist() if name.lower().endswith((".json", ".geojson"))]
            return [archive.read(name) for name in names]
    return [data]


def _type_of(value: Any) -> Any:
    return value.get("type") if isinstance(value, dict) else None


@dataclass(slots=True)
class _Reader:
    """Walks through GeoJSON and remembers what it had to leave out."""

    skipped: list[str] = field(default_factory=list)

    def read(self, value: Any, where: str) -> list[PathObject]:
        """The objects in a value of any of GeoJSON's types; `where` is its place in the file."""
        if isinstance(value, list):
            return [item for i, one in enumerate(value) for item in self.read(one, f"{where}[{i}]")]
        kind = _type_of(value)
        if kind == "FeatureCollection":
            # QuPath does not look at the type of a collection's features.
            return self._features(value.get("features"), f"{where}features")
        if kind == "Feature":
            return self._feature(value, where or "feature")
        if kind in _GEOMETRIES:
            return self._feature({"geometry": value}, where or "geometry")
        self.skipped.append(f"{where}: neither a feature nor a geometry")
        return []

    def _features(self, values: Any, where: str) -> list[PathObject]:
        if not isinstance(values, list):
            if values is not None:
                self.skipped.append(f"{where}: not a list")
            return []
        return [item for i, one in enumerate(values) for item in self._feature(one, f"{where}[{i}]")]

    def _feature(self, value: Any, where: str) -> list[PathObject]:
        if not isinstance(value, dict):
            self.skipped.append(f"{where}: not a feature")
            return []
        properties = value.get("properties")
        properties = properties if isinstance(properties, dict) else {}
        children_key = "childObjects" if "childObjects" in properties else "children"
        children = self._features(properties.get(children_key), f"{where}.{children_key}")
        kind = _object_type(value.get("id"), properties)
        if kind is ObjectType.ROOT:
            return children
        try:
            return [self._object(kind, value, properties, tuple(children), where)]
        except _UnusableError as error:
            self.skipped.append(f"{where}: {error}")
            return children

    def _object(
        self,
        kind: ObjectType,
        value: Mapping[str, Any],
        properties: Mapping[str, Any],
        children: tuple[PathObject, ...],
        where: str,
    ) -> PathObject:
        roi = _read_geometry(value.get("geometry"))
        shape, area_px = roi_kind(roi), roi.area
        # QuPath shows a TMA core as the ellipse in its bounds.
        if kind is ObjectType.TMA_CORE or value["geometry"].get("isEllipse") is True:
            shape, (roi, area_px) = RoiKind.ELLIPSE, ellipse(roi.bounds)
        nucleus = value.get("nucleusGeometry") if kind is ObjectType.CELL else None
        return PathObject(
            type=kind,
            roi=roi,
            roi_kind=shape,
            area_px=area_px,
            id=_read_id(value.get("id")),
            name=_text(properties.get("name")),
            path_class=_read_class(properties.get("classification")),
            locked=str(properties.get("isLocked")).lower() == "true",
            measurements=self._measurements(properties.get("measurements"), where),
            metadata=_read_metadata(properties.get("metadata")),
            nucleus_roi=None if nucleus is None else _read_geometry(nucleus),
            color=_read_color(properties.get("color")),
            children=children,
        )

    def _measurements(self, value: Any, where: str) -> dict[str, float]:
        """`{name: number}`, or `[{name, value}]` as before QuPath 0.4; numbers may be text such as `NaN`."""
        if isinstance(value, list):
            value = {str(one.get("name")): one.get("value") for one in value if isinstance(one, dict)}
        found: dict[str, float] = {}
        for name, number in (value if isinstance(value, dict) else {}).items():
            try:
                if isinstance(number, bool):
                    raise ValueError
                found[name] = float(number)
            except (TypeError, ValueError, OverflowError):
                self.skipped.append(f"{where}: measurement {name!r} is {number!r}, not a number")
        return found


def _object_type(identifier: Any, properties: Mapping[str, Any]) -> ObjectType:
    for key in ("objectType", "object_type", "type"):
        if properties.get(key) is not None:
            name = str(properties[key])
            # QuPath makes an annotation of a type that it does not know.
            return _TYPES.get(name) or _OLD_TYPES.get(name) or ObjectType.ANNOTATION
    return _OLD_TYPES.get(str(identifier), ObjectType.ANNOTATION)


def _read_id(value: Any) -> UUID | None:
    try:
        return UUID(value) if isinstance(value, str) and len(value) == 36 else None
    except ValueError:
        return None


def _read_geometry(value: Any) -> BaseGeometry:
    if _type_of(value) not in _GEOMETRIES:
        raise _UnusableError("no geometry")
    try:
        geometry = settle(shapely.geometry.shape(value))
    except TangledOutlineError as error:
        raise _UnusableError(str(error)) from error
    except Exception as error:
        raise _UnusableError(f"its geometry can't be read ({error})") from error
    if geometry.is_empty:
        raise _UnusableError(f"its shape is empty or vanishes when rounded to {GRID_PX} px")
    return geometry


def _read_class(value: Any) -> PathClass | None:
    """Every spelling since QuPath 0.2; a class that can't be told makes the feature unusable."""
    if value is None or value in ("", {}):
        return None
    if isinstance(value, str):
        return PathClass(_split_names(value))
    if not isinstance(value, dict):
        raise _UnusableError(f"its classification is {value!r}")
    if value.get("parentClass"):  # before 0.4
        parent = _read_class(value["parentClass"])
        names = (*(parent.names if parent else ()), *_split_names(value.get("name")))
    elif isinstance(value.get("names"), list) and value.get("name") is None:
        names = tuple(name for one in value["names"] for name in _split_names(one))
    elif value.get("name") is None:
        return None
    else:
        names = _split_names(value["name"])
    color = value["color"] if value.get("color") is not None else value.get("colorRGB")
    return PathClass(names, _read_color(color)) if names else None


def _split_names(value: Any) -> tuple[str, ...]:
    names = tuple(name.strip() for name in value.split(":")) if isinstance(value, str) else ()
    if not names or not all(names):
        raise _UnusableError(f"its class is named {value!r}")
    return names


def _read_color(value: Any) -> RGB | None:
    """`[r, g, b]`, `[r, g, b, alpha]`, a packed integer or `#rrggbb`; None for anything else."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, str) and re.fullmatch("#[0-9a-fA-F]{6}", value):
        value = int(value[1:], 16)
    if isinstance(value, int) and not isinstance(value, bool):
        return (value >> 16) & 0xFF, (value >> 8) & 0xFF, value & 0xFF
    if isinstance(value, list) and len(value) in (3, 4) and all(_is_byte(part) for part in value):
        return int(value[0]), int(value[1]), int(value[2])
    return None


def _is_byte(value: Any) -> bool:
    return isinstance(value, int | float) and 0 <= value <= 255


def _read_metadata(value: Any) -> dict[str, str]:
    texts = {key: _text(one) for key, one in value.items()} if isinstance(value, dict) else {}
    return {key: text for key, text in texts.items() if text is not None}


def _text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value) if isinstance(value, bool | int | float) else None
