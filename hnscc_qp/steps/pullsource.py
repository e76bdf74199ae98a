"""Where verdicts are read from: the study's project or a copy of it, and what was pushed there."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from hnscc_qp.errors import StudyError, listed
from hnscc_qp.generation import Generation, all_generations
from hnscc_qp.geometry import PixelSize
from hnscc_qp.qupath.project import ImageEntry, Project, open_project
from hnscc_qp.review.log import now
from hnscc_qp.review.pushed import PUSHED_FOLDER, PushedImage, read_pushed
from hnscc_qp.review.verdict_reading import ImageFacts
from hnscc_qp.steps import push, regions
from hnscc_qp.steps.context import Context, image_file

STUDY_PROJECT = "project"
"""What the study's own project is called in the log."""


@dataclass(frozen=True, slots=True)
class ReviewedProject:
    """A project to read verdicts from."""

    project: Project
    name: str
    """In the log."""
    images: tuple[tuple[ImageEntry, ImageEntry], ...]
    """The project's image, and the study's that it is."""
    notes: tuple[str, ...]


def open_reviewed(context: Context, path: Path | None) -> ReviewedProject:
    """Open a project that was reviewed, and tell which image of the study each of its images is.

    Args:
        context: the study.
        path: of a copy of the study's project; the study's own if None.

    Raises:
        StudyError: the copy has no image of the study.
        ProjectNotFoundError, ProjectError: as `open_project`.
    """
    own = {image.entry_id: image for image in context.project.images}
    if path is None:
        pairs = tuple((image, image) for image in own.values())
        return ReviewedProject(context.project, STUDY_PROJECT, pairs, tuple(context.project.notes))
    study = context.study
    project = open_project(path, backend=study.backend, slide_folders=study.slides)
    if project.path.resolve() == context.project.path.resolve():
        return open_reviewed(context, None)
    by_slide: dict[str, list[ImageEntry]] = defaultdict(list)
    for image in own.values():
        by_slide[slide_file(image)].append(image)
    found, foreign = [], []
    for image in project.images:
        same = own.get(image.entry_id)
        if same is None or slide_file(same) != slide_file(image):
            alike = by_slide[slide_file(image)]
            same = alike[0] if len(alike) == 1 else None
        if same is None:
            foreign.append(image.name)
        else:
            found.append((image, same))
    if not found:
        raise StudyError(
            f"{project.path} has no image of this study ({listed(foreign)} are others); give a copy of "
            f"{context.project.path}"
        )
    notes = (*project.notes, *([f"not in this study: {listed(foreign)}"] if foreign else []))
    folder = project.path.resolve().parent
    return ReviewedProject(project, f"{folder.parent.name}/{folder.name}", tuple(found), notes)


def facts_of(
    context: Context, source: ReviewedProject, image: ImageEntry, own: ImageEntry, *, reviewer: str
) -> ImageFacts:
    """What verdicts are to say of an image.

    Args:
        context: the study.
        source: where they are read from.
        image: as the source has it.
        own: as the study has it.
        reviewer: of what bears no name.

    Raises:
        HnsccQpError: the image has no pixel size in the project, and its slide can't be opened.
    """
    saved = source.project.saved_at(image)
    when = now() if saved is None else as_utc(saved)
    return ImageFacts(
        image=own.name,
        entry_id=own.entry_id,
        slide=slide_file(own),
        patient=own.metadata.get(context.study.cohort.patient, "").strip() or own.name,
        project=source.name,
        pixel_size=pixel_size_of(context, own),
        reviewer=reviewer,
        time=when,
        time_is="pulled" if saved is None else "saved",
    )


def pixel_size_of(context: Context, image: ImageEntry) -> PixelSize:
    """Of a QuPath px; the slide is opened only if the project does not say."""
    return image.pixel_size or context.open_as_scanned(image).pixel_size


def slide_file(image: ImageEntry) -> str:
    """The file name of an image's slide: it stays when the image is renamed or the project moves."""
    return image.uri.rpartition("/")[2]


def pushed_generations(context: Context) -> tuple[Generation, ...]:
    """The generations that pushed something, the oldest first."""
    return tuple(one for one in all_generations(context.study) if one.step(push.STEP).is_dir())


def read_pushes(pushes: Sequence[Generation], image: ImageEntry) -> tuple[PushedImage, ...]:
    """What each generation pushed into an image, the oldest first.

    Raises:
        ObjectDataError: a record is damaged.
    """
    found = []
    for generation in pushes:
        # A push of before records were kept left a manifest only; what it pushed were the regions.
        unrecorded = generation.manifest(push.STEP) is not None
        fallback = image_file(generation.step(regions.STEP), image, ".geojson") if unrecorded else None
        found.append(read_pushed(generation.path, image, fallback=fallback))
    return tuple(filter(None, found))


def was_pushed(pushes: Sequence[Generation], image: ImageEntry) -> bool:
    """Whether any generation pushed into an image, as far as files tell without being read."""
    return any(
        any((generation.step(push.STEP) / PUSHED_FOLDER).glob(f"{image.entry_id} *.geojson"))
        or image_file(generation.step(regions.STEP), image, ".geojson").is_file()
        for generation in pushes
    )


def as_utc(seconds: float) -> str:
    """Seconds since 1970 as the log writes times."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
