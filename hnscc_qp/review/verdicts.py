"""What pathologists said of what was pushed, and what is to be learnt from it.

A verdict is a fact about one object of one image; a lesson is what training may make of it. Between the two
lies what can't be learnt from: verdicts that contradict each other, and slides that are no longer there.
All shapes are in QuPath px.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any

import shapely
from shapely.geometry.base import BaseGeometry

from hnscc_qp.errors import ReviewLogError
from hnscc_qp.qupath.shapes import DECIMALS

UNKNOWN_REVIEWER = "unknown"
"""Whoever drew, edited or deleted without a name: QuPath notes none."""


class VerdictKind(StrEnum):
    """What became of a detection, or what a new annotation is."""

    ACCEPTED = "accepted"
    """It is a tumor annotation of the same outline."""
    REJECTED = "rejected"
    """It has the class `AI: Rejected`."""
    REDRAWN = "redrawn"
    """Its outline was edited, or tumor was outlined anew in its place."""
    RECLASSIFIED = "reclassified"
    """It has a class that is neither ours nor tumor."""
    DELETED = "deleted"
    """It was there, and is not any more. That says nothing certain."""
    UNTOUCHED = "untouched"
    """It is as it was pushed. That is no verdict: in the log it only takes an earlier one back."""
    MISSED = "missed"
    """A new tumor annotation where nothing was pushed."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """One person's word on one object."""

    kind: VerdictKind
    image: str
    entry_id: str
    """Of the image, in the study's project."""
    slide: str
    """The slide's file name: with the entry id it tells the image when names change."""
    patient: str
    object_id: str
    """UUID of the detection as it was pushed; of the annotation where tumor was missed."""
    found_id: str | None
    """UUID of the object that the verdict was read from; None where it was deleted."""
    roi: BaseGeometry
    """As the pathologist left it; of what was rejected or deleted, as it was pushed."""
    pushed_roi: BaseGeometry | None
    """As it was pushed; None where tumor was missed."""
    path_class: str | None
    """The class that it has now."""
    reviewer: str
    """As QuPath says, else as `pull` was told, else `UNKNOWN_REVIEWER`."""
    time: str
    """UTC, such as `2026-11-24T18:00:00Z`."""
    time_is: str
    """`stated` by who reviewed, or when the image was `saved`, or when it was `pulled`."""
    project: str
    """The project that it was read from, in the study's words: `project`, or the name of a copy."""
    model: str | None
    """Hash of the cascade that made the detection."""
    generation: str | None
    """That pushed the detection; where tumor was missed, the last one pushed before it was drawn."""
    area_before_um2: float
    area_after_um2: float
    added_um2: float
    """Area now that was not pushed."""
    removed_um2: float
    """Area pushed that is no more."""

    @property
    def subject(self) -> tuple[str, str]:
        """What the verdict is about: entry id and object id."""
        return self.entry_id, self.object_id

    def as_json(self) -> dict[str, Any]:
        """JSON values; shapes as WKT on QuPath's grid of 0.01 px."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        values["kind"] = str(self.kind)
        for name in ("roi", "pushed_roi"):
            if values[name] is not None:
                values[name] = shapely.to_wkt(values[name], rounding_precision=DECIMALS)
        return values

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Verdict:
        """Read what `as_json` gave.

        Raises:
            ReviewLogError: something is missing or no verdict.
        """
        try:
            read = {field.name: values[field.name] for field in fields(cls)}
            read["kind"] = VerdictKind(read["kind"])
            read["roi"] = shapely.from_wkt(read["roi"])
            if read["pushed_roi"] is not None:
                read["pushed_roi"] = shapely.from_wkt(read["pushed_roi"])
            return cls(**read)
        except (KeyError, TypeError, ValueError, shapely.GEOSException) as error:
            raise ReviewLogError(
                f"the review log holds a verdict that can't be read ({error}); it is of a newer hnscc-qp: "
                "install that one"
            ) from error


class LessonKind(StrEnum):
    """What windows under a region are to be."""

    POSITIVE = "positive"
    """Tumor."""
    HARD_NEGATIVE = "hard negative"
    """Nontumor, and what the secondary model is there for."""
    IGNORED = "ignored"
    """Nothing: shown to no network, neither as tumor nor as nontumor."""


@dataclass(frozen=True, slots=True)
class Lesson:
    """One region to learn from, or to keep away from."""

    kind: LessonKind
    roi: BaseGeometry
    """Polygons, valid."""
    trust: float
    """0..1: 1 counts as if drawn by hand; 0.5 means that half of the region's windows are used."""
    because: VerdictKind
    object_id: str
    generation: str | None
    reviewers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Conflict:
    """Verdicts of several people on one object, or on one place, that exclude each other."""

    image: str
    entry_id: str
    roi: BaseGeometry
    """What is left out of learning."""
    verdicts: tuple[Verdict, ...]

    def __str__(self) -> str:
        said = ", ".join(f"{verdict.kind} by {verdict.reviewer}" for verdict in self.verdicts)
        return f"{self.image}: {self.verdicts[0].object_id} was {said}"


@dataclass(frozen=True, slots=True)
class ImageLessons:
    """What one image has to teach. Regions of different kinds do not overlap."""

    entry_id: str
    image: str
    slide: str
    patient: str
    lessons: tuple[Lesson, ...]

    def of(self, kind: LessonKind) -> tuple[Lesson, ...]:
        """Those of one kind."""
        return tuple(lesson for lesson in self.lessons if lesson.kind is kind)


@dataclass(frozen=True, slots=True)
class Lessons:
    """Everything that the log has to teach, as of its entry `head`.

    Who may learn from which patient is not decided here: whoever trains asks the sealed split.
    """

    images: tuple[ImageLessons, ...]
    """In the order of entry ids; only images that the project still has."""
    conflicts: tuple[Conflict, ...]
    left_out: Mapping[str, str]
    """Image name → why its verdicts teach nothing, such as that it left the study."""
    head: str | None
    """Hash of the log's last entry; None if there is none."""

    def __iter__(self) -> Iterator[ImageLessons]:
        return iter(self.images)

    def find(self, entry_id: str) -> ImageLessons | None:
        """The lessons of an image."""
        return next((image for image in self.images if image.entry_id == entry_id), None)
