"""A QuPath project read from its files, without Java.

What QuPath's `DefaultProject` itself goes by is read: the image's server, size and calibration from
`project.qpproj` (QuPath calls `server.json` a copy for emergencies, and so it is here: it counts
only where the project has no metadata), objects from `data.qpdata`, classes from `classes.json`.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

from hnscc_qp.errors import (
    GeoJsonError,
    ObjectDataError,
    ProjectError,
    ProjectNotFoundError,
    UnsupportedServerError,
)
from hnscc_qp.files import sha256_file, sha256_json
from hnscc_qp.geometry import Crop, Mpp, PixelSize, Turn, View
from hnscc_qp.qupath.geojson import encode_geojson, read_geojson, sidecar_name
from hnscc_qp.qupath.objects import PathClass, PathObject
from hnscc_qp.qupath.ownership import (
    AI_REVIEW,
    AI_TUMOR,
    MEMORY_PROPERTY,
    WritePlan,
    plan_write,
    remembered_ids,
)
from hnscc_qp.qupath.project import ImageEntry
from hnscc_qp.qupath.qpdata import IMAGE_TYPES, read_image_type, read_qpdata, unpack_rgb
from hnscc_qp.qupath.safewrite import SafeWriter, content_hash
from hnscc_qp.qupath.slidefinder import FileUri, SlideFinder

ANNOTATIONS_FOLDER = "annotations"
"""Beside the `.qpproj`: objects of images that QuPath has not saved yet, in projects made without it."""
DETECTIONS_FOLDER = "ai-detections"
"""Beside the `.qpproj`: what we found, for QuPath to import."""
REVIEW_FOLDER = "ai-review"
"""Beside the `.qpproj`: boxes round what is to be looked at next, for QuPath to import."""
_FOLDERS = {AI_TUMOR.names: DETECTIONS_FOLDER, AI_REVIEW.names: REVIEW_FOLDER}

_NEWEST_KNOWN = (0, 7)
_MICROMETRES = ("\u00b5m", "\u03bcm", "um")
"""Micro sign, Greek mu, and plain."""
_TURNS: dict[str | None, View] = {
    "ROTATE_NONE": (),
    "ROTATE_90": (Turn(1),),
    "ROTATE_180": (Turn(2),),
    "ROTATE_270": (Turn(3),),
}
_READABLE_SERVERS = ("OpenslideServerBuilder", "BioFormatsServerBuilder", "ImageJServerBuilder")

Json = dict[str, Any]


def find_project_file(path: Path) -> Path:
    """The `.qpproj` file that a path means: itself, or the only one in the directory.

    Raises:
        ProjectNotFoundError: nothing is there.
        ProjectError: the directory holds none or several.
    """
    if not path.exists():
        raise ProjectNotFoundError(f"there is no QuPath project at {path}; give its .qpproj file or folder")
    if not path.is_dir():
        return path.absolute()
    found = sorted(path.glob("*.qpproj"))
    if not found:
        raise ProjectError(f"{path} holds no .qpproj file, so it is not a QuPath project; give its folder")
    if len(found) > 1:
        names = ", ".join(file.name for file in found)
        raise ProjectError(f"{path} holds several projects ({names}); give the .qpproj file itself")
    return found[0].absolute()


def sidecar_path(project_dir: Path, folder: str, image: ImageEntry) -> Path:
    """Where GeoJSON about an image lies: `<project>/<folder>/<entry id> <image name>.geojson`."""
    return project_dir / folder / sidecar_name(image.entry_id, image.name)


class EmbeddedProject:
    """The `Project` that needs no QuPath. Files are read when asked for; none in `data/` is ever written."""

    backend = "embedded"

    def __init__(self, path: Path, *, slide_folders: Sequence[Path] = ()) -> None:
        self.path = find_project_file(path)
        self._folder = self.path.parent
        self._writer = SafeWriter(self.path)
        project = _read_json(self.path)
        entries = project.get("images") if project else None
        if project is None or not isinstance(entries, list):
            raise ProjectError(f"{self.path} is not a QuPath project; give a .qpproj file that QuPath saved")
        self.qupath_version = _text(project.get("version"))
        if self.qupath_version is None and "lastID" not in project:
            raise ProjectError(
                f"{self.path} was saved by QuPath 0.1, whose projects differ; open and save it in QuPath 0.6"
            )
        if not entries:
            raise ProjectError(
                f"{self.path} holds no images; add slides to it in QuPath, or start with `hnscc-qp new`"
            )
        self.notes = _version_notes(self.qupath_version)
        self.path_classes = self._read_classes()
        self._finder = SlideFinder(
            stored_project_uri=_text(project.get("uri")), project_dir=self._folder, folders=slide_folders
        )
        self._entries = {_entry_id(entry, self.path): entry for entry in entries}
        if len(self._entries) < len(entries):
            raise ProjectError(f"{self.path} has two images with one entryID; mend it in QuPath")
        self.images = tuple(self._image(entry_id, entry) for entry_id, entry in self._entries.items())

    def objects(self, image: ImageEntry) -> tuple[PathObject, ...]:
        """See `Project.objects`."""
        source = self._objects_file(image)
        if source is None:
            return ()
        if source.suffix == ".qpdata":
            return read_qpdata(source, image=image.name).objects
        try:
            read = read_geojson(source)
        except GeoJsonError as error:
            raise ObjectDataError(f"{image.name}: {error}") from error
        if read.skipped:
            raise ObjectDataError(
                f"{image.name}: {source} holds {len(read.skipped)} objects that can't be used "
                f"({read.skipped[0]}); mend or remove them"
            )
        return read.objects

    def slide_path(self, image: ImageEntry) -> Path:
        """See `Project.slide_path`."""
        if image.unsupported is not None:
            raise UnsupportedServerError(
                f"{image.name} is {image.unsupported}, so its pixels can't be placed exactly; "
                "add the plain slide to the project in QuPath"
            )
        return self._finder.find(image.uri, image=image.name)

    def write_detections(
        self, image: ImageEntry, detections: Sequence[PathObject], *, kind: PathClass = AI_TUMOR
    ) -> Path:
        """See `Project.write_detections`."""
        path = sidecar_path(self._folder, _FOLDERS[kind.names], image)
        about = {"hnscc_qp": {"image": image.name, "entry_id": image.entry_id}}
        # What was deleted in QuPath is left to the import script, which can bring it back.
        held_back = {item.id for item in plan_write(self.objects(image), detections, kind=kind).held_back}
        wanted = [item for item in detections if item.id not in held_back]
        made = encode_geojson(wanted, name=path.name, foreign=about)
        contents: dict[Path, bytes | None] = {path: made}
        # From before the image was renamed in QuPath.
        contents |= {
            other: None for other in path.parent.glob(f"{image.entry_id} *.geojson") if other != path
        }
        read = {file: content_hash(file) for file in contents}
        if len(contents) > 1 or read[path] != hashlib.sha256(made).hexdigest():
            self._writer.replace(contents, image=image.name, read=read)
        return path

    def plan_detections(
        self, image: ImageEntry, detections: Sequence[PathObject], *, kind: PathClass = AI_TUMOR
    ) -> WritePlan:
        """See `Project.plan_detections`: what importing the file in QuPath would come to."""
        source = self._objects_file(image)
        if source is None or source.suffix != ".qpdata":
            return plan_write(self.objects(image), detections, kind=kind)
        data = read_qpdata(source, image=image.name)
        memory = data.properties.get(MEMORY_PROPERTY, "")
        return plan_write(data.objects, detections, memory=memory, kind=kind)

    def fingerprint(self, image: ImageEntry) -> str:
        """See `Project.fingerprint`."""
        source = self._objects_file(image)
        server = self._data(image.entry_id) / "server.json"
        # As text, because QuPath's JSON may hold NaN.
        entry = json.dumps(self._entries[image.entry_id], sort_keys=True)
        try:
            return sha256_json(
                {
                    "entry": entry,
                    "objects": sha256_file(source) if source else None,
                    "server": sha256_file(server) if server.is_file() else None,
                }
            )
        except OSError as error:
            raise ObjectDataError(
                f"{image.name}: {error.filename} can't be read: {error.strerror}"
            ) from error

    def imported_ids(self, image: ImageEntry) -> frozenset[UUID]:
        """See `Project.imported_ids`."""
        source = self._objects_file(image)
        if source is None or source.suffix != ".qpdata":
            return frozenset()
        properties = read_qpdata(source, image=image.name).properties
        return remembered_ids(properties.get(MEMORY_PROPERTY, ""))

    def saved_at(self, image: ImageEntry) -> float | None:
        """See `Project.saved_at`."""
        source = self._objects_file(image)
        try:
            return None if source is None else source.stat().st_mtime
        except OSError:
            return None

    def _data(self, entry_id: str) -> Path:
        return self._folder / "data" / entry_id

    def _objects_file(self, image: ImageEntry) -> Path | None:
        """What holds the image's objects: `data.qpdata`, else GeoJSON in our `annotations` folder."""
        saved = self._data(image.entry_id) / "data.qpdata"
        if image.saved or saved.is_file():
            return saved  # if it is gone, reading it says so
        found = sorted((self._folder / ANNOTATIONS_FOLDER).glob(f"{image.entry_id} *.geojson"))
        if len(found) > 1:
            names = " and ".join(file.name for file in found)
            raise ObjectDataError(f"{image.name}: {names} are about the same image; remove all but one")
        return found[0] if found else None

    def _read_classes(self) -> tuple[PathClass, ...]:
        value = _read_json(self._folder / "classifiers" / "classes.json") or {}
        classes = []
        for item in value.get("pathClasses") or ():
            name = _text(item.get("name")) if isinstance(item, dict) else None
            if name:
                color = item.get("color")
                parts = tuple(part.strip() for part in name.split(":"))
                classes.append(PathClass(parts, unpack_rgb(color) if isinstance(color, int) else None))
        return tuple(classes)

    def _image(self, entry_id: str, entry: Json) -> ImageEntry:
        folder = self._data(entry_id)
        builder = _dict(entry.get("serverBuilder"))
        plain, view, odd = _unwrap(builder)
        server = (_text(plain.get("providerClassName")) or "").rpartition(".")[2]
        uri = _text(plain.get("uri")) or ""
        args = tuple(str(arg) for arg in plain.get("args") or ())
        metadata = _dict(builder.get("metadata")) or _dict(
            (_read_json(folder / "server.json") or {}).get("metadata")
        )
        file = FileUri.parse(uri)
        name = _text(entry.get("imageName")) or (file.name if file else f"image {entry_id}")
        # Any of them is a trace of saving: without data.qpdata, objects were lost, not never drawn.
        saved = any((folder / name).is_file() for name in ("data.qpdata", "data.qpdata.bkp", "summary.json"))
        summary = (_read_json(folder / "summary.json") or {}) if saved else {}
        return ImageEntry(
            entry_id=entry_id,
            name=name,
            uri=uri,
            server=server,
            args=args,
            metadata={
                key: str(value) for key, value in _dict(entry.get("metadata")).items() if value is not None
            },
            description=_text(entry.get("description")),
            image_type=_image_type(summary, folder / "data.qpdata", name),
            size=_size(metadata) or _size(_dict(summary.get("server"))),
            pixel_size=_pixel_size(metadata),
            saved=saved,
            unsupported=odd or _why_unsupported(plain, server, uri, args),
            view=view,
        )


