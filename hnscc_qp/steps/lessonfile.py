"""`lessons.json`: what review teaches a generation, as its later steps read it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import shapely

from hnscc_qp.errors import StepError
from hnscc_qp.review.verdicts import ImageLessons, Lesson, LessonKind, Lessons, VerdictKind

STEP = "lessons"
LESSONS_FILE = "lessons.json"


def lessons_as_json(
    found: Lessons, admitted: Sequence[ImageLessons], refused: Mapping[str, str]
) -> dict[str, Any]:
    """Lessons as JSON values; shapes as WKT, to the last digit.

    Args:
        found: all that the log has to teach.
        admitted: the images of which this is learnt.
        refused: image name → why it is not.
    """
    return {
        "log head": found.head,
        "images": [image_lessons_as_json(image) for image in admitted],
        "refused": dict(refused),
        "conflicts": [str(conflict) for conflict in found.conflicts],
        "left out": dict(found.left_out),
    }


def image_lessons_as_json(image: ImageLessons) -> dict[str, Any]:
    """What one image teaches."""
    return {
        "entry_id": image.entry_id,
        "image": image.image,
        "slide": image.slide,
        "patient": image.patient,
        "lessons": [
            {
                "kind": str(lesson.kind),
                "because": str(lesson.because),
                "trust": lesson.trust,
                "object_id": lesson.object_id,
                "generation": lesson.generation,
                "reviewers": list(lesson.reviewers),
                "roi": shapely.to_wkt(lesson.roi, rounding_precision=-1),
            }
            for lesson in image.lessons
        ],
    }


def read_lessons(folder: Path) -> dict[str, ImageLessons]:
    """By entry id what a generation's images teach; nothing if it learns from no review.

    Args:
        folder: of the step.

    Raises:
        StepError: the file is damaged.
    """
    path = folder / LESSONS_FILE
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["images"]
        return {row["entry_id"]: _image(row) for row in rows}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, shapely.GEOSException) as error:
        raise StepError(f"{path} is damaged ({error}); delete it and run hnscc-qp retrain again") from error


def _image(row: Mapping[str, Any]) -> ImageLessons:
    return ImageLessons(
        entry_id=row["entry_id"],
        image=row["image"],
        slide=row["slide"],
        patient=row["patient"],
        lessons=tuple(
            Lesson(
                kind=LessonKind(one["kind"]),
                roi=shapely.from_wkt(one["roi"]),
                trust=float(one["trust"]),
                because=VerdictKind(one["because"]),
                object_id=one["object_id"],
                generation=one["generation"],
                reviewers=tuple(one["reviewers"]),
            )
            for one in row["lessons"]
        ),
    )
