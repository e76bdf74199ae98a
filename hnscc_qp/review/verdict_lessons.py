"""Verdicts → lessons: which regions training takes for tumor, for hard negatives, and for nothing.

Each reviewer is a voice that calls places tumor or nontumor. Within a voice, what it outlines as tumor is cut
out of what it rejects: who rejects an outline and draws a better one does not contradict herself. Where
one voice's tumor is another's nontumor, neither is believed: the place is listed, and left out of learning.
What bears no name contradicts nobody in the project that it was drawn in.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import combinations

import shapely
from shapely.geometry import Polygon
from shapely.geometry.base import BaseGeometry

from hnscc_qp import study
from hnscc_qp.patches.outlines import Label, meaning_of
from hnscc_qp.patches.territories import polygons_only
from hnscc_qp.qupath.objects import PathClass
from hnscc_qp.review.verdicts import (
    UNKNOWN_REVIEWER,
    Conflict,
    ImageLessons,
    Lesson,
    LessonKind,
    Lessons,
    Verdict,
    VerdictKind,
)

_SLIVER_PX2 = 1.0
"""Shapes are on a grid of 0.01 px: differences of outlines leave slivers, which are nothing."""
_NOWHERE = Polygon()


def standing(verdicts: Iterable[Verdict]) -> tuple[Verdict, ...]:
    """The last word of every reviewer on every object.

    A new verdict takes the place of the same reviewer's earlier one. One without a name may be anybody's who
    works in that project, and takes the place of all that were read from it; and so does an object
    found untouched again, which leaves no verdict.

    Args:
        verdicts: in the order of the log.
    """
    by_subject: dict[tuple[str, str], dict[str, Verdict]] = defaultdict(dict)
    for verdict in verdicts:
        said = by_subject[verdict.subject]
        nameless = verdict.reviewer == UNKNOWN_REVIEWER
        for voice, earlier in list(said.items()):
            same_project = earlier.project == verdict.project
            if same_project and (nameless or earlier.reviewer == UNKNOWN_REVIEWER):
                del said[voice]
        if verdict.kind is VerdictKind.UNTOUCHED:
            said.pop(voice_of(verdict), None)
        else:
            said[voice_of(verdict)] = verdict
    return tuple(verdict for said in by_subject.values() for verdict in said.values())


def voice_of(verdict: Verdict) -> str:
    """Who speaks: a reviewer by name, or whoever works in a project without giving one."""
    if verdict.reviewer == UNKNOWN_REVIEWER:
        return f"{UNKNOWN_REVIEWER} in {verdict.project}"
    return verdict.reviewer


def lessons_from(
    verdicts: Iterable[Verdict],
    *,
    present: Collection[tuple[str, str]],
    settings: study.Review,
    classes: study.Classes,
    annotated: Mapping[str, BaseGeometry] | None = None,
    head: str | None = None,
) -> Lessons:
    """What the standing verdicts of all reviewers have to teach.

    Args:
        verdicts: in the order of the log, see `standing`.
        present: entry id and slide file name of every image that the project has now.
        settings: what is learnt from what.
        classes: what QuPath's classes mean.
        annotated: entry id → where tumor is annotated in the project now; nothing there is a hard negative.
        head: hash of the log's last entry.
    """
    by_image: dict[tuple[str, str], list[Verdict]] = defaultdict(list)
    left_out: dict[str, str] = {}
    for verdict in standing(verdicts):
        place = _find_image(verdict, present)
        if place is None:
            left_out[verdict.image] = (
                f"{verdict.slide} is not in the project any more, so its verdicts teach nothing; add the "
                "slide again to learn from them"
            )
        else:
            by_image[place].append(verdict)
    images: list[ImageLessons] = []
    conflicts: list[Conflict] = []
    for (entry_id, slide), said in sorted(by_image.items(), key=lambda item: (len(item[0][0]), item[0][0])):
        opinions = [_opinion(verdict, settings, classes) for verdict in said]
        found = list(_conflicts(opinions))
        conflicts += found
        by_hand = (annotated or {}).get(entry_id, _NOWHERE)
        lessons = tuple(_lessons(opinions, found, by_hand=by_hand, settings=settings))
        if lessons:
            images.append(ImageLessons(entry_id, said[-1].image, slide, said[-1].patient, lessons))
    return Lessons(tuple(images), tuple(conflicts), left_out, head)


@dataclass(frozen=True, slots=True)
class _Opinion:
    """A verdict as areas."""

    verdict: Verdict
    tumor: BaseGeometry
    nontumor: BaseGeometry
    ignored: BaseGeometry


def _opinion(verdict: Verdict, settings: study.Review, classes: study.Classes) -> _Opinion:
    tumor = nontumor = ignored = _NOWHERE
    roi = polygons_only(verdict.roi)
    match verdict.kind:
        case VerdictKind.ACCEPTED | VerdictKind.MISSED:
            tumor = roi
        case VerdictKind.REDRAWN:
            tumor = roi
            if settings.learn_cut_off and verdict.pushed_roi is not None:
                nontumor = _less(polygons_only(verdict.pushed_roi), roi)
        case VerdictKind.REJECTED:
            nontumor = roi
        case VerdictKind.DELETED if settings.deleted == "rejected":
            nontumor = roi
        case VerdictKind.DELETED:
            ignored = roi
        case VerdictKind.RECLASSIFIED:
            names = tuple((verdict.path_class or "").split(": "))
            meaning = meaning_of(PathClass(names), classes)
            tumor = roi if meaning is Label.TUMOR else _NOWHERE
            nontumor = roi if meaning is Label.NONTUMOR else _NOWHERE
            ignored = roi if meaning is Label.IGNORED else _NOWHERE
    return _Opinion(verdict, tumor, nontumor, ignored)


def _conflicts(opinions: list[_Opinion]) -> Iterator[Conflict]:
    """Pairs of verdicts of different voices, one tumor where the other is nontumor."""
    tumor_of: dict[str, list[BaseGeometry]] = defaultdict(list)
    for opinion in opinions:
        tumor_of[voice_of(opinion.verdict)].append(opinion.tumor)
    own_tumor = {voice: shapely.union_all(shapes) for voice, shapes in tumor_of.items()}
    for one, other in combinations(opinions, 2):
        voices = voice_of(one.verdict), voice_of(other.verdict)
        if voices[0] == voices[1] or _work_together(one.verdict, other.verdict):
            continue
        contested = [
            shapely.intersection(yes.tumor, shapely.difference(no.nontumor, own_tumor[voice]))
            for yes, no, voice in ((one, other, voices[1]), (other, one, voices[0]))
        ]
        roi = _clean(shapely.union_all(contested))
        if not roi.is_empty:
            yield Conflict(one.verdict.image, one.verdict.entry_id, roi, _by_name(one.verdict, other.verdict))


def _work_together(one: Verdict, other: Verdict) -> bool:
    """Whether one may be the other's: who draws in a project leaves no name, and saw what was there."""
    nameless = UNKNOWN_REVIEWER in (one.reviewer, other.reviewer)
    return one.project == other.project and nameless