def _version_notes(version: str | None) -> tuple[str, ...]:
    release = re.match(r"v?(\d+)\.(\d+)", version or "")
    if release is None or tuple(map(int, release.groups())) <= _NEWEST_KNOWN:
        return ()
    newest = ".".join(map(str, _NEWEST_KNOWN))
    return (
        f"the project was saved by QuPath {version}, newer than {newest}, the last one that this version "
        "of hnscc-qp was tried with; check the objects with `hnscc-qp objects`",
    )


def _entry_id(entry: Any, path: Path) -> str:
    entry_id = entry.get("entryID") if isinstance(entry, dict) else None
    # It becomes part of a path.
    if isinstance(entry_id, bool) or not re.fullmatch(r"[0-9]+", str(entry_id)):
        raise ProjectError(f"{path} has an image without a number (entryID); open and save it in QuPath")
    return str(entry_id)


def _unwrap(builder: Json) -> tuple[Json, View, str | None]:
    """What opens the file itself, what the builders around it do, and the first that can't be followed.

    The last continues "the image is ...".
    """
    view: View = ()
    odd: str | None = None
    while "uri" not in builder and isinstance(builder.get("builder"), dict):
        step = _view_step(builder)
        if step is None:
            odd = odd or _describe(builder)
        else:
            view = step + view  # the outermost comes last
        builder = builder["builder"]
    return builder, view, odd


