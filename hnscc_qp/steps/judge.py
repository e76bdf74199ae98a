"""What two generations make of the same slides: the promotion gate's material."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from hnscc_qp.files import sha256_json
from hnscc_qp.generation import Generation
from hnscc_qp.models.checkpoint import PRIMARY, SECONDARY
from hnscc_qp.patches.seal import Member, SealedSplit
from hnscc_qp.patches.split import Side
from hnscc_qp.qupath.objects import PathObject
from hnscc_qp.qupath.project import ImageEntry
from hnscc_qp.review.gate import SlideOutcome
from hnscc_qp.review.outcome import slide_outcome
from hnscc_qp.scoring.score_map import read_score_map
from hnscc_qp.scoring.threshold import votes_for
from hnscc_qp.slides.tissue import find_tissue
from hnscc_qp.steps import calibrate, patches, regions, score
from hnscc_qp.steps.cohort import read_members
from hnscc_qp.steps.context import Context
from hnscc_qp.steps.frozentruth import frozen_truth


@dataclass(frozen=True, slots=True)
class Judged:
    """The outcomes of both generations, slide by slide, and what could not be judged."""

    current: tuple[SlideOutcome, ...]
    candidate: tuple[SlideOutcome, ...]
    left_out: Mapping[str, str]
    """Image name → why it decides nothing."""
    key: str
    """Identifies both generations' models and thresholds: the same comparison is the same decision."""


def judge(context: Context, current: Generation, candidate: Generation) -> Judged:
    """Judge both generations on the side of the split that the study's `[promotion]` names.

    The test set is judged by its frozen truth, validation by what is annotated now. A slide that
    one of the two has not scored is left out.

    Args:
        context: of the candidate.
        current: the generation in use.
        candidate: the one that would follow it.

    Raises:
        StepError: one of them is not finished.
        HnsccQpError: a score map or the truth is damaged.
    """
    side = Side(context.study.promotion.side)
    splits = [read_members(generation.step(patches.STEP)) for generation in (current, candidate)]
    made = [_Made.of(context, generation) for generation in (current, candidate)]
    outcomes: tuple[list[SlideOutcome], list[SlideOutcome]] = ([], [])
    left_out: dict[str, str] = {}
    for image in context.project.images:
        member = splits[1].by_entry.get(image.entry_id)
        if member is None or member.side is not side:
            continue
        reason = _why_not(image, side, splits[0], made)
        truth = None if reason else _truth(context, image, member)
        if truth is None:
            left_out[image.name] = reason or "its truth was never kept; run hnscc-qp patches with --force"
            continue
        positive, objects = truth
        for one, into in zip(made, outcomes, strict=True):
            into.append(one.outcome(context, image, member.patient, positive, objects))
    key = sha256_json([one.key for one in made] + [str(side)])
    return Judged(tuple(outcomes[0]), tuple(outcomes[1]), left_out, key)


@dataclass(frozen=True, slots=True)
class _Made:
    """What a generation made."""

    generation: Generation
    threshold_score: float
    calls: Mapping[str, Any]
    """By image name."""
    scored: Mapping[str, str]
    """Entry id → hash of the score map."""

    @classmethod
    def of(cls, context: Context, generation: Generation) -> _Made:
        path = context.study.path
        scored = generation.need(score.STEP, command=f"hnscc-qp score {path}")
        calibrated = generation.need(calibrate.STEP, command=f"hnscc-qp calibrate {path}")
        return cls(
            generation,
            float(calibrated["counts"]["threshold score"]),
            {slide["image"]: slide["call"] for slide in calibrated["slides"]},
            scored["outputs"],
        )

    @property
    def key(self) -> list[Any]:
        return [self.threshold_score, dict(self.scored)]

    def outcome(
        self,
        context: Context,
        image: ImageEntry,
        patient: str,
        positive: bool,
        objects: tuple[PathObject, ...],
    ) -> SlideOutcome:
        score_map = read_score_map(score.score_map_file(replace(context, at=self.generation), image))
        tissue = find_tissue(context.open_as_scanned(image), score_map.grid, on_unreadable=lambda _: None)
        return slide_outcome(
            score_map,
            objects,
            tissue=tissue,
            entry_id=image.entry_id,
            image=image.name,
            patient=patient,
            positive=positive,
            call=self.calls[image.name],
            threshold_votes=votes_for(self.threshold_score, score_map.max_level),
            classes=context.study.classes,
            settings=context.study.patches,
        )


def _why_not(image: ImageEntry, side: Side, before: SealedSplit, made: list[_Made]) -> str | None:
    """Why both can't be judged on an image; None if they can."""
    member = before.by_entry.get(image.entry_id)
    if side is Side.VALIDATION and (member is None or member.side is not side):
        return "the generation in use has not validated on it"
    for one in made:
        if image.entry_id not in one.scored or image.name not in one.calls:
            return f"generation {one.generation.name} has not scored it"
    return None


def _truth(context: Context, image: ImageEntry, member: Member) -> tuple[bool, tuple[PathObject, ...]] | None:
    """Status and annotations that both are judged by; None if the test slide's were never kept."""
    if member.side is not Side.TEST:
        return member.positive, context.objects(image)
    frozen = frozen_truth(context, image)
    return (frozen.positive, frozen.objects) if frozen else None


def need_whole(generation: Generation, context: Context) -> None:
    """See that a generation is finished, so that another one can follow it.

    Raises:
        StepError: it is not.
    """
    for step in (patches.STEP, PRIMARY, SECONDARY, score.STEP, calibrate.STEP, regions.STEP):
        generation.need(step, command=f"hnscc-qp run {context.study.path}")
