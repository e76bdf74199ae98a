"""Which objects are ours, which the pathologist touched, and what a write may add, replace or keep.

An object is ours, to replace or remove, only while it is a detection of class `AI: Tumor` (or `AI: Review`,
a box that asks for a look; either is written by itself and leaves the other alone) whose id seals its very
shape, without name, lock, colour or metadata of another hand, and without children. Whatever is
not, is the pathologist's. The mark is the id, because every QuPath from 0.4 on keeps it: metadata of
detections survive from 0.6 on only, and a class can be given to anything. What QuPath computes (further
measurements) makes an object nobody's.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.geometry.base import BaseGeometry

from hnscc_qp.qupath.objects import ObjectType, PathClass, PathObject, walk
from hnscc_qp.qupath.shapes import DECIMALS, GRID_PX, settle

AI_TUMOR = PathClass(("AI", "Tumor"), (255, 90, 0))
"""The class of what we find."""
AI_REVIEW = PathClass(("AI", "Review"), (0, 114, 178))
"""The class of boxes round what is to be looked at next; no other class than these two is ever ours."""
_OURS = (AI_TUMOR.names, AI_REVIEW.names)
MEMORY_PROPERTY = "hnscc-qp imported detections"
"""The image's property in QuPath that lists the ids that were ever imported; the import script's, too."""
METADATA_PREFIX = "AI "
"""Our detections' metadata keys begin so; any other key is the pathologist's."""

_UUID_SPACE = uuid.uuid5(uuid.NAMESPACE_URL, "hnscc-qp/region/2")
_SEAL_BITS = 80


@dataclass(frozen=True, slots=True)
class WritePlan:
    """What writing would do to an image; an id in both `add` and `remove` is replaced."""

    add: tuple[PathObject, ...]
    """Incoming, not there yet, or there with other measurements."""
    remove: tuple[PathObject, ...]
    """Ours and untouched, but not among the incoming any more (or not like this)."""
    keep: tuple[PathObject, ...]
    """Ours and untouched, and there already as wanted."""
    theirs: tuple[PathObject, ...]
    """Once ours or like ours, and the pathologist's since they touched it: left as it is."""
    held_back: tuple[PathObject, ...]
    """Incoming, but the pathologist has one of that id or very shape, or deleted it: not written."""

    @property
    def changes(self) -> bool:
        """Whether there is anything to write."""
        return bool(self.add or self.remove)

    @property
    def replaced(self) -> int:
        """How many of `add` take the place of the object with their id."""
        return len({item.id for item in self.remove} & {item.id for item in self.add})

    @property
    def left(self) -> int:
        """How many regions are left to the pathologist; one of `theirs` that holds one back counts once."""
        ids = {item.id for item in self.held_back}
        outlines = {outline_key(item.roi) for item in self.held_back}
        alone = [item for item in self.theirs if item.id not in ids and outline_key(item.roi) not in outlines]
        return len(self.held_back) + len(alone)


def detection_id(roi: BaseGeometry, *, slide_name: str, model_hash: str) -> uuid.UUID:
    """A UUID of version 5 that depends on the slide, the model and the shape, and seals the shape.

    The first 48 bits tell slide, model and shape apart; the others hash those and the shape once
    more, so that `is_sealed` can tell from id and shape alone whether a shape is as we drew it.
    """
    outline = outline_key(settle(roi))
    source = uuid.uuid5(_UUID_SPACE, f"{slide_name}\n{model_hash}\n{outline}")
    return _sealed(source.int >> _SEAL_BITS, outline)


def is_sealed(identifier: uuid.UUID | None, roi: BaseGeometry) -> bool:
    """Whether `detection_id` gave this id to this very shape, for whatever slide and model."""
    if identifier is None or identifier.version != 5:
        return False
    return _sealed(identifier.int >> _SEAL_BITS, outline_key(roi)) == identifier


def is_ours(item: PathObject) -> bool:
    """Whether an object is ours and the pathologist has not touched it."""
    return (
        item.type is ObjectType.DETECTION
        and item.path_class is not None
        and item.path_class.names in _OURS
        and not item.locked
        and item.name is None
        and item.color is None
        and not item.children
        and all(key.startswith(METADATA_PREFIX) for key in item.metadata)
        and is_sealed(item.id, item.roi)
    )


