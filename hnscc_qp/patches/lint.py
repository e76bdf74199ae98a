"""Label lint: what in a slide's annotations contradicts itself, or can hardly be meant."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely
from shapely.geometry.base import BaseGeometry

from hnscc_qp import study
from hnscc_qp.geometry import Grid
from hnscc_qp.patches.labels import Label, WindowLabels, annotated_meanings, is_region
from hnscc_qp.patches.territories import polygons_only
from hnscc_qp.qupath.objects import PathObject

_MIN_AREA_UM2 = 100.0
"""10 × 10 µm: about one cell."""
_MIN_WIDTH_UM = 2.0
"""Mean width, 2 · area / perimeter; less is what a hand leaves by accident."""
_MIN_ON_TISSUE = 0.1
_BEYOND_PX = 1.0
_SAME = 0.9
"""Intersection over union from which on two outlines are the same area."""
_INSIDE = 0.95
"""Share of the smaller from which on it lies in the larger: nesting, which is allowed."""
_OVERLAP = 0.05
"""Share of the smaller from which on two outlines overlap in earnest."""


class Severity(StrEnum):
    """How bad."""

    ERROR = "error"
    """`patches` refuses the image."""
    WARNING = "warning"
    """Labels may be wrong."""
    NOTE = "note"
    """Worth a look."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that somebody should look at."""

    severity: Severity
    rule: str
    """In one or two words, the same for all of its kind."""
    image: str
    message: str
    annotation_ids: tuple[str, ...] = ()
    x_qupath: float | None = None
    y_qupath: float | None = None

    def as_json(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self) | {
            "severity": self.severity.value,
            "annotation_ids": list(self.annotation_ids),
        }


@dataclass(frozen=True, slots=True)
class _Drawn:
    """An annotation that the study gives a meaning, or a class nobody mapped."""

    what: str
    known_as: str
    meaning: Label | None
    roi: BaseGeometry
    is_mapped: bool


def lint_annotations(
    objects: Sequence[PathObject],
    *,
    image: str,
    size: tuple[int, int],
    grid: Grid,
    tissue: npt.NDArray[np.bool_],
    classes: study.Classes,
) -> list[Finding]:
    """Check the annotations of one image, whatever its status.

    Args:
        objects: top-level objects, in QuPath px.
        image: its name.
        size: (width, height) in QuPath px.
        grid: of the image.
        tissue: (grid.rows, grid.columns).
        classes: what QuPath's classes mean.
    """
    drawn = _annotations(objects, classes)
    findings = _unmapped(drawn, image)
    whole: list[_Drawn] = []
    shapes: list[BaseGeometry] = []
    for one in drawn:
        if not one.is_mapped:
            continue
        shape = polygons_only(one.roi)
        findings += _outline_findings(one, shape, image, size, grid)
        if shape.area > 0:
            whole.append(one)
            shapes.append(shape)
    findings += _off_tissue(whole, shapes, image, grid, tissue)
    return findings + _overlaps(whole, shapes, image, grid)


def lint_windows(windows: WindowLabels, *, image: str, positive: bool) -> list[Finding]:
    """Whether a slide gives what its status promises."""
    tumor, nontumor = windows.count(Label.TUMOR), windows.count(Label.NONTUMOR)
    if not tumor and not nontumor:
        ignored = windows.count_reasons(Label.IGNORED)
        why = ", ".join(f"{reason}: {count}" for reason, count in ignored.items()) or "it is too small"
        return [_finding(Severity.WARNING, "no usable window", image, f"no window can be used ({why})")]
    if positive and not tumor:
        return [
            _finding(Severity.WARNING, "no tumor window", image, "positive, but no window is labelled tumor")
        ]
    return []


def _finding(
    severity: Severity, rule: str, image: str, message: str, *drawn: _Drawn, at: BaseGeometry | None = None
) -> Finding:
    if at is None and drawn and not drawn[0].roi.is_empty:
        at = drawn[0].roi
    place = None if at is None or at.is_empty else shapely.centroid(at)
    return Finding(
        severity,
        rule,
        image,
        message,
        tuple(one.known_as for one in drawn),
        None if place is None else round(place.x, 1),
        None if place is None else round(place.y, 1),
    )


def _annotations(objects: Sequence[PathObject], classes: study.Classes) -> list[_Drawn]:
    found = []
    for number, (item, meaning) in enumerate(annotated_meanings(objects, classes), start=1):
        known_as = str(item.id) if item.id else f"annotation {number}"
        mapped = meaning is not None or is_region(item.path_class, classes)
        what = f"{item.name or known_as} ({item.path_class or 'unclassified'})"
        found.append(_Drawn(what, known_as, meaning, item.roi, mapped))
    return found


def _unmapped(drawn: Sequence[_Drawn], image: str) -> list[Finding]:
    strangers = Counter(one.what.rpartition(" (")[2].rstrip(")") for one in drawn if not one.is_mapped)
    return [
        _finding(
            Severity.WARNING,
            "unmapped class",
            image,
            f"class {name} has no meaning under [classes]; annotations that decide nothing: {count}",
        )
        for name, count in sorted(strangers.items())
    ]


