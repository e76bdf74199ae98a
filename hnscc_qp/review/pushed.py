"""What was pushed, as it was, and what had been annotated by then: what verdicts are measured against.

Under `generations/NNN/push/`, for each image: `pushed/*.geojson`, every detection of ours that this
generation ever pushed, each with the time of its last push; and `before/*.geojson`, the annotations that
were there when the generation was first pushed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import UUID

import shapely

from hnscc_qp.errors import GeoJsonError, HnsccQpError, ObjectDataError
from hnscc_qp.files import atomic_path
from hnscc_qp.qupath.geojson import decode_geojson, encode_geojson, sidecar_name, write_geojson
from hnscc_qp.qupath.objects import ObjectType, PathObject, RoiKind, walk
from hnscc_qp.qupath.project import ImageEntry

PUSHED_FOLDER = "pushed"
BEFORE_FOLDER = "before"
_PUSHED_AT = "AI pushed at"


@dataclass(frozen=True, slots=True)
class PushedDetection:
    """One of ours, as it went to QuPath."""

    item: PathObject
    generation: str
    model: str | None
    pushed_at: str | None
    """UTC; None of a push that kept no record."""
    is_last: bool
    """It was among the generation's last push: not taken back by us since."""


@dataclass(frozen=True, slots=True)
class PushedImage:
    """All that one generation pushed into one image."""

    generation: str
    detections: tuple[PushedDetection, ...]
    before: tuple[PathObject, ...] | None
    """Annotations that were there, without children; None if no record was kept."""


def record_before(push_folder: Path, image: ImageEntry, objects: Sequence[PathObject]) -> None:
    """Keep the annotations that are there, unless it was done at an earlier push of this generation."""
    path = _file(push_folder / BEFORE_FOLDER, image)
    if not path.is_file():
        annotations = [item for _, item in walk(objects) if item.type is ObjectType.ANNOTATION]
        write_geojson(path, map(_writable, annotations))


def record_pushed(
    push_folder: Path, image: ImageEntry, detections: Sequence[PathObject], *, time: str
) -> None:
    """Keep what is about to be pushed besides what was pushed before.

    Args:
        push_folder: of the generation.
        image: where they go.
        detections: all that the image is to have.
        time: of this push, UTC.
    """
    path = _file(push_folder / PUSHED_FOLDER, image)
    known: dict[UUID | None, PathObject] = {}
    if path.is_file():
        data, items = _read(path)
        known = {item.id: item for item in items}
        if (last := _last_push(data)) is not None:
            of_last = {key for key, item in known.items() if item.metadata.get(_PUSHED_AT) == last}
            same_ids = of_last == {item.id for item in detections}
            if same_ids and _record(known, detections, image, time=last) == data:
                return  # the same once more is no other push
    # Written though it be empty: that nothing was pushed is a fact, too.
    with atomic_path(path) as partial:
        partial.write_bytes(_record(known, detections, image, time=time))


def _record(
    known: Mapping[UUID | None, PathObject], detections: Sequence[PathObject], image: ImageEntry, *, time: str
) -> bytes:
    """The file of what is known by now and what is pushed at a time."""
    pushed = {item.id: replace(item, metadata={**item.metadata, _PUSHED_AT: time}) for item in detections}
    foreign = {"hnscc_qp": {"image": image.name, "last push": time}}
    name = sidecar_name(image.entry_id, image.name)
    return encode_geojson({**known, **pushed}.values(), name=name, foreign=foreign)


def _last_push(data: bytes) -> str | None:
    last = json.loads(data).get("hnscc_qp", {}).get("last push")
    return None if last is None else str(last)


def read_pushed(generation: Path, image: ImageEntry, *, fallback: Path | None) -> PushedImage | None:
    """What a generation pushed into an image; None if it pushed nothing there.

    Args:
        generation: its folder.
        image: as the project has it; found by its entry id.
        fallback: the image's regions, for a push that was made before records were kept.

    Raises:
        ObjectDataError: a record is damaged.
    """
    folder = generation / "push"
    found = _find(folder / PUSHED_FOLDER, image)
    if found is None:
        if fallback is None or not fallback.is_file():
            return None
        unrecorded = tuple(_pushed(item, generation.name, last=None) for item in _read(fallback)[1])
        return PushedImage(generation.name, unrecorded, None)
    data, items = _read(found)
    last = _last_push(data)
    before = _find(folder / BEFORE_FOLDER, image)
    return PushedImage(
        generation.name,
        tuple(_pushed(item, generation.name, last=last) for item in items),
        None if before is None else _read(before)[1],
    )


def _pushed(item: PathObject, generation: str, *, last: str | None) -> PushedDetection:
    time = item.metadata.get(_PUSHED_AT)
    return PushedDetection(
        item,
        item.metadata.get("AI generation", generation),
        item.metadata.get("AI model"),
        time,
        last is None or time == last,
    )


def _writable(item: PathObject) -> PathObject:
    """An annotation as a record needs it: known again by its id, if not by its shape."""
    # Measurements and children bear on no verdict, and an annotation may hold a million cells.
    plain = replace(item, measurements={}, children=(), nucleus_roi=None)
    try:
        encode_geojson([plain], name="record")
    except (HnsccQpError, ValueError):
        return replace(plain, roi=shapely.box(*plain.roi.bounds), roi_kind=RoiKind.RECTANGLE)
    return plain


def _file(folder: Path, image: ImageEntry) -> Path:
    return folder / sidecar_name(image.entry_id, image.name)


def _find(folder: Path, image: ImageEntry) -> Path | None:
    """By the entry id: an image may have been renamed in QuPath since."""
    return next(iter(sorted(folder.glob(f"{image.entry_id} *.geojson"))), None)


def _read(path: Path) -> tuple[bytes, tuple[PathObject, ...]]:
    """The file as it is, and its objects."""
    remedy = "restore it from a backup, or delete it to do without that push's record"
    try:
        data = path.read_bytes()
        read = decode_geojson(data, path)
    except OSError as error:
        raise ObjectDataError(f"{path} can't be read ({error.strerror}); {remedy}") from error
    except GeoJsonError as error:
        raise ObjectDataError(f"{error}; {remedy}") from error
    if read.skipped:
        raise ObjectDataError(f"{path} is damaged ({read.skipped[0]}); {remedy}")
    return data, read.objects