def _by_name(*verdicts: Verdict) -> tuple[Verdict, ...]:
    return tuple(sorted(verdicts, key=lambda verdict: (voice_of(verdict), verdict.object_id)))


def _lessons(
    opinions: list[_Opinion], conflicts: list[Conflict], *, by_hand: BaseGeometry, settings: study.Review
) -> Iterator[Lesson]:
    contested = shapely.union_all([conflict.roi for conflict in conflicts])
    tumor = shapely.union_all([opinion.tumor for opinion in opinions])
    nontumor = shapely.union_all([opinion.nontumor for opinion in opinions])
    drawn: dict[tuple[LessonKind, str, bytes], Lesson] = {}
    for opinion in opinions:
        verdict = opinion.verdict
        from_ai = verdict.kind in (VerdictKind.ACCEPTED, VerdictKind.RECLASSIFIED)
        trust = settings.accepted_trust if from_ai else 1.0
        if trust > 0:
            positive = LessonKind.POSITIVE
        else:  # neither believed nor contradicted
            positive, trust = LessonKind.IGNORED, 1.0
        for kind, roi, weight in (
            (positive, _less(opinion.tumor, contested), trust),
            (LessonKind.HARD_NEGATIVE, _less(opinion.nontumor, contested, tumor, by_hand), 1.0),
            (LessonKind.IGNORED, _less(opinion.ignored, contested, tumor, nontumor, by_hand), 1.0),
        ):
            if roi.is_empty:
                continue
            lesson = Lesson(
                kind,
                roi,
                weight,
                verdict.kind,
                verdict.object_id,
                verdict.generation,
                (verdict.reviewer,),
            )
            # Two who agree on an object teach one lesson.
            key = kind, verdict.object_id, shapely.to_wkb(roi.normalize())
            known = drawn.get(key)
            drawn[key] = lesson if known is None else _joined(known, lesson)
    yield from drawn.values()
    for conflict in conflicts:
        first = conflict.verdicts[0]
        yield Lesson(
            LessonKind.IGNORED,
            conflict.roi,
            1.0,
            first.kind,
            first.object_id,
            first.generation,
            tuple(sorted({verdict.reviewer for verdict in conflict.verdicts})),
        )


def _joined(one: Lesson, other: Lesson) -> Lesson:
    reviewers = tuple(sorted({*one.reviewers, *other.reviewers}))
    return replace(one, reviewers=reviewers, trust=max(one.trust, other.trust))


def _find_image(verdict: Verdict, present: Collection[tuple[str, str]]) -> tuple[str, str] | None:
    """The image that a verdict is about: by entry and slide; if it was added anew, by its slide alone."""
    if (verdict.entry_id, verdict.slide) in present:
        return verdict.entry_id, verdict.slide
    same = [place for place in present if place[1] == verdict.slide]
    return same[0] if len(same) == 1 else None


def _less(shape: BaseGeometry, *others: BaseGeometry) -> BaseGeometry:
    return _clean(shapely.difference(shape, shapely.union_all(list(others))))


def _clean(shape: BaseGeometry) -> BaseGeometry:
    """Polygons only, without slivers."""
    parts = [part for part in shapely.get_parts(polygons_only(shape)) if part.area > _SLIVER_PX2]
    return shapely.union_all(parts) if parts else _NOWHERE
