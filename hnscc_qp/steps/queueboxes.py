"""Boxes of class `AI: Review` in QuPath round the places of the queue, and what became of them."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from shapely.geometry import box

from hnscc_qp.errors import StepError
from hnscc_qp.qupath.embedded import REVIEW_FOLDER, sidecar_path
from hnscc_qp.qupath.objects import ObjectType, PathObject, RoiKind, walk
from hnscc_qp.qupath.ownership import AI_REVIEW, detection_id, is_ours
from hnscc_qp.qupath.project import ImageEntry
from hnscc_qp.review.queue import ErrorRate, Place, QueueItem, Stratum, estimate_errors
from hnscc_qp.review.verdict_lessons import standing
from hnscc_qp.review.verdicts import Verdict, VerdictKind
from hnscc_qp.steps.context import Context
from hnscc_qp.steps.pull import review_log, verdicts_of

_CALLED_RIGHT = (VerdictKind.ACCEPTED, VerdictKind.REDRAWN)


def push_queue(context: Context) -> dict[str, int]:
    """Put a box of class `AI: Review` round every place of the queue, through the rules of ownership.

    Returns:
        Image name → boxes that are there now.

    Raises:
        StepError: there is no queue.
    """
    queue = _read_queue(context)
    boxes: dict[str, list[PathObject]] = defaultdict(list)
    for row in queue["items"]:
        boxes[row["place"]["entry_id"]].append(box_object(_item(row), queue["made"], queue["generation"]))
    return _write_boxes(context, boxes)


def remove_queue(context: Context) -> dict[str, int]:
    """Take away the boxes that nobody touched; image name → boxes that were there."""
    return _write_boxes(context, {})


def estimate_from_queue(context: Context) -> tuple[ErrorRate, ...]:
    """How often the model is wrong, by the answers to the random part of the queue.

    A box that is gone, or that was given another class or name, has been looked at. A detection counts as
    right if it was accepted or redrawn, as wrong if it was rejected; a silent place as wrong if new
    tumor was annotated in its box. What has no such answer is open.

    Raises:
        StepError: there is no queue.
        ReviewLogError: the log is broken.
    """
    queue = _read_queue(context)
    said = standing(verdicts_of(review_log(context).read()))
    by_object = {verdict.object_id: verdict for verdict in said}
    missed = defaultdict(list)
    for verdict in said:
        if verdict.kind is VerdictKind.MISSED:
            missed[verdict.entry_id].append(verdict.roi)
    images = {image.entry_id: image for image in context.project.images}
    looked_at: dict[str, set[str]] = {}
    answers: dict[Stratum, dict[int, bool | None]] = {kind: {} for kind in Stratum}
    for row in queue["items"]:
        item = _item(row)
        if item.drawn is None:
            continue
        place = item.place
        if place.stratum is Stratum.DETECTION:
            answer = _detection_answer(by_object.get(place.object_id or ""))
        elif any(roi.intersects(box(*place.box_qupath)) for roi in missed[place.entry_id]):
            answer = True
        else:
            if place.entry_id not in looked_at:
                image = images.get(place.entry_id)
                own = [UUID(r["box_id"]) for r in queue["items"] if r["place"]["entry_id"] == place.entry_id]
                looked_at[place.entry_id] = _looked_at(context, image, own) if image else set()
            answer = False if row["box_id"] in looked_at[place.entry_id] else None
        answers[place.stratum][item.drawn] = answer
    return tuple(
        estimate_errors(
            [answer for _, answer in sorted(found.items())], stratum=kind, frame=queue["frame"][str(kind)]
        )
        for kind, found in answers.items()
    )


def box_object(item: QueueItem, made: str, generation: str) -> PathObject:
    """The box of a place, as QuPath gets it."""
    roi = box(*item.place.box_qupath)
    return PathObject(
        ObjectType.DETECTION,
        roi,
        RoiKind.RECTANGLE,
        roi.area,
        # Of this queue: one that was looked at for an earlier queue is not meant.
        detection_id(roi, slide_name=item.place.image, model_hash=f"queue {made}"),
        path_class=AI_REVIEW,
        measurements={
            "AI: Review rank": float(item.rank),
            "AI: Review value": round(item.value, 4),
            "AI: Max score": item.place.max_score,
        },
        metadata={
            "AI generation": generation,
            "AI review because": "drawn at random" if item.drawn else "of value to the model",
            "AI note": "Research use only",
        },
    )


def _write_boxes(context: Context, boxes: Mapping[str, Sequence[PathObject]]) -> dict[str, int]:
    done: dict[str, int] = {}
    project = context.project.path

    def write(image: ImageEntry) -> None:
        wanted = boxes.get(image.entry_id, ())
        plan = context.project.plan_detections(image, wanted, kind=AI_REVIEW)
        # An image that has none and never had needs no file to say so.
        if wanted or plan.changes or sidecar_path(project.parent, REVIEW_FOLDER, image).is_file():
            context.project.write_detections(image, wanted, kind=AI_REVIEW)
        count = len(plan.add) + len(plan.keep) if boxes else len(plan.remove)
        if count:
            done[image.name] = count

    context.each_image(context.project.images, write, doing="writing boxes")
    return done


def _detection_answer(verdict: Verdict | None) -> bool | None:
    if verdict is None:
        return None
    if verdict.kind is VerdictKind.REJECTED:
        return True
    return False if verdict.kind in _CALLED_RIGHT else None


def _looked_at(context: Context, image: ImageEntry, own: Sequence[UUID]) -> set[str]:
    """Boxes that the pathologist deleted or changed."""
    there = {item.id: item for _, item in walk(context.project.objects(image)) if item.id is not None}
    imported = context.project.imported_ids(image)
    arrived = any(identifier in there for identifier in own)
    found = set()
    for identifier in own:
        item = there.get(identifier)
        if item is not None:
            if not is_ours(item):
                found.add(str(identifier))
        elif identifier in imported or (not imported and arrived):
            found.add(str(identifier))
    return found


def _read_queue(context: Context) -> dict[str, Any]:
    path = review_log(context).folder / "queue" / "queue.json"
    try:
        queue: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StepError(f"there is no queue yet; run: hnscc-qp queue {context.study.path}") from None
    except (OSError, ValueError) as error:
        raise StepError(f"{path} is damaged ({error}); run hnscc-qp queue again") from error
    return queue


def _item(row: Mapping[str, Any]) -> QueueItem:
    place = Place(
        **row["place"]
        | {"stratum": Stratum(row["place"]["stratum"]), "box_qupath": tuple(row["place"]["box_qupath"])}
    )
    return QueueItem(row["rank"], place, row["value"], row["drawn"])
