"""What every step of a study works with."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

from hnscc_qp.errors import HnsccQpError, UnsupportedServerError
from hnscc_qp.files import sha256_json
from hnscc_qp.generation import Generation, all_generations, current_generation, step_key
from hnscc_qp.patches.cases import stated_status
from hnscc_qp.patches.seal import SealedSplit
from hnscc_qp.patches.sources.truth import fingerprint, read_truth, truth_file
from hnscc_qp.progress import Progress
from hnscc_qp.qupath.geojson import sidecar_name
from hnscc_qp.qupath.objects import PathObject
from hnscc_qp.qupath.project import ImageEntry, Project, open_project
from hnscc_qp.review.verdicts import ImageLessons
from hnscc_qp.slides.reader import Slide, open_slide
from hnscc_qp.slides.stain import (
    NormalisedSlide,
    StainFit,
    StainTarget,
    fit_slide,
    read_fit,
    stain_target,
    write_fit,
)
from hnscc_qp.steps.lessonfile import STEP as LESSONS
from hnscc_qp.steps.lessonfile import image_lessons_as_json, read_lessons
from hnscc_qp.steps.reviewed import learnt_annotations
from hnscc_qp.study import Study, Truth

Manifest = dict[str, Any]
T = TypeVar("T")


@dataclass(frozen=True)
class Context:
    """A study, its project, its current generation, and who watches."""

    study: Study
    progress: Progress
    force: bool = False
    """Do a step again although it is done."""
    max_minutes: float | None = None
    """Stop a training after so long."""
    at: Generation | None = None
    """Work in this generation, in use or not, and not in the one that is in use."""

    @property
    def workers(self) -> int:
        """How many slides to work on at once."""
        return self.study.workers or available_cpus()

    @cached_property
    def project(self) -> Project:
        """The QuPath project, opened once."""
        return open_project(self.study.project, backend=self.study.backend, slide_folders=self.study.slides)

    @cached_property
    def generation(self) -> Generation:
        """The one to work in: that in use, if none is named; the first is made when a step needs it."""
        return self.at or current_generation(self.study, create=True)

    def finished(
        self,
        step: str,
        settings: Mapping[str, Any],
        inputs: Mapping[str, str],
        *,
        file_of: Callable[[Context, ImageEntry], Path] | None = None,
    ) -> Manifest | None:
        """The manifest of `step` if it was done with just these settings and inputs, for every image.

        With `file_of`, what the step writes for an image, it is not done if one of these is gone.
        """
        manifest = None if self.force else self.generation.manifest(step)
        if not manifest or manifest["key"] != step_key(step, settings, inputs) or manifest["failed"]:
            return None
        if file_of and not all(
            file_of(self, image).is_file()
            for image in self.project.images
            if image.entry_id in manifest["outputs"]
        ):
            return None
        return manifest

    def open_image(self, image: ImageEntry) -> Slide:
        """Open the slide of an image in QuPath's frame, in the colours that models are to see.

        With stain normalisation on, the fit of the slide is kept in the generation's `stain/` folder.

        Raises:
            UnsupportedServerError: the file is not the size that QuPath knows, so that places
                would not fit; or QuPath shows it flipped, stitched or the like.
            SlideNotFoundError, SlideReadError: it is not there or is not a slide.
        """
        slide = self.open_as_scanned(image)
        target = self.stain_target
        return slide if target is None else NormalisedSlide(slide, self._stain_fit(image, slide, target))

    @cached_property
    def stain_target(self) -> StainTarget | None:
        """What slides are normalised to; None if they are not."""
        settings = self.study.stain
        if settings.normalisation == "none":
            return None
        reference = Path(settings.reference) if settings.reference else None
        return stain_target(settings.normalisation, reference)

    @property
    def stain(self) -> dict[str, Any] | None:
        """The normalisation, for manifests and model cards; None if there is none."""
        return None if self.stain_target is None else self.stain_target.as_json()

    def _stain_fit(self, image: ImageEntry, slide: Slide, target: StainTarget) -> StainFit:
        path = image_file(self.generation.step("stain"), image, ".json")
        key = sha256_json([placement(image), target.as_json()])
        fit = None if self.force else read_fit(path, key)
        if fit is None:
            fit = fit_slide(slide, target)
            write_fit(path, fit, key=key, image=image.name)
            if fit.fallback:
                self.progress.warn(f"{image.name} keeps its own stain: {fit.fallback}")
        return fit

    @cached_property
    def lessons(self) -> dict[str, ImageLessons]:
        """By entry id what review taught this generation; nothing in a first one."""
        if self.at is None and not all_generations(self.study):
            return {}  # who only looks, as `patches --check`, makes no generation
        return read_lessons(self.generation.step(LESSONS))

    def objects(self, image: ImageEntry) -> tuple[PathObject, ...]:
        """The image's annotations from all sources that the study names, and what this generation learnt of
        it in review; top-level, in QuPath px.

        Raises:
            ObjectDataError: the project's are damaged.
            TruthError: a mask or annotation file is missing, damaged or does not fit.
            HnsccQpError: there is such a file, and the slide can't be opened to place it.
        """
        objects: tuple[PathObject, ...] = ()
        if any(source.source == "qupath" for source in self.study.truth):
            objects = self.project.objects(image)
        for path, source in self._truth_files(image):
            read = read_truth(path, source, slide=self.open_as_scanned(image), image_name=image.name)
            for note in read.notes:
                self.progress.warn(f"{image.name}: {note}")
            objects += read.objects
        return objects + learnt_annotations(self.lessons.get(image.entry_id), self.study.classes)

    def fingerprint(self, image: ImageEntry) -> str:
        """Hash of all that decides the image's annotations: the project's state of it, other sources, review.

        Raises:
            ObjectDataError, HnsccQpError: a file can't be read, or the slide is not found.
        """
        state = self.project.fingerprint(image)
        files = [] if self._is_qupath_alone else self._truth_files(image)
        state = fingerprint(files, state) if files else state
        taught = self.lessons.get(image.entry_id)
        return sha256_json([state, image_lessons_as_json(taught)]) if taught else state

    @property
    def _is_qupath_alone(self) -> bool:
        return all(source.source == "qupath" for source in self.study.truth)

    def _truth_files(self, image: ImageEntry) -> list[tuple[Path, Truth]]:
        """Files that say what is on the slide; without those that need not be there and are not."""
        if self._is_qupath_alone:
            return []
        slide_path = self.project.slide_path(image)
        negative = stated_status(image, self.study.cohort.status) is False
        files = []
        for source in self.study.truth:
            if source.source != "qupath":
                path = truth_file(slide_path, source, root=self.study.root)
                if path.is_file() or not (negative or source.missing == "none"):
                    files.append((path, source))
        return files

    def open_as_scanned(self, image: ImageEntry) -> Slide:
        """Open the slide of an image in its own colours: for people, and to place things on it.

        Raises:
            HnsccQpError: as `open_image`.
        """
        path = self.project.slide_path(image)
        slide = open_slide(
            path, pixel_size=image.pixel_size, crop_to_bounds=image.crop_to_bounds, view=image.view
        )
        if image.size and slide.size != image.size:
            raise UnsupportedServerError(
                f"{image.name} is {_size(image.size)} px in QuPath, but {path} is {_size(slide.size)} px: "
                "not the same image; correct the slide's path in QuPath"
            )
        return slide

    def open_development(self, image: ImageEntry, split: SealedSplit) -> Slide:
        """Open the slide of an image that may be learnt from: what training and mining open slides with.

        Raises:
            SealedSplitError: it belongs to a test patient.
            HnsccQpError: as `open_image`.
        """
        split.admit([image.entry_id])
        return self.open_image(image)

    def each_image(
        self, images: Iterable[ImageEntry], work: Callable[[ImageEntry], T], *, doing: str, workers: int = 1
    ) -> tuple[dict[str, T], dict[str, str]]:
        """Do `work` for every image; one that fails is named and the others are done.

        Args:
            images: in the order of the results, however many are worked on at once.
            work: for one image.
            doing: the task's name, for whoever watches.
            workers: images worked on at once, by threads.

        Returns:
            Results by entry id, and reasons by image name.

        Raises:
            HnsccQpError: every image failed; the first reason.
        """
        results: dict[str, T] = {}
        failed: dict[str, str] = {}
        first: HnsccQpError | None = None
        images = list(images)
        with (
            self.progress.task(doing, total=len(images), unit="images") as task,
            closing(_each(images, work, workers)) as outcomes,
        ):
            for image, outcome in zip(images, outcomes, strict=True):
                try:
                    results[image.entry_id] = outcome()
                except HnsccQpError as error:
                    first = first or error
                    failed[image.name] = str(error)
                    self.progress.warn(str(error))
                task.advance(note=image.name)
        if first and not results:
            raise first
        return results, failed


def _each(
    images: Sequence[ImageEntry], work: Callable[[ImageEntry], T], workers: int
) -> Generator[Callable[[], T], None, None]:
    """For each image, in order, what gives its result or raises its error."""
    if workers <= 1 or len(images) <= 1:
        for image in images:
            yield partial(work, image)
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="image")
    try:
        for future in [pool.submit(work, image) for image in images]:
            yield future.result
    finally:
        # Left early (Ctrl+C): what has not begun is not begun.
        pool.shutdown(wait=True, cancel_futures=True)


def placement(image: ImageEntry) -> str:
    """Hash of what decides which pixels an image has and how large they are; not of its objects."""
    size = [image.pixel_size.x, image.pixel_size.y] if image.pixel_size else None
    view = [str(step) for step in image.view]
    return sha256_json([image.name, image.uri, image.server, list(image.args), view, image.size, size])


def available_cpus() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def image_file(folder: Path, image: ImageEntry, suffix: str) -> Path:
    """Where a step keeps its file for one image: `<entry id> <image name><suffix>`, as beside the project."""
    return folder / (sidecar_name(image.entry_id, image.name).removesuffix(".geojson") + suffix)


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]} × {size[1]}"
