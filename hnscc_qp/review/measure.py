"""One slide compared with manual review: everything that is measured while the slide is at hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.geometry.base import BaseGeometry

from hnscc_qp import study
from hnscc_qp.qupath.objects import PathObject
from hnscc_qp.qupath.ownership import detection_id
from hnscc_qp.review.agreement import exact_overlap, grid_overlap
from hnscc_qp.review.comparison import Call, Lesion, Overlap, SideName, SlideResult, TruthLesion
from hnscc_qp.review.froc import SlideDetections, evaluation_lesions, find_peaks, match_detections
from hnscc_qp.review.judged import Judged, judge
from hnscc_qp.review.lesions import Whose, match_lesions, measure_levels, overlaps
from hnscc_qp.review.reasons import Looks, StainMap, look, median_of, read_stain
from hnscc_qp.scoring.extent import block_areas_um2, votes_reached
from hnscc_qp.scoring.regions import TumorRegion, vectorize
from hnscc_qp.scoring.score_map import ScoreMap
from hnscc_qp.scoring.threshold import slide_status, votes_for
from hnscc_qp.slides.reader import Slide
from hnscc_qp.slides.tissue import find_tissue

_MOST_LOOKED_AT = 200
"""False regions of a slide that are looked at for a reason, the surest first; rules cost a look each."""


@dataclass(frozen=True, slots=True)
class SlideFacts:
    """What is known of a slide before it is measured."""

    image: str
    entry_id: str
    patient: str
    side: SideName
    positive: bool
    score_map: str
    """Its file, from the generation's folder on."""


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """What the rules of `reasons` need of one object."""

    looks: Looks
    shape_qupath: BaseGeometry


@dataclass(frozen=True, slots=True, eq=False)
class MeasuredSlide:
    """One slide's part of the comparison."""

    result: SlideResult
    lesions: tuple[Lesion, ...]
    truth: tuple[TruthLesion, ...]
    detections: SlideDetections | None
    """For the FROC curve; None where tumor is not outlined."""
    seen: Mapping[str, Seen]
    """Missed lesions and false regions, by id."""
    tumor: BaseGeometry
    """Outlined tumor and marks, in QuPath px."""
    density: float
    """Median optical density of the tissue."""
    unreadable: int
    """Windows that could not be decoded."""
    model: str
    """Hash of the models that scored it."""
    notes: tuple[str, ...]