def _view_step(builder: Json) -> View | None:
    """What one builder does to the image inside; None if that is more than to crop or turn it."""
    kind = builder.get("builderType")
    if kind == "pyramidize":  # adds levels to a file that has but one
        return ()
    if kind == "rotated":
        return _TURNS.get(_text(builder.get("rotation")))
    if kind == "affine":
        return _turn_of(_dict(builder.get("transform")), _size(_dict(builder.get("metadata"))))
    region = _dict(builder.get("region"))
    sides = [region.get(key) for key in ("x", "y", "width", "height")]
    if kind != "cropped" or region.get("z", 0) or region.get("t", 0):
        return None
    try:
        return (Crop(*(int(side) for side in sides if isinstance(side, int))),)
    except (TypeError, ValueError):  # a side is missing or makes no sense
        return None


def _turn_of(transform: Json, size: tuple[int, int] | None) -> View | None:
    """What an affine map does if it is a turn by quarters that leaves all of the image in sight.

    Args:
        transform: Java's AffineTransform: x' = m00·x + m01·y + m02, y' = m10·x + m11·y + m12.
        size: (width, height) of what is shown; QuPath shows it from (0, 0) on, wherever the map leads.
    """
    if size is None:
        return None
    width, height = size
    maps: dict[tuple[Any, ...], View] = {
        (1, 0, 0, 0, 1, 0): (),
        (0, -1, width, 1, 0, 0): (Turn(1),),
        (-1, 0, width, 0, -1, height): (Turn(2),),
        (0, 1, 0, -1, 0, height): (Turn(3),),
    }
    return maps.get(tuple(transform.get(name) for name in ("m00", "m01", "m02", "m10", "m11", "m12")))


