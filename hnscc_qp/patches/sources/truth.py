"""Where a study's annotations come from: QuPath, or files beside the slides.

Whatever the source, what comes out are annotations in QuPath px, and everything after takes them alike.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from uuid import UUID, uuid5

import shapely

from hnscc_qp import study
from hnscc_qp.errors import GeoJsonError, TruthError
from hnscc_qp.files import sha256_file, sha256_json
from hnscc_qp.patches.sources.asap import read_asap
from hnscc_qp.patches.sources.mask import read_mask
from hnscc_qp.qupath.geojson import default_color, read_geojson
from hnscc_qp.qupath.objects import ObjectType, PathClass, PathObject
from hnscc_qp.qupath.shapes import roi_kind
from hnscc_qp.slides.reader import Slide

_SPACE = UUID("6f0c9b54-3c5e-4f0e-9a3b-6f5b1b0d7a11")
"""Ids of annotations from files: the same file gives the same ids."""


@dataclass(frozen=True, slots=True)
class TruthRead:
    """What a file says of an image."""

    objects: tuple[PathObject, ...]
    notes: tuple[str, ...] = ()
    """What was repaired or left out, each in one line."""


def truth_file(slide_path: Path, settings: study.Truth, *, root: Path) -> Path:
    """Where the file of a slide should lie; `root` is the study's folder."""
    pattern = settings.file_pattern
    for name, value in (("{folder}", str(slide_path.parent)), ("{slide}", slide_path.stem)):
        pattern = pattern.replace(name, value)
    return root / pattern


def read_truth(path: Path, settings: study.Truth, *, slide: Slide, image_name: str) -> TruthRead:
    """Read a slide's file as annotations in QuPath px.

    Raises:
        TruthError: it is missing, damaged or does not fit the slide; the message names image and file.
    """
    if not path.is_file():
        raise TruthError(
            f"{image_name} has no {settings.source} file {path}; put it there, correct truth.pattern, or set "
            "truth.missing = 'none'"
        )
    try:
        match settings.source:
            case "mask":
                return _from_mask(path, settings, slide)
            case "asap":
                return _from_asap(path, settings, slide)
            case "geojson":
                return _from_geojson(path, settings)
            case _:
                raise AssertionError(settings.source)
    except GeoJsonError as error:
        raise TruthError(f"{image_name}: {error}") from error
    except TruthError as error:
        raise TruthError(f"{image_name}: {error}") from error


def fingerprint(files: list[tuple[Path, study.Truth]], project: str | None) -> str:
    """Hash of all that says what an image's annotations are.

    Args:
        files: of the image, and how each is read; one that is missing counts as such.
        project: the fingerprint of the image in the project.
    """
    # Settings and places are in the step's settings; here only content counts.
    return sha256_json([project, *(sha256_file(path) if path.is_file() else None for path, _ in files)])


def _from_mask(path: Path, settings: study.Truth, slide: Slide) -> TruthRead:
    whole = settings.frame == "file"
    pieces = read_mask(
        path,
        size=slide.levels[0].size if whole else slide.size,
        classes={int(value): name for value, name in settings.classes.items()},
    )
    objects = []
    for number, (path_class, polygon) in enumerate(pieces, start=1):
        shape = shapely.transform(polygon, slide.to_qupath) if whole else polygon
        objects.append(_annotation(shape, path_class, f"{path.name} {number}"))
    return TruthRead(tuple(objects))


def _from_asap(path: Path, settings: study.Truth, slide: Slide) -> TruthRead:
    found = read_asap(path, classes=settings.classes, holes=settings.holes)
    return TruthRead(
        tuple(
            _annotation(shapely.transform(shape, slide.to_qupath), path_class, name)
            for path_class, name, shape in found.shapes
        ),
        found.notes,
    )


def _from_geojson(path: Path, settings: study.Truth) -> TruthRead:
    found = read_geojson(path)
    return TruthRead(
        tuple(_renamed(item, settings) for item in found.objects),
        tuple(f"{path.name}: left out {line}" for line in found.skipped),
    )


def _renamed(item: PathObject, settings: study.Truth) -> PathObject:
    """The object under the class that the study gives its class; its children likewise."""
    path_class = item.path_class
    if path_class is not None and str(path_class) in settings.classes:
        name = settings.classes[str(path_class)]
        path_class = PathClass(tuple(name.split(": ")), path_class.color) if name else None
    identifier = item.id or uuid5(_SPACE, f"{path_class} {item.roi.wkb_hex}")
    children = tuple(_renamed(child, settings) for child in item.children)
    return replace(item, path_class=path_class, id=identifier, children=children)


def _annotation(shape: shapely.Geometry, path_class: str, name: str) -> PathObject:
    kind = PathClass(tuple(path_class.split(": ")))
    return PathObject(
        type=ObjectType.ANNOTATION,
        roi=shape,
        roi_kind=roi_kind(shape),
        area_px=shape.area,
        id=uuid5(_SPACE, f"{path_class} {name} {shape.wkb_hex}"),
        name=name,
        path_class=replace(kind, color=default_color(kind)),
    )
