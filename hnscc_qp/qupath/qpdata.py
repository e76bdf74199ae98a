"""QuPath's `data.qpdata` → objects. Read only: nothing here can write the file.

What QuPath 0.3 to 0.7 write is described by its `PathIO` and by the `writeExternal` methods of
`qupath.lib.objects` and the serialization proxies of `qupath.lib.roi`; the names below are theirs.
A class that is not listed here is an error that names it, never a guess.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

import numpy as np

from hnscc_qp.errors import ObjectDataError, TangledOutlineError
from hnscc_qp.qupath.javastream import JavaEnum, JavaObject, JavaStream, StreamError
from hnscc_qp.qupath.objects import RGB, ObjectType, PathClass, PathObject
from hnscc_qp.qupath.rois import Roi, is_polygon, read_polygons, read_roi

T = TypeVar("T")

IMAGE_TYPES = {
    "BRIGHTFIELD_H_DAB": "Brightfield (H-DAB)",
    "BRIGHTFIELD_H_E": "Brightfield (H&E)",
    "BRIGHTFIELD_OTHER": "Brightfield (other)",
    "FLUORESCENCE": "Fluorescence",
    "OTHER": "Other",
    "UNSET": "Not set",
}
"""QuPath's words for its `ImageData.ImageType`."""

_OBJECT_TYPES = {
    "qupath.lib.objects.PathRootObject": ObjectType.ROOT,
    "qupath.lib.objects.PathAnnotationObject": ObjectType.ANNOTATION,
    "qupath.lib.objects.PathDetectionObject": ObjectType.DETECTION,
    "qupath.lib.objects.PathTileObject": ObjectType.TILE,
    "qupath.lib.objects.PathCellObject": ObjectType.CELL,
    "qupath.lib.objects.TMACoreObject": ObjectType.TMA_CORE,
}
_ID_KEY = "Object ID"
"""Where QuPath 0.4 and later keep an object's id, so that older ones can still read the file."""

_NUMERIC_LISTS = (
    "qupath.lib.measurements.NumericMeasurementList$DoubleList",
    "qupath.lib.measurements.NumericMeasurementList$FloatList",
)

_INT = struct.Struct(">i")
_DOUBLE = struct.Struct(">d")


@dataclass(frozen=True, slots=True)
class QpData:
    """What we use of one `data.qpdata`."""

    qupath_version: str | None
    """Version that wrote the file."""
    image_type: str | None
    """QuPath's words, such as `Brightfield (H&E)`."""
    objects: tuple[PathObject, ...]
    """Top-level objects, in the file's order."""
    properties: Mapping[str, str]
    """What QuPath and scripts noted about the image, where it is text."""


def read_qpdata(path: Path, *, image: str) -> QpData:
    """Read the objects of one image.

    Args:
        path: the `data.qpdata`.
        image: the image's name, for messages.

    Raises:
        ObjectDataError: the file is missing, damaged, truncated, or holds a class that we do
            not know, or an outline that crosses itself all over.
    """
    try:
        # numpy need not warn of what is no number: in a ROI it is an error, in a measurement allowed.
        with np.errstate(all="ignore"):
            return _read(JavaStream(path.read_bytes()))
    except TangledOutlineError as error:
        raise ObjectDataError(f"{image}: {error} ({path})") from error
    except StreamError as error:
        raise _unreadable(path, image, f"{error.reason} (byte {error.offset})") from error
    except OSError as error:
        raise _unreadable(path, image, error.strerror or "unknown reason") from error


def read_image_type(path: Path, *, image: str) -> str | None:
    """The image type alone, from the head of the file.

    Raises:
        ObjectDataError: as `read_qpdata`.
    """
    try:
        for item in JavaStream(path.read_bytes()):
            if isinstance(item, JavaEnum):
                return _image_type(item)
    except StreamError as error:
        raise _unreadable(path, image, f"{error.reason} (byte {error.offset})") from error
    except OSError as error:
        raise _unreadable(path, image, error.strerror or "unknown reason") from error
    return None