def _describe(builder: Json) -> str:
    kind = builder.get("builderType")
    if kind == "rotated":
        return f"shown rotated by QuPath ({builder.get('rotation')})"
    if kind == "affine":
        return "shown through QuPath's 'affine' server, and not turned by whole quarters"
    if kind in ("cropped", "flipped", "sparse"):
        return f"shown {kind} by QuPath"
    return f"shown through QuPath's '{kind}' server" if kind else "stored without a server"


def _why_unsupported(builder: Json, server: str, uri: str, args: tuple[str, ...]) -> str | None:
    """Continue "the image is ..." if the builder does not open one file as OpenSlide reads it."""
    reason: str | None = None
    if builder.get("builderType", "uri" if "uri" in builder else None) != "uri":
        reason = _describe(builder)
    elif FileUri.parse(uri) is None:
        reason = f"not one whole local file ({uri or 'no URI'})"
    elif server not in _READABLE_SERVERS:
        reason = f"shown through {server or 'a server without a name'}"
    elif unknown := _unknown_args(args):
        # Above all `--series N`: which of a file's images that is, only Bio-Formats knows.
        reason = f"opened by {server} with {' '.join(unknown)}"
    return reason


def _unknown_args(args: tuple[str, ...]) -> tuple[str, ...]:
    if args[:1] == ("--classname",):  # only names the server, which is stored besides
        args = args[2:]
    return tuple(arg for arg in args if arg != "--no-crop")


def _image_type(summary: Json, data: Path, image: str) -> str | None:
    name = _text(summary.get("imageType"))
    if name is not None:
        return IMAGE_TYPES.get(name, name)
    if not data.is_file():
        return None
    try:
        return read_image_type(data, image=image)
    except ObjectDataError:  # told when the objects are asked for; the image must be listed all the same
        return None


def _size(value: Json) -> tuple[int, int] | None:
    width, height = value.get("width"), value.get("height")
    if isinstance(width, int) and isinstance(height, int) and width > 0 and height > 0:
        return width, height
    return None


def _pixel_size(metadata: Json) -> PixelSize | None:
    calibration = _dict(metadata.get("pixelCalibration"))
    sides = []
    for key in ("pixelWidth", "pixelHeight"):
        side = _dict(calibration.get(key))
        value = side.get("value")
        if side.get("unit") not in _MICROMETRES or not isinstance(value, int | float):
            return None
        if not (math.isfinite(value) and value > 0):
            return None
        sides.append(Mpp(float(value)))
    return PixelSize(*sides)


def _read_json(path: Path) -> Json | None:
    """A JSON object; None if the file is not there or holds no such thing."""
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _dict(value: Any) -> Json:
    return value if isinstance(value, dict) else {}


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
