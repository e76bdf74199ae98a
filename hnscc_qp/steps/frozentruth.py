"""The truth of the test set, as it was before anybody saw a detection on it.

A reviewer who accepts what a generation found draws that generation's outlines into the truth, and so makes
it look better than its successor. So the test slides' annotations are laid down in `generations/test-truth`
when a slide is first put into the test set, and the promotion gate judges every generation by them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from hnscc_qp.errors import StepError
from hnscc_qp.files import write_json
from hnscc_qp.generation import generations_folder, utc_now
from hnscc_qp.patches.labels import annotated_meanings, is_region
from hnscc_qp.patches.split import Side
from hnscc_qp.qupath.geojson import read_geojson, write_geojson
from hnscc_qp.qupath.objects import PathObject
from hnscc_qp.qupath.project import ImageEntry
from hnscc_qp.steps.cohort import CohortImage
from hnscc_qp.steps.context import Context, image_file

FOLDER = "test-truth"


@dataclass(frozen=True, slots=True)
class FrozenSlide:
    """What counts as true of a test slide, whatever is annotated on it later."""

    positive: bool
    objects: tuple[PathObject, ...]
    """Its annotations that mean something to the study."""
    frozen: str
    """When, in UTC."""


def freeze_truth(context: Context, images: Iterable[CohortImage]) -> list[str]:
    """Keep the annotations of those test images whose truth is not kept yet; returns their names."""
    kept = []
    for image in images:
        note = _file(context, image.entry, ".json")
        if image.side is not Side.TEST or note.exists():
            continue
        classes = context.study.classes
        objects = [
            replace(item, children=())
            for item, meaning in annotated_meanings(image.objects, classes)
            if meaning is not None or is_region(item.path_class, classes)
        ]
        write_geojson(_file(context, image.entry, ".geojson"), objects)
        # Written last: with it the slide's truth is kept.
        write_json(
            note,
            {
                "image": image.entry.name,
                "patient": image.case.patient,
                "positive": image.case.positive,
                "annotations": len(objects),
                "frozen": utc_now(),
            },
        )
        kept.append(image.entry.name)
    return kept


def frozen_truth(context: Context, image: ImageEntry) -> FrozenSlide | None:
    """What is kept of a test image; None if nothing is.

    Raises:
        StepError: it is damaged.
    """
    note = _file(context, image, ".json")
    try:
        value = json.loads(note.read_text(encoding="utf-8"))
        read = read_geojson(_file(context, image, ".geojson"))
        if read.skipped or len(read.objects) != value["annotations"]:
            raise ValueError("annotations are missing")
        return FrozenSlide(bool(value["positive"]), read.objects, str(value["frozen"]))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StepError(
            f"{note.parent} is damaged ({error}), and with it the truth that generations are judged by; "
            "restore it from a backup"
        ) from error


def _file(context: Context, image: ImageEntry, suffix: str) -> Path:
    return image_file(generations_folder(context.study) / FOLDER, image, suffix)
