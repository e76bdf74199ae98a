"""What became of what was pushed: an image's objects now → verdicts.

A pushed detection is looked for by its id, by the `AI origin` of an annotation, and by its very outline,
which finds it where an import gave new ids. If it is gone, or still lies there untouched, a new tumor
annotation in its place counts as the pathologist's own outline of it.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

import shapely
from shapely.geometry.base import BaseGeometry

from hnscc_qp import study
from hnscc_qp.geometry import PixelSize
from hnscc_qp.patches.outlines import Label, meaning_of
from hnscc_qp.patches.territories import polygons_only
from hnscc_qp.qupath.objects import ObjectType, PathClass, PathObject, walk
from hnscc_qp.qupath.ownership import AI_TUMOR, box_key, outline_key
from hnscc_qp.review.pushed import PushedDetection, PushedImage
from hnscc_qp.review.verdicts import Verdict, VerdictKind

AI_REJECTED = PathClass(("AI", "Rejected"), (128, 128, 128))
"""The class that the review script gives to what was rejected."""
_SAME_SHARE = 1e-3
"""Outlines that differ by less of the area are one: QuPath rounds corners to 0.01 px."""
_IN_PLACE_IOU = 0.5
_IN_PLACE_SHARE = 0.5
"""A tumor annotation stands in a detection's place if they overlap by so much of their union, or, where the
detection is gone, if it covers so much of it."""
_SIGNED = (
    re.compile(r".*rejected by (?P<reviewer>.+), (?P<time>\d{4}-\d\d-\d\dT[\d:.]+Z)$", re.S),
    re.compile(r"AI detection, accepted by (?P<reviewer>.+), (?P<time>\d{4}-\d\d-\d\dT[\d:.]+Z)$", re.S),
)
"""What the review script writes into a rejected detection's name and an accepted one's description."""
_DESCRIPTION = "ANNOTATION_DESCRIPTION"
"""Where QuPath keeps an annotation's description among its metadata."""


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What a verdict says of its image and of where it was read."""

    image: str
    entry_id: str
    slide: str
    patient: str
    project: str
    pixel_size: PixelSize
    reviewer: str
    """Of what bears no name."""
    time: str
    time_is: str
    """Of what bears no time: when the image was `saved` or `pulled`."""


@dataclass(frozen=True, slots=True)
class ImageReading:
    """What one image came to."""

    verdicts: tuple[Verdict, ...]
    """Of every detection that is or was there, untouched ones included, and of tumor that was missed."""
    not_imported: int
    """Detections that never arrived in QuPath, or were taken back by us."""
    unknown: int
    """Objects that look like verdicts on detections of which there is no record."""
    notes: tuple[str, ...]


def read_verdicts(
    facts: ImageFacts,
    objects: Sequence[PathObject],
    pushed: Sequence[PushedImage],
    *,
    imported: Collection[UUID],
    classes: study.Classes,
) -> ImageReading:
    """Compare what an image holds now with what was pushed into it.

    Args:
        facts: about the image.
        objects: top-level, as the project has them now.
        pushed: by each generation that pushed something, the oldest first.
        imported: ids that QuPath's image remembers to have been imported; what is among them and
            not there any more was deleted by a pathologist.
        classes: what QuPath's classes mean.
    """
    reader = _Reader(facts, objects, classes)
    # The same outline by the same model may have been pushed by two generations: the later one counts.
    detections = {one.item.id: one for image in pushed for one in image.detections}
    judged: dict[UUID | None, tuple[PushedDetection, PathObject | None]] = {
        key: (one, reader.find(one.item)) for key, one in detections.items()
    }
    fresh = _new_tumor(reader, pushed)
    in_place = _stand_ins(judged, fresh)
    arrived = {image.generation: _has_arrived(image, judged) for image in pushed}
    verdicts: list[Verdict] = []
    not_imported = 0
    for key, (one, found) in judged.items():
        if key in in_place:
            verdicts.append(reader.verdict(VerdictKind.REDRAWN, one, in_place[key]))
        elif found is not None:
            verdicts.append(reader.verdict(reader.kind_of(one, found), one, found))
        elif key in imported or (not imported and one.is_last and arrived.get(one.generation)):
            verdicts.append(reader.verdict(VerdictKind.DELETED, one, None))
        else:
            not_imported += 1
    used = {id(item) for item in in_place.values()}
    covered = [one.item.roi for one in detections.values()]
    verdicts += [
        reader.missed(item, covered, generation=_last_without(item, pushed))
        for item in fresh
        if id(item) not in used
    ]
    notes = []
    if pushed and all(image.before is None for image in pushed):
        notes.append(
            f"{facts.image}: what was annotated before the push is not recorded, so that missed tumor can't "
            "be told from older annotations; push again to record it"
        )
    return ImageReading(tuple(verdicts), not_imported, reader.unknown(detections), tuple(notes))


class _Reader:
    """An image's objects, found by what tells them apart."""

    def __init__(self, facts: ImageFacts, objects: Sequence[PathObject], classes: study.Classes) -> None:
        self._facts = facts
        self._classes = classes
        self._by_id: dict[str, list[PathObject]] = defaultdict(list)
        self._by_box: dict[tuple[float, ...], list[PathObject]] = defaultdict(list)
        self.annotations: list[PathObject] = []
        self._claimed: set[int] = set()
        for _, item in walk(objects):
            if item.type not in (ObjectType.ANNOTATION, ObjectType.DETECTION):
                continue
            for key in {str(item.id), item.metadata.get("AI origin", str(item.id))}:
                self._by_id[key].append(item)
            self._by_box[box_key(item.roi)].append(item)
            if item.type is ObjectType.ANNOTATION:
                self.annotations.append(item)

    def find(self, detection: PathObject) -> PathObject | None:
        """What a pushed detection has become; the pathologist's own copy before an untouched one."""
        outline = outline_key(detection.roi)
        alike = [
            item
            for item in self._by_box.get(box_key(detection.roi), ())
            # Tissue may be annotated for something else with the same outline, and cells detected.
            if (self.is_tumor(item) or _is_ai(item)) and outline_key(item.roi) == outline
        ]
        found = [*self._by_id.get(str(detection.id), ()), *alike]
        self._claimed.update(map(id, found))
        return min(found, key=self._rank, default=None)

    def is_claimed(self, item: PathObject) -> bool:
        """Whether it is what some detection has become."""
        return id(item) in self._claimed

    def is_tumor(self, item: PathObject) -> bool:
        """Whether it is a tumor annotation."""
        return (
            item.type is ObjectType.ANNOTATION and meaning_of(item.path_class, self._classes) is Label.TUMOR
        )

    def _rank(self, item: PathObject) -> int:
        if self.is_tumor(item):
            return 0
        return 2 if item.path_class is not None and item.path_class.names == AI_TUMOR.names else 1

    def kind_of(self, one: PushedDetection, found: PathObject) -> VerdictKind:
        """What was said of a detection that is still there in some form."""
        names = found.path_class.names if found.path_class else ()
        if names == AI_REJECTED.names:
            return VerdictKind.REJECTED
        if not self.is_tumor(found) and names != AI_TUMOR.names:
            return VerdictKind.RECLASSIFIED
        if not is_same_outline(one.item.roi, found.roi):
            return VerdictKind.REDRAWN
        return VerdictKind.ACCEPTED if self.is_tumor(found) else VerdictKind.UNTOUCHED

    def verdict(self, kind: VerdictKind, one: PushedDetection, found: PathObject | None) -> Verdict:
        """The verdict on a pushed detection."""
        kept = kind in (VerdictKind.ACCEPTED, VerdictKind.REDRAWN, VerdictKind.RECLASSIFIED)
        roi = found.roi if found is not None and kept else one.item.roi
        return self._verdict(
            kind, found, roi, pushed=one.item.roi, object_id=one.item.id, model=one.model, by=one.generation
        )

    def missed(self, item: PathObject, covered: list[BaseGeometry], *, generation: str | None) -> Verdict:
        """The verdict that a new tumor annotation is; `covered` was pushed and is nothing new."""
        near = [roi for roi in covered if shapely.intersects(roi, item.roi)]
        return self._verdict(
            VerdictKind.MISSED,
            item,
            item.roi,
            pushed=shapely.union_all(near),
            object_id=item.id or outline_key(item.roi)[:32],
            model=None,
            by=generation,
        )

    def _verdict(
        self,
        kind: VerdictKind,
        found: PathObject | None,
        roi: BaseGeometry,
        *,
        pushed: BaseGeometry,
        object_id: object,
        model: str | None,
        by: str | None,
    ) -> Verdict:
        facts = self._facts
        is_missed = kind is VerdictKind.MISSED
        reviewer, time = _signature(found)
        if kind is VerdictKind.REDRAWN:  # what it states is when it was accepted, and it was edited since
            time = None
        before, after = polygons_only(pushed), polygons_only(roi)
        if kind in (VerdictKind.REJECTED, VerdictKind.DELETED):
            added = remaining = 0.0
        else:
            added = shapely.difference(after, before).area
            remaining = after.area
        removed = 0.0 if is_missed else before.area - shapely.intersection(before, after).area
        if not remaining:
            removed = before.area
        area = facts.pixel_size.area_um2
        return Verdict(
            kind=kind,
            image=facts.image,
            entry_id=facts.entry_id,
            slide=facts.slide,
            patient=facts.patient,
            object_id=str(object_id),
            found_id=None if found is None or found.id is None else str(found.id),
            roi=roi,
            pushed_roi=None if is_missed else pushed,
            path_class=None if found is None or found.path_class is None else str(found.path_class),
            reviewer=reviewer or facts.reviewer,
            time=time or facts.time,
            time_is="stated" if time else facts.time_is,
            project=facts.project,
            model=model,
            generation=by,
            area_before_um2=0.0 if is_missed else round(area(before.area), 2),
            area_after_um2=round(area(remaining), 2),
            added_um2=round(area(added), 2),
            removed_um2=round(area(removed), 2),
        )

    def unknown(self, detections: Mapping[UUID | None, PushedDetection]) -> int:
        """How many objects speak of a detection of ours that no record knows."""
        count = 0
        for items in self._by_id.values():
            for item in items:
                origin = item.metadata.get("AI origin", str(item.id))
                spoken = _is_ai(item) or "AI origin" in item.metadata
                known = any(str(key) == origin for key in detections)
                count += spoken and not known and not self.is_claimed(item)
        return count