def plan_write(
    existing: Iterable[PathObject],
    incoming: Sequence[PathObject],
    *,
    memory: str = "",
    kind: PathClass = AI_TUMOR,
) -> WritePlan:
    """Compare an image's objects (top-level, children below) with the detections to be written.

    Planning again after the plan was carried out changes nothing.

    Args:
        existing: the image's objects.
        incoming: what is to be there.
        memory: the image's `MEMORY_PROPERTY`. What it lists and is there no more was deleted by the
            pathologist, and is held back.
        kind: the class of what is to be there; ours of the other class stay as they are.
    """
    wanted = {item.id: item for item in incoming}
    boxes = {box_key(item.roi) for item in incoming}
    keep: dict[uuid.UUID | None, PathObject] = {}
    remove: list[PathObject] = []
    theirs: list[PathObject] = []
    taken_ids: set[uuid.UUID | None] = set()
    taken_outlines: set[str] = set()
    for _, item in walk(existing):
        if is_ours(item):
            if item.path_class is None or item.path_class.names != kind.names:
                continue
            new = wanted.get(item.id)
            # QuPath imports a file twice without a word: a second copy of ours goes.
            if new is not None and item.id not in keep and _says_the_same(item, new):
                keep[item.id] = item
            else:
                remove.append(item)
            continue
        taken_ids.add(item.id)
        # Who accepts a detection makes an annotation of the same shape, with an id of its own.
        if box_key(item.roi) in boxes:
            taken_outlines.add(outline_key(item.roi))
        if _looks_like_ours(item):
            theirs.append(item)
    add, held_back = [], []
    deleted = remembered_ids(memory) - taken_ids - keep.keys() - {item.id for item in remove}
    for item in wanted.values():
        if (
            item.id in taken_ids
            or item.id in deleted
            or (taken_outlines and outline_key(item.roi) in taken_outlines)
        ):
            held_back.append(item)
        elif item.id not in keep:
            add.append(item)
    held_ids = {item.id for item in held_back}
    # Held back although ours is there: the pathologist has a copy, and ours is one too many.
    remove += [item for key, item in keep.items() if key in held_ids]
    kept = tuple(item for key, item in keep.items() if key not in held_ids)
    return WritePlan(tuple(add), tuple(remove), kept, tuple(theirs), tuple(held_back))


def remember(memory: str, plan: WritePlan) -> str:
    """The image's `MEMORY_PROPERTY` after the plan; what we take away ourselves was not deleted."""
    ids = remembered_ids(memory) - {item.id for item in plan.remove} | {
        item.id for item in plan.add + plan.keep
    }
    return "\n".join(sorted(map(str, ids)))


def find_damage(
    before: Iterable[PathObject], after: Iterable[PathObject], plan: WritePlan, *, exact: bool
) -> str | None:
    """Check a written image against what was there: a clause that says what is wrong, or None.

    Args:
        before: the image's objects before the write, as read from the file.
        after: the same, of the file that is to take its place.
        plan: what was to be done.
        exact: whether shapes must be the same to the last bit. QuPath 0.6 and later round some of the
            shapes of older versions to 0.01 px when reading them; that much is let pass if not.
    """
    gone = Counter(item.id for item in plan.remove)
    left = []
    for depth, item in walk(before):
        if gone[item.id] and is_ours(item):
            gone[item.id] -= 1
        else:
            left.append((depth, item))
    added = {item.id for item in plan.add}
    written = list(walk(after))
    new = [item for _, item in written if item.id in added]
    if len(new) != len(added) or not all(item.type is ObjectType.DETECTION for item in new):
        return "our detections did not arrive"
    others = [(depth, item) for depth, item in written if item.id not in added]
    for (depth, item), (depth_after, item_after) in zip(left, others, strict=False):
        if depth != depth_after or not _same(item, item_after, exact=exact):
            return f"the {item.type} {item.name or item.path_class or 'without a class'} would change"
    return None if len(left) == len(others) else "objects would be lost or doubled"