def _unreadable(path: Path, image: str, reason: str) -> ObjectDataError:
    # Not "open it in QuPath": QuPath shows such an image without objects, and saves it so.
    backup = path.with_name(path.name + ".bkp")
    copy = f"QuPath's own, {backup.name}" if backup.is_file() else "a copy"
    return ObjectDataError(
        f"{image}: the objects in {path} can't be read: {reason}; restore the file from {copy}"
    )


def _read(stream: JavaStream) -> QpData:
    items = iter(stream)
    head = next(items, None)
    if not (isinstance(head, bytearray) and head[2:].startswith(b"Data file version")):
        raise StreamError("it is not a QuPath data file", 4)
    server = next(items, None)
    if not isinstance(server, str):
        raise StreamError("it does not say which image it belongs to", 4)
    version = _qupath_version(server)
    image_type: str | None = None
    objects: tuple[PathObject, ...] | None = None
    properties: dict[str, str] = {}
    for item in items:
        if item == "EOF":
            break
        if isinstance(item, JavaEnum):
            image_type = _image_type(item)
        elif isinstance(item, JavaObject) and item.class_name.endswith(".PathObjectHierarchy"):
            objects = _Converter(version, stream.objects()).top_level_objects(item)
        elif isinstance(item, JavaObject) and item.class_name == "java.util.HashMap":
            properties = _texts(item)
    else:
        raise StreamError("it ends before QuPath's own end mark, so it is cut short", 0)
    if objects is None:
        raise StreamError("it holds no object hierarchy", 0)
    return QpData(version, image_type, objects, properties)


def _texts(item: JavaObject) -> dict[str, str]:
    values = [value for value in item.contents if not isinstance(value, bytearray)]
    pairs = zip(values[::2], values[1::2], strict=False)
    return {key: value for key, value in pairs if isinstance(key, str) and isinstance(value, str)}


def _image_type(item: JavaEnum) -> str:
    return IMAGE_TYPES.get(item.constant, item.constant)


def _qupath_version(server: str) -> str | None:
    # Before 0.2 this was `Image path: ...` instead of JSON.
    try:
        version = json.loads(server).get("qupathVersion")
    except (ValueError, AttributeError, RecursionError):
        return None
    return version if isinstance(version, str) else None


class _Contents:
    """What an Externalizable object wrote: values in turn, and primitives in the blocks between them."""

    def __init__(self, item: JavaObject) -> None:
        self._owner = item
        self._items = item.contents
        self._next = 0
        self._used = 0
        """Bytes used of the block at `_next`."""

    def value(self) -> Any:
        """The next object, string, array or null."""
        if self._next >= len(self._items) or isinstance(self._items[self._next], bytearray):
            raise StreamError(f"{self._owner.class_name} lacks a value", self._owner.offset)
        self._next += 1
        return self._items[self._next - 1]

    def primitive(self, form: struct.Struct) -> Any:
        """The next number."""
        block = self._items[self._next] if self._next < len(self._items) else None
        if not isinstance(block, bytearray) or len(block) - self._used < form.size:
            raise StreamError(f"{self._owner.class_name} lacks a number", self._owner.offset)
        value = form.unpack_from(block, self._used)[0]
        self._used += form.size
        if self._used == len(block):
            self._next, self._used = self._next + 1, 0
        return value


@dataclass(slots=True)
class _Unfinished:
    """A QuPath object whose children are still being read."""

    type: ObjectType
    contents: _Contents
    offset: int
    name: str | None
    color: RGB | None
    id: UUID | None
    metadata: Mapping[str, str]
    measurements: Mapping[str, float]
    children_left: int
    children: list[PathObject] = field(default_factory=list)