def measure_slide(
    facts: SlideFacts,
    slide: Slide,
    score_map: ScoreMap,
    objects: Sequence[PathObject],
    *,
    threshold_score: float,
    min_lesion_um2: float,
    model_hash: str,
    classes: study.Classes,
    settings: study.Patches,
) -> MeasuredSlide:
    """Compare one slide's score map with its annotations.

    Args:
        facts: whose it is and what it is.
        slide: as it was scanned; read at one pixel per block, twice.
        score_map: of it.
        objects: the image's top-level objects.
        threshold_score: 0..1.
        min_lesion_um2: smallest region that makes a slide positive.
        model_hash: as the detections' ids have it.
        classes: what QuPath's classes mean.
        settings: which of overlapping annotations lies on top, and the like.

    Raises:
        AnnotationError: an annotation can't be used.
        SlideReadError: the slide can't be read at all.
    """
    grid, size = score_map.grid, score_map.image_size_px
    tissue = find_tissue(slide, grid, on_unreadable=lambda error: None)
    judged = judge(
        objects,
        name=facts.image,
        size=size,
        grid=grid,
        tissue=tissue,
        classes=classes,
        settings=settings,
        positive=facts.positive,
    )
    block_um2 = block_areas_um2(score_map)
    threshold_votes = votes_for(threshold_score, score_map.max_level)
    levels = measure_levels(score_map, judged, block_um2)
    regions = vectorize(score_map, threshold_votes=threshold_votes)
    ids = [
        str(detection_id(region.polygon_qupath, slide_name=facts.image, model_hash=model_hash))
        for region in regions
    ]
    counted = evaluation_lesions(judged.tumor, size_qupath=size, pixel_size=grid.pixel_size)
    whose = Whose(facts.image, facts.patient, facts.side)
    lesions, truth = match_lesions(
        whose, score_map, judged, regions, ids, threshold_votes=threshold_votes, counted=counted
    )
    detections = None
    if judged.outlined:
        votes = np.where(judged.judged_um2 >= block_um2 / 2, score_map.votes, 0).astype(np.uint8)
        peaks = find_peaks(votes, levels=score_map.max_level, block_qupath=grid.block_qupath)
        detections = match_detections(peaks, counted, patient=facts.patient)
    stain = read_stain(slide, grid)
    exact, whole_blocks = _overlaps(judged, regions, score_map, threshold_votes, block_um2)
    call: Call = "no tissue"
    if score_map.windows:
        call = slide_status(
            votes_reached(levels.largest_um2, min_lesion_um2) if min_lesion_um2 else score_map.max_votes,
            threshold_votes,
        )
    result = SlideResult(
        image=facts.image,
        entry_id=facts.entry_id,
        patient=facts.patient,
        side=facts.side,
        truth="positive" if facts.positive else "negative",
        call=call,
        max_votes=score_map.max_votes,
        max_score=score_map.max_votes / score_map.max_level,
        size_qupath=size,
        pixel_size_um=(grid.pixel_size.x, grid.pixel_size.y),
        score_map=facts.score_map,
        tissue_um2=float(judged.judged_um2.sum()),
        outlined=judged.outlined,
        truth_um2=float(judged.tumor_um2.sum()),
        ai_um2=levels.ai_um2,
        overlap_um2=levels.overlap_um2,
        largest_um2=levels.largest_um2,
        regions=levels.regions,
        false_regions=levels.false_regions,
        exact=exact,
        grid=whole_blocks,
    )
    outlines = {known_as: region.polygon_qupath for known_as, region in zip(ids, regions, strict=True)}
    return MeasuredSlide(
        result=result,
        lesions=lesions,
        truth=truth,
        detections=detections,
        seen=_look_at_errors(
            lesions, truth, outlines=outlines, judged=judged, stain=stain, tissue=tissue, score_map=score_map
        ),
        tumor=shapely.union(judged.tumor, judged.gaps),
        density=median_of(stain.density[tissue]),
        unreadable=score_map.unreadable,
        model=model_hash,
        notes=tuple(f"{facts.image}: {line}" for line in judged.remarks),
    )


def _overlaps(
    judged: Judged,
    regions: Sequence[TumorRegion],
    score_map: ScoreMap,
    threshold_votes: int,
    block_um2: NDArray[np.float64],
) -> tuple[Overlap | None, Overlap | None]:
    """Agreement at the threshold, of polygons and of blocks; None where tumor is not outlined."""
    if not judged.outlined:
        return None, None
    found = shapely.union_all([region.polygon_qupath for region in regions]).intersection(judged.area)
    half = block_um2 / 2
    return exact_overlap(found, judged.tumor, judged.grid.pixel_size), grid_overlap(
        (score_map.votes >= threshold_votes) & (judged.judged_um2 >= half),
        judged.tumor_um2 >= half,
        block_um=judged.grid.mpp * judged.grid.step_px,
    )


def _look_at_errors(
    lesions: Sequence[Lesion],
    truth: Sequence[TruthLesion],
    *,
    outlines: Mapping[str, BaseGeometry],
    judged: Judged,
    stain: StainMap,
    tissue: NDArray[np.bool_],
    score_map: ScoreMap,
) -> dict[str, Seen]:
    false = sorted((one for one in lesions if one.match == "false"), key=lambda one: -one.max_score)
    wanted = {one.id: outlines[one.id] for one in false[:_MOST_LOOKED_AT]}
    missed = [one for one in truth if not one.found]
    pieces = shapely.get_parts(judged.drawn)
    for one in missed:
        place = shapely.Point(one.x_qupath, one.y_qupath)
        wanted[one.id] = pieces[int(np.argmin(shapely.distance(pieces, place)))]
    slide_blueness = median_of(stain.blueness[tissue])
    block, number, _ = overlaps(list(wanted.values()), judged.grid)
    return {
        known_as: Seen(
            look(block[number == index], stain, score_map.coverage, slide_blueness=slide_blueness), shape
        )
        for index, (known_as, shape) in enumerate(wanted.items())
    }