def remembered_ids(memory: str) -> frozenset[uuid.UUID]:
    """The ids in an image's `MEMORY_PROPERTY`; words that are none are passed over."""
    found: set[uuid.UUID] = set()
    for word in memory.split():
        with suppress(ValueError):
            found.add(uuid.UUID(word))
    return frozenset(found)


def _looks_like_ours(item: PathObject) -> bool:
    named_so = item.path_class is not None and item.path_class.names[0] == AI_TUMOR.names[0]
    return named_so or (item.id is not None and item.id.version == 5)


def _says_the_same(there: PathObject, new: PathObject) -> bool:
    """Whether an object with the incoming one's id needs no replacement."""
    for name, value in new.measurements.items():
        # QuPath saves a detection's measurements in single precision.
        if np.float32(there.measurements.get(name, np.nan)) != np.float32(value):
            return False
    # Before 0.6 QuPath drops a detection's metadata.
    return not there.metadata or there.metadata == new.metadata


def _same(one: PathObject, other: PathObject, *, exact: bool) -> bool:
    plain = all(
        getattr(one, name) == getattr(other, name)
        for name in ("type", "name", "path_class", "locked", "color", "roi_kind", "metadata")
    )
    # QuPath before 0.4 gave no ids, and an image of it gets them when a later one saves it.
    known = one.id is None or one.id == other.id
    measured = one.measurements.keys() == other.measurements.keys() and np.array_equal(
        list(one.measurements.values()),
        [other.measurements[name] for name in one.measurements],
        equal_nan=True,
    )
    return (
        plain
        and known
        and measured
        and _same_shape(one.roi, other.roi, exact=exact)
        and _same_shape(one.nucleus_roi, other.nucleus_roi, exact=exact)
    )


def _same_shape(one: BaseGeometry | None, other: BaseGeometry | None, *, exact: bool) -> bool:
    if one is None or other is None:
        return one is other
    if exact:
        return bool(shapely.equals_exact(one, other, tolerance=0.0))
    # In single precision a rounded coordinate lies off by up to half of its last digit.
    last_digit = float(np.spacing(np.float32(max(map(abs, one.bounds), default=0.0))))
    return bool(shapely.equals_exact(one, other, tolerance=GRID_PX + last_digit))


def box_key(roi: BaseGeometry) -> tuple[float, ...]:
    """The shape's bounds as QuPath holds them: shapes of one `outline_key` have one."""
    return tuple(_stored(np.array(shapely.bounds(roi))).tolist())


def outline_key(roi: BaseGeometry) -> str:
    """The shape's corners, in whatever order, as QuPath holds them: what names the shape."""
    rings = shapely.get_rings(shapely.get_parts(roi))  # of several parts, all
    corners = np.concatenate([_corners(ring) for ring in rings]) if len(rings) else _stored_points(roi)
    # As complex numbers, because sorting pairs is slow.
    return np.unique(corners.view(np.complex64)).astype("<c8").tobytes().hex()


def _corners(ring: shapely.LinearRing) -> NDArray[np.float32]:
    """Without those that lie on an upright or level side, for QuPath before 0.6 drops them."""
    points = _stored_points(ring)
    stays = np.diff(points, axis=0) == 0
    if stays.all(axis=1).any():  # twice the same point
        points = points[np.append(True, ~stays.all(axis=1))]
        stays = np.diff(points, axis=0) == 0
    straight = (stays & np.concatenate((stays[-1:], stays[:-1]))).any(axis=1)
    corners: NDArray[np.float32] = points[:-1][~straight]
    return corners


def _stored_points(shape: BaseGeometry) -> NDArray[np.float32]:
    return _stored(shapely.get_coordinates(shape))


def _stored(coordinates: NDArray[np.float64]) -> NDArray[np.float32]:
    """Rounded to QuPath's grid, in the single precision of its polygons; storing again changes nothing."""
    return (np.round(coordinates, DECIMALS) + 0.0).astype(np.float32)


def _sealed(source: int, outline: str) -> uuid.UUID:
    # The seal's own bits keep its version and variant.
    seal = uuid.uuid5(_UUID_SPACE, f"{source:012x}\n{outline}").int & ((1 << _SEAL_BITS) - 1)
    return uuid.UUID(int=source << _SEAL_BITS | seal)