class _Converter:
    """Turns Java values into ours; a Java object that is referred to twice is converted once."""

    def __init__(self, qupath_version: str | None, values: Sequence[JavaObject]) -> None:
        release = re.match(r"(\d+)\.(\d+)", qupath_version or "")
        self._rounds_geometry = release is not None and tuple(map(int, release.groups())) >= (0, 6)
        self._converted: dict[tuple[int, Callable[[Any], Any]], Any] = {}
        self._opened: set[int] = set()
        polygons = [value for value in values if is_polygon(value)]
        self._rois = dict(zip(map(id, polygons), read_polygons(polygons), strict=True))

    def top_level_objects(self, hierarchy: JavaObject) -> tuple[PathObject, ...]:
        """Convert everything below the root, without recursion: annotations may nest deeply."""
        root = hierarchy.field("rootObject", JavaObject)
        branch = [self._open(root)]
        while True:
            item = branch[-1]
            if item.children_left:
                item.children_left -= 1
                branch.append(self._open(item.contents.value()))
            elif len(branch) == 1:
                return tuple(item.children)
            else:
                branch.pop()
                branch[-1].children.append(self._close(item))

    def _open(self, item: Any) -> _Unfinished:
        """Read what PathObject.writeExternal wrote before the children."""
        if not isinstance(item, JavaObject) or item.class_name not in _OBJECT_TYPES:
            raise _unknown(item, "object")
        if id(item) in self._opened:
            raise StreamError("an object has two parents", item.offset)
        self._opened.add(id(item))
        contents = _Contents(item)
        name = _text_or_none(contents.value(), item)
        color = _color(contents.value())
        metadata: Mapping[str, str] = {}
        following = contents.value()
        if isinstance(following, JavaObject) and following.class_name == "qupath.lib.objects.MetadataMap":
            metadata = _metadata(following)
            following = contents.value()
        measurements = self._once(following, self._measurements) if following is not None else {}
        children_left = contents.primitive(_INT)
        if children_left < 0:
            raise StreamError("an object has a negative number of children", item.offset)
        identity = _uuid(metadata.get(_ID_KEY))
        if identity is not None:
            metadata = {key: value for key, value in metadata.items() if key != _ID_KEY}
        kind = _OBJECT_TYPES[item.class_name]
        return _Unfinished(
            kind, contents, item.offset, name, color, identity, metadata, measurements, children_left
        )

    def _close(self, item: _Unfinished) -> PathObject:
        """Read what PathROIObject.writeExternal and its subclasses wrote after the children."""
        contents = item.contents
        locked = False
        following = contents.value()
        if isinstance(following, JavaObject) and following.class_name == "java.lang.Boolean":
            locked = following.field("value", bool)
            following = contents.value()
        path_class = self._once(following, _path_class) if following is not None else None
        roi = contents.value()
        if roi is None:
            raise StreamError(f"a QuPath {item.type.value} has no ROI", item.offset)
        kind, geometry, area_px = self._roi(roi)
        contents.primitive(_DOUBLE)  # the probability of the class
        nucleus = contents.value() if item.type is ObjectType.CELL else None
        return PathObject(
            type=item.type,
            roi=geometry,
            roi_kind=kind,
            area_px=area_px,
            id=item.id,
            name=item.name,
            path_class=path_class,
            locked=locked,
            measurements=item.measurements,
            metadata=item.metadata,
            nucleus_roi=self._roi(nucleus)[1] if nucleus is not None else None,
            color=item.color,
            children=tuple(item.children),
        )

    def _once(self, item: Any, convert: Callable[[Any], T]) -> T:
        # The stream's values outlive the converter, so an id() names one value.
        key = (id(item), convert)
        if key not in self._converted:
            self._converted[key] = convert(item)
        value: T = self._converted[key]
        return value

    def _roi(self, item: Any) -> Roi:
        if id(item) not in self._rois:
            self._rois[id(item)] = read_roi(item, rounds_geometry=self._rounds_geometry)
        return self._rois[id(item)]

    def _measurements(self, item: Any) -> Mapping[str, float]:
        if isinstance(item, JavaObject):
            if item.class_name == "qupath.lib.measurements.DefaultMeasurementList":
                entries = [
                    _as_object(entry, "measurement") for entry in _list(item.field("list", JavaObject))
                ]
                return {entry.field("name", str): entry.field("value", float) for entry in entries}
            if item.class_name in _NUMERIC_LISTS:
                names = self._once(item.field("names", JavaObject), _list)
                values = item.field("values", np.ndarray)
                named = values.dtype.kind == "f" and len(names) <= len(values)
                if not named or not all(isinstance(name, str) for name in names):
                    raise StreamError("the measurements have names without values", item.offset)
                return dict(zip(names, values.tolist(), strict=False))
        raise _unknown(item, "measurements")


