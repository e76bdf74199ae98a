"""What an image's windows are labelled by, told apart from the file that keeps it.

QuPath writes a data file anew whenever it saves, and so does a push through QuPath; its annotations need not
have changed for that. Whether there is anything new to learn is decided by what is drawn.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hnscc_qp.files import sha256_json
from hnscc_qp.patches.outlines import annotated_meanings, is_region
from hnscc_qp.patches.split import Side
from hnscc_qp.qupath.ownership import outline_key
from hnscc_qp.steps.cohort import CohortImage, ReadCohort
from hnscc_qp.steps.context import Context, placement
from hnscc_qp.steps.lessonfile import image_lessons_as_json

AS_DRAWN = "as drawn"
"""Where the manifest of the patches has it."""


def as_drawn(context: Context, cohort: ReadCohort) -> dict[str, dict[str, str]]:
    """Image by image, by entry id: `case`, whose it is and how it lies; `drawn`, what teaches; as hashes."""
    return {
        image.entry.entry_id: {"case": _case(image), "drawn": _drawn(context, image)}
        for image in cohort.images
    }


def anything_to_learn(context: Context, cohort: ReadCohort, before: Mapping[str, Mapping[str, str]]) -> bool:
    """Whether an image came, went or changed hands, or something else is drawn on one of no test patient.

    Args:
        context: of the generation that was cut from `before`.
        cohort: all that takes part now.
        before: as `as_drawn` gave it.
    """
    now = as_drawn(context, cohort)
    sides = {image.entry.entry_id: image.side for image in cohort.images}
    return before.keys() != now.keys() or any(
        before[entry]["case"] != state["case"]
        or (sides[entry] is not Side.TEST and before[entry]["drawn"] != state["drawn"])
        for entry, state in now.items()
    )


def _case(image: CohortImage) -> str:
    case = image.case
    return sha256_json(
        [placement(image.entry), case.patient, case.positive, str(case.surgery), str(image.side)]
    )


def _drawn(context: Context, image: CohortImage) -> str:
    classes = context.study.classes
    found: list[list[Any]] = []
    for item, meaning in annotated_meanings(image.objects, classes):
        if meaning is not None or is_region(item.path_class, classes):
            said = "region" if meaning is None else meaning.name
            found.append([said, str(item.roi_kind), outline_key(item.roi)])
    taught = context.lessons.get(image.entry.entry_id)
    return sha256_json([sorted(found), image_lessons_as_json(taught) if taught else None])
