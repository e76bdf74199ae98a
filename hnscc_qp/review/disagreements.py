"""Every disagreement of AI and manual review, worst first, each with a reason by stated rules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from hnscc_qp.geometry import Mpp, PixelSize
from hnscc_qp.review.comparison import Disagreement, Lesion, Reason, TruthLesion
from hnscc_qp.review.measure import MeasuredSlide
from hnscc_qp.review.readers import Calls
from hnscc_qp.review.reasons import SMALL_MM, median_of, why_false, why_missed

MANUAL = "manual review"
Kind = Literal["slide missed", "slide false alarm", "lesion missed", "false region", "reader"]
_ORDER: tuple[Kind, ...] = ("slide missed", "slide false alarm", "lesion missed", "false region", "reader")


def list_disagreements(
    measured: Sequence[MeasuredSlide], readers: Mapping[str, Calls]
) -> tuple[Disagreement, ...]:
    """All of them: missed slides, false alarms, missed lesions (large ones first), false regions (sure ones
    first), and slides that AI and a reader call differently.

    Args:
        measured: the slides.
        readers: each reader's calls.
    """
    cohort = median_of(np.array([one.density for one in measured], np.float32))
    found: list[Disagreement] = []
    for one in measured:
        of_slide = _of_lesions(one, cohort)
        slide_level = _of_slide(one, of_slide)
        found += [*slide_level, *of_slide]
        for reader, calls in readers.items():
            found += _of_reader(one, reader, calls, slide_level)
    return tuple(
        sorted(
            found,
            key=lambda one: (
                _ORDER.index(one.kind),
                -(one.area_um2 or 0.0) if one.kind == "lesion missed" else -(one.max_score or 0.0),
                -(one.area_um2 or 0.0),
                one.image,
                one.against,
            ),
        )
    )


def _of_lesions(one: MeasuredSlide, cohort: float) -> list[Disagreement]:
    pixel_size = PixelSize(*map(Mpp, one.result.pixel_size_um))
    found = []
    for missed in one.truth:
        if missed.found:
            continue
        why, detail = why_missed(
            one.seen[missed.id].looks,
            longest_diameter_mm=missed.longest_diameter_mm,
            cohort_density=cohort,
            unreadable=one.unreadable,
        )
        found.append(_disagreement(one, "lesion missed", why, detail, missed))
    for lesion in one.lesions:
        if lesion.match != "false":
            continue
        reason: Reason = "unexplained"
        detail = "not looked at: there are surer false regions on this slide"
        if lesion.id in one.seen:
            seen = one.seen[lesion.id]
            reason, detail = why_false(
                seen.looks,
                seen.shape_qupath,
                pixel_size,
                tumor=one.tumor,
                longest_diameter_mm=lesion.longest_diameter_mm,
                cohort_density=cohort,
            )
        found.append(_disagreement(one, "false region", reason, detail, lesion))
    return found


def _of_slide(one: MeasuredSlide, of_lesions: Sequence[Disagreement]) -> list[Disagreement]:
    """The slide's call, with the reason of its largest missed lesion or of its surest false region."""
    slide = one.result
    if slide.call in ("no tissue", slide.truth):
        return []
    missed = slide.truth == "positive"
    kind: Kind = "slide missed" if missed else "slide false alarm"
    parts = [part for part in of_lesions if part.kind == ("lesion missed" if missed else "false region")]
    if not parts:
        detail = f"highest score {slide.max_score:.4f}; no missed lesion or false region can be named"
        return [_disagreement(one, kind, "unexplained", detail)]
    worst = max(parts, key=lambda part: (0.0 if missed else part.max_score or 0.0, part.area_um2 or 0.0))
    return [replace(worst, kind=kind)]


def _of_reader(
    one: MeasuredSlide, reader: str, calls: Calls, slide_level: Sequence[Disagreement]
) -> list[Disagreement]:
    slide = one.result
    if (
        slide.image not in calls
        or slide.call == "no tissue"
        or calls[slide.image] == (slide.call == "positive")
    ):
        return []
    said = "positive" if calls[slide.image] else "negative"
    if slide_level:  # the AI is wrong, and why is known already
        part = slide_level[0]
        detail = f"{reader} calls it {said}, as manual review does: {part.detail}"
        return [replace(part, kind="reader", against=reader, detail=detail)]
    largest = max((lesion.longest_diameter_mm for lesion in one.truth), default=None)
    reason: Reason = "unexplained"
    detail = f"{reader} calls it {said}, manual review and AI {slide.call}"
    if said == "negative" and largest is not None and largest < SMALL_MM:
        reason = "missed small lesion"
        detail += f"; the largest lesion is {largest:.2f} mm, under {SMALL_MM} mm"
    return [replace(_disagreement(one, "reader", reason, detail), against=reader)]


def _disagreement(
    one: MeasuredSlide, kind: Kind, reason: Reason, detail: str, thing: Lesion | TruthLesion | None = None
) -> Disagreement:
    return Disagreement(
        image=one.result.image,
        patient=one.result.patient,
        side=one.result.side,
        kind=kind,
        against=MANUAL,
        reason=reason,
        detail=detail,
        object_id=thing.id if thing else None,
        x_qupath=thing.x_qupath if thing else None,
        y_qupath=thing.y_qupath if thing else None,
        area_um2=thing.area_um2 if thing else None,
        max_score=thing.max_score if thing else one.result.max_score,
    )