def _metadata(item: JavaObject) -> dict[str, str]:
    contents = _Contents(item)
    contents.value()  # the version of the form, always 1
    keys, values = contents.value(), contents.value()
    if not (isinstance(keys, list) and isinstance(values, list) and len(keys) == len(values)):
        raise StreamError("an object's metadata has keys without values", item.offset)
    pairs = zip(keys, values, strict=True)
    return {key: value for key, value in pairs if isinstance(key, str) and isinstance(value, str)}


def _list(item: JavaObject) -> list[Any]:
    """The elements of a Java list, whichever class QuPath happened to keep it in."""
    for _ in range(4):  # wrappers around wrappers; a damaged one may wrap itself
        if item.class_name in ("java.util.ArrayList", "java.util.CollSer"):
            return [value for value in item.contents if not isinstance(value, bytearray)]
        if item.class_name == "java.util.Arrays$ArrayList":
            return item.field("a", list)
        if item.class_name == "java.util.Collections$SingletonList":
            return [item.fields.get("element")]
        if item.class_name == "java.util.Collections$EmptyList":
            return []
        if "list" not in item.fields:  # the wrappers of java.util.Collections have one
            break
        item = item.field("list", JavaObject)
    raise _unknown(item, "list")


def _path_class(item: Any) -> PathClass | None:
    """QuPath's class; None for its nameless "unclassified"."""
    color = _color(_as_object(item, "class").fields.get("colorRGB"))
    names: list[str] = []
    while item is not None:
        part = _as_object(item, "class")
        if part.class_name != "qupath.lib.objects.classes.PathClass":
            raise _unknown(part, "class")
        if len(names) == 100:
            raise StreamError("a class is derived from itself", part.offset)
        name = _text_or_none(part.fields.get("name"), part)
        if name is not None:
            names.insert(0, name)
        item = part.fields.get("parentClass")
    return PathClass(tuple(names), color) if names else None


def _color(item: Any) -> RGB | None:
    """From Java's Integer 0xAARRGGBB; anything else is no colour, as in QuPath."""
    if not (isinstance(item, JavaObject) and item.class_name == "java.lang.Integer"):
        return None
    return unpack_rgb(item.field("value", int))


def unpack_rgb(argb: int) -> RGB:
    """Red, green and blue of QuPath's packed, signed 0xAARRGGBB."""
    return (argb >> 16) & 255, (argb >> 8) & 255, argb & 255


def _uuid(text: str | None) -> UUID | None:
    try:
        return UUID(text) if text else None
    except ValueError:
        return None


def _text_or_none(value: Any, owner: JavaObject) -> str | None:
    if value is not None and not isinstance(value, str):
        raise StreamError(f"the name of a {owner.class_name} is no text", owner.offset)
    return value


def _as_object(item: Any, what: str) -> JavaObject:
    if not isinstance(item, JavaObject):
        raise _unknown(item, what)
    return item


def _unknown(item: Any, what: str) -> StreamError:
    if isinstance(item, JavaObject):
        return StreamError(f"{item.class_name} is no {what} that hnscc-qp knows", item.offset)
    return StreamError(f"there is no {what} where one should be", 0)