def _outline_findings(
    one: _Drawn, shape: BaseGeometry, image: str, size: tuple[int, int], grid: Grid
) -> list[Finding]:
    """What is to be said of one annotation alone."""
    findings = []
    if not shape.area > 0:
        findings.append(
            _finding(Severity.WARNING, "no area", image, f"{one.what} has no area; outline it instead", one)
        )
    elif not one.roi.is_valid:
        why = shapely.is_valid_reason(one.roi)
        findings.append(_finding(Severity.WARNING, "self-crossing", image, f"{one.what}: {why}", one))
    findings += _slivers(one, shape, image, grid)
    if one.roi.is_empty:
        return findings
    x0, y0, x1, y1 = one.roi.bounds
    if x0 >= size[0] or y0 >= size[1] or x1 <= 0 or y1 <= 0:
        findings.append(
            _finding(Severity.WARNING, "off image", image, f"{one.what} lies outside the image", one)
        )
    elif min(x0, y0) < -_BEYOND_PX or x1 > size[0] + _BEYOND_PX or y1 > size[1] + _BEYOND_PX:
        findings.append(
            _finding(Severity.NOTE, "off image", image, f"{one.what} reaches beyond the image", one)
        )
    return findings


def _slivers(one: _Drawn, shape: BaseGeometry, image: str, grid: Grid) -> list[Finding]:
    parts = shapely.get_parts(shape)
    um = float(np.sqrt(grid.pixel_size.area_um2(1.0)))
    areas, lengths = shapely.area(parts) * um**2, shapely.length(parts) * um
    thin = (areas > 0) & ((areas < _MIN_AREA_UM2) | (2 * areas < _MIN_WIDTH_UM * lengths))
    if not thin.any():
        return []
    part = parts[np.flatnonzero(thin)[0]]
    smallest = areas[thin].min()
    if len(parts) == 1:
        message = f"{one.what} is a sliver of {smallest:.0f} µm²"
    else:
        message = f"{one.what} has slivers among its {len(parts)} parts: {int(thin.sum())}"
    return [_finding(Severity.WARNING, "sliver", image, message, one, at=part)]


def _off_tissue(
    drawn: Sequence[_Drawn],
    shapes: Sequence[BaseGeometry],
    image: str,
    grid: Grid,
    tissue: npt.NDArray[np.bool_],
) -> list[Finding]:
    """Annotations of which hardly a block is tissue."""
    width, height = grid.block_qupath
    findings = []
    for one, shape in zip(drawn, shapes, strict=True):
        x0, y0, x1, y1 = shape.bounds
        first_column, last_column = (int(np.clip(x // width, 0, grid.columns - 1)) for x in (x0, x1))
        first_row, last_row = (int(np.clip(y // height, 0, grid.rows - 1)) for y in (y0, y1))
        part = tissue[first_row : last_row + 1, first_column : last_column + 1]
        if part.all():
            continue
        x, y = np.meshgrid(
            (np.arange(first_column, last_column + 1) + 0.5) * width,
            (np.arange(first_row, last_row + 1) + 0.5) * height,
        )
        shapely.prepare(shape)
        inside = shapely.contains_xy(shape, x, y)
        if not inside.any():  # smaller than a block: any of those that it touches will do
            inside = np.ones_like(inside)
        share = part[inside].mean()
        if share < _MIN_ON_TISSUE:
            message = f"{one.what} lies off the tissue ({share:.0%} of it is tissue)".replace("%", " %")
            findings.append(_finding(Severity.WARNING, "off tissue", image, message, one))
    return findings


def _overlaps(
    drawn: Sequence[_Drawn], shapes: Sequence[BaseGeometry], image: str, grid: Grid
) -> list[Finding]:
    """Pairs that overlap otherwise than one within the other, or are the same area."""
    if len(shapes) < 2:
        return []
    array = np.array(shapes, object)
    first, second = shapely.STRtree(array).query(array, predicate="intersects")
    pairs = first < second
    first, second = first[pairs], second[pairs]
    areas = shapely.area(array)
    common = shapely.area(shapely.intersection(array[first], array[second]))
    smaller = np.minimum(areas[first], areas[second])
    findings = []
    for a, b, shared, least in zip(first, second, common, smaller, strict=True):
        one, other = drawn[a], drawn[b]
        if one.meaning is None or other.meaning is None or shared < _OVERLAP * least:
            continue  # a region lies over what is annotated in it
        same = shared / (areas[a] + areas[b] - shared)
        at = shapely.intersection(array[a], array[b])
        area_um2 = grid.pixel_size.area_um2(float(shared))
        both = f"{one.what} and {other.what}"
        if one.meaning is other.meaning:
            if same > _SAME:
                message = f"{both} are the same area, drawn twice"
                findings.append(_finding(Severity.NOTE, "drawn twice", image, message, one, other, at=at))
        elif same > _SAME:
            message = f"{both} are the same area under two meanings; delete one"
            findings.append(_finding(Severity.WARNING, "two meanings", image, message, one, other, at=at))
        elif shared < _INSIDE * least:
            message = f"{both} overlap by {area_um2:.0f} µm² and neither lies in the other"
            findings.append(_finding(Severity.WARNING, "partial overlap", image, message, one, other, at=at))
    return findings
