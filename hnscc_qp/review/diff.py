"""How the areas of each class differ between two states of an image's objects."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import shapely
from shapely.geometry import Polygon
from shapely.geometry.base import BaseGeometry

from hnscc_qp.geometry import PixelSize
from hnscc_qp.patches.territories import polygons_only
from hnscc_qp.qupath.objects import ObjectType, PathObject, walk
from hnscc_qp.qupath.ownership import AI_REVIEW

_NOWHERE = Polygon()
_SLIVER_UM2 = 1.0
"""Less is what rounding to 0.01 px leaves."""

Areas = Mapping[str, BaseGeometry]
"""Class → all that objects of it cover, in QuPath px."""


@dataclass(frozen=True, slots=True)
class ClassDiff:
    """One class on one slide. An area is `changed` where it left one class and came to another."""

    image: str
    path_class: str
    before_um2: float
    after_um2: float
    added_um2: float
    """Of this class now, and of none before."""
    removed_um2: float
    """Of this class before, and of none now."""
    changed_in_um2: float
    """Of this class now, and of others only before."""
    changed_out_um2: float
    """Of this class before, and of others only now."""
    into: Mapping[str, float]
    """Other class → µm² that left and are of it now."""


@dataclass(frozen=True, slots=True)
class SlideDiff:
    """One slide, class by class, and where to look."""

    rows: tuple[ClassDiff, ...]
    """Of every class that there was or is, by name."""
    added: BaseGeometry
    removed: BaseGeometry
    changed: BaseGeometry

    @property
    def differs(self) -> bool:
        """Whether anything does."""
        return any(
            row.added_um2 or row.removed_um2 or row.changed_in_um2 or row.changed_out_um2 for row in self.rows
        )


def class_areas(objects: Iterable[PathObject]) -> dict[str, BaseGeometry]:
    """What each class covers: of annotations, and of detections of ours (`AI: ...`)."""
    shapes: dict[str, list[BaseGeometry]] = defaultdict(list)
    for _, item in walk(objects):
        if item.path_class is None:
            continue
        names = item.path_class.names
        ours = item.type is ObjectType.DETECTION and names[0] == "AI" and names != AI_REVIEW.names
        if ours or item.type is ObjectType.ANNOTATION:
            shapes[str(item.path_class)].append(polygons_only(item.roi))
    return {name: shapely.union_all(found) for name, found in shapes.items()}


def compare_areas(before: Areas, after: Areas, *, image: str, pixel_size: PixelSize) -> SlideDiff:
    """Compare two states of one image.

    Classes may overlap: a place is added to a class only if it was in none before, and removed only if it
    is in none now; a place that went from one class to another is changed.
    """
    any_before = shapely.union_all(list(before.values()))
    any_after = shapely.union_all(list(after.values()))
    um2 = pixel_size.area_um2

    def area(shape: BaseGeometry) -> float:
        value = um2(shape.area)
        return round(value, 2) if value > _SLIVER_UM2 else 0.0

    rows = []
    changed: list[BaseGeometry] = []
    names = sorted(before.keys() | after.keys())
    for name in names:
        was, now = before.get(name, _NOWHERE), after.get(name, _NOWHERE)
        came, left = shapely.difference(now, was), shapely.difference(was, now)
        into = {
            other: area(shapely.intersection(left, shape)) for other, shape in after.items() if other != name
        }
        changed_in = shapely.intersection(came, any_before)
        changed_out = shapely.intersection(left, any_after)
        changed += [changed_in, changed_out]
        rows.append(
            ClassDiff(
                image=image,
                path_class=name,
                before_um2=area(was),
                after_um2=area(now),
                added_um2=area(shapely.difference(came, any_before)),
                removed_um2=area(shapely.difference(left, any_after)),
                changed_in_um2=area(changed_in),
                changed_out_um2=area(changed_out),
                into={other: value for other, value in into.items() if value},
            )
        )
    return SlideDiff(
        tuple(rows),
        added=polygons_only(shapely.difference(any_after, any_before)),
        removed=polygons_only(shapely.difference(any_before, any_after)),
        changed=polygons_only(shapely.union_all(changed)),
    )
