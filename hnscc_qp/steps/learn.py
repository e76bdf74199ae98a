"""What a generation learns from review: the log's lessons, laid down beside its patches.

`lessons/lessons.json` of a generation holds every region that verdicts teach, image by image, and who was
refused: nothing of a patient of the test set ever gets there, whatever was annotated on the slides.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from hnscc_qp.files import sha256_file, write_json
from hnscc_qp.generation import make_manifest, write_manifest
from hnscc_qp.patches.frozen import FrozenSides, read_frozen
from hnscc_qp.review.verdicts import ImageLessons, LessonKind, Lessons
from hnscc_qp.steps.cohort import sides_file
from hnscc_qp.steps.context import Context, Manifest
from hnscc_qp.steps.lessonfile import LESSONS_FILE, STEP, lessons_as_json
from hnscc_qp.steps.promote import log_entries
from hnscc_qp.steps.pull import VERDICT_EVENT, read_lessons


@dataclass(frozen=True, slots=True)
class TaughtNow:
    """What review teaches as of the log's last verdict."""

    found: Lessons
    admitted: tuple[ImageLessons, ...]
    """Of these images it is learnt."""
    refused: Mapping[str, str]
    """Image name → why its lessons are not."""
    head: str | None
    """Hash of the log's last verdict."""
    verdicts: int
    """Entries of the log that are verdicts."""

    @property
    def lessons(self) -> dict[str, ImageLessons]:
        """The admitted images by entry id."""
        return {image.entry_id: image for image in self.admitted}

    @property
    def regions(self) -> dict[str, int]:
        """Regions to learn from, by kind."""
        counts = Counter(lesson.kind for image in self.admitted for lesson in image.lessons)
        return {str(kind): counts[kind] for kind in LessonKind}

    @property
    def sentence(self) -> str:
        """What there is to learn, in a few words."""
        if not self.verdicts:
            return "no verdicts, what is annotated now"
        regions = sum(self.regions.values())
        return f"{regions} regions of {len(self.admitted)} images from {self.verdicts} verdicts"

    @property
    def remarks(self) -> list[str]:
        """What a person should know, each in one line."""
        left_out = [f"{name} teaches nothing: {reason}" for name, reason in self.found.left_out.items()]
        conflicts = [f"reviewers disagree, nothing is learnt there: {one}" for one in self.found.conflicts]
        return [*self.refused.values(), *conflicts, *left_out]


def taught_now(context: Context) -> TaughtNow:
    """What the standing verdicts of the log teach, without what the sealed test set forbids.

    Sides are given when patches are cut and kept for good, so that who is of the test set is known by then.

    Raises:
        ReviewLogError: the log's chain is broken.
        StepError: the file of the patients' sides is damaged.
    """
    entries = log_entries(context.study, VERDICT_EVENT)
    head = entries[-1].hash if entries else None
    found = read_lessons(context, entries=entries)
    frozen = read_frozen(sides_file(context))
    admitted, refused = [], {}
    for image in found:
        if _tests(image, frozen):
            refused[image.image] = (
                f"refused: {image.image} is a slide of {image.patient}, of the sealed test set; what was "
                f"reviewed on it ({len(image.lessons)} regions) teaches nothing"
            )
        elif image.lessons:
            admitted.append(image)
    return TaughtNow(found, tuple(admitted), refused, head, len(entries))


def learn_from_review(context: Context) -> Manifest:
    """Write down what review teaches this generation; raises as `taught_now`."""
    started = time.time()
    taught = taught_now(context)
    settings = context.study.settings("review", "classes")
    inputs = {"review log": str(taught.head), "refused": ", ".join(sorted(taught.refused))}
    inputs |= {f"image {image.entry_id}": image.name for image in context.project.images}
    if done := context.finished(STEP, settings, inputs):
        return done
    for line in taught.remarks:
        context.progress.warn(line)
    folder = context.generation.step(STEP)
    write_json(folder / LESSONS_FILE, lessons_as_json(taught.found, taught.admitted, taught.refused))
    manifest = make_manifest(
        step=STEP,
        settings=settings,
        inputs=inputs,
        outputs={LESSONS_FILE: sha256_file(folder / LESSONS_FILE)},
        counts={
            "verdicts": taught.verdicts,
            "images": len(taught.admitted),
            "regions": taught.regions,
            "conflicts": len(taught.found.conflicts),
            "refused images": len(taught.refused),
        },
        started=started,
        notes=taught.remarks,
    )
    write_manifest(folder, manifest)
    return manifest


def _tests(image: ImageLessons, frozen: FrozenSides | None) -> bool:
    if frozen is None:
        return False
    seat = f"{image.entry_id} {image.slide}"
    return bool(frozen.patients.get(image.patient) or frozen.images.get(seat))
