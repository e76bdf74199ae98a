"""The figures of a set of slides, at the threshold in use and at every other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hnscc_qp.review.agreement import SlideAreas, dice, iou, pooled
from hnscc_qp.review.comparison import (
    LevelResult,
    Overlap,
    RocPoint,
    SetFigures,
    SetName,
    SlideResult,
    StratumResult,
)
from hnscc_qp.review.froc import froc
from hnscc_qp.review.lesions import STRATA
from hnscc_qp.review.measure import MeasuredSlide
from hnscc_qp.scoring.extent import votes_reached
from hnscc_qp.training.intervals import Estimate, Proportion, bootstrap, proportion, weighted_auc


def set_of(slide: SlideResult) -> SetName:
    """Training and validation slides are the development set."""
    return "test" if slide.side == "test" else "development"


def set_figures(
    name: SetName, measured: Sequence[MeasuredSlide], *, threshold_votes: int, min_lesion_um2: float
) -> SetFigures:
    """The headline figures of the slides of one set; at least one slide.

    Args:
        name: of the set.
        measured: its slides.
        threshold_votes: the threshold in use.
        min_lesion_um2: smallest region that makes a slide positive.
    """
    slides = [one.result for one in measured]
    called = [one for one in slides if one.call != "no tissue"]
    outlined = [one for one in measured if one.result.outlined]
    areas = slide_areas([one.result for one in outlined], threshold_votes)
    truth_area = sum(one.truth_um2 for one in areas)
    lesions = [lesion for one in outlined for lesion in one.truth]
    detections = [one.detections for one in outlined if one.detections is not None]
    reached = [reached_votes(one, min_lesion_um2) for one in called]
    return SetFigures(
        set=name,
        slides=len(slides),
        patients=len({one.patient for one in slides}),
        positive=sum(one.truth == "positive" for one in slides),
        negative=sum(one.truth == "negative" for one in slides),
        no_tissue=len(slides) - len(called),
        sensitivity=_share_right(called, "positive"),
        specificity=_share_right(called, "negative"),
        accuracy=proportion(sum(one.call == one.truth for one in called), len(called)),
        auc=_auc(called, reached),
        dice=pooled(areas, dice),
        iou=pooled(areas, iou),
        area_ratio=sum(one.ai_um2 for one in areas) / truth_area if truth_area else None,
        boundary_mean_um=_mean_of([one.result.exact for one in outlined], "boundary_mean_um"),
        boundary_95_um=_mean_of([one.result.exact for one in outlined], "boundary_95_um"),
        lesions=tuple(
            StratumResult(
                stratum,
                proportion(
                    sum(one.found for one in lesions if one.stratum == stratum),
                    sum(one.stratum == stratum for one in lesions),
                ),
            )
            for stratum in STRATA
        ),
        lesion_sensitivity=proportion(sum(one.found for one in lesions), len(lesions)),
        false_regions=sum(lesion.match == "false" for one in outlined for lesion in one.lesions),
        roc=roc(called, min_lesion_um2),
        froc=froc(detections),
    )


def sweep(
    name: SetName, measured: Sequence[MeasuredSlide], *, levels: int, min_lesion_um2: float
) -> tuple[LevelResult, ...]:
    """Every threshold on one set.

    Args:
        name: of the set.
        measured: its slides.
        levels: votes of a block that all windows call tumor.
        min_lesion_um2: smallest region that makes a slide positive.
    """
    called = [one.result for one in measured if one.result.call != "no tissue"]
    outlined = [one.result for one in measured if one.result.outlined]
    negative = [one for one in outlined if one.truth == "negative"]
    lesions = [lesion for one in measured if one.result.outlined for lesion in one.truth]
    rows = []
    for votes in range(1, levels + 1):
        positive = [one for one in called if one.truth == "positive"]
        healthy = [one for one in called if one.truth == "negative"]
        areas = slide_areas(outlined, votes)
        rows.append(
            LevelResult(
                set=name,
                votes=votes,
                score=votes / levels,
                sensitivity=proportion(
                    sum(reached_votes(one, min_lesion_um2) >= votes for one in positive), len(positive)
                ),
                specificity=proportion(
                    sum(reached_votes(one, min_lesion_um2) < votes for one in healthy), len(healthy)
                ),
                false_um2_per_mm2=_false_share(outlined, votes),
                false_um2_per_mm2_negative=_false_share(negative, votes),
                lesion_sensitivity=proportion(
                    sum(lesion.max_score >= votes / levels - 1e-9 for lesion in lesions), len(lesions)
                ),
                false_regions_per_slide=(
                    sum(one.false_regions[votes - 1] for one in outlined) / len(outlined)
                    if outlined
                    else None
                ),
                dice=dice(
                    sum(one.ai_um2 for one in areas),
                    sum(one.truth_um2 for one in areas),
                    sum(one.both_um2 for one in areas),
                ),
            )
        )
    return tuple(rows)


def reached_votes(slide: SlideResult, min_lesion_um2: float) -> int:
    """The most votes of a slide's regions that are large enough; with no smallest area, of its blocks."""
    return votes_reached(slide.largest_um2, min_lesion_um2) if min_lesion_um2 else slide.max_votes


def slide_areas(slides: Sequence[SlideResult], votes: int) -> list[SlideAreas]:
    """What is added up for pooled agreement at a threshold of so many votes; of outlined slides."""
    return [
        SlideAreas(one.patient, one.ai_um2[votes - 1], one.truth_um2, one.overlap_um2[votes - 1])
        for one in slides
    ]


def roc(called: Sequence[SlideResult], min_lesion_um2: float) -> tuple[RocPoint, ...]:
    """Slides called positive at every threshold, from none to all; empty where a class is missing."""
    positive = [reached_votes(one, min_lesion_um2) for one in called if one.truth == "positive"]
    negative = [reached_votes(one, min_lesion_um2) for one in called if one.truth == "negative"]
    if not positive or not negative:
        return ()
    levels = len(called[0].ai_um2)
    return tuple(
        RocPoint(
            votes,
            sum(one >= votes for one in negative) / len(negative),
            sum(one >= votes for one in positive) / len(positive),
        )
        for votes in range(levels + 1, -1, -1)
    )


def _auc(called: Sequence[SlideResult], reached: Sequence[int]) -> Estimate | None:
    truth = [one.truth == "positive" for one in called]
    patients = [one.patient for one in called]
    estimate = bootstrap(patients, lambda counts: weighted_auc(truth, reached, counts))
    both = [{one.patient for one in called if one.truth == status} for status in ("positive", "negative")]
    if estimate and min(map(len, both)) < 2:
        return Estimate(estimate.value, None)  # one patient's slides on a side: nothing varies there
    return estimate


def _share_right(called: Sequence[SlideResult], truth: str) -> Proportion | None:
    right = [one.call == truth for one in called if one.truth == truth]
    return proportion(sum(right), len(right))


def _false_share(slides: Sequence[SlideResult], votes: int) -> float | None:
    """Falsely found µm² per mm² of judged tissue outside outlined tumor."""
    false = sum(one.ai_um2[votes - 1] - one.overlap_um2[votes - 1] for one in slides)
    healthy = sum(one.tissue_um2 - one.truth_um2 for one in slides)
    return max(0.0, false) / healthy * 1e6 if healthy > 0 else None


def _mean_of(overlaps: Sequence[Overlap | None], figure: str) -> float | None:
    values = [getattr(one, figure) for one in overlaps if one is not None]
    values = [value for value in values if value is not None]
    return float(np.mean(values)) if values else None