def is_same_outline(one: BaseGeometry, other: BaseGeometry) -> bool:
    """Whether two outlines are one but for rounding."""
    if box_key(one) == box_key(other) and outline_key(one) == outline_key(other):
        return True
    one, other = polygons_only(one), polygons_only(other)
    return bool(shapely.symmetric_difference(one, other).area <= _SAME_SHARE * max(one.area, other.area))


def _is_ai(item: PathObject) -> bool:
    names = item.path_class.names if item.path_class else ()
    return names in (AI_TUMOR.names, AI_REJECTED.names)


def _new_tumor(reader: _Reader, pushed: Sequence[PushedImage]) -> list[PathObject]:
    """Tumor annotations with an area that were not there when anything was first pushed."""
    first = next((image.before for image in pushed if image.before is not None), None)
    if first is None:
        return []
    known = _Known(first)
    return [
        item
        for item in reader.annotations
        if reader.is_tumor(item)
        and not reader.is_claimed(item)
        and polygons_only(item.roi).area > 0
        and item not in known
    ]


class _Known:
    """Annotations of a record, to be known again by id or by outline."""

    def __init__(self, before: Sequence[PathObject]) -> None:
        self._ids = {item.id for item in before if item.id is not None}
        self._outlines = {outline_key(item.roi) for item in before}

    def __contains__(self, item: PathObject) -> bool:
        return item.id in self._ids or outline_key(item.roi) in self._outlines


