"""Writes Java object streams as Java would, for tests that must run without a QuPath project at hand.

Written from the specification, apart from the reader: every class description and string in full, no
back references unless asked for.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence

NULL = b"\x70"
END = b"\x78"
Fields = Sequence[tuple[str, str, bytes]]
"""(type code or signature, name, value in bytes), primitives first."""


def utf(text: str) -> bytes:
    encoded = text.encode()
    return struct.pack(">H", len(encoded)) + encoded


def string(text: str) -> bytes:
    return b"\x74" + utf(text)


def block(data: bytes) -> bytes:
    return b"\x77" + bytes([len(data)]) + data


def class_desc(name: str, flags: int, fields: Sequence[tuple[str, str]] = (), parent: bytes = NULL) -> bytes:
    described = b""
    for kind, field in fields:
        described += kind[:1].encode() + utf(field) + (string(kind) if len(kind) > 1 else b"")
    head = b"\x72" + utf(name) + struct.pack(">qBH", 1, flags, len(fields))
    return head + described + END + parent


def serializable(name: str, fields: Fields = (), own: bytes | None = None, parent: bytes = NULL) -> bytes:
    """An object with named fields; `own` is what its writeObject added."""
    desc = class_desc(name, 2 if own is None else 3, [(kind, field) for kind, field, _ in fields], parent)
    values = b"".join(value for _, _, value in fields)
    return b"\x73" + desc + values + (b"" if own is None else own + END)


def external(name: str, contents: bytes, parent: bytes = NULL) -> bytes:
    return b"\x73" + class_desc(name, 12, parent=parent) + contents + END


def enum(name: str, constant: str) -> bytes:
    return b"\x7e" + class_desc(name, 18, parent=class_desc("java.lang.Enum", 18)) + string(constant)


def boxed(kind: str, code: str, value: bytes) -> bytes:
    return serializable(f"java.lang.{kind}", [(code, "value", value)])


def objects_array(values: Sequence[bytes]) -> bytes:
    desc = class_desc("[Ljava.lang.Object;", 2)
    return b"\x75" + desc + struct.pack(">i", len(values)) + b"".join(values)


def numbers(code: str, values: Sequence[float]) -> bytes:
    form = {"F": "f", "D": "d", "B": "B"}[code]
    return b"\x75" + class_desc("[" + code, 2) + struct.pack(f">i{len(values)}{form}", len(values), *values)


def bounded_roi(kind: str, x: float, y: float, x2: float, y2: float) -> bytes:
    """Rectangle, ellipse or line."""
    values = {"x": x, "x2": x2, "y": y, "y2": y2}
    fields = [("I", axis, struct.pack(">i", -1)) for axis in "ctz"]
    fields += [("D", name, struct.pack(">d", value)) for name, value in values.items()]
    return serializable(
        f"qupath.lib.roi.{kind}$SerializationProxy", [*fields, ("Ljava/lang/String;", "name", NULL)]
    )


def vertices_roi(kind: str, points: Sequence[tuple[float, float]]) -> bytes:
    """Polygon, polyline or points."""
    fields = [("[F", axis, numbers("F", [point[i] for point in points])) for i, axis in enumerate("xy")]
    return serializable(f"qupath.lib.roi.{kind}$SerializationProxy", fields)


def geometry_roi(wkb: bytes) -> bytes:
    return serializable(
        "qupath.lib.roi.GeometryROI$WKBSerializationProxy", [("[B", "wkb", numbers("B", list(wkb)))]
    )


def path_class(name: str | None, argb: int = -3670016, parent: bytes = NULL) -> bytes:
    return serializable(
        "qupath.lib.objects.classes.PathClass",
        [
            ("Ljava/lang/Integer;", "colorRGB", boxed("Integer", "I", struct.pack(">i", argb))),
            ("Ljava/lang/String;", "name", NULL if name is None else string(name)),
            ("Lqupath/lib/objects/classes/PathClass;", "parentClass", parent),
        ],
    )


def metadata(values: dict[str, str]) -> bytes:
    one = boxed("Integer", "I", struct.pack(">i", 1))
    arrays = objects_array([*map(string, values)]) + objects_array([*map(string, values.values())])
    return external("qupath.lib.objects.MetadataMap", one + arrays)


def path_object(
    kind: str,
    *,
    roi: bytes | None,
    name: bytes = NULL,
    about: bytes = b"",
    measurements: bytes = NULL,
    children: Sequence[bytes] = (),
    locked: bool = False,
    classified: bytes = NULL,
    tail: bytes = b"",
) -> bytes:
    """As PathObject.writeExternal and its subclasses; the root has no ROI."""
    contents = (
        name + NULL + about + measurements + block(struct.pack(">i", len(children))) + b"".join(children)
    )
    if roi is not None:
        flag = boxed("Boolean", "Z", bytes([locked]))
        contents += flag + classified + roi + block(struct.pack(">d", float("nan"))) + tail
    return external(f"qupath.lib.objects.{kind}", contents)


def qpdata(children: Sequence[bytes], *, version: str = "0.5.1", end: bytes | None = None) -> bytes:
    server = json.dumps({"dataVersion": 3, "qupathVersion": version})
    hierarchy = serializable(
        "qupath.lib.objects.hierarchy.PathObjectHierarchy",
        [
            (
                "Lqupath/lib/objects/PathObject;",
                "rootObject",
                path_object("PathRootObject", roi=None, children=children),
            ),
            ("Lqupath/lib/objects/hierarchy/TMAGrid;", "tmaGrid", NULL),
        ],
    )
    return (
        b"\xac\xed\x00\x05"
        + block(utf("Data file version 3"))
        + string(server)
        + enum("qupath.lib.images.ImageData$ImageType", "BRIGHTFIELD_H_E")
        + NULL
        + hierarchy
        + (string("EOF") if end is None else end)
    )
