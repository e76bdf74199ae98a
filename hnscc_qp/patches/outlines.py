"""What annotations are to the rules: areas with a meaning, regions, and marks that enclose nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np
import numpy.typing as npt
import shapely
from shapely.geometry.base import BaseGeometry

from hnscc_qp import study
from hnscc_qp.errors import AnnotationError, TangledOutlineError
from hnscc_qp.geometry import PixelSize
from hnscc_qp.patches.territories import Shapes, polygons_only
from hnscc_qp.qupath.objects import ObjectType, PathClass, PathObject, walk

_MARK_UM = 0.5
"""Half the width given to points and lines, so that they overlap windows."""


class Label(IntEnum):
    """What a window is, or what an annotation makes of the windows under it."""

    NONTUMOR = 0
    TUMOR = 1
    IGNORED = 2


def meaning_of(path_class: PathClass | None, classes: study.Classes) -> Label | None:
    """What the study makes of a class; None if it gives no meaning, or is a region's.

    The full name decides (`Tumor: Positive`); failing that the longest part of it from the front
    (`Tumor`), so that a derived class is what its base is unless the study says otherwise.
    """
    meaning = _look_up(path_class, _by_name(classes))
    return meaning if isinstance(meaning, Label) else None


def annotated_meanings(
    objects: Sequence[PathObject], classes: study.Classes
) -> Iterator[tuple[PathObject, Label | None]]:
    """Every annotation, at any depth, with what the study makes of its class."""
    for item, meaning in _annotations(objects, classes):
        yield item, meaning if isinstance(meaning, Label) else None


def is_region(path_class: PathClass | None, classes: study.Classes) -> bool:
    """Whether the class outlines the annotated part of a slide."""
    return _look_up(path_class, _by_name(classes)) == _REGION


_REGION = "region"
_Meaning = Label | str | None


def _by_name(classes: study.Classes) -> dict[str, _Meaning]:
    meanings: dict[str, _Meaning] = dict.fromkeys(classes.nontumor, Label.NONTUMOR)
    meanings |= dict.fromkeys(classes.tumor, Label.TUMOR)
    meanings |= dict.fromkeys(classes.ignored, Label.IGNORED)
    return meanings | dict.fromkeys(classes.region, _REGION)


def _look_up(path_class: PathClass | None, by_name: Mapping[str, _Meaning]) -> _Meaning:
    names = path_class.names if path_class else ()
    for length in range(len(names), 0, -1):
        name = ": ".join(names[:length])
        if name in by_name:
            return by_name[name]
    return None


def _annotations(
    objects: Sequence[PathObject], classes: study.Classes
) -> Iterator[tuple[PathObject, _Meaning]]:
    by_name = _by_name(classes)
    # Annotations come by the ten thousand, classes by the dozen.
    known: dict[tuple[str, ...], _Meaning] = {}
    for _, item in walk(objects):
        if item.type is not ObjectType.ANNOTATION:
            continue
        names = item.path_class.names if item.path_class else ()
        if names not in known:
            known[names] = _look_up(item.path_class, by_name)
        yield item, known[names]


@dataclass(frozen=True, slots=True)
class Outlines:
    """The annotations of one image, sorted out. Shapes are in QuPath px."""

    shapes: Shapes
    """(n,) valid areas with a meaning, in the order of the hierarchy."""
    meanings: npt.NDArray[np.uint8]
    """(n,) `Label`."""
    ids: tuple[str, ...]
    regions: Shapes
    """Valid areas of a region class."""
    marks: Shapes
    """Where tumor is pointed at but not outlined: points, lines, and what an open outline encloses."""
    mark_ids: tuple[str, ...]
    any_tumor: bool
    """Whether anything at all is classified as tumor."""
    unmapped: Mapping[str, int]
    """Class → how many annotations of it there are that the study gives no meaning."""
    skipped: tuple[str, ...]
    """Annotations with a meaning that outline nothing, each in one line."""
    repaired: tuple[str, ...]
    """Annotations whose outline crosses itself or the like, each in one line."""


@dataclass(slots=True)
class _Sorting:
    """Annotations as they are sorted out."""

    shapes: list[BaseGeometry] = field(default_factory=list)
    meanings: list[Label] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    regions: list[BaseGeometry] = field(default_factory=list)
    marks: list[BaseGeometry] = field(default_factory=list)
    mark_ids: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    repaired: list[str] = field(default_factory=list)


def sort_annotations(
    objects: Sequence[PathObject],
    *,
    name: str,
    size: tuple[int, int],
    pixel_size: PixelSize,
    classes: study.Classes,
    settings: study.Patches,
) -> Outlines:
    """Sort an image's annotations: what outlines something, what only points, what is to be skipped.

    Args:
        objects: the image's top-level objects.
        name: the image, for messages.
        size: (width, height) of the image in QuPath px.
        pixel_size: of the image.
        classes: what QuPath's classes mean.
        settings: `open_shapes` and `outside_image`.

    Raises:
        AnnotationError: one outlines nothing or lies outside, and the settings say that this is an error.
    """
    sorting = _Sorting()
    unmapped: Counter[str] = Counter()
    found: list[tuple[str, PathObject, _Meaning]] = []
    for number, (item, meaning) in enumerate(_annotations(objects, classes), start=1):
        if meaning is None:
            unmapped[str(item.path_class) if item.path_class else "unclassified"] += 1
        else:
            # QuPath 0.3 gives no ids.
            found.append((str(item.id) if item.id else f"annotation {number}", item, meaning))
    rois = _array([item.roi for _, item, _ in found])
    sound = shapely.is_valid(rois)
    x0, y0, x1, y1 = shapely.bounds(rois).T.reshape(4, -1)
    # What has no place (an empty shape, bounds NaN) is not outside, it has no area.
    outside = (x0 >= size[0]) | (y0 >= size[1]) | (x1 <= 0) | (y1 <= 0)
    beyond = (x0 < -1) | (y0 < -1) | (x1 > size[0] + 1) | (y1 > size[1] + 1)
    for index, (known_as, item, meaning) in enumerate(found):
        what = f"{item.name or known_as} ({item.path_class}, {item.roi_kind})"
        if beyond[index] and settings.outside_image == "error":
            raise AnnotationError(
                f"{name}: {what} reaches beyond the image; correct it in QuPath, or set "
                "patches.outside_image = 'clip'"
            )
        if outside[index] and shapely.get_dimensions(item.roi) == 2:
            sorting.skipped.append(f"{what} lies outside the image; move or delete it")
            continue
        try:
            roi = _closed(item.roi) if settings.open_shapes == "close" else item.roi
            shape = polygons_only(roi)
            if not shape.area > 0:
                _skip(
                    sorting,
                    item,
                    meaning,
                    known_as,
                    what,
                    name=name,
                    pixel_size=pixel_size,
                    settings=settings,
                )
                continue
        except TangledOutlineError as error:
            raise AnnotationError(f"{name}: {what}: {error}") from error
        if not sound[index]:
            sorting.repaired.append(f"{what} crosses itself; repaired, look at it in QuPath")
        if isinstance(meaning, Label):
            sorting.shapes.append(shape)
            sorting.meanings.append(meaning)
            sorting.ids.append(known_as)
        else:
            sorting.regions.append(shape)
    return Outlines(
        shapes=_array(sorting.shapes),
        meanings=np.array([int(meaning) for meaning in sorting.meanings], np.uint8),
        ids=tuple(sorting.ids),
        regions=_array(sorting.regions),
        marks=_array(sorting.marks),
        mark_ids=tuple(sorting.mark_ids),
        any_tumor=any(meaning is Label.TUMOR for _, _, meaning in found),
        unmapped=dict(unmapped),
        skipped=tuple(sorting.skipped),
        repaired=tuple(sorting.repaired),
    )


def _skip(
    sorting: _Sorting,
    item: PathObject,
    meaning: _Meaning,
    known_as: str,
    what: str,
    *,
    name: str,
    pixel_size: PixelSize,
    settings: study.Patches,
) -> None:
    """Name what has no area; where it means tumor, mark the windows that nobody can vouch for."""
    if settings.open_shapes == "error":
        raise AnnotationError(
            f"{name}: {what} has no area; outline it in QuPath, or set patches.open_shapes = 'skip'"
        )
    line = f"{what} has no area; outline it instead"
    if meaning is Label.TUMOR and not item.roi.is_empty:
        inside = polygons_only(_closed(item.roi))
        mark = item.roi.buffer(_MARK_UM / min(pixel_size.x, pixel_size.y), quad_segs=1)
        sorting.marks.append(polygons_only(shapely.union(inside, mark)))
        sorting.mark_ids.append(known_as)
        line += ", the windows there are ignored"
    sorting.skipped.append(line)


def _closed(roi: BaseGeometry) -> BaseGeometry:
    """Open lines of three points and more as the polygons that they would enclose; all else as it is."""
    parts = shapely.get_parts(roi)
    if not len(parts) or not (shapely.get_dimensions(parts) == 1).all():
        return roi
    lines = parts[shapely.get_num_coordinates(parts) >= 3]
    return shapely.union_all([polygons_only(shapely.Polygon(line.coords)) for line in lines])


def _array(shapes: Sequence[BaseGeometry]) -> Shapes:
    array = np.empty(len(shapes), object)
    array[:] = shapes
    return array