def _last_without(item: PathObject, pushed: Sequence[PushedImage]) -> str | None:
    """The last generation that was pushed before an annotation was drawn."""
    without = [
        image.generation for image in pushed if image.before is not None and item not in _Known(image.before)
    ]
    return without[-1] if without else None


def _stand_ins(
    judged: Mapping[UUID | None, tuple[PushedDetection, PathObject | None]],
    fresh: Sequence[PathObject],
) -> dict[UUID | None, PathObject]:
    """New tumor annotations in the place of detections that are gone, or lie there untouched."""
    if not fresh:
        return {}
    shapes = [polygons_only(item.roi) for item in fresh]
    tree = shapely.STRtree(shapes)
    found: dict[UUID | None, PathObject] = {}
    for key, (one, now) in judged.items():
        if now is not None and not (_is_ai(now) and is_same_outline(one.item.roi, now.roi)):
            continue
        if now is not None and now.path_class is not None and now.path_class.names == AI_REJECTED.names:
            continue
        roi = polygons_only(one.item.roi)
        best = 0.0
        for number in tree.query(roi, predicate="intersects"):
            shared = shapely.intersection(shapes[number], roi).area
            iou = shared / (roi.area + shapes[number].area - shared)
            covers = now is None and shared >= _IN_PLACE_SHARE * roi.area
            if (iou >= _IN_PLACE_IOU or covers) and shared > best:
                best, found[key] = shared, fresh[number]
    return found


def _has_arrived(
    image: PushedImage, judged: Mapping[UUID | None, tuple[PushedDetection, PathObject | None]]
) -> bool:
    """Whether QuPath has some of a generation's last push: an import takes all of a file, or nothing."""
    return any(one.is_last and judged[one.item.id][1] is not None for one in image.detections)


def _signature(item: PathObject | None) -> tuple[str | None, str | None]:
    """Who reviewed an object and when, as far as it says so itself."""
    if item is None:
        return None, None
    reviewer, time = item.metadata.get("AI reviewer"), item.metadata.get("AI reviewed at")
    if reviewer and time:
        return reviewer, time
    for text in _texts(item):
        for signed in _SIGNED:
            if found := signed.match(text):
                return found["reviewer"], found["time"]
    return reviewer, time


def _texts(item: PathObject) -> Iterator[str]:
    yield item.name or ""
    yield item.metadata.get(_DESCRIPTION, "")
